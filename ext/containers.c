/* containers.c: containers, written and read with their items: in arguments a mutable one is copied
 * with a pair (pairs.c) or a shadow (shadows.c), in results it moves when nothing else refers to
 * it. */
#include "codec.h"

#include "bigcopy.h"
#include "handles.h"
#include "proxy.h"

#include <string.h>

/* ---- writing ----------------------------------------------------------------------------- */

bool
is_unshared(PyObject *o, bool owned)
{
    return owned && Py_REFCNT(o) == 1;
}

int
encode_sequence(struct message *m, PyObject *o, bool owned)
{
    /* The size may change while items are encoded (they can run code): count what was written. */
    size_t count_at = m->w.size;
    uint64_t n = 0;
    write_u64(&m->w, 0);
    if (PyList_Check(o) || PyTuple_Check(o)) {
        for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(o); i++, n++) {
            PyObject **items = PySequence_Fast_ITEMS(o);
            Py_ssize_t run = encode_run(m, items + i, PySequence_Fast_GET_SIZE(o) - i);
            if (run > 0) {
                i += run - 1;
                n += (uint64_t)run - 1;
                continue;
            }
            PyObject *item = items[i];
            if (!owned) {
                Py_INCREF(item);
            }
            int rc = encode(m, item, owned);
            if (!owned) {
                Py_DECREF(item);
            }
            if (rc < 0) {
                return -1;
            }
        }
    }
    else {
        PyObject *iterator = container_iter(o), *item;
        if (iterator == NULL) {
            return -1;
        }
        while ((item = PyIter_Next(iterator)) != NULL) {
            int rc = encode(m, item, false);
            Py_DECREF(item);
            n++;
            if (rc < 0) {
                Py_DECREF(iterator);
                return -1;
            }
        }
        Py_DECREF(iterator);
        if (PyErr_Occurred()) {
            return -1;
        }
    }
    if (!m->w.failed) {
        memcpy(m->w.data + count_at, &n, sizeof n);
    }
    return message_check(m);
}

static int
encode_dict(struct message *m, PyObject *o, bool owned)
{
    size_t count_at = m->w.size;
    uint64_t n = 0;
    PyObject *key, *value;
    struct walk w;
    if (walk_begin(&w, o) < 0) {
        return -1;
    }
    write_u64(&m->w, 0);
    while (walk_next(&w, &key, &value)) {
        int rc;
        if (owned) {
            rc = encode(m, key, true) < 0 || encode(m, value, true) < 0 ? -1 : 0;
        }
        else {
            Py_INCREF(key);
            Py_INCREF(value);
            rc = encode(m, key, false) < 0 || encode(m, value, false) < 0 ? -1 : 0;
            Py_DECREF(key);
            Py_DECREF(value);
        }
        if (rc < 0) {
            walk_end(&w);
            return -1;
        }
        n++;
    }
    if (!m->w.failed) {
        memcpy(m->w.data + count_at, &n, sizeof n);
    }
    return message_check(m);
}

static bool
is_deque(PeerObject *peer, PyObject *o)
{
    if ((PyObject *)Py_TYPE(o) != deque_class()) {
        return false;
    }
    PyObject *name = PyUnicode_FromString("collections");
    bool isolated = is_isolated_name(peer, name);
    Py_XDECREF(name);
    return !isolated;
}

static int
encode_deque(struct message *m, PyObject *o)
{
    PyObject *maxlen = PyObject_GetAttr(o, core_get()->str_maxlen);
    if (maxlen == NULL) {
        return -1;
    }
    int rc = encode(m, maxlen, false);
    Py_DECREF(maxlen);
    return rc < 0 ? -1 : encode_sequence(m, o, false);
}

static int
encode_content(struct message *m, PyObject *o, enum pair_kind kind, bool owned)
{
    switch (kind) {
    case PAIR_DICT:
        return encode_dict(m, o, owned);
    case PAIR_BYTEARRAY:
        return encode_resizable(m, o, PyByteArray_AS_STRING(o), (size_t)PyByteArray_GET_SIZE(o),
                                owned);
    case PAIR_DEQUE:
        return encode_deque(m, o);
    default:
        return encode_sequence(m, o, owned);
    }
}

/* One of `collections` that both sides have; `which`: see shadows.c. */
static int
encode_library(struct message *m, PyObject *o, int which, bool owned, bool *done)
{
    uint64_t id = 0;
    if (m->result && !is_unshared(o, owned)) {
        return 0;
    }
    *done = true;
    PyObject *factory = PyObject_GetAttrString(o, "default_factory");
    if (factory == NULL) {
        PyErr_Clear();
        factory = Py_NewRef(Py_None);
    }
    if (!m->result) {
        id = pair_new_id(m->strand);
        if (pair_add(m->strand, o, PAIR_DICT, id) == NULL) {
            Py_DECREF(factory);
            return -1;
        }
    }
    write_tag(m, TAG_LIBRARY);
    write_u64(&m->w, id);
    write_u8(&m->w, (uint8_t)which);
    int rc = encode(m, factory, false);
    Py_DECREF(factory);
    return rc < 0 ? -1 : encode_dict(m, o, id == 0);
}

static int
encode_shadow(struct message *m, PyObject *o, enum pair_kind kind)
{
    struct export *e;
    if (encode_export(m, o, &e) < 0) {
        return -1;
    }
    write_tag(m, TAG_SHADOW);
    write_u64(&m->w, e->handle);
    if (encode_class(m, Py_TYPE(o), CLASS_OF_INSTANCE) < 0) {
        return -1;
    }
    struct pair *pair = pair_add(m->strand, o, kind, pair_new_id(m->strand));
    if (pair == NULL) {
        return -1;
    }
    write_u64(&m->w, pair->id);
    write_u8(&m->w, (uint8_t)kind);
    return encode_content(m, o, kind, false);
}

int
encode_container(struct message *m, PyObject *o, bool owned, bool *done)
{
    static const enum tag moved[] = {TAG_LIST, TAG_DICT, TAG_SET, TAG_BYTEARRAY, TAG_DEQUE};
    enum pair_kind kind;
    if (PyList_CheckExact(o)) {
        kind = PAIR_LIST;
    }
    else if (PyDict_CheckExact(o)) {
        if (o == PyEval_GetBuiltins()) {
            /* In the namespace of each module: both sides have their own. */
            *done = true;
            write_tag(m, TAG_NAMED);
            return encode_name(m, core_get()->str_builtins) < 0 ||
                           encode_name(m, core_get()->str___dict__) < 0
                       ? -1
                       : message_check(m);
        }
        kind = PAIR_DICT;
    }
    else if (PySet_CheckExact(o)) {
        kind = PAIR_SET;
    }
    else if (PyByteArray_CheckExact(o)) {
        kind = PAIR_BYTEARRAY;
    }
    else if (is_deque(m->peer, o)) {
        kind = PAIR_DEQUE;
    }
    else {
        kind = PAIR_BUFFER;
    }
    struct pair *pair = m->strand != NULL ? pair_find(m->strand, o) : NULL;
    if (pair != NULL && pair->kind != PAIR_BUFFER) {
        *done = true;
        write_tag(m, TAG_PAIRREF);
        write_u64(&m->w, pair->id);
        return message_check(m);
    }
    if (kind == PAIR_BUFFER) {
        int which = library_container(m->peer, o);
        if (which >= 0) {
            return encode_library(m, o, which, owned, done);
        }
        *done = !m->result && has_shadow(m->peer, o, &kind);
        return *done ? encode_shadow(m, o, kind) : 0;
    }
    if (m->result) {
        if (!is_unshared(o, owned)) {
            return 0;
        }
        *done = true;
        write_tag(m, moved[kind]);
        return encode_content(m, o, kind, true);
    }
    *done = true;
    pair = pair_add(m->strand, o, kind, pair_new_id(m->strand));
    if (pair == NULL) {
        return -1;
    }
    write_tag(m, TAG_PAIR);
    write_u64(&m->w, pair->id);
    write_u8(&m->w, (uint8_t)kind);
    return encode_content(m, o, kind, false);
}

/* ---- reading ----------------------------------------------------------------------------- */

/* The content of a bytearray, instead of the one that it has. What it came as is what a pair
 * compares it with, where *came is wanted: new reference, or NULL, which is to be made as of any
 * other container. 0, or -1. */
static int
read_bytearray(struct incoming *in, PyObject *o, PyObject **came)
{
    size_t size;
    const struct frame *frame;
    const unsigned char *data = decode_blob(in, &size, &frame);
    if (in->r.failed || PyByteArray_Resize(o, (Py_ssize_t)size) < 0) {
        return -1;
    }
    big_fresh(PyByteArray_AS_STRING(o), size);
    big_copy(PyByteArray_AS_STRING(o), data, size);
    if (came != NULL && size >= BLOB_SIZE) {
        *came = share_of_frame(frame, data, size);
    }
    return PyErr_Occurred() ? -1 : 0;
}

/* New reference, or NULL, perhaps without an exception. */
static PyObject *
decode_bytearray(struct incoming *in, PyObject **came)
{
    PyObject *o = PyByteArray_FromStringAndSize(NULL, 0);
    if (o != NULL && read_bytearray(in, o, came) < 0) {
        Py_CLEAR(o);
    }
    return o;
}

static PyObject *
decode_list(struct incoming *in, PyObject *list)
{
    struct sequence s;
    if (list == NULL || sequence_begin(&s, in) < 0) {
        Py_XDECREF(list);
        return NULL;
    }
    while (s.left > 0) {
        PyObject *item = sequence_next(&s);
        int rc = item == NULL ? -1 : PyList_Append(list, item);
        Py_XDECREF(item);
        if (rc < 0) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}

/* Into a set, frozenset or deque, by `add`. Steals `target`. */
static PyObject *
decode_into(struct incoming *in, PyObject *target, int (*add)(PyObject *, PyObject *))
{
    uint64_t n = read_count(&in->r, 1);
    if (target == NULL || in->r.failed) {
        Py_XDECREF(target);
        if (!PyErr_Occurred()) {
            garbled("container");
        }
        return NULL;
    }
    for (uint64_t i = 0; i < n; i++) {
        PyObject *item = decode(in);
        int rc = item == NULL ? -1 : add(target, item);
        Py_XDECREF(item);
        if (rc < 0) {
            Py_DECREF(target);
            return NULL;
        }
    }
    return target;
}

static int
deque_append(PyObject *deque, PyObject *item)
{
    PyObject *none = deque_call(deque, "append", item);
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}

static PyObject *
decode_dict(struct incoming *in, PyObject *dict)
{
    uint64_t n = read_count(&in->r, 2);
    if (dict == NULL || in->r.failed) {
        Py_XDECREF(dict);
        if (!PyErr_Occurred()) {
            garbled("dict");
        }
        return NULL;
    }
    for (uint64_t i = 0; i < n; i++) {
        PyObject *key = decode(in);
        PyObject *value = key == NULL ? NULL : decode(in);
        int rc = value == NULL ? -1 : dict_set(dict, key, value);
        Py_XDECREF(key);
        Py_XDECREF(value);
        if (rc < 0) {
            Py_DECREF(dict);
            return NULL;
        }
    }
    return dict;
}

static PyObject *
new_deque(struct incoming *in)
{
    PyObject *maxlen = decode(in);
    PyObject *module = maxlen == NULL ? NULL : PyImport_ImportModule("_collections");
    PyObject *deque = module == NULL ? NULL : PyObject_CallMethod(module, "deque", "()O", maxlen);
    Py_XDECREF(maxlen);
    Py_XDECREF(module);
    return deque;
}

/* Fills o, which is empty; steals it. What hashes the items may ask the other side: see in_pairs.
 */
static PyObject *
decode_content(struct incoming *in, PyObject *o, unsigned kind)
{
    in->strand->in_pairs++;
    o = kind == PAIR_LIST    ? decode_list(in, o)
        : kind == PAIR_DICT  ? decode_dict(in, o)
        : kind == PAIR_SET   ? decode_into(in, o, PySet_Add)
        : kind == PAIR_DEQUE ? decode_into(in, o, deque_append)
                             : o;
    in->strand->in_pairs--;
    return o;
}

static PyObject *
decode_pair(struct incoming *in)
{
    uint64_t id = read_u64(&in->r);
    uint8_t kind = read_u8(&in->r);
    PyObject *o = NULL, *came = NULL;
    if (in->strand == NULL || pair_by_id(in->strand, id) != NULL) {
        garbled("pair");
        return NULL;
    }
    /* The pair is known before its items are read: they may refer to it. */
    switch (kind) {
    case PAIR_LIST:
        o = PyList_New(0);
        break;
    case PAIR_DICT:
        o = PyDict_New();
        break;
    case PAIR_SET:
        o = PySet_New(NULL);
        break;
    case PAIR_DEQUE:
        o = new_deque(in);
        break;
    case PAIR_BYTEARRAY:
        o = decode_bytearray(in, &came);
        break;
    default:
        break;
    }
    if (o == NULL) {
        if (!PyErr_Occurred()) {
            garbled("pair");
        }
        return NULL;
    }
    struct pair *pair = pair_add(in->strand, o, kind, id);
    if (pair == NULL) {
        Py_XDECREF(came);
        Py_DECREF(o);
        return NULL;
    }
    pair->snapshot = came;
    return decode_content(in, o, kind);
}

static PyObject *
decode_library(struct incoming *in)
{
    uint64_t id = read_u64(&in->r);
    uint8_t which = read_u8(&in->r);
    PyObject *factory = decode(in);
    PyObject *o = factory == NULL ? NULL : library_new(which, factory);
    Py_XDECREF(factory);
    if (o != NULL && id != 0 &&
        (in->strand == NULL || pair_by_id(in->strand, id) != NULL ||
         pair_add(in->strand, o, PAIR_DICT, id) == NULL)) {
        Py_CLEAR(o);
    }
    if (o == NULL) {
        if (!PyErr_Occurred()) {
            garbled("dict");
        }
        return NULL;
    }
    return in->strand == NULL ? decode_dict(in, o) : decode_content(in, o, PAIR_DICT);
}

/* Sets what a deque's __init__ would. */
static int
deque_init(struct incoming *in, PyObject *deque)
{
    PyObject *maxlen = decode(in);
    PyObject *args = maxlen == NULL ? NULL : Py_BuildValue("(()O)", maxlen);
    int rc = args == NULL ? -1 : ((PyTypeObject *)deque_class())->tp_init(deque, args, NULL);
    Py_XDECREF(maxlen);
    Py_XDECREF(args);
    return rc;
}

static PyObject *
decode_shadow(struct incoming *in)
{
    uint64_t handle = read_u64(&in->r), id;
    PyObject *cls = decode_class(in, CLASS_OF_INSTANCE), *o = NULL, *content = NULL;
    if (cls == NULL) {
        return NULL;
    }
    id = read_u64(&in->r);
    uint8_t kind = read_u8(&in->r);
    if (in->r.failed || handle == 0 || kind >= PAIR_BUFFER || in->strand == NULL ||
        in->peer->is_kernel || pair_by_id(in->strand, id) != NULL) {
        garbled("container");
        goto error;
    }
    o = proxy_of_handle(in->peer, handle);
    if (o == NULL) {
        o = shadow_new(in->peer, (PyTypeObject *)cls, handle, kind);
        content = Py_XNewRef(o);
    }
    else {
        proxy_received(proxy_find(Py_NewRef(o)));
        if (is_shadow(o, kind)) { /* one that was kept after an earlier call */
            content = container_clear(o, kind) < 0 ? NULL : Py_NewRef(o);
        }
        else {
            /* It came as a proxy before there was a copy, and stays one: the same target is the
             * same proxy. */
            content = kind == PAIR_LIST    ? PyList_New(0)
                      : kind == PAIR_DICT  ? PyDict_New()
                      : kind == PAIR_SET   ? PySet_New(NULL)
                      : kind == PAIR_DEQUE ? PyObject_CallNoArgs(deque_class())
                                           : PyByteArray_FromStringAndSize(NULL, 0);
        }
    }
    if (content == NULL || pair_add(in->strand, content, kind, id) == NULL) {
        goto error;
    }
    if (kind == PAIR_DEQUE && deque_init(in, content) < 0) {
        goto error;
    }
    if (kind == PAIR_BYTEARRAY) {
        if (read_bytearray(in, content, NULL) < 0) {
            goto error;
        }
    }
    content = decode_content(in, content, kind);
    if (content == NULL) {
        goto error;
    }
    Py_DECREF(content);
    Py_DECREF(cls);
    return o;
error:
    if (!PyErr_Occurred()) {
        garbled("container");
    }
    Py_XDECREF(content);
    Py_XDECREF(o);
    Py_DECREF(cls);
    return NULL;
}

PyObject *
decode_container(struct incoming *in, uint8_t tag)
{
    struct reader *r = &in->r;
    switch (tag) {
    case TAG_FROZENSET: {
        /* PySet_Add accepts a frozenset that nobody else has seen. */
        return decode_into(in, PyFrozenSet_New(NULL), PySet_Add);
    }
    case TAG_LIST:
        return decode_list(in, PyList_New(0));
    case TAG_DICT:
        return decode_dict(in, PyDict_New());
    case TAG_SET:
        return decode_into(in, PySet_New(NULL), PySet_Add);
    case TAG_DEQUE:
        return decode_into(in, new_deque(in), deque_append);
    case TAG_BYTEARRAY:
        return decode_bytearray(in, NULL);
    case TAG_PAIR:
        return decode_pair(in);
    case TAG_PAIRREF: {
        struct pair *pair = in->strand ? pair_by_id(in->strand, read_u64(r)) : NULL;
        if (pair == NULL) {
            garbled("unknown pair");
            return NULL;
        }
        return Py_NewRef(pair->object);
    }
    case TAG_LIBRARY:
        return decode_library(in);
    case TAG_SHADOW:
        return decode_shadow(in);
    default:
        garbled("unknown tag");
        return NULL;
    }
}
