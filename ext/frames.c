/* frames.c: what every frame starts with, written and read; sending one, and taking one in. */
#include "exchange.h"

#include "buffers.h"
#include "handles.h"
#include "strands.h"

#include <errno.h>
#include <stdlib.h>

#define BIG_FRAME 4096     /* bytes from which a frame's memory is handed over instead of copied */
#define MUCH (256u * 1024) /* bytes that are sent without the GIL */

void
frame_header_begin(struct message *m, unsigned op, uint64_t request)
{
    struct frame_header h = {.op = (uint8_t)op,
                             .epoch = m->peer->epoch,
                             .strand = m->strand->id,
                             .scope = m->strand->scope,
                             .request = request};
    m->op = (unsigned char)op;
    m->request = request;
    m->begun = true;
    if (!m->strand->closed) {
        channel_prepare(m->strand->channel);
    }
    m->strand->framing++;
    blobs_collect();
    write_header(&m->w, &h);
}

/* Header, releases and changes of pairs: what every frame starts with. */
int
frame_begin(struct message *m, unsigned op, unsigned flags, uint64_t request)
{
    PeerObject *peer = m->peer;
    bool changes = false;
    frame_header_begin(m, op, request);
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
    if (m->openly) {
        return channel_send_openly(m->strand->channel, m->w.data, m->w.size);
    }
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
        size += m->blobs[i].block == NULL ? m->blobs[i].size : 0; /* a block is only named */
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
int
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
        m->peer->cut_off = process_alive(m->peer->process);
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

void
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
int
frame_open(struct incoming *in)
{
    in->strand->framing++;
    int rc = open_frame(in);
    in->strand->framing--;
    return rc;
}

/* After channel_recv() has failed; always -1. A child that has garbled its shared memory cannot be
 * talked to any more: it ends. */
int
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
int
accept_frame(PeerObject *peer, struct strand *s, struct incoming *in)
{
    in->peer = peer;
    in->strand = s;
    in->seen = NULL;
    in->values = NULL;
    in->discarded = false;
    in->batch = NULL;
    in->unanswered = false;
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
void
discard(struct incoming *in)
{
    in->discarded = true;
    if (frame_open(in) == 0) {
        Py_XDECREF(decode(in));
    }
    PyErr_Clear();
    incoming_free(in);
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
