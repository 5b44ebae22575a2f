/* iteration.h: plain containers of the other side, iterated several items at a time. */
#ifndef ISOLATION_ITERATION_H
#define ISOLATION_ITERATION_H

#include "proxy.h"
#include "state.h"

/* An iterator over the proxy p, as the __iter__ that `stub` stands for gives. New reference. */
PyObject *iteration_new(StubObject *stub, struct proxy *p);
/* For an iterator of ours. */
PyObject *iteration_exact(PyObject *o);
PeerObject *iteration_peer(PyObject *o);
PyObject *iteration_seen(StubObject *stub, struct proxy *p, PyObject *const *args,
                         Py_ssize_t nargs);
/* Something may have changed over there. */
void iteration_effect(PeerObject *peer);
/* An iterator over `container`, a proxy, whose content is known: the items, a tuple. */
PyObject *iteration_known(StubObject *stub, PyObject *container, PyObject *items);
/* New reference to a tuple of all items of a list, or of all (key, value) of a dict, fetched as few
 * times as can be; NULL without an exception where o is no proxy of either. */
PyObject *iteration_contents(PyObject *o);
/* For tests: takes an answer as if an iterator had asked for it, and steals it. New reference to
 * the items, or NULL with an exception. */
PyObject *iteration_taken(PeerObject *peer, PyObject *answer);
int iteration_init(core_state *core, PyObject *module);

#endif
