/* dtypes.c: what NumPy has besides arrays that is a value: dtypes, scalars and ufuncs. A dtype is
 * said by a short text where it is one of the built-in ones, which are one object in each process;
 * any other by pickle. */
#include "codec.h"

#include <string.h>

#define DTYPES_MOST 64

/* The built-in dtypes have a short name each, by which the other side finds its own; to ask NumPy
 * for one takes longer than all else. By address: two of them may be equal (long and long long),
 * and they never go. Borrowed, or NULL. */
static PyObject *
known_text(PyObject *dtype)
{
    return table_get(&core_get()->dtype_texts, ADDRESS(dtype));
}

/* Of a built-in one. 0, or -1. */
static int
remember_text(PyObject *dtype, PyObject *text)
{
    if (known_text(dtype) == NULL) {
        if (!table_put(&core_get()->dtype_texts, ADDRESS(dtype), text)) {
            PyErr_NoMemory();
            return -1;
        }
        Py_INCREF(dtype);
        Py_INCREF(text);
    }
    return 0;
}

/* Where the dtype of a text of one character belongs; or NULL. */
static PyObject **
place_by_char(PyObject *text)
{
    return PyUnicode_IS_COMPACT_ASCII(text) && PyUnicode_GET_LENGTH(text) == 1
               ? &core_get()->dtype_of_char[PyUnicode_1BYTE_DATA(text)[0]]
               : NULL;
}

/* Borrowed, or NULL without an exception. */
static PyObject *
known_dtype(PyObject *text)
{
    PyObject **place = place_by_char(text);
    if (place != NULL) {
        return *place;
    }
    PyObject *by_text = core_get()->dtype_of_text;
    PyObject *found = by_text == NULL ? NULL : PyDict_GetItemWithError(by_text, text);
    if (found == NULL) {
        PyErr_Clear();
    }
    return found;
}

/* There are some two dozen, more only where a hostile child invents names. 0, or -1. */
static int
remember_dtype(PyObject *text, PyObject *dtype)
{
    PyObject **place = place_by_char(text);
    if (place != NULL) {
        PyObject *before = *place;
        *place = Py_NewRef(dtype);
        Py_XDECREF(before);
        return 0;
    }
    core_state *core = core_get();
    if (core->dtype_of_text == NULL && (core->dtype_of_text = PyDict_New()) == NULL) {
        return -1;
    }
    return PyDict_GET_SIZE(core->dtype_of_text) < DTYPES_MOST
               ? PyDict_SetItem(core->dtype_of_text, text, dtype)
               : 0;
}

static bool
is_builtin(PyObject *dtype)
{
    PyObject *answer = PyObject_GetAttrString(dtype, "isbuiltin");
    long builtin = answer == NULL ? -1 : PyLong_AsLong(answer);
    Py_XDECREF(answer);
    PyErr_Clear();
    return builtin == 1;
}

/* 1, 0, or -1 with an exception. */
static int
has_objects(PyObject *dtype)
{
    PyObject *answer = PyObject_GetAttrString(dtype, "hasobject");
    int objects = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return objects;
}

/* FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/. */
static uint64_t
sum_of(const char *data, Py_ssize_t size)
{
    uint64_t sum = 0xcbf29ce484222325u;
    for (Py_ssize_t i = 0; i < size; i++) {
        sum = (sum ^ (unsigned char)data[i]) * 0x100000001b3u;
    }
    return sum;
}

/* Of values alone: a pickle and a sum of it, since a garbled pickle may ask for all memory. */
static PyObject *
pickled(PyObject *o)
{
    PyObject *module = PyImport_ImportModule("ipython_isolation.libraries");
    PyObject *pickle = module == NULL ? NULL : PyObject_CallMethod(module, "dumps", "O", o);
    PyObject *bytes = NULL;
    if (pickle != NULL && PyBytes_Check(pickle)) {
        uint64_t sum = sum_of(PyBytes_AS_STRING(pickle), PyBytes_GET_SIZE(pickle));
        bytes = PyBytes_FromStringAndSize((const char *)&sum, sizeof sum);
        if (bytes != NULL) {
            PyBytes_Concat(&bytes, pickle);
        }
    }
    Py_XDECREF(module);
    Py_XDECREF(pickle);
    return bytes;
}

/* NULL, perhaps without an exception. */
static PyObject *
unpickled(PyObject *bytes)
{
    uint64_t sum;
    const char *data = PyBytes_AS_STRING(bytes);
    Py_ssize_t size = PyBytes_GET_SIZE(bytes) - (Py_ssize_t)sizeof sum;
    if (size < 0) {
        return NULL;
    }
    memcpy(&sum, data, sizeof sum);
    if (sum != sum_of(data + sizeof sum, size)) {
        return NULL;
    }
    PyObject *module = PyImport_ImportModule("ipython_isolation.libraries");
    PyObject *o =
        module == NULL ? NULL : PyObject_CallMethod(module, "loads", "y#", data + sizeof sum, size);
    Py_XDECREF(module);
    return o;
}

PyObject *
dtype_text(PyObject *dtype, bool *objects)
{
    PyObject *text = Py_XNewRef(known_text(dtype));
    int any = text != NULL ? 0 : has_objects(dtype);
    *objects = any > 0;
    if (text != NULL || any != 0) {
        return text;
    }
    if (!is_builtin(dtype)) {
        return pickled(dtype);
    }
    text = PyObject_GetAttr(dtype, core_get()->str_char);
    if (text != NULL && remember_text(dtype, text) < 0) {
        Py_CLEAR(text);
    }
    return text;
}

/* What a text or a pickle says. NULL, perhaps without an exception. */
static PyObject *
any_dtype(PyObject *said)
{
    PyObject *numpy = PyImport_ImportModule("numpy");
    PyObject *cls = numpy == NULL ? NULL : numpy_name(NUMPY_DTYPE), *dtype = NULL;
    if (cls != NULL) {
        dtype = PyBytes_Check(said) ? unpickled(said) : PyObject_CallOneArg(cls, said);
    }
    if (dtype != NULL && !PyObject_TypeCheck(dtype, (PyTypeObject *)cls)) {
        Py_CLEAR(dtype);
    }
    Py_XDECREF(numpy);
    return dtype;
}

PyObject *
dtype_of_text(PyObject *text)
{
    PyObject *dtype = PyUnicode_CheckExact(text) ? Py_XNewRef(known_dtype(text)) : NULL;
    if (dtype != NULL) {
        return dtype;
    }
    dtype = any_dtype(text);
    /* Bytes from a frame must never become pointers. */
    if (dtype == NULL || has_objects(dtype) != 0 ||
        (PyUnicode_CheckExact(text) && is_builtin(dtype) && remember_dtype(text, dtype) < 0)) {
        Py_CLEAR(dtype);
    }
    return dtype;
}

PyObject *
decode_array_dtype(struct incoming *in)
{
    struct reader ahead = in->r;
    if (read_u8(&ahead) == TAG_ASCII) {
        size_t size;
        const unsigned char *text = read_bytes(&ahead, &size);
        PyObject *dtype = size == 1 && text[0] < 128 ? core_get()->dtype_of_char[text[0]] : NULL;
        if (dtype != NULL) {
            in->r = ahead;
            return Py_NewRef(dtype);
        }
    }
    PyObject *text = decode(in), *dtype = text == NULL ? NULL : dtype_of_text(text);
    Py_XDECREF(text);
    return dtype;
}

PyObject *
numpy_name(enum numpy_name which)
{
    static const char *const names[] = {"ndarray", "dtype", "generic", "ufunc"};
    PyObject **cached = &core_get()->numpy_names[which];
    if (*cached == NULL) {
        PyObject *name = PyUnicode_FromString("numpy");
        PyObject *module = name == NULL ? NULL : PyImport_GetModule(name);
        *cached = module == NULL ? NULL : PyObject_GetAttrString(module, names[which]);
        Py_XDECREF(name);
        Py_XDECREF(module);
        PyErr_Clear();
    }
    return *cached;
}

static bool
is_a(PyObject *o, enum numpy_name which)
{
    PyObject *cls = numpy_name(which);
    return cls != NULL && PyType_Check(cls) && PyObject_TypeCheck(o, (PyTypeObject *)cls);
}

bool
is_numpy_value_class(PyTypeObject *cls)
{
    static const enum numpy_name bases[] = {NUMPY_GENERIC, NUMPY_DTYPE, NUMPY_NDARRAY};
    bool found = false;
    for (size_t i = 0; !found && i < 3 && strncmp(cls->tp_name, "numpy.", 6) == 0; i++) {
        PyObject *base = numpy_name(bases[i]);
        found = base != NULL && PyType_Check(base) && PyType_IsSubtype(cls, (PyTypeObject *)base);
    }
    return found;
}

bool
is_numpy_value(PeerObject *peer, PyObject *o)
{
    /* Its own classes alone: others derive from them, and have more. */
    return strncmp(Py_TYPE(o)->tp_name, "numpy.", 6) == 0 &&
           (is_a(o, NUMPY_GENERIC) || is_a(o, NUMPY_DTYPE) || is_a(o, NUMPY_UFUNC)) &&
           !module_isolated(peer, core_get()->str_numpy);
}

/* ---- scalars ------------------------------------------------------------------------------ */

enum scalar_kind { SCALAR_REFERENCE, SCALAR_BYTES, SCALAR_VALUE };

/* By the text of its dtype. Records may be a part of an array that changes, and objects are what
 * they are; strings are sent as such, since NumPy takes any bytes for code points. */
static enum scalar_kind
kind_of(PyObject *text)
{
    const char *chars = PyUnicode_AsUTF8(text);
    if (chars == NULL || chars[0] == '\0') {
        PyErr_Clear();
        return SCALAR_REFERENCE;
    }
    if (chars[1] == '\0') {
        return strchr("?bhilqBHILQefdgFDG", chars[0]) != NULL ? SCALAR_BYTES
               : strchr("SU", chars[0]) != NULL               ? SCALAR_VALUE
                                                              : SCALAR_REFERENCE;
    }
    return strchr("iufcmM", chars[1]) != NULL ? SCALAR_BYTES
           : strchr("SU", chars[1]) != NULL   ? SCALAR_VALUE
                                              : SCALAR_REFERENCE;
}

static int
encode_scalar(struct message *m, PyObject *o, bool *done)
{
    core_state *core = core_get();
    PyObject *dtype = PyObject_GetAttr(o, core->str_dtype), *value = NULL;
    PyObject *text = dtype == NULL ? NULL : Py_XNewRef(known_text(dtype));
    int rc = -1;
    if (dtype != NULL && text == NULL) {
        text = PyObject_GetAttr(dtype, is_builtin(dtype) ? core->str_char : core->str_str);
        if (text != NULL && !PyUnicode_Check(text)) {
            Py_CLEAR(text);
            PyErr_SetString(PyExc_TypeError, "a dtype's name is no text");
        }
        if (text != NULL && PyUnicode_GET_LENGTH(text) == 1 && kind_of(text) == SCALAR_BYTES &&
            remember_text(dtype, text) < 0) {
            Py_CLEAR(text);
        }
    }
    if (text == NULL) {
        goto done;
    }
    enum scalar_kind kind = kind_of(text);
    if (kind == SCALAR_REFERENCE) {
        rc = 0;
        goto done;
    }
    value = kind == SCALAR_BYTES ? PyObject_CallMethodNoArgs(o, core->str_tobytes)
            : PyUnicode_Check(o) ? PyUnicode_FromObject(o)
                                 : PyBytes_FromObject(o);
    if (value == NULL || (kind == SCALAR_BYTES && !PyBytes_Check(value))) {
        goto done;
    }
    *done = true;
    write_u8(&m->w, TAG_SCALAR);
    rc = encode_name(m, text);
    if (rc == 0 && kind == SCALAR_BYTES) {
        write_bytes(&m->w, PyBytes_AS_STRING(value), (size_t)PyBytes_GET_SIZE(value));
        rc = message_check(m);
    }
    else if (rc == 0) {
        rc = encode(m, value, true);
    }
done:
    Py_XDECREF(dtype);
    Py_XDECREF(text);
    Py_XDECREF(value);
    return rc;
}

/* NumPy's own way to make a scalar of its bytes, which its pickles name. Borrowed. */
static PyObject *
scalar_function(void)
{
    PyObject **function = &core_get()->numpy_scalar;
    if (*function == NULL) {
        PyObject *module = PyImport_ImportModule("numpy._core.multiarray");
        if (module == NULL) {
            PyErr_Clear();
            module = PyImport_ImportModule("numpy.core.multiarray");
        }
        *function = module == NULL ? NULL : PyObject_GetAttrString(module, "scalar");
        Py_XDECREF(module);
    }
    return *function;
}

PyObject *
decode_scalar(struct incoming *in)
{
    PyObject *text = decode_name(in);
    PyObject *dtype = text == NULL ? NULL : dtype_of_text(text);
    PyObject *value = NULL, *maker = NULL, *scalar = NULL;
    size_t size;
    if (dtype == NULL) {
        goto done;
    }
    enum scalar_kind kind = kind_of(text);
    if (kind == SCALAR_BYTES) {
        const unsigned char *data = read_bytes(&in->r, &size);
        value =
            in->r.failed ? NULL : PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
        maker = value == NULL ? NULL : Py_XNewRef(scalar_function());
        scalar = maker == NULL ? NULL : PyObject_CallFunctionObjArgs(maker, dtype, value, NULL);
    }
    else if (kind == SCALAR_VALUE) {
        value = decode(in);
        if (value != NULL && (PyUnicode_CheckExact(value) || PyBytes_CheckExact(value))) {
            maker = PyObject_GetAttrString(dtype, "type");
            scalar = maker == NULL ? NULL : PyObject_CallOneArg(maker, value);
        }
    }
done:
    Py_XDECREF(text);
    Py_XDECREF(dtype);
    Py_XDECREF(value);
    Py_XDECREF(maker);
    if (scalar == NULL && !PyErr_Occurred()) {
        garbled("scalar");
    }
    return scalar;
}

/* ---- dtypes and ufuncs --------------------------------------------------------------------- */

static int
encode_dtype(struct message *m, PyObject *o, bool *done)
{
    PyObject *cls = PyObject_GetAttrString(o, "type");
    bool numpys = cls != NULL && PyType_Check(cls) &&
                  (strncmp(((PyTypeObject *)cls)->tp_name, "numpy.", 6) == 0 ||
                   !(((PyTypeObject *)cls)->tp_flags & Py_TPFLAGS_HEAPTYPE));
    Py_XDECREF(cls);
    PyErr_Clear();
    if (!numpys) {
        return 0; /* that of another library, which may not be there */
    }
    PyObject *said = is_builtin(o) ? PyObject_GetAttr(o, core_get()->str_char) : NULL;
    if (said == NULL) {
        PyErr_Clear();
        said = pickled(o);
    }
    if (said == NULL) {
        PyErr_Clear();
        return 0; /* it has something in it that cannot be pickled */
    }
    *done = true;
    write_u8(&m->w, TAG_DTYPE);
    int rc = encode(m, said, true);
    Py_DECREF(said);
    return rc;
}

PyObject *
decode_dtype(struct incoming *in)
{
    PyObject *said = decode(in), *dtype = NULL;
    if (said != NULL && (PyUnicode_CheckExact(said) || PyBytes_CheckExact(said))) {
        dtype = any_dtype(said);
    }
    if (dtype == NULL && !PyErr_Occurred()) {
        garbled("dtype");
    }
    Py_XDECREF(said);
    return dtype;
}

/* By its name in NumPy, where that leads to it. */
static int
encode_ufunc(struct message *m, PyObject *o, bool *done)
{
    PyObject *module = PyUnicode_FromString("numpy");
    PyObject *name = module == NULL ? NULL : PyObject_GetAttr(o, core_get()->str___name__);
    PyObject *found =
        name != NULL && PyUnicode_Check(name) ? resolve_name(module, name, false) : NULL;
    int rc = 0;
    PyErr_Clear();
    if (found == o) {
        *done = true;
        write_u8(&m->w, TAG_NAMED);
        rc = encode_name(m, module) < 0 || encode_name(m, name) < 0 ? -1 : message_check(m);
    }
    Py_XDECREF(module);
    Py_XDECREF(name);
    Py_XDECREF(found);
    return rc;
}

int
encode_numpy_value(struct message *m, PyObject *o, bool *done)
{
    return is_a(o, NUMPY_GENERIC) ? encode_scalar(m, o, done)
           : is_a(o, NUMPY_DTYPE) ? encode_dtype(m, o, done)
                                  : encode_ufunc(m, o, done);
}
