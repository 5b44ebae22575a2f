/* handles.h: exported targets and proxies by address. */
#ifndef ISOLATION_HANDLES_H
#define ISOLATION_HANDLES_H

#include "state.h"

/* The export record of o, made when there is none; NULL with an exception. */
struct export *export_object(PeerObject *peer, PyObject *o);
/* Borrowed: what `handle` names, or NULL without an exception. */
PyObject *export_find(PeerObject *peer, uint64_t handle);
APART void export_release(PeerObject *peer, uint64_t handle, uint64_t count);
void exports_clear(PeerObject *peer);
/* Removes those of which `keep` says no; it must not run code. 0, or -1 with an exception. */
int exports_keep(PeerObject *peer, bool (*keep)(struct export *e, void *argument), void *argument);

/* The proxy record of o, or NULL when o is no proxy. */
struct proxy *proxy_find(PyObject *o);
/* Borrowed: the live proxy for `handle` of this epoch, or NULL. */
PyObject *proxy_of_handle(PeerObject *peer, uint64_t handle);
/* Makes o the proxy of `handle`, received once; or counts one more receipt when it is so already.
 * 0, or -1 with an exception. */
int proxy_bind(PeerObject *peer, PyObject *o, uint64_t handle);
/* Makes o a proxy without a handle: of the view of the dict `of` that the stub `method` gives. o
 * must be of a class with our finaliser. 0, or -1 with an exception. */
int proxy_bind_view(PeerObject *peer, PyObject *o, PyObject *of, PyObject *method);
/* Gives such a proxy the handle of `made`, a proxy that nobody has seen yet. 0, or -1 likewise. */
int proxy_become(struct proxy *p, struct proxy *made);
/* Receipt of a handle that needs no new proxy. */
void proxy_received(struct proxy *p);
/* tp_finalize of proxy classes. Queues the release; never sends, never blocks. */
void proxy_finalize(PyObject *o);
void proxy_drop(struct proxy *p);
/* Drops all records of a peer that is being freed. */
void proxies_forget(PeerObject *peer);
/* Ends what proxy_bind tied only for the requests under way. */
void proxies_let_go(PeerObject *peer);
/* Keeps a received release until requests older than `stamp` have ended. */
void release_later(PeerObject *peer, uint64_t handle, uint64_t count, uint64_t stamp);
void release_queue(PeerObject *peer, uint64_t handle, uint64_t count);

#endif
