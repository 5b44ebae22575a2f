# cython: language_level=3
"""A module as users of Cython write it."""
from libc.stdlib cimport malloc, free


class CythonError(Exception):
    pass


cdef class Counter:
    """Counts."""

    cdef int value
    cdef public str label
    cdef readonly object owner

    def __cinit__(self, int start=0, *, label="none", owner=None):
        self.value = start
        self.label = label
        self.owner = owner

    cpdef int step(self, int by=1):
        self.value += by
        return self.value

    def many(self, int n):
        """Calls step(), which a subclass may override."""
        return [self.step(2) for _ in range(n)]

    @property
    def double(self):
        return self.value * 2

    @double.setter
    def double(self, int v):
        self.value = v // 2

    def __add__(self, other):
        if isinstance(self, Counter) and isinstance(other, int):
            return Counter((<Counter>self).value + other, label=self.label)
        return NotImplemented

    def __len__(self):
        return self.value

    def __getitem__(self, i):
        if i >= self.value:
            raise IndexError(i)
        return i * 10

    def __richcmp__(self, other, int op):
        if not isinstance(other, Counter):
            return NotImplemented
        return (op == 2) == ((<Counter>self).value == (<Counter>other).value)

    def __hash__(self):
        return self.value

    def __reduce__(self):
        return Counter, (self.value,)


cdef class Memory:
    """A buffer."""

    cdef double *data
    cdef Py_ssize_t shape[1]
    cdef Py_ssize_t strides[1]

    def __cinit__(self, Py_ssize_t n):
        self.data = <double *>malloc(n * sizeof(double))
        self.shape[0] = n
        self.strides[0] = sizeof(double)
        for i in range(n):
            self.data[i] = i

    def __dealloc__(self):
        free(self.data)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        buffer.buf = self.data
        buffer.format = 'd'
        buffer.internal = NULL
        buffer.itemsize = sizeof(double)
        buffer.len = self.shape[0] * sizeof(double)
        buffer.ndim = 1
        buffer.obj = self
        buffer.readonly = 0
        buffer.shape = self.shape
        buffer.strides = self.strides
        buffer.suboffsets = NULL


def total(double[:] values):
    cdef double sum = 0
    for i in range(values.shape[0]):
        sum += values[i]
        values[i] = 0
    return sum


def typed(list items, dict table, str text not None):
    items.append(len(table))
    table[text] = items
    return text.upper()


def generate(int n):
    for i in range(n):
        got = yield i
        if got:
            yield got


def call(f, *args, **kwargs):
    return f(*args, **kwargs)


def fail():
    raise CythonError("from Cython")


def crash():
    (<int *>NULL)[0] = 1
