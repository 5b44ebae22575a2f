#define _GNU_SOURCE 1
#include "lane.h"

#include "extents.h"
#include "fdpass.h"
#include "shelf.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* A record is a word and, for a frame, its bytes; it begins at a cache line of its own, so that the
 * word and the first 56 bytes come over in one piece. A word of 0 is no record yet. Whoever reads a
 * record clears the first word of each of its lines before giving them back, since the next record
 * may begin at any of them. (The writer could do it instead, but just before the other end waits
 * for what it writes next.) */
#define LINE 64u
#define WORD sizeof(uint64_t)
#define RING_SIZE (256u * 1024)
/* From here on a record goes back to the start of the ring if it can: the same few lines are used
 * again and again, and stay in the caches next to the processors. */
#define EARLY_END (4u * 1024)
/* Kept free behind every frame: room to say that the ring is given up. */
#define RESERVE LINE

/* Upper 8 bits of a word; the lower 56 are the size of the frame, or the total. */
enum { RECORD_FRAME = 1, RECORD_ELSEWHERE, RECORD_WRAP, RECORD_EXTENT };
#define KIND_SHIFT 56

_Static_assert(LANE_FRAME_MAX + WORD + LINE + RESERVE < RING_SIZE / 2, "frames fit into the ring");

/* Descriptors that may have come before they are asked for; honest writers never pass more. */
#define PASSED_MOST 64

/* Lines that one end writes while the other reads are kept apart, by two lines because processors
 * fetch them in pairs. */
struct control {
    /* Written by the reader: how far it has read. */
    _Alignas(128) _Atomic uint64_t read;
    /* Set by the reader before it sleeps, cleared by whoever wakes it. */
    _Alignas(128) _Atomic uint32_t sleeping;
    _Atomic uint32_t cpu; /* the reader's, when it last read a frame; or NOWHERE */
    /* Set by the reader, cleared by the writer: extents that are not in use any more. */
    _Alignas(128) struct extents_back returned;
    _Alignas(128) struct shelf_words shelf;
};

#define NOWHERE UINT32_MAX

struct memory {
    _Alignas(128) uint32_t version;
    _Atomic uint32_t joined;
    struct control control[2]; /* of the ring to the end that joins, and of the one back */
    _Alignas(4096) unsigned char ring[2][RING_SIZE];
};

/* One ring, seen from one end. Positions count bytes and never go back; what is skipped at the end
 * of the ring counts too. */
struct ring {
    struct control *control;
    unsigned char *data;
    uint64_t at;   /* where the next record begins */
    uint64_t read; /* writer: how far the other end had read when last looked */
};

struct lane {
    struct memory *memory;
    struct ring out, in;
    int bell; /* a message here wakes the other end; some bring descriptors */
    int passed[PASSED_MOST];
    unsigned npassed;
    bool quiet;               /* what is sent wakes nobody */
    bool shelf_out, shelf_in; /* there are such */
    bool given_up;            /* the ring out says LANE_FOR_GOOD */
    bool garbled;             /* the other end's words are not looked at any more */
    unsigned forked; /* `forks` when it was made: another number now means that this is a fork */
};

static unsigned forks;

static void
count_fork(void)
{
    forks++;
}

static void
watch_forks(void)
{
    pthread_atfork(NULL, NULL, count_fork);
}

static lane *
lane_new(int memory, int bell, bool maker)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    lane *l = calloc(1, sizeof *l);
    if (l == NULL) {
        return NULL;
    }
    l->memory = mmap(NULL, sizeof *l->memory, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (l->memory == MAP_FAILED) {
        free(l);
        return NULL;
    }
    l->bell = bell;
    l->forked = forks;
    l->out.control = &l->memory->control[maker ? 0 : 1];
    l->out.data = l->memory->ring[maker ? 0 : 1];
    l->in.control = &l->memory->control[maker ? 1 : 0];
    l->in.data = l->memory->ring[maker ? 1 : 0];
    return l;
}

lane *
lane_make(int fds[LANE_FDS])
{
    int bells[2] = {-1, -1}, saved;
    int memory = memfd_create("isolation-lane", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    /* Sealed: a truncation by the other end would be a SIGBUS here. */
    if (memory < 0 || ftruncate(memory, sizeof(struct memory)) < 0 ||
        fcntl(memory, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0) {
        goto error;
    }
    /* Not an eventfd: both ends share its flags, and one that the other end made blocking and full
     * would block this one. A socket is told not to block with each message. */
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, bells) < 0) {
        goto error;
    }
    lane *l = lane_new(memory, bells[0], true);
    if (l == NULL) {
        goto error;
    }
    l->memory->version = LANE_VERSION;
    fds[LANE_MEMORY] = memory;
    fds[LANE_BELL] = bells[1];
    return l;
error:
    saved = errno;
    for (int i = 0; i < 2; i++) {
        if (bells[i] >= 0) {
            close(bells[i]);
        }
    }
    if (memory >= 0) {
        close(memory);
    }
    errno = saved;
    return NULL;
}

lane *
lane_join(const int fds[LANE_FDS])
{
    struct stat about;
    lane *l = NULL;
    int saved = EPROTO;
    if (fstat(fds[LANE_MEMORY], &about) == 0 && about.st_size == sizeof(struct memory)) {
        l = lane_new(fds[LANE_MEMORY], fds[LANE_BELL], false);
        saved = errno;
    }
    if (l != NULL && l->memory->version != LANE_VERSION) {
        munmap(l->memory, sizeof *l->memory);
        free(l);
        l = NULL;
        saved = EPROTO;
    }
    close(fds[LANE_MEMORY]);
    if (l == NULL) {
        close(fds[LANE_BELL]);
        errno = saved;
        return NULL;
    }
    atomic_store(&l->memory->joined, 1);
    return l;
}

void
lane_free(lane *l)
{
    if (l != NULL) {
        munmap(l->memory, sizeof *l->memory);
        close(l->bell);
        for (unsigned i = 0; i < l->npassed; i++) {
            close(l->passed[i]);
        }
        free(l);
    }
}

bool
lane_forked(const lane *l)
{
    return l->forked != forks;
}

bool
lane_joined(const lane *l)
{
    return atomic_load_explicit(&l->memory->joined, memory_order_acquire) == 1;
}

int
lane_bell(const lane *l)
{
    return l->bell;
}

static _Atomic uint64_t *
word_at(const struct ring *ring, uint64_t position)
{
    return (_Atomic uint64_t *)(ring->data + position % RING_SIZE);
}

/* ---- writing ------------------------------------------------------------------------------ */

/* Whether n bytes from ring->at on are free. */
static bool
has_room(struct ring *ring, uint64_t n)
{
    if (ring->at - ring->read + n <= RING_SIZE) {
        return true;
    }
    uint64_t read = atomic_load_explicit(&ring->control->read, memory_order_acquire);
    /* It only grows, and never beyond what was written; anything else is not believed. */
    if (read - ring->read > ring->at - ring->read) {
        return false;
    }
    ring->read = read;
    return ring->at - ring->read + n <= RING_SIZE;
}

/* Wakes the other end if it sleeps. What was published comes before the look at `sleeping`, as in
 * lane_doze() the setting of `sleeping` before the look at what was published: so one of the two
 * sees what the other did. */
static void
wake(lane *l)
{
    atomic_thread_fence(memory_order_seq_cst);
    _Atomic uint32_t *sleeping = &l->out.control->sleeping;
    if (atomic_load_explicit(sleeping, memory_order_relaxed) != 0 &&
        atomic_exchange(sleeping, 0) != 0) {
        /* Full or hung up: it is awake, or nobody is there. */
        ssize_t ignored = send(l->bell, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        (void)ignored;
    }
}

/* Writes one record of `lines` lines, whose word is `word` and whose bytes are `data`. The caller
 * has checked that there is room for it, for the wrap before it, and for RESERVE. */
static void
publish(lane *l, uint64_t word, const void *data, size_t size, uint64_t lines, bool wrap)
{
    struct ring *ring = &l->out;
    uint64_t old = ring->at;
    if (wrap) {
        ring->at += RING_SIZE - ring->at % RING_SIZE;
    }
    _Atomic uint64_t *to = word_at(ring, ring->at);
    ring->at += lines * LINE;
    if (size > 0) {
        memcpy((unsigned char *)to + WORD, data, size);
    }
    if (wrap) {
        /* The reader gets here only by the record that says so. */
        atomic_store_explicit(to, word, memory_order_relaxed);
        to = word_at(ring, old);
        word = (uint64_t)RECORD_WRAP << KIND_SHIFT;
    }
    atomic_store_explicit(to, word, memory_order_release);
    if (!l->quiet) {
        wake(l);
    }
}

/* Whether a record of so many lines has room now, and whether the ring goes back to its start for
 * it. */
static bool
find_room(lane *l, uint64_t lines, bool *wrap)
{
    struct ring *ring = &l->out;
    uint64_t left = RING_SIZE - ring->at % RING_SIZE;
    bool must = lines * LINE > left;
    bool may = RING_SIZE - left >= EARLY_END;
    *wrap = must || may;
    if (has_room(ring, lines * LINE + RESERVE + (*wrap ? left : 0))) {
        return true;
    }
    *wrap = must;
    return !must && may && has_room(ring, lines * LINE + RESERVE);
}

/* GCC's __builtin_prefetch() would ask for the line to read it, unless told that there is a
 * prefetchw: there is on x86-64, as a no-op at least (but for the first Pentium 4 of 2004). */
static inline void
fetch_to_write(const void *line)
{
#if defined __x86_64__
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)line));
#else
    __builtin_prefetch(line, 1);
#endif
}

void
lane_prepare(lane *l)
{
    uint64_t place = l->out.at % RING_SIZE;
    fetch_to_write(l->out.data + (place >= EARLY_END ? 0 : place));
}

static uint64_t
lines_of(size_t size)
{
    return (WORD + size + LINE - 1) / LINE;
}

void
lane_set_quiet(lane *l, bool quiet)
{
    l->quiet = quiet;
}

size_t
lane_unread(lane *l)
{
    has_room(&l->out, RING_SIZE); /* looks how far the other end is */
    return (size_t)(l->out.at - l->out.read);
}

bool
lane_fits(lane *l, size_t size)
{
    bool wrap;
    return size <= LANE_FRAME_MAX && !l->given_up && !lane_forked(l) &&
           find_room(l, lines_of(size), &wrap);
}

bool
lane_send(lane *l, enum lane_kind kind, const void *data, size_t size)
{
    uint64_t word = kind == LANE_IS_FRAME ? RECORD_FRAME : RECORD_EXTENT;
    bool wrap;
    if (size > LANE_FRAME_MAX || l->given_up || lane_forked(l) ||
        !find_room(l, lines_of(size), &wrap)) {
        return false;
    }
    publish(l, word << KIND_SHIFT | size, data, size, lines_of(size), wrap);
    return true;
}

void
lane_elsewhere(lane *l, uint64_t total)
{
    if (l->given_up || lane_forked(l)) {
        return;
    }
    if (!has_room(&l->out, LINE + RESERVE)) {
        l->given_up = true;
        total = LANE_FOR_GOOD;
    }
    publish(l, (uint64_t)RECORD_ELSEWHERE << KIND_SHIFT | total, NULL, 0, 1, false);
}

/* ---- reading ------------------------------------------------------------------------------ */

bool
lane_ready(const lane *l)
{
    return atomic_load_explicit(word_at(&l->in, l->in.at), memory_order_relaxed) != 0;
}

static inline void
relax(void)
{
#if defined __x86_64__ || defined __i386__
    __builtin_ia32_pause();
#elif defined __aarch64__
    __asm__ volatile("isb");
#endif
}

bool
lane_spin(const lane *l, unsigned times)
{
    for (; times > 0; times--) {
        if (lane_ready(l)) {
            return true;
        }
        relax();
    }
    return false;
}

bool
lane_stacked(const lane *l)
{
    return atomic_load_explicit(&l->out.control->cpu, memory_order_relaxed) ==
           (uint32_t)sched_getcpu();
}

void
lane_place(lane *l, bool known)
{
    uint32_t cpu = known ? (uint32_t)sched_getcpu() : NOWHERE;
    if (cpu != atomic_load_explicit(&l->in.control->cpu, memory_order_relaxed)) {
        atomic_store_explicit(&l->in.control->cpu, cpu, memory_order_relaxed);
    }
}

enum lane_got
lane_recv(lane *l, void *room, size_t room_size, void **data, size_t *size)
{
    struct ring *ring = &l->in;
    if (l->garbled) {
        return LANE_GARBLED;
    }
    if (lane_forked(l)) {
        return LANE_NONE;
    }
    uint64_t word = atomic_load_explicit(word_at(ring, ring->at), memory_order_acquire);
    if (word >> KIND_SHIFT == RECORD_WRAP && ring->at % RING_SIZE != 0) {
        atomic_store_explicit(word_at(ring, ring->at), 0, memory_order_relaxed);
        ring->at += RING_SIZE - ring->at % RING_SIZE;
        word = atomic_load_explicit(word_at(ring, ring->at), memory_order_acquire);
    }
    if (word == 0) {
        return LANE_NONE;
    }
    uint64_t value = word & LANE_FOR_GOOD, lines = 1, kind = word >> KIND_SHIFT;
    enum lane_got got = LANE_ELSEWHERE;
    if ((kind == RECORD_FRAME || kind == RECORD_EXTENT) && value <= LANE_FRAME_MAX &&
        WORD + value <= RING_SIZE - ring->at % RING_SIZE) {
        __builtin_prefetch((unsigned char *)word_at(ring, ring->at) + LINE);
        /* Copied once: what is decoded cannot change any more. */
        *data = room != NULL && value <= room_size ? room : malloc(value > 0 ? value : 1);
        if (*data == NULL) {
            return LANE_NO_MEMORY;
        }
        memcpy(*data, (unsigned char *)word_at(ring, ring->at) + WORD, value);
        lines = lines_of(value);
        got = kind == RECORD_FRAME ? LANE_FRAME : LANE_EXTENT;
    }
    else if (kind != RECORD_ELSEWHERE) {
        l->garbled = true;
        return LANE_GARBLED;
    }
    lane_place(l, true);
    *size = value;
    for (; lines > 0; lines--, ring->at += LINE) {
        atomic_store_explicit(word_at(ring, ring->at), 0, memory_order_relaxed);
    }
    atomic_store_explicit(&ring->control->read, ring->at, memory_order_release);
    return got;
}

/* Something about shelves that is no record, see lane_wake(). */
static bool
has_news(const lane *l)
{
    return (l->shelf_in &&
            atomic_load_explicit(&l->in.control->shelf.gone, memory_order_relaxed) != 0) ||
           (l->shelf_out &&
            atomic_load_explicit(&l->out.control->shelf.returned, memory_order_relaxed) != 0);
}

bool
lane_doze(lane *l)
{
    if (lane_forked(l)) {
        return true;
    }
    atomic_store_explicit(&l->in.control->sleeping, 1, memory_order_relaxed);
    atomic_thread_fence(memory_order_seq_cst); /* see wake() */
    if (lane_ready(l) || has_news(l)) {
        atomic_store_explicit(&l->in.control->sleeping, 0, memory_order_relaxed);
        return false;
    }
    return true;
}

/* Takes a message from the bell, and keeps the descriptor that it may bring. What fdpass_recv()
 * does. */
static ssize_t
take_message(lane *l)
{
    char rung;
    int fd, n = 1;
    ssize_t size = fdpass_recv(l->bell, &rung, sizeof rung, &fd, &n, MSG_DONTWAIT);
    if (size > 0 && n == 1) {
        if (l->npassed < PASSED_MOST) {
            l->passed[l->npassed++] = fd;
        }
        else {
            close(fd); /* the other end does not keep to the rules */
        }
    }
    return size;
}

bool
lane_woken(lane *l)
{
    if (lane_forked(l)) {
        return true;
    }
    atomic_store_explicit(&l->in.control->sleeping, 0, memory_order_relaxed);
    if (l->npassed == PASSED_MOST) {
        return true; /* what more has been passed waits where it is, for lane_take() */
    }
    /* What comes behind it wakes once more. */
    return take_message(l) >= 0 || (errno != EBADF && errno != ENOTSOCK);
}

/* ---- what belongs to extents ---------------------------------------------------------------- */

int
lane_pass(lane *l, int fd)
{
    return fdpass_send(l->bell, "", 1, &fd, 1, MSG_DONTWAIT);
}

int
lane_take(lane *l)
{
    while (l->npassed == 0) {
        if (take_message(l) <= 0) {
            return -1;
        }
    }
    int fd = l->passed[0];
    memmove(l->passed, l->passed + 1, --l->npassed * sizeof *l->passed);
    return fd;
}

struct extents_back *
lane_returned(lane *l)
{
    return &l->out.control->returned;
}

struct extents_back *
lane_to_return(lane *l)
{
    return &l->in.control->returned;
}

/* ---- what belongs to shelves ---------------------------------------------------------------- */

struct shelf_words *
lane_shelf_out(lane *l)
{
    l->shelf_out = true;
    return &l->out.control->shelf;
}

struct shelf_words *
lane_shelf_in(lane *l)
{
    l->shelf_in = true;
    return &l->in.control->shelf;
}

void
lane_wake(lane *l)
{
    if (!lane_forked(l)) {
        wake(l);
    }
}
