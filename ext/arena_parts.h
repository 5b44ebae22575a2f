/* arena_parts.h: what arena.c and shelf.c share, and no others. No Python. */
#ifndef ISOLATION_ARENA_PARTS_H
#define ISOLATION_ARENA_PARTS_H

#include "arena.h"
#include "shelf.h"

#include <sys/types.h>

struct block {
    struct block *next;
    char *data, *reserved;
    size_t size, reserved_size;
    int fd;
    dev_t device;
    ino_t inode;
    unsigned users;   /* places of shelves that it came to are some, ... */
    unsigned shelved; /* ... so many */
    bool passed;      /* the other end may have it for good */
    bool given;       /* its descriptor was passed on by itself: who has it is not known any more */
    bool is_lent;     /* it is in the list of those */
    unsigned forks;   /* of this process, when it was made or used again */
    struct shelf_out *out; /* the other end keeps it at this place of this shelf; or NULL */
    struct shelf_in *in;   /* it was put there by the other end first; or NULL */
    unsigned out_place, in_place;
};

/* All that follows, and all of a block but what never changes, is used with the lock. */
void arena_lock(void);
void arena_unlock(void);
/* Forks of this process, ever. */
unsigned arena_forks(void);
void block_drop(struct block *b);
/* Of blocks without a user that the other end still uses: back to the idle ones, or unmapped, those
 * that it does not use any more; or unmapped, all of a shelf that ends. */
void arena_settle(const struct shelf_out *ends);

/* ---- shelf.c --------------------------------------------------------------------------------- */

/* The last user of a block that has come by a shelf has gone. It may be gone itself after that. */
void shelf_in_unused(struct block *b);
/* What the other end does with it: it has it, and will say when not any more; does not use it; or
 * uses it for ever. */
enum shelf_use { SHELF_USED, SHELF_UNUSED, SHELF_FOR_EVER };
enum shelf_use shelf_out_use(const struct block *b);
/* From now on the other end rings the bell when it does not use it any more; unless the answer,
 * what it does now, is not SHELF_USED. */
enum shelf_use shelf_out_lend(struct block *b);
/* It will not hear any more of what the other end does with it. */
void block_was_passed(struct block *b);
/* It has said so, or need not any more. */
void shelf_out_take_back(struct block *b);
/* The place is free again: the other end lets go of the block. */
void shelf_out_remove(struct block *b);

#endif
