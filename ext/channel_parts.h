/* channel_parts.h: what the files that make up a channel share: channel.c and channel_*.c, and no
 * others. No Python. */
#ifndef ISOLATION_CHANNEL_PARTS_H
#define ISOLATION_CHANNEL_PARTS_H

#include "channel.h"

#include "extents.h"
#include "lane.h"
#include "shelf.h"

/* Where a channel puts a small frame, so that none needs memory of its own: most are through with
 * before the next one comes. A frame may outlive the channel. */
#define TRAY_SIZE 512
struct tray {
    bool taken; /* a frame is there */
    bool alone; /* the channel is no more: frees itself when the frame is freed */
    _Alignas(8) unsigned char bytes[TRAY_SIZE];
};

struct channel {
    void **zmq;    /* the context */
    void *socket;  /* NULL: not opened yet */
    int listen_fd; /* for the socket, once it is opened; else -1 */
    char endpoint[CHANNEL_ENDPOINT_SIZE];
    /* The accepting end waits for the other to connect; the connecting one never waits. */
    int send_flags;
    int signal_fd; /* libzmq's own: becomes readable when there is something new for this socket */
    bool drained;  /* libzmq had nothing when last asked, so signal_fd tells of the next frame */
    int timer_fd;  /* -1 until the first wait with a time limit */
    int64_t timer_at;  /* ms: when timer_fd becomes readable; 0: not armed */
    lane *lane;        /* or NULL */
    bool lane_in;      /* frames are read by the lane: libzmq is asked only when the lane says so */
    bool hung_up;      /* the other end of the lane has gone: its bell would not stop ringing */
    bool hot;          /* a frame took the lane since the last wait */
    bool spins;        /* there is more than one processor to run on */
    unsigned spin_us;  /* how long the next wait spins */
    unsigned slept;    /* waits since one was worth spinning for */
    bool accepts;      /* the child's end */
    bool together;     /* the other end was on this processor at the last wait */
    bool moves;        /* the end that goes to another processor when both are on one */
    unsigned stacked;  /* waits since it last did, in which both were on one */
    unsigned patience; /* so many of them are too many */
    unsigned spun;     /* waits since it last did that ended by spinning */
    int64_t left_at;   /* milliseconds, when the other end last went to sleep on another */
    uint64_t sent, received; /* over libzmq */
    uint64_t owed;           /* what `received` must become before the lane is read again */
    unsigned skipped;        /* descriptors that were passed for a record that was not sent */
    struct tray *tray;       /* NULL without a lane */
    struct extents_out *out; /* NULL before the first */
    struct extents_in *in;
    struct shelf_out *shelf_out; /* NULL before the first */
    struct shelf_in *shelf_in;
};

/* Whether the next frame may come over libzmq. */
static inline bool
await_zmq(const channel *c)
{
    return !c->lane_in || c->received < c->owed;
}

/* ---- channel_open.c ------------------------------------------------------------------------- */

/* Opens the socket unless it is: 0, or -1 and errno. */
int channel_need_socket(channel *c);

/* ---- channel_extents.c ---------------------------------------------------------------------- */

/* Sends a frame and its blobs as pieces in extents: the blobs, and before them the frame, unless it
 * fits into the ring. False: it does not go this way now, and nothing was sent. The caller keeps
 * all that it passes. */
bool channel_send_extent(channel *c, const void *data, size_t size, const struct blob *blobs,
                         size_t nblobs);
/* Takes what a record says is in extents: 1, or -1 and errno. The frame owns its views and blocks;
 * it must be empty before, and is after a failure. */
int channel_open_extent(channel *c, const unsigned char *record, size_t size, struct frame *f);
/* Takes back the extents that the reader has given back; c->out must be there. */
void channel_reclaim(channel *c);

/* ---- channel_frame.c ------------------------------------------------------------------------ */

/* The channel ends: its tray, or NULL. */
void tray_free(struct tray *t);
/* Room for one more part of f, empty and f's own: NULL without memory. */
struct frame *frame_new_part(struct frame *f);

/* ---- channel_wait.c ------------------------------------------------------------------------- */

/* What waits need, for a new channel: 0, or -1 and errno. */
int channel_set_up_wait(channel *c);
/* Monotonic microseconds. */
int64_t channel_now_us(void);

#endif
