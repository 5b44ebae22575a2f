#define _GNU_SOURCE
#include "fdpass.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* Room for the descriptors of one message, aligned as a control message must be. */
union control {
    char bytes[CMSG_SPACE(FDPASS_MAX * sizeof(int))];
    struct cmsghdr align;
};

static void
close_all(const int *fds, int nfds)
{
    for (int i = 0; i < nfds; i++)
        close(fds[i]);
}

int
fdpass_send(int sock, const void *msg, size_t n, const int *fds, int nfds, int flags)
{
    union control control;
    struct iovec data = {(void *)msg, n};
    struct msghdr header = {.msg_iov = &data, .msg_iovlen = 1};
    ssize_t sent;

    /* An empty message could not be told from the end of the stream. */
    if (n == 0 || nfds < 0 || nfds > FDPASS_MAX) {
        errno = EINVAL;
        return -1;
    }
    if (nfds > 0) {
        memset(&control, 0, sizeof control);
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(nfds * sizeof(int));
        struct cmsghdr *item = CMSG_FIRSTHDR(&header);
        item->cmsg_level = SOL_SOCKET;
        item->cmsg_type = SCM_RIGHTS;
        item->cmsg_len = CMSG_LEN(nfds * sizeof(int));
        memcpy(CMSG_DATA(item), fds, nfds * sizeof(int));
    }
    do
        sent = sendmsg(sock, &header, flags | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -1 : 0;
}

/* Copies the descriptors out of a received header; returns their number, at most FDPASS_MAX. */
static int
take_descriptors(struct msghdr *header, int *fds)
{
    int count = 0;

    for (struct cmsghdr *item = CMSG_FIRSTHDR(header); item; item = CMSG_NXTHDR(header, item)) {
        if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS)
            continue;
        int n = (int)((item->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds + count, CMSG_DATA(item), n * sizeof(int));
        count += n;
    }
    return count;
}

ssize_t
fdpass_recv(int sock, void *msg, size_t cap, int *fds, int *nfds, int flags)
{
    union control control;
    int received[FDPASS_MAX];
    int room = fds && nfds ? *nfds : 0;
    struct iovec data = {msg, cap};
    /* Always room for the most that can come: then MSG_CTRUNC means only one thing, and no
     * descriptor slips in through the padding of a smaller buffer. */
    struct msghdr header = {
        .msg_iov = &data,
        .msg_iovlen = 1,
        .msg_control = &control,
        .msg_controllen = sizeof control,
    };
    ssize_t n;

    if (nfds)
        *nfds = 0;
    do
        n = recvmsg(sock, &header, flags | MSG_CMSG_CLOEXEC);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -1;

    int count = take_descriptors(&header, received);
    if (header.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        close_all(received, count);
        errno = header.msg_flags & MSG_TRUNC ? EMSGSIZE : EMFILE;
        return -1;
    }
    if (count > room) {
        close_all(received + room, count - room);
        count = room;
    }
    if (count > 0)
        memcpy(fds, received, count * sizeof(int));
    if (nfds)
        *nfds = count;
    return n;
}
