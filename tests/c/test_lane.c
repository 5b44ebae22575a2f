/* Tests of ext/lane.c: order, wrap-around, a full ring, sleeping, and garbage in the memory. */
#define _GNU_SOURCE
#include "lane.h"
#include "check.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static lane *here, *there;
/* The memory as a hostile other end sees it. */
static unsigned char *memory;
static size_t memory_size;

static void
open_pair(void)
{
    int fds[LANE_FDS];
    struct stat about;
    here = lane_make(fds);
    CHECK(here != NULL);
    CHECK(!lane_joined(here));
    CHECK_EQUAL(fstat(fds[LANE_MEMORY], &about), 0);
    memory_size = (size_t)about.st_size;
    memory = mmap(NULL, memory_size, PROT_READ | PROT_WRITE, MAP_SHARED, fds[LANE_MEMORY], 0);
    CHECK(memory != MAP_FAILED);
    there = lane_join(fds);
    CHECK(there != NULL);
    CHECK(lane_joined(here));
}

static void
close_pair(void)
{
    lane_free(here);
    lane_free(there);
    munmap(memory, memory_size);
}

/* Frame number i: its size and every byte follow from i. */
static size_t
fill(unsigned char *data, uint64_t i, size_t most)
{
    uint64_t mixed = i * 0x9e3779b97f4a7c15u;
    size_t size = (mixed >> 20) % (mixed >> 60 == 0 ? most + 1 : 300);
    memset(data, (int)(mixed >> 40), size);
    if (size >= sizeof i) {
        memcpy(data, &i, sizeof i);
    }
    return size;
}

static void
check_frame(const void *data, size_t size, uint64_t i, size_t most)
{
    static _Thread_local unsigned char expected[LANE_FRAME_MAX];
    CHECK(size == fill(expected, i, most) && memcmp(data, expected, size) == 0);
}

static enum lane_got
recv_waiting(lane *l, void **data, size_t *size)
{
    enum lane_got got;
    while ((got = lane_recv(l, NULL, 0, data, size)) == LANE_NONE) {
        if (lane_doze(l)) {
            struct pollfd bell = {.fd = lane_bell(l), .events = POLLIN};
            CHECK_EQUAL(poll(&bell, 1, 20000), 1); /* a wake-up that gets lost is found here */
        }
        lane_woken(l);
    }
    return got;
}

/* ---- what an honest other end sees --------------------------------------------------------- */

#define FRAMES 100000

static void *
sends(void *l)
{
    unsigned char *data = malloc(LANE_FRAME_MAX);
    for (uint64_t i = 0; i < FRAMES; i++) {
        size_t size = fill(data, i, LANE_FRAME_MAX);
        while (!lane_send(l, LANE_IS_FRAME, data, size)) {
            sched_yield();
        }
    }
    free(data);
    return NULL;
}

static void *
receives(void *l)
{
    for (uint64_t i = 0; i < FRAMES; i++) {
        void *data;
        size_t size;
        enum lane_got got = recv_waiting(l, &data, &size);
        CHECK_EQUAL(got, LANE_FRAME);
        if (got != LANE_FRAME) {
            break;
        }
        check_frame(data, size, i, LANE_FRAME_MAX);
        free(data);
    }
    return NULL;
}

/* Both rings at once, far more than fits, in all sizes: order, content, wrap-around. */
static void
test_two_streams(void)
{
    open_pair();
    pthread_t threads[3];
    pthread_create(&threads[0], NULL, sends, here);
    pthread_create(&threads[1], NULL, sends, there);
    pthread_create(&threads[2], NULL, receives, here);
    receives(there);
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK(!lane_ready(here) && !lane_ready(there));
    close_pair();
}

/* Another process answers; each end sleeps for each frame. */
static void
test_ping_pong_of_processes(void)
{
    enum { TRIPS = 5000 };
    int fds[LANE_FDS];
    here = lane_make(fds);
    CHECK(here != NULL);
    pid_t pid = fork();
    if (pid == 0) {
        CHECK(!lane_send(here, LANE_IS_FRAME, "no", 2)); /* a fork has no part in it */
        CHECK(!lane_ready(here));
        lane_elsewhere(here, 1);
        lane_free(here);
        there = lane_join(fds);
        for (int i = 0; i < TRIPS && check_failed == 0; i++) {
            void *data;
            size_t size;
            CHECK_EQUAL(recv_waiting(there, &data, &size), LANE_FRAME);
            CHECK(lane_send(there, LANE_IS_FRAME, data, size));
            free(data);
        }
        /* It goes while its bell rings unheard. */
        CHECK(lane_doze(there));
        CHECK(lane_send(there, LANE_IS_FRAME, "going", 5));
        for (double start = check_now(); check_now() - start < 20000 && !lane_ready(there);) {
            sched_yield();
        }
        _exit(check_failed != 0);
    }
    for (int i = 0; i < LANE_FDS; i++) {
        close(fds[i]);
    }
    unsigned char *sent = malloc(LANE_FRAME_MAX);
    for (int i = 0; i < TRIPS && check_failed == 0; i++) {
        void *data;
        size_t size, n = fill(sent, (uint64_t)i, 5000);
        CHECK(lane_send(here, LANE_IS_FRAME, sent, n));
        CHECK_EQUAL(recv_waiting(here, &data, &size), LANE_FRAME);
        check_frame(data, size, (uint64_t)i, 5000);
        free(data);
    }
    free(sent);
    void *going;
    size_t n;
    CHECK_EQUAL(recv_waiting(here, &going, &n), LANE_FRAME);
    free(going);
    CHECK(lane_send(here, LANE_IS_FRAME, "nobody reads this", 17));
    int status = -1;
    CHECK_EQUAL(waitpid(pid, &status, 0), pid);
    CHECK_EQUAL(status, 0);
    /* Gone: the bell hangs up, and the memory is there all the same. */
    struct pollfd bell = {.fd = lane_bell(here), .events = POLLIN};
    CHECK_EQUAL(poll(&bell, 1, 20000), 1);
    CHECK(bell.revents & POLLHUP);
    CHECK(lane_woken(here));
    CHECK(!lane_ready(here));
    lane_free(here);
}

static void
test_sizes(void)
{
    static unsigned char big[LANE_FRAME_MAX + 1];
    void *data;
    size_t size;
    open_pair();
    CHECK(!lane_send(here, LANE_IS_FRAME, big, LANE_FRAME_MAX + 1));
    CHECK(!lane_send(here, LANE_IS_FRAME, big, SIZE_MAX));
    CHECK_EQUAL(lane_recv(there, NULL, 0, &data, &size), LANE_NONE);
    static const size_t sizes[] = {0, 1, 55, 56, 57, 120, 121, 4096, LANE_FRAME_MAX};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        memset(big, (int)i + 1, sizes[i]);
        CHECK(lane_send(here, LANE_IS_FRAME, big, sizes[i]));
        CHECK(lane_ready(there));
        CHECK_EQUAL(lane_recv(there, NULL, 0, &data, &size), LANE_FRAME);
        CHECK_EQUAL(size, sizes[i]);
        CHECK(memcmp(data, big, size) == 0);
        free(data);
        /* The same where the caller has room for some of them. */
        unsigned char room[56];
        CHECK(lane_send(here, LANE_IS_FRAME, big, sizes[i]));
        CHECK_EQUAL(lane_recv(there, room, sizeof room, &data, &size), LANE_FRAME);
        CHECK_EQUAL(size, sizes[i]);
        CHECK_EQUAL(data == room, size <= sizeof room);
        CHECK(memcmp(data, big, size) == 0);
        free(data == room ? NULL : data);
    }
    close_pair();
}

/* A full ring takes no more frames, but always the word that they go another way. */
static void
test_full(void)
{
    static unsigned char frame[LANE_FRAME_MAX];
    void *data;
    size_t size;
    for (size_t n = 1; n <= LANE_FRAME_MAX; n = n * 3 + 7) {
        uint64_t sent = 0, total = 0;
        open_pair();
        while (lane_send(here, LANE_IS_FRAME, frame, n)) {
            sent++;
        }
        CHECK(sent * n <= memory_size / 2 && (sent + 2) * (n + 64) >= memory_size / 4);
        /* Until there is only the reserve. */
        do {
            lane_elsewhere(here, ++total);
            CHECK(total < 10000);
        } while (lane_send(here, LANE_IS_FRAME, frame, 0) && total < 10000);
        for (int i = 0; i < 5000; i++) {
            lane_elsewhere(here, ++total);
        }
        CHECK(!lane_send(here, LANE_IS_FRAME, frame, 0));
        uint64_t frames = 0, last = 0;
        enum lane_got got;
        while ((got = lane_recv(there, NULL, 0, &data, &size)) > LANE_NONE) {
            if (got == LANE_FRAME) {
                CHECK(last != LANE_FOR_GOOD);
                frames += size == n;
                free(data);
            }
            else {
                CHECK(size > last);
                last = size;
            }
        }
        CHECK_EQUAL(got, LANE_NONE);
        CHECK_EQUAL(frames, sent);
        CHECK(last == LANE_FOR_GOOD);
        CHECK(!lane_send(here, LANE_IS_FRAME, frame, 1)); /* for good, though there is room again */
        CHECK(lane_send(there, LANE_IS_FRAME, frame, n)); /* the other ring is another matter */
        close_pair();
    }
}

static void
test_sleeping(void)
{
    void *data;
    size_t size;
    open_pair();
    struct pollfd bell = {.fd = lane_bell(there), .events = POLLIN};
    CHECK(lane_send(here, LANE_IS_FRAME, "a", 1));
    CHECK_EQUAL(poll(&bell, 1, 0), 0); /* it was awake: no bell */
    CHECK(!lane_doze(there));          /* something is there already */
    CHECK_EQUAL(lane_recv(there, NULL, 0, &data, &size), LANE_FRAME);
    free(data);
    CHECK(lane_doze(there));
    CHECK_EQUAL(poll(&bell, 1, 0), 0);
    CHECK(lane_send(here, LANE_IS_FRAME, "b", 1));
    CHECK_EQUAL(poll(&bell, 1, 0), 1);
    CHECK(lane_send(here, LANE_IS_FRAME, "c", 1));
    lane_woken(there);
    CHECK_EQUAL(poll(&bell, 1, 0), 0); /* rung once, and silent again */
    /* One that was closed, or is something else by now, can wake nobody. */
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK_EQUAL(dup2(null, lane_bell(there)), lane_bell(there));
    CHECK(!lane_woken(there));
    close(null);
    /* A bell that nobody listens to does not block whoever rings it. */
    close_pair();
    open_pair();
    for (int i = 0; i < 10000; i++) {
        CHECK(lane_doze(here));
        CHECK(lane_send(there, LANE_IS_FRAME, "d", 1));
        CHECK_EQUAL(lane_recv(here, NULL, 0, &data, &size), LANE_FRAME);
        free(data);
    }
    close_pair();
}

static void
test_sealed(void)
{
    int fds[LANE_FDS];
    here = lane_make(fds);
    CHECK_EQUAL(ftruncate(fds[LANE_MEMORY], 0), -1);
    CHECK_EQUAL(ftruncate(fds[LANE_MEMORY], 1 << 30), -1);
    for (int i = 0; i < LANE_FDS; i++) {
        CHECK(fcntl(fds[i], F_GETFD) & FD_CLOEXEC);
    }
    int other[LANE_FDS] = {memfd_create("other", MFD_CLOEXEC), fds[LANE_BELL]};
    CHECK(lane_join(other) == NULL);
    CHECK_EQUAL(errno, EPROTO);
    CHECK_EQUAL(fcntl(other[LANE_MEMORY], F_GETFD), -1); /* both are closed */
    CHECK_EQUAL(fcntl(other[LANE_BELL], F_GETFD), -1);
    CHECK(!lane_joined(here));
    close(fds[LANE_MEMORY]);
    lane_free(here);
}

/* ---- what a hostile other end may do -------------------------------------------------------- */

/* Where the ring to `to` keeps the word of the record with this content. */
static uint64_t *
word_of(const char *content)
{
    unsigned char *at = memmem(memory, memory_size, content, strlen(content));
    CHECK(at != NULL);
    return (uint64_t *)(void *)(at - sizeof(uint64_t));
}

/* Each of these words is refused, and from then on so is all that follows. */
static void
test_garbled_words(void)
{
    static const uint64_t words[] = {
        1ull << 56 | (LANE_FRAME_MAX + 1), /* a frame that is too big */
        1ull << 56 | UINT32_MAX,
        1ull << 56 | ((1ull << 56) - 1),
        3ull << 56, /* at the start of the ring: this would go round for ever */
        0ull << 56 | 1,
        4ull << 56 | (LANE_FRAME_MAX + 1), /* the same as what is in an extent */
        5ull << 56,
        255ull << 56,
        UINT64_MAX,
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++) {
        void *data;
        size_t size;
        open_pair();
        CHECK(lane_send(there, LANE_IS_FRAME, "the only frame", 14));
        *word_of("the only frame") = words[i];
        CHECK(lane_ready(here));
        CHECK_EQUAL(lane_recv(here, NULL, 0, &data, &size), LANE_GARBLED);
        *word_of("the only frame") = 1ull << 56 | 14;
        CHECK_EQUAL(lane_recv(here, NULL, 0, &data, &size), LANE_GARBLED);
        close_pair();
    }
}

/* A frame whose size says that it goes on behind the end of the ring. */
static void
test_frame_across_the_end(void)
{
    static unsigned char frame[LANE_FRAME_MAX];
    void *data;
    size_t size;
    open_pair();
    /* Unread, so that the writer cannot go back early: near the end by the last one. */
    while (lane_send(there, LANE_IS_FRAME, frame, 32 * 1024 - 8)) {
    }
    memcpy(frame, "near the end", 12);
    CHECK(lane_send(there, LANE_IS_FRAME, frame, 4000));
    *word_of("near the end") = 1ull << 56 | LANE_FRAME_MAX;
    enum lane_got got;
    while ((got = lane_recv(here, NULL, 0, &data, &size)) == LANE_FRAME) {
        free(data);
    }
    CHECK_EQUAL(got, LANE_GARBLED);
    close_pair();
}

static atomic_bool stop;

/* Writes noise into all of the memory, words of records and indices above all. */
static void *
garbles(void *seed)
{
    uint64_t state = (uint64_t)(uintptr_t)seed;
    while (!stop) {
        for (int i = 0; i < 1000; i++) {
            state = state * 6364136223846793005u + 1442695040888963407u;
            uint64_t random = state >> 16;
            size_t at = random % 3 == 0   ? (random >> 8) % 4096
                        : random % 3 == 1 ? (random >> 8) % memory_size
                                          : (random >> 8) % memory_size / 64 * 64;
            uint64_t value = (random & 16) ? ((random >> 5) % 5) << 56 | random >> 32 : state;
            atomic_store_explicit((_Atomic uint64_t *)(void *)(memory + at / 8 * 8), value,
                                  memory_order_relaxed);
        }
    }
    return NULL;
}

/* Nothing that stands in the memory crashes or holds up this end, whatever it does. */
static void
test_noise(void)
{
    static unsigned char frame[LANE_FRAME_MAX];
    for (uintptr_t seed = 1; seed <= 20; seed++) {
        pthread_t thread;
        open_pair();
        stop = false;
        pthread_create(&thread, NULL, garbles, (void *)seed);
        double start = check_now();
        for (int i = 0; check_now() - start < 50; i++) {
            void *data;
            size_t size = 0;
            enum lane_got got = lane_recv(here, NULL, 0, &data, &size);
            if (got == LANE_FRAME || got == LANE_EXTENT) {
                CHECK(size <= LANE_FRAME_MAX);
                free(data);
            }
            (void)lane_ready(here);
            (void)lane_joined(here);
            (void)lane_stacked(here);
            if (lane_doze(here)) {
                lane_woken(here);
            }
            (void)lane_send(here, LANE_IS_FRAME, frame, (size_t)i * 37 % (LANE_FRAME_MAX + 1));
            if (i % 64 == 0) {
                lane_elsewhere(here, (uint64_t)i);
            }
        }
        stop = true;
        pthread_join(thread, NULL);
        close_pair();
    }
}

/* A reader that claims to have read what was never written gets no room for it. */
static void
test_garbled_indices(void)
{
    static const uint64_t values[] = {64, 1 << 20, UINT64_MAX, UINT64_MAX - 63, 1ull << 63};
    static unsigned char frame[LANE_FRAME_MAX];
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        open_pair();
        size_t sent = 0;
        for (int k = 0; k < 100; k++) {
            for (size_t at = 0; at < 4096; at += 8) { /* the joined flag among them */
                memcpy(memory + at, &values[i], 8);
            }
            sent += lane_send(here, LANE_IS_FRAME, frame, LANE_FRAME_MAX);
        }
        /* 64 bytes more may be believed; not more than was written. */
        CHECK(sent <= 8);
        close_pair();
    }
}

int
main(void)
{
    test_sizes();
    test_two_streams();
    test_ping_pong_of_processes();
    test_full();
    test_sleeping();
    test_sealed();
    test_garbled_words();
    test_frame_across_the_end();
    test_garbled_indices();
    test_noise();
    return check_report();
}
