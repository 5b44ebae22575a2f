/* pairs.c: copy-restore. A mutable container in an argument is a real copy on the other side; the
 * two form a pair while the request lasts. Whoever loses control (sends a request, callback or
 * reply) first sends what it changed; whoever gains control remembers the content to compare with.
 */
#include "codec.h"
#include "numpy_memory.h"
#include "pages.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK 4096     /* bytes of a buffer that are compared at once */
#define MAX_RUNS 128   /* changed runs of a block that are written one by one */
#define MUCH (1 << 20) /* bytes of a change from which on they go along without being encoded */

uint64_t
pair_new_id(struct strand *s)
{
    /* Odd here, even there: ids of the two sides never meet. */
    return (++s->next_pair << 1) | (s->peer->is_kernel ? 1 : 0);
}

struct pair *
pair_find(struct strand *s, PyObject *o)
{
    if (s->npairs == 0) {
        return NULL;
    }
    size_t at = (uintptr_t)table_get(&s->pair_by_address, ADDRESS(o));
    while (at != 0 && s->pairs[at - 1].scope != s->scope) {
        at = s->pairs[at - 1].hides;
    }
    return at == 0 ? NULL : &s->pairs[at - 1];
}

bool
encode_paired(struct message *m, PyObject *o)
{
    struct pair *pair = m->strand != NULL ? pair_find(m->strand, o) : NULL;
    if (pair == NULL) {
        return false;
    }
    write_u8(&m->w, TAG_PAIRREF);
    write_u64(&m->w, pair->id);
    return true;
}

struct pair *
pair_by_id(struct strand *s, uint64_t id)
{
    uintptr_t at = id == 0 ? 0 : (uintptr_t)table_get(&s->pair_by_id, id);
    return at == 0 ? NULL : &s->pairs[at - 1];
}

/* Whether frames may now say something of this pair, see scope.c. */
static bool
in_scope(const struct strand *s, size_t i)
{
    return s->pairs[i].scope == s->scope;
}

/* The pair with this object goes: the one that it has hidden is found again. */
static void
leave_address(struct strand *s, PyObject *o, size_t hides)
{
    if (hides == 0 || !table_put(&s->pair_by_address, ADDRESS(o), (void *)(uintptr_t)hides)) {
        table_remove(&s->pair_by_address, ADDRESS(o));
    }
}

struct pair *
pair_add(struct strand *s, PyObject *o, enum pair_kind kind, uint64_t id)
{
    if (s->npairs == s->cappairs) {
        size_t capacity = s->cappairs ? s->cappairs * 2 : 8;
        struct pair *more = realloc(s->pairs, capacity * sizeof *more);
        if (more == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        s->pairs = more;
        s->cappairs = capacity;
    }
    void *at = (void *)(uintptr_t)(s->npairs + 1);
    size_t hides = (uintptr_t)table_get(&s->pair_by_address, ADDRESS(o));
    if (id == 0 || !table_put(&s->pair_by_address, ADDRESS(o), at)) {
        PyErr_NoMemory();
        return NULL;
    }
    if (!table_put(&s->pair_by_id, id, at)) {
        leave_address(s, o, hides);
        PyErr_NoMemory();
        return NULL;
    }
    struct pair *pair = &s->pairs[s->npairs++];
    *pair = (struct pair){.id = id,
                          .object = Py_NewRef(o),
                          .kind = (unsigned char)kind,
                          .scope = s->scope,
                          .hides = hides};
    return pair;
}

void
pairs_truncate(struct strand *s, size_t npairs)
{
    while (s->npairs > npairs) {
        struct pair pair = s->pairs[--s->npairs];
        leave_address(s, pair.object, pair.hides);
        table_remove(&s->pair_by_id, pair.id);
        Py_XDECREF(pair.snapshot);
        Py_XDECREF(pair.memory);
        Py_DECREF(pair.object);
    }
}

int
walk_begin(struct walk *w, PyObject *dict)
{
    *w = (struct walk){.dict = dict};
    if (PyODict_Check(dict)) {
        PyObject *view = PyObject_CallMethod((PyObject *)&PyODict_Type, "keys", "O", dict);
        w->keys = view == NULL ? NULL : PySequence_List(view);
        Py_XDECREF(view);
        return w->keys == NULL ? -1 : 0;
    }
    return 0;
}

bool
walk_next(struct walk *w, PyObject **key, PyObject **value)
{
    if (w->keys == NULL) {
        return PyDict_Next(w->dict, &w->i, key, value);
    }
    while (w->i < PyList_GET_SIZE(w->keys)) {
        *key = PyList_GET_ITEM(w->keys, w->i++);
        *value = PyDict_GetItemWithError(w->dict, *key);
        if (*value != NULL) {
            return true;
        }
        PyErr_Clear(); /* it went meanwhile */
    }
    walk_end(w);
    return false;
}

void
walk_end(struct walk *w)
{
    Py_CLEAR(w->keys);
}

int
dict_set(PyObject *dict, PyObject *key, PyObject *value)
{
    return PyODict_Check(dict) ? PyODict_SetItem(dict, key, value)
                               : PyDict_SetItem(dict, key, value);
}

PyObject *
container_iter(PyObject *o)
{
    PyTypeObject *deque = (PyTypeObject *)deque_class();
    getiterfunc iter = PySet_Check(o)                                         ? PySet_Type.tp_iter
                       : deque != NULL && PyType_IsSubtype(Py_TYPE(o), deque) ? deque->tp_iter
                                                                              : PyObject_GetIter;
    return iter(o);
}

PyObject *
deque_class(void)
{
    core_state *core = core_get();
    if (core->deque_type == NULL) {
        PyObject *module = PyImport_ImportModule("_collections");
        core->deque_type = module ? PyObject_GetAttrString(module, "deque") : NULL;
        Py_XDECREF(module);
        PyErr_Clear();
    }
    return core->deque_type;
}

PyObject *
deque_call(PyObject *deque, const char *method, PyObject *arg)
{
    return PyObject_CallMethod(deque_class(), method, arg == NULL ? "O" : "OO", deque, arg);
}

/* A tuple of what is in a deque. */
static PyObject *
deque_items(PyObject *deque)
{
    PyObject *iterator = container_iter(deque);
    PyObject *items = iterator == NULL ? NULL : PySequence_Tuple(iterator);
    Py_XDECREF(iterator);
    return items;
}

/* A plain dict of the same order. PyDict_Copy() takes what is there, without hashing it, unless the
 * class iterates in its own way: then it asks its methods, which may be on the other side. */
static PyObject *
plain_dict(PyObject *dict)
{
    struct walk w;
    PyObject *key, *value;
    if (Py_TYPE(dict)->tp_iter == PyDict_Type.tp_iter) {
        return PyDict_Copy(dict);
    }
    PyObject *plain = walk_begin(&w, dict) < 0 ? NULL : PyDict_New();
    while (plain != NULL && walk_next(&w, &key, &value)) {
        if (PyDict_SetItem(plain, key, value) < 0) {
            Py_CLEAR(plain);
        }
    }
    walk_end(&w);
    return plain;
}

static PyObject *
snapshot(struct pair *pair)
{
    switch (pair->kind) {
    case PAIR_LIST:
        return PyList_AsTuple(pair->object);
    case PAIR_DEQUE:
        return deque_items(pair->object);
    case PAIR_DICT:
        return plain_dict(pair->object);
    case PAIR_SET:
        return PySet_New(pair->object);
    case PAIR_BYTEARRAY:
        return PyBytes_FromStringAndSize(PyByteArray_AS_STRING(pair->object),
                                         PyByteArray_GET_SIZE(pair->object));
    case PAIR_PARTS:
        return parts_snapshot(pair->object);
    default: {
        struct flat flat;
        if (flat_open(pair->object, &flat) < 0) {
            return NULL;
        }
        PyObject *bytes = PyBytes_FromStringAndSize(flat.data, (Py_ssize_t)flat.size);
        flat_close(&flat);
        return bytes;
    }
    }
}

int
pairs_snapshot(struct strand *s, size_t from)
{
    if (s->in_pairs > 0) {
        return 0;
    }
    int rc = 0;
    s->in_pairs++; /* to hash a key may ask the other side */
    for (size_t i = from; rc == 0 && i < s->npairs; i++) {
        if (s->pairs[i].snapshot == NULL && !s->pairs[i].shared && in_scope(s, i)) {
            PyObject *content = snapshot(&s->pairs[i]);
            s->pairs[i].snapshot = content;
            rc = content == NULL ? -1 : 0;
        }
    }
    s->in_pairs--;
    return rc;
}

/* The bytes that a buffer's snapshot holds: a bytes object, or a share of the frame it came in. */
static const char *
snapshot_bytes(PyObject *content, size_t *size)
{
    if (PyBytes_Check(content)) {
        *size = (size_t)PyBytes_GET_SIZE(content);
        return PyBytes_AS_STRING(content);
    }
    return share_bytes(content, size);
}

/* What is between start and the end of o that the snapshot does not have in the same place. */
static int
encode_middle(struct message *m, PyObject *object, PyObject *before, bool *changed)
{
    /* A list is read in place: a copy of it would make its fresh items look shared. */
    PyObject *now = PyList_Check(object) ? Py_NewRef(object) : deque_items(object);
    if (now == NULL) {
        return -1;
    }
    bool list = PyList_Check(now);
#define ITEM(i) (list ? PyList_GET_ITEM(now, i) : PyTuple_GET_ITEM(now, i))
    Py_ssize_t n = list ? PyList_GET_SIZE(now) : PyTuple_GET_SIZE(now);
    Py_ssize_t old = PyTuple_GET_SIZE(before), start = 0, end = 0;
    while (start < n && start < old && ITEM(start) == PyTuple_GET_ITEM(before, start)) {
        start++;
    }
    while (end < n - start && end < old - start &&
           ITEM(n - 1 - end) == PyTuple_GET_ITEM(before, old - 1 - end)) {
        end++;
    }
    *changed = start + end < n || start + end < old;
    int rc = 0;
    if (*changed) {
        write_u64(&m->w, (uint64_t)start);
        write_u64(&m->w, (uint64_t)(old - end));
        write_u64(&m->w, (uint64_t)(n - end - start));
        for (Py_ssize_t i = start; rc == 0 && i < n - end; i++) {
            if (i >= (list ? PyList_GET_SIZE(now) : n)) {
                PyErr_SetString(PyExc_RuntimeError, "list changed size while it was written back");
                rc = -1;
                break;
            }
            /* Items of the old content are held by the snapshot too, so only new ones can move. */
            rc = encode(m, ITEM(i), list);
        }
    }
#undef ITEM
    Py_DECREF(now);
    return rc;
}

/* What was deleted, then what was set. Keys are compared by identity, in order, and never hashed:
 * that may run code of the other side, which is not to be asked while a frame is being made. A dict
 * keeps the order of its keys, and new ones come last; so a key that is not where it was has been
 * deleted, and set again if it comes later. */
static int
encode_dict_changes(struct message *m, PyObject *now, PyObject *before, bool *changed)
{
    Py_ssize_t i = 0;
    PyObject *old, *old_value, *key = NULL, *value = NULL;
    uint64_t deleted = 0, set = 0;
    size_t at = m->w.size;
    struct walk w;
    if (walk_begin(&w, now) < 0) {
        return -1;
    }
    write_u64(&m->w, 0);
    bool more = walk_next(&w, &key, &value);
    while (PyDict_Next(before, &i, &old, &old_value)) {
        if (more && key == old) {
            more = walk_next(&w, &key, &value);
        }
        else if (deleted++, encode(m, old, false) < 0) {
            walk_end(&w);
            return -1;
        }
    }
    walk_end(&w);
    size_t set_at = m->w.size;
    write_u64(&m->w, 0);
    i = 0;
    bool any = PyDict_Next(before, &i, &old, &old_value);
    if (walk_begin(&w, now) < 0) {
        return -1;
    }
    while (walk_next(&w, &key, &value)) {
        while (any && key != old) {
            any = PyDict_Next(before, &i, &old, &old_value);
        }
        if (!any || value != old_value) {
            set++;
            /* As where a list is read: a reference of our own would make the value look shared. */
            if (encode(m, key, false) < 0 || encode(m, value, true) < 0) {
                walk_end(&w);
                return -1;
            }
        }
        any = any && PyDict_Next(before, &i, &old, &old_value);
    }
    if (!m->w.failed) {
        memcpy(m->w.data + at, &deleted, sizeof deleted);
        memcpy(m->w.data + set_at, &set, sizeof set);
    }
    *changed = deleted + set != 0;
    return message_check(m);
}

static int
encode_set_changes(struct message *m, PyObject *now, PyObject *before, bool *changed)
{
    PyObject *plain = PySet_New(now); /* a subclass may subtract in its own way */
    PyObject *halves[2] = {plain ? PyNumber_Subtract(before, plain) : NULL,
                           plain ? PyNumber_Subtract(plain, before) : NULL};
    int rc = halves[0] == NULL || halves[1] == NULL ? -1 : 0;
    Py_XDECREF(plain);
    for (int i = 0; rc == 0 && i < 2; i++) {
        *changed = *changed || PySet_GET_SIZE(halves[i]) > 0;
        write_u64(&m->w, (uint64_t)PySet_GET_SIZE(halves[i]));
        PyObject *iterator = PyObject_GetIter(halves[i]), *item;
        while (iterator != NULL && rc == 0 && (item = PyIter_Next(iterator)) != NULL) {
            rc = encode(m, item, false);
            Py_DECREF(item);
        }
        Py_XDECREF(iterator);
        if (iterator == NULL || PyErr_Occurred()) {
            rc = -1;
        }
    }
    Py_XDECREF(halves[0]);
    Py_XDECREF(halves[1]);
    return rc;
}

/* Changed bytes next to each other, collected over blocks. */
struct ranges {
    struct message *m;
    PyObject *owner; /* borrowed: of the memory; NULL: all bytes are encoded */
    const struct extent_copy
        *copy; /* the memory, where it is known which pages were written; or NULL */
    const char *now, *before;
    size_t unit;       /* bytes that are compared, and written, as one: 1, 2, 4 or 8 */
    size_t start, end; /* the run that may still grow */
    uint64_t n;
    int rc;
};

static void
end_run(struct ranges *r)
{
    size_t size = r->end - r->start;
    if (size == 0 || r->rc < 0) {
        return;
    }
    r->n++;
    write_u64(&r->m->w, r->start);
    if (r->owner != NULL && size >= MUCH) {
        r->rc = encode_blob(r->m, r->now + r->start, size, r->owner, false);
    }
    else {
        write_u8(&r->m->w, 0); /* as encode_blob() says that the bytes follow */
        write_bytes(&r->m->w, r->now + r->start, size);
    }
    r->start = r->end;
}

static void
add_run(struct ranges *r, size_t start, size_t end)
{
    if (start != r->end) {
        end_run(r);
        r->start = start;
    }
    r->end = end;
}

/* The changed runs in a block, so that what did not change is not written over: another array of
 * the same memory, or another thread, may have. Past a number of runs the rest of the block goes
 * whole. Expanded for each `unit`, which memcmp() is no call for then. */
static inline void
compare_units(struct ranges *r, size_t i, size_t end, size_t unit)
{
    const char *now = r->now, *before = r->before;
    int n = 0;
    while (i < end) {
        while (i < end && memcmp(now + i, before + i, unit) == 0) {
            i += unit;
        }
        size_t start = i;
        if (n == MAX_RUNS) {
            i = end;
        }
        while (i < end && memcmp(now + i, before + i, unit) != 0) {
            i += unit;
        }
        if (i > start) {
            add_run(r, start, i);
            n++;
        }
    }
}

static void
compare_block(struct ranges *r, size_t i, size_t end)
{
    switch ((end - i) % r->unit == 0 ? r->unit : 1) {
    case 8:
        compare_units(r, i, end, 8);
        break;
    case 4:
        compare_units(r, i, end, 4);
        break;
    case 2:
        compare_units(r, i, end, 2);
        break;
    default:
        compare_units(r, i, end, 1);
        break;
    }
}

static void
compare(void *argument, size_t at, size_t size)
{
    struct ranges *r = argument;
    for (size_t i = at; i < at + size; i += BLOCK) {
        size_t end = i + (at + size - i < BLOCK ? at + size - i : BLOCK);
        if (memcmp(r->now + i, r->before + i, end - i) != 0) {
            compare_block(r, i, end);
        }
    }
}

/* Appends what changed, of so many bytes. */
static int
encode_changed(struct ranges *r, size_t size, bool *changed)
{
    struct writer *w = &r->m->w;
    size_t count_at = w->size;
    write_u64(w, 0);
    if (r->copy == NULL || !extent_copy_changes(r->copy, compare, r)) {
        /* What part of an answer has told is not told twice: ranges only go up. */
        r->start = r->end = 0;
        r->n = 0;
        w->size = count_at + sizeof r->n;
        compare(r, 0, size);
    }
    end_run(r);
    if (!w->failed) {
        memcpy(w->data + count_at, &r->n, sizeof r->n);
    }
    *changed = r->n != 0;
    return r->rc < 0 ? -1 : message_check(r->m);
}

int
encode_ranges(struct message *m, const char *now, const char *before, size_t size, bool *changed)
{
    struct ranges r = {.m = m, .now = now, .before = before, .unit = 1};
    return encode_changed(&r, size, changed);
}

static int
encode_byte_changes(struct ranges *r, size_t size, size_t old, bool *changed)
{
    struct writer *w = &r->m->w;
    if (size != old) {
        *changed = true;
        write_u8(w, 1);
        write_bytes(w, r->now, size);
        return message_check(r->m);
    }
    write_u8(w, 0);
    return encode_changed(r, size, changed);
}

static int
encode_changes(struct message *m, struct pair *pair, bool *changed)
{
    switch (pair->kind) {
    case PAIR_LIST:
    case PAIR_DEQUE:
        return encode_middle(m, pair->object, pair->snapshot, changed);
    case PAIR_DICT:
        return encode_dict_changes(m, pair->object, pair->snapshot, changed);
    case PAIR_SET:
        return encode_set_changes(m, pair->object, pair->snapshot, changed);
    case PAIR_PARTS:
        return encode_parts_changes(m, pair->object, pair->snapshot, changed);
    case PAIR_BYTEARRAY: {
        size_t old;
        struct ranges r = {.m = m,
                           .now = PyByteArray_AS_STRING(pair->object),
                           .before = snapshot_bytes(pair->snapshot, &old),
                           .unit = 1};
        return encode_byte_changes(&r, (size_t)PyByteArray_GET_SIZE(pair->object), old, changed);
    }
    default: {
        struct flat flat;
        size_t old;
        if (flat_open(pair->object, &flat) < 0) {
            PyErr_Clear(); /* a memoryview that was released: what it was of is still there */
            if (pair->memory == NULL || flat_open(pair->memory, &flat) < 0) {
                PyErr_Clear();
                return 0;
            }
        }
        const char *before = snapshot_bytes(pair->snapshot, &old);
        if (flat.size != old && is_plain_ndarray(pair->object)) {
            /* Resized in place. Its shape stays this side's: what both sides have is restored. */
            flat.size = old = flat.size < old ? flat.size : old;
        }
        struct extent_copy *copy = extent_copy_at(flat.data);
        if (copy != NULL && (before != (const char *)extent_copy_original(copy) ||
                             flat.size != extent_copy_size(copy))) {
            copy = NULL; /* it has been compared before, with something else */
        }
        struct ranges r = {.m = m,
                           /* The bytes of a strided array are in a copy that goes now. */
                           .owner = flat.contiguous ? pair->object : NULL,
                           .copy = copy,
                           .now = flat.data,
                           .before = before,
                           .unit = flat.unit};
        int rc = encode_byte_changes(&r, flat.size, old, changed);
        flat_close(&flat);
        return rc;
    }
    }
}

int
pairs_changed(PeerObject *peer, struct strand *s, size_t from)
{
    struct message scratch;
    bool changed = false;
    int rc = 0;
    message_init(&scratch, peer, s, true);
    s->in_pairs++;
    for (size_t i = from; rc == 0 && !changed && i < s->npairs; i++) {
        if (s->pairs[i].snapshot != NULL && in_scope(s, i)) {
            rc = encode_changes(&scratch, &s->pairs[i], &changed);
        }
    }
    s->in_pairs--;
    message_free(&scratch, true);
    return rc < 0 ? -1 : changed;
}

static void
forget(struct strand *s, size_t from, size_t to)
{
    for (size_t i = from; i < to && i < s->npairs; i++) {
        if (in_scope(s, i)) {
            Py_CLEAR(s->pairs[i].snapshot);
        }
    }
}

void
pairs_forget(struct strand *s, size_t from)
{
    forget(s, from, s->npairs);
}

int
pairs_encode_changes(struct message *m, bool *any)
{
    struct strand *s = m->strand;
    size_t npairs = m->npairs; /* those made by this very message are up to date */
    size_t count_at = m->w.size;
    uint64_t n = 0;
    bool result = m->result;
    *any = false;
    if (s == NULL || npairs == 0 || s->in_pairs > 0) {
        return 0;
    }
    write_u64(&m->w, 0);
    s->in_pairs++;
    m->result = true; /* new items: fresh ones move, others go by reference */
    int rc = 0;
    size_t failed = s->npairs;
    for (size_t i = 0; rc == 0 && i < npairs; i++) {
        if (s->pairs[i].snapshot == NULL || !in_scope(s, i)) {
            continue;
        }
        failed = i;
        size_t at = m->w.size;
        bool changed = false;
        write_u64(&m->w, s->pairs[i].id);
        write_u8(&m->w, s->pairs[i].kind);
        rc = encode_changes(m, &s->pairs[i], &changed);
        if (rc == 0 && !changed) {
            m->w.size = at;
        }
        else {
            n++;
        }
    }
    s->in_pairs--;
    m->result = result;
    if (rc < 0 && failed < s->npairs) {
        Py_CLEAR(s->pairs[failed].snapshot); /* what cannot be said is not tried again */
    }
    if (rc == 0) { /* control is lost; new ones are taken when it comes back */
        forget(s, 0, npairs);
    }
    if (rc < 0) {
        return -1;
    }
    if (n == 0) {
        m->w.size = count_at;
        return message_check(m);
    }
    *any = true;
    if (!m->w.failed) {
        memcpy(m->w.data + count_at, &n, sizeof n);
    }
    return message_check(m);
}

/* ---- the other side ---------------------------------------------------------------------- */

static PyObject *
decode_items(struct incoming *in, uint64_t n)
{
    PyObject *items = PyList_New(0);
    for (uint64_t i = 0; items != NULL && i < n; i++) {
        PyObject *item = decode(in);
        if (item == NULL || PyList_Append(items, item) < 0) {
            Py_CLEAR(items);
        }
        Py_XDECREF(item);
    }
    return items;
}

static int
apply_middle(struct incoming *in, PyObject *target)
{
    uint64_t start = read_u64(&in->r), stop = read_u64(&in->r), n = read_count(&in->r, 1);
    if (in->r.failed || start > PY_SSIZE_T_MAX || stop > PY_SSIZE_T_MAX) {
        return garbled("changes of a list");
    }
    PyObject *items = decode_items(in, n);
    if (items == NULL) {
        return -1;
    }
    int rc = -1;
    if (PyList_Check(target)) {
        rc = PyList_SetSlice(target, (Py_ssize_t)start, (Py_ssize_t)stop, items);
    }
    else { /* a deque has no slices */
        PyObject *iterator = container_iter(target), *done = NULL;
        PyObject *whole = iterator == NULL ? NULL : PySequence_List(iterator);
        Py_XDECREF(iterator);
        if (whole != NULL &&
            PyList_SetSlice(whole, (Py_ssize_t)start, (Py_ssize_t)stop, items) == 0) {
            done = deque_call(target, "clear", NULL);
            if (done != NULL) {
                Py_SETREF(done, deque_call(target, "extend", whole));
            }
        }
        rc = done == NULL ? -1 : 0;
        Py_XDECREF(done);
        Py_XDECREF(whole);
    }
    Py_DECREF(items);
    return rc;
}

static int
dict_clear(PyObject *dict)
{
    if (!PyODict_Check(dict)) {
        PyDict_Clear(dict);
        return 0;
    }
    PyObject *none = PyObject_CallMethod((PyObject *)&PyODict_Type, "clear", "O", dict);
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}

int
container_clear(PyObject *o, enum pair_kind kind)
{
    switch (kind) {
    case PAIR_DICT:
        return dict_clear(o);
    case PAIR_LIST:
        return PyList_SetSlice(o, 0, PyList_GET_SIZE(o), NULL);
    case PAIR_SET:
        return PySet_Clear(o);
    case PAIR_BYTEARRAY:
        return PyByteArray_Resize(o, 0);
    default: {
        PyObject *none = deque_call(o, "clear", NULL);
        Py_XDECREF(none);
        return none == NULL ? -1 : 0;
    }
    }
}

static int
apply_dict(struct incoming *in, PyObject *target)
{
    for (uint64_t n = read_count(&in->r, 1); n > 0; n--) {
        PyObject *key = decode(in);
        if (key == NULL) {
            return -1;
        }
        if ((PyODict_Check(target) ? PyODict_DelItem(target, key) : PyDict_DelItem(target, key)) <
            0) {
            PyErr_Clear();
        }
        Py_DECREF(key);
    }
    for (uint64_t n = read_count(&in->r, 2); n > 0; n--) {
        PyObject *key = decode(in);
        PyObject *value = key == NULL ? NULL : decode(in);
        int rc = value == NULL ? -1 : dict_set(target, key, value);
        Py_XDECREF(key);
        Py_XDECREF(value);
        if (rc < 0) {
            return -1;
        }
    }
    return in->r.failed ? garbled("changes of a dict") : 0;
}

static int
apply_set(struct incoming *in, PyObject *target)
{
    for (int half = 0; half < 2; half++) {
        for (uint64_t n = read_count(&in->r, 1); n > 0; n--) {
            PyObject *item = decode(in);
            int rc = item == NULL ? -1
                     : half       ? PySet_Add(target, item)
                                  : PySet_Discard(target, item);
            Py_XDECREF(item);
            if (rc < 0) {
                return -1;
            }
        }
    }
    return in->r.failed ? garbled("changes of a set") : 0;
}

int
apply_ranges(struct incoming *in, char *data, size_t size)
{
    for (uint64_t n = read_count(&in->r, 8 + 1 + 1); n > 0; n--) {
        uint64_t offset = read_u64(&in->r);
        size_t length;
        const struct frame *frame;
        const unsigned char *bytes = decode_blob(in, &length, &frame);
        if (in->r.failed || offset > size || length > size - offset) {
            return garbled("changes of a buffer");
        }
        if (length >= MUCH) {
            pages_release(data + offset, length);
        }
        memcpy(data + offset, bytes, length);
    }
    return in->r.failed ? garbled("changes of a buffer") : 0;
}

static int
apply_bytes(struct incoming *in, struct pair *pair)
{
    bool whole = read_u8(&in->r);
    if (pair->kind == PAIR_BYTEARRAY) {
        if (whole) {
            size_t size;
            const unsigned char *bytes = read_bytes(&in->r, &size);
            if (in->r.failed || PyByteArray_Resize(pair->object, (Py_ssize_t)size) < 0) {
                return PyErr_Occurred() ? -1 : garbled("changes of a bytearray");
            }
            memcpy(PyByteArray_AS_STRING(pair->object), bytes, size);
            return 0;
        }
        return apply_ranges(in, PyByteArray_AS_STRING(pair->object),
                            (size_t)PyByteArray_GET_SIZE(pair->object));
    }
    if (whole) { /* only array.array can change its size */
        size_t size;
        const unsigned char *bytes = read_bytes(&in->r, &size);
        if (in->r.failed) {
            return garbled("changes of an array");
        }
        PyObject *empty = PySlice_New(NULL, NULL, NULL);
        int rc = empty == NULL ? -1 : PyObject_DelItem(pair->object, empty);
        PyObject *none =
            rc < 0 ? NULL
                   : PyObject_CallMethod(pair->object, "frombytes", "y#", bytes, (Py_ssize_t)size);
        Py_XDECREF(empty);
        Py_XDECREF(none);
        return none == NULL ? -1 : 0;
    }
    struct flat flat;
    if (flat_open(pair->object, &flat) < 0) {
        return -1;
    }
    int rc = apply_ranges(in, flat.data, flat.size);
    if (rc == 0 && flat.capsule != NULL) {
        /* The original is strided: `capsule` is its contiguous copy; put the values back. */
        PyObject *ellipsis = Py_Ellipsis;
        rc = PyObject_SetItem(pair->object, ellipsis, flat.capsule);
    }
    flat_close(&flat);
    return rc;
}

static int
decode_changes(struct incoming *in)
{
    for (uint64_t n = read_count(&in->r, 9); n > 0; n--) {
        struct pair *pair = in->strand ? pair_by_id(in->strand, read_u64(&in->r)) : NULL;
        uint8_t kind = read_u8(&in->r);
        if (in->r.failed || pair == NULL || pair->kind != kind) {
            return garbled("changes of an unknown pair");
        }
        PyObject *target = Py_NewRef(pair->object); /* `pairs` may be moved by nested requests */
        struct pair copy = *pair;
        int rc;
        switch (kind) {
        case PAIR_LIST:
        case PAIR_DEQUE:
            rc = apply_middle(in, target);
            break;
        case PAIR_DICT:
            rc = apply_dict(in, target);
            break;
        case PAIR_SET:
            rc = apply_set(in, target);
            break;
        case PAIR_PARTS:
            rc = apply_parts(in, target);
            break;
        default:
            rc = apply_bytes(in, &copy);
            break;
        }
        Py_DECREF(target);
        if (rc < 0) {
            return -1;
        }
    }
    return in->r.failed ? garbled("changes") : 0;
}

int
pairs_decode_changes(struct incoming *in)
{
    if (in->strand == NULL) {
        return garbled("changes of an unknown pair");
    }
    in->strand->in_pairs++;
    int rc = decode_changes(in);
    in->strand->in_pairs--;
    return rc;
}
