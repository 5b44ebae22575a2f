/* channel.h: one strand's connection, and the one wait. No Python.
 *
 * Frames go over a libzmq PAIR socket on an abstract ipc:// name. The kernel makes the listening
 * socket and hands it to the child as a descriptor, so nothing is looked up by path in the child
 * (which may be in a chroot or another network name space by then).
 *
 * With a lane (lane.h), frames go through shared memory once both ends have it: small ones by its
 * ring, big ones and blobs by extents (extents.h). What finds no room there goes over libzmq. They
 * are received in the order in which they were sent all the same. The accepting end of a lane opens
 * its socket only when it is needed. */
#ifndef ISOLATION_CHANNEL_H
#define ISOLATION_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

typedef struct channel channel;
struct lane;
struct block;
struct extent_view;
struct tray;

/* A received frame; `data` stays valid until frame_free. That of a part in an extent is the other
 * end's memory: what must not change any more has to be copied first. */
struct frame {
    void *data;
    size_t size;
    void *owner;       /* a zmq_msg_t; without one, a view and a tray, `data` is from malloc */
    struct tray *tray; /* of the channel, where `data` is; or NULL */
    struct extent_view *view; /* what `data` is a part of, or NULL */
    struct block *block;      /* the same, where both ends have it */
    bool by_lane;             /* it came through the shared memory */
    struct frame *parts;      /* the blobs that came with it, or NULL */
    size_t nparts;
};

/* Memory that is sent along with a frame without being encoded. `done` is called with `owner` once
 * it is through with, in any thread, also when sending failed. */
struct blob {
    const void *data;
    size_t size;
    void *owner;
    bool apart;          /* the other end may want to keep it: in an extent of its own */
    struct block *block; /* where `data` is, to be shared and not sent; NULL: none */
};

#define CHANNEL_ENDPOINT_SIZE 108

/* Kernel: make a listening socket on an unguessable abstract name; writes "ipc://@..." to endpoint.
 * Returns the descriptor (close-on-exec), or -1 with errno. */
int channel_listen(char endpoint[CHANNEL_ENDPOINT_SIZE]);

/* Both return NULL with errno. `*zmq` is a zmq context, or NULL: one is made once it is needed;
 * `zmq` must stay. The channel owns the lane (or NULL) from here on, but not when this fails; the
 * accepting end owns listen_fd, the connecting one has it to see when libzmq has connected: by then
 * it has opened all the descriptors that it needs for that. */
channel *channel_connect(void **zmq, const char *endpoint, int listen_fd, struct lane *lane);
channel *channel_accept(void **zmq, const char *endpoint, int listen_fd, struct lane *lane);
/* Whether frames take, or are about to take, the lane. */
bool channel_has_lane(const channel *c);
/* Whether libzmq is opening descriptors for it, or may still do so before the first frame. */
bool channel_is_open(const channel *c);
void channel_close(channel *c);
/* The same, but what is queued is still sent, in the background. */
void channel_finish(channel *c);
/* For a fork of the process that made it, where libzmq's threads are not: frees the record alone.
 */
void channel_forget(channel *c);

/* Queues a copy of the frame. Waits only where the other end has not connected yet. 0, or -1 with
 * errno (EAGAIN: the other end has gone). */
int channel_send(channel *c, const void *data, size_t size);
/* A frame is about to be made: where it will go is fetched meanwhile. */
void channel_prepare(channel *c);
/* What is sent from here on does not wake an end that sleeps, where the lane carries it: it is read
 * when something else has woken it. */
void channel_set_quiet(channel *c, bool quiet);
/* Bytes of the lane's ring that the other end has not read yet; 0 without a lane. */
size_t channel_unread(channel *c);
/* The same, over libzmq. */
int channel_send_openly(channel *c, const void *data, size_t size);
/* Queues memory from malloc; owns `data` from here on, also on failure. */
int channel_send_owned(channel *c, void *data, size_t size);
/* Queues a frame (a copy, or memory from malloc with `owned`) and its blobs, as one message. Copies
 * the blobs now, where they go by an extent. */
int channel_send_blobs(channel *c, void *data, size_t size, bool owned, const struct blob *blobs,
                       size_t nblobs, void (*done)(void *owner));
/* The next frame if one is there: 1, 0 (none), or -1 with errno (EPROTO: the other end has garbled
 * the lane, which is of no use any more; EPERM: this is a fork of the process). */
int channel_recv(channel *c, struct frame *f);
void frame_free(struct frame *f);
/* For when the process at the other end has died: waits, timeout_ms at most, until what it had sent
 * has arrived. True when there is a frame. */
bool channel_last(channel *c, int timeout_ms);
/* A frame with a copy of these bytes, as if received. 0, or -1 with errno. */
int frame_copy(const void *data, size_t size, struct frame *out);
/* A second owner of the same bytes, without copying big ones. 0, or -1 with errno. */
int frame_share(const struct frame *f, struct frame *out);

/* Credentials of the process at the other end of the connection that `f` came by (accepting end
 * only): 0, or -1 with errno. */
int frame_peer(const struct frame *f, pid_t *pid, uid_t *uid);

/* Waits for a frame on the lane without a system call, for about so many microseconds; not at all
 * where that would be no use: no frame took the lane since the last wait, or there is one processor
 * only. True when a frame is there. */
bool channel_spin(channel *c, unsigned us);

/* Waits until a frame is there or one of fds is readable (negative fds are skipped), at most
 * timeout_ms (-1: for ever); it may give up earlier than that. Sets *ready to a bit mask, 0 on
 * time-out; CHANNEL_FRAME means that channel_recv() is worth a try. -1 with errno (EINTR: a signal)
 * on failure. Cheapest right after a channel_recv() that found none. Where frames take the lane it
 * first spins, for a time that follows how soon frames came lately: up to SPIN_US
 * (channel_wait.c). */
#define CHANNEL_FRAME (1u << 31)
#define CHANNEL_MAX_FDS 8
int channel_wait(channel *c, const int *fds, int nfds, int timeout_ms, unsigned *ready);

#endif
