/* buffers.c: the buffer protocol of proxies. Whoever asks a proxy for its buffer gets memory of
 * this process, a copy, that is kept in step with the target's; as long as it lives, a `hold` over
 * there keeps the target's buffer exported. */
#include "buffers.h"

#include "codec.h"
#include "handles.h"
#include "peer.h"
#include "proxy.h"

#include <stdlib.h>
#include <string.h>

/* Bytes up to which a copy follows what the other side changes: that side compares the whole
 * buffer whenever it sends a frame. What is written here is always compared and sent. */
#define FOLLOWED 65536

/* What either side has of one buffer. */
struct image {
    Py_buffer *view;
    PyObject *before; /* strong or NULL (not compared): bytes, what both had last, in C order */
    PyObject *sent;   /* strong or NULL: what both have once the frame that is built is sent */
};

/* There: keeps the buffer exported. */
typedef struct HoldObject {
    PyObject_HEAD
    PeerObject *peer; /* borrowed: it owns the export */
    PyObject *view;   /* strong: a memoryview of the target */
    struct image image;
    struct HoldObject *next;
} HoldObject;

/* Here: what a proxy gives out. */
struct copy {
    PyObject *proxy; /* borrowed: the views that are given out hold it; NULL when there are none */
    PyObject *hold;  /* strong */
    uint32_t epoch;
    Py_ssize_t views; /* given out and not released */
    struct image image;
    Py_buffer view;
    char *memory; /* owned, or NULL: it is that of image.before */
    PyObject *format;
    Py_ssize_t shape[PyBUF_MAX_NDIM], strides[PyBUF_MAX_NDIM];
    struct copy *next;
};

/* ---- contents in C order ----------------------------------------------------------------- */

/* The bytes of a view: in place, or (to be freed) in *copy. NULL with an exception. */
static char *
content_of(Py_buffer *view, char **copy)
{
    *copy = NULL;
    if (PyBuffer_IsContiguous(view, 'C')) {
        return view->buf;
    }
    *copy = malloc(view->len > 0 ? (size_t)view->len : 1);
    if (*copy == NULL) {
        PyErr_NoMemory();
    }
    else if (PyBuffer_ToContiguous(*copy, view, view->len, 'C') < 0) {
        free(*copy);
        *copy = NULL;
    }
    return *copy;
}

/* Appends what changed since both sides had the same, if anything has. */
static int
image_encode(struct message *m, struct image *image, uint64_t handle, bool own, uint64_t *n)
{
    char *copy, *now = content_of(image->view, &copy);
    size_t size = (size_t)image->view->len;
    int rc = now == NULL ? -1 : 0;
    if (rc == 0 && memcmp(now, PyBytes_AS_STRING(image->before), size) != 0) {
        bool changed;
        write_u64(&m->w, handle);
        write_u8(&m->w, own);
        rc = encode_ranges(m, now, PyBytes_AS_STRING(image->before), size, &changed);
        Py_XSETREF(image->sent, PyBytes_FromStringAndSize(now, (Py_ssize_t)size));
        rc = image->sent == NULL ? -1 : rc;
        *n += 1;
    }
    free(copy);
    return rc;
}

static void
image_sent(struct image *image)
{
    if (image->sent != NULL) {
        Py_XSETREF(image->before, image->sent);
        image->sent = NULL;
    }
}

/* Takes over what the other side changed. */
static int
image_decode(struct incoming *in, struct image *image)
{
    struct reader start = in->r;
    size_t size = (size_t)image->view->len;
    char *copy, *now = content_of(image->view, &copy);
    int rc = now == NULL ? -1 : apply_ranges(in, now, size);
    if (rc == 0 && image->before != NULL && now != PyBytes_AS_STRING(image->before)) {
        in->r = start;
        rc = apply_ranges(in, PyBytes_AS_STRING(image->before), size);
    }
    if (rc == 0 && copy != NULL) {
        rc = PyBuffer_FromContiguous(image->view, copy, image->view->len, 'C');
    }
    Py_CLEAR(image->sent);
    free(copy);
    return rc;
}

/* ---- the side of the target -------------------------------------------------------------- */

static void
hold_dealloc(HoldObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    for (HoldObject **at = &self->peer->holds; *at != NULL; at = &(*at)->next) {
        if (*at == self) {
            *at = self->next;
            break;
        }
    }
    Py_XDECREF(self->image.before);
    Py_XDECREF(self->image.sent);
    Py_XDECREF(self->view);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyType_Slot hold_slots[] = {
    {Py_tp_dealloc, hold_dealloc},
    {0, NULL},
};
static PyType_Spec hold_spec = {"ipython_isolation._core.Hold", sizeof(HoldObject), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, hold_slots};

bool
is_hold(PyObject *o)
{
    return o != NULL && Py_TYPE(o) == core_get()->hold_type;
}

static PyObject *
tuple_of_sizes(const Py_ssize_t *sizes, int n)
{
    PyObject *tuple = sizes == NULL ? Py_NewRef(Py_None) : PyTuple_New(n);
    for (int i = 0; sizes != NULL && tuple != NULL && i < n; i++) {
        PyObject *size = PyLong_FromSsize_t(sizes[i]);
        if (size == NULL) {
            Py_CLEAR(tuple);
            break;
        }
        PyTuple_SET_ITEM(tuple, i, size);
    }
    return tuple;
}

PyObject *
buffer_hold(PeerObject *peer, PyObject *o, int flags)
{
    HoldObject *hold = NULL;
    PyObject *view = NULL, *bytes = NULL, *shape = NULL, *strides = NULL, *result = NULL;
    if (flags != PyBUF_FULL_RO) {
        /* What it says to these very flags: its errors are the target's own. */
        Py_buffer probe;
        if (PyObject_GetBuffer(o, &probe, flags) < 0) {
            return NULL;
        }
        PyBuffer_Release(&probe);
    }
    view = PyMemoryView_FromObject(o);
    if (view == NULL) {
        return NULL;
    }
    Py_buffer *b = PyMemoryView_GET_BUFFER(view);
    if (b->suboffsets != NULL) {
        PyErr_SetString(PyExc_BufferError, "buffers with suboffsets do not cross");
        goto done;
    }
    bytes = PyBytes_FromStringAndSize(NULL, b->len);
    if (bytes == NULL || PyBuffer_ToContiguous(PyBytes_AS_STRING(bytes), b, b->len, 'C') < 0) {
        goto done;
    }
    hold = PyObject_New(HoldObject, core_get()->hold_type);
    if (hold == NULL) {
        goto done;
    }
    hold->peer = peer;
    hold->view = Py_NewRef(view);
    hold->image = (struct image){.view = b};
    hold->next = peer->holds;
    peer->holds = hold;
    if (b->len <= FOLLOWED) {
        hold->image.before = PyBytes_FromStringAndSize(PyBytes_AS_STRING(bytes), b->len);
        if (hold->image.before == NULL) {
            goto done;
        }
    }
    shape = b->ndim == 0 ? PyTuple_New(0) : tuple_of_sizes(b->shape, b->ndim);
    strides = tuple_of_sizes(PyBuffer_IsContiguous(b, 'C') ? NULL : b->strides, b->ndim);
    if (shape != NULL && strides != NULL) {
        result = Py_BuildValue("(OOyniOO)", hold, bytes, b->format ? b->format : "B", b->itemsize,
                               b->readonly, shape, strides);
    }
done:
    Py_XDECREF(hold);
    Py_XDECREF(view);
    Py_XDECREF(bytes);
    Py_XDECREF(shape);
    Py_XDECREF(strides);
    return result;
}

/* ---- the side of the proxy --------------------------------------------------------------- */

static void
copy_free(PeerObject *peer, struct copy *c)
{
    for (struct copy **at = &peer->copies; *at != NULL; at = &(*at)->next) {
        if (*at == c) {
            *at = c->next;
            break;
        }
    }
    PyObject *hold = c->hold;
    Py_XDECREF(c->image.before);
    Py_XDECREF(c->image.sent);
    Py_XDECREF(c->format);
    free(c->memory);
    free(c);
    Py_XDECREF(hold); /* queues its release */
}

void
buffers_forget(PeerObject *peer)
{
    for (struct copy *c = peer->copies, *next; c != NULL; c = next) {
        next = c->next;
        if (c->views == 0) { /* else: when the last of them is released */
            copy_free(peer, c);
        }
    }
}

/* Sets what both sides have to what is there, or to what differs from it in every byte. */
static void
image_assume(struct image *image, bool same)
{
    char *copy, *now = image->before == NULL ? NULL : content_of(image->view, &copy);
    char *before = now == NULL ? NULL : PyBytes_AS_STRING(image->before);
    for (Py_ssize_t i = 0; before != NULL && before != now && i < image->view->len; i++) {
        before[i] = same ? now[i] : (char)~now[i];
    }
    if (now != NULL) {
        free(copy);
    }
    Py_CLEAR(image->sent);
    PyErr_Clear();
}

void
buffers_carry_over(PeerObject *peer)
{
    for (struct copy *c = peer->copies; c != NULL; c = c->next) {
        struct proxy *p = c->hold == NULL ? NULL : proxy_find(c->hold);
        if (p != NULL && p->epoch == peer->epoch) {
            c->epoch = peer->epoch;
            image_assume(&c->image, true);
        }
    }
    for (HoldObject *hold = peer->holds; hold != NULL; hold = hold->next) {
        image_assume(&hold->image, false);
    }
}

static bool
is_changed(struct copy *c)
{
    char *copy, *now = content_of(&c->view, &copy);
    bool changed =
        now != NULL && memcmp(now, PyBytes_AS_STRING(c->image.before), (size_t)c->view.len) != 0;
    PyErr_Clear();
    free(copy);
    return changed;
}

/* The last view was released. What was written through it goes off at once, where this thread has a
 * connection; else with the next frame. */
static void
copy_released(PeerObject *peer, struct copy *c)
{
    c->proxy = NULL;
    if (c->epoch != peer->epoch || peer->state != PEER_RUNNING || c->view.readonly ||
        !is_changed(c)) {
        copy_free(peer, c);
        return;
    }
    unsigned long thread = PyThread_get_thread_ident();
    for (size_t i = 0; i < peer->nstrands; i++) {
        struct strand *s = peer->strands[i];
        if (s->thread == thread && !s->closed && s->epoch == peer->epoch) {
            PyObject *type, *value, *traceback;
            PyErr_Fetch(&type, &value, &traceback);
            if (peer_send_event(peer, s, OP_RELEASE, NULL, 0) < 0) {
                PyErr_WriteUnraisable((PyObject *)peer);
            }
            PyErr_Restore(type, value, traceback);
            return;
        }
    }
}

int
buffers_encode(struct message *m, bool *any)
{
    PeerObject *peer = m->peer;
    size_t count_at = m->w.size;
    uint64_t n = 0;
    int rc = 0;
    bool service = m->strand->id == 0; /* it could be read later than the frames of other strands */
    write_u64(&m->w, 0);
    for (struct copy *c = peer->copies; rc == 0 && !service && c != NULL; c = c->next) {
        struct proxy *p = c->hold == NULL ? NULL : proxy_find(c->hold);
        if (p != NULL && c->epoch == peer->epoch && !c->view.readonly) {
            rc = image_encode(m, &c->image, p->handle, false, &n);
        }
    }
    for (HoldObject *hold = peer->holds; rc == 0 && !service && hold != NULL; hold = hold->next) {
        struct export *e =
            hold->image.before == NULL ? NULL : table_get(&peer->export_of, ADDRESS(hold));
        if (e != NULL) {
            rc = image_encode(m, &hold->image, e->handle, true, &n);
        }
    }
    if (n == 0) {
        m->w.size = count_at;
    }
    else if (!m->w.failed) {
        memcpy(m->w.data + count_at, &n, sizeof n);
    }
    *any = n != 0;
    return rc < 0 ? -1 : message_check(m);
}

void
buffers_sent(PeerObject *peer)
{
    for (HoldObject *hold = peer->holds; hold != NULL; hold = hold->next) {
        image_sent(&hold->image);
    }
    for (struct copy *c = peer->copies, *next; c != NULL; c = next) {
        next = c->next;
        image_sent(&c->image);
        if (c->views == 0 && (c->epoch != peer->epoch || !is_changed(c))) {
            copy_free(peer, c);
        }
    }
}

/* Changes of a buffer that was let go of meanwhile. */
static int
skip_ranges(struct incoming *in)
{
    for (uint64_t n = read_count(&in->r, 8 + 1 + 1); n > 0; n--) {
        size_t size;
        const struct frame *frame;
        (void)read_u64(&in->r);
        (void)decode_blob(in, &size, &frame);
    }
    return in->r.failed ? garbled("changes of a buffer") : 0;
}

int
buffers_decode(struct incoming *in)
{
    PeerObject *peer = in->peer;
    for (uint64_t n = read_count(&in->r, 17); n > 0; n--) {
        uint64_t handle = read_u64(&in->r);
        bool theirs = read_u8(&in->r);
        struct image *image = NULL;
        if (theirs) {
            PyObject *hold = proxy_of_handle(peer, handle);
            for (struct copy *c = peer->copies; hold != NULL && c != NULL; c = c->next) {
                image = c->hold == hold ? &c->image : image;
            }
        }
        else {
            PyObject *hold = export_find(peer, handle);
            image = is_hold(hold) ? &((HoldObject *)hold)->image : NULL;
            if (image != NULL && image->view->readonly) {
                return garbled("changes of a read-only buffer");
            }
        }
        if (image == NULL ? skip_ranges(in) < 0 : image_decode(in, image) < 0) {
            return -1;
        }
    }
    return in->r.failed ? garbled("changes of buffers") : 0;
}

/* Can items of this format be read from `itemsize` bytes? memoryview believes it. */
static bool
is_sound(const char *format, Py_ssize_t itemsize)
{
    static const char chars[] = "cbB?hHiIlLqQnNfdeP";
    static const unsigned char sizes[] = {1, 1, 1, 1, 2, 2, 4, 4, 8, 8, 8, 8, 8, 8, 4, 8, 2, 8};
    const char *plain = format[0] == '@' ? format + 1 : format;
    const char *found = plain[0] == '\0' ? NULL : strchr(chars, plain[0]);
    if (found != NULL && plain[1] == '\0') {
        return itemsize == sizes[found - chars];
    }
    /* Bytes from a frame must never become pointers to objects; :names: may have any letter. */
    for (bool name = false; *format != '\0'; format++) {
        name = *format == ':' ? !name : name;
        if (*format == 'O' && !name) {
            return false;
        }
    }
    return true;
}

/* Fills shape and strides; *span, *low: the bytes that the items lie in, and before the first. */
static bool
read_geometry(struct copy *c, PyObject *shape, PyObject *strides, size_t *span, size_t *low)
{
    Py_buffer *b = &c->view;
    Py_ssize_t size = b->itemsize, min = 0, max = 0;
    int n = (int)PyTuple_GET_SIZE(shape);
    bool strided = PyTuple_Check(strides);
    if (PyTuple_GET_SIZE(shape) > PyBUF_MAX_NDIM || b->itemsize <= 0 ||
        (strided && PyTuple_GET_SIZE(strides) != n)) {
        return false;
    }
    for (int i = n; i-- > 0;) {
        c->shape[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, i));
        c->strides[i] = strided ? PyLong_AsSsize_t(PyTuple_GET_ITEM(strides, i)) : size;
        if (c->shape[i] < 0 || PyErr_Occurred() ||
            __builtin_mul_overflow(size, c->shape[i], &size)) {
            return false;
        }
        Py_ssize_t reach, *end = c->strides[i] < 0 ? &min : &max;
        if (c->shape[i] > 0 && (__builtin_mul_overflow(c->shape[i] - 1, c->strides[i], &reach) ||
                                __builtin_add_overflow(*end, reach, end) ||
                                *end < -(PY_SSIZE_T_MAX / 4) || *end > PY_SSIZE_T_MAX / 4)) {
            return false;
        }
    }
    b->ndim = n;
    b->shape = c->shape;
    b->strides = c->strides;
    *low = size == 0 ? 0 : (size_t)-min;
    *span = size == 0 ? 1 : (size_t)(max - min + b->itemsize);
    return size == b->len;
}

/* Makes a copy of what buffer_hold gave over there; NULL with an exception. */
static struct copy *
copy_new(PeerObject *peer, PyObject *proxy, PyObject *parts)
{
    PyObject *hold, *bytes, *format, *shape, *strides;
    Py_ssize_t itemsize;
    int readonly;
    size_t span, low;
    struct copy *c = calloc(1, sizeof *c);
    if (c == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    if (!PyTuple_Check(parts) ||
        !PyArg_ParseTuple(parts, "OSSniO!O", &hold, &bytes, &format, &itemsize, &readonly,
                          &PyTuple_Type, &shape, &strides)) {
        goto garbled;
    }
    c->proxy = proxy;
    c->hold = Py_NewRef(hold);
    c->epoch = peer->epoch;
    c->format = Py_NewRef(format);
    c->view =
        (Py_buffer){.len = PyBytes_GET_SIZE(bytes), .itemsize = itemsize, .readonly = readonly};
    c->view.format = PyBytes_AS_STRING(format);
    c->image.view = &c->view;
    if (!is_sound(c->view.format, itemsize)) {
        PyErr_Format(PyExc_BufferError, "a buffer of format '%s' does not cross", c->view.format);
        goto error;
    }
    if (!read_geometry(c, shape, strides, &span, &low)) {
        goto garbled;
    }
    /* Its own bytes: they change. */
    c->image.before = PyBytes_FromStringAndSize(PyBytes_AS_STRING(bytes), c->view.len);
    if (c->image.before == NULL) {
        goto error;
    }
    if (readonly && !PyTuple_Check(strides)) {
        c->view.buf = PyBytes_AS_STRING(c->image.before);
    }
    else {
        c->memory = calloc(span, 1);
        if (c->memory == NULL) {
            PyErr_NoMemory();
            goto error;
        }
        c->view.buf = c->memory + low;
        if (PyBuffer_FromContiguous(&c->view, PyBytes_AS_STRING(bytes), c->view.len, 'C') < 0) {
            goto error;
        }
    }
    c->next = peer->copies;
    peer->copies = c;
    return c;
garbled:
    PyErr_Clear();
    garbled("buffer");
error:
    copy_free(peer, c);
    return NULL;
}

static struct copy *
copy_find(PeerObject *peer, PyObject *proxy)
{
    struct copy *c = peer->copies;
    while (c != NULL && !(c->proxy == proxy && c->epoch == peer->epoch)) {
        c = c->next;
    }
    return c;
}

static int
give_out(struct copy *c, PyObject *proxy, Py_buffer *view, int flags)
{
    const char *error = NULL;
    if ((flags & PyBUF_WRITABLE) && c->view.readonly) {
        error = "Object is not writable.";
    }
    else if ((flags & PyBUF_C_CONTIGUOUS) == PyBUF_C_CONTIGUOUS &&
             !PyBuffer_IsContiguous(&c->view, 'C')) {
        error = "underlying buffer is not C-contiguous";
    }
    else if ((flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS &&
             !PyBuffer_IsContiguous(&c->view, 'F')) {
        error = "underlying buffer is not Fortran contiguous";
    }
    else if ((flags & PyBUF_ANY_CONTIGUOUS) == PyBUF_ANY_CONTIGUOUS &&
             !PyBuffer_IsContiguous(&c->view, 'A')) {
        error = "underlying buffer is not contiguous";
    }
    else if ((flags & PyBUF_STRIDES) != PyBUF_STRIDES && !PyBuffer_IsContiguous(&c->view, 'C')) {
        error = "underlying buffer is not C-contiguous";
    }
    if (error != NULL) {
        PyErr_SetString(PyExc_BufferError, error);
        return -1;
    }
    *view = c->view;
    view->obj = Py_NewRef(proxy);
    view->internal = c;
    if (!(flags & PyBUF_FORMAT)) {
        view->format = NULL;
    }
    if ((flags & PyBUF_STRIDES) != PyBUF_STRIDES) {
        view->strides = NULL;
    }
    if (!(flags & PyBUF_ND)) {
        view->shape = NULL;
        view->ndim = 1;
    }
    c->views++;
    return 0;
}

int
proxy_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    struct proxy *p = proxy_find(self);
    struct message m;
    if (view == NULL) {
        PyErr_SetString(PyExc_BufferError, "a buffer without a view is asked for");
        return -1;
    }
    view->obj = NULL;
    if (p == NULL) {
        PyErr_Format(PyExc_TypeError, "a bytes-like object is required, not '%s'",
                     Py_TYPE(self)->tp_name);
        return -1;
    }
    PeerObject *peer = p->peer;
    struct copy *c = peer->state == PEER_RUNNING ? copy_find(peer, self) : NULL;
    if (c != NULL && c->view.len <= FOLLOWED) {
        if (give_out(c, self, view, flags) == 0) {
            return 0;
        }
        PyErr_Clear(); /* the target says it in its own words */
    }
    if (request_begin(peer, &m, OP_BUFFER) < 0) {
        return -1;
    }
    if (encode(&m, self, false) < 0) {
        request_abandon(&m);
        return -1;
    }
    write_u32(&m.w, (uint32_t)flags);
    PyObject *parts = request_finish(&m);
    if (parts == NULL) {
        return -1;
    }
    struct copy *fresh = copy_new(peer, self, parts);
    Py_DECREF(parts);
    if (fresh == NULL) {
        return -1;
    }
    /* All views of one target share one memory. */
    struct copy *known = fresh->next;
    while (known != NULL && !(known->proxy == self && known->epoch == peer->epoch)) {
        known = known->next;
    }
    if (known != NULL && known->view.len == fresh->view.len && known->memory != NULL &&
        PyBuffer_FromContiguous(&known->view, PyBytes_AS_STRING(fresh->image.before),
                                fresh->view.len, 'C') == 0) {
        Py_XSETREF(known->image.before, Py_NewRef(fresh->image.before));
        copy_free(peer, fresh);
        fresh = known;
    }
    PyErr_Clear();
    int rc = give_out(fresh, self, view, flags);
    if (rc < 0 && fresh->views == 0) {
        copy_free(peer, fresh);
    }
    return rc;
}

void
proxy_releasebuffer(PyObject *self, Py_buffer *view)
{
    struct copy *c = view->internal;
    struct proxy *p = proxy_find(self);
    if (c == NULL) {
        return; /* given out by the built-in base of a class of this side, which shares our slot */
    }
    c->views--;
    if (c->views == 0 && p != NULL) {
        copy_released(p->peer, c);
    }
}

int
buffers_init(core_state *core, PyObject *module)
{
    core->hold_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &hold_spec, NULL);
    return core->hold_type == NULL ? -1 : 0;
}
