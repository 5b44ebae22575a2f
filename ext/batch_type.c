/* batch_type.c: `_core.Batch`, the Python face of batch.c. */
#include "batch_parts.h"

#include "exchange.h"

#include <stdlib.h>

static PyObject *
batch_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *peer;
    if (!PyArg_ParseTuple(args, "O!", core_get()->peer_type, &peer)) {
        return NULL;
    }
    BatchObject *b = (BatchObject *)type->tp_alloc(type, 0);
    if (b == NULL) {
        return NULL;
    }
    b->peer = (PeerObject *)Py_NewRef(peer);
    b->thread = PyThread_get_thread_ident();
    b->first = 1;
    b->futures = PyList_New(0);
    b->failed = PyList_New(0);
    if (b->futures == NULL || b->failed == NULL) {
        Py_CLEAR(b);
    }
    return (PyObject *)b;
}

/* open(): from here on this thread's calls are deferred. What a batch around this one has pending
 * is made first. */
static PyObject *
batch_open(BatchObject *self, PyObject *Py_UNUSED(ignored))
{
    PeerObject *peer = self->peer;
    BatchObject *around = peer->batching > 0 ? batch_of_thread(peer) : NULL;
    if (PyErr_Occurred() || (around != NULL && batch_flush(around) < 0)) {
        return NULL;
    }
    self->level = batch_depth(peer, self->thread);
    self->next = peer->batches;
    peer->batches = self;
    peer->batching++;
    self->open = true;
    Py_RETURN_NONE;
}

static bool
is_other_thread(BatchObject *self)
{
    if (self->thread == PyThread_get_thread_ident()) {
        return false;
    }
    raise_error("ClientStateError", "a batch can only be used by the thread that opened it");
    return true;
}

/* flush(): makes the calls that are pending. */
static PyObject *
batch_flush_method(BatchObject *self, PyObject *Py_UNUSED(ignored))
{
    if (is_other_thread(self) || batch_flush(self) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static void
batch_unlink(BatchObject *self)
{
    for (BatchObject **at = &self->peer->batches; self->open && *at != NULL; at = &(*at)->next) {
        if (*at == self) {
            *at = self->next;
            self->open = false;
            self->peer->batching--;
            break;
        }
    }
}

/* close(): no more calls are deferred; those that are pending are dropped. */
static PyObject *
batch_close(BatchObject *self, PyObject *Py_UNUSED(ignored))
{
    batch_unlink(self);
    if (self->pending && !self->busy) {
        raise_error("ClientStateError",
                    "this call of a batch was not made: the batch was interrupted");
        batch_drop(self, compat_take_exception());
    }
    Py_RETURN_NONE;
}

/* failures(): list of (number, operation, operand, exception) of the calls that failed, and of
 * which nobody has asked. */
static PyObject *
batch_failures(BatchObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *list = PyList_New(0);
    for (Py_ssize_t i = 0; list != NULL && i < PyList_GET_SIZE(self->failed); i++) {
        FutureObject *f = (FutureObject *)PyList_GET_ITEM(self->failed, i);
        bool known = f->asked;
        for (Py_ssize_t k = 0; !known && k < PyList_GET_SIZE(self->failed); k++) {
            /* The same exception was raised by another that was asked. */
            FutureObject *other = (FutureObject *)PyList_GET_ITEM(self->failed, k);
            known = other->value == f->value && (other->asked || k < i);
        }
        if (known) {
            continue;
        }
        PyObject *row = Py_BuildValue("KsOO", (unsigned long long)f->number,
                                      f->operation == NULL ? "" : f->operation,
                                      f->operand == NULL ? Py_None : f->operand, f->value);
        if (row == NULL || PyList_Append(list, row) < 0) {
            Py_CLEAR(list);
        }
        Py_XDECREF(row);
    }
    return list;
}

/* flush_all(peer): what this thread's batches have pending is made. */
static PyObject *
batch_flush_all(PyObject *Py_UNUSED(type), PyObject *peer)
{
    if (!Py_IS_TYPE(peer, core_get()->peer_type)) {
        PyErr_SetString(PyExc_TypeError, "a Peer is needed");
        return NULL;
    }
    BatchObject *b =
        ((PeerObject *)peer)->batching > 0 ? batch_of_thread((PeerObject *)peer) : NULL;
    if (PyErr_Occurred() || (b != NULL && batch_flush(b) < 0)) {
        return NULL;
    }
    Py_RETURN_NONE;
}

static int
batch_traverse(BatchObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)self->peer);
    Py_VISIT(self->futures);
    Py_VISIT(self->failed);
    Py_VISIT(self->needs);
    return 0;
}

static void
batch_dealloc(BatchObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (self->peer != NULL) {
        batch_unlink(self);
    }
    if (self->pending) {
        batch_drop(self, NULL); /* its futures have gone as well */
    }
    Py_CLEAR(self->futures);
    Py_CLEAR(self->failed);
    Py_CLEAR(self->needs);
    Py_CLEAR(self->peer);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyMethodDef batch_methods[] = {
    {"open", (PyCFunction)batch_open, METH_NOARGS, NULL},
    {"flush", (PyCFunction)batch_flush_method, METH_NOARGS, NULL},
    {"close", (PyCFunction)batch_close, METH_NOARGS, NULL},
    {"failures", (PyCFunction)batch_failures, METH_NOARGS, NULL},
    {"flush_all", batch_flush_all, METH_O | METH_STATIC, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot batch_slots[] = {
    {Py_tp_new, batch_new},
    {Py_tp_traverse, batch_traverse},
    {Py_tp_dealloc, batch_dealloc},
    {Py_tp_methods, batch_methods},
    {0, NULL},
};
static PyType_Spec batch_spec = {"ipython_isolation._core.Batch", sizeof(BatchObject), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, batch_slots};

int
batch_init(core_state *core, PyObject *module)
{
    if (future_init(core, module) < 0) {
        return -1;
    }
    core->batch_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &batch_spec, NULL);
    return core->batch_type == NULL
               ? -1
               : PyModule_AddObjectRef(module, "Batch", (PyObject *)core->batch_type);
}
