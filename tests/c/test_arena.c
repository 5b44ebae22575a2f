/* Tests of ext/arena.c: blocks that two ends have, memory that is used again, hostile memory. */
#define _GNU_SOURCE
#include "arena.h"
#include "check.h"

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define SIZE ((size_t)1 << 20)

static void
test_two_ends(void)
{
    size_t at = 0;
    struct block *b = block_new(SIZE - 100, true);
    CHECK(b != NULL && block_size(b) == SIZE && blocks_live() == 1);
    CHECK(block_data(b)[0] == 0 && block_data(b)[SIZE - 1] == 0);
    CHECK(block_find(block_data(b) + 5000, &at) == b && at == 5000);
    CHECK(block_find(block_data(b) + SIZE, &at) == NULL);
    CHECK(block_find(block_data(b) - 1, &at) == NULL);
    /* The same memory once more is the same block. */
    struct block *again = block_take(dup(block_pass(b)));
    CHECK(again == b && blocks_live() == 1);
    int fd = dup(block_pass(b)), status;
    pid_t pid = fork();
    if (pid == 0) {
        struct block *other = block_take(fd);
        block_data(other)[7] = 'x';
        _exit(other != b);
    }
    close(fd);
    CHECK_EQUAL(waitpid(pid, &status, 0), pid);
    CHECK_EQUAL(status, 0);
    CHECK_EQUAL(block_data(b)[7], 'x');
    block_unref(b);
    CHECK_EQUAL(blocks_live(), 1);
    block_unref(again);
    CHECK_EQUAL(blocks_live(), 0);
}

/* Memory that nobody else has is used again, zeroed where that is asked for. */
static void
test_used_again(void)
{
    struct block *b = block_new(SIZE, false);
    char *where = block_data(b);
    memset(where, 1, SIZE);
    block_unref(b);
    b = block_new(SIZE, true);
    CHECK(block_data(b) == where);
    CHECK(where[0] == 0 && memcmp(where, where + 1, SIZE - 1) == 0);
    block_unref(b);
    /* Not for one that it is much too big for. */
    b = block_new(SIZE / 4, false);
    CHECK(block_data(b) != where);
    /* Not what the other end may have. */
    int fd = dup(block_pass(b));
    memset(block_data(b), 3, SIZE / 4);
    block_unref(b);
    b = block_new(SIZE / 4, false);
    CHECK_EQUAL(block_data(b)[0], 0);
    struct block *passed = block_take(fd);
    CHECK(passed != b && block_data(passed)[0] == 3);
    block_unref(passed);
    block_unref(b);
}

/* Not what a fork has, nor the fork what its parent keeps for the next. */
static void
test_fork(void)
{
    int status;
    struct block *idle = block_new(SIZE, false), *b = block_new(SIZE * 3, false);
    char *was = block_data(idle);
    memset(was, 9, SIZE);
    block_unref(idle);
    memset(block_data(b), 1, SIZE * 3);
    pid_t pid = fork();
    if (pid == 0) {
        struct block *mine = block_new(SIZE, false);
        memset(block_data(mine), 5, SIZE);
        _exit(block_data(b)[0] != 1);
    }
    CHECK_EQUAL(waitpid(pid, &status, 0), pid);
    CHECK_EQUAL(status, 0);
    idle = block_new(SIZE, false);
    CHECK(block_data(idle) == was && was[0] == 9);
    block_unref(idle);
    block_unref(b);
    b = block_new(SIZE * 3, false);
    CHECK_EQUAL(block_data(b)[0], 0);
    block_unref(b);
}

static void
test_guard_pages(void)
{
    struct block *b = block_new(SIZE, false);
    CHECK(check_dies(block_data(b) - 1));
    CHECK(check_dies(block_data(b) + SIZE));
    block_unref(b);
}

static void
test_hostile_memory(void)
{
    int fd = memfd_create("hostile", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK_EQUAL(ftruncate(fd, 8192), 0);
    errno = 0;
    CHECK(block_take(dup(fd)) == NULL && errno == EPROTO); /* could shrink */
    CHECK_EQUAL(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    struct block *b = block_take(fd);
    CHECK(b != NULL && block_size(b) == 8192);
    block_unref(b);
    CHECK(block_take(-1) == NULL && errno == EPROTO);
    CHECK(block_take(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)) == NULL && errno == EPROTO);
    fd = memfd_create("odd", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK_EQUAL(ftruncate(fd, 5000), 0);
    CHECK_EQUAL(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    CHECK(block_take(fd) == NULL && errno == EPROTO); /* what is behind its end is a SIGBUS */
    CHECK(block_new(0, false) == NULL && block_new(SIZE_MAX, false) == NULL);
    CHECK_EQUAL(blocks_live(), 0);
}

static void
test_as_many_as_there_may_be(void)
{
    struct rlimit files;
    CHECK_EQUAL(getrlimit(RLIMIT_NOFILE, &files), 0);
    struct block *all[200];
    int n = 0;
    rlim_t was = files.rlim_cur;
    files.rlim_cur = 400;
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &files), 0);
    while (n < 200 && (all[n] = block_new(4096, false)) != NULL) {
        n++;
    }
    CHECK_EQUAL(n, 100);
    while (n > 0) {
        block_unref(all[--n]);
    }
    CHECK((all[0] = block_new(4096, false)) != NULL);
    block_unref(all[0]);
    files.rlim_cur = was;
    CHECK_EQUAL(setrlimit(RLIMIT_NOFILE, &files), 0);
}

int
main(void)
{
    blocks_keep(true);
    test_two_ends();
    test_used_again();
    test_fork();
    test_guard_pages();
    test_hostile_memory();
    test_as_many_as_there_may_be();
    blocks_keep(false);
    return check_report();
}
