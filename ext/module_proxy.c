/* module_proxy.c: isolated modules. What importlib, debuggers and autoreload set or scan stays
 * local; everything else is the target's. Functions, classes and submodules are cached until the
 * child says that some module attribute has changed, so that `mod.f(x)` is one request. */
#include "codec.h"
#include "handles.h"
#include "peer.h"
#include "proxy.h"

struct extra {
    PyObject *cache; /* strong or NULL: dict name -> object */
    uint64_t generation;
    uint32_t epoch;
};

static struct extra *
extra_of(PyObject *self)
{
    return (struct extra *)((char *)self + PyModule_Type.tp_basicsize);
}

static bool
is_local(core_state *core, PyObject *name)
{
    return name == core->str___name__ || name == core->str___loader__ ||
           name == core->str___spec__ || name == core->str___package__ ||
           name == core->str___path__ || name == core->str___file__ ||
           name == core->str___cached__ || name == core->str___class__ || name == core->str___doc__;
}

static PyObject *
module_getattro(PyObject *self, PyObject *name)
{
    core_state *core = core_get();
    struct proxy *p = proxy_find(self);
    if (p == NULL) {
        return PyObject_GenericGetAttr(self, name);
    }
    if (is_local(core, name)) {
        PyObject *dict = PyModule_GetDict(self);
        PyObject *o = name == core->str___class__ ? (PyObject *)Py_TYPE(self)
                                                  : PyDict_GetItemWithError(dict, name);
        if ((o != NULL && (o != Py_None || name != core->str___doc__)) || PyErr_Occurred()) {
            return Py_XNewRef(o);
        }
        if (name == core->str___spec__ || name == core->str___loader__) {
            Py_RETURN_NONE;
        }
    }
    else if (name != core->str___dict__) {
        PyObject *descr = compat_type_lookup(Py_TYPE(self), name);
        /* Of annotations a module's own descriptor would look into the dict of this module. */
        if (descr != NULL && PyUnicode_CompareWithASCIIString(name, "__annotations__") != 0) {
            return PyObject_GenericGetAttr(self, name);
        }
    }
    struct extra *extra = extra_of(self);
    if (extra->cache != NULL) {
        if (extra->generation == p->peer->cache_generation && extra->epoch == p->peer->epoch &&
            p->peer->state == PEER_RUNNING) {
            PyObject *o = PyDict_GetItemWithError(extra->cache, name);
            if (o != NULL || PyErr_Occurred()) {
                return Py_XNewRef(o);
            }
        }
        else {
            Py_CLEAR(extra->cache);
        }
    }
    struct message m;
    PeerObject *peer = p->peer;
    if (request_begin(peer, &m, OP_GETATTR) < 0) {
        return NULL;
    }
    message_about(&m, self);
    if (encode(&m, self, false) < 0 || encode_name(&m, name) < 0) {
        request_abandon(&m);
        return NULL;
    }
    uint64_t generation = peer->cache_generation;
    PyObject *o = request_finish(&m);
    /* What came meanwhile, for this thread or another, may have made it outdated. */
    if (o != NULL && m.cacheable && generation == peer->cache_generation && peer->is_kernel) {
        if (extra->cache == NULL) {
            extra->cache = PyDict_New();
            extra->generation = peer->cache_generation;
            extra->epoch = peer->epoch;
        }
        if (extra->cache == NULL || PyDict_SetItem(extra->cache, name, o) < 0) {
            PyErr_Clear(); /* a cache may always miss */
        }
    }
    return o;
}

static int
module_setattro(PyObject *self, PyObject *name, PyObject *value)
{
    struct proxy *p = proxy_find(self);
    if (p == NULL || is_local(core_get(), name)) {
        return PyObject_GenericSetAttr(self, name, value);
    }
    struct extra *extra = extra_of(self);
    if (extra->cache != NULL && PyDict_DelItem(extra->cache, name) < 0) {
        PyErr_Clear();
    }
    return remote_setattr(p->peer, self, name, value);
}

static PyObject *
module_dir(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    struct proxy *p = proxy_find(self);
    struct message m;
    if (p == NULL) {
        return PyDict_Keys(PyModule_GetDict(self));
    }
    if (request_begin(p->peer, &m, OP_CALLATTR) < 0) {
        return NULL;
    }
    if (encode(&m, self, false) < 0 || encode_name(&m, core_get()->str___dir__) < 0 ||
        encode_call(&m, NULL, 0, NULL) < 0) {
        request_abandon(&m);
        return NULL;
    }
    return request_finish(&m);
}

static PyObject *
module_reduce(PyObject *self, PyObject *Py_UNUSED(protocol))
{
    /* As for a real module: pickle has no way to write one. */
    PyErr_Format(PyExc_TypeError, "cannot pickle '%s' object", Py_TYPE(self)->tp_name);
    return NULL;
}

static int
module_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(extra_of(self)->cache);
    struct proxy *p = proxy_find(self);
    if (p != NULL) {
        Py_VISIT(p->peer); /* peer and modules refer to each other */
    }
    return PyModule_Type.tp_traverse(self, visit, arg);
}

static int
module_clear(PyObject *self)
{
    Py_CLEAR(extra_of(self)->cache);
    proxy_finalize(self);
    return PyModule_Type.tp_clear(self);
}

static void
module_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    proxy_finalize(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(extra_of(self)->cache);
    PyObject_GC_Track(self);
    PyModule_Type.tp_dealloc(self);
    Py_DECREF(type);
}

static PyMethodDef module_methods[] = {
    {"__dir__", module_dir, METH_NOARGS, NULL},
    {"__reduce_ex__", module_reduce, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot module_slots[] = {
    {Py_tp_getattro, module_getattro},
    {Py_tp_setattro, module_setattro},
    {Py_tp_traverse, module_traverse},
    {Py_tp_clear, module_clear},
    {Py_tp_dealloc, module_dealloc},
    {Py_tp_methods, module_methods},
    {0, NULL},
};

PyObject *
module_proxy(PeerObject *peer, PyObject *name, uint64_t handle, bool registered)
{
    PyObject *key = registered ? Py_NewRef(name) : PyLong_FromUnsignedLongLong(handle);
    PyObject *self = key == NULL ? NULL : PyDict_GetItemWithError(peer->modules, key);
    if (self != NULL) {
        Py_INCREF(self);
    }
    else if (key != NULL && !PyErr_Occurred()) {
        self = PyObject_CallFunctionObjArgs((PyObject *)core_get()->module_type, name, NULL);
        if (self != NULL && PyDict_SetItem(peer->modules, key, self) < 0) {
            Py_CLEAR(self);
        }
    }
    Py_XDECREF(key);
    if (self == NULL || proxy_bind(peer, self, handle) < 0) {
        Py_XDECREF(self);
        return NULL;
    }
    struct proxy *p = proxy_find(self);
    if (registered && p->module == NULL) {
        p->module = Py_NewRef(name);
        p->qualname = PyUnicode_New(0, 0);
    }
    return self;
}

int
module_proxy_init(core_state *core, PyObject *module)
{
    PyType_Spec spec = {
        "ipython_isolation._core.module",
        (int)(PyModule_Type.tp_basicsize + (Py_ssize_t)sizeof(struct extra)),
        0,
        Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
        module_slots,
    };
    PyObject *bases = PyTuple_Pack(1, &PyModule_Type);
    if (bases == NULL) {
        return -1;
    }
    core->module_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, bases);
    Py_DECREF(bases);
    /* By its __qualname__: IPython's completer is told to trust it. */
    return core->module_type == NULL
               ? -1
               : PyModule_AddObjectRef(module, "module", (PyObject *)core->module_type);
}
