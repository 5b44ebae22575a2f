/* message.c: a frame being built, and what it holds on to: the handles that it exports, which are
 * taken back when it is abandoned, and the objects whose bytes go along without a copy. */
#include "codec.h"

#include "bigcopy.h"
#include "handles.h"

#include <stdatomic.h>
#include <stdlib.h>

int
garbled(const char *what)
{
    PyObject *type = PyObject_GetAttrString(core_get()->errors, "ProtocolError");
    if (type != NULL) {
        PyErr_Format(type, "garbled frame from the other process: %s", what);
        Py_DECREF(type);
    }
    return -1;
}

#define MUCH ((size_t)1 << 20) /* bytes that are worth more than memcpy() */

/* ---- messages ---------------------------------------------------------------------------- */

void
message_init(struct message *m, PeerObject *peer, struct strand *strand, bool result)
{
    writer_init(&m->w);
    m->peer = peer;
    m->strand = strand;
    m->result = result;
    m->op = 0;
    m->flags = 0;
    m->request = 0;
    m->released = 0;
    m->begun = false;
    m->npairs = strand != NULL ? strand->npairs : 0;
    m->changes_upto = 0;
    m->sent = NULL;
    m->nsent = m->capsent = 0;
    m->seen = NULL;
    m->blobs = NULL;
    m->nblobs = 0;
    m->reducing = false;
    m->taking_apart = false;
    m->pure = false;
    m->openly = false;
    m->operation = NULL;
    m->operand = NULL;
    m->arguments = (struct arguments){0};
    m->values = NULL;
    m->batch = NULL;
    m->interrupted = false;
}

void
message_free(struct message *m, bool abandon)
{
    if (abandon) {
        for (size_t i = m->nsent; i-- > 0;) {
            if (m->sent[i].described) {
                table_remove(&m->strand->described, m->sent[i].handle);
            }
            export_release(m->peer, m->sent[i].handle, 1);
        }
    }
    if (m->begun) {
        m->begun = false;
        m->strand->framing--;
    }
    free(m->sent);
    m->sent = NULL;
    m->nsent = m->capsent = 0;
    Py_CLEAR(m->seen);
    for (size_t i = 0; i < m->nblobs; i++) {
        blob_done(m->blobs[i].owner);
    }
    free(m->blobs);
    m->blobs = NULL;
    m->nblobs = 0;
    writer_free(&m->w);
    if (m->values != NULL) {
        struct values *values = m->values;
        m->values = NULL;
        values_clear(values);
    }
}

/* ---- blobs ------------------------------------------------------------------------------- */

/* What has been sent, pushed by a thread that has no GIL to drop references: libzmq's own, or one
 * that copies much. */
struct finished {
    PyObject *object; /* strong */
    struct finished *next;
};
static struct finished *_Atomic finished;

void
blob_done(void *owner)
{
    struct finished *f = owner;
    f->next = atomic_load(&finished);
    while (!atomic_compare_exchange_weak(&finished, &f->next, f)) {
    }
}

void
blobs_collect(void)
{
    if (atomic_load(&finished) == NULL) {
        return;
    }
    for (struct finished *f = atomic_exchange(&finished, NULL), *next; f != NULL; f = next) {
        next = f->next;
        Py_DECREF(f->object);
        free(f);
    }
}

static int
add_blob(struct message *m, const void *data, size_t size, PyObject *owner, bool apart,
         struct block *block)
{
    struct finished *f = malloc(sizeof *f);
    struct blob *more = f == NULL ? NULL : realloc(m->blobs, (m->nblobs + 1) * sizeof *more);
    if (more == NULL) {
        free(f);
        PyErr_NoMemory();
        return -1;
    }
    f->object = Py_NewRef(owner);
    m->blobs = more;
    m->blobs[m->nblobs] = (struct blob){data, size, f, apart, block};
    write_u8(&m->w, 1);
    write_u64(&m->w, m->nblobs++);
    return message_check(m);
}

int
encode_blob(struct message *m, const void *data, size_t size, PyObject *owner, bool apart)
{
    if (size < BLOB_SIZE) {
        write_u8(&m->w, 0);
        write_bytes(&m->w, data, size);
        return message_check(m);
    }
    return add_blob(m, data, size, owner, apart, NULL);
}

PyObject *
bytes_of(const void *data, size_t size)
{
    if (size < MUCH) {
        return PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
    }
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (bytes != NULL) {
        big_fresh(PyBytes_AS_STRING(bytes), size);
        big_copy(PyBytes_AS_STRING(bytes), data, size);
    }
    return bytes;
}

int
encode_resizable(struct message *m, PyObject *o, const void *data, size_t size, bool ours)
{
    if (size < BLOB_SIZE || ours) {
        return encode_blob(m, data, size, o, true);
    }
    PyObject *copy = bytes_of(data, size);
    int rc = copy == NULL ? -1 : encode_blob(m, PyBytes_AS_STRING(copy), size, copy, true);
    Py_XDECREF(copy);
    return rc;
}

int
encode_shared(struct message *m, const void *data, size_t size, PyObject *owner,
              struct block *block)
{
    return add_blob(m, data, size, owner, true, block);
}

const unsigned char *
decode_blob(struct incoming *in, size_t *size, const struct frame **frame)
{
    *size = 0;
    *frame = &in->frame;
    if (!read_u8(&in->r)) {
        return read_bytes(&in->r, size);
    }
    uint64_t index = read_u64(&in->r);
    if (in->r.failed || index >= in->frame.nparts) {
        in->r.failed = true;
        return NULL;
    }
    *frame = &in->frame.parts[index];
    *size = (*frame)->size;
    return (*frame)->data;
}

int
message_check(struct message *m)
{
    if (m->w.failed) {
        PyErr_NoMemory();
        return -1;
    }
    return 0;
}

int
encode_export(struct message *m, PyObject *o, struct export **out)
{
    if (m->nsent == m->capsent) {
        size_t capacity = m->capsent ? m->capsent * 2 : 8;
        struct sent *more = realloc(m->sent, capacity * sizeof *more);
        if (more == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        m->sent = more;
        m->capsent = capacity;
    }
    struct export *e = export_object(m->peer, o);
    if (e == NULL) {
        return -1;
    }
    e->count++;
    m->sent[m->nsent++] = (struct sent){e->handle, false};
    *out = e;
    return 0;
}
