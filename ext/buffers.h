/* buffers.h: the buffer protocol of proxies; see buffers.c. */
#ifndef ISOLATION_BUFFERS_H
#define ISOLATION_BUFFERS_H

#include "codec.h"

/* The slots of mirrored classes whose targets have buffers. */
int proxy_getbuffer(PyObject *self, Py_buffer *view, int flags);
void proxy_releasebuffer(PyObject *self, Py_buffer *view);

/* The buffer of o, asked for with these flags: (hold, bytes, format, itemsize, readonly, shape,
 * strides or None). New reference. */
PyObject *buffer_hold(PeerObject *peer, PyObject *o, int flags);
bool is_hold(PyObject *o);

/* Appends what was written to the copies of the other side's buffers and, the other way round, to
 * the buffers that it has copies of. Sets *any when there was something. */
APART int buffers_encode(struct message *m, bool *any);
/* The frame has been sent. */
void buffers_sent(PeerObject *peer);
APART int buffers_decode(struct incoming *in);
/* A frozen copy of the other side, or this one, has taken over: what the two have of a buffer may
 * differ. The side of the target sends all of it, with the next frame. */
void buffers_carry_over(PeerObject *peer);
/* A life is over: frees the copies that nobody looks at. */
void buffers_forget(PeerObject *peer);

int buffers_init(core_state *core, PyObject *module);

#endif
