/* recorder.c: what a dying process writes down is there for another to read. */
#define _GNU_SOURCE
#include "announce.h"
#include "check.h"
#include "recorder.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static int memfd;
static struct shared_page *page;
static struct record *record;
static int alarm_pipe[2];

static void
set_up(void)
{
    size_t size = sysconf(_SC_PAGESIZE);

    memfd = memfd_create("record", MFD_CLOEXEC);
    CHECK(ftruncate(memfd, size + sizeof *record) == 0);
    page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    record = mmap(NULL, sizeof *record, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, size);
    CHECK(page != MAP_FAILED && record != MAP_FAILED);
    CHECK(pipe(alarm_pipe) == 0);
}

static void
tear_down(void)
{
    munmap(page, sysconf(_SC_PAGESIZE));
    munmap(record, sizeof *record);
    close(memfd);
    close(alarm_pipe[0]);
    close(alarm_pipe[1]);
}

/* Runs the body in a child with recorder and handlers: its wait status. */
static int
run(void (*body)(void))
{
    int status;

    set_up();
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        if (recorder_install(dup(memfd)) < 0 || announce_install(page, alarm_pipe[1]) < 0)
            _exit(100);
        body();
        _exit(101);
    }
    CHECK(waitpid(pid, &status, 0) == pid);
    CHECK(record->header.magic == RECORD_MAGIC);
    if (record->header.kind == RECORD_SIGNAL || record->header.kind == RECORD_EXIT)
        CHECK_EQUAL(record->header.pid, pid);
    return status;
}

static void __attribute__((noinline)) touch(volatile uint64_t *marker)
{
    *marker = 0x1122334455667788u;
    *(volatile char *)0x1234 = 1;
}

static void
segfault(void)
{
    volatile uint64_t on_stack;
    touch(&on_stack);
}

static void
test_fault(void)
{
    int status = run(segfault);

    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    CHECK_EQUAL(record->header.state, RECORD_COMPLETE);
    CHECK_EQUAL(record->header.kind, RECORD_SIGNAL);
    CHECK_EQUAL(record->header.signal, SIGSEGV);
    CHECK_EQUAL(record->header.address, 0x1234);
    CHECK_EQUAL(record->header.tid, record->header.pid);
    CHECK(record->header.nregisters > 0);
    uint64_t wanted = 0x1122334455667788u;
    CHECK(memmem(record->stack, record->header.stack_size, &wanted, sizeof wanted) != NULL);
    CHECK(memmem(record->maps, record->header.maps_size, "[stack]", 7) != NULL);
    CHECK_EQUAL(page->announced, ANNOUNCED_COMPLETE);
    tear_down();
}

static int recurse(int depth);
static int (*volatile again)(int) = recurse;
static int
recurse(int depth)
{
    volatile char frame[512];
    frame[depth % 512] = 1;
    return again(depth + 1) + frame[0];
}

static void
overflow(void)
{
    recurse(0);
}

static void
test_stack_overflow(void)
{
    int status = run(overflow);

    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    CHECK_EQUAL(record->header.state, RECORD_COMPLETE);
    CHECK_EQUAL(record->header.stack_size, RECORD_STACK);
    CHECK(record->header.address - record->header.sp + 65536 < 2 * 65536);
    tear_down();
}

static void __attribute__((unused)) call_abort(void)
{
    void *volatile block = malloc(64);
    void *volatile same = block;
    free(block);
    free(same);
}

static void __attribute__((unused)) test_message_of_libc(void)
{
    run(call_abort);
    CHECK_EQUAL(record->header.signal, SIGABRT);
    CHECK(strstr(record->header.message, "double free") != NULL);
    tear_down();
}

static void
call_exit(void)
{
    exit(3);
}

static void
test_exit(void)
{
    int status = run(call_exit);

    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 3);
    CHECK_EQUAL(record->header.kind, RECORD_EXIT);
    CHECK_EQUAL(record->header.state, RECORD_COMPLETE);
    CHECK(record->header.stack_size > 0);
    tear_down();
}

static void
leave(void)
{
    recorder_leave();
    exit(4);
}

static void
test_exit_that_is_meant(void)
{
    run(leave);
    CHECK_EQUAL(record->header.kind, RECORD_LEFT);
    CHECK_EQUAL(record->header.stack_size, 0);
    tear_down();
}

static void
call__exit(void)
{
    _exit(5);
}

static void
test__exit(void)
{
    run(call__exit);
    CHECK_EQUAL(record->header.state, RECORD_NONE);
    tear_down();
}

static void *
die(void *barrier)
{
    pthread_barrier_wait(barrier);
    abort();
}

static void
both(void)
{
    pthread_barrier_t barrier;
    pthread_t one, two;

    pthread_barrier_init(&barrier, NULL, 2);
    pthread_create(&one, NULL, die, &barrier);
    pthread_create(&two, NULL, die, &barrier);
    pthread_join(one, NULL);
}

static void
test_two_threads(void)
{
    for (int i = 0; i < 20; i++) {
        run(both);
        CHECK_EQUAL(record->header.state, RECORD_COMPLETE);
        CHECK(record->header.tid != record->header.pid);
        CHECK(record->header.maps_size > 0);
        tear_down();
    }
}

/* A handler that came later, and sends the signal again, as faulthandler does. */
static void
send_again(int signum)
{
    extern struct sigaction ours;
    sigaction(signum, &ours, NULL);
    raise(signum);
}

struct sigaction ours;

static void
later_handler(void)
{
    struct sigaction action = {.sa_handler = send_again, .sa_flags = SA_NODEFER | SA_ONSTACK};

    sigaction(SIGSEGV, &action, &ours);
    segfault();
}

static void
test_later_handler(void)
{
    run(later_handler);
#if defined __x86_64__
    CHECK_EQUAL(record->header.address, 0x1234);
    CHECK_EQUAL(page->address, 0x1234);
    uint64_t wanted = 0x1122334455667788u;
    CHECK(memmem(record->stack, record->header.stack_size, &wanted, sizeof wanted) != NULL);
#endif
    tear_down();
}

static void
test_too_small(void)
{
    int fd = memfd_create("small", MFD_CLOEXEC);

    CHECK(recorder_install(fd) < 0);
    CHECK(ftruncate(fd, sysconf(_SC_PAGESIZE)) == 0);
    CHECK(recorder_install(fd) < 0);
    close(fd);
    CHECK(recorder_install(-1) < 0);
}

int
main(void)
{
    test_fault();
    test_stack_overflow();
#ifndef __SANITIZE_ADDRESS__ /* which notices first */
    test_message_of_libc();
#endif
    test_exit();
    test_exit_that_is_meant();
    test__exit();
    test_two_threads();
    test_later_handler();
    test_too_small();
    return check_report();
}
