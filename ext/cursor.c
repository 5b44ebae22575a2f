/* cursor.c: a plain container of this side that the other side iterates (iteration.c has the rule).
 *
 * A cursor has two real iterators. `exact` has given what the other side has used, `ahead` what it
 * was sent. So where items were dropped, or the container changed meanwhile, `exact` says what
 * in-process would have come, or raises what it would have raised. Each request says where the
 * other side is: an answer that never came to it, as an interrupt took its place, was not used. */
#include "cursor.h"

#include "ahead.h"
#include "codec.h"
#include "exchange.h"
#include "handles.h"
#include "runs.h"

#include <string.h>

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

typedef struct {
    PyObject_HEAD
    PyObject *exact;   /* strong */
    PyObject *ahead;   /* strong or NULL: no item is sent ahead any more */
    PyObject *single;  /* strong or NULL: what `exact` has just given, until that was used */
    PyObject *keys_of; /* strong or NULL: the dict whose keys these are */
    PyObject *list;    /* strong or NULL: the list whose items these are, from the first on */
    bool even;         /* a dict's: no gaps between the keys that are pending */
    bool all_values;   /* not only small values of that dict go along */
    uint32_t epoch;    /* the life of the last request */
    uint64_t at;       /* how many items the other side had used; `single` comes next ... */
    uint64_t pending;  /* ... or so many that `ahead` is before `exact` */
} CursorObject;

static int
cursor_traverse(CursorObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->exact);
    Py_VISIT(self->ahead);
    Py_VISIT(self->single);
    Py_VISIT(self->keys_of);
    Py_VISIT(self->list);
    return 0;
}

static int
cursor_clear(CursorObject *self)
{
    Py_CLEAR(self->exact);
    Py_CLEAR(self->ahead);
    Py_CLEAR(self->single);
    Py_CLEAR(self->keys_of);
    Py_CLEAR(self->list);
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
    self->at = self->pending = 0;
    self->even = false;
    self->single = NULL;
    self->keys_of = Py_XNewRef(mapping_of(o));
    self->all_values = self->keys_of != NULL && self->keys_of != o;
    self->list = NULL;
    self->exact = PyObject_CallOneArg(descriptor, o);
    self->ahead = self->exact == NULL ? NULL : PyObject_CallOneArg(descriptor, o);
    if (self->ahead != NULL && Py_IS_TYPE(self->ahead, &PyListIter_Type) && PyList_Check(o)) {
        self->list = Py_NewRef(o);
    }
    PyObject_GC_Track(self);
    if (self->ahead != NULL && !(PyIter_Check(self->exact) && PyIter_Check(self->ahead))) {
        garbled("iteration"); /* of a method that is no __iter__ */
        Py_CLEAR(self);
    }
    else if (self->ahead == NULL) {
        Py_CLEAR(self);
    }
    return self;
}

/* The other side has used so many items in all. */
static int
cursor_advance(CursorObject *self, uint64_t position, uint32_t epoch)
{
    bool single = self->single != NULL;
    uint64_t used = position - self->at, sent = single ? 1 : self->pending;
    /* A copy of the process that has answered meanwhile has not seen what that has sent. */
    bool known = self->epoch == epoch;
    if (position < self->at && !known) {
        return raise_error(
            "StaleProxyError",
            "this iterator was taken back to items that it had left behind; iterate again");
    }
    if (position < self->at || (known && used > sent)) {
        return garbled("iteration");
    }
    self->at = position;
    self->epoch = epoch;
    self->pending = 0;
    if (used != sent) {
        Py_CLEAR(self->ahead);
    }
    if (single && used > 0) {
        used--;
        Py_CLEAR(self->single);
    }
    /* Also where these have changed since: `exact` finds that out when it goes on. */
    if (self->even && !single && used <= sent) {
        compat_dict_iterator_skip(self->exact, (Py_ssize_t)used);
        return 0;
    }
    if (compat_is_list_iterator(self->exact)) {
        compat_list_iterator_skip(self->exact, (Py_ssize_t)used);
        return 0;
    }
    while (used-- > 0) {
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
    if (self->single == NULL && (self->single = PyIter_Next(self->exact)) == NULL) {
        *done = !PyErr_Occurred();
        return *done ? PyTuple_New(0) : NULL;
    }
    return PyTuple_Pack(1, self->single);
}

/* New reference to the real iterator; nothing is sent ahead from now on. Or a tuple of it and the
 * item that it has given already: only a list's can go back. */
static PyObject *
cursor_real(CursorObject *self)
{
    Py_CLEAR(self->ahead);
    if (self->single != NULL && compat_is_list_iterator(self->exact)) {
        compat_list_iterator_skip(self->exact, -1);
        Py_CLEAR(self->single);
    }
    return self->single == NULL ? Py_NewRef(self->exact)
                                : PyTuple_Pack(2, self->exact, self->single);
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
        if (fits == 0 && want < ITERATE_MOST) {
            break; /* the next answer may be larger */
        }
    }
    if (items != NULL && n < room) {
        _PyTuple_Resize(&items, n);
    }
    if (items == NULL) {
        Py_CLEAR(self->ahead); /* it is further than what anybody knows of */
    }
    self->pending = items == NULL ? 0 : (uint64_t)n;
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

/* Sets a new cursor of o to where an iterator would be that has given `position` of `length`. */
static int
cursor_seek(CursorObject *self, uint64_t position, uint64_t length)
{
    bool failed = length == ITERATE_FAILED - 1;
    if (!failed && (length > PY_SSIZE_T_MAX || position > length)) {
        return garbled("iteration");
    }
    Py_ssize_t n = failed ? 0 : (Py_ssize_t)position;
    self->at = position;
    if (compat_is_dict_iterator(self->exact)) {
        compat_dict_iterator_seek(self->exact, n, failed ? -1 : (Py_ssize_t)length);
        compat_dict_iterator_seek(self->ahead, n, failed ? -1 : (Py_ssize_t)length);
        return 0;
    }
    Py_CLEAR(self->ahead);
    if (!Py_IS_TYPE(self->exact, &PyListIter_Type)) {
        return garbled("iteration");
    }
    compat_list_iterator_skip(self->exact, n);
    return 0;
}

/* New reference: n numbers of one kind, packed, as bytes, the kind first. NULL, without an
 * exception where they are not that. */
static PyObject *
packed(PyObject *const *items, Py_ssize_t n)
{
    if (n < RUN_LEAST || !(PyLong_CheckExact(items[0]) || PyFloat_CheckExact(items[0]))) {
        return NULL;
    }
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, 1 + 8 * n);
    if (bytes == NULL) {
        return NULL;
    }
    unsigned char *to = (unsigned char *)PyBytes_AS_STRING(bytes);
    if (run_pack(items, n, to + 1, to) < n) {
        Py_CLEAR(bytes);
    }
    else {
        _PyBytes_Resize(&bytes, 1 + n * (Py_ssize_t)run_width(to[0]));
    }
    return bytes;
}

/* Packs the next items of a list, if all that are wanted are numbers: it need not be iterated for
 * that. NULL, perhaps without an exception. */
static PyObject *
packed_ahead(CursorObject *self, Py_ssize_t want, bool *done)
{
    if (self->list == NULL || self->at > (uint64_t)PyList_GET_SIZE(self->list)) {
        return NULL;
    }
    Py_ssize_t left = PyList_GET_SIZE(self->list) - (Py_ssize_t)self->at;
    Py_ssize_t n = left < want ? left : want;
    PyObject *bytes = packed(((PyListObject *)self->list)->ob_item + self->at, n);
    if (bytes == NULL) {
        return NULL;
    }
    compat_list_iterator_skip(self->ahead, n);
    self->pending = (uint64_t)n;
    if (n < want) {
        Py_CLEAR(self->ahead); /* it would find the end */
        *done = true;
    }
    return bytes;
}

/* (cursor, items, done, length, mapping, values, contents); what is not known or asked for is None,
 * -1 or empty. */
PyObject *
cursor_answer(PyTypeObject *cls, PyObject *descriptor, PyObject *o, struct iterate *asked)
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
        if (cursor_advance(cursor, asked->position, asked->epoch) < 0) {
            goto done;
        }
    }
    else {
        target = iterated(cls, o);
        cursor = target == NULL ? NULL : cursor_new(descriptor, target);
        length = cursor == NULL ? -1 : length_of(target);
        if (cursor != NULL) {
            cursor->epoch = asked->epoch;
        }
        if (cursor == NULL || PyErr_Occurred() ||
            (asked->length > 0 && cursor_seek(cursor, asked->position, asked->length - 1) < 0)) {
            goto done;
        }
    }
    if (asked->want == 0) {
        result = cursor_real(cursor);
        goto done;
    }
    along.values = cursor->keys_of == NULL ? Py_NewRef(Py_None) : PyDict_New();
    if (along.values == NULL) {
        goto done;
    }
    if (asked->want == 1 || cursor->ahead == NULL) {
        items = cursor_one(cursor, &done);
    }
    else {
        Py_ssize_t want = asked->want < ITERATE_ALL ? (Py_ssize_t)asked->want : ITERATE_ALL;
        items = packed_ahead(cursor, want, &done);
        if (items == NULL && !PyErr_Occurred()) {
            items = cursor_several(cursor, want, &done, &along);
        }
    }
    if (items != NULL && cursor->keys_of != NULL && cursor->ahead == NULL &&
        PyTuple_GET_SIZE(items) == 1 &&
        add_value(cursor, PyTuple_GET_ITEM(items, 0), ITERATE_FIRST, &along, &cost) < 0) {
        Py_CLEAR(items);
    }
    if (items != NULL && cursor->keys_of == NULL && PyTuple_Check(items)) {
        PyObject *bytes = packed(((PyTupleObject *)items)->ob_item, PyTuple_GET_SIZE(items));
        if (bytes != NULL || PyErr_Occurred()) {
            Py_SETREF(items, bytes);
        }
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

int
cursor_init(core_state *core, PyObject *module)
{
    core->cursor_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &cursor_spec, NULL);
    return core->cursor_type == NULL ? -1 : 0;
}
