#include "thread_start.h"

#include "announce.h"

static _Thread_local uint64_t own_cell; /* 0: none, or whichever runs */
static const _Atomic uint64_t *running; /* NULL: the session has no cells, or is not known yet */

static uint64_t
running_cell(void)
{
    return running == NULL ? 0 : *running;
}

void
thread_cells_from(const _Atomic uint64_t *number)
{
    running = number;
}

void
thread_serves(void)
{
    own_cell = 0;
}

PyObject *
thread_cell(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromUnsignedLongLong(own_cell == running_cell() ? 0 : own_cell);
}

/* What the thread runs; `self` is (what it was to run, its cell). No frame of Python is added. */
static PyObject *
run(PyObject *self, PyObject *args, PyObject *kwargs)
{
    (void)announce_thread_stack(); /* without one it runs all the same */
    own_cell = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(self, 1));
    return PyObject_Call(PyTuple_GET_ITEM(self, 0), args, kwargs);
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
    unsigned long long cell = own_cell != 0 ? own_cell : running_cell();
    PyObject *what = Py_BuildValue("(OK)", PyTuple_GET_ITEM(args, 0), cell);
    PyObject *function = what == NULL ? NULL : PyCFunction_New(&run_method, what);
    PyObject *passed = function == NULL ? NULL : PyTuple_New(n);
    Py_XDECREF(what);
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
