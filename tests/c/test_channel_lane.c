/* Tests of ext/channel.c and ext/channel_extents.c: which frames take the lane and its extents, and
 * which go over libzmq. */
#include "channel_pair.h"
#include "extents.h"

#include <unistd.h>

/* What was sent before the other end had joined is read first. */
static void
test_a_lane_that_comes_late(void)
{
    char endpoint[CHANNEL_ENDPOINT_SIZE];
    int fd = channel_listen(endpoint), fds[LANE_FDS];
    here = channel_connect(&zmq, endpoint, fd, lane_make(fds));
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
    here = channel_connect(&zmq, endpoint, fd, lane_make(fds));
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
            struct blob blob = {data, SIZE, NULL, false, NULL};
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
        close_pair();
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
    close_pair();
}

int
main(void)
{
    with_lane = true;
    test_a_lane_that_comes_late();
    test_a_lane_that_is_not_joined();
    test_openly();
    test_extents_in_use();
    test_garbled_extents();
    test_last_frames();
    CHECK(blobs_done > 0);
    return check_report();
}
