/* compat.h: everything that looks behind CPython's documented C-API, or differs between 3.11 and
 * 3.13, is here and nowhere else. */
#ifndef ISOLATION_COMPAT_H
#define ISOLATION_COMPAT_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>
#include <stdint.h>
#include <structmember.h>

#if PY_VERSION_HEX < 0x030B0000 || PY_VERSION_HEX >= 0x030E0000
#error "ipython_isolation supports CPython 3.11 to 3.13"
#endif

/* Borrowed: what `name` is in the MRO of `type`, or NULL without an exception. */
static inline PyObject *
compat_type_lookup(PyTypeObject *type, PyObject *name)
{
    return _PyType_Lookup(type, name);
}

/* The C function behind a special method of a type written in C, or NULL. */
static inline void *
compat_slot_of(PyObject *descriptor)
{
    return descriptor != NULL && Py_IS_TYPE(descriptor, &PyWrapperDescr_Type)
               ? ((PyWrapperDescrObject *)descriptor)->d_wrapped
               : NULL;
}

#if PY_VERSION_HEX >= 0x030D0000
PyAPI_FUNC(PyObject *)
    _Py_CheckFunctionResult(PyThreadState *, PyObject *, PyObject *, const char *);
#endif

/* What a call has returned, stolen; SystemError where a function in C has returned NULL without an
 * exception, or something with one, which would hit whatever runs next. Who says it: `callable`, or
 * `where` if that is NULL. */
static inline PyObject *
compat_check_result(PyObject *callable, PyObject *result, const char *where)
{
    return (result == NULL) == (PyErr_Occurred() != NULL)
               ? result
               : _Py_CheckFunctionResult(PyThreadState_Get(), callable, result, where);
}

/* What `wrapper`, a PyWrapperDescr_Type of self's class or one of its bases, does for
 * wrapper(self, *args). New reference, or NULL with an exception. */
static inline PyObject *
compat_call_wrapped(PyObject *wrapper, PyObject *self, PyObject *args)
{
    const PyWrapperDescrObject *w = (PyWrapperDescrObject *)wrapper;
    PyObject *result =
        w->d_base->flags & PyWrapperFlag_KEYWORDS
            ? ((wrapperfunc_kwds)(void (*)(void))w->d_base->wrapper)(self, args, w->d_wrapped, NULL)
            : w->d_base->wrapper(self, args, w->d_wrapped);
    return compat_check_result(wrapper, result, NULL);
}

/* The same for `o[key]` and `o[key] = value`, which need no tuple of arguments: value NULL for the
 * first; `setitem` is "__setitem__", interned (__delitem__ has the same slot). False, and nothing
 * was done, where the wrapper is another one. */
static inline bool
compat_call_subscript(PyObject *wrapper, PyObject *self, PyObject *key, PyObject *value,
                      PyObject *setitem, PyObject **result)
{
    const PyWrapperDescrObject *w = (PyWrapperDescrObject *)wrapper;
    size_t slot = (size_t)w->d_base->offset;
    if (value == NULL && slot == offsetof(PyHeapTypeObject, as_mapping.mp_subscript)) {
        *result = ((binaryfunc)w->d_wrapped)(self, key);
    }
    else if (value != NULL && slot == offsetof(PyHeapTypeObject, as_mapping.mp_ass_subscript) &&
             PyDescr_NAME(wrapper) == setitem) {
        int rc = ((objobjargproc)w->d_wrapped)(self, key, value);
        *result = rc == -1 && PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    }
    else {
        return false;
    }
    *result = compat_check_result(wrapper, *result, NULL);
    return true;
}

/* New reference to the type's own __dict__; static types keep it elsewhere since 3.12. */
static inline PyObject *
compat_type_dict(PyTypeObject *type)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyType_GetDict(type);
#else
    return Py_XNewRef(type->tp_dict);
#endif
}

/* Has the special method `name` that `type` itself defines call another C function. 0, or -1. */
static inline int
compat_replace_slot(PyTypeObject *type, const char *name, void *function)
{
    PyObject *dict = compat_type_dict(type);
    PyObject *descriptor = dict == NULL ? NULL : PyDict_GetItemString(dict, name);
    Py_XDECREF(dict);
    if (compat_slot_of(descriptor) == NULL) {
        PyErr_Format(PyExc_SystemError, "%s.%s is not what it was", type->tp_name, name);
        return -1;
    }
    ((PyWrapperDescrObject *)descriptor)->d_wrapped = function;
    return 0;
}

/* Has a method that `type` itself defines call another C function, by `ours`, which must live as
 * long as the type. Returns the definition it had; NULL with an exception. */
static inline const PyMethodDef *
compat_replace_method(PyTypeObject *type, PyObject *name, PyCFunction function, PyMethodDef *ours)
{
    PyObject *dict = compat_type_dict(type);
    PyObject *descriptor = dict == NULL ? NULL : PyDict_GetItemWithError(dict, name);
    Py_XDECREF(dict);
    if (descriptor == NULL || !Py_IS_TYPE(descriptor, &PyMethodDescr_Type)) {
        PyErr_Format(PyExc_SystemError, "%s.%U is not what it was", type->tp_name, name);
        return NULL;
    }
    const PyMethodDef *original = ((PyMethodDescrObject *)descriptor)->d_method;
    *ours = *original;
    ours->ml_meth = function;
    ((PyMethodDescrObject *)descriptor)->d_method = ours;
    return original;
}

/* Changes whenever the dict does (PEP 509; still kept up to date by 3.13). */
static inline uint64_t
compat_dict_version(PyObject *dict)
{
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
#if PY_VERSION_HEX >= 0x030C0000
    /* The low bits say who watches, not what changed. */
    return ((PyDictObject *)dict)->ma_version_tag >> 8;
#else
    return ((PyDictObject *)dict)->ma_version_tag;
#endif
#pragma GCC diagnostic pop
}

/* Borrowed: the instance's own __dict__ if it has one that was made already, else NULL. */
static inline PyObject *
compat_instance_dict(PyObject *o)
{
    PyObject *dict = NULL;
    if (Py_TYPE(o)->tp_dictoffset == 0 && !(Py_TYPE(o)->tp_flags & Py_TPFLAGS_MANAGED_DICT)) {
        return NULL;
    }
    PyObject **slot = _PyObject_GetDictPtr(o);
    if (slot != NULL) {
        dict = *slot;
    }
    return dict;
}

static inline bool
compat_has_instance_dict(PyTypeObject *type)
{
    return type->tp_dictoffset != 0 || (type->tp_flags & Py_TPFLAGS_MANAGED_DICT) != 0;
}

/* What sys.getsizeof() adds to __sizeof__() for what lies before an instance of `type`. */
static inline Py_ssize_t
compat_size_before(PyTypeObject *type)
{
    Py_ssize_t size = PyType_IS_GC(type) ? 2 * (Py_ssize_t)sizeof(uintptr_t) : 0; /* PyGC_Head */
#if PY_VERSION_HEX >= 0x030C0000
    unsigned long before = Py_TPFLAGS_MANAGED_DICT | Py_TPFLAGS_MANAGED_WEAKREF;
#else
    unsigned long before = Py_TPFLAGS_MANAGED_DICT;
#endif
    return size + (type->tp_flags & before ? 2 * (Py_ssize_t)sizeof(PyObject *) : 0);
}

/* Borrowed: the dict that a dict_keys, dict_values or dict_items object is a view of. */
static inline PyObject *
compat_dict_of_view(PyObject *view)
{
    return (PyObject *)((struct {
               PyObject_HEAD
               PyDictObject *dict;
           } *)view)
        ->dict;
}

/* What iterators over dicts, and their views, look like. */
struct compat_dict_iterator {
    PyObject_HEAD
    PyObject *dict; /* NULL at the end */
    Py_ssize_t used, position;
    PyObject *result;
    Py_ssize_t left;
};

/* Is it an iterator over a dict, or one of its views, from the front? */
static inline bool
compat_is_dict_iterator(PyObject *o)
{
    return Py_IS_TYPE(o, &PyDictIterKey_Type) || Py_IS_TYPE(o, &PyDictIterValue_Type) ||
           Py_IS_TYPE(o, &PyDictIterItem_Type);
}

/* Sets such a one to where it would be had it given the first n of a dict that had `length` keys,
 * and no gaps between them. */
static inline void
compat_dict_iterator_seek(PyObject *o, Py_ssize_t n, Py_ssize_t length)
{
    struct compat_dict_iterator *it = (struct compat_dict_iterator *)o;
    it->used = length;
    it->position = n;
    it->left = length - n;
}

/* How many entries of the dict, used or not, such a one has passed. */
static inline Py_ssize_t
compat_dict_iterator_position(PyObject *o)
{
    return ((struct compat_dict_iterator *)o)->position;
}

/* Passes n entries more, all of which are used. */
static inline void
compat_dict_iterator_skip(PyObject *o, Py_ssize_t n)
{
    ((struct compat_dict_iterator *)o)->position += n;
    ((struct compat_dict_iterator *)o)->left -= n;
}

/* What iterators over lists look like, from either end. */
struct compat_list_iterator {
    PyObject_HEAD
    Py_ssize_t index;
    PyObject *list; /* NULL at the end */
};

static inline bool
compat_is_list_iterator(PyObject *o)
{
    return Py_IS_TYPE(o, &PyListIter_Type) || Py_IS_TYPE(o, &PyListRevIter_Type);
}

/* Passes n items more, whether the list has them still or not; but for one that has ended. */
static inline void
compat_list_iterator_skip(PyObject *o, Py_ssize_t n)
{
    struct compat_list_iterator *it = (struct compat_list_iterator *)o;
    if (it->list != NULL) {
        it->index += Py_IS_TYPE(o, &PyListIter_Type) ? n : -n;
    }
}

/* The exception under way, normalised, as a new reference; NULL when there is none. Clears it. */
static inline PyObject *
compat_take_exception(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    if (type == NULL) {
        return NULL;
    }
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL) {
        PyException_SetTraceback(value, traceback);
    }
    Py_DECREF(type);
    Py_XDECREF(traceback);
    return value;
#endif
}

/* Raises exc with its own traceback; steals the reference. */
static inline void
compat_raise(PyObject *exc)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(exc);
#else
    PyErr_Restore(Py_NewRef(Py_TYPE(exc)), exc, PyException_GetTraceback(exc));
#endif
}

/* The sign and magnitude of an int as little-endian two's complement bytes. */
static inline int
compat_long_as_bytes(PyObject *v, unsigned char *bytes, size_t n)
{
#if PY_VERSION_HEX >= 0x030D0000
    return _PyLong_AsByteArray((PyLongObject *)v, bytes, n, 1, 1, 1);
#else
    return _PyLong_AsByteArray((PyLongObject *)v, bytes, n, 1, 1);
#endif
}

static inline PyObject *
compat_long_from_bytes(const unsigned char *bytes, size_t n)
{
    return _PyLong_FromByteArray(bytes, n, 1, 1);
}

/* True when the context variables of this thread are still what they were when `copy` was made by
 * PyContext_CopyCurrent(). Their map is immutable and shared by the copy, which keeps it alive. */
static inline bool
compat_is_current_context(PyObject *copy)
{
    struct context {
        PyObject_HEAD
        PyObject *previous, *variables;
    };
    PyObject *current = PyThreadState_Get()->context;
    return current != NULL &&
           ((struct context *)current)->variables == ((struct context *)copy)->variables;
}

#endif
