/* naming.c: names in frames, and objects that both sides find by module and qualified name. */
#include "codec.h"

#include <string.h>

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

/* function, generator ...: in builtins by name only; `types` has those one can speak of. New
 * reference, or NULL without an exception. */
static PyObject *
builtins_class(PyObject *qualname)
{
    PyObject *types = PyImport_ImportModule("types"), *found = NULL;
    PyObject *dict = types == NULL ? NULL : PyModule_GetDict(types), *key, *value;
    Py_ssize_t i = 0;
    while (dict != NULL && found == NULL && PyDict_Next(dict, &i, &key, &value)) {
        if (PyType_Check(value)) {
            PyObject *name = PyType_GetName((PyTypeObject *)value);
            if (name != NULL && PyUnicode_Compare(name, qualname) == 0) {
                found = Py_NewRef(value);
            }
            Py_XDECREF(name);
        }
    }
    Py_XDECREF(types);
    PyErr_Clear();
    return found;
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

bool
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

/* ---- names in frames ------------------------------------------------------------------------ */

/* Names that most requests mention have a number, their place in names.def: the other side need not
 * look them up, and a request that mentions one is short (see write_size()). */
static const struct {
    size_t at; /* where the core has it */
    const char *text;
} numbered[] = {
#define NAME(n)
#define DUNDER(n) {offsetof(core_state, str___##n##__), "__" #n "__"},
#include "names.def"
#undef NAME
#undef DUNDER
};
#define NUMBERED (sizeof numbered / sizeof *numbered)
_Static_assert(NUMBERED <= 256, "the number of a name is one byte");

static PyObject *
numbered_name(core_state *core, size_t number)
{
    return *(PyObject **)((char *)core + numbered[number].at);
}

int
number_names(core_state *core)
{
    for (size_t i = 0; i < NUMBERED; i++) {
        if (!table_put(&core->name_numbers, ADDRESS(numbered_name(core, i)),
                       (void *)(uintptr_t)(i + 1))) {
            PyErr_NoMemory();
            return -1;
        }
    }
    return 0;
}

/* The number of the name that is next, which is read then; -1 where none is. */
static int
read_number(struct reader *r)
{
    if (r->failed || reader_left(r) < 2 || r->at[0] != SIZE_NAME || r->at[1] >= NUMBERED) {
        return -1;
    }
    read_u8(r);
    return read_u8(r);
}

const char *
read_name_number(struct reader *r)
{
    int number = read_number(r);
    return number < 0 ? NULL : numbered[number].text;
}

int
encode_name(struct message *m, PyObject *name)
{
    Py_ssize_t size;
    if (PyUnicode_CheckExact(name) && PyUnicode_IS_COMPACT_ASCII(name) &&
        PyUnicode_GET_LENGTH(name) > 4 && PyUnicode_1BYTE_DATA(name)[0] == '_') {
        uintptr_t number = (uintptr_t)table_get(&core_get()->name_numbers, ADDRESS(name));
        if (number != 0) {
            write_u8(&m->w, SIZE_NAME);
            write_u8(&m->w, (uint8_t)(number - 1));
            return 0;
        }
    }
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

#define HASHED 32 /* bytes of a name or text; of longer names the first */

/* FNV-1a. */
static size_t
hash_of(const char *text, size_t size)
{
    uint64_t hash = 0xcbf29ce484222325 ^ size;
    for (size_t i = 0; i < size && i < HASHED; i++) {
        hash = (hash ^ (unsigned char)text[i]) * 0x100000001b3;
    }
    return hash;
}

PyObject *
decode_name(struct incoming *in)
{
    size_t size;
    int number = read_number(&in->r);
    if (number >= 0) {
        return Py_NewRef(numbered_name(core_get(), (size_t)number));
    }
    const char *text = (const char *)read_bytes(&in->r, &size);
    if (in->r.failed) {
        garbled("name");
        return NULL;
    }
    /* The same few names come all the time: they are found without making a string. */
    PyObject **recent = &core_get()->recent_names[hash_of(text, size) % RECENT_NAMES];
    PyObject *name = *recent;
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

#define RECENT_VALUES 8 /* of a request are looked at: more of them are data */

/* A text that comes again and again, such as a key, is the object that it was last time, with its
 * Python hash. Only where nothing else refers to that: it cannot be told from a new one then. And
 * only while it says what it said when it was made: code in C may have written into it. */
PyObject *
argument_text(const struct values *values, const char *text, size_t size)
{
    if (size > HASHED || values->n >= RECENT_VALUES) {
        return PyUnicode_DecodeASCII(text, (Py_ssize_t)size, "replace");
    }
    size_t hash = hash_of(text, size);
    struct recent_text *recent = &core_get()->recent_texts[hash % RECENT_TEXTS];
    PyObject *o = recent->text;
    if (o != NULL && recent->hash == hash && Py_REFCNT(o) == 1 && !PyUnicode_CHECK_INTERNED(o) &&
        (size_t)PyUnicode_GET_LENGTH(o) == size &&
        memcmp(PyUnicode_1BYTE_DATA(o), text, size) == 0) {
        return Py_NewRef(o);
    }
    o = PyUnicode_DecodeASCII(text, (Py_ssize_t)size, "replace");
    if (o != NULL && PyUnicode_IS_COMPACT_ASCII(o)) {
        recent->hash = hash;
        Py_XSETREF(recent->text, Py_NewRef(o));
    }
    return o;
}
