/* channel.c: two ends in one process. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

#include "channel.h"
#include "check.h"

static void *zmq; /* made by the first that needs it */

struct pair {
    channel *here, *there;
};

static struct pair
connected(void)
{
    struct pair p;
    char endpoint[CHANNEL_ENDPOINT_SIZE];
    int fd = channel_listen(endpoint);

    CHECK(fd >= 0);
    CHECK(strncmp(endpoint, "ipc://@", 7) == 0);
    p.there = channel_accept(&zmq, endpoint, fd, NULL);
    p.here = channel_connect(&zmq, endpoint, NULL);
    CHECK(p.there != NULL && p.here != NULL);
    return p;
}

static void
end(struct pair p)
{
    channel_close(p.here);
    channel_close(p.there);
    zmq_ctx_term(zmq);
    zmq = NULL;
}

static int
wait_for(channel *c, struct frame *f)
{
    unsigned ready;
    int got;

    while ((got = channel_recv(c, f)) == 0)
        if (channel_wait(c, NULL, 0, 5000, &ready) <= 0 || ready == 0)
            return -2;
    return got;
}

static void
test_frames(void)
{
    struct pair p = connected();
    struct frame f;
    const size_t sizes[] = {1, 24, 500, 70000, 5000000};

    CHECK_EQUAL(channel_send(p.here, "first", 5), 0);
    CHECK_EQUAL(wait_for(p.there, &f), 1);
    CHECK_EQUAL(f.size, 5);
    CHECK(memcmp(f.data, "first", 5) == 0);
    pid_t pid = 0;
    uid_t uid = 99;
    CHECK_EQUAL(frame_peer(&f, &pid, &uid), 0);
    CHECK_EQUAL(pid, getpid());
    CHECK_EQUAL(uid, getuid());
    frame_free(&f);
    CHECK_EQUAL(channel_recv(p.there, &f), 0);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        char *data = malloc(sizes[i]);

        memset(data, (int)i + 1, sizes[i]);
        CHECK_EQUAL(i % 2 ? channel_send(p.there, data, sizes[i])
                          : channel_send_owned(p.there, data, sizes[i]),
                    0);
        if (i % 2)
            free(data);
        CHECK_EQUAL(wait_for(p.here, &f), 1);
        CHECK_EQUAL(f.size, sizes[i]);
        CHECK_EQUAL(((char *)f.data)[f.size - 1], (int)i + 1);
        struct frame second;
        CHECK_EQUAL(frame_share(&f, &second), 0);
        frame_free(&f);
        CHECK_EQUAL(((char *)second.data)[second.size - 1], (int)i + 1);
        frame_free(&second);
    }
    end(p);
}

static void
test_order(void)
{
    struct pair p = connected();
    struct frame f;
    int wrong = 0;

    for (int i = 0; i < 1000; i++)
        CHECK_EQUAL(channel_send(p.here, &i, sizeof i), 0);
    for (int i = 0; i < 1000; i++) {
        int got;

        if (wait_for(p.there, &f) != 1) {
            wrong++;
            break;
        }
        memcpy(&got, f.data, sizeof got);
        wrong += got != i;
        frame_free(&f);
    }
    CHECK_EQUAL(wrong, 0);
    end(p);
}

static void
test_the_one_wait(void)
{
    struct pair p = connected();
    int fds[3] = {eventfd(0, EFD_CLOEXEC), -1, eventfd(0, EFD_CLOEXEC)};
    unsigned ready = 99;
    uint64_t one = 1;
    struct frame f;

    CHECK_EQUAL(channel_wait(p.here, fds, 3, 20, &ready), 0);
    CHECK(write(fds[2], &one, sizeof one) == sizeof one);
    ready = 0;
    CHECK(channel_wait(p.here, fds, 3, 5000, &ready) >= 0);
    CHECK_EQUAL(ready, 1u << 2);
    CHECK_EQUAL(channel_send(p.there, "x", 1), 0);
    double end_at = check_now() + 5000;
    while (!(ready & CHANNEL_FRAME) && check_now() < end_at)
        channel_wait(p.here, fds, 3, 100, &ready);
    CHECK(ready & CHANNEL_FRAME);
    CHECK(ready & 1u << 2);
    CHECK_EQUAL(channel_recv(p.here, &f), 1);
    frame_free(&f);
    close(fds[0]);
    close(fds[2]);
    end(p);
}

static void
test_the_other_end_has_gone(void)
{
    struct pair p = connected();
    struct frame f;

    CHECK_EQUAL(channel_send(p.here, "x", 1), 0);
    CHECK_EQUAL(wait_for(p.there, &f), 1);
    frame_free(&f);
    channel_close(p.there);
    CHECK_EQUAL(channel_recv(p.here, &f), 0); /* nothing comes, and nothing hangs */
    channel_close(p.here);
    zmq_ctx_term(zmq);
    zmq = NULL;
}

static void
test_names_are_not_reused(void)
{
    char a[CHANNEL_ENDPOINT_SIZE], b[CHANNEL_ENDPOINT_SIZE];
    int x = channel_listen(a), y = channel_listen(b);

    CHECK(x >= 0 && y >= 0);
    CHECK(strcmp(a, b) != 0);
    CHECK(strlen(a) >= 7 + 16); /* unguessable */
    close(x);
    close(y);
}

int
main(void)
{
    test_frames();
    test_order();
    test_the_one_wait();
    test_the_other_end_has_gone();
    test_names_are_not_reused();
    return check_report();
}
