/* classes.c: a class of one side, described once to the other, where a real class stands for it:
 * same name, module, documentation, bases in order, and a stub for each name in its own __dict__.
 */
#include "buffers.h"
#include "codec.h"
#include "handles.h"
#include "iteration.h"
#include "peer.h"
#include "proxy.h"

#include <stdlib.h>
#include <string.h>

enum class_tag { CLASS_BACK, CLASS_NAMED, CLASS_KNOWN, CLASS_DEFINED };

/* ---- describing -------------------------------------------------------------------------- */

static bool
is_builtins_type(PyTypeObject *cls)
{
    if (cls->tp_flags & Py_TPFLAGS_HEAPTYPE) {
        return false;
    }
    PyObject *found = PyDict_GetItemString(PyEval_GetBuiltins(), cls->tp_name);
    return found == (PyObject *)cls;
}

/* Classes that both sides have and that a mirrored class may really derive from: their instances'
 * layout is copied (immutable values, exceptions) or empty (object), or they make classes (type).
 */
static bool
is_shared_base(PyTypeObject *cls)
{
    PyTypeObject *bases[] = {&PyBaseObject_Type, &PyType_Type,  &PyLong_Type,  &PyFloat_Type,
                             &PyUnicode_Type,    &PyTuple_Type, &PyBytes_Type, &PyComplex_Type,
                             &PyFrozenSet_Type,  &PyModule_Type};
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        if (cls == bases[i]) {
            return true;
        }
    }
    return is_builtins_type(cls) && PyType_IsSubtype(cls, (PyTypeObject *)PyExc_BaseException);
}

static PyObject *
text_attribute(PyTypeObject *cls, PyObject *name)
{
    PyObject *text = PyObject_GetAttr((PyObject *)cls, name);
    if (text == NULL || !PyUnicode_Check(text)) {
        PyErr_Clear();
        Py_XSETREF(text, PyUnicode_FromString(name == core_get()->str___module__ ? "builtins"
                                                                                 : cls->tp_name));
    }
    return text;
}

/* function, generator ...: in builtins by name only; `types` has those one can speak of. New
 * reference, or NULL without an exception. */
PyObject *
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

static uint32_t
class_flags(PyTypeObject *cls, PyObject *module, PyObject *qualname)
{
    uint32_t flags = 0;
    PyTypeObject *mutable[] = {&PyList_Type, &PyDict_Type, &PySet_Type, &PyByteArray_Type,
                               (PyTypeObject *)core_get()->deque_type};
    PyObject *found = resolve_name(module, qualname, false);
    if (found == (PyObject *)cls && mirror_of(cls) == NULL) { /* else: see is_importable_there */
        flags |= CLASS_IMPORTABLE;
    }
    Py_XDECREF(found);
    if (compat_has_instance_dict(cls)) {
        flags |= CLASS_INSTANCE_DICT;
    }
    /* Many types in C repeat what they would inherit: the function tells, not the descriptor. */
    if (compat_slot_of(compat_type_lookup(cls, core_get()->str___getattribute__)) !=
        (void *)PyObject_GenericGetAttr) {
        flags |= CLASS_OWN_GETATTRIBUTE;
    }
    if (compat_type_lookup(cls, core_get()->str___init__) !=
        compat_type_lookup(&PyBaseObject_Type, core_get()->str___init__)) {
        flags |= CLASS_OWN_INIT;
    }
    if (PyType_SUPPORTS_WEAKREFS(cls)) {
        flags |= CLASS_WEAKREF;
    }
    if (cls->tp_flags & Py_TPFLAGS_IMMUTABLETYPE) {
        flags |= CLASS_IMMUTABLE;
    }
    if (!(cls->tp_flags & Py_TPFLAGS_BASETYPE)) {
        flags |= CLASS_FINAL;
    }
    if (PyType_IsSubtype(cls, (PyTypeObject *)PyExc_BaseException)) {
        flags |= CLASS_EXCEPTION;
    }
    if (PyType_IsSubtype(cls, &PyType_Type)) {
        flags |= CLASS_METACLASS;
        if (cls->tp_new != PyType_Type.tp_new || cls->tp_init != PyType_Type.tp_init) {
            flags |= CLASS_BUSY_META;
        }
    }
    if (cls->tp_flags & Py_TPFLAGS_SEQUENCE) {
        flags |= CLASS_SEQUENCE;
    }
    if (cls->tp_flags & Py_TPFLAGS_MAPPING) {
        flags |= CLASS_MAPPING;
    }
    if (cls->tp_as_buffer != NULL && cls->tp_as_buffer->bf_getbuffer != NULL) {
        flags |= CLASS_BUFFER;
    }
    if (cls->tp_as_mapping != NULL && cls->tp_as_mapping->mp_subscript != NULL &&
        (cls->tp_as_sequence == NULL || cls->tp_as_sequence->sq_item == NULL)) {
        flags |= CLASS_NO_SEQUENCE;
    }
    for (size_t i = 0; i < sizeof mutable / sizeof *mutable; i++) {
        if (mutable[i] != NULL && PyType_IsSubtype(cls, mutable[i])) {
            flags |= CLASS_MUTABLE_BUILTIN;
        }
    }
    return flags;
}

/* An immutable value, which the mirror holds itself: when the name means another, it is told. */
static bool
is_literal(PyObject *value)
{
    if (PyTuple_CheckExact(value)) {
        bool all = PyTuple_GET_SIZE(value) <= 64;
        for (Py_ssize_t i = 0; all && i < PyTuple_GET_SIZE(value); i++) {
            all = !PyTuple_CheckExact(PyTuple_GET_ITEM(value, i)) &&
                  is_literal(PyTuple_GET_ITEM(value, i));
        }
        return all;
    }
    return PyLong_CheckExact(value) || PyFloat_CheckExact(value) || PyComplex_CheckExact(value) ||
           PyBool_Check(value) || value == Py_None || value == Py_Ellipsis ||
           (PyUnicode_CheckExact(value) && PyUnicode_GET_LENGTH(value) <= 1024) ||
           (PyBytes_CheckExact(value) && PyBytes_GET_SIZE(value) <= 1024);
}

/* Annotations that say nothing but names and built-in classes: inspect wants a real dict. */
static bool
is_plain_annotations(PyObject *value)
{
    PyObject *key, *annotation;
    Py_ssize_t i = 0;
    bool plain = PyDict_CheckExact(value);
    while (plain && PyDict_Next(value, &i, &key, &annotation)) {
        plain = is_literal(annotation) ||
                (PyType_Check(annotation) && is_builtins_type((PyTypeObject *)annotation));
    }
    return plain;
}

/* Which stub a name in a class's __dict__ needs; 0: none. */
static char
stub_kind(PyTypeObject *cls, PyObject *name, PyObject *value)
{
    core_state *core = core_get();
    if (is_plain_container(cls)) {
        char kind = name == core->str___iter__                             ? 'i'
                    : name == core->str___len__                            ? 'n'
                    : name == core->str___getitem__ && cls == &PyDict_Type ? 'g'
                                                                           : 0;
        if (kind != 0) {
            return kind;
        }
    }
    PyObject *skipped[] = {core->str___dict__, core->str___weakref__, core->str___getattribute__,
                           core->str___del__,  core->str__abc_impl,   core->str___slotnames__};
    for (size_t i = 0; i < sizeof skipped / sizeof *skipped; i++) {
        if (PyUnicode_Compare(name, skipped[i]) == 0) {
            return 0;
        }
    }
    if (PyUnicode_Compare(name, core->str___abstractmethods__) == 0) {
        return 'l';
    }
    if ((PyUnicode_Compare(name, core->str___doc__) == 0 ||
         PyUnicode_Compare(name, core->str___qualname__) == 0 ||
         PyUnicode_Compare(name, core->str___module__) == 0) &&
        (PyUnicode_Check(value) || value == Py_None)) {
        return 0; /* part of the description */
    }
    PyTypeObject *type = Py_TYPE(value);
    if (is_name(name, core->str___new__)) {
        return type == &PyStaticMethod_Type || type == &PyFunction_Type ? 's' : 0;
    }
    if (PyUnicode_Compare(name, core->str___match_args__) == 0 ||
        (value == Py_None && PyUnicode_GET_LENGTH(name) > 4 &&
         PyUnicode_READ_CHAR(name, 0) == '_' && PyUnicode_READ_CHAR(name, 1) == '_')) {
        return 'l'; /* a literal: `__hash__ = None` says that there is none */
    }
    if (type == &PyStaticMethod_Type) {
        return 's';
    }
    if (type == &PyClassMethod_Type || type == &PyClassMethodDescr_Type) {
        return 'c';
    }
    if (type->tp_descr_set != NULL) {
        return type == &PyProperty_Type      ? 'p'
               : type == &PyMemberDescr_Type ? 'o'
               : type == &PyGetSetDescr_Type ? 'd'
                                             : 'D';
    }
    if (type->tp_descr_get != NULL && PyCallable_Check(value) && !PyType_Check(value)) {
        return type == &PyFunction_Type ? 'f' : 'm';
    }
    return is_literal(value) ||
                   (is_name(name, core->str___annotations__) && is_plain_annotations(value))
               ? 'l'
               : 'v';
}

/* Is it an object of the receiver, such as a function that was put into a class of the other side?
 */
static bool
is_of_receiver(PeerObject *peer, PyObject *value)
{
    struct proxy *p = proxy_find(value);
    return p != NULL && p->peer == peer && p->epoch == peer->epoch;
}

/* What cls was registered with, or what with it (abcs.py), as rows of kind 'r': how many, or -1. */
static Py_ssize_t
encode_registrations(struct message *m, PyTypeObject *cls)
{
    PyObject *abcs = PyImport_ImportModule("ipython_isolation.abcs");
    PyObject *found =
        abcs == NULL ? NULL : PyObject_CallMethod(abcs, "registered", "OO", m->peer, cls);
    Py_ssize_t n = found == NULL || !PyList_Check(found) ? 0 : PyList_GET_SIZE(found), rc = n;
    PyErr_Clear(); /* a metaclass with a mind of its own: isinstance() sees less */
    for (Py_ssize_t i = 0; rc >= 0 && i < n; i++) {
        write_bytes(&m->w, "", 0);
        write_u8(&m->w, 'r');
        write_u8(&m->w, 0);
        if (encode(m, PyList_GET_ITEM(found, i), false) < 0) {
            rc = -1;
        }
    }
    Py_XDECREF(abcs);
    Py_XDECREF(found);
    return rc;
}

/* Registers a mirror as its description says. What this side does not have is left out. */
static void
register_mirror(PyTypeObject *type, PyObject *names)
{
    PyObject *abcs = NULL, *all = PyList_New(0), *none = NULL;
    for (Py_ssize_t i = 0; all != NULL && i < PyList_GET_SIZE(names); i++) {
        PyObject *row = PyList_GET_ITEM(names, i);
        if (PyUnicode_READ_CHAR(PyTuple_GET_ITEM(row, 1), 0) == 'r' &&
            PyList_Append(all, PyTuple_GET_ITEM(row, 3)) < 0) {
            Py_CLEAR(all);
        }
    }
    if (all != NULL && PyList_GET_SIZE(all) > 0 &&
        (abcs = PyImport_ImportModule("ipython_isolation.abcs")) != NULL) {
        none = PyObject_CallMethod(abcs, "register", "OO", type, all);
    }
    Py_XDECREF(none);
    Py_XDECREF(abcs);
    Py_XDECREF(all);
    PyErr_Clear();
}

int
encode_class_name(struct message *m, PyTypeObject *cls, PyObject *name, PyObject *value)
{
    char kind = value == NULL                    ? 0
                : is_of_receiver(m->peer, value) ? 'b'
                                                 : stub_kind(cls, name, value);
    if (kind == 0 && value != NULL && is_literal(value)) {
        kind = 'l'; /* a new __doc__, say, which is part of the description else */
    }
    bool abstract = false, literal = kind == 'l' || kind == 'b';
    if (kind != 0 && strchr("fpcs", kind) != NULL) {
        PyObject *flag = PyObject_GetAttr(value, core_get()->str___isabstractmethod__);
        abstract = flag == Py_True;
        Py_XDECREF(flag);
        PyErr_Clear();
    }
    int rc = encode_name(m, name);
    write_u8(&m->w, (uint8_t)kind);
    write_u8(&m->w, abstract);
    if (rc == 0 && literal) {
        /* A dict of ours alone, so that a real one arrives. */
        PyObject *o =
            kind == 'l' && PyDict_CheckExact(value) ? PyDict_Copy(value) : Py_NewRef(value);
        bool result = m->result;
        m->result = true;
        rc = o == NULL ? -1 : encode(m, o, PyDict_CheckExact(o));
        m->result = result;
        Py_XDECREF(o);
    }
    return rc < 0 ? -1 : message_check(m);
}

static int
encode_class_names(struct message *m, PyTypeObject *cls)
{
    PyObject *dict = compat_type_dict(cls);
    PyObject *items = dict == NULL ? NULL : PyDict_Items(dict);
    int rc = items == NULL ? -1 : 0;
    size_t count_at = m->w.size;
    uint64_t n = 0;
    write_u64(&m->w, 0);
    for (Py_ssize_t i = 0; rc == 0 && i < PyList_GET_SIZE(items); i++) {
        PyObject *name = PyTuple_GET_ITEM(PyList_GET_ITEM(items, i), 0);
        PyObject *value = PyTuple_GET_ITEM(PyList_GET_ITEM(items, i), 1);
        if (PyUnicode_Check(name) && stub_kind(cls, name, value) != 0) {
            n++;
            rc = encode_class_name(m, cls, name, value);
        }
    }
    Py_ssize_t registrations = rc < 0 ? -1 : encode_registrations(m, cls);
    rc = registrations < 0 ? -1 : 0;
    n += registrations < 0 ? 0 : (uint64_t)registrations;
    Py_XDECREF(dict);
    Py_XDECREF(items);
    if (rc == 0 && !m->w.failed) {
        memcpy(m->w.data + count_at, &n, sizeof n);
    }
    return rc < 0 ? -1 : message_check(m);
}

static int
describe(struct message *m, PyTypeObject *cls)
{
    core_state *core = core_get();
    PyObject *module = text_attribute(cls, core->str___module__);
    PyObject *qualname = text_attribute(cls, core->str___qualname__);
    PyObject *doc = NULL, *dict = NULL;
    int rc = -1;
    if (module == NULL || qualname == NULL) {
        goto done;
    }
    write_u32(&m->w, class_flags(cls, module, qualname));
    if (encode_name(m, module) < 0 || encode_name(m, qualname) < 0) {
        goto done;
    }
    write_bytes(&m->w, cls->tp_name, strlen(cls->tp_name)); /* of types in C, with the module */
    doc = PyObject_GetAttr((PyObject *)cls, core->str___doc__);
    PyErr_Clear();
    if (encode(m, doc != NULL && PyUnicode_CheckExact(doc) ? doc : Py_None, false) < 0 ||
        encode_class(m, Py_TYPE(cls), CLASS_AS_META) < 0) {
        goto done;
    }
    PyObject *bases = cls->tp_bases;
    Py_ssize_t nbases = bases == NULL ? 0 : PyTuple_GET_SIZE(bases);
    write_u64(&m->w, (uint64_t)nbases);
    for (Py_ssize_t i = 0; i < nbases; i++) {
        if (encode_class(m, (PyTypeObject *)PyTuple_GET_ITEM(bases, i), CLASS_AS_BASE) < 0) {
            goto done;
        }
    }
    rc = encode_class_names(m, cls);
done:
    Py_XDECREF(module);
    Py_XDECREF(qualname);
    Py_XDECREF(doc);
    Py_XDECREF(dict);
    return rc;
}

static int
encode_named_class(struct message *m, PyTypeObject *cls)
{
    core_state *core = core_get();
    PyObject *module = text_attribute(cls, core->str___module__);
    PyObject *qualname = text_attribute(cls, core->str___qualname__);
    write_u8(&m->w, CLASS_NAMED);
    int rc = module == NULL || qualname == NULL || encode_name(m, module) < 0 ||
                     encode_name(m, qualname) < 0
                 ? -1
                 : 0;
    Py_XDECREF(module);
    Py_XDECREF(qualname);
    return rc;
}

/* Kernel to child: the child imports the same class, so its own stands for it. */
static bool
is_importable_there(struct message *m, PyTypeObject *cls)
{
    core_state *core = core_get();
    if (!m->peer->is_kernel || mirror_of(cls) != NULL) {
        return false; /* imported there, one that derives from an isolated class is another */
    }
    PyObject *module = text_attribute(cls, core->str___module__);
    PyObject *qualname = text_attribute(cls, core->str___qualname__);
    bool importable = false;
    if (module != NULL && qualname != NULL && !is_isolated_name(m->peer, module) &&
        PyUnicode_Compare(module, core->str___main__) != 0) {
        PyObject *loaded = PyImport_GetModule(module);
        PyObject *spec = loaded == NULL ? NULL : PyObject_GetAttr(loaded, core->str___spec__);
        PyObject *found =
            spec != NULL && spec != Py_None ? resolve_name(module, qualname, false) : NULL;
        importable = found == (PyObject *)cls;
        Py_XDECREF(found);
        Py_XDECREF(spec);
        Py_XDECREF(loaded);
        PyErr_Clear();
    }
    Py_XDECREF(module);
    Py_XDECREF(qualname);
    return importable;
}

int
encode_class(struct message *m, PyTypeObject *cls, enum class_use use)
{
    struct mirror *shadow = table_get(&core_get()->mirrors, ADDRESS(cls));
    if (shadow != NULL && shadow->of != NULL) {
        cls = shadow->of;
    }
    struct proxy *p = proxy_find((PyObject *)cls);
    if (p != NULL && p->peer == m->peer) {
        if (p->epoch == m->peer->epoch) {
            write_u8(&m->w, CLASS_BACK);
            write_u64(&m->w, p->handle);
            return message_check(m);
        }
        if (p->module != NULL) {
            write_u8(&m->w, CLASS_NAMED);
            return encode_name(m, p->module) < 0 || encode_name(m, p->qualname) < 0 ? -1 : 0;
        }
        peer_raise_stale(m->peer, (PyObject *)cls);
        return -1;
    }
    if (use == CLASS_AS_BASE ? is_shared_base(cls)
                             : use != CLASS_OF_INSTANCE && is_builtins_type(cls)) {
        return encode_named_class(m, cls);
    }
    if (use == CLASS_AS_META && cls == &PyType_Type) {
        return encode_named_class(m, cls);
    }
    if (use == CLASS_AS_VALUE && is_importable_there(m, cls)) {
        return encode_named_class(m, cls);
    }
    struct export *e;
    if (encode_export(m, (PyObject *)cls, &e) < 0) {
        return -1;
    }
    if (table_get(&m->strand->described, e->handle) != NULL) {
        write_u8(&m->w, CLASS_KNOWN);
        write_u64(&m->w, e->handle);
        return message_check(m);
    }
    /* Before the description: it may refer to the class itself. */
    if (!table_put(&m->strand->described, e->handle, e)) {
        PyErr_NoMemory();
        return -1;
    }
    m->sent[m->nsent - 1].described = true;
    write_u8(&m->w, CLASS_DEFINED);
    write_u64(&m->w, e->handle);
    return describe(m, cls);
}

/* ---- mirroring --------------------------------------------------------------------------- */

struct description {
    uint64_t handle;
    uint32_t flags;
    PyObject *module, *qualname, *doc, *meta; /* strong */
    PyObject *name, *full_name;               /* strong: __name__, tp_name */
    PyObject *bases;                          /* strong: list */
    PyObject *inherited; /* strong: list of names lists of bases that are shared Python classes */
    PyObject *names;     /* strong: list of (name, kind, abstract, literal) */
    bool home;           /* a base has its home here, or derives from one that has */
};

static void
description_free(struct description *d)
{
    Py_CLEAR(d->module);
    Py_CLEAR(d->qualname);
    Py_CLEAR(d->name);
    Py_CLEAR(d->full_name);
    Py_CLEAR(d->doc);
    Py_CLEAR(d->meta);
    Py_CLEAR(d->bases);
    Py_CLEAR(d->inherited);
    Py_CLEAR(d->names);
}

PyObject *
decode_class_name(struct incoming *in)
{
    PyObject *name = decode_name(in);
    char kind = (char)read_u8(&in->r);
    bool abstract = read_u8(&in->r);
    bool literal = kind == 'l' || kind == 'b' || kind == 'r';
    PyObject *value = name == NULL ? NULL : literal ? decode(in) : Py_NewRef(Py_None);
    PyObject *row = value == NULL ? NULL
                                  : Py_BuildValue("(OCiO)", name, (int)(unsigned char)kind,
                                                  (int)abstract, value);
    Py_XDECREF(name);
    Py_XDECREF(value);
    return row;
}

static PyObject *
decode_class_names(struct incoming *in)
{
    uint64_t n = read_count(&in->r, 10);
    PyObject *names = PyList_New(0);
    for (uint64_t i = 0; names != NULL && i < n; i++) {
        PyObject *row = decode_class_name(in);
        if (row == NULL || PyList_Append(names, row) < 0) {
            Py_CLEAR(names);
        }
        Py_XDECREF(row);
    }
    return names;
}

/* A class of this side that can stand for an un-isolated one of the other: loaded already, found by
 * its name. New reference, or NULL without an exception. */
static PyTypeObject *
local_class(PeerObject *peer, PyObject *module, PyObject *qualname)
{
    if (is_isolated_name(peer, module)) {
        return NULL;
    }
    PyObject *found = resolve_name(module, qualname, !peer->is_kernel);
    PyErr_Clear();
    if (found != NULL && !PyType_Check(found)) {
        Py_CLEAR(found);
    }
    return (PyTypeObject *)found;
}

/* May a mirrored class have `cls` itself as a base? Yes when its instances have no C layout of
 * their own: then isinstance() sees it, and the stubs hide its methods. */
static bool
has_no_layout(PyTypeObject *cls)
{
    if (!(cls->tp_flags & Py_TPFLAGS_HEAPTYPE) || PyType_IsSubtype(cls, &PyType_Type)) {
        return false;
    }
    PyTypeObject *base = cls;
    while (base->tp_base != NULL && base->tp_base != &PyBaseObject_Type) {
        base = base->tp_base;
    }
    return PyType_IsSubtype(cls, (PyTypeObject *)PyExc_BaseException) ||
           ((base->tp_flags & Py_TPFLAGS_HEAPTYPE) &&
            cls->tp_basicsize - (cls->tp_dictoffset > 0 ? (Py_ssize_t)sizeof(PyObject *) : 0) -
                    (cls->tp_weaklistoffset > 0 ? (Py_ssize_t)sizeof(PyObject *) : 0) <=
                PyBaseObject_Type.tp_basicsize);
}

/* type.__setattr__ keeps the slots in step with the special methods; but what the metaclass has a
 * data descriptor for (__name__, __doc__ ...: attributes of functions, say) must go around that. */
static int
set_class_attribute(PyTypeObject *type, PyObject *name, PyObject *value)
{
    PyObject *own = compat_type_lookup(Py_TYPE(type), name);
    if (own != NULL && Py_TYPE(own)->tp_descr_set != NULL) {
        PyObject *dict = compat_type_dict(type);
        int rc = dict == NULL ? -1 : PyDict_SetItem(dict, name, value);
        Py_XDECREF(dict);
        PyType_Modified(type);
        return rc;
    }
    return class_setattro_here(type, name, value);
}

static int
add_stubs(PyTypeObject *mirror, PyTypeObject *cls, PyObject *names, PyObject *existing)
{
    core_state *core = core_get();
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names); i++) {
        PyObject *row = PyList_GET_ITEM(names, i), *name = PyTuple_GET_ITEM(row, 0);
        Py_UCS4 kind = PyUnicode_READ_CHAR(PyTuple_GET_ITEM(row, 1), 0);
        bool abstract =
            PyTuple_GET_ITEM(row, 2) != Py_False && PyLong_AsLong(PyTuple_GET_ITEM(row, 2));
        if (kind == 'r') {
            continue;
        }
        if (existing != NULL && PyUnicode_Compare(name, core->str___init_subclass__) == 0) {
            continue; /* that of a shared base runs here, where the class is made */
        }
        if (existing != NULL) {
            int there = PyDict_Contains(existing, name);
            if (there != 0) {
                if (there < 0) {
                    return -1;
                }
                continue;
            }
            if (PyUnicode_Compare(name, core->str___subclasshook__) == 0) {
                continue; /* the base's own answers here as well */
            }
        }
        if (PyUnicode_Compare(name, core->str___abstractmethods__) == 0) {
            continue;
        }
        struct mirror *record = table_get(&core->mirrors, ADDRESS(mirror));
        if (kind == 'o' && record != NULL && record->home) {
            continue; /* a real slot: see mirror_slots() */
        }
        if (is_name(name, core->str___new__) && (record == NULL || !record->home)) {
            continue; /* an instance is made over there, __new__ and all */
        }
        PyObject *value = kind == 'l' || kind == 'b' ? Py_NewRef(PyTuple_GET_ITEM(row, 3))
                                                     : stub_new(cls, name, (char)kind, abstract);
        if (value != NULL && is_stub(value)) {
            ((StubObject *)value)->own = existing == NULL;
        }
        int rc = value == NULL ? -1 : set_class_attribute(mirror, name, value);
        Py_XDECREF(value);
        if (rc < 0) {
            return -1;
        }
    }
    return 0;
}

/* The names of the list that the class does not have yet, or has as something else. Borrowed names
 * in a new list. */
static PyObject *
rows_that_differ(PyObject *dict, PyObject *names)
{
    PyObject *rows = PyList_New(0);
    for (Py_ssize_t i = 0; rows != NULL && i < PyList_GET_SIZE(names); i++) {
        PyObject *row = PyList_GET_ITEM(names, i);
        PyObject *there = PyDict_GetItemWithError(dict, PyTuple_GET_ITEM(row, 0));
        Py_UCS4 kind = PyUnicode_READ_CHAR(PyTuple_GET_ITEM(row, 1), 0);
        bool same =
            there != NULL && (kind == 'l' || kind == 'b'
                                  ? there == PyTuple_GET_ITEM(row, 3)
                                  : is_stub(there) && ((StubObject *)there)->kind == (char)kind);
        if (PyErr_Occurred() || (!same && PyList_Append(rows, row) < 0)) {
            Py_CLEAR(rows);
        }
    }
    return rows;
}

/* The names in the dict that came by a description and are in none any more. New list. */
static PyObject *
names_that_went(PyTypeObject *cls, PyObject *dict, PyObject *names)
{
    PyObject *went = PyList_New(0), *now = PySet_New(NULL), *name, *value;
    Py_ssize_t i = 0;
    for (Py_ssize_t k = 0; now != NULL && k < PyList_GET_SIZE(names); k++) {
        if (PySet_Add(now, PyTuple_GET_ITEM(PyList_GET_ITEM(names, k), 0)) < 0) {
            Py_CLEAR(now);
        }
    }
    while (went != NULL && now != NULL && PyDict_Next(dict, &i, &name, &value)) {
        /* What is no stub and not part of every class is an object of this side, see 'b'. */
        bool described = is_stub(value) ? ((StubObject *)value)->own
                                        : stub_kind(cls, name, value) != 0 &&
                                              !is_name(name, core_get()->str___new__) &&
                                              !Py_IS_TYPE(value, &PyGetSetDescr_Type) &&
                                              !Py_IS_TYPE(value, &PyMemberDescr_Type);
        int kept = described ? PySet_Contains(now, name) : 1;
        if (kept < 0 || (kept == 0 && PyList_Append(went, name) < 0)) {
            Py_CLEAR(went);
        }
    }
    Py_XDECREF(now);
    return went;
}

int
mirror_change(PyTypeObject *type, PyObject *row)
{
    PyObject *name = PyTuple_GET_ITEM(row, 0), *dict = compat_type_dict(type);
    PyObject *there = dict == NULL ? NULL : PyDict_GetItemWithError(dict, name);
    bool gone = PyUnicode_READ_CHAR(PyTuple_GET_ITEM(row, 1), 0) == 0;
    int rc = dict == NULL || PyErr_Occurred() ? -1 : 0;
    if (rc == 0 && table_get(&core_get()->mirrors, ADDRESS(type)) != NULL) {
        building++;
        if (gone) {
            rc = there == NULL ? 0 : class_setattro_here(type, name, NULL);
        }
        else {
            PyObject *names = PyList_New(1);
            if (names != NULL) {
                PyList_SET_ITEM(names, 0, Py_NewRef(row));
            }
            rc = names == NULL ? -1 : add_stubs(type, type, names, NULL);
            Py_XDECREF(names);
        }
        building--;
    }
    Py_XDECREF(dict);
    return rc;
}

/* Gives a mirrored class the names of a new description. 0, or -1. */
static int
mirror_refresh(PyTypeObject *type, PyObject *names)
{
    if (table_get(&core_get()->mirrors, ADDRESS(type)) == NULL) {
        return 0;
    }
    PyObject *dict = compat_type_dict(type);
    PyObject *rows = dict == NULL ? NULL : rows_that_differ(dict, names);
    PyObject *went = rows == NULL ? NULL : names_that_went(type, dict, names);
    int rc = went == NULL ? -1 : 0;
    building++;
    for (Py_ssize_t i = 0; rc == 0 && i < PyList_GET_SIZE(went); i++) {
        rc = class_setattro_here(type, PyList_GET_ITEM(went, i), NULL);
    }
    rc = rc < 0 ? -1 : add_stubs(type, type, rows, NULL);
    building--;
    Py_XDECREF(dict);
    Py_XDECREF(rows);
    Py_XDECREF(went);
    return rc;
}

/* The slots of a class whose instances are proxies (or copies with a home elsewhere). */
static void
patch_slots(PyTypeObject *type, uint32_t flags, bool proxies)
{
    if (!(flags & CLASS_METACLASS)) {
        type->tp_finalize = proxy_finalize;
    }
    if (!(flags & CLASS_METACLASS) || (flags & CLASS_BUSY_META)) {
        type->tp_new = proxy_tp_new;
        if (flags & CLASS_OWN_INIT) {
            type->tp_init = proxy_tp_init; /* else object's: its check of arguments goes by that */
        }
    }
    if (proxies) {
        type->tp_getattro = proxy_getattro;
        type->tp_setattro = proxy_setattro;
        if (flags & CLASS_BUFFER) {
            ((PyHeapTypeObject *)type)->as_buffer.bf_getbuffer = proxy_getbuffer;
            ((PyHeapTypeObject *)type)->as_buffer.bf_releasebuffer = proxy_releasebuffer;
            type->tp_as_buffer = &((PyHeapTypeObject *)type)->as_buffer;
        }
    }
    PyType_Modified(type);
}

static int
set_abstract(PyTypeObject *type, PyObject *names)
{
    core_state *core = core_get();
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names); i++) {
        PyObject *row = PyList_GET_ITEM(names, i);
        if (PyUnicode_Compare(PyTuple_GET_ITEM(row, 0), core->str___abstractmethods__) == 0) {
            return class_setattro_here(type, core->str___abstractmethods__,
                                       PyTuple_GET_ITEM(row, 3));
        }
    }
    return 0;
}

/* Mirrors share ABCMeta but not what was registered with the classes over there. */
static int
add_subclasshook(PyTypeObject *type)
{
    PyObject *dict = compat_type_dict(type), *name = core_get()->str___subclasshook__;
    int there = dict == NULL ? -1 : PyDict_Contains(dict, name);
    Py_XDECREF(dict);
    if (there != 0) {
        return there < 0 ? -1 : 0;
    }
    PyObject *stub = stub_new(type, name, 'a', false);
    int rc = stub == NULL ? -1 : class_setattro_here(type, name, stub);
    Py_XDECREF(stub);
    return rc;
}

/* Methods of other bases (a frozenset's __reduce__) that would answer for the proxy. */
static int
add_object_stubs(PyTypeObject *type, uint32_t flags)
{
    core_state *core = core_get();
    PyObject *names[] = {core->str___reduce_ex__, core->str___dir__, core->str___sizeof__,
                         core->str___reduce__, core->str___getstate__};
    (void)flags;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        PyObject *found = compat_type_lookup(type, names[i]);
        if (found == NULL || Py_TYPE(found) == core->method_type || is_object_method(found)) {
            continue; /* object's: see object_methods.c */
        }
        PyObject *stub = stub_new(type, names[i], 'm', false);
        int rc = stub == NULL ? -1 : class_setattro_here(type, names[i], stub);
        Py_XDECREF(stub);
        if (rc < 0) {
            return -1;
        }
    }
    return 0;
}

static struct mirror *
mirror_add(PeerObject *peer, PyTypeObject *type, uint32_t flags, bool proxies)
{
    struct mirror *mirror = calloc(1, sizeof *mirror);
    if (mirror == NULL || !table_put(&core_get()->mirrors, ADDRESS(type), mirror)) {
        free(mirror);
        PyErr_NoMemory();
        return NULL;
    }
    mirror->type = type;
    mirror->peer = peer;
    mirror->flags = flags;
    mirror->proxies = proxies;
    mirror->home = false;
    return mirror;
}

/* What instance.__class__ says: the real local class of an un-isolated target. */
static PyObject *
reported_class(PeerObject *peer, struct description *d)
{
    return (PyObject *)local_class(peer, d->module, d->qualname);
}

/* For a class that derives from list, dict, set, bytearray or deque: a class that isinstance()
 * finds to be both. It has no instances; calling it makes an instance of the mirrored class. */
static PyObject *
facade_class(PeerObject *peer, PyTypeObject *type, struct description *d)
{
    (void)peer;
    PyTypeObject *real[] = {&PyList_Type, &PyDict_Type, &PySet_Type, &PyByteArray_Type,
                            (PyTypeObject *)core_get()->deque_type};
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(type->tp_mro); i++) {
        struct mirror *base =
            table_get(&core_get()->mirrors, ADDRESS(PyTuple_GET_ITEM(type->tp_mro, i)));
        for (size_t k = 0; base != NULL && k < sizeof real / sizeof *real; k++) {
            if (real[k] != NULL && base->reported == (PyObject *)real[k]) {
                PyObject *facade = PyObject_CallFunction((PyObject *)Py_TYPE(type), "O(OO){sOsO}",
                                                         d->name, type, real[k], "__module__",
                                                         d->module, "__qualname__", d->qualname);
                PyErr_Clear(); /* a metaclass may refuse: then isinstance() sees less */
                if (facade != NULL) {
                    ((PyTypeObject *)facade)->tp_new = proxy_tp_new;
                    ((PyTypeObject *)facade)->tp_init = proxy_tp_init;
                }
                return facade;
            }
        }
    }
    return NULL;
}

static PyObject *
silent_hook(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    Py_RETURN_NONE;
}

static PyMethodDef silent_hook_def = {"__init_subclass__", (PyCFunction)(void (*)(void))silent_hook,
                                      METH_VARARGS | METH_KEYWORDS, NULL};

/* The bases with a class in front whose __init_subclass__ does nothing: the hooks of real bases
 * have been called where the class was made. It adds nothing to the layout, so that it can be taken
 * away again. New reference. */
static PyObject *
silenced(PyObject *bases)
{
    PyObject *function = PyCFunction_New(&silent_hook_def, NULL);
    PyObject *silencer =
        function == NULL
            ? NULL
            : PyObject_CallFunction((PyObject *)&PyType_Type, "s(O){sOs()}", "silencer",
                                    &PyBaseObject_Type, "__init_subclass__", function, "__slots__");
    PyObject *front = silencer == NULL ? NULL : PyTuple_Pack(1, silencer);
    PyObject *all = front == NULL ? NULL : PySequence_Concat(front, bases);
    Py_XDECREF(function);
    Py_XDECREF(silencer);
    Py_XDECREF(front);
    return all;
}

/* Does a base of this side have an __init_subclass__ that would run for the mirror too? */
static bool
has_hooks(PyObject *bases)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(bases); i++) {
        PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(bases, i);
        PyObject *name = core_get()->str___init_subclass__;
        PyObject *hook = compat_type_lookup(base, name);
        if (hook != compat_type_lookup(&PyBaseObject_Type, name) &&
            Py_TYPE(hook) != core_get()->value_type) {
            return true;
        }
    }
    return false;
}

static bool
any_base(PyObject *bases, bool (*has)(PyTypeObject *))
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(bases); i++) {
        if (has((PyTypeObject *)PyTuple_GET_ITEM(bases, i))) {
            return true;
        }
    }
    return false;
}

static bool
supports_weakrefs(PyTypeObject *type)
{
    return PyType_SUPPORTS_WEAKREFS(type);
}

/* The __slots__ that give the mirror's instances a __dict__ and weak references if, and only if,
 * the target's have them: then a class that derives from it may say __slots__ as it might there.
 * For an instance that is real here, its own slots too. NULL without an exception: as by default.
 */
static PyObject *
mirror_slots(struct description *d, PyObject *bases)
{
    if (d->flags & (CLASS_EXCEPTION | CLASS_METACLASS)) {
        return NULL;
    }
    bool dict = (d->flags & CLASS_INSTANCE_DICT) && !any_base(bases, compat_has_instance_dict);
    bool weak = (d->flags & CLASS_WEAKREF) && !any_base(bases, supports_weakrefs);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(bases); i++) {
        if (((PyTypeObject *)PyTuple_GET_ITEM(bases, i))->tp_itemsize != 0 && (dict || weak)) {
            return NULL; /* int, tuple ...: CPython allows no __slots__ there but an empty one */
        }
    }
    PyObject *names = PyList_New(0), *slots = NULL;
    if (names == NULL || (dict && PyList_Append(names, core_get()->str___dict__) < 0) ||
        (weak && PyList_Append(names, core_get()->str___weakref__) < 0)) {
        goto done;
    }
    for (Py_ssize_t i = 0; d->home && i < PyList_GET_SIZE(d->names); i++) {
        PyObject *row = PyList_GET_ITEM(d->names, i);
        if (PyUnicode_READ_CHAR(PyTuple_GET_ITEM(row, 1), 0) == 'o' &&
            PyList_Append(names, PyTuple_GET_ITEM(row, 0)) < 0) {
            goto done;
        }
    }
    slots = PyList_AsTuple(names);
done:
    Py_XDECREF(names);
    return slots;
}

/* Types in C may derive from one that Python code cannot derive from; so may their mirrors. */
static void
allow_deriving(PyObject *bases, bool allow)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(bases); i++) {
        PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(bases, i);
        struct mirror *mirror = table_get(&core_get()->mirrors, ADDRESS(base));
        if (mirror != NULL && mirror->proxies && (mirror->flags & CLASS_FINAL)) {
            base->tp_flags = allow ? base->tp_flags | Py_TPFLAGS_BASETYPE
                                   : base->tp_flags & ~Py_TPFLAGS_BASETYPE;
        }
    }
}

/* Error messages name a type in C by its tp_name, with the module. */
static int
set_full_name(PyTypeObject *type, PyObject *full)
{
    PyObject *kept = PyDict_SetDefault(core_get()->type_names, full, full); /* keeps the text */
    const char *text = kept == NULL ? NULL : PyUnicode_AsUTF8(kept);
    if (text != NULL && strchr(text, '.') != NULL) {
        type->tp_name = text;
    }
    return text == NULL ? -1 : 0;
}

static PyTypeObject *
make_mirror(PeerObject *peer, struct description *d)
{
    core_state *core = core_get();
    PyTypeObject *type = NULL;
    PyObject *bases = PyList_AsTuple(d->bases);
    PyObject *namespace =
        Py_BuildValue("{OOOOOO}", core->str___module__, d->module, core->str___qualname__,
                      d->qualname, core->str___doc__, d->doc);
    /* A metaclass with a mind of its own (Enum's) would take the stubs for something else. */
    bool plain = (PyTypeObject *)d->meta == &PyType_Type ||
                 strcmp(((PyTypeObject *)d->meta)->tp_name, "ABCMeta") == 0;
    bool home = d->home;
    PyObject *own_slots = bases == NULL ? NULL : mirror_slots(d, bases);
    bool slots = own_slots != NULL;
    if (PyErr_Occurred() || (slots && namespace != NULL &&
                             PyDict_SetItem(namespace, core->str___slots__, own_slots) < 0)) {
        Py_CLEAR(namespace);
    }
    Py_XDECREF(own_slots);
    building++;
    if (bases != NULL && namespace != NULL) {
        allow_deriving(bases, true);
        PyObject *meta = plain ? d->meta : NULL;
        if (meta != NULL) {
            bool hooks = home || has_hooks(bases);
            PyObject *all = hooks ? silenced(bases) : Py_NewRef(bases);
            type = all == NULL ? NULL
                               : (PyTypeObject *)PyObject_CallFunction(meta, "OOO", d->name, all,
                                                                       namespace);
            Py_XDECREF(all);
            if (hooks && type != NULL &&
                PyObject_SetAttr((PyObject *)type, core->str___bases__, bases) < 0) {
                PyErr_Clear(); /* an unusual layout: the silencer stays among the bases */
            }
        }
        else {
            PyObject *args = Py_BuildValue("(OOO)", d->name, bases, namespace);
            type = args == NULL
                       ? NULL
                       : (PyTypeObject *)PyType_Type.tp_new((PyTypeObject *)d->meta, args, NULL);
            Py_XDECREF(args);
        }
        allow_deriving(bases, false);
    }
    if (type == NULL) {
        goto error;
    }
    PyObject *dict = compat_type_dict(type);
    if (dict == NULL || (slots && PyDict_DelItem(dict, core->str___slots__) < 0)) {
        Py_XDECREF(dict);
        goto error;
    }
    Py_DECREF(dict); /* what the target has to say of its __slots__ is among the names */
    if (set_full_name(type, d->full_name) < 0) {
        goto error;
    }
    bool proxies = !home && !(d->flags & (CLASS_EXCEPTION | CLASS_METACLASS));
    struct mirror *mirror = mirror_add(peer, type, d->flags, proxies);
    if (mirror != NULL) {
        mirror->home = home;
    }
    if (mirror == NULL || proxy_bind(peer, (PyObject *)type, d->handle) < 0 ||
        add_stubs(type, type, d->names, NULL) < 0) {
        goto error;
    }
    type->tp_flags |= (d->flags & CLASS_SEQUENCE ? Py_TPFLAGS_SEQUENCE : 0) |
                      (d->flags & CLASS_MAPPING ? Py_TPFLAGS_MAPPING : 0);
    PyObject *own_new = home ? compat_type_lookup(type, core->str___new__) : NULL;
    if (home && (own_new == NULL || !is_stub(own_new))) {
        /* A mixin of the other side must not take over the making of what is real here. */
        for (Py_ssize_t i = 1; i < PyTuple_GET_SIZE(type->tp_mro); i++) {
            PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(type->tp_mro, i);
            if (table_get(&core->mirrors, ADDRESS(base)) == NULL) {
                type->tp_new = base->tp_new;
                break;
            }
        }
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(d->inherited); i++) {
        PyObject *names = PyList_GET_ITEM(d->inherited, i);
        PyObject *dict = compat_type_dict(type);
        int rc = dict == NULL ? -1 : add_stubs(type, type, names, dict);
        Py_XDECREF(dict);
        if (rc < 0) {
            goto error;
        }
    }
    if (!home && (!(d->flags & CLASS_METACLASS) || (d->flags & CLASS_BUSY_META))) {
        if (proxies || (d->flags & CLASS_METACLASS)) {
            PyObject *new_method = proxy_new_method();
            int rc =
                new_method == NULL ? -1 : class_setattro_here(type, core->str___new__, new_method);
            Py_XDECREF(new_method);
            if (rc < 0 || (proxies && add_object_stubs(type, d->flags) < 0)) {
                goto error;
            }
        }
        patch_slots(type, d->flags, proxies);
    }
    if (d->flags & CLASS_NO_SEQUENCE) {
        ((PyHeapTypeObject *)type)->as_sequence.sq_item = NULL;
    }
    if (proxies && strcmp(Py_TYPE(type)->tp_name, "ABCMeta") == 0 && add_subclasshook(type) < 0) {
        goto error;
    }
    if (set_abstract(type, d->names) < 0) {
        PyErr_Clear();
    }
    mirror->reported = proxies ? reported_class(peer, d) : NULL;
    if (proxies && mirror->reported == NULL && (d->flags & CLASS_MUTABLE_BUILTIN)) {
        mirror->reported = facade_class(peer, type, d);
    }
    if (proxies && proxy_add_copying(type, mirror->reported) < 0) {
        PyErr_Clear();
    }
    if (proxies && mirror->reported == (PyObject *)&PyList_Type) {
        /* `[1] + p`: list.__add__ takes only real ones, and asks no other operand. */
        PyObject *stub = stub_new(type, core->str___radd__, 'q', false);
        if (stub == NULL || class_setattro_here(type, core->str___radd__, stub) < 0) {
            PyErr_Clear();
        }
        Py_XDECREF(stub);
    }
    if (proxies) { /* last: this class, too, was filled and derived from until here */
        type->tp_flags |= d->flags & CLASS_IMMUTABLE ? Py_TPFLAGS_IMMUTABLETYPE : 0;
        type->tp_flags &= ~(d->flags & CLASS_FINAL ? Py_TPFLAGS_BASETYPE : 0);
    }
    building--;
    register_mirror(type, d->names);
    Py_DECREF(bases);
    Py_DECREF(namespace);
    return type;
error:
    building--;
    Py_XDECREF(bases);
    Py_XDECREF(namespace);
    if (type != NULL) {
        /* Records go by address: none may outlive the type. */
        struct mirror *record = table_remove(&core->mirrors, ADDRESS(type));
        struct proxy *p = proxy_find((PyObject *)type);
        if (record != NULL) {
            Py_XDECREF(record->reported);
            free(record);
        }
        if (p != NULL) {
            proxy_drop(p);
        }
        Py_DECREF(type);
    }
    return NULL;
}

static PyTypeObject *
find_or_make_mirror(PeerObject *peer, struct description *d)
{
    /* A class that can be found by name is the same class in the next life; any other is this one.
     */
    PyObject *key = d->flags & CLASS_IMPORTABLE ? PyTuple_Pack(2, d->module, d->qualname)
                                                : PyLong_FromUnsignedLongLong(d->handle);
    PyObject *known = key == NULL ? NULL : PyDict_GetItemWithError(peer->mirrors, key);
    PyTypeObject *type = NULL;
    if (known != NULL) {
        struct proxy *p = proxy_find(known);
        if (p != NULL && p->epoch == peer->epoch && p->handle == d->handle) {
            proxy_received(p); /* described once more, on another strand */
            Py_DECREF(key);
            return (PyTypeObject *)Py_NewRef(known);
        }
        if (p != NULL && p->epoch != peer->epoch) {
            Py_INCREF(known);
            int rc = proxy_bind(peer, known, d->handle);
            rc = rc < 0 ? -1 : mirror_refresh((PyTypeObject *)known, d->names);
            Py_DECREF(key);
            if (rc < 0) {
                Py_DECREF(known);
                return NULL;
            }
            return (PyTypeObject *)known;
        }
    }
    if (key != NULL && !PyErr_Occurred()) {
        type = make_mirror(peer, d);
    }
    if (type != NULL && PyDict_SetItem(peer->mirrors, key, (PyObject *)type) < 0) {
        Py_CLEAR(type);
    }
    if (type != NULL && (d->flags & CLASS_IMPORTABLE)) {
        struct proxy *p = proxy_find((PyObject *)type);
        p->module = Py_NewRef(d->module);
        p->qualname = Py_NewRef(d->qualname);
        if (known != NULL) {
            /* The name means a new class now (a reload): the old one must outlive its instances. */
            PyObject *old = PyLong_FromVoidPtr(known);
            if (old == NULL || PyDict_SetItem(peer->mirrors, old, known) < 0) {
                PyErr_Clear();
            }
            Py_XDECREF(old);
        }
    }
    Py_XDECREF(key);
    return type;
}

/* Which un-isolated classes of the child may be represented by the kernel's own when they are
 * passed as values. Only those whose instances cross by value or that have no native code: anything
 * else called through an isolated module must run in the child. */
static bool
may_be_local_value(PeerObject *peer, PyTypeObject *cls)
{
    if (!peer->is_kernel) {
        return true;
    }
    if (PyType_IsSubtype(cls, (PyTypeObject *)PyExc_BaseException)) {
        return true;
    }
    return is_value_type(cls) > 0 ||
           (strcmp(Py_TYPE(cls)->tp_name, "ABCMeta") == 0 && has_no_layout(cls));
}

/* Keeps a description whose mirror was not made, under (handle, "late"). */
static int
remember(PeerObject *peer, struct description *d)
{
    PyObject *description = Py_BuildValue(
        "(kOOOOOOOOO)", (unsigned long)d->flags | (d->home ? CLASS_HOME : 0), d->module,
        d->qualname, d->name, d->full_name, d->doc, d->meta, d->bases, d->inherited, d->names);
    PyObject *key = Py_BuildValue("(Ks)", (unsigned long long)d->handle, "late");
    int rc =
        description == NULL || key == NULL ? -1 : PyDict_SetItem(peer->mirrors, key, description);
    Py_XDECREF(description);
    Py_XDECREF(key);
    return rc;
}

/* New reference: what follows the last dot. */
static PyObject *
short_name(PyObject *full)
{
    Py_ssize_t n = PyUnicode_GET_LENGTH(full), dot = PyUnicode_FindChar(full, '.', 0, n, -1);
    return PyUnicode_Substring(full, dot < 0 ? 0 : dot + 1, n);
}

static PyObject *
decode_defined(struct incoming *in, enum class_use use)
{
    struct description d = {0};
    PyTypeObject *type = NULL, *local = NULL;
    bool exception = false, metaclass = false;
    d.handle = read_u64(&in->r);
    d.flags = read_u32(&in->r);
    d.module = decode_name(in);
    d.qualname = d.module == NULL ? NULL : decode_name(in);
    d.full_name = d.qualname == NULL ? NULL : decode_name(in);
    d.name = d.full_name == NULL ? NULL : short_name(d.full_name);
    d.doc = d.name == NULL ? NULL : decode(in);
    d.meta = d.doc == NULL ? NULL : decode_class(in, CLASS_AS_META);
    d.bases = d.meta == NULL ? NULL : PyList_New(0);
    d.inherited = PyList_New(0);
    if (d.bases == NULL || d.inherited == NULL || d.handle == 0) {
        goto done;
    }
    uint64_t nbases = read_count(&in->r, 2);
    for (uint64_t i = 0; i < nbases; i++) {
        uint8_t tag = reader_left(&in->r) > 0 ? *in->r.at : CLASS_KNOWN;
        PyObject *base = decode_class(in, CLASS_AS_BASE);
        if (base == NULL) {
            goto done;
        }
        struct mirror *mirrored = table_get(&core_get()->mirrors, ADDRESS(base));
        /* By handle, or by name after a restart: a class of this side. What both sides have by name
         * is built in. */
        bool back = tag == CLASS_BACK || (tag == CLASS_NAMED && PyType_Check(base) &&
                                          !is_shared_base((PyTypeObject *)base));
        d.home = d.home || (back && mirrored == NULL) || (mirrored != NULL && mirrored->home);
        if (PyList_Check(base)) { /* a shared Python class: [class, its names and its bases' ...] */
            PyObject *cls = PyList_GET_ITEM(base, 0);
            int rc = PyList_Append(d.bases, cls);
            for (Py_ssize_t k = 1; rc == 0 && k < PyList_GET_SIZE(base); k++) {
                rc = PyList_Append(d.inherited, PyList_GET_ITEM(base, k));
            }
            Py_DECREF(base);
            if (rc < 0) {
                goto done;
            }
            continue;
        }
        int rc = PyList_Append(d.bases, base);
        Py_DECREF(base);
        if (rc < 0) {
            goto done;
        }
    }
    d.names = decode_class_names(in);
    if (d.names == NULL || in->r.failed) {
        if (!PyErr_Occurred()) {
            garbled("class");
        }
        goto done;
    }
    if (d.flags & CLASS_IMPORTABLE) {
        local = local_class(in->peer, d.module, d.qualname);
    }
    /* As a base too: a mirror of ABCMeta would conflict with the real one of a class's bases. */
    if ((use == CLASS_AS_META || use == CLASS_AS_BASE) && local != NULL &&
        PyType_IsSubtype(local, &PyType_Type)) {
        metaclass = true;
        type = (PyTypeObject *)Py_NewRef(local);
        goto keep;
    }
    exception = (d.flags & CLASS_EXCEPTION) && local != NULL;
    if (exception || (use == CLASS_AS_VALUE && local != NULL &&
                      (PyUnicode_CompareWithASCIIString(d.module, "builtins") == 0 ||
                       may_be_local_value(in->peer, local)))) {
        type = (PyTypeObject *)Py_NewRef(local);
        goto keep;
    }
    if (use == CLASS_AS_BASE && local != NULL && has_no_layout(local)) {
        type = (PyTypeObject *)PyList_New(0);
        if (type != NULL && (PyList_Append((PyObject *)type, (PyObject *)local) < 0 ||
                             PyList_Append((PyObject *)type, d.names) < 0 ||
                             PyList_SetSlice((PyObject *)type, 2, 2, d.inherited) < 0)) {
            Py_CLEAR(type);
        }
        goto keep;
    }
    type = find_or_make_mirror(in->peer, &d);
    if (type == NULL) {
        /* The other side will not describe it again: let the next use try once more. */
        PyObject *exc = compat_take_exception();
        if (remember(in->peer, &d) < 0) {
            PyErr_Clear();
        }
        compat_raise(exc);
    }
    goto done;
keep:
    /* Later frames say only the handle: remember what it stands for here, for each use. */
    if (type != NULL) {
        for (int u = CLASS_AS_VALUE; type != NULL && u <= CLASS_AS_META; u++) {
            if (u != (int)use && !exception &&
                !(metaclass && (u == CLASS_AS_META || u == CLASS_AS_BASE))) {
                continue;
            }
            PyObject *key = Py_BuildValue("(Ki)", (unsigned long long)d.handle, u);
            if (key == NULL || PyDict_SetItem(in->peer->mirrors, key, (PyObject *)type) < 0) {
                Py_CLEAR(type);
            }
            Py_XDECREF(key);
        }
        if (type != NULL && remember(in->peer, &d) < 0) {
            Py_CLEAR(type); /* for other uses, should they come: the mirror, made when needed */
        }
    }
done:
    if (type == NULL && !PyErr_Occurred()) {
        garbled("class");
    }
    Py_XDECREF(local);
    description_free(&d);
    return (PyObject *)type;
}

static PyObject *
decode_known(struct incoming *in, enum class_use use)
{
    uint64_t handle = read_u64(&in->r);
    PyObject *type = NULL;
    PyObject *key = Py_BuildValue("(Ki)", (unsigned long long)handle, (int)use);
    PyObject *found = key == NULL ? NULL : PyDict_GetItemWithError(in->peer->mirrors, key);
    Py_XDECREF(key);
    if (found != NULL || PyErr_Occurred()) {
        return Py_XNewRef(found);
    }
    found = proxy_of_handle(in->peer, handle);
    if (found != NULL && PyType_Check(found)) {
        proxy_received(proxy_find(found));
        return Py_NewRef(found);
    }
    key = Py_BuildValue("(Ks)", (unsigned long long)handle, "late");
    found = key == NULL ? NULL : PyDict_GetItemWithError(in->peer->mirrors, key);
    Py_XDECREF(key);
    if (found != NULL) {
        struct description d = {.handle = handle};
        unsigned long flags;
        if (PyArg_ParseTuple(found, "kOOOOOOOOO", &flags, &d.module, &d.qualname, &d.name,
                             &d.full_name, &d.doc, &d.meta, &d.bases, &d.inherited, &d.names)) {
            d.flags = (uint32_t)flags & ~(uint32_t)CLASS_HOME;
            d.home = (flags & CLASS_HOME) != 0;
            type = (PyObject *)find_or_make_mirror(in->peer, &d);
        }
        return type;
    }
    if (!PyErr_Occurred()) {
        garbled("unknown class");
    }
    return NULL;
}

PyObject *
decode_class(struct incoming *in, enum class_use use)
{
    PyObject *o = NULL;
    switch (read_u8(&in->r)) {
    case CLASS_BACK:
        o = export_find(in->peer, read_u64(&in->r));
        Py_XINCREF(o);
        break;
    case CLASS_NAMED: {
        PyObject *module = decode_name(in);
        PyObject *qualname = module == NULL ? NULL : decode_name(in);
        o = qualname == NULL ? NULL : peer_resolve(in->peer, module, qualname);
        Py_XDECREF(module);
        Py_XDECREF(qualname);
        break;
    }
    case CLASS_KNOWN:
        return decode_known(in, use);
    case CLASS_DEFINED:
        if (Py_EnterRecursiveCall(" while reading a class from another process")) {
            return NULL;
        }
        o = decode_defined(in, use);
        Py_LeaveRecursiveCall();
        return o;
    default:
        break;
    }
    if (o != NULL && !PyType_Check(o)) {
        Py_CLEAR(o);
    }
    if (o == NULL && !PyErr_Occurred()) {
        garbled("class");
    }
    return o;
}

int
mirrors_forget_handles(PeerObject *peer)
{
    PyObject *keys = PyDict_Keys(peer->mirrors);
    int rc = keys == NULL ? -1 : 0;
    for (Py_ssize_t i = 0; rc == 0 && i < PyList_GET_SIZE(keys); i++) {
        PyObject *key = PyList_GET_ITEM(keys, i);
        if (PyTuple_Check(key) && PyLong_Check(PyTuple_GET_ITEM(key, 0))) {
            rc = PyDict_DelItem(peer->mirrors, key);
        }
    }
    Py_XDECREF(keys);
    return rc;
}
