/* ops.c: the executors of ops.def. Each reads its operands, does what the operation says with the
 * real object, and returns the result. */
#include "batch.h"
#include "buffers.h"
#include "codec.h"
#include "handles.h"
#include "cursor.h"
#include "peer.h"
#include "proxy.h"

#include <stdlib.h>
#include <string.h>

typedef PyObject *(*executor)(struct incoming *in, unsigned *flags);

static PyObject *
none_if(int rc)
{
    return rc < 0 ? NULL : Py_NewRef(Py_None);
}

/* host.remote_<name>(*args, **kwargs) */
static PyObject *
op_host(struct incoming *in, unsigned *Py_UNUSED(flags))
{
    PyObject *name = decode_name(in);
    PyObject *full = name == NULL ? NULL : PyUnicode_FromFormat("remote_%U", name);
    PyObject *method = full == NULL ? NULL : PyObject_GetAttr(in->peer->host, full);
    PyObject *result = NULL;
    struct call call = {0};
    if (method != NULL && decode_call(in, &call, NULL) == 0) {
        result = PyObject_Vectorcall(
            method, call.args, (size_t)call.nargs | PY_VECTORCALL_ARGUMENTS_OFFSET, call.kwnames);
        call_free(&call);
    }
    Py_XDECREF(name);
    Py_XDECREF(full);
    Py_XDECREF(method);
    return result;
}

/* Attributes that are found by name for as long as the module's dict keeps them: the asking side
 * may cache these, and is told when one changes. */
static int
watch(PeerObject *peer, PyObject *module, PyObject *name, PyObject *value)
{
    PyObject *dict = PyModule_GetDict(module);
    if (PyDict_GetItemWithError(dict, name) != value ||
        !(PyFunction_Check(value) || PyCFunction_Check(value) || PyType_Check(value) ||
          PyModule_Check(value))) {
        PyErr_Clear();
        return 0;
    }
    for (size_t i = 0; i < peer->nwatched; i++) {
        if (peer->watched[i].dict == dict && peer->watched[i].name == name) {
            return peer->watched[i].value == value;
        }
    }
    if (peer->nwatched == peer->capwatched) {
        size_t capacity = peer->capwatched ? peer->capwatched * 2 : 32;
        struct watched *more = realloc(peer->watched, capacity * sizeof *more);
        if (more == NULL) {
            return 0;
        }
        peer->watched = more;
        peer->capwatched = capacity;
    }
    peer->watched[peer->nwatched++] = (struct watched){Py_NewRef(dict), Py_NewRef(name),
                                                       Py_NewRef(value), compat_dict_version(dict)};
    return 1;
}

bool
watched_changed(PeerObject *peer)
{
    bool changed = false;
    for (size_t i = 0; i < peer->nwatched && !changed; i++) {
        struct watched *w = &peer->watched[i];
        uint64_t version = compat_dict_version(w->dict);
        if (version != w->version) {
            w->version = version;
            changed = PyDict_GetItemWithError(w->dict, w->name) != w->value;
        }
    }
    if (changed) {
        PyErr_Clear();
        size_t n = peer->nwatched;
        struct watched *old = peer->watched;
        peer->watched = NULL;
        peer->nwatched = peer->capwatched = 0;
        for (size_t i = 0; i < n; i++) {
            Py_DECREF(old[i].dict);
            Py_DECREF(old[i].name);
            Py_DECREF(old[i].value);
        }
        free(old);
    }
    return changed;
}

/* C code that copies them to another function (functools.wraps), or asks for an array by its
 * interface, takes nothing but a real dict. */
static PyObject *
copy_annotations(PyObject *name, PyObject *value)
{
    core_state *core = core_get();
    if (value != NULL && PyDict_CheckExact(value) &&
        (is_name(name, core->str___annotations__) || is_name(name, core->str___kwdefaults__) ||
         is_name(name, core->str___array_interface__))) {
        Py_SETREF(value, PyDict_Copy(value));
    }
    return value;
}

/* Who calls __array__ wants an array of its own process: one that is held here is copied. */
static PyObject *
copy_array(PeerObject *peer, PyObject *name, PyObject *value)
{
    if (value != NULL && is_name(name, core_get()->str___array__) && is_ndarray(peer, value) &&
        (Py_REFCNT(value) > 1 || !is_fresh(value, true))) {
        Py_SETREF(value, PyObject_CallMethod(value, "copy", "s", "K"));
    }
    return value;
}

static PyObject *
op_getattr(struct incoming *in, unsigned *flags)
{
    PyObject *o = decode(in), *name = o == NULL ? NULL : decode_name(in);
    PyObject *result = name == NULL ? NULL : PyObject_GetAttr(o, name);
    if (result == NULL && name == core_get()->str___signature__ &&
        PyErr_ExceptionMatches(PyExc_AttributeError) && PyCallable_Check(o)) {
        /* Signatures are worked out where the function is. */
        PyErr_Clear();
        result = PyObject_CallMethod(in->peer->host, "signature", "O", o);
    }
    result = copy_annotations(name, result);
    if (result != NULL && !in->peer->is_kernel && PyModule_Check(o) &&
        watch(in->peer, o, name, result)) {
        *flags |= FRAME_CACHEABLE;
    }
    Py_XDECREF(o);
    Py_XDECREF(name);
    return result;
}

static PyObject *
op_setattr(struct incoming *in, unsigned *Py_UNUSED(flags))
{
    PyObject *o = decode(in), *name = o == NULL ? NULL : decode_name(in);
    PyObject *value = name == NULL ? NULL : decode(in);
    PyObject *result = value == NULL || pairs_snapshot(in->strand, 0) < 0
                           ? NULL
                           : none_if(PyObject_SetAttr(o, name, value));
    Py_XDECREF(o);
    Py_XDECREF(name);
    Py_XDECREF(value);
    return result;
}

static PyObject *
op_delattr(struct incoming *in, unsigned *Py_UNUSED(flags))
{
    PyObject *o = decode(in), *name = o == NULL ? NULL : decode_name(in);
    PyObject *result = name == NULL ? NULL : none_if(PyObject_DelAttr(o, name));
    Py_XDECREF(o);
    Py_XDECREF(name);
    return result;
}

/* There is nothing to call, as an exception says: the arguments are read all the same where calls
 * follow that may refer to them. */
static void
skip_arguments(struct incoming *in)
{
    struct call call;
    if (in->batch != NULL) {
        PyObject *raised = compat_take_exception();
        if (decode_call(in, &call, NULL) == 0) {
            call_free(&call);
        }
        PyErr_Clear();
        compat_raise(raised);
    }
}

/* Calls f with what is left of the frame; steals f, which may be NULL. */
static PyObject *
call_with_rest(struct incoming *in, PyObject *f)
{
    PyObject *result = NULL;
    struct call call;
    if (f != NULL && decode_call(in, &call, NULL) == 0) {
        result = PyObject_Vectorcall(
            f, call.args, (size_t)call.nargs | PY_VECTORCALL_ARGUMENTS_OFFSET, call.kwnames);
        call_free(&call);
    }
    Py_XDECREF(f);
    return result;
}

static PyObject *
op_call(struct incoming *in, unsigned *Py_UNUSED(flags))
{
    return call_with_rest(in, decode(in));
}

static PyObject *
op_callattr(struct incoming *in, unsigned *Py_UNUSED(flags))
{
    PyObject *o = decode(in), *name = o == NULL ? NULL : decode_name(in);
    PyObject *f = name == NULL ? NULL : PyObject_GetAttr(o, name);
    if (f == NULL && name != NULL) {
        skip_arguments(in);
    }
    PyObject *result = copy_array(in->peer, name, call_with_rest(in, f));
    Py_XDECREF(o);
    Py_XDECREF(name);
    return result;
}

/* The class and the descriptor that it has under the name that follows. */
static PyObject *
read_descriptor(struct incoming *in, PyTypeObject **cls, PyObject **name)
{
    PyObject *descriptor = NULL;
    *name = NULL;
    *cls = (PyTypeObject *)decode(in);
    if (*cls == NULL) {
        return NULL;
    }
    if (!PyType_Check(*cls)) {
        garbled("class expected");
        goto error;
    }
    *name = decode_name(in);
    PyObject *dict = *name == NULL ? NULL : compat_type_dict(*cls);
    if (dict == NULL) {
        goto error;
    }
    descriptor = Py_XNewRef(PyDict_GetItemWithError(dict, *name));
    Py_DECREF(dict);
    if (descriptor == NULL && !PyErr_Occurred()) {
        /* Inherited from a class that both sides have. */
        descriptor = Py_XNewRef(compat_type_lookup(*cls, *name));
        if (descriptor == NULL) {
            PyErr_Format(PyExc_AttributeError, "type object '%s' has no attribute '%U'",
                         (*cls)->tp_name, *name);
        }
    }
    if (descriptor != NULL) {
        return descriptor;
    }
    skip_arguments(in);
error:
    Py_CLEAR(*cls);
    Py_CLEAR(*name);
    return NULL;
}

bool
is_special_name(PyObject *name)
{
    Py_ssize_t n = PyUnicode_GET_LENGTH(name);
    return n > 4 && PyUnicode_READ_CHAR(name, 0) == '_' && PyUnicode_READ_CHAR(name, 1) == '_';
}

/* What a reducer that is registered for self's class says: a new reference, or NULL with an
 * exception. False when there is none. */
static APART bool
registered(PyObject *self, PyObject **result)
{
    *result =
        self == NULL ? NULL : PyObject_CallMethod(core_get()->errors, "registered", "(O)", self);
    if (*result == Py_None) {
        Py_CLEAR(*result);
        return false;
    }
    return self != NULL;
}

PyObject *
add_size(PyObject *size, Py_ssize_t more)
{
    if (size != NULL && PyLong_CheckExact(size)) {
        Py_ssize_t n = PyLong_AsSsize_t(size);
        if (n >= 0) {
            Py_SETREF(size, PyLong_FromSsize_t(n + more > 0 ? n + more : 0));
        }
        PyErr_Clear();
    }
    return size;
}

/* Does a class of the asking side, which stands here for self's, have a method of this name that
 * hides the one that is called? Then this is `super().method()`. */
static bool
is_overridden(PyObject *self, PyObject *name, PyObject *descriptor)
{
    return !PyType_Check(self) && table_get(&core_get()->mirrors, ADDRESS(Py_TYPE(self))) != NULL &&
           compat_type_lookup(Py_TYPE(self), name) != descriptor;
}

/* Calls a method in a frame that looks like that of the method which overrides it: bindings of C++
 * classes (pybind11) see by the calling frame that a virtual method is not to be dispatched again.
 */
static APART PyObject *
call_as_overridden(PyObject *descriptor, PyObject *name, const struct call *call)
{
    PyObject *self = call->args[0];
    PyObject *frame = PyObject_CallMethod(core_get()->errors, "overriding_frame", "(O)", name);
    descrgetfunc get = Py_TYPE(descriptor)->tp_descr_get;
    PyObject *f = frame == NULL ? NULL
                  : get == NULL ? Py_NewRef(descriptor)
                                : get(descriptor, self, (PyObject *)Py_TYPE(self));
    PyObject *result = NULL;
    size_t n = (size_t)call->nargs + (call->kwnames ? (size_t)PyTuple_GET_SIZE(call->kwnames) : 0);
    PyObject **args = f == NULL ? NULL : PyMem_New(PyObject *, n + 1);
    if (args != NULL) {
        args[0] = self;
        args[1] = f;
        memcpy(args + 2, call->args + 1, (n - 1) * sizeof *args);
        result = PyObject_Vectorcall(frame, args, (size_t)call->nargs + 1, call->kwnames);
        PyMem_Free(args);
    }
    else if (f != NULL) {
        PyErr_NoMemory();
    }
    Py_XDECREF(frame);
    Py_XDECREF(f);
    return result;
}

/* What an iterator of the built-in kinds gives, at once: those of `iter(o)` and `iter(o.items())`.
 */
static bool
is_plain_iterator(PyTypeObject *type)
{
    static const char *const plain[] = {"list_iterator", "dict_itemiterator", "odict_iterator",
                                        "_collections._deque_iterator",
                                        "collections._deque_iterator" /* since CPython 3.12 */};
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++) {
        if (strcmp(type->tp_name, plain[i]) == 0) {
            /* No class that Python code has made. */
            return !(type->tp_flags & Py_TPFLAGS_HEAPTYPE) ||
                   (type->tp_flags & Py_TPFLAGS_IMMUTABLETYPE);
        }
    }
    return false;
}

/* The items in what __reduce_ex__ has returned go as tuples instead of iterators, which the other
 * side would have to ask for each item; it makes iterators of them again. Steals `parts`. */
static APART PyObject *
with_items(PyObject *parts)
{
    if (parts == NULL || !PyTuple_CheckExact(parts) || PyTuple_GET_SIZE(parts) < 4) {
        return parts;
    }
    PyObject *list = PySequence_List(parts);
    for (Py_ssize_t i = 3; list != NULL && i < PyList_GET_SIZE(list) && i < 5; i++) {
        PyObject *item = PyList_GET_ITEM(list, i);
        PyObject *items = is_plain_iterator(Py_TYPE(item)) ? PySequence_Tuple(item) : NULL;
        if (items != NULL) {
            PyList_SetItem(list, i, items);
        }
        else if (PyErr_Occurred()) {
            Py_CLEAR(list);
        }
    }
    Py_SETREF(parts, list == NULL ? NULL : PyList_AsTuple(list));
    Py_XDECREF(list);
    return parts;
}

/* Whether call_wrapped() can do it; what it cannot goes the ordinary way, which also says what is
 * wrong. */
static bool
is_wrapped_for(PyObject *wrapper, const struct call *call)
{
    return call->nargs > 0 && call->kwnames == NULL &&
           PyObject_TypeCheck(call->args[0], PyDescr_TYPE(wrapper));
}

/* Calls a slot of a class in C by its wrapper (`dict.__setitem__`), as tp_call does, but makes one
 * tuple of the arguments, and not one of all and then one of those behind self; for what is asked
 * for most, none. */
static APART PyObject *
call_wrapped(PyObject *wrapper, const struct call *call)
{
    PyObject *const *args = call->args;
    PyObject *result = NULL;
    if (Py_EnterRecursiveCall(" while calling a Python object") != 0) {
        return NULL;
    }
    bool subscript = call->nargs == 2 || call->nargs == 3;
    PyObject *value = call->nargs == 3 ? args[2] : NULL;
    if (!subscript || !compat_call_subscript(wrapper, args[0], args[1], value,
                                             core_get()->str___setitem__, &result)) {
        PyObject *rest = PyTuple_New(call->nargs - 1);
        for (Py_ssize_t i = 1; rest != NULL && i < call->nargs; i++) {
            PyTuple_SET_ITEM(rest, i - 1, Py_NewRef(args[i]));
        }
        if (rest != NULL) {
            result = compat_call_wrapped(wrapper, args[0], rest);
        }
        Py_XDECREF(rest);
    }
    Py_LeaveRecursiveCall();
    return result;
}

static PyObject *
op_method(struct incoming *in, unsigned *Py_UNUSED(flags))
{
    PyTypeObject *cls;
    PyObject *name, *result = NULL;
    PyObject *descriptor = read_descriptor(in, &cls, &name);
    struct call call;
    if (descriptor == NULL) {
        return NULL;
    }
    if (decode_call(in, &call, NULL) < 0) {
        goto done;
    }
    size_t offset = PY_VECTORCALL_ARGUMENTS_OFFSET;
    PyObject *self = call.nargs > 0 ? call.args[0] : NULL;
    PyObject *shadow = NULL;
    if (self != NULL && !is_special_name(name)) {
        /* An attribute of the instance hides a method of the class, as `self.f` does. */
        PyObject *dict = compat_instance_dict(self);
        shadow = dict == NULL ? NULL : PyDict_GetItemWithError(dict, name);
        Py_XINCREF(shadow);
    }
    if (shadow != NULL) {
        result = PyObject_Vectorcall(shadow, call.args + 1, (size_t)(call.nargs - 1), call.kwnames);
        Py_DECREF(shadow);
    }
    else if (PyErr_Occurred()) {
        result = NULL;
    }
    else if (name == core_get()->str___reduce_ex__ && registered(self, &result)) {
        /* that is it, or an exception */
    }
    else if (self != NULL && name == core_get()->str___call__ &&
             compat_type_lookup(Py_TYPE(self), name) == descriptor) {
        /* What calling it means, without the way through a slot wrapper. */
        result = PyObject_Vectorcall(self, call.args + 1, (size_t)(call.nargs - 1) | offset,
                                     call.kwnames);
    }
    else if (self != NULL && !is_special_name(name) && is_overridden(self, name, descriptor)) {
        result = call_as_overridden(descriptor, name, &call);
    }
    else if (Py_IS_TYPE(descriptor, &PyWrapperDescr_Type) && is_wrapped_for(descriptor, &call)) {
        result = call_wrapped(descriptor, &call);
    }
    else if (self == NULL || (Py_TYPE(descriptor)->tp_flags & Py_TPFLAGS_METHOD_DESCRIPTOR)) {
        result =
            PyObject_Vectorcall(descriptor, call.args, (size_t)call.nargs | offset, call.kwnames);
    }
    else {
        descrgetfunc get = Py_TYPE(descriptor)->tp_descr_get;
        bool of_class = PyType_Check(self) && PyType_IsSubtype((PyTypeObject *)self, cls);
        PyObject *f = get == NULL ? Py_NewRef(descriptor)
                      : of_class  ? get(descriptor, NULL, self)
                                  : get(descriptor, self, (PyObject *)Py_TYPE(self));
        if (f != NULL) {
            result = PyObject_Vectorcall(f, call.args + 1, (size_t)(call.nargs - 1), call.kwnames);
            Py_DECREF(f);
        }
    }
    if (name == core_get()->str___reduce_ex__ && !in->peer->is_kernel) {
        result = with_items(result);
    }
    if (name == core_get()->str___sizeof__ && self != NULL && !PyType_Check(self)) {
        result = add_size(result, compat_size_before(Py_TYPE(self)));
    }
    if (result == Py_None && name == core_get()->str___init__ && PyExceptionInstance_Check(self)) {
        Py_SETREF(result, Py_NewRef(self)); /* the other side has a copy: what it holds now */
    }
    result = copy_array(in->peer, name, result);
    call_free(&call);
done:
    Py_DECREF(descriptor);
    Py_DECREF(cls);
    Py_DECREF(name);
    return result;
}

static PyObject *
op_get(struct incoming *in, unsigned *Py_UNUSED(flags))
{
    PyTypeObject *cls;
    PyObject *name, *result = NULL;
    PyObject *descriptor = read_descriptor(in, &cls, &name);
    if (descriptor == NULL) {
        return NULL;
    }
    PyObject *o = decode(in), *owner = o == NULL ? NULL : decode(in);
    if (owner != NULL) {
        descrgetfunc get = Py_TYPE(descriptor)->tp_descr_get;
        /* A type cannot be looked into while an exception is set: first. */
        PyObject *next = compat_type_lookup(Py_TYPE(o), core_get()->str___getattr__);
        bool of_class = o == Py_None && owner != (PyObject *)Py_TYPE(o);
        result = get == NULL ? Py_NewRef(descriptor) : get(descriptor, of_class ? NULL : o, owner);
        if (result == NULL && next != NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
            /* What the look-up of the attribute would have done next. */
            PyErr_Clear();
            result = PyObject_GetAttr(o, name);
        }
        result = copy_annotations(name, result);
    }
    Py_XDECREF(o);
    Py_XDECREF(owner);
    Py_DECREF(descriptor);
    Py_DECREF(cls);
    Py_DECREF(name);
    return result;
}

static PyObject *
write_descriptor(struct incoming *in, bool delete)
{
    PyTypeObject *cls;
    PyObject *name, *result = NULL, *value = NULL;
    PyObject *descriptor = read_descriptor(in, &cls, &name);
    if (descriptor == NULL) {
        return NULL;
    }
    PyObject *o = decode(in);
    if (o != NULL && (delete || (value = decode(in)) != NULL)) {
        descrsetfunc set = Py_TYPE(descriptor)->tp_descr_set;
        if (pairs_snapshot(in->strand, 0) < 0) {
            result = NULL;
        }
        else if (set == NULL) {
            PyErr_Format(PyExc_AttributeError, "attribute '%U' of '%s' objects is not writable",
                         name, cls->tp_name);
        }
        else {
            result = none_if(set(descriptor, o, value));
        }
    }
    Py_XDECREF(o);
    Py_XDECREF(value);
    Py_DECREF(descriptor);
    Py_DECREF(cls);
    Py_DECREF(name);
    return result;
}

static PyObject *
op_set(struct incoming *in, unsigned *Py_UNUSED(flags))
{
    return write_descriptor(in, false);
}

static PyObject *
op_delete(struct incoming *in, unsigned *Py_UNUSED(flags))
{
    return write_descriptor(in, true);
}

static PyObject *
op_stubattr(struct incoming *in, unsigned *Py_UNUSED(flags))
{
    PyTypeObject *cls;
    PyObject *name, *result = NULL;
    PyObject *descriptor = read_descriptor(in, &cls, &name);
    if (descriptor == NULL) {
        return NULL;
    }
    PyObject *attribute = decode_name(in);
    if (attribute != NULL) {
        result = PyObject_GetAttr(descriptor, attribute);
        if (result == NULL && attribute == core_get()->str___signature__ &&
            PyErr_ExceptionMatches(PyExc_AttributeError)) {
            PyErr_Clear();
            result = PyObject_CallMethod(in->peer->host, "signature", "O", descriptor);
        }
        result = copy_annotations(attribute, result);
        Py_DECREF(attribute);
    }
    Py_DECREF(descriptor);
    Py_DECREF(cls);
    Py_DECREF(name);
    return result;
}

/* Returns what the class's own __dict__ had under the name, in a tuple; an empty one if nothing. */
static PyObject *
op_setclass(struct incoming *in, unsigned *Py_UNUSED(flags))
{
    PyObject *cls = decode(in), *name = cls == NULL ? NULL : decode_name(in);
    bool set = read_u8(&in->r) != 0;
    PyObject *value = name == NULL || !set ? NULL : decode(in), *result = NULL;
    if (name == NULL || (set && value == NULL)) {
        goto done;
    }
    if (!PyType_Check(cls)) {
        garbled("class expected");
        goto done;
    }
    PyObject *dict = compat_type_dict((PyTypeObject *)cls);
    PyObject *before = dict == NULL ? NULL : Py_XNewRef(PyDict_GetItemWithError(dict, name));
    Py_XDECREF(dict);
    if (!PyErr_Occurred() && PyObject_SetAttr(cls, name, value) == 0) {
        result = before == NULL ? PyTuple_New(0) : PyTuple_Pack(1, before);
    }
    Py_XDECREF(before);
done:
    Py_XDECREF(cls);
    Py_XDECREF(name);
    Py_XDECREF(value);
    return result;
}

static PyObject *
op_iterate(struct incoming *in, unsigned *Py_UNUSED(flags))
{
    PyTypeObject *cls;
    PyObject *name, *result = NULL;
    PyObject *descriptor = read_descriptor(in, &cls, &name);
    if (descriptor == NULL) {
        return NULL;
    }
    PyObject *o = decode(in);
    struct iterate asked = {.epoch = in->header.epoch};
    asked.position = read_u64(&in->r);
    asked.want = read_u64(&in->r);
    asked.length = read_u64(&in->r);
    if (o != NULL && in->r.failed) {
        garbled("iteration");
    }
    else if (o != NULL) {
        result = cursor_answer(cls, descriptor, o, &asked);
    }
    Py_XDECREF(o);
    Py_DECREF(descriptor);
    Py_DECREF(cls);
    Py_DECREF(name);
    return result;
}

/* home.__new__(cls, *args, **kwargs) */
static PyObject *
call_new(PyObject *home, PyTypeObject *cls, PyObject *args, PyObject *kwargs)
{
    PyObject *method = PyObject_GetAttr(home, core_get()->str___new__), *result = NULL;
    PyObject *first = method == NULL ? NULL : PyTuple_Pack(1, cls);
    PyObject *all = first == NULL ? NULL : PySequence_Concat(first, args);
    if (all != NULL) {
        result = PyObject_Call(method, all, kwargs);
    }
    Py_XDECREF(method);
    Py_XDECREF(first);
    Py_XDECREF(all);
    return result;
}

/* An instance of a class of the asking side that derives from one of ours: made by our class's
 * __new__; its __init__ is the asking side's business. */
static PyObject *
op_new(struct incoming *in, unsigned *Py_UNUSED(flags))
{
    PyTypeObject *cls = (PyTypeObject *)decode(in);
    PyObject *result = NULL, *args = NULL, *kwargs = NULL;
    struct call call = {0};
    if (cls == NULL) {
        return NULL;
    }
    if (!PyType_Check(cls)) {
        garbled("class expected");
        goto done;
    }
    if (decode_call(in, &call, NULL) < 0) {
        goto done;
    }
    /* As type.__call__ would: by the first __new__ in the MRO, but for those that ask the other
     * side. */
    PyTypeObject *home = NULL;
    for (Py_ssize_t i = 0; home == NULL && i < PyTuple_GET_SIZE(cls->tp_mro); i++) {
        PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(cls->tp_mro, i);
        PyObject *dict =
            table_get(&core_get()->mirrors, ADDRESS(base)) == NULL ? compat_type_dict(base) : NULL;
        if (dict != NULL && PyDict_GetItemWithError(dict, core_get()->str___new__) != NULL) {
            home = base;
        }
        Py_XDECREF(dict);
    }
    args = PyTuple_New(call.nargs);
    for (Py_ssize_t i = 0; args != NULL && i < call.nargs; i++) {
        PyTuple_SET_ITEM(args, i, Py_NewRef(call.args[i]));
    }
    if (call.kwnames != NULL) {
        kwargs = PyDict_New();
        for (Py_ssize_t i = 0; kwargs != NULL && i < PyTuple_GET_SIZE(call.kwnames); i++) {
            if (PyDict_SetItem(kwargs, PyTuple_GET_ITEM(call.kwnames, i),
                               call.args[call.nargs + i]) < 0) {
                Py_CLEAR(kwargs);
            }
        }
    }
    if (home != NULL && args != NULL && !PyErr_Occurred()) {
        PyObject *method = compat_type_lookup(home, core_get()->str___new__);
        if (method != NULL && !PyCFunction_Check(method)) {
            /* Not by tp_new: that of a Python class looks for cls's __new__, which has asked us. */
            result = call_new((PyObject *)home, cls, args, kwargs);
        }
        else {
            result = home->tp_new(cls, args, kwargs);
        }
    }
done:
    call_free(&call);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    Py_DECREF(cls);
    return result;
}

static PyObject *
op_buffer(struct incoming *in, unsigned *Py_UNUSED(flags))
{
    PyObject *o = decode(in), *result = NULL;
    int flags = (int)read_u32(&in->r);
    if (o != NULL && in->r.failed) {
        garbled("buffer");
    }
    else if (o != NULL) {
        result = buffer_hold(in->peer, o, flags);
    }
    Py_XDECREF(o);
    return result;
}

static const struct {
    const char *name;
    executor execute; /* NULL: an event */
} table[] = {
#define REQUEST(NAME, text, executor) [OP_##NAME] = {text, executor},
#define EVENT(NAME, text) [OP_##NAME] = {text, NULL},
#include "ops.def"
#undef REQUEST
#undef EVENT
};

const char *
op_name(unsigned op)
{
    return op < OP_COUNT ? table[op].name : "?";
}

PyObject *
op_execute(struct incoming *in, unsigned *flags)
{
    if (in->header.op >= OP_COUNT || table[in->header.op].execute == NULL) {
        garbled("unknown operation");
        return NULL;
    }
    return compat_check_result(NULL, table[in->header.op].execute(in, flags),
                               table[in->header.op].name);
}
