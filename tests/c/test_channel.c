/* Tests of ext/channel.c: frames between two ends, and the one wait. */
#include "channel.h"
#include "check.h"
#include "extents.h"
#include "lane.h"

#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <zmq.h>

static void *zmq;
static channel *here, *there;
static bool with_lane; /* the tests run twice */

static void
open_pair(void)
{
    char endpoint[CHANNEL_ENDPOINT_SIZE];
    int fd = channel_listen(endpoint), fds[LANE_FDS];
    CHECK(fd >= 0);
    lane *l = with_lane ? lane_make(fds) : NULL;
    here = channel_connect(&zmq, endpoint, l);
    CHECK(here != NULL && !channel_has_lane(here) && channel_is_open(here));
    there = channel_accept(&zmq, endpoint, fd, with_lane ? lane_join(fds) : NULL);
    CHECK(there != NULL && channel_has_lane(here) == with_lane);
    CHECK(channel_is_open(there) == !with_lane);
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

static int blobs_done;

static void
blob_done(void *owner)
{
    (void)owner;
    __atomic_add_fetch(&blobs_done, 1, __ATOMIC_SEQ_CST);
}

/* Frame i, as one of four kinds; some are too big for a lane. */
static void
send_kind(channel *c, uint64_t i)
{
    static unsigned char big[200000];
    size_t size = 8 + i * 7919 % (i % 5 == 0 ? sizeof big - 8 : 1000);
    unsigned char *data = malloc(size);
    memset(data, (int)i, size);
    memcpy(data, &i, sizeof i);
    if (i % 4 == 0) {
        CHECK_EQUAL(channel_send_owned(c, data, size), 0);
        return;
    }
    if (i % 16 == 1) {
        struct blob blobs[] = {{big, sizeof big, NULL, true}, {big, 10, NULL, false}};
        CHECK_EQUAL(channel_send_blobs(c, data, size, true, blobs, 2, blob_done), 0);
        return;
    }
    CHECK_EQUAL(channel_send(c, data, size), 0);
    free(data);
}

static void
expect_kind(channel *c, uint64_t i)
{
    struct frame f, other;
    unsigned ready;
    int got;
    double start = check_now();
    while ((got = channel_recv(c, &f)) == 0 && check_now() - start < 20000) {
        CHECK(channel_wait(c, NULL, 0, 5000, &ready) >= 0);
    }
    CHECK_EQUAL(got, 1);
    if (got == 1) {
        uint64_t number = 0;
        memcpy(&number, f.data, sizeof number);
        CHECK_EQUAL(number, i);
        CHECK_EQUAL(f.nparts, i % 16 == 1 ? 2 : 0);
        CHECK(f.size == 8 || ((unsigned char *)f.data)[f.size - 1] == (unsigned char)i);
        CHECK_EQUAL(frame_share(&f, &other), 0);
        CHECK(other.size == f.size && memcmp(other.data, f.data, f.size) == 0);
        frame_free(&f);
        CHECK(memcmp(other.data, &i, sizeof i) == 0);
        frame_free(&other);
    }
}

static void
there_and_back(uint64_t times)
{
    for (uint64_t i = 0; i < times; i++) {
        send_kind(here, i);
        expect_kind(there, i);
        send_kind(there, i);
        expect_kind(here, i);
    }
}

/* Whichever way they go, frames arrive in order; also where many are under way. */
static void
test_order(void)
{
    open_pair();
    uint64_t sent[2] = {0, 0}, got[2] = {0, 0}, state = 1;
    channel *ends[2] = {here, there};
    send_kind(here, sent[0]++); /* the accepting end waits for the other: it must have connected */
    expect_kind(there, got[1]++);
    while (got[0] + got[1] < 6000) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        int e = (int)(state >> 40 & 1);
        if (state >> 50 & 1) {
            send_kind(ends[e], sent[e]++);
        }
        else if (got[e] < sent[1 - e]) {
            expect_kind(ends[e], got[e]++);
        }
    }
    for (int e = 0; e < 2; e++) {
        while (got[e] < sent[1 - e]) {
            expect_kind(ends[e], got[e]++);
        }
    }
    close_pair();
}

static void *
echoes(void *c)
{
    for (uint64_t i = 0; i < 3000; i++) {
        expect_kind(c, i);
        send_kind(c, i);
    }
    return NULL;
}

/* Both ends wait for each other. */
static void
test_echo(void)
{
    pthread_t thread;
    open_pair();
    pthread_create(&thread, NULL, echoes, there);
    for (uint64_t i = 0; i < 3000; i++) {
        send_kind(here, i);
        expect_kind(here, i);
    }
    pthread_join(thread, NULL);
    close_pair();
}

/* What was sent before the other end had joined is read first. */
static void
test_a_lane_that_comes_late(void)
{
    char endpoint[CHANNEL_ENDPOINT_SIZE];
    int fd = channel_listen(endpoint), fds[LANE_FDS];
    here = channel_connect(&zmq, endpoint, lane_make(fds));
    for (uint64_t i = 0; i < 50; i++) {
        send_kind(here, i);
    }
    there = channel_accept(&zmq, endpoint, fd, lane_join(fds));
    for (uint64_t i = 0; i < 50; i++) {
        expect_kind(there, i);
        send_kind(there, i);
    }
    for (uint64_t i = 50; i < 100; i++) {
        send_kind(here, i);
    }
    for (uint64_t i = 0; i < 50; i++) {
        expect_kind(here, i);
    }
    for (uint64_t i = 50; i < 100; i++) {
        expect_kind(there, i);
    }
    close_pair();
}

/* An end that cannot have the memory goes by libzmq, and so does what is sent to it. */
static void
test_a_lane_that_is_not_joined(void)
{
    char endpoint[CHANNEL_ENDPOINT_SIZE];
    int fd = channel_listen(endpoint), fds[LANE_FDS];
    here = channel_connect(&zmq, endpoint, lane_make(fds));
    there = channel_accept(&zmq, endpoint, fd, NULL);
    close(fds[LANE_MEMORY]);
    close(fds[LANE_BELL]);
    there_and_back(200);
    CHECK(!channel_has_lane(here));
    close_pair();
}

/* With a lane, nothing needs libzmq; unless it is asked for, also in between. */
static void
test_openly(void)
{
    open_pair();
    there_and_back(100);
    CHECK(!channel_is_open(there));
    for (int i = 0; i < 100; i++) {
        CHECK_EQUAL(channel_send(there, "before", 6), 0);
        CHECK_EQUAL(channel_send_openly(there, "openly", 6), 0);
        CHECK_EQUAL(channel_send(there, "after", 5), 0);
        expect(here, "before");
        expect(here, "openly");
        expect(here, "after");
        CHECK_EQUAL(channel_send_openly(here, "openly", 6), 0);
        CHECK_EQUAL(channel_send(here, "after", 5), 0);
        expect(there, "openly");
        expect(there, "after");
    }
    CHECK(channel_is_open(there));
    close_pair();
}

/* More frames with extents than there are slots: those that are not given back yet take none from
 * the others, which go by libzmq. */
static void
test_extents_in_use(void)
{
    enum { MANY = 100, SIZE = 70000 };
    static struct frame held[MANY];
    unsigned ready;
    open_pair();
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < MANY; i++) {
            unsigned char *data = malloc(SIZE);
            memset(data, i + round, SIZE);
            struct blob blob = {data, SIZE, NULL, false};
            CHECK_EQUAL(channel_send_blobs(here, "with a blob", 11, false, &blob, 1, blob_done), 0);
            while (channel_recv(there, &held[i]) == 0) {
                CHECK(channel_wait(there, NULL, 0, 5000, &ready) >= 0);
            }
            CHECK_EQUAL(held[i].nparts, 1);
            free(data);
        }
        int by_lane = 0;
        for (int i = 0; i < MANY; i++) {
            unsigned char *data = held[i].parts[0].data;
            CHECK(held[i].size == 11 && held[i].parts[0].size == SIZE);
            CHECK(data[0] == i + round && memcmp(data, data + 1, SIZE - 1) == 0);
            by_lane += held[i].by_lane;
            frame_free(&held[i]);
        }
        CHECK(by_lane >= 32 && by_lane < MANY);
    }
    close_pair();
}

/* Records of extents that an end may write which does not keep to the rules. */
static void
test_garbled_extents(void)
{
    struct place {
        uint32_t slot, flags;
        uint64_t at, size;
    };
    struct {
        uint32_t skipped, npieces, frame, unused;
        struct place places[2];
    } good = {0, 1, 0, 0, {{0, 0, 0, 5000}, {0}}},
      bad[] = {
          {0, 1, 0, 0, {{64, 0, 0, 5000}, {0}}},
          {0, 1, 0, 0, {{UINT32_MAX, 0, 0, 5000}, {0}}},
          {0, 1, 0, 0, {{1, 0, 0, 5000}, {0}}},
          {0, 0, 0, 0, {{0, 0, 0, 5000}, {0}}},
          {0, UINT32_MAX, 0, 0, {{0, 0, 0, 5000}, {0}}},
          {0, 1, 1, 0, {{0, 0, 0, 5000}, {0}}},
          {0, 1, UINT32_MAX, 0, {{0, 0, 0, 5000}, {0}}},
          {0, 1, 0, 0, {{0, 0, 0, 70001 * 4096ull}, {0}}},
          {0, 1, 0, 0, {{0, 0, 0, UINT64_MAX}, {0}}},
          {0, 1, 0, 0, {{0, 0, UINT64_MAX, 5000}, {0}}},
          {0, 1, 0, 0, {{0, 0, UINT64_MAX - 4999, 5000}, {0}}},
          {0, 2, 0, 0, {{0, 0, 0, 5000}, {0, 0, 8192, UINT64_MAX - 8191}}},
          {0, 2, 0, 0, {{0, 0, 0, 5000}, {0, 0, 8192, 70000 * 4096ull}}},
          {0, 2, 0, 0, {{0, 0, 8192, 5000}, {0, 0, 0, 5000}}}, /* the last one is not the end */
          {0, 2, 0, 0, {{0, 0, 0, UINT64_MAX}, {0, 0, 0, UINT64_MAX}}},
          {0, 2, 0, 0, {{0, 0, 0, 5000}, {1, 0, 0, 5000}}},
          {0, 1, 0, 0, {{0, 1, 0, 5000}, {0}}}, /* there is no descriptor */
          {1, 1, 0, 0, {{0, 0, 0, 5000}, {0}}},
      };
    static char data[70000];
    with_lane = true;
    for (size_t i = 0; i <= sizeof bad / sizeof *bad; i++) {
        char endpoint[CHANNEL_ENDPOINT_SIZE];
        struct frame f;
        int fd = channel_listen(endpoint), fds[LANE_FDS];
        lane *raw = lane_make(fds);
        there = channel_accept(&zmq, endpoint, fd, lane_join(fds));
        /* The first one is as it should be, and brings a descriptor. */
        struct extents_out *out = extents_out_new(false, false, 1 << 20);
        struct placed placed;
        CHECK_EQUAL(extents_write(out, &(struct piece){data, sizeof data, false}, 1, &placed), 0);
        CHECK(placed.slot == 0 && placed.fresh && placed.at == 0);
        /* One more descriptor than the record is about: it says so. */
        CHECK_EQUAL(lane_pass(raw, extents_fd(out, 0)), 0);
        CHECK_EQUAL(lane_pass(raw, extents_fd(out, 0)), 0);
        good.places[0].flags = 1;
        good.skipped = 1;
        CHECK(lane_send(raw, LANE_IS_EXTENT, &good, 40));
        CHECK_EQUAL(channel_recv(there, &f), 1);
        CHECK_EQUAL(f.size, 5000);
        frame_free(&f);
        CHECK_EQUAL(atomic_load(&lane_returned(raw)->reclaimed), 1);
        if (i < sizeof bad / sizeof *bad) {
            size_t size = bad[i].npieces == 2 ? 64 : 40;
            CHECK(lane_send(raw, LANE_IS_EXTENT, &bad[i], size));
            CHECK(channel_recv(there, &f) < 0 && errno == EPROTO);
        }
        else {
            CHECK(lane_send(raw, LANE_IS_EXTENT, &good, 15));
            CHECK(channel_recv(there, &f) < 0 && errno == EPROTO);
        }
        extents_out_free(out);
        channel_close(there);
        lane_free(raw);
    }
}

/* What the other end had written to the lane before it went is still received. (Over libzmq this
 * holds only for what arrives before the hang-up is noticed: with ZMQ_RECONNECT_IVL -1 it drops the
 * rest.) */
static void
test_last_frames(void)
{
    unsigned char data[300];
    struct frame f;
    open_pair();
    send_kind(here, 0); /* the first of each goes over libzmq */
    expect_kind(there, 0);
    send_kind(there, 0);
    expect_kind(here, 0);
    for (unsigned i = 0; i < 20; i++) {
        memset(data, (int)i, sizeof data);
        CHECK_EQUAL(channel_send(there, data, sizeof data), 0);
    }
    channel_finish(there);
    there = NULL;
    for (unsigned i = 0; i < 20; i++) {
        CHECK(channel_last(here, 2000));
        int got = channel_recv(here, &f);
        CHECK_EQUAL(got, 1);
        if (got == 1) {
            CHECK_EQUAL(f.size, sizeof data);
            CHECK_EQUAL(*(unsigned char *)f.data, i);
            frame_free(&f);
        }
    }
    CHECK(!channel_last(here, 2000));
    CHECK_EQUAL(channel_recv(here, &f), 0);
    channel_close(here);
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

static void
test_all(void)
{
    test_ping_pong();
    test_frame_noticed_while_sending();
    test_time_limits();
    test_descriptors();
    test_order();
    test_echo();
    test_idle();
}

int
main(void)
{
    zmq = zmq_ctx_new();
    test_all();
    with_lane = true;
    test_all();
    test_a_lane_that_comes_late();
    test_a_lane_that_is_not_joined();
    test_openly();
    test_extents_in_use();
    test_garbled_extents();
    test_last_frames();
    CHECK(blobs_done > 0);
    zmq_ctx_term(zmq);
    return check_report();
}
