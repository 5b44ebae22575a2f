/* wait.c: the wait for the answer to a request. */
#include "exchange.h"

#include "batch.h"
#include "strands.h"

#include <errno.h>
#include <time.h>

#define LAST_FRAME_MS 20 /* how long what a dead child had sent may take to arrive */
#define SPIN_US 40       /* how long a wait spins with the GIL held, and ... */
#define GIVE_GIL_MS 5    /* ... how long it may go on so before it lets other threads run */

/* Passes on the child's output while m is under way. */
static RARE void
relay_output(PeerObject *peer, struct message *m, struct waiting *w)
{
    PyObject *exc = NULL;
    drain_output(peer, &exc);
    if (exc != NULL) {
        raised_inside(peer, m, w, exc);
    }
}

/* Spins for a frame with the GIL held: a thread that lets go of it gets it back from a busy one
 * only after 5 ms. Calls that follow each other quickly never let go of it in C, so from time to
 * time this does not spin. */
static bool
spin_once(PeerObject *peer, struct strand *s)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    uint32_t ms = (uint32_t)(t.tv_sec * 1000 + t.tv_nsec / 1000000);
    if (ms - peer->gil_given < GIVE_GIL_MS && channel_spin(s->channel, SPIN_US)) {
        return true;
    }
    peer->gil_given = ms; /* which the caller is about to do */
    return false;
}

int
wait_once(PeerObject *peer, struct strand *s, int timeout, unsigned *ready)
{
    int rc = 0, saved = 0;
    bool poll_alarm = true;
    if (spin_once(peer, s)) {
        *ready = CHANNEL_FRAME;
        return 1;
    }
    if (!peer->is_kernel) {
        Py_BEGIN_ALLOW_THREADS
        rc = channel_wait(s->channel, NULL, 0, timeout, ready);
        saved = errno;
        Py_END_ALLOW_THREADS
        errno = saved;
        return rc;
    }
    struct shared_page *page = process_shared(peer->process);
    if (page != NULL && atomic_load(&page->announced) == ANNOUNCED_TENTATIVE) {
        poll_alarm = false; /* may recover: the reply or the exit will tell */
    }
    int fds[] = {process_control(peer->process), process_dead_fd(peer->process),
                 poll_alarm ? process_alarm(peer->process) : -1, process_out(peer->process),
                 process_err(peer->process)};
    peer->polling++;
    Py_BEGIN_ALLOW_THREADS
    rc = channel_wait(s->channel, fds, 5, timeout, ready);
    saved = errno;
    Py_END_ALLOW_THREADS
    peer->polling--;
    errno = saved;
    return rc;
}

/* Reads a reply, and frees it. */
static struct answer
read_reply(struct incoming *in)
{
    struct answer answer = {.flags = in->header.flags};
    if (frame_open(in) == 0) {
        in->strand->framing++;
        answer.value = decode(in);
        in->strand->framing--;
    }
    incoming_free(in);
    answer.failed = answer.value == NULL;
    if (answer.failed) {
        answer.value = compat_take_exception();
    }
    return answer;
}

/* A reply that is not the one waited for. What runs inside a wait (a signal handler, a stream of
 * the session, a finaliser) may ask the child something too; the replies to the outer request, or
 * to a batch's calls, then come first, and are the outer wait's. They are read now: replies that
 * come after them name classes that they describe. Any other is of a request that was given up. */
static RARE void
keep_or_discard(struct waiting *w, struct incoming *in)
{
    uint64_t request = in->header.request;
    for (; w != NULL; w = w->outer) {
        if (w->request == request && !w->answered) {
            w->answered = true;
            w->answer = read_reply(in);
            if (w->batch != NULL) {
                call_answered(in->strand, w);
            }
            return;
        }
        if (w->batch != NULL && batch_place(w->batch, request) != NULL) {
            struct answer answer = read_reply(in), *place = batch_place(w->batch, request);
            if (place != NULL) {
                *place = answer;
                call_answered(in->strand, w);
            }
            else { /* what it runs has met another one, which a child that misbehaves has sent */
                Py_DECREF(answer.value);
            }
            return;
        }
    }
    discard(in);
}

/* Raises what the other side has raised; steals it. */
static APART void
raise_here(PyObject *exc)
{
    if (PyExceptionInstance_Check(exc)) {
        chain_context(exc);
        compat_raise(exc);
        return;
    }
    if (exc == Py_None) { /* see build_bare_reply() */
        PyErr_SetString(PyExc_RuntimeError,
                        "what was raised in the other process could not be passed on: no memory or "
                        "no stack was left there");
    }
    else {
        garbled("error");
    }
    Py_DECREF(exc);
}

/* Raises what was parked during a wait that is over. Takes *result. */
static RARE void
raise_parked(PeerObject *peer, struct waiting *w, PyObject **result)
{
    if (w->killed && peer->is_kernel) {
        /* The user sees an interrupt, not what became of the child. */
        PyObject *raised = PyErr_Occurred() ? compat_take_exception() : NULL;
        PyObject *none = PyObject_CallMethod(peer->host, "killed", NULL);
        if (none == NULL) {
            PyErr_Clear();
        }
        Py_XDECREF(none);
        if (raised != NULL) {
            compat_raise(raised);
        }
    }
    /* The child's own KeyboardInterrupt shows where it was; else what was parked is raised. */
    bool same = *result == NULL && PyErr_Occurred() &&
                PyErr_GivenExceptionMatches(PyErr_Occurred(), (PyObject *)Py_TYPE(w->parked));
    if (same) {
        Py_DECREF(w->parked);
    }
    else {
        PyErr_Clear();
        Py_CLEAR(*result);
        compat_raise(w->parked);
    }
}

/* Waits for the reply to m and decodes it. */
PyObject *
request_await(struct message *m)
{
    PeerObject *peer = m->peer;
    struct strand *s = m->strand;
    struct waiting w = {
        .request = m->request, .batch = m->batch, .outer = s->waiting, .serving = s->serving};
    PyObject *result = NULL;
    struct incoming in;
    bool over = false, last = false;
    s->waiting = &w;
    m->died = m->cacheable = false;
    if (peer->is_kernel) {
        begin_deadline(peer, m);
    }
    if (m->batch != NULL && m->interrupted) {
        w.interrupted = true; /* the next interrupt kills */
        w.since = now();
        w.answered = batch_kept(m->batch, m->request, &w.answer);
        if (!w.answered) {
            interrupt_child(peer, m);
        }
    }
    for (;;) {
        unsigned ready = 0;
        int got = 0;
        if (m->batch != NULL && !w.answered) {
            w.answered = batch_kept(m->batch, m->request, &w.answer);
        }
        struct waiting *holds = w.outer;
        while (holds != NULL && holds->held == NULL) {
            holds = holds->outer;
        }
        if (holds != NULL && !w.answered) { /* what comes next may name what it describes */
            in = *holds->held;
            holds->held = NULL;
            if (serve(&in) < 0) {
                break;
            }
            continue;
        }
        if (w.answered) {
            got = 1;
        }
        else if (!s->closed && s->epoch == peer->epoch) {
            got = channel_recv(s->channel, &in.frame);
        }
        else {
            over = true;
        }
        if (got < 0 && s->garbled && peer->is_kernel) {
            over = last = true; /* said once; from now on it is a death like any other */
            got = 0;
        }
        if (got < 0) {
            receive_failed(peer, s);
            break;
        }
        if (got == 0) {
            if (over) {
                if (!last && !s->closed && s->epoch == peer->epoch) {
                    /* A reply that was sent before the death is delivered. */
                    last = true;
                    peer->polling++;
                    Py_BEGIN_ALLOW_THREADS
                    channel_last(s->channel, LAST_FRAME_MS);
                    Py_END_ALLOW_THREADS
                    peer->polling--;
                    continue;
                }
                if (!s->closed && s->epoch == peer->epoch) {
                    drain_output(peer, &w.parked);
                }
                raise_terminated(peer, m); /* what is parked is raised instead, below */
                m->died = true;
                break;
            }
            if (wait_once(peer, s, slice(s), &ready) < 0 && errno != EINTR) {
                PyErr_SetFromErrno(PyExc_OSError);
                break;
            }
            if (peer->is_kernel) {
                if (ready & (8 | 16)) {
                    relay_output(peer, m, &w);
                }
                over = over || peer->state != PEER_RUNNING || (ready & 7 && is_over(peer, ready));
                check_signals(peer, m, &w);
                if (s->deadline != 0 && !w.answered) {
                    check_deadline(peer, m, &w);
                }
            }
            else if (PyErr_CheckSignals() < 0) {
                PyObject *exc = compat_take_exception();
                Py_XSETREF(w.parked, exc);
            }
            continue;
        }
        got = w.answered ? 1 : accept_frame(peer, s, &in);
        if (got < 0) {
            break;
        }
        unsigned flags = w.answered ? w.answer.flags : got == 0 ? FRAME_EVENT : in.header.flags;
        if (flags & FRAME_EVENT) {
            if (got == 1) {
                if (frame_open(&in) < 0) {
                    PyErr_Clear();
                }
                incoming_free(&in);
            }
            continue;
        }
        if (!(flags & FRAME_REPLY)) {
            if (peer->is_kernel && process_has_output(peer->process)) {
                w.held = &in;
                relay_output(peer, m, &w); /* before what the callback prints */
                if (w.held == NULL) {
                    continue; /* a wait inside of that has served it */
                }
                w.held = NULL;
            }
            if (serve(&in) < 0) {
                break;
            }
            continue;
        }
        if (!w.answered && in.header.request != m->request) {
            keep_or_discard(&w, &in);
            continue;
        }
        if (!w.answered) { /* before streams of the session get what was printed: they may ask, too
                            */
            w.answered = true;
            w.reading = m->batch == NULL;
            w.answer = read_reply(&in);
            w.reading = false;
        }
        if (peer->is_kernel) {
            struct shared_page *page = process_shared(peer->process);
            if (page != NULL && atomic_load(&page->announced) == ANNOUNCED_TENTATIVE) {
                process_alarm_clear(peer->process); /* it goes on: the signal was dealt with */
            }
            if (process_has_output(peer->process)) {
                drain_output(peer, &w.parked);
            }
        }
        m->cacheable = (flags & FRAME_CACHEABLE) != 0;
        w.answered = false;
        if (w.answer.failed) {
            compat_raise(w.answer.value);
        }
        else {
            result = w.answer.value;
        }
        if (result != NULL && (flags & FRAME_ERROR)) {
            raise_here(result);
            result = NULL;
        }
        break;
    }
    s->waiting = w.outer;
    if (w.answered) {
        Py_XDECREF(w.answer.value);
    }
    if (w.timed_out != 0 && w.parked == NULL && !m->died) {
        raise_timed_out(peer, m, &result);
    }
    if ((w.parked != NULL || w.timed_out != 0) && peer->is_kernel && peer->state == PEER_RUNNING &&
        process_shared(peer->process) != NULL) {
        atomic_store(&process_shared(peer->process)->interrupt_request, 0);
    }
    m->interrupted = w.interrupted;
    if (w.parked != NULL) {
        raise_parked(peer, &w, &result);
    }
    return result;
}
