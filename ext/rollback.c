/* rollback.c: frozen copies of the child, and how one takes over.
 *
 * When the kernel asks for it, with no other request under way, the child forks (freeze.c). What
 * both sides then know of each other is the same in the copy. When the child dies, the kernel sends
 * the copy the descriptors of a new life, and the two agree on what is left: of the child's targets
 * those exported before the copy was made that still have a proxy here; of this side's objects
 * those that the copy has proxies of, which are kept until another copy takes its place. Handles go
 * on above all that were ever used, because each epoch has its own range of them. */
#include "rollback.h"

#include "announce.h"
#include "buffers.h"
#include "codec.h"
#include "fdfloor.h"
#include "fdpass.h"
#include "fitness.h"
#include "freeze.h"
#include "handles.h"
#include "peer.h"
#include "strands.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SETTLE_MOST 5 /* how often threads are waited for, as long as they are not the same */

/* ---- the kernel's side ------------------------------------------------------------------- */

bool
rollback_knows(PeerObject *peer, uint64_t handle)
{
    return peer->rollback.line >= 0 && handle < peer->rollback.theirs;
}

bool
rollback_due(PeerObject *peer)
{
    struct rollback *r = &peer->rollback;
    struct timespec t;
    if (peer->active > 0 || peer->syncing || peer->starter != 0 || !peer->is_kernel ||
        peer->state != PEER_RUNNING || PyThread_get_thread_ident() != peer->main_thread) {
        return false;
    }
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    double now = (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
    return now >= r->at || (r->newest != r->seen && r->soon != 0 && now >= r->soon);
}

int
rollback_renew(PeerObject *peer)
{
    PyObject *kept = PyErr_Occurred() ? compat_take_exception() : NULL;
    uint64_t requests = peer->requests_sent;
    peer->syncing = true;
    PyObject *none = PyObject_CallMethod(peer->host, "renew_snapshot", NULL);
    peer->syncing = false;
    peer->requests_sent = requests; /* what the user asked for is counted */
    if (kept != NULL && none != NULL) {
        compat_raise(kept);
    }
    else {
        Py_XDECREF(kept);
    }
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}

static bool
is_used(struct export *e, void *Py_UNUSED(argument))
{
    return e->count > 0;
}

/* What was kept for the copy goes. */
void
rollback_drop(PeerObject *peer)
{
    struct rollback *r = &peer->rollback;
    if (r->line < 0) {
        return;
    }
    close(r->line);
    r->line = -1;
    r->theirs = r->mine = 0;
    Py_CLEAR(r->changes);
    PyObject *raised = PyErr_Occurred() ? compat_take_exception() : NULL;
    if (exports_keep(peer, is_used, NULL) < 0) {
        PyErr_Clear(); /* out of memory: they stay until the next time */
    }
    if (raised != NULL) {
        compat_raise(raised);
    }
}

void
rollback_told(PeerObject *peer, PyObject *cls, PyObject *name)
{
    struct rollback *r = &peer->rollback;
    if (r->line < 0) {
        return;
    }
    PyObject *change = PyTuple_Pack(2, cls, name);
    if (change == NULL || (r->changes == NULL && (r->changes = PyList_New(0)) == NULL) ||
        PyList_Append(r->changes, change) < 0) {
        PyErr_Clear();
    }
    Py_XDECREF(change);
}

/* The line to the copy that the child has made last, the caller's; -1: there is none. Others come
 * before it where an interrupt has taken the place of the child's answer: those copies end. */
static int
newest_line(PeerObject *peer)
{
    int newest = -1;
    while (peer->process != NULL) {
        uint64_t magic = 0;
        int line = -1, n = 1;
        ssize_t got = fdpass_recv(process_fdpass(peer->process), &magic, sizeof magic, &line, &n,
                                  MSG_DONTWAIT);
        if (got <= 0) {
            break;
        }
        if (newest >= 0) {
            close(newest);
        }
        newest = n == 1 ? line : -1;
        if (newest >= 0 && (got != sizeof magic || magic != FREEZE_MAGIC)) {
            close(newest);
            newest = -1;
        }
    }
    return newest;
}

/* keep_frozen(next_handle): takes the line to the copy that the child has just made, instead of
 * that to the last one. None: the answer was lost; a copy that may have been made is given up. */
PyObject *
peer_keep_frozen(PeerObject *self, PyObject *next_handle)
{
    uint64_t theirs = next_handle == Py_None ? 0 : PyLong_AsUnsignedLongLong(next_handle);
    if (PyErr_Occurred()) {
        return NULL;
    }
    int line = newest_line(self);
    if (next_handle == Py_None) {
        if (line >= 0) {
            close(line);
        }
        Py_RETURN_NONE;
    }
    if (line < 0) {
        PyErr_SetString(PyExc_OSError, "the line to the frozen copy did not arrive");
        return NULL;
    }
    rollback_drop(self);
    self->rollback.line = line;
    self->rollback.theirs = theirs;
    self->rollback.mine = self->next_handle;
    self->rollback.seen = self->rollback.newest;
    Py_RETURN_NONE;
}

PyObject *
peer_drop_frozen(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    rollback_drop(self);
    Py_RETURN_NONE;
}

/* (((handle, count), ...), proxies): of those whose targets the copy has; the list keeps them until
 * both sides agree. From here on they are of this epoch. */
PyObject *
peer_survivors(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *counts = PyList_New(0), *proxies = PyList_New(0), *tuple = NULL;
    int rc = counts == NULL || proxies == NULL ? -1 : 0;
    uint64_t key;
    void *value;
    int collects = PyGC_Disable(); /* a collection may take proxies out of the table */
    for (size_t i = 0; rc == 0 && table_next(&self->imports, &i, &key, &value);) {
        struct proxy *p = proxy_find(value);
        if (p == NULL || p->handle != key || key >= self->rollback.theirs ||
            Py_REFCNT((PyObject *)value) == 0) {
            continue;
        }
        PyObject *entry =
            Py_BuildValue("(KK)", (unsigned long long)key, (unsigned long long)p->count);
        if (entry == NULL || PyList_Append(counts, entry) < 0 ||
            PyList_Append(proxies, value) < 0) {
            rc = -1;
        }
        else {
            p->epoch = self->epoch;
        }
        Py_XDECREF(entry);
    }
    if (collects) {
        PyGC_Enable();
    }
    if (rc == 0) {
        tuple = PyList_AsTuple(counts);
    }
    Py_XDECREF(counts);
    PyObject *result = tuple == NULL ? NULL : PyTuple_Pack(2, tuple, proxies);
    Py_XDECREF(tuple);
    Py_XDECREF(proxies);
    return result;
}

/* Counts of handles, from Python: sets them on exports, and drops the exports that are not there.
 */
struct counts {
    struct table by_handle; /* handle -> count + 1, as a pointer */
};

static int
counts_read(struct counts *self, PyObject *counts)
{
    table_init(&self->by_handle);
    PyObject *items = PySequence_Tuple(counts);
    for (Py_ssize_t i = 0; items != NULL && i < PyTuple_GET_SIZE(items); i++) {
        unsigned long long handle, count;
        PyObject *item = PyTuple_GET_ITEM(items, i);
        if (!PyTuple_Check(item)) {
            garbled("counts");
        }
        else if (PyArg_ParseTuple(item, "KK", &handle, &count) && handle != 0 &&
                 !table_put(&self->by_handle, handle, (void *)(uintptr_t)(count + 1))) {
            PyErr_NoMemory();
        }
        if (PyErr_Occurred()) {
            Py_CLEAR(items);
        }
    }
    Py_XDECREF(items);
    if (items == NULL) {
        table_free(&self->by_handle);
    }
    return items == NULL ? -1 : 0;
}

static bool
is_counted(struct export *e, void *argument)
{
    struct counts *counts = argument;
    uintptr_t count = (uintptr_t)table_get(&counts->by_handle, e->handle);
    if (count < 2) {
        return false;
    }
    e->count = count - 1;
    return true;
}

static int
counts_apply(PeerObject *peer, PyObject *given)
{
    struct counts counts;
    if (counts_read(&counts, given) < 0) {
        return -1;
    }
    int rc = exports_keep(peer, is_counted, &counts);
    table_free(&counts.by_handle);
    return rc;
}

/* settle(missing, counts): the copy's answer to the survivors: handles that it does not have, and
 * what it has of this side. */
PyObject *
peer_settle(PeerObject *self, PyObject *args)
{
    PyObject *missing, *counts;
    if (!PyArg_ParseTuple(args, "O!O", &PyTuple_Type, &missing, &counts) ||
        counts_apply(self, counts) < 0) {
        return NULL;
    }
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(missing); i++) {
        uint64_t handle = PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(missing, i));
        if (PyErr_Occurred()) {
            return NULL;
        }
        PyObject *o = proxy_of_handle(self, handle);
        struct proxy *p = o == NULL ? NULL : proxy_find(o);
        if (p != NULL) {
            p->epoch = self->epoch - 1; /* lost */
        }
    }
    buffers_carry_over(self);
    /* Classes of this side that changed after the copy was made. */
    PyObject *changes = self->rollback.changes;
    self->rollback.changes = NULL;
    for (Py_ssize_t i = 0; changes != NULL && i < PyList_GET_SIZE(changes); i++) {
        PyObject *change = PyList_GET_ITEM(changes, i);
        if (class_changed(self, PyTuple_GET_ITEM(change, 0), PyTuple_GET_ITEM(change, 1)) < 0) {
            Py_DECREF(changes);
            return NULL;
        }
    }
    Py_XDECREF(changes);
    self->rollback.theirs = self->rollback.mine = 0;
    Py_RETURN_NONE;
}

/* ---- the child's side -------------------------------------------------------------------- */

/* In the copy, which has been told to take over: all that belonged to the old life is gone. */
static void
be_reborn(PeerObject *self)
{
    announce_forked();
    PyOS_AfterFork_Child();
    own_threads_forget();
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->arrived, NULL);
    self->epoch = 0; /* the first strand that is offered says which it is */
    self->needed = 0;
    self->nreleases = 0;
    self->nlate = 0;
    self->service_thread = 0;
    self->zmq = NULL; /* never touched again: libzmq is not whole in a fork */
    self->wake_fd = -1;
    self->reborn = true;
}

/* Takes the descriptors of the life that this process was given, for connect(). */
void
take_life_fds(PeerObject *self, const int fds[FREEZE_FDS])
{
    dup2(fds[FREEZE_OUT], 1);
    dup2(fds[FREEZE_ERR], 2);
    close(fds[FREEZE_OUT]);
    close(fds[FREEZE_ERR]);
    self->life_fds[0] = fds[FREEZE_PASS];
    self->life_fds[1] = fds[FREEZE_SHARED];
    self->life_fds[2] = fds[FREEZE_ALARM];
    self->reborn = true;
}

/* Whether a call of another thread of the session is under way: the locks that it holds would be
 * locked for ever in a copy. */
static bool
others_are_served(PeerObject *peer)
{
    for (size_t i = 0; i < peer->nstrands; i++) {
        struct strand *s = peer->strands[i];
        if (s->id != STRAND_MAIN && (s->serving > 0 || s->depth > 0)) {
            return true;
        }
    }
    return false;
}

static PyObject *
raise_busy(void)
{
    PyObject *args = Py_BuildValue("(is)", EBUSY, "a call of another thread is under way");
    if (args != NULL) {
        PyErr_SetObject(PyExc_OSError, args);
        Py_DECREF(args);
    }
    return NULL;
}

/* freeze(): the number that the next export would get, which says that there is a frozen copy; or
 * why the process is not fit to be copied, a str. OSError: it is, but there could be no copy this
 * time. In the copy True, once it has been told to take over: the caller returns to the loop that
 * serves the main strand, which then ends. */
PyObject *
peer_freeze(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    struct frozen copy;
    char reason[512];
    int line = -1;
    bool unsettled = pools_pause(), fits, held = false;
    blobs_collect();
    for (int i = 0;; i++) {
        bool opening = !fd_hold();
        fits = !opening && fit_to_freeze(&unsettled, reason, sizeof reason);
        if (!opening) {
            fd_release();
        }
        if (fits) {
            /* From here to the fork nothing lets go of the GIL: no call begins. Nor does another
             * thread of ours open anything, half of which the copy would have. */
            PyOS_BeforeFork();
            bool busy = others_are_served(self);
            held = !busy && fd_hold();
            if (held) {
                break;
            }
            PyOS_AfterFork_Parent();
            if (busy) {
                return raise_busy();
            }
        }
        else if (!opening && !unsettled) {
            break;
        }
        if (i == SETTLE_MOST) {
            fits = fits || opening;
            break;
        }
        Py_BEGIN_ALLOW_THREADS
        threads_settle();
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0) {
            return NULL;
        }
        unsettled = unsettled && opening; /* those that are still there stay */
    }
    if (!held) {
        return fits ? raise_busy() : PyUnicode_DecodeFSDefault(reason);
    }
    int rc = freeze(&copy, &line), saved = errno;
    fd_release();
    if (rc == 1) {
        int fds[FREEZE_FDS];
        strands_forget_all(self);
        freeze_wait(&copy, fds);
        take_life_fds(self, fds);
        be_reborn(self);
        Py_RETURN_TRUE;
    }
    PyOS_AfterFork_Parent();
    if (rc == 0) {
        uint64_t magic = FREEZE_MAGIC;
        rc = fdpass_send(self->fdpass, &magic, sizeof magic, &line, 1, 0);
        saved = errno;
        close(line);
    }
    if (rc < 0) {
        errno = saved;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromUnsignedLongLong(self->next_handle);
}

/* take_counts(counts): this side's exports are those, counted so, and no others. (handles that are
 * not there, ((handle, count), ...) of the proxies of the other side's objects). */
PyObject *
peer_take_counts(PeerObject *self, PyObject *given)
{
    PyObject *missing = PyList_New(0), *counts = PyList_New(0), *result = NULL;
    PyObject *items = missing == NULL || counts == NULL ? NULL : PySequence_Tuple(given);
    uint64_t key;
    void *value;
    for (Py_ssize_t i = 0; items != NULL && i < PyTuple_GET_SIZE(items); i++) {
        PyObject *item = PyTuple_GET_ITEM(items, i);
        PyObject *handle =
            PyTuple_Check(item) && PyTuple_GET_SIZE(item) == 2 ? PyTuple_GET_ITEM(item, 0) : NULL;
        uint64_t number = handle == NULL ? 0 : PyLong_AsUnsignedLongLong(handle);
        if (handle == NULL || PyErr_Occurred()) {
            goto done;
        }
        if (export_find(self, number) == NULL && PyList_Append(missing, handle) < 0) {
            goto done;
        }
    }
    if (items == NULL || counts_apply(self, items) < 0) {
        goto done;
    }
    int rc = 0, collects = PyGC_Disable(); /* a collection may take proxies out of the table */
    for (size_t i = 0; rc == 0 && table_next(&self->imports, &i, &key, &value);) {
        struct proxy *p = proxy_find(value);
        if (p != NULL && p->handle == key) {
            p->epoch = self->epoch;
            PyObject *entry =
                Py_BuildValue("(KK)", (unsigned long long)key, (unsigned long long)p->count);
            rc = entry == NULL ? -1 : PyList_Append(counts, entry);
            Py_XDECREF(entry);
        }
    }
    if (collects) {
        PyGC_Enable();
    }
    if (rc < 0) {
        goto done;
    }
    buffers_carry_over(self);
    PyObject *tuple = PyList_AsTuple(missing), *mine = PyList_AsTuple(counts);
    result = tuple == NULL || mine == NULL ? NULL : PyTuple_Pack(2, tuple, mine);
    Py_XDECREF(tuple);
    Py_XDECREF(mine);
done:
    if (result == NULL && !PyErr_Occurred()) {
        garbled("counts");
    }
    Py_XDECREF(items);
    Py_XDECREF(missing);
    Py_XDECREF(counts);
    return result;
}
