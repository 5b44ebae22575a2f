/* ndarray.c: what an ndarray is: its memory, shape and dtype. NumPy says it through its array
 * interface protocol, a documented C struct; to ask for that makes two objects and runs code that
 * is in no cache after work on big arrays. The fields themselves are where all extension modules
 * read them, whose accessors are inline functions of NumPy's headers; they are read here once they
 * were seen to be what the protocol says. */
#include "ndarray.h"

#include <string.h>

/* PyArrayObject_fields of numpy/ndarraytypes.h, as far as all versions have it. */
struct fields {
    PyObject_HEAD
    char *data;
    int nd;
    Py_intptr_t *shape, *strides;
    PyObject *base, *dtype;
    int flags;
    PyObject *weakrefs;
};
static enum { UNKNOWN, AS_IN_THE_HEADERS, OTHERWISE } layout; /* with the GIL */

/* Borrowed, or NULL. */
static const struct known_dtype *
find_known(const PyObject *dtype)
{
    core_state *core = core_get();
    for (unsigned i = 0; i < core->nknown_dtypes; i++) {
        if (core->known_dtypes[i].dtype == dtype) {
            return &core->known_dtypes[i];
        }
    }
    return NULL;
}

void
array_remember_dtype(PyObject *dtype, PyObject *text, const struct array_interface *a)
{
    core_state *core = core_get();
    if (core->nknown_dtypes < KNOWN_DTYPES && find_known(dtype) == NULL) {
        core->known_dtypes[core->nknown_dtypes++] =
            (struct known_dtype){Py_NewRef(dtype), Py_NewRef(text), a->typekind, a->itemsize};
    }
}

static bool
same_attribute(PyObject *array, const char *name, const PyObject *expected)
{
    PyObject *value = PyObject_GetAttrString(array, name);
    bool same = value != NULL && value == (expected == NULL ? Py_None : expected);
    Py_XDECREF(value);
    return same;
}

static bool
same_flags(PyObject *array, int expected)
{
    PyObject *flags = PyObject_GetAttrString(array, "flags");
    PyObject *number = flags == NULL ? NULL : PyObject_GetAttrString(flags, "num");
    bool same = number != NULL && PyLong_AsLong(number) == expected;
    Py_XDECREF(flags);
    Py_XDECREF(number);
    return same;
}

/* Are the fields of this array where they are thought to be? One without dimensions says little. */
static void
check_layout(PyObject *array, const struct array_interface *a)
{
    const struct fields *f = (const struct fields *)array;
    size_t dimensions = (size_t)a->nd * sizeof *a->shape;
    if (a->nd == 0) {
        return;
    }
    layout = (size_t)Py_TYPE(array)->tp_basicsize >= sizeof *f && f->data == a->data &&
                     f->nd == a->nd && memcmp(f->shape, a->shape, dimensions) == 0 &&
                     memcmp(f->strides, a->strides, dimensions) == 0 &&
                     same_attribute(array, "base", f->base) &&
                     same_attribute(array, "dtype", f->dtype) && same_flags(array, f->flags)
                 ? AS_IN_THE_HEADERS
                 : OTHERWISE;
    PyErr_Clear();
}

int
array_look(PyObject *array, struct array_look *look)
{
    const struct fields *f = (const struct fields *)array;
    const struct known_dtype *dtype = layout == AS_IN_THE_HEADERS ? find_known(f->dtype) : NULL;
    look->capsule = NULL;
    look->text = NULL;
    if (dtype != NULL) {
        look->a = (struct array_interface){
            2, f->nd, dtype->kind, dtype->itemsize, f->flags, f->shape, f->strides, f->data, NULL};
        look->text = dtype->text;
        return 0;
    }
    look->capsule = PyObject_GetAttr(array, core_get()->str___array_struct__);
    const struct array_interface *a =
        look->capsule == NULL ? NULL : PyCapsule_GetPointer(look->capsule, NULL);
    if (a == NULL) {
        Py_CLEAR(look->capsule);
        return -1;
    }
    look->a = *a;
    if (layout == UNKNOWN) {
        check_layout(array, a);
    }
    if (layout == AS_IN_THE_HEADERS) {
        look->a.flags = f->flags; /* the protocol does not say them of structured dtypes */
    }
    return 0;
}

void
array_look_end(struct array_look *look)
{
    Py_CLEAR(look->capsule);
}

int
array_is_writeable(PyObject *array, const struct array_look *look)
{
    if (look->a.flags & WRITEABLE) {
        return 1;
    }
    if (layout == AS_IN_THE_HEADERS) {
        return 0;
    }
    PyObject *flags = PyObject_GetAttrString(array, "flags");
    PyObject *flag = flags == NULL ? NULL : PyObject_GetAttrString(flags, "writeable");
    int writeable = flag == NULL ? -1 : flag == Py_True;
    Py_XDECREF(flags);
    Py_XDECREF(flag);
    return writeable;
}

size_t
array_size(const struct array_interface *a)
{
    size_t size = (size_t)a->itemsize;
    for (int i = 0; i < a->nd; i++) {
        size *= (size_t)a->shape[i];
    }
    return size;
}

PyObject *
array_base(PyObject *array)
{
    if (layout == AS_IN_THE_HEADERS) {
        PyObject *base = ((const struct fields *)array)->base;
        return Py_NewRef(base == NULL ? Py_None : base);
    }
    return PyObject_GetAttrString(array, "base");
}
