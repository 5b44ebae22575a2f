/* memory.h: the bytes of a buffer that came from the other side, as an object. */
#ifndef ISOLATION_MEMORY_H
#define ISOLATION_MEMORY_H

#include "codec.h"

/* The bytes of a blob: a bytearray (bytes where it is not writable), or, where they are many, an
 * object with the buffer protocol that has them without a copy. New reference, or NULL with an
 * exception. */
PyObject *memory_of_frame(const struct frame *frame, const unsigned char *data, size_t size,
                          bool writable);
/* A contiguous pickle.PickleBuffer. 0, or -1 with an exception. */
int encode_pickle_buffer(struct message *m, PyObject *o);
PyObject *decode_pickle_buffer(struct incoming *in);
/* buffer_mark(o): what to compare o's buffer with later: None where it is as it came from the other
 * side, else a copy of its bytes. */
PyObject *buffer_mark(PyObject *module, PyObject *o);
/* buffer_address(o): of its first byte. */
PyObject *buffer_address(PyObject *module, PyObject *o);
/* buffer_changed(o, mark): is it another than the mark, which may be any buffer, says? */
PyObject *buffer_changed(PyObject *module, PyObject *args);
int memory_init(core_state *core, PyObject *module);

#endif
