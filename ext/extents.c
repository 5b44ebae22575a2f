#define _GNU_SOURCE 1
/* extents.c: the writer's end of extents.h: which memfd a piece goes into, and how it gets there.
 */
#include "extents.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bigcopy.h"
#include "fdfloor.h"
#include "pages.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
/* Descriptors, system calls: smaller ones are not worth it. */
#define LEAST ((size_t)64 << 10)
/* Bigger sizes are rounded up to an eighth of their highest power of two, so that frames of about
 * the same size use the same extents. */
#define ROUND_SHIFT 3
/* Slots that pieces of their own leave to what comes next. */
#define LEFT_FREE 16
/* How often memory that was written all over is not watched before another try; twice as often
 * after each that was in vain. */
#define NOT_WATCHED 8
#define NOT_WATCHED_MOST 1024
/* Watched pieces, the last ones, whose extents are kept for them. */
#define WATCHED_MOST 4
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

size_t
extent_round(size_t size)
{
    static size_t page;

    if (page == 0)
        page = (size_t)sysconf(_SC_PAGESIZE);
    return (size + page - 1) / page * page;
}

size_t
extents_idle_most(void)
{
    static size_t most;
    size_t least = (size_t)128 << 20, limit = (size_t)512 << 20;

    if (most == 0) {
        most = (size_t)sysconf(_SC_PHYS_PAGES) / 32 * (size_t)sysconf(_SC_PAGESIZE);
        most = most < least ? least : most > limit ? limit : most;
    }
    return most;
}

struct extents_out {
    bool guarded, watches;
    pid_t owner;
    size_t idle_most;
    uint64_t busy, stamp;
    uint64_t open;         /* of a guarded end: maps that can be accessed */
    const void *last_data; /* the last big piece that was sent, ... */
    size_t last_size;
    bool ready; /* ... and the extent for another one like it can be written to, or there is none */
    struct slot {
        int fd;           /* -1: there is none */
        bool passed;      /* the reader has it */
        size_t capacity;  /* bytes that it is for */
        size_t used;      /* bytes from the start that may have memory */
        char *map;        /* its bytes, or NULL before they are wanted a second time */
        size_t populated; /* bytes of the map that take no page fault */
        size_t open;      /* bytes of the map that can be accessed */
        struct {          /* what it was written from, where that was one big piece */
            const void *data;
            size_t size;
            uint64_t watch;       /* 0: it is not watched */
            unsigned not_watched; /* how often still not */
            unsigned in_vain;     /* what that was the last time */
        } source;
        uint64_t stamp; /* when it was sent last, in its turn */
    } slots[EXTENTS_MOST];
};

struct extents_out *
extents_out_new(bool guarded, bool watches, size_t idle_most)
{
    struct extents_out *out = calloc(1, sizeof *out);

    for (unsigned i = 0; out && i < EXTENTS_MOST; i++)
        out->slots[i].fd = -1;
    if (out) {
        out->owner = getpid();
        out->guarded = guarded;
        out->idle_most = idle_most;
        out->watches = watches;
    }
    return out;
}

static void
unmap(struct slot *s)
{
    if (s->map)
        munmap(s->map, s->capacity);
    s->map = NULL;
    s->populated = 0;
    s->open = 0;
}

static void
forget_source(struct slot *s)
{
    pages_unwatch(s->source.watch);
    memset(&s->source, 0, sizeof s->source);
}

static void
clear(struct slot *s)
{
    forget_source(s);
    unmap(s);
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
    s->passed = false;
    s->capacity = s->used = 0;
}

void
extents_out_free(struct extents_out *out)
{
    for (unsigned i = 0; out && i < EXTENTS_MOST; i++) {
        if (getpid() != out->owner)
            out->slots[i].map = NULL; /* a fork has none of them; other memory may be there */
        clear(&out->slots[i]);
    }
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
empty(struct slot *s)
{
    forget_source(s);
    unmap(s);
    if (fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0,
                  (off_t)extent_round(s->used)) == 0)
        s->used = 0;
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
    for (unsigned i = 0; i < EXTENTS_MOST && idle > out->idle_most; i++)
        if (!(out->busy >> i & 1) && !(slots >> i & 1) && out->slots[i].used > 0) {
            idle -= out->slots[i].used;
            empty(&out->slots[i]);
        }
    for (unsigned i = 0; i < EXTENTS_MOST && idle > out->idle_most; i++)
        if ((slots >> i & 1) && out->slots[i].used > 0) {
            idle -= out->slots[i].used;
            empty(&out->slots[i]);
        }
}

void
extents_retire(struct extents_out *out, uint64_t slots)
{
    slots &= out->busy;
    out->busy &= ~slots;
    for (unsigned i = 0; i < EXTENTS_MOST; i++)
        if (slots >> i & 1)
            clear(&out->slots[i]);
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
make(struct slot *s, size_t size)
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
    clear(s);
    s->fd = fd;
    s->capacity = capacity;
    return 0;
}

/* One that was written from the same memory; else the smallest that is big enough and is kept for
 * nothing, or for what was sent longest ago where that is much. -1: none; *other is then one with
 * no memfd yet, else the smallest of all, to get another; or -1 too. */
static int
find(const struct extents_out *out, size_t size, const void *source, int *other)
{
    int fits = -1, none = -1, least = -1, oldest = -1, watched = 0;

    for (int i = 0; i < (int)EXTENTS_MOST; i++) {
        const struct slot *s = &out->slots[i];
        if (out->busy >> i & 1)
            continue;
        if (source && s->source.data == source && s->source.size == size)
            return i;
        if (s->fd < 0) {
            none = none < 0 ? i : none;
            continue;
        }
        least = least < 0 || s->capacity < out->slots[least].capacity ? i : least;
        watched += s->source.watch != 0;
        if (s->capacity < size)
            continue;
        if (s->source.watch == 0)
            fits = fits < 0 || s->capacity < out->slots[fits].capacity ? i : fits;
        else if (oldest < 0 || s->stamp < out->slots[oldest].stamp)
            oldest = i;
    }
    *other = none >= 0 ? none : least;
    if (fits >= 0)
        return fits;
    return watched >= WATCHED_MOST || none < 0 ? oldest : -1;
}

/* The same, with another memfd where none is found. -1: all are in use, or there is no memory. */
static int
choose(struct extents_out *out, size_t size, const void *source)
{
    int other = -1, slot = find(out, size, source, &other);

    if (slot >= 0)
        return slot;
    return other >= 0 && make(&out->slots[other], size) == 0 ? other : -1;
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

static uint64_t
bit_of(const struct extents_out *out, const struct slot *s)
{
    return (uint64_t)1 << (s - out->slots);
}

static bool
open_map(struct extents_out *out, struct slot *s, size_t size)
{
    size = extent_round(size);
    if (s->open < size) {
        if (mprotect(s->map + s->open, size - s->open, PROT_READ | PROT_WRITE) < 0)
            return false;
        s->open = size;
    }
    out->open |= out->guarded ? bit_of(out, s) : 0;
    return true;
}

void
extents_guard(struct extents_out *out)
{
    for (uint64_t slots = out->open & out->busy; slots != 0; slots &= slots - 1) {
        struct slot *s = &out->slots[__builtin_ctzll(slots)];
        if (s->open > 0 && mprotect(s->map, s->open, PROT_NONE) == 0)
            s->open = 0;
    }
    out->open &= ~out->busy;
}

void
extents_prepare(struct extents_out *out)
{
    int other, slot;

    if (out->ready || out->last_size == 0)
        return;
    slot = find(out, out->last_size, out->last_data, &other);
    if (slot < 0)
        return; /* perhaps it is given back before the next look */
    out->ready = true;
    if (out->slots[slot].map)
        open_map(out, &out->slots[slot], out->last_size);
}

/* Into memory that is there already a mapping writes faster than a system call, which looks each
 * page up; getting new memory is faster by system calls, which take no page faults. */
static bool
prepare_map(struct extents_out *out, struct slot *s, size_t size)
{
    if (!s->map) {
        s->map = mmap(NULL, s->capacity, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
        if (s->map == MAP_FAILED) {
            s->map = NULL;
            return false;
        }
        madvise(s->map, s->capacity, MADV_DONTFORK);
        s->open = s->capacity;
    }
    if (!open_map(out, s, size))
        return false;
    if (s->populated < size) {
        /* Without it (Linux before 5.14) the pages are faulted in one by one. */
        madvise(s->map, extent_round(size), MADV_POPULATE_WRITE);
        s->populated = size;
    }
    return true;
}

static int
write_piece(struct extents_out *out, struct slot *s, const struct piece *piece, size_t at,
            size_t had)
{
    if (piece->size < EXTENTS_APART || at + piece->size > had ||
        !prepare_map(out, s, at + piece->size))
        return write_all(s->fd, piece->data, piece->size, at);
    big_copy(s->map + at, piece->data, piece->size);
    return 0;
}

/* What has been written to since it was sent. */
struct update {
    struct slot *slot;
    size_t written;
    bool failed;
};

static void
update_run(void *argument, char *start, size_t size)
{
    struct update *u = argument;
    size_t at = (size_t)(start - (const char *)u->slot->source.data);

    u->written += size;
    u->failed = u->failed || write_all(u->slot->fd, start, size, at) < 0;
}

static void
give_up_watching(struct slot *s)
{
    unsigned n = s->source.in_vain < NOT_WATCHED ? NOT_WATCHED : s->source.in_vain * 2;

    s->source.in_vain = s->source.not_watched = n < NOT_WATCHED_MOST ? n : NOT_WATCHED_MOST;
}

/* A big piece, alone in its extent, perhaps from memory that was sent before. Other threads may
 * write to it meanwhile: what they write is in what was sent, or in the watch. */
static int
write_apart(struct extents_out *out, struct slot *s, const struct piece *piece)
{
    bool again =
        s->source.data == piece->data && s->source.size == piece->size && s->used >= piece->size;
    size_t had = s->used;

    s->stamp = ++out->stamp;
    if (again && s->source.watch != 0) {
        struct update u = {.slot = s};
        if (pages_watched(s->source.watch, update_run, &u) == 0 && !u.failed) {
            if (u.written > piece->size / 4) {
                /* It costs a fault for each page that is written, and brings little. */
                pages_unwatch(s->source.watch);
                s->source.watch = 0;
                give_up_watching(s);
            }
            return 0;
        }
        pages_unwatch(s->source.watch);
        s->source.watch = 0;
    }
    if (!again) {
        forget_source(s);
        s->source.data = piece->data;
        s->source.size = piece->size;
    }
    if (s->source.not_watched > 0)
        s->source.not_watched--;
    else if (out->watches) {
        s->source.watch = pages_watch(piece->data, piece->size);
        if (s->source.watch == 0)
            give_up_watching(s);
    }
    if (s->used < piece->size)
        s->used = piece->size;
    if (out->guarded) {
        out->last_data = piece->data;
        out->last_size = piece->size;
        out->ready = false;
    }
    return write_piece(out, s, piece, 0, had);
}

static int
write_together(struct extents_out *out, const struct piece *pieces, size_t n, struct placed *placed,
               const bool *apart)
{
    size_t total = 0;

    for (size_t i = 0; i < n; i++)
        if (!apart[i]) {
            placed[i].at = extent_round(total);
            total = placed[i].at + pieces[i].size;
        }
    int slot = choose(out, total, NULL);
    if (slot < 0)
        return -1;
    struct slot *s = &out->slots[slot];
    size_t had = s->used;
    forget_source(s);
    if (s->used < total)
        s->used = total;
    out->busy |= (uint64_t)1 << slot;
    bool fresh = !s->passed;
    for (size_t i = 0; i < n; i++)
        if (!apart[i]) {
            placed[i].slot = (unsigned)slot;
            placed[i].fresh = fresh;
            fresh = false;
            if (write_piece(out, s, &pieces[i], placed[i].at, had) < 0)
                return -1;
        }
    return 0;
}

int
extents_write(struct extents_out *out, const struct piece *pieces, size_t n, struct placed *placed)
{
    uint64_t before = out->busy;
    size_t total = 0, together = 0;
    unsigned left = EXTENTS_MOST - (unsigned)__builtin_popcountll(out->busy);
    bool *apart = calloc(n, sizeof *apart);

    if (!apart)
        return -1;
    for (size_t i = 0; i < n; i++) {
        if (pieces[i].size > SIZE_MAX / 2 - total)
            goto failed;
        total = extent_round(total) + pieces[i].size;
        apart[i] = pieces[i].apart && pieces[i].size >= EXTENTS_APART && left > LEFT_FREE;
        left -= apart[i];
        together += !apart[i];
    }
    if (together > 0 && write_together(out, pieces, n, placed, apart) < 0)
        goto failed;
    for (size_t i = 0; i < n; i++) {
        int slot = apart[i] ? choose(out, pieces[i].size, pieces[i].data) : -1;
        if (!apart[i])
            continue;
        if (slot < 0)
            goto failed;
        out->busy |= (uint64_t)1 << slot;
        placed[i] = (struct placed){.slot = (unsigned)slot, .fresh = !out->slots[slot].passed};
        if (write_apart(out, &out->slots[slot], &pieces[i]) < 0)
            goto failed;
    }
    free(apart);
    return 0;
failed:
    for (unsigned i = 0; i < EXTENTS_MOST; i++)
        if ((out->busy & ~before) >> i & 1)
            empty(&out->slots[i]);
    out->busy = before;
    free(apart);
    return -1;
}
