/* The whole test framework: CHECK counts, check_report() ends main(). */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int check_passed, check_failed;

#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (condition) {                                                                           \
            check_passed++;                                                                        \
        }                                                                                          \
        else {                                                                                     \
            check_failed++;                                                                        \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, __func__, #condition);                   \
            fflush(stdout);                                                                        \
        }                                                                                          \
    } while (0)

/* As CHECK, of two integers, which a failure shows. */
#define CHECK_EQUAL(got, expected)                                                                 \
    do {                                                                                           \
        long long check_got = (got), check_expected = (expected);                                  \
        if (check_got == check_expected) {                                                         \
            check_passed++;                                                                        \
        }                                                                                          \
        else {                                                                                     \
            check_failed++;                                                                        \
            printf("%s:%d: %s: %s is %lld, not %s (%lld)\n", __FILE__, __LINE__, __func__, #got,   \
                   check_got, #expected, check_expected);                                          \
            fflush(stdout);                                                                        \
        }                                                                                          \
    } while (0)

/* Whether a process that writes there is killed by that. */
static inline int
check_dies(volatile char *where)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL);
        *where = 1;
        _exit(0);
    }
    return waitpid(pid, &status, 0) == pid && WIFSIGNALED(status);
}

static inline int
check_report(void)
{
    printf("%d passed, %d failed\n", check_passed, check_failed);
    return check_failed != 0;
}

/* Milliseconds of a clock that never goes back. */
static inline double
check_now(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1e3 + now.tv_nsec / 1e6;
}

static inline void
check_sleep(int ms)
{
    struct timespec pause = {ms / 1000, ms % 1000 * 1000000L};

    nanosleep(&pause, NULL);
}

#endif
