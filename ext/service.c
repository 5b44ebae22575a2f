/* service.c: the service threads, one of each side. */
#include "exchange.h"

#include "ahead.h"
#include "strands.h"

#include <unistd.h>

#define IDLE_MS 100 /* releases that no frame took along for so long are sent by themselves */

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
        quiet = quiet && peer->nreleases == 0 && !ahead_is_any(peer);
        peer->drowsy = quiet;
        peer->polling++;
        Py_BEGIN_ALLOW_THREADS
        channel_wait(s->channel, fds, 5, quiet ? -1 : IDLE_MS, &ready);
        Py_END_ALLOW_THREADS
        peer->polling--;
        quiet = peer->drowsy || (ready == 0 && peer->nreleases == 0 && !ahead_is_any(peer));
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
            if (ready == 0) {
                ahead_expire(peer);
            }
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
    ahead_drop(peer);
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
        quiet = quiet && peer->nreleases == 0 && !ahead_is_any(peer);
        peer->drowsy = quiet;
        Py_BEGIN_ALLOW_THREADS
        channel_wait(s->channel, fds, 2, quiet ? -1 : IDLE_MS, &ready);
        Py_END_ALLOW_THREADS
        quiet = peer->drowsy || (ready == 0 && peer->nreleases == 0 && !ahead_is_any(peer));
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
        if (ready == 0) {
            ahead_expire(peer);
        }
        if (ready == 0 && peer->nreleases > 0 &&
            peer_send_event(peer, s, OP_RELEASE, NULL, 0) < 0) {
            PyErr_Clear();
        }
    }
    return 0;
}
