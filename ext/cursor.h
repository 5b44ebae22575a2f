/* cursor.h: plain containers of this side, which the other side iterates. */
#ifndef ISOLATION_CURSOR_H
#define ISOLATION_CURSOR_H

#include "state.h"

/* What one answer may cost (ahead.h says what costs how much): */
#define ITERATE_FIRST 1024  /* the first one; doubled with each ... */
#define ITERATE_FEW 256     /* the first values that are fetched because one was asked for */
#define ITERATE_MOST 16384  /* ... up to here */
#define ITERATE_ALL 1048576 /* one where all items are wanted at once */

bool is_plain_container(PyTypeObject *cls);
/* What a request asks of a container or cursor. */
struct iterate {
    uint32_t epoch;
    uint64_t position, want; /* how many items it has used in all; what those wanted may cost */
    uint64_t length; /* of a container whose items were known, one more than it had then; else 0 */
};
#define ITERATE_FAILED UINT64_MAX /* as `length`: an iterator over it has found another length */
/* The executor. New reference. */
PyObject *cursor_answer(PyTypeObject *cls, PyObject *descriptor, PyObject *o,
                        struct iterate *asked);
int cursor_init(core_state *core, PyObject *module);

#endif
