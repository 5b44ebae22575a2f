/* zmq_late.h: libzmq, loaded when it is first needed instead of with this library. No Python.
 *
 * It comes with a dozen libraries of its own: 2 MB of resident memory and some milliseconds, of
 * which a child whose frames all take the lane has no use. Whoever may be the first calls
 * zmq_late_load(); everything else is only reached with something that libzmq has made.
 *
 * Include this instead of <zmq.h>. */
#ifndef ISOLATION_ZMQ_LATE_H
#define ISOLATION_ZMQ_LATE_H

#include <zmq.h>

#define ZMQ_LATE(X)                                                                                \
    X(bind)                                                                                        \
    X(close)                                                                                       \
    X(connect)                                                                                     \
    X(ctx_new)                                                                                     \
    X(ctx_set)                                                                                     \
    X(ctx_term)                                                                                    \
    X(getsockopt)                                                                                  \
    X(msg_close)                                                                                   \
    X(msg_copy)                                                                                    \
    X(msg_data)                                                                                    \
    X(msg_get)                                                                                     \
    X(msg_init)                                                                                    \
    X(msg_init_data)                                                                               \
    X(msg_init_size)                                                                               \
    X(msg_more)                                                                                    \
    X(msg_recv)                                                                                    \
    X(msg_send)                                                                                    \
    X(msg_size)                                                                                    \
    X(poll)                                                                                        \
    X(send)                                                                                        \
    X(setsockopt)                                                                                  \
    X(socket)                                                                                      \
    X(version)

struct zmq_late {
#define ZMQ_LATE_FIELD(name) __typeof__(zmq_##name) *name;
    ZMQ_LATE(ZMQ_LATE_FIELD)
#undef ZMQ_LATE_FIELD
};

extern struct zmq_late zmq_late;

/* 0, or -1 with errno ELIBACC: there is none; then zmq_late_error() says what the loader says. Any
 * thread may call it, any number of times. */
int zmq_late_load(void);
const char *zmq_late_error(void);

#define zmq_bind zmq_late.bind
#define zmq_close zmq_late.close
#define zmq_connect zmq_late.connect
#define zmq_ctx_new zmq_late.ctx_new
#define zmq_ctx_set zmq_late.ctx_set
#define zmq_ctx_term zmq_late.ctx_term
#define zmq_getsockopt zmq_late.getsockopt
#define zmq_msg_close zmq_late.msg_close
#define zmq_msg_copy zmq_late.msg_copy
#define zmq_msg_data zmq_late.msg_data
#define zmq_msg_get zmq_late.msg_get
#define zmq_msg_init zmq_late.msg_init
#define zmq_msg_init_data zmq_late.msg_init_data
#define zmq_msg_init_size zmq_late.msg_init_size
#define zmq_msg_more zmq_late.msg_more
#define zmq_msg_recv zmq_late.msg_recv
#define zmq_msg_send zmq_late.msg_send
#define zmq_msg_size zmq_late.msg_size
#define zmq_poll zmq_late.poll
#define zmq_send zmq_late.send
#define zmq_setsockopt zmq_late.setsockopt
#define zmq_socket zmq_late.socket
#define zmq_version zmq_late.version

#endif
