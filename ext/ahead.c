/* ahead.c: the contents of nested containers of the other side, which come along with the items of
 * an iteration, so that a loop over them, numpy, pickle or a comparison needs no request for each.
 *
 * Who answers: only exact lists and dicts that hold nothing but plain values, tuples and other
 * such containers, so that nothing of others runs and no other object is exported.
 *
 * Who asks: what has come is remembered with the proxy of the container, and answers what the
 * target would have answered, for as long as this side cannot know of anything that may have
 * changed it. Threads of the other process may change it all the same, as they might in-process.
 * So that nobody waits in vain for that, it is forgotten once this side has paused, after a while
 * in any case, and one container answers only so many questions. docs/protocol.md has the rule. */
#include "ahead.h"

#include "codec.h"
#include "handles.h"
#include "iteration.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define DEEPEST 16        /* containers in containers */
#define PAUSE_MS 10       /* what was not used for so long is not used any more, nor ... */
#define LONGEST_MS 1000   /* ... what came so long ago, and 1 ms for each ... */
#define ITEMS_PER_MS 1000 /* ... of so many items that are remembered */
#define MOST_ITEMS 4000000
#define MOST_USES 32 /* questions that a container answers, and a few for each item */
#define USES_PER_ITEM 4

bool
is_small_value(PyObject *o)
{
    return PyLong_CheckExact(o) || PyFloat_CheckExact(o) || o == Py_None || PyBool_Check(o) ||
           (PyUnicode_CheckExact(o) && PyUnicode_GET_LENGTH(o) < COST_BYTES) ||
           (PyBytes_CheckExact(o) && PyBytes_GET_SIZE(o) < COST_BYTES);
}

Py_ssize_t
cost_of(PyObject *o, Py_ssize_t most)
{
    if (is_small_value(o)) {
        return COST_VALUE;
    }
    if (PyUnicode_CheckExact(o) || PyBytes_CheckExact(o)) {
        return COST_VALUE + PyObject_Size(o) / COST_BYTES;
    }
    if (PyTuple_CheckExact(o)) {
        Py_ssize_t cost = COST_VALUE;
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(o) && cost < most; i++) {
            PyObject *item = PyTuple_GET_ITEM(o, i);
            cost += is_small_value(item) ? COST_VALUE : COST_REFERENCE;
        }
        return cost;
    }
    return COST_REFERENCE;
}

/* ---- who answers ------------------------------------------------------------------------- */

/* The containers whose contents go along with one answer: part of its result, encoded after what
 * they are in. */
typedef struct {
    PyObject_HEAD
    PyObject *found;   /* strong: list of the containers */
    struct table seen; /* their addresses */
    Py_ssize_t cost;
} ContentsObject;

static void
contents_dealloc(ContentsObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->found);
    table_free(&self->seen);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyType_Slot contents_slots[] = {
    {Py_tp_dealloc, contents_dealloc},
    {0, NULL},
};
static PyType_Spec contents_spec = {"ipython_isolation._core.Contents", sizeof(ContentsObject), 0,
                                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                    contents_slots};

int
ahead_init(core_state *core, PyObject *module)
{
    core->contents_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &contents_spec, NULL);
    return core->contents_type == NULL ? -1 : 0;
}

PyObject *
contents_new(void)
{
    ContentsObject *self = PyObject_New(ContentsObject, core_get()->contents_type);
    if (self != NULL) {
        table_init(&self->seen);
        self->cost = 0;
        self->found = PyList_New(0);
        if (self->found == NULL) {
            Py_CLEAR(self);
        }
    }
    return (PyObject *)self;
}

/* *left: what its tuples and texts may cost, at most; it ends the walk where that is used up. */
static bool
is_plain_item(PyObject *o, int depth, Py_ssize_t *left)
{
    if (is_small_value(o) || PyList_CheckExact(o) || PyDict_CheckExact(o)) {
        return (*left -= COST_VALUE) >= 0;
    }
    if (PyUnicode_CheckExact(o) || PyBytes_CheckExact(o)) {
        return (*left -= COST_VALUE + PyObject_Size(o) / COST_BYTES) >= 0;
    }
    bool plain = PyTuple_CheckExact(o) && depth < DEEPEST && (*left -= COST_VALUE) >= 0;
    for (Py_ssize_t i = 0; plain && i < PyTuple_GET_SIZE(o); i++) {
        plain = is_plain_item(PyTuple_GET_ITEM(o, i), depth + 1, left);
    }
    return plain;
}

/* Of a dict also: an iterator over it is found again by how many keys it has given. */
static bool
is_plain_content(PyObject *o, Py_ssize_t *left)
{
    if (PyList_CheckExact(o)) {
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(o); i++) {
            if (!is_plain_item(PyList_GET_ITEM(o, i), 0, left)) {
                return false;
            }
        }
        return true;
    }
    PyObject *key, *value;
    Py_ssize_t at = 0, n = 0;
    while (PyDict_Next(o, &at, &key, &value)) {
        *left -= COST_VALUE;
        if (at != ++n || !is_small_value(key) || !is_plain_item(value, 0, left)) {
            return false;
        }
    }
    return true;
}

static int collect(ContentsObject *self, PyObject *o, Py_ssize_t most, int depth);

/* What is in a container, or in a tuple, in whose cost its small items are already. As collect().
 */
static int
collect_item(ContentsObject *self, PyObject *item, Py_ssize_t most, int depth, bool in_tuple)
{
    bool small = is_small_value(item);
    self->cost += small && in_tuple ? 0 : cost_of(item, most);
    return self->cost > most ? 0 : small ? 1 : collect(self, item, most, depth + 1);
}

/* As contents_add(), but what was added stays. */
static int
collect(ContentsObject *self, PyObject *o, Py_ssize_t most, int depth)
{
    int rc = 1;
    if (depth > DEEPEST) {
        return 1; /* it goes as what it is */
    }
    if (PyTuple_CheckExact(o)) {
        for (Py_ssize_t i = 0; rc > 0 && i < PyTuple_GET_SIZE(o); i++) {
            rc = collect_item(self, PyTuple_GET_ITEM(o, i), most, depth, true);
        }
        return rc;
    }
    bool list = PyList_CheckExact(o);
    if (!(list || PyDict_CheckExact(o)) || table_get(&self->seen, ADDRESS(o)) != NULL) {
        return 1;
    }
    if ((list ? PyList_GET_SIZE(o) : PyDict_GET_SIZE(o)) > most) {
        return 0;
    }
    /* A container that is not plain, or would cost too much by itself, goes as what it is. */
    Py_ssize_t left = most - self->cost;
    if (!is_plain_content(o, &left)) {
        return left < 0 ? 0 : 1;
    }
    if (PyList_Append(self->found, o) < 0) {
        return -1;
    }
    if (!table_put(&self->seen, ADDRESS(o), o)) {
        PyErr_NoMemory();
        return -1;
    }
    PyObject *key, *value;
    Py_ssize_t at = 0;
    for (Py_ssize_t i = 0; list && rc > 0 && i < PyList_GET_SIZE(o); i++) {
        rc = collect_item(self, PyList_GET_ITEM(o, i), most, depth, false);
    }
    while (!list && rc > 0 && PyDict_Next(o, &at, &key, &value)) {
        self->cost += COST_VALUE;
        rc = collect_item(self, value, most, depth, false);
    }
    return rc;
}

int
contents_add(PyObject *contents, PyObject *o, Py_ssize_t most, Py_ssize_t *cost)
{
    ContentsObject *self = (ContentsObject *)contents;
    Py_ssize_t before = PyList_GET_SIZE(self->found);
    self->cost = 0;
    int rc = collect(self, o, most, 0);
    if (rc == 0) {
        for (Py_ssize_t i = before; i < PyList_GET_SIZE(self->found); i++) {
            table_remove(&self->seen, ADDRESS(PyList_GET_ITEM(self->found, i)));
        }
        if (PyList_SetSlice(self->found, before, PY_SSIZE_T_MAX, NULL) < 0) {
            return -1;
        }
    }
    *cost += rc > 0 ? self->cost : 0;
    return rc;
}

/* Keys and values in turn, as a tuple. Nothing runs meanwhile: they are plain. */
static int
encode_pairs(struct message *m, PyObject *dict)
{
    PyObject *key, *value;
    Py_ssize_t at = 0;
    int rc = 0;
    write_u64(&m->w, 2 * (uint64_t)PyDict_GET_SIZE(dict));
    while (rc == 0 && PyDict_Next(dict, &at, &key, &value)) {
        rc = encode(m, key, false) < 0 || encode(m, value, false) < 0 ? -1 : 0;
    }
    return rc;
}

int
contents_encode(struct message *m, PyObject *contents)
{
    PyObject *found = ((ContentsObject *)contents)->found;
    uint64_t n = 0;
    write_tag(m, TAG_CONTENTS);
    size_t count_at = m->w.size;
    write_u64(&m->w, n);
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(found); i++) {
        PyObject *o = PyList_GET_ITEM(found, i);
        /* One that is an argument has gone as such; and what ran since may have changed one. */
        struct export *e = table_get(&m->peer->export_of, ADDRESS(o));
        Py_ssize_t left = PY_SSIZE_T_MAX;
        if (e == NULL || !is_plain_content(o, &left)) {
            continue;
        }
        write_u64(&m->w, e->handle);
        write_tag(m, TAG_TUPLE);
        if ((PyList_CheckExact(o) ? encode_sequence(m, o, false) : encode_pairs(m, o)) < 0) {
            return -1;
        }
        n++;
    }
    if (!m->w.failed) {
        memcpy(m->w.data + count_at, &n, sizeof n);
    }
    return message_check(m);
}

PyObject *
contents_decode(struct incoming *in)
{
    uint64_t n = read_count(&in->r, sizeof(uint64_t) + 1);
    PyObject *contents = in->r.failed ? NULL : PyTuple_New(2 * (Py_ssize_t)n);
    for (Py_ssize_t i = 0; contents != NULL && i < PyTuple_GET_SIZE(contents); i += 2) {
        PyObject *o = proxy_of_handle(in->peer, read_u64(&in->r));
        PyTuple_SET_ITEM(contents, i, Py_NewRef(o == NULL ? Py_None : o));
        PyObject *content = decode(in);
        if (content == NULL) {
            Py_CLEAR(contents);
            break;
        }
        PyTuple_SET_ITEM(contents, i + 1, content);
    }
    if (contents == NULL && !PyErr_Occurred()) {
        garbled("contents");
    }
    return contents;
}

/* ---- who asks: what is remembered ---------------------------------------------------------- */

/* The content of one container. Its proxy owns it, and all of a peer are in a list. */
struct ahead {
    struct proxy *of;         /* borrowed */
    struct ahead *next, **at; /* `at`: what points to this one */
    PyObject *items;          /* strong: tuple, of a list; or NULL */
    PyObject *mapping;        /* strong: dict, of a dict; or NULL */
    uint32_t since;           /* ahead_now() when it came */
    uint32_t uses;
    uint64_t looked_at; /* the question for which `known` was found, see is_known() */
    bool known;
    enum {
        UNKNOWN,
        VALUES,
        OTHERS
    } kind; /* whether it has nothing but values equal to themselves */
};

uint32_t
ahead_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (uint32_t)(t.tv_sec * 1000 + t.tv_nsec / 1000000);
}

static Py_ssize_t
size_of(const struct ahead *a)
{
    return a->items != NULL ? PyTuple_GET_SIZE(a->items) : PyDict_GET_SIZE(a->mapping);
}

void
ahead_forget(struct proxy *p)
{
    struct ahead *a = p->ahead;
    if (a == NULL) {
        return;
    }
    p->ahead = NULL;
    p->peer->ahead.items -= size_of(a);
    *a->at = a->next;
    if (a->next != NULL) {
        a->next->at = a->at;
    }
    PyObject *items = a->items, *mapping = a->mapping;
    free(a);
    Py_XDECREF(items); /* last: may end other proxies, and so lead here again */
    Py_XDECREF(mapping);
}

void
ahead_drop(PeerObject *peer)
{
    peer->ahead.stale = false;
    Py_CLEAR(peer->seen.values);
    Py_CLEAR(peer->seen.keys);
    Py_CLEAR(peer->ahead.begun);
    while (peer->ahead.first != NULL) {
        ahead_forget(peer->ahead.first->of);
    }
}

/* New reference to a dict of keys and values that take turns; NULL, perhaps with an exception. */
static PyObject *
dict_of(PyObject *content)
{
    PyObject *dict = PyTuple_GET_SIZE(content) % 2 == 0 ? PyDict_New() : NULL;
    for (Py_ssize_t i = 0; dict != NULL && i < PyTuple_GET_SIZE(content); i += 2) {
        PyObject *key = PyTuple_GET_ITEM(content, i);
        if (!is_small_value(key) ||
            PyDict_SetItem(dict, key, PyTuple_GET_ITEM(content, i + 1)) < 0) {
            Py_CLEAR(dict);
        }
    }
    return dict;
}

static int
remember(PeerObject *peer, PyObject *container, PyObject *content)
{
    struct proxy *p = proxy_find(container);
    struct mirror *mirror = table_get(&core_get()->mirrors, ADDRESS(Py_TYPE(container)));
    if (p == NULL || p->peer != peer || mirror == NULL) {
        return 0; /* an argument, which is real here */
    }
    bool list = mirror->reported == (PyObject *)&PyList_Type;
    if (!list && mirror->reported != (PyObject *)&PyDict_Type) {
        return 0;
    }
    PyObject *mapping = list ? NULL : dict_of(content);
    if (!list && mapping == NULL) {
        return PyErr_Occurred() ? -1 : garbled("contents");
    }
    ahead_forget(p);
    struct ahead *a = calloc(1, sizeof *a);
    if (a == NULL) {
        Py_XDECREF(mapping);
        PyErr_NoMemory();
        return -1;
    }
    a->of = p;
    a->items = list ? Py_NewRef(content) : NULL;
    a->mapping = mapping;
    a->since = peer->ahead.used;
    a->next = peer->ahead.first;
    a->at = &peer->ahead.first;
    if (a->next != NULL) {
        a->next->at = &a->next;
    }
    peer->ahead.first = a;
    peer->ahead.items += size_of(a);
    p->ahead = a;
    return 0;
}

void
ahead_wake(PeerObject *peer)
{
    if (peer->drowsy) {
        uint64_t one = 1;
        peer->drowsy = false;
        ssize_t ignored = write(peer->wake_fd, &one, sizeof one); /* never blocks */
        (void)ignored;
    }
}

int
ahead_remember(PeerObject *peer, PyObject *contents)
{
    Py_ssize_t n = PyTuple_GET_SIZE(contents);
    if (peer->ahead.items > MOST_ITEMS || peer->ahead.stale) {
        ahead_drop(peer);
    }
    if (n == 0) {
        return 0;
    }
    ahead_wake(peer);
    peer->ahead.used = ahead_now();
    for (Py_ssize_t i = 0; i < n; i += 2) {
        if (i + 1 == n || !PyTuple_CheckExact(PyTuple_GET_ITEM(contents, i + 1))) {
            return garbled("contents");
        }
        if (remember(peer, PyTuple_GET_ITEM(contents, i), PyTuple_GET_ITEM(contents, i + 1)) < 0) {
            return -1;
        }
    }
    return 0;
}

bool
ahead_is_fresh(PeerObject *peer, uint32_t at)
{
    uint32_t now = ahead_now();
    if (peer->state != PEER_RUNNING || peer->batching > 0 || peer->ahead.stale || has_pairs(peer) ||
        peer->copies != NULL || /* through a view, the target changes without a request */
        now - peer->ahead.used >= PAUSE_MS ||
        now - at >= LONGEST_MS + (uint32_t)(peer->ahead.items / ITEMS_PER_MS)) {
        return false;
    }
    peer->ahead.used = now;
    return true;
}

void
ahead_expire(PeerObject *peer)
{
    if (ahead_is_any(peer) && ahead_now() - peer->ahead.used >= PAUSE_MS) {
        ahead_drop(peer);
    }
}

/* Borrowed: what is remembered of p, if it may be used; NULL: it may not. */
static struct ahead *
usable(struct proxy *p)
{
    struct ahead *a = p->ahead;
    return a != NULL && p->epoch == p->peer->epoch && ahead_is_fresh(p->peer, a->since) ? a : NULL;
}

bool
ahead_is_enough(uint32_t *uses, Py_ssize_t n)
{
    return (*uses)++ >= MOST_USES + USES_PER_ITEM * (uint64_t)n;
}

/* The same for a question that counts. */
static struct ahead *
use(struct proxy *p)
{
    struct ahead *a = usable(p);
    return a != NULL && !ahead_is_enough(&a->uses, size_of(a)) ? a : NULL;
}

/* ---- who asks: answers --------------------------------------------------------------------- */

/* What equals itself: not so a float that is not a number, which in-process may be the very same
 * object in two places. */
static bool
is_certain(PyObject *o)
{
    return is_small_value(o)
               ? !PyFloat_CheckExact(o) || PyFloat_AS_DOUBLE(o) == PyFloat_AS_DOUBLE(o)
               : PyUnicode_CheckExact(o) || PyBytes_CheckExact(o);
}

static bool is_known_inside(struct ahead *a, uint64_t question);

static bool
is_known_item(PyObject *o, int depth, uint64_t question)
{
    if (is_certain(o)) {
        return true;
    }
    if (PyTuple_CheckExact(o)) {
        bool known = depth < DEEPEST;
        for (Py_ssize_t i = 0; known && i < PyTuple_GET_SIZE(o); i++) {
            known = is_known_item(PyTuple_GET_ITEM(o, i), depth + 1, question);
        }
        return known;
    }
    struct proxy *p = proxy_find(o);
    struct ahead *a = p == NULL ? NULL : usable(p);
    return a != NULL && is_known_inside(a, question);
}

/* One that is there twice is looked at once for a question; one that is in itself is not known. */
static bool
is_known_inside(struct ahead *a, uint64_t question)
{
    if (a->kind == VALUES || a->looked_at == question) {
        return a->kind == VALUES || a->known;
    }
    bool values = true, known = true;
    PyObject *key, *item;
    Py_ssize_t at = 0;
    a->looked_at = question;
    a->known = false;
    if (recursion_enter(" while looking at what is known of a container", STACK_OBJECT) < 0) {
        PyErr_Clear();
        return false;
    }
    for (Py_ssize_t i = 0; known && a->items != NULL && i < PyTuple_GET_SIZE(a->items); i++) {
        item = PyTuple_GET_ITEM(a->items, i);
        values = values && is_certain(item);
        known = is_known_item(item, 0, question);
    }
    while (known && a->mapping != NULL && PyDict_Next(a->mapping, &at, &key, &item)) {
        values = values && is_certain(item) && is_certain(key);
        known = is_certain(key) && is_known_item(item, 0, question);
    }
    recursion_leave();
    a->kind = known && values ? VALUES : OTHERS;
    a->known = known;
    return known;
}

/* Whether all that is in it, at any depth, can be compared and shown here. */
static bool
is_known(struct ahead *a)
{
    static uint64_t questions;
    return is_known_inside(a, ++questions);
}

/* New reference to what there is to compare of o, the other operand; NULL: it is not known.
 * `enough`: the first one has answered enough. A sort compares one with many others, each of which
 * with few. */
static PyObject *
operand(PyObject *o, bool list, bool enough)
{
    struct proxy *p = proxy_find(o);
    if (p != NULL) {
        struct ahead *a = usable(p);
        if (a != NULL && ahead_is_enough(&a->uses, size_of(a)) && enough) {
            return NULL;
        }
        PyObject *content = a == NULL ? NULL : list ? a->items : a->mapping;
        return content != NULL && is_known(a) ? Py_NewRef(content) : NULL;
    }
    if (list && !enough && PyList_CheckExact(o)) {
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(o); i++) {
            if (!is_certain(PyList_GET_ITEM(o, i))) {
                return NULL;
            }
        }
        return PyList_AsTuple(o);
    }
    PyObject *key, *value;
    Py_ssize_t at = 0;
    if (enough || list || !PyDict_CheckExact(o)) {
        return NULL;
    }
    while (PyDict_Next(o, &at, &key, &value)) {
        if (!is_certain(key) || !is_certain(value)) {
            return NULL;
        }
    }
    return Py_NewRef(o);
}

/* As lists, tuples compare item by item, and identical items are equal. */
static PyObject *
compare(struct proxy *p, PyObject *other, int op)
{
    struct ahead *a = usable(p);
    PyObject *result = NULL;
    if (a != NULL && (a->items != NULL || op == Py_EQ || op == Py_NE) && is_known(a)) {
        PyObject *mine = Py_NewRef(a->items != NULL ? a->items : a->mapping);
        bool enough = ahead_is_enough(&a->uses, size_of(a));
        PyObject *theirs = operand(other, a->items != NULL, enough);
        if (theirs != NULL) {
            result = PyObject_RichCompare(mine, theirs, op);
        }
        Py_DECREF(mine);
        Py_XDECREF(theirs);
    }
    return result;
}

static PyObject *
item_of(struct ahead *a, PyObject *key)
{
    if (a->mapping != NULL) {
        return is_small_value(key) ? Py_XNewRef(PyDict_GetItemWithError(a->mapping, key)) : NULL;
    }
    if (PySlice_Check(key)) {
        /* What is allocated may run a collection, finalisers of which drop all that is remembered.
         */
        PyObject *all = Py_NewRef(a->items);
        PyObject *items = PyObject_GetItem(all, key);
        PyObject *list = items == NULL ? NULL : PySequence_List(items);
        Py_XDECREF(items);
        Py_DECREF(all);
        return list;
    }
    Py_ssize_t n = PyTuple_GET_SIZE(a->items);
    Py_ssize_t i = PyLong_CheckExact(key) ? PyLong_AsSsize_t(key) : n;
    if (i == -1 && PyErr_Occurred()) {
        PyErr_Clear();
        return NULL;
    }
    i += i < 0 ? n : 0;
    return i < 0 || i >= n ? NULL : Py_NewRef(PyTuple_GET_ITEM(a->items, i));
}

static bool
is_plain_index(PyObject *key)
{
    if (!PySlice_Check(key)) {
        return is_small_value(key);
    }
    PySliceObject *s = (PySliceObject *)key;
    PyObject *parts[] = {s->start, s->stop, s->step};
    for (size_t i = 0; i < 3; i++) {
        if (parts[i] != Py_None && !PyLong_CheckExact(parts[i])) {
            return false;
        }
    }
    return !PyLong_CheckExact(s->step) || PyObject_IsTrue(s->step) == 1;
}

static PyObject *
shown(struct ahead *a)
{
    if (!is_known(a)) {
        return NULL;
    }
    PyObject *all = Py_NewRef(a->items != NULL ? a->items : a->mapping);
    PyObject *o = PyDict_Check(all) ? Py_NewRef(all) : PySequence_List(all);
    PyObject *text = o == NULL ? NULL : PyObject_Repr(o);
    Py_XDECREF(o);
    Py_DECREF(all);
    return text;
}

static PyObject *
contains(struct ahead *a, PyObject *o)
{
    if (!is_small_value(o) || !is_certain(o)) {
        return NULL;
    }
    for (Py_ssize_t i = 0; a->items != NULL && i < PyTuple_GET_SIZE(a->items); i++) {
        if (!is_certain(PyTuple_GET_ITEM(a->items, i))) {
            return NULL;
        }
    }
    int yes = a->items != NULL ? PySequence_Contains(a->items, o) : PyDict_Contains(a->mapping, o);
    return yes < 0 ? NULL : PyBool_FromLong(yes);
}

PyObject *
ahead_items(struct proxy *p, PyObject *view)
{
    struct ahead *a = use(p);
    if (a == NULL) {
        return NULL;
    }
    if (a->items != NULL) {
        return Py_NewRef(a->items);
    }
    core_state *core = core_get();
    PyObject *mapping = Py_NewRef(a->mapping);
    PyObject *list = view == core->str_values  ? PyDict_Values(mapping)
                     : view == core->str_items ? PyDict_Items(mapping)
                                               : PyDict_Keys(mapping);
    Py_DECREF(mapping);
    PyObject *items = list == NULL ? NULL : PyList_AsTuple(list);
    Py_XDECREF(list);
    return items;
}

PyObject *
ahead_answer(StubObject *stub, struct proxy *p, PyObject *const *args, Py_ssize_t nargs)
{
    core_state *core = core_get();
    PyObject *name = stub->name;
    struct ahead *a;
    if (stub->cls != (PyObject *)Py_TYPE(p->object)) {
        return NULL;
    }
    if (nargs == 1) {
        if (name == core->str___len__) {
            return (a = use(p)) == NULL ? NULL : PyLong_FromSsize_t(size_of(a));
        }
        if (name == core->str___iter__) {
            PyObject *items = ahead_items(p, NULL), *iterator = NULL;
            if (items != NULL) {
                iterator = iteration_known(stub, p->object, items);
                Py_DECREF(items);
            }
            return iterator;
        }
        if (name == core->str___repr__) {
            return (a = use(p)) == NULL ? NULL : shown(a);
        }
        return NULL;
    }
    if (nargs == 2 && name == core->str___getitem__) {
        return !is_plain_index(args[1]) || (a = use(p)) == NULL ? NULL : item_of(a, args[1]);
    }
    if (nargs == 2 && name == core->str___contains__) {
        return (a = use(p)) == NULL ? NULL : contains(a, args[1]);
    }
    if (name == core->str_get && (nargs == 2 || nargs == 3)) {
        a = is_small_value(args[1]) && is_certain(args[1]) ? use(p) : NULL;
        if (a == NULL || a->mapping == NULL) {
            return NULL;
        }
        PyObject *value = PyDict_GetItemWithError(a->mapping, args[1]);
        return PyErr_Occurred() ? NULL
                                : Py_NewRef(value != NULL ? value
                                            : nargs == 3  ? args[2]
                                                          : Py_None);
    }
    PyObject *comparisons[] = {
        [Py_LT] = core->str___lt__, [Py_LE] = core->str___le__, [Py_EQ] = core->str___eq__,
        [Py_NE] = core->str___ne__, [Py_GT] = core->str___gt__, [Py_GE] = core->str___ge__};
    for (int op = 0; nargs == 2 && op < (int)(sizeof comparisons / sizeof *comparisons); op++) {
        if (name == comparisons[op]) {
            return compare(p, args[1], op);
        }
    }
    return NULL;
}
