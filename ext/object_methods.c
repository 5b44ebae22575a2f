/* object_methods.c: object's own methods, of a proxy.
 *
 * copy, pickle, dir() and sys.getsizeof() call what a class inherits from `object`, which would
 * answer for the proxy instead of its target. Stubs in each mirrored class would show in vars() and
 * help() as if the class defined them. So object's methods look whether they are asked of a proxy.
 */
#include "handles.h"
#include "proxy.h"

enum { REDUCE_EX, REDUCE, DIR, SIZEOF, COUNT };

static const PyMethodDef *original[COUNT];

static PyObject *
name_of(unsigned which)
{
    core_state *core = core_get();
    PyObject *names[COUNT] = {core->str___reduce_ex__, core->str___reduce__, core->str___dir__,
                              core->str___sizeof__};
    return names[which];
}

static PyObject *
answer(PyObject *self, PyObject *arg, unsigned which)
{
    struct proxy *p = core_get() == NULL ? NULL : proxy_find(self);
    struct mirror *mirror = p == NULL ? NULL : mirror_of(Py_TYPE(self));
    if (mirror == NULL || !mirror->proxies || PyType_Check(self)) {
        return original[which]->ml_meth(self, arg);
    }
    /* Of `object`, not of the target's class: a method of that would have been called itself. */
    PyObject *stub = stub_new(&PyBaseObject_Type, name_of(which), 'm', false);
    PyObject *args[] = {self, arg};
    PyObject *result = stub == NULL ? NULL : PyObject_Vectorcall(stub, args, arg ? 2 : 1, NULL);
    Py_XDECREF(stub);
    return result;
}

#define METHOD(which, function)                                                                    \
    static PyObject *function(PyObject *self, PyObject *arg)                                       \
    {                                                                                              \
        return answer(self, arg, which);                                                           \
    }
METHOD(REDUCE_EX, reduce_ex)
METHOD(REDUCE, reduce)
METHOD(DIR, dir)
METHOD(SIZEOF, size)
#undef METHOD

bool
is_object_method(PyObject *descriptor)
{
    return Py_IS_TYPE(descriptor, &PyMethodDescr_Type) &&
           PyDescr_TYPE(descriptor) == &PyBaseObject_Type;
}

int
object_methods_init(void)
{
    static PyMethodDef ours[COUNT]; /* the descriptors of `object` point to them from now on */
    PyCFunction functions[COUNT] = {reduce_ex, reduce, dir, size};
    for (unsigned i = 0; i < COUNT; i++) {
        if (original[i] == NULL &&
            (original[i] = compat_replace_method(&PyBaseObject_Type, name_of(i), functions[i],
                                                 &ours[i])) == NULL) {
            return -1;
        }
    }
    return 0;
}
