/* thread_start.h: child side: threads that Python code starts get an alternate stack, so that their
 * stack overflows can be announced and recorded as those of the main thread are. */
#ifndef ISOLATION_THREAD_START_H
#define ISOLATION_THREAD_START_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* thread_starter(start): a function that does what start(function, ...) does, in a thread that has
 * an alternate stack. New reference. For the functions of _thread that threading uses. */
PyObject *thread_starter(PyObject *module, PyObject *start);

#endif
