#define _GNU_SOURCE 1
#include "extents.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "fdfloor.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
/* Descriptors, system calls: smaller ones are not worth it. */
#define LEAST ((size_t)64 << 10)
/* Bigger sizes are rounded up to an eighth of their highest power of two, so that frames of about
 * the same size use the same extents. */
#define ROUND_SHIFT 3

size_t
extent_round(size_t size)
{
    static size_t page;

    if (page == 0)
        page = (size_t)sysconf(_SC_PAGESIZE);
    return (size + page - 1) / page * page;
}

/* ---- the writer's end ---------------------------------------------------------------------- */

struct extents_out {
    uint64_t busy;
    struct {
        int fd;          /* -1: there is none */
        bool passed;     /* the reader has it */
        size_t capacity; /* bytes that it is for */
        size_t used;     /* bytes from the start that may have memory */
    } slots[EXTENTS_MOST];
};

struct extents_out *
extents_out_new(void)
{
    struct extents_out *out = calloc(1, sizeof *out);

    for (unsigned i = 0; out && i < EXTENTS_MOST; i++)
        out->slots[i].fd = -1;
    return out;
}

void
extents_out_free(struct extents_out *out)
{
    for (unsigned i = 0; out && i < EXTENTS_MOST; i++)
        if (out->slots[i].fd >= 0)
            close(out->slots[i].fd);
    free(out);
}

uint64_t
extents_busy(const struct extents_out *out)
{
    return out->busy;
}

int
extents_fd(const struct extents_out *out, unsigned slot)
{
    return out->slots[slot].fd;
}

void
extents_passed(struct extents_out *out, unsigned slot)
{
    out->slots[slot].passed = true;
}

/* The memory goes, the extent stays. */
static void
empty(struct extents_out *out, unsigned slot)
{
    if (fallocate(out->slots[slot].fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                  (off_t)extent_round(out->slots[slot].used)) == 0)
        out->slots[slot].used = 0;
}

void
extents_reclaim(struct extents_out *out, uint64_t slots)
{
    size_t idle = 0;

    slots &= out->busy;
    if (slots == 0)
        return;
    out->busy &= ~slots;
    for (unsigned i = 0; i < EXTENTS_MOST; i++)
        if (!(out->busy >> i & 1))
            idle += out->slots[i].used;
    /* What has just been used is used again soonest. */
    for (unsigned i = 0; i < EXTENTS_MOST && idle > EXTENTS_IDLE_MOST; i++)
        if (!(out->busy >> i & 1) && !(slots >> i & 1) && out->slots[i].used > 0) {
            idle -= out->slots[i].used;
            empty(out, i);
        }
    for (unsigned i = 0; i < EXTENTS_MOST && idle > EXTENTS_IDLE_MOST; i++)
        if ((slots >> i & 1) && out->slots[i].used > 0) {
            idle -= out->slots[i].used;
            empty(out, i);
        }
}

static size_t
capacity_for(size_t size)
{
    size_t step = LEAST;

    while (step < SIZE_MAX >> (ROUND_SHIFT + 2) && step << (ROUND_SHIFT + 1) <= size)
        step <<= 1;
    if (size > SIZE_MAX - step)
        return 0;
    return size <= LEAST ? LEAST : (size + step - 1) / step * step;
}

static int
make(struct extents_out *out, unsigned slot, size_t size)
{
    size_t capacity = capacity_for(size);
    int fd = capacity == 0 || capacity > INT64_MAX
                 ? -1
                 : fd_raise(memfd_create("isolation-extent", MFD_CLOEXEC | MFD_ALLOW_SEALING));

    if (fd < 0)
        return -1;
    if (ftruncate(fd, (off_t)capacity) < 0 || fcntl(fd, F_ADD_SEALS, SEALS) < 0) {
        close(fd);
        return -1;
    }
    if (out->slots[slot].fd >= 0)
        close(out->slots[slot].fd);
    out->slots[slot].fd = fd;
    out->slots[slot].passed = false;
    out->slots[slot].capacity = capacity;
    out->slots[slot].used = 0;
    return 0;
}

/* The smallest that is big enough; else one with no memfd yet; else the smallest of all, which gets
 * another. -1: all are in use, or there is no memory. */
static int
choose(struct extents_out *out, size_t size)
{
    int fits = -1, none = -1, least = -1;

    for (int i = 0; i < (int)EXTENTS_MOST; i++) {
        size_t capacity = out->slots[i].capacity;
        if (out->busy >> i & 1)
            continue;
        if (out->slots[i].fd < 0)
            none = none < 0 ? i : none;
        else if (capacity >= size)
            fits = fits < 0 || capacity < out->slots[fits].capacity ? i : fits;
        else
            least = least < 0 || capacity < out->slots[least].capacity ? i : least;
    }
    if (fits >= 0)
        return fits;
    int slot = none >= 0 ? none : least;
    return slot >= 0 && make(out, (unsigned)slot, size) == 0 ? slot : -1;
}

static int
write_all(int fd, const void *data, size_t size, size_t at)
{
    const char *from = data;

    while (size > 0) {
        ssize_t n = pwrite(fd, from, size, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        from += n;
        at += (size_t)n;
        size -= (size_t)n;
    }
    return 0;
}

int
extents_write(struct extents_out *out, const struct piece *pieces, size_t n, bool *fresh)
{
    size_t total = 0, at = 0;

    for (size_t i = 0; i < n; i++) {
        if (pieces[i].size > SIZE_MAX / 2 - total)
            return -1;
        total = extent_round(total) + pieces[i].size;
    }
    int slot = choose(out, total);
    if (slot < 0)
        return -1;
    if (out->slots[slot].used < total)
        out->slots[slot].used = total;
    for (size_t i = 0; i < n; i++) {
        at = extent_round(at);
        if (write_all(out->slots[slot].fd, pieces[i].data, pieces[i].size, at) < 0) {
            empty(out, (unsigned)slot);
            return -1;
        }
        at += pieces[i].size;
    }
    out->busy |= (uint64_t)1 << slot;
    *fresh = !out->slots[slot].passed;
    return slot;
}

/* ---- the reader's end ---------------------------------------------------------------------- */

struct extents_in {
    _Atomic uint64_t *given_back; /* NULL once nobody looks there any more */
    pid_t owner;
    unsigned users; /* views, and the owner */
    struct {
        int fd;
        uint64_t size;
    } slots[EXTENTS_MOST];
};

struct extent_view {
    struct extents_in *in;
    unsigned slot;
    unsigned users;
    size_t size;
    unsigned char *data;
};

struct extents_in *
extents_in_new(_Atomic uint64_t *given_back)
{
    struct extents_in *in = calloc(1, sizeof *in);

    for (unsigned i = 0; in && i < EXTENTS_MOST; i++)
        in->slots[i].fd = -1;
    if (in) {
        in->given_back = given_back;
        in->owner = getpid();
        in->users = 1;
    }
    return in;
}

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
    for (unsigned i = 0; i < EXTENTS_MOST; i++)
        if (in->slots[i].fd >= 0)
            close(in->slots[i].fd);
    in->given_back = NULL;
    drop(in);
}

/* Memory whose end stays where it is, and whose pages come when they are touched: a file could end
 * earlier at any time, and huge pages could have run out, both a SIGBUS. */
static bool
is_safe(int fd, uint64_t *size)
{
    struct statfs file_system;
    struct stat facts;
    int seals = fcntl(fd, F_GET_SEALS);

    if (seals < 0 || (seals & (F_SEAL_SHRINK | F_SEAL_GROW)) != (F_SEAL_SHRINK | F_SEAL_GROW) ||
        fstatfs(fd, &file_system) < 0 || file_system.f_type != TMPFS_MAGIC ||
        fstat(fd, &facts) < 0 || facts.st_size < 0)
        return false;
    *size = (uint64_t)facts.st_size;
    return true;
}

int
extents_take(struct extents_in *in, unsigned slot, int fd)
{
    uint64_t size;

    fd = fd_raise(fd);
    if (slot >= EXTENTS_MOST || !is_safe(fd, &size)) {
        close(fd);
        errno = EPROTO;
        return -1;
    }
    if (in->slots[slot].fd >= 0)
        close(in->slots[slot].fd);
    in->slots[slot].fd = fd;
    in->slots[slot].size = size;
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

int
extents_read(struct extents_in *in, unsigned slot, void *to, size_t size)
{
    if (!is_there(in, slot, size))
        return -1;
    for (size_t at = 0; at < size;) {
        ssize_t n = pread(in->slots[slot].fd, (char *)to + at, size - at, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            errno = n == 0 ? EPROTO : errno;
            return -1;
        }
        at += (size_t)n;
    }
    return 0;
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
    view->data = mmap(NULL, size, PROT_READ, MAP_SHARED, in->slots[slot].fd, 0);
    if (view->data == MAP_FAILED) {
        free(view);
        return NULL;
    }
    view->in = in;
    view->slot = slot;
    view->size = size;
    view->users = 1;
    in->users++;
    return view;
}

void
extents_give_back(struct extents_in *in, unsigned slot)
{
    if (in->given_back && getpid() == in->owner)
        atomic_fetch_or_explicit(in->given_back, (uint64_t)1 << slot, memory_order_release);
}

const unsigned char *
extent_data(const struct extent_view *view)
{
    return view->data;
}

struct extent_view *
extent_ref(struct extent_view *view)
{
    view->users++;
    return view;
}

void
extent_unref(struct extent_view *view)
{
    if (--view->users > 0)
        return;
    munmap(view->data, view->size);
    extents_give_back(view->in, view->slot);
    drop(view->in);
    free(view);
}
