/* Tests of ext/channel.c: the one wait, for frames, descriptors and a time. */
#include "channel_pair.h"

#include <sys/eventfd.h>
#include <unistd.h>

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

/* Which of them, and whether there is a frame too; nothing is ready before. */
static void
test_frames_and_descriptors(void)
{
    int fds[3] = {eventfd(0, EFD_CLOEXEC), -1, eventfd(0, EFD_CLOEXEC)};
    unsigned ready = 99;
    uint64_t one = 1;
    open_pair();
    CHECK_EQUAL(channel_wait(here, fds, 3, 20, &ready), 0);
    CHECK_EQUAL(write(fds[2], &one, sizeof one), sizeof one);
    ready = 0;
    CHECK(channel_wait(here, fds, 3, 5000, &ready) >= 0);
    CHECK_EQUAL(ready, 1u << 2);
    CHECK_EQUAL(channel_send(there, "x", 1), 0);
    double start = check_now();
    while (!(ready & CHANNEL_FRAME) && check_now() - start < 5000) {
        channel_wait(here, fds, 3, 100, &ready);
    }
    CHECK(ready & CHANNEL_FRAME);
    CHECK(ready & 1u << 2);
    expect(here, "x");
    close(fds[0]);
    close(fds[2]);
    close_pair();
}

/* Where no frame comes, waiting uses hardly any processor time, however often one came before. */
static void
test_idle(void)
{
    struct timespec before, after;
    struct frame f;
    unsigned ready;
    open_pair();
    there_and_back(100);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    for (int i = 0; i < 20; i++) {
        CHECK_EQUAL(channel_recv(here, &f), 0);
        CHECK(channel_wait(here, NULL, 0, 20, &ready) >= 0);
    }
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    CHECK((after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1000000 < 20);
    close_pair();
}

int
main(void)
{
    for (int lane = 0; lane < 2; lane++) {
        with_lane = lane;
        test_frame_noticed_while_sending();
        test_time_limits();
        test_descriptors();
        test_frames_and_descriptors();
        test_idle();
    }
    return check_report();
}
