/* How far the processors are from each other: two processes, each of which waits for the other by
 * looking at one line of memory. No exchange by shared memory can be faster, and none over anything
 * else. On virtual machines this changes from one second to the next, with where the host puts
 * them.
 *
 *   line        reads a count n on stdin, sends a line there and back n times, and writes the u64
 * nanoseconds that one took on average to stdout; again until end of file
 */
#define _GNU_SOURCE 1
#include "clock.h"

#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define LINE 64
#define LINES 64 /* used in turn, as those of a lane */

struct line {
    _Alignas(LINE) _Atomic uint64_t number;
    unsigned char bytes[LINE - sizeof(uint64_t)];
};

struct memory {
    struct line there[LINES], back[LINES];
};

static void
die(const char *what)
{
    perror(what);
    exit(1);
}

static void
put(struct line *lines, uint64_t number, const unsigned char *bytes)
{
    struct line *line = &lines[number % LINES];
    memcpy(line->bytes, bytes, sizeof line->bytes);
    atomic_store_explicit(&line->number, number, memory_order_release);
}

static pid_t parent, other; /* the other: who is waited for, the child or the parent */

static bool
other_is_gone(void)
{
    return other == parent ? getppid() != parent : waitpid(other, NULL, WNOHANG) != 0;
}

static void
await(struct line *lines, uint64_t number, unsigned char *bytes)
{
    struct line *line = &lines[number % LINES];
    for (unsigned looks = 1; atomic_load_explicit(&line->number, memory_order_acquire) != number;
         looks++) {
        if (looks % 1000000 == 0 && other_is_gone()) {
            exit(1);
        }
#if defined __x86_64__
        __builtin_ia32_pause();
#endif
    }
    memcpy(bytes, line->bytes, sizeof line->bytes);
}

/* Stays on the first or the last processor that it may use: both on one would take turns. */
static void
settle(const cpu_set_t *allowed, bool first)
{
    cpu_set_t one;
    int found = -1;
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (CPU_ISSET(cpu, allowed) && (found < 0 || !first)) {
            found = cpu;
        }
    }
    CPU_ZERO(&one);
    CPU_SET(found, &one);
    if (sched_setaffinity(0, sizeof one, &one) < 0) {
        die("sched_setaffinity");
    }
}

/* Answers the numbers up to `last`, which come one after the other. */
static void
answer(struct memory *m, uint64_t number, uint64_t last)
{
    unsigned char bytes[LINE];
    other = parent; /* which may end at any time: other_is_gone() */
    for (; number <= last; number++) {
        await(m->there, number, bytes);
        put(m->back, number, bytes);
    }
    _exit(0);
}

int
main(void)
{
    unsigned char bytes[LINE] = {0};
    uint64_t n, number = 0, took;
    struct memory *m =
        mmap(NULL, sizeof *m, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (m == MAP_FAILED) {
        die("mmap");
    }
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) < 0) {
        die("sched_getaffinity");
    }
    settle(&allowed, true);
    parent = getpid();
    while (fread(&n, sizeof n, 1, stdin) == 1 && n > 0) {
        /* One for each count: it would spin in between. */
        pid_t child = fork();
        if (child < 0) {
            die("fork");
        }
        other = child;
        if (child == 0) {
            settle(&allowed, false);
            answer(m, number + 1, number + 1 + n);
        }
        put(m->there, ++number, bytes);
        await(m->back, number, bytes); /* it has started */
        uint64_t start = now();
        for (uint64_t i = 0; i < n; i++) {
            put(m->there, ++number, bytes);
            await(m->back, number, bytes);
        }
        took = (now() - start) / n;
        waitpid(child, NULL, 0);
        fwrite(&took, sizeof took, 1, stdout);
        fflush(stdout);
    }
    return 0;
}
