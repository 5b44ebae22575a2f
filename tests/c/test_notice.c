/* What was written to a watched pipe is known without asking the system. */
#define _GNU_SOURCE 1
#include "notice.h"

#include "check.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static notice *watched;

static void
drain(int fd)
{
    char buffer[64];
    while (read(fd, buffer, sizeof buffer) > 0) {
    }
}

static void *
take(void *unused)
{
    (void)unused;
    notice_take(watched);
    return NULL;
}

static void *
make(void *fds)
{
    return notice_new(fds, 1);
}

/* What watches ends with the thread that made it: that must not pass for silence. */
static void
test_thread_that_ended(void)
{
    int fds[2];
    pthread_t thread;
    void *made = NULL;
    CHECK(pipe2(fds, O_NONBLOCK) == 0);
    CHECK(pthread_create(&thread, NULL, make, fds) == 0 && pthread_join(thread, &made) == 0);
    if (made != NULL) {
        usleep(10000); /* the system may end it a little later */
        CHECK(write(fds[1], "abc", 3) == 3);
        CHECK(!notice_quiet(made));
        notice_free(made);
    }
    close(fds[0]);
    close(fds[1]);
}

int
main(void)
{
    test_thread_that_ended();
    int one[2], two[2];
    CHECK(pipe2(one, O_NONBLOCK) == 0 && pipe2(two, O_NONBLOCK) == 0);
    watched = notice_new((const int[]){one[0], two[0]}, 2);
    if (watched == NULL) {
        CHECK(errno != 0); /* not on this system: the caller looks by itself */
        return check_report();
    }
    CHECK(notice_quiet(watched));
    for (int i = 0; i < 1000; i++) {
        int *to = i % 2 ? one : two;
        CHECK(write(to[1], "abc", 3) == 3);
        CHECK(!notice_quiet(watched));
        /* More, before anybody looks. */
        CHECK(write(one[1], "d", 1) == 1 && write(two[1], "e", 1) == 1);
        CHECK(!notice_quiet(watched));
        notice_take(watched);
        drain(one[0]);
        drain(two[0]);
        CHECK(notice_quiet(watched));
    }
    /* By another process. */
    for (int i = 0; i < 50; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            _exit(write(two[1], "x", 1) == 1 ? 0 : 1);
        }
        int status;
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
        CHECK(!notice_quiet(watched));
        notice_take(watched);
        drain(two[0]);
        CHECK(notice_quiet(watched));
    }
    /* What was not read is no news again, but further bytes are. */
    CHECK(write(one[1], "y", 1) == 1);
    notice_take(watched);
    CHECK(notice_quiet(watched));
    CHECK(write(one[1], "z", 1) == 1);
    CHECK(!notice_quiet(watched));
    /* Another thread cannot take it, and is not told that all is quiet. */
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, take, NULL) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(!notice_quiet(watched));
    notice_take(watched);
    CHECK(notice_quiet(watched));
    /* An end of file is news too. */
    close(one[1]);
    CHECK(!notice_quiet(watched));
    notice_take(watched);
    /* One that is full: the writer goes on once the reader has gone. */
    notice_free(watched);
    close(one[0]);
    close(two[0]);
    close(two[1]);
    return check_report();
}
