/* peer_parts.h: methods of `_core.Peer` that are in peer_lives.c; what they do is in _core.pyi. */
#ifndef ISOLATION_PEER_PARTS_H
#define ISOLATION_PEER_PARTS_H

#include "peer.h"

PyObject *peer_start(PeerObject *self, PyObject *args);
PyObject *peer_set_limits(PeerObject *self, PyObject *args);
PyObject *peer_cpu_used(PeerObject *self, PyObject *ignored);
PyObject *peer_get_hold(PeerObject *self, void *closure);
int peer_set_hold(PeerObject *self, PyObject *value, void *closure);
PyObject *peer_held(PeerObject *self, void *closure);
PyObject *peer_release(PeerObject *self, PyObject *ignored);
PyObject *peer_drop_spare(PeerObject *self, PyObject *ignored);
PyObject *peer_start_spare(PeerObject *self, PyObject *args);
PyObject *peer_take_spare(PeerObject *self, PyObject *ignored);
PyObject *peer_stand_by(PeerObject *self, PyObject *ignored);
PyObject *peer_take_over(PeerObject *self, PyObject *ignored);
PyObject *peer_close(PeerObject *self, PyObject *ignored);
PyObject *peer_give_up(PeerObject *self, PyObject *ignored);
PyObject *peer_started(PeerObject *self, PyObject *ignored);
PyObject *peer_forget(PeerObject *self, PyObject *ignored);
PyObject *peer_kill(PeerObject *self, PyObject *signal);

#endif
