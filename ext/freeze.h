/* freeze.h: child side: a frozen copy of this process, which waits for the order to take over.
 * No Python.
 *
 * The copy is no child of this process, whose code may wait for its children: the supervisor, the
 * next sub-reaper above, inherits it. It holds no descriptor of the life it was copied from and
 * runs nothing until it is told to; it ends when the kernel closes the line to it. */
#ifndef ISOLATION_FREEZE_H
#define ISOLATION_FREEZE_H

#include <stdint.h>
#include <sys/types.h>

/* The first message on the line, by the copy. */
struct freeze_birth {
    uint32_t magic;
    int32_t pid;
};
/* The order to take over, by the kernel; with the descriptors of enum freeze_fd. */
struct freeze_order {
    uint32_t magic;
};
#define FREEZE_MAGIC 0x46525a33u

enum freeze_fd { FREEZE_OUT, FREEZE_ERR, FREEZE_PASS, FREEZE_SHARED, FREEZE_ALARM, FREEZE_FDS };

/* What a copy keeps for when it takes over. */
struct frozen {
    int line;         /* the copy's end of the line */
    pid_t supervisor; /* whose end is the copy's end */
    struct offset {
        int fd;
        off_t offset;
    } * offsets; /* owned: of the files that it shares with the process it was copied from */
    size_t noffsets;
    char oom[16]; /* its oom_score_adj */
};

/* In the process: 0, with the kernel's end of the line in *kernel_end (the caller's), or -1 and
 * errno. In the copy: 1; it must go on with freeze_wait(). Only the calling thread is in the copy;
 * memory is copied when either side writes to it. */
int freeze(struct frozen *self, int *kernel_end);

/* In the copy, once the records of the life's descriptors have been dropped: closes all but files
 * that are only read, and waits. Returns with the descriptors of the new life, close-on-exec and
 * the caller's, and with those files where they were; or does not return. */
void freeze_wait(struct frozen *self, int fds[FREEZE_FDS]);

/* The part of it that is for any process that waits for a life: says on the line that it is there,
 * and waits for the order. Closes the line. */
void freeze_await(struct frozen *self, int fds[FREEZE_FDS]);

#endif
