/* The Python stack is read by faulthandler, the one reader of frames in CPython that is made for
 * signal handlers. Its public face installs signal handlers; what is wanted here is only the
 * function. So it is registered for a real-time signal, whose handler is looked up, and the signal
 * is given back. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "python_stack.h"

#include <signal.h>

#include "recorder.h"

void
python_stack_install(void)
{
    struct sigaction before, handler;
    int number = SIGRTMAX - 5, fd = recorder_python_fd();
    PyObject *faulthandler = fd < 0 ? NULL : PyImport_ImportModule("faulthandler");
    PyObject *method =
        faulthandler == NULL ? NULL : PyObject_GetAttrString(faulthandler, "register");
    PyObject *args = method == NULL ? NULL : Py_BuildValue("(i)", number);
    PyObject *kwargs =
        args == NULL ? NULL : Py_BuildValue("{sisO}", "file", fd, "all_threads", Py_True);

    if (kwargs != NULL && sigaction(number, NULL, &before) == 0) {
        /* In a copy that takes over it is registered already, and would not install it again. */
        PyObject *was = PyObject_CallMethod(faulthandler, "unregister", "i", number);
        PyObject *none = was == NULL ? NULL : PyObject_Call(method, args, kwargs);
        if (none != NULL && sigaction(number, NULL, &handler) == 0 &&
            !(handler.sa_flags & SA_SIGINFO) && handler.sa_handler != SIG_DFL) {
            recorder_set_dump(handler.sa_handler, number);
        }
        Py_XDECREF(was);
        Py_XDECREF(none);
        sigaction(number, &before, NULL);
    }
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    Py_XDECREF(method);
    Py_XDECREF(faulthandler);
    PyErr_Clear();
}
