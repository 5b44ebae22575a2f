#define _GNU_SOURCE 1
#include "bigcopy.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* One thread does not use all of the memory's bandwidth, and changing the access of so many pages
 * takes a third of the time that copying them does. More than that many gain nothing. */
#define PARTS_MOST 4
/* What a thread of its own is worth starting for: that takes some 30 us, as copying 300 kB does. */
#define PART_LEAST ((size_t)4 << 20)
/* As NumPy has it for its own arrays. */
#define FRESH_LEAST ((size_t)4 << 20)
#define STACK_SIZE ((size_t)128 << 10) /* a report of a crash is made on it */

struct part {
    char *to;
    const char *from;
    size_t size;
    bool opens, closes, failed;
};

static void *
copy_part(void *argument)
{
    struct part *p = argument;

    if (p->opens && mprotect(p->to, p->size, PROT_READ | PROT_WRITE) < 0) {
        p->failed = true;
        return NULL;
    }
    memcpy(p->to, p->from, p->size);
    if (p->closes)
        mprotect(p->to, p->size, PROT_NONE);
    return NULL;
}

static size_t
processors(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof set, &set) < 0 ? 1 : (size_t)CPU_COUNT(&set);
}

/* It runs no handler of signals but of those that its own reading raises: what is copied may be a
 * file that somebody has made shorter. */
static bool
start(pthread_t *thread, struct part *p)
{
    size_t least = (size_t)sysconf(_SC_THREAD_STACK_MIN);
    pthread_attr_t attributes;
    sigset_t all, before;
    int error;

    if (pthread_attr_init(&attributes) != 0)
        return false;
    pthread_attr_setstacksize(&attributes, STACK_SIZE < least ? least : STACK_SIZE);
    sigfillset(&all);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    error = pthread_create(thread, &attributes, copy_part, p);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return error == 0;
}

void
big_fresh(void *data, size_t size)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t from = ((uintptr_t)data + page - 1) / page * page;
    uintptr_t to = ((uintptr_t)data + size) / page * page;

    if (size >= FRESH_LEAST && from < to)
        madvise((void *)from, to - from, MADV_HUGEPAGE);
}

bool
big_copy(void *to, const void *from, size_t size, bool opens, bool closes)
{
    struct part parts[PARTS_MOST];
    pthread_t threads[PARTS_MOST];
    bool started[PARTS_MOST] = {false}, failed = false;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), n = size / PART_LEAST, each, at = 0;

    n = n > PARTS_MOST ? PARTS_MOST : n;
    if (n > 1 && n > processors())
        n = processors();
    n = n < 1 ? 1 : n;
    each = (size / n + page - 1) / page * page;
    for (size_t i = 0; i < n; i++) {
        size_t left = size - at, part = i + 1 == n || left < each ? left : each;
        parts[i] =
            (struct part){(char *)to + at, (const char *)from + at, part, opens, closes, false};
        at += part;
        started[i] = i > 0 && start(&threads[i], &parts[i]);
    }
    for (size_t i = 0; i < n; i++)
        if (!started[i])
            copy_part(&parts[i]);
    for (size_t i = 0; i < n; i++) {
        if (started[i])
            pthread_join(threads[i], NULL);
        failed = failed || parts[i].failed;
    }
    return !failed;
}
