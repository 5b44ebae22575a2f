/* Tests of ext/extents.c: frames of all sizes, what is kept and what goes back, hostile memory. */
#define _GNU_SOURCE
#include "extents.h"
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static bool guarded, watches;
static struct extents_out *out;
static struct extents_in *in;
static struct extents_back back;
#define IDLE_MOST ((size_t)16 << 20)

static void
open_pair(void)
{
    back.reclaimed = back.retired = 0;
    out = extents_out_new(guarded, watches, IDLE_MOST);
    in = extents_in_new(&back);
    CHECK(out != NULL && in != NULL);
}

static void
close_pair(void)
{
    extents_out_free(out);
    extents_in_free(in);
}

/* Writes, and passes the descriptors as the lane does: 0, or -1. */
static int
pass_placed(const struct piece *pieces, size_t n, struct placed *placed)
{
    if (extents_write(out, pieces, n, placed) < 0) {
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        if (placed[i].fresh) {
            CHECK_EQUAL(extents_take(in, placed[i].slot, dup(extents_fd(out, placed[i].slot))), 0);
            extents_passed(out, placed[i].slot);
        }
    }
    extents_guard(out);
    return 0;
}

/* All together in one extent: its slot, or -1. */
static int
pass(const struct piece *pieces, size_t n)
{
    struct placed placed[4];
    return pass_placed(pieces, n, placed) < 0 ? -1 : (int)placed[0].slot;
}

/* One piece, in an extent of its own: its slot, or -1. */
static int
pass_apart(const void *data, size_t size)
{
    return pass(&(struct piece){data, size, true}, 1);
}

static void
reclaim(void)
{
    extents_reclaim(out, atomic_exchange(&back.reclaimed, 0));
    extents_retire(out, atomic_exchange(&back.retired, 0));
}

/* The reader is through with an extent. */
static void
give_back(unsigned slot)
{
    struct extent_view *view = extents_view(in, slot, 1);
    CHECK(view != NULL);
    extent_unref(view);
}

/* Bytes of memory that an extent takes. */
static size_t
taken(unsigned slot)
{
    struct stat facts;
    CHECK_EQUAL(fstat(extents_fd(out, slot), &facts), 0);
    return (size_t)facts.st_blocks * 512;
}

static void
test_pieces(void)
{
    open_pair();
    for (size_t round = 0; round < 200; round++) {
        size_t sizes[] = {round * 7919 % 100000, 1, round * 104729 % 3000000, 0};
        struct piece pieces[4];
        size_t total = 0, at = 0;
        for (int i = 0; i < 4; i++) {
            unsigned char *data = malloc(sizes[i] + 1);
            memset(data, (int)round + i, sizes[i] + 1);
            pieces[i] = (struct piece){data, sizes[i], false};
            total = extent_round(total) + sizes[i];
        }
        int slot = pass(pieces, 4);
        CHECK(slot >= 0);
        struct extent_view *view = extents_view(in, (unsigned)slot, total);
        CHECK(view != NULL);
        for (int i = 0; view != NULL && i < 4; i++) {
            at = extent_round(at);
            CHECK(memcmp(extent_data(view) + at, pieces[i].data, sizes[i]) == 0);
            at += sizes[i];
        }
        extent_unref(extent_ref(view));
        reclaim();
        CHECK_EQUAL(extents_busy(out), (uint64_t)1 << slot); /* one user is left */
        extent_unref(view);
        reclaim();
        CHECK_EQUAL(extents_busy(out), 0);
        for (int i = 0; i < 4; i++) {
            free((void *)(uintptr_t)pieces[i].data);
        }
    }
    close_pair();
}

/* The same sizes again and again use the same memory; what was sent stays as it was until it is
 * given back, whatever is sent meanwhile. */
static void
test_use_again(void)
{
    static unsigned char data[1000000];
    struct extent_view *views[3];
    struct placed placed;
    open_pair();
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 3; i++) {
            memset(data, round * 3 + i, sizeof data);
            int slot =
                pass(&(struct piece){data, sizeof data - (size_t)(round + i) * 1000, false}, 1);
            CHECK_EQUAL(slot, i);
            views[i] = extents_view(in, (unsigned)slot, 900000);
        }
        for (int i = 0; i < 3; i++) {
            CHECK(*extent_data(views[i]) == round * 3 + i);
            extent_unref(views[i]);
        }
        reclaim();
    }
    /* A bigger one gets one of its own. */
    static unsigned char bigger[3000000];
    CHECK_EQUAL(extents_write(out, &(struct piece){bigger, sizeof bigger, false}, 1, &placed), 0);
    CHECK(placed.slot == 3 && placed.fresh);
    close_pair();
}

static void
test_all_in_use(void)
{
    static unsigned char data[70000];
    open_pair();
    for (unsigned i = 0; i < EXTENTS_MOST; i++) {
        CHECK_EQUAL(pass(&(struct piece){data, sizeof data, false}, 1), (int)i);
    }
    CHECK_EQUAL(pass(&(struct piece){data, sizeof data, false}, 1), -1);
    give_back(7);
    CHECK_EQUAL(pass(&(struct piece){data, sizeof data, false}, 1), -1); /* not looked at yet */
    reclaim();
    CHECK_EQUAL(pass(&(struct piece){data, sizeof data, false}, 1), 7);
    /* One that is too small makes room for one that is not. */
    static unsigned char bigger[3000000];
    give_back(9);
    reclaim();
    memset(bigger, 5, sizeof bigger);
    CHECK_EQUAL(pass(&(struct piece){bigger, sizeof bigger, false}, 1), 9);
    struct extent_view *view = extents_view(in, 9, sizeof bigger);
    CHECK(view != NULL && extent_data(view)[sizeof bigger - 1] == 5);
    extent_unref(view);
    close_pair();
}

/* What is not in use keeps no more memory than IDLE_MOST. */
static void
test_idle_memory(void)
{
    size_t size = IDLE_MOST / 4 + 1, kept = 0;
    unsigned char *data = calloc(1, size);
    open_pair();
    for (unsigned i = 0; i < 8; i++) {
        CHECK_EQUAL(pass(&(struct piece){data, size, false}, 1), (int)i);
        CHECK(taken(i) >= size);
    }
    for (unsigned i = 0; i < 8; i++) {
        give_back(i);
        reclaim();
    }
    for (unsigned i = 0; i < 8; i++) {
        kept += taken(i);
    }
    CHECK(kept > 0 && kept <= IDLE_MOST);
    CHECK(taken(7) >= size); /* the last one used */
    /* Emptied ones are as good as others. */
    memset(data, 3, size);
    for (unsigned i = 0; i < 8; i++) {
        int slot = pass(&(struct piece){data, size, false}, 1);
        struct extent_view *view = extents_view(in, (unsigned)slot, size);
        CHECK(view != NULL && extent_data(view)[size - 1] == 3);
        extent_unref(view);
    }
    free(data);
    close_pair();
}

/* One frame that is bigger than all that may be kept gives its memory back at once. */
static void
test_one_too_big_to_keep(void)
{
    size_t size = IDLE_MOST + 1;
    unsigned char *data = calloc(1, size);
    open_pair();
    CHECK_EQUAL(pass(&(struct piece){data, size, false}, 1), 0);
    give_back(0);
    reclaim();
    CHECK_EQUAL(taken(0), 0);
    free(data);
    close_pair();
}

/* What a fork has mapped its parent has mapped too, and still needs. */
static void
test_fork(void)
{
    static unsigned char data[70000];
    open_pair();
    int slot = pass(&(struct piece){data, sizeof data, false}, 1), status;
    struct extent_view *view = extents_view(in, (unsigned)slot, sizeof data);
    pid_t pid = fork();
    if (pid == 0) {
        extent_unref(view);
        _exit(atomic_load(&back.reclaimed) != 0 || atomic_load(&back.retired) != 0);
    }
    CHECK_EQUAL(waitpid(pid, &status, 0), pid);
    CHECK_EQUAL(status, 0);
    reclaim();
    CHECK_EQUAL(extents_busy(out), 1);
    extent_unref(view);
    reclaim();
    CHECK_EQUAL(extents_busy(out), 0);
    close_pair();
}

/* ---- private memory ---------------------------------------------------------------------- */

#define BIG ((size_t)2 << 20)

static struct extent_copy *
copy_of(int slot, size_t size)
{
    struct extent_view *view = extents_view(in, (unsigned)slot, size);
    struct extent_copy *copy = view == NULL ? NULL : extent_copy_new(view, 0, size);
    if (view != NULL) {
        extent_unref(view);
    }
    return copy;
}

static bool
filled(const void *data, int byte, size_t size)
{
    const unsigned char *bytes = data;
    return bytes[0] == byte && memcmp(bytes, bytes + 1, size - 1) == 0;
}

static void
add_size(void *argument, size_t at, size_t size)
{
    (void)at;
    *(size_t *)argument += size;
}

/* Big pieces have extents of their own; what is written to a copy is in no other, nor in the next.
 */
static void
test_copies(void)
{
    unsigned char *data = malloc(BIG), *other = malloc(BIG);
    size_t size = BIG - 100, changed = 0;
    open_pair();
    for (int round = 0; round < 12; round++) {
        struct placed placed[3];
        memset(data, round, BIG);
        memset(other, 100 + round, BIG);
        struct piece pieces[] = {{data, size, true}, {"small", 5, true}, {other, BIG, true}};
        CHECK_EQUAL(pass_placed(pieces, 3, placed), 0);
        CHECK(placed[0].slot != placed[1].slot && placed[0].slot != placed[2].slot);
        CHECK(placed[0].at == 0 && placed[2].at == 0);
        struct extent_view *view = extents_view(in, placed[0].slot, size);
        struct extent_copy *a = extent_copy_new(view, 0, size);
        struct extent_copy *b = extent_copy_new(view, 0, size);
        extent_unref(view);
        struct extent_copy *c = copy_of((int)placed[2].slot, BIG);
        CHECK(a != NULL && b != NULL && c != NULL);
        CHECK(filled(extent_copy_data(a), round, size) && filled(extent_copy_data(b), round, size));
        CHECK(filled(extent_copy_data(c), 100 + round, BIG));
        /* Written pages are known, or it is said that they are not. */
        changed = 0;
        CHECK(!extent_copy_changes(a, add_size, &changed) || changed == 0);
        memset((char *)extent_copy_data(a) + 5000, 77, 1);
        memset((char *)extent_copy_data(a) + size - 1, 78, 1);
        if (extent_copy_changes(a, add_size, &changed)) {
            CHECK_EQUAL(changed, 4096 + (4096 - 100));
        }
        CHECK(filled(extent_copy_data(b), round, size));
        CHECK(filled(extent_copy_original(a), round, size));
        extent_copy_free(a);
        reclaim();
        CHECK(extents_busy(out) & (uint64_t)1 << placed[0].slot);
        extent_copy_free(b);
        extent_copy_free(c);
        give_back(placed[1].slot);
        reclaim();
        CHECK_EQUAL(extents_busy(out), 0);
    }
    close_pair();
    free(data);
    free(other);
}

/* The page before and the page behind are nobody's. */
static void
test_guard_pages(void)
{
    unsigned char *data = calloc(1, BIG);
    open_pair();
    struct extent_copy *copy = copy_of(pass_apart(data, BIG), BIG);
    CHECK(check_dies((char *)extent_copy_data(copy) - 1));
    CHECK(check_dies((char *)extent_copy_data(copy) + BIG));
    extent_copy_free(copy);
    close_pair();
    free(data);
}

/* What a fork has of an extent does not change: the extent is not used again. */
static void
test_copy_in_a_fork(void)
{
    unsigned char *data = malloc(BIG);
    int status, line[2];
    char byte;
    open_pair();
    memset(data, 1, BIG);
    int slot = pass_apart(data, BIG);
    struct extent_copy *copy = copy_of(slot, BIG), *idle;
    CHECK_EQUAL(pipe(line), 0);
    pid_t pid = fork();
    if (pid == 0) {
        byte = read(line[0], &byte, 1) == 1 && filled(extent_copy_data(copy), 1, BIG);
        extent_copy_free(copy);
        extents_in_free(in);
        extents_out_free(out);
        _exit(byte ? 0 : 1);
    }
    extent_copy_free(copy);
    CHECK_EQUAL(atomic_load(&back.reclaimed), 0);
    CHECK_EQUAL(atomic_load(&back.retired), (uint64_t)1 << slot);
    reclaim();
    CHECK_EQUAL(extents_busy(out), 0);
    /* The slot is: with other memory. */
    for (int round = 2; round < 5; round++) {
        memset(data, round, BIG);
        CHECK_EQUAL(pass_apart(data, BIG), slot);
        idle = copy_of(slot, BIG);
        CHECK(idle != NULL && filled(extent_copy_data(idle), round, BIG));
        extent_copy_free(idle);
        reclaim();
    }
    CHECK_EQUAL(write(line[1], "x", 1), 1);
    CHECK_EQUAL(waitpid(pid, &status, 0), pid);
    CHECK_EQUAL(status, 0);
    close(line[0]);
    close(line[1]);
    close_pair();
    free(data);
}

/* Memory that is written all over is copied for some time; and there is an end of mappings. */
static void
test_no_copy(void)
{
    unsigned char *data = calloc(1, BIG);
    struct extent_copy *copies[EXTENTS_MOST] = {NULL};
    int slot = -1, mapped = 0;
    open_pair();
    for (int round = 0; round < 4; round++) {
        slot = pass_apart(data, BIG);
        struct extent_view *view = extents_view(in, (unsigned)slot, BIG);
        struct extent_copy *copy = extent_copy_new(view, 0, BIG);
        mapped += copy != NULL;
        if (copy != NULL) {
            memset(extent_copy_data(copy), 1, BIG);
            extent_copy_free(copy);
        }
        extent_unref(view);
        reclaim();
    }
    CHECK(mapped == 2 || access("/proc/self/pagemap", R_OK) != 0);
    struct extent_view *view = extents_view(in, (unsigned)slot, BIG);
    CHECK(extent_copy_new(view, 1, 4096) == NULL);
    CHECK(extent_copy_new(view, 4096, BIG) == NULL);
    CHECK(extent_copy_new(view, 0, 0) == NULL);
    extent_unref(view);
    close_pair();
    open_pair();
    int n = 0;
    slot = pass_apart(data, BIG);
    view = extents_view(in, (unsigned)slot, BIG);
    while (n < (int)EXTENTS_MOST && (copies[n] = extent_copy_new(view, 0, BIG)) != NULL) {
        n++;
    }
    CHECK(n > 8 && n < (int)EXTENTS_MOST);
    extent_unref(view);
    /* They outlive the end that they came by. */
    close_pair();
    for (int i = 0; i < n; i++) {
        CHECK(filled(extent_copy_data(copies[i]), 0, BIG));
        extent_copy_free(copies[i]);
    }
    free(data);
}

/* The same memory again: what has not been written is not copied again, what has been is there. */
static void
test_watched(void)
{
    char *data = mmap(NULL, BIG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int slot = -1;
    watches = true;
    open_pair();
    memset(data, 1, BIG);
    for (int round = 0; round < 2; round++) { /* the second time it begins to watch */
        slot = pass_apart(data + 100, BIG - 200);
        give_back((unsigned)slot);
        reclaim();
    }
    /* A mark that only a copy would wipe out, far from what is written. */
    CHECK_EQUAL(pwrite(extents_fd(out, (unsigned)slot), "mark", 4, 500000), 4);
    data[100] = 2;
    data[1000000] = 3;
    data[BIG - 101] = 4;
    CHECK_EQUAL(pass_apart(data + 100, BIG - 200), slot);
    struct extent_view *view = extents_view(in, (unsigned)slot, BIG - 200);
    const unsigned char *sent = extent_data(view);
    CHECK(sent[0] == 2 && sent[1000000 - 100] == 3 && sent[BIG - 201] == 4);
    bool watched = memcmp(sent + 500000, "mark", 4) == 0;
    if (!watched) {
        fprintf(stderr, "test_watched: this kernel cannot watch memory; all is copied\n");
        CHECK(filled(sent + 500000, 1, 1000));
    }
    extent_unref(view);
    reclaim();
    /* Other memory at the same place is other memory. */
    CHECK(mmap(data, BIG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
          data);
    slot = pass_apart(data + 100, BIG - 200);
    view = extents_view(in, (unsigned)slot, BIG - 200);
    CHECK(filled(extent_data(view), 0, BIG - 200));
    extent_unref(view);
    reclaim();
    /* Written all over each time: right, and no longer watched. */
    for (int round = 10; round < 24; round++) {
        memset(data, round, BIG);
        slot = pass_apart(data + 100, BIG - 200);
        view = extents_view(in, (unsigned)slot, BIG - 200);
        CHECK(filled(extent_data(view), round, BIG - 200));
        extent_unref(view);
        reclaim();
    }
    close_pair();
    watches = false;
    munmap(data, BIG);
}

/* Mappings of extents that may be written to. */
static int
writable(void)
{
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[500];
    int n = 0;
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        n += strstr(line, "isolation-extent") != NULL && strstr(line, " rw-s ") != NULL;
    }
    fclose(maps);
    return n;
}

/* The end whose process may write anywhere keeps what it sent from being overwritten. */
static void
test_guarded(void)
{
    unsigned char *data = malloc(BIG), *other = malloc(BIG);
    memset(other, 77, BIG);
    guarded = true;
    open_pair();
    for (int round = 0; round < 8; round++) {
        size_t size = round == 5 ? BIG / 2 : BIG;
        memset(data, round, BIG);
        int slot = pass_apart(round % 2 ? data : other, size);
        struct extent_view *view = extents_view(in, (unsigned)slot, size);
        CHECK(filled(extent_data(view), round % 2 ? round : 77, size));
        CHECK_EQUAL(writable(), 0);
        extents_prepare(out); /* nothing is there that may be written to */
        CHECK_EQUAL(writable(), 0);
        extent_unref(view);
        reclaim();
        if (round > 3) {
            extents_prepare(out); /* to the next one's */
            CHECK_EQUAL(writable(), 1);
            extents_prepare(out);
            CHECK_EQUAL(writable(), 1);
        }
    }
    /* Several that go together. */
    for (int round = 0; round < 3; round++) {
        memset(data, round, BIG);
        struct piece pieces[] = {{data, BIG / 2, false}, {data, BIG / 4, false}};
        int slot = pass(pieces, 2);
        CHECK_EQUAL(writable(), 0);
        struct extent_view *view = extents_view(in, (unsigned)slot, BIG / 2);
        CHECK(filled(extent_data(view), round, BIG / 2));
        extent_unref(view);
        reclaim();
    }
    close_pair();
    guarded = false;
    free(data);
    free(other);
}

static int
sealed(int seals, size_t size)
{
    int fd = memfd_create("hostile", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK_EQUAL(ftruncate(fd, (off_t)size), 0);
    CHECK_EQUAL(fcntl(fd, F_ADD_SEALS, seals), 0);
    return fd;
}

static void
test_hostile_memory(void)
{
    int fds[2];
    open_pair();
    errno = 0;
    CHECK(extents_take(in, 0, sealed(0, 5000)) < 0 && errno == EPROTO); /* could shrink */
    CHECK(extents_take(in, 0, sealed(F_SEAL_SHRINK, 5000)) < 0 && errno == EPROTO);
    CHECK(extents_take(in, 0, open("/proc/self/exe", O_RDONLY | O_CLOEXEC)) < 0);
    CHECK_EQUAL(pipe(fds), 0);
    CHECK(extents_take(in, 0, fds[0]) < 0 && errno == EPROTO);
    close(fds[1]);
    CHECK(extents_take(in, EXTENTS_MOST, sealed(F_SEAL_SHRINK | F_SEAL_GROW, 5000)) < 0);
    CHECK(extents_take(in, 0, -1) < 0 && errno == EPROTO);
#ifdef MFD_HUGETLB
    int huge = memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);
    if (huge >= 0 && fcntl(huge, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0) {
        CHECK(extents_take(in, 0, huge) < 0 && errno == EPROTO); /* its pages may run out */
    }
#endif
    /* No slot, or more than there is. */
    CHECK(extents_view(in, 3, 1) == NULL && errno == EPROTO);
    CHECK(extents_view(in, 1000000, 1) == NULL && errno == EPROTO);
    CHECK_EQUAL(extents_take(in, 3, sealed(F_SEAL_SHRINK | F_SEAL_GROW, 5000)), 0);
    CHECK(extents_view(in, 3, 5001) == NULL && errno == EPROTO);
    CHECK(extents_view(in, 3, SIZE_MAX) == NULL && errno == EPROTO);
    CHECK(extents_view(in, 3, 0) == NULL && errno == EPROTO);
    struct extent_view *view = extents_view(in, 3, 5000);
    CHECK(view != NULL);
    /* A reader that says it of what is not in use, or of slots that are not there, does no harm. */
    extents_reclaim(out, UINT64_MAX);
    CHECK_EQUAL(extents_busy(out), 0);
    /* A view outlives the end that it came by. */
    close_pair();
    CHECK_EQUAL(extent_data(view)[4999], 0);
    extent_unref(view);
}

int
main(void)
{
    test_pieces();
    test_use_again();
    test_all_in_use();
    test_idle_memory();
    test_one_too_big_to_keep();
    test_fork();
    test_copies();
    test_guard_pages();
    test_copy_in_a_fork();
    test_no_copy();
    test_watched();
    test_guarded();
    test_hostile_memory();
    return check_report();
}
