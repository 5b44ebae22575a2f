/* channel.c: frames sent and received: which way each goes, by the lane or over libzmq, and their
 * order. */
#include "channel_parts.h"

#include "zmq_late.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* More frames are never under way: requests are nested. */
#define OWED_MOST (1u << 20)

bool
channel_has_lane(const channel *c)
{
    return c->lane != NULL && lane_joined(c->lane);
}

/* A fork of the process has no part in the lane, nor libzmq's threads. */
static bool
is_forked(const channel *c)
{
    if (c->lane == NULL || !lane_forked(c->lane)) {
        return false;
    }
    errno = EPERM;
    return true;
}

/* ---- sending -------------------------------------------------------------------------------- */

static void
free_owned(void *data, void *hint)
{
    (void)hint;
    free(data);
}

static bool
send_by_lane(channel *c, const void *data, size_t size)
{
    if (!channel_has_lane(c)) {
        return false;
    }
    if (size > LANE_FRAME_MAX) {
        return channel_send_extent(c, data, size, NULL, 0);
    }
    if (c->out != NULL) {
        channel_reclaim(c);
    }
    c->hot = true;
    return lane_send(c->lane, LANE_IS_FRAME, data, size);
}

void
channel_prepare(channel *c)
{
    if (c->hot) {
        lane_prepare(c->lane);
    }
}

/* A frame went over libzmq: tells the reader of the lane, so that it is read in its turn. */
static void
sent_elsewhere(channel *c)
{
    c->sent++;
    if (c->lane != NULL) {
        lane_elsewhere(c->lane, c->sent);
    }
}

void
channel_set_quiet(channel *c, bool quiet)
{
    if (c->lane != NULL) {
        lane_set_quiet(c->lane, quiet);
    }
}

size_t
channel_unread(channel *c)
{
    return channel_has_lane(c) ? lane_unread(c->lane) : 0;
}

int
channel_send(channel *c, const void *data, size_t size)
{
    if (is_forked(c)) {
        return -1;
    }
    return send_by_lane(c, data, size) ? 0 : channel_send_openly(c, data, size);
}

int
channel_send_openly(channel *c, const void *data, size_t size)
{
    int rc;
    if (is_forked(c) || channel_need_socket(c) < 0) {
        return -1;
    }
    c->drained = false; /* sending may take in the news of a frame */
    do {
        rc = zmq_send(c->socket, data, size, c->send_flags);
    } while (rc < 0 && errno == EINTR);
    if (rc < 0) {
        return -1;
    }
    sent_elsewhere(c);
    return 0;
}

int
channel_send_owned(channel *c, void *data, size_t size)
{
    zmq_msg_t msg;
    if (is_forked(c)) {
        free(data);
        return -1;
    }
    if (send_by_lane(c, data, size)) {
        free(data);
        return 0;
    }
    if (channel_need_socket(c) < 0 || zmq_msg_init_data(&msg, data, size, free_owned, NULL) < 0) {
        free(data);
        return -1;
    }
    int rc;
    c->drained = false;
    do {
        rc = zmq_msg_send(&msg, c->socket, c->send_flags);
    } while (rc < 0 && errno == EINTR);
    if (rc < 0) {
        int saved = errno;
        zmq_msg_close(&msg);
        errno = saved;
        return -1;
    }
    sent_elsewhere(c);
    return 0;
}

struct ending {
    void (*done)(void *owner);
    void *owner;
};

static void
end_blob(void *data, void *hint)
{
    (void)data;
    struct ending *ending = hint;
    ending->done(ending->owner);
    free(ending);
}

static int
send_msg(channel *c, zmq_msg_t *msg, bool more)
{
    int rc;
    do {
        rc = zmq_msg_send(msg, c->socket, c->send_flags | (more ? ZMQ_SNDMORE : 0));
    } while (rc < 0 && errno == EINTR);
    if (rc < 0) {
        int saved = errno;
        zmq_msg_close(msg);
        errno = saved;
        return -1;
    }
    return 0;
}

int
channel_send_blobs(channel *c, void *data, size_t size, bool owned, const struct blob *blobs,
                   size_t nblobs, void (*done)(void *owner))
{
    zmq_msg_t msg;
    bool usable = !is_forked(c);
    if (usable && channel_has_lane(c) && channel_send_extent(c, data, size, blobs, nblobs)) {
        free(owned ? data : NULL);
        for (size_t i = 0; i < nblobs; i++) {
            done(blobs[i].owner);
        }
        return 0;
    }
    int rc = !usable || channel_need_socket(c) < 0 ? -1
             : owned ? zmq_msg_init_data(&msg, data, size, free_owned, NULL)
                     : zmq_msg_init_size(&msg, size);
    if (rc < 0) {
        free(owned ? data : NULL);
    }
    else if (!owned) {
        memcpy(zmq_msg_data(&msg), data, size);
    }
    if (rc == 0) {
        rc = send_msg(c, &msg, nblobs > 0);
    }
    int saved = errno;
    for (size_t i = 0; i < nblobs; i++) {
        struct ending *ending = rc == 0 ? malloc(sizeof *ending) : NULL;
        if (ending == NULL) {
            /* Nothing was queued yet, or the connection is broken: the rest is not missed. */
            saved = rc == 0 ? ENOMEM : saved;
            rc = -1;
            done(blobs[i].owner);
            continue;
        }
        *ending = (struct ending){done, blobs[i].owner};
        /* libzmq only reads it: the cast is its interface's. */
        zmq_msg_init_data(&msg, (void *)(uintptr_t)blobs[i].data, blobs[i].size, end_blob, ending);
        rc = send_msg(c, &msg, i + 1 < nblobs);
        saved = errno;
    }
    if (rc == 0) {
        sent_elsewhere(c);
    }
    errno = saved;
    return rc;
}

/* ---- receiving ------------------------------------------------------------------------------ */

static int
recv_one(channel *c, struct frame *f, bool *more)
{
    zmq_msg_t *msg = malloc(sizeof *msg);
    if (msg == NULL) {
        return -1;
    }
    zmq_msg_init(msg);
    int rc;
    do {
        rc = zmq_msg_recv(msg, c->socket, ZMQ_DONTWAIT);
    } while (rc < 0 && errno == EINTR);
    if (rc < 0) {
        int saved = errno;
        zmq_msg_close(msg);
        free(msg);
        errno = saved;
        c->drained = saved == EAGAIN;
        return saved == EAGAIN ? 0 : -1;
    }
    c->drained = false;
    *f = (struct frame){.data = zmq_msg_data(msg), .size = zmq_msg_size(msg), .owner = msg};
    *more = zmq_msg_more(msg);
    return 1;
}

/* As channel_recv(), from the lane; *c says then whether libzmq is to be asked. */
static int
recv_by_lane(channel *c, struct frame *f)
{
    *f = (struct frame){0};
    if (c->shelf_in != NULL) {
        shelf_in_look(c->shelf_in);
    }
    if (c->shelf_out != NULL) {
        shelf_out_look(c->shelf_out);
    }
    while (c->lane != NULL && c->received >= c->owed) {
        void *room = c->tray->taken ? NULL : c->tray->bytes;
        enum lane_got got = lane_recv(c->lane, room, TRAY_SIZE, &f->data, &f->size);
        if ((got == LANE_FRAME || got == LANE_EXTENT) && f->data == room) {
            f->tray = c->tray;
            f->tray->taken = true;
        }
        switch (got) {
        case LANE_NONE:
            return 0;
        case LANE_FRAME:
            c->hot = c->lane_in = f->by_lane = true;
            return 1;
        case LANE_EXTENT: {
            struct frame record = *f;
            c->hot = c->lane_in = true;
            *f = (struct frame){.by_lane = true};
            int rc = channel_open_extent(c, record.data, record.size, f);
            frame_free(&record);
            return rc;
        }
        case LANE_ELSEWHERE:
            /* What it announces may have been read already by an end that does not go by the lane
             * yet. */
            if (f->size < c->received || (f->size == c->received && c->lane_in) ||
                (f->size - c->received > OWED_MOST && f->size != LANE_FOR_GOOD)) {
                errno = EPROTO;
                return -1;
            }
            c->lane_in = true;
            c->owed = f->size;
            break;
        case LANE_NO_MEMORY:
            errno = ENOMEM;
            return -1;
        default:
            errno = EPROTO;
            return -1;
        }
    }
    return 0;
}

int
channel_recv(channel *c, struct frame *f)
{
    bool more;
    if (is_forked(c)) {
        return -1;
    }
    int rc = recv_by_lane(c, f);
    if (rc != 0 || !await_zmq(c)) {
        return rc;
    }
    if (channel_need_socket(c) < 0) {
        return -1;
    }
    rc = recv_one(c, f, &more);
    /* A message arrives whole: its further parts are there. */
    while (rc == 1 && more) {
        struct frame *part = frame_new_part(f);
        rc = part == NULL ? -1 : recv_one(c, part, &more);
        if (rc != 1) {
            frame_free(f);
            return -1;
        }
    }
    if (rc == 1) {
        c->received++;
    }
    return rc;
}

bool
channel_last(channel *c, int timeout_ms)
{
    if (c->lane != NULL && c->received >= c->owed && lane_ready(c->lane)) {
        return true;
    }
    if (!await_zmq(c)) {
        return false; /* what it had written to the lane was there at once */
    }
    /* A PAIR socket can no longer send once it has seen that the other end hung up, and it sees
     * that after all that came before. There is no event for it to wait for. */
    for (int waited = 0;; waited++) {
        int events = 0;
        size_t size = sizeof events;
        if (zmq_getsockopt(c->socket, ZMQ_EVENTS, &events, &size) < 0 || waited >= timeout_ms) {
            return false;
        }
        if (events & ZMQ_POLLIN) {
            return true;
        }
        if (!(events & ZMQ_POLLOUT)) {
            return false;
        }
        zmq_pollitem_t item = {.socket = c->socket, .events = ZMQ_POLLIN};
        zmq_poll(&item, 1, 1);
    }
}
