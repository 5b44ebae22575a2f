/* peer_type.c: `_core.Peer`, the Python face of peer.c. What it may be asked is in _core.pyi. */
#include "peer_parts.h"

#include "codec.h"
#include "fdfloor.h"
#include "fitness.h"
#include "buffers.h"
#include "handles.h"
#include "iteration.h"
#include "proxy.h"
#include "python_stack.h"
#include "recorder.h"
#include "rollback.h"
#include "strands.h"
#include "thread_start.h"
#include "zmq_late.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* NULL and -1 where that fails, with errno. */
static void
open_waker(PeerObject *self)
{
    self->wake_fd = fd_raise(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
}

static PyObject *
peer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"host", "supervisor", "lane", NULL};
    PyObject *host, *supervisor = Py_None;
    int lane = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|Op", names, &host, &supervisor, &lane)) {
        return NULL;
    }
    PeerObject *self = (PeerObject *)type->tp_alloc(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->next_peer = core_get()->first_peer;
    core_get()->first_peer = self;
    self->is_kernel = supervisor != Py_None;
    self->wants_lane = lane != 0;
    self->state = PEER_NEW;
    self->host = Py_NewRef(host);
    self->next_strand = 2;
    self->wake_fd = self->fdpass = self->alarm_fd = -1;
    self->rollback.line = -1;
    self->changes_fd = self->spare = -1;
    self->sync = true;
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->arrived, NULL);
    self->mirrors = PyDict_New();
    self->modules = PyDict_New();
    self->isolated = PySet_New(NULL);
    open_waker(self);
    if (self->mirrors == NULL || self->modules == NULL || self->isolated == NULL) {
        goto error;
    }
    if (self->wake_fd < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        goto error;
    }
    if (self->is_kernel) {
        PyObject *path = NULL;
        if (!PyUnicode_FSConverter(supervisor, &path)) {
            goto error;
        }
        if (zmq_late_load() < 0) {
            PyErr_Format(PyExc_ImportError, "libzmq: %s", zmq_late_error());
            Py_DECREF(path);
            goto error;
        }
        fd_fill();
        self->process = process_open(PyBytes_AS_STRING(path));
        fd_unfill();
        Py_DECREF(path);
        if (self->process == NULL) {
            PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, supervisor);
            goto error;
        }
        self->next_handle = 1;
    }
    return (PyObject *)self;
error:
    Py_DECREF(self);
    return NULL;
}

static int
peer_traverse(PeerObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->host);
    Py_VISIT(self->mirrors);
    Py_VISIT(self->modules);
    Py_VISIT(self->call_context);
    Py_VISIT(self->rollback.changes);
    /* What the peer's records own: the reported classes of its mirrors, and its exports. */
    uint64_t key;
    void *value;
    for (size_t i = 0; table_next(&core_get()->mirrors, &i, &key, &value);) {
        if (((struct mirror *)value)->peer == self) {
            Py_VISIT(((struct mirror *)value)->reported);
        }
    }
    for (size_t i = 0; table_next(&self->exports, &i, &key, &value);) {
        Py_VISIT(((struct export *)value)->object);
    }
    Py_VISIT(self->tap);
    for (size_t i = 0; i < sizeof self->views / sizeof *self->views; i++) {
        Py_VISIT(self->views[i]);
    }
    return 0;
}

static int
peer_clear(PeerObject *self)
{
    Py_CLEAR(self->host);
    Py_CLEAR(self->mirrors);
    Py_CLEAR(self->modules);
    Py_CLEAR(self->call_context);
    Py_CLEAR(self->tap);
    for (size_t i = 0; i < sizeof self->views / sizeof *self->views; i++) {
        Py_CLEAR(self->views[i]);
    }
    return 0;
}

static void
peer_dealloc(PeerObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    for (PeerObject **at = &core_get()->first_peer; *at != NULL; at = &(*at)->next_peer) {
        if (*at == self) {
            *at = self->next_peer;
            break;
        }
    }
    rollback_drop(self);
    if (self->spare >= 0) {
        close(self->spare);
    }
    class_changes_forget(self, UINT64_MAX);
    free(self->changed);
    self->changed = NULL;
    exports_clear(self);
    strands_close_all(self);
    if (self->zmq != NULL && self->state != PEER_FORKED) {
        zmq_ctx_term(self->zmq);
    }
    blobs_collect();
    buffers_forget(self);
    proxies_forget(self);
    process_close(self->process);
    peer_clear(self);
    Py_CLEAR(self->isolated);
    Py_CLEAR(self->seen.values);
    Py_CLEAR(self->seen.keys);
    Py_CLEAR(self->ahead.begun);
    Py_CLEAR(self->path_seen);
    table_free(&self->exports);
    table_free(&self->export_of);
    table_free(&self->imports);
    free(self->releases);
    free(self->late);
    free(self->strands);
    if (self->wake_fd >= 0) {
        close(self->wake_fd);
    }
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* A copy of the process is made, or something is looked at. */
static bool
changes_nothing(const char *operation)
{
    static const char *const names[] = {"freeze", "content", "plain", "counts"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(operation, names[i]) == 0) {
            return true;
        }
    }
    return false;
}

/* host_call(name, *args, **kwargs): host.remote_<name> over there. */
static PyObject *
peer_host_call(PeerObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    struct message m;
    if (nargs < 1 || !PyUnicode_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "host_call() needs a name");
        return NULL;
    }
    if (request_begin(self, &m, OP_HOST) < 0) {
        return NULL;
    }
    m.operation = PyUnicode_AsUTF8(args[0]);
    m.operand = nargs > 1 ? args[1] : NULL;
    m.pure = m.operation != NULL && changes_nothing(m.operation);
    message_about(&m, m.operand);
    if (encode_name(&m, args[0]) < 0 || encode_call(&m, args + 1, nargs - 1, kwnames) < 0) {
        request_abandon(&m);
        return NULL;
    }
    return request_finish(&m);
}

/* call(f, *args, **kwargs): f as it crosses (by name, or a proxy), called over there. */
static PyObject *
peer_call(PeerObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    struct message m;
    if (nargs < 1) {
        PyErr_SetString(PyExc_TypeError, "call() needs a function");
        return NULL;
    }
    if (request_begin(self, &m, OP_CALL) < 0) {
        return NULL;
    }
    m.operation = "call";
    m.operand = args[0];
    message_about(&m, args[0]);
    if (encode(&m, args[0], false) < 0 || encode_call(&m, args + 1, nargs - 1, kwnames) < 0) {
        request_abandon(&m);
        return NULL;
    }
    return request_finish(&m);
}

static PyObject *
peer_feed_bytes(PeerObject *self, PyObject *data)
{
    char *bytes;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(data, &bytes, &size) < 0) {
        return NULL;
    }
    return peer_feed(self, bytes, (size_t)size);
}

/* run_service(ready=None): ready() is called once the thread is known as one of ours. */
static PyObject *
peer_run_service(PeerObject *self, PyObject *args)
{
    PyObject *ready = NULL;
    if (!PyArg_ParseTuple(args, "|O", &ready)) {
        return NULL;
    }
    if (!self->is_kernel) {
        own_thread_begins();
    }
    PyObject *none = ready == NULL ? NULL : PyObject_CallNoArgs(ready);
    if (ready != NULL && none == NULL) {
        return NULL;
    }
    Py_XDECREF(none);
    int rc = self->is_kernel ? peer_service(self, self->epoch) : peer_child_service(self);
    if (!self->is_kernel) {
        own_thread_ends();
    }
    return rc < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *
peer_serve_strand(PeerObject *self, PyObject *number)
{
    unsigned long id = PyLong_AsUnsignedLong(number);
    struct strand *s = PyErr_Occurred() ? NULL : strand_by_id(self, (uint32_t)id);
    if (s == NULL) {
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    }
    if (!self->is_kernel) {
        announce_thread_stack();
        thread_serves();
        own_thread_begins();
    }
    s->thread = PyThread_get_thread_ident();
    s->pins++;
    int rc = peer_serve(self, s);
    s->pins--;
    s->thread = 0;
    if (!self->is_kernel && id == STRAND_MAIN && !self->reborn) {
        recorder_leave();
    }
    if (!self->is_kernel) {
        own_thread_ends();
    }
    if (id != STRAND_MAIN) {
        strand_close(s);
    }
    strands_sweep(self);
    return rc < 0 ? NULL : Py_NewRef(Py_None);
}

/* ---- the child's side -------------------------------------------------------------------- */

static void
trip_interrupt(void)
{
    PyErr_SetInterrupt();
}

/* connect(): the child's end of the life whose descriptors it was born with; or, in a copy that
 * takes over, was given. */
static PyObject *
peer_connect(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    bool gone;
    struct ucred kernel;
    socklen_t size = sizeof kernel;
    int shared = CHILD_FD_SHARED;
    struct shared_page *old = self->page;
    if (self->reborn) {
        self->fdpass = fd_raise(self->life_fds[0]);
        self->alarm_fd = fd_raise(self->life_fds[2]);
        shared = self->life_fds[1];
        self->reborn = false;
        strands_sweep(self);
        if (self->wake_fd < 0) {
            open_waker(self);
        }
        if (self->wake_fd < 0) {
            return PyErr_SetFromErrno(PyExc_OSError);
        }
    }
    else {
        self->fdpass = fd_raise(CHILD_FD_PASS);
        self->alarm_fd = fd_raise(CHILD_FD_ALARM);
    }
    self->page = announce_map(shared);
    if (self->page != NULL && recorder_install(shared) == 0) { /* it keeps the descriptor */
        python_stack_install();
    }
    else {
        close(shared);
    }
    if (self->fdpass < 0 || self->alarm_fd < 0 || self->page == NULL ||
        announce_install(self->page, self->alarm_fd) < 0 ||
        announce_interrupt_gate(self->page, trip_interrupt) < 0 ||
        getsockopt(self->fdpass, SOL_SOCKET, SO_PEERCRED, &kernel, &size) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    thread_cells_from(&self->page->cell);
    if (old != NULL) {
        announce_unmap(old);
    }
    (void)announce_end(self->page); /* without it, the end is only seen later */
    self->kernel_pid = kernel.pid;
    self->kernel_uid = kernel.uid;
    struct strand *service = strand_take(self, true, &gone);
    struct strand *main = service == NULL ? NULL : strand_take(self, true, &gone);
    if (main == NULL) {
        return PyErr_Occurred() ? NULL : PyErr_Format(PyExc_ConnectionError, "the kernel has gone");
    }
    main->thread = PyThread_get_thread_ident();
    self->state = PEER_RUNNING;
    if (peer_say_hello(self, main) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- what both sides are asked ------------------------------------------------------------ */

static PyObject *
peer_state_name(PeerObject *self, void *Py_UNUSED(closure))
{
    static const char *const names[] = {"new", "running", "dead", "closed", "forked"};
    return PyUnicode_FromString(names[self->state]);
}

static PyObject *
peer_pid(PeerObject *self, void *Py_UNUSED(closure))
{
    if (self->state != PEER_RUNNING) {
        Py_RETURN_NONE;
    }
    return PyLong_FromLong(process_pid(self->process));
}

static PyObject *
peer_supervisor_pid(PeerObject *self, void *Py_UNUSED(closure))
{
    pid_t pid = self->process == NULL ? 0 : process_supervisor_pid(self->process);
    return pid == 0 ? Py_NewRef(Py_None) : PyLong_FromLong(pid);
}

static PyObject *
peer_counts(PeerObject *self, void *Py_UNUSED(closure))
{
    size_t open = 0;
    for (size_t i = 0; i < self->nstrands; i++) {
        open += !self->strands[i]->closed;
    }
    return Py_BuildValue("{sKsnsnsnsnsK}", "requests", (unsigned long long)self->requests_sent,
                         "exports", (Py_ssize_t)self->exports.used, "imports",
                         (Py_ssize_t)self->imports.used, "strands", (Py_ssize_t)open, "releases",
                         (Py_ssize_t)self->nreleases, "epoch", (unsigned long long)self->epoch);
}

/* The name of the module that the calling thread's outermost request is about: of a function or
 * class, or of the class of an object. None: there is none, or it is not known here. */
static PyObject *
peer_module(PeerObject *self, void *Py_UNUSED(closure))
{
    struct strand *s = strand_known(self);
    PyObject *o = s == NULL || s->depth == 0 ? NULL : s->subject;
    if (o == NULL || PyUnicode_CheckExact(o)) {
        return Py_NewRef(o == NULL ? Py_None : o);
    }
    struct proxy *p = proxy_find(o);
    if (p != NULL && p->module != NULL) {
        return Py_NewRef(p->module);
    }
    struct mirror *mirror = mirror_of(PyType_Check(o) ? (PyTypeObject *)o : Py_TYPE(o));
    PyObject *dict = mirror == NULL ? NULL : compat_type_dict(mirror->type);
    PyObject *name =
        dict == NULL ? NULL : PyDict_GetItemWithError(dict, core_get()->str___module__);
    name = Py_NewRef(name != NULL && PyUnicode_Check(name) ? name : Py_None);
    Py_XDECREF(dict);
    PyErr_Clear();
    return name;
}

static PyObject *
peer_get_cell(PeerObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(self->cell);
}

static int
peer_set_cell(PeerObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    uint64_t cell = value == NULL ? 0 : PyLong_AsUnsignedLongLong(value);
    if (PyErr_Occurred()) {
        return -1;
    }
    self->cell = cell;
    struct shared_page *page = self->process == NULL ? NULL : process_shared(self->process);
    if (page != NULL) {
        atomic_store(&page->cell, cell);
    }
    return 0;
}

static PyObject *
peer_get_sync(PeerObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->sync);
}

static int
peer_set_sync(PeerObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    int on = value == NULL ? -1 : PyObject_IsTrue(value);
    self->sync = on > 0;
    return on < 0 ? -1 : 0;
}

/* "lane" when small frames take the lane, or will once the child runs. */
static PyObject *
peer_transport(PeerObject *self, void *Py_UNUSED(closure))
{
    struct strand *main = strand_by_id(self, STRAND_MAIN);
    bool lane = main == NULL || self->state != PEER_RUNNING ? self->wants_lane
                                                            : channel_has_lane(main->channel);
    return PyUnicode_FromString(lane ? "lane" : "zmq");
}

/* Is there a frozen copy that could take over? */
static PyObject *
peer_has_frozen(PeerObject *self, void *Py_UNUSED(closure))
{
    struct pollfd line = {.fd = self->rollback.line, .events = POLLIN | POLLRDHUP};
    return PyBool_FromLong(self->rollback.line >= 0 && self->state != PEER_FORKED &&
                           poll(&line, 1, 0) >= 0 && !(line.revents & (POLLHUP | POLLRDHUP)));
}

/* The frozen copy's process id, None when there is none or it has not said yet. */
static PyObject *
peer_frozen_pid(PeerObject *self, void *Py_UNUSED(closure))
{
    struct freeze_birth birth;
    if (self->rollback.line < 0 ||
        recv(self->rollback.line, &birth, sizeof birth, MSG_PEEK | MSG_DONTWAIT) != sizeof birth ||
        birth.magic != FREEZE_MAGIC) {
        Py_RETURN_NONE;
    }
    return PyLong_FromLong(birth.pid);
}

static PyObject *
peer_check_dead(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(self->process != NULL && self->state == PEER_RUNNING &&
                           process_update(self->process));
}

/* May the calling thread ask the other side something here and now? True: it executes a request,
 * and is not in the middle of a frame. None: it is a thread of this side's own, which has to wait
 * until it is lent a strand. False: no. */
static PyObject *
peer_may_ask(PeerObject *self, void *Py_UNUSED(closure))
{
    if (self->state != PEER_RUNNING || PyThread_get_thread_ident() == self->service_thread) {
        Py_RETURN_FALSE;
    }
    struct strand *s = strand_known(self);
    if (s == NULL) {
        Py_RETURN_NONE;
    }
    return PyBool_FromLong(s->framing == 0 && (s->serving > 0 || s->callback));
}

/* The frames of the calling thread that wait for the other side while it asks something, innermost
 * first. */
static PyObject *
peer_entries(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    struct strand *s = strand_known(self);
    PyObject *frames = PyList_New(0);
    for (struct entry *e = s == NULL ? NULL : s->entries; frames != NULL && e != NULL;
         e = e->outer) {
        if (PyList_Append(frames, e->frame == NULL ? Py_None : (PyObject *)e->frame) < 0) {
            Py_CLEAR(frames);
        }
    }
    return frames;
}

/* Child: the interrupt has been raised; the kernel need not send the signal again. */
static PyObject *
peer_interrupt_taken(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    if (self->page != NULL) {
        atomic_store(&self->page->interrupt_request, 0);
    }
    Py_RETURN_NONE;
}

static PyMethodDef peer_methods[] = {
    {"interrupt_taken", (PyCFunction)peer_interrupt_taken, METH_NOARGS, NULL},
    {"start", (PyCFunction)peer_start, METH_VARARGS, NULL},
    {"close", (PyCFunction)peer_close, METH_NOARGS, NULL},
    {"_feed", (PyCFunction)peer_feed_bytes, METH_O, NULL},
    {"started", (PyCFunction)peer_started, METH_NOARGS, NULL},
    {"give_up", (PyCFunction)peer_give_up, METH_NOARGS, NULL},
    {"forget", (PyCFunction)peer_forget, METH_NOARGS, NULL},
    {"kill", (PyCFunction)peer_kill, METH_O, NULL},
    {"call", (PyCFunction)(void (*)(void))peer_call, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"host_call", (PyCFunction)(void (*)(void))peer_host_call, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"run_service", (PyCFunction)peer_run_service, METH_VARARGS, NULL},
    {"serve_strand", (PyCFunction)peer_serve_strand, METH_O, NULL},
    {"connect", (PyCFunction)peer_connect, METH_NOARGS, NULL},
    {"set_limits", (PyCFunction)peer_set_limits, METH_VARARGS, NULL},
    {"release", (PyCFunction)peer_release, METH_NOARGS, NULL},
    {"start_spare", (PyCFunction)peer_start_spare, METH_VARARGS, NULL},
    {"drop_spare", (PyCFunction)peer_drop_spare, METH_NOARGS, NULL},
    {"take_spare", (PyCFunction)peer_take_spare, METH_NOARGS, NULL},
    {"stand_by", (PyCFunction)peer_stand_by, METH_NOARGS, NULL},
    {"cpu_used", (PyCFunction)peer_cpu_used, METH_NOARGS, NULL},
    {"take_over", (PyCFunction)peer_take_over, METH_NOARGS, NULL},
    {"keep_frozen", (PyCFunction)peer_keep_frozen, METH_O, NULL},
    {"drop_frozen", (PyCFunction)peer_drop_frozen, METH_NOARGS, NULL},
    {"survivors", (PyCFunction)peer_survivors, METH_NOARGS, NULL},
    {"settle", (PyCFunction)peer_settle, METH_VARARGS, NULL},
    {"freeze", (PyCFunction)peer_freeze, METH_NOARGS, NULL},
    {"take_counts", (PyCFunction)peer_take_counts, METH_O, NULL},
    {"death_record", (PyCFunction)peer_death_record, METH_NOARGS, NULL},
    {"is_over", (PyCFunction)peer_check_dead, METH_NOARGS, NULL},
    {"entries", (PyCFunction)peer_entries, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef peer_members[] = {
    {"epoch", T_UINT, offsetof(PeerObject, epoch), READONLY, NULL},
    {"requests", T_ULONGLONG, offsetof(PeerObject, requests_sent), READONLY, NULL},
    {"turn", T_ULONGLONG, offsetof(PeerObject, turn), READONLY, NULL},
    {"host", T_OBJECT, offsetof(PeerObject, host), READONLY, NULL},
    {"isolated", T_OBJECT, offsetof(PeerObject, isolated), READONLY, NULL},
    {"modules", T_OBJECT, offsetof(PeerObject, modules), READONLY, NULL},
    {"_tap", T_OBJECT, offsetof(PeerObject, tap), 0, NULL},
    {"call_context", T_OBJECT, offsetof(PeerObject, call_context), READONLY, NULL},
    {"main_thread", T_ULONG, offsetof(PeerObject, main_thread), 0, NULL},
    {"active", T_INT, offsetof(PeerObject, active), READONLY, NULL},
    {"snapshot_at", T_DOUBLE, offsetof(PeerObject, rollback.at), 0, NULL},
    {"snapshot_soon", T_DOUBLE, offsetof(PeerObject, rollback.soon), 0, NULL},
    {"timeout", T_DOUBLE, offsetof(PeerObject, timeout), 0, NULL},
    {"changes_fd", T_INT, offsetof(PeerObject, changes_fd), 0, NULL},
    {"changes_at", T_DOUBLE, offsetof(PeerObject, changes_at), 0, NULL},
    {"shares_arrays", T_BOOL, offsetof(PeerObject, shares_arrays), 0, NULL},
    {"reborn", T_BOOL, offsetof(PeerObject, reborn), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef peer_getset[] = {
    {"state", (getter)peer_state_name, NULL, NULL, NULL},
    {"pid", (getter)peer_pid, NULL, NULL, NULL},
    {"transport", (getter)peer_transport, NULL, NULL, NULL},
    {"supervisor_pid", (getter)peer_supervisor_pid, NULL, NULL, NULL},
    {"counts", (getter)peer_counts, NULL, NULL, NULL},
    {"may_ask", (getter)peer_may_ask, NULL, NULL, NULL},
    {"hold", (getter)peer_get_hold, (setter)peer_set_hold, NULL, NULL},
    {"held", (getter)peer_held, NULL, NULL, NULL},
    {"has_frozen", (getter)peer_has_frozen, NULL, NULL, NULL},
    {"frozen_pid", (getter)peer_frozen_pid, NULL, NULL, NULL},
    {"sync", (getter)peer_get_sync, (setter)peer_set_sync, NULL, NULL},
    {"module", (getter)peer_module, NULL, NULL, NULL},
    {"cell", (getter)peer_get_cell, (setter)peer_set_cell, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot peer_slots[] = {
    {Py_tp_new, peer_new},           {Py_tp_dealloc, peer_dealloc},
    {Py_tp_traverse, peer_traverse}, {Py_tp_clear, peer_clear},
    {Py_tp_methods, peer_methods},   {Py_tp_members, peer_members},
    {Py_tp_getset, peer_getset},     {0, NULL},
};

static PyType_Spec peer_spec = {"ipython_isolation._core.Peer", sizeof(PeerObject), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, peer_slots};

int
peer_init(core_state *core, PyObject *module)
{
    core->peer_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &peer_spec, NULL);
    return core->peer_type == NULL
               ? -1
               : PyModule_AddObjectRef(module, "Peer", (PyObject *)core->peer_type);
}
