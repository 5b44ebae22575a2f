"""Writes the C source of _ffi_zoo, a module as users of cffi build it: python cffi_build.py OUTPUT."""

import sys

import cffi

builder = cffi.FFI()
builder.cdef(
    """
    typedef struct { double x, y; char name[8]; } point;
    enum colour { RED = 1, GREEN = 2 };
    double length(point *p);
    int sum(int *values, int n);
    int apply(int (*f)(int, void *), int n, void *data);
    void crash(void);
    extern int counter;
    """
)
builder.set_source(
    "_ffi_zoo",
    """
    #include <math.h>
    typedef struct { double x, y; char name[8]; } point;
    enum colour { RED = 1, GREEN = 2 };
    int counter = 5;
    static double length(point *p) { return sqrt(p->x * p->x + p->y * p->y); }
    static int sum(int *values, int n) { int s = 0; for (int i = 0; i < n; i++) { s += values[i]; values[i] = 0; } return s; }
    static int apply(int (*f)(int, void *), int n, void *data) { int s = 0; for (int i = 0; i < n; i++) s += f(i, data); return s; }
    static void crash(void) { volatile int *volatile nowhere = 0; *nowhere = 1; }
    """,
)
builder.emit_c_code(sys.argv[1])
