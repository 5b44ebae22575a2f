/* rollback.h: frozen copies of the child, and how one takes over; both sides. See rollback.c. */
#ifndef ISOLATION_ROLLBACK_H
#define ISOLATION_ROLLBACK_H

#include "freeze.h"
#include "state.h"

/* Kernel: would this target of the child still be there if the child died now? */
bool rollback_knows(PeerObject *peer, uint64_t handle);
/* Kernel: is it time for another frozen copy, and may this thread ask for one? */
bool rollback_due(PeerObject *peer);
/* Kernel: lets the host decide about another copy. 0, or -1 with an exception. */
APART int rollback_renew(PeerObject *peer);
/* Kernel: the copy, if there is one, ends. */
void rollback_drop(PeerObject *peer);
/* Kernel: these changes of classes have been told; a copy made earlier does not know them. */
void rollback_told(PeerObject *peer, PyObject *cls, PyObject *name);

/* Child: the descriptors of a life that it was given, for connect(). */
void take_life_fds(PeerObject *self, const int fds[FREEZE_FDS]);

/* Methods of _core.Peer; see _core.pyi. */
PyObject *peer_keep_frozen(PeerObject *self, PyObject *next_handle);
PyObject *peer_drop_frozen(PeerObject *self, PyObject *ignored);
PyObject *peer_survivors(PeerObject *self, PyObject *ignored);
PyObject *peer_settle(PeerObject *self, PyObject *args);
PyObject *peer_freeze(PeerObject *self, PyObject *ignored);
PyObject *peer_take_counts(PeerObject *self, PyObject *counts);

#endif
