/* iteration.h: plain containers of the other side, iterated several items at a time. */
#ifndef ISOLATION_ITERATION_H
#define ISOLATION_ITERATION_H

#include "proxy.h"
#include "state.h"

bool is_plain_container(PyTypeObject *cls);
/* An iterator over the proxy p, as the __iter__ that `stub` stands for gives. New reference. */
PyObject *iteration_new(StubObject *stub, struct proxy *p);
/* For an iterator of ours. */
PyObject *iteration_exact(PyObject *o);
PeerObject *iteration_peer(PyObject *o);
PyObject *iteration_seen(StubObject *stub, struct proxy *p, PyObject *const *args,
                         Py_ssize_t nargs);
/* Something may have changed over there. */
void iteration_effect(PeerObject *peer);
/* The executor. */
PyObject *iteration_answer(PyObject *descriptor, PyObject *o, uint64_t consumed, uint64_t want);
int iteration_init(core_state *core, PyObject *module);

#endif
