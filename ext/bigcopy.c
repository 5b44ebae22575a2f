#define _GNU_SOURCE 1
#include "bigcopy.h"

#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __SSE2__
#include <emmintrin.h>
#endif

/* One thread does not use all of the memory's bandwidth. More than that many gain nothing. */
#define THREADS_MOST 4
/* What a thread of its own is worth starting for: that takes some 30 us, as copying 300 kB does. */
#define PART_LEAST ((size_t)4 << 20)
/* Threads take pieces of that size in turns: one that starts late, since the processors are busy,
 * is not waited for. */
#define PIECE ((size_t)1 << 20)
/* From this size on what is copied has no place in the caches: to write past them saves reading
 * what is overwritten, and leaves in them what was there. */
#define PAST_CACHES ((size_t)16 << 20)
/* As NumPy has it for its own arrays. */
#define FRESH_LEAST ((size_t)4 << 20)
#define STACK_SIZE ((size_t)128 << 10) /* a report of a crash is made on it */

struct job {
    char *to;
    const char *from;
    size_t size;
    bool past_caches;
    _Atomic size_t next;
};

/* The target is at a boundary of 16 bytes. */
static void
copy_past_caches(char *to, const char *from, size_t size)
{
    size_t at = 0;

#ifdef __SSE2__
    for (; size - at >= 64; at += 64) {
        __m128i a = _mm_loadu_si128((const __m128i *)(from + at));
        __m128i b = _mm_loadu_si128((const __m128i *)(from + at + 16));
        __m128i c = _mm_loadu_si128((const __m128i *)(from + at + 32));
        __m128i d = _mm_loadu_si128((const __m128i *)(from + at + 48));
        _mm_stream_si128((__m128i *)(to + at), a);
        _mm_stream_si128((__m128i *)(to + at + 16), b);
        _mm_stream_si128((__m128i *)(to + at + 32), c);
        _mm_stream_si128((__m128i *)(to + at + 48), d);
    }
    _mm_sfence(); /* before anybody is told of it */
#endif
    memcpy(to + at, from + at, size - at);
}

static void *
copy_pieces(void *argument)
{
    struct job *job = argument;

    for (size_t at; (at = atomic_fetch_add(&job->next, PIECE)) < job->size;) {
        size_t left = job->size - at, size = left < PIECE ? left : PIECE;
        if (job->past_caches)
            copy_past_caches(job->to + at, job->from + at, size);
        else
            memcpy(job->to + at, job->from + at, size);
    }
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
start(pthread_t *thread, struct job *job)
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
    error = pthread_create(thread, &attributes, copy_pieces, job);
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

void
big_copy(void *to, const void *from, size_t size)
{
    struct job job = {to, from, size, size >= PAST_CACHES && (uintptr_t)to % 16 == 0, 0};
    pthread_t threads[THREADS_MOST];
    size_t n = size / PART_LEAST, started = 0;

    n = n > THREADS_MOST ? THREADS_MOST : n;
    if (n > 1 && n > processors())
        n = processors();
    while (started + 1 < n && start(&threads[started], &job))
        started++;
    copy_pieces(&job);
    for (size_t i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
}
