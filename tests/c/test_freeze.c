/* Tests of ext/freeze.c and ext/fdfloor.c: this program is the sub-reaper, as the supervisor is; a
 * child of it makes the copies. */
#define _GNU_SOURCE
#include "check.h"
#include "fdfloor.h"
#include "fdpass.h"
#include "freeze.h"

#include <fcntl.h>
#include <stdbool.h>
#include <stdatomic.h>
#include <pthread.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile int value; /* private memory: each process has its own from the copy on */

static pid_t
parent_of(pid_t pid)
{
    char path[64];
    int parent = -1;

    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (file) {
        if (fscanf(file, "%*d (%*[^)]) %*c %d", &parent) != 1)
            parent = -1;
        fclose(file);
    }
    return parent;
}

/* In the child: makes a copy, hands the line to `to`, and goes on, or dies. */
static void
child(int to, int held, const char *path)
{
    struct frozen copy;
    char text[128], byte;
    int line, fds[FREEZE_FDS], file = open(path, O_RDONLY | O_CLOEXEC);
    uint64_t zero = 0;

    value = 1;
    if (file < 0 || read(file, text, 10) != 10)
        _exit(90);
    int rc = freeze(&copy, &line);
    if (rc == 1) {
        freeze_wait(&copy, fds);
        int offset = (int)lseek(file, 0, SEEK_CUR), open_end = fcntl(held, F_GETFD) >= 0;
        int n = snprintf(text, sizeof text, "value %d offset %d held %d", value, offset, open_end);
        _exit(write(fds[FREEZE_OUT], text, n) == n ? 7 : 91);
    }
    if (rc < 0)
        _exit(92);
    value = 2;
    if (read(file, text, 50) != 50 || waitpid(-1, NULL, 0) != -1 || errno != ECHILD)
        _exit(93);
    if (fdpass_send(to, &zero, sizeof zero, &line, 1, 0) < 0)
        _exit(94);
    close(line);
    if (read(to, &byte, 1) != 1) /* until it is told to die */
        _exit(95);
    _exit(3);
}

/* A child with a copy: its pid, the line to the copy, and the copy's pid. */
static pid_t
start(int *control, int *line, pid_t *copy, int held, const char *path)
{
    int ends[2], n = 1;
    struct freeze_birth birth = {0};
    uint64_t message;

    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(ends[0]);
        child(ends[1], held, path);
    }
    close(ends[1]);
    *control = ends[0];
    CHECK_EQUAL(fdpass_recv(ends[0], &message, sizeof message, line, &n, 0), sizeof message);
    CHECK_EQUAL(n, 1);
    CHECK_EQUAL(recv(*line, &birth, sizeof birth, 0), sizeof birth);
    CHECK_EQUAL(birth.magic, FREEZE_MAGIC);
    *copy = birth.pid;
    CHECK_EQUAL(parent_of(*copy), getpid());
    CHECK(*copy != pid && getpgid(*copy) == *copy);
    return pid;
}

static int
status_of(pid_t pid)
{
    int status = -1;

    CHECK_EQUAL(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + status;
}

static void
test_the_copy_takes_over(const char *path)
{
    int control, line, held[2], out[2], spare[2];
    char text[128] = "";
    struct freeze_order order = {.magic = FREEZE_MAGIC};
    pid_t copy;

    CHECK_EQUAL(pipe2(held, 0), 0);
    pid_t pid = start(&control, &line, &copy, held[1], path);
    close(held[1]);
    CHECK_EQUAL(write(control, "x", 1), 1);
    CHECK_EQUAL(status_of(pid), 3);
    /* Nobody holds the pipe any more, though the copy lives. */
    struct pollfd end = {.fd = held[0], .events = POLLIN};
    CHECK_EQUAL(poll(&end, 1, 2000), 1);
    CHECK(end.revents & POLLHUP);
    CHECK_EQUAL(kill(copy, 0), 0);

    CHECK_EQUAL(pipe2(out, O_CLOEXEC), 0);
    CHECK_EQUAL(pipe2(spare, O_CLOEXEC), 0);
    int fds[FREEZE_FDS] = {out[1], spare[1], spare[1], spare[1], spare[1]};
    CHECK_EQUAL(fdpass_send(line, &order, sizeof order, fds, FREEZE_FDS, 0), 0);
    close(out[1]);
    ssize_t n = read(out[0], text, sizeof text - 1);
    text[n > 0 ? n : 0] = 0;
    CHECK(strcmp(text, "value 1 offset 10 held 0") == 0);
    CHECK_EQUAL(status_of(copy), 7);
    close(control);
    close(line);
    close(held[0]);
    close(out[0]);
    close(spare[0]);
    close(spare[1]);
}

static void
test_the_copy_ends_with_its_line(const char *path)
{
    int control, line;
    pid_t copy, pid = start(&control, &line, &copy, -1, path);

    close(line);
    CHECK_EQUAL(status_of(copy), 0);
    CHECK_EQUAL(kill(pid, 0), 0);
    CHECK_EQUAL(write(control, "x", 1), 1);
    CHECK_EQUAL(status_of(pid), 3);
    close(control);
}

static void
test_the_copy_outlives_the_group(const char *path)
{
    int control, line;
    pid_t copy, pid = start(&control, &line, &copy, -1, path);

    CHECK_EQUAL(kill(pid, SIGKILL), 0);
    CHECK_EQUAL(status_of(pid), 1000 + SIGKILL);
    CHECK_EQUAL(kill(copy, 0), 0);
    struct pollfd end = {.fd = line, .events = POLLIN};
    CHECK_EQUAL(poll(&end, 1, 50), 0);
    close(line);
    CHECK_EQUAL(status_of(copy), 0);
    close(control);
}

static void
test_garbled_order(const char *path)
{
    int control, line;
    struct freeze_order order = {.magic = 1};
    pid_t copy, pid = start(&control, &line, &copy, -1, path);

    CHECK_EQUAL(fdpass_send(line, &order, sizeof order, NULL, 0, 0), 0);
    CHECK_EQUAL(status_of(copy), 0);
    CHECK_EQUAL(write(control, "x", 1), 1);
    CHECK_EQUAL(status_of(pid), 3);
    close(line);
    close(control);
}

static void
test_low_numbers(void)
{
    int floor = fd_floor(), low = open("/dev/null", O_RDONLY | O_CLOEXEC);

    CHECK(floor > 16 && low < floor);
    fd_fill();
    fd_fill(); /* they nest */
    int high = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK(high >= floor);
    pid_t pid = fork();
    if (pid == 0) { /* a fork has nobody who would take them away */
        int fd = open("/dev/null", O_RDONLY);
        _exit(fd < floor ? 0 : 1);
    }
    CHECK_EQUAL(status_of(pid), 0);
    fd_unfill();
    CHECK(open("/dev/null", O_RDONLY | O_CLOEXEC) >= floor);
    fd_unfill();
    int again = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK_EQUAL(again, low + 1);
    int raised = fd_raise(again);
    CHECK(raised >= floor && fcntl(again, F_GETFD) < 0);
    CHECK_EQUAL(fcntl(raised, F_GETFD), FD_CLOEXEC);
    CHECK_EQUAL(fd_raise(raised), raised);
    close(low);
    for (int fd = floor; fd < floor + 8; fd++)
        close(fd);
}

/* A number that becomes free meanwhile is taken by who fills next. */
static void
test_holes(void)
{
    int floor = fd_floor(), low = open("/dev/null", O_RDONLY | O_CLOEXEC);

    fd_fill();
    close(low);
    fd_fill();
    int high = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK(high >= floor);
    close(high);
    fd_unfill();
    fd_unfill();
    int again = open("/dev/null", O_RDONLY | O_CLOEXEC);
    CHECK_EQUAL(again, low);
    close(again);
}

static void *
fill(void *filled)
{
    fd_fill();
    *(atomic_bool *)filled = true;
    fd_unfill();
    return NULL;
}

/* While one thread holds, no other fills; it can fork, and the fork can fill. */
static void
test_hold(void)
{
    atomic_bool filled = false;
    pthread_t thread;

    fd_fill();
    CHECK(!fd_hold());
    fd_unfill();
    CHECK(fd_hold());
    CHECK(pthread_create(&thread, NULL, fill, &filled) == 0);
    pid_t pid = fork();
    if (pid == 0) {
        fd_release();
        alarm(30);
        fd_fill();
        fd_unfill();
        _exit(fd_hold() ? 0 : 1);
    }
    CHECK_EQUAL(status_of(pid), 0);
    CHECK(!filled);
    fd_release();
    pthread_join(thread, NULL);
    CHECK(filled);
    pid = fork(); /* by one that does not hold */
    if (pid == 0)
        _exit(fd_hold() ? 0 : 1);
    CHECK_EQUAL(status_of(pid), 0);
}

int
main(void)
{
    char path[] = "/tmp/isolation-freeze-XXXXXX", text[100] = {0};
    int file = mkstemp(path);

    CHECK(file >= 0 && write(file, text, sizeof text) == sizeof text);
    close(file);
    CHECK_EQUAL(prctl(PR_SET_CHILD_SUBREAPER, 1), 0);
    test_low_numbers();
    test_holes();
    test_hold();
    test_the_copy_takes_over(path);
    test_the_copy_ends_with_its_line(path);
    test_the_copy_outlives_the_group(path);
    test_garbled_order(path);
    unlink(path);
    return check_report();
}
