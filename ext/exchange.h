/* exchange.h: what the files behind peer.h share: frames, serving, waiting, death. */
#ifndef ISOLATION_EXCHANGE_H
#define ISOLATION_EXCHANGE_H

#include "peer.h"

#include <time.h>

#define SLICE_MS 50 /* a wait lets Python see signals at least this often */

struct waiting {
    uint64_t request;          /* what is waited for */
    struct BatchObject *batch; /* borrowed or NULL: which it is a call of */
    struct waiting *outer;     /* the wait of this strand inside which this one began, or NULL */
    unsigned serving;          /* s->serving then */
    struct incoming
        *held;     /* borrowed or NULL: a request that is served once streams have had their turn */
    bool reading;  /* its own reply: this side is in control again */
    bool answered; /* its reply is read, or was, perhaps during an inner wait */
    struct answer answer;
    PyObject *parked; /* strong: what Python raised inside the wait; raised when the request ends */
    double since;     /* when it was interrupted */
    bool interrupted, hinted, killed;
    double
        timed_out; /* monotonic seconds, when the strand's deadline was seen to have passed; or 0 */
};

/* Monotonic seconds. */
static inline double
now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline void
incoming_free(struct incoming *in)
{
    Py_CLEAR(in->seen);
    frame_free(&in->frame);
}

/* peer.c: raises an exception of ipython_isolation.errors; always -1. */
int raise_error(const char *name, const char *text);

/* ---- frames.c ---- */

/* Header, releases and changes of pairs: what every frame starts with. 0, or -1 with an exception.
 */
int frame_begin(struct message *m, unsigned op, unsigned flags, uint64_t request);
/* The header alone, which cannot fail but for memory. */
void frame_header_begin(struct message *m, unsigned op, uint64_t request);
/* Sends the frame and frees the message. */
int frame_send(struct message *m);
/* Reads the header of a received frame. 1: it is for us; 0: dropped (of another life); -1: garbled.
 */
int accept_frame(PeerObject *peer, struct strand *s, struct incoming *in);
/* Then what follows it: releases, changes of buffers, classes and pairs. */
int frame_open(struct incoming *in);
/* An answer that nobody waits for: what it refers to is released, what it describes is kept. */
APART void discard(struct incoming *in);
/* After channel_recv() has failed; always -1. */
RARE int receive_failed(PeerObject *peer, struct strand *s);
/* Applies releases that waited for requests of other strands. */
void late_releases_apply(PeerObject *peer);

/* ---- drain.c ---- */

/* Passes on everything that is in the child's pipes. Keeps the first exception of the writer in
 * *parked and goes on: nothing that the child printed is lost. */
APART void drain_output(PeerObject *peer, PyObject **parked);
/* The same once the child has exited; what other threads have read goes first. Who closes may end
 * the session next, and with it those threads. */
void drain_last(PeerObject *peer, PyObject **parked);

/* ---- serve.c ---- */

/* Around what the child executes for the kernel in its main thread, for signals: see serve.c. */
uint64_t execution_begin(PeerObject *peer, uint64_t request);
void execution_end(PeerObject *peer, uint64_t outer);
/* Runs one request of the other side and answers it. -1 only when answering itself failed. */
int serve(struct incoming *in);

/* ---- wait.c ---- */

/* One sleep at most; as channel_wait(), where bits 0 to 4 are the supervisor's report, the end of
 * the life, the alarm, stdout and stderr. Without the GIL, but for the first moment. */
int wait_once(PeerObject *peer, struct strand *s, int timeout, unsigned *ready);

/* ---- patience.c ---- */

/* Of the wait for m: its deadline is set, looked at, and said to have passed. */
void begin_deadline(PeerObject *peer, struct message *m);
APART void check_deadline(PeerObject *peer, struct message *m, struct waiting *w);
void call_answered(struct strand *s, const struct waiting *w);
RARE void raise_timed_out(PeerObject *peer, struct message *m, PyObject **result);
/* How long the wait may sleep, in milliseconds. */
int slice(struct strand *s);
void interrupt_child(PeerObject *peer, struct message *m);
/* Lets Python see signals. */
void check_signals(PeerObject *peer, struct message *m, struct waiting *w);
/* Steals exc, which the session's own code raised inside the wait. */
void raised_inside(PeerObject *peer, struct message *m, struct waiting *w, PyObject *exc);

/* ---- death.c ---- */

/* Whether what wait_once() has found says that the life is over. */
RARE bool is_over(PeerObject *peer, unsigned ready);
/* Raises what becomes of the request m then. */
RARE void raise_terminated(PeerObject *peer, struct message *m);
/* What m was called with: (args, kwargs), new reference; None where that is not known. */
PyObject *called_with(const struct message *m);

#endif
