#define _GNU_SOURCE 1
/* extents_in.c: the reader's end of extents.h: what was sent, mapped, and private memory that shows
 * it. */
#include "extents.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "fdfloor.h"
#include "pages.h"

/* Copies that the reader makes without copying. */
#define COPIES_MOST 40
/* How often what was written all over twice in a row is not mapped by the reader. */
#define NOT_MAPPED 4

/* Views and copies are dropped by any thread. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Of this process, ever. */
static _Atomic unsigned forks;

static void
before_fork(void)
{
    pthread_mutex_lock(&lock);
    atomic_fetch_add(&forks, 1);
}

static void
after_fork(void)
{
    pthread_mutex_unlock(&lock);
}

static void
watch_forks(void)
{
    pthread_atfork(before_fork, after_fork, after_fork);
}

struct extents_in {
    struct extents_back *back; /* NULL once nobody looks there any more */
    pid_t owner;
    unsigned users;  /* views, and the owner */
    unsigned copies; /* that are out */
    struct {
        int fd;
        uint64_t size;
        struct extent_copy *idle; /* as clean as new, for the next; or NULL */
        unsigned not_mapped;      /* how often still not */
        bool was_written;         /* the last one, all over */
    } slots[EXTENTS_MOST];
};

struct extent_view {
    struct extents_in *in;
    unsigned slot;
    unsigned users;
    unsigned forks; /* of this process, when it was made */
    size_t size;
    unsigned char *data;
};

struct extent_copy {
    struct extent_view *view;
    size_t at, size;
    char *data;
    char *reserved; /* what is mapped, with the pages that nobody may touch */
    size_t reserved_size;
};

struct extents_in *
extents_in_new(struct extents_back *back)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct extents_in *in = calloc(1, sizeof *in);

    pthread_once(&once, watch_forks);
    for (unsigned i = 0; in && i < EXTENTS_MOST; i++)
        in->slots[i].fd = -1;
    if (in) {
        in->back = back;
        in->owner = getpid();
        in->users = 1;
    }
    return in;
}

static void
unmap_copy(struct extent_copy *copy)
{
    if (copy)
        munmap(copy->reserved, copy->reserved_size);
    free(copy);
}

/* With the lock. */
static void
forget_slot(struct extents_in *in, unsigned slot)
{
    if (getpid() == in->owner)
        unmap_copy(in->slots[slot].idle);
    else
        free(in->slots[slot].idle); /* a fork does not have it; other memory may be there */
    in->slots[slot].idle = NULL;
    if (in->slots[slot].fd >= 0)
        close(in->slots[slot].fd);
    in->slots[slot].fd = -1;
}

/* With the lock. */
static void
drop(struct extents_in *in)
{
    if (--in->users == 0)
        free(in);
}

void
extents_in_free(struct extents_in *in)
{
    if (!in)
        return;
    pthread_mutex_lock(&lock);
    for (unsigned i = 0; i < EXTENTS_MOST; i++)
        forget_slot(in, i);
    in->back = NULL;
    drop(in);
    pthread_mutex_unlock(&lock);
}

/* Memory whose end stays where it is, and whose pages come when they are touched: a file could end
 * earlier at any time, and huge pages could have run out, both a SIGBUS. */
bool
memfd_is_safe(int fd, struct stat *facts)
{
    struct statfs file_system;
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_GROW)) != (F_SEAL_SHRINK | F_SEAL_GROW) ||
        fstat(fd, facts) < 0 || facts->st_size < 0)
        return false;
    /* What can be sealed is a tmpfs's or hugetlbfs's, whose blocks are huge pages. */
    return (size_t)facts->st_blksize == extent_round(1) ||
           (fstatfs(fd, &file_system) == 0 && file_system.f_type == TMPFS_MAGIC);
}

int
extents_take(struct extents_in *in, unsigned slot, int fd)
{
    struct stat facts;

    fd = fd_raise(fd);
    if (slot >= EXTENTS_MOST || !memfd_is_safe(fd, &facts)) {
        close(fd);
        errno = EPROTO;
        return -1;
    }
    pthread_mutex_lock(&lock);
    forget_slot(in, slot);
    in->slots[slot].fd = fd;
    in->slots[slot].size = (uint64_t)facts.st_size;
    in->slots[slot].not_mapped = 0;
    in->slots[slot].was_written = false;
    pthread_mutex_unlock(&lock);
    return 0;
}

static bool
is_there(struct extents_in *in, unsigned slot, size_t size)
{
    if (slot < EXTENTS_MOST && in->slots[slot].fd >= 0 && size <= in->slots[slot].size)
        return true;
    errno = EPROTO;
    return false;
}

struct extent_view *
extents_view(struct extents_in *in, unsigned slot, size_t size)
{
    struct extent_view *view;

    if (!is_there(in, slot, size))
        return NULL;
    if (size == 0) {
        errno = EPROTO;
        return NULL;
    }
    view = calloc(1, sizeof *view);
    if (!view)
        return NULL;
    view->forks = atomic_load(&forks);
    view->data = mmap(NULL, size, PROT_READ, MAP_SHARED, in->slots[slot].fd, 0);
    if (view->data == MAP_FAILED) {
        free(view);
        return NULL;
    }
    view->in = in;
    view->slot = slot;
    view->size = size;
    view->users = 1;
    pthread_mutex_lock(&lock);
    in->users++;
    pthread_mutex_unlock(&lock);
    return view;
}

/* With the lock. */
static void
give_back(struct extents_in *in, unsigned slot, bool for_good)
{
    if (!in->back || getpid() != in->owner)
        return;
    if (for_good)
        forget_slot(in, slot);
    atomic_fetch_or_explicit(for_good ? &in->back->retired : &in->back->reclaimed,
                             (uint64_t)1 << slot, memory_order_release);
}

void
extents_unread(struct extents_in *in, unsigned slot)
{
    pthread_mutex_lock(&lock);
    if (slot < EXTENTS_MOST)
        give_back(in, slot, false);
    pthread_mutex_unlock(&lock);
}

const unsigned char *
extent_data(const struct extent_view *view)
{
    return view->data;
}

struct extent_view *
extent_ref(struct extent_view *view)
{
    pthread_mutex_lock(&lock);
    view->users++;
    pthread_mutex_unlock(&lock);
    return view;
}

void
extent_unref(struct extent_view *view)
{
    pthread_mutex_lock(&lock);
    if (--view->users == 0) {
        munmap(view->data, view->size);
        give_back(view->in, view->slot, view->forks != atomic_load(&forks));
        drop(view->in);
        free(view);
    }
    pthread_mutex_unlock(&lock);
}

/* ---- private memory of the reader ----------------------------------------------------------- */

/* Only while it is somebody's does a fork get it. */
static struct extent_copy *
take_idle(struct extents_in *in, unsigned slot, size_t at, size_t size)
{
    struct extent_copy *copy = in->slots[slot].idle;

    if (!copy || copy->at != at || extent_round(copy->size) != extent_round(size))
        return NULL;
    in->slots[slot].idle = NULL;
    madvise(copy->reserved, copy->reserved_size, MADV_DOFORK);
    return copy;
}

static struct extent_copy *
map_copy(int fd, size_t at, size_t size)
{
    size_t page = extent_round(1), length = extent_round(size);
    struct extent_copy *copy = calloc(1, sizeof *copy);

    if (!copy)
        return NULL;
    copy->reserved_size = length + 2 * page;
    copy->reserved = mmap(NULL, copy->reserved_size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy->reserved == MAP_FAILED) {
        free(copy);
        return NULL;
    }
    copy->data = mmap(copy->reserved + page, length, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, fd, (off_t)at);
    if (copy->data == MAP_FAILED) {
        unmap_copy(copy);
        return NULL;
    }
    return copy;
}

struct extent_copy *
extent_copy_new(struct extent_view *view, size_t at, size_t size)
{
    struct extents_in *in = view->in;
    struct extent_copy *copy = NULL;

    if (size == 0 || at != extent_round(at) || at > view->size || size > view->size - at)
        return NULL;
    pthread_mutex_lock(&lock);
    if (in->slots[view->slot].not_mapped > 0)
        in->slots[view->slot].not_mapped--;
    else if (in->back && getpid() == in->owner && in->copies < COPIES_MOST) {
        copy = take_idle(in, view->slot, at, size);
        if (!copy)
            copy = map_copy(in->slots[view->slot].fd, at, size);
    }
    if (copy) {
        in->copies++;
        view->users++;
        copy->view = view;
        copy->at = at;
        copy->size = size;
    }
    pthread_mutex_unlock(&lock);
    return copy;
}

void *
extent_copy_data(const struct extent_copy *copy)
{
    return copy->data;
}

size_t
extent_copy_size(const struct extent_copy *copy)
{
    return copy->size;
}

const unsigned char *
extent_copy_original(const struct extent_copy *copy)
{
    return copy->view->data + copy->at;
}

struct changes {
    const struct extent_copy *copy;
    extent_run *run;
    void *argument;
};

static void
changed_pages(void *argument, char *start, size_t size)
{
    struct changes *changes = argument;
    size_t at = (size_t)(start - changes->copy->data), end = changes->copy->size;

    if (at < end)
        changes->run(changes->argument, at, size < end - at ? size : end - at);
}

bool
extent_copy_changes(const struct extent_copy *copy, extent_run *run, void *argument)
{
    struct changes changes = {copy, run, argument};

    return pages_copied(copy->data, extent_round(copy->size), changed_pages, &changes) == 0;
}

static void
discard(void *argument, char *start, size_t size)
{
    madvise(start, size, MADV_DONTNEED);
    *(size_t *)argument += size;
}

/* The pages that were written go, the others stay where they are: the next one finds its memory
 * mapped. */
static bool
clean(struct extent_copy *copy, size_t *written)
{
    size_t length = extent_round(copy->size);

    if (pages_copied(copy->data, length, discard, written) < 0) {
        *written = 0; /* nobody knows */
        if (madvise(copy->data, length, MADV_DONTNEED) < 0)
            return false;
    }
    return madvise(copy->reserved, copy->reserved_size, MADV_DONTFORK) == 0;
}

/* Private mappings count as this process's data, whether they are used or not. */
static bool
is_limited(void)
{
    struct rlimit data, space;

    return getrlimit(RLIMIT_DATA, &data) < 0 || getrlimit(RLIMIT_AS, &space) < 0 ||
           data.rlim_cur != RLIM_INFINITY || space.rlim_cur != RLIM_INFINITY;
}

void
extent_copy_free(struct extent_copy *copy)
{
    struct extent_view *view = copy->view;
    struct extents_in *in = view->in;
    size_t written = 0;
    bool keep = getpid() == in->owner && view->forks == atomic_load(&forks) && !is_limited() &&
                clean(copy, &written) && written <= copy->size / 2;

    pthread_mutex_lock(&lock);
    in->copies--;
    if (written > copy->size / 2 && in->slots[view->slot].was_written)
        in->slots[view->slot].not_mapped = NOT_MAPPED;
    in->slots[view->slot].was_written = written > copy->size / 2;
    if (keep && in->back && view->forks == atomic_load(&forks)) {
        unmap_copy(in->slots[view->slot].idle);
        in->slots[view->slot].idle = copy;
    }
    else {
        unmap_copy(copy);
    }
    pthread_mutex_unlock(&lock);
    extent_unref(view);
}
