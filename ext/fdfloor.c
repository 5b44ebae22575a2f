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

static void
take_low_numbers(void)
{
    struct stat facts;
    int floor = fd_floor(), first = memfd_create("isolation-filler", MFD_CLOEXEC), fd;

    memset(state.filled, 0, sizeof state.filled);
    if (first < 0)
        return;
    if (fstat(first, &facts) == 0) {
        state.device = facts.st_dev;
        state.inode = facts.st_ino;
        while ((fd = fcntl(first, F_DUPFD_CLOEXEC, 0)) >= 0 && fd < floor)
            state.filled[fd] = true;
        if (fd >= 0)
            close(fd);
    }
    if (first < floor)
        state.filled[first] = true;
    else
        close(first);
}

static void
leave_low_numbers(void)
{
    struct stat facts;

    for (int fd = 0; fd < FLOOR; fd++)
        if (state.filled[fd] && fstat(fd, &facts) == 0 && facts.st_dev == state.device &&
            facts.st_ino == state.inode)
            close(fd);
}

static void
before_fork(void)
{
    pthread_mutex_lock(&state.lock);
}

static void
after_fork(void)
{
    pthread_mutex_unlock(&state.lock);
}

static void
after_fork_in_child(void)
{
    if (state.depth > 0)
        leave_low_numbers();
    state.depth = 0;
    pthread_mutex_unlock(&state.lock);
}

static void
watch_forks(void)
{
    pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

void
fd_fill(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&state.lock);
    if (state.depth++ == 0)
        take_low_numbers();
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
