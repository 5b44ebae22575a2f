/* stack.c: whether this thread is about to use up its C stack. CPython counts calls, and since 3.12
 * allows so many in C that 8 MB do not do for calls between two processes, each of which takes some
 * kilobytes on either side. */
#define _GNU_SOURCE 1
#include "stack.h"

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* For what is called without another look: code of others, the exception, the answer that says so.
 * Of a small stack a quarter, but not less than some requests take. */
#define RESERVE (256u * 1024)
#define RESERVE_LEAST (32u * 1024)
/* Linux keeps so much free between a stack that may grow without limit and what is below it. */
#define GAP (1024u * 1024)

/* Of this thread: the lowest address of its stack, and up to which it is low for each use. 0:
 * nobody has asked yet. */
static _Thread_local uintptr_t begin, low[2];

static bool
is_initial(void)
{
    return syscall(SYS_gettid) == getpid();
}

static void
look(void)
{
    pthread_attr_t attributes;
    void *lowest = NULL;
    size_t size = 0, guard = 0;
    low[STACK_REQUEST] = low[STACK_OBJECT] = 1; /* unknown */
    if (pthread_getattr_np(pthread_self(), &attributes) != 0) {
        return;
    }
    if (pthread_attr_getstack(&attributes, &lowest, &size) == 0 &&
        pthread_attr_getguardsize(&attributes, &guard) == 0 && size > guard) {
        size_t reserve = size / 4 < RESERVE_LEAST ? RESERVE_LEAST
                         : size / 4 < RESERVE     ? size / 4
                                                  : RESERVE;
        struct rlimit limit;
        if (is_initial() && getrlimit(RLIMIT_STACK, &limit) == 0 &&
            limit.rlim_cur == RLIM_INFINITY) {
            guard += GAP;
        }
        begin = (uintptr_t)lowest;
        low[STACK_REQUEST] = begin + guard + reserve;
        low[STACK_OBJECT] = begin + guard + reserve / 2;
    }
    pthread_attr_destroy(&attributes);
}

bool
stack_is_low(enum stack_use use)
{
    uintptr_t here = (uintptr_t)__builtin_frame_address(0);
    if (low[use] == 0) {
        look();
    }
    if (here >= low[use] || here < begin) {
        return false;
    }
    if (is_initial()) { /* its limit may have been raised */
        look();
    }
    return here < low[use];
}
