#define _GNU_SOURCE
#include "freeze.h"

#include "arena.h"

#include "fdfloor.h"
#include "fdpass.h"
#include "yield.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef PR_GET_TID_ADDRESS
#define PR_GET_TID_ADDRESS 40
#endif

/* A frozen copy is the first to go where memory runs out: what it is for is to help, not to harm.
 */
#define FROZEN_OOM_SCORE "800"

/* ---- being nobody's child ------------------------------------------------------------------ */

#if defined __x86_64__ && defined SYS_rseq

extern const ptrdiff_t __rseq_offset __attribute__((weak));
#define RSEQ_SIZE 32
#define RSEQ_SIGNATURE 0x53053053
#define RSEQ_UNREGISTER 1

/* A second process with the very memory, stack and registers of this one, which ends in the same
 * breath: its memory passes to the other, and nothing is copied twice. That one is an orphan, which
 * the next sub-reaper inherits. This one must not touch memory once there are two.
 *
 * 0 in the other process, -1 and errno when there is none. */
static int
pass_on(void)
{
    void *robust = NULL;
    size_t robust_size = 0;
    int *tid = NULL;
    long result;
    char *rseq = &__rseq_offset ? (char *)__builtin_thread_pointer() + __rseq_offset : NULL;

    /* What the system would write to at the end of a thread is the other's now, and libc's idea of
     * the thread's number is to be the other's. */
    if (prctl(PR_GET_TID_ADDRESS, &tid, 0, 0, 0) < 0 || !tid)
        return -1;
    if (syscall(SYS_get_robust_list, 0, &robust, &robust_size) < 0)
        return -1;
    syscall(SYS_set_robust_list, NULL, sizeof(void *) * 3);
    syscall(SYS_set_tid_address, NULL);
    if (rseq)
        syscall(SYS_rseq, rseq, RSEQ_SIZE, RSEQ_UNREGISTER, RSEQ_SIGNATURE);

    register long r10 __asm__("r10") = (long)tid;
    register long r8 __asm__("r8") = 0;
    register long r9 __asm__("r9") = SYS_exit_group;
    __asm__ volatile("syscall\n\t"
                     "test %%rax, %%rax\n\t"
                     "jle 1f\n\t"
                     "xor %%edi, %%edi\n\t"
                     "mov %%r9, %%rax\n\t"
                     "syscall\n\t"
                     "hlt\n"
                     "1:"
                     : "=a"(result)
                     : "0"((long)SYS_clone),
                       "D"((long)(CLONE_VM | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD)),
                       "S"(0L), "d"(0L), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    if (result < 0) {
        errno = (int)-result;
        return -1;
    }
    syscall(SYS_set_robust_list, robust, robust_size);
    if (rseq)
        syscall(SYS_rseq, rseq, RSEQ_SIZE, 0, RSEQ_SIGNATURE);
    return 0;
}

#else

static int
pass_on(void)
{
    errno = ENOSYS;
    return -1;
}

#endif

/* In a child of the process: becomes an orphan, by pass_on() or, where that cannot be done, by
 * copying once more. Returns in the copy. */
static void
become_orphan(void)
{
    if (pass_on() == 0)
        return;
    pid_t pid = fork();
    if (pid == 0)
        return;
    _exit(pid < 0 ? errno : 0);
}

/* ---- files --------------------------------------------------------------------------------- */

/* Something that the copy may share with the process it was copied from: it is only read, and has
 * no state but an offset. */
static int
is_kept(int fd, const struct stat *facts)
{
    int flags;

    if (fd >= fd_floor())
        return 0;
    if (S_ISCHR(facts->st_mode))
        return fd != 1 && fd != 2;
    flags = fcntl(fd, F_GETFL);
    return (S_ISREG(facts->st_mode) || S_ISDIR(facts->st_mode)) && flags >= 0 &&
           (flags & O_ACCMODE) == O_RDONLY;
}

/* Calls `look` with each open descriptor but `but`. -1 and errno where nobody knows which those
 * are. */
static int
each_file(struct frozen *self, int but, int (*look)(struct frozen *, int, const struct stat *))
{
    DIR *entries = opendir("/proc/self/fd");
    struct dirent *entry;
    struct stat facts;
    int rc = entries ? 0 : -1;

    while (rc == 0 && (entry = readdir(entries))) {
        int fd = atoi(entry->d_name);
        if (entry->d_name[0] != '.' && fd != dirfd(entries) && fd != but && fstat(fd, &facts) == 0)
            rc = look(self, fd, &facts);
    }
    int error = errno;
    if (entries)
        closedir(entries);
    errno = error;
    return rc;
}

static int
note_offset(struct frozen *self, int fd, const struct stat *facts)
{
    off_t offset = is_kept(fd, facts) ? lseek(fd, 0, SEEK_CUR) : -1;

    if (offset < 0)
        return 0;
    if (self->noffsets % 16 == 0) {
        struct offset *more = realloc(self->offsets, (self->noffsets + 16) * sizeof *self->offsets);
        if (!more)
            return -1;
        self->offsets = more;
    }
    self->offsets[self->noffsets++] = (struct offset){fd, offset};
    return 0;
}

static int
close_unless_kept(struct frozen *self, int fd, const struct stat *facts)
{
    (void)self;
    if (!is_kept(fd, facts) && !block_has(fd))
        close(fd);
    return 0;
}

static void
oom_score(char *old, size_t size, const char *score)
{
    int fd = open("/proc/self/oom_score_adj", O_RDWR | O_CLOEXEC);

    if (fd < 0)
        return; /* as in a chroot */
    if (old) {
        ssize_t n = read(fd, old, size - 1);
        old[n > 0 ? n : 0] = 0;
    }
    if (*score)
        (void)!write(fd, score, strlen(score));
    close(fd);
}

/* ---- the copy ------------------------------------------------------------------------------ */

int
freeze(struct frozen *self, int *kernel_end)
{
    int ends[2], status = 0, error;
    pid_t middle, kernel_side = getppid();

    memset(self, 0, sizeof *self);
    /* Before there are two: both move on in the same files. */
    if (each_file(self, -1, note_offset) < 0)
        goto error;
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        goto error;
    ends[0] = fd_raise(ends[0]);
    ends[1] = fd_raise(ends[1]);
    middle = fork();
    if (middle == 0) {
        /* The end of the process, which takes its group along, is not the copy's. */
        setpgid(0, 0);
        become_orphan();
        self->line = ends[1];
        self->supervisor = kernel_side;
        close(ends[0]);
        return 1;
    }
    error = errno;
    close(ends[1]);
    if (middle > 0) {
        pid_t ended;
        while ((ended = waitpid(middle, &status, 0)) < 0 && errno == EINTR)
            ;
        /* Somebody else here may wait for any child; then how it ended is not known. */
        error = ended == middle && WIFEXITED(status) ? WEXITSTATUS(status)
                : ended == middle                    ? EIO
                                                     : 0;
    }
    free(self->offsets);
    self->offsets = NULL;
    if (middle < 0 || error) {
        close(ends[0]);
        errno = error;
        return -1;
    }
    *kernel_end = ends[0];
    return 0;
error:
    error = errno;
    free(self->offsets);
    self->offsets = NULL;
    errno = error;
    return -1;
}

void
freeze_await(struct frozen *self, int fds[FREEZE_FDS])
{
    struct freeze_birth birth = {.magic = FREEZE_MAGIC, .pid = getpid()};
    struct freeze_order order;

    if (fdpass_send(self->line, &birth, sizeof birth, NULL, 0, 0) < 0)
        _exit(0);

    for (;;) {
        int n = FREEZE_FDS;
        ssize_t size = fdpass_recv(self->line, &order, sizeof order, fds, &n, 0);
        if (size < 0 && errno == EINTR)
            continue;
        if (size == sizeof order && order.magic == FREEZE_MAGIC && n == FREEZE_FDS)
            break;
        make_way(0);
        _exit(0);
    }
    for (int i = 0; i < FREEZE_FDS; i++)
        fds[i] =
            fd_raise(fds[i]); /* 1 and 2 may be free, and are taken only by their right owners */
    close(self->line);
    self->line = -1;
}

void
freeze_wait(struct frozen *self, int fds[FREEZE_FDS])
{
    /* The end of the parent must be the end of the copy, but only the supervisor's: the process in
     * the middle may not be quite gone. */
    prctl(PR_SET_PDEATHSIG, 0);
    for (int i = 0; i < 10000 && getppid() != self->supervisor; i++)
        sched_yield();
    if (getppid() == self->supervisor)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    setpgid(0, 0);
    if (each_file(self, self->line, close_unless_kept) < 0)
        _exit(1); /* what it cannot close would keep the dead process's pipes open */
    oom_score(self->oom, sizeof self->oom, FROZEN_OOM_SCORE);
    freeze_await(self, fds);
    oom_score(NULL, 0, self->oom);
    for (size_t i = 0; i < self->noffsets; i++)
        lseek(self->offsets[i].fd, self->offsets[i].offset, SEEK_SET);
    free(self->offsets);
    self->offsets = NULL;
    self->noffsets = 0;
}
