/* death.c: that a life is over, what is known of its end, and what a request under way then raises.
 */
#include "exchange.h"

#include "batch.h"
#include "strands.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EXIT_GRACE_MS 40 /* how long a death is held back for the exit report to complete it */
/* How long an announced death may take to complete its record. It takes one or two; this is for
 * when the child gets no processor. Only one that is stuck there is waited for so long. */
#define RECORD_GRACE_MS 1000

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
PyObject *
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
    double until = now() + RECORD_GRACE_MS * 1e-3;
    while (now() < until && !process_update(peer->process) &&
           atomic_load(&record->header.state) == RECORD_NATIVE) {
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
void
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
    if (m->batch != NULL) {
        batch_blame(m, &ending);
    }
    PyObject *facts = add_limit_facts(exit_facts(&ending, m), &ending, m);
    if (facts != NULL && m->batch != NULL && batch_add_facts(m, facts) < 0) {
        Py_CLEAR(facts);
    }
    PyObject *exc = facts == NULL ? NULL
                                  : PyObject_CallMethod(peer->host, "terminated", "OO", facts,
                                                        first ? Py_True : Py_False);
    Py_XDECREF(facts);
    if (exc != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exc), exc);
        Py_DECREF(exc);
    }
}

bool
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
