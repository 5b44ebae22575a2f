/* Tests of ext/channel.c: frames between two ends, and the one wait. */
#include "channel.h"
#include "check.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

static void *zmq;
static channel *here, *there;

static void
open_pair(void)
{
    char endpoint[CHANNEL_ENDPOINT_SIZE];
    int fd = channel_listen(endpoint);
    CHECK(fd >= 0);
    here = channel_connect(zmq, endpoint);
    there = channel_accept(zmq, endpoint, fd);
    CHECK(here != NULL && there != NULL);
}

static void
close_pair(void)
{
    channel_close(here);
    channel_close(there);
}

/* Waits for a frame as every caller does, and checks its content. */
static void
expect(channel *c, const char *text)
{
    struct frame f;
    unsigned ready;
    int got;
    while ((got = channel_recv(c, &f)) == 0) {
        if (channel_wait(c, NULL, 0, 5000, &ready) < 0) {
            break;
        }
    }
    CHECK_EQUAL(got, 1);
    if (got == 1) {
        CHECK(f.size == strlen(text) && memcmp(f.data, text, f.size) == 0);
        frame_free(&f);
    }
}

static void
test_ping_pong(void)
{
    open_pair();
    for (int i = 0; i < 2000; i++) {
        CHECK_EQUAL(channel_send(here, "ping", 4), 0);
        expect(there, "ping");
        CHECK_EQUAL(channel_send(there, "pong", 4), 0);
        expect(here, "pong");
    }
    close_pair();
}

/* Sending takes in libzmq's news, so the descriptor stays silent about a frame that is there. */
static void
test_frame_noticed_while_sending(void)
{
    unsigned ready;
    struct frame f;
    open_pair();
    CHECK_EQUAL(channel_send(here, "first", 5), 0);
    expect(there, "first");
    for (int i = 0; i < 200; i++) {
        CHECK_EQUAL(channel_recv(here, &f), 0);
        CHECK_EQUAL(channel_send(there, "a", 1), 0);
        usleep(i % 20 == 0 ? 2000
                           : 0); /* lets the frame arrive before, or while, the next is sent */
        CHECK_EQUAL(channel_send(here, "b", 1), 0);
        double start = check_now();
        do {
            CHECK(channel_wait(here, NULL, 0, 5000, &ready) >= 0);
        } while (!(ready & CHANNEL_FRAME) && check_now() - start < 5000);
        CHECK(check_now() - start < 2500);
        expect(here, "a");
        expect(there, "b");
    }
    close_pair();
}

static void
test_time_limits(void)
{
    unsigned ready;
    open_pair();
    double start = check_now();
    CHECK_EQUAL(channel_wait(here, NULL, 0, 0, &ready), 0);
    CHECK_EQUAL(ready, 0);
    /* Libzmq's own news of the connection may end a wait; a time limit must end it anyway. */
    for (int i = 0; i < 5; i++) {
        struct frame f;
        CHECK_EQUAL(channel_recv(here, &f), 0);
        CHECK(channel_wait(here, NULL, 0, 50, &ready) >= 0);
    }
    CHECK(check_now() - start < 2000);
    /* A shorter limit than that of the wait before is kept, and so is a longer one. */
    struct frame f;
    CHECK_EQUAL(channel_recv(here, &f), 0);
    start = check_now();
    CHECK(channel_wait(here, NULL, 0, 10, &ready) >= 0);
    CHECK(check_now() - start < 1000);
    start = check_now();
    do {
        CHECK_EQUAL(channel_recv(here, &f), 0);
        CHECK(channel_wait(here, NULL, 0, 100, &ready) >= 0);
    } while (ready != 0);
    CHECK(check_now() - start < 1000);
    close_pair();
}

static void
test_descriptors(void)
{
    unsigned ready;
    struct frame f;
    uint64_t one = 1;
    open_pair();
    int a = eventfd(0, 0), b = eventfd(0, 0);
    int fds[] = {a, -1, b};
    CHECK_EQUAL(write(b, &one, sizeof one), sizeof one);
    do {
        CHECK_EQUAL(channel_recv(here, &f), 0);
        CHECK(channel_wait(here, fds, 3, 5000, &ready) > 0);
    } while (ready & CHANNEL_FRAME);
    CHECK_EQUAL(ready, 1u << 2);
    int many[CHANNEL_MAX_FDS + 1] = {0};
    CHECK_EQUAL(channel_wait(here, many, CHANNEL_MAX_FDS + 1, 0, &ready), -1);
    close(a);
    close(b);
    close_pair();
}

int
main(void)
{
    zmq = zmq_ctx_new();
    test_ping_pong();
    test_frame_noticed_while_sending();
    test_time_limits();
    test_descriptors();
    zmq_ctx_term(zmq);
    return check_report();
}
