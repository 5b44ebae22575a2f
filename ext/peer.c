/* peer.c: requests of this side: whether one may begin, its number, its end. */
#include "exchange.h"

#include "batch.h"
#include "handles.h"
#include "iteration.h"
#include "rollback.h"
#include "scope.h"
#include "strands.h"

#include <poll.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int
raise_error(const char *name, const char *text)
{
    PyObject *type = PyObject_GetAttrString(core_get()->errors, name);
    if (type != NULL) {
        PyErr_SetString(type, text);
        Py_DECREF(type);
    }
    return -1;
}

bool
proxy_is_lost(struct proxy *p)
{
    PeerObject *peer = p->peer;
    if (p->of != NULL) {
        return proxy_is_lost(proxy_find(p->of));
    }
    if (p->module != NULL) {
        return false;
    }
    if (p->epoch != peer->epoch) {
        return true;
    }
    return peer->state != PEER_RUNNING && !rollback_knows(peer, p->handle);
}

void
peer_raise_stale(PeerObject *peer, PyObject *proxy, bool attribute)
{
    PyTypeObject *type = PyType_Check(proxy) ? (PyTypeObject *)proxy : Py_TYPE(proxy);
    PyObject *exc = PyObject_CallMethod(peer->host, "stale", "sO", type->tp_name,
                                        attribute ? Py_True : Py_False);
    if (exc != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(exc);
    }
}

PyObject *
peer_resolve(PeerObject *peer, PyObject *module, PyObject *qualname)
{
    /* In the kernel only what is loaded, or what a value type needs, is looked up; the child
     * imports as its own code would. */
    PyObject *o = resolve_name(module, qualname, true);
    if (o == NULL && !PyErr_Occurred()) {
        PyErr_Format(PyExc_AttributeError, "module %R has no attribute %R%s", module, qualname,
                     peer->is_kernel ? "" : " in the isolated process");
    }
    return o;
}

PyObject *
peer_set_state(PeerObject *peer, PyObject *o, PyObject *state)
{
    (void)peer;
    return PyObject_CallMethod(core_get()->errors, "set_state", "OO", o, state);
}

/* While a life is being set up, only the thread that does it may use the child, but for its signal
 * handlers, and callbacks of what it runs there: everybody else waits, lest code runs in a child
 * that has no jail yet. */
static bool
may_use_start(PeerObject *peer)
{
    unsigned long thread = PyThread_get_thread_ident();
    bool starts = peer->starter == thread;
    for (size_t i = 0; i < peer->nstrands; i++) {
        struct strand *s = peer->strands[i];
        if (s->thread == thread && !s->closed && (starts ? asked_aside(s) : s->serving > 0)) {
            return !starts;
        }
    }
    return starts;
}

static int
ensure_running(PeerObject *peer)
{
    if (peer->state == PEER_RUNNING && (peer->starter == 0 || may_use_start(peer))) {
        return 0;
    }
    PyObject *none = PyObject_CallMethod(peer->host, "ensure_running", NULL);
    if (none == NULL) {
        return -1;
    }
    Py_DECREF(none);
    return peer->state == PEER_RUNNING
               ? 0
               : raise_error("ClientStateError", "the context did not start");
}

/* sys.path is the one part of the state to follow that no audit event tells of. */
static bool
path_changed(PeerObject *peer)
{
    core_state *core = core_get();
    uint64_t version = compat_dict_version(core->sys_dict);
    if (core->path_version != version) {
        core->path = PyDict_GetItemWithError(core->sys_dict, core->str_path);
        core->path_version = version;
    }
    PyObject *path = core->path, *seen = peer->path_seen;
    if (seen == NULL || path == NULL || !PyList_Check(path) ||
        PyList_GET_SIZE(path) != PyTuple_GET_SIZE(seen)) {
        return true;
    }
    size_t n = (size_t)PyList_GET_SIZE(path);
    return n > 0 && memcmp(PySequence_Fast_ITEMS(path), PySequence_Fast_ITEMS(seen),
                           n * sizeof(PyObject *)) != 0;
}

/* Kernel: is it time to look whether files that the child runs have changed? Costs a clock reading
 * and one system call, and nothing where nobody asked for it. */
static bool
changes_due(PeerObject *peer)
{
    struct pollfd changes = {.fd = peer->changes_fd, .events = POLLIN};
    struct timespec t;
    if (peer->active > 0 || peer->syncing || peer->starter != 0 || peer->state != PEER_RUNNING) {
        return false;
    }
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9 >= peer->changes_at ||
           (changes.fd >= 0 && poll(&changes, 1, 0) > 0);
}

/* Lets the host look; it may start another life. What is raised meanwhile is the caller's. */
static RARE int
look_for_changes(PeerObject *peer)
{
    PyObject *kept = PyErr_Occurred() ? compat_take_exception() : NULL;
    PyObject *none = PyObject_CallMethod(peer->host, "files_changed", NULL);
    int rc = none == NULL ? -1 : 0;
    Py_XDECREF(none);
    if (kept != NULL) {
        if (rc < 0) {
            Py_DECREF(kept);
        }
        else {
            compat_raise(kept);
        }
    }
    return rc;
}

bool
sync_due(PeerObject *peer)
{
    return peer->sync || peer->state_seen != state_generation || path_changed(peer);
}

int
request_begin(PeerObject *peer, struct message *m, unsigned op)
{
    if (peer == NULL) {
        return garbled("no peer");
    }
    if (peer->batching > 0) {
        int joined = batch_join(peer, m, op);
        if (joined != 0) {
            return joined < 0 ? -1 : 0;
        }
    }
    if (ensure_running(peer) < 0) {
        return -1;
    }
    if (peer->changes_at != 0 && changes_due(peer) && look_for_changes(peer) < 0) {
        return -1;
    }
    if (peer->is_kernel && !peer->syncing && (op != OP_HOST || peer->starter == 0) &&
        sync_due(peer)) {
        PyObject *path = PySys_GetObject("path");
        Py_XSETREF(peer->path_seen, path == NULL ? NULL : PySequence_Tuple(path));
        peer->sync = false;
        peer->state_seen = state_generation;
        peer->syncing = true;
        PyObject *none = PyObject_CallMethod(peer->host, "sync", NULL);
        peer->syncing = false;
        if (none == NULL) {
            peer->sync = true;
            return -1;
        }
        Py_DECREF(none);
    }
    if (peer->rollback.at != 0 && rollback_due(peer) && rollback_renew(peer) < 0) {
        return -1;
    }
    struct strand *s = strand_current(peer);
    if (s == NULL) {
        return -1;
    }
    message_init(m, peer, s, false);
    if (peer->is_kernel && s->depth == 0 && s->serving == 0) {
        if (peer->call_context == NULL || !compat_is_current_context(peer->call_context)) {
            Py_XSETREF(peer->call_context, PyContext_CopyCurrent());
        }
    }
    request_resume(peer, s);
    scope_begin(m);
    if (frame_begin(m, op, 0, ++peer->next_request) < 0) {
        request_abandon(m);
        return -1;
    }
    return 0;
}

void
request_resume(PeerObject *peer, struct strand *s)
{
    if (s->depth == 0) {
        s->busy_since = peer->stamp;
        s->subject = NULL; /* message_about() says it, where there is one */
    }
    s->depth++;
    peer->active++;
}

void
request_end(PeerObject *peer, struct strand *s)
{
    request_pause(peer, s);
    if (s->serving == 0 && s->depth == 0) {
        proxies_let_go(peer);
    }
    late_releases_apply(peer);
    strand_give_back(s);
}

void
request_pause(PeerObject *peer, struct strand *s)
{
    s->depth--;
    peer->active--;
    if (peer->late_output && peer->active == 0) {
        uint64_t one = 1;
        peer->late_output = false;
        ssize_t ignored = write(peer->wake_fd, &one, sizeof one);
        (void)ignored;
    }
}

void
request_abandon(struct message *m)
{
    if (m->batch != NULL && batch_take_back(m)) {
        return;
    }
    pairs_truncate(m->strand, m->npairs);
    if (m->released) {
        /* The releases were not sent after all. */
        struct reader r;
        reader_init(&r, m->w.data + m->released, m->w.size - m->released);
        for (uint64_t n = read_count(&r, 16); n > 0; n--) {
            uint64_t handle = read_u64(&r);
            release_queue(m->peer, handle, read_u64(&r));
        }
    }
    PeerObject *peer = m->peer;
    message_free(m, true); /* uses the strand */
    scope_end(m);
    request_end(peer, m->strand);
}

PyObject *
request_finish(struct message *m)
{
    if (m->batch != NULL) {
        return batch_defer(m);
    }
    PeerObject *peer = (PeerObject *)Py_NewRef(m->peer);
    struct strand *s = m->strand;
    size_t npairs = m->npairs;
    struct values *values = m->values;
    PyObject *result = NULL;
    bool pure = m->pure;
    peer->requests_sent++;
    m->values = NULL;
    if (values != NULL) {
        values_begin(s, values);
    }
    if (frame_send(m) == 0) { /* which frees all of it but what the wait needs: numbers and names */
        result = request_await(m);
    }
    blobs_collect(); /* what has been sent is not kept until there is something else to do */
    if (!pure) {
        iteration_effect(peer);
    }
    if (values != NULL) {
        values_end(s, values);
    }
    pairs_truncate(s, npairs);
    if (s->npairs > 0 && !s->closed) {
        PyObject *raised = result == NULL ? compat_take_exception() : NULL;
        if (pairs_snapshot(s, 0) < 0) {
            Py_CLEAR(result);
            Py_CLEAR(raised);
        }
        else if (raised != NULL) {
            compat_raise(raised);
        }
    }
    scope_end(m);
    request_end(peer, s);
    Py_DECREF(peer);
    return result;
}
