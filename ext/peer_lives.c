/* peer_lives.c: what begins and ends the lives of a kernel's peer: starting a child, a spare one or
 * a frozen copy in its place, limits, holding a crashed one, closing. */
#include "peer_parts.h"

#include "buffers.h"
#include "exchange.h"
#include "fdfloor.h"
#include "handles.h"
#include "iteration.h"
#include "rollback.h"
#include "strands.h"
#include "supervisor.h"
#include "zmq_late.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define REAP_LIMIT_MS 1000 /* how long it may take until a dead child is reaped */

static char **
string_vector(PyObject *sequence)
{
    PyObject *items = PySequence_List(sequence);
    Py_ssize_t n = items == NULL ? 0 : PyList_GET_SIZE(items);
    char **vector = items == NULL ? NULL : calloc((size_t)n + 1, sizeof *vector);
    for (Py_ssize_t i = 0; vector != NULL && i < n; i++) {
        PyObject *bytes = NULL;
        if (!PyUnicode_FSConverter(PyList_GET_ITEM(items, i), &bytes) ||
            (vector[i] = strdup(PyBytes_AS_STRING(bytes))) == NULL) {
            Py_XDECREF(bytes);
            for (Py_ssize_t k = 0; k < i; k++) {
                free(vector[k]);
            }
            free(vector);
            vector = NULL;
            break;
        }
        Py_DECREF(bytes);
    }
    Py_XDECREF(items);
    return vector;
}

static void
free_vector(char **vector)
{
    for (char **p = vector; p != NULL && *p != NULL; p++) {
        free(*p);
    }
    free(vector);
}

/* Ends what is left of the last life on this side: nobody polls its descriptors any more when this
 * returns. */
static void
leave_life(PeerObject *self)
{
    uint64_t one = 1;
    process_kill(self->process, 9);
    while (self->polling > 0) {
        ssize_t ignored = write(self->wake_fd, &one, sizeof one);
        (void)ignored;
        Py_BEGIN_ALLOW_THREADS
        usleep(1000); /* they look at the state at least every 50 ms */
        Py_END_ALLOW_THREADS
    }
    peer_ending(self, END_DIED); /* unless it is known already how it ended */
    strands_close_all(self);
    self->nreleases = 0;
    iteration_effect(self); /* what was remembered is not kept any longer */
}

/* Ends all that is left of the last life, a frozen copy too. */
static void
end_life(PeerObject *self)
{
    leave_life(self);
    rollback_drop(self);
    process_end_life(self->process);
    exports_clear(self);
    buffers_forget(self);
}

/* A new epoch: what was known of the last life does not hold. 0, or -1 with an exception. */
static int
begin_epoch(PeerObject *self)
{
    self->ending = (struct ending){0};
    self->cut_off = false;
    self->killed_after = 0;
    self->epoch++;
    self->sync = true;
    self->late_output = false;
    self->cache_generation++;
    if (getrandom(self->nonce, sizeof self->nonce, 0) != (ssize_t)sizeof self->nonce) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

/* The first strands of a life whose process is there. 0, or -1 with an exception. */
static int
open_first_strands(PeerObject *self)
{
    self->state = PEER_RUNNING;
    atomic_store(&process_shared(self->process)->hold, self->hold);
    atomic_store(&process_shared(self->process)->cell, self->cell);
    self->page = NULL;
    struct strand *service = strand_open(self, STRAND_SERVICE, false);
    struct strand *main = service == NULL ? NULL : strand_open(self, STRAND_MAIN, false);
    if (main == NULL) {
        return -1;
    }
    main->thread = self->main_thread;
    self->active++;
    int rc = peer_wait_hello(self, main);
    self->active--;
    return rc;
}

/* Who starts a life has this thread's leave to use it before the others. */
static int
begin_start(PeerObject *self)
{
    if (self->state == PEER_CLOSED || self->state == PEER_FORKED) {
        PyErr_SetString(PyExc_RuntimeError, "this context cannot be started");
        return -1;
    }
    if (self->state == PEER_RUNNING) {
        self->state = PEER_DEAD; /* nobody begins a request in it any more */
        peer_ending(self, END_RESTARTED);
    }
    self->starter = PyThread_get_thread_ident();
    return 0;
}

static void
start_failed(PeerObject *self)
{
    if (self->state == PEER_RUNNING) {
        self->state = PEER_DEAD;
    }
    self->starter = 0;
}

PyObject *
peer_start(PeerObject *self, PyObject *args)
{
    PyObject *argv_list, *env_list, *cwd = NULL;
    int keep_core = 0, rc = -1, saved = 0;
    if (!PyArg_ParseTuple(args, "OOO&|p", &argv_list, &env_list, PyUnicode_FSConverter, &cwd,
                          &keep_core)) {
        return NULL;
    }
    char **argv = string_vector(argv_list);
    char **env = argv == NULL ? NULL : string_vector(env_list);
    if (env == NULL) {
        PyErr_Occurred() ? (void)0 : (void)PyErr_NoMemory();
        goto done;
    }
    if (begin_start(self) < 0) {
        goto done;
    }
    end_life(self);
    if (mirrors_forget_handles(self) < 0 || begin_epoch(self) < 0) {
        goto failed;
    }
    fd_fill();
    Py_BEGIN_ALLOW_THREADS
    rc = process_start(self->process, argv, env, PyBytes_AS_STRING(cwd), keep_core);
    saved = errno;
    Py_END_ALLOW_THREADS
    fd_unfill();
    if (rc < 0) {
        errno = saved;
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, argv[0]);
    }
    else {
        rc = open_first_strands(self);
    }
failed:
    if (rc < 0) {
        start_failed(self);
    }
done:
    free_vector(argv);
    free_vector(env);
    Py_XDECREF(cwd);
    return rc < 0 ? NULL : Py_NewRef(Py_None);
}

/* set_limits(memory, cpu, nice): of the lives that start() begins from now on. */
PyObject *
peer_set_limits(PeerObject *self, PyObject *args)
{
    unsigned long long memory;
    unsigned int cpu;
    int nice;
    if (self->process == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "only a session sets limits");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "KIi", &memory, &cpu, &nice)) {
        return NULL;
    }
    process_set_limits(self->process,
                       &(struct process_limits){.memory = memory, .cpu = cpu, .nice = nice});
    Py_RETURN_NONE;
}

/* cpu_used(): seconds of processor time that the dead child itself had; waits for a moment until it
 * is reaped. -1.0: not known. */
PyObject *
peer_cpu_used(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    struct process_exit exit = {0};
    Py_BEGIN_ALLOW_THREADS
    for (int i = 0; self->process != NULL && i < REAP_LIMIT_MS && !exit.reaped; i++) {
        process_update(self->process);
        exit = process_exit_info(self->process);
        if (!exit.reaped) {
            usleep(1000);
        }
    }
    Py_END_ALLOW_THREADS
    return PyFloat_FromDouble(exit.reaped ? exit.cpu : -1.0);
}

PyObject *
peer_get_hold(PeerObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->hold);
}

int
peer_set_hold(PeerObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    int on = value == NULL ? -1 : PyObject_IsTrue(value);
    struct shared_page *page = self->process == NULL ? NULL : process_shared(self->process);
    if (on < 0) {
        return -1;
    }
    self->hold = on > 0;
    if (page != NULL && self->state == PEER_RUNNING) {
        atomic_store(&page->hold, self->hold);
    }
    return 0;
}

/* The process id of the crashed child that is kept, None when there is none. */
PyObject *
peer_held(PeerObject *self, void *Py_UNUSED(closure))
{
    pid_t pid = self->process == NULL ? 0 : process_held(self->process);
    return pid == 0 ? Py_NewRef(Py_None) : PyLong_FromLong(pid);
}

PyObject *
peer_release(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    if (self->process != NULL) {
        process_release(self->process);
    }
    Py_RETURN_NONE;
}

PyObject *
peer_drop_spare(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    if (self->spare >= 0) {
        close(self->spare);
        self->spare = -1;
    }
    Py_RETURN_NONE;
}

/* start_spare(argv, environ, cwd): an interpreter for take_spare(), instead of any other. */
PyObject *
peer_start_spare(PeerObject *self, PyObject *args)
{
    PyObject *argv_list, *env_list, *cwd = NULL;
    int line = -1, saved = 0;
    if (self->process == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "only a session has a spare");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "OOO&", &argv_list, &env_list, PyUnicode_FSConverter, &cwd)) {
        return NULL;
    }
    char **argv = string_vector(argv_list);
    char **env = argv == NULL ? NULL : string_vector(env_list);
    if (env == NULL) {
        PyErr_Occurred() ? (void)0 : (void)PyErr_NoMemory();
    }
    else {
        Py_DECREF(peer_drop_spare(self, NULL));
        fd_fill();
        line = process_spare(self->process, argv, env, PyBytes_AS_STRING(cwd));
        saved = errno;
        fd_unfill();
        if (line < 0) {
            errno = saved;
            PyErr_SetFromErrno(PyExc_OSError);
        }
        self->spare = line;
    }
    free_vector(argv);
    free_vector(env);
    Py_DECREF(cwd);
    return line < 0 ? NULL : Py_NewRef(Py_None);
}

/* The process at the other end of `line` (taken) is the child of the life that has begun. True, or
 * False where it is not there any more; NULL with an exception: it has died on its way. */
static PyObject *
adopt(PeerObject *self, int line)
{
    int rc;
    fd_fill();
    Py_BEGIN_ALLOW_THREADS
    rc = process_adopt(self->process, line);
    Py_END_ALLOW_THREADS
    fd_unfill();
    if (rc < 0) {
        start_failed(self);
        Py_RETURN_FALSE;
    }
    if (open_first_strands(self) < 0) {
        start_failed(self);
        return NULL;
    }
    Py_RETURN_TRUE;
}

/* take_spare(): the spare is the child of the next life, which begins as start() would begin it.
 * False where there is none, or it has died. */
PyObject *
peer_take_spare(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    int line = self->spare;
    if (line < 0) {
        Py_RETURN_FALSE;
    }
    if (begin_start(self) < 0) {
        return NULL;
    }
    self->spare = -1;
    leave_life(self);
    rollback_drop(self);
    exports_clear(self);
    buffers_forget(self);
    if (mirrors_forget_handles(self) < 0 || begin_epoch(self) < 0) {
        close(line);
        start_failed(self);
        return NULL;
    }
    return adopt(self, line);
}

/* stand_by(): child: this interpreter is a spare, and waits until there is a life for it. */
PyObject *
peer_stand_by(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    struct frozen spare = {.line = fd_raise(CHILD_FD_PASS), .supervisor = getppid()};
    int fds[FREEZE_FDS];
    if (spare.line < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_BEGIN_ALLOW_THREADS
    freeze_await(&spare, fds);
    Py_END_ALLOW_THREADS
    take_life_fds(self, fds);
    Py_RETURN_NONE;
}

/* take_over(): the frozen copy is the child of the next life. True; False where there is none, or
 * none any more: then nothing has changed, or the life has ended, and start() begins another. */
PyObject *
peer_take_over(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    if (self->rollback.line < 0) {
        Py_RETURN_FALSE;
    }
    if (begin_start(self) < 0) {
        return NULL;
    }
    int line = self->rollback.line;
    leave_life(self);
    if (begin_epoch(self) < 0) {
        start_failed(self);
        return NULL;
    }
    iteration_effect(self);
    self->rollback.line = -1; /* `theirs` and `mine` hold until settle() */
    return adopt(self, line);
}

PyObject *
peer_close(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    if (self->state == PEER_CLOSED || self->state == PEER_FORKED) {
        Py_RETURN_NONE;
    }
    PyObject *parked = NULL;
    if (self->state == PEER_RUNNING && self->active == 0) {
        /* A child that is idle may flush its files and run its atexit functions. Other threads that
         * still ask it something are told that it was closed. */
        peer_ending(self, END_CLOSED);
        struct strand *main = strand_by_id(self, STRAND_MAIN);
        if (main != NULL && peer_send_event(self, main, OP_CLOSE_STRAND, NULL, 0) < 0) {
            PyErr_Clear();
        }
        Py_BEGIN_ALLOW_THREADS
        process_wait_exit(self->process, 500);
        process_kill(self->process, 9);
        Py_END_ALLOW_THREADS
        drain_last(self, &parked);
        if (self->state == PEER_CLOSED || self->state == PEER_FORKED) {
            goto done; /* a stream has done it */
        }
    }
    if (self->state == PEER_RUNNING) {
        peer_ending(self, END_CLOSED);
    }
    self->state = PEER_CLOSED;
    end_life(self);
    Py_DECREF(peer_drop_spare(self, NULL));
    void *zmq = self->zmq;
    int wake_fd = self->wake_fd;
    self->zmq = NULL;
    self->wake_fd = -1;
    Py_BEGIN_ALLOW_THREADS
    process_stop(self->process); /* the record stays, for whoever still asks it something */
    if (zmq != NULL) {
        zmq_ctx_term(zmq); /* no socket is open any more: returns at once */
    }
    close(wake_fd);
    Py_END_ALLOW_THREADS
    blobs_collect();
    PyDict_Clear(self->modules);
done:
    /* What a stream has raised: as to errors of its own, the context is closed all the same. */
    if (parked != NULL && !PyErr_GivenExceptionMatches(parked, PyExc_Exception)) {
        compat_raise(parked);
        return NULL;
    }
    Py_XDECREF(parked);
    Py_RETURN_NONE;
}

/* A start that failed after the child ran: it ends, and nobody uses it. */
PyObject *
peer_give_up(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    if (self->state == PEER_RUNNING) {
        self->state = PEER_DEAD;
        peer_ending(self, END_RESTARTED);
    }
    if (self->state == PEER_DEAD) {
        end_life(self);
    }
    self->starter = 0;
    Py_RETURN_NONE;
}

/* The life is set up: all threads may use the child. */
PyObject *
peer_started(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    self->starter = 0;
    Py_RETURN_NONE;
}

PyObject *
peer_forget(PeerObject *self, PyObject *Py_UNUSED(ignored))
{
    /* In a fork of the kernel. libzmq's threads are not here: its objects are left alone. */
    if (self->state != PEER_CLOSED && self->state != PEER_FORKED) {
        self->state = PEER_FORKED;
        strands_forget_all(self);
        process_forget(self->process);
        if (self->rollback.line >= 0) {
            close(self->rollback.line);
            self->rollback.line = -1;
        }
        Py_DECREF(peer_drop_spare(self, NULL));
        self->nreleases = 0;
        self->polling = self->draining = 0; /* the other threads are not here */
    }
    Py_RETURN_NONE;
}

PyObject *
peer_kill(PeerObject *self, PyObject *signal)
{
    int number = (int)PyLong_AsLong(signal);
    if (number == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (self->process != NULL) {
        process_kill(self->process, number);
    }
    Py_RETURN_NONE;
}
