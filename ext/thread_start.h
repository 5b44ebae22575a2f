/* thread_start.h: child side: threads that Python code starts get an alternate stack, so that their
 * stack overflows can be announced and recorded as those of the main thread are; and it is known
 * which cell of the session has started each. */
#ifndef ISOLATION_THREAD_START_H
#define ISOLATION_THREAD_START_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>

/* thread_starter(start): a function that does what start(function, ...) does, in a thread that has
 * an alternate stack. New reference. For the functions of _thread that threading uses. */
PyObject *thread_starter(PyObject *module, PyObject *start);

/* thread_cell(): the number of the cell that has started the calling thread; 0 where that is the
 * one that runs now, or the thread serves the session. New reference. */
PyObject *thread_cell(PyObject *module, PyObject *ignored);
/* The calling thread serves the session, whatever its cell. */
void thread_serves(void);
/* Where the number of the cell that runs now stands; must stay until it is given another. */
void thread_cells_from(const _Atomic uint64_t *number);

#endif
