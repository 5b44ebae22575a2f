/* extents.h: memory for what is too big for a lane's ring. No Python.
 *
 * Each end has extents of its own, memfds sealed against resizing, and passes their descriptors to
 * the other. The writer writes into them by system calls and never maps them: no stray write
 * reaches what was sent, and no page is faulted in twice. The reader maps what it was told of,
 * read-only, and gives an extent back by a bit in the lane's memory. An extent belongs to one frame
 * at a time, whose pieces begin at page boundaries; it is used again, also by bigger and smaller
 * frames. A fork of the process gives nothing back: what it has is its parent's too. Each end is
 * one thread's at a time. */
#ifndef ISOLATION_EXTENTS_H
#define ISOLATION_EXTENTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Slots of each end: one bit each. */
#define EXTENTS_MOST 64u
/* Bytes that extents not in use keep at most; what is more goes back to the operating system. */
#define EXTENTS_IDLE_MOST ((size_t)128 << 20)

struct piece {
    const void *data;
    size_t size;
};

/* ---- the writer's end ---------------------------------------------------------------------- */

struct extents_out;

/* NULL: out of memory. */
struct extents_out *extents_out_new(void);
/* NULL is allowed. What the reader has mapped stays. */
void extents_out_free(struct extents_out *out);

/* Writes the pieces into an extent that is not in use: its slot, or -1 (none is left, no memory,
 * no descriptors). `*fresh`: the reader is still to be given extents_fd(). */
int extents_write(struct extents_out *out, const struct piece *pieces, size_t n, bool *fresh);
/* Close-on-exec; stays the writer's. */
int extents_fd(const struct extents_out *out, unsigned slot);
/* The reader has it. */
void extents_passed(struct extents_out *out, unsigned slot);
/* These slots are not in use any more: the reader says so, or they were not sent after all. */
void extents_reclaim(struct extents_out *out, uint64_t slots);
/* The slots in use. */
uint64_t extents_busy(const struct extents_out *out);

/* ---- the reader's end ---------------------------------------------------------------------- */

struct extents_in;
/* A mapped extent. Counted; the last one to drop it gives the extent back. */
struct extent_view;

/* `given_back` is where the writer looks for the bits. NULL: out of memory. */
struct extents_in *extents_in_new(_Atomic uint64_t *given_back);
/* NULL is allowed. The views stay, but have nobody to give the extents back to. */
void extents_in_free(struct extents_in *in);

/* The descriptor of a slot, instead of the one it had; taken in any case. -1 and errno: EPROTO (no
 * memory that may be mapped without danger). */
int extents_take(struct extents_in *in, unsigned slot, int fd);
/* Both: -1 or NULL and errno, EPROTO where the extent is not so big. A piece that is read into
 * memory of its own cannot change any more, which a view may where the writer is hostile. */
int extents_read(struct extents_in *in, unsigned slot, void *to, size_t size);
struct extent_view *extents_view(struct extents_in *in, unsigned slot, size_t size);
void extents_give_back(struct extents_in *in, unsigned slot);

const unsigned char *extent_data(const struct extent_view *view);
struct extent_view *extent_ref(struct extent_view *view);
void extent_unref(struct extent_view *view);

/* Where the next piece begins. */
size_t extent_round(size_t size);

#endif
