/* Tests of ext/shelf.c, and of what ext/arena.c does with blocks that both ends keep. The end that
 * they come to is another process, which does what it is told. */
#include "arena.h"
#include "check.h"
#include "lane.h"
#include "shelf.h"

#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

#define SIZE ((size_t)1 << 20)

/* ---- the other end --------------------------------------------------------------------------- */

enum command { PUT, PUT_UNSEEN, GET, PASS, MISS, UNREF, LOOK, MAPPED, FORK, END };
struct order {
    enum command command;
    unsigned place, n;
};

static unsigned
mapped(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[500];
    unsigned n = 0;
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        n += strstr(line, "isolation-array") != NULL;
    }
    fclose(maps);
    return n;
}

/* Answers each order with a number: the first byte of a block, 256 + errno, or how many. */
static void
other_end(int orders, const int fds[LANE_FDS])
{
    lane *l = lane_join(fds);
    struct shelf_in *s = shelf_in_new(l);
    struct block *held[64] = {NULL};
    struct order o;
    while (read(orders, &o, sizeof o) == sizeof o) {
        unsigned answer = 0;
        pid_t pid;
        switch (o.command) {
        case PASS:
            answer = block_pass(held[o.n]) >= 0;
            break;
        case MISS:
            shelf_in_miss(s, o.place);
            break;
        case PUT:
        case PUT_UNSEEN: /* its look at what is gone was before that was said */
        case GET:
            if (o.command != PUT_UNSEEN) {
                shelf_in_look(s);
            }
            held[o.n] = o.command != GET ? block_take(lane_take(l)) : shelf_in_get(s, o.place);
            if (held[o.n] != NULL && o.command != GET && shelf_in_put(s, o.place, held[o.n]) < 0) {
                block_unref(held[o.n]);
                held[o.n] = NULL;
            }
            answer =
                held[o.n] == NULL ? 256 + (unsigned)errno : *(unsigned char *)block_data(held[o.n]);
            break;
        case UNREF:
            block_unref(held[o.n]);
            break;
        case LOOK:
            shelf_in_look(s);
            break;
        case MAPPED:
            answer = mapped();
            break;
        case FORK:
            pid = fork();
            if (pid == 0) {
                /* A fork keeps what has a user, and nothing of the shelf. */
                answer = mapped();
                shelf_in_free(s);
                _exit((int)answer);
            }
            int status;
            waitpid(pid, &status, 0);
            answer = (unsigned)WEXITSTATUS(status);
            break;
        case END:
            break;
        }
        if (write(orders, &answer, sizeof answer) != sizeof answer || o.command == END) {
            break;
        }
    }
    shelf_in_free(s);
    lane_free(l);
    _exit(0);
}

/* ---- this end -------------------------------------------------------------------------------- */

static lane *here;
static struct shelf_out *shelf;
static int orders;
static pid_t other;

static void
open_both(bool recycles)
{
    int fds[LANE_FDS], pair[2];
    here = lane_make(fds);
    CHECK(here != NULL && socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
    fflush(stdout);
    other = fork();
    if (other == 0) {
        close(pair[0]);
        other_end(pair[1], fds);
    }
    close(pair[1]);
    close(fds[LANE_MEMORY]);
    close(fds[LANE_BELL]);
    orders = pair[0];
    shelf = shelf_out_new(here, recycles);
    CHECK(shelf != NULL);
    blocks_keep(true);
}

static unsigned
tell(enum command command, unsigned place, unsigned n)
{
    struct order o = {command, place, n};
    unsigned answer = 999;
    CHECK_EQUAL(write(orders, &o, sizeof o), sizeof o);
    CHECK_EQUAL(read(orders, &answer, sizeof answer), sizeof answer);
    return answer;
}

static void
close_both(void)
{
    tell(END, 0, 0);
    CHECK_EQUAL(waitpid(other, NULL, 0), other);
    close(orders);
    shelf_out_free(shelf);
    lane_free(here);
    blocks_keep(false);
    CHECK_EQUAL(mapped(), 0);
}

static struct block *
filled(int byte)
{
    struct block *b = block_new(SIZE, false);
    CHECK(b != NULL);
    memset(block_data(b), byte, SIZE);
    return b;
}

/* Names it in a record, as a channel does; the other end has the block as its n-th. Its place. */
static unsigned
send_block(struct block *b, bool expect_fresh, unsigned n)
{
    unsigned place = 99;
    bool fresh = false;
    shelf_out_begin(shelf);
    CHECK(shelf_out_place(shelf, b, &place, &fresh));
    CHECK_EQUAL(fresh, expect_fresh);
    CHECK(!fresh || lane_pass(here, block_fd(b)) == 0);
    CHECK_EQUAL(tell(fresh ? PUT : GET, place, n), *(unsigned char *)block_data(b));
    return place;
}

static void
test_passed_once(void)
{
    open_both(false);
    struct block *b = filled(1);
    unsigned place = send_block(b, true, 0);
    tell(UNREF, 0, 0);
    for (int i = 2; i < 5; i++) {
        memset(block_data(b), i, SIZE);
        CHECK_EQUAL(send_block(b, false, 0), place);
        CHECK_EQUAL(send_block(b, false, 1), place); /* twice at a time */
        tell(UNREF, 0, 1);
        tell(UNREF, 0, 0);
    }
    CHECK_EQUAL(tell(MAPPED, 0, 0), 1);
    /* What is gone here goes there, as soon as nobody uses it. */
    send_block(b, false, 0);
    block_unref(b);
    CHECK_EQUAL(mapped(), 0);
    tell(LOOK, 0, 0);
    CHECK_EQUAL(tell(MAPPED, 0, 0), 1);
    tell(UNREF, 0, 0);
    CHECK_EQUAL(tell(MAPPED, 0, 0), 0);
    close_both();
}

/* The end that does not trust the other makes no other array of what that had. */
static void
test_not_recycled(void)
{
    open_both(false);
    struct block *b = filled(1);
    send_block(b, true, 0);
    tell(UNREF, 0, 0);
    block_unref(b);
    CHECK_EQUAL(mapped(), 0);
    close_both();
}

static void
test_recycled(void)
{
    open_both(true);
    struct block *b = filled(1);
    const char *data = block_data(b);
    send_block(b, true, 0);
    tell(UNREF, 0, 0);
    for (int i = 2; i < 6; i++) {
        block_unref(b);
        b = filled(i);
        CHECK(block_data(b) == data);
        send_block(b, false, 0);
        tell(UNREF, 0, 0);
    }
    block_unref(b);
    close_both();
}

/* Not while the other end uses it; and the bell says when that is over. */
static void
test_lent(void)
{
    open_both(true);
    struct block *b = filled(1);
    const char *data = block_data(b);
    send_block(b, true, 0);
    block_unref(b);
    struct block *second = filled(2);
    CHECK(block_data(second) != data);
    CHECK(lane_doze(here));
    tell(UNREF, 0, 0);
    struct pollfd bell = {.fd = lane_bell(here), .events = POLLIN};
    CHECK_EQUAL(poll(&bell, 1, 10000), 1);
    CHECK(lane_woken(here));
    shelf_out_look(shelf);
    b = filled(3);
    CHECK(block_data(b) == data);
    send_block(b, false, 0);
    /* One that is lent as the shelf ends is the other end's. */
    block_unref(b);
    block_unref(second);
    shelf_out_free(shelf);
    CHECK_EQUAL(mapped(), 1); /* the second, for the next */
    shelf = shelf_out_new(here, true);
    tell(UNREF, 0, 0);
    close_both();
}

/* What had a place on a shelf that has ended is the other end's too, which says no more of it. */
static void
test_ended(void)
{
    open_both(true);
    struct block *evicted = filled(2), *more[SHELF_PLACES];
    send_block(evicted, true, 0);
    for (unsigned i = 0; i < SHELF_PLACES; i++) {
        more[i] = filled((int)i);
        send_block(more[i], true, i + 1);
    }
    block_unref(evicted);
    CHECK_EQUAL(mapped(), SHELF_PLACES);
    for (unsigned i = 1; i < SHELF_PLACES; i++) {
        block_unref(more[i]);
    }
    CHECK_EQUAL(mapped(), SHELF_PLACES);
    shelf_out_free(shelf);
    CHECK_EQUAL(mapped(), 1);
    block_unref(more[0]);
    CHECK_EQUAL(mapped(), 0);
    shelf = shelf_out_new(here, true);
    close_both();
}

/* A fork of the other end has what had a user then, for ever; and nothing else. */
static void
test_forked_there(void)
{
    open_both(true);
    struct block *b = filled(1), *unused = filled(2);
    const char *data = block_data(b), *unused_data = block_data(unused);
    send_block(b, true, 0);
    send_block(unused, true, 1);
    tell(UNREF, 0, 1);
    CHECK_EQUAL(tell(FORK, 0, 0), 1);
    tell(UNREF, 0, 0);
    block_unref(b);
    CHECK_EQUAL(mapped(), 1);
    send_block(unused, false, 1);
    tell(UNREF, 0, 1);
    block_unref(unused);
    b = filled(3);
    CHECK(block_data(b) != data && block_data(b) == unused_data);
    block_unref(b);
    close_both();
}

/* And what a fork of this end had is not used again. */
static void
test_forked_here(void)
{
    open_both(true);
    struct block *b = filled(1);
    send_block(b, true, 0);
    tell(UNREF, 0, 0);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        bool there = *block_data(b) == 1;
        shelf_out_free(shelf);
        block_unref(b);
        _exit(there && mapped() == 0 ? 0 : 1);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    send_block(b, false, 0);
    tell(UNREF, 0, 0);
    block_unref(b);
    CHECK_EQUAL(mapped(), 0);
    tell(LOOK, 0, 0);
    CHECK_EQUAL(tell(MAPPED, 0, 0), 0);
    close_both();
}

/* There are places for some; the one that was named longest ago makes room. */
static void
test_many(void)
{
    struct block *blocks[SHELF_PLACES + 1];
    open_both(false);
    for (unsigned i = 0; i < SHELF_PLACES; i++) {
        blocks[i] = filled((int)i);
        CHECK_EQUAL(send_block(blocks[i], true, i), i);
        tell(UNREF, 0, i);
    }
    send_block(blocks[0], false, 0);
    tell(UNREF, 0, 0);
    blocks[SHELF_PLACES] = filled(99);
    CHECK_EQUAL(send_block(blocks[SHELF_PLACES], true, 50), 1);
    tell(UNREF, 0, 50);
    CHECK_EQUAL(tell(MAPPED, 0, 0), SHELF_PLACES);
    CHECK_EQUAL(send_block(blocks[1], true, 1), 2); /* another's now */
    tell(UNREF, 0, 1);
    for (unsigned i = 0; i <= SHELF_PLACES; i++) {
        block_unref(blocks[i]);
    }
    tell(LOOK, 0, 0);
    CHECK_EQUAL(tell(MAPPED, 0, 0), 0);
    close_both();
}

/* One record names more than there are places for: none takes the place of another of them. */
static void
test_many_at_once(void)
{
    struct block *blocks[SHELF_PLACES + 4];
    open_both(false);
    for (int round = 0; round < 3; round++) {
        shelf_out_begin(shelf);
        for (unsigned i = 0; i < SHELF_PLACES + 4; i++) {
            unsigned place;
            bool fresh;
            blocks[i] = round == 0 ? filled((int)i) : blocks[i];
            bool placed = shelf_out_place(shelf, blocks[i], &place, &fresh);
            CHECK_EQUAL(placed, i < SHELF_PLACES);
            if (placed) {
                CHECK_EQUAL(fresh, round == 0);
                CHECK(!fresh || lane_pass(here, block_fd(blocks[i])) == 0);
                CHECK_EQUAL(tell(fresh ? PUT : GET, place, i), i);
                tell(UNREF, 0, i);
            }
        }
    }
    for (unsigned i = 0; i < SHELF_PLACES + 4; i++) {
        block_unref(blocks[i]);
    }
    tell(LOOK, 0, 0);
    CHECK_EQUAL(tell(MAPPED, 0, 0), 0);
    close_both();
}

/* The word that the last block of a place is gone comes late: it does not mean the next one. */
static void
test_gone_late(void)
{
    unsigned place, again;
    bool fresh;
    open_both(false);
    struct block *b = filled(1), *next = filled(2);
    place = send_block(b, true, 0);
    tell(UNREF, 0, 0);
    block_unref(b);
    shelf_out_begin(shelf);
    CHECK(shelf_out_place(shelf, next, &again, &fresh) && fresh && again == place);
    CHECK_EQUAL(lane_pass(here, block_fd(next)), 0);
    CHECK_EQUAL(tell(PUT_UNSEEN, place, 1), 2);
    tell(LOOK, 0, 0);
    tell(UNREF, 0, 1);
    send_block(next, false, 1);
    tell(UNREF, 0, 1);
    block_unref(next);
    close_both();
}

/* Places of memory that waits for its next user are free for others. */
static void
test_idle_makes_room(void)
{
    struct block *blocks[SHELF_PLACES];
    open_both(true);
    for (unsigned i = 0; i < SHELF_PLACES; i++) {
        blocks[i] = filled((int)i);
        send_block(blocks[i], true, i);
        tell(UNREF, 0, i);
    }
    for (unsigned i = 0; i < SHELF_PLACES; i++) {
        block_unref(blocks[i]);
    }
    struct block *big = block_new(4 * SIZE, false);
    CHECK(big != NULL);
    memset(block_data(big), 77, SIZE);
    send_block(big, true, 0);
    tell(UNREF, 0, 0);
    send_block(big, false, 0);
    tell(UNREF, 0, 0);
    block_unref(big);
    close_both();
}

/* What the other end has passed on by itself is somebody else's, too; it may come home. */
static void
test_passed_on(void)
{
    open_both(true);
    struct block *b = filled(1);
    send_block(b, true, 0);
    int fd = dup(block_fd(b));
    block_unref(b); /* lent */
    CHECK_EQUAL(tell(PASS, 0, 0), 1);
    tell(UNREF, 0, 0);
    struct block *home = block_take(fd);
    CHECK_EQUAL(mapped(), 1);
    CHECK_EQUAL(*block_data(home), 1);
    block_unref(home);
    struct block *next = filled(5);
    CHECK_EQUAL(tell(MAPPED, 0, 0), 1);
    CHECK_EQUAL(send_block(next, true, 1), 0);
    tell(UNREF, 0, 1);
    block_unref(next);
    close_both();
}

/* Where the other end cannot map it, it says so whenever it is named. */
static void
test_missing(void)
{
    unsigned place;
    bool fresh;
    open_both(false);
    struct block *b = filled(1);
    shelf_out_begin(shelf);
    CHECK(shelf_out_place(shelf, b, &place, &fresh) && fresh);
    tell(MISS, place, 0);
    for (int i = 0; i < 2; i++) {
        shelf_out_begin(shelf);
        CHECK(shelf_out_place(shelf, b, &place, &fresh) && !fresh);
        CHECK_EQUAL(tell(GET, place, 0), 256 + ENOMEM);
    }
    block_unref(b);
    struct block *next = filled(2);
    send_block(next, true, 0);
    tell(UNREF, 0, 0);
    block_unref(next);
    close_both();
}

/* The word that it is gone overtakes the record that names it. */
static void
test_gone_before_it_comes(void)
{
    unsigned place;
    bool fresh;
    open_both(false);
    struct block *b = filled(7);
    CHECK(shelf_out_place(shelf, b, &place, &fresh) && fresh);
    CHECK_EQUAL(lane_pass(here, block_fd(b)), 0);
    block_unref(b);
    tell(LOOK, 0, 0);
    CHECK_EQUAL(tell(PUT, place, 0), 7);
    tell(LOOK, 0, 0);
    tell(UNREF, 0, 0);
    CHECK_EQUAL(tell(MAPPED, 0, 0), 0);
    close_both();
}

/* A record that could not be sent leaves all as it was. */
static void
test_unsent(void)
{
    unsigned place;
    bool fresh;
    open_both(true);
    struct block *b = filled(1);
    CHECK(shelf_out_place(shelf, b, &place, &fresh) && fresh);
    shelf_out_unsent(shelf, place, fresh);
    send_block(b, true, 0);
    tell(UNREF, 0, 0);
    CHECK(shelf_out_place(shelf, b, &place, &fresh) && !fresh);
    shelf_out_unsent(shelf, place, fresh);
    const char *data = block_data(b);
    block_unref(b);
    b = filled(2);
    CHECK(block_data(b) == data); /* it is known that nobody uses it */
    block_unref(b);
    close_both();
}

static void
test_what_does_not_keep_to_the_rules(void)
{
    open_both(false);
    struct block *b = filled(1);
    CHECK_EQUAL(tell(GET, 3, 0), 256 + EPROTO);
    CHECK_EQUAL(tell(GET, SHELF_PLACES, 0), 256 + EPROTO);
    CHECK_EQUAL(lane_pass(here, block_fd(b)), 0);
    CHECK_EQUAL(tell(PUT, UINT32_MAX, 0), 256 + EPROTO);
    CHECK_EQUAL(tell(MAPPED, 0, 0), 0);
    /* The same block at two places. */
    for (unsigned place = 0; place < 2; place++) {
        CHECK_EQUAL(lane_pass(here, block_fd(b)), 0);
        CHECK_EQUAL(tell(PUT, place, place), 1);
    }
    CHECK_EQUAL(tell(GET, 1, 2), 1);
    for (unsigned i = 0; i < 3; i++) {
        tell(UNREF, 0, i);
    }
    CHECK_EQUAL(tell(MAPPED, 0, 0), 1);
    block_unref(b);
    close_both();
}

int
main(void)
{
    test_passed_once();
    test_not_recycled();
    test_recycled();
    test_lent();
    test_ended();
    test_forked_there();
    test_forked_here();
    test_many();
    test_many_at_once();
    test_gone_late();
    test_idle_makes_room();
    test_passed_on();
    test_missing();
    test_gone_before_it_comes();
    test_unsent();
    test_what_does_not_keep_to_the_rules();
    return check_report();
}
