/* memory.c: buffers that came from the other side, without a copy where they are big. They own a
 * private mapping of the extent that they came in (extents.h), as big arrays do: what is written is
 * this process's alone, and the operating system knows which pages were. */
#include "memory.h"

#include "numpy_memory.h"

#include <string.h>

typedef struct {
    PyObject_HEAD
    struct extent_copy *copy; /* owned, and known by its address to extent_copy_at() */
    bool writable;
} MemoryObject;

static int
memory_getbuffer(MemoryObject *self, Py_buffer *view, int flags)
{
    return PyBuffer_FillInfo(view, (PyObject *)self, extent_copy_data(self->copy),
                             (Py_ssize_t)extent_copy_size(self->copy), !self->writable, flags);
}

static void
memory_dealloc(MemoryObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    extent_copy_drop(self->copy);
    PyObject_Free(self);
    Py_DECREF(type);
}

static Py_ssize_t
memory_length(MemoryObject *self)
{
    return (Py_ssize_t)extent_copy_size(self->copy);
}

static PyType_Slot memory_slots[] = {
    {Py_tp_dealloc, memory_dealloc},
    {Py_tp_doc, "Bytes that came from the other process, in memory of this one."},
    {Py_bf_getbuffer, memory_getbuffer},
    {Py_sq_length, memory_length},
    {0, NULL},
};
static PyType_Spec memory_spec = {"ipython_isolation._core.Memory", sizeof(MemoryObject), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                  memory_slots};

PyObject *
memory_of_frame(const struct frame *frame, const unsigned char *data, size_t size, bool writable)
{
    struct extent_copy *copy = copy_of_frame(frame, data, size);
    if (copy == NULL) {
        return writable ? PyByteArray_FromStringAndSize((const char *)data, (Py_ssize_t)size)
                        : PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)size);
    }
    MemoryObject *self = extent_copy_keep(copy)
                             ? PyObject_New(MemoryObject, core_get()->memory_type)
                             : (MemoryObject *)PyErr_NoMemory();
    if (self == NULL) {
        extent_copy_drop(copy);
        return NULL;
    }
    self->copy = copy;
    self->writable = writable;
    return (PyObject *)self;
}

int
encode_pickle_buffer(struct message *m, PyObject *o)
{
    const Py_buffer *view = PyPickleBuffer_GetBuffer(o);
    if (view == NULL) {
        return -1;
    }
    write_u8(&m->w, TAG_MEMORY);
    write_u8(&m->w, !view->readonly);
    return encode_blob(m, view->buf, (size_t)view->len, o, true);
}

PyObject *
decode_pickle_buffer(struct incoming *in)
{
    bool writable = read_u8(&in->r);
    size_t size;
    const struct frame *frame;
    const unsigned char *data = decode_blob(in, &size, &frame);
    if (in->r.failed) {
        garbled("buffer");
        return NULL;
    }
    return memory_of_frame(frame, data, size, writable);
}

/* ---- what was written ---------------------------------------------------------------------- */

struct comparison {
    const char *now, *before;
    bool differs;
};

static void
compare(void *argument, size_t at, size_t size)
{
    struct comparison *c = argument;
    c->differs = c->differs || memcmp(c->now + at, c->before + at, size) != 0;
}

/* Whether these bytes are a buffer from the other side that is as it came. */
static bool
is_as_it_came(const Py_buffer *view)
{
    struct extent_copy *copy = extent_copy_at(view->buf);
    if (copy == NULL || extent_copy_size(copy) != (size_t)view->len) {
        return false;
    }
    struct comparison c = {view->buf, (const char *)extent_copy_original(copy), false};
    if (!extent_copy_changes(copy, compare, &c)) {
        compare(&c, 0, (size_t)view->len);
    }
    return !c.differs;
}

PyObject *
buffer_address(PyObject *Py_UNUSED(module), PyObject *o)
{
    Py_buffer view;
    if (PyObject_GetBuffer(o, &view, PyBUF_ANY_CONTIGUOUS) < 0) {
        return NULL;
    }
    PyObject *address = PyLong_FromVoidPtr(view.buf);
    PyBuffer_Release(&view);
    return address;
}

PyObject *
buffer_mark(PyObject *Py_UNUSED(module), PyObject *o)
{
    Py_buffer view;
    if (PyObject_GetBuffer(o, &view, PyBUF_ANY_CONTIGUOUS) < 0) {
        return NULL;
    }
    PyObject *mark =
        is_as_it_came(&view) ? Py_NewRef(Py_None) : PyBytes_FromStringAndSize(view.buf, view.len);
    PyBuffer_Release(&view);
    return mark;
}

PyObject *
buffer_changed(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *o, *mark;
    Py_buffer view, before = {0};
    if (!PyArg_ParseTuple(args, "OO", &o, &mark) ||
        PyObject_GetBuffer(o, &view, PyBUF_ANY_CONTIGUOUS) < 0) {
        return NULL;
    }
    bool same = false;
    if (mark == Py_None) {
        same = is_as_it_came(&view);
    }
    else if (PyObject_GetBuffer(mark, &before, PyBUF_ANY_CONTIGUOUS) == 0) {
        same = before.len == view.len && memcmp(view.buf, before.buf, (size_t)view.len) == 0;
        PyBuffer_Release(&before);
    }
    PyBuffer_Release(&view);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(!same);
}

int
memory_init(core_state *core, PyObject *module)
{
    core->memory_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &memory_spec, NULL);
    return core->memory_type == NULL ? -1 : 0;
}
