/* describe.c: a class of this side, described once to the other: what it is called, its bases in
 * order, and which stub each name in its own __dict__ needs. */
#include "classes.h"

#include "handles.h"
#include "cursor.h"
#include "peer.h"
#include "proxy.h"

#include <string.h>

static bool
is_builtins_type(PyTypeObject *cls)
{
    if (cls->tp_flags & Py_TPFLAGS_HEAPTYPE) {
        return false;
    }
    PyObject *found = PyDict_GetItemString(PyEval_GetBuiltins(), cls->tp_name);
    return found == (PyObject *)cls;
}

bool
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

char
stub_kind(PyTypeObject *cls, PyObject *name, PyObject *value)
{
    core_state *core = core_get();
    if (is_plain_container(cls)) {
        /* The class of a deque's reversed iterator makes others, unlike those of lists and dicts.
         */
        bool reverses = (PyObject *)cls != deque_class();
        char kind = name == core->str___iter__                   ? 'i'
                    : name == core->str___reversed__ && reverses ? 'i'
                    : name == core->str___len__                  ? 'n'
                    : name == core->str___getitem__ && (cls == &PyDict_Type || cls == &PyList_Type)
                        ? 'g'
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
        peer_raise_stale(m->peer, (PyObject *)cls, false);
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
