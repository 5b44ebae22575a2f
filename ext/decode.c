/* decode.c: bytes to objects. A child may send anything: nothing that was read is trusted. */
#include "codec.h"

#include "ahead.h"
#include "batch.h"
#include "bigcopy.h"
#include "handles.h"
#include "memory.h"
#include "peer.h"
#include "proxy.h"
#include "runs.h"

#include <stdlib.h>
#include <string.h>

#define TEXT_CHUNK 16384 /* bytes that are checked and copied while they are in the cache */

void
call_free(struct call *call)
{
    for (Py_ssize_t i = 0; call->block != NULL && i < call->total; i++) {
        Py_XDECREF(call->args[i]);
    }
    if (call->block != call->few) {
        free(call->block);
    }
    Py_CLEAR(call->kwnames);
    call->block = NULL;
}

static int
decode_arguments(struct incoming *in, struct call *call, PyObject *first)
{
    memset(call, 0, sizeof *call);
    uint64_t nargs = read_size(&in->r, 1), nkw = read_size(&in->r, 1);
    if (in->r.failed) {
        return garbled("arguments");
    }
    Py_ssize_t extra = first != NULL;
    call->nargs = (Py_ssize_t)nargs + extra;
    size_t slots = (size_t)call->nargs + nkw + 1;
    call->block = slots <= sizeof call->few / sizeof *call->few
                      ? call->few
                      : calloc(slots, sizeof *call->block);
    if (call->block == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    call->args = call->block + 1;
    if (first != NULL) {
        call->args[call->total++] = Py_NewRef(first);
    }
    if (nkw > 0) {
        call->kwnames = PyTuple_New((Py_ssize_t)nkw);
        for (uint64_t i = 0; call->kwnames != NULL && i < nkw; i++) {
            PyObject *name = decode_name(in);
            if (name == NULL) {
                goto error;
            }
            PyTuple_SET_ITEM(call->kwnames, (Py_ssize_t)i, name);
        }
        if (call->kwnames == NULL) {
            goto error;
        }
    }
    for (uint64_t i = 0; i < nargs + nkw; i++) {
        PyObject *arg = decode(in);
        if (arg == NULL) {
            goto error;
        }
        call->args[call->total++] = arg;
    }
    if (in->strand != NULL && in->strand->npairs != 0 && pairs_snapshot(in->strand, 0) < 0) {
        goto error;
    }
    if (in->batch != NULL && batch_check(in->batch) < 0) {
        call_free(call);
        return -1;
    }
    return 0;
error:
    if (in->batch != NULL) {
        batch_lose(in->batch);
    }
    call_free(call);
    return -1;
}

int
decode_call(struct incoming *in, struct call *call, PyObject *first)
{
    in->strand->framing++;
    int rc = decode_arguments(in, call, first);
    in->strand->framing--;
    return rc;
}

/* Reads how a run begins. 0, or -1 with an exception. */
static int
run_begin(struct sequence *s)
{
    struct reader *r = &s->in->r;
    read_u8(r);
    s->kind = read_u8(r);
    size_t width = run_width(s->kind);
    s->run = width > 0 ? read_count(r, width) : 0;
    return s->run == 0 || s->run > s->left ? garbled("run") : 0;
}

int
sequence_begin(struct sequence *s, struct incoming *in)
{
    *s = (struct sequence){.in = in, .left = read_count(&in->r, 1)};
    return in->r.failed ? garbled("sequence") : 0;
}

PyObject *
sequence_next(struct sequence *s)
{
    struct reader *r = &s->in->r;
    if (s->run == 0 && reader_left(r) > 0 && *r->at == TAG_RUN && run_begin(s) < 0) {
        return NULL;
    }
    s->left--;
    if (s->run == 0) {
        return decode(s->in);
    }
    s->run--;
    return run_number(s->kind, read_raw(r, run_width(s->kind)));
}

static PyObject *
decode_tuple(struct incoming *in, bool kept)
{
    struct sequence s;
    if (sequence_begin(&s, in) < 0) {
        return NULL;
    }
    Py_ssize_t n = (Py_ssize_t)s.left;
    PyObject *tuple = PyTuple_New(n);
    if (kept && tuple != NULL) {
        /* Its items may lead back to it: whoever sees it before it is complete finds None. */
        for (Py_ssize_t i = 0; i < n; i++) {
            PyTuple_SET_ITEM(tuple, i, Py_NewRef(Py_None));
        }
        if (values_add(in->values, tuple) < 0) {
            Py_CLEAR(tuple);
        }
    }
    for (Py_ssize_t i = 0; tuple != NULL && i < n; i++) {
        PyObject *item = sequence_next(&s);
        if (item == NULL) {
            Py_CLEAR(tuple);
            break;
        }
        PyTuple_SET_ITEM(tuple, i, item);
    }
    if (kept && tuple != NULL && !PyObject_GC_IsTracked(tuple)) {
        PyObject_GC_Track(tuple); /* a collection has found nothing but None in it */
    }
    return tuple;
}

static PyObject *
decode_kept(struct incoming *in)
{
    uint64_t request = read_u64(&in->r);
    uint32_t index = read_u32(&in->r);
    if (in->discarded) {
        return Py_NewRef(Py_None);
    }
    PyObject *o =
        in->strand == NULL ? NULL : values_get(in->strand, request >> 1, !(request & 1), index);
    if (o == NULL) {
        garbled("unknown argument");
        return NULL;
    }
    return Py_NewRef(o);
}

/* A child may send anything: it is ASCII only if it is. */
static PyObject *
decode_blob_text(struct incoming *in)
{
    size_t size;
    const struct frame *frame;
    const unsigned char *data = decode_blob(in, &size, &frame);
    if (in->r.failed || size > PY_SSIZE_T_MAX) {
        garbled("text");
        return NULL;
    }
    PyObject *text = PyUnicode_New((Py_ssize_t)size, 127);
    if (text == NULL || size == 0) {
        return text;
    }
    unsigned char *to = (unsigned char *)PyUnicode_1BYTE_DATA(text);
    big_fresh(to, size);
    for (size_t at = 0, n; at < size; at += n) {
        uint64_t bits = 0, word;
        n = size - at < TEXT_CHUNK ? size - at : TEXT_CHUNK;
        memcpy(to + at, data + at, n); /* what is checked cannot change any more */
        size_t i = 0;
        for (; i + sizeof word <= n; i += sizeof word) {
            memcpy(&word, to + at + i, sizeof word);
            bits |= word;
        }
        for (; i < n; i++) {
            bits |= to[at + i];
        }
        if (bits & 0x8080808080808080u) {
            Py_DECREF(text);
            garbled("text");
            return NULL;
        }
    }
    return text;
}

static PyObject *
decode_backref(struct incoming *in)
{
    PyObject *o = export_find(in->peer, read_u64(&in->r));
    if (o == NULL) {
        garbled("unknown handle");
        return NULL;
    }
    return Py_NewRef(o);
}

static PyObject *
decode_named(struct incoming *in)
{
    PyObject *module = decode_name(in);
    PyObject *qualname = module == NULL ? NULL : decode_name(in);
    PyObject *o = NULL;
    if (qualname != NULL) {
        o = peer_resolve(in->peer, module, qualname);
    }
    Py_XDECREF(module);
    Py_XDECREF(qualname);
    return o;
}

static PyObject *
decode_reference(struct incoming *in, bool with_value)
{
    uint64_t handle = read_u64(&in->r);
    PyObject *cls = decode_class(in, CLASS_OF_INSTANCE), *value = NULL, *o = NULL;
    PyObject *module = NULL, *qualname = NULL;
    if (cls == NULL) {
        return NULL;
    }
    if (with_value) {
        value = decode(in);
        if (value == NULL) {
            goto done;
        }
    }
    else if (read_u8(&in->r)) {
        module = decode_name(in);
        qualname = module == NULL ? NULL : decode_name(in);
        if (qualname == NULL) {
            goto done;
        }
    }
    if (in->r.failed || handle == 0) {
        garbled("reference");
        goto done;
    }
    o = proxy_of_handle(in->peer, handle);
    if (o != NULL) {
        proxy_received(proxy_find(Py_NewRef(o)));
        goto done;
    }
    o = proxy_new_instance((PyTypeObject *)cls, value);
    if (o != NULL && proxy_bind(in->peer, o, handle) < 0) {
        Py_CLEAR(o);
    }
    if (o != NULL && module != NULL) {
        struct proxy *p = proxy_find(o);
        p->module = Py_NewRef(module);
        p->qualname = Py_NewRef(qualname);
    }
done:
    Py_DECREF(cls);
    Py_XDECREF(value);
    Py_XDECREF(module);
    Py_XDECREF(qualname);
    return o;
}

static PyObject *
decode_module(struct incoming *in)
{
    uint64_t handle = read_u64(&in->r);
    bool registered = read_u8(&in->r);
    PyObject *name = decode_name(in);
    if (name == NULL) {
        return NULL;
    }
    if (handle == 0) {
        Py_DECREF(name);
        garbled("module");
        return NULL;
    }
    PyObject *o = module_proxy(in->peer, name, handle, registered);
    Py_DECREF(name);
    return o;
}

static PyObject *
decode_method(struct incoming *in)
{
    if (read_u8(&in->r) != TAG_BACKREF) {
        garbled("method");
        return NULL;
    }
    PyObject *self = decode_backref(in);
    PyObject *name = self == NULL ? NULL : decode_name(in);
    PyObject *o = name == NULL ? NULL : PyObject_GetAttr(self, name);
    Py_XDECREF(self);
    Py_XDECREF(name);
    return o;
}

static PyObject *
decode_stub(struct incoming *in)
{
    PyObject *cls = decode_class(in, CLASS_AS_VALUE);
    PyObject *name = cls == NULL ? NULL : decode_name(in);
    PyObject *dict = name == NULL ? NULL : compat_type_dict((PyTypeObject *)cls);
    PyObject *o = dict == NULL ? NULL : PyDict_GetItemWithError(dict, name);
    if (o == NULL && dict != NULL && !PyErr_Occurred()) {
        o = compat_type_lookup((PyTypeObject *)cls, name);
        if (o == NULL) {
            PyErr_Format(PyExc_AttributeError, "type object '%s' has no attribute '%U'",
                         ((PyTypeObject *)cls)->tp_name, name);
        }
    }
    Py_XINCREF(o);
    Py_XDECREF(dict);
    Py_XDECREF(cls);
    Py_XDECREF(name);
    return o;
}

static PyObject *
decode_reduced(struct incoming *in)
{
    PyObject *function = decode_named(in);
    PyObject *args = function == NULL ? NULL : decode(in);
    PyObject *state = args == NULL ? NULL : decode(in);
    PyObject *o = NULL;
    if (state == NULL) {
        goto done;
    }
    if (!PyTuple_Check(args)) {
        garbled("reduced value");
        goto done;
    }
    o = PyObject_CallObject(function, args);
    if (o != NULL && state != Py_None) {
        PyObject *none = peer_set_state(in->peer, o, state);
        if (none == NULL) {
            Py_CLEAR(o);
        }
        Py_XDECREF(none);
    }
done:
    Py_XDECREF(function);
    Py_XDECREF(args);
    Py_XDECREF(state);
    return o;
}

static PyObject *
decode_slice_or_range(struct incoming *in, bool slice)
{
    PyObject *start = decode(in);
    PyObject *stop = start == NULL ? NULL : decode(in);
    PyObject *step = stop == NULL ? NULL : decode(in);
    PyObject *o = NULL;
    if (step != NULL) {
        o = slice
                ? PySlice_New(start, stop, step)
                : PyObject_CallFunctionObjArgs((PyObject *)&PyRange_Type, start, stop, step, NULL);
    }
    Py_XDECREF(start);
    Py_XDECREF(stop);
    Py_XDECREF(step);
    return o;
}

static APART PyObject *
decode_compound(struct incoming *in, uint8_t tag, bool kept)
{
    struct reader *r = &in->r;
    switch (tag) {
    case TAG_RANGE:
    case TAG_SLICE:
        return decode_slice_or_range(in, tag == TAG_SLICE);
    case TAG_TUPLE:
        return decode_tuple(in, kept);
    case TAG_FROZENSET:
    case TAG_LIST:
    case TAG_DICT:
    case TAG_SET:
    case TAG_DEQUE:
    case TAG_BYTEARRAY:
    case TAG_PAIR:
    case TAG_PAIRREF:
    case TAG_LIBRARY:
    case TAG_SHADOW:
        return decode_container(in, tag);
    case TAG_REF:
        return decode_reference(in, false);
    case TAG_REFVALUE:
        return decode_reference(in, true);
    case TAG_NAMED:
        return decode_named(in);
    case TAG_CLASS:
        return decode_class(in, CLASS_AS_VALUE);
    case TAG_MODULE:
        return decode_module(in);
    case TAG_METHOD:
        return decode_method(in);
    case TAG_STUB:
        return decode_stub(in);
    case TAG_REDUCE:
        return decode_reduced(in);
    case TAG_TRACEBACK:
        return decode_traceback(in);
    case TAG_EXCEPTION_BACK:
        return decode_exception_back(in);
    case TAG_EXCEPTION:
        return decode_exception(in);
    case TAG_EXCEPTION_SEEN: {
        PyObject *key = PyLong_FromUnsignedLongLong(read_u64(r));
        PyObject *o =
            key == NULL || in->seen == NULL ? NULL : PyDict_GetItemWithError(in->seen, key);
        Py_XDECREF(key);
        if (o == NULL && !PyErr_Occurred()) {
            garbled("exception");
        }
        return Py_XNewRef(o);
    }
    case TAG_OBJECTS:
        return decode_objects(in);
    case TAG_NDARRAY:
        return decode_ndarray(in);
    case TAG_MEMORY:
        return decode_pickle_buffer(in);
    case TAG_PARTS:
        return decode_parts(in);
    case TAG_SCALAR:
        return decode_scalar(in);
    case TAG_DTYPE:
        return decode_dtype(in);
    case TAG_ARRAY:
        return decode_array(in);
    case TAG_MEMORYVIEW:
        return decode_memoryview(in);
    case TAG_ARGUMENT:
        return decode_kept(in);
    case TAG_BLOBTEXT:
        return decode_blob_text(in);
    case TAG_CONTENTS:
        return contents_decode(in);
    case TAG_FUTURE:
        return batch_decode(in);
    default:
        garbled("unknown tag");
        return NULL;
    }
}

PyObject *
decode(struct incoming *in)
{
    struct reader *r = &in->r;
    size_t size;
    const unsigned char *data;
    PyObject *o = NULL;
    uint8_t tag = read_u8(r);
    if (r->failed) {
        garbled("too short");
        return NULL;
    }
    bool kept = tag & TAG_KEPT;
    if (kept && in->values == NULL) {
        garbled("value");
        return NULL;
    }
    tag &= (uint8_t)~TAG_KEPT;
    switch (tag) {
    case TAG_NONE:
        Py_RETURN_NONE;
    case TAG_FALSE:
        Py_RETURN_FALSE;
    case TAG_TRUE:
        Py_RETURN_TRUE;
    case TAG_ELLIPSIS:
        return Py_NewRef(Py_Ellipsis);
    case TAG_NOTIMPLEMENTED:
        Py_RETURN_NOTIMPLEMENTED;
    case TAG_INT:
        o = PyLong_FromLongLong((long long)read_u64(r));
        break;
    case TAG_BYTE:
        o = PyLong_FromLong((int8_t)read_u8(r));
        break;
    case TAG_FLOAT:
        o = PyFloat_FromDouble(read_f64(r));
        break;
    case TAG_COMPLEX: {
        double real = read_f64(r);
        o = PyComplex_FromDoubles(real, read_f64(r));
        break;
    }
    case TAG_BIGINT:
        data = read_bytes(r, &size);
        o = r->failed ? NULL : compat_long_from_bytes(data, size);
        break;
    case TAG_ASCII:
        data = read_bytes(r, &size);
        /* Not trusted to be ASCII: a child may send anything. */
        o = r->failed ? NULL
            : kept    ? argument_text(in->values, (const char *)data, size)
                      : PyUnicode_DecodeASCII((const char *)data, (Py_ssize_t)size, "replace");
        break;
    case TAG_BACKREF:
        o = decode_backref(in);
        break;
    case TAG_STR:
        data = read_bytes(r, &size);
        o = r->failed ? NULL
                      : PyUnicode_DecodeUTF8((const char *)data, (Py_ssize_t)size, "surrogatepass");
        break;
    case TAG_BYTES:
        data = decode_blob(in, &size, &(const struct frame *){NULL});
        o = r->failed ? NULL : bytes_of(data, size);
        break;
    default:
        if (recursion_enter(" while reading an object from another process", STACK_OBJECT) < 0) {
            return NULL;
        }
        o = decode_compound(in, tag, kept);
        kept = kept && tag != TAG_TUPLE; /* that was done before its items */
        recursion_leave();
        break;
    }
    if (r->failed) {
        Py_CLEAR(o);
        if (!PyErr_Occurred()) {
            garbled("too short");
        }
    }
    if (kept && o != NULL) {
        in->values->numbers = in->values->numbers || PyLong_CheckExact(o) ||
                              PyFloat_CheckExact(o) || PyComplex_CheckExact(o);
        if (values_add(in->values, o) < 0) {
            Py_CLEAR(o);
        }
    }
    return o;
}
