/* batch.c: calls whose results are not needed yet. In the kernel they are encoded one after the
 * other into one request, which is sent when it is full or an answer is needed; each gives a
 * future. The child makes them in order and answers each by itself, so that what was done before a
 * crash is known. See docs/protocol.md. */
#include "batch.h"

#include "handles.h"
#include "iteration.h"
#include "lane.h"
#include "exchange.h"
#include "shared.h"
#include "strands.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BATCH_CALLS 1000        /* a request is sent when it has so many calls, ... */
#define BATCH_BYTES (48 * 1024) /* ... is so big: it still takes the lane's ring, ... */
#define BATCH_PAIRS 64          /* ... or has so many containers, which each call looks at */
/* How much of the ring replies may take before the kernel is woken to read them, and before they go
 * another way, so that it never fills: BATCH_CALLS lines are left to say so. */
#define QUIET_MOST (64u * 1024)
#define UNREAD_MOST (128u * 1024)

enum future_state { FUTURE_PENDING, FUTURE_DONE, FUTURE_FAILED };

typedef struct {
    PyObject_HEAD
    enum future_state state;
    bool asked;                /* somebody has seen that it failed */
    struct BatchObject *batch; /* strong while it is pending, else NULL */
    PyObject *value;           /* strong or NULL: the result, or the exception */
    uint32_t index;            /* in its request */
    uint64_t number;           /* in its batch, from 1 */
    size_t flag_at;            /* where its request says that a later call needs its result */
    /* For the report of a death; `operation` is static. References are strong or NULL. */
    const char *operation;
    PyObject *operand, *args, *kwnames, *kwargs;
    Py_ssize_t nargs;
    bool by_tuple;   /* `args` is as a type is called, see struct arguments */
    PyObject *needs; /* list of the pending futures among its arguments, or NULL */
} FutureObject;

typedef struct BatchObject {
    PyObject_HEAD
    PeerObject *peer;         /* strong */
    struct BatchObject *next; /* of peer->batches; borrowed */
    unsigned long thread;     /* whose calls it takes */
    unsigned level;           /* how deep that thread was in requests when it was opened */
    bool open;                /* it is in peer->batches */
    bool pending;             /* `message` has calls that have not been sent */
    bool busy;                /* a call is being written, or calls are being made */
    bool full;                /* nothing more may be added to the message */
    struct message message;
    size_t count_at;        /* where it says how many calls there are */
    uint64_t change_serial; /* of the classes' changes that the message tells of */
    PyObject *futures;      /* list: of the message, or of what is being made */
    uint64_t first;         /* number of the first of them */
    PyObject *failed;       /* list of futures that nobody had asked for when they failed */
    uint64_t base;          /* number of the request that is being made, and ... */
    Py_ssize_t at;          /* ... which of its calls is waited for */
    uint64_t blamed;        /* number of the call that killed the child */
    struct incoming *kept;  /* replies that came too early */
    size_t nkept, capkept;
    struct { /* where the message was before the call that is being written */
        size_t size, nsent, nblobs, npairs, nvalues;
    } mark;
    PyObject *needs; /* of the call that is being written: list or NULL */
} BatchObject;

static int
refuse(const char *text)
{
    PyObject *type = PyObject_GetAttrString(core_get()->errors, "ClientStateError");
    if (type != NULL) {
        PyErr_SetString(type, text);
        Py_DECREF(type);
    }
    return -1;
}

/* ---- futures ------------------------------------------------------------------------------ */

static void
future_forget(FutureObject *f)
{
    Py_CLEAR(f->args);
    Py_CLEAR(f->kwnames);
    Py_CLEAR(f->kwargs);
    Py_CLEAR(f->needs);
    Py_CLEAR(f->batch);
}

/* Steals value: the result, or the exception. */
static void
future_settle(FutureObject *f, enum future_state state, PyObject *value)
{
    f->state = state;
    f->value = value;
    if (state == FUTURE_DONE) {
        Py_CLEAR(f->operand);
    }
    future_forget(f);
}

/* The calls of its batch are made, if it is still to be: 0, or -1 with an exception. */
static int batch_flush(BatchObject *b);
static int
future_await(FutureObject *f)
{
    BatchObject *b = f->batch;
    if (f->state != FUTURE_PENDING) {
        return 0;
    }
    if (b->thread != PyThread_get_thread_ident()) {
        return refuse("this result is not known yet: the thread of the batch has not needed it");
    }
    if (b->busy) {
        return refuse("this result is not known yet: the calls of its batch are being made");
    }
    Py_INCREF(b);
    int rc = batch_flush(b);
    Py_DECREF(b);
    return rc < 0 || f->state != FUTURE_PENDING ? rc : refuse("this call was not made");
}

static PyObject *
future_result(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    FutureObject *f = (FutureObject *)self;
    if (future_await(f) < 0) {
        return NULL;
    }
    if (f->state == FUTURE_FAILED) {
        f->asked = true;
        PyErr_SetObject((PyObject *)Py_TYPE(f->value), f->value);
        return NULL;
    }
    return Py_NewRef(f->value);
}

static PyObject *
future_exception(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    FutureObject *f = (FutureObject *)self;
    if (future_await(f) < 0) {
        return NULL;
    }
    f->asked = true;
    return Py_NewRef(f->state == FUTURE_FAILED ? f->value : Py_None);
}

static PyObject *
future_done(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(((FutureObject *)self)->state != FUTURE_PENDING);
}

static PyObject *
future_repr(PyObject *self)
{
    static const char *const words[] = {"pending", "done", "failed"};
    FutureObject *f = (FutureObject *)self;
    return PyUnicode_FromFormat("<Future of call %llu of a batch, %s>",
                                (unsigned long long)f->number, words[f->state]);
}

/* It would be true whatever the call returns: `if f(x):` is a mistake in a batch. */
static int
future_bool(PyObject *Py_UNUSED(self))
{
    PyErr_SetString(PyExc_TypeError,
                    "a Future is neither true nor false; use the result() of this call of a batch");
    return -1;
}

static PyObject *
future_getattro(PyObject *self, PyObject *name)
{
    PyObject *o = PyObject_GenericGetAttr(self, name);
    if (o == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Format(PyExc_AttributeError,
                     "a Future has no attribute '%U'; for that of its result, use result().%U",
                     name, name);
    }
    return o;
}

static int
future_traverse(FutureObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)self->batch);
    Py_VISIT(self->value);
    Py_VISIT(self->operand);
    Py_VISIT(self->args);
    Py_VISIT(self->kwargs);
    Py_VISIT(self->needs);
    return 0;
}

static int
future_clear(FutureObject *self)
{
    Py_CLEAR(self->value);
    Py_CLEAR(self->operand);
    future_forget(self);
    return 0;
}

static void
future_dealloc(FutureObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    future_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef future_methods[] = {
    {"result", future_result, METH_NOARGS,
     "result()\n--\n\n"
     "What the call returned. If it has not been made yet, the calls of the batch are, up to "
     "here.\n"
     "\n"
     "Returns\n"
     "-------\n"
     "object\n"
     "    As the call would have returned it outside of a batch; a mutable container that a later\n"
     "    call of the batch was given is a proxy.\n"
     "\n"
     "Raises\n"
     "------\n"
     "Exception\n"
     "    What the call raised.\n"
     "ProcessTerminationError\n"
     "    When the process died in this call, or before it.\n"
     "ClientStateError\n"
     "    When the call was not made, or another thread asks before it was."},
    {"exception", future_exception, METH_NOARGS,
     "exception()\n--\n\n"
     "What the call raised, or None. Makes it if need be, as result() does.\n"
     "\n"
     "Returns\n"
     "-------\n"
     "BaseException or None"},
    {"done", future_done, METH_NOARGS,
     "done()\n--\n\n"
     "Whether the outcome of the call is known, so that result() waits for nothing.\n"
     "\n"
     "Returns\n"
     "-------\n"
     "bool"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot future_slots[] = {
    {Py_tp_doc, "The result to come of a call in `IsolationContext.batch`."},
    {Py_tp_traverse, future_traverse},
    {Py_tp_clear, future_clear},
    {Py_tp_dealloc, future_dealloc},
    {Py_tp_methods, future_methods},
    {Py_tp_repr, future_repr},
    {Py_tp_getattro, future_getattro},
    {Py_nb_bool, future_bool},
    {0, NULL},
};
static PyType_Spec future_spec = {
    "ipython_isolation.Future", sizeof(FutureObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, future_slots};

int
future_encode(struct message *m, PyObject *o)
{
    FutureObject *f = (FutureObject *)o;
    if (f->state == FUTURE_DONE) {
        return encode(m, f->value, false);
    }
    if (f->state == FUTURE_FAILED) {
        f->asked = true;
        PyErr_SetObject((PyObject *)Py_TYPE(f->value), f->value);
        return -1;
    }
    BatchObject *b = m->batch;
    if (b == NULL || b != f->batch) {
        return refuse("this Future has no result yet; call its result() before it is passed on");
    }
    if ((b->needs == NULL && (b->needs = PyList_New(0)) == NULL) ||
        PyList_Append(b->needs, o) < 0) {
        return -1;
    }
    write_tag(m, TAG_FUTURE);
    write_u32(&m->w, f->index);
    if (!m->w.failed) {
        m->w.data[f->flag_at] = 1;
    }
    return message_check(m);
}

/* ---- kernel: writing ---------------------------------------------------------------------- */

/* A message that has not grown is where its bytes are. */
static void
move_message(struct message *to, const struct message *from)
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

/* How deep this thread is in requests of either side: what is called there by code that is served
 * is none of the block's. */
static unsigned
depth_of(PeerObject *peer, unsigned long thread)
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

/* The batch that takes this thread's calls. Others of this thread, which are inside or around it,
 * have none pending then. NULL, perhaps with an exception. */
static BatchObject *
batch_of_thread(PeerObject *peer)
{
    unsigned long thread = PyThread_get_thread_ident();
    unsigned depth = depth_of(peer, thread);
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
    return s->npairs > b->message.npairs ? pairs_changed(peer, s, b->message.npairs) : 0;
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
            move_message(m, &b->message);
            request_resume(peer, m->strand);
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
    move_message(&b->message, m);
    b->pending = true;
    b->busy = false;
    Py_CLEAR(b->needs);
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

/* A future that remembers what is called, for the report of a death. */
static FutureObject *
future_new(BatchObject *b, const struct message *m)
{
    const struct arguments *a = &m->arguments;
    FutureObject *f = PyObject_GC_New(FutureObject, core_get()->future_type);
    if (f == NULL) {
        return NULL;
    }
    memset((char *)f + sizeof(PyObject), 0, sizeof *f - sizeof(PyObject));
    f->batch = (BatchObject *)Py_NewRef((PyObject *)b);
    f->index = (uint32_t)PyList_GET_SIZE(b->futures);
    f->number = b->first + f->index;
    f->flag_at = b->mark.size + 1;
    f->operation = m->operation;
    f->operand = Py_XNewRef(m->operand);
    f->nargs = a->nargs;
    f->by_tuple = a->tuple != NULL;
    if (f->by_tuple) {
        f->args = Py_NewRef(a->tuple);
        f->kwargs = Py_XNewRef(a->kwargs);
    }
    else {
        Py_ssize_t n = a->nargs + (a->kwnames == NULL ? 0 : PyTuple_GET_SIZE(a->kwnames));
        f->kwnames = Py_XNewRef(a->kwnames);
        f->args = PyTuple_New(n);
        for (Py_ssize_t i = 0; f->args != NULL && i < n; i++) {
            PyTuple_SET_ITEM(f->args, i, Py_NewRef(a->vector[i]));
        }
    }
    f->needs = b->needs;
    b->needs = NULL;
    PyObject_GC_Track(f);
    if (f->args == NULL || PyList_Append(b->futures, (PyObject *)f) < 0) {
        Py_CLEAR(f);
    }
    return f;
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

/* ---- kernel: sending, and the replies ------------------------------------------------------ */

bool
batch_keep(BatchObject *b, struct incoming *in)
{
    uint64_t request = in->header.request, base = b->base;
    if (request != base &&
        (request < base || request > base + (uint64_t)PyList_GET_SIZE(b->futures))) {
        return false;
    }
    if (b->nkept == b->capkept) {
        size_t capacity = b->capkept ? b->capkept * 2 : 16;
        struct incoming *more = realloc(b->kept, capacity * sizeof *more);
        if (more == NULL) {
            return false;
        }
        b->kept = more;
        b->capkept = capacity;
    }
    b->kept[b->nkept++] = *in;
    return true;
}

bool
batch_kept(BatchObject *b, uint64_t request, struct incoming *in)
{
    for (size_t i = 0; i < b->nkept; i++) {
        if (b->kept[i].header.request == request) {
            *in = b->kept[i];
            memmove(b->kept + i, b->kept + i + 1, (--b->nkept - i) * sizeof *b->kept);
            return true;
        }
    }
    return false;
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
fail_rest(BatchObject *b, PyObject *futures, Py_ssize_t from, PyObject *exc)
{
    for (Py_ssize_t i = from; i < PyList_GET_SIZE(futures); i++) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(settle_failed(b, (FutureObject *)PyList_GET_ITEM(futures, i)));
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
    PyObject *interrupt = NULL;
    bool over = false;
    for (b->at = 0; b->at < n && !over; b->at++) {
        FutureObject *f = (FutureObject *)PyList_GET_ITEM(b->futures, b->at);
        bool before = m->interrupted = interrupt != NULL;
        ask_for(m, f);
        PyObject *result = request_await(m);
        if (result != NULL) {
            future_settle(f, FUTURE_DONE, result);
            continue;
        }
        PyObject *exc = settle_failed(b, f);
        over = life_is_over(peer, s);
        if (over) {
            fail_rest(b, b->futures, b->at + 1, exc);
        }
        if (m->interrupted && !before && !PyErr_GivenExceptionMatches(exc, PyExc_Exception)) {
            interrupt = exc;
            cancel_rest(b, m);
        }
        else {
            Py_DECREF(exc);
        }
    }
    if (!over) {
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
    return interrupt;
}

/* What was to be sent is not: `why` is raised by the futures. Steals it. */
static void
batch_drop(BatchObject *b, PyObject *why)
{
    struct message m;
    Py_ssize_t n = PyList_GET_SIZE(b->futures);
    b->pending = false;
    move_message(&m, &b->message);
    struct strand *s = m.strand;
    if (why != NULL) {
        fail_rest(b, b->futures, 0, why);
    }
    PyList_SetSlice(b->futures, 0, n, NULL);
    b->first += (uint64_t)n;
    request_resume(b->peer, s);
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

/* Makes the calls that are pending. What they raise is their futures' to raise; -1 with an
 * exception when that was interrupted. */
static int
batch_flush(BatchObject *b)
{
    PeerObject *peer = b->peer;
    if (!b->pending || b->busy) {
        return 0;
    }
    struct strand *s = b->message.strand;
    if (s->closed || s->epoch != peer->epoch) {
        refuse("this call of a batch was not made: the process it was for has ended");
        batch_drop(b, compat_take_exception());
        return 0;
    }
    struct message m;
    PyObject *interrupt = NULL;
    uint64_t n = (uint64_t)PyList_GET_SIZE(b->futures);
    b->pending = false;
    b->busy = true;
    move_message(&m, &b->message);
    if (!m.w.failed) {
        memcpy(m.w.data + b->count_at, &n, sizeof n);
    }
    b->base = m.request;
    struct values *values = m.values;
    size_t npairs = m.npairs;
    m.values = NULL;
    request_resume(peer, s);
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
        fail_rest(b, b->futures, 0, exc);
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
    request_end(peer, s);
    b->first += n;
    PyList_SetSlice(b->futures, 0, PY_SSIZE_T_MAX, NULL);
    b->busy = false;
    if (interrupt != NULL) {
        compat_raise(interrupt);
        return -1;
    }
    return 0;
}

/* ---- the batch as an object ---------------------------------------------------------------- */

static PyObject *
batch_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *peer;
    if (!PyArg_ParseTuple(args, "O!", core_get()->peer_type, &peer)) {
        return NULL;
    }
    BatchObject *b = (BatchObject *)type->tp_alloc(type, 0);
    if (b == NULL) {
        return NULL;
    }
    b->peer = (PeerObject *)Py_NewRef(peer);
    b->thread = PyThread_get_thread_ident();
    b->first = 1;
    b->futures = PyList_New(0);
    b->failed = PyList_New(0);
    if (b->futures == NULL || b->failed == NULL) {
        Py_CLEAR(b);
    }
    return (PyObject *)b;
}

/* open(): from here on this thread's calls are deferred. What a batch around this one has pending
 * is made first. */
static PyObject *
batch_open(BatchObject *self, PyObject *Py_UNUSED(ignored))
{
    PeerObject *peer = self->peer;
    BatchObject *around = peer->batching > 0 ? batch_of_thread(peer) : NULL;
    if (PyErr_Occurred() || (around != NULL && batch_flush(around) < 0)) {
        return NULL;
    }
    self->level = depth_of(peer, self->thread);
    self->next = peer->batches;
    peer->batches = self;
    peer->batching++;
    self->open = true;
    Py_RETURN_NONE;
}

static bool
is_other_thread(BatchObject *self)
{
    if (self->thread == PyThread_get_thread_ident()) {
        return false;
    }
    refuse("a batch can only be used by the thread that opened it");
    return true;
}

/* flush(): makes the calls that are pending. */
static PyObject *
batch_flush_method(BatchObject *self, PyObject *Py_UNUSED(ignored))
{
    if (is_other_thread(self) || batch_flush(self) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static void
batch_unlink(BatchObject *self)
{
    for (BatchObject **at = &self->peer->batches; self->open && *at != NULL; at = &(*at)->next) {
        if (*at == self) {
            *at = self->next;
            self->open = false;
            self->peer->batching--;
            break;
        }
    }
}

/* close(): no more calls are deferred; those that are pending are dropped. */
static PyObject *
batch_close(BatchObject *self, PyObject *Py_UNUSED(ignored))
{
    batch_unlink(self);
    if (self->pending && !self->busy) {
        refuse("this call of a batch was not made: the batch was interrupted");
        batch_drop(self, compat_take_exception());
    }
    Py_RETURN_NONE;
}

/* failures(): list of (number, operation, operand, exception) of the calls that failed, and of
 * which nobody has asked. */
static PyObject *
batch_failures(BatchObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *list = PyList_New(0);
    for (Py_ssize_t i = 0; list != NULL && i < PyList_GET_SIZE(self->failed); i++) {
        FutureObject *f = (FutureObject *)PyList_GET_ITEM(self->failed, i);
        bool known = f->asked;
        for (Py_ssize_t k = 0; !known && k < PyList_GET_SIZE(self->failed); k++) {
            /* The same exception was raised by another that was asked. */
            FutureObject *other = (FutureObject *)PyList_GET_ITEM(self->failed, k);
            known = other->value == f->value && (other->asked || k < i);
        }
        if (known) {
            continue;
        }
        PyObject *row = Py_BuildValue("KsOO", (unsigned long long)f->number,
                                      f->operation == NULL ? "" : f->operation,
                                      f->operand == NULL ? Py_None : f->operand, f->value);
        if (row == NULL || PyList_Append(list, row) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(row);
    }
    return list;
}

/* flush_all(peer): what this thread's batches have pending is made. */
static PyObject *
batch_flush_all(PyObject *Py_UNUSED(type), PyObject *peer)
{
    if (!Py_IS_TYPE(peer, core_get()->peer_type)) {
        PyErr_SetString(PyExc_TypeError, "a Peer is needed");
        return NULL;
    }
    BatchObject *b =
        ((PeerObject *)peer)->batching > 0 ? batch_of_thread((PeerObject *)peer) : NULL;
    if (PyErr_Occurred() || (b != NULL && batch_flush(b) < 0)) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static int
batch_traverse(BatchObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)self->peer);
    Py_VISIT(self->futures);
    Py_VISIT(self->failed);
    Py_VISIT(self->needs);
    return 0;
}

static void
batch_dealloc(BatchObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->peer != NULL) {
        batch_unlink(self);
    }
    if (self->pending) {
        batch_drop(self, NULL); /* its futures have gone as well */
    }
    for (size_t i = 0; i < self->nkept; i++) {
        frame_free(&self->kept[i].frame);
    }
    free(self->kept);
    Py_CLEAR(self->futures);
    Py_CLEAR(self->failed);
    Py_CLEAR(self->needs);
    Py_CLEAR(self->peer);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMethodDef batch_methods[] = {
    {"open", (PyCFunction)batch_open, METH_NOARGS, NULL},
    {"flush", (PyCFunction)batch_flush_method, METH_NOARGS, NULL},
    {"close", (PyCFunction)batch_close, METH_NOARGS, NULL},
    {"failures", (PyCFunction)batch_failures, METH_NOARGS, NULL},
    {"flush_all", batch_flush_all, METH_O | METH_STATIC, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot batch_slots[] = {
    {Py_tp_new, batch_new},
    {Py_tp_traverse, batch_traverse},
    {Py_tp_dealloc, batch_dealloc},
    {Py_tp_methods, batch_methods},
    {0, NULL},
};
static PyType_Spec batch_spec = {"ipython_isolation._core.Batch", sizeof(BatchObject), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, batch_slots};

int
batch_init(core_state *core, PyObject *module)
{
    core->future_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &future_spec, NULL);
    core->batch_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &batch_spec, NULL);
    return core->future_type == NULL || core->batch_type == NULL ||
                   PyModule_AddObjectRef(module, "Future", (PyObject *)core->future_type) < 0 ||
                   PyModule_AddObjectRef(module, "Batch", (PyObject *)core->batch_type) < 0
               ? -1
               : 0;
}

/* ---- child --------------------------------------------------------------------------------- */

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
            refuse("this call of a batch was not made: the batch was interrupted");
            return NULL;
        }
        atomic_store_explicit(&peer->page->taken_request, request, memory_order_release);
        outer = atomic_exchange(&peer->page->executing_request, request);
        if (atomic_load(&peer->page->interrupt_request) == request) {
            PyErr_SetInterrupt();
        }
    }
    errno = 0;
    iteration_effect(peer);
    struct frame_header header = in->header;
    in->header.op = (uint8_t)op;
    PyObject *result = op_execute(in, flags);
    in->header = header;
    in->batch->failed = NULL;
    if (interruptible && !peer->reborn) {
        atomic_store(&peer->page->executing_request, outer);
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
            refuse("this call of a batch was not made: arguments of an earlier one could not be "
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
