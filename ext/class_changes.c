/* class_changes.c: attributes that a class is given, or loses, after it was described.
 *
 * `Cls.name = value` of a mirrored class sets it where the class lives. `Cls.name = value` of a
 * class that was described to the other side is noted, and the next frame says the new names. Both
 * need to see the assignment, and the metaclass of a mirror must be exactly `type` where the
 * target's is: so type's own tp_setattro is replaced, for the whole process. */
#include "codec.h"
#include "handles.h"
#include "peer.h"
#include "proxy.h"
#include "rollback.h"

#include <stdlib.h>

static setattrofunc type_setattro; /* type's own */

int
class_setattro_here(PyTypeObject *type, PyObject *name, PyObject *value)
{
    unsigned long immutable = type->tp_flags & Py_TPFLAGS_IMMUTABLETYPE;
    type->tp_flags &= ~immutable;
    int rc = type_setattro((PyObject *)type, name, value);
    type->tp_flags |= immutable;
    return rc;
}

/* ---- a mirrored class -------------------------------------------------------------------- */

/* What the description holds beside the names: read here, so set here too. */
static bool
is_described_apart(core_state *core, PyObject *name)
{
    return name == core->str___doc__ || name == core->str___module__ ||
           name == core->str___qualname__ || name == core->str___name__;
}

static int
set_there(PeerObject *peer, PyTypeObject *cls, PyObject *name, PyObject *value)
{
    struct message m;
    PyObject *dict = compat_type_dict(cls);
    PyObject *before = dict == NULL ? NULL : Py_XNewRef(PyDict_GetItemWithError(dict, name));
    Py_XDECREF(dict);
    if (PyErr_Occurred() || request_begin(peer, &m, OP_SETCLASS) < 0) {
        Py_XDECREF(before);
        return -1;
    }
    m.operation = "setattr";
    m.operand = (PyObject *)cls;
    int rc = encode(&m, (PyObject *)cls, false) < 0 ? -1 : encode_name(&m, name);
    write_u8(&m.w, value != NULL);
    if (rc < 0 || (value != NULL && encode(&m, value, false) < 0)) {
        request_abandon(&m);
        Py_XDECREF(before);
        return -1;
    }
    PyObject *replaced = request_finish(&m); /* (), or what the name was there, in a tuple */
    rc = replaced == NULL ? -1 : 0;
    if (rc == 0 && before != NULL && is_stub(before) && PyTuple_Check(replaced) &&
        PyTuple_GET_SIZE(replaced) == 1) {
        /* The stub means what it meant when it was read: it may be put back. */
        Py_XSETREF(((StubObject *)before)->target, Py_NewRef(PyTuple_GET_ITEM(replaced, 0)));
    }
    Py_XDECREF(replaced);
    Py_XDECREF(before);
    if (rc == 0 && is_described_apart(core_get(), name) && value != NULL) {
        rc = class_setattro_here(cls, name, value);
    }
    return rc;
}

/* ---- a class of this side ---------------------------------------------------------------- */

int
class_changed(PeerObject *peer, PyObject *cls, PyObject *name)
{
    if (table_get(&peer->export_of, ADDRESS(cls)) == NULL) {
        return 0; /* not described, or described by name alone */
    }
    for (size_t i = 0; i < peer->nchanged; i++) {
        if (peer->changed[i].cls == cls && peer->changed[i].name == name) {
            peer->changed[i].serial = ++peer->change_serial;
            return 0;
        }
    }
    if (peer->nchanged == peer->capchanged) {
        size_t capacity = peer->capchanged ? peer->capchanged * 2 : 8;
        struct changed_class *more = realloc(peer->changed, capacity * sizeof *more);
        if (more == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        peer->changed = more;
        peer->capchanged = capacity;
    }
    peer->changed[peer->nchanged++] =
        (struct changed_class){Py_NewRef(cls), Py_NewRef(name), ++peer->change_serial};
    return 0;
}

void
class_changes_forget(PeerObject *peer, uint64_t upto)
{
    size_t n = peer->nchanged, kept = 0;
    PyObject *old = PyList_New(0); /* dropped last: that may run anything, this too */
    for (size_t i = 0; i < n; i++) {
        struct changed_class change = peer->changed[i];
        if (change.serial > upto) {
            peer->changed[kept++] = change;
            continue;
        }
        rollback_told(peer, change.cls, change.name);
        if (old == NULL || PyList_Append(old, change.cls) < 0) {
            PyErr_Clear(); /* lost, and kept alive */
            continue;
        }
        Py_DECREF(change.cls);
        Py_DECREF(change.name);
    }
    peer->nchanged = kept;
    Py_XDECREF(old);
}

static int
class_setattro(PyObject *cls, PyObject *name, PyObject *value)
{
    core_state *core = core_get();
    if (core == NULL || (PyUnicode_Check(name) && is_name(name, core->str___slotnames__))) {
        return type_setattro(cls, name, value); /* copyreg's cache, which C code reads */
    }
    if (building == 0) {
        struct mirror *mirror = table_get(&core->mirrors, ADDRESS(cls));
        struct proxy *p = mirror == NULL ? NULL : proxy_find(cls);
        if (p != NULL && PyUnicode_Check(name)) {
            return set_there(p->peer, (PyTypeObject *)cls, name, value);
        }
    }
    if (type_setattro(cls, name, value) < 0) {
        return -1;
    }
    for (PeerObject *peer = core->first_peer; peer != NULL; peer = peer->next_peer) {
        if (PyUnicode_CheckExact(name) && class_changed(peer, cls, name) < 0) {
            return -1;
        }
    }
    return 0;
}

/* ---- on the wire ------------------------------------------------------------------------- */

int
class_changes_encode(struct message *m)
{
    PeerObject *peer = m->peer;
    size_t count_at = m->w.size;
    uint32_t n = 0;
    bool result = m->result;
    int rc = 0;
    write_u32(&m->w, 0);
    m->changes_upto = peer->change_serial;
    m->result = true; /* nothing in a class is copied back */
    for (size_t i = 0; rc == 0 && i < peer->nchanged;
         i++) { /* encoding runs code: there may be more */
        PyTypeObject *cls = (PyTypeObject *)Py_NewRef(peer->changed[i].cls);
        PyObject *name = Py_NewRef(peer->changed[i].name), *dict = compat_type_dict(cls);
        struct export *e = table_get(&peer->export_of, ADDRESS(cls));
        PyObject *value = dict == NULL ? NULL : Py_XNewRef(PyDict_GetItemWithError(dict, name));
        if (e != NULL && !PyErr_Occurred()) {
            n++;
            write_u64(&m->w, e->handle);
            rc = encode_class_name(m, cls, name, value);
        }
        rc = PyErr_Occurred() ? -1 : rc;
        Py_XDECREF(value);
        Py_XDECREF(dict);
        Py_DECREF(name);
        Py_DECREF(cls);
    }
    m->result = result;
    patch_u32(&m->w, count_at, n);
    return rc < 0 ? -1 : message_check(m);
}

int
class_changes_decode(struct incoming *in)
{
    for (uint32_t n = read_u32(&in->r); n > 0 && !in->r.failed; n--) {
        uint64_t handle = read_u64(&in->r);
        PyObject *row = decode_class_name(in);
        PyObject *type = row == NULL ? NULL : proxy_of_handle(in->peer, handle);
        int rc = row == NULL ? -1 : 0;
        if (type != NULL && PyType_Check(type)) {
            rc = mirror_change((PyTypeObject *)Py_NewRef(type), row);
            Py_DECREF(type);
        }
        Py_XDECREF(row);
        if (rc < 0) {
            return -1;
        }
    }
    return in->r.failed ? garbled("changes of classes") : 0;
}

/* ---- installation ------------------------------------------------------------------------ */

/* Metaclasses that exist already have inherited the slot. */
static int
replace_in_subclasses(PyTypeObject *meta)
{
    PyObject *subclasses =
        PyObject_CallMethod((PyObject *)&PyType_Type, "__subclasses__", "O", meta);
    int rc = subclasses == NULL || !PyList_Check(subclasses) ? -1 : 0;
    for (Py_ssize_t i = 0; rc == 0 && i < PyList_GET_SIZE(subclasses); i++) {
        PyTypeObject *type = (PyTypeObject *)PyList_GET_ITEM(subclasses, i);
        if (type->tp_setattro == type_setattro) {
            type->tp_setattro = class_setattro;
        }
        rc = replace_in_subclasses(type);
    }
    Py_XDECREF(subclasses);
    return rc;
}

int
class_changes_init(void)
{
    if (type_setattro != NULL) {
        return 0;
    }
    type_setattro = PyType_Type.tp_setattro;
    /* Both the slot and what `super().__setattr__` of a metaclass finds: CPython compares them. */
    if (compat_replace_slot(&PyType_Type, "__setattr__", (void *)class_setattro) < 0 ||
        compat_replace_slot(&PyType_Type, "__delattr__", (void *)class_setattro) < 0) {
        type_setattro = NULL;
        return -1;
    }
    PyType_Type.tp_setattro = class_setattro;
    return replace_in_subclasses(&PyType_Type);
}
