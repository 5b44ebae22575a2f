/* numpy_memory.c: ndarrays that own memory which came from the other side, by NumPy's allocator
 * hook (NEP 49, https://numpy.org/neps/nep-0049.html). An array that was made on a buffer would say
 * that it does not own its data, could not be resized, and would have a base; one that its own
 * allocator gave this memory is like any other. The hook is in force only while such an array is
 * made. */
#include "numpy_memory.h"

#include "table.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* https://numpy.org/doc/stable/reference/c-api/data_memory.html */
struct allocator {
    void *context;
    void *(*allocate)(void *context, size_t size);
    void *(*allocate_zeroed)(void *context, size_t n, size_t size);
    void *(*reallocate)(void *context, void *data, size_t size);
    void (*release)(void *context, void *data, size_t size);
};
struct handler {
    char name[127];
    uint8_t version;
    struct allocator allocator;
};

/* Places in NumPy's table of C functions, the same in all versions that have them:
 * numpy/_core/code_generators/numpy_api.py. */
enum { GET_FEATURE_VERSION = 211, SET_HANDLER = 304 };
#define NUMPY_1_22 0xfu

/* All with the GIL, as is what NumPy calls here: an array is freed by its last reference. */
static struct table copies; /* by the address of their memory */
static struct extent_copy *offered;

static void *
allocate(void *Py_UNUSED(context), size_t size)
{
    struct extent_copy *copy = offered;
    if (copy != NULL && size == extent_copy_size(copy) &&
        table_put(&copies, (uint64_t)(uintptr_t)extent_copy_data(copy), copy)) {
        offered = NULL;
        return extent_copy_data(copy);
    }
    return malloc(size > 0 ? size : 1);
}

static void *
allocate_zeroed(void *Py_UNUSED(context), size_t n, size_t size)
{
    return calloc(n > 0 ? n : 1, size > 0 ? size : 1);
}

static void
release(void *Py_UNUSED(context), void *data, size_t Py_UNUSED(size))
{
    struct extent_copy *copy = extent_copy_at(data);
    if (copy == NULL) {
        free(data);
        return;
    }
    table_remove(&copies, (uint64_t)(uintptr_t)data);
    extent_copy_free(copy);
}

static void *
reallocate(void *context, void *data, size_t size)
{
    struct extent_copy *copy = extent_copy_at(data);
    if (copy == NULL) {
        return realloc(data, size > 0 ? size : 1);
    }
    void *bigger = malloc(size > 0 ? size : 1);
    if (bigger != NULL) {
        size_t had = extent_copy_size(copy);
        memcpy(bigger, data, had < size ? had : size);
        release(context, data, had);
    }
    return bigger;
}

static struct handler handler = {
    "ipython_isolation", 1, {NULL, allocate, allocate_zeroed, reallocate, release}};

struct extent_copy *
extent_copy_at(const void *data)
{
    return table_get(&copies, (uint64_t)(uintptr_t)data);
}

/* PyDataMem_SetHandler: NULL where there is none. */
static PyObject *(*set_handler(void))(PyObject *)
{
    static PyObject *(*set)(PyObject *);
    static bool looked;
    if (looked) {
        return set;
    }
    looked = true;
    PyObject *module = PyImport_ImportModule("numpy._core._multiarray_umath");
    if (module == NULL) {
        PyErr_Clear();
        module = PyImport_ImportModule("numpy.core._multiarray_umath");
    }
    PyObject *capsule = module == NULL ? NULL : PyObject_GetAttrString(module, "_ARRAY_API");
    void **functions = capsule == NULL ? NULL : PyCapsule_GetPointer(capsule, NULL);
    if (functions != NULL && ((unsigned (*)(void))functions[GET_FEATURE_VERSION])() >= NUMPY_1_22) {
        set = (PyObject * (*)(PyObject *)) functions[SET_HANDLER];
    }
    Py_XDECREF(capsule);
    Py_XDECREF(module);
    PyErr_Clear();
    return set;
}

PyObject *
ndarray_on(PyObject *numpy, PyObject *shape, PyObject *dtype, const char *order,
           struct extent_copy *copy, bool *taken)
{
    static PyObject *capsule; /* of all arrays that are made here */
    PyObject *(*set)(PyObject *) = copy == NULL ? NULL : set_handler();
    PyObject *before = NULL;
    if (set != NULL && capsule == NULL) {
        capsule = PyCapsule_New(&handler, "mem_handler", NULL);
    }
    if (set != NULL && capsule != NULL) {
        before = set(capsule);
        PyErr_Clear();
    }
    offered = before == NULL ? NULL : copy;
    PyObject *array = PyObject_CallMethod(numpy, "empty", "OOs", shape, dtype, order);
    *taken = copy != NULL && before != NULL && offered == NULL;
    offered = NULL;
    if (before != NULL) {
        PyObject *ours = set(before);
        Py_XDECREF(ours);
        Py_DECREF(before);
        if (ours == NULL) {
            Py_CLEAR(array);
        }
    }
    if (copy != NULL && !*taken) {
        extent_copy_free(copy);
    }
    return array;
}
