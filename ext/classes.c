/* classes.c: classes, read: which class stands here for one that the other side describes, names or
 * mentions by its handle. */
#include "classes.h"

#include "handles.h"
#include "peer.h"
#include "proxy.h"

#include <string.h>

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
    uint64_t n = read_count(&in->r, 1 + 1 + 1);
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

PyTypeObject *
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
    return crossing_of(cls) != BY_REFERENCE || is_numpy_value_class(cls) ||
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
        if (recursion_enter(" while reading a class from another process", STACK_OBJECT) < 0) {
            return NULL;
        }
        o = decode_defined(in, use);
        recursion_leave();
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
