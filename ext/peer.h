/* peer.h: one end of a context. Numbers requests, waits for replies, and serves the other side's
 * requests of the same strand while it waits. Knows frames, not sockets. */
#ifndef ISOLATION_PEER_H
#define ISOLATION_PEER_H

#include "codec.h"
#include "state.h"

enum op {
#define REQUEST(NAME, text, executor) OP_##NAME,
#define EVENT(NAME, text) OP_##NAME,
#include "ops.def"
#undef REQUEST
#undef EVENT
    OP_COUNT
};
/* Added to the operation of a request: a call whose result may come later, as a future. */
#define OP_DEFERRABLE 0x100u

/* A request: begin, encode what it needs, then finish, or abandon. Begin makes sure that the
 * context runs, or raises. Both ends free the message. */
int request_begin(PeerObject *peer, struct message *m, unsigned op);
PyObject *request_finish(struct message *m);
void request_abandon(struct message *m);

/* Kernel: the child is to be told first what has changed in the session's state. */
bool sync_due(PeerObject *peer);
/* Parts of these, for requests that are several calls (batch*.c). Of the message request_await()
 * needs only what frame_send() (exchange.h) leaves of it: the result, or NULL with an exception. */
PyObject *request_await(struct message *m);
void request_end(PeerObject *peer, struct strand *s);
/* This thread does not use the child for now: who waits for that goes on. */
void request_pause(PeerObject *peer, struct strand *s);
void request_resume(PeerObject *peer, struct strand *s);
/* Makes the answer to a request in *m, to be sent: the result, or the exception that is set (result
 * NULL). Steals the result. */
void build_reply(struct message *m, PeerObject *peer, struct strand *s, unsigned op,
                 uint64_t request, PyObject *result, unsigned flags);

/* Loops of the threads; see serve.c and service.c. */
int peer_serve(PeerObject *peer, struct strand *s);
int peer_service(PeerObject *peer, uint32_t epoch);
int peer_child_service(PeerObject *peer);
/* For tests: takes these bytes as a frame that came on the calling thread's strand. New reference
 * to the result in a reply, to None for anything else; NULL with an exception. */
PyObject *peer_feed(PeerObject *peer, const void *data, size_t size);
int peer_say_hello(PeerObject *peer, struct strand *s);
int peer_wait_hello(PeerObject *peer, struct strand *s);
int peer_send_event(PeerObject *peer, struct strand *s, enum op op, const void *body, size_t size);

/* Kernel: the life ends now, by a wish and not by itself: requests under way are told so. */
void peer_ending(PeerObject *peer, enum ending_how how);
/* Raises what the use of a lost target raises; attribute: as an AttributeError too. */
void peer_raise_stale(PeerObject *peer, PyObject *proxy, bool attribute);
/* True when the target of p is certainly lost, so that only local answers are possible. */
bool proxy_is_lost(struct proxy *p);
/* New reference to what a name of the other side means here. */
PyObject *peer_resolve(PeerObject *peer, PyObject *module, PyObject *qualname);
PyObject *peer_set_state(PeerObject *peer, PyObject *o, PyObject *state);
/* trace.c: prints the frame when ISOLATION_DEBUG is set. */
void peer_trace(PeerObject *peer, const char *direction, const void *data, size_t size);

/* ops.c: runs the request in `in`. New reference, or NULL with the exception to send. */
PyObject *op_execute(struct incoming *in, unsigned *flags);
/* sys.getsizeof() adds to __sizeof__() what is before the object: that of the target comes with the
 * answer, that of the proxy is taken off. Steals `size`. */
PyObject *add_size(PyObject *size, Py_ssize_t more);
const char *op_name(unsigned op);

/* Child: checks whether module attributes that the other side may have cached are still the same.
 */
bool watched_changed(PeerObject *peer);

int peer_init(core_state *core, PyObject *module);

/* death_record(): what the child wrote down when it died (record.h), as one block: header, then the
 * used parts of stack, maps and python; empty when it has written nothing. None where it could not
 * have. Kernel. */
PyObject *peer_death_record(PeerObject *self, PyObject *ignored);

#endif
