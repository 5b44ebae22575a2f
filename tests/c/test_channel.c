/* Tests of ext/channel.c: what is sent from one end is received at the other, once and in order. */
#include "channel_pair.h"

#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <unistd.h>

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

/* Of all sizes, sent as a copy and as memory that is handed over; a second owner keeps the bytes.
 */
static void
test_sizes(void)
{
    static const size_t sizes[] = {1, 24, 500, 70000, 5000000};
    struct frame f, second;
    open_pair();
    CHECK_EQUAL(channel_send(here, "first", 5), 0);
    expect(there, "first");
    CHECK_EQUAL(channel_recv(there, &f), 0);
    for (size_t i = 0; i < 2 * sizeof sizes / sizeof *sizes; i++) {
        size_t size = sizes[i / 2];
        char *data = malloc(size);
        memset(data, (int)i + 1, size);
        if (i % 2 == 0) {
            CHECK_EQUAL(channel_send_owned(there, data, size), 0);
        }
        else {
            CHECK_EQUAL(channel_send(there, data, size), 0);
            free(data);
        }
        int got = wait_for(here, &f);
        CHECK_EQUAL(got, 1);
        if (got != 1) {
            break;
        }
        CHECK_EQUAL(f.size, size);
        CHECK_EQUAL(((char *)f.data)[size - 1], (int)i + 1);
        CHECK_EQUAL(frame_share(&f, &second), 0);
        frame_free(&f);
        CHECK_EQUAL(second.size, size);
        CHECK_EQUAL(((char *)second.data)[size - 1], (int)i + 1);
        frame_free(&second);
    }
    close_pair();
}

/* Frames that are kept while others come, and when the channel is no more. */
static void
test_kept_frames(void)
{
    struct frame kept[4], f;
    char text[16];
    open_pair();
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 4; i++) {
            snprintf(text, sizeof text, "%d of round %d", i, round);
            CHECK_EQUAL(channel_send(here, text, strlen(text) + 1), 0);
            CHECK_EQUAL(wait_for(there, &kept[i]), 1);
        }
        for (int i = 0; i < 4; i++) {
            int at = (i + round) % 4;
            snprintf(text, sizeof text, "%d of round %d", at, round);
            CHECK_EQUAL(strcmp(kept[at].data, text), 0);
            frame_free(&kept[at]);
            CHECK_EQUAL(channel_send(there, text, strlen(text)), 0);
            expect(here, text);
        }
    }
    CHECK_EQUAL(channel_send(here, "the last", 9), 0);
    CHECK_EQUAL(wait_for(there, &f), 1);
    close_pair();
    CHECK_EQUAL(strcmp(f.data, "the last"), 0);
    frame_free(&f);
    frame_free(&f); /* of none */
}

/* Many are under way at once. */
static void
test_many_one_way(void)
{
    struct frame f;
    int wrong = 0;
    open_pair();
    for (int i = 0; i < 1000; i++) {
        CHECK_EQUAL(channel_send(here, &i, sizeof i), 0);
    }
    for (int i = 0; i < 1000; i++) {
        int got;
        if (wait_for(there, &f) != 1) {
            wrong++;
            break;
        }
        memcpy(&got, f.data, sizeof got);
        wrong += got != i || f.size != sizeof i;
        frame_free(&f);
    }
    CHECK_EQUAL(wrong, 0);
    close_pair();
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

/* Who is at the other end of a connection of libzmq. */
static void
test_credentials(void)
{
    struct frame f;
    pid_t pid = 0;
    uid_t uid = 99;
    with_lane = false;
    open_pair();
    CHECK_EQUAL(channel_send(here, "first", 5), 0);
    CHECK_EQUAL(wait_for(there, &f), 1);
    CHECK_EQUAL(frame_peer(&f, &pid, &uid), 0);
    CHECK_EQUAL(pid, getpid());
    CHECK_EQUAL(uid, getuid());
    frame_free(&f);
    close_pair();
}

static void
test_the_other_end_has_gone(void)
{
    struct frame f;
    open_pair();
    CHECK_EQUAL(channel_send(here, "x", 1), 0);
    expect(there, "x");
    channel_close(there);
    there = NULL;
    CHECK_EQUAL(channel_recv(here, &f), 0); /* nothing comes, and nothing hangs */
    close_pair();
}

static void
ignore(int signo)
{
    (void)signo;
}

/* Nobody connects: the end that accepts goes on after a second, also where a timer of the user's
 * interrupts it all the time. */
static void
test_nobody_connects(void)
{
    struct sigaction action = {.sa_handler = ignore};
    struct itimerval often = {.it_interval.tv_usec = 2000, .it_value.tv_usec = 2000}, never = {0};
    char endpoint[CHANNEL_ENDPOINT_SIZE];
    int fd = channel_listen(endpoint);
    double start = check_now();
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    there = channel_accept(&zmq, endpoint, fd, NULL);
    setitimer(ITIMER_REAL, &never, NULL);
    CHECK(there != NULL);
    CHECK(check_now() - start > 900 && check_now() - start < 5000);
    close_pair();
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
    for (int lane = 0; lane < 2; lane++) {
        with_lane = lane;
        test_ping_pong();
        test_sizes();
        test_kept_frames();
        test_many_one_way();
        test_order();
        test_echo();
        test_the_other_end_has_gone();
    }
    test_credentials();
    test_nobody_connects();
    test_names_are_not_reused();
    CHECK(blobs_done > 0);
    return check_report();
}
