/* batch.c: the kernel's calls whose results are not needed yet. They are encoded one after the
 * other into one request, which is sent (batch_send.c) when it is full or an answer is needed; each
 * gives a future (future.c). See docs/protocol.md. */
#include "batch_parts.h"

#include "exchange.h"
#include "handles.h"
#include "scope.h"
#include "strands.h"

#include <string.h>

/* A request is also sent when it is so big: it still takes the lane's ring, ... */
#define BATCH_BYTES (48 * 1024)
#define BATCH_PAIRS 64 /* ... or has so many containers, which each call looks at */

void
batch_move_message(struct message *to, const struct message *from)
{
    *to = *from;
    if (from->w.data == from->w.small) {
        to->w.data = to->w.small;
    }
    if (from->values != NULL) {
        to->values = &to->own_values;
        if (from->own_values.items == from->own_values.few) {
            to->own_values.items = to->own_values.few;
        }
    }
}

unsigned
batch_depth(PeerObject *peer, unsigned long thread)
{
    unsigned depth = 0;
    for (size_t i = 0; i < peer->nstrands; i++) {
        struct strand *s = peer->strands[i];
        if (s->thread == thread && !s->closed) {
            depth += s->depth + s->serving;
        }
    }
    return depth;
}

BatchObject *
batch_of_thread(PeerObject *peer)
{
    unsigned long thread = PyThread_get_thread_ident();
    unsigned depth = batch_depth(peer, thread);
    BatchObject *found = NULL;
again:
    for (BatchObject *b = peer->batches; b != NULL; b = b->next) {
        if (b->thread != thread || b->busy) {
            continue;
        }
        if (found == NULL && b->level == depth) {
            found = b;
        }
        else if (b != found && b->pending) {
            Py_INCREF(b);
            int rc = batch_flush(b);
            Py_DECREF(b);
            if (rc < 0) {
                return NULL;
            }
            found = NULL; /* the list may have changed */
            goto again;
        }
    }
    return found;
}

void
batches_flush(PeerObject *peer)
{
    unsigned long thread = PyThread_get_thread_ident();
    for (BatchObject *b = peer->batches; b != NULL;) {
        if (b->thread == thread && !b->busy && b->pending) {
            Py_INCREF(b);
            if (batch_flush(b) < 0) {
                PyErr_WriteUnraisable((PyObject *)b);
            }
            Py_DECREF(b);
            b = peer->batches;
        }
        else {
            b = b->next;
        }
    }
}

/* Whether a call cannot be added to what is pending: something that the child has to know first has
 * changed here. 1, 0, or -1 with an exception. */
static int
must_flush(BatchObject *b)
{
    PeerObject *peer = b->peer;
    struct strand *s = b->message.strand;
    if (b->full || s->closed || s->epoch != peer->epoch || peer->state != PEER_RUNNING ||
        peer->starter != 0 || peer->change_serial != b->change_serial || sync_due(peer)) {
        return 1;
    }
    if (s->npairs <= b->message.npairs) {
        return 0;
    }
    scope_resume(&b->message); /* its containers are in its scope */
    int changed = pairs_changed(peer, s, b->message.npairs);
    scope_end(&b->message);
    return changed;
}

/* Begins a request that calls can be added to. */
static int
open_message(BatchObject *b, struct message *m)
{
    PeerObject *peer = b->peer;
    b->busy = true; /* what is asked meanwhile, to set up a life, is not deferred */
    int rc = request_begin(peer, m, OP_BATCH);
    b->busy = false;
    if (rc < 0) {
        return -1;
    }
    m->batch = b;
    m->strand->pins++;
    peer->next_request += BATCH_CALLS;
    b->count_at = m->w.size;
    write_u64(&m->w, 0); /* how many calls there are */
    b->change_serial = peer->change_serial;
    b->full = false;
    return 0;
}

int
batch_join(PeerObject *peer, struct message *m, unsigned op)
{
    /* An exception that is set is the caller's; what is called here must not see it. */
    PyObject *kept = PyErr_Occurred() ? compat_take_exception() : NULL;
    BatchObject *b = batch_of_thread(peer);
    int rc = PyErr_Occurred() ? -1 : 0;
    bool later = (op & OP_DEFERRABLE) != 0 && b != NULL;
    if (b != NULL && b->pending) {
        int must = later ? must_flush(b) : 1;
        if (must != 0) {
            Py_INCREF(b);
            rc = must < 0 ? -1 : batch_flush(b);
            Py_DECREF(b);
            later = later && b->open;
        }
    }
    if (rc == 0 && later) {
        if (!b->pending) {
            rc = open_message(b, m);
        }
        else {
            batch_move_message(m, &b->message);
            request_resume(peer, m->strand);
            scope_resume(m);
            m->strand->framing++;
            m->begun = true;
        }
        if (rc == 0) {
            rc = 1;
            b->busy = true;
            b->mark.size = m->w.size;
            b->mark.nsent = m->nsent;
            b->mark.nblobs = m->nblobs;
            b->mark.npairs = m->strand->npairs;
            b->mark.nvalues = m->values == NULL ? 0 : m->values->n;
            m->op = (unsigned char)op;
            m->operation = NULL;
            m->operand = NULL;
            m->arguments = (struct arguments){0};
            write_u8(&m->w, (uint8_t)op);
            write_u8(&m->w, 0);  /* whether a later call needs the result */
            write_u64(&m->w, 0); /* bytes that follow */
        }
    }
    if (kept != NULL) {
        if (rc < 0) {
            Py_DECREF(kept);
        }
        else {
            compat_raise(kept);
        }
    }
    return rc;
}

/* The message is put by, until the next call. */
static void
put_by(BatchObject *b, struct message *m)
{
    m->strand->framing--;
    m->begun = false;
    m->operand = NULL;
    m->arguments = (struct arguments){0};
    batch_move_message(&b->message, m);
    b->pending = true;
    b->busy = false;
    Py_CLEAR(b->needs);
    scope_end(m);
    request_pause(b->peer, m->strand);
}

bool
batch_take_back(struct message *m)
{
    BatchObject *b = m->batch;
    struct strand *s = m->strand;
    if (PyList_GET_SIZE(b->futures) == 0) {
        m->batch = NULL;
        s->pins--;
        b->busy = false;
        Py_CLEAR(b->needs);
        return false;
    }
    PyObject *raised = compat_take_exception();
    for (; m->nsent > b->mark.nsent; m->nsent--) {
        struct sent *sent = &m->sent[m->nsent - 1];
        if (sent->described) {
            table_remove(&s->described, sent->handle);
        }
        export_release(m->peer, sent->handle, 1);
    }
    while (m->nblobs > b->mark.nblobs) {
        blob_done(m->blobs[--m->nblobs].owner);
    }
    pairs_truncate(s, b->mark.npairs);
    if (m->values != NULL) {
        values_truncate(m->values, b->mark.nvalues);
    }
    m->w.size = b->mark.size;
    b->full = true; /* exceptions in it may be known as seen */
    put_by(b, m);
    compat_raise(raised);
    return true;
}

PyObject *
batch_defer(struct message *m)
{
    BatchObject *b = m->batch;
    PeerObject *peer = b->peer;
    uint64_t length = m->w.size - b->mark.size - 10;
    FutureObject *f = message_check(m) < 0 ? NULL : future_new(b, m);
    /* Changes of buffers, and of the containers of a call that is being served, travel at the start
     * of a request: no call may come after them. */
    bool full = m->nblobs > 0 || m->w.size >= BATCH_BYTES ||
                PyList_GET_SIZE(b->futures) >= BATCH_CALLS ||
                m->strand->npairs - m->npairs >= BATCH_PAIRS || m->npairs > 0 ||
                peer->copies != NULL || peer->holds != NULL;
    /* What is sent at once needs no comparison. */
    if (f != NULL && !full && m->strand->npairs > b->mark.npairs &&
        pairs_snapshot(m->strand, b->mark.npairs) < 0) {
        PyList_SetSlice(b->futures, f->index, f->index + 1, NULL);
        Py_CLEAR(f);
    }
    if (f == NULL) {
        request_abandon(m);
        return NULL;
    }
    memcpy(m->w.data + b->mark.size + 2, &length, sizeof length);
    b->full = full;
    put_by(b, m);
    if (b->full && batch_flush(b) < 0) {
        Py_CLEAR(f);
    }
    return (PyObject *)f;
}
