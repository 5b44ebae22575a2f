#define _GNU_SOURCE 1
#include "channel.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <zmq.h>

/* The kernel connects right after it has offered the socket. */
#define ACCEPT_TIMEOUT_MS 10000
/* How long a socket that was closed may still send what is queued. */
#define FINISH_TIMEOUT_MS 1000

struct channel {
    void *socket;
    int send_flags; /* the accepting end waits for the other to connect; the connecting never waits */
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

static channel *
channel_new(void *zmq)
{
    channel *c = calloc(1, sizeof *c);
    if (c == NULL) {
        return NULL;
    }
    c->socket = zmq_socket(zmq, ZMQ_PAIR);
    if (c->socket == NULL) {
        free(c);
        return NULL;
    }
    int zero = 0, never = -1;
    /* No lingering (a dead child must not hold up close), no limit on queued frames (a request is
     * never dropped; strict nesting bounds them), no reconnecting (a new life is a new socket). */
    zmq_setsockopt(c->socket, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(c->socket, ZMQ_SNDHWM, &zero, sizeof zero);
    zmq_setsockopt(c->socket, ZMQ_RCVHWM, &zero, sizeof zero);
    zmq_setsockopt(c->socket, ZMQ_RECONNECT_IVL, &never, sizeof never);
    c->send_flags = ZMQ_DONTWAIT;
    return c;
}

void
channel_close(channel *c)
{
    if (c != NULL) {
        zmq_close(c->socket);
        free(c);
    }
}

void
channel_finish(channel *c)
{
    if (c != NULL) {
        int patience = FINISH_TIMEOUT_MS;
        zmq_setsockopt(c->socket, ZMQ_LINGER, &patience, sizeof patience);
        channel_close(c);
    }
}

void
channel_forget(channel *c)
{
    free(c);
}

channel *
channel_connect(void *zmq, const char *endpoint)
{
    channel *c = channel_new(zmq);
    if (c != NULL && zmq_connect(c->socket, endpoint) < 0) {
        int saved = errno;
        channel_close(c);
        errno = saved;
        c = NULL;
    }
    return c;
}

channel *
channel_accept(void *zmq, const char *endpoint, int listen_fd)
{
    channel *c = channel_new(zmq);
    if (c == NULL) {
        close(listen_fd);
        return NULL;
    }
    int patience = ACCEPT_TIMEOUT_MS;
    c->send_flags = 0;
    zmq_setsockopt(c->socket, ZMQ_SNDTIMEO, &patience, sizeof patience);
    if (zmq_setsockopt(c->socket, ZMQ_USE_FD, &listen_fd, sizeof listen_fd) < 0 ||
        zmq_bind(c->socket, endpoint) < 0) {
        int saved = errno;
        close(listen_fd);
        channel_close(c);
        errno = saved;
        return NULL;
    }
    return c;
}

int
channel_send(channel *c, const void *data, size_t size)
{
    int rc;
    do {
        rc = zmq_send(c->socket, data, size, c->send_flags);
    } while (rc < 0 && errno == EINTR);
    return rc < 0 ? -1 : 0;
}

int
channel_send_owned(channel *c, void *data, size_t size)
{
    zmq_msg_t msg;
    if (zmq_msg_init_data(&msg, data, size, free_owned, NULL) < 0) {
        free(data);
        return -1;
    }
    int rc;
    do {
        rc = zmq_msg_send(&msg, c->socket, c->send_flags);
    } while (rc < 0 && errno == EINTR);
    if (rc < 0) {
        int saved = errno;
        zmq_msg_close(&msg);
        errno = saved;
        return -1;
    }
    return 0;
}

int
channel_recv(channel *c, struct frame *f)
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
        return saved == EAGAIN ? 0 : -1;
    }
    f->data = zmq_msg_data(msg);
    f->size = zmq_msg_size(msg);
    f->owner = msg;
    return 1;
}

bool
channel_last(channel *c, int timeout_ms)
{
    /* A PAIR socket can no longer send once it has seen that the other end hung up, and it sees that
     * after all that came before. There is no event for it to wait for. */
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
    if (f->owner != NULL) {
        zmq_msg_close(f->owner);
        free(f->owner);
        f->owner = NULL;
    }
}

int
frame_copy(const void *data, size_t size, struct frame *out)
{
    zmq_msg_t *msg = malloc(sizeof *msg);
    if (msg == NULL || zmq_msg_init_size(msg, size) < 0) {
        free(msg);
        return -1;
    }
    memcpy(zmq_msg_data(msg), data, size);
    *out = (struct frame){zmq_msg_data(msg), size, msg};
    return 0;
}

int
frame_share(const struct frame *f, struct frame *out)
{
    zmq_msg_t *msg = malloc(sizeof *msg);
    if (msg == NULL) {
        return -1;
    }
    zmq_msg_init(msg);
    if (zmq_msg_copy(msg, f->owner) < 0) {
        free(msg);
        return -1;
    }
    *out = (struct frame){zmq_msg_data(msg), zmq_msg_size(msg), msg};
    return 0;
}

int
frame_peer(const struct frame *f, pid_t *pid, uid_t *uid)
{
    int fd = zmq_msg_get(f->owner, ZMQ_SRCFD);
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) < 0) {
        return -1;
    }
    *pid = peer.pid;
    *uid = peer.uid;
    return 0;
}

int
channel_wait(channel *c, const int *fds, int nfds, int timeout_ms, unsigned *ready)
{
    zmq_pollitem_t items[CHANNEL_MAX_FDS + 1];
    int from[CHANNEL_MAX_FDS + 1], n = 0;
    *ready = 0;
    if (c != NULL) {
        items[n] = (zmq_pollitem_t){.socket = c->socket, .events = ZMQ_POLLIN};
        from[n++] = -1;
    }
    for (int i = 0; i < nfds && n <= CHANNEL_MAX_FDS; i++) {
        if (fds[i] >= 0) {
            items[n] = (zmq_pollitem_t){.fd = fds[i], .events = ZMQ_POLLIN};
            from[n++] = i;
        }
    }
    int rc = zmq_poll(items, n, timeout_ms);
    if (rc < 0) {
        return -1;
    }
    for (int i = 0; i < n; i++) {
        if (items[i].revents != 0) {
            *ready |= from[i] < 0 ? CHANNEL_FRAME : 1u << from[i];
        }
    }
    return rc;
}
