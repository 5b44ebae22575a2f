#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "fdpass.h"

static int
open_fds(void)
{
    int count = 0;

    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

static int
same_file(int a, int b)
{
    struct stat x, y;

    return fstat(a, &x) == 0 && fstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

static void
test_message_and_descriptors(int *ends)
{
    int sent[3], got[4], n = 4;
    char text[16];

    CHECK(pipe(sent) == 0);
    sent[2] = open("/dev/null", O_RDONLY);
    CHECK_EQUAL(fdpass_send(ends[0], "hello", 5, sent, 3, 0), 0);
    CHECK_EQUAL(fdpass_recv(ends[1], text, sizeof text, got, &n, 0), 5);
    CHECK(memcmp(text, "hello", 5) == 0);
    CHECK_EQUAL(n, 3);
    for (int i = 0; i < n; i++) {
        CHECK(same_file(got[i], sent[i]));
        CHECK_EQUAL(fcntl(got[i], F_GETFD), FD_CLOEXEC);
        close(got[i]);
    }

    n = 4;
    CHECK_EQUAL(fdpass_send(ends[0], "x", 1, NULL, 0, 0), 0);
    CHECK_EQUAL(fdpass_recv(ends[1], text, sizeof text, got, &n, 0), 1);
    CHECK_EQUAL(n, 0);
    for (int i = 0; i < 3; i++)
        close(sent[i]);
}

static void
test_surplus_is_closed(int *ends)
{
    int sent[5], got[2], n = 2, before = open_fds();
    char text[16];

    for (int i = 0; i < 5; i++)
        sent[i] = ends[0];
    CHECK_EQUAL(fdpass_send(ends[0], "x", 1, sent, 5, 0), 0);
    CHECK_EQUAL(fdpass_recv(ends[1], text, sizeof text, got, &n, 0), 1);
    CHECK_EQUAL(n, 2);
    CHECK_EQUAL(open_fds(), before + 2);
    close(got[0]);
    close(got[1]);

    CHECK_EQUAL(fdpass_send(ends[0], "x", 1, sent, 5, 0), 0);
    CHECK_EQUAL(fdpass_recv(ends[1], text, sizeof text, NULL, NULL, 0), 1);
    CHECK_EQUAL(open_fds(), before);
}

static void
test_most_descriptors(int *ends)
{
    int sent[FDPASS_MAX], got[FDPASS_MAX], n = FDPASS_MAX;
    char text[16];

    for (int i = 0; i < FDPASS_MAX; i++)
        sent[i] = ends[0];
    CHECK_EQUAL(fdpass_send(ends[0], "x", 1, sent, FDPASS_MAX, 0), 0);
    CHECK_EQUAL(fdpass_recv(ends[1], text, sizeof text, got, &n, 0), 1);
    CHECK_EQUAL(n, FDPASS_MAX);
    for (int i = 0; i < n; i++)
        close(got[i]);
    CHECK(fdpass_send(ends[0], "x", 1, sent, FDPASS_MAX + 1, 0) < 0 && errno == EINVAL);
    CHECK(fdpass_send(ends[0], "", 0, sent, 1, 0) < 0 && errno == EINVAL);
}

static void
test_errors_leave_nothing_open(int *ends)
{
    int sent[] = {ends[0], ends[1]}, got[2], n = 2, before = open_fds();
    char text[4];
    struct rlimit limit, low;

    CHECK_EQUAL(fdpass_send(ends[0], "too long", 8, sent, 2, 0), 0);
    CHECK(fdpass_recv(ends[1], text, sizeof text, got, &n, 0) < 0 && errno == EMSGSIZE);
    CHECK_EQUAL(n, 0);
    CHECK_EQUAL(open_fds(), before);

    /* Room in the table for one of the two. */
    int next = dup(0);
    close(next);
    getrlimit(RLIMIT_NOFILE, &limit);
    low = limit;
    low.rlim_cur = next + 1;
    n = 2;
    CHECK_EQUAL(fdpass_send(ends[0], "x", 1, sent, 2, 0), 0);
    setrlimit(RLIMIT_NOFILE, &low);
    ssize_t result = fdpass_recv(ends[1], text, sizeof text, got, &n, 0);
    int error = errno;
    setrlimit(RLIMIT_NOFILE, &limit);
    CHECK_EQUAL(result, -1);
    CHECK_EQUAL(error, EMFILE);
    CHECK_EQUAL(n, 0);
    CHECK_EQUAL(open_fds(), before);

    n = 2;
    CHECK(fdpass_recv(ends[1], text, sizeof text, got, &n, MSG_DONTWAIT) < 0 && errno == EAGAIN);
    CHECK_EQUAL(n, 0);
}

static void
nothing(int signum)
{
    (void)signum;
}

static void *
interrupt_then_send(void *argument)
{
    void **arguments = argument;

    for (int i = 0; i < 5; i++) {
        check_sleep(10);
        pthread_kill(*(pthread_t *)arguments[0], SIGUSR1);
    }
    fdpass_send(*(int *)arguments[1], "late", 4, NULL, 0, 0);
    return NULL;
}

static void
test_interrupted_receive(int *ends)
{
    struct sigaction action = {.sa_handler = nothing};
    pthread_t self = pthread_self(), thread;
    void *arguments[] = {&self, &ends[0]};
    char text[16];

    sigaction(SIGUSR1, &action, NULL);
    pthread_create(&thread, NULL, interrupt_then_send, arguments);
    CHECK_EQUAL(fdpass_recv(ends[1], text, sizeof text, NULL, NULL, 0), 4);
    pthread_join(thread, NULL);
}

static void
test_end_of_stream(int *ends)
{
    char text[16];

    close(ends[0]);
    CHECK_EQUAL(fdpass_recv(ends[1], text, sizeof text, NULL, NULL, 0), 0);
    CHECK(fdpass_send(ends[1], "x", 1, NULL, 0, 0) < 0 && errno == EPIPE); /* and no SIGPIPE */
    close(ends[1]);
}

int
main(void)
{
    int ends[2];

    signal(SIGPIPE, SIG_DFL); /* who starts the tests may ignore it */
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return 2;
    test_message_and_descriptors(ends);
    test_surplus_is_closed(ends);
    test_most_descriptors(ends);
    test_errors_leave_nothing_open(ends);
    test_interrupted_receive(ends);
    test_end_of_stream(ends);
    return check_report();
}
