/* lane.h: two rings in shared memory, one for each direction of a strand. No Python, no sockets.
 *
 * The memory is a memfd sealed against resizing. Nothing in it is believed: what the other end
 * writes there is read once, checked, and copied out before anybody looks into it. So the worst
 * that garbage does is an error. See docs/protocol.md for the layout and the memory ordering. */
#ifndef ISOLATION_LANE_H
#define ISOLATION_LANE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct lane lane;

#define LANE_VERSION 4u
/* Bigger frames go another way: a copy into the ring and one out of it would be no gain. */
#define LANE_FRAME_MAX (64u * 1024)

/* What the other end is made from: pass both descriptors on, then close them. */
enum { LANE_MEMORY, LANE_BELL, LANE_FDS };

/* A new lane, and the descriptors of its other end (close-on-exec, the caller's). NULL and errno.
 */
lane *lane_make(int fds[LANE_FDS]);
/* The other end. Owns both descriptors from here on, also on failure: NULL and errno. */
lane *lane_join(const int fds[LANE_FDS]);
/* NULL is allowed. Also in a fork of the process, which can do nothing else with it. */
void lane_free(lane *l);

/* This is a fork of the process that made it: it shares the memory, and must not touch it. */
bool lane_forked(const lane *l);
/* The other end has joined. */
bool lane_joined(const lane *l);

/* Copies a record into the ring and wakes the other end if it sleeps: a frame, or what says where
 * in an extent one is. False: it does not fit now, and nothing was sent. */
enum lane_kind { LANE_IS_FRAME, LANE_IS_EXTENT };
bool lane_send(lane *l, enum lane_kind kind, const void *data, size_t size);
/* A record is about to be made: fetches the line that it begins at, which the other end looks at,
 * so that lane_send() need not wait for it. */
void lane_prepare(lane *l);
/* What is sent from here on wakes nobody: an end that sleeps finds it when it is woken next. */
void lane_set_quiet(lane *l, bool quiet);
/* Bytes of the ring that the other end has not read yet, as far as it says. */
size_t lane_unread(lane *l);
/* Whether a record of this size would fit now. */
bool lane_fits(lane *l, size_t size);
/* Hands a duplicate of a descriptor to the other end, which gets them in order, by lane_take(). 0,
 * or -1 and errno. Never waits. */
int lane_pass(lane *l, int fd);
/* The next descriptor that the other end passed, the caller's; -1: there is none. */
int lane_take(lane *l);
/* Bits for extents: what the other end has given back of those that this end sent, and where this
 * end says so of those that it received. */
struct extents_back;
struct extents_back *lane_returned(lane *l);
struct extents_back *lane_to_return(lane *l);
/* The same for the shelves of the two directions. From then on this end does not sleep while there
 * is something new on them. */
struct shelf_words;
struct shelf_words *lane_shelf_out(lane *l);
struct shelf_words *lane_shelf_in(lane *l);
/* Wakes the other end if it sleeps, for something that is no record. Any thread. */
void lane_wake(lane *l);
/* Says, in order with the frames, that `total` frames in all were sent another way up to here. Is
 * always said: where there is no room left, as LANE_FOR_GOOD, and then nothing fits any more. */
void lane_elsewhere(lane *l, uint64_t total);
#define LANE_FOR_GOOD ((1ull << 56) - 1)

/* Takes the next record. What it says is copied to `room` (NULL: none) where that is big enough, or
 * else to new memory, which is the caller's. */
enum lane_got {
    LANE_GARBLED =
        -1, /* the other end does not keep to the rules; the lane is of no use any more */
    LANE_NONE,
    LANE_FRAME,     /* *data, *size */
    LANE_EXTENT,    /* the same */
    LANE_ELSEWHERE, /* *size: the total, see above */
    LANE_NO_MEMORY,
} lane_recv(lane *l, void *room, size_t room_size, void **data, size_t *size);
/* True when lane_recv() would find something. */
bool lane_ready(const lane *l);
/* Looks so many times, with a pause after each that leaves the processor's other half some room. */
bool lane_spin(const lane *l, unsigned times);
/* True when the other end was last seen on the processor that this thread runs on: it cannot go on
 * before this thread sleeps. A guess, which may be wrong. */
bool lane_stacked(const lane *l);
/* Says to the other end where this thread is, or (`known` false) that it is about to move. */
void lane_place(lane *l, bool known);

/* To sleep: poll lane_bell() between lane_doze() and lane_woken(). False: do not sleep, something
 * is there. The bell may ring for nothing. It hangs up when the other end has gone. lane_woken() is
 * false when the bell has been closed, by code that closes what is not its own: nobody could wake
 * this end any more. */
bool lane_doze(lane *l);
bool lane_woken(lane *l);
int lane_bell(const lane *l);

#endif
