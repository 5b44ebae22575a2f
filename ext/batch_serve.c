/* batch_serve.c: the child makes the calls of a batch in order, and answers each by itself,
 * so that what was done before a crash is known. */
#include "batch.h"

#include "exchange.h"
#include "iteration.h"
#include "lane.h"
#include "shared.h"
#include "strands.h"

#include <errno.h>
#include <stdlib.h>

/* How much of the ring replies may take before the kernel is woken to read them, and before they go
 * another way, so that it never fills: BATCH_CALLS lines are left to say so. */
#define QUIET_MOST (64u * 1024)
#define UNREAD_MOST (128u * 1024)

/* A batch while its calls are made. */
struct batch_calls {
    struct outcome {
        PyObject *o; /* strong or NULL: what a later call needs */
        bool raised;
    } * outcomes;
    uint64_t n;       /* calls made so far */
    PyObject *failed; /* borrowed or NULL: what an argument of the present one raised */
    bool lost;        /* what follows cannot be read any more */
};

PyObject *
batch_decode(struct incoming *in)
{
    uint32_t index = read_u32(&in->r);
    if (in->discarded) {
        return Py_NewRef(Py_None);
    }
    struct batch_calls *calls = in->batch;
    if (calls == NULL || index >= calls->n || calls->outcomes[index].o == NULL) {
        garbled("future");
        return NULL;
    }
    struct outcome *outcome = &calls->outcomes[index];
    if (outcome->raised) {
        /* The rest is read all the same: later calls may refer to it. */
        calls->failed = calls->failed == NULL ? outcome->o : calls->failed;
        return Py_NewRef(Py_None);
    }
    return Py_NewRef(outcome->o);
}

int
batch_check(struct batch_calls *calls)
{
    PyObject *failed = calls->failed;
    calls->failed = NULL;
    if (failed != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(failed), failed);
        return -1;
    }
    return 0;
}

void
batch_lose(struct batch_calls *calls)
{
    calls->lost = true;
}

/* Makes one call of the batch, as serve() does with a request. */
static PyObject *
make_call(struct incoming *in, unsigned op, uint64_t request, unsigned *flags)
{
    PeerObject *peer = in->peer;
    bool interruptible = peer->page != NULL && in->strand->id == STRAND_MAIN;
    uint64_t outer = 0;
    if (interruptible) {
        if (atomic_load(&peer->page->cancelled_request) >= request) {
            raise_error("ClientStateError",
                        "this call of a batch was not made: the batch was interrupted");
            return NULL;
        }
        outer = execution_begin(peer, request);
    }
    errno = 0;
    iteration_effect(peer);
    struct frame_header header = in->header;
    in->header.op = (uint8_t)op;
    PyObject *result = op_execute(in, flags);
    in->header = header;
    in->batch->failed = NULL;
    if (interruptible && !peer->reborn) {
        execution_end(peer, outer);
        /* An interrupt that came too late for this call is not the next one's. */
        PyObject *raised = result == NULL ? compat_take_exception() : NULL;
        if (PyErr_CheckSignals() < 0) {
            PyErr_Clear();
        }
        if (raised != NULL) {
            compat_raise(raised);
        }
    }
    return result;
}

/* Answers one call; steals the result, NULL where an exception is set. `last`: there are no more.
 * 0, or -1 with an exception. */
static int
answer_call(struct incoming *in, uint64_t request, PyObject *result, unsigned flags, bool last)
{
    struct strand *s = in->strand;
    struct message m;
    build_reply(&m, in->peer, s, OP_BATCH, request, result, flags);
    if (s->closed) {
        message_free(&m, true);
        return 0;
    }
    size_t unread = channel_unread(s->channel);
    m.openly = unread > UNREAD_MOST && m.nblobs == 0 && m.w.size <= LANE_FRAME_MAX;
    channel_set_quiet(s->channel, unread < QUIET_MOST && !last);
    int rc = frame_send(&m);
    if (!s->closed) {
        channel_set_quiet(s->channel, false);
    }
    return rc;
}

PyObject *
op_batch(struct incoming *in, unsigned *Py_UNUSED(flags))
{
    struct batch_calls calls = {0};
    uint64_t n = read_count(&in->r, 10), i;
    int rc = 0;
    if (in->peer->is_kernel || in->batch != NULL || in->r.failed || n > BATCH_CALLS) {
        garbled("batch");
        return NULL;
    }
    calls.outcomes = calloc(n + 1, sizeof *calls.outcomes);
    if (calls.outcomes == NULL) {
        return PyErr_NoMemory();
    }
    in->batch = &calls;
    for (i = 0; rc == 0 && i < n && !in->peer->reborn; i++) {
        unsigned op = read_u8(&in->r), flags = 0;
        bool needed = read_u8(&in->r) != 0;
        uint64_t length = read_u64(&in->r), request = in->header.request + 1 + i;
        if (in->r.failed || length > reader_left(&in->r) ||
            (op != OP_CALL && op != OP_CALLATTR && op != OP_METHOD)) {
            rc = garbled("batch");
            break;
        }
        const unsigned char *end = in->r.at + length;
        PyObject *result = NULL;
        if (calls.lost) {
            raise_error(
                "ClientStateError",
                "this call of a batch was not made: arguments of an earlier one could not be "
                "read");
        }
        else {
            result = make_call(in, op, request, &flags);
            if (in->peer->reborn) {
                Py_XDECREF(result);
                break;
            }
            calls.lost = calls.lost || in->r.failed || in->r.at != end;
        }
        in->r.at = end;
        in->r.failed = false;
        if (needed) {
            PyObject *raised = result == NULL ? compat_take_exception() : NULL;
            calls.outcomes[i].o = Py_NewRef(result != NULL ? result : raised);
            calls.outcomes[i].raised = result == NULL;
            if (raised != NULL) {
                compat_raise(raised);
            }
        }
        calls.n = i + 1;
        rc = answer_call(in, request, result, flags, i + 1 == n);
    }
    in->batch = NULL;
    for (uint64_t k = 0; k < n; k++) {
        Py_XDECREF(calls.outcomes[k].o);
    }
    free(calls.outcomes);
    in->unanswered = rc < 0; /* who waits for that answer would wait for ever */
    return rc < 0 || in->peer->reborn ? NULL : Py_NewRef(Py_None);
}
