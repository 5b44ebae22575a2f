/* iteration.c: iterating a plain container of the other side, several items at a time where that
 * cannot be told apart from one at a time.
 *
 * Who asks: an iterator of ours stands for the real one. It uses items that were fetched ahead only
 * as long as nothing else has been asked of the other side, nor been asked by it, since they were
 * fetched: nothing that this side could know of has happened in between. As soon as something has,
 * what was fetched is dropped, and the rest comes item by item.
 *
 * Who answers: a cursor has two real iterators. `exact` has given what the other side has used,
 * `ahead` what it was sent. So where items were dropped, or the container changed meanwhile,
 * `exact` says what in-process would have come, or raises what it would have raised. */
#include "codec.h"
#include "iteration.h"

#include "ahead.h"
#include "handles.h"
#include "peer.h"
#include "proxy.h"
#include "views.h"

#include <string.h>

#define FIRST 1024  /* cost of what the first request fetches; doubled with each one ... */
#define FEW 256     /* what the first values cost that are fetched because one was asked for */
#define MOST 16384  /* ... up to here */
#define ALL 1048576 /* what one request fetches where all items are wanted at once */

/* ---- which containers -------------------------------------------------------------------- */

/* Built-in containers: iterating them runs no code of others and changes nothing. */
bool
is_plain_container(PyTypeObject *cls)
{
    PyTypeObject *plain[] = {&PyList_Type,
                             &PyDict_Type,
                             &PySet_Type,
                             &PyFrozenSet_Type,
                             &PyByteArray_Type,
                             &PyDictKeys_Type,
                             &PyDictValues_Type,
                             &PyDictItems_Type,
                             &PyODict_Type,
                             &PyODictKeys_Type,
                             &PyODictValues_Type,
                             &PyODictItems_Type,
                             (PyTypeObject *)core_get()->deque_type};
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        if (cls == plain[i]) {
            return true;
        }
    }
    return strcmp(cls->tp_name, "array.array") == 0 && is_array_class(cls);
}

/* ---- who answers ------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *exact;   /* strong */
    PyObject *ahead;   /* strong or NULL: no item is sent ahead any more */
    PyObject *keys_of; /* strong or NULL: the dict whose keys these are */
    bool even;         /* a dict's: no gaps between the keys that are pending */
    bool all_values;   /* not only small values of that dict go along */
    uint64_t pending;  /* how many items `ahead` is before `exact` */
} CursorObject;

static int
cursor_traverse(CursorObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->exact);
    Py_VISIT(self->ahead);
    Py_VISIT(self->keys_of);
    return 0;
}

static int
cursor_clear(CursorObject *self)
{
    Py_CLEAR(self->exact);
    Py_CLEAR(self->ahead);
    Py_CLEAR(self->keys_of);
    return 0;
}

static void
cursor_dealloc(CursorObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    cursor_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyType_Slot cursor_slots[] = {
    {Py_tp_traverse, cursor_traverse},
    {Py_tp_clear, cursor_clear},
    {Py_tp_dealloc, cursor_dealloc},
    {0, NULL},
};
static PyType_Spec cursor_spec = {
    "ipython_isolation._core.Cursor", sizeof(CursorObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, cursor_slots};

/* Borrowed: the dict whose keys iterating o gives, or NULL. What a subclass's own __getitem__ gives
 * does not count: that is no stub of dict's. */
static PyObject *
mapping_of(PyObject *o)
{
    if (PyDict_Check(o)) {
        return o;
    }
    if (Py_IS_TYPE(o, &PyDictKeys_Type) || Py_IS_TYPE(o, &PyODictKeys_Type)) {
        return compat_dict_of_view(o);
    }
    return NULL;
}

/* New reference to a cursor at the beginning of o, as the class's own __iter__ says. */
static CursorObject *
cursor_new(PyObject *descriptor, PyObject *o)
{
    CursorObject *self = PyObject_GC_New(CursorObject, core_get()->cursor_type);
    if (self == NULL) {
        return NULL;
    }
    self->pending = 0;
    self->even = false;
    self->keys_of = Py_XNewRef(mapping_of(o));
    self->all_values = self->keys_of != NULL && self->keys_of != o;
    self->exact = PyObject_CallOneArg(descriptor, o);
    self->ahead = self->exact == NULL ? NULL : PyObject_CallOneArg(descriptor, o);
    PyObject_GC_Track(self);
    if (self->ahead == NULL) {
        Py_CLEAR(self);
    }
    return self;
}

/* The other side has used so many of the items that it was sent last. */
static int
cursor_consumed(CursorObject *self, uint64_t consumed)
{
    if (self->pending == 0 && consumed <= 1) {
        return 0; /* a single one: `exact` gave it */
    }
    if (consumed > self->pending) {
        return garbled("iteration");
    }
    if (consumed < self->pending) {
        Py_CLEAR(self->ahead);
    }
    self->pending = 0;
    if (self->even) { /* also where the dict has changed since: it finds that out when it goes on */
        compat_dict_iterator_skip(self->exact, (Py_ssize_t)consumed);
        return 0;
    }
    while (consumed-- > 0) {
        PyObject *item = PyIter_Next(self->exact);
        if (item == NULL) {
            return PyErr_Occurred() ? -1 : 0; /* it has become shorter */
        }
        Py_DECREF(item);
    }
    return 0;
}

/* The next item of `exact`, as a tuple; *done: there are no more. */
static PyObject *
cursor_one(CursorObject *self, bool *done)
{
    Py_CLEAR(self->ahead);
    PyObject *item = PyIter_Next(self->exact);
    if (item == NULL) {
        *done = !PyErr_Occurred();
        return *done ? PyTuple_New(0) : NULL;
    }
    PyObject *items = PyTuple_Pack(1, item);
    Py_DECREF(item);
    return items;
}

/* What an answer takes along besides the items. */
struct along {
    PyObject *values;   /* strong: dict, of keys and their values; or None */
    PyObject *contents; /* strong */
};

/* Adds the value that a key has, and its cost to *cost. As contents_add(). */
static int
add_value(CursorObject *self, PyObject *key, Py_ssize_t most, struct along *along, Py_ssize_t *cost)
{
    PyObject *value = is_small_value(key) ? PyDict_GetItemWithError(self->keys_of, key) : NULL;
    if (value == NULL || (!self->all_values && !is_small_value(value))) {
        return PyErr_Occurred() ? -1 : 1;
    }
    if (PyDict_SetItem(along->values, key, value) < 0) {
        return -1;
    }
    if (is_small_value(value)) {
        return 1; /* no more than the key says */
    }
    *cost += cost_of(value, most);
    return contents_add(along->contents, value, most, cost);
}

/* The next items of `ahead`, as a tuple; *done: there are no more. */
static PyObject *
cursor_several(CursorObject *self, Py_ssize_t want, bool *done, struct along *along)
{
    Py_ssize_t cost = 0, n = 0, room = PyObject_LengthHint(self->ahead, 16);
    if (room < 0) {
        return NULL;
    }
    room = room < 1 ? 1 : room < want ? room : want;
    PyObject *items = PyTuple_New(room);
    bool of_dict = compat_is_dict_iterator(self->ahead);
    Py_ssize_t from = of_dict ? compat_dict_iterator_position(self->ahead) : 0, to = from;
    while (items != NULL && cost < want) {
        PyObject *item = PyIter_Next(self->ahead);
        if (item == NULL) {
            if (n == 0 && PyErr_Occurred()) {
                PyErr_Clear();
                Py_DECREF(items);
                return cursor_one(self, done); /* which says it */
            }
            *done = !PyErr_Occurred();
            /* An error is raised when `exact` comes there; and a list iterator that has found the
             * end stays there, even if the list grows before the other side comes there. */
            PyErr_Clear();
            Py_CLEAR(self->ahead);
            break;
        }
        if (n == room) {
            room *= 2;
            _PyTuple_Resize(&items, room);
        }
        if (items == NULL) {
            Py_DECREF(item);
            return NULL;
        }
        PyTuple_SET_ITEM(items, n, item);
        n++;
        to = of_dict ? compat_dict_iterator_position(self->ahead) : 0;
        int fits = 1;
        if (is_small_value(item)) {
            cost += COST_VALUE;
        }
        else {
            cost += cost_of(item, want);
            fits = contents_add(along->contents, item, want, &cost);
        }
        if (fits > 0 && self->keys_of != NULL) {
            fits = add_value(self, item, want, along, &cost);
        }
        if (fits < 0) {
            Py_CLEAR(items);
        }
        if (fits == 0 && want < MOST) {
            break; /* the next answer may be larger */
        }
    }
    if (items != NULL && n < room) {
        _PyTuple_Resize(&items, n);
    }
    self->pending += items == NULL ? 0 : (uint64_t)n;
    self->even = of_dict && to - from == n;
    return items;
}

static Py_ssize_t
length_of(PyObject *o)
{
    PyObject *method = compat_type_lookup(Py_TYPE(o), core_get()->str___len__);
    if (method == NULL || !Py_IS_TYPE(method, &PyWrapperDescr_Type) ||
        !is_plain_container(PyDescr_TYPE(method))) {
        return -1;
    }
    return PyObject_Size(o);
}

/* New reference to what is iterated: the view of a dict that `cls` is the class of, or o itself. */
static PyObject *
iterated(PyTypeObject *cls, PyObject *o)
{
    const char *view = cls == &PyDictKeys_Type     ? "keys"
                       : cls == &PyDictValues_Type ? "values"
                       : cls == &PyDictItems_Type  ? "items"
                                                   : NULL;
    return view != NULL && PyDict_Check(o)
               ? PyObject_CallMethod((PyObject *)&PyDict_Type, view, "O", o)
               : Py_NewRef(o);
}

/* Sets a new cursor of o to where an iterator would be that has given `consumed` of `length`. */
static int
cursor_seek(CursorObject *self, uint64_t consumed, uint64_t length)
{
    bool failed = length == ITERATE_FAILED - 1;
    if (!failed && (length > PY_SSIZE_T_MAX || consumed > length)) {
        return garbled("iteration");
    }
    Py_ssize_t n = failed ? 0 : (Py_ssize_t)consumed;
    if (compat_is_dict_iterator(self->exact)) {
        compat_dict_iterator_seek(self->exact, n, failed ? -1 : (Py_ssize_t)length);
        compat_dict_iterator_seek(self->ahead, n, failed ? -1 : (Py_ssize_t)length);
        return 0;
    }
    Py_CLEAR(self->ahead);
    if (!Py_IS_TYPE(self->exact, &PyListIter_Type)) {
        return garbled("iteration");
    }
    PyObject *none = PyObject_CallMethod(self->exact, "__setstate__", "n", n);
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}

/* (cursor, items, done, length, mapping, values, contents); what is not known or asked for is None,
 * -1 or empty. */
PyObject *
iteration_answer(PyTypeObject *cls, PyObject *descriptor, PyObject *o, struct iterate *asked)
{
    CursorObject *cursor = NULL;
    PyObject *target = NULL, *items = NULL, *result = NULL;
    struct along along = {NULL, contents_new()};
    Py_ssize_t length = -1, cost = 0;
    bool done = false, first = !Py_IS_TYPE(o, core_get()->cursor_type);
    if (along.contents == NULL) {
        return NULL;
    }
    if (!first) {
        cursor = (CursorObject *)Py_NewRef(o);
        if (cursor->exact == NULL) {
            garbled("iteration");
            goto done;
        }
        if (cursor_consumed(cursor, asked->consumed) < 0) {
            goto done;
        }
    }
    else {
        target = iterated(cls, o);
        cursor = target == NULL ? NULL : cursor_new(descriptor, target);
        length = cursor == NULL ? -1 : length_of(target);
        if (cursor == NULL || PyErr_Occurred() ||
            (asked->length > 0 && cursor_seek(cursor, asked->consumed, asked->length - 1) < 0)) {
            goto done;
        }
    }
    if (asked->want == 0) { /* the real iterator itself is wanted: nothing is sent ahead from now on
                             */
        Py_CLEAR(cursor->ahead);
        result = Py_NewRef(cursor->exact);
        goto done;
    }
    along.values = cursor->keys_of == NULL ? Py_NewRef(Py_None) : PyDict_New();
    items = along.values == NULL ? NULL
            : asked->want == 1 || cursor->ahead == NULL
                ? cursor_one(cursor, &done)
                : cursor_several(cursor, asked->want < ALL ? (Py_ssize_t)asked->want : ALL, &done,
                                 &along);
    if (items != NULL && cursor->keys_of != NULL && cursor->ahead == NULL &&
        PyTuple_GET_SIZE(items) == 1 &&
        add_value(cursor, PyTuple_GET_ITEM(items, 0), FIRST, &along, &cost) < 0) {
        Py_CLEAR(items);
    }
    result = items == NULL ? NULL
                           : Py_BuildValue("(OOOnOOO)", first ? (PyObject *)cursor : Py_None, items,
                                           done ? Py_True : Py_False, length,
                                           cursor->keys_of == NULL ? Py_None : cursor->keys_of,
                                           along.values, along.contents);
done:
    Py_XDECREF(target);
    Py_XDECREF(cursor);
    Py_XDECREF(items);
    Py_XDECREF(along.values);
    Py_DECREF(along.contents);
    return result;
}

/* ---- who asks ---------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PeerObject *peer;    /* strong */
    PyObject *cls;       /* strong: the mirrored class whose __iter__ it is ... */
    PyObject *name;      /* strong: ... or __reversed__ */
    PyObject *cursor;    /* strong: a proxy; NULL at the end */
    PyObject *container; /* strong or NULL: what there is no cursor of, as its content was known */
    PyObject *exact;     /* strong or NULL: a proxy of the real iterator, once it was asked for */
    PyObject *items;     /* strong or NULL: tuple of what was fetched */
    Py_ssize_t next;     /* the first that was not used */
    Py_ssize_t left;     /* items to come, while nothing has happened; -1: not known */
    uint64_t before;     /* how many were fetched before these, and used ... */
    uint64_t total;      /* ... of how many, when it began */
    uint64_t effects;    /* peer->effects when they were fetched */
    uint64_t want;
    uint32_t epoch;
    bool done;   /* there was no more behind `items` */
    bool failed; /* without a cursor: the dict had changed */
    bool adds;   /* what comes is added to what another iterator has got of the same dict */
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
    write_u64(&m.w, what.consumed);
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

/* Takes an answer apart, to a question that was asked at `effects`; what came along is remembered.
 * Steals answer. */
static int
take(IteratorObject *self, PyObject *answer, uint64_t effects)
{
    PyObject *cursor, *items, *mapping, *values, *contents;
    PeerObject *peer = self->peer;
    int done;
    Py_ssize_t length;
    if (answer == NULL) {
        return -1;
    }
    if (!PyTuple_Check(answer) ||
        !PyArg_ParseTuple(answer, "OO!pnOOO!", &cursor, &PyTuple_Type, &items, &done, &length,
                          &mapping, &values, &PyTuple_Type, &contents)) {
        PyErr_Clear();
        Py_DECREF(answer);
        return garbled("iteration");
    }
    if (cursor != Py_None) {
        Py_XSETREF(self->cursor, Py_NewRef(cursor));
        Py_CLEAR(self->container);
        self->total = length < 0 ? 0 : (uint64_t)length;
    }
    Py_XSETREF(self->items, Py_NewRef(items));
    self->before += (uint64_t)self->next;
    self->next = 0;
    self->done = done;
    self->effects = effects;
    self->epoch = peer->epoch;
    self->want = self->want == 1         ? 1
                 : self->want >= MOST    ? self->want
                 : self->want * 2 < MOST ? self->want * 2
                                         : MOST;
    int rc = mapping == Py_None
                 ? 0
                 : remember_values(peer, mapping, values, self->adds || cursor == Py_None, effects);
    if (rc == 0 && mapping != Py_None && peer->seen.values != NULL &&
        PyDict_GET_SIZE(values) < PyTuple_GET_SIZE(items)) {
        Py_XSETREF(peer->seen.keys, Py_NewRef(items));
        peer->seen.keys_from = self->before;
        peer->seen.key = 0;
        peer->seen.want = FEW;
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
    self->want = FIRST;
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
    return (PyObject *)begin(stub, p, FIRST);
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
        self->items = Py_NewRef(items);
        self->done = true;
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
    struct iterate what = {.consumed = (uint64_t)self->next, .want = want};
    if (known) {
        what.length = self->failed ? ITERATE_FAILED : (uint64_t)PyTuple_GET_SIZE(self->items) + 1;
    }
    *answer = ask(self->peer, self->cls, self->name, o, what);
    Py_DECREF(o);
    if (*answer == NULL && PyErr_Occurred() == PyExc_RuntimeError) {
        if (!known) { /* the cursor has taken note of what was used */
            Py_XSETREF(self->items, Py_NewRef(core_get()->empty_tuple));
            self->next = 0;
            self->done = false;
        }
        else if (has_ended()) {
            Py_CLEAR(self->container);
        }
        else {
            self->failed = true;
        }
    }
    return *answer == NULL ? -1 : 0;
}

static PyObject *
iterator_next(IteratorObject *self)
{
    if (self->exact != NULL) {
        return PyIter_Next(self->exact);
    }
    if (self->cursor == NULL && self->container == NULL) {
        return NULL;
    }
    PeerObject *peer = self->peer;
    bool current = self->effects == peer->effects && self->epoch == peer->epoch &&
                   peer->state == PEER_RUNNING && peer->batching == 0 && !has_pairs(peer) &&
                   peer->copies == NULL; /* through a view, the target changes without a request */
    bool used_up = self->next >= PyTuple_GET_SIZE(self->items);
    if (!current || (used_up && !self->done)) {
        self->left = current ? self->left : -1;
        if (!used_up) {
            self->want = 1; /* the loop's body asks the other side too */
        }
        uint64_t effects = peer->effects;
        PyObject *answer;
        if (go_on(self, self->want, &answer) < 0 || take(self, answer, effects) < 0) {
            return NULL;
        }
        if (self->cursor == NULL) {
            garbled("iteration");
            return NULL;
        }
        used_up = PyTuple_GET_SIZE(self->items) == 0;
    }
    if (used_up) {
        Py_CLEAR(self->cursor); /* an iterator that has ended stays so */
        Py_CLEAR(self->container);
        return NULL;
    }
    self->left -= self->left > 0;
    return Py_NewRef(PyTuple_GET_ITEM(self->items, self->next++));
}

/* New reference to a proxy of the real iterator, which is where this one is. */
PyObject *
iteration_exact(PyObject *o)
{
    IteratorObject *self = (IteratorObject *)o;
    if (self->exact == NULL && self->cursor == NULL && self->container == NULL) {
        PyObject *nothing = PyTuple_New(0);
        self->exact = nothing == NULL ? NULL : PyObject_GetIter(nothing);
        Py_XDECREF(nothing);
    }
    else if (self->exact == NULL) {
        PyObject *exact;
        if (go_on(self, 0, &exact) == 0) {
            Py_XSETREF(self->exact, exact);
            Py_CLEAR(self->cursor);
            Py_CLEAR(self->container);
            Py_CLEAR(self->items);
        }
    }
    return Py_XNewRef(self->exact);
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
        return PyLong_FromSsize_t(PyTuple_GET_SIZE(it->items) - it->next);
    }
    if (left && it->left >= 0 && it->effects == it->peer->effects) {
        return PyLong_FromSsize_t(it->left);
    }
    PyObject *exact = iteration_exact(self);
    Py_ssize_t n = exact == NULL ? -1 : PyObject_LengthHint(exact, 0);
    Py_XDECREF(exact);
    return n < 0 ? NULL : PyLong_FromSsize_t(n);
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
                           (struct iterate){.consumed = seen->keys_from + (uint64_t)i,
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
        seen->want = want * 2 < MOST ? want * 2 : MOST;
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
    IteratorObject *begun = begin((StubObject *)stub, p, FIRST);
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
        PyObject *iterator = (PyObject *)begin((StubObject *)method, proxy_find(view), ALL);
        items = iterator == NULL ? NULL : PySequence_Tuple(iterator);
        Py_XDECREF(iterator);
    }
    Py_XDECREF(view);
    return items;
}

int
iteration_init(core_state *core, PyObject *module)
{
    core->cursor_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &cursor_spec, NULL);
    core->iterator_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &iterator_spec, NULL);
    return core->cursor_type == NULL || core->iterator_type == NULL ? -1 : 0;
}
