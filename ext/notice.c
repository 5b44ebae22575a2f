#define _GNU_SOURCE 1
#include "notice.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#endif

#if defined IORING_SETUP_DEFER_TASKRUN && defined IORING_POLL_ADD_MULTI

/* A poll that an io_uring goes on with: who writes to a pipe sets a bit in memory of ours before
 * its write() returns (IORING_SETUP_TASKRUN_FLAG). It does no more than that: with
 * IORING_SETUP_DEFER_TASKRUN nothing interrupts our thread, and the events wait until it asks. */

#define ENTRIES 8u
#define NEEDED (IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG)

struct notice {
    int ring;
    pid_t thread; /* the only one that the system lets ask */
    void *memory;
    size_t size;
    const _Atomic uint32_t *flags; /* of the submissions */
    const _Atomic uint32_t *tail;  /* of the completions, as the two below */
    _Atomic uint32_t *head;
    const struct io_uring_cqe *events;
    uint32_t mask;
    uint32_t seen; /* what *head is */
    bool broken;   /* a descriptor is not watched any more */
};

static int
enter(int ring, unsigned submit, unsigned flags)
{
    return (int)syscall(SYS_io_uring_enter, ring, submit, 0, flags, NULL, 0);
}

/* Submits one poll for each descriptor. 0, or -1 and errno. */
static int
watch(notice *n, const struct io_uring_params *p, const int *fds, int nfds)
{
    size_t size = p->sq_entries * sizeof(struct io_uring_sqe);
    struct io_uring_sqe *entries =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, n->ring, IORING_OFF_SQES);
    if (entries == MAP_FAILED) {
        return -1;
    }
    char *base = n->memory;
    uint32_t *order = (uint32_t *)(base + p->sq_off.array);
    for (int i = 0; i < nfds; i++) {
        memset(&entries[i], 0, sizeof entries[i]);
        entries[i].opcode = IORING_OP_POLL_ADD;
        entries[i].fd = fds[i];
        entries[i].len = IORING_POLL_ADD_MULTI;
        entries[i].poll32_events = POLLIN;
        order[i] = (uint32_t)i;
    }
    atomic_store_explicit((_Atomic uint32_t *)(base + p->sq_off.tail), (uint32_t)nfds,
                          memory_order_release);
    int rc = enter(n->ring, (unsigned)nfds, 0);
    munmap(entries, size);
    return rc == nfds ? 0 : -1;
}

notice *
notice_new(const int *fds, int nfds)
{
    struct io_uring_params p = {.flags = NEEDED};
    notice *n = calloc(1, sizeof *n);
    int saved;
    if (n == NULL) {
        return NULL;
    }
    n->memory = MAP_FAILED;
    n->ring = (int)syscall(SYS_io_uring_setup, ENTRIES, &p);
    if (n->ring < 0) {
        goto error;
    }
    errno = ENOSYS;
    if (!(p.features & IORING_FEAT_SINGLE_MMAP) || (unsigned)nfds > p.sq_entries) {
        goto error;
    }
    n->thread = (pid_t)syscall(SYS_gettid);
    n->size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    if (n->size < p.sq_off.array + p.sq_entries * sizeof(uint32_t)) {
        n->size = p.sq_off.array + p.sq_entries * sizeof(uint32_t);
    }
    n->memory =
        mmap(NULL, n->size, PROT_READ | PROT_WRITE, MAP_SHARED, n->ring, IORING_OFF_SQ_RING);
    if (n->memory == MAP_FAILED) {
        goto error;
    }
    char *base = n->memory;
    n->flags = (const _Atomic uint32_t *)(base + p.sq_off.flags);
    n->head = (_Atomic uint32_t *)(base + p.cq_off.head);
    n->tail = (const _Atomic uint32_t *)(base + p.cq_off.tail);
    n->events = (const struct io_uring_cqe *)(base + p.cq_off.cqes);
    n->mask = p.cq_entries - 1;
    if (watch(n, &p, fds, nfds) < 0) {
        goto error;
    }
    return n;
error:
    saved = errno;
    notice_free(n);
    errno = saved;
    return NULL;
}

void
notice_free(notice *n)
{
    if (n != NULL) {
        if (n->memory != MAP_FAILED) {
            munmap(n->memory, n->size);
        }
        if (n->ring >= 0) {
            close(n->ring);
        }
        free(n);
    }
}

bool
notice_quiet(const notice *n)
{
    return !n->broken && atomic_load_explicit(n->flags, memory_order_acquire) == 0 &&
           atomic_load_explicit(n->tail, memory_order_acquire) == n->seen;
}

void
notice_take(notice *n)
{
    if (n->broken || notice_quiet(n) || (pid_t)syscall(SYS_gettid) != n->thread) {
        return;
    }
    n->broken = enter(n->ring, 0, IORING_ENTER_GETEVENTS) < 0 && errno != EINTR;
    uint32_t tail = atomic_load_explicit(n->tail, memory_order_acquire);
    for (; n->seen != tail; n->seen++) {
        n->broken = n->broken || !(n->events[n->seen & n->mask].flags & IORING_CQE_F_MORE);
    }
    atomic_store_explicit(n->head, n->seen, memory_order_release);
}

#else

notice *
notice_new(const int *fds, int n)
{
    (void)fds;
    (void)n;
    errno = ENOSYS;
    return NULL;
}

void
notice_free(notice *n)
{
    (void)n;
}

bool
notice_quiet(const notice *n)
{
    (void)n;
    return false;
}

void
notice_take(notice *n)
{
    (void)n;
}

#endif
