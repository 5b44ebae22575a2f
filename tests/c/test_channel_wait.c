/* Tests of ext/channel_wait.c: the one wait, for frames, descriptors and a time. */
#define _GNU_SOURCE
#include "channel_pair.h"

#include <sched.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

/* In place of the C library's: what was asked for. */
static cpu_set_t asked[1000];
static int n_asked;

int
sched_setaffinity(pid_t pid, size_t size, const cpu_set_t *set)
{
    if (n_asked < 1000) {
        asked[n_asked++] = *set;
    }
    return (int)syscall(SYS_sched_setaffinity, pid, size, set);
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

/* Both ends are this one thread, so they share a processor whatever happens: the accepting end goes
 * elsewhere after a few waits, less and less often as that does not help, and may run where it
 * might before. */
static void
test_ends_on_one_processor_part(void)
{
    cpu_set_t allowed;
    unsigned ready;
    int at_100 = 0;
    CHECK_EQUAL(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    open_pair();
    n_asked = 0;
    for (int i = 0; i < 1000; i++) {
        CHECK_EQUAL(channel_send(here, "a", 1), 0);
        CHECK(channel_wait(there, NULL, 0, 5000, &ready) >= 0);
        expect(there, "a");
        CHECK_EQUAL(channel_send(there, "b", 1), 0);
        CHECK(channel_wait(here, NULL, 0, 5000, &ready) >= 0);
        expect(here, "b");
        at_100 = i == 99 ? n_asked : at_100;
    }
    if (!with_lane || CPU_COUNT(&allowed) == 1) {
        CHECK_EQUAL(n_asked, 0);
    }
    else {
        CHECK(at_100 >= 2 * 2);
        CHECK(n_asked > at_100 && n_asked <= 2 * 15);
    }
    for (int i = 0; i + 1 < n_asked; i += 2) {
        CHECK_EQUAL(CPU_COUNT(&asked[i]), CPU_COUNT(&allowed) - 1);
        CHECK(CPU_EQUAL(&asked[i + 1], &allowed));
    }
    CHECK_EQUAL(n_asked % 2, 0);
    close_pair();
}

/* The other end leaves when it goes to sleep, and not each time. */
static void
test_sleeping_elsewhere(void)
{
    cpu_set_t allowed;
    unsigned ready;
    double last = 0;
    int left = 0;
    CHECK_EQUAL(sched_getaffinity(0, sizeof allowed, &allowed), 0);
    open_pair();
    for (int i = 0; i < 200; i++) {
        CHECK_EQUAL(channel_send(here, "a", 1), 0);
        CHECK(channel_wait(there, NULL, 0, 5000, &ready) >= 0);
        expect(there, "a");
        CHECK_EQUAL(channel_send(there, "b", 1), 0);
        CHECK(channel_wait(here, NULL, 0, 5000, &ready) >= 0);
        expect(here, "b");
        n_asked = 0;
        CHECK_EQUAL(channel_send(here, "c", 1), 0); /* frames come and go: this is no idle end */
        expect(there, "c");
        double before = check_now();
        CHECK_EQUAL(channel_wait(here, NULL, 0, 1, &ready), 0);
        if (n_asked > 0) {
            CHECK_EQUAL(n_asked, 2);
            /* From before it last left until after it has left again, whatever else takes time. */
            CHECK(last == 0 || check_now() - last >= 9);
            last = before;
            left++;
        }
    }
    if (with_lane && CPU_COUNT(&allowed) > 1) {
        CHECK(left >= 3);
    }
    else {
        CHECK_EQUAL(left, 0);
    }
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
        test_ends_on_one_processor_part();
        test_sleeping_elsewhere();
    }
    return check_report();
}
