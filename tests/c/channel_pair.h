/* For the tests of channels: its two ends, in one process. */
#ifndef CHANNEL_PAIR_H
#define CHANNEL_PAIR_H

#include "channel.h"
#include "check.h"
#include "lane.h"

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <zmq.h>

static void *zmq; /* made by the first that needs it */
static channel *here, *there;
static bool with_lane; /* most tests run twice */

static inline void
open_pair(void)
{
    char endpoint[CHANNEL_ENDPOINT_SIZE];
    int fd = channel_listen(endpoint), fds[LANE_FDS];
    CHECK(fd >= 0);
    CHECK(strncmp(endpoint, "ipc://@", 7) == 0);
    lane *l = with_lane ? lane_make(fds) : NULL;
    here = channel_connect(&zmq, endpoint, fd, l);
    CHECK(here != NULL && !channel_has_lane(here) && channel_is_open(here));
    CHECK_EQUAL(poll(&(struct pollfd){.fd = fd, .events = POLLIN}, 1, 0), 1); /* it has connected */
    there = channel_accept(&zmq, endpoint, fd, with_lane ? lane_join(fds) : NULL);
    CHECK(there != NULL && channel_has_lane(here) == with_lane);
    CHECK(channel_is_open(there) == !with_lane);
}

/* Closes the ends that are still there. A socket that is left would keep zmq_ctx_term() waiting. */
static inline void
close_pair(void)
{
    if (here != NULL) {
        channel_close(here);
    }
    if (there != NULL) {
        channel_close(there);
    }
    here = there = NULL;
    if (zmq != NULL) {
        zmq_ctx_term(zmq);
        zmq = NULL;
    }
}

/* Waits for a frame as every caller does: as channel_recv(), or -2 where none has come in time. */
static inline int
wait_for(channel *c, struct frame *f)
{
    unsigned ready;
    int got;
    double start = check_now();
    while ((got = channel_recv(c, f)) == 0) {
        if (check_now() - start > 20000 || channel_wait(c, NULL, 0, 5000, &ready) < 0) {
            return -2;
        }
    }
    return got;
}

/* The next frame, with this content. */
static inline void
expect(channel *c, const char *text)
{
    struct frame f;
    int got = wait_for(c, &f);
    CHECK_EQUAL(got, 1);
    if (got == 1) {
        CHECK(f.size == strlen(text) && memcmp(f.data, text, f.size) == 0);
        frame_free(&f);
    }
}

static int blobs_done;

static inline void
blob_done(void *owner)
{
    (void)owner;
    __atomic_add_fetch(&blobs_done, 1, __ATOMIC_SEQ_CST);
}

/* Frame i, as one of four kinds; some are too big for a lane. */
static inline void
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
        struct blob blobs[] = {{big, sizeof big, NULL, true, NULL}, {big, 10, NULL, false, NULL}};
        CHECK_EQUAL(channel_send_blobs(c, data, size, true, blobs, 2, blob_done), 0);
        return;
    }
    CHECK_EQUAL(channel_send(c, data, size), 0);
    free(data);
}

/* The next frame, which send_kind(i) has sent. */
static inline void
expect_kind(channel *c, uint64_t i)
{
    struct frame f, other;
    int got = wait_for(c, &f);
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

static inline void
there_and_back(uint64_t times)
{
    for (uint64_t i = 0; i < times; i++) {
        send_kind(here, i);
        expect_kind(there, i);
        send_kind(there, i);
        expect_kind(here, i);
    }
}

#endif
