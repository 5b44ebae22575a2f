#include "thread_start.h"

#include "announce.h"

/* What the thread runs; `function` is what it was to run. No frame of Python is added. */
static PyObject *
run(PyObject *function, PyObject *args, PyObject *kwargs)
{
    (void)announce_thread_stack(); /* without one it runs all the same */
    return PyObject_Call(function, args, kwargs);
}

static PyMethodDef run_method = {"run", (PyCFunction)(void (*)(void))run,
                                 METH_VARARGS | METH_KEYWORDS, NULL};

static PyObject *
start_thread(PyObject *start, PyObject *args, PyObject *kwargs)
{
    Py_ssize_t n = PyTuple_GET_SIZE(args);
    if (n == 0 || !PyCallable_Check(PyTuple_GET_ITEM(args, 0))) {
        return PyObject_Call(start, args, kwargs); /* which says what is wrong */
    }
    PyObject *function = PyCFunction_New(&run_method, PyTuple_GET_ITEM(args, 0));
    PyObject *passed = function == NULL ? NULL : PyTuple_New(n);
    if (passed == NULL) {
        Py_XDECREF(function);
        return NULL;
    }
    PyTuple_SET_ITEM(passed, 0, function);
    for (Py_ssize_t i = 1; i < n; i++) {
        PyTuple_SET_ITEM(passed, i, Py_NewRef(PyTuple_GET_ITEM(args, i)));
    }
    PyObject *result = PyObject_Call(start, passed, kwargs);
    Py_DECREF(passed);
    return result;
}

static PyMethodDef start_method = {"start_thread", (PyCFunction)(void (*)(void))start_thread,
                                   METH_VARARGS | METH_KEYWORDS, NULL};

PyObject *
thread_starter(PyObject *Py_UNUSED(module), PyObject *start)
{
    return PyCFunction_New(&start_method, start);
}
