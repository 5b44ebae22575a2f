/* Tests of ext/extents.c: frames of all sizes, what is kept and what goes back, hostile memory. */
#define _GNU_SOURCE
#include "extents.h"
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static struct extents_out *out;
static struct extents_in *in;
static _Atomic uint64_t returned;

static void
open_pair(void)
{
    returned = 0;
    out = extents_out_new();
    in = extents_in_new(&returned);
    CHECK(out != NULL && in != NULL);
}

static void
close_pair(void)
{
    extents_out_free(out);
    extents_in_free(in);
}

/* Writes, and passes the descriptor as the lane does. The slot, or -1. */
static int
pass(const struct piece *pieces, size_t n)
{
    bool fresh;
    int slot = extents_write(out, pieces, n, &fresh);
    if (slot >= 0 && fresh) {
        CHECK_EQUAL(extents_take(in, (unsigned)slot, dup(extents_fd(out, (unsigned)slot))), 0);
        extents_passed(out, (unsigned)slot);
    }
    return slot;
}

static void
reclaim(void)
{
    extents_reclaim(out, atomic_exchange(&returned, 0));
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
            pieces[i] = (struct piece){data, sizes[i]};
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
        unsigned char *copy = malloc(total);
        CHECK_EQUAL(extents_read(in, (unsigned)slot, copy, total), 0);
        CHECK(memcmp(copy, extent_data(view), total) == 0);
        free(copy);
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
    bool fresh;
    open_pair();
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 3; i++) {
            memset(data, round * 3 + i, sizeof data);
            int slot = pass(&(struct piece){data, sizeof data - (size_t)(round + i) * 1000}, 1);
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
    CHECK_EQUAL(extents_write(out, &(struct piece){bigger, sizeof bigger}, 1, &fresh), 3);
    CHECK(fresh);
    close_pair();
}

static void
test_all_in_use(void)
{
    static unsigned char data[70000];
    open_pair();
    for (unsigned i = 0; i < EXTENTS_MOST; i++) {
        CHECK_EQUAL(pass(&(struct piece){data, sizeof data}, 1), (int)i);
    }
    CHECK_EQUAL(pass(&(struct piece){data, sizeof data}, 1), -1);
    extents_give_back(in, 7);
    CHECK_EQUAL(pass(&(struct piece){data, sizeof data}, 1), -1); /* not looked at yet */
    reclaim();
    CHECK_EQUAL(pass(&(struct piece){data, sizeof data}, 1), 7);
    /* One that is too small makes room for one that is not. */
    static unsigned char bigger[3000000];
    extents_give_back(in, 9);
    reclaim();
    memset(bigger, 5, sizeof bigger);
    CHECK_EQUAL(pass(&(struct piece){bigger, sizeof bigger}, 1), 9);
    struct extent_view *view = extents_view(in, 9, sizeof bigger);
    CHECK(view != NULL && extent_data(view)[sizeof bigger - 1] == 5);
    extent_unref(view);
    close_pair();
}

/* What is not in use keeps no more memory than EXTENTS_IDLE_MOST. */
static void
test_idle_memory(void)
{
    size_t size = EXTENTS_IDLE_MOST / 4 + 1, kept = 0;
    unsigned char *data = calloc(1, size);
    open_pair();
    for (unsigned i = 0; i < 8; i++) {
        CHECK_EQUAL(pass(&(struct piece){data, size}, 1), (int)i);
        CHECK(taken(i) >= size);
    }
    for (unsigned i = 0; i < 8; i++) {
        extents_give_back(in, i);
        reclaim();
    }
    for (unsigned i = 0; i < 8; i++) {
        kept += taken(i);
    }
    CHECK(kept > 0 && kept <= EXTENTS_IDLE_MOST);
    CHECK(taken(7) >= size); /* the last one used */
    /* Emptied ones are as good as others. */
    memset(data, 3, size);
    for (unsigned i = 0; i < 8; i++) {
        int slot = pass(&(struct piece){data, size}, 1);
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
    size_t size = EXTENTS_IDLE_MOST + 1;
    unsigned char *data = calloc(1, size);
    open_pair();
    CHECK_EQUAL(pass(&(struct piece){data, size}, 1), 0);
    extents_give_back(in, 0);
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
    int slot = pass(&(struct piece){data, sizeof data}, 1), status;
    struct extent_view *view = extents_view(in, (unsigned)slot, sizeof data);
    pid_t pid = fork();
    if (pid == 0) {
        extent_unref(view);
        _exit(atomic_load(&returned) != 0);
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
    char byte;
    CHECK(extents_view(in, 3, 1) == NULL && errno == EPROTO);
    CHECK(extents_read(in, 3, &byte, 1) < 0 && errno == EPROTO);
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
    test_hostile_memory();
    return check_report();
}
