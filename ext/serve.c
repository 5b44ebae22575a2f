/* serve.c: requests of the other side: run and answered. */
#include "exchange.h"

#include "batch.h"
#include "handles.h"
#include "iteration.h"
#include "strands.h"

#include <errno.h>

static int
encode_result(struct message *m, unsigned op, uint64_t request, PyObject *result, unsigned flags)
{
    if (frame_begin(m, op, FRAME_REPLY | flags, request) < 0) {
        return -1;
    }
    if (!m->peer->is_kernel && watched_changed(m->peer)) {
        m->flags |= FRAME_INVALIDATE;
        m->flags &= ~(unsigned)FRAME_CACHEABLE;
    }
    return encode(m, result, true) < 0 || message_check(m) < 0 ? -1 : 0;
}

/* What always can be said, so that nobody waits for ever: that there was an error. */
static RARE void
build_bare_reply(struct message *m, PeerObject *peer, struct strand *s, unsigned op,
                 uint64_t request)
{
    PyErr_Clear();
    message_free(m, true);
    message_init(m, peer, s, true);
    frame_header_begin(m, op, request);
    m->flags = FRAME_REPLY | FRAME_ERROR;
    encode(m, Py_None, true);
}

void
build_reply(struct message *m, PeerObject *peer, struct strand *s, unsigned op, uint64_t request,
            PyObject *result, unsigned flags)
{
    message_init(m, peer, s, true);
    if (result != NULL && encode_result(m, op, request, result, flags) < 0) {
        message_free(m, true);
        message_init(m, peer, s, true);
        Py_CLEAR(result);
    }
    if (result == NULL) {
        PyObject *exc = compat_take_exception();
        if (frame_begin(m, op, FRAME_REPLY | FRAME_ERROR, request) < 0 ||
            encode(m, exc, true) < 0) {
            /* The exception itself cannot be passed: say so instead. */
            PyObject *second = compat_take_exception();
            PyObject *plain =
                PyObject_CallMethod(core_get()->errors, "unpassable", "OO", exc, second);
            message_free(m, true);
            message_init(m, peer, s, true);
            pairs_forget(s, 0); /* nor can what has changed, perhaps */
            if (plain == NULL || frame_begin(m, op, FRAME_REPLY | FRAME_ERROR, request) < 0 ||
                encode(m, plain, true) < 0) {
                build_bare_reply(m, peer, s, op, request);
            }
            Py_XDECREF(second);
            Py_XDECREF(plain);
        }
        if (!peer->is_kernel && watched_changed(peer)) {
            m->flags |= FRAME_INVALIDATE;
        }
        Py_XDECREF(exc);
    }
    /* What the request made or held goes before the answer, so that whoever reads the answer finds
     * it gone; finalisers may even call back. */
    Py_XDECREF(result);
}

/* The main thread begins to execute a request for the kernel, which may interrupt it from here on:
 * the request around it, for execution_end(). The handler of the signal runs in this thread, where
 * the order of its own stores holds anyway; or in another one, while this one blocks the signal or
 * has one to handle. What that one misses, it is told again: interrupt_again() goes on for a
 * second. So nothing here waits until all processors see it. */
uint64_t
execution_begin(PeerObject *peer, uint64_t request)
{
    struct shared_page *page = peer->page;
    uint64_t outer = atomic_load_explicit(&page->executing_request, memory_order_relaxed);
    atomic_store_explicit(&page->taken_request, request, memory_order_release);
    atomic_store_explicit(&page->executing_request, request, memory_order_release);
    atomic_signal_fence(memory_order_seq_cst);
    if (atomic_load(&page->interrupt_request) == request) {
        PyErr_SetInterrupt(); /* the signal overtook the request, and was ignored */
    }
    return outer;
}

void
execution_end(PeerObject *peer, uint64_t outer)
{
    atomic_store_explicit(&peer->page->executing_request, outer, memory_order_release);
    atomic_signal_fence(memory_order_seq_cst);
}

/* Runs one request of the other side and answers it. -1 only when answering itself failed. */
int
serve(struct incoming *in)
{
    PeerObject *peer = in->peer;
    struct strand *s = in->strand;
    size_t npairs = s->npairs;
    unsigned flags = 0;
    uint64_t outer = 0;
    bool interruptible = peer->page != NULL && s->id == STRAND_MAIN;
    PyObject *result = NULL;
    struct message m;
    uint32_t scope = s->scope;
    struct values values = {.request = in->header.request, .scope = in->header.scope};
    in->values = &values;
    s->scope = in->header.scope;
    values_begin(s, &values);
    if (interruptible) {
        outer = execution_begin(peer, in->header.request);
    }
    errno = 0; /* if it is ENOMEM when this request dies, it is of this request */
    s->serving++;
    iteration_effect(peer);
    struct entry entry = {.outer = s->entries};
    if (s->depth > 0) {
        entry.frame = PyThreadState_GetFrame(PyThreadState_Get());
        s->entries = &entry;
    }
    /* Two objects that each stand for the other would ask for ever: it ends as it does in-process.
     */
    if (frame_open(in) == 0 &&
        recursion_enter(" while answering the other process", STACK_REQUEST) == 0) {
        if (!s->closed) {
            channel_prepare(s->channel); /* in time for what takes no longer than that does */
        }
        result = op_execute(in, &flags);
        recursion_leave();
    }
    s->entries = entry.outer;
    Py_CLEAR(entry.frame);
    incoming_free(in);
    if (peer->reborn) {
        /* The request was made of the process that this one was copied from, which answered it. */
        Py_CLEAR(result);
        PyErr_Clear();
        values_end(s, &values);
        pairs_truncate(s, npairs);
        s->scope = scope;
        s->serving--;
        return 0;
    }
    if (in->unanswered) {
        values_end(s, &values);
        pairs_truncate(s, npairs);
        s->scope = scope;
        s->serving--;
        return -1;
    }
    if (interruptible) {
        execution_end(peer, outer);
        if (outer == 0) {
            /* An interrupt of this very request may have come too late to stop it: its outcome
             * stands, and the kernel raises KeyboardInterrupt by itself. */
            PyObject *outcome = result == NULL ? compat_take_exception() : NULL;
            if (PyErr_CheckSignals() < 0) {
                PyErr_Clear();
            }
            if (outcome != NULL) {
                compat_raise(outcome);
            }
        }
    }
    if (peer->batching > 0) {
        batches_flush(peer);
    }
    build_reply(&m, peer, s, in->header.op, in->header.request, result, flags);
    values_end(s, &values);
    int rc = frame_send(&m);
    s->scope = scope; /* control is lost: what ends now asks aside */
    s->serving--;
    pairs_truncate(s, npairs);
    if (s->serving == 0 && s->depth == 0) {
        proxies_let_go(peer);
    }
    return rc;
}

PyObject *
peer_feed(PeerObject *peer, const void *data, size_t size)
{
    struct incoming in;
    unsigned flags = 0;
    PyObject *result = NULL;
    struct strand *s = strand_current(peer);
    if (s == NULL) {
        return NULL;
    }
    if (frame_copy(data, size, &in.frame) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    size_t npairs = s->npairs;
    int got = accept_frame(peer, s, &in);
    if (got <= 0) {
        return got < 0 ? NULL : Py_NewRef(Py_None);
    }
    s->serving++;
    struct values values = {.request = in.header.request};
    bool request = !(in.header.flags & (FRAME_EVENT | FRAME_REPLY));
    if (request) {
        in.values = &values;
        values_begin(s, &values);
    }
    if (frame_open(&in) == 0) {
        result = in.header.flags & FRAME_EVENT   ? Py_NewRef(Py_None)
                 : in.header.flags & FRAME_REPLY ? decode(&in)
                                                 : op_execute(&in, &flags);
        if (result != NULL && (in.header.flags & FRAME_REPLY) && in.header.op == OP_ITERATE) {
            result = iteration_taken(peer, result);
        }
    }
    incoming_free(&in);
    if (request) {
        values_end(s, &values);
    }
    pairs_truncate(s, npairs);
    s->serving--;
    return result;
}

/* Serves strand s until its other end closes it or the life is over. 0, or -1 with an exception. */
static int
serve_loop(PeerObject *peer, struct strand *s)
{
    for (;;) {
        struct incoming in;
        unsigned ready = 0;
        if (s->closed || s->epoch != peer->epoch) {
            return 0;
        }
        int got = channel_recv(s->channel, &in.frame);
        if (got < 0) {
            return receive_failed(peer, s);
        }
        if (got == 0) {
            if (peer->is_kernel && peer->state != PEER_RUNNING) {
                return 0;
            }
            if (wait_once(peer, s, peer->is_kernel ? 1000 : -1, &ready) < 0 && errno != EINTR) {
                PyErr_SetFromErrno(PyExc_OSError);
                return -1;
            }
            if (peer->is_kernel && (ready & 7) && is_over(peer, ready)) {
                return 0;
            }
            if (peer->is_kernel && (ready & (8 | 16)) && !(ready & CHANNEL_FRAME)) {
                PyObject *parked = NULL;
                drain_output(peer, &parked);
                Py_XDECREF(parked);
            }
            if (PyErr_CheckSignals() < 0) {
                PyErr_Clear(); /* nothing is executing: not meant for user code */
            }
            continue;
        }
        got = accept_frame(peer, s, &in);
        if (got < 0) {
            return -1;
        }
        if (got == 0) {
            continue;
        }
        if (in.header.flags & FRAME_EVENT) {
            bool end = in.header.op == OP_CLOSE_STRAND;
            int rc = frame_open(&in);
            frame_free(&in.frame);
            if (end) {
                return 0;
            }
            if (rc < 0) {
                PyErr_Clear();
            }
            continue;
        }
        if (in.header.flags & FRAME_REPLY) {
            discard(&in); /* of a request that was given up */
            continue;
        }
        if (serve(&in) < 0) {
            return -1;
        }
    }
}

int
peer_serve(PeerObject *peer, struct strand *s)
{
    s->pins++;
    int rc = serve_loop(peer, s);
    s->pins--;
    return rc;
}
