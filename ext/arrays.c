/* arrays.c: ndarray, array.array and memoryview as real objects on both sides. The core neither
 * needs NumPy's headers nor cares about its version: what an array is, ndarray.c knows. */
#include "codec.h"
#include "memory.h"
#include "ndarray.h"
#include "numpy_memory.h"

#include <stdlib.h>
#include <string.h>

/* Descriptors that go with one frame, at most: the reader has little room for them. */
#define BLOCKS_MOST 40
#define DIMENSIONS_MOST 64 /* NumPy has no more */
/* In the flags of an array in a frame: where its elements are in the blob follows. */
#define STRIDED 4

/* Borrowed; NULL without an exception. */
static PyObject *
loaded_type(PyObject **cache, const char *module, const char *name)
{
    if (*cache == NULL) {
        PyObject *key = PyUnicode_FromString(module);
        PyObject *m = key == NULL ? NULL : PyImport_GetModule(key);
        *cache = m == NULL ? NULL : PyObject_GetAttrString(m, name);
        Py_XDECREF(key);
        Py_XDECREF(m);
        PyErr_Clear();
    }
    return *cache;
}

bool
module_isolated(PeerObject *peer, PyObject *name)
{
    int found = PySet_GET_SIZE(peer->isolated) == 0 ? 0 : PySet_Contains(peer->isolated, name);
    if (found < 0) {
        PyErr_Clear();
    }
    return found > 0;
}

bool
is_plain_ndarray(PyObject *o)
{
    PyObject *known = core_get()->numpy_names[NUMPY_NDARRAY];
    if (known != NULL && (PyObject *)Py_TYPE(o) != known) {
        return false;
    }
    const char *name = Py_TYPE(o)->tp_name;
    return name[0] == 'n' && strcmp(name, "numpy.ndarray") == 0 &&
           (PyObject *)Py_TYPE(o) == numpy_name(NUMPY_NDARRAY);
}

bool
is_ndarray(PeerObject *peer, PyObject *o)
{
    return is_plain_ndarray(o) && !module_isolated(peer, core_get()->str_numpy);
}

bool
is_array_class(PyTypeObject *cls)
{
    return (PyObject *)cls == loaded_type(&core_get()->array_type, "array", "array");
}

bool
is_array(PeerObject *peer, PyObject *o)
{
    const char *name = Py_TYPE(o)->tp_name;
    return name[0] == 'a' && strcmp(name, "array.array") == 0 &&
           (PyObject *)Py_TYPE(o) == loaded_type(&core_get()->array_type, "array", "array") &&
           !module_isolated(peer, core_get()->str_array);
}

/* A result moves when nothing else can see its memory: no other reference to it, nor to what it is
 * a view of. */
bool
is_fresh(PyObject *array, bool owned)
{
    if (!owned || Py_REFCNT(array) != 1) {
        return false;
    }
    PyObject *base = array_base(array);
    bool fresh =
        base == Py_None || (base != NULL && Py_REFCNT(base) == 2 && is_plain_ndarray(base));
    if (fresh && base != Py_None) {
        PyObject *deeper = array_base(base);
        fresh = deeper == Py_None;
        Py_XDECREF(deeper);
    }
    Py_XDECREF(base);
    PyErr_Clear();
    return fresh;
}

/* An array of objects that moves: each element by its own rule. */
static int
encode_objects(struct message *m, PyObject *o, bool *done)
{
    struct array_look look;
    const struct array_interface *a = &look.a;
    if (array_look(o, &look) < 0) {
        return -1;
    }
    int rc = 0;
    if (a->typekind == 'O' && (a->flags & (C_CONTIGUOUS | F_CONTIGUOUS))) {
        PyObject **items = a->data;
        size_t n = array_size(a) / sizeof *items;
        *done = true;
        write_u8(&m->w, TAG_OBJECTS);
        write_u8(&m->w,
                 (uint8_t)((a->flags & C_CONTIGUOUS ? 1 : 0) | (a->flags & WRITEABLE ? 2 : 0)));
        write_u64(&m->w, (uint64_t)a->nd);
        for (int i = 0; i < a->nd; i++) {
            write_u64(&m->w, (uint64_t)a->shape[i]);
        }
        for (size_t i = 0; rc == 0 && i < n; i++) {
            rc = encode(m, items[i] == NULL ? Py_None : items[i], true);
        }
    }
    array_look_end(&look);
    return rc < 0 ? -1 : message_check(m);
}

PyObject *
decode_objects(struct incoming *in)
{
    uint8_t flags = read_u8(&in->r);
    uint64_t nd = read_count(&in->r, 8), total = 1;
    PyObject *shape = nd > 64 ? NULL : PyTuple_New((Py_ssize_t)nd), *numpy = NULL, *array = NULL;
    struct array_look look = {.capsule = NULL};
    const struct array_interface *a = &look.a;
    for (uint64_t i = 0; shape != NULL && i < nd; i++) {
        uint64_t length = read_u64(&in->r);
        PyObject *number = PyLong_FromUnsignedLongLong(length);
        if (number == NULL || __builtin_mul_overflow(total, length, &total)) {
            Py_CLEAR(shape);
            Py_XDECREF(number);
            break;
        }
        PyTuple_SET_ITEM(shape, (Py_ssize_t)i, number);
    }
    if (shape == NULL || in->r.failed || total > reader_left(&in->r)) {
        goto garbled;
    }
    numpy = PyImport_ImportModule("numpy");
    array = numpy == NULL
                ? NULL
                : PyObject_CallMethod(numpy, "empty", "Oss", shape, "O", flags & 1 ? "C" : "F");
    if (array == NULL || array_look(array, &look) < 0) {
        Py_CLEAR(array);
        goto done;
    }
    if (a->typekind != 'O' || array_size(a) != total * sizeof(PyObject *)) {
        goto garbled;
    }
    PyObject **items = a->data;
    for (uint64_t i = 0; i < total; i++) {
        PyObject *item = decode(in);
        if (item == NULL) {
            Py_CLEAR(array);
            goto done;
        }
        Py_XSETREF(items[i], item);
    }
    if (!(flags & 2)) {
        PyObject *none = PyObject_CallMethod(array, "setflags", "O", Py_False);
        if (none == NULL) {
            Py_CLEAR(array);
        }
        Py_XDECREF(none);
    }
    goto done;
garbled:
    Py_CLEAR(array);
    if (!PyErr_Occurred()) {
        garbled("array of objects");
    }
done:
    Py_XDECREF(shape);
    Py_XDECREF(numpy);
    array_look_end(&look);
    return array;
}

static bool
may_share(const struct message *m)
{
    return m->peer->shares_arrays && m->strand != NULL && m->nblobs < BLOCKS_MOST &&
           channel_has_lane(m->strand->channel);
}

/* The block that an array is in, and the bytes from the first to the last of its elements. */
static struct block *
block_of(const struct array_interface *a, char **start, size_t *size)
{
    size_t at;
    char *low = a->data, *high = low + a->itemsize;
    bool empty = a->itemsize == 0;
    for (int i = 0; i < a->nd; i++) {
        empty = empty || a->shape[i] == 0;
        Py_ssize_t reach = empty ? 0 : (a->shape[i] - 1) * a->strides[i];
        low += reach < 0 ? reach : 0;
        high += reach > 0 ? reach : 0;
    }
    struct block *block = empty ? NULL : block_find(low, &at);
    *start = low;
    *size = (size_t)(high - low);
    return block != NULL && *size <= block_size(block) - at ? block : NULL;
}

int
encode_ndarray(struct message *m, PyObject *o, bool owned, bool *done)
{
    struct array_look look;
    const struct array_interface *a = &look.a;
    char *start = NULL;
    size_t span = 0;
    if (encode_paired(m, o)) {
        *done = true;
        return message_check(m);
    }
    bool looked = may_share(m);
    if (looked && array_look(o, &look) < 0) {
        return -1;
    }
    struct block *block = looked ? block_of(a, &start, &span) : NULL;
    if (looked && block == NULL) {
        array_look_end(&look); /* it may be a reference to the array, as is_fresh() counts them */
    }
    if (m->result && block == NULL && !m->taking_apart && !is_fresh(o, owned)) {
        return 0;
    }
    if (block == NULL && array_look(o, &look) < 0) {
        return -1;
    }
    int rc = -1;
    PyObject *contiguous = NULL, *dtype = NULL, *text = Py_XNewRef(look.text);
    bool objects = false;
    if (text == NULL) {
        dtype = PyObject_GetAttr(o, core_get()->str_dtype);
        text = dtype == NULL ? NULL : dtype_text(dtype, &objects);
    }
    if (objects) {
        array_look_end(&look);
        /* Elements are references: as an argument the array goes by reference too. */
        rc = m->result && is_fresh(o, owned) ? encode_objects(m, o, done) : 0;
        goto done;
    }
    if (text == NULL) {
        goto done;
    }
    if (dtype != NULL && PyUnicode_CheckExact(text)) {
        array_remember_dtype(dtype, text, a);
    }
    *done = true;
    int writeable = array_is_writeable(o, &look);
    if (writeable < 0) {
        goto done;
    }
    bool strided = !(a->flags & (C_CONTIGUOUS | F_CONTIGUOUS));
    if (strided && block == NULL) {
        PyObject *numpy = PyImport_ImportModule("numpy");
        contiguous = numpy ? PyObject_CallMethod(numpy, "ascontiguousarray", "O", o) : NULL;
        Py_XDECREF(numpy);
        array_look_end(&look);
        if (contiguous == NULL || array_look(contiguous, &look) < 0) {
            goto done;
        }
    }
    uint64_t id = 0;
    if (!m->result && writeable) {
        id = pair_new_id(m->strand);
        struct pair *made = pair_add(m->strand, o, PAIR_BUFFER, id);
        if (made == NULL) {
            goto done;
        }
        made->shared = block != NULL;
    }
    write_u8(&m->w, TAG_NDARRAY);
    write_u64(&m->w, id);
    strided = strided && block != NULL;
    write_u8(&m->w, (uint8_t)((a->flags & C_CONTIGUOUS ? 1 : 0) | (writeable ? 2 : 0) |
                              (strided ? STRIDED : 0)));
    bool result = m->result;
    m->result = true;
    rc = encode(m, text, true);
    m->result = result;
    write_u64(&m->w, (uint64_t)a->nd);
    for (int i = 0; i < a->nd; i++) {
        write_u64(&m->w, (uint64_t)a->shape[i]);
    }
    if (strided) {
        write_u64(&m->w, (uint64_t)((char *)a->data - start));
        for (int i = 0; i < a->nd; i++) {
            write_u64(&m->w, (uint64_t)(int64_t)a->strides[i]);
        }
    }
    if (rc == 0 && block != NULL) {
        rc = encode_shared(m, start, span, o, block);
    }
    else if (rc == 0) {
        rc = encode_blob(m, a->data, array_size(a), contiguous != NULL ? contiguous : o, true);
    }
done:
    Py_XDECREF(dtype);
    Py_XDECREF(text);
    Py_XDECREF(contiguous);
    array_look_end(&look);
    return rc;
}

/* ---- a share of the frame as a snapshot: what came is what to compare with, without a copy ----
 */

struct share {
    struct frame frame;
    const char *data;
    size_t size;
};

static void
share_free(PyObject *capsule)
{
    struct share *share = PyCapsule_GetPointer(capsule, NULL);
    frame_free(&share->frame);
    free(share);
}

const char *
share_bytes(PyObject *capsule, size_t *size)
{
    struct share *share = PyCapsule_GetPointer(capsule, NULL);
    *size = share->size;
    return share->data;
}

PyObject *
share_of_frame(const struct frame *frame, const unsigned char *data, size_t size)
{
    struct share *share = calloc(1, sizeof *share);
    if (share == NULL || frame_share(frame, &share->frame) < 0) {
        free(share);
        return PyErr_NoMemory();
    }
    /* Very small frames are copied by libzmq: the same place in the copy. */
    share->data = (const char *)share->frame.data + (data - (const unsigned char *)frame->data);
    share->size = size;
    PyObject *capsule = PyCapsule_New(share, NULL, share_free);
    if (capsule == NULL) {
        frame_free(&share->frame);
        free(share);
    }
    return capsule;
}

struct extent_copy *
copy_of_frame(const struct frame *frame, const unsigned char *data, size_t size)
{
    return frame->view == NULL || size < EXTENTS_APART
               ? NULL
               : extent_copy_new(frame->view, (size_t)(data - extent_data(frame->view)), size);
}

static PyObject *
tuple_of(const Py_intptr_t *numbers, int n)
{
    PyObject *tuple = PyTuple_New(n);
    for (int i = 0; tuple != NULL && i < n; i++) {
        PyObject *number = PyLong_FromSsize_t(numbers[i]);
        if (number == NULL) {
            Py_CLEAR(tuple);
            break;
        }
        PyTuple_SET_ITEM(tuple, i, number);
    }
    return tuple;
}

/* Elements here and there in the bytes; also where the connection could not share them. */
static PyObject *
strided_array(const struct array_form *form, const Py_intptr_t *strides, uint64_t offset,
              const struct frame *frame, const unsigned char *data, size_t size)
{
    PyObject *numpy = PyImport_ImportModule("numpy");
    PyObject *byte = numpy == NULL ? NULL : PyObject_CallMethod(numpy, "dtype", "s", "u1");
    PyObject *bytes = NULL, *array = NULL, *shape = NULL, *steps = NULL;
    const Py_intptr_t length = (Py_intptr_t)size;
    struct array_form flat = {.nd = 1, .shape = &length, .dtype = byte};
    if (byte != NULL && frame->block != NULL) {
        bytes = ndarray_on_block(&flat, frame->block, (void *)(uintptr_t)data, size);
    }
    else if (byte != NULL) {
        bool taken;
        struct array_look look;
        bytes = ndarray_on(&flat, NULL, &taken);
        if (bytes != NULL && array_look(bytes, &look) == 0) {
            memcpy(look.a.data, data, size);
            array_look_end(&look);
        }
    }
    if (bytes == NULL && !PyErr_Occurred()) {
        garbled("array");
    }
    if (bytes != NULL && (shape = tuple_of(form->shape, form->nd)) != NULL &&
        (steps = tuple_of(strides, form->nd)) != NULL) {
        /* Which checks that all elements are in it. */
        array = PyObject_CallMethod(numpy, "ndarray", "OOOKO", shape, form->dtype, bytes,
                                    (unsigned long long)offset, steps);
    }
    Py_XDECREF(numpy);
    Py_XDECREF(shape);
    Py_XDECREF(steps);
    Py_XDECREF(byte);
    Py_XDECREF(bytes);
    return array;
}

/* The bytes are the array's. NULL, perhaps without an exception: then the frame is garbled. */
static PyObject *
array_of_blob(const struct array_form *form, const struct frame *frame, const unsigned char *data,
              size_t size)
{
    bool taken;
    struct array_look look;
    if (frame->block != NULL) {
        return ndarray_on_block(form, frame->block, (void *)(uintptr_t)data, size);
    }
    PyObject *array = ndarray_on(form, copy_of_frame(frame, data, size), &taken);
    if (array == NULL || array_look(array, &look) < 0) {
        Py_CLEAR(array);
        return NULL;
    }
    if (array_size(&look.a) != size) {
        Py_CLEAR(array);
    }
    else if (!taken) {
        memcpy(look.a.data, data, size);
    }
    array_look_end(&look);
    return array;
}

PyObject *
decode_ndarray(struct incoming *in)
{
    uint64_t id = read_u64(&in->r), offset = 0;
    uint8_t flags = read_u8(&in->r);
    PyObject *array = NULL;
    struct array_form form = {.fortran = !(flags & 1), .dtype = decode_array_dtype(in)};
    Py_intptr_t shape[DIMENSIONS_MOST], strides[DIMENSIONS_MOST];
    uint64_t nd = read_count(&in->r, 8);
    size_t size;
    if (form.dtype == NULL || in->r.failed || nd > DIMENSIONS_MOST) {
        goto garbled;
    }
    form.nd = (int)nd;
    form.shape = shape;
    for (uint64_t i = 0; i < nd; i++) {
        shape[i] = (Py_intptr_t)read_u64(&in->r);
    }
    if (flags & STRIDED) {
        offset = read_u64(&in->r);
        for (uint64_t i = 0; i < nd; i++) {
            strides[i] = (Py_intptr_t)read_u64(&in->r);
        }
    }
    const struct frame *frame;
    const unsigned char *data = decode_blob(in, &size, &frame);
    if (in->r.failed) {
        goto garbled;
    }
    array = flags & STRIDED ? strided_array(&form, strides, offset, frame, data, size)
                            : array_of_blob(&form, frame, data, size);
    if (array == NULL) {
        goto garbled;
    }
    if (!(flags & 2)) {
        PyObject *none = PyObject_CallMethod(array, "setflags", "O", Py_False);
        if (none == NULL) {
            Py_CLEAR(array);
        }
        Py_XDECREF(none);
    }
    if (array != NULL && id != 0) {
        if (in->strand == NULL || pair_by_id(in->strand, id) != NULL ||
            pair_add(in->strand, array, PAIR_BUFFER, id) == NULL) {
            Py_CLEAR(array);
            goto garbled;
        }
        pair_by_id(in->strand, id)->shared = frame->block != NULL;
        if (frame->block != NULL || flags & STRIDED) {
            goto done; /* what is written is there at once; or it is compared with itself */
        }
        PyObject *before = share_of_frame(frame, data, size);
        if (before == NULL) {
            Py_CLEAR(array);
            goto done;
        }
        pair_by_id(in->strand, id)->snapshot = before;
    }
    goto done;
garbled:
    if (!PyErr_Occurred()) {
        garbled("array");
    }
done:
    Py_XDECREF(form.dtype);
    return array;
}

int
encode_array(struct message *m, PyObject *o, bool owned, bool *done)
{
    if (encode_paired(m, o)) {
        *done = true;
        return message_check(m);
    }
    if (m->result && !(owned && Py_REFCNT(o) == 1)) {
        return 0;
    }
    *done = true;
    PyObject *typecode = PyObject_GetAttr(o, core_get()->str_typecode);
    uint64_t id = 0;
    int rc = -1;
    Py_buffer view = {0};
    if (typecode == NULL || PyObject_GetBuffer(o, &view, PyBUF_SIMPLE) < 0) {
        goto done;
    }
    if (!m->result) {
        id = pair_new_id(m->strand);
        if (pair_add(m->strand, o, PAIR_BUFFER, id) == NULL) {
            goto done;
        }
    }
    write_u8(&m->w, TAG_ARRAY);
    write_u64(&m->w, id);
    rc = encode(m, typecode, false) < 0
             ? -1
             : encode_resizable(m, o, view.buf, (size_t)view.len, m->result);
done:
    Py_XDECREF(typecode);
    PyBuffer_Release(&view);
    return rc;
}

/* Pairs what was made of these bytes, which are what it is compared with. 0, or -1. */
static int
add_buffer_pair(struct incoming *in, PyObject *o, uint64_t id, const struct frame *frame,
                const unsigned char *data, size_t size)
{
    if (in->strand == NULL || pair_by_id(in->strand, id) != NULL) {
        return garbled("buffer");
    }
    struct pair *pair = pair_add(in->strand, o, PAIR_BUFFER, id);
    PyObject *before = pair == NULL ? NULL : share_of_frame(frame, data, size);
    if (before == NULL) {
        return -1;
    }
    pair->snapshot = before;
    return 0;
}

PyObject *
decode_array(struct incoming *in)
{
    uint64_t id = read_u64(&in->r);
    PyObject *typecode = decode(in);
    size_t size;
    const struct frame *frame;
    const unsigned char *data = decode_blob(in, &size, &frame);
    if (typecode == NULL || in->r.failed) {
        Py_XDECREF(typecode);
        if (!PyErr_Occurred()) {
            garbled("array");
        }
        return NULL;
    }
    PyObject *module = PyImport_ImportModule("array");
    PyObject *array = module == NULL ? NULL : PyObject_CallMethod(module, "array", "(O)", typecode);
    PyObject *bytes = array == NULL ? NULL
                                    : PyMemoryView_FromMemory((char *)(uintptr_t)data,
                                                              (Py_ssize_t)size, PyBUF_READ);
    PyObject *none = bytes == NULL ? NULL : PyObject_CallMethod(array, "frombytes", "O", bytes);
    if (none == NULL) {
        Py_CLEAR(array);
    }
    Py_XDECREF(none);
    Py_XDECREF(bytes);
    Py_XDECREF(module);
    Py_DECREF(typecode);
    if (array != NULL && id != 0 && add_buffer_pair(in, array, id, frame, data, size) < 0) {
        Py_CLEAR(array);
    }
    return array;
}

/* A format that memoryview.cast() can give back: any other view goes by reference. */
static bool
is_native_format(const char *format)
{
    format += format[0] == '@';
    return format[0] != '\0' && format[1] == '\0' && strchr("?cbBhHiIlLqQnNfdP", format[0]) != NULL;
}

int
encode_memoryview(struct message *m, PyObject *o, bool *done)
{
    if (encode_paired(m, o)) {
        *done = true;
        return message_check(m);
    }
    Py_buffer *view = PyMemoryView_GET_BUFFER(o);
    if (m->result || !PyBuffer_IsContiguous(view, 'C') ||
        !is_native_format(view->format == NULL ? "B" : view->format)) {
        return 0;
    }
    *done = true;
    uint64_t id = 0;
    if (!view->readonly) {
        id = pair_new_id(m->strand);
        if (pair_add(m->strand, o, PAIR_BUFFER, id) == NULL) {
            return -1;
        }
    }
    const char *format = view->format == NULL ? "B" : view->format;
    write_u8(&m->w, TAG_MEMORYVIEW);
    write_u64(&m->w, id);
    write_bytes(&m->w, format, strlen(format));
    write_u64(&m->w, (uint64_t)view->ndim);
    for (int i = 0; i < view->ndim; i++) {
        write_u64(&m->w, (uint64_t)(view->shape ? view->shape[i] : view->len));
    }
    if (m->strand == NULL || !channel_has_lane(m->strand->channel)) {
        return encode_resizable(m, o, view->buf, (size_t)view->len, false);
    }
    PyObject *owner = PyMemoryView_FromObject(o); /* one that nobody can release */
    int rc = owner == NULL ? -1 : encode_blob(m, view->buf, (size_t)view->len, owner, true);
    Py_XDECREF(owner);
    return rc;
}

PyObject *
decode_memoryview(struct incoming *in)
{
    uint64_t id = read_u64(&in->r);
    PyObject *format = decode_name(in), *shape = NULL, *base = NULL, *view = NULL;
    uint64_t nd = format == NULL ? 0 : read_count(&in->r, 8);
    size_t size;
    shape = PyTuple_New((Py_ssize_t)nd);
    for (uint64_t i = 0; shape != NULL && i < nd; i++) {
        PyTuple_SET_ITEM(shape, (Py_ssize_t)i, PyLong_FromUnsignedLongLong(read_u64(&in->r)));
    }
    const struct frame *frame;
    const unsigned char *data = decode_blob(in, &size, &frame);
    if (format == NULL || shape == NULL || in->r.failed) {
        goto done;
    }
    base = memory_of_frame(frame, data, size, id != 0);
    view = base == NULL ? NULL : PyMemoryView_FromObject(base);
    if (view != NULL && (nd != 1 || PyUnicode_CompareWithASCIIString(format, "B") != 0)) {
        Py_SETREF(view, PyObject_CallMethod(view, "cast", "s", "B"));
        if (view != NULL) {
            Py_SETREF(view, nd == 1 ? PyObject_CallMethod(view, "cast", "O", format)
                                    : PyObject_CallMethod(view, "cast", "OO", format, shape));
        }
    }
    if (view != NULL && id != 0 && add_buffer_pair(in, view, id, frame, data, size) < 0) {
        Py_CLEAR(view);
    }
    if (view != NULL && id != 0) {
        pair_by_id(in->strand, id)->memory = Py_NewRef(base);
    }
done:
    if (view == NULL && !PyErr_Occurred()) {
        garbled("memoryview");
    }
    Py_XDECREF(format);
    Py_XDECREF(shape);
    Py_XDECREF(base);
    return view;
}

int
flat_open(PyObject *o, struct flat *f)
{
    memset(f, 0, sizeof *f);
    if (!is_plain_ndarray(o)) {
        if (PyObject_GetBuffer(o, &f->view, PyBUF_SIMPLE) < 0) {
            PyErr_Clear();
            if (PyObject_GetBuffer(o, &f->view, PyBUF_CONTIG_RO | PyBUF_FORMAT) < 0) {
                return -1;
            }
        }
        f->data = f->view.buf;
        f->size = (size_t)f->view.len;
        f->unit = 1;
        f->contiguous = true;
        return 0;
    }
    struct array_look look;
    const struct array_interface *a = &look.a;
    if (array_look(o, &look) < 0) {
        return -1;
    }
    if (!(a->flags & (C_CONTIGUOUS | F_CONTIGUOUS))) {
        PyObject *numpy = PyImport_ImportModule("numpy");
        f->capsule = numpy ? PyObject_CallMethod(numpy, "ascontiguousarray", "O", o) : NULL;
        Py_XDECREF(numpy);
        array_look_end(&look);
        if (f->capsule == NULL || array_look(f->capsule, &look) < 0) {
            Py_CLEAR(f->capsule);
            return -1;
        }
    }
    f->data = a->data;
    f->size = array_size(a);
    f->unit = 1;
    if (a->typekind != '\0' && strchr("iufcmM", a->typekind) != NULL) {
        f->unit = a->itemsize == 2 || a->itemsize == 4 ? (size_t)a->itemsize
                  : a->itemsize % 8 == 0               ? 8
                                                       : 1;
    }
    f->contiguous = f->capsule == NULL;
    array_look_end(&look); /* the array itself stays, and its memory with it */
    return 0;
}

void
flat_close(struct flat *f)
{
    if (f->view.obj != NULL) {
        PyBuffer_Release(&f->view);
    }
    Py_CLEAR(f->capsule);
}
