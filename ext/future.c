/* future.c: the result to come of a call in a batch. */
#include "batch_parts.h"

#include "exchange.h"

#include <string.h>

FutureObject *
future_new(BatchObject *b, const struct message *m)
{
    const struct arguments *a = &m->arguments;
    FutureObject *f = PyObject_GC_New(FutureObject, core_get()->future_type);
    if (f == NULL) {
        return NULL;
    }
    memset((char *)f + sizeof(PyObject), 0, sizeof *f - sizeof(PyObject));
    f->batch = (BatchObject *)Py_NewRef((PyObject *)b);
    f->index = (uint32_t)PyList_GET_SIZE(b->futures);
    f->number = b->first + f->index;
    f->flag_at = b->mark.size + 1;
    f->operation = m->operation;
    f->operand = Py_XNewRef(m->operand);
    f->nargs = a->nargs;
    f->by_tuple = a->tuple != NULL;
    if (f->by_tuple) {
        f->args = Py_NewRef(a->tuple);
        f->kwargs = Py_XNewRef(a->kwargs);
    }
    else {
        Py_ssize_t n = a->nargs + (a->kwnames == NULL ? 0 : PyTuple_GET_SIZE(a->kwnames));
        f->kwnames = Py_XNewRef(a->kwnames);
        f->args = PyTuple_New(n);
        for (Py_ssize_t i = 0; f->args != NULL && i < n; i++) {
            PyTuple_SET_ITEM(f->args, i, Py_NewRef(a->vector[i]));
        }
    }
    f->needs = b->needs;
    b->needs = NULL;
    PyObject_GC_Track(f);
    if (f->args == NULL || PyList_Append(b->futures, (PyObject *)f) < 0) {
        Py_CLEAR(f);
    }
    return f;
}

/* Lets go of what only a pending one needs. */
static void
future_forget(FutureObject *f)
{
    Py_CLEAR(f->args);
    Py_CLEAR(f->kwnames);
    Py_CLEAR(f->kwargs);
    Py_CLEAR(f->needs);
    Py_CLEAR(f->batch);
}

void
future_settle(FutureObject *f, enum future_state state, PyObject *value)
{
    f->state = state;
    f->value = value;
    if (state == FUTURE_DONE) {
        Py_CLEAR(f->operand);
    }
    future_forget(f);
}

int
future_encode(struct message *m, PyObject *o)
{
    FutureObject *f = (FutureObject *)o;
    if (f->state == FUTURE_DONE) {
        return encode(m, f->value, false);
    }
    if (f->state == FUTURE_FAILED) {
        f->asked = true;
        PyErr_SetObject((PyObject *)Py_TYPE(f->value), f->value);
        return -1;
    }
    BatchObject *b = m->batch;
    if (b == NULL || b != f->batch) {
        return raise_error(
            "ClientStateError",
            "this Future has no result yet; call its result() before it is passed on");
    }
    if ((b->needs == NULL && (b->needs = PyList_New(0)) == NULL) ||
        PyList_Append(b->needs, o) < 0) {
        return -1;
    }
    write_tag(m, TAG_FUTURE);
    write_u32(&m->w, f->index);
    if (!m->w.failed) {
        m->w.data[f->flag_at] = 1;
    }
    return message_check(m);
}

/* ---- the type ------------------------------------------------------------------------------- */

/* The calls of its batch are made, if it is still to be: 0, or -1 with an exception. */
static int
future_await(FutureObject *f)
{
    BatchObject *b = f->batch;
    if (f->state != FUTURE_PENDING) {
        return 0;
    }
    if (b->thread != PyThread_get_thread_ident()) {
        return raise_error(
            "ClientStateError",
            "this result is not known yet: the thread of the batch has not needed it");
    }
    if (b->busy) {
        return raise_error("ClientStateError",
                           "this result is not known yet: the calls of its batch are being made");
    }
    Py_INCREF(b);
    int rc = batch_flush(b);
    Py_DECREF(b);
    return rc < 0 || f->state != FUTURE_PENDING
               ? rc
               : raise_error("ClientStateError", "this call was not made");
}

static PyObject *
future_result(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    FutureObject *f = (FutureObject *)self;
    if (future_await(f) < 0) {
        return NULL;
    }
    if (f->state == FUTURE_FAILED) {
        f->asked = true;
        PyErr_SetObject((PyObject *)Py_TYPE(f->value), f->value);
        return NULL;
    }
    return Py_NewRef(f->value);
}

static PyObject *
future_exception(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    FutureObject *f = (FutureObject *)self;
    if (future_await(f) < 0) {
        return NULL;
    }
    f->asked = true;
    return Py_NewRef(f->state == FUTURE_FAILED ? f->value : Py_None);
}

static PyObject *
future_done(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(((FutureObject *)self)->state != FUTURE_PENDING);
}

static PyObject *
future_repr(PyObject *self)
{
    static const char *const words[] = {"pending", "done", "failed"};
    FutureObject *f = (FutureObject *)self;
    return PyUnicode_FromFormat("<Future of call %llu of a batch, %s>",
                                (unsigned long long)f->number, words[f->state]);
}

/* It would be true whatever the call returns: `if f(x):` is a mistake in a batch. */
static int
future_bool(PyObject *Py_UNUSED(self))
{
    PyErr_SetString(PyExc_TypeError,
                    "a Future is neither true nor false; use the result() of this call of a batch");
    return -1;
}

static PyObject *
future_getattro(PyObject *self, PyObject *name)
{
    PyObject *o = PyObject_GenericGetAttr(self, name);
    if (o == NULL && PyErr_ExceptionMatches(PyExc_AttributeError)) {
        PyErr_Format(PyExc_AttributeError,
                     "a Future has no attribute '%U'; for that of its result, use result().%U",
                     name, name);
    }
    return o;
}

static int
future_traverse(FutureObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)self->batch);
    Py_VISIT(self->value);
    Py_VISIT(self->operand);
    Py_VISIT(self->args);
    Py_VISIT(self->kwargs);
    Py_VISIT(self->needs);
    return 0;
}

static int
future_clear(FutureObject *self)
{
    Py_CLEAR(self->value);
    Py_CLEAR(self->operand);
    future_forget(self);
    return 0;
}

static void
future_dealloc(FutureObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    future_clear(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

static PyMethodDef future_methods[] = {
    {"result", future_result, METH_NOARGS,
     "result()\n--\n\n"
     "What the call returned. If it has not been made yet, the calls of the batch are, up to "
     "here.\n"
     "\n"
     "Returns\n"
     "-------\n"
     "object\n"
     "    As the call would have returned it outside of a batch; a mutable container that a later\n"
     "    call of the batch was given is a proxy.\n"
     "\n"
     "Raises\n"
     "------\n"
     "Exception\n"
     "    What the call raised.\n"
     "ProcessTerminationError\n"
     "    When the process died in this call, or before it.\n"
     "ClientStateError\n"
     "    When the call was not made, or another thread asks before it was."},
    {"exception", future_exception, METH_NOARGS,
     "exception()\n--\n\n"
     "What the call raised, or None. Makes it if need be, as result() does.\n"
     "\n"
     "Returns\n"
     "-------\n"
     "BaseException or None"},
    {"done", future_done, METH_NOARGS,
     "done()\n--\n\n"
     "Whether the outcome of the call is known, so that result() waits for nothing.\n"
     "\n"
     "Returns\n"
     "-------\n"
     "bool"},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot future_slots[] = {
    {Py_tp_doc, "The result to come of a call in `IsolationContext.batch`."},
    {Py_tp_traverse, future_traverse},
    {Py_tp_clear, future_clear},
    {Py_tp_dealloc, future_dealloc},
    {Py_tp_methods, future_methods},
    {Py_tp_repr, future_repr},
    {Py_tp_getattro, future_getattro},
    {Py_nb_bool, future_bool},
    {0, NULL},
};
static PyType_Spec future_spec = {
    "ipython_isolation.Future", sizeof(FutureObject), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, future_slots};

int
future_init(core_state *core, PyObject *module)
{
    core->future_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &future_spec, NULL);
    return core->future_type == NULL
               ? -1
               : PyModule_AddObjectRef(module, "Future", (PyObject *)core->future_type);
}
