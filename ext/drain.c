/* drain.c: what the child has printed, to the session. */
#include "exchange.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* How long a stream of the session may take for what another thread has read. */
#define DRAIN_MS 500
#define DRAIN_MOST 65536 /* bytes at once: what a pipe holds */

/* The peers whose output this thread passes on, one inside the other. */
struct draining {
    PeerObject *peer; /* borrowed */
    struct draining *outer;
};
static _Thread_local struct draining *draining;

/* No more than what is there now: a child may print faster than the session can. */
static void
drain(PeerObject *peer, PyObject **parked)
{
    for (int i = 0; i < 2; i++) {
        int there = 0;
        bool first = true;
        while (first || there > 0) {
            if (peer->state == PEER_FORKED) {
                return; /* by what a writer did */
            }
            int fd = i == 0 ? process_out(peer->process) : process_err(peer->process);
            if (fd < 0) {
                break;
            }
            if (first && ioctl(fd, FIONREAD, &there) < 0) {
                there = 0;
            }
            first = false; /* with nothing there, it may be the end */
            /* Not on the stack: a stream may ask the child, whose output comes here, and so on. */
            PyObject *data = PyBytes_FromStringAndSize(NULL, there <= 0           ? 1
                                                             : there < DRAIN_MOST ? there
                                                                                  : DRAIN_MOST);
            if (data == NULL) {
                PyErr_Clear();
                break;
            }
            ssize_t n;
            do {
                n = read(fd, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data));
            } while (n < 0 && errno == EINTR);
            if (n == 0) {
                process_close_output(peer->process, fd);
            }
            if (n <= 0) {
                Py_DECREF(data);
                break;
            }
            there -= (int)n;
            PyObject *none = _PyBytes_Resize(&data, n) < 0
                                 ? NULL
                                 : PyObject_CallMethod(peer->host, "on_output", "iO", i, data);
            Py_XDECREF(data);
            if (none == NULL && peer->starter != 0 && PyErr_ExceptionMatches(PyExc_Exception)) {
                /* A stream that uses the child is refused while that is set up, which goes on. */
                PyErr_WriteUnraisable(peer->host);
            }
            else if (none == NULL) {
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

void
drain_output(PeerObject *peer, PyObject **parked)
{
    struct draining this = {peer, draining};
    draining = &this;
    peer->draining++;
    drain(peer, parked);
    peer->draining--;
    draining = this.outer;
}

void
drain_last(PeerObject *peer, PyObject **parked)
{
    for (struct draining *d = draining; d != NULL; d = d->outer) {
        if (d->peer == peer) {
            return; /* it is a stream of the session that closes it, in the middle of that */
        }
    }
    /* Time, not turns: on a busy machine one takes longer than it sleeps. */
    const double end = now() + DRAIN_MS * 1e-3;
    while (peer->draining > 0 && now() < end) {
        Py_BEGIN_ALLOW_THREADS
        usleep(1000);
        Py_END_ALLOW_THREADS
    }
    drain_output(peer, parked);
}
