/* encode.c: objects to bytes. What crosses how is decided here: the order of the rules is the order
 * of the code in encode() and encode_compound(). */
#include "codec.h"

#include "ahead.h"
#include "batch.h"
#include "handles.h"
#include "iteration.h"
#include "memory.h"
#include "peer.h"
#include "proxy.h"
#include "runs.h"
#include "views.h"

#include <stdlib.h>

/* The value whose tag was written at `at` gets the next number of this request. */
static int
keep(struct message *m, size_t at, PyObject *o)
{
    if (m->values == NULL) {
        m->values = &m->own_values;
        *m->values = (struct values){.request = m->request, .scope = m->scope, .mine = true};
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
numbers_kept(struct message *m)
{
    struct values *v = m->values != NULL ? m->values : m->strand != NULL ? m->strand->values : NULL;
    return v != NULL && v->numbers;
}

static bool
encode_kept_number(struct message *m, PyObject *o)
{
    return numbers_kept(m) && encode_kept(m, o);
}

static int
encode_long(struct message *m, PyObject *o)
{
    int overflow;
    long long v = PyLong_AsLongLongAndOverflow(o, &overflow);
    if (!overflow && v >= INT8_MIN && v <= INT8_MAX) {
        write_tag(m, TAG_BYTE);
        write_u8(&m->w, (uint8_t)v);
        return 0;
    }
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
    write_size(&m->w, n);
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

#define RUN_MOST 1024

/* Numbers that have a number of their own as arguments of a request under way have to be told
 * apart. */
Py_ssize_t
encode_run(struct message *m, PyObject *const *items, Py_ssize_t most)
{
    if (most < RUN_LEAST || !(PyLong_CheckExact(items[0]) || PyFloat_CheckExact(items[0])) ||
        numbers_kept(m)) {
        return 0;
    }
    most = most < RUN_MOST ? most : RUN_MOST;
    uint64_t count;
    const size_t head = 2 + sizeof count;
    unsigned char *to = writer_reserve(&m->w, head + 8 * (size_t)most);
    if (to == NULL) {
        return 0; /* which message_check() says */
    }
    Py_ssize_t n = run_pack(items, most, to + head, &to[1]);
    if (n < RUN_LEAST) {
        return 0;
    }
    count = (uint64_t)n;
    to[0] = TAG_RUN;
    memcpy(to + 2, &count, sizeof count);
    m->w.size += head + (size_t)n * run_width(to[1]);
    return n;
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
        if (encode_blob(m, PyUnicode_1BYTE_DATA(o), (size_t)PyUnicode_GET_LENGTH(o), o, false) <
            0) {
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
    if (encode_blob(m, PyBytes_AS_STRING(o), (size_t)PyBytes_GET_SIZE(o), o, false) < 0) {
        return -1;
    }
    return m->result || PyBytes_GET_SIZE(o) < 2 ? 0 : keep(m, at, o);
}

static int
encode_proxy(struct message *m, struct proxy *p)
{
    if (p->of != NULL && view_resolve(p) < 0) {
        return -1;
    }
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
    peer_raise_stale(m->peer, p->object, false);
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

/* How instances of `type` cross: registered to go by value, by the type itself, by its name
 * (nothing is imported to register it), or, for members of an Enum, by its metaclass; or, of a
 * library whose name with a dot is registered, in parts. */
enum crossing
crossing_of(PyTypeObject *type)
{
    PyObject *types = core_get()->value_types;
    PyObject *known = PyDict_GetItemWithError(types, (PyObject *)type);
    if (known != NULL || PyErr_Occurred()) {
        PyErr_Clear();
        return known == Py_True ? BY_VALUE : known == Py_Ellipsis ? IN_PARTS : BY_REFERENCE;
    }
    PyObject *module = PyObject_GetAttr((PyObject *)type, core_get()->str___module__);
    PyObject *qualname =
        module == NULL ? NULL : PyObject_GetAttr((PyObject *)type, core_get()->str___qualname__);
    PyObject *name = qualname == NULL ? NULL : PyUnicode_FromFormat("%S.%S", module, qualname);
    enum crossing crossing = BY_REFERENCE;
    if (name != NULL && PyDict_Contains(types, name) > 0) {
        crossing = BY_VALUE;
    }
    else if (name != NULL && Py_TYPE(type) != &PyType_Type) {
        crossing = crossing_of(Py_TYPE(type)) == BY_VALUE ? BY_VALUE : BY_REFERENCE;
    }
    if (crossing == BY_REFERENCE && name != NULL) {
        Py_ssize_t dot = PyUnicode_FindChar(name, '.', 0, PyUnicode_GET_LENGTH(name), 1);
        PyObject *root = PyUnicode_Substring(name, 0, dot < 0 ? 0 : dot + 1);
        bool library = root != NULL && PyDict_Contains(types, root) > 0;
        crossing = library && has_parts(type) ? IN_PARTS : BY_REFERENCE;
        Py_XDECREF(root);
    }
    PyErr_Clear();
    Py_XDECREF(module);
    Py_XDECREF(qualname);
    Py_XDECREF(name);
    /* What is none is remembered only of types that stay: the table holds them. */
    if (crossing != BY_REFERENCE || !(type->tp_flags & Py_TPFLAGS_HEAPTYPE)) {
        PyObject *said = crossing == BY_VALUE   ? Py_True
                         : crossing == IN_PARTS ? Py_Ellipsis
                                                : Py_False;
        if (PyDict_SetItem(types, (PyObject *)type, said) < 0) {
            PyErr_Clear();
        }
    }
    return crossing;
}

/* An array that is not written back is an immutable value as far as the other side goes. */
static int
keep_unpaired(struct message *m, size_t at, PyObject *o)
{
    return m->result || pair_find(m->strand, o) != NULL ? 0 : keep(m, at, o);
}

/* p: o's, if it is a proxy. */
static APART int
encode_compound(struct message *m, PyObject *o, struct proxy *p, bool owned)
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
    /* None of what follows is one, but to see that takes long after work on a big array, which has
     * put all else out of the caches. */
    if (is_ndarray(m->peer, o)) {
        if (encode_kept(m, o)) {
            return 0;
        }
        if (encode_ndarray(m, o, owned, &done) < 0 || done) {
            return PyErr_Occurred() ? -1 : keep_unpaired(m, at, o);
        }
        return encode_reference(m, o);
    }
    if (encode_container(m, o, owned, &done) < 0 || done) {
        return done && !PyErr_Occurred() ? 0 : -1;
    }
    if (Py_IS_TYPE(o, core_get()->future_type)) {
        return future_encode(m, o);
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
    if (Py_IS_TYPE(o, core_get()->contents_type)) {
        return contents_encode(m, o);
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
    if (m->taking_apart && PyPickleBuffer_Check(o)) {
        return encode_pickle_buffer(m, o);
    }
    else if (is_numpy_value(m->peer, o)) {
        if (encode_numpy_value(m, o, &done) < 0 || done) {
            return PyErr_Occurred() ? -1 : m->result ? 0 : keep(m, at, o);
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
        enum crossing crossing = crossing_of(Py_TYPE(o));
        PyObject *module, *qualname;
        if (crossing == IN_PARTS && encode_parts(m, o, owned, &done) < 0) {
            return -1;
        }
        if (crossing == BY_VALUE && is_named(m->peer, (PyObject *)Py_TYPE(o), &module, &qualname)) {
            Py_DECREF(module);
            Py_DECREF(qualname);
            if (encode_reduced(m, o, &done) < 0) {
                return -1;
            }
        }
        if (crossing != BY_REFERENCE) {
            if (done) {
                return crossing == BY_VALUE && !m->result ? keep(m, at, o)
                       : crossing == BY_VALUE             ? 0
                                                          : keep_unpaired(m, at, o);
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
    struct proxy *p = proxy_find(o);
    if (p != NULL && p->peer == m->peer && !(m->flags & FRAME_ERROR)) {
        return encode_proxy(m, p);
    }
    if (recursion_enter(" while passing an object to another process", STACK_OBJECT) < 0) {
        return -1;
    }
    int rc = encode_compound(m, o, p, owned);
    recursion_leave();
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
    write_size(&m->w, (uint64_t)nargs);
    write_size(&m->w, (uint64_t)nkw);
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
