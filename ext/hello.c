/* hello.c: the first frame of a life. */
#include "exchange.h"

#include <errno.h>
#include <string.h>

/* The first frame of a life. It takes the lane where there is one: then libzmq, with all that it is
 * linked to, need not even be loaded. */
int
peer_say_hello(PeerObject *peer, struct strand *s)
{
    return peer_send_event(peer, s, OP_HELLO, peer->nonce, sizeof peer->nonce);
}

static int
wait_hello(PeerObject *peer, struct strand *s, struct waiting *w)
{
    struct message m;
    message_init(&m, peer, s, false);
    m.operation = "start";
    for (;;) {
        struct incoming in;
        unsigned ready = 0;
        if (s->closed || s->epoch != peer->epoch) {
            Py_CLEAR(w->parked); /* a signal handler or a stream has closed the context meanwhile */
            return raise_error("ClientStateError", "the context was closed while it started");
        }
        int got = channel_recv(s->channel, &in.frame);
        if (got < 0) {
            return receive_failed(peer, s);
        }
        if (got > 0) {
            got = accept_frame(peer, s, &in);
            if (got < 0) {
                return -1;
            }
            if (got == 0) {
                continue;
            }
            const unsigned char *nonce = read_raw(&in.r, sizeof peer->nonce);
            bool right = in.header.op == OP_HELLO && nonce != NULL &&
                         memcmp(nonce, peer->nonce, sizeof peer->nonce) == 0;
            frame_free(&in.frame);
            if (!right) {
                return garbled("hand-shake");
            }
            drain_output(peer, &w->parked);
            if (w->parked != NULL) {
                compat_raise(Py_NewRef(w->parked));
                return -1;
            }
            return 0;
        }
        if (wait_once(peer, s, SLICE_MS, &ready) < 0 && errno != EINTR) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        if (ready & (8 | 16)) {
            drain_output(peer, &w->parked);
        }
        if (ready & 7 && is_over(peer, ready)) {
            drain_output(peer, &w->parked);
            Py_CLEAR(w->parked);
            raise_terminated(peer, &m);
            return -1;
        }
        if (PyErr_CheckSignals() < 0) {
            Py_CLEAR(w->parked);
            return -1;
        }
    }
}

/* Waits for the first frame of a life and checks that it is what our own child says. */
int
peer_wait_hello(PeerObject *peer, struct strand *s)
{
    /* For no reply; but what a signal handler asks meanwhile is asked aside. */
    struct waiting w = {.outer = s->waiting, .serving = s->serving, .answered = true};
    s->pins++; /* a signal handler may close the context meanwhile */
    s->waiting = &w;
    int rc = wait_hello(peer, s, &w);
    s->waiting = w.outer;
    s->pins--;
    Py_XDECREF(w.parked);
    return rc;
}
