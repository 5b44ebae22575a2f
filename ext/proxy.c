/* proxy.c: proxies as instances of mirrored classes: access to attributes, construction. */
#include "proxy.h"

#include "buffers.h"
#include "codec.h"
#include "handles.h"
#include "peer.h"

/* ---- requests ---------------------------------------------------------------------------- */

PyObject *
remote_getattr(PeerObject *peer, PyObject *o, PyObject *name)
{
    struct message m;
    if (request_begin(peer, &m, OP_GETATTR) < 0) {
        return NULL;
    }
    message_about(&m, o);
    if (encode(&m, o, false) < 0 || encode_name(&m, name) < 0) {
        request_abandon(&m);
        return NULL;
    }
    return request_finish(&m);
}

int
remote_setattr(PeerObject *peer, PyObject *o, PyObject *name, PyObject *value)
{
    struct message m;
    if (request_begin(peer, &m, value == NULL ? OP_DELATTR : OP_SETATTR) < 0) {
        return -1;
    }
    message_about(&m, o);
    if (encode(&m, o, false) < 0 || encode_name(&m, name) < 0 ||
        (value != NULL && encode(&m, value, false) < 0)) {
        request_abandon(&m);
        return -1;
    }
    PyObject *none = request_finish(&m);
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}

/* ---- instances --------------------------------------------------------------------------- */

static PyTypeObject *
immutable_base(PyTypeObject *type)
{
    PyTypeObject *bases[] = {&PyLong_Type,  &PyUnicode_Type, &PyTuple_Type,    &PyFloat_Type,
                             &PyBytes_Type, &PyComplex_Type, &PyFrozenSet_Type};
    for (size_t i = 0; i < sizeof bases / sizeof *bases; i++) {
        if (PyType_IsSubtype(type, bases[i])) {
            return bases[i];
        }
    }
    return NULL;
}

PyObject *
proxy_new_instance(PyTypeObject *type, PyObject *value)
{
    /* A class of this side that derives from a mirrored one was made by type.__new__ like any
     * other: its instances are proxies too, so it needs the slots of one. */
    struct mirror *mirror = mirror_of(type);
    if (mirror == NULL || (!mirror->proxies && value == NULL)) {
        garbled("instance of a class that is not mirrored here");
        return NULL;
    }
    if (type->tp_finalize != proxy_finalize || type->tp_getattro != proxy_getattro) {
        if (type->tp_finalize == NULL) {
            type->tp_finalize = proxy_finalize;
        }
        PyObject *own = compat_type_lookup(type, core_get()->str___getattribute__);
        if (own == NULL || Py_TYPE(own) == &PyWrapperDescr_Type) {
            type->tp_getattro = proxy_getattro;
        }
        type->tp_setattro = proxy_setattro;
        if (mirror->flags & CLASS_BUFFER) {
            /* Since 3.12 a slot of Python's own calls the stub of __buffer__ instead. */
            PyBufferProcs *procs = &((PyHeapTypeObject *)type)->as_buffer;
            PyObject *buffer = compat_type_lookup(type, core_get()->str___buffer__);
            if (buffer == NULL || Py_TYPE(buffer) == core_get()->method_type) {
                procs->bf_getbuffer = proxy_getbuffer;
                procs->bf_releasebuffer = proxy_releasebuffer;
            }
        }
    }
    if (value == NULL) {
        return type->tp_alloc(type, 0);
    }
    PyTypeObject *base = immutable_base(type);
    PyObject *args = base == NULL ? NULL : PyTuple_Pack(1, value);
    PyObject *o = args == NULL ? NULL : base->tp_new(type, args, NULL);
    Py_XDECREF(args);
    if (o == NULL && !PyErr_Occurred()) {
        garbled("value");
    }
    return o;
}

struct mirror *
mirror_of(PyTypeObject *type)
{
    core_state *core = core_get();
    struct mirror *mirror = table_get(&core->mirrors, ADDRESS(type));
    if (mirror != NULL || type->tp_mro == NULL) {
        return mirror;
    }
    for (Py_ssize_t i = 1; mirror == NULL && i < PyTuple_GET_SIZE(type->tp_mro); i++) {
        mirror = table_get(&core->mirrors, ADDRESS(PyTuple_GET_ITEM(type->tp_mro, i)));
    }
    return mirror;
}

PeerObject *
peer_of_type(PyTypeObject *type)
{
    struct mirror *mirror = mirror_of(type);
    return mirror == NULL ? NULL : mirror->peer;
}

/* A slot that a class derived from a mirrored one declares: the instance, and so the slot, is over
 * there. */
static bool
is_slot_there(PyObject *descr)
{
    return Py_IS_TYPE(descr, &PyMemberDescr_Type) &&
           (PyDescr_TYPE(descr)->tp_flags & Py_TPFLAGS_HEAPTYPE);
}

/* What a front-end's view of the variables asks of each of them: hasattr() must have an answer when
 * the target is lost, else the view of all of them fails. Names that the language looks up in the
 * class alone are known here; what an instance had in its __dict__ is not. Sets AttributeError, or
 * returns false. */
static bool
is_known_of_lost(PyObject *self, struct proxy *p, PyObject *name)
{
    static const char *const names[] = {
        "__len__",     "__iter__",        "__next__", "__reversed__", "__contains__", "__getitem__",
        "__setitem__", "__length_hint__", "__bool__", "__call__",     "__index__",    "__await__",
    };
    if (!proxy_is_lost(p)) {
        return false;
    }
    if (name == core_get()->str___dict__) {
        peer_raise_stale(p->peer, self, true);
        return true;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (PyUnicode_CompareWithASCIIString(name, names[i]) == 0) {
            PyErr_Format(PyExc_AttributeError, "'%.100s' object has no attribute '%U'",
                         Py_TYPE(self)->tp_name, name);
            return true;
        }
    }
    return false;
}

/* Whether an attribute that the mirrored class does not have cannot be there: in instances of the
 * very class that has neither a __dict__ nor a __getattr__, and that nobody can give attributes to,
 * as the built-in containers. The few names that no description mentions are asked for. */
static bool
is_certainly_missing(struct proxy *p, struct mirror *mirror, PyTypeObject *type, PyObject *name)
{
    core_state *core = core_get();
    unsigned open = CLASS_INSTANCE_DICT | CLASS_OWN_GETATTRIBUTE | CLASS_METACLASS;
    if (type != mirror->type || (mirror->flags & (CLASS_IMMUTABLE | open)) != CLASS_IMMUTABLE ||
        p->epoch != p->peer->epoch || p->peer->state != PEER_RUNNING ||
        compat_type_lookup(type, core->str___getattr__) != NULL || !PyUnicode_Check(name)) {
        return false;
    }
    PyObject *undescribed[] = {core->str___dict__, core->str___weakref__, core->str___del__,
                               core->str__abc_impl, core->str___slotnames__};
    for (size_t i = 0; i < sizeof undescribed / sizeof *undescribed; i++) {
        if (is_name(name, undescribed[i])) {
            return false;
        }
    }
    for (Py_ssize_t i = 1; i < PyTuple_GET_SIZE(type->tp_mro); i++) {
        PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(type->tp_mro, i);
        struct mirror *of = table_get(&core->mirrors, ADDRESS(base));
        if (base != &PyBaseObject_Type && (of == NULL || !(of->flags & CLASS_IMMUTABLE))) {
            return false; /* a real class of this side may have other attributes over there */
        }
    }
    return true;
}

PyObject *
proxy_getattro(PyObject *self, PyObject *name)
{
    core_state *core = core_get();
    PyTypeObject *type = Py_TYPE(self);
    struct proxy *p = proxy_find(self);
    struct mirror *mirror = mirror_of(type);
    if (p == NULL || mirror == NULL) {
        return PyObject_GenericGetAttr(self, name);
    }
    if (name == core->str___class__) {
        bool exact = mirror->type == type;
        return Py_NewRef(exact && mirror->reported ? mirror->reported : (PyObject *)type);
    }
    if (name != core->str___dict__ && !(mirror->flags & CLASS_OWN_GETATTRIBUTE)) {
        PyObject *descr = compat_type_lookup(type, name);
        if (descr != NULL && is_slot_there(descr)) {
            descr = NULL;
        }
        if (descr != NULL && Py_TYPE(descr) != core->value_type) {
            descrgetfunc get = Py_TYPE(descr)->tp_descr_get;
            if (name == core->str___sizeof__ && Py_TYPE(descr) == core->method_type) {
                return bound_new(self, (StubObject *)descr); /* see add_size */
            }
            if ((name == core->str___sizeof__ || is_name(name, core->str___getstate__)) &&
                is_object_method(descr)) {
                return remote_getattr(p->peer, self, name);
            }
            if (get != NULL) {
                Py_INCREF(descr);
                PyObject *o = get(descr, self, (PyObject *)type);
                Py_DECREF(descr);
                return o;
            }
            if (type == mirror->type &&
                (!(mirror->flags & CLASS_INSTANCE_DICT) || descr == Py_None ||
                 (is_special_name(name) && type->tp_call == NULL))) {
                /* What no instance hides: None stands for a special method that is not there. But
                 * wrappers of functions have the __doc__ and __module__ of what they wrap. */
                return Py_NewRef(descr);
            }
        }
        else if (descr != NULL && is_classmethod_kind((StubObject *)descr)) {
            return bound_new(self, (StubObject *)descr);
        }
        else if (descr == NULL && is_certainly_missing(p, mirror, type, name)) {
            if (name == core->str___array__) {
                p->peer->ahead.probed = p->handle; /* NumPy: asks for length and items next */
            }
            return PyObject_GenericGetAttr(self, name); /* raises what the target's would */
        }
    }
    return is_known_of_lost(self, p, name) ? NULL : remote_getattr(p->peer, self, name);
}

int
proxy_setattro(PyObject *self, PyObject *name, PyObject *value)
{
    core_state *core = core_get();
    struct proxy *p = proxy_find(self);
    if (p == NULL) {
        return PyObject_GenericSetAttr(self, name, value);
    }
    if (name != core->str___dict__ && name != core->str___class__) {
        PyObject *descr = compat_type_lookup(Py_TYPE(self), name);
        if (descr != NULL && Py_TYPE(descr) != core->data_type &&
            Py_TYPE(descr) != core->method_type && !is_slot_there(descr)) {
            descrsetfunc set = Py_TYPE(descr)->tp_descr_set;
            if (set != NULL) { /* a property of a session class */
                Py_INCREF(descr);
                int rc = set(descr, self, value);
                Py_DECREF(descr);
                return rc;
            }
        }
    }
    if (remote_setattr(p->peer, self, name, value) < 0) {
        return -1;
    }
    if (name == core->str___class__ && value != NULL && PyType_Check(value) &&
        mirror_of((PyTypeObject *)value) != NULL) {
        return PyObject_GenericSetAttr(self, name, value); /* what stands for it changes likewise */
    }
    return 0;
}

static int
encode_args(struct message *m, PyObject *args, Py_ssize_t skip, PyObject *kwargs)
{
    Py_ssize_t nargs = PyTuple_GET_SIZE(args) - skip, position = 0;
    PyObject *key, *value;
    m->arguments = (struct arguments){.tuple = args, .nargs = nargs, .kwargs = kwargs};
    write_size(&m->w, (uint64_t)nargs);
    write_size(&m->w, (uint64_t)(kwargs == NULL ? 0 : PyDict_GET_SIZE(kwargs)));
    while (kwargs != NULL && PyDict_Next(kwargs, &position, &key, &value)) {
        if (!PyUnicode_Check(key)) {
            PyErr_SetString(PyExc_TypeError, "keywords must be strings");
            return -1;
        }
        if (encode_name(m, key) < 0) {
            return -1;
        }
    }
    for (Py_ssize_t i = skip; i < PyTuple_GET_SIZE(args); i++) {
        if (encode_argument(m, PyTuple_GET_ITEM(args, i)) < 0) {
            return -1;
        }
    }
    position = 0;
    while (kwargs != NULL && PyDict_Next(kwargs, &position, &key, &value)) {
        if (encode_argument(m, value) < 0) {
            return -1;
        }
    }
    return message_check(m);
}

/* Constructing an instance of a mirrored class is one call of the class over there, __init__
 * included. For a session class derived from one, the instance is made there by the mirrored base's
 * __new__ and
 * __init__ runs here. */
static PyObject *
construct(PyTypeObject *type, PyObject *args, Py_ssize_t skip, PyObject *kwargs)
{
    struct message m;
    struct mirror *exact = table_get(&core_get()->mirrors, ADDRESS(type));
    PeerObject *peer = peer_of_type(type);
    if (peer == NULL) {
        PyErr_Format(PyExc_TypeError, "%s is not an isolated class", type->tp_name);
        return NULL;
    }
    for (Py_ssize_t i = 0; exact == NULL && i < PyTuple_GET_SIZE(type->tp_mro); i++) {
        struct mirror *base =
            table_get(&core_get()->mirrors, ADDRESS(PyTuple_GET_ITEM(type->tp_mro, i)));
        if (base != NULL && base->peer != peer) {
            PyErr_Format(PyExc_TypeError, "%s derives from classes of two contexts", type->tp_name);
            return NULL;
        }
    }
    /* A class and an exception are needed at once: by their statements. */
    bool later = !PyType_IsSubtype(type, &PyType_Type) &&
                 !PyType_IsSubtype(type, (PyTypeObject *)PyExc_BaseException);
    unsigned call = later ? OP_CALL | OP_DEFERRABLE : OP_CALL;
    if (request_begin(peer, &m, exact != NULL ? call : OP_NEW) < 0) {
        return NULL;
    }
    m.operation = "call";
    m.operand = (PyObject *)type;
    message_about(&m, m.operand);
    if (encode(&m, (PyObject *)type, false) < 0 || encode_args(&m, args, skip, kwargs) < 0) {
        request_abandon(&m);
        return NULL;
    }
    return request_finish(&m);
}

/* The cell that `super()` and `__class__` of a class's methods read is filled by type.__new__,
 * which runs over there when an isolated metaclass makes the class. So it is kept here, and filled
 * here. New references to the arguments without it, and in *cell to the cell, or NULL. */
static PyObject *
without_classcell(PyObject *args, Py_ssize_t skip, PyObject **cell)
{
    *cell = NULL;
    PyObject *namespace =
        PyTuple_GET_SIZE(args) == skip + 3 ? PyTuple_GET_ITEM(args, skip + 2) : NULL;
    PyObject *key = core_get()->str___classcell__;
    if (namespace == NULL || !PyMapping_Check(namespace)) {
        return Py_NewRef(args);
    }
    int there = PySequence_Contains(namespace, key);
    if (there <= 0) {
        return there < 0 ? NULL : Py_NewRef(args);
    }
    PyObject *copy = PyDict_CheckExact(namespace) ? PyDict_Copy(namespace) : Py_NewRef(namespace);
    PyObject *changed = copy == NULL ? NULL : PySequence_List(args), *result = NULL;
    *cell = changed == NULL ? NULL : PyObject_GetItem(namespace, key);
    if (*cell != NULL && PyObject_DelItem(copy, key) == 0 &&
        PyList_SetItem(changed, skip + 2, Py_NewRef(copy)) == 0) {
        result = PyList_AsTuple(changed);
    }
    if (result == NULL) {
        Py_CLEAR(*cell);
    }
    Py_XDECREF(copy);
    Py_XDECREF(changed);
    return result;
}

/* A class of the session that an isolated metaclass makes. It lives over there, like any instance;
 * what its body defined is here. */
static PyObject *
construct_class(PyTypeObject *meta, PyObject *args, Py_ssize_t skip, PyObject *kwargs,
                PyObject *(*make)(PyTypeObject *, PyObject *, Py_ssize_t, PyObject *))
{
    PyObject *cell, *without = without_classcell(args, skip, &cell);
    PyObject *cls = without == NULL ? NULL : make(meta, without, skip, kwargs);
    if (cls != NULL && cell != NULL && PyCell_Check(cell) && PyCell_Set(cell, cls) < 0) {
        Py_CLEAR(cls);
    }
    Py_XDECREF(without);
    Py_XDECREF(cell);
    return cls;
}

PyObject *
proxy_tp_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    return PyType_IsSubtype(type, &PyType_Type) ? construct_class(type, args, 0, kwargs, construct)
                                                : construct(type, args, 0, kwargs);
}

int
proxy_tp_init(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    return 0; /* done by the call of the class over there */
}

/* cls.__new__(cls, ...): of an isolated class without __init__, which calling the class includes.
 */
static PyObject *
construct_bare(PyTypeObject *type, PyObject *args, Py_ssize_t skip, PyObject *kwargs)
{
    PeerObject *peer = peer_of_type(type);
    if (peer == NULL || table_get(&core_get()->mirrors, ADDRESS(type)) == NULL) {
        return construct(type, args, skip, kwargs);
    }
    struct message m;
    if (request_begin(peer, &m, OP_CALLATTR) < 0) {
        return NULL;
    }
    m.operation = "call";
    m.operand = (PyObject *)type;
    message_about(&m, m.operand);
    if (encode(&m, (PyObject *)type, false) < 0 || encode_name(&m, core_get()->str___new__) < 0 ||
        encode_args(&m, args, 0, kwargs) < 0) {
        request_abandon(&m);
        return NULL;
    }
    return request_finish(&m);
}

static PyObject *
new_method(PyObject *Py_UNUSED(self), PyObject *args, PyObject *kwargs)
{
    if (PyTuple_GET_SIZE(args) == 0 || !PyType_Check(PyTuple_GET_ITEM(args, 0))) {
        PyErr_SetString(PyExc_TypeError, "__new__() needs a type as its first argument");
        return NULL;
    }
    PyTypeObject *type = (PyTypeObject *)PyTuple_GET_ITEM(args, 0);
    return PyType_IsSubtype(type, &PyType_Type)
               ? construct_class(type, args, 1, kwargs, construct_bare)
               : construct_bare(type, args, 1, kwargs);
}

static PyMethodDef new_method_def = {"__new__", (PyCFunction)(void (*)(void))new_method,
                                     METH_VARARGS | METH_KEYWORDS, NULL};

static PyObject *
copy_of_itself(PyObject *self, PyObject *Py_UNUSED(args))
{
    return Py_NewRef(self);
}

static PyMethodDef copy_methods[] = {
    {"__copy__", copy_of_itself, METH_VARARGS, NULL},
    {"__deepcopy__", copy_of_itself, METH_VARARGS, NULL},
};

int
proxy_add_copying(PyTypeObject *type, PyObject *reported)
{
    PyTypeObject *atomic[] = {&PyFunction_Type, &PyCFunction_Type, &PyCode_Type, &PyProperty_Type,
                              &_PyWeakref_RefType};
    int rc = 0;
    for (size_t i = 0; i < sizeof atomic / sizeof *atomic; i++) {
        for (size_t k = 0; rc == 0 && k < 2 && reported == (PyObject *)atomic[i]; k++) {
            PyObject *method = PyDescr_NewMethod(type, &copy_methods[k]);
            rc = method == NULL
                     ? -1
                     : PyObject_SetAttrString((PyObject *)type, copy_methods[k].ml_name, method);
            Py_XDECREF(method);
        }
    }
    return rc;
}

PyObject *
proxy_new_method(void)
{
    PyObject *function = PyCFunction_New(&new_method_def, NULL);
    PyObject *method = function == NULL ? NULL : PyStaticMethod_New(function);
    Py_XDECREF(function);
    return method;
}
