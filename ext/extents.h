/* extents.h: memory for what is too big for a lane's ring. No Python.
 *
 * Each end has extents of its own, memfds sealed against resizing, and passes their descriptors to
 * the other. The writer writes into them by system calls, or through a mapping that cannot be
 * written to in between: no stray write reaches what was sent. The reader maps what it was told of,
 * read-only or as private memory that shows the bytes without a copy, and gives an extent back by a
 * bit in the lane's memory. An extent belongs to one frame at a time, whose pieces begin at page
 * boundaries; a big piece may have one of its own. It is used again, also by bigger and smaller
 * frames, unless the reader has been forked meanwhile: what the fork has of it must not change. A
 * fork itself gives nothing back: what it has is its parent's too. Each end is one thread's at a
 * time; views and copies may be dropped by any. */
#ifndef ISOLATION_EXTENTS_H
#define ISOLATION_EXTENTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Slots of each end: one bit each. */
#define EXTENTS_MOST 64u
/* Bytes from which on a piece may have an extent of its own, and be read without a copy: less is
 * copied sooner than mapped. */
#define EXTENTS_APART ((size_t)512 << 10)

struct piece {
    const void *data;
    size_t size;
    bool apart; /* in an extent of its own, where it is big enough */
};

struct placed {
    unsigned slot;
    bool fresh;    /* the reader is still to be given extents_fd() before it reads this piece */
    bool on_shelf; /* not in an extent: a block, at this place of a shelf (shelf.h) */
    size_t at;
};

/* What extents not in use may well keep: 1/32 of the machine's memory, between 128 MB and 512 MB.
 */
size_t extents_idle_most(void);

/* ---- the writer's end ---------------------------------------------------------------------- */

struct extents_out;

/* `guarded`: what was sent is protected from this process's own stray writes. `watches`: notices
 * when a piece of the same memory is written again and again unchanged, and copies only what has
 * been written to since (pages.h). `idle_most`: bytes that extents not in use keep at most; what is
 * more goes back to the operating system. NULL: out of memory. */
struct extents_out *extents_out_new(bool guarded, bool watches, size_t idle_most);
/* NULL is allowed. What the reader has mapped stays. */
void extents_out_free(struct extents_out *out);

/* Writes the pieces into extents that are not in use: 0, or -1 (none is left, no memory, no
 * descriptors). Whole: on failure none is in use by it. `placed` has room for all of them; they
 * come in the order in which descriptors are to be passed. */
int extents_write(struct extents_out *out, const struct piece *pieces, size_t n,
                  struct placed *placed);
/* Once they were sent, of a guarded end: what is in use can be written to no more. That takes long
 * for much, time in which the reader has it already. */
void extents_guard(struct extents_out *out);
/* While there is nothing else to do: what the next piece will be written to can be. */
void extents_prepare(struct extents_out *out);
/* Close-on-exec; stays the writer's. */
int extents_fd(const struct extents_out *out, unsigned slot);
/* The reader has it. */
void extents_passed(struct extents_out *out, unsigned slot);
/* These slots are not in use any more: the reader says so, or they were not sent after all. */
void extents_reclaim(struct extents_out *out, uint64_t slots);
/* The same, but the memory is somebody's for good. */
void extents_retire(struct extents_out *out, uint64_t slots);
/* The slots in use. */
uint64_t extents_busy(const struct extents_out *out);

/* ---- the reader's end ---------------------------------------------------------------------- */

struct extents_in;
/* A mapped extent. Counted; the last one to drop it gives the extent back. */
struct extent_view;

/* Where the writer looks for the bits of slots that it is to reclaim, and to retire. */
struct extents_back {
    _Atomic uint64_t reclaimed, retired;
};

/* NULL: out of memory. */
struct extents_in *extents_in_new(struct extents_back *back);
/* NULL is allowed. The views stay, but have nobody to give the extents back to. */
void extents_in_free(struct extents_in *in);

/* The descriptor of a slot, instead of the one it had; taken in any case. -1 and errno: EPROTO (no
 * memory that may be mapped without danger). */
int extents_take(struct extents_in *in, unsigned slot, int fd);
/* NULL and errno, EPROTO where the extent is not so big. What is read there may still change where
 * the writer is hostile: what is checked has to be a copy. */
struct extent_view *extents_view(struct extents_in *in, unsigned slot, size_t size);
/* What was sent there will not be looked at: the writer may use it again. */
void extents_unread(struct extents_in *in, unsigned slot);

const unsigned char *extent_data(const struct extent_view *view);
struct extent_view *extent_ref(struct extent_view *view);
void extent_unref(struct extent_view *view);

/* ---- private memory of the reader ----------------------------------------------------------- */

/* Memory that may be written, whose bytes are those of the view until they are. Nothing lies right
 * before its first page and right after its last. */
struct extent_copy;

/* The `size` bytes at `at`, page-aligned. Takes no part in the caller's reference to the view.
 * NULL: no memory, or so many extents are out that a real copy should be made. */
struct extent_copy *extent_copy_new(struct extent_view *view, size_t at, size_t size);
void *extent_copy_data(const struct extent_copy *copy);
size_t extent_copy_size(const struct extent_copy *copy);
/* The runs of pages that may differ from the view, with what the view has there. False: cannot
 * tell, all may differ. */
typedef void extent_run(void *argument, size_t at, size_t size);
bool extent_copy_changes(const struct extent_copy *copy, extent_run *run, void *argument);
const unsigned char *extent_copy_original(const struct extent_copy *copy);
void extent_copy_free(struct extent_copy *copy);

/* Whether a descriptor of another process is memory that may be mapped without danger, and the
 * facts of it. */
struct stat;
bool memfd_is_safe(int fd, struct stat *facts);

/* Where the next piece begins. */
size_t extent_round(size_t size);

#endif
