/* Messages with file descriptors over a Unix SOCK_SEQPACKET socket (SCM_RIGHTS). */
#ifndef ISOLATION_FDPASS_H
#define ISOLATION_FDPASS_H

#include <stddef.h>
#include <sys/types.h>

/* The most descriptors that one message carries: the kernel's own SCM_MAX_FD. */
#define FDPASS_MAX 253

/* Sends one message of n > 0 bytes and duplicates of nfds descriptors; the caller keeps its own.
 * flags as for sendmsg(): blocks only if the socket does and MSG_DONTWAIT is not among them; never
 * raises SIGPIPE. 0, or -1 and errno. */
int fdpass_send(int sock, const void *msg, size_t n, const int *fds, int nfds, int flags);

/* Receives one message of at most cap bytes. *nfds is the room in fds, and then the number
 * received, all of them close-on-exec and the caller's; descriptors beyond the room are closed. fds
 * and nfds may be NULL: no room. flags as for recvmsg(), e.g. MSG_DONTWAIT. Returns the length, 0
 * at the end of the stream, or -1 and errno (EMSGSIZE: longer than cap; EMFILE: no room in this
 * process's descriptor table), in which case no descriptor was received. */
ssize_t fdpass_recv(int sock, void *msg, size_t cap, int *fds, int *nfds, int flags);

#endif
