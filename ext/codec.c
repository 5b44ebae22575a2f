#include "codec.h"

#include "handles.h"
#include "iteration.h"
#include "peer.h"
#include "proxy.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define BLOB_SIZE                                                                                  \
    65536 /* bytes; below this a copy into the frame is cheaper than a part of its own */

#define TEXT_CHUNK 16384 /* bytes that are checked and copied while they are in the cache */

int
garbled(const char *what)
{
    PyObject *type = PyObject_GetAttrString(core_get()->errors, "ProtocolError");
    if (type != NULL) {
        PyErr_Format(type, "garbled frame from the other process: %s", what);
        Py_DECREF(type);
    }
    return -1;
}

/* ---- messages ---------------------------------------------------------------------------- */

void
message_init(struct message *m, PeerObject *peer, struct strand *strand, bool result)
{
    writer_init(&m->w);
    m->peer = peer;
    m->strand = strand;
    m->result = result;
    m->op = 0;
    m->flags = 0;
    m->request = 0;
    m->released = 0;
    m->begun = false;
    m->npairs = strand != NULL ? strand->npairs : 0;
    m->changes_upto = 0;
    m->sent = NULL;
    m->nsent = m->capsent = 0;
    m->seen = NULL;
    m->blobs = NULL;
    m->nblobs = 0;
    m->reducing = false;
    m->pure = false;
    m->operation = NULL;
    m->operand = NULL;
    m->arguments = (struct arguments){0};
    m->values = NULL;
}

void
message_free(struct message *m, bool abandon)
{
    if (abandon) {
        for (size_t i = m->nsent; i-- > 0;) {
            if (m->sent[i].described) {
                table_remove(&m->strand->described, m->sent[i].handle);
            }
            export_release(m->peer, m->sent[i].handle, 1);
        }
    }
    if (m->begun) {
        m->begun = false;
        m->strand->framing--;
    }
    free(m->sent);
    m->sent = NULL;
    m->nsent = m->capsent = 0;
    Py_CLEAR(m->seen);
    for (size_t i = 0; i < m->nblobs; i++) {
        blob_done(m->blobs[i].owner);
    }
    free(m->blobs);
    m->blobs = NULL;
    m->nblobs = 0;
    writer_free(&m->w);
    if (m->values != NULL) {
        struct values *values = m->values;
        m->values = NULL;
        values_clear(values);
        free(values);
    }
}

/* ---- blobs ------------------------------------------------------------------------------- */

/* What libzmq is through with, pushed by its own thread, which has no GIL to drop references. */
struct finished {
    PyObject *object; /* strong */
    struct finished *next;
};
static struct finished *_Atomic finished;

void
blob_done(void *owner)
{
    struct finished *f = owner;
    f->next = atomic_load(&finished);
    while (!atomic_compare_exchange_weak(&finished, &f->next, f)) {
    }
}

void
blobs_collect(void)
{
    if (atomic_load(&finished) == NULL) {
        return;
    }
    for (struct finished *f = atomic_exchange(&finished, NULL), *next; f != NULL; f = next) {
        next = f->next;
        Py_DECREF(f->object);
        free(f);
    }
}

int
encode_blob(struct message *m, const void *data, size_t size, PyObject *owner)
{
    if (size < BLOB_SIZE) {
        write_u8(&m->w, 0);
        write_bytes(&m->w, data, size);
        return message_check(m);
    }
    struct finished *f = malloc(sizeof *f);
    struct blob *more = f == NULL ? NULL : realloc(m->blobs, (m->nblobs + 1) * sizeof *more);
    if (more == NULL) {
        free(f);
        PyErr_NoMemory();
        return -1;
    }
    f->object = Py_NewRef(owner);
    m->blobs = more;
    m->blobs[m->nblobs] = (struct blob){data, size, f};
    write_u8(&m->w, 1);
    write_u64(&m->w, m->nblobs++);
    return message_check(m);
}

const unsigned char *
decode_blob(struct incoming *in, size_t *size, const struct frame **frame)
{
    *size = 0;
    *frame = &in->frame;
    if (!read_u8(&in->r)) {
        return read_bytes(&in->r, size);
    }
    uint64_t index = read_u64(&in->r);
    if (in->r.failed || index >= in->frame.nparts) {
        in->r.failed = true;
        return NULL;
    }
    *frame = &in->frame.parts[index];
    *size = (*frame)->size;
    return (*frame)->data;
}

int
message_check(struct message *m)
{
    if (m->w.failed) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

int
encode_export(struct message *m, PyObject *o, struct export **out)
{
    if (m->nsent == m->capsent) {
        size_t capacity = m->capsent ? m->capsent * 2 : 8;
        struct sent *more = realloc(m->sent, capacity * sizeof *more);
        if (more == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        m->sent = more;
        m->capsent = capacity;
    }
    struct export *e = export_object(m->peer, o);
    if (e == NULL) {
        return -1;
    }
    e->count++;
    m->sent[m->nsent++] = (struct sent){e->handle, false};
    *out = e;
    return 0;
}

/* ---- names ------------------------------------------------------------------------------- */

bool
is_isolated_name(PeerObject *peer, PyObject *module)
{
    if (module == NULL || !PyUnicode_Check(module) || PySet_GET_SIZE(peer->isolated) == 0) {
        return false;
    }
    Py_ssize_t end = PyUnicode_GET_LENGTH(module);
    while (end > 0) {
        PyObject *prefix = PyUnicode_Substring(module, 0, end);
        int found = prefix == NULL ? -1 : PySet_Contains(peer->isolated, prefix);
        Py_XDECREF(prefix);
        if (found < 0) {
            PyErr_Clear();
        }
        if (found > 0) {
            return true;
        }
        end = PyUnicode_FindChar(module, '.', 0, end, -1);
    }
    return false;
}

/* New reference to what module.qualname names. NULL without an exception when nothing does (or the
 * module is not loaded and `import` is false); with one when importing it failed. */
PyObject *
resolve_name(PyObject *module, PyObject *qualname, bool import)
{
    PyObject *o = PyImport_GetModule(module);
    if (o == NULL) {
        if (PyErr_Occurred() || !import) {
            PyErr_Clear();
            return NULL;
        }
        o = PyImport_Import(module);
        if (o == NULL) {
            return NULL;
        }
        Py_DECREF(o); /* the top-level package; the module itself is in sys.modules */
        o = PyImport_GetModule(module);
        if (o == NULL) {
            PyErr_Clear();
            return NULL;
        }
    }
    if (PyUnicode_GET_LENGTH(qualname) == 0) {
        return o;
    }
    Py_ssize_t start = 0, length = PyUnicode_GET_LENGTH(qualname);
    while (o != NULL && start <= length) {
        Py_ssize_t dot = PyUnicode_FindChar(qualname, '.', start, length, 1);
        if (dot < 0) {
            dot = length;
        }
        PyObject *name = PyUnicode_Substring(qualname, start, dot);
        PyObject *next = name == NULL ? NULL : PyObject_GetAttr(o, name);
        Py_XDECREF(name);
        Py_SETREF(o, next);
        start = dot + 1;
    }
    if (o == NULL) {
        PyErr_Clear();
        if (PyUnicode_CompareWithASCIIString(module, "builtins") == 0) {
            o = builtins_class(qualname);
        }
    }
    return o;
}

/* True when o is a C function or class that the other side can find under the same name. */
static bool
is_named(PeerObject *peer, PyObject *o, PyObject **module, PyObject **qualname)
{
    *module = *qualname = NULL;
    PyObject *m = PyObject_GetAttr(o, core_get()->str___module__);
    PyObject *q = m == NULL ? NULL : PyObject_GetAttr(o, core_get()->str___qualname__);
    if (q == NULL || !PyUnicode_Check(m) || !PyUnicode_Check(q) || is_isolated_name(peer, m) ||
        PyUnicode_Compare(m, core_get()->str___main__) == 0) {
        goto no;
    }
    PyObject *found = resolve_name(m, q, false);
    Py_XDECREF(found);
    if (found != o) {
        goto no;
    }
    *module = m;
    *qualname = q;
    return true;
no:
    PyErr_Clear();
    Py_XDECREF(m);
    Py_XDECREF(q);
    return false;
}

int
encode_name(struct message *m, PyObject *name)
{
    Py_ssize_t size;
    const char *text = PyUnicode_AsUTF8AndSize(name, &size);
    if (text == NULL) {
        PyErr_Clear(); /* lone surrogates: a name all the same */
        PyObject *bytes = PyUnicode_AsEncodedString(name, "utf-8", "surrogatepass");
        if (bytes == NULL) {
            return -1;
        }
        write_bytes(&m->w, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
        Py_DECREF(bytes);
        return 0;
    }
    write_bytes(&m->w, text, (size_t)size);
    return 0;
}

PyObject *
decode_name(struct incoming *in)
{
    size_t size;
    const char *text = (const char *)read_bytes(&in->r, &size);
    if (in->r.failed) {
        garbled("name");
        return NULL;
    }
    /* The same few names come all the time: they are found without making a string. */
    size_t hash = size;
    for (size_t i = 0; i < size && i < 32; i++) {
        hash = hash * 31 + (unsigned char)text[i];
    }
    PyObject **recent = &core_get()->recent_names[hash % 256], *name = *recent;
    if (name != NULL && (size_t)PyUnicode_GET_LENGTH(name) == size &&
        memcmp(PyUnicode_1BYTE_DATA(name), text, size) == 0) {
        return Py_NewRef(name);
    }
    name = PyUnicode_DecodeUTF8(text, (Py_ssize_t)size, "surrogatepass");
    if (name != NULL) {
        PyUnicode_InternInPlace(&name);
        if (PyUnicode_IS_COMPACT_ASCII(name)) {
            Py_XSETREF(*recent, Py_NewRef(name));
        }
    }
    return name;
}

/* ---- encoding ---------------------------------------------------------------------------- */

static void
write_tag(struct message *m, enum tag tag)
{
    write_u8(&m->w, (uint8_t)tag);
}

/* The value whose tag was written at `at` gets the next number of this request. */
static int
keep(struct message *m, size_t at, PyObject *o)
{
    if (m->values == NULL) {
        m->values = calloc(1, sizeof *m->values);
        if (m->values == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        m->values->request = m->request;
        m->values->mine = true;
    }
    if (message_check(m) < 0 || values_add(m->values, o) < 0) {
        return -1;
    }
    m->w.data[at] |= TAG_KEPT;
    return 0;
}

/* Writes the number that o has as a value of a request under way. False: it has none. */
static bool
encode_kept(struct message *m, PyObject *o)
{
    uint32_t index;
    /* One that is kept already has a reference there; inside of arguments each has one more, held
     * while it is encoded. */
    if (Py_REFCNT(o) <= (m->result ? 1 : 2) || m->strand == NULL ||
        (m->values == NULL && m->strand->values == NULL)) {
        return false;
    }
    struct values *v = values_find(m, o, &index);
    if (v == NULL) {
        return false;
    }
    write_tag(m, TAG_ARGUMENT);
    write_u64(&m->w, v->request << 1 | v->mine);
    write_u32(&m->w, index);
    return true;
}

static bool
encode_kept_number(struct message *m, PyObject *o)
{
    struct values *v = m->values != NULL ? m->values : m->strand != NULL ? m->strand->values : NULL;
    return v != NULL && v->numbers && encode_kept(m, o);
}

static int
encode_long(struct message *m, PyObject *o)
{
    int overflow;
    long long v = PyLong_AsLongLongAndOverflow(o, &overflow);
    if (!overflow) {
        write_tag(m, TAG_INT);
        write_u64(&m->w, (uint64_t)v);
        return 0;
    }
    size_t bits = _PyLong_NumBits(o);
    if (bits == (size_t)-1 && PyErr_Occurred()) {
        return -1;
    }
    size_t n = bits / 8 + 1;
    write_tag(m, TAG_BIGINT);
    write_u64(&m->w, n);
    unsigned char *to = writer_reserve(&m->w, n);
    if (to == NULL) {
        return message_check(m);
    }
    if (compat_long_as_bytes(o, to, n) < 0) {
        return -1;
    }
    m->w.size += n;
    return 0;
}

static int
encode_str(struct message *m, PyObject *o)
{
    size_t at = m->w.size;
    if (PyUnicode_GET_LENGTH(o) > 1 && encode_kept(m, o)) {
        return 0;
    }
    if (!PyUnicode_IS_COMPACT_ASCII(o)) {
        write_tag(m, TAG_STR);
        if (encode_name(m, o) < 0) {
            return -1;
        }
    }
    else if (PyUnicode_GET_LENGTH(o) < BLOB_SIZE) {
        write_tag(m, TAG_ASCII);
        write_bytes(&m->w, PyUnicode_1BYTE_DATA(o), (size_t)PyUnicode_GET_LENGTH(o));
    }
    else {
        write_tag(m, TAG_BLOBTEXT);
        if (encode_blob(m, PyUnicode_1BYTE_DATA(o), (size_t)PyUnicode_GET_LENGTH(o), o) < 0) {
            return -1;
        }
    }
    return m->result || PyUnicode_GET_LENGTH(o) < 2 ? 0 : keep(m, at, o);
}

static int
encode_bytes(struct message *m, PyObject *o)
{
    size_t at = m->w.size;
    if (PyBytes_GET_SIZE(o) > 1 && encode_kept(m, o)) {
        return 0;
    }
    write_tag(m, TAG_BYTES);
    if (encode_blob(m, PyBytes_AS_STRING(o), (size_t)PyBytes_GET_SIZE(o), o) < 0) {
        return -1;
    }
    return m->result || PyBytes_GET_SIZE(o) < 2 ? 0 : keep(m, at, o);
}

static bool
is_unshared(PyObject *o, bool owned)
{
    return owned && Py_REFCNT(o) == 1;
}

static int
encode_sequence(struct message *m, PyObject *o, bool owned)
{
    /* The size may change while items are encoded (they can run code): count what was written. */
    size_t count_at = m->w.size;
    uint64_t n = 0;
    write_u64(&m->w, 0);
    if (PyList_Check(o)) {
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(o); i++, n++) {
            PyObject *item = PyList_GET_ITEM(o, i);
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
    else if (PyTuple_Check(o)) {
        for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(o); i++, n++) {
            if (encode(m, PyTuple_GET_ITEM(o, i), owned) < 0) {
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
        write_bytes(&m->w, PyByteArray_AS_STRING(o), (size_t)PyByteArray_GET_SIZE(o));
        return message_check(m);
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

/* A mutable built-in container: copied with a pair in arguments; in results it moves when nothing
 * else refers to it. *done stays false when it goes by reference. */
static int
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

static int
encode_proxy(struct message *m, struct proxy *p)
{
    if (p->epoch == m->peer->epoch) {
        write_tag(m, TAG_BACKREF);
        write_u64(&m->w, p->handle);
        return message_check(m);
    }
    if (p->module != NULL) {
        write_tag(m, TAG_NAMED);
        return encode_name(m, p->module) < 0 || encode_name(m, p->qualname) < 0 ? -1
                                                                                : message_check(m);
    }
    peer_raise_stale(m->peer, p->object);
    return -1;
}

/* datetime, Decimal, Enum members ...: rebuilt from what __reduce_ex__ says, without pickle. */
static int
encode_reduced(struct message *m, PyObject *o, bool *done)
{
    PyObject *parts = PyObject_CallMethod(core_get()->errors, "reduce", "(O)", o);
    if (parts == NULL) {
        PyErr_Clear(); /* cannot be taken apart: it goes by reference */
        return 0;
    }
    int rc = -1;
    if (PyUnicode_Check(parts)) { /* the name of a constant of its module, as pickle has it */
        PyObject *module = PyObject_GetAttr(o, core_get()->str___module__);
        PyObject *found =
            module != NULL && PyUnicode_Check(module) && !is_isolated_name(m->peer, module)
                ? resolve_name(module, parts, false)
                : NULL;
        PyErr_Clear();
        rc = 0;
        if (found == o) {
            *done = true;
            write_tag(m, TAG_NAMED);
            rc = encode_name(m, module) < 0 || encode_name(m, parts) < 0 ? -1 : message_check(m);
        }
        Py_XDECREF(module);
        Py_XDECREF(found);
    }
    else if (PyTuple_Check(parts) && PyTuple_GET_SIZE(parts) >= 2 &&
             (PyTuple_GET_SIZE(parts) < 4 || PyTuple_GET_ITEM(parts, 3) == Py_None)) {
        PyObject *state = PyTuple_GET_SIZE(parts) > 2 ? PyTuple_GET_ITEM(parts, 2) : Py_None;
        PyObject *function = PyTuple_GET_ITEM(parts, 0), *module, *qualname;
        bool result = m->result, reducing = m->reducing;
        if (is_named(m->peer, function, &module, &qualname)) {
            *done = true;
            write_tag(m, TAG_REDUCE);
            m->reducing = true;
            m->result = true; /* the parts are ours alone: no copy-restore */
            rc = encode_name(m, module) < 0 || encode_name(m, qualname) < 0 ||
                         encode(m, PyTuple_GET_ITEM(parts, 1), true) < 0 ||
                         encode(m, state, true) < 0
                     ? -1
                     : 0;
            m->result = result;
            m->reducing = reducing;
            Py_DECREF(module);
            Py_DECREF(qualname);
        }
        else {
            rc = 0;
        }
    }
    else {
        rc = 0;
    }
    Py_DECREF(parts);
    return rc;
}

/* An instance of a subclass of an immutable built-in: the value goes along, so that C code here
 * finds the real layout. Returns the built-in base, or NULL. */
static PyTypeObject *
value_base(PyObject *o)
{
    PyTypeObject *type = Py_TYPE(o);
    PyTypeObject *bases[] = {&PyLong_Type,  &PyUnicode_Type, &PyTuple_Type,    &PyFloat_Type,
                             &PyBytes_Type, &PyComplex_Type, &PyFrozenSet_Type};
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        if (type != bases[i] && PyType_IsSubtype(type, bases[i])) {
            return bases[i];
        }
    }
    return NULL;
}

static PyObject *
plain_value(PyObject *o, PyTypeObject *base)
{
    if (base == &PyLong_Type) {
        return _PyLong_Copy((PyLongObject *)o);
    }
    if (base == &PyUnicode_Type) {
        return PyUnicode_Substring(o, 0, PyUnicode_GET_LENGTH(o)); /* exact str: see below */
    }
    if (base == &PyTuple_Type) {
        return PyTuple_GetSlice(o, 0, PyTuple_GET_SIZE(o));
    }
    if (base == &PyFloat_Type) {
        return PyFloat_FromDouble(PyFloat_AS_DOUBLE(o));
    }
    if (base == &PyBytes_Type) {
        return PyBytes_FromStringAndSize(PyBytes_AS_STRING(o), PyBytes_GET_SIZE(o));
    }
    if (base == &PyComplex_Type) {
        return PyComplex_FromCComplex(((PyComplexObject *)o)->cval);
    }
    PyObject *items = PySequence_List(o), *value = NULL;
    if (items != NULL) {
        value = PyFrozenSet_New(items);
        Py_DECREF(items);
    }
    return value;
}

static int
encode_reference(struct message *m, PyObject *o)
{
    struct export *e;
    PyTypeObject *base = value_base(o);
    if (encode_export(m, o, &e) < 0) {
        return -1;
    }
    if (base != NULL) {
        write_tag(m, TAG_REFVALUE);
        write_u64(&m->w, e->handle);
        if (encode_class(m, Py_TYPE(o), CLASS_OF_INSTANCE) < 0) {
            return -1;
        }
        PyObject *value = plain_value(o, base);
        if (value == NULL) {
            return -1;
        }
        int rc = encode(m, value, false);
        Py_DECREF(value);
        return rc;
    }
    write_tag(m, TAG_REF);
    write_u64(&m->w, e->handle);
    if (encode_class(m, Py_TYPE(o), CLASS_OF_INSTANCE) < 0) {
        return -1;
    }
    /* Functions that can be found again by name survive a restart. */
    PyObject *module = NULL, *qualname = NULL;
    if (!m->peer->is_kernel && (PyFunction_Check(o) || PyCFunction_Check(o))) {
        module = PyObject_GetAttr(o, core_get()->str___module__);
        qualname = module ? PyObject_GetAttr(o, core_get()->str___qualname__) : NULL;
        PyObject *found = qualname != NULL && PyUnicode_Check(module) && PyUnicode_Check(qualname)
                              ? resolve_name(module, qualname, false)
                              : NULL;
        PyErr_Clear();
        Py_XDECREF(found);
        if (found != o) {
            Py_CLEAR(module);
            Py_CLEAR(qualname);
        }
    }
    write_u8(&m->w, module != NULL);
    int rc =
        module == NULL || (encode_name(m, module) == 0 && encode_name(m, qualname) == 0) ? 0 : -1;
    Py_XDECREF(module);
    Py_XDECREF(qualname);
    return rc < 0 ? -1 : message_check(m);
}

static int
encode_module(struct message *m, PyObject *o)
{
    PyObject *name = PyModule_GetNameObject(o);
    if (name == NULL) {
        PyErr_Clear();
        return encode_reference(m, o);
    }
    int rc = -1;
    PyObject *registered = PyImport_GetModule(name);
    Py_XDECREF(registered);
    PyErr_Clear();
    if (m->peer->is_kernel) {
        /* The child has modules of its own; one that only the session has goes by reference. */
        if (registered == o && PyUnicode_Compare(name, core_get()->str___main__) != 0) {
            PyObject *none = PyUnicode_New(0, 0);
            write_tag(m, TAG_NAMED);
            rc = none == NULL || encode_name(m, name) < 0 || encode_name(m, none) < 0 ? -1 : 0;
            Py_XDECREF(none);
        }
        else {
            rc = encode_reference(m, o);
        }
    }
    else {
        struct export *e;
        if (encode_export(m, o, &e) == 0) {
            write_tag(m, TAG_MODULE);
            write_u64(&m->w, e->handle);
            write_u8(&m->w, registered == o);
            rc = encode_name(m, name);
        }
    }
    Py_DECREF(name);
    return rc < 0 ? -1 : message_check(m);
}

/* A method or other descriptor of a mirrored class, as such: the one it stands for. */
static int
encode_stub(struct message *m, StubObject *stub)
{
    if (stub->target != NULL) {
        return encode(m, stub->target, false);
    }
    write_tag(m, TAG_STUB);
    return encode_class(m, (PyTypeObject *)stub->cls, CLASS_AS_VALUE) < 0 ||
                   encode_name(m, stub->name) < 0
               ? -1
               : message_check(m);
}

/* Whether instances of `type` are registered to cross by value: by the type itself, by its name
 * (nothing is imported to register it), or, for members of an Enum, by its metaclass. */
int
is_value_type(PyTypeObject *type)
{
    PyObject *types = core_get()->value_types;
    PyObject *known = PyDict_GetItemWithError(types, (PyObject *)type);
    if (known != NULL || PyErr_Occurred()) {
        return known == NULL ? -1 : known == Py_True;
    }
    PyObject *module = PyObject_GetAttr((PyObject *)type, core_get()->str___module__);
    PyObject *qualname =
        module == NULL ? NULL : PyObject_GetAttr((PyObject *)type, core_get()->str___qualname__);
    PyObject *name = qualname == NULL ? NULL : PyUnicode_FromFormat("%S.%S", module, qualname);
    int yes = name == NULL ? -1 : PyDict_Contains(types, name);
    Py_XDECREF(module);
    Py_XDECREF(qualname);
    Py_XDECREF(name);
    if (yes == 0 && Py_TYPE(type) != &PyType_Type) {
        yes = is_value_type(Py_TYPE(type));
    }
    /* What is none is remembered only of types that stay: the table holds them. */
    bool keep = yes > 0 || !(type->tp_flags & Py_TPFLAGS_HEAPTYPE);
    if (yes < 0 ||
        (keep && PyDict_SetItem(types, (PyObject *)type, yes ? Py_True : Py_False) < 0)) {
        PyErr_Clear();
        return 0;
    }
    return yes;
}

/* An array that is not written back is an immutable value as far as the other side goes. */
static int
keep_unpaired(struct message *m, size_t at, PyObject *o)
{
    return m->result || pair_find(m->strand, o) != NULL ? 0 : keep(m, at, o);
}

static int
encode_compound(struct message *m, PyObject *o, bool owned)
{
    bool done = false;
    size_t at = m->w.size;
    if (PyTuple_CheckExact(o)) {
        if (PyTuple_GET_SIZE(o) > 0 && encode_kept(m, o)) {
            return 0;
        }
        write_tag(m, TAG_TUPLE);
        /* Before its items: they may lead back to it. */
        if (!m->result && PyTuple_GET_SIZE(o) > 0 && keep(m, at, o) < 0) {
            return -1;
        }
        return encode_sequence(m, o, is_unshared(o, owned));
    }
    struct proxy *p = proxy_find(o);
    if (p != NULL && p->peer == m->peer) {
        if ((m->flags & FRAME_ERROR) && p->epoch == m->peer->epoch &&
            PyExceptionInstance_Check(o)) {
            PyObject *traceback = PyException_GetTraceback(o);
            write_tag(m, TAG_EXCEPTION_BACK);
            write_u64(&m->w, p->handle);
            int rc = encode_traceback(m, traceback);
            Py_XDECREF(traceback);
            return rc;
        }
        return encode_proxy(m, p);
    }
    if (encode_container(m, o, owned, &done) < 0 || done) {
        return done && !PyErr_Occurred() ? 0 : -1;
    }
    if (encode_kept(m, o)) {
        return 0;
    }
    if (PyFrozenSet_CheckExact(o)) {
        write_tag(m, TAG_FROZENSET);
        int rc = encode_sequence(m, o, false);
        return rc < 0 || m->result ? rc : keep(m, at, o);
    }
    if (PySlice_Check(o) || PyRange_Check(o)) {
        static const char *const fields[] = {"start", "stop", "step"};
        write_tag(m, PySlice_Check(o) ? TAG_SLICE : TAG_RANGE);
        for (int i = 0; i < 3; i++) {
            PyObject *field = PyObject_GetAttrString(o, fields[i]);
            int rc = field == NULL ? -1 : encode(m, field, false);
            Py_XDECREF(field);
            if (rc < 0) {
                return -1;
            }
        }
        return m->result ? 0 : keep(m, at, o);
    }
    if (PyExceptionInstance_Check(o)) {
        return encode_exception(m, o);
    }
    if (PyTraceBack_Check(o)) {
        write_tag(m, TAG_TRACEBACK);
        return encode_traceback(m, o);
    }
    if (PyType_Check(o)) {
        write_tag(m, TAG_CLASS);
        int rc = encode_class(m, (PyTypeObject *)o, CLASS_AS_VALUE);
        return rc < 0 || m->result ? rc : keep(m, at, o);
    }
    if (PyModule_Check(o)) {
        int rc = encode_module(m, o);
        return rc < 0 || m->result ? rc : keep(m, at, o);
    }
    /* In a registered value either side's own: what it is made with must not ask back for it. */
    if ((m->peer->is_kernel || m->reducing) && PyCFunction_CheckExact(o)) {
        PyObject *self = PyCFunction_GET_SELF(o), *module, *qualname;
        if ((self == NULL || PyModule_Check(self)) && is_named(m->peer, o, &module, &qualname)) {
            write_tag(m, TAG_NAMED);
            int rc = encode_name(m, module) < 0 || encode_name(m, qualname) < 0 ? -1 : 0;
            Py_DECREF(module);
            Py_DECREF(qualname);
            return rc < 0 || m->result ? rc : keep(m, at, o);
        }
    }
    if (Py_IS_TYPE(o, core_get()->iterator_type) && iteration_peer(o) == m->peer) {
        PyObject *exact = iteration_exact(o);
        int rc = exact == NULL ? -1 : encode(m, exact, false);
        Py_XDECREF(exact);
        return rc;
    }
    if (is_stub(o) && ((StubObject *)o)->peer == (PyObject *)m->peer) {
        return encode_stub(m, (StubObject *)o);
    }
    PyObject *self, *name;
    if (bound_method_parts(o, &self, &name)) {
        struct proxy *of = proxy_find(self);
        if (PyMethod_Check(o) &&
            compat_type_lookup(Py_TYPE(self), name) != PyMethod_GET_FUNCTION(o)) {
            of = NULL; /* super().method: by name it would be another */
        }
        if (of != NULL && of->peer == m->peer) {
            write_tag(m, TAG_METHOD);
            return encode_proxy(m, of) < 0 ? -1 : encode_name(m, name);
        }
    }
    if (is_ndarray(m->peer, o)) {
        if (encode_ndarray(m, o, owned, &done) < 0 || done) {
            return PyErr_Occurred() ? -1 : keep_unpaired(m, at, o);
        }
    }
    else if (is_array(m->peer, o)) {
        if (encode_array(m, o, owned, &done) < 0 || done) {
            return PyErr_Occurred() ? -1 : 0;
        }
    }
    else if (PyMemoryView_Check(o)) {
        if (encode_memoryview(m, o, &done) < 0 || done) {
            return PyErr_Occurred() ? -1 : keep_unpaired(m, at, o);
        }
    }
    else {
        int by_value = is_value_type(Py_TYPE(o));
        if (by_value < 0) {
            return -1;
        }
        if (by_value) {
            PyObject *module, *qualname;
            if (is_named(m->peer, (PyObject *)Py_TYPE(o), &module, &qualname)) {
                Py_DECREF(module);
                Py_DECREF(qualname);
                if (encode_reduced(m, o, &done) < 0) {
                    return -1;
                }
                if (done) {
                    return m->result ? 0 : keep(m, at, o);
                }
            }
        }
    }
    return encode_reference(m, o);
}

int
encode(struct message *m, PyObject *o, bool owned)
{
    PyTypeObject *type = Py_TYPE(o);
    if (type == &PyLong_Type) {
        return encode_kept_number(m, o) ? 0 : encode_long(m, o);
    }
    if (type == &PyFloat_Type) {
        if (encode_kept_number(m, o)) {
            return 0;
        }
        write_tag(m, TAG_FLOAT);
        write_f64(&m->w, PyFloat_AS_DOUBLE(o));
        return 0;
    }
    if (type == &PyUnicode_Type) {
        return encode_str(m, o);
    }
    if (o == Py_None) {
        write_tag(m, TAG_NONE);
        return 0;
    }
    if (type == &PyBool_Type) {
        write_tag(m, o == Py_True ? TAG_TRUE : TAG_FALSE);
        return 0;
    }
    if (type == &PyBytes_Type) {
        return encode_bytes(m, o);
    }
    if (type == &PyComplex_Type) {
        if (encode_kept_number(m, o)) {
            return 0;
        }
        Py_complex v = PyComplex_AsCComplex(o);
        write_tag(m, TAG_COMPLEX);
        write_f64(&m->w, v.real);
        write_f64(&m->w, v.imag);
        return 0;
    }
    if (o == Py_Ellipsis || o == Py_NotImplemented) {
        write_tag(m, o == Py_Ellipsis ? TAG_ELLIPSIS : TAG_NOTIMPLEMENTED);
        return 0;
    }
    if (Py_EnterRecursiveCall(" while passing an object to another process")) {
        return -1;
    }
    int rc = encode_compound(m, o, owned);
    Py_LeaveRecursiveCall();
    return rc;
}

int
encode_argument(struct message *m, PyObject *o)
{
    size_t at = m->w.size;
    if (encode(m, o, false) < 0) {
        return -1;
    }
    bool number = PyFloat_CheckExact(o) || PyComplex_CheckExact(o);
    if (PyLong_CheckExact(o)) {
        int overflow;
        long v = PyLong_AsLongAndOverflow(o, &overflow);
        number = overflow || v < -5 || v > 256; /* the others are the same everywhere */
    }
    if (!number || (!m->w.failed && m->w.data[at] == TAG_ARGUMENT)) {
        return 0;
    }
    if (keep(m, at, o) < 0) {
        return -1;
    }
    m->values->numbers = true;
    return 0;
}

int
encode_call(struct message *m, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    Py_ssize_t nkw = kwnames == NULL ? 0 : PyTuple_GET_SIZE(kwnames);
    m->arguments = (struct arguments){.vector = args, .nargs = nargs, .kwnames = kwnames};
    write_u64(&m->w, (uint64_t)nargs);
    write_u64(&m->w, (uint64_t)nkw);
    for (Py_ssize_t i = 0; i < nkw; i++) {
        if (encode_name(m, PyTuple_GET_ITEM(kwnames, i)) < 0) {
            return -1;
        }
    }
    for (Py_ssize_t i = 0; i < nargs + nkw; i++) {
        if (encode_argument(m, args[i]) < 0) {
            return -1;
        }
    }
    return message_check(m);
}

/* ---- decoding ---------------------------------------------------------------------------- */

void
call_free(struct call *call)
{
    for (Py_ssize_t i = 0; call->block != NULL && i < call->total; i++) {
        Py_XDECREF(call->args[i]);
    }
    free(call->block);
    Py_CLEAR(call->kwnames);
    call->block = NULL;
}

static int
decode_arguments(struct incoming *in, struct call *call, PyObject *first)
{
    memset(call, 0, sizeof *call);
    uint64_t nargs = read_count(&in->r, 1), nkw = read_count(&in->r, 1);
    if (in->r.failed) {
        return garbled("arguments");
    }
    Py_ssize_t extra = first != NULL;
    call->nargs = (Py_ssize_t)nargs + extra;
    call->block = calloc((size_t)call->nargs + nkw + 1, sizeof *call->block);
    if (call->block == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    call->args = call->block + 1;
    if (first != NULL) {
        call->args[call->total++] = Py_NewRef(first);
    }
    if (nkw > 0) {
        call->kwnames = PyTuple_New((Py_ssize_t)nkw);
        for (uint64_t i = 0; call->kwnames != NULL && i < nkw; i++) {
            PyObject *name = decode_name(in);
            if (name == NULL) {
                goto error;
            }
            PyTuple_SET_ITEM(call->kwnames, (Py_ssize_t)i, name);
        }
        if (call->kwnames == NULL) {
            goto error;
        }
    }
    for (uint64_t i = 0; i < nargs + nkw; i++) {
        PyObject *arg = decode(in);
        if (arg == NULL) {
            goto error;
        }
        call->args[call->total++] = arg;
    }
    if (in->strand != NULL && in->strand->npairs != 0 && pairs_snapshot(in->strand, 0) < 0) {
        goto error;
    }
    return 0;
error:
    call_free(call);
    return -1;
}

int
decode_call(struct incoming *in, struct call *call, PyObject *first)
{
    in->strand->framing++;
    int rc = decode_arguments(in, call, first);
    in->strand->framing--;
    return rc;
}

static PyObject *
decode_list(struct incoming *in, PyObject *list)
{
    uint64_t n = read_count(&in->r, 1);
    if (list == NULL || in->r.failed) {
        Py_XDECREF(list);
        if (!PyErr_Occurred()) {
            garbled("list");
        }
        return NULL;
    }
    for (uint64_t i = 0; i < n; i++) {
        PyObject *item = decode(in);
        int rc = item == NULL ? -1 : PyList_Append(list, item);
        Py_XDECREF(item);
        if (rc < 0) {
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}

static PyObject *
decode_tuple(struct incoming *in, bool kept)
{
    uint64_t n = read_count(&in->r, 1);
    if (in->r.failed) {
        garbled("tuple");
        return NULL;
    }
    PyObject *tuple = PyTuple_New((Py_ssize_t)n);
    if (kept && tuple != NULL) {
        /* Its items may lead back to it: whoever sees it before it is complete finds None. */
        for (uint64_t i = 0; i < n; i++) {
            PyTuple_SET_ITEM(tuple, (Py_ssize_t)i, Py_NewRef(Py_None));
        }
        if (values_add(in->values, tuple) < 0) {
            Py_CLEAR(tuple);
        }
    }
    for (uint64_t i = 0; tuple != NULL && i < n; i++) {
        PyObject *item = decode(in);
        if (item == NULL) {
            Py_CLEAR(tuple);
            break;
        }
        PyTuple_SET_ITEM(tuple, (Py_ssize_t)i, item);
    }
    if (kept && tuple != NULL && !PyObject_GC_IsTracked(tuple)) {
        PyObject_GC_Track(tuple); /* a collection has found nothing but None in it */
    }
    return tuple;
}

static PyObject *
decode_kept(struct incoming *in)
{
    uint64_t request = read_u64(&in->r);
    uint32_t index = read_u32(&in->r);
    if (in->discarded) {
        return Py_NewRef(Py_None);
    }
    PyObject *o =
        in->strand == NULL ? NULL : values_get(in->strand, request >> 1, !(request & 1), index);
    if (o == NULL) {
        garbled("unknown argument");
        return NULL;
    }
    return Py_NewRef(o);
}

/* A child may send anything: it is ASCII only if it is. */
static PyObject *
decode_blob_text(struct incoming *in)
{
    size_t size;
    const struct frame *frame;
    const unsigned char *data = decode_blob(in, &size, &frame);
    if (in->r.failed || size > PY_SSIZE_T_MAX) {
        garbled("text");
        return NULL;
    }
    PyObject *text = PyUnicode_New((Py_ssize_t)size, 127);
    if (text == NULL || size == 0) {
        return text;
    }
    char *to = (char *)PyUnicode_1BYTE_DATA(text);
    for (size_t at = 0, n; at < size; at += n) {
        uint64_t bits = 0, word;
        n = size - at < TEXT_CHUNK ? size - at : TEXT_CHUNK;
        size_t i = 0;
        for (; i + sizeof word <= n; i += sizeof word) {
            memcpy(&word, data + at + i, sizeof word);
            bits |= word;
        }
        for (; i < n; i++) {
            bits |= data[at + i];
        }
        if (bits & 0x8080808080808080u) {
            Py_DECREF(text);
            garbled("text");
            return NULL;
        }
        memcpy(to + at, data + at, n);
    }
    return text;
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
    PyObject *o = NULL;
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
    case PAIR_BYTEARRAY: {
        size_t size;
        const unsigned char *data = read_bytes(&in->r, &size);
        o = in->r.failed ? NULL
                         : PyByteArray_FromStringAndSize((const char *)data, (Py_ssize_t)size);
        break;
    }
    default:
        break;
    }
    if (o == NULL) {
        if (!PyErr_Occurred()) {
            garbled("pair");
        }
        return NULL;
    }
    if (pair_add(in->strand, o, kind, id) == NULL) {
        Py_DECREF(o);
        return NULL;
    }
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
        size_t size;
        const unsigned char *data = read_bytes(&in->r, &size);
        if (in->r.failed || PyByteArray_Resize(content, (Py_ssize_t)size) < 0) {
            goto error;
        }
        memcpy(PyByteArray_AS_STRING(content), data, size);
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

static PyObject *
decode_backref(struct incoming *in)
{
    PyObject *o = export_find(in->peer, read_u64(&in->r));
    if (o == NULL) {
        garbled("unknown handle");
        return NULL;
    }
    return Py_NewRef(o);
}

static PyObject *
decode_named(struct incoming *in)
{
    PyObject *module = decode_name(in);
    PyObject *qualname = module == NULL ? NULL : decode_name(in);
    PyObject *o = NULL;
    if (qualname != NULL) {
        o = peer_resolve(in->peer, module, qualname);
    }
    Py_XDECREF(module);
    Py_XDECREF(qualname);
    return o;
}

static PyObject *
decode_reference(struct incoming *in, bool with_value)
{
    uint64_t handle = read_u64(&in->r);
    PyObject *cls = decode_class(in, CLASS_OF_INSTANCE), *value = NULL, *o = NULL;
    PyObject *module = NULL, *qualname = NULL;
    if (cls == NULL) {
        return NULL;
    }
    if (with_value) {
        value = decode(in);
        if (value == NULL) {
            goto done;
        }
    }
    else if (read_u8(&in->r)) {
        module = decode_name(in);
        qualname = module == NULL ? NULL : decode_name(in);
        if (qualname == NULL) {
            goto done;
        }
    }
    if (in->r.failed || handle == 0) {
        garbled("reference");
        goto done;
    }
    o = proxy_of_handle(in->peer, handle);
    if (o != NULL) {
        proxy_received(proxy_find(Py_NewRef(o)));
        goto done;
    }
    o = proxy_new_instance((PyTypeObject *)cls, value);
    if (o != NULL && proxy_bind(in->peer, o, handle) < 0) {
        Py_CLEAR(o);
    }
    if (o != NULL && module != NULL) {
        struct proxy *p = proxy_find(o);
        p->module = Py_NewRef(module);
        p->qualname = Py_NewRef(qualname);
    }
done:
    Py_DECREF(cls);
    Py_XDECREF(value);
    Py_XDECREF(module);
    Py_XDECREF(qualname);
    return o;
}

static PyObject *
decode_module(struct incoming *in)
{
    uint64_t handle = read_u64(&in->r);
    bool registered = read_u8(&in->r);
    PyObject *name = decode_name(in);
    if (name == NULL) {
        return NULL;
    }
    PyObject *o = module_proxy(in->peer, name, handle, registered);
    Py_DECREF(name);
    return o;
}

static PyObject *
decode_method(struct incoming *in)
{
    if (read_u8(&in->r) != TAG_BACKREF) {
        garbled("method");
        return NULL;
    }
    PyObject *self = decode_backref(in);
    PyObject *name = self == NULL ? NULL : decode_name(in);
    PyObject *o = name == NULL ? NULL : PyObject_GetAttr(self, name);
    Py_XDECREF(self);
    Py_XDECREF(name);
    return o;
}

static PyObject *
decode_stub(struct incoming *in)
{
    PyObject *cls = decode_class(in, CLASS_AS_VALUE);
    PyObject *name = cls == NULL ? NULL : decode_name(in);
    PyObject *dict = name == NULL ? NULL : compat_type_dict((PyTypeObject *)cls);
    PyObject *o = dict == NULL ? NULL : PyDict_GetItemWithError(dict, name);
    if (o == NULL && dict != NULL && !PyErr_Occurred()) {
        o = compat_type_lookup((PyTypeObject *)cls, name);
        if (o == NULL) {
            PyErr_Format(PyExc_AttributeError, "type object '%s' has no attribute '%U'",
                         ((PyTypeObject *)cls)->tp_name, name);
        }
    }
    Py_XINCREF(o);
    Py_XDECREF(dict);
    Py_XDECREF(cls);
    Py_XDECREF(name);
    return o;
}

static PyObject *
decode_reduced(struct incoming *in)
{
    PyObject *function = decode_named(in);
    PyObject *args = function == NULL ? NULL : decode(in);
    PyObject *state = args == NULL ? NULL : decode(in);
    PyObject *o = NULL;
    if (state == NULL) {
        goto done;
    }
    if (!PyTuple_Check(args)) {
        garbled("reduced value");
        goto done;
    }
    o = PyObject_CallObject(function, args);
    if (o != NULL && state != Py_None) {
        PyObject *none = peer_set_state(in->peer, o, state);
        if (none == NULL) {
            Py_CLEAR(o);
        }
        Py_XDECREF(none);
    }
done:
    Py_XDECREF(function);
    Py_XDECREF(args);
    Py_XDECREF(state);
    return o;
}

static PyObject *
decode_slice_or_range(struct incoming *in, bool slice)
{
    PyObject *start = decode(in);
    PyObject *stop = start == NULL ? NULL : decode(in);
    PyObject *step = stop == NULL ? NULL : decode(in);
    PyObject *o = NULL;
    if (step != NULL) {
        o = slice
                ? PySlice_New(start, stop, step)
                : PyObject_CallFunctionObjArgs((PyObject *)&PyRange_Type, start, stop, step, NULL);
    }
    Py_XDECREF(start);
    Py_XDECREF(stop);
    Py_XDECREF(step);
    return o;
}

static PyObject *
decode_compound(struct incoming *in, uint8_t tag, bool kept)
{
    struct reader *r = &in->r;
    switch (tag) {
    case TAG_RANGE:
    case TAG_SLICE:
        return decode_slice_or_range(in, tag == TAG_SLICE);
    case TAG_TUPLE:
        return decode_tuple(in, kept);
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
    case TAG_BYTEARRAY: {
        size_t size;
        const unsigned char *data = read_bytes(r, &size);
        return r->failed ? NULL
                         : PyByteArray_FromStringAndSize((const char *)data, (Py_ssize_t)size);
    }
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
    case TAG_REF:
        return decode_reference(in, false);
    case TAG_REFVALUE:
        return decode_reference(in, true);
    case TAG_BACKREF:
        return decode_backref(in);
    case TAG_NAMED:
        return decode_named(in);
    case TAG_CLASS:
        return decode_class(in, CLASS_AS_VALUE);
    case TAG_MODULE:
        return decode_module(in);
    case TAG_METHOD:
        return decode_method(in);
    case TAG_STUB:
        return decode_stub(in);
    case TAG_REDUCE:
        return decode_reduced(in);
    case TAG_TRACEBACK:
        return decode_traceback(in);
    case TAG_EXCEPTION_BACK:
        return decode_exception_back(in);
    case TAG_EXCEPTION:
        return decode_exception(in);
    case TAG_EXCEPTION_SEEN: {
        PyObject *key = PyLong_FromUnsignedLongLong(read_u64(r));
        PyObject *o =
            key == NULL || in->seen == NULL ? NULL : PyDict_GetItemWithError(in->seen, key);
        Py_XDECREF(key);
        if (o == NULL && !PyErr_Occurred()) {
            garbled("exception");
        }
        return Py_XNewRef(o);
    }
    case TAG_OBJECTS:
        return decode_objects(in);
    case TAG_NDARRAY:
        return decode_ndarray(in);
    case TAG_ARRAY:
        return decode_array(in);
    case TAG_MEMORYVIEW:
        return decode_memoryview(in);
    case TAG_ARGUMENT:
        return decode_kept(in);
    case TAG_LIBRARY:
        return decode_library(in);
    case TAG_SHADOW:
        return decode_shadow(in);
    case TAG_BLOBTEXT:
        return decode_blob_text(in);
    default:
        garbled("unknown tag");
        return NULL;
    }
}

PyObject *
decode(struct incoming *in)
{
    struct reader *r = &in->r;
    size_t size;
    const unsigned char *data;
    PyObject *o = NULL;
    uint8_t tag = read_u8(r);
    if (r->failed) {
        garbled("too short");
        return NULL;
    }
    bool kept = tag & TAG_KEPT;
    if (kept && in->values == NULL) {
        garbled("value");
        return NULL;
    }
    tag &= (uint8_t)~TAG_KEPT;
    switch (tag) {
    case TAG_NONE:
        Py_RETURN_NONE;
    case TAG_FALSE:
        Py_RETURN_FALSE;
    case TAG_TRUE:
        Py_RETURN_TRUE;
    case TAG_ELLIPSIS:
        return Py_NewRef(Py_Ellipsis);
    case TAG_NOTIMPLEMENTED:
        Py_RETURN_NOTIMPLEMENTED;
    case TAG_INT:
        o = PyLong_FromLongLong((long long)read_u64(r));
        break;
    case TAG_FLOAT:
        o = PyFloat_FromDouble(read_f64(r));
        break;
    case TAG_COMPLEX: {
        double real = read_f64(r);
        o = PyComplex_FromDoubles(real, read_f64(r));
        break;
    }
    case TAG_BIGINT:
        data = read_bytes(r, &size);
        o = r->failed ? NULL : compat_long_from_bytes(data, size);
        break;
    case TAG_ASCII:
        data = read_bytes(r, &size);
        /* Not trusted to be ASCII: a child may send anything. */
        o = r->failed ? NULL
                      : PyUnicode_DecodeASCII((const char *)data, (Py_ssize_t)size, "replace");
        break;
    case TAG_STR:
        data = read_bytes(r, &size);
        o = r->failed ? NULL
                      : PyUnicode_DecodeUTF8((const char *)data, (Py_ssize_t)size, "surrogatepass");
        break;
    case TAG_BYTES:
        data = decode_blob(in, &size, &(const struct frame *){NULL});
        o = r->failed ? NULL : PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
        break;
    default:
        if (Py_EnterRecursiveCall(" while reading an object from another process")) {
            return NULL;
        }
        o = decode_compound(in, tag, kept);
        kept = kept && tag != TAG_TUPLE; /* that was done before its items */
        Py_LeaveRecursiveCall();
        break;
    }
    if (r->failed) {
        Py_CLEAR(o);
        if (!PyErr_Occurred()) {
            garbled("too short");
        }
    }
    if (kept && o != NULL) {
        in->values->numbers = in->values->numbers || PyLong_CheckExact(o) ||
                              PyFloat_CheckExact(o) || PyComplex_CheckExact(o);
        if (values_add(in->values, o) < 0) {
            Py_CLEAR(o);
        }
    }
    return o;
}
