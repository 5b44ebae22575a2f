/* shadows.c: subclasses of the mutable built-in containers as arguments. C code checks for the real
 * type, so what arrives is an instance of a real subclass, a shadow: its content is a copy that is
 * written back as any other (pairs.c); what the class itself defines is stubs, and runs on the
 * original. A few classes of the standard library are the same on both sides. */
#include "codec.h"
#include "handles.h"
#include "peer.h"
#include "proxy.h"

#include <stdlib.h>
#include <string.h>

#define LIBRARY_DEFAULTDICT 1

/* ---- classes that both sides have -------------------------------------------------------- */

/* Borrowed, or NULL with an exception. */
static PyObject *
library_class(size_t which)
{
    static const char *const names[] = {"OrderedDict", "defaultdict", "Counter"};
    PyObject **cls = &core_get()->library[which];
    if (*cls == NULL) {
        PyObject *module = PyImport_ImportModule("collections");
        *cls = module == NULL ? NULL : PyObject_GetAttrString(module, names[which]);
        Py_XDECREF(module);
    }
    return *cls;
}

int
library_container(PeerObject *peer, PyObject *o)
{
    if (!PyDict_Check(o) || PyDict_CheckExact(o)) {
        return -1;
    }
    for (int i = 0; i < LIBRARY_CONTAINERS; i++) {
        if ((PyObject *)Py_TYPE(o) == library_class((size_t)i)) {
            PyObject *dict = compat_instance_dict(o);
            PyObject *module = PyUnicode_FromString("collections");
            bool isolated = is_isolated_name(peer, module);
            Py_XDECREF(module);
            return isolated || (dict != NULL && PyDict_GET_SIZE(dict) > 0) ? -1 : i;
        }
        PyErr_Clear();
    }
    return -1;
}

PyObject *
library_new(unsigned which, PyObject *factory)
{
    PyObject *cls = which < LIBRARY_CONTAINERS ? library_class(which) : NULL;
    if (cls == NULL || (factory != Py_None && which != LIBRARY_DEFAULTDICT)) {
        return NULL;
    }
    return factory == Py_None ? PyObject_CallNoArgs(cls) : PyObject_CallOneArg(cls, factory);
}

/* ---- shadows ----------------------------------------------------------------------------- */

/* The built-in container whose layout instances of `type` have, or NULL. */
static PyTypeObject *
container_base(PyTypeObject *type, enum pair_kind *kind)
{
    struct {
        PyTypeObject *type;
        enum pair_kind kind;
    } bases[] = {
        {&PyODict_Type, PAIR_DICT},          {&PyDict_Type, PAIR_DICT},
        {&PyList_Type, PAIR_LIST},           {&PySet_Type, PAIR_SET},
        {&PyByteArray_Type, PAIR_BYTEARRAY}, {(PyTypeObject *)deque_class(), PAIR_DEQUE},
    };
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        if (bases[i].type != NULL && PyType_IsSubtype(type, bases[i].type)) {
            *kind = bases[i].kind;
            return bases[i].type;
        }
    }
    return NULL;
}

bool
has_shadow(PeerObject *peer, PyObject *o, enum pair_kind *kind)
{
    /* An instance of an isolated class lives over there. */
    return peer->is_kernel && container_base(Py_TYPE(o), kind) != NULL &&
           mirror_of(Py_TYPE(o)) == NULL;
}

/* object's own methods that would answer for the copy instead of the original. */
static int
add_answers(PyTypeObject *shadow)
{
    core_state *core = core_get();
    PyObject *names[] = {core->str___reduce_ex__, core->str___reduce__, core->str___dir__,
                         core->str___getstate__};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        PyObject *found = compat_type_lookup(shadow, names[i]);
        if (found == NULL || Py_TYPE(found) == core->method_type) {
            continue;
        }
        PyObject *stub = stub_new(shadow, names[i], 'm', false);
        int rc = stub == NULL ? -1 : PyObject_SetAttr((PyObject *)shadow, names[i], stub);
        Py_XDECREF(stub);
        if (rc < 0) {
            return -1;
        }
    }
    return 0;
}

/* What the mirrored classes down to the built-in one define, nearest first. New reference. */
static PyObject *
own_names(PyTypeObject *mirror)
{
    core_state *core = core_get();
    PyObject *skipped[] = {core->str___new__, core->str___dict__, core->str___weakref__,
                           core->str___slots__};
    PyObject *namespace = PyDict_New();
    for (Py_ssize_t i = 0; namespace != NULL && i < PyTuple_GET_SIZE(mirror->tp_mro); i++) {
        PyTypeObject *cls = (PyTypeObject *)PyTuple_GET_ITEM(mirror->tp_mro, i);
        struct mirror *m = table_get(&core->mirrors, ADDRESS(cls));
        enum pair_kind kind;
        if (m == NULL ||
            (m->reported != NULL &&
             container_base((PyTypeObject *)m->reported, &kind) == (PyTypeObject *)m->reported)) {
            continue; /* the real one has these */
        }
        PyObject *dict = compat_type_dict(cls);
        int rc = dict == NULL ? -1 : PyDict_Merge(namespace, dict, 0);
        Py_XDECREF(dict);
        if (rc < 0) {
            Py_CLEAR(namespace);
        }
    }
    for (size_t i = 0; namespace != NULL && i < sizeof skipped / sizeof *skipped; i++) {
        if (PyDict_Contains(namespace, skipped[i]) == 1 &&
            PyDict_DelItem(namespace, skipped[i]) < 0) {
            Py_CLEAR(namespace);
        }
    }
    return namespace;
}

/* The shadow class of a mirrored one; borrowed, or NULL with an exception. */
static PyTypeObject *
shadow_of(PyTypeObject *type, enum pair_kind kind)
{
    core_state *core = core_get();
    struct mirror *of = table_get(&core->mirrors, ADDRESS(type)), *record = NULL;
    enum pair_kind real_kind = kind;
    PyTypeObject *base = NULL, *shadow = NULL;
    if (of == NULL || !of->proxies || of->of != NULL) {
        garbled("container");
        return NULL;
    }
    if (of->shadow != NULL) {
        return (PyTypeObject *)of->shadow;
    }
    for (Py_ssize_t i = 0; base == NULL && i < PyTuple_GET_SIZE(type->tp_mro); i++) {
        struct mirror *m = table_get(&core->mirrors, ADDRESS(PyTuple_GET_ITEM(type->tp_mro, i)));
        base = m == NULL || m->reported == NULL
                   ? NULL
                   : container_base((PyTypeObject *)m->reported, &real_kind);
        if (base != NULL && (PyObject *)base != m->reported) {
            base = NULL; /* another subclass, which is shadowed too */
        }
    }
    if (base == NULL || real_kind != kind) {
        garbled("container");
        return NULL;
    }
    PyObject *namespace = own_names(type);
    building++;
    shadow = namespace == NULL
                 ? NULL
                 : (PyTypeObject *)PyObject_CallFunction((PyObject *)&PyType_Type, "s(O)O",
                                                         type->tp_name, base, namespace);
    building--;
    Py_XDECREF(namespace);
    record = shadow == NULL ? NULL : calloc(1, sizeof *record);
    if (record == NULL || !table_put(&core->mirrors, ADDRESS(shadow), record)) {
        free(record);
        Py_XDECREF(shadow);
        if (!PyErr_Occurred()) {
            PyErr_NoMemory();
        }
        return NULL;
    }
    *record = (struct mirror){.type = shadow,
                              .peer = of->peer,
                              .reported = Py_NewRef(type),
                              .flags = of->flags,
                              .proxies = true,
                              .of = type};
    of->shadow = (PyObject *)shadow; /* with the mirror it lives as long as the peer */
    building++;
    int rc = add_answers(shadow);
    building--;
    shadow->tp_finalize = proxy_finalize;
    shadow->tp_getattro = proxy_getattro;
    shadow->tp_setattro = proxy_setattro;
    shadow->tp_new = proxy_tp_new;
    shadow->tp_init = proxy_tp_init;
    PyType_Modified(shadow);
    return rc < 0 ? NULL : shadow;
}

PyObject *
shadow_new(PeerObject *peer, PyTypeObject *type, uint64_t handle, enum pair_kind kind)
{
    PyTypeObject *shadow = shadow_of(type, kind);
    enum pair_kind same;
    PyTypeObject *base = shadow == NULL ? NULL : container_base(shadow, &same);
    PyObject *o = base == NULL ? NULL : base->tp_new(shadow, core_get()->empty_tuple, NULL);
    if (o != NULL && proxy_bind(peer, o, handle) < 0) {
        Py_CLEAR(o);
    }
    return o;
}

bool
is_shadow(PyObject *o, enum pair_kind kind)
{
    struct mirror *record = table_get(&core_get()->mirrors, ADDRESS(Py_TYPE(o)));
    enum pair_kind its;
    return record != NULL && record->of != NULL && container_base(Py_TYPE(o), &its) != NULL &&
           its == kind;
}
