/* channel_open.c: how a channel is made, its libzmq socket opened, and both are closed. */
#define _GNU_SOURCE 1
#include "channel_parts.h"

#include "fdfloor.h"
#include "zmq_late.h"

#include <errno.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

/* The kernel has connected before it offers the socket. */
#define ACCEPT_TIMEOUT_MS 10000
/* A connection to a socket that listens is made and accepted at once; this is for when a thread of
 * libzmq cannot run, or the other end has died. */
#define CONNECT_TIMEOUT_MS 1000
/* How long a socket that was closed may still send what is queued. */
#define FINISH_TIMEOUT_MS 1000

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

/* ---- the socket ----------------------------------------------------------------------------- */

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

/* For what a thread of libzmq is to do at once. Signals, as of a timer of the user's, do not make
 * it longer. */
static void
await(zmq_pollitem_t event)
{
    const int64_t end = channel_now_us() / 1000 + CONNECT_TIMEOUT_MS;
    int64_t left = CONNECT_TIMEOUT_MS;
    while (left > 0 && zmq_poll(&event, 1, (long)left) < 0 && errno == EINTR) {
        left = end - channel_now_us() / 1000;
    }
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
    /* The other end has connected before; libzmq accepts that in a thread of its own. */
    await((zmq_pollitem_t){.socket = c->socket, .events = ZMQ_POLLOUT});
    return 0;
}

int
channel_need_socket(channel *c)
{
    if (c->socket != NULL) {
        return 0;
    }
    if (c->listen_fd < 0) {
        errno = ENOTCONN; /* it could not be opened before */
        return -1;
    }
    fd_fill();
    int rc = open_accepting(c), saved = errno;
    fd_unfill();
    if (rc < 0 && c->socket != NULL) {
        zmq_close(c->socket);
        c->socket = NULL;
        c->signal_fd = -1;
    }
    errno = saved;
    return rc;
}

bool
channel_is_open(const channel *c)
{
    return c->socket != NULL;
}

/* ---- the channel ---------------------------------------------------------------------------- */

/* Frees what needs nothing of libzmq. */
static void
free_rest(channel *c)
{
    extents_out_free(c->out);
    extents_in_free(c->in);
    shelf_out_free(c->shelf_out);
    shelf_in_free(c->shelf_in);
    lane_free(c->lane);
    tray_free(c->tray);
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
    c->lane = l;
    c->tray = l == NULL ? NULL : calloc(1, sizeof *c->tray);
    bool ready = (l == NULL || c->tray != NULL) && channel_set_up_wait(c) == 0;
    return ready ? c : give_up(c);
}

channel *
channel_connect(void **zmq, const char *endpoint, int listen_fd, lane *l)
{
    channel *c = channel_new(zmq, endpoint, l);
    if (c == NULL) {
        return NULL;
    }
    c->send_flags = ZMQ_DONTWAIT;
    if (open_socket(c) < 0 || zmq_connect(c->socket, endpoint) < 0) {
        return give_up(c);
    }
    await((zmq_pollitem_t){.fd = listen_fd, .events = ZMQ_POLLIN}); /* libzmq's thread connects */
    return c;
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
    return l == NULL && channel_need_socket(c) < 0 ? give_up(c) : c;
}
