/* ndarray.h: what an ndarray is: its memory, shape and dtype. */
#ifndef ISOLATION_NDARRAY_H
#define ISOLATION_NDARRAY_H

#include "state.h"

#include <stdbool.h>

/* https://numpy.org/doc/stable/reference/arrays.interface.html#c-struct-access */
struct array_interface {
    int two, nd;
    char typekind;
    int itemsize, flags;
    Py_intptr_t *shape, *strides;
    void *data;
    PyObject *descr;
};
/* In its flags, and in an array's own. */
enum { C_CONTIGUOUS = 1, F_CONTIGUOUS = 2, WRITEABLE = 0x400 };

struct array_look {
    struct array_interface a;
    PyObject *capsule; /* strong, what the pointers lead into, and a reference to the array; or
                          NULL: they lead into the array itself */
    PyObject *text;    /* borrowed: what says its dtype in a frame, where that is known; or NULL */
};

/* Fills `look` in, which array_look_end() is to be called on. The pointers are good while the array
 * lives and is not resized. 0, or -1 with an exception. */
int array_look(PyObject *array, struct array_look *look);
void array_look_end(struct array_look *look);
/* 1, 0; -1 with an exception. */
int array_is_writeable(PyObject *array, const struct array_look *look);
/* Bytes of all elements. */
size_t array_size(const struct array_interface *a);
/* Its dtype is a built-in one, not of objects, and is said so: array_look() knows it from now on.
 */
void array_remember_dtype(PyObject *dtype, PyObject *text, const struct array_interface *a);
/* What it is a view of: a new reference, None where it is of nothing. NULL with an exception. */
PyObject *array_base(PyObject *array);

#endif
