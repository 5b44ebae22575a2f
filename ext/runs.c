/* runs.c: numbers of one kind, packed: a frame that is short is in the other processor's cache
 * sooner, and who iterates them needs no object for one before its turn. */
#include "runs.h"

#include <string.h>

size_t
run_width(uint8_t kind)
{
    bool ints = kind == 1 || kind == 2 || kind == 4 || kind == 8;
    return kind == RUN_FLOATS ? 8 : ints ? kind : 0;
}

/* Exact floats, and ints of 64 bits. Nothing runs meanwhile. */
Py_ssize_t
run_pack(PyObject *const *items, Py_ssize_t most, unsigned char *to, uint8_t *kind)
{
    PyTypeObject *type = most > 0 ? Py_TYPE(items[0]) : NULL;
    Py_ssize_t n = 0;
    uint64_t bits = 0;
    if (most < RUN_LEAST) {
        return 0;
    }
    if (type == &PyFloat_Type) {
        *kind = RUN_FLOATS;
        for (; n < most && Py_TYPE(items[n]) == type; n++) {
            double v = PyFloat_AS_DOUBLE(items[n]);
            memcpy(to + n * 8, &v, sizeof v);
        }
        return n;
    }
    for (; type == &PyLong_Type && n < most && Py_TYPE(items[n]) == type; n++) {
        int overflow;
        int64_t v = PyLong_AsLongLongAndOverflow(items[n], &overflow);
        if (overflow) {
            break;
        }
        bits |= (uint64_t)(v < 0 ? ~v : v);
        memcpy(to + n * 8, &v, sizeof v);
    }
    *kind = bits > INT32_MAX ? 8 : bits > INT16_MAX ? 4 : bits > INT8_MAX ? 2 : 1;
    for (Py_ssize_t i = 1; *kind < 8 && i < n; i++) {
        memmove(to + i * *kind, to + i * 8, *kind); /* little-endian, as wire.h says */
    }
    return n;
}

PyObject *
run_number(uint8_t kind, const unsigned char *at)
{
    int8_t one;
    int16_t two;
    int32_t four;
    int64_t eight;
    double real;
    switch (kind) {
    case 1:
        memcpy(&one, at, sizeof one);
        return PyLong_FromLong(one);
    case 2:
        memcpy(&two, at, sizeof two);
        return PyLong_FromLong(two);
    case 4:
        memcpy(&four, at, sizeof four);
        return PyLong_FromLong(four);
    case 8:
        memcpy(&eight, at, sizeof eight);
        return PyLong_FromLongLong(eight);
    default:
        memcpy(&real, at, sizeof real);
        return PyFloat_FromDouble(real);
    }
}
