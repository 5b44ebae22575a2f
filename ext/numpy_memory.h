/* numpy_memory.h: ndarrays that own memory which came from the other side. */
#ifndef ISOLATION_NUMPY_MEMORY_H
#define ISOLATION_NUMPY_MEMORY_H

#include "arena.h"
#include "extents.h"
#include "state.h"

/* An array that is to be made: as numpy.empty() takes them. All borrowed. */
struct array_form {
    int nd;
    const Py_intptr_t *shape;
    PyObject *dtype;
    bool fortran;
};

/* On the memory of `copy`, which is the array's from here on, whatever happens. Where this NumPy
 * takes no memory of others (before 1.22), the array needs another size, or `copy` is NULL, *taken
 * is false, and the array has memory of its own, not initialised. New reference, or NULL with an
 * exception. */
PyObject *ndarray_on(const struct array_form *form, struct extent_copy *copy, bool *taken);
/* The same on the `size` bytes at `data` in a block, of which it becomes one more user. NULL,
 * without an exception where the array would need another size. */
PyObject *ndarray_on_block(const struct array_form *form, struct block *block, void *data,
                           size_t size);
/* share_arrays(change): from now on (+1), or one use less (-1), big arrays that are made in this
 * thread, and in those that call it too (0), get memory that both processes may have. */
PyObject *share_arrays(PyObject *module, PyObject *change);
/* The copy that is an array's memory, from its first byte on; NULL: none. Borrowed: the array's. */
struct extent_copy *extent_copy_at(const void *data);
/* The same for a copy that another object owns: from now on extent_copy_at() knows it. False: out
 * of memory. */
bool extent_copy_keep(struct extent_copy *copy);
/* Frees it, known or not. */
void extent_copy_drop(struct extent_copy *copy);

#endif
