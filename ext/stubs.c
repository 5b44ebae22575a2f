/* stubs.c: the names of a mirrored class: methods, data and other attributes, each looked up over
 * there with each use; class and static methods once they are bound. */
#include "proxy.h"

#include "ahead.h"
#include "codec.h"
#include "handles.h"
#include "iteration.h"
#include "peer.h"
#include "views.h"

#include <string.h>

static RARE PyObject *
lost_repr(PyObject *self, struct proxy *p)
{
    PyObject *name = PyObject_GetAttrString(p->peer->host, "name");
    PyObject *text =
        PyUnicode_FromFormat("<lost %s object of context %R>", Py_TYPE(self)->tp_name, name);
    Py_XDECREF(name);
    return text;
}

/* `o[key]` of an exact list, and an index: nothing else runs over there. In a dict there may be
 * keys whose __eq__ does. */
static bool
is_plain_item(StubObject *stub, PyObject *o, PyObject *key)
{
    if (!PyLong_CheckExact(key) || (PyObject *)Py_TYPE(o) != stub->cls) {
        return false;
    }
    struct mirror *mirror = table_get(&core_get()->mirrors, ADDRESS(stub->cls));
    return mirror != NULL && mirror->reported == (PyObject *)&PyList_Type;
}

/* ---- stubs ------------------------------------------------------------------------------- */

/* New reference to what the call gives, where this side knows it, or is to ask for more than that;
 * NULL without an exception where it is to be asked for. */
static PyObject *
answer_here(StubObject *stub, struct proxy *p, PyObject *const *args, Py_ssize_t nargs)
{
    if (p->ahead != NULL) {
        PyObject *known = ahead_answer(stub, p, args, nargs);
        if (known != NULL || PyErr_Occurred()) {
            return known;
        }
    }
    if (stub->view != 0 && nargs == 1) {
        PyObject *view = view_new(stub, p);
        if (view != NULL || PyErr_Occurred()) {
            return view;
        }
    }
    switch (stub->kind) {
    case 'i':
        return nargs == 1 ? iteration_new(stub, p) : NULL;
    case 'n':
    case 'g':
        return iteration_seen(stub, p, args, nargs);
    default:
        return NULL;
    }
}

static PyObject *
ask(StubObject *stub, struct proxy *p, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    struct message m;
    PeerObject *peer = (PeerObject *)stub->peer;
    if (peer == NULL && p != NULL) {
        peer = p->peer; /* of object, see object_methods.c */
    }
    if (request_begin(peer, &m, OP_METHOD | stub->deferrable) < 0) {
        return NULL;
    }
    m.pure = stub->kind == 'n' ||
             (stub->kind == 'g' && nargs == 2 && kwnames == NULL &&
              is_plain_item(stub, args[0], args[1])) ||
             (stub->view != 0 && p != NULL && nargs == 1 && view_is_pure(stub, p));
    message_about(&m, nargs > 0 ? args[0] : NULL);
    m.operation = "method";
    m.operand = stub->name == core_get()->str___call__ && nargs > 0 ? args[0] : (PyObject *)stub;
    if (encode(&m, stub->cls, false) < 0 || encode_name(&m, stub->name) < 0 ||
        encode_call(&m, args, nargs, kwnames) < 0) {
        request_abandon(&m);
        return NULL;
    }
    PyObject *result = request_finish(&m);
    if (result != NULL && stub->view != 0) {
        view_seen(stub, result);
    }
    return result;
}

/* __reduce__ and __reduce_ex__ of a proxy. */
static PyObject *
reduce(StubObject *stub, struct proxy *p, PyObject *const *args, Py_ssize_t nargs,
       PyObject *kwnames)
{
    PeerObject *peer = stub->peer == NULL ? p->peer : (PeerObject *)stub->peer;
    struct mirror *mirror = mirror_of(Py_TYPE(args[0]));
    PyTypeObject *reported = mirror == NULL ? NULL : (PyTypeObject *)mirror->reported;
    if (peer->is_kernel && (reported == &PyFunction_Type || reported == &PyCFunction_Type)) {
        return PyObject_CallMethod(peer->host, "reduce_function", "O", args[0]);
    }
    if (reported == &PyDict_Type || reported == &PyList_Type || reported == &PySet_Type ||
        reported == &PyByteArray_Type) {
        return PyObject_CallMethod(peer->host, "reduce_container", "O", args[0]);
    }
    PyObject *in_band[2], *four = NULL; /* strong or NULL */
    long protocol = nargs == 2 && PyLong_CheckExact(args[1]) ? PyLong_AsLong(args[1]) : 0;
    if (protocol > 4 && kwnames == NULL) {
        /* A PickleBuffer would be one of memory over there: in-band says the same. */
        four = PyLong_FromLong(4);
        if (four == NULL) {
            return NULL;
        }
        in_band[0] = args[0];
        in_band[1] = four;
        args = in_band;
    }
    PyObject *result = ask(stub, p, args, nargs, kwnames);
    Py_XDECREF(four);
    if (result != NULL && peer->is_kernel) {
        Py_SETREF(result, PyObject_CallMethod(peer->host, "reduced", "(O)", result));
    }
    return result;
}

/* A call that takes more than a request, see is_special_call(). */
static APART PyObject *
call_special(StubObject *stub, struct proxy *p, PyObject *const *args, Py_ssize_t nargs,
             PyObject *kwnames)
{
    core_state *core = core_get();
    bool shows = stub->name == core->str___repr__ || stub->name == core->str___str__;
    if (p != NULL && shows && proxy_is_lost(p)) {
        return PyExceptionInstance_Check(args[0])
                   ? ((PyTypeObject *)PyExc_BaseException)->tp_str(args[0])
                   : lost_repr(args[0], p);
    }
    if (p != NULL && kwnames == NULL) {
        PyObject *known = answer_here(stub, p, args, nargs);
        if (known != NULL || PyErr_Occurred()) {
            return known;
        }
    }
    if (p != NULL &&
        (stub->name == core->str___reduce_ex__ || stub->name == core->str___reduce__)) {
        return reduce(stub, p, args, nargs, kwnames);
    }
    if (stub->kind == 'q' && p != NULL && nargs == 2) {
        PyObject *items = PyList_Check(args[1]) ? PySequence_List(args[0]) : NULL;
        PyObject *sum = items != NULL      ? PySequence_Concat(args[1], items)
                        : PyErr_Occurred() ? NULL
                                           : Py_NewRef(Py_NotImplemented);
        Py_XDECREF(items);
        return sum;
    }
    PyObject *result = ask(stub, p, args, nargs, kwnames);
    if (result != NULL && nargs > 0 && result == args[0] && stub->name == core->str___init__ &&
        PyExceptionInstance_Check(result)) {
        Py_SETREF(result, Py_NewRef(Py_None)); /* it came back with what __init__ has made of it */
    }
    if (p != NULL && stub->name == core->str___sizeof__ && !PyType_Check(args[0])) {
        result = add_size(result, -compat_size_before(Py_TYPE(args[0])));
    }
    return result;
}

static bool
is_special_call(core_state *core, PyObject *name, char kind)
{
    return kind == 'q' || name == core->str___repr__ || name == core->str___str__ ||
           name == core->str___reduce_ex__ || name == core->str___reduce__ ||
           name == core->str___init__ || name == core->str___sizeof__;
}

static PyObject *
stub_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    StubObject *stub = (StubObject *)callable;
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    if (building > 0) {
        Py_RETURN_NONE; /* type.__new__ calls hooks of a class that was finished elsewhere */
    }
    struct proxy *p = nargs == 0 ? NULL : proxy_find(args[0]);
    if (stub->special) {
        return call_special(stub, p, args, nargs, kwnames);
    }
    if (p != NULL && kwnames == NULL && (stub->answers || p->ahead != NULL)) {
        PyObject *known = answer_here(stub, p, args, nargs);
        if (known != NULL || PyErr_Occurred()) {
            return known;
        }
    }
    return ask(stub, p, args, nargs, kwnames);
}

/* What the language calls by itself needs its result at once: special methods, and the keys() of
 * `dict(o)` and `**o`. */
static unsigned
deferrable(core_state *core, PyObject *name, char kind)
{
    bool called = strchr("mfcs", kind) != NULL &&
                  (name == core->str___call__ ||
                   (!is_special_name(name) && PyUnicode_CompareWithASCIIString(name, "keys") != 0));
    return called ? OP_DEFERRABLE : 0;
}

PyObject *
stub_new(PyTypeObject *cls, PyObject *name, char kind, bool abstract)
{
    core_state *core = core_get();
    PyTypeObject *type = strchr("mfingq", kind) != NULL ? core->method_type
                         : strchr("dDpo", kind) != NULL ? core->data_type
                                                        : core->value_type;
    StubObject *stub = PyObject_GC_New(StubObject, type);
    if (stub != NULL) {
        stub->vectorcall = stub_call;
        stub->cls = Py_NewRef(cls);
        stub->peer = Py_XNewRef(peer_of_type(cls));
        stub->name = Py_NewRef(name);
        stub->kind = kind;
        stub->abstract = abstract;
        stub->target = NULL;
        stub->own = false;
        stub->view = kind == 'm' ? view_which(name) : 0;
        stub->deferrable = deferrable(core, name, kind);
        stub->answers = stub->view != 0 || strchr("ing", kind) != NULL;
        stub->special = is_special_call(core, name, kind);
        PyObject_GC_Track(stub);
    }
    return (PyObject *)stub;
}

bool
is_stub(PyObject *o)
{
    core_state *core = core_get();
    PyTypeObject *type = Py_TYPE(o);
    return type == core->method_type || type == core->data_type || type == core->value_type;
}

static int
stub_traverse(StubObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->cls);
    Py_VISIT(self->peer);
    Py_VISIT(self->target);
    return 0;
}

static int
stub_clear(StubObject *self)
{
    Py_CLEAR(self->cls);
    Py_CLEAR(self->peer);
    Py_CLEAR(self->target);
    return 0;
}

static void
stub_dealloc(StubObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->cls);
    Py_CLEAR(self->peer);
    Py_CLEAR(self->target);
    Py_CLEAR(self->name);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyObject *stub_qualname(StubObject *self, void *closure);

static PyObject *
stub_repr(StubObject *self)
{
    static const struct {
        char kind;
        const char *text;
    } words[] = {{'m', "method"}, {'c', "method"}, {'s', "method"}};
    const char *word = "attribute";
    if (self->kind == 'f') { /* as of a function, which isinstance() takes it for */
        PyObject *qualname = stub_qualname(self, NULL);
        PyObject *text =
            qualname == NULL ? NULL : PyUnicode_FromFormat("<function %U at %p>", qualname, self);
        Py_XDECREF(qualname);
        return text;
    }
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        if (words[i].kind == self->kind) {
            word = words[i].text;
        }
    }
    return PyUnicode_FromFormat("<%s '%U' of '%s' objects>", word, self->name,
                                ((PyTypeObject *)self->cls)->tp_name);
}

static PyObject *
method_get(PyObject *self, PyObject *o, PyObject *Py_UNUSED(type))
{
    return o == NULL || o == Py_None ? Py_NewRef(self) : PyMethod_New(self, o);
}

static PyObject *
data_get(PyObject *self, PyObject *o, PyObject *type)
{
    StubObject *stub = (StubObject *)self;
    bool of_class = o == NULL || o == Py_None;
    if (building > 0 || (of_class && (stub->kind != 'D' || type == NULL))) {
        return Py_NewRef(self);
    }
    if (of_class) {
        o = Py_None; /* read from the class: a descriptor of a type of its own may give anything */
    }
    struct message m;
    if (request_begin(peer_of_type((PyTypeObject *)stub->cls), &m, OP_GET) < 0) {
        return NULL;
    }
    message_about(&m, o == Py_None ? stub->cls : o);
    if (encode(&m, stub->cls, false) < 0 || encode_name(&m, stub->name) < 0 ||
        encode(&m, o, false) < 0 || encode(&m, type ? type : (PyObject *)Py_TYPE(o), false) < 0) {
        request_abandon(&m);
        return NULL;
    }
    return request_finish(&m);
}

static int
data_set(PyObject *self, PyObject *o, PyObject *value)
{
    StubObject *stub = (StubObject *)self;
    struct message m;
    if (request_begin(peer_of_type((PyTypeObject *)stub->cls), &m,
                      value == NULL ? OP_DELETE : OP_SET) < 0) {
        return -1;
    }
    message_about(&m, o);
    if (encode(&m, stub->cls, false) < 0 || encode_name(&m, stub->name) < 0 ||
        encode(&m, o, false) < 0 || (value != NULL && encode(&m, value, false) < 0)) {
        request_abandon(&m);
        return -1;
    }
    PyObject *none = request_finish(&m);
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}

bool
is_classmethod_kind(StubObject *stub)
{
    return stub->kind == 'c' || stub->kind == 's' || stub->kind == 'a';
}

static PyObject *
value_get(PyObject *self, PyObject *o, PyObject *type)
{
    StubObject *stub = (StubObject *)self;
    if (building > 0 && !is_classmethod_kind(stub)) {
        return Py_NewRef(self); /* else: an __init_subclass__ that is called, and does nothing */
    }
    PyObject *owner = o == NULL || o == Py_None ? type : o;
    if (owner == NULL) {
        return Py_NewRef(self);
    }
    if (is_classmethod_kind(stub)) {
        return bound_new(owner, stub);
    }
    if (owner == o) {
        /* What this very class has: the look-up in the instance has been done, and super() wants no
         * other class's. */
        return data_get(self, o, type);
    }
    if (!PyType_IsSubtype((PyTypeObject *)owner, (PyTypeObject *)stub->cls)) {
        owner = stub->cls; /* copied from that class's __dict__ to another's */
    }
    return remote_getattr(peer_of_type((PyTypeObject *)stub->cls), owner, stub->name);
}

/* What isinstance() sees: inspect and pydoc tell functions, properties and the rest apart by it. */
static PyObject *
stub_class(StubObject *self, void *Py_UNUSED(closure))
{
    switch (self->kind) {
    case 'f':
        return Py_NewRef(&PyFunction_Type);
    case 'p':
        return Py_NewRef(&PyProperty_Type);
    case 'c':
        return Py_NewRef(&PyClassMethod_Type);
    case 's':
        return Py_NewRef(&PyStaticMethod_Type);
    default:
        return Py_NewRef(Py_TYPE(self));
    }
}

/* What the descriptor over there says of itself: __doc__, __signature__, fget ... */
static PyObject *
stub_getattro(PyObject *self, PyObject *name)
{
    StubObject *stub = (StubObject *)self;
    core_state *core = core_get();
    if (name == core->str___isabstractmethod__) {
        return PyBool_FromLong(stub->abstract);
    }
    if (name == core->str___module__) { /* the generic way finds that of the stub's own type */
        return PyObject_GetAttr(stub->cls, name);
    }
    if (name != core->str___doc__) {
        PyObject *o = PyObject_GenericGetAttr(self, name);
        if (o != NULL || !PyErr_ExceptionMatches(PyExc_AttributeError)) {
            return o;
        }
        Py_ssize_t n;
        const char *text = PyUnicode_AsUTF8AndSize(name, &n);
        bool local =
            building > 0 || name == core->str___wrapped__ ||
            (text != NULL && ((stub->kind != 'f' && strcmp(text, "__code__") == 0) ||
                              strcmp(text, "__set_name__") == 0 ||
                              (!is_classmethod_kind(stub) && strcmp(text, "__func__") == 0)));
        if (local || ((PyTypeObject *)stub->cls) == NULL) {
            return NULL;
        }
        PyErr_Clear();
    }
    if (building > 0) {
        Py_RETURN_NONE;
    }
    struct message m;
    if (request_begin(peer_of_type((PyTypeObject *)stub->cls), &m, OP_STUBATTR) < 0) {
        return NULL;
    }
    if (encode(&m, stub->cls, false) < 0 || encode_name(&m, stub->name) < 0 ||
        encode_name(&m, name) < 0) {
        request_abandon(&m);
        return NULL;
    }
    return request_finish(&m);
}

static PyObject *
stub_qualname(StubObject *self, void *Py_UNUSED(closure))
{
    PyObject *qualname = PyType_GetQualName((PyTypeObject *)self->cls);
    PyObject *text = qualname == NULL ? NULL : PyUnicode_FromFormat("%U.%U", qualname, self->name);
    Py_XDECREF(qualname);
    return text;
}

static PyMemberDef stub_members[] = {
    {"__name__", T_OBJECT, offsetof(StubObject, name), READONLY, NULL},
    {"__objclass__", T_OBJECT, offsetof(StubObject, cls), READONLY, NULL},
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(StubObject, vectorcall), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyObject *stub_getattro(PyObject *self, PyObject *name);
static PyObject *bound_getattro(PyObject *self, PyObject *name);

/* For object.__getattribute__, which pydoc uses. */
static PyObject *
stub_doc(PyObject *self, void *Py_UNUSED(closure))
{
    return stub_getattro(self, core_get()->str___doc__);
}

static PyObject *
bound_doc(PyObject *self, void *Py_UNUSED(closure))
{
    return bound_getattro(self, core_get()->str___doc__);
}

static PyGetSetDef stub_getset[] = {
    {"__doc__", (getter)stub_doc, NULL, NULL, NULL},
    {"__class__", (getter)stub_class, NULL, NULL, NULL},
    {"__qualname__", (getter)stub_qualname, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

#define STUB_SLOTS                                                                                 \
    {Py_tp_traverse, stub_traverse}, {Py_tp_clear, stub_clear}, {Py_tp_dealloc, stub_dealloc},     \
        {Py_tp_repr, stub_repr}, {Py_tp_getattro, stub_getattro}, {Py_tp_members, stub_members},   \
    {                                                                                              \
        Py_tp_getset, stub_getset                                                                  \
    }

static PyType_Slot method_slots[] = {
    STUB_SLOTS,
    {Py_tp_descr_get, method_get},
    {Py_tp_call, PyVectorcall_Call},
    {0, NULL},
};
static PyType_Slot data_slots[] = {
    STUB_SLOTS,
    {Py_tp_descr_get, data_get},
    {Py_tp_descr_set, data_set},
    {0, NULL},
};
static PyType_Slot value_slots[] = {
    STUB_SLOTS,
    {Py_tp_descr_get, value_get},
    {0, NULL},
};

#define STUB_FLAGS (Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION)
static PyType_Spec method_spec = {
    "ipython_isolation._core.MethodStub", sizeof(StubObject), 0,
    STUB_FLAGS | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR, method_slots};
static PyType_Spec data_spec = {"ipython_isolation._core.DataStub", sizeof(StubObject), 0,
                                STUB_FLAGS, data_slots};
static PyType_Spec value_spec = {"ipython_isolation._core.ValueStub", sizeof(StubObject), 0,
                                 STUB_FLAGS, value_slots};

/* ---- class and static methods -------------------------------------------------------------- */

static PeerObject *
peer_of_owner(PyObject *owner)
{
    struct proxy *p = proxy_find(owner);
    if (p != NULL) {
        return p->peer;
    }
    return peer_of_type(PyType_Check(owner) ? (PyTypeObject *)owner : Py_TYPE(owner));
}

/* Whether an abstract class over there knows `cls`, registered there, for a subclass: True, or
 * NotImplemented, whereupon the classes of this side are asked. */
static PyObject *
remote_subclasscheck(PeerObject *peer, PyObject *abc, PyObject *cls)
{
    struct message m;
    if (request_begin(peer, &m, OP_CALLATTR) < 0) {
        return NULL;
    }
    PyObject *name = PyUnicode_FromString("__subclasscheck__");
    if (name == NULL || encode(&m, abc, false) < 0 || encode_name(&m, name) < 0 ||
        encode_call(&m, &cls, 1, NULL) < 0) {
        Py_XDECREF(name);
        request_abandon(&m);
        return NULL;
    }
    Py_DECREF(name);
    PyObject *known = request_finish(&m);
    if (known != NULL && known != Py_True) {
        Py_SETREF(known, Py_NewRef(Py_NotImplemented));
    }
    return known;
}

static PyObject *
bound_call(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *kwnames)
{
    BoundObject *bound = (BoundObject *)callable;
    struct message m;
    if (building > 0) {
        Py_RETURN_NONE;
    }
    PeerObject *peer = peer_of_owner(bound->owner);
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf),
               n = nargs + (kwnames ? PyTuple_GET_SIZE(kwnames) : 0);
    if (bound->name == core_get()->str___subclasshook__) {
        /* isinstance(x, SomeABC) asks all known subclasses: it must not start a child, nor fail. */
        bool asked =
            n == 1 && PyType_Check(args[0]) && peer_of_type((PyTypeObject *)args[0]) == peer;
        if (peer->state != PEER_RUNNING || (bound->kind == 'a' && !asked)) {
            Py_RETURN_NOTIMPLEMENTED;
        }
        if (bound->kind == 'a') {
            return remote_subclasscheck(peer, bound->cls, args[0]);
        }
    }
    /* super().method(): the class says which one; a class's own is what the attribute gives. */
    bool inherited = bound->kind == 'c' && PyType_Check(bound->owner) &&
                     table_get(&core_get()->mirrors, ADDRESS(bound->owner)) == NULL;
    PyObject *few[8], **shifted = n < 8 ? few : PyMem_New(PyObject *, n + 1);
    if (shifted == NULL) {
        return PyErr_NoMemory();
    }
    shifted[0] = bound->owner;
    if (n > 0) {
        memcpy(shifted + 1, args, (size_t)n * sizeof *args);
    }
    int rc = request_begin(peer, &m, (inherited ? OP_METHOD : OP_CALLATTR) | bound->deferrable);
    if (rc < 0) {
        goto done;
    }
    m.operation = "callattr";
    m.operand = (PyObject *)callable;
    message_about(&m, bound->owner);
    rc = encode(&m, inherited ? bound->cls : bound->owner, false) < 0 ||
                 encode_name(&m, bound->name) < 0 ||
                 (inherited ? encode_call(&m, shifted, nargs + 1, kwnames)
                            : encode_call(&m, args, nargs, kwnames)) < 0
             ? -1
             : 0;
    m.arguments.vector = args; /* what was shifted does not outlive this */
    m.arguments.nargs = nargs;
    if (rc < 0) {
        request_abandon(&m);
    }
done:
    if (shifted != few) {
        PyMem_Free(shifted);
    }
    return rc < 0 ? NULL : request_finish(&m);
}

PyObject *
bound_new(PyObject *owner, StubObject *stub)
{
    BoundObject *bound = PyObject_GC_New(BoundObject, core_get()->bound_type);
    if (bound != NULL) {
        bound->vectorcall = bound_call;
        bound->owner = Py_NewRef(owner);
        bound->name = Py_NewRef(stub->name);
        bound->cls = Py_NewRef(stub->cls);
        bound->kind = stub->kind;
        bound->deferrable = stub->deferrable;
        PyObject_GC_Track(bound);
    }
    return (PyObject *)bound;
}

static int
bound_traverse(BoundObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->owner);
    Py_VISIT(self->cls);
    return 0;
}

static void
bound_dealloc(BoundObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->owner);
    Py_CLEAR(self->name);
    Py_CLEAR(self->cls);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyObject *
bound_getattro(PyObject *self, PyObject *name)
{
    BoundObject *bound = (BoundObject *)self;
    if (name == core_get()->str___module__) {
        return PyObject_GetAttr(bound->cls, name);
    }
    if (name == core_get()->str___self__ && bound->kind == 'c') {
        PyObject *owner = bound->owner;
        return Py_NewRef(PyType_Check(owner) ? owner : (PyObject *)Py_TYPE(owner));
    }
    PyObject *o = name == core_get()->str___doc__ ? NULL : PyObject_GenericGetAttr(self, name);
    if (o != NULL || (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_AttributeError))) {
        return o;
    }
    PyErr_Clear();
    PyObject *target = remote_getattr(peer_of_owner(bound->owner), bound->owner, bound->name);
    if (target != NULL) {
        Py_SETREF(target, PyObject_GetAttr(target, name));
    }
    return target;
}

static PyObject *
bound_repr(BoundObject *self)
{
    return PyUnicode_FromFormat("<bound method %U of %R>", self->name, self->owner);
}

static PyObject *
bound_compare(PyObject *a, PyObject *b, int op)
{
    if (Py_TYPE(a) != Py_TYPE(b) || (op != Py_EQ && op != Py_NE)) {
        Py_RETURN_NOTIMPLEMENTED;
    }
    BoundObject *x = (BoundObject *)a, *y = (BoundObject *)b;
    bool same = x->owner == y->owner && PyUnicode_Compare(x->name, y->name) == 0;
    return PyBool_FromLong(same == (op == Py_EQ));
}

static Py_hash_t
bound_hash(BoundObject *self)
{
    Py_hash_t hash = PyObject_Hash(self->name);
    return hash == -1 ? -1 : hash ^ (Py_hash_t)((uintptr_t)self->owner >> 4);
}

static PyObject *
bound_class(BoundObject *self, void *Py_UNUSED(closure))
{
    return Py_NewRef(self->kind == 's' ? &PyFunction_Type : &PyMethod_Type);
}

static PyGetSetDef bound_getset[] = {
    {"__doc__", (getter)bound_doc, NULL, NULL, NULL},
    {"__class__", (getter)bound_class, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMemberDef bound_members[] = {
    {"__name__", T_OBJECT, offsetof(BoundObject, name), READONLY, NULL},
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(BoundObject, vectorcall), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot bound_slots[] = {
    {Py_tp_traverse, bound_traverse}, {Py_tp_dealloc, bound_dealloc},
    {Py_tp_getattro, bound_getattro}, {Py_tp_call, PyVectorcall_Call},
    {Py_tp_repr, bound_repr},         {Py_tp_richcompare, bound_compare},
    {Py_tp_hash, bound_hash},         {Py_tp_members, bound_members},
    {Py_tp_getset, bound_getset},     {0, NULL},
};
static PyType_Spec bound_spec = {"ipython_isolation._core.Bound", sizeof(BoundObject), 0,
                                 STUB_FLAGS | Py_TPFLAGS_HAVE_VECTORCALL, bound_slots};

bool
bound_method_parts(PyObject *o, PyObject **self, PyObject **name)
{
    core_state *core = core_get();
    if (PyMethod_Check(o) && Py_TYPE(PyMethod_GET_FUNCTION(o)) == core->method_type) {
        *self = PyMethod_GET_SELF(o);
        *name = ((StubObject *)PyMethod_GET_FUNCTION(o))->name;
        return true;
    }
    if (Py_TYPE(o) == core->bound_type) {
        *self = ((BoundObject *)o)->owner;
        *name = ((BoundObject *)o)->name;
        return true;
    }
    return false;
}

int
stubs_init(core_state *core, PyObject *module)
{
    struct {
        PyTypeObject **type;
        PyType_Spec *spec;
    } types[] = {
        {&core->method_type, &method_spec},
        {&core->data_type, &data_spec},
        {&core->value_type, &value_spec},
        {&core->bound_type, &bound_spec},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        *types[i].type = (PyTypeObject *)PyType_FromModuleAndSpec(module, types[i].spec, NULL);
        if (*types[i].type == NULL) {
            return -1;
        }
    }
    return 0;
}
