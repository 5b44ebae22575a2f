#include "peer.h"

#include "buffers.h"
#include "handles.h"
#include "iteration.h"
#include "proxy.h"
#include "rollback.h"
#include "strands.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SLICE_MS 50         /* a wait lets Python see signals at least this often */
#define HINT_AFTER_S 1.0    /* an interrupt that was not answered: say what a second one does */
#define TIMEOUT_GRACE_S 1.0 /* how long a request that took too long may take to be interrupted */
#define IDLE_MS 100      /* releases that no frame took along for so long are sent by themselves */
#define EXIT_GRACE_MS 40 /* how long a death is held back for the exit report to complete it */
#define RECORD_GRACE_MS 30 /* how long an announced death may take to complete its record */
#define LAST_FRAME_MS 20   /* how long what a dead child had sent may take to arrive */
#define SPIN_US 20         /* how long a wait spins with the GIL held, and ... */
#define GIVE_GIL_MS 5      /* ... how long it may go on so before it lets other threads run */
#define BIG_FRAME 4096     /* bytes from which a frame's memory is handed over instead of copied */
#define MUCH (256u * 1024) /* bytes that are sent without the GIL */

/* ---- small things ------------------------------------------------------------------------ */

static int
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
    if (p->module != NULL) {
        return false;
    }
    if (p->epoch != peer->epoch) {
        return true;
    }
    return peer->state != PEER_RUNNING && !rollback_knows(peer, p->handle);
}

void
peer_raise_stale(PeerObject *peer, PyObject *proxy)
{
    PyObject *exc = PyObject_CallMethod(peer->host, "stale", "s",
                                        PyType_Check(proxy) ? ((PyTypeObject *)proxy)->tp_name
                                                            : Py_TYPE(proxy)->tp_name);
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

static double
now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* ---- frames ------------------------------------------------------------------------------ */

/* Header, releases and changes of pairs: what every frame starts with. */
static int
frame_begin(struct message *m, unsigned op, unsigned flags, uint64_t request)
{
    PeerObject *peer = m->peer;
    bool changes = false;
    struct frame_header h = {
        .op = (uint8_t)op, .epoch = peer->epoch, .strand = m->strand->id, .request = request};
    m->op = (unsigned char)op;
    m->request = request;
    m->begun = true;
    m->strand->framing++;
    blobs_collect();
    write_header(&m->w, &h);
    if (peer->copies != NULL || peer->holds != NULL) {
        if (buffers_encode(m, &changes) < 0) {
            return -1;
        }
        flags |= changes ? FRAME_BUFFERS : 0;
        changes = false;
    }
    if (peer->nreleases > 0) {
        flags |= FRAME_RELEASES;
        m->released = m->w.size;
        write_u64(&m->w, peer->nreleases);
        for (size_t i = 0; i < peer->nreleases; i++) {
            write_u64(&m->w, peer->releases[i].handle);
            write_u64(&m->w, peer->releases[i].count);
        }
        peer->nreleases = 0;
    }
    if (peer->nchanged > 0 && m->strand->id != STRAND_SERVICE) {
        flags |= FRAME_CLASSES;
        if (class_changes_encode(m) < 0) {
            return -1;
        }
    }
    m->npairs = m->strand->npairs;
    /* An event takes no control away. */
    if (m->npairs > 0 && !(flags & FRAME_EVENT) && pairs_encode_changes(m, &changes) < 0) {
        return -1;
    }
    m->flags = flags | (changes ? FRAME_PAIRS : 0);
    return message_check(m);
}

/* Hands the frame to the channel: 0, or -1 and errno. Its blobs, and its memory where that is from
 * malloc, are gone then. */
static int
channel_send_message(struct message *m)
{
    bool owned = m->w.data != m->w.small;
    int rc;
    if (m->nblobs > 0) {
        rc = channel_send_blobs(m->strand->channel, m->w.data, m->w.size, owned, m->blobs,
                                m->nblobs, blob_done);
        m->nblobs = 0;
    }
    else if (owned && m->w.size > BIG_FRAME) {
        rc = channel_send_owned(m->strand->channel, m->w.data, m->w.size);
    }
    else {
        return channel_send(m->strand->channel, m->w.data, m->w.size);
    }
    if (owned) {
        writer_init(&m->w);
    }
    return rc;
}

/* The same, without the GIL where it is much that may have to be copied. */
static int
send_message(struct message *m)
{
    size_t size = m->w.size;
    int rc, saved;
    for (size_t i = 0; i < m->nblobs; i++) {
        size += m->blobs[i].size;
    }
    if (size < MUCH) {
        return channel_send_message(m);
    }
    m->peer->polling++; /* the channel stays meanwhile */
    Py_BEGIN_ALLOW_THREADS
    rc = channel_send_message(m);
    saved = errno;
    Py_END_ALLOW_THREADS
    m->peer->polling--;
    errno = saved;
    return rc;
}

/* Sends the frame and frees the message. */
static int
frame_send(struct message *m)
{
    patch_u16(&m->w, 2, (uint16_t)m->flags);
    if (message_check(m) < 0) {
        message_free(m, true);
        return -1;
    }
    peer_trace(m->peer, "->", m->w.data, m->w.size);
    if (m->changes_upto > 0) {
        class_changes_forget(m->peer, m->changes_upto);
    }
    int rc = m->strand->closed ? 0 /* the wait will find the death */ : send_message(m);
    if (rc < 0 && errno == EAGAIN && m->peer->is_kernel) {
        /* The child has hung up: it is dead or as good as dead. The wait says how it ended. */
        m->peer->cut_off = true;
        process_kill(m->peer->process, 9);
        rc = 0;
    }
    if (rc < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
    }
    if (rc == 0 && (m->flags & FRAME_BUFFERS)) {
        buffers_sent(m->peer);
    }
    message_free(m, rc < 0);
    return rc;
}

/* Frames of one strand are read in the order they were sent; those of several are not. A release
 * may thus overtake a reply that names the handle for the last time. So it waits until every
 * request that was under way on another strand when it came has ended. */

/* The stamp of the oldest request under way on a strand other than `but`; UINT64_MAX: there is
 * none. */
static uint64_t
oldest_request(PeerObject *peer, struct strand *but)
{
    uint64_t oldest = UINT64_MAX;
    for (size_t i = 0; i < peer->nstrands; i++) {
        struct strand *s = peer->strands[i];
        if (s != but && s->depth > 0 && s->busy_since < oldest) {
            oldest = s->busy_since;
        }
    }
    return oldest;
}

static void
late_releases_apply(PeerObject *peer)
{
    if (peer->nlate == 0) {
        return;
    }
    uint64_t oldest = oldest_request(peer, NULL);
    struct late_release *late = peer->late;
    size_t n = peer->nlate;
    /* Taken away first: a target's end can run anything, this too. */
    peer->late = NULL;
    peer->nlate = peer->caplate = 0;
    for (size_t i = 0; i < n; i++) {
        if (late[i].stamp <= oldest) {
            export_release(peer, late[i].handle, late[i].count);
        }
        else {
            release_later(peer, late[i].handle, late[i].count, late[i].stamp);
        }
    }
    free(late);
}

static int
open_frame(struct incoming *in)
{
    if ((in->header.flags & FRAME_BUFFERS) && buffers_decode(in) < 0) {
        return -1;
    }
    if (in->header.flags & FRAME_RELEASES) {
        PeerObject *peer = in->peer;
        bool wait = oldest_request(peer, in->strand) != UINT64_MAX;
        uint64_t stamp = wait ? ++peer->stamp : 0;
        for (uint64_t n = read_count(&in->r, 16); n > 0; n--) {
            uint64_t handle = read_u64(&in->r), count = read_u64(&in->r);
            if (wait && !is_hold(export_find(peer, handle))) {
                release_later(peer, handle, count, stamp);
            }
            else {
                export_release(peer, handle, count);
            }
        }
    }
    if (in->header.flags & FRAME_INVALIDATE) {
        in->peer->cache_generation++;
    }
    if (in->r.failed) {
        return garbled("releases");
    }
    if (in->header.flags & FRAME_CLASSES && class_changes_decode(in) < 0) {
        return -1;
    }
    return in->header.flags & FRAME_PAIRS ? pairs_decode_changes(in) : 0;
}

/* Header, releases and changes of a received frame. */
static int
frame_open(struct incoming *in)
{
    in->strand->framing++;
    int rc = open_frame(in);
    in->strand->framing--;
    return rc;
}

static void
incoming_free(struct incoming *in)
{
    Py_CLEAR(in->seen);
    frame_free(&in->frame);
}

/* ---- output of the child ----------------------------------------------------------------- */

/* Passes on everything that is in the child's pipes. Keeps the first exception of the writer in
 * *parked and goes on: nothing that the child printed is lost. */
static void
drain_output(PeerObject *peer, PyObject **parked)
{
    char buffer[65536];
    for (int i = 0; i < 2; i++) {
        for (;;) {
            if (peer->state == PEER_FORKED) {
                return; /* by what a writer did */
            }
            int fd = i == 0 ? process_out(peer->process) : process_err(peer->process);
            if (fd < 0) {
                break;
            }
            ssize_t n = read(fd, buffer, sizeof buffer);
            if (n < 0 && errno == EINTR) {
                continue;
            }
            if (n == 0) {
                process_close_output(peer->process, fd);
            }
            if (n <= 0) {
                break;
            }
            PyObject *none =
                PyObject_CallMethod(peer->host, "on_output", "iy#", i, buffer, (Py_ssize_t)n);
            if (none == NULL) {
                PyObject *exc = compat_take_exception();
                if (*parked == NULL) {
                    *parked = exc;
                }
                else {
                    Py_XDECREF(exc);
                }
            }
            Py_XDECREF(none);
        }
    }
}

/* ---- death ------------------------------------------------------------------------------- */

void
peer_ending(PeerObject *peer, enum ending_how how)
{
    struct ending *e = &peer->ending;
    struct shared_page *page = process_shared(peer->process);
    if (e->how != END_NONE) {
        return;
    }
    e->how = how;
    e->pid = process_pid(peer->process);
    e->exit = process_exit_info(peer->process);
    e->timeout = peer->killed_after;
    if (page != NULL) {
        e->announced = atomic_load(&page->announced);
        e->signal = page->signal;
        e->code = page->code;
        e->address = page->address;
        e->no_memory = page->no_memory != 0;
        e->data_used = page->data_used;
        e->taken = atomic_load(&page->taken_request);
    }
    e->cut_off = peer->cut_off;
}

/* What the request was called with: (args, kwargs), new reference; None where that is not known. */
static PyObject *
called_with(const struct message *m)
{
    const struct arguments *a = &m->arguments;
    Py_ssize_t nkw = a->kwnames == NULL ? 0 : PyTuple_GET_SIZE(a->kwnames);
    if (a->vector == NULL && a->tuple == NULL) {
        return Py_NewRef(Py_None);
    }
    PyObject *args, *kwargs = a->kwargs != NULL ? PyDict_Copy(a->kwargs) : PyDict_New();
    if (a->tuple != NULL) {
        Py_ssize_t n = PyTuple_GET_SIZE(a->tuple);
        args = PyTuple_GetSlice(a->tuple, n - a->nargs, n);
    }
    else {
        args = PyTuple_New(a->nargs);
        for (Py_ssize_t i = 0; args != NULL && i < a->nargs; i++) {
            PyTuple_SET_ITEM(args, i, Py_NewRef(a->vector[i]));
        }
    }
    for (Py_ssize_t i = 0; kwargs != NULL && i < nkw; i++) {
        if (PyDict_SetItem(kwargs, PyTuple_GET_ITEM(a->kwnames, i), a->vector[a->nargs + i]) < 0) {
            Py_CLEAR(kwargs);
        }
    }
    PyObject *both = args == NULL || kwargs == NULL ? NULL : PyTuple_Pack(2, args, kwargs);
    Py_XDECREF(args);
    Py_XDECREF(kwargs);
    return both;
}

PyObject *
peer_death_record(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    struct record *record = self->is_kernel ? process_record(self->process) : NULL;
    if (record == NULL) {
        Py_RETURN_NONE;
    }
    struct record_header header = record->header;
    if (header.magic != RECORD_MAGIC) {
        Py_RETURN_NONE;
    }
    if (header.state < RECORD_NATIVE) {
        return PyBytes_FromString("");
    }
#define BOUND(field, limit) header.field = header.field < (limit) ? header.field : (limit)
    BOUND(stack_size, RECORD_STACK);
    BOUND(maps_size, RECORD_MAPS);
    BOUND(python_size, RECORD_PYTHON);
    BOUND(nregisters, RECORD_REGISTERS);
#undef BOUND
    PyObject *bytes =
        PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(sizeof header + header.stack_size +
                                                     header.maps_size + header.python_size));
    if (bytes != NULL) {
        char *to = PyBytes_AS_STRING(bytes);
        memcpy(to, &header, sizeof header);
        memcpy(to += sizeof header, record->stack, header.stack_size);
        memcpy(to += header.stack_size, record->maps, header.maps_size);
        memcpy(to + header.maps_size, record->python, header.python_size);
    }
    return bytes;
}

/* The child goes on writing the record for a moment after its death has been announced. */
static void
await_record(PeerObject *peer)
{
    struct shared_page *page = process_shared(peer->process);
    struct record *record = process_record(peer->process);
    if (page == NULL || atomic_load(&page->announced) != ANNOUNCED_COMPLETE ||
        atomic_load(&record->header.state) != RECORD_NATIVE) {
        return;
    }
    peer->polling++;
    Py_BEGIN_ALLOW_THREADS
    for (int i = 0; i < RECORD_GRACE_MS && !process_update(peer->process) &&
                    atomic_load(&record->header.state) == RECORD_NATIVE;
         i++) {
        usleep(1000);
    }
    Py_END_ALLOW_THREADS
    peer->polling--;
}

static PyObject *
exit_facts(const struct ending *e, struct message *m)
{
    static const char *const ended[] = {"", "", "closed", "restarted"};
    /* One that an earlier handler may have dealt with counts only if the exit does not say
     * otherwise. */
    bool valid = e->announced == ANNOUNCED_COMPLETE ||
                 (e->announced == ANNOUNCED_TENTATIVE &&
                  (!e->exit.known || (e->exit.code != CLD_EXITED && e->exit.status == e->signal)));
    /* Was it dead before it came to this request? Of the main thread that is known exactly. */
    bool idle = e->idle || (m->strand->id == STRAND_MAIN && e->taken < m->request);
    PyObject *arguments = idle ? Py_NewRef(Py_None) : called_with(m);
    if (arguments == NULL) {
        return NULL;
    }
    return Py_BuildValue("{sssisOsisisIsisisKsssOsOsN}", "ended", ended[e->how], "pid", (int)e->pid,
                         "known", e->exit.known ? Py_True : Py_False, "exit_code", e->exit.code,
                         "exit_status", e->exit.status, "announced",
                         valid ? e->announced : ANNOUNCED_NONE, "signal", valid ? e->signal : 0,
                         "si_code", valid ? e->code : 0, "address",
                         valid ? (unsigned long long)e->address : 0ull, "operation",
                         idle           ? ""
                         : m->operation ? m->operation
                                        : op_name(m->op),
                         "operand", m->operand == NULL ? Py_None : m->operand, "cut_off",
                         e->cut_off ? Py_True : Py_False, "arguments", arguments);
}

/* Adds what is known of limits to the facts of an end: a dict, or NULL with an exception, which is
 * passed on. Steals facts. */
static PyObject *
add_limit_facts(PyObject *facts, const struct ending *e, struct message *m)
{
    if (facts == NULL) {
        return NULL;
    }
    PyObject *more = Py_BuildValue(
        "{sdsOsOsKsd}", "timeout", e->timeout, "timed_out",
        m->strand->timed_out && e->timeout > 0 ? Py_True : Py_False, "no_memory",
        e->announced != ANNOUNCED_NONE && e->no_memory ? Py_True : Py_False, "data_used",
        (unsigned long long)e->data_used, "cpu", e->exit.reaped ? e->exit.cpu : -1.0);
    if (more == NULL || PyDict_Update(facts, more) < 0) {
        Py_CLEAR(facts);
    }
    Py_XDECREF(more);
    return facts;
}

/* A child that stands still for a debugger, as it was told to, is kept: true. What kills it later
 * finds no life. */
static bool
keep_crashed(PeerObject *peer)
{
    struct shared_page *page = process_shared(peer->process);
    return peer->hold && page != NULL && atomic_load(&page->announced) == ANNOUNCED_COMPLETE &&
           process_hold(peer->process);
}

/* Raises what becomes of the request m when its life is over: ProcessTerminationError, or, where
 * the life was ended by a wish of this side, ClientStateError. */
static void
raise_terminated(PeerObject *peer, struct message *m)
{
    struct strand *s = m->strand;
    bool first = false, held = false;
    if (!peer->is_kernel || peer->state == PEER_FORKED) {
        raise_error("ClientStateError", peer->is_kernel ? "this process is a fork of the session"
                                                        : "the session has gone");
        return;
    }
    if (!s->closed && s->epoch == peer->epoch) {
        PyObject *ignored = NULL;
        first = peer->state == PEER_RUNNING;
        if (first) {
            peer->state = PEER_DEAD;
        }
        await_record(peer); /* lets other threads run, which come here too */
        if (first) {
            held = keep_crashed(peer);
            process_kill(peer->process, 9); /* announced, or half dead: nothing of it may go on */
        }
        if (peer->ending.how == END_NONE) {
            peer->polling++;
            Py_BEGIN_ALLOW_THREADS
            process_wait_exit(peer->process, held ? 0 : EXIT_GRACE_MS);
            Py_END_ALLOW_THREADS
            peer->polling--;
            peer_ending(peer, END_DIED);
        }
        drain_output(peer, &ignored); /* what it printed between its last frame and its death */
        Py_XDECREF(ignored);
    }
    struct ending ending = s->closed ? s->ending : peer->ending;
    PyObject *facts = add_limit_facts(exit_facts(&ending, m), &ending, m);
    PyObject *exc = facts == NULL ? NULL
                                  : PyObject_CallMethod(peer->host, "terminated", "OO", facts,
                                                        first ? Py_True : Py_False);
    Py_XDECREF(facts);
    if (exc != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(exc);
    }
}

/* ---- serving ----------------------------------------------------------------------------- */

static int
send_reply(struct incoming *in, struct message *m, PyObject *result, unsigned flags)
{
    if (frame_begin(m, in->header.op, FRAME_REPLY | flags, in->header.request) < 0) {
        return -1;
    }
    if (!in->peer->is_kernel && watched_changed(in->peer)) {
        m->flags |= FRAME_INVALIDATE;
        m->flags &= ~(unsigned)FRAME_CACHEABLE;
    }
    return encode(m, result, true) < 0 || message_check(m) < 0 ? -1 : 0;
}

/* Runs one request of the other side and answers it. -1 only when answering itself failed. */
static int
serve(struct incoming *in)
{
    PeerObject *peer = in->peer;
    struct strand *s = in->strand;
    size_t npairs = s->npairs;
    unsigned flags = 0;
    uint64_t outer = 0;
    bool interruptible = peer->page != NULL && s->id == STRAND_MAIN;
    PyObject *result = NULL;
    struct message m;
    struct values values = {.request = in->header.request};
    in->values = &values;
    values_begin(s, &values);
    if (interruptible) {
        atomic_store_explicit(&peer->page->taken_request, in->header.request, memory_order_release);
        outer = atomic_exchange(&peer->page->executing_request, in->header.request);
        if (atomic_load(&peer->page->interrupt_request) == in->header.request) {
            PyErr_SetInterrupt(); /* the signal overtook the request, and was ignored */
        }
    }
    errno = 0; /* if it is ENOMEM when this request dies, it is of this request */
    s->serving++;
    iteration_effect(peer);
    struct entry entry = {.outer = s->entries};
    if (s->depth > 0) {
        entry.frame = PyThreadState_GetFrame(PyThreadState_Get());
        s->entries = &entry;
    }
    /* Two objects that each stand for the other would ask for ever: it ends as it does in-process.
     */
    if (frame_open(in) == 0 && Py_EnterRecursiveCall(" while answering the other process") == 0) {
        result = op_execute(in, &flags);
        Py_LeaveRecursiveCall();
    }
    s->entries = entry.outer;
    Py_CLEAR(entry.frame);
    incoming_free(in);
    if (peer->reborn) {
        /* The request was made of the process that this one was copied from, which answered it. */
        Py_CLEAR(result);
        PyErr_Clear();
        values_end(s, &values);
        pairs_truncate(s, npairs);
        s->serving--;
        return 0;
    }
    if (interruptible) {
        atomic_store(&peer->page->executing_request, outer);
        if (outer == 0) {
            /* An interrupt of this very request may have come too late to stop it: its outcome
             * stands, and the kernel raises KeyboardInterrupt by itself. */
            PyObject *outcome = result == NULL ? compat_take_exception() : NULL;
            if (PyErr_CheckSignals() < 0) {
                PyErr_Clear();
            }
            if (outcome != NULL) {
                compat_raise(outcome);
            }
        }
    }
    message_init(&m, peer, s, true);
    if (result != NULL && send_reply(in, &m, result, flags) < 0) {
        message_free(&m, true);
        message_init(&m, peer, s, true);
        Py_CLEAR(result);
    }
    if (result == NULL) {
        PyObject *exc = compat_take_exception();
        if (frame_begin(&m, in->header.op, FRAME_REPLY | FRAME_ERROR, in->header.request) < 0 ||
            encode(&m, exc, true) < 0) {
            /* The exception itself cannot be passed: say so instead. */
            PyObject *second = compat_take_exception();
            PyObject *plain =
                PyObject_CallMethod(core_get()->errors, "unpassable", "OO", exc, second);
            message_free(&m, true);
            message_init(&m, peer, s, true);
            if (plain == NULL ||
                frame_begin(&m, in->header.op, FRAME_REPLY | FRAME_ERROR, in->header.request) < 0 ||
                encode(&m, plain, true) < 0) {
                PyErr_Clear();
            }
            Py_XDECREF(second);
            Py_XDECREF(plain);
        }
        if (!peer->is_kernel && watched_changed(peer)) {
            m.flags |= FRAME_INVALIDATE;
        }
        Py_XDECREF(exc);
    }
    /* What the request made or held goes before the answer, so that whoever reads the answer finds
     * it gone; finalisers may even call back. */
    Py_XDECREF(result);
    values_end(s, &values);
    int rc = frame_send(&m);
    pairs_truncate(s, npairs);
    s->serving--;
    if (s->serving == 0 && s->depth == 0) {
        proxies_let_go(peer);
    }
    return rc;
}

/* After channel_recv() has failed; always -1. A child that has garbled its shared memory cannot be
 * talked to any more: it ends. */
static int
receive_failed(PeerObject *peer, struct strand *s)
{
    if (errno == EPROTO) {
        s->garbled = true;
        if (peer->is_kernel) {
            peer->cut_off = true;
            process_kill(peer->process, 9);
        }
        return garbled("lane");
    }
    PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

/* Reads the header of a received frame. 1: it is for us; 0: dropped (of another life); -1: garbled.
 */
static int
accept_frame(PeerObject *peer, struct strand *s, struct incoming *in)
{
    in->peer = peer;
    in->strand = s;
    in->seen = NULL;
    in->values = NULL;
    in->discarded = false;
    reader_init(&in->r, in->frame.data, in->frame.size);
    if (!read_header(&in->r, &in->header)) {
        frame_free(&in->frame);
        return garbled("header");
    }
    if (in->header.epoch != peer->epoch || in->header.strand != s->id) {
        frame_free(&in->frame);
        return 0;
    }
    if (!peer->is_kernel && !s->checked) {
        pid_t pid;
        uid_t uid;
        /* Nobody else has the lane's memory; to a name, anybody could connect. */
        if (!in->frame.by_lane && (frame_peer(&in->frame, &pid, &uid) < 0 ||
                                   pid != peer->kernel_pid || uid != peer->kernel_uid)) {
            /* Somebody else connected to our name. There is no kernel to talk to on this strand. */
            frame_free(&in->frame);
            return garbled("not the kernel");
        }
        s->checked = true;
    }
    strand_connected(s);
    peer->turn++;
    peer_trace(peer, "<-", in->frame.data, in->frame.size);
    if (peer->tap != NULL) {
        PyObject *none = PyObject_CallFunction(peer->tap, "y#", (const char *)in->frame.data,
                                               (Py_ssize_t)in->frame.size);
        Py_XDECREF(none);
        PyErr_Clear();
    }
    return 1;
}

/* An answer that nobody waits for: what it refers to is released, what it describes is kept. */
static void
discard(struct incoming *in)
{
    in->discarded = true;
    if (frame_open(in) == 0) {
        Py_XDECREF(decode(in));
    }
    PyErr_Clear();
    incoming_free(in);
}

PyObject *
peer_feed(PeerObject *peer, const void *data, size_t size)
{
    struct incoming in;
    unsigned flags = 0;
    PyObject *result = NULL;
    struct strand *s = strand_current(peer);
    if (s == NULL) {
        return NULL;
    }
    if (frame_copy(data, size, &in.frame) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    size_t npairs = s->npairs;
    int got = accept_frame(peer, s, &in);
    if (got <= 0) {
        return got < 0 ? NULL : Py_NewRef(Py_None);
    }
    s->serving++;
    struct values values = {.request = in.header.request};
    bool request = !(in.header.flags & (FRAME_EVENT | FRAME_REPLY));
    if (request) {
        in.values = &values;
        values_begin(s, &values);
    }
    if (frame_open(&in) == 0) {
        result = in.header.flags & FRAME_EVENT   ? Py_NewRef(Py_None)
                 : in.header.flags & FRAME_REPLY ? decode(&in)
                                                 : op_execute(&in, &flags);
    }
    incoming_free(&in);
    if (request) {
        values_end(s, &values);
    }
    pairs_truncate(s, npairs);
    s->serving--;
    return result;
}

/* ---- the wait ---------------------------------------------------------------------------- */

struct waiting {
    uint64_t request;      /* what is waited for */
    struct waiting *outer; /* the wait of this strand inside which this one began, or NULL */
    bool arrived;          /* its reply came during an inner wait, and is kept */
    struct incoming kept;
    PyObject *parked; /* strong: what Python raised inside the wait; raised when the request ends */
    double since;     /* when it was interrupted */
    bool interrupted, hinted, killed;
    double
        timed_out; /* monotonic seconds, when the strand's deadline was seen to have passed; or 0 */
};

/* Has the child raise KeyboardInterrupt in the request m, if that is what its main thread executes.
 */
static void
interrupt_child(PeerObject *peer, struct message *m)
{
    struct shared_page *page = process_shared(peer->process);
    if (page != NULL) {
        atomic_store(&page->interrupt_request, m->request);
    }
    process_kill(peer->process, 2);
}

/* A signal that comes just before a system call begins does not end it. Until the child's handler
 * has run (which takes the request's number away), it is sent again. */
static void
interrupt_again(PeerObject *peer, struct message *m)
{
    struct shared_page *page = process_shared(peer->process);
    if (page != NULL && atomic_load(&page->interrupt_request) == m->request) {
        process_kill(peer->process, 2);
    }
}

/* Steals exc, which a signal handler raised: the first interrupts the child's request, the second
 * kills. */
static void
interrupted_by(PeerObject *peer, struct message *m, struct waiting *w, PyObject *exc)
{
    if (w->interrupted) {
        Py_XDECREF(exc);
        w->killed = true;
        process_kill(peer->process, 9);
        return;
    }
    Py_XSETREF(w->parked, exc);
    w->interrupted = true;
    w->since = now();
    interrupt_child(peer, m);
}

/* Steals exc, which was raised by the session's own code inside the wait, such as its streams'. A
 * signal may well arrive just there: an interrupt must reach the child all the same. Other errors
 * are raised when the request ends. */
static void
raised_inside(PeerObject *peer, struct message *m, struct waiting *w, PyObject *exc)
{
    if (!PyErr_GivenExceptionMatches(exc, PyExc_Exception)) {
        interrupted_by(peer, m, w, exc);
    }
    else if (w->parked == NULL) {
        w->parked = exc;
    }
    else {
        Py_DECREF(exc);
    }
}

/* Lets Python see signals. */
static void
check_signals(PeerObject *peer, struct message *m, struct waiting *w)
{
    if (PyErr_CheckSignals() < 0) {
        interrupted_by(peer, m, w, compat_take_exception());
    }
    else if (w->interrupted && !w->killed && now() - w->since < HINT_AFTER_S) {
        interrupt_again(peer, m);
    }
    else if (w->interrupted && !w->hinted && !w->killed && now() - w->since > HINT_AFTER_S) {
        w->hinted = true;
        PyObject *none = PyObject_CallMethod(peer->host, "interrupt_hint", NULL);
        if (none == NULL) {
            raised_inside(peer, m, w, compat_take_exception());
        }
        Py_XDECREF(none);
    }
}

/* The outermost request of a strand begins to be waited for; or one inside it, which has no time of
 * its own. */
static void
begin_deadline(PeerObject *peer, struct message *m)
{
    struct strand *s = m->strand;
    if (s->depth == 1) {
        /* What the user has not asked for has no limit: setting up a life, telling what changed. */
        bool own = peer->starter != 0 || (m->op == OP_HOST && peer->syncing);
        s->timed_out = false;
        s->timeout = peer->timeout; /* it may be changed meanwhile */
        s->deadline = s->timeout > 0 && !own ? now() + s->timeout : 0;
    }
}

/* How long the wait may sleep, in milliseconds. */
static int
slice(struct strand *s)
{
    double left = s->deadline == 0 || s->timed_out ? SLICE_MS : (s->deadline - now()) * 1e3;
    return left <= 0 ? 1 : left < SLICE_MS ? (int)left + 1 : SLICE_MS;
}

/* Interrupts what takes too long, and kills what does not react to that. */
static void
check_deadline(PeerObject *peer, struct message *m, struct waiting *w)
{
    struct strand *s = m->strand;
    double t = now();
    if (w->timed_out == 0 && t >= s->deadline) {
        w->timed_out = t;
        s->timed_out = true;
        interrupt_child(peer, m);
    }
    else if (w->timed_out != 0 && t - w->timed_out < TIMEOUT_GRACE_S) {
        interrupt_again(peer, m);
    }
    else if (w->timed_out != 0 && !w->killed) {
        w->killed = true;
        peer->killed_after = s->timeout;
        process_kill(peer->process, 9);
    }
}

/* Raises that m took too long; what it ended with, if it raised, is the cause. Takes *result. */
static void
raise_timed_out(PeerObject *peer, struct message *m, PyObject **result)
{
    PyObject *cause = *result == NULL ? compat_take_exception() : NULL;
    const char *operation = m->operation != NULL ? m->operation : op_name(m->op);
    Py_CLEAR(*result);
    PyObject *arguments = called_with(m);
    PyObject *exc = arguments == NULL
                        ? NULL
                        : PyObject_CallMethod(peer->host, "timed_out", "sOOd", operation,
                                              m->operand == NULL ? Py_None : m->operand, arguments,
                                              m->strand->timeout);
    Py_XDECREF(arguments);
    if (exc == NULL) {
        Py_XDECREF(cause);
        return;
    }
    if (cause != NULL) {
        PyException_SetContext(exc, Py_NewRef(cause));
        PyException_SetCause(exc, cause);
    }
    PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
    Py_DECREF(exc);
}

/* Passes on the child's output while m is under way. */
static void
relay_output(PeerObject *peer, struct message *m, struct waiting *w)
{
    PyObject *exc = NULL;
    drain_output(peer, &exc);
    if (exc != NULL) {
        raised_inside(peer, m, w, exc);
    }
}

/* Spins for a frame with the GIL held: a thread that lets go of it gets it back from a busy one
 * only after 5 ms. Calls that follow each other quickly never let go of it in C, so from time to
 * time this does not spin. */
static bool
spin_once(PeerObject *peer, struct strand *s)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    uint32_t ms = (uint32_t)(t.tv_sec * 1000 + t.tv_nsec / 1000000);
    if (ms - peer->gil_given < GIVE_GIL_MS && channel_spin(s->channel, SPIN_US)) {
        return true;
    }
    peer->gil_given = ms; /* which the caller is about to do */
    return false;
}

static int
wait_once(PeerObject *peer, struct strand *s, int timeout, unsigned *ready)
{
    int rc = 0, saved = 0;
    bool poll_alarm = true;
    if (spin_once(peer, s)) {
        *ready = CHANNEL_FRAME;
        return 1;
    }
    if (!peer->is_kernel) {
        Py_BEGIN_ALLOW_THREADS
        rc = channel_wait(s->channel, NULL, 0, timeout, ready);
        saved = errno;
        Py_END_ALLOW_THREADS
        errno = saved;
        return rc;
    }
    struct shared_page *page = process_shared(peer->process);
    if (page != NULL && atomic_load(&page->announced) == ANNOUNCED_TENTATIVE) {
        poll_alarm = false; /* may recover: the reply or the exit will tell */
    }
    int fds[] = {process_control(peer->process), process_dead_fd(peer->process),
                 poll_alarm ? process_alarm(peer->process) : -1, process_out(peer->process),
                 process_err(peer->process)};
    peer->polling++;
    Py_BEGIN_ALLOW_THREADS
    rc = channel_wait(s->channel, fds, 5, timeout, ready);
    saved = errno;
    Py_END_ALLOW_THREADS
    peer->polling--;
    errno = saved;
    return rc;
}

static bool
is_over(PeerObject *peer, unsigned ready)
{
    struct shared_page *page = process_shared(peer->process);
    if (ready & 3) {
        if (process_update(peer->process)) {
            return true;
        }
    }
    unsigned announced = page == NULL ? ANNOUNCED_NONE : atomic_load(&page->announced);
    if ((ready & 4) && announced == ANNOUNCED_NONE) {
        process_alarm_clear(peer->process); /* the child took it back */
    }
    return (ready & 4) && announced == ANNOUNCED_COMPLETE;
}

/* A reply that is not the one waited for. What runs inside a wait (a signal handler, a stream of
 * the session, a finaliser) may ask the child something too; the reply to the outer request then
 * comes first, and is the outer wait's to read. Any other is of a request that was given up. */
static void
keep_or_discard(struct waiting *w, struct incoming *in)
{
    for (struct waiting *outer = w->outer; outer != NULL; outer = outer->outer) {
        if (outer->request == in->header.request && !outer->arrived) {
            outer->kept = *in;
            outer->arrived = true;
            return;
        }
    }
    discard(in);
}

/* Waits for the reply to m and decodes it. */
static PyObject *
wait_reply(struct message *m)
{
    PeerObject *peer = m->peer;
    struct strand *s = m->strand;
    struct waiting w = {.request = m->request, .outer = s->waiting};
    PyObject *result = NULL;
    bool over = false, last = false, died = false;
    s->waiting = &w;
    if (peer->is_kernel) {
        begin_deadline(peer, m);
    }
    for (;;) {
        struct incoming in;
        unsigned ready = 0;
        int got = 0;
        bool kept = w.arrived;
        if (kept) {
            in = w.kept;
            w.arrived = false;
            got = 1;
        }
        else if (!s->closed && s->epoch == peer->epoch) {
            got = channel_recv(s->channel, &in.frame);
        }
        else {
            over = true;
        }
        if (got < 0 && s->garbled && peer->is_kernel) {
            over = last = true; /* said once; from now on it is a death like any other */
            got = 0;
        }
        if (got < 0) {
            receive_failed(peer, s);
            break;
        }
        if (got == 0) {
            if (over) {
                if (!last && !s->closed && s->epoch == peer->epoch) {
                    /* A reply that was sent before the death is delivered. */
                    last = true;
                    peer->polling++;
                    Py_BEGIN_ALLOW_THREADS
                    channel_last(s->channel, LAST_FRAME_MS);
                    Py_END_ALLOW_THREADS
                    peer->polling--;
                    continue;
                }
                if (!s->closed && s->epoch == peer->epoch) {
                    drain_output(peer, &w.parked);
                }
                raise_terminated(peer, m); /* what is parked is raised instead, below */
                died = true;
                break;
            }
            if (wait_once(peer, s, slice(s), &ready) < 0 && errno != EINTR) {
                PyErr_SetFromErrno(PyExc_OSError);
                break;
            }
            if (ready == 0) {
                strand_connected(s); /* long since: what libzmq opens is open */
            }
            if (peer->is_kernel) {
                if (ready & (8 | 16)) {
                    relay_output(peer, m, &w);
                }
                over = over || peer->state != PEER_RUNNING || (ready & 7 && is_over(peer, ready));
                check_signals(peer, m, &w);
                if (s->deadline != 0) {
                    check_deadline(peer, m, &w);
                }
            }
            else if (PyErr_CheckSignals() < 0) {
                PyObject *exc = compat_take_exception();
                Py_XSETREF(w.parked, exc);
            }
            continue;
        }
        got = kept ? 1 : accept_frame(peer, s, &in);
        if (got < 0) {
            break;
        }
        if (got == 0 || (in.header.flags & FRAME_EVENT)) {
            if (got == 1) {
                if (frame_open(&in) < 0) {
                    PyErr_Clear();
                }
                incoming_free(&in);
            }
            continue;
        }
        if (!(in.header.flags & FRAME_REPLY)) {
            if (peer->is_kernel && process_has_output(peer->process)) {
                relay_output(peer, m, &w); /* before what the callback prints */
            }
            if (serve(&in) < 0) {
                break;
            }
            continue;
        }
        if (in.header.request != m->request) {
            keep_or_discard(&w, &in);
            continue;
        }
        if (peer->is_kernel) {
            struct shared_page *page = process_shared(peer->process);
            if (page != NULL && atomic_load(&page->announced) == ANNOUNCED_TENTATIVE) {
                process_alarm_clear(peer->process); /* it goes on: the signal was dealt with */
            }
            if (process_has_output(peer->process)) {
                drain_output(peer, &w.parked);
            }
        }
        s->cacheable = (in.header.flags & FRAME_CACHEABLE) != 0;
        if (frame_open(&in) == 0) {
            s->framing++;
            result = decode(&in);
            s->framing--;
        }
        incoming_free(&in);
        if (result != NULL && (in.header.flags & FRAME_ERROR)) {
            PyObject *exc = result;
            result = NULL;
            if (PyExceptionInstance_Check(exc)) {
                chain_context(exc);
                compat_raise(exc);
            }
            else {
                Py_DECREF(exc);
                garbled("error");
            }
        }
        break;
    }
    s->waiting = w.outer;
    if (w.arrived) {
        discard(&w.kept);
    }
    if (w.timed_out != 0 && w.parked == NULL && !died) {
        raise_timed_out(peer, m, &result);
    }
    if ((w.parked != NULL || w.timed_out != 0) && peer->is_kernel && peer->state == PEER_RUNNING &&
        process_shared(peer->process) != NULL) {
        atomic_store(&process_shared(peer->process)->interrupt_request, 0);
    }
    if (w.parked != NULL) {
        if (w.killed && peer->is_kernel) {
            /* The user sees an interrupt, not what became of the child. */
            PyObject *raised = PyErr_Occurred() ? compat_take_exception() : NULL;
            PyObject *none = PyObject_CallMethod(peer->host, "killed", NULL);
            if (none == NULL) {
                PyErr_Clear();
            }
            Py_XDECREF(none);
            if (raised != NULL) {
                compat_raise(raised);
            }
        }
        /* The child's own KeyboardInterrupt shows where it was; else what was parked is raised. */
        bool same = result == NULL && PyErr_Occurred() &&
                    PyErr_GivenExceptionMatches(PyErr_Occurred(), (PyObject *)Py_TYPE(w.parked));
        if (same) {
            Py_DECREF(w.parked);
        }
        else {
            PyErr_Clear();
            Py_CLEAR(result);
            compat_raise(w.parked);
        }
    }
    return result;
}

/* ---- requests ---------------------------------------------------------------------------- */

/* While a life is being set up, only the thread that does it may use the child, and callbacks of
 * what it runs there: everybody else waits, lest code runs in a child that has no jail yet. */
static bool
may_use_start(PeerObject *peer)
{
    unsigned long thread = PyThread_get_thread_ident();
    if (peer->starter == thread) {
        return true;
    }
    for (size_t i = 0; i < peer->nstrands; i++) {
        struct strand *s = peer->strands[i];
        if (s->thread == thread && !s->closed && s->serving > 0) {
            return true;
        }
    }
    return false;
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
    PyObject *path = PyDict_GetItemWithError(core->sys_dict, core->str_path);
    if (peer->path_seen == NULL || path == NULL || !PyList_Check(path) ||
        PyList_GET_SIZE(path) != PyTuple_GET_SIZE(peer->path_seen)) {
        return true;
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(path); i++) {
        if (PyList_GET_ITEM(path, i) != PyTuple_GET_ITEM(peer->path_seen, i)) {
            return true;
        }
    }
    return false;
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
static int
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

int
request_begin(PeerObject *peer, struct message *m, enum op op)
{
    if (peer == NULL) {
        return garbled("no peer");
    }
    if (ensure_running(peer) < 0) {
        return -1;
    }
    if (peer->changes_at != 0 && changes_due(peer) && look_for_changes(peer) < 0) {
        return -1;
    }
    if (peer->is_kernel && !peer->syncing && (op != OP_HOST || peer->starter == 0) &&
        (peer->sync || peer->state_seen != state_generation || path_changed(peer))) {
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
    if (s->depth == 0) {
        s->busy_since = peer->stamp;
    }
    s->depth++;
    peer->active++;
    if (frame_begin(m, op, 0, ++peer->next_request) < 0) {
        request_abandon(m);
        return -1;
    }
    return 0;
}

static void
request_end(PeerObject *peer, struct strand *s)
{
    s->depth--;
    peer->active--;
    if (s->serving == 0 && s->depth == 0) {
        proxies_let_go(peer);
    }
    late_releases_apply(peer);
    strand_give_back(s);
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
    request_end(peer, m->strand);
}

PyObject *
request_finish(struct message *m)
{
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
        result = wait_reply(m);
    }
    if (!pure) {
        iteration_effect(peer);
    }
    if (values != NULL) {
        values_end(s, values);
        free(values);
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
    request_end(peer, s);
    Py_DECREF(peer);
    return result;
}

/* ---- loops ------------------------------------------------------------------------------- */

/* Serves strand s until its other end closes it or the life is over. 0, or -1 with an exception. */
static int
serve_loop(PeerObject *peer, struct strand *s)
{
    for (;;) {
        struct incoming in;
        unsigned ready = 0;
        if (s->closed || s->epoch != peer->epoch) {
            return 0;
        }
        int got = channel_recv(s->channel, &in.frame);
        if (got < 0) {
            return receive_failed(peer, s);
        }
        if (got == 0) {
            if (peer->is_kernel && peer->state != PEER_RUNNING) {
                return 0;
            }
            if (wait_once(peer, s, peer->is_kernel ? 1000 : -1, &ready) < 0 && errno != EINTR) {
                PyErr_SetFromErrno(PyExc_OSError);
                return -1;
            }
            if (peer->is_kernel && (ready & 7) && is_over(peer, ready)) {
                return 0;
            }
            if (peer->is_kernel && (ready & (8 | 16)) && !(ready & CHANNEL_FRAME)) {
                PyObject *parked = NULL;
                drain_output(peer, &parked);
                Py_XDECREF(parked);
            }
            if (PyErr_CheckSignals() < 0) {
                PyErr_Clear(); /* nothing is executing: not meant for user code */
            }
            continue;
        }
        got = accept_frame(peer, s, &in);
        if (got < 0) {
            return -1;
        }
        if (got == 0) {
            continue;
        }
        if (in.header.flags & FRAME_EVENT) {
            bool end = in.header.op == OP_CLOSE_STRAND;
            int rc = frame_open(&in);
            frame_free(&in.frame);
            if (end) {
                return 0;
            }
            if (rc < 0) {
                PyErr_Clear();
            }
            continue;
        }
        if (in.header.flags & FRAME_REPLY) {
            discard(&in); /* of a request that was given up */
            continue;
        }
        if (serve(&in) < 0) {
            return -1;
        }
    }
}

int
peer_serve(PeerObject *peer, struct strand *s)
{
    s->pins++;
    int rc = serve_loop(peer, s);
    s->pins--;
    return rc;
}

int
peer_send_event(PeerObject *peer, struct strand *s, enum op op, const void *body, size_t size)
{
    struct message m;
    message_init(&m, peer, s, false);
    if (frame_begin(&m, op, FRAME_EVENT, 0) < 0) {
        message_free(&m, true);
        return -1;
    }
    write_raw(&m.w, body, size);
    return frame_send(&m);
}

/* The first frame of a life. It takes the lane where there is one: then libzmq, with all that it is
 * linked to, need not even be loaded. */
int
peer_say_hello(PeerObject *peer, struct strand *s)
{
    return peer_send_event(peer, s, OP_HELLO, peer->nonce, sizeof peer->nonce);
}

static int
wait_hello(PeerObject *peer, struct strand *s)
{
    struct message m;
    struct waiting w = {0};
    message_init(&m, peer, s, false);
    m.operation = "start";
    for (;;) {
        struct incoming in;
        unsigned ready = 0;
        if (s->closed || s->epoch != peer->epoch) {
            Py_XDECREF(
                w.parked); /* a signal handler or a stream has closed the context meanwhile */
            return raise_error("ClientStateError", "the context was closed while it started");
        }
        int got = channel_recv(s->channel, &in.frame);
        if (got < 0) {
            return receive_failed(peer, s);
        }
        if (got > 0) {
            got = accept_frame(peer, s, &in);
            if (got < 0) {
                return -1;
            }
            if (got == 0) {
                continue;
            }
            const unsigned char *nonce = read_raw(&in.r, sizeof peer->nonce);
            bool right = in.header.op == OP_HELLO && nonce != NULL &&
                         memcmp(nonce, peer->nonce, sizeof peer->nonce) == 0;
            frame_free(&in.frame);
            if (!right) {
                return garbled("hand-shake");
            }
            drain_output(peer, &w.parked);
            if (w.parked != NULL) {
                compat_raise(w.parked);
                return -1;
            }
            return 0;
        }
        if (wait_once(peer, s, SLICE_MS, &ready) < 0 && errno != EINTR) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        if (ready & (8 | 16)) {
            drain_output(peer, &w.parked);
        }
        if (ready & 7 && is_over(peer, ready)) {
            drain_output(peer, &w.parked);
            Py_XDECREF(w.parked);
            raise_terminated(peer, &m);
            return -1;
        }
        if (PyErr_CheckSignals() < 0) {
            Py_XDECREF(w.parked);
            return -1;
        }
    }
}

/* Waits for the first frame of a life and checks that it is what our own child says. */
int
peer_wait_hello(PeerObject *peer, struct strand *s)
{
    s->pins++; /* a signal handler may close the context meanwhile */
    int rc = wait_hello(peer, s);
    s->pins--;
    return rc;
}

/* Kernel: the service thread. Late output, idle releases, callback strands, death between calls.
 * Returns when the life is over. */
int
peer_service(PeerObject *peer, uint32_t epoch)
{
    struct strand *s = strand_by_id(peer, STRAND_SERVICE);
    bool quiet = true; /* no releases for a while */
    if (s == NULL) {
        return 0;
    }
    s->pins++;
    while (peer->state == PEER_RUNNING && peer->epoch == epoch) {
        struct incoming in;
        bool idle = peer->active == 0;
        int got = channel_recv(s->channel, &in.frame);
        if (got > 0) {
            if (accept_frame(peer, s, &in) == 1) {
                unsigned op = in.header.op;
                if (frame_open(&in) < 0) {
                    PyErr_Clear();
                }
                frame_free(&in.frame);
                if (op == OP_NEED_STRAND) {
                    struct strand *lent = strand_open(peer, peer->next_strand++, true);
                    PyObject *none = lent == NULL
                                         ? NULL
                                         : PyObject_CallMethod(peer->host, "spawn", "I", lent->id);
                    Py_XDECREF(none);
                }
            }
            if (PyErr_Occurred()) {
                PyErr_WriteUnraisable((PyObject *)peer);
            }
            continue;
        }
        unsigned ready = 0;
        int fds[] = {process_control(peer->process), process_dead_fd(peer->process), peer->wake_fd,
                     idle ? process_out(peer->process) : -1,
                     idle ? process_err(peer->process) : -1};
        /* Output that comes during a call is the caller's to read; look again when it ends. */
        peer->late_output = !idle;
        quiet = quiet && peer->nreleases == 0;
        peer->drowsy = quiet;
        peer->polling++;
        Py_BEGIN_ALLOW_THREADS
        channel_wait(s->channel, fds, 5, quiet ? -1 : IDLE_MS, &ready);
        Py_END_ALLOW_THREADS
        peer->polling--;
        quiet = peer->drowsy || (ready == 0 && peer->nreleases == 0);
        if (peer->epoch != epoch || peer->state != PEER_RUNNING) {
            break;
        }
        if (ready & 4) {
            uint64_t count;
            ssize_t ignored = read(peer->wake_fd, &count, sizeof count);
            (void)ignored;
        }
        if (ready & 3 && process_update(peer->process)) {
            PyObject *parked = NULL;
            drain_output(peer, &parked);
            Py_XDECREF(parked);
            if (peer->epoch == epoch && peer->active == 0) {
                peer->ending.idle = true;
            }
            break; /* the next use says so */
        }
        if (peer->active == 0) {
            if (ready & (8 | 16)) {
                PyObject *parked = NULL;
                drain_output(peer, &parked);
                if (parked != NULL) {
                    compat_raise(parked);
                    PyErr_WriteUnraisable((PyObject *)peer);
                }
            }
            if (peer->nreleases > 0 && ready == 0 &&
                peer_send_event(peer, s, OP_RELEASE, NULL, 0) < 0) {
                PyErr_Clear();
            }
        }
    }
    s->pins--;
    strands_sweep(peer);
    return 0;
}

/* Child: the service thread. New strands, idle releases both ways. Returns when the kernel is gone.
 */
int
peer_child_service(PeerObject *peer)
{
    struct strand *s = strand_by_id(peer, STRAND_SERVICE);
    int announced = 0; /* callback strands asked for so far */
    peer->service_thread = PyThread_get_thread_ident();
    bool quiet = true;
    while (s != NULL) {
        struct incoming in;
        int got = channel_recv(s->channel, &in.frame);
        if (got > 0) {
            if (accept_frame(peer, s, &in) == 1) {
                if (frame_open(&in) < 0) {
                    PyErr_Clear();
                }
                frame_free(&in.frame);
            }
            PyErr_Clear();
            continue;
        }
        unsigned ready = 0;
        int fds[] = {peer->fdpass, peer->wake_fd};
        quiet = quiet && peer->nreleases == 0;
        peer->drowsy = quiet;
        Py_BEGIN_ALLOW_THREADS
        channel_wait(s->channel, fds, 2, quiet ? -1 : IDLE_MS, &ready);
        Py_END_ALLOW_THREADS
        quiet = peer->drowsy || (ready == 0 && peer->nreleases == 0);
        if (ready & 2) {
            uint64_t count;
            ssize_t ignored = read(peer->wake_fd, &count, sizeof count);
            (void)ignored;
            while (announced < peer->needed) {
                announced++;
                if (peer_send_event(peer, s, OP_NEED_STRAND, NULL, 0) < 0) {
                    PyErr_Clear();
                }
            }
        }
        if (ready & 1) {
            bool gone;
            struct strand *fresh = strand_take(peer, false, &gone);
            if (gone) {
                return 0;
            }
            if (fresh != NULL && fresh->callback) {
                pthread_mutex_lock(&peer->lock);
                pthread_cond_broadcast(&peer->arrived);
                pthread_mutex_unlock(&peer->lock);
            }
            else if (fresh != NULL) {
                PyObject *none = PyObject_CallMethod(peer->host, "spawn", "I", fresh->id);
                Py_XDECREF(none);
            }
            if (PyErr_Occurred()) {
                PyErr_WriteUnraisable((PyObject *)peer);
            }
        }
        if (ready == 0 && peer->nreleases > 0 &&
            peer_send_event(peer, s, OP_RELEASE, NULL, 0) < 0) {
            PyErr_Clear();
        }
    }
    return 0;
}
