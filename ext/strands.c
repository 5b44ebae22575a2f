#include "strands.h"

#include "codec.h"
#include "fdfloor.h"
#include "fdpass.h"
#include "lane.h"
#include "peer.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static struct strand *
strand_add(PeerObject *peer, uint32_t id, channel *c)
{
    if (peer->nstrands == peer->capstrands) {
        size_t capacity = peer->capstrands ? peer->capstrands * 2 : 8;
        struct strand **more = realloc(peer->strands, capacity * sizeof *more);
        if (more == NULL) {
            PyErr_NoMemory();
            return NULL;
        }
        peer->strands = more;
        peer->capstrands = capacity;
    }
    struct strand *s = calloc(1, sizeof *s);
    if (s == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    s->peer = peer;
    s->id = id;
    s->epoch = peer->epoch;
    s->channel = c;
    peer->strands[peer->nstrands++] = s;
    return s;
}

struct strand *
strand_by_id(PeerObject *peer, uint32_t id)
{
    for (size_t i = 0; i < peer->nstrands; i++) {
        if (peer->strands[i]->id == id && !peer->strands[i]->closed) {
            return peer->strands[i];
        }
    }
    return NULL;
}

void
strand_close(struct strand *s)
{
    if (!s->closed) {
        channel *c = s->channel;
        s->closed = true;
        s->channel = NULL;
        channel_close(c);
        pairs_truncate(s, 0);
    }
}

void
strands_sweep(PeerObject *peer)
{
    size_t kept = 0;
    for (size_t i = 0; i < peer->nstrands; i++) {
        struct strand *s = peer->strands[i];
        if (s->closed && s->depth == 0 && s->serving == 0 && s->pins == 0 && !s->owned) {
            table_free(&s->pair_by_address);
            table_free(&s->pair_by_id);
            table_free(&s->described);
            free(s->pairs);
            free(s);
        }
        else {
            peer->strands[kept++] = s;
        }
    }
    peer->nstrands = kept;
}

void
strands_close_all(PeerObject *peer)
{
    for (size_t i = 0; i < peer->nstrands;) {
        struct strand *s = peer->strands[i++];
        if (!s->closed) {
            s->ending = peer->ending;
            strand_close(s); /* may run arbitrary code, which may change the list */
            i = 0;
        }
    }
    strands_sweep(peer);
}

void
strands_forget_all(PeerObject *peer)
{
    for (size_t i = 0; i < peer->nstrands; i++) {
        channel_forget(peer->strands[i]->channel);
        peer->strands[i]->channel = NULL;
        peer->strands[i]->closed = true;
    }
}

static struct strand *
make_strand(PeerObject *peer, uint32_t id, bool callback)
{
    struct strand_offer offer = {
        .magic = STRAND_MAGIC,
        .epoch = peer->epoch,
        .id = id,
        .callback = callback,
        .first_handle = ((uint64_t)peer->epoch << 40) + 1,
    };
    memcpy(offer.nonce, peer->nonce, sizeof offer.nonce);
    int fds[1 + LANE_FDS] = {channel_listen(offer.endpoint), -1, -1};
    /* Where no memory can be shared, all goes over libzmq. */
    lane *l = fds[0] >= 0 && peer->wants_lane ? lane_make(fds + 1) : NULL;
    int nfds = l == NULL ? 1 : 1 + LANE_FDS, rc = -1, saved = errno;
    /* Before the child has the socket, and could accept what this waits for. */
    channel *c = fds[0] < 0 ? NULL : channel_connect(&peer->zmq, offer.endpoint, fds[0], l);
    if (c != NULL) {
        offer.lane = l == NULL ? 0 : LANE_VERSION;
        rc = fdpass_send(process_fdpass(peer->process), &offer, sizeof offer, fds, nfds, 0);
    }
    saved = errno;
    for (int i = 0; i < nfds && fds[0] >= 0; i++) {
        close(fds[i]);
    }
    /* Where the child is gone, the wait will say how; a dead connection finds that out. */
    if (rc < 0 && (c == NULL || (saved != EPIPE && saved != ECONNRESET))) {
        if (c != NULL) {
            channel_close(c);
        }
        else {
            lane_free(l);
        }
        errno = saved;
        PyErr_SetFromErrno(PyExc_OSError);
        return NULL;
    }
    struct strand *s = strand_add(peer, id, c);
    if (s == NULL) {
        channel_close(c);
        return NULL;
    }
    s->callback = callback;
    return s;
}

struct strand *
strand_open(PeerObject *peer, uint32_t id, bool callback)
{
    fd_fill();
    struct strand *s = make_strand(peer, id, callback);
    fd_unfill();
    return s;
}

/* The child's end of a strand that is offered with these descriptors, which are taken. NULL with an
 * exception. */
static struct strand *
accept_strand(PeerObject *peer, struct strand_offer *offer, size_t n, const int *fds, int nfds)
{
    if (n != sizeof *offer || offer->magic != STRAND_MAGIC ||
        nfds != (offer->lane == 0 ? 1 : 1 + LANE_FDS)) {
        for (int i = 0; i < nfds; i++) {
            close(fds[i]);
        }
        garbled("offer of a strand");
        return NULL;
    }
    /* Where it cannot be mapped (memory limits), or is of another version, there is none. */
    lane *l = offer->lane == 0 ? NULL : lane_join(fds + 1);
    if (peer->epoch == 0) {
        peer->epoch = offer->epoch;
        peer->next_handle = offer->first_handle;
        memcpy(peer->nonce, offer->nonce, sizeof peer->nonce);
    }
    offer->endpoint[sizeof offer->endpoint - 1] = '\0';
    channel *c = channel_accept(&peer->zmq, offer->endpoint, fds[0], l);
    if (c == NULL) {
        PyErr_SetFromErrno(PyExc_OSError);
        lane_free(l);
        return NULL;
    }
    struct strand *s = strand_add(peer, offer->id, c);
    if (s == NULL) {
        channel_close(c);
        return NULL;
    }
    s->callback = offer->callback;
    return s;
}

struct strand *
strand_take(PeerObject *peer, bool block, bool *gone)
{
    struct strand_offer offer;
    int fds[1 + LANE_FDS], nfds = 1 + LANE_FDS;
    ssize_t n;
    *gone = false;
    int saved;
    Py_BEGIN_ALLOW_THREADS
    if (block) {
        struct pollfd wait = {.fd = peer->fdpass, .events = POLLIN};
        poll(&wait, 1, -1);
    }
    fd_fill();
    n = fdpass_recv(peer->fdpass, &offer, sizeof offer, fds, &nfds, MSG_DONTWAIT);
    saved = errno;
    Py_END_ALLOW_THREADS
    struct strand *s = n > 0 ? accept_strand(peer, &offer, (size_t)n, fds, nfds) : NULL;
    fd_unfill();
    errno = saved;
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        return NULL;
    }
    if (n <= 0) {
        *gone = true;
        return NULL;
    }
    return s;
}

/* ---- which strand is the calling thread's ------------------------------------------------- */

/* A kernel thread's end closes its strand: its thread state's dict drops this capsule. */
static void
thread_ended(PyObject *capsule)
{
    struct strand *s = PyCapsule_GetPointer(capsule, NULL);
    PeerObject *peer = PyCapsule_GetContext(capsule);
    s->owned = false;
    if (!s->closed && peer->state == PEER_RUNNING && s->epoch == peer->epoch) {
        struct writer w;
        struct frame_header h = {
            .op = OP_CLOSE_STRAND, .flags = FRAME_EVENT, .epoch = peer->epoch, .strand = s->id};
        writer_init(&w);
        write_header(&w, &h);
        channel_send(s->channel, w.data, w.size);
        writer_free(&w);
        channel_finish(s->channel);
        s->channel = NULL;
        s->closed = true;
    }
    s->thread = 0;
    strands_sweep(peer);
    Py_DECREF(peer);
}

static RARE struct strand *
kernel_strand(PeerObject *peer)
{
    if (peer->state == PEER_FORKED) {
        return NULL;
    }
    struct strand *s = strand_open(peer, peer->next_strand++, false);
    if (s == NULL) {
        return NULL;
    }
    s->thread = PyThread_get_thread_ident();
    PyObject *dict = PyThreadState_GetDict();
    PyObject *key = PyUnicode_FromFormat("ipython_isolation.strand.%p", peer);
    PyObject *capsule = PyCapsule_New(s, NULL, thread_ended);
    if (capsule != NULL) {
        PyCapsule_SetContext(capsule, Py_NewRef(peer));
        s->owned = true;
    }
    if (dict == NULL || key == NULL || capsule == NULL || PyDict_SetItem(dict, key, capsule) < 0) {
        Py_XDECREF(key);
        Py_XDECREF(capsule);
        return NULL;
    }
    Py_DECREF(key);
    Py_DECREF(capsule);
    return s;
}

/* A thread that a library of the child made: lend it a strand that a kernel thread serves. */
static RARE struct strand *
borrowed_strand(PeerObject *peer)
{
    bool asked = false;
    for (;;) {
        for (size_t i = 0; i < peer->nstrands; i++) {
            struct strand *s = peer->strands[i];
            if (s->callback && !s->closed && s->thread == 0) {
                s->thread = PyThread_get_thread_ident();
                return s;
            }
        }
        if (!asked) {
            uint64_t one = 1;
            asked = true;
            peer->needed++;
            if (write(peer->wake_fd, &one, sizeof one) < 0) {
                PyErr_SetFromErrno(PyExc_OSError);
                return NULL;
            }
        }
        Py_BEGIN_ALLOW_THREADS
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += 20 * 1000 * 1000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_sec++;
            until.tv_nsec -= 1000000000;
        }
        pthread_mutex_lock(&peer->lock);
        pthread_cond_timedwait(&peer->arrived, &peer->lock, &until);
        pthread_mutex_unlock(&peer->lock);
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() < 0) {
            return NULL;
        }
    }
}

void
strand_give_back(struct strand *s)
{
    if (s->callback && !s->peer->is_kernel && s->depth == 0) {
        s->thread = 0;
    }
}

struct strand *
strand_known(PeerObject *peer)
{
    unsigned long thread = PyThread_get_thread_ident();
    for (size_t i = 0; i < peer->nstrands; i++) {
        struct strand *s = peer->strands[i];
        if (s->thread == thread && !s->closed && s->epoch == peer->epoch) {
            return s;
        }
    }
    return NULL;
}

struct strand *
strand_current(PeerObject *peer)
{
    struct strand *s = strand_known(peer);
    if (s != NULL) {
        return s;
    }
    return peer->is_kernel ? kernel_strand(peer) : borrowed_strand(peer);
}
