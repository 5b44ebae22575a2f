/* The page that the kernel and one life of the child share, and the descriptors the child is born
 * with. Behind the page, in the same memfd, is the record of a death (record.h).
 *
 * The page is a memfd sealed against resizing, so that no truncation by the child can raise SIGBUS
 * in the kernel. The kernel believes nothing in it: whatever stands here is only ever shown, or
 * compared. */
#ifndef ISOLATION_SHARED_H
#define ISOLATION_SHARED_H

#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>

#define SHARED_MAGIC 0x49534f4cu
#define SHARED_VERSION 6u

/* The child's descriptors; 0 is /dev/null, 1 and 2 are pipes, there are no others. */
enum child_fd {
    CHILD_FD_PASS = 3,   /* its end of the socketpair for descriptors, see fdpass.h */
    CHILD_FD_SHARED = 4, /* the memfd of struct shared_page and struct record */
    CHILD_FD_ALARM = 5,  /* write end of the alarm pipe, non-blocking */
};

/* Values of shared_page.announced. */
enum announced {
    ANNOUNCED_NONE = 0,
    ANNOUNCED_WRITING = 1,   /* the facts are being written: do not read them */
    ANNOUNCED_COMPLETE = 2,  /* nobody can rescue the child any more */
    ANNOUNCED_TENTATIVE = 3, /* an earlier handler was chained and may recover */
};

struct shared_page {
    uint32_t magic, version;

    /* The child's fatal signal. The fields below it are valid while it is COMPLETE or TENTATIVE. */
    _Atomic uint32_t announced;
    int32_t signal;
    int32_t code; /* si_code */
    int32_t pid, tid;
    uint64_t address; /* of the fault; 0 if the signal was sent by a process */
    /* Where the child's memory is limited: whether errno was ENOMEM in the thread that got the
     * signal, and the bytes in use of that limit. */
    int32_t no_memory;
    uint64_t data_used;

    /* Written by the kernel: stand still at a fatal signal, once it is announced. */
    _Atomic uint32_t hold;
    /* Written by the kernel: the number of the cell that runs, or ran last; 0: there are none. */
    _Atomic uint64_t cell;
    /* Written by the kernel: the number of the request to interrupt, 0 for none. */
    _Atomic uint64_t interrupt_request;
    /* Written by the kernel: no call of a batch up to this number is begun any more. */
    _Atomic uint64_t cancelled_request;
    /* What the child writes for each request has a cache line of its own: the kernel looks at the
     * others while it waits.
     *
     * Written by the child: the innermost request that its main thread is executing for the
     * kernel, 0 for none. */
    _Alignas(128) _Atomic uint64_t executing_request;
    /* Written by the child: the last request that its main thread began to execute. */
    _Atomic uint64_t taken_request;

    /* A robust futex that a thread of the child holds while the process lives; 0: not yet. As soon
     * as the process ends, the operating system sets FUTEX_OWNER_DIED in it and wakes who waits. */
    _Atomic uint32_t alive;
    /* The child's own: the list by which the operating system finds it. Here, because private
     * memory may be taken from a process that is out of memory before it comes to its lists. */
    struct robust_list_head held;
    struct robust_list held_alive;
};

_Static_assert(sizeof(struct shared_page) <= 4096, "the shared page is one page");

#endif
