#define _GNU_SOURCE 1
#include "arena.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "arena_parts.h"
#include "extents.h"
#include "fdfloor.h"

static struct {
    pthread_mutex_t lock;
    struct block *live, *idle;
    struct block *lent; /* without a user here; the other end still uses them */
    size_t lent_size;
    unsigned nlive, nidle;
    bool keeps;
    size_t idle_size;
    unsigned forks;
} arena = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void
unmap(struct block *b)
{
    if (b->reserved)
        munmap(b->reserved, b->reserved_size);
    if (b->fd >= 0)
        close(b->fd);
    free(b);
}

static void
before_fork(void)
{
    pthread_mutex_lock(&arena.lock);
    arena.forks++;
}

static void
after_fork(void)
{
    pthread_mutex_unlock(&arena.lock);
}

/* With the lock. */
static void
end(struct block *b)
{
    if (b->out)
        shelf_out_remove(b);
    unmap(b);
}

/* With the lock. */
static void
trim(void)
{
    while (arena.idle) {
        struct block *b = arena.idle;
        arena.idle = b->next;
        end(b);
    }
    arena.idle_size = 0;
    arena.nidle = 0;
}

/* What waits for its next user is the parent's, and so is the other end of the shelves. */
static void
after_fork_in_child(void)
{
    struct block *b;

    for (struct block **at = &arena.live; (b = *at);) {
        if (b->out)
            block_was_passed(b);
        b->users -= b->shelved;
        b->shelved = 0;
        b->in = NULL;
        if (b->users > 0) {
            at = &b->next;
            continue;
        }
        *at = b->next;
        arena.nlive--;
        unmap(b);
    }
    for (b = arena.idle; b; b = b->next)
        b->out = NULL;
    trim();
    while ((b = arena.lent)) {
        arena.lent = b->next;
        unmap(b);
    }
    arena.lent_size = 0;
    pthread_mutex_unlock(&arena.lock);
}

static void
watch_forks(void)
{
    pthread_atfork(before_fork, after_fork, after_fork_in_child);
}

void
arena_lock(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&arena.lock);
}

void
arena_unlock(void)
{
    pthread_mutex_unlock(&arena.lock);
}

unsigned
arena_forks(void)
{
    return arena.forks;
}

/* With the lock. What waits for its next user has a descriptor too. */
static bool
may_have_more(void)
{
    struct rlimit files;

    if (getrlimit(RLIMIT_NOFILE, &files) < 0)
        return false;
    if (arena.nlive + arena.nidle >= files.rlim_cur / 4)
        trim();
    return arena.nlive < files.rlim_cur / 4;
}

/* Maps a descriptor, which is its own from here on; made: nobody has used its memory yet. NULL and
 * errno. */
static struct block *
map(int fd, size_t size, const struct stat *facts, bool made)
{
    size_t page = extent_round(1);
    struct block *b = calloc(1, sizeof *b);

    if (!b) {
        close(fd);
        return NULL;
    }
    b->fd = fd;
    b->device = facts->st_dev;
    b->inode = facts->st_ino;
    b->size = size;
    b->reserved_size = size + 2 * page;
    b->reserved = mmap(NULL, b->reserved_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (b->reserved == MAP_FAILED) {
        b->reserved = NULL;
        unmap(b);
        return NULL;
    }
    if (made) {
        /* Shared memory is not counted before it is used: what malloc() would refuse is refused. */
        void *probe = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (probe == MAP_FAILED) {
            unmap(b);
            return NULL;
        }
        munmap(probe, size);
    }
    b->data = b->reserved + page;
    if (mmap(b->data, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        unmap(b);
        return NULL;
    }
    b->users = 1;
    return b;
}

/* With the lock. */
static struct block *
add(struct block *b)
{
    b->forks = arena.forks;
    b->next = arena.live;
    arena.live = b;
    arena.nlive++;
    return b;
}

static struct block *
make(size_t size)
{
    int fd = fd_raise(memfd_create("isolation-array", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    struct stat facts;

    if (fd < 0)
        return NULL;
    if (ftruncate(fd, (off_t)size) < 0 || fstat(fd, &facts) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        close(fd);
        return NULL;
    }
    return map(fd, size, &facts, true);
}

struct block *
block_new(size_t size, bool zeroed)
{
    size_t wanted = extent_round(size);
    struct block *b = NULL;
    bool used = false;

    if (size == 0 || wanted < size || wanted > SIZE_MAX / 2)
        return NULL;
    arena_lock();
    arena_settle(NULL);
    struct block **at = &arena.idle;
    while (*at && ((*at)->size < wanted || (*at)->size / 2 > wanted))
        at = &(*at)->next;
    if (*at) {
        b = *at;
        *at = b->next;
        arena.idle_size -= b->size;
        arena.nidle--;
        b->users = 1;
        used = true;
    }
    else if (may_have_more())
        b = make(wanted);
    if (b)
        add(b);
    pthread_mutex_unlock(&arena.lock);
    if (b && used && zeroed)
        memset(b->data, 0, size);
    return b;
}

/* Out of the list of those that are lent. */
static struct block *
take_back(struct block **at)
{
    struct block *b = *at;

    *at = b->next;
    arena.lent_size -= b->size;
    b->is_lent = false;
    shelf_out_take_back(b);
    return b;
}

struct block *
block_take(int fd)
{
    struct block *b = NULL;
    struct stat facts;

    fd = fd_raise(fd);
    if (!memfd_is_safe(fd, &facts) || facts.st_size == 0 ||
        (size_t)facts.st_size != extent_round((size_t)facts.st_size)) {
        close(fd);
        errno = EPROTO;
        return NULL;
    }
    arena_lock();
    for (b = arena.live; b; b = b->next)
        if (b->inode == facts.st_ino && b->device == facts.st_dev)
            break;
    for (struct block **at = &arena.lent; !b && *at; at = &(*at)->next)
        if ((*at)->inode == facts.st_ino && (*at)->device == facts.st_dev) {
            b = take_back(at); /* it comes home */
            b->next = arena.live;
            arena.live = b;
            arena.nlive++;
            break;
        }
    if (b) {
        b->users++;
        close(fd);
    }
    else {
        b = map(fd, (size_t)facts.st_size, &facts, false);
        if (b) {
            b->passed = true;
            add(b);
        }
    }
    pthread_mutex_unlock(&arena.lock);
    return b;
}

struct block *
block_find(const void *data, size_t *at)
{
    struct block *b;
    const char *where = data;

    pthread_mutex_lock(&arena.lock);
    for (b = arena.live; b; b = b->next)
        if (where >= b->data && where < b->data + b->size) {
            *at = (size_t)(where - b->data);
            break;
        }
    pthread_mutex_unlock(&arena.lock);
    return b;
}

struct block *
block_ref(struct block *b)
{
    pthread_mutex_lock(&arena.lock);
    b->users++;
    pthread_mutex_unlock(&arena.lock);
    return b;
}

/* What somebody else has must not become another array's. */
static bool
may_be_kept(const struct block *b)
{
    return arena.keeps && !b->passed && b->forks == arena.forks;
}

/* How much more may be kept without a user. */
static size_t
room(void)
{
    size_t most = extents_idle_most(), kept = arena.idle_size + arena.lent_size;

    return kept < most ? most - kept : 0;
}

/* It has no user here. */
static void
keep_or_end(struct block *b)
{
    /* New shared memory takes several times as long to fill as memory that has been used. */
    if (may_be_kept(b) && b->size <= room()) {
        b->next = arena.idle;
        arena.idle = b;
        arena.idle_size += b->size;
        arena.nidle++;
    }
    else
        end(b);
}

void
arena_settle(const struct shelf_out *ends)
{
    struct block **at = &arena.lent, *b;

    while ((b = *at)) {
        bool ended = b->out == ends;
        if (!ended && shelf_out_use(b) == SHELF_USED) {
            at = &b->next;
            continue;
        }
        take_back(at);
        if (!ended && shelf_out_use(b) == SHELF_UNUSED)
            keep_or_end(b);
        else
            end(b);
    }
}

void
block_drop(struct block *b)
{
    if (--b->users > 0) {
        if (b->users == b->shelved && b->in)
            shelf_in_unused(b);
        return;
    }
    struct block **at = &arena.live;
    while (*at != b)
        at = &(*at)->next;
    *at = b->next;
    arena.nlive--;
    if (b->out && may_be_kept(b)) {
        enum shelf_use use = shelf_out_lend(b);
        if (use == SHELF_USED && b->size <= room()) {
            b->next = arena.lent;
            arena.lent = b;
            arena.lent_size += b->size;
            b->is_lent = true;
            return;
        }
        if (use != SHELF_UNUSED) {
            shelf_out_take_back(b);
            end(b);
            return;
        }
    }
    keep_or_end(b);
}

void
block_unref(struct block *b)
{
    pthread_mutex_lock(&arena.lock);
    block_drop(b);
    pthread_mutex_unlock(&arena.lock);
}

char *
block_data(const struct block *b)
{
    return b->data;
}

size_t
block_size(const struct block *b)
{
    return b->size;
}

int
block_fd(const struct block *b)
{
    return b->fd;
}

int
block_pass(struct block *b)
{
    pthread_mutex_lock(&arena.lock);
    b->passed = b->given = true;
    pthread_mutex_unlock(&arena.lock);
    return b->fd;
}

void
blocks_keep(bool keep)
{
    pthread_mutex_lock(&arena.lock);
    arena.keeps = keep;
    if (!keep)
        trim();
    pthread_mutex_unlock(&arena.lock);
}

bool
block_has(int fd)
{
    for (struct block *b = arena.live; b; b = b->next)
        if (b->fd == fd)
            return true;
    return false;
}

unsigned
blocks_live(void)
{
    pthread_mutex_lock(&arena.lock);
    unsigned n = 0;
    for (struct block *b = arena.live; b; b = b->next)
        n += b->users > b->shelved;
    pthread_mutex_unlock(&arena.lock);
    return n;
}
