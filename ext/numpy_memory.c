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
enum {
    ARRAY_TYPE = 2,
    NEW_FROM_DESCR = 94,
    GET_FEATURE_VERSION = 211,
    SET_HANDLER = 304,
    GET_HANDLER = 305
};
#define NUMPY_1_22 0xfu

/* All with the GIL, as is what NumPy calls here: an array is freed by its last reference. */
static struct table copies; /* by the address of their memory */
static struct {
    struct extent_copy *copy; /* a copy, or ... */
    struct block *block;      /* ... a part of a block */
    void *data;
    size_t size; /* 0: nothing is */
} offered;
static int sharing; /* contexts that share arrays */

/* What is offered, where it has this size; else NULL. */
static void *
take_offered(size_t size)
{
    if (offered.size == 0 || size != offered.size) {
        return NULL;
    }
    if (offered.block != NULL) {
        block_ref(offered.block);
    }
    else if (!table_put(&copies, ADDRESS(offered.data), offered.copy)) {
        return NULL;
    }
    offered.size = 0;
    return offered.data;
}

static void *
allocate(void *Py_UNUSED(context), size_t size)
{
    void *data = take_offered(size);
    if (data != NULL) {
        return data;
    }
    struct block *block = sharing > 0 && size >= ARENA_LEAST ? block_new(size, false) : NULL;
    return block != NULL ? block_data(block) : malloc(size > 0 ? size : 1);
}

/* Of some dtypes numpy.empty() wants zeros, too; what is offered is filled. */
static void *
allocate_zeroed(void *Py_UNUSED(context), size_t n, size_t size)
{
    size_t total;
    if (!__builtin_mul_overflow(n, size, &total)) {
        void *data = take_offered(total);
        if (data != NULL) {
            return data;
        }
        struct block *block = sharing > 0 && total >= ARENA_LEAST ? block_new(total, true) : NULL;
        if (block != NULL) {
            return block_data(block);
        }
    }
    return calloc(n > 0 ? n : 1, size > 0 ? size : 1);
}

static void
release(void *Py_UNUSED(context), void *data, size_t Py_UNUSED(size))
{
    struct extent_copy *copy = table_remove(&copies, ADDRESS(data));
    size_t at;
    struct block *block = copy != NULL ? NULL : block_find(data, &at);
    if (copy != NULL) {
        extent_copy_free(copy);
    }
    else if (block != NULL) {
        block_unref(block);
    }
    else {
        free(data);
    }
}

static void *
reallocate(void *context, void *data, size_t size)
{
    struct extent_copy *copy = extent_copy_at(data);
    size_t at, had;
    struct block *block = copy != NULL ? NULL : block_find(data, &at);
    if (copy == NULL && block == NULL) {
        return realloc(data, size > 0 ? size : 1);
    }
    had = copy != NULL ? extent_copy_size(copy) : block_size(block) - at;
    void *bigger = allocate(context, size);
    if (bigger != NULL) {
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
    return table_get(&copies, ADDRESS(data));
}

bool
extent_copy_keep(struct extent_copy *copy)
{
    return table_put(&copies, ADDRESS(extent_copy_data(copy)), copy);
}

void
extent_copy_drop(struct extent_copy *copy)
{
    if (extent_copy_at(extent_copy_data(copy)) == copy) {
        table_remove(&copies, ADDRESS(extent_copy_data(copy)));
    }
    extent_copy_free(copy);
}

/* NumPy's C functions. NULL with an exception. */
static void **
c_functions(void)
{
    static void **functions;
    if (functions != NULL) {
        return functions;
    }
    PyObject *module = PyImport_ImportModule("numpy._core._multiarray_umath");
    if (module == NULL) {
        PyErr_Clear();
        module = PyImport_ImportModule("numpy.core._multiarray_umath");
    }
    PyObject *capsule = module == NULL ? NULL : PyObject_GetAttrString(module, "_ARRAY_API");
    functions = capsule == NULL ? NULL : PyCapsule_GetPointer(capsule, NULL);
    Py_XDECREF(capsule);
    Py_XDECREF(module);
    return functions;
}

/* PyDataMem_SetHandler: NULL where there is none. */
static PyObject *(*set_handler(void))(PyObject *)
{
    static PyObject *(*set)(PyObject *);
    if (set != NULL) {
        return set;
    }
    void **functions = c_functions();
    if (functions != NULL && ((unsigned (*)(void))functions[GET_FEATURE_VERSION])() >= NUMPY_1_22) {
        set = (PyObject * (*)(PyObject *)) functions[SET_HANDLER];
    }
    PyErr_Clear();
    return set;
}

/* Of all arrays that are made here, for good. NULL without an exception: this NumPy has no hook. */
static PyObject *
handler_capsule(void)
{
    static PyObject *capsule;
    if (capsule == NULL && set_handler() != NULL) {
        capsule = PyCapsule_New(&handler, "mem_handler", NULL);
        PyErr_Clear();
    }
    return capsule;
}

/* numpy.empty(). */
static PyObject *
new_array(const struct array_form *form)
{
    void **functions = c_functions();
    if (functions == NULL) {
        return NULL;
    }
    PyObject *(*make)(PyTypeObject *, PyObject *, int, const Py_intptr_t *, const Py_intptr_t *,
                      void *, int, PyObject *) =
        (PyObject * (*)(PyTypeObject *, PyObject *, int, const Py_intptr_t *, const Py_intptr_t *,
                        void *, int, PyObject *)) functions[NEW_FROM_DESCR];
    /* It takes the reference to the dtype. */
    return make(functions[ARRAY_TYPE], Py_NewRef(form->dtype), form->nd, form->shape, NULL, NULL,
                form->fortran, NULL);
}

/* The hook is in force from here on; *before: what was, or NULL where it was already. False: this
 * NumPy has none. */
static bool
begin_hook(PyObject **before)
{
    PyObject *capsule = handler_capsule();
    *before = NULL;
    if (capsule == NULL) {
        return false;
    }
    if (sharing > 0) { /* then it most likely is: to ask takes less than to change it twice */
        PyObject *now = ((PyObject * (*)(void)) c_functions()[GET_HANDLER])();
        Py_XDECREF(now);
        if (now == capsule) {
            return true;
        }
        PyErr_Clear();
    }
    *before = set_handler()(capsule);
    PyErr_Clear();
    return *before != NULL;
}

/* With what is offered; *taken: it is the array's. */
static PyObject *
make_array(const struct array_form *form, bool *taken)
{
    PyObject *before;
    size_t size = offered.size;
    bool hooked = begin_hook(&before);
    if (!hooked) {
        offered.size = 0;
    }
    /* What a finaliser makes meanwhile must not take what is offered. */
    int collects = PyGC_Disable();
    PyObject *array = new_array(form);
    if (collects) {
        PyGC_Enable();
    }
    *taken = size != 0 && hooked && offered.size == 0;
    offered.size = 0;
    if (before != NULL) {
        PyObject *raised = array == NULL ? compat_take_exception() : NULL;
        PyObject *ours = set_handler()(before);
        Py_XDECREF(ours);
        Py_DECREF(before);
        if (ours == NULL) {
            Py_CLEAR(array);
        }
        if (raised != NULL) {
            compat_raise(raised);
        }
    }
    return array;
}

PyObject *
ndarray_on(const struct array_form *form, struct extent_copy *copy, bool *taken)
{
    if (copy == NULL) {
        *taken = false;
        return new_array(form);
    }
    offered.copy = copy;
    offered.block = NULL;
    offered.data = extent_copy_data(copy);
    offered.size = extent_copy_size(copy);
    PyObject *array = make_array(form, taken);
    if (!*taken) {
        extent_copy_free(copy);
    }
    return array;
}

PyObject *
ndarray_on_block(const struct array_form *form, struct block *block, void *data, size_t size)
{
    bool taken;
    offered.copy = NULL;
    offered.block = block;
    offered.data = data;
    offered.size = size;
    PyObject *array = make_array(form, &taken);
    if (array != NULL && !taken) {
        Py_CLEAR(array); /* it is not of that size */
    }
    return array;
}

PyObject *
share_arrays(PyObject *Py_UNUSED(module), PyObject *change)
{
    long by = PyLong_AsLong(change);
    if (by == -1 && PyErr_Occurred()) {
        return NULL;
    }
    PyObject *capsule = by < 0 ? NULL : handler_capsule();
    if (by >= 0 && capsule == NULL) {
        PyErr_SetString(PyExc_ImportError, "arrays=\"shared\" needs NumPy 1.22 or later");
        return NULL;
    }
    if (capsule != NULL) {
        PyObject *before = set_handler()(capsule);
        if (before == NULL) {
            return NULL;
        }
        Py_DECREF(before);
    }
    sharing += (int)by;
    blocks_keep(sharing > 0);
    Py_RETURN_NONE;
}
