/* Tests of ext/bigcopy.c. */
#define _GNU_SOURCE
#include "bigcopy.h"
#include "check.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define MB ((size_t)1 << 20)
#define MOST (40 * MB)

/* In place of the C library's: how many were started, how many more may be. */
static int started, allowed;
static _Atomic int open_signals;

static void *(*of_thread)(void *);

static void *
look_at_signals(void *argument)
{
    sigset_t blocked;
    pthread_sigmask(SIG_SETMASK, NULL, &blocked);
    for (int signal = 1; signal < 32; signal++) {
        bool open = signal == SIGKILL || signal == SIGSTOP || signal == SIGSEGV || signal == SIGBUS;
        open_signals += (sigismember(&blocked, signal) == 1) == open;
    }
    return of_thread(argument);
}

int
pthread_create(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
               void *argument)
{
    static int (*real)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (real == NULL) {
        *(void **)&real = dlsym(RTLD_NEXT, "pthread_create");
    }
    if (allowed-- <= 0) {
        return EAGAIN;
    }
    started++;
    of_thread = run;
    return real(thread, attributes, look_at_signals, argument);
}

static unsigned char *from, *to;

static void
fill(size_t size)
{
    for (size_t i = 0; i < size; i += 4) {
        *(uint32_t *)(from + i) = (uint32_t)(i * 2654435761u);
    }
    memset(to, 0, size + 1);
}

static void
check(size_t size)
{
    fill(size);
    started = open_signals = 0;
    big_copy(to, from, size);
    CHECK_EQUAL(open_signals, 0);
    CHECK_EQUAL(memcmp(to, from, size), 0);
    CHECK_EQUAL(to[size], 0);
}

static void
test_sizes(void)
{
    cpu_set_t set;
    CHECK_EQUAL(sched_getaffinity(0, sizeof set, &set), 0);
    int most = CPU_COUNT(&set) < 4 ? CPU_COUNT(&set) : 4;
    static const size_t sizes[] = {0,          1,          4096,        4097,    8 * MB - 1,
                                   8 * MB,     8 * MB + 1, 12 * MB + 5, 16 * MB, 17 * MB + 4095,
                                   33 * MB + 1};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        /* Where it begins in a page, and in a line of the caches, makes no difference. */
        for (size_t by = 0; by < 3; by++) {
            static const size_t shifts[] = {0, 8, 32};
            to += shifts[by];
            allowed = 99;
            check(sizes[i]);
            to -= shifts[by];
            int parts = (int)(sizes[i] / (4 * MB));
            CHECK_EQUAL(started, (parts < 1 ? 1 : parts < most ? parts : most) - 1);
        }
    }
}

/* What no thread can be had for is done by the caller. */
static void
test_no_threads(void)
{
    for (int n = 0; n < 3; n++) {
        allowed = n;
        check(33 * MB + 1);
        CHECK(started <= n);
    }
}

static void
test_one_processor(void)
{
    cpu_set_t before, one;
    CHECK_EQUAL(sched_getaffinity(0, sizeof before, &before), 0);
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; cpu++) {
        if (CPU_ISSET(cpu, &before)) {
            CPU_SET(cpu, &one);
        }
    }
    CHECK_EQUAL(sched_setaffinity(0, sizeof one, &one), 0);
    allowed = 99;
    check(33 * MB);
    CHECK_EQUAL(started, 0);
    CHECK_EQUAL(sched_setaffinity(0, sizeof before, &before), 0);
}

int
main(void)
{
    from = mmap(NULL, MOST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    to = mmap(NULL, MOST, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(from != MAP_FAILED && to != MAP_FAILED);
    test_sizes();
    test_no_threads();
    test_one_processor();
    return check_report();
}
