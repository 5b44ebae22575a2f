/* patience.c: interrupts and time limits of a request that is waited for. */
#include "exchange.h"

#define HINT_AFTER_S 1.0    /* an interrupt that was not answered: say what a second one does */
#define TIMEOUT_GRACE_S 1.0 /* how long a request that took too long may take to be interrupted */

/* Has the child raise KeyboardInterrupt in the request m, if that is what its main thread executes.
 */
void
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
void
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
void
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
void
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

/* A call of a batch has been answered inside another wait: the next one has its own time. */
void
call_answered(struct strand *s, const struct waiting *w)
{
    if (w->outer == NULL && s->deadline != 0 && !s->timed_out) {
        s->deadline = now() + s->timeout;
    }
}

/* How long the wait may sleep, in milliseconds. */
int
slice(struct strand *s)
{
    double left = s->deadline == 0 || s->timed_out ? SLICE_MS : (s->deadline - now()) * 1e3;
    return left <= 0 ? 1 : left < SLICE_MS ? (int)left + 1 : SLICE_MS;
}

/* Interrupts what takes too long, and kills what does not react to that. */
void
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
void
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
