/* batch_send.c: the calls of a batch are sent, and the replies awaited; each settles its future. */
#include "batch_parts.h"

#include "exchange.h"
#include "iteration.h"
#include "shared.h"
#include "scope.h"
#include "strands.h"

#include <stdlib.h>
#include <string.h>

struct answer *
batch_place(BatchObject *b, uint64_t request)
{
    uint64_t at = request - b->base;
    if (b->early == NULL || at > (uint64_t)PyList_GET_SIZE(b->futures)) {
        return NULL;
    }
    return b->early[at].value == NULL ? &b->early[at] : NULL;
}

bool
batch_kept(BatchObject *b, uint64_t request, struct answer *answer)
{
    struct answer *place = &b->early[request - b->base], *end = &b->early[0];
    if (place->value == NULL && end->value != NULL) {
        if (!end->failed && !(end->flags & FRAME_ERROR)) { /* as no child of ours does */
            Py_DECREF(end->value);
            garbled("answers to a batch");
            end->value = compat_take_exception();
            end->failed = true;
        }
        *answer = *end;
        Py_INCREF(answer->value);
        b->unread = true;
        return true;
    }
    *answer = *place;
    place->value = NULL;
    return answer->value != NULL;
}

static void
drop_early(BatchObject *b, uint64_t calls)
{
    struct answer *early = b->early;
    b->early = NULL;
    for (uint64_t i = 0; early != NULL && i <= calls; i++) {
        Py_XDECREF(early[i].value);
    }
    free(early);
}

/* m asks for this call from here on. */
static void
ask_for(struct message *m, const FutureObject *f)
{
    m->request = m->batch->base + 1 + f->index;
    m->operation = f->operation;
    m->operand = f->operand;
    m->arguments =
        (struct arguments){.nargs = f->nargs, .kwnames = f->kwnames, .kwargs = f->kwargs};
    if (f->by_tuple) {
        m->arguments.tuple = f->args;
    }
    else {
        m->arguments.vector = ((PyTupleObject *)f->args)->ob_item;
    }
}

void
batch_blame(struct message *m, const struct ending *ending)
{
    BatchObject *b = m->batch;
    Py_ssize_t n = PyList_GET_SIZE(b->futures), at = b->at;
    /* Of the main thread it is known which call it had begun; replies to earlier ones may be lost.
     */
    if (m->strand->id == STRAND_MAIN && ending->taken > b->base &&
        ending->taken - b->base <= (uint64_t)n && (Py_ssize_t)(ending->taken - b->base) > at) {
        at = (Py_ssize_t)(ending->taken - b->base) - 1;
    }
    if (at < n) {
        FutureObject *f = (FutureObject *)PyList_GET_ITEM(b->futures, at);
        if (f->state == FUTURE_PENDING) {
            ask_for(m, f);
            b->blamed = f->number;
        }
    }
}

int
batch_add_facts(const struct message *m, PyObject *facts)
{
    PyObject *number = PyLong_FromUnsignedLongLong(m->batch->blamed);
    int rc = number == NULL ? -1 : PyDict_SetItemString(facts, "batch", number);
    Py_XDECREF(number);
    return rc;
}

/* Settles a future with the exception that is set. What failed because a call before it had failed
 * has failed of that. New reference to the exception. */
static PyObject *
settle_failed(BatchObject *b, FutureObject *f)
{
    PyObject *exc = compat_take_exception();
    for (Py_ssize_t i = 0; f->needs != NULL && i < PyList_GET_SIZE(f->needs); i++) {
        FutureObject *needed = (FutureObject *)PyList_GET_ITEM(f->needs, i);
        if (needed->state == FUTURE_FAILED) {
            Py_SETREF(exc, Py_NewRef(needed->value));
            break;
        }
    }
    future_settle(f, FUTURE_FAILED, Py_NewRef(exc));
    if (PyList_Append(b->failed, (PyObject *)f) < 0) {
        PyErr_Clear(); /* no memory: it still raises when asked */
    }
    return exc;
}

static void
fail_all(BatchObject *b, PyObject *exc)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(b->futures); i++) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(settle_failed(b, (FutureObject *)PyList_GET_ITEM(b->futures, i)));
    }
}

static bool
life_is_over(PeerObject *peer, struct strand *s)
{
    return s->closed || s->epoch != peer->epoch || peer->state != PEER_RUNNING;
}

/* No call after this one is begun any more. */
static void
cancel_rest(BatchObject *b, struct message *m)
{
    struct shared_page *page = process_shared(b->peer->process);
    if (page != NULL && m->strand->id == STRAND_MAIN) {
        atomic_store(&page->cancelled_request, b->base + BATCH_CALLS);
    }
}

/* Waits for the replies to what has been sent. A new reference to what interrupted that, or NULL.
 */
static PyObject *
await_calls(BatchObject *b, struct message *m)
{
    PeerObject *peer = b->peer;
    struct strand *s = m->strand;
    Py_ssize_t n = PyList_GET_SIZE(b->futures);
    PyObject *interrupt = NULL, *death = NULL;
    for (b->at = 0; b->at < n; b->at++) {
        FutureObject *f = (FutureObject *)PyList_GET_ITEM(b->futures, b->at);
        bool before = m->interrupted = interrupt != NULL;
        PyObject *result = NULL;
        ask_for(m, f);
        if (death != NULL && b->early[m->request - b->base].value == NULL) {
            PyErr_SetObject((PyObject *)Py_TYPE(death), death); /* one for all that it has hit */
        }
        else {
            result = request_await(m);
        }
        if (result != NULL) {
            future_settle(f, FUTURE_DONE, result);
            continue;
        }
        PyObject *exc = settle_failed(b, f);
        if (m->died && death == NULL) {
            death = Py_NewRef(exc);
        }
        if (m->interrupted && !before && !PyErr_GivenExceptionMatches(exc, PyExc_Exception)) {
            interrupt = exc;
            cancel_rest(b, m);
        }
        else {
            Py_DECREF(exc);
        }
    }
    if (death == NULL && !b->unread) {
        /* That the child is through with it. */
        m->request = b->base;
        m->interrupted = false;
        m->operation = NULL;
        m->operand = NULL;
        m->arguments = (struct arguments){0};
        PyObject *none = request_await(m);
        if (none == NULL && interrupt == NULL) {
            interrupt = compat_take_exception();
        }
        PyErr_Clear();
        Py_XDECREF(none);
    }
    struct shared_page *page = process_shared(peer->process);
    if (interrupt != NULL && page != NULL && s->id == STRAND_MAIN && !life_is_over(peer, s)) {
        atomic_store(&page->interrupt_request, 0);
    }
    Py_XDECREF(death);
    return interrupt;
}

void
batch_drop(BatchObject *b, PyObject *why)
{
    struct message m;
    Py_ssize_t n = PyList_GET_SIZE(b->futures);
    b->pending = false;
    batch_move_message(&m, &b->message);
    struct strand *s = m.strand;
    if (why != NULL) {
        fail_all(b, why);
    }
    PyList_SetSlice(b->futures, 0, n, NULL);
    b->first += (uint64_t)n;
    request_resume(b->peer, s);
    scope_resume(&m);
    s->framing++;
    m.begun = true;
    m.batch = NULL;
    if (s->epoch != b->peer->epoch) {
        m.nsent = 0;    /* the counts are those of the new life */
        m.released = 0; /* of a life that is over */
    }
    s->pins--;
    request_abandon(&m);
    Py_XDECREF(why);
}

int
batch_flush(BatchObject *b)
{
    PeerObject *peer = b->peer;
    if (!b->pending || b->busy) {
        return 0;
    }
    struct strand *s = b->message.strand;
    if (s->closed || s->epoch != peer->epoch) {
        raise_error("ClientStateError",
                    "this call of a batch was not made: the process it was for has ended");
        batch_drop(b, compat_take_exception());
        return 0;
    }
    struct message m;
    PyObject *interrupt = NULL;
    uint64_t n = (uint64_t)PyList_GET_SIZE(b->futures);
    b->early = calloc(n + 1, sizeof *b->early);
    if (b->early == NULL) {
        PyErr_NoMemory();
        batch_drop(b, compat_take_exception());
        return 0;
    }
    b->pending = b->unread = false;
    b->busy = true;
    batch_move_message(&m, &b->message);
    if (!m.w.failed) {
        memcpy(m.w.data + b->count_at, &n, sizeof n);
    }
    b->base = m.request;
    struct values *values = m.values;
    size_t npairs = m.npairs;
    m.values = NULL;
    request_resume(peer, s);
    scope_resume(&m);
    peer->requests_sent++;
    pairs_forget(s, npairs);
    if (values != NULL) {
        values_begin(s, values);
    }
    m.op = OP_BATCH;
    if (frame_send(&m) == 0) {
        interrupt = await_calls(b, &m);
    }
    else {
        PyObject *exc = compat_take_exception();
        fail_all(b, exc);
        Py_DECREF(exc);
    }
    blobs_collect();
    iteration_effect(peer);
    if (values != NULL) {
        values_end(s, values);
    }
    pairs_truncate(s, npairs);
    if (s->npairs > 0 && !s->closed && pairs_snapshot(s, 0) < 0) {
        Py_XSETREF(interrupt, compat_take_exception());
    }
    s->pins--;
    scope_end(&m);
    request_end(peer, s);
    b->first += n;
    drop_early(b, n);
    PyList_SetSlice(b->futures, 0, PY_SSIZE_T_MAX, NULL);
    b->busy = false;
    if (interrupt != NULL) {
        compat_raise(interrupt);
        return -1;
    }
    return 0;
}
