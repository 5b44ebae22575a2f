#define _GNU_SOURCE 1
#include "shelf.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "arena_parts.h"

struct shelf_out {
    lane *lane;
    struct shelf_words *words;
    pid_t owner;
    bool recycles;
    uint64_t stamp, begun; /* the last naming; the last one of an earlier record */
    struct {
        struct block *block; /* or NULL */
        uint64_t named;      /* how often, with this and earlier blocks */
        uint64_t stamp;      /* the last time */
    } places[SHELF_PLACES];
};

struct shelf_in {
    lane *lane;
    struct shelf_words *words;
    pid_t owner;
    _Atomic uint64_t gone; /* what the words have said, and has not come yet */
    struct {
        struct block *block;
        uint64_t named, since; /* and the first time that meant this block */
        bool missing;          /* there was no memory for it */
    } places[SHELF_PLACES];
};

static uint64_t
bit(unsigned place)
{
    return (uint64_t)1 << place;
}

/* ---- who passes ------------------------------------------------------------------------------ */

struct shelf_out *
shelf_out_new(lane *l, bool recycles)
{
    struct shelf_out *s = calloc(1, sizeof *s);

    if (s) {
        s->lane = l;
        s->words = lane_shelf_out(l);
        s->owner = getpid();
        s->recycles = recycles;
    }
    return s;
}

void
shelf_out_free(struct shelf_out *s)
{
    if (!s)
        return;
    arena_lock();
    if (getpid() == s->owner) { /* a fork has forgotten it */
        arena_settle(s);
        for (unsigned i = 0; i < SHELF_PLACES; i++)
            if (s->places[i].block)
                block_was_passed(s->places[i].block);
    }
    arena_unlock();
    free(s);
}

void
block_was_passed(struct block *b)
{
    b->out = NULL;
    b->passed = true;
}

void
shelf_out_remove(struct block *b)
{
    struct shelf_out *s = b->out;

    s->places[b->out_place].block = NULL;
    block_was_passed(b);
    atomic_fetch_and(&s->words->lent, ~bit(b->out_place));
    atomic_store(&s->words->gone_at[b->out_place], s->places[b->out_place].named);
    atomic_fetch_or(&s->words->gone, bit(b->out_place));
    lane_wake(s->lane);
}

enum shelf_use
shelf_out_use(const struct block *b)
{
    struct shelf_out *s = b->out;
    uint64_t at = atomic_load(&s->words->unused_at[b->out_place]);

    return at == s->places[b->out_place].named ? SHELF_UNUSED
           : at == SHELF_NEVER                 ? SHELF_FOR_EVER
                                               : SHELF_USED;
}

/* As for sleeping in a lane: said first, then looked; the other end does it the other way round. */
enum shelf_use
shelf_out_lend(struct block *b)
{
    atomic_fetch_or(&b->out->words->lent, bit(b->out_place));
    enum shelf_use use = shelf_out_use(b);
    if (use != SHELF_USED)
        shelf_out_take_back(b);
    return use;
}

void
shelf_out_take_back(struct block *b)
{
    atomic_fetch_and(&b->out->words->lent, ~bit(b->out_place));
}

void
shelf_out_begin(struct shelf_out *s)
{
    s->begun = s->stamp;
}

bool
shelf_out_place(struct shelf_out *s, struct block *b, unsigned *place, bool *fresh)
{
    int found = -1;

    arena_lock();
    *fresh = b->out != s;
    if (b->out == s)
        found = (int)b->out_place;
    else if (!b->out && !b->in) {
        /* A free one; else the one that was named longest ago, of those that are not lent, nor
         * named by the same record. */
        for (unsigned i = 0; i < SHELF_PLACES; i++) {
            struct block *there = s->places[i].block;
            if (!there) {
                found = (int)i;
                break;
            }
            if (!there->is_lent && s->places[i].stamp <= s->begun &&
                (found < 0 || s->places[i].stamp < s->places[found].stamp))
                found = (int)i;
        }
        if (found >= 0 && s->places[found].block)
            shelf_out_remove(s->places[found].block);
    }
    if (found >= 0) {
        s->places[found].block = b;
        s->places[found].named++;
        s->places[found].stamp = ++s->stamp;
        b->out = s;
        b->out_place = (unsigned)found;
        b->passed = b->passed || !s->recycles;
        *place = (unsigned)found;
    }
    arena_unlock();
    return found >= 0;
}

void
shelf_out_unsent(struct shelf_out *s, unsigned place, bool fresh)
{
    arena_lock();
    s->places[place].named--;
    if (fresh && s->places[place].block) {
        s->places[place].block->out = NULL;
        s->places[place].block = NULL;
    }
    arena_unlock();
}

void
shelf_out_look(struct shelf_out *s)
{
    if (atomic_load_explicit(&s->words->returned, memory_order_relaxed) == 0)
        return;
    atomic_store(&s->words->returned, 0);
    arena_lock();
    arena_settle(NULL);
    arena_unlock();
}

/* ---- to whom --------------------------------------------------------------------------------- */

struct shelf_in *
shelf_in_new(lane *l)
{
    struct shelf_in *s = calloc(1, sizeof *s);

    if (s) {
        s->lane = l;
        s->words = lane_shelf_in(l);
        s->owner = getpid();
    }
    return s;
}

/* With the lock. */
static void
clear(struct shelf_in *s, unsigned place)
{
    struct block *b = s->places[place].block;

    s->places[place].block = NULL;
    if (b) {
        if (b->in == s && b->in_place == place)
            b->in = NULL;
        b->shelved--;
        block_drop(b);
    }
}

void
shelf_in_free(struct shelf_in *s)
{
    if (!s)
        return;
    arena_lock();
    for (unsigned i = 0; i < SHELF_PLACES && getpid() == s->owner; i++)
        clear(s, i);
    arena_unlock();
    free(s);
}

/* With the lock. */
static void
begin(struct shelf_in *s, unsigned place, uint64_t unused_at)
{
    clear(s, place);
    s->places[place].since = ++s->places[place].named;
    s->places[place].missing = false;
    atomic_store(&s->words->unused_at[place], unused_at);
}

int
shelf_in_put(struct shelf_in *s, unsigned place, struct block *b)
{
    if (place >= SHELF_PLACES) {
        errno = EPROTO;
        return -1;
    }
    arena_lock();
    begin(s, place, 0);
    /* It may come by a second shelf, or be one that was made here: the first end that passed it is
     * told when it is not used. */
    if (!b->in) {
        b->in = s;
        b->in_place = place;
    }
    b->users++;
    b->shelved++;
    s->places[place].block = b;
    arena_unlock();
    return 0;
}

void
shelf_in_miss(struct shelf_in *s, unsigned place)
{
    if (place >= SHELF_PLACES)
        return;
    arena_lock();
    begin(s, place, SHELF_NEVER);
    s->places[place].missing = true;
    arena_unlock();
}

struct block *
shelf_in_get(struct shelf_in *s, unsigned place)
{
    struct block *b = NULL;

    if (place >= SHELF_PLACES) {
        errno = EPROTO;
        return NULL;
    }
    arena_lock();
    s->places[place].named++;
    b = s->places[place].block;
    if (b) {
        if (b->users == b->shelved)
            b->forks = arena_forks(); /* no fork made before has an array of it */
        b->users++;
    }
    else
        errno = s->places[place].missing ? ENOMEM : EPROTO;
    arena_unlock();
    return b;
}

/* With the lock. What is gone after so many namings goes once they have come; not what the place
 * has got since. */
static void
look(struct shelf_in *s)
{
    s->gone |= atomic_exchange(&s->words->gone, 0) & (bit(SHELF_PLACES) - 1);
    for (unsigned i = 0; i < SHELF_PLACES; i++) {
        uint64_t at = atomic_load(&s->words->gone_at[i]);
        if (!(s->gone & bit(i)) || s->places[i].named < at)
            continue;
        s->gone &= ~bit(i); /* first: to clear it may lead here again */
        if (s->places[i].since <= at)
            clear(s, i);
    }
}

void
shelf_in_unused(struct block *b)
{
    struct shelf_in *s = b->in;
    unsigned place = b->in_place;

    atomic_store(&s->words->unused_at[place],
                 b->forks == arena_forks() && !b->given ? s->places[place].named : SHELF_NEVER);
    if (atomic_load(&s->words->lent) & bit(place)) {
        atomic_store(&s->words->returned, 1);
        lane_wake(s->lane);
    }
    /* Where the other end is done with it too, nobody may ask anything for long. */
    if (atomic_load_explicit(&s->words->gone, memory_order_relaxed) != 0)
        look(s);
}

void
shelf_in_look(struct shelf_in *s)
{
    if (atomic_load_explicit(&s->words->gone, memory_order_relaxed) == 0 &&
        atomic_load_explicit(&s->gone, memory_order_relaxed) == 0)
        return;
    arena_lock();
    look(s);
    arena_unlock();
}
