#define _GNU_SOURCE
#include "fdfloor.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define FLOOR 256

static struct {
    pthread_mutex_t lock;
    unsigned depth;
    bool held; /* by `holder`, from fd_hold() on */
    pthread_t holder;
    int source; /* what the fillers are duplicates of; or -1 */
    bool filled[FLOOR];
    dev_t
        device; /* what the fillers are, to leave alone what else may have their numbers by then */
    ino_t inode;
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

int
fd_floor(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur / 2 < FLOOR)
        return (int)(limit.rlim_cur / 2);
    return FLOOR;
}

int
fd_raise(int fd)
{
    int floor = fd_floor(), raised;

    if (fd < 0 || fd >= floor)
        return fd;
    raised = fcntl(fd, F_DUPFD_CLOEXEC, floor);
    if (raised < 0)
        return fd;
    close(fd);
    return raised;
}

/* Also those that have become free since. */
static void
take_low_numbers(void)
{
    struct stat facts;
    int floor = fd_floor(), fd;

    if (state.depth == 0) {
        memset(state.filled, 0, sizeof state.filled);
        state.source = fd_raise(memfd_create(FD_FILLER_NAME, MFD_CLOEXEC));
        if (state.source >= 0 && fstat(state.source, &facts) == 0) {
            state.device = facts.st_dev;
            state.inode = facts.st_ino;
        }
    }
    while (state.source >= 0 && (fd = fcntl(state.source, F_DUPFD_CLOEXEC, 0)) >= 0) {
        if (fd >= floor) {
            close(fd);
            break;
        }
        state.filled[fd] = true;
    }
}

static bool
is_filler(int fd)
{
    struct stat facts;

    return fstat(fd, &facts) == 0 && facts.st_dev == state.device && facts.st_ino == state.inode;
}

static void
leave_low_numbers(void)
{
    for (int fd = 0; fd < FLOOR; fd++)
        if (state.filled[fd] && is_filler(fd))
            close(fd);
    if (state.source >= 0 && is_filler(state.source))
        close(state.source);
    state.source = -1;
}

/* Others read that only where it is not theirs. */
static bool
holds(void)
{
    return state.held && pthread_equal(state.holder, pthread_self());
}

static void
before_fork(void)
{
    if (!holds())
        pthread_mutex_lock(&state.lock);
}

static void
after_fork(void)
{
    if (!holds())
        pthread_mutex_unlock(&state.lock);
}

static void
after_fork_in_child(void)
{
    if (state.depth > 0)
        leave_low_numbers();
    state.depth = 0;
    after_fork();
}

static void
watch_forks(void)
{
    pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

static void
lock_fillers(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&state.lock);
}

bool
fd_hold(void)
{
    lock_fillers();
    if (state.depth > 0) {
        pthread_mutex_unlock(&state.lock);
        return false;
    }
    state.holder = pthread_self();
    state.held = true;
    return true;
}

void
fd_release(void)
{
    state.held = false;
    pthread_mutex_unlock(&state.lock);
}

void
fd_fill(void)
{
    lock_fillers();
    take_low_numbers();
    state.depth++;
    pthread_mutex_unlock(&state.lock);
}

void
fd_unfill(void)
{
    pthread_mutex_lock(&state.lock);
    if (state.depth > 0 && --state.depth == 0)
        leave_low_numbers();
    pthread_mutex_unlock(&state.lock);
}
