/* shelf.h: blocks that both ends of a lane keep mapped, so that they need not be passed again.
 *
 * What was passed once has a place on the shelf of its direction, and from then on a frame names
 * the place. The end that made a block says when it is gone; the end that it came to says when
 * nobody there uses it any more: only then may the child make another array of it. See
 * docs/protocol.md. No Python. */
#ifndef ISOLATION_SHELF_H
#define ISOLATION_SHELF_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "arena.h"
#include "lane.h"

#define SHELF_PLACES 16u

/* In the memory of the lane, one for each direction. */
struct shelf_words {
    /* By the writer of the ring: bits of places whose blocks are gone, cleared by the reader, and
     * how often the place had been named by then; and bits of those of which it waits to hear that
     * they are not used. */
    _Atomic uint64_t gone, lent;
    _Atomic uint64_t gone_at[SHELF_PLACES];
    /* By the reader, which rings then: one that was lent is not used any more. Cleared by the
     * writer. */
    _Alignas(128) _Atomic uint32_t returned;
    /* By the reader: how often the place had been named when nobody used its block any more. */
    _Atomic uint64_t unused_at[SHELF_PLACES];
};
#define SHELF_NEVER UINT64_MAX /* in unused_at: a fork may have it, or who it was passed on to */

/* ---- who passes ------------------------------------------------------------------------------ */

/* recycles: blocks that the other end does not use any more are used again; it could still read and
 * write them. NULL: no memory. The lane must live as long. */
struct shelf_out *shelf_out_new(lane *l, bool recycles);
/* NULL is allowed; also in a fork. */
void shelf_out_free(struct shelf_out *s);
/* Another record begins. */
void shelf_out_begin(struct shelf_out *s);
/* The place of a block that is about to be named; fresh: its descriptor has to be passed. False: it
 * gets none, and goes as any descriptor. */
bool shelf_out_place(struct shelf_out *s, struct block *b, unsigned *place, bool *fresh);
/* It was not named after all. */
void shelf_out_unsent(struct shelf_out *s, unsigned place, bool fresh);
/* Takes notice of what the other end does not use any more. */
void shelf_out_look(struct shelf_out *s);

/* ---- to whom --------------------------------------------------------------------------------- */

struct shelf_in *shelf_in_new(lane *l);
void shelf_in_free(struct shelf_in *s);
/* A block comes, with one user; the shelf is another. 0, or -1 and errno. */
int shelf_in_put(struct shelf_in *s, unsigned place, struct block *b);
/* It has come, and cannot be mapped: who names it later gets ENOMEM. */
void shelf_in_miss(struct shelf_in *s, unsigned place);
/* The block of a place, with one more user. NULL and errno. */
struct block *shelf_in_get(struct shelf_in *s, unsigned place);
/* Takes notice of what is gone. */
void shelf_in_look(struct shelf_in *s);

#endif
