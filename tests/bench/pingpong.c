/* The yardstick: libzmq and nothing else. Two processes, one PAIR socket each on an abstract ipc://
 * name, frames of 64 bytes, waits by zmq_poll; what ext/channel.c does without anything around it.
 *
 *   pingpong        reads a count n on stdin, does n round trips, writes n times u64 nanoseconds
 * and one u64 pid (of the process that answered the last one) to stdout; again until end of file
 */
#include "clock.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>
#include <zmq.h>

#define FRAME 64

static void
die(const char *what)
{
    fprintf(stderr, "pingpong: %s: %s\n", what, zmq_strerror(errno));
    exit(1);
}

static void *
open_socket(void)
{
    void *context = zmq_ctx_new();
    void *socket = zmq_socket(context, ZMQ_PAIR);
    int zero = 0;
    if (socket == NULL) {
        die("socket");
    }
    zmq_setsockopt(socket, ZMQ_LINGER, &zero, sizeof zero);
    zmq_setsockopt(socket, ZMQ_SNDHWM, &zero, sizeof zero);
    zmq_setsockopt(socket, ZMQ_RCVHWM, &zero, sizeof zero);
    return socket;
}

static void
receive(void *socket, char *frame)
{
    for (;;) {
        if (zmq_recv(socket, frame, FRAME, ZMQ_DONTWAIT) == FRAME) {
            return;
        }
        if (errno != EAGAIN && errno != EINTR) {
            die("recv");
        }
        zmq_pollitem_t item = {.socket = socket, .events = ZMQ_POLLIN};
        if (zmq_poll(&item, 1, -1) < 0 && errno != EINTR) {
            die("poll");
        }
    }
}

static void
answer(const char *endpoint)
{
    char frame[FRAME];
    uint32_t pid = (uint32_t)getpid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    void *socket = open_socket();
    if (zmq_bind(socket, endpoint) < 0) {
        die("bind");
    }
    for (;;) {
        receive(socket, frame);
        memcpy(frame, &pid, sizeof pid);
        if (zmq_send(socket, frame, FRAME, 0) < 0) {
            die("send");
        }
    }
}

int
main(void)
{
    char endpoint[64], frame[FRAME] = {0};
    uint64_t n;
    snprintf(endpoint, sizeof endpoint, "ipc://@isolation-pingpong-%d", (int)getpid());
    pid_t child = fork();
    if (child < 0) {
        die("fork");
    }
    if (child == 0) {
        answer(endpoint);
    }
    void *socket = open_socket();
    if (zmq_connect(socket, endpoint) < 0) {
        die("connect");
    }
    while (fread(&n, sizeof n, 1, stdin) == 1) {
        uint64_t *took = calloc(n + 1, sizeof *took);
        uint32_t pid = 0;
        if (took == NULL) {
            die("calloc");
        }
        for (uint64_t i = 0; i < n; i++) {
            uint64_t start = now();
            if (zmq_send(socket, frame, FRAME, 0) < 0) {
                die("send");
            }
            receive(socket, frame);
            took[i] = now() - start;
        }
        memcpy(&pid, frame, sizeof pid);
        took[n] = pid;
        fwrite(took, sizeof *took, n + 1, stdout);
        fflush(stdout);
        free(took);
    }
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    return 0;
}
