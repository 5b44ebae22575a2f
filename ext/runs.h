/* runs.h: numbers of one kind, packed. */
#ifndef ISOLATION_RUNS_H
#define ISOLATION_RUNS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

/* What a run is of: ints of so many bytes (1, 2, 4, 8), or this. */
#define RUN_FLOATS 255
#define RUN_LEAST 8 /* fewer numbers are not worth the look */

/* Packs the numbers that `items` begins with, as long as they are exact and of one kind, into `to`,
 * which has room for 8 bytes for each. Returns how many those are, perhaps fewer than RUN_LEAST,
 * and then nothing of use was written. */
Py_ssize_t run_pack(PyObject *const *items, Py_ssize_t most, unsigned char *to, uint8_t *kind);
/* Bytes of each number; 0: there is no such kind. */
size_t run_width(uint8_t kind);
/* New reference to the number that is packed at `at`; NULL with an exception. */
PyObject *run_number(uint8_t kind, const unsigned char *at);

#endif
