/* iteration.c: iterating a plain container of the other side, several items at a time where that
 * cannot be told apart from one at a time.
 *
 * An iterator of ours stands for the real one. It uses items that were fetched ahead only as long
 * as nothing else has been asked of the other side, nor been asked by it, since they were fetched:
 * nothing that this side could know of has happened in between. As soon as something has, what was
 * fetched is dropped, and the rest comes item by item. cursor.c is the other end. */
#include "iteration.h"

#include "ahead.h"
#include "codec.h"
#include "cursor.h"
#include "exchange.h"
#include "handles.h"
#include "peer.h"
#include "proxy.h"
#include "runs.h"
#include "views.h"

#include <string.h>

typedef struct {
    PyObject_HEAD
    PeerObject *peer;    /* strong */
    PyObject *cls;       /* strong: the mirrored class whose __iter__ it is ... */
    PyObject *name;      /* strong: ... or __reversed__ */
    PyObject *cursor;    /* strong: a proxy; NULL at the end */
    PyObject *container; /* strong or NULL: what there is no cursor of, as its content was known */
    PyObject *exact;     /* strong or NULL: a proxy of the real iterator, once it was asked for */
    PyObject *items;     /* strong or NULL: tuple of what was fetched, or bytes as of runs.h */
    Py_ssize_t n;        /* how many those are */
    Py_ssize_t next;     /* the first that was not used */
    Py_ssize_t left;     /* items to come, while nothing has happened; -1: not known */
    uint64_t before;     /* how many were used before these ... */
    uint64_t total;      /* ... of how many, when it began */
    uint64_t effects;    /* peer->effects when they were fetched */
    uint64_t want;
    uint32_t epoch;
    bool done;   /* there was no more behind `items` */
    bool failed; /* without a cursor: the dict had changed */
    bool adds;   /* what comes is added to what another iterator has got of the same dict */
    PyThread_type_lock turn; /* owned, or NULL: held by the thread that asks ... */
    unsigned long asker;     /* ... which is this one; 0: none does */
    unsigned asking;         /* how many times it has the turn, one inside the other */
    uint64_t asks;           /* how many requests there were */
} IteratorObject;

static int
iterator_traverse(IteratorObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->peer);
    Py_VISIT(self->cls);
    Py_VISIT(self->cursor);
    Py_VISIT(self->container);
    Py_VISIT(self->exact);
    Py_VISIT(self->items);
    return 0;
}

static int
iterator_clear(IteratorObject *self)
{
    Py_CLEAR(self->peer);
    Py_CLEAR(self->cls);
    Py_CLEAR(self->name);
    Py_CLEAR(self->cursor);
    Py_CLEAR(self->container);
    Py_CLEAR(self->exact);
    Py_CLEAR(self->items);
    return 0;
}

static void
iterator_dealloc(IteratorObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    iterator_clear(self);
    if (self->turn != NULL) {
        PyThread_free_lock(self->turn);
    }
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* Asks for items from o, the container or a cursor. New reference to the answer. */
static PyObject *
ask(PeerObject *peer, PyObject *cls, PyObject *name, PyObject *o, struct iterate what)
{
    struct message m;
    if (request_begin(peer, &m, OP_ITERATE) < 0) {
        return NULL;
    }
    m.operation = "method";
    m.operand = cls;
    message_about(&m, cls);
    m.pure = true;
    if (encode(&m, cls, false) < 0 || encode_name(&m, name) < 0 || encode(&m, o, false) < 0) {
        request_abandon(&m);
        return NULL;
    }
    write_u64(&m.w, what.position);
    write_u64(&m.w, what.want);
    write_u64(&m.w, what.length);
    return request_finish(&m);
}

/* The values of a dict whose keys are iterated answer `dict[key]`. `more`: what was remembered
 * before is not older than the iteration. */
static int
remember_values(PeerObject *peer, PyObject *mapping, PyObject *values, bool more, uint64_t effects)
{
    struct proxy *p = proxy_find(mapping);
    if (p == NULL || !PyDict_CheckExact(values)) {
        return 0;
    }
    PyObject *key, *value;
    Py_ssize_t at = 0;
    while (PyDict_Next(values, &at, &key, &value)) {
        if (!is_small_value(value)) {
            ahead_wake(peer);
            break;
        }
    }
    struct seen *seen = &peer->seen;
    if (more && seen->values != NULL && seen->of_values == p->handle &&
        seen->values_effects == effects) {
        seen->values_at = peer->ahead.used = ahead_now();
        seen->values_uses = 0;
        return PyDict_Update(seen->values, values);
    }
    Py_XSETREF(seen->values, Py_NewRef(values));
    Py_CLEAR(seen->keys);
    seen->of_values = p->handle;
    seen->values_effects = effects;
    seen->values_at = peer->ahead.used = ahead_now();
    seen->values_uses = 0;
    return 0;
}

/* How many items those are; -1: they are none. */
static Py_ssize_t
count_of(PyObject *items)
{
    if (PyTuple_Check(items)) {
        return PyTuple_GET_SIZE(items);
    }
    if (!PyBytes_CheckExact(items) || PyBytes_GET_SIZE(items) < 1) {
        return -1;
    }
    size_t width = run_width((uint8_t)PyBytes_AS_STRING(items)[0]);
    size_t size = (size_t)PyBytes_GET_SIZE(items) - 1;
    return width == 0 || size % width != 0 ? -1 : (Py_ssize_t)(size / width);
}

/* The next items to come. Those before may be the last references to proxies, whose end runs code:
 * by then all is consistent. */
static void
set_items(IteratorObject *self, PyObject *items, Py_ssize_t n, bool done)
{
    PyObject *before = self->items;
    self->before += (uint64_t)self->next;
    self->items = Py_NewRef(items);
    self->n = n;
    self->next = 0;
    self->done = done;
    Py_XDECREF(before);
}

/* New reference. */
static PyObject *
item_at(IteratorObject *self, Py_ssize_t i)
{
    if (PyTuple_Check(self->items)) {
        return Py_NewRef(PyTuple_GET_ITEM(self->items, i));
    }
    const unsigned char *data = (const unsigned char *)PyBytes_AS_STRING(self->items);
    return run_number(data[0], data + 1 + (size_t)i * run_width(data[0]));
}

/* Takes an answer apart, to a question that was asked at `effects`; what came along is remembered.
 * Steals answer. */
static int
take(IteratorObject *self, PyObject *answer, uint64_t effects)
{
    PyObject *cursor, *items, *mapping, *values, *contents;
    PeerObject *peer = self->peer;
    int done;
    Py_ssize_t length, n;
    if (answer == NULL) {
        return -1;
    }
    if (!PyTuple_Check(answer) ||
        !PyArg_ParseTuple(answer, "OOpnOOO!", &cursor, &items, &done, &length, &mapping, &values,
                          &PyTuple_Type, &contents) ||
        (n = count_of(items)) < 0 || (mapping != Py_None && !PyTuple_Check(items))) {
        PyErr_Clear();
        Py_DECREF(answer);
        return garbled("iteration");
    }
    if (cursor != Py_None) {
        Py_XSETREF(self->cursor, Py_NewRef(cursor));
        Py_CLEAR(self->container);
        self->total = length < 0 ? 0 : (uint64_t)length;
    }
    self->effects = effects;
    self->epoch = peer->epoch;
    self->want = self->want == 1                 ? 1
                 : self->want >= ITERATE_MOST    ? self->want
                 : self->want * 2 < ITERATE_MOST ? self->want * 2
                                                 : ITERATE_MOST;
    set_items(self, items, n, done);
    int rc = mapping == Py_None
                 ? 0
                 : remember_values(peer, mapping, values, self->adds || cursor == Py_None, effects);
    if (rc == 0 && mapping != Py_None && peer->seen.values != NULL &&
        PyDict_GET_SIZE(values) < PyTuple_GET_SIZE(items)) {
        Py_XSETREF(peer->seen.keys, Py_NewRef(items));
        peer->seen.keys_from = self->before;
        peer->seen.key = 0;
        peer->seen.want = ITERATE_FEW;
        peer->seen.keys_of = self->total;
    }
    if (rc == 0 && effects == peer->effects) { /* else another thread may have changed it since */
        rc = ahead_remember(peer, contents);
    }
    Py_DECREF(answer);
    return rc;
}

/* An iterator without anything to give yet. New reference. */
static IteratorObject *
iterator_new(PeerObject *peer, PyObject *cls, PyObject *name)
{
    IteratorObject *self = PyObject_GC_New(IteratorObject, core_get()->iterator_type);
    if (self == NULL) {
        return NULL;
    }
    memset((char *)self + sizeof(PyObject), 0, sizeof *self - sizeof(PyObject));
    self->peer = (PeerObject *)Py_NewRef(peer);
    self->cls = Py_NewRef(cls);
    self->name = Py_NewRef(name);
    self->want = ITERATE_FIRST;
    self->left = -1;
    PyObject_GC_Track(self);
    return self;
}

/* New reference to an iterator over the proxy p whose first request fetches what `want` says. */
static IteratorObject *
begin(StubObject *stub, struct proxy *p, uint64_t want)
{
    PeerObject *peer = p->peer;
    IteratorObject *self = iterator_new(peer, stub->cls, stub->name);
    if (self == NULL) {
        return NULL;
    }
    struct proxy *dict = p->of == NULL ? NULL : proxy_find(p->of);
    uint64_t handle = dict != NULL ? dict->handle : p->handle; /* a view is as long as its dict */
    uint64_t effects = peer->effects;
    self->want = want;
    PyObject *answer = ask(peer, self->cls, self->name, p->of != NULL ? p->of : p->object,
                           (struct iterate){.want = want});
    PyObject *length = answer != NULL && PyTuple_Check(answer) && PyTuple_GET_SIZE(answer) > 3
                           ? Py_NewRef(PyTuple_GET_ITEM(answer, 3))
                           : NULL;
    if (take(self, answer, effects) < 0 || self->cursor == NULL) {
        if (!PyErr_Occurred()) {
            garbled("iteration");
        }
        Py_CLEAR(self);
    }
    else if (length != NULL && PyLong_CheckExact(length)) {
        self->left = PyLong_AsSsize_t(length);
        peer->seen.of_length = handle;
        peer->seen.length = self->left;
        peer->seen.length_effects = effects;
        peer->seen.length_at = peer->ahead.used = ahead_now();
        peer->seen.length_uses = 0;
    }
    Py_XDECREF(length);
    return self;
}

PyObject *
iteration_new(StubObject *stub, struct proxy *p)
{
    struct proxy *dict = p->of == NULL ? NULL : proxy_find(p->of);
    if (dict != NULL && dict->ahead != NULL && stub->name == core_get()->str___iter__) {
        PyObject *items = ahead_items(dict, view_name(p)), *known = NULL;
        if (items != NULL) {
            known = iteration_known(stub, p->of, items);
            Py_DECREF(items);
        }
        if (known != NULL || PyErr_Occurred()) {
            return known;
        }
    }
    PeerObject *peer = p->peer;
    IteratorObject *begun = (IteratorObject *)peer->ahead.begun;
    if (begun != NULL) {
        peer->ahead.begun = NULL;
        if (peer->ahead.begun_of == p->handle && begun->effects == peer->effects &&
            begun->epoch == peer->epoch && begun->name == stub->name &&
            ahead_is_fresh(peer, peer->seen.length_at)) {
            return (PyObject *)begun;
        }
        Py_DECREF(begun);
    }
    return (PyObject *)begin(stub, p, ITERATE_FIRST);
}

PyObject *
iteration_taken(PeerObject *peer, PyObject *answer)
{
    IteratorObject *self = iterator_new(peer, Py_None, core_get()->str___iter__);
    PyObject *items = NULL;
    if (self == NULL) {
        Py_DECREF(answer);
    }
    else if (take(self, answer, peer->effects) == 0) {
        items = Py_NewRef(self->items);
    }
    Py_XDECREF(self);
    return items;
}

PyObject *
iteration_known(StubObject *stub, PyObject *container, PyObject *items)
{
    PeerObject *peer = proxy_find(container)->peer;
    IteratorObject *self = iterator_new(peer, stub->cls, stub->name);
    if (self != NULL) {
        self->container = Py_NewRef(container);
        set_items(self, items, PyTuple_GET_SIZE(items), true);
        self->left = PyTuple_GET_SIZE(items);
        self->effects = peer->effects;
        self->epoch = peer->epoch;
    }
    return (PyObject *)self;
}

/* A dict's iterator that has found another size raises that for good; one that has found more keys
 * than there should be ends. Which of these has just been raised? */
static bool
has_ended(void)
{
    PyObject *exc = compat_take_exception(), *text = PyObject_Str(exc);
    const char *said = text == NULL ? NULL : PyUnicode_AsUTF8(text);
    bool ended = said != NULL && strstr(said, "keys changed") != NULL;
    Py_XDECREF(text);
    PyErr_Clear();
    compat_raise(exc);
    return ended;
}

/* Asks for what comes after what was used. 0, or -1 with an exception. */
static int
go_on(IteratorObject *self, uint64_t want, PyObject **answer)
{
    bool known = self->cursor == NULL;
    PyObject *o = Py_NewRef(known ? self->container : self->cursor);
    struct iterate what = {.position = self->before + (uint64_t)self->next, .want = want};
    if (known) {
        what.length = self->failed ? ITERATE_FAILED : (uint64_t)self->n + 1;
    }
    self->asks++;
    *answer = ask(self->peer, self->cls, self->name, o, what);
    Py_DECREF(o);
    if (known && *answer == NULL && PyErr_Occurred() == PyExc_RuntimeError) {
        if (has_ended()) {
            Py_CLEAR(self->container);
        }
        else {
            self->failed = true;
        }
    }
    return *answer == NULL ? -1 : 0;
}

/* Threads that share an iterator ask one after the other: where one has come to is what the next
 * begins at. Waits for the turn: 0, or -1 with an exception. */
static int
turn_begin(IteratorObject *self)
{
    unsigned long me = PyThread_get_thread_ident();
    if (self->asking > 0 && self->asker == me) {
        self->asking++; /* what was asked has led here again */
        return 0;
    }
    if (self->turn == NULL && (self->turn = PyThread_allocate_lock()) == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    /* In a fork of the kernel, nobody may be left who has it; what is asked there fails anyway. */
    PyLockStatus got = self->peer->state == PEER_FORKED
                           ? PY_LOCK_ACQUIRED
                           : PyThread_acquire_lock_timed(self->turn, 0, 0);
    while (got != PY_LOCK_ACQUIRED) {
        Py_BEGIN_ALLOW_THREADS
        got = PyThread_acquire_lock_timed(self->turn, SLICE_MS * 1000, 1);
        Py_END_ALLOW_THREADS
        /* Not once the turn is this thread's: a handler may iterate, too. */
        if (got != PY_LOCK_ACQUIRED && PyErr_CheckSignals() < 0) {
            return -1;
        }
    }
    self->asker = me;
    self->asking = 1;
    return 0;
}

static void
turn_end(IteratorObject *self)
{
    if (--self->asking == 0 && self->peer->state != PEER_FORKED) {
        PyThread_release_lock(self->turn);
    }
}

static bool
is_at_end(IteratorObject *self)
{
    return self->exact == NULL && self->cursor == NULL && self->container == NULL;
}

/* Whether what was fetched is what would come if it were asked for now. */
static bool
is_current(IteratorObject *self)
{
    PeerObject *peer = self->peer;
    return self->effects == peer->effects && self->epoch == peer->epoch &&
           peer->state == PEER_RUNNING && peer->batching == 0 && !has_pairs(peer) &&
           peer->copies == NULL; /* through a view, the target changes without a request */
}

/* Whether this side knows what comes next. */
static bool
is_at_hand(IteratorObject *self)
{
    return self->exact != NULL || is_at_end(self) ||
           ((self->done || self->next < self->n) && is_current(self));
}

/* Asks for what comes next. 1; 0 where that is to be done again; or -1 with an exception. */
static int
fetch(IteratorObject *self)
{
    PeerObject *peer = self->peer;
    if (!is_current(self)) {
        self->left = -1;
    }
    if (self->next < self->n) {
        self->want = 1; /* the loop's body asks the other side too */
    }
    uint64_t effects = peer->effects, asks = self->asks;
    PyObject *answer;
    if (go_on(self, self->want, &answer) < 0) {
        return -1;
    }
    if (self->asks != asks + 1) { /* a signal handler has, too, and used some of what it got */
        Py_DECREF(answer);
        return 0;
    }
    if (take(self, answer, effects) < 0) {
        return -1;
    }
    if (is_at_end(self) || self->exact != NULL) { /* by the end of an item before, as it iterates */
        return 1;
    }
    if (self->cursor == NULL || (self->n == 0 && !self->done)) {
        return garbled("iteration");
    }
    return self->done || self->next < self->n; /* else that has used what came */
}

static PyObject *
iterator_next(IteratorObject *self)
{
    bool known = self->asking == 0 && is_at_hand(self);
    while (!known) {
        if (turn_begin(self) < 0) {
            return NULL;
        }
        int rc = is_at_hand(self) ? 1 : fetch(self);
        turn_end(self);
        if (rc < 0) {
            return NULL;
        }
        known = rc > 0;
    }
    if (self->exact != NULL && self->next == self->n) {
        return PyIter_Next(self->exact);
    }
    if (is_at_end(self) || self->next == self->n) {
        Py_CLEAR(self->cursor); /* an iterator that has ended stays so */
        Py_CLEAR(self->container);
        return NULL;
    }
    self->left -= self->left > 0;
    return item_at(self, self->next++);
}

/* From now on the real iterator is asked; what it has given before comes first. Steals answer. 0,
 * or -1 with an exception. */
static int
set_exact(IteratorObject *self, PyObject *answer)
{
    PyObject *exact = answer, *items = core_get()->empty_tuple;
    if (PyTuple_Check(answer) && PyTuple_GET_SIZE(answer) == 2) {
        exact = PyTuple_GET_ITEM(answer, 0);
        items = PyTuple_GetSlice(answer, 1, 2);
    }
    int rc = items == NULL ? -1 : PyIter_Check(exact) ? 0 : garbled("iteration");
    if (rc == 0) {
        Py_XSETREF(self->exact, Py_NewRef(exact));
        Py_CLEAR(self->cursor);
        Py_CLEAR(self->container);
        set_items(self, items, PyTuple_GET_SIZE(items), true);
    }
    if (items != core_get()->empty_tuple) {
        Py_XDECREF(items);
    }
    Py_DECREF(answer);
    return rc;
}

/* Asks for the real iterator unless it is known. 0, or -1 with an exception. */
static int
find_exact(IteratorObject *self)
{
    while (self->exact == NULL) {
        uint64_t asks = self->asks;
        PyObject *answer;
        if (is_at_end(self)) {
            PyObject *nothing = PyTuple_New(0);
            self->exact = nothing == NULL ? NULL : PyObject_GetIter(nothing);
            Py_XDECREF(nothing);
            return self->exact == NULL ? -1 : 0;
        }
        if (go_on(self, 0, &answer) < 0) {
            return -1;
        }
        if (self->asks == asks + 1) {
            return set_exact(self, answer);
        }
        Py_DECREF(answer); /* a signal handler has asked, too, and used what this would give */
    }
    return 0;
}

/* New reference to a proxy of the real iterator, which is where this one is; but for an item that
 * it gave when an exception took the place of the answer, which only next() gives. */
PyObject *
iteration_exact(PyObject *o)
{
    IteratorObject *self = (IteratorObject *)o;
    if (self->exact != NULL) {
        return Py_NewRef(self->exact);
    }
    if (turn_begin(self) < 0) {
        return NULL;
    }
    int rc = find_exact(self);
    turn_end(self);
    return rc < 0 ? NULL : Py_NewRef(self->exact);
}

PeerObject *
iteration_peer(PyObject *o)
{
    return ((IteratorObject *)o)->peer;
}

/* What else the real iterator has (__setstate__, ...). */
static PyObject *
iterator_getattro(PyObject *self, PyObject *name)
{
    PyObject *o = PyObject_GenericGetAttr(self, name);
    if (o != NULL || !PyErr_ExceptionMatches(PyExc_AttributeError) || !is_special_name(name)) {
        return o;
    }
    PyErr_Clear();
    PyObject *exact = iteration_exact(self);
    o = exact == NULL ? NULL : PyObject_GetAttr(exact, name);
    Py_XDECREF(exact);
    return o;
}

static PyObject *
iterator_reduce(PyObject *self, PyObject *protocol)
{
    PyObject *exact = iteration_exact(self);
    PyObject *parts =
        exact == NULL ? NULL : PyObject_CallMethod(exact, "__reduce_ex__", "O", protocol);
    Py_XDECREF(exact);
    return parts;
}

static PyObject *
iterator_hint(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    IteratorObject *it = (IteratorObject *)self;
    bool left = it->cursor != NULL || it->container != NULL;
    if (left && it->done && it->effects == it->peer->effects) {
        return PyLong_FromSsize_t(it->n - it->next);
    }
    if (left && it->left >= 0 && it->effects == it->peer->effects) {
        return PyLong_FromSsize_t(it->left);
    }
    PyObject *exact = iteration_exact(self);
    Py_ssize_t n = exact == NULL ? -1 : PyObject_LengthHint(exact, PY_SSIZE_T_MAX);
    Py_XDECREF(exact);
    if (n == PY_SSIZE_T_MAX) {
        Py_RETURN_NOTIMPLEMENTED; /* as an OrderedDict's, which has none */
    }
    return n < 0 ? NULL : PyLong_FromSsize_t(n + it->n - it->next);
}

/* The class of the real iterator, for isinstance(); as for mirrored classes of built-in targets. */
static PyObject *
iterator_class(PyObject *self, void *Py_UNUSED(closure))
{
    static const struct {
        const char *container;
        PyTypeObject *iterator, *reversed;
    } classes[] = {
        {"list", &PyListIter_Type, &PyListRevIter_Type},
        {"dict", &PyDictIterKey_Type, &PyDictRevIterKey_Type},
        {"dict_keys", &PyDictIterKey_Type, &PyDictRevIterKey_Type},
        {"dict_values", &PyDictIterValue_Type, &PyDictRevIterValue_Type},
        {"dict_items", &PyDictIterItem_Type, &PyDictRevIterItem_Type},
        {"set", &PySetIter_Type, NULL},
        {"frozenset", &PySetIter_Type, NULL},
        {"bytearray", &PyByteArrayIter_Type, NULL},
    };
    bool reversed = ((IteratorObject *)self)->name != core_get()->str___iter__;
    PyObject *cls = ((IteratorObject *)self)->cls;
    for (size_t i = 0; cls != NULL && i < sizeof classes / sizeof *classes; i++) {
        if (strcmp(((PyTypeObject *)cls)->tp_name, classes[i].container) == 0) {
            PyTypeObject *known = reversed ? classes[i].reversed : classes[i].iterator;
            return Py_NewRef(known != NULL ? known : Py_TYPE(self));
        }
    }
    return Py_NewRef(Py_TYPE(self));
}

static PyObject *
iterator_repr(PyObject *self)
{
    PyObject *exact = iteration_exact(self);
    PyObject *text = exact == NULL ? NULL : PyObject_Repr(exact);
    Py_XDECREF(exact);
    return text;
}

static PyMethodDef iterator_methods[] = {
    {"__reduce_ex__", iterator_reduce, METH_O, NULL},
    {"__length_hint__", iterator_hint, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef iterator_getset[] = {
    {"__class__", iterator_class, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot iterator_slots[] = {
    {Py_tp_traverse, iterator_traverse}, {Py_tp_clear, iterator_clear},
    {Py_tp_dealloc, iterator_dealloc},   {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, iterator_next},     {Py_tp_getattro, iterator_getattro},
    {Py_tp_repr, iterator_repr},         {Py_tp_methods, iterator_methods},
    {Py_tp_getset, iterator_getset},     {0, NULL},
};
static PyType_Spec iterator_spec = {
    "ipython_isolation._core.iterator", sizeof(IteratorObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, iterator_slots};

/* ---- answers that were fetched with the items ----------------------------------------------- */

/* The values of a dict whose keys are looked up one by one as they come, which are not small: those
 * of `key` and the next keys are fetched at once. 0, or -1 with an exception. */
static int
fetch_values(struct proxy *p, PyObject *key)
{
    PeerObject *peer = p->peer;
    struct seen *seen = &peer->seen;
    Py_ssize_t n = seen->keys == NULL ? 0 : PyTuple_GET_SIZE(seen->keys), i = seen->key;
    while (i < n && PyTuple_GET_ITEM(seen->keys, i) != key) {
        i++;
    }
    struct mirror *mirror = table_get(&core_get()->mirrors, ADDRESS(Py_TYPE(p->object)));
    if (i == n || seen->keys_from + (uint64_t)i >= seen->keys_of || mirror == NULL ||
        mirror->reported != (PyObject *)&PyDict_Type) {
        return 0;
    }
    if (peer->views[0] == NULL) { /* its class is not known until there is one */
        PyObject *view = PyObject_CallMethodNoArgs(p->object, core_get()->str_keys);
        if (view == NULL) {
            return -1;
        }
        Py_DECREF(view);
    }
    PyObject *stub = peer->views[0] == NULL || seen->keys == NULL
                         ? NULL
                         : compat_type_lookup(peer->views[0], core_get()->str___iter__);
    if (stub == NULL || !Py_IS_TYPE(stub, core_get()->method_type)) {
        return 0;
    }
    StubObject *iter = (StubObject *)stub;
    IteratorObject *from = iterator_new(peer, iter->cls, iter->name);
    if (from == NULL) {
        return -1;
    }
    from->adds = true;
    uint64_t effects = peer->effects;
    uint64_t want = seen->want;
    PyObject *keys = Py_NewRef(seen->keys);
    PyObject *answer = ask(peer, from->cls, from->name, p->object,
                           (struct iterate){.position = seen->keys_from + (uint64_t)i,
                                            .want = want,
                                            .length = seen->keys_of + 1});
    if (answer == NULL && PyErr_Occurred() == PyExc_RuntimeError) {
        PyErr_Clear(); /* a thread has changed it */
    }
    else {
        take(from, answer, effects);
    }
    if (effects == peer->effects && !PyErr_Occurred() && seen->values != NULL &&
        seen->of_values == p->handle) {
        Py_XSETREF(seen->keys, Py_NewRef(keys)); /* those of the loop, still */
        seen->key = i;
        seen->want = want * 2 < ITERATE_MOST ? want * 2 : ITERATE_MOST;
    }
    Py_DECREF(keys);
    Py_DECREF(from);
    return PyErr_Occurred() ? -1 : 0;
}

/* The length of a list that NumPy is about to iterate: what it will ask for is fetched at once. New
 * reference; NULL, perhaps without an exception, where it has to be asked for by itself. */
static PyObject *
begin_early(struct proxy *p)
{
    PeerObject *peer = p->peer;
    uint64_t handle = p->handle;
    struct mirror *mirror = table_get(&core_get()->mirrors, ADDRESS(Py_TYPE(p->object)));
    PyObject *stub = compat_type_lookup(Py_TYPE(p->object), core_get()->str___iter__);
    peer->ahead.probed = 0;
    if (mirror == NULL || mirror->reported != (PyObject *)&PyList_Type || stub == NULL ||
        !Py_IS_TYPE(stub, core_get()->method_type) || peer->batching > 0) {
        return NULL;
    }
    IteratorObject *begun = begin((StubObject *)stub, p, ITERATE_FIRST);
    if (begun == NULL) {
        return NULL;
    }
    Py_ssize_t length = begun->left;
    ahead_wake(peer);
    Py_XSETREF(peer->ahead.begun, (PyObject *)begun);
    peer->ahead.begun_of = handle;
    return length < 0 ? NULL : PyLong_FromSsize_t(length);
}

/* New reference to what `len(p)` or `p[key]` gives, if it came with the items and still holds; NULL
 * without an exception where it must be asked for. */
PyObject *
iteration_seen(StubObject *stub, struct proxy *p, PyObject *const *args, Py_ssize_t nargs)
{
    struct seen *seen = &p->peer->seen;
    if (stub->kind == 'n' && nargs == 1 && p->of != NULL) {
        Py_ssize_t n = PyObject_Size(p->of);
        return n < 0 ? NULL : PyLong_FromSsize_t(n);
    }
    if (p->epoch != p->peer->epoch || p->handle == 0) {
        return NULL;
    }
    if (stub->kind == 'n' && nargs == 1 && seen->of_length == p->handle && seen->length >= 0 &&
        seen->length_effects == p->peer->effects && ahead_is_fresh(p->peer, seen->length_at) &&
        !ahead_is_enough(&seen->length_uses, seen->length)) {
        return PyLong_FromSsize_t(seen->length);
    }
    if (stub->kind == 'n' && nargs == 1 && p->peer->ahead.probed == p->handle) {
        return begin_early(p);
    }
    if (stub->kind == 'g' && nargs == 2 && seen->values != NULL && seen->of_values == p->handle &&
        seen->values_effects == p->peer->effects && is_small_value(args[1]) &&
        ahead_is_fresh(p->peer, seen->values_at) &&
        !ahead_is_enough(&seen->values_uses, PyDict_GET_SIZE(seen->values))) {
        PyObject *value = PyDict_GetItemWithError(seen->values, args[1]);
        if (value == NULL && !PyErr_Occurred() && seen->keys != NULL &&
            fetch_values(p, args[1]) == 0 && seen->values != NULL && seen->of_values == p->handle) {
            value = PyDict_GetItemWithError(seen->values, args[1]);
            if (value == NULL) {
                Py_CLEAR(seen->keys); /* it does not pay */
            }
        }
        return Py_XNewRef(value);
    }
    return NULL;
}

void
iteration_effect(PeerObject *peer)
{
    peer->effects++;
    if (ahead_is_any(peer)) {
        ahead_drop(peer);
    }
}

PyObject *
iteration_contents(PyObject *o)
{
    struct proxy *p = proxy_find(o);
    PyObject *view = NULL, *method = NULL, *items = NULL;
    if (p == NULL || p->peer->batching > 0) {
        return NULL;
    }
    struct mirror *mirror = table_get(&core_get()->mirrors, ADDRESS(Py_TYPE(o)));
    if (mirror != NULL && mirror->reported == (PyObject *)&PyDict_Type) {
        if (p->ahead != NULL && (items = ahead_items(p, core_get()->str_items)) != NULL) {
            return items;
        }
        view = view_of(p, core_get()->str_items);
        if (view == NULL && !PyErr_Occurred()) { /* the first one */
            view = PyObject_CallMethodNoArgs(o, core_get()->str_items);
        }
    }
    else if (mirror != NULL && mirror->reported == (PyObject *)&PyList_Type) {
        if (p->ahead != NULL && (items = ahead_items(p, NULL)) != NULL) {
            return items;
        }
        view = Py_NewRef(o);
    }
    method = view == NULL ? NULL : compat_type_lookup(Py_TYPE(view), core_get()->str___iter__);
    if (method != NULL && Py_IS_TYPE(method, core_get()->method_type)) {
        PyObject *iterator = (PyObject *)begin((StubObject *)method, proxy_find(view), ITERATE_ALL);
        items = iterator == NULL ? NULL : PySequence_Tuple(iterator);
        Py_XDECREF(iterator);
    }
    Py_XDECREF(view);
    return items;
}

int
iteration_init(core_state *core, PyObject *module)
{
    core->iterator_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &iterator_spec, NULL);
    return core->iterator_type == NULL ? -1 : 0;
}
