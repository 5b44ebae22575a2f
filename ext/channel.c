#define _GNU_SOURCE 1
#include "channel.h"

#include "arena.h"
#include "extents.h"
#include "fdfloor.h"
#include "lane.h"
#include "zmq_late.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

/* The kernel connects right after it has offered the socket. */
#define ACCEPT_TIMEOUT_MS 10000
/* How long a socket that was closed may still send what is queued. */
#define FINISH_TIMEOUT_MS 1000

#define SPIN_LOOKS 32 /* between two looks at the clock */
/* How long channel_wait() may spin. Putting a processor to sleep and waking it again costs 50 to
 * 250 us on a virtual machine: spinning for as long as that costs at most as much again, and an end
 * that spins so long is still awake when the other, which slept, answers. */
#define SPIN_US 250
#define SPIN_LEAST_US 4
/* A wait that was over by then would better have spun: what it slept includes the waking up. */
#define SPIN_WORTH_US (2 * SPIN_US)
/* Where two ends wake each other up all the time, neither sees that spinning would do: try again
 * after so many waits. */
#define SPIN_RETRY 32
/* After so many waits with both ends on one processor, one of them moves. To move costs about what
 * that many round trips through the scheduler do. */
#define STACKED_FEW 8
/* Where that did not last for so many round trips (the other processors are busy too), twice as
 * many waits go by before the next time; but never more than that. */
#define MOVED_WORTH 32
#define STACKED_MOST 128

/* More frames are never under way: requests are nested. */
#define OWED_MOST (1u << 20)

struct channel {
    void **zmq;    /* the context */
    void *socket;  /* NULL: not opened yet */
    int listen_fd; /* for the socket, once it is opened; else -1 */
    bool filled;   /* descriptors that libzmq opens are kept away from low numbers, see fdfloor.h */
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
    uint64_t sent, received; /* over libzmq */
    uint64_t owed;           /* what `received` must become before the lane is read again */
    unsigned skipped;        /* descriptors that were passed for a record that was not sent */
    struct extents_out *out; /* NULL before the first */
    struct extents_in *in;
};

/* A record of the lane that says what is in extents: where each piece is, the frame first. */
struct extent_record {
    uint32_t skipped; /* descriptors that have been passed for nothing */
    uint32_t npieces;
    uint32_t frame; /* bytes of the frame that follow the places; 0: it is the first piece */
    uint32_t unused;
    struct place {
        uint32_t slot;
        uint32_t flags;
        uint64_t at, size;
    } places[];
};
enum {
    EXTENT_FRESH = 1, /* its descriptor has been passed */
    EXTENT_BLOCK = 2, /* not in an extent, but in a block whose descriptor has been passed */
};

static void
free_owned(void *data, void *hint)
{
    (void)hint;
    free(data);
}

int
channel_listen(char endpoint[CHANNEL_ENDPOINT_SIZE])
{
    unsigned char secret[16];
    char hex[2 * sizeof secret + 1];
    if (getrandom(secret, sizeof secret, 0) != (ssize_t)sizeof secret) {
        return -1;
    }
    for (size_t i = 0; i < sizeof secret; i++) {
        snprintf(hex + 2 * i, 3, "%02x", secret[i]);
    }
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return -1;
    }
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char name[64];
    int n = snprintf(name, sizeof name, "ipython_isolation-%s", hex);
    memcpy(address.sun_path + 1, name, (size_t)n);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
    if (bind(fd, (struct sockaddr *)&address, size) < 0 || listen(fd, 1) < 0) {
        int saved = errno;
        close(fd);
        errno = saved;
        return -1;
    }
    snprintf(endpoint, CHANNEL_ENDPOINT_SIZE, "ipc://@%s", name);
    return fd;
}

static bool
several_processors(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) < 0 || CPU_COUNT(&set) > 1;
}

static channel *
channel_new(void **zmq, const char *endpoint, lane *l)
{
    channel *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return NULL;
    }
    c->zmq = zmq;
    c->listen_fd = c->signal_fd = -1;
    snprintf(c->endpoint, sizeof c->endpoint, "%s", endpoint);
    c->timer_fd = fd_raise(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
    if (c->timer_fd < 0) {
        int saved = errno;
        channel_close(c);
        errno = saved;
        return NULL;
    }
    c->lane = l;
    c->spins = l != NULL && several_processors();
    c->spin_us = SPIN_US;
    c->patience = STACKED_FEW;
    return c;
}

/* Threads of this class do not interrupt the one that wakes them: libzmq's let the thread that has
 * just sent something go on until it waits, which saves a switch of threads each way where they
 * share a processor. It aborts where a sandbox does not allow that, so this tries it first. */
static bool
may_be_batch(void)
{
    const struct sched_param none = {0};
    return sched_getscheduler(0) == SCHED_OTHER && sched_setscheduler(0, SCHED_BATCH, &none) == 0 &&
           sched_setscheduler(0, SCHED_OTHER, &none) == 0;
}

/* The context, which several threads may be the first to need: 0, or -1 and errno. */
static int
need_context(void **zmq)
{
    void *none = NULL, *made;
    if (zmq_late_load() < 0) {
        return -1;
    }
    if (__atomic_load_n(zmq, __ATOMIC_ACQUIRE) != NULL) {
        return 0;
    }
    made = zmq_ctx_new();
    if (made == NULL) {
        return -1;
    }
    zmq_ctx_set(made, ZMQ_BLOCKY, 0); /* frames that nobody will read hold up nobody */
    if (may_be_batch()) {
        zmq_ctx_set(made, ZMQ_THREAD_SCHED_POLICY, SCHED_BATCH);
    }
    if (!__atomic_compare_exchange_n(zmq, &none, made, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        zmq_ctx_term(made);
    }
    return 0;
}

/* The socket, not yet connected. */
static int
open_socket(channel *c)
{
    int zero = 0, never = -1;
    size_t size = sizeof c->signal_fd;
    if (need_context(c->zmq) < 0) {
        return -1;
    }
    c->socket = zmq_socket(*c->zmq, ZMQ_PAIR);
    if (c->socket == NULL || zmq_getsockopt(c->socket, ZMQ_FD, &c->signal_fd, &size) < 0) {
        return -1;
    }
    /* No lingering (a dead child must not hold up close), no limit on queued frames (a request is
     * never dropped; strict nesting bounds them), no reconnecting (a new life is a new socket), and
     * no limit to when the other end opens its own. */
    zmq_setsockopt(c->socket, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(c->socket, ZMQ_SNDHWM, &zero, sizeof zero);
    zmq_setsockopt(c->socket, ZMQ_RCVHWM, &zero, sizeof zero);
    zmq_setsockopt(c->socket, ZMQ_RECONNECT_IVL, &never, sizeof never);
    zmq_setsockopt(c->socket, ZMQ_HANDSHAKE_IVL, &zero, sizeof zero);
    return 0;
}

/* The accepting end's socket. */
static int
open_accepting(channel *c)
{
    int patience = ACCEPT_TIMEOUT_MS, listen_fd = c->listen_fd;
    if (open_socket(c) < 0) {
        return -1;
    }
    zmq_setsockopt(c->socket, ZMQ_SNDTIMEO, &patience, sizeof patience);
    if (zmq_setsockopt(c->socket, ZMQ_USE_FD, &listen_fd, sizeof listen_fd) < 0 ||
        zmq_bind(c->socket, c->endpoint) < 0) {
        return -1;
    }
    c->listen_fd = -1; /* libzmq's */
    return 0;
}

/* A frame has passed: libzmq has opened all that it needs. */
static void
connected(channel *c)
{
    if (c->filled) {
        c->filled = false;
        fd_unfill();
    }
}

static int
need_socket(channel *c)
{
    if (c->socket != NULL) {
        return 0;
    }
    if (c->listen_fd < 0) {
        errno = ENOTCONN; /* it could not be opened before */
        return -1;
    }
    fd_fill();
    c->filled = true;
    if (open_accepting(c) == 0) {
        return 0;
    }
    int saved = errno;
    if (c->socket != NULL) {
        zmq_close(c->socket);
        c->socket = NULL;
        c->signal_fd = -1;
    }
    connected(c);
    errno = saved;
    return -1;
}

bool
channel_has_lane(const channel *c)
{
    return c->lane != NULL && lane_joined(c->lane);
}

bool
channel_is_open(const channel *c)
{
    return c->socket != NULL;
}

/* Frees what needs nothing of libzmq. */
static void
free_rest(channel *c)
{
    connected(c);
    extents_out_free(c->out);
    extents_in_free(c->in);
    lane_free(c->lane);
    if (c->listen_fd >= 0) {
        close(c->listen_fd);
    }
    if (c->timer_fd >= 0) {
        close(c->timer_fd);
    }
    free(c);
}

void
channel_close(channel *c)
{
    if (c != NULL) {
        if (c->socket != NULL) {
            zmq_close(c->socket);
        }
        free_rest(c);
    }
}

void
channel_finish(channel *c)
{
    if (c != NULL) {
        int patience = FINISH_TIMEOUT_MS;
        if (c->socket != NULL) {
            zmq_setsockopt(c->socket, ZMQ_LINGER, &patience, sizeof patience);
        }
        channel_close(c);
    }
}

void
channel_forget(channel *c)
{
    if (c != NULL) {
        free_rest(c);
    }
}

/* Takes what has been made so far away again, but for the lane. NULL. */
static channel *
give_up(channel *c)
{
    int saved = errno;
    c->lane = NULL;
    channel_close(c);
    errno = saved;
    return NULL;
}

channel *
channel_connect(void **zmq, const char *endpoint, lane *l)
{
    channel *c = channel_new(zmq, endpoint, l);
    if (c == NULL) {
        return NULL;
    }
    c->send_flags = ZMQ_DONTWAIT;
    return open_socket(c) < 0 || zmq_connect(c->socket, endpoint) < 0 ? give_up(c) : c;
}

channel *
channel_accept(void **zmq, const char *endpoint, int listen_fd, lane *l)
{
    channel *c = channel_new(zmq, endpoint, l);
    if (c == NULL) {
        close(listen_fd);
        return NULL;
    }
    c->listen_fd = listen_fd;
    c->accepts = c->moves = true;
    c->lane_in = l != NULL; /* what goes over libzmq is announced there */
    return l == NULL && open_accepting(c) < 0 ? give_up(c) : c;
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

static void
reclaim(channel *c)
{
    if (c->out != NULL && extents_busy(c->out) != 0) {
        struct extents_back *back = lane_returned(c->lane);
        if (atomic_load_explicit(&back->reclaimed, memory_order_relaxed) != 0) {
            extents_reclaim(c->out,
                            atomic_exchange_explicit(&back->reclaimed, 0, memory_order_acquire));
        }
        if (atomic_load_explicit(&back->retired, memory_order_relaxed) != 0) {
            extents_retire(c->out,
                           atomic_exchange_explicit(&back->retired, 0, memory_order_acquire));
        }
    }
}

/* The reader is given the descriptors that it does not have. `blocks`: for each piece, or NULL. */
static bool
pass_fresh(channel *c, const struct placed *placed, struct block *const *blocks, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (blocks[i] == NULL && !placed[i].fresh) {
            continue;
        }
        int fd = blocks[i] != NULL ? block_pass(blocks[i]) : extents_fd(c->out, placed[i].slot);
        if (lane_pass(c->lane, fd) < 0) {
            return false;
        }
        c->skipped++;
    }
    return true;
}

/* Those that are not in blocks, into extents. 0, or -1. */
static int
write_pieces(channel *c, const struct piece *pieces, struct block *const *of, size_t n,
             struct placed *placed)
{
    struct piece *rest = malloc(n * sizeof *rest);
    struct placed *at = malloc(n * sizeof *at);
    size_t k = 0;
    int rc = rest == NULL || at == NULL ? -1 : 0;
    for (size_t i = 0; rc == 0 && i < n; i++) {
        if (of[i] == NULL) {
            rest[k++] = pieces[i];
        }
    }
    if (rc == 0 && k > 0) {
        rc = extents_write(c->out, rest, k, at);
    }
    for (size_t i = 0, j = 0; rc == 0 && i < n; i++) {
        if (of[i] == NULL) {
            placed[i] = at[j++];
        }
        else {
            placed[i].at = (size_t)((const char *)pieces[i].data - block_data(of[i]));
        }
    }
    free(rest);
    free(at);
    return rc;
}

/* As pieces in extents: the blobs, and before them the frame, unless it fits into the ring. */
static bool
send_by_extent(channel *c, const void *data, size_t size, const struct blob *blobs, size_t nblobs)
{
    size_t head = sizeof(struct extent_record) + (nblobs + 1) * sizeof(struct place);
    if (nblobs > LANE_FRAME_MAX / sizeof(struct place) || head > LANE_FRAME_MAX ||
        (c->out == NULL &&
         (c->out = extents_out_new(c->accepts, !c->accepts, extents_idle_most())) == NULL)) {
        return false;
    }
    reclaim(c);
    bool outside = nblobs == 0 || size > LANE_FRAME_MAX - head;
    size_t npieces = nblobs + outside, inside = outside ? 0 : size;
    size_t total = sizeof(struct extent_record) + npieces * sizeof(struct place) + inside;
    struct extent_record *record = lane_fits(c->lane, total) ? malloc(total) : NULL;
    struct piece *pieces = record == NULL ? NULL : malloc(npieces * sizeof *pieces);
    struct placed *placed = pieces == NULL ? NULL : calloc(npieces, sizeof *placed);
    struct block **of = placed == NULL ? NULL : calloc(npieces, sizeof *of);
    uint64_t before = extents_busy(c->out);
    bool sent = false;
    if (of == NULL) {
        goto done;
    }
    if (outside) {
        pieces[0] = (struct piece){data, size, false};
    }
    for (size_t i = 0; i < nblobs; i++) {
        of[outside + i] = blobs[i].block;
        pieces[outside + i] = (struct piece){blobs[i].data, blobs[i].size, blobs[i].apart};
    }
    if (write_pieces(c, pieces, of, npieces, placed) < 0) {
        goto done;
    }
    uint32_t skipped = c->skipped;
    if (!pass_fresh(c, placed, of, npieces)) {
        goto done;
    }
    *record = (struct extent_record){skipped, (uint32_t)npieces, (uint32_t)inside, 0};
    for (size_t i = 0; i < npieces; i++) {
        uint32_t flags = of[i] != NULL ? EXTENT_BLOCK : placed[i].fresh ? EXTENT_FRESH : 0;
        record->places[i] = (struct place){placed[i].slot, flags, placed[i].at, pieces[i].size};
    }
    if (inside > 0) {
        memcpy(&record->places[npieces], data, inside);
    }
    c->hot = true;
    sent = lane_send(c->lane, LANE_IS_EXTENT, record, total);
    for (size_t i = 0; sent && i < npieces; i++) {
        if (of[i] == NULL && placed[i].fresh) {
            extents_passed(c->out, placed[i].slot);
        }
    }
    c->skipped = sent ? 0 : c->skipped;
done:
    if (!sent && c->out != NULL) {
        extents_reclaim(c->out, extents_busy(c->out) & ~before);
    }
    free(record);
    free(pieces);
    free(placed);
    free(of);
    return sent;
}

static bool
send_by_lane(channel *c, const void *data, size_t size)
{
    if (!channel_has_lane(c)) {
        return false;
    }
    if (size > LANE_FRAME_MAX) {
        return send_by_extent(c, data, size, NULL, 0);
    }
    reclaim(c);
    c->hot = true;
    return lane_send(c->lane, LANE_IS_FRAME, data, size);
}

/* A frame went over libzmq: tells the reader of the lane, so that it is read in its turn. */
static void
sent_elsewhere(channel *c)
{
    connected(c);
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
    if (is_forked(c) || need_socket(c) < 0) {
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
    if (need_socket(c) < 0 || zmq_msg_init_data(&msg, data, size, free_owned, NULL) < 0) {
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
    if (usable && channel_has_lane(c) && send_by_extent(c, data, size, blobs, nblobs)) {
        free(owned ? data : NULL);
        for (size_t i = 0; i < nblobs; i++) {
            done(blobs[i].owner);
        }
        return 0;
    }
    int rc = !usable || need_socket(c) < 0 ? -1
             : owned                       ? zmq_msg_init_data(&msg, data, size, free_owned, NULL)
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

/* Whether the next frame may come over libzmq. */
static bool
await_zmq(const channel *c)
{
    return !c->lane_in || c->received < c->owed;
}

/* Room for one more part of f: NULL without memory. */
static struct frame *
new_part(struct frame *f)
{
    struct frame *parts = realloc(f->parts, (f->nparts + 1) * sizeof *parts);
    if (parts == NULL) {
        return NULL;
    }
    f->parts = parts;
    parts[f->nparts] = (struct frame){0};
    return &parts[f->nparts++];
}

/* A piece that a record names, with the descriptor that came for it. 0, or -1 and errno. */
static int
open_piece(channel *c, const struct place *place, struct extent_view **view)
{
    if (place->at > SIZE_MAX / 2 || place->size > SIZE_MAX / 2) {
        errno = EPROTO;
        return -1;
    }
    if (place->flags & EXTENT_FRESH) {
        int fd = lane_take(c->lane);
        if (fd < 0) {
            errno = EPROTO;
            return -1;
        }
        if (extents_take(c->in, place->slot, fd) < 0) {
            return -1;
        }
    }
    size_t size = (size_t)(place->at + place->size);
    /* Of nothing there is no mapping; the extent is another piece's, or given back as a whole. */
    *view = extents_view(c->in, place->slot, size > 0 ? size : 1);
    return *view == NULL ? -1 : 0;
}

static struct block *
open_block(channel *c, const struct place *place)
{
    int fd = lane_take(c->lane);
    if (fd < 0) {
        errno = EPROTO;
        return NULL;
    }
    struct block *block = block_take(fd);
    if (block != NULL &&
        (place->at > block_size(block) || place->size > block_size(block) - place->at)) {
        block_unref(block);
        errno = EPROTO;
        return NULL;
    }
    return block;
}

/* One view for each extent: the last one of them to go gives it back. */
static int
open_pieces(channel *c, const struct place *places, uint32_t n, struct extent_view **views,
            struct block **blocks)
{
    for (uint32_t i = 0; i < n; i++) {
        if (places[i].flags & EXTENT_BLOCK) {
            if ((blocks[i] = open_block(c, &places[i])) == NULL) {
                return -1;
            }
            continue;
        }
        uint32_t last = i;
        bool seen = false;
        for (uint32_t k = 0; k < i && !seen; k++) {
            seen = views[k] != NULL && places[k].slot == places[i].slot;
        }
        if (seen) {
            continue;
        }
        /* The pieces of an extent come in the order of their places: the last one ends it. */
        struct place whole = places[i];
        for (uint32_t k = i + 1; k < n; k++) {
            if (places[k].slot == places[i].slot && !(places[k].flags & EXTENT_BLOCK)) {
                last = k;
            }
        }
        whole.at = places[last].at;
        whole.size = places[last].size;
        struct extent_view *view;
        if (open_piece(c, &whole, &view) < 0) {
            return -1;
        }
        size_t end = (size_t)(whole.at + whole.size);
        for (uint32_t k = i; k < n; k++) {
            if (places[k].slot != places[i].slot || places[k].flags & EXTENT_BLOCK) {
                continue;
            }
            if (places[k].at > end || places[k].size > end - places[k].at) {
                extent_unref(view);
                errno = EPROTO;
                return -1;
            }
            views[k] = extent_ref(view);
        }
        extent_unref(view);
    }
    return 0;
}

/* What a record says is in extents. 1, or -1 and errno. */
static int
open_extent(channel *c, const unsigned char *data, size_t size, struct frame *f)
{
    struct extent_record record;
    struct place *places = NULL;
    struct extent_view **views = NULL;
    struct block **blocks = NULL;
    size_t head = sizeof record;
    int rc = -1;
    if (size < head) {
        errno = EPROTO;
        return -1;
    }
    memcpy(&record, data, head);
    uint32_t n = record.npieces;
    if (n == 0 || n > (size - head) / sizeof *places ||
        size - head - n * sizeof *places != record.frame) {
        errno = EPROTO;
        return -1;
    }
    if (c->in == NULL && (c->in = extents_in_new(lane_to_return(c->lane))) == NULL) {
        return -1;
    }
    for (uint32_t i = 0; i < record.skipped; i++) {
        int fd = lane_take(c->lane);
        if (fd < 0) {
            errno = EPROTO;
            return -1;
        }
        close(fd);
    }
    places = malloc(n * sizeof *places);
    views = calloc(n, sizeof *views);
    blocks = calloc(n, sizeof *blocks);
    if (places == NULL || views == NULL || blocks == NULL) {
        errno = ENOMEM;
        goto done;
    }
    memcpy(places, data + head, n * sizeof *places);
    if (open_pieces(c, places, n, views, blocks) < 0) {
        goto done;
    }
    /* The frame itself is copied before anybody looks into it. */
    bool inside = record.frame > 0;
    if (!inside && views[0] == NULL) {
        errno = EPROTO;
        goto done;
    }
    f->size = inside ? record.frame : (size_t)places[0].size;
    f->data = malloc(f->size > 0 ? f->size : 1);
    if (f->data == NULL) {
        goto done;
    }
    memcpy(f->data,
           inside ? data + head + n * sizeof *places : extent_data(views[0]) + places[0].at,
           f->size);
    rc = 1;
    for (uint32_t i = inside ? 0 : 1; rc == 1 && i < n; i++) {
        struct frame *part = new_part(f);
        if (part == NULL) {
            rc = -1;
            break;
        }
        part->size = (size_t)places[i].size;
        part->data = blocks[i] != NULL ? block_data(blocks[i]) + places[i].at
                                       : (void *)(uintptr_t)(extent_data(views[i]) + places[i].at);
        part->view = views[i];
        part->block = blocks[i];
        views[i] = NULL;
        blocks[i] = NULL;
    }
done:;
    int saved = errno;
    for (uint32_t i = 0; views != NULL && i < n; i++) {
        if (views[i] != NULL) {
            extent_unref(views[i]);
        }
        if (blocks != NULL && blocks[i] != NULL) {
            block_unref(blocks[i]);
        }
    }
    free(blocks);
    free(views);
    free(places);
    if (rc < 0) {
        frame_free(f);
    }
    errno = saved;
    return rc;
}

/* As channel_recv(), from the lane; *c says then whether libzmq is to be asked. */
static int
recv_by_lane(channel *c, struct frame *f)
{
    *f = (struct frame){0};
    while (c->lane != NULL && c->received >= c->owed) {
        switch (lane_recv(c->lane, &f->data, &f->size)) {
        case LANE_NONE:
            return 0;
        case LANE_FRAME:
            c->hot = c->lane_in = f->by_lane = true;
            return 1;
        case LANE_EXTENT: {
            struct frame record = *f;
            c->hot = c->lane_in = true;
            *f = (struct frame){.by_lane = true};
            int rc = open_extent(c, record.data, record.size, f);
            free(record.data);
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
    if (need_socket(c) < 0) {
        return -1;
    }
    rc = recv_one(c, f, &more);
    /* A message arrives whole: its further parts are there. */
    while (rc == 1 && more) {
        struct frame *part = new_part(f);
        rc = part == NULL ? -1 : recv_one(c, part, &more);
        if (rc != 1) {
            frame_free(f);
            return -1;
        }
    }
    if (rc == 1) {
        connected(c);
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

void
frame_free(struct frame *f)
{
    for (size_t i = 0; i < f->nparts; i++) {
        frame_free(&f->parts[i]);
    }
    free(f->parts);
    f->parts = NULL;
    f->nparts = 0;
    if (f->owner != NULL) {
        zmq_msg_close(f->owner);
        free(f->owner);
    }
    else if (f->view != NULL) {
        extent_unref(f->view);
    }
    else if (f->block != NULL) {
        block_unref(f->block);
    }
    else {
        free(f->data);
    }
    f->owner = f->data = NULL;
    f->view = NULL;
    f->block = NULL;
}

int
frame_copy(const void *data, size_t size, struct frame *out)
{
    void *copy = malloc(size > 0 ? size : 1);
    if (copy == NULL) {
        return -1;
    }
    memcpy(copy, data, size);
    *out = (struct frame){.data = copy, .size = size};
    return 0;
}

int
frame_share(const struct frame *f, struct frame *out)
{
    if (f->view != NULL) {
        *out = *f;
        out->parts = NULL;
        out->nparts = 0;
        extent_ref(f->view);
        return 0;
    }
    if (f->owner == NULL || f->block != NULL) {
        return frame_copy(f->data, f->size, out);
    }
    zmq_msg_t *msg = malloc(sizeof *msg);
    if (msg == NULL) {
        return -1;
    }
    zmq_msg_init(msg);
    if (zmq_msg_copy(msg, f->owner) < 0) {
        free(msg);
        return -1;
    }
    *out = (struct frame){.data = zmq_msg_data(msg), .size = zmq_msg_size(msg), .owner = msg};
    return 0;
}

int
frame_peer(const struct frame *f, pid_t *pid, uid_t *uid)
{
    int fd = f->owner == NULL ? -1 : zmq_msg_get(f->owner, ZMQ_SRCFD);
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0) {
        return -1;
    }
    *pid = peer.pid;
    *uid = peer.uid;
    return 0;
}

/* Makes timer_fd readable in timeout_ms or earlier. Hardly any wait gets as far as its limit, and
 * setting up a timer and taking it down again for each would cost more than the rest of the wait (a
 * virtual machine leaves to its host for both). So one that an earlier wait has set up is kept. */
static int
arm_timer(channel *c, int timeout_ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t now = (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
    if (c->timer_at > now && c->timer_at <= now + timeout_ms) {
        return 0;
    }
    /* The millisecond that `now` has begun counts in full: it fires at timer_at, not before. */
    c->timer_at = now + timeout_ms;
    struct itimerspec at = {
        .it_value = {.tv_sec = c->timer_at / 1000, .tv_nsec = c->timer_at % 1000 * 1000000}};
    return timerfd_settime(c->timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

static int64_t
microseconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Looks at the lane alone, until `until`. */
static bool
spin_until(const channel *c, int64_t until)
{
    do {
        if (lane_spin(c->lane, SPIN_LOOKS)) {
            return true;
        }
    } while (!lane_stacked(c->lane) && microseconds() < until);
    return false;
}

/* Whether the next frame comes by the lane, soon if at all, and while this thread is awake. */
static bool
may_spin(const channel *c)
{
    return c->hot && c->spins && !await_zmq(c) && !lane_stacked(c->lane);
}

/* When one end wakes the other, the scheduler likes to put it on the waker's processor, and
 * leaves it there although another is idle: both then take turns, at ten times the cost. So now and
 * then this thread goes elsewhere; what it may run on stays what it was. Only the accepting end
 * does so, lest both do. */
static void
move_away(channel *c)
{
    cpu_set_t allowed, others;
    if (!c->moves || !c->hot || !c->spins || await_zmq(c) || !lane_stacked(c->lane) ||
        ++c->stacked < c->patience) {
        return;
    }
    c->patience = c->spun >= MOVED_WORTH           ? STACKED_FEW
                  : c->patience < STACKED_MOST / 2 ? c->patience * 2
                                                   : STACKED_MOST;
    c->stacked = c->spun = 0;
    int cpu = sched_getcpu();
    if (cpu < 0 || sched_getaffinity(0, sizeof allowed, &allowed) < 0) {
        return;
    }
    others = allowed;
    CPU_CLR((unsigned)cpu, &others);
    if (CPU_COUNT(&others) == 0) {
        return;
    }
    /* Said before: an end that went to sleep now would be woken by this one, and put on the very
     * processor that this one moves to. */
    lane_place(c->lane, false);
    if (sched_setaffinity(0, sizeof others, &others) == 0) {
        (void)sched_setaffinity(0, sizeof allowed, &allowed);
    }
    lane_place(c->lane, true);
}

bool
channel_spin(channel *c, unsigned us)
{
    if (c->lane == NULL || !may_spin(c)) {
        return false;
    }
    /* The first looks without one at the clock. */
    if (lane_spin(c->lane, SPIN_LOOKS) || spin_until(c, microseconds() + us)) {
        c->spun++;
        return true;
    }
    return false;
}

/* The time to spin follows what it was good for: where a frame came soon, the next is waited for in
 * full, else half as long. So who waits long, or is asked rarely, hardly spins. */
static void
learn(channel *c, bool soon)
{
    c->slept = soon ? 0 : c->slept + 1;
    if (soon || c->slept % SPIN_RETRY == 0) {
        c->spin_us = SPIN_US;
    }
    else {
        c->spin_us = c->spin_us / 2 < SPIN_LEAST_US ? SPIN_LEAST_US : c->spin_us / 2;
    }
}

int
channel_wait(channel *c, const int *fds, int nfds, int timeout_ms, unsigned *ready)
{
    struct pollfd items[CHANNEL_MAX_FDS + 3];
    int n = 0, timer = -1;
    int64_t since = 0; /* of a wait that has spun */
    bool dozing = false;
    *ready = 0;
    if (nfds > CHANNEL_MAX_FDS) {
        errno = EINVAL;
        return -1;
    }
    if (c->lane != NULL && timeout_ms != 0) {
        move_away(c);
    }
    if (c->lane != NULL && c->together != lane_stacked(c->lane)) {
        c->together = !c->together;
        c->spin_us = SPIN_US; /* what was learnt before does not hold any more */
    }
    if (c->lane != NULL && timeout_ms != 0 && may_spin(c)) {
        since = microseconds();
        if (spin_until(c, since + c->spin_us)) {
            learn(c, true);
            *ready = CHANNEL_FRAME;
            return 1;
        }
    }
    if (c->lane != NULL && timeout_ms != 0) {
        c->spins = several_processors(); /* that may change, and before sleeping costs little */
    }
    c->hot = false;
    if (await_zmq(c) && need_socket(c) < 0) {
        return -1;
    }
    if (await_zmq(c) && !c->drained) {
        int events = 0;
        size_t size = sizeof events;
        if (zmq_getsockopt(c->socket, ZMQ_EVENTS, &events, &size) < 0) {
            return -1;
        }
        if (events & ZMQ_POLLIN) {
            timeout_ms = 0;
            *ready = CHANNEL_FRAME;
        }
        else {
            c->drained = true;
        }
    }
    if (c->lane != NULL && c->received >= c->owed && timeout_ms != 0) {
        dozing = lane_doze(c->lane);
        if (!dozing) {
            timeout_ms = 0;
            *ready = CHANNEL_FRAME;
        }
    }
    for (; n < nfds; n++) {
        items[n] = (struct pollfd){.fd = fds[n], .events = POLLIN};
    }
    items[n++] = (struct pollfd){.fd = await_zmq(c) ? c->signal_fd : -1, .events = POLLIN};
    items[n++] =
        (struct pollfd){.fd = dozing && !c->hung_up ? lane_bell(c->lane) : -1, .events = POLLIN};
    if (timeout_ms > 0) {
        if (arm_timer(c, timeout_ms) < 0) {
            return -1;
        }
        timer = n;
        items[n++] = (struct pollfd){.fd = c->timer_fd, .events = POLLIN};
    }
    /* One poll() over everything, where zmq_poll() would make two and ask libzmq around each. */
    int rc = poll(items, (nfds_t)n, timeout_ms > 0 ? -1 : timeout_ms);
    int saved = errno;
    if (dozing && !lane_woken(c->lane)) {
        rc = -1;
        saved = EBADF;
    }
    if (rc < 0) {
        errno = saved;
        return -1;
    }
    for (int i = 0; i < nfds; i++) {
        if (items[i].revents != 0) {
            *ready |= 1u << i;
        }
    }
    if (items[nfds].revents != 0 || items[nfds + 1].revents != 0) {
        *ready |= CHANNEL_FRAME;
        c->hung_up = c->hung_up || (items[nfds + 1].revents & (POLLHUP | POLLERR));
    }
    if (timer >= 0 && items[timer].revents != 0) {
        c->timer_at = 0; /* arming it again makes it unreadable */
    }
    if (since != 0) {
        learn(c, *ready & CHANNEL_FRAME && microseconds() - since < SPIN_WORTH_US);
    }
    return __builtin_popcount(*ready);
}
