/* This program is the kernel of these tests, and with arguments it is the child. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "announce.h"
#include "check.h"
#include "fdpass.h"
#include "freeze.h"
#include "process.h"

#include "notice.h"
#include "supervisor.h"

/* In the child the sanitizer's own handlers would be chained; the bare system is under test. */
const char *
__asan_default_options(void)
{
    return "handle_segv=0:handle_sigbus=0:handle_sigfpe=0:handle_sigill=0:handle_abort=0:"
           "use_sigaltstack=0:disable_coredump=0:detect_leaks=0:detect_stack_use_after_return=0";
}

extern char **environ;

/* In the environment of all that these tests start but the supervisors, to find what is left. */
#define MARK "ISOLATION_TEST_MARK"
static char mark[64];

static char here[PATH_MAX];       /* this program */
static char supervisor[PATH_MAX]; /* beside it */

/* ---- the child ------------------------------------------------------------------------------ */

#define BAD_ADDRESS 0xdead000

__attribute__((no_sanitize("address", "undefined"))) static void
touch(uintptr_t address)
{
    *(volatile char *)address = 1;
}

static void
ignore_all(void)
{
    for (int signum = 1; signum <= SIGRTMAX; signum++)
        signal(signum, SIG_IGN);
}

/* What it finds: one line of everything that a child must be given. */
static int
child_describe(char **argv)
{
    struct rlimit core;
    sigset_t mask;
    char cwd[PATH_MAX], null[PATH_MAX] = "";
    int ignored = 0, blocked = 0, open_fds = 0;

    for (int fd = 0; fd < 1024; fd++)
        open_fds += fcntl(fd, F_GETFD) >= 0;
    sigprocmask(SIG_SETMASK, NULL, &mask);
    for (int signum = 1; signum < 32; signum++) {
        struct sigaction action;
        sigaction(signum, NULL, &action);
        ignored += action.sa_handler == SIG_IGN;
        blocked += sigismember(&mask, signum);
    }
    getrlimit(RLIMIT_CORE, &core);
    if (readlink("/proc/self/fd/0", null, sizeof null - 1) < 0)
        return 1;
    printf("fds=%d highest=%d group=%d ignored=%d blocked=%d core=%d stdin=%s cwd=%s arg=%s "
           "X=%s length=%zu nonblock=%d\n",
           open_fds, fcntl(CHILD_FD_ALARM, F_GETFD) >= 0, getpgrp() == getpid(), ignored, blocked,
           core.rlim_cur > 1, null, getcwd(cwd, sizeof cwd), argv[2],
           getenv("X") ? getenv("X") : "", getenv("LONG") ? strlen(getenv("LONG")) : 0,
           fcntl(1, F_GETFL) & O_NONBLOCK);
    fflush(stdout);
    fprintf(stderr, "to stderr\n");
    return 0;
}

static int
child_announce(int megabytes, int signum)
{
    struct shared_page *page = announce_map(CHILD_FD_SHARED);

    if (!page || announce_install(page, CHILD_FD_ALARM) < 0)
        return 100;
    size_t size = (size_t)megabytes << 20;
    if (size) {
        char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return 101;
        memset(memory, 1, size);
    }
    if (write(1, "ready", 5) != 5)
        return 102;
    struct timespec now; /* for the delay: its clock is everybody's */
    clock_gettime(CLOCK_MONOTONIC, &now);
    atomic_store(&page->executing_request, (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec);
    if (signum == SIGSEGV)
        touch(BAD_ADDRESS);
    raise(signum);
    return 103;
}

static sigjmp_buf way_out;

static void
jump(int signum)
{
    (void)signum;
    siglongjmp(way_out, 1);
}

/* Recovers by a jump, says so, and at the next word from the kernel dies of another signal. */
static int
child_recover(void)
{
    struct shared_page *page = announce_map(CHILD_FD_SHARED);
    struct sigaction action = {.sa_handler = jump};
    char word;

    sigaction(SIGSEGV, &action, NULL);
    if (!page || announce_install(page, CHILD_FD_ALARM) < 0)
        return 100;
    if (sigsetjmp(way_out, 1) == 0)
        touch(BAD_ADDRESS);
    if (write(1, "ready", 5) != 5)
        return 101;
    while (fdpass_recv(CHILD_FD_PASS, &word, 1, NULL, NULL, 0) == 1)
        if (word == 'f')
            raise(SIGFPE);
    return 102;
}

/* Three generations that ignore everything, the last in sessions of their own. */
static int
child_family(int ignoring)
{
    if (ignoring)
        ignore_all();
    int go[2];
    if (pipe(go) < 0)
        return 100;
    for (int i = 0; i < 3; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            if (i > 0)
                setsid();
            for (int j = 0; j < 2; j++)
                if (fork() == 0) {
                    setsid();
                    if (write(go[1], "x", 1) == 1)
                        for (;;)
                            pause();
                }
            if (i == 2)
                _exit(0); /* these two are orphans */
            if (write(go[1], "x", 1) == 1)
                for (;;)
                    pause();
        }
        if (i == 2) /* it says nothing, and is gone before the child is ready */
            waitpid(pid, NULL, 0);
    }
    char byte;
    for (int i = 0; i < 8; i++)
        if (read(go[0], &byte, 1) != 1)
            return 101;
    if (write(1, "ready", 5) != 5)
        return 102;
    for (;;)
        pause();
}

static void *
exit_in_thread(void *status)
{
    char word;

    if (fdpass_recv(CHILD_FD_PASS, &word, 1, NULL, NULL, 0) == 1)
        _exit((int)(intptr_t)status);
    return NULL;
}

static void *
exec_in_thread(void *number)
{
    execl("/proc/self/exe", here, "exit", (char *)number, NULL);
    _exit(104);
}

static long
futex(_Atomic uint32_t *word, int operation, uint32_t value, uintptr_t fourth, void *fifth,
      uint32_t sixth)
{
    return syscall(SYS_futex, word, operation, value, fourth, fifth, sixth);
}

/* Lets its end be seen, says that it is ready, and ends at the next word from the kernel. */
static int
child_end(const char *how, const char *number)
{
    struct shared_page *page = announce_map(CHILD_FD_SHARED);
    intptr_t n = atoi(number);
    pthread_t thread;
    char word;

    if (!page || announce_end(page) < 0)
        return 100;
    while (atomic_load(&page->alive) == 0)
        futex(&page->alive, FUTEX_WAIT, 0, 0, NULL, 0);
    if (strcmp(how, "memory") == 0) {
        size_t size = 512u << 20;
        char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
            return 101;
        memset(memory, 1, size);
    }
    if (strcmp(how, "copied") == 0 && fork() == 0) /* a copy that lives on */
        for (;;)
            pause();
    if (strcmp(how, "copy") == 0 && fork() == 0) /* a copy that ends */
        _exit(0);
    if (strcmp(how, "unseen") == 0) { /* by a supervisor without privileges */
        if (geteuid() == 0 && setuid(65534) < 0)
            return 103;
        prctl(PR_SET_DUMPABLE, 0);
    }
    if (strcmp(how, "pretended") == 0) {
        atomic_store(&page->alive, FUTEX_OWNER_DIED);
        futex(&page->alive, FUTEX_WAKE, INT_MAX, 0, NULL, 0);
    }
    if (strcmp(how, "moved") == 0) /* whoever waits now waits where nobody wakes it */
        while (futex(&page->alive, FUTEX_REQUEUE, 0, INT_MAX, &page->held, 0) < 1)
            check_sleep(1);
    if (write(1, "ready", 5) != 5)
        return 102;

    if (strcmp(how, "main thread") == 0) {
        pthread_create(&thread, NULL, exit_in_thread, (void *)n);
        syscall(SYS_exit, 5); /* this thread alone */
    }
    if (strcmp(how, "flutter") == 0)
        for (uint32_t i = 1;; i = i % 1000 + 1) {
            atomic_store(&page->alive, i);
            futex(&page->alive, FUTEX_WAKE, INT_MAX, 0, NULL, 0);
        }
    if (fdpass_recv(CHILD_FD_PASS, &word, 1, NULL, NULL, 0) != 1)
        return 105;
    if (strcmp(how, "signal") == 0 || strcmp(how, "memory") == 0)
        raise(n);
    if (strcmp(how, "exec") == 0)
        exec_in_thread((void *)number);
    if (strcmp(how, "exec in a thread") == 0) {
        pthread_create(&thread, NULL, exec_in_thread, (void *)number);
        for (;;)
            pause();
    }
    _exit(n);
}

static int
child_main(char **argv)
{
    const char *what = argv[1];

    if (strcmp(what, "exit") == 0)
        return atoi(argv[2]);
    if (strcmp(what, "describe") == 0)
        return child_describe(argv);
    if (strcmp(what, "announce") == 0)
        return child_announce(atoi(argv[2]), atoi(argv[3]));
    if (strcmp(what, "recover") == 0)
        return child_recover();
    if (strcmp(what, "end") == 0)
        return child_end(argv[2], argv[3]);
    if (strcmp(what, "family") == 0)
        return child_family(atoi(argv[2]));
    if (strcmp(what, "spare") == 0) {
        struct frozen self = {.line = CHILD_FD_PASS, .supervisor = getppid()};
        int fds[FREEZE_FDS];
        freeze_await(&self, fds);
        if (write(fds[FREEZE_OUT], "ready", 5) != 5)
            return 100;
        return 7;
    }
    if (strcmp(what, "echo") == 0) { /* sends back the descriptor that it gets */
        char byte;
        int fd, n = 1;
        if (fdpass_recv(CHILD_FD_PASS, &byte, 1, &fd, &n, 0) != 1 || n != 1)
            return 100;
        return fdpass_send(CHILD_FD_PASS, "r", 1, &fd, 1, 0) < 0;
    }
    if (strcmp(what, "burn") == 0) { /* a tenth of a second of CPU */
        struct rusage usage;
        do
            getrusage(RUSAGE_SELF, &usage);
        while (usage.ru_utime.tv_sec == 0 &&
               usage.ru_utime.tv_usec + usage.ru_stime.tv_usec < 100000);
        return 0;
    }
    if (strcmp(what, "pause") == 0) {
        if (write(1, "ready", 5) != 5)
            return 100;
        for (;;)
            pause();
    }
    return 99;
}

/* ---- helpers of the kernel ------------------------------------------------------------------ */

static int
start(process *p, const char *what, const char *arg1, const char *arg2)
{
    char *argv[] = {here, (char *)what, (char *)arg1, arg1 ? (char *)arg2 : NULL, NULL};

    return process_start(p, argv, environ, NULL, 0);
}

/* Waits until fd is readable. */
static int
readable(int fd, int ms)
{
    struct pollfd item = {.fd = fd, .events = POLLIN};

    return poll(&item, 1, ms) > 0 && (item.revents & POLLIN);
}

static int
read_text(int fd, char *text, size_t size)
{
    ssize_t n = readable(fd, 10000) ? read(fd, text, size - 1) : -1;

    text[n > 0 ? n : 0] = 0;
    return n > 0;
}

/* Waits until the child says that it is ready. */
static int
ready(process *p)
{
    char text[16];

    return read_text(process_out(p), text, sizeof text) && strcmp(text, "ready") == 0;
}

static int
count_fds(void)
{
    int count = 0;

    for (int fd = 0; fd < 1024; fd++)
        count += fcntl(fd, F_GETFD) >= 0;
    return count;
}

/* Processes, this one aside, whose environment has the mark; zombies have none. */
static int
count_marked(void)
{
    static char text[1 << 20];
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    int count = 0;

    while ((entry = readdir(proc))) {
        char path[300];
        if (atoi(entry->d_name) <= 0 || atoi(entry->d_name) == getpid())
            continue;
        snprintf(path, sizeof path, "/proc/%s/environ", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        ssize_t n = read(fd, text, sizeof text);
        close(fd);
        count += n > 0 && memmem(text, n, mark, strlen(mark)) != NULL;
    }
    closedir(proc);
    return count;
}

/* Waits until no marked process but `keep` is left; the milliseconds that took, or -1 after 5 s. */
static double
wait_marked(int keep)
{
    double begin = check_now();

    while (count_marked() > keep) {
        if (check_now() - begin > 5000)
            return -1;
        check_sleep(2);
    }
    return check_now() - begin;
}

static int
no_children(void)
{
    return waitpid(-1, NULL, WNOHANG) < 0 && errno == ECHILD;
}

static int
is_gone(pid_t pid)
{
    return kill(pid, 0) < 0 && errno == ESRCH;
}

/* ---- starting ------------------------------------------------------------------------------- */

static void
test_exit_codes(void)
{
    process *p = process_open(supervisor);
    static const char *const codes[] = {"0", "7", "255"};

    CHECK(p != NULL);
    CHECK_EQUAL(process_pid(p), 0);
    CHECK_EQUAL(process_update(p), 0);
    CHECK(process_shared(p) == NULL);
    CHECK(process_kill(p, SIGKILL) < 0 && errno == ESRCH);
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(start(p, "exit", codes[i], NULL), 0);
        CHECK(process_pid(p) > 0);
        CHECK_EQUAL(process_wait_exit(p, 5000), 1);
        CHECK_EQUAL(process_update(p), 1);
        CHECK(readable(process_dead_fd(p), 0));
        struct process_exit info = process_exit_info(p);
        CHECK_EQUAL(info.known, 1);
        CHECK_EQUAL(info.pid, process_pid(p));
        CHECK_EQUAL(info.code, CLD_EXITED);
        CHECK_EQUAL(info.status, atoi(codes[i]));
        CHECK(info.usage.ru_maxrss > 100);
        CHECK(process_kill(p, SIGKILL) < 0 && errno == ESRCH);
    }
    CHECK_EQUAL(start(p, "burn", NULL, NULL), 0);
    CHECK_EQUAL(process_exit_info(p).known, 0);
    CHECK(!readable(process_dead_fd(p), 0));
    CHECK_EQUAL(process_wait_exit(p, 1), 0);
    CHECK_EQUAL(process_wait_exit(p, -1), 1);
    struct rusage usage = process_exit_info(p).usage;
    CHECK(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec >= 90000 || usage.ru_utime.tv_sec);
    process_close(p);
    CHECK(no_children());
}

static void
test_what_the_child_gets(void)
{
    process *p = process_open(supervisor);
    size_t length = 100000; /* one string may have 128 KB */
    char *longest = malloc(length + 6), text[8192], expected[8192];
    char *argv[] = {here, "describe", "an argument", NULL};
    char *envp[] = {"X=with = and \n", longest, longest, longest, longest, longest, longest, NULL};

    strcpy(longest, "LONG=");
    memset(longest + 5, 'x', length);
    longest[length + 5] = 0;

    /* In the kernel all is different from what the child is to have. */
    struct rlimit core;
    getrlimit(RLIMIT_CORE, &core);
    sigset_t mask, before;
    sigfillset(&mask);
    sigprocmask(SIG_SETMASK, &mask, &before);
    signal(SIGINT, SIG_IGN);
    signal(SIGUSR1, SIG_IGN);
    int leak = fcntl(0, F_DUPFD, 200);
    CHECK_EQUAL(process_start(p, argv, envp, "/usr", 0), 0);
    signal(SIGINT, SIG_DFL);
    signal(SIGUSR1, SIG_DFL);
    sigprocmask(SIG_SETMASK, &before, NULL);

    snprintf(expected, sizeof expected,
             "fds=6 highest=1 group=1 ignored=0 blocked=0 core=0 stdin=/dev/null cwd=/usr "
             "arg=an argument X=with = and \n length=%zu nonblock=0\n",
             length);
    CHECK(read_text(process_out(p), text, sizeof text));
    if (strcmp(text, expected) != 0)
        printf("got  %swant %s", text, expected);
    CHECK(strcmp(text, expected) == 0);
    CHECK(read_text(process_err(p), text, sizeof text));
    CHECK(strcmp(text, "to stderr\n") == 0);
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);

    CHECK_EQUAL(read(process_out(p), text, 1), 0); /* the end of the file */
    int out = process_out(p);
    process_close_output(p, out);
    CHECK_EQUAL(process_out(p), -1);
    CHECK(fcntl(out, F_GETFD) < 0);
    CHECK(process_err(p) >= 0);

    /* cwd and core dumps by default */
    CHECK_EQUAL(process_start(p, argv, envp, NULL, 1), 0);
    CHECK(read_text(process_out(p), text, sizeof text));
    CHECK(strstr(text, " cwd=/ ") != NULL);
    CHECK(core.rlim_max == 0 || strstr(text, " core=1 ") != NULL);
    process_close(p);
    close(leak);
    free(longest);
}

static void
test_failures(void)
{
    process *p = process_open(supervisor);
    char *missing[] = {"/no/such/program", NULL}, *directory[] = {"/usr", NULL};
    char *good[] = {here, "exit", "3", NULL}, *none[] = {NULL};
    int fds;

    CHECK_EQUAL(start(p, "exit", "0", NULL), 0);
    process_end_life(p);
    fds = count_fds() - 1; /* the eventfd that stays */
    CHECK(process_start(p, missing, environ, NULL, 0) < 0 && errno == ENOENT);
    CHECK_EQUAL(process_pid(p), 0);
    CHECK_EQUAL(process_update(p), 0);
    CHECK(process_start(p, directory, environ, NULL, 0) < 0 && errno == EACCES);
    CHECK(process_start(p, good, environ, "/no/such/place", 0) < 0 && errno == ENOENT);
    CHECK(process_start(p, none, environ, NULL, 0) < 0 && errno == EINVAL);
    CHECK_EQUAL(count_fds(), fds);
    CHECK_EQUAL(process_start(p, good, environ, NULL, 0), 0);
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);
    CHECK_EQUAL(process_exit_info(p).status, 3);
    process_close(p);

    CHECK(process_open("/no/such/program") == NULL && errno == ENOENT);
    CHECK(no_children());

    /* Not a supervisor: it ends at once, or never and must be killed. */
    p = process_open("/bin/true");
    CHECK(p != NULL);
    CHECK(process_start(p, good, environ, NULL, 0) < 0 && errno == EPIPE);
    process_close(p);
    p = process_open("/bin/sleep");
    double begin = check_now();
    process_close(p);
    double took = check_now() - begin;
    CHECK(took > 500 && took < 10000); /* it is given its time, and not waited for for ever */
    CHECK(no_children());
}

static void
test_descriptors_pass(void)
{
    process *p = process_open(supervisor);
    int pair[2], fd, n = 1;
    char byte;
    struct stat a, b;

    CHECK(pipe(pair) == 0);
    CHECK_EQUAL(start(p, "echo", NULL, NULL), 0);
    CHECK_EQUAL(fdpass_send(process_fdpass(p), "x", 1, pair, 1, 0), 0);
    CHECK_EQUAL(fdpass_recv(process_fdpass(p), &byte, 1, &fd, &n, 0), 1);
    CHECK(n == 1 && fstat(fd, &a) == 0 && fstat(pair[0], &b) == 0 && a.st_ino == b.st_ino);
    close(fd);
    close(pair[0]);
    close(pair[1]);
    process_close(p);
}

/* ---- announcements -------------------------------------------------------------------------- */

static void
test_announced(void)
{
    static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGSYS, SIGTRAP};
    process *p = process_open(supervisor);
    char number[16];

    for (int i = 0; i < 7; i++) {
        snprintf(number, sizeof number, "%d", signals[i]);
        CHECK_EQUAL(start(p, "announce", "0", number), 0);
        CHECK(ready(p));
        CHECK(readable(process_alarm(p), 1000));
        CHECK_EQUAL(process_shared(p)->announced, ANNOUNCED_COMPLETE);
        CHECK_EQUAL(process_shared(p)->signal, signals[i]);
        CHECK_EQUAL(process_shared(p)->pid, process_pid(p));
        CHECK_EQUAL(process_wait_exit(p, 5000), 1);
        CHECK_EQUAL(process_exit_info(p).code, CLD_KILLED);
        CHECK_EQUAL(process_exit_info(p).status, signals[i]);
    }

    /* Before the memory is taken down. The first of three lives of which that is seen: this process
     * may get no turn meanwhile. */
    for (int megabytes = 0; megabytes <= 1024; megabytes += 1024) {
        int before = 0;
        snprintf(number, sizeof number, "%d", megabytes);
        for (int i = 0; i < 3 && !before; i++) {
            CHECK_EQUAL(start(p, "announce", number, "11"), 0);
            CHECK(ready(p));
            CHECK(readable(process_alarm(p), 5000));
            double now = check_now();
            double delay = now - process_shared(p)->executing_request / 1e6;
            before = delay < 100 && (megabytes == 0 || process_update(p) == 0);
            CHECK_EQUAL(process_shared(p)->address, BAD_ADDRESS);
            CHECK_EQUAL(process_wait_exit(p, 10000), 1);
            printf("  %4d MB: announced after %.2f ms, reported %.1f ms later\n", megabytes, delay,
                   check_now() - now);
        }
        CHECK(before);
    }

    /* No announcement: no alarm, neither at the end. And none can be taken back that is final. */
    process_alarm_clear(p);
    CHECK(readable(process_alarm(p), 0));
    CHECK_EQUAL(start(p, "exit", "0", NULL), 0);
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);
    struct pollfd item = {.fd = process_alarm(p), .events = POLLIN};
    CHECK_EQUAL(poll(&item, 1, 0), 0);
    process_close(p);
}

/* Does it, within five seconds? */
static int
stands_still(pid_t pid)
{
    char path[64], text[256];

    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    for (double begin = check_now(); check_now() - begin < 5000; check_sleep(1)) {
        FILE *file = fopen(path, "r");
        size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
        if (file)
            fclose(file);
        text[n] = 0;
        char *name_end = strrchr(text, ')');
        if (name_end && strncmp(name_end, ") T", 3) == 0)
            return 1;
    }
    return 0;
}

static int
hung_up(int fd)
{
    struct pollfd item = {.fd = fd, .events = POLLIN | POLLRDHUP};

    return poll(&item, 1, 0) > 0 && (item.revents & (POLLHUP | POLLRDHUP));
}

/* A crashed child that is to be held stands still, whatever lives come and go; it ends by release,
 * and with the supervisor. */
static void
test_hold(void)
{
    process *p = process_open(supervisor);

    for (int release = 1; release >= 0; release--) {
        CHECK_EQUAL(start(p, "recover", NULL, NULL), 0);
        CHECK(ready(p));
        pid_t pid = process_pid(p);
        process_alarm_clear(p);
        atomic_store(&process_shared(p)->hold, 1);
        CHECK_EQUAL(fdpass_send(process_fdpass(p), "f", 1, NULL, 0, 0), 0);
        CHECK(readable(process_alarm(p), 1000));
        CHECK_EQUAL(process_shared(p)->announced, ANNOUNCED_COMPLETE);
        CHECK_EQUAL(process_held(p), 0);
        CHECK_EQUAL(process_hold(p), 1);
        CHECK_EQUAL(process_hold(p), 0); /* its life is over */
        CHECK_EQUAL(process_held(p), pid);
        CHECK_EQUAL(process_update(p), 1);
        CHECK(process_kill(p, SIGKILL) < 0 && errno == ESRCH);
        CHECK(stands_still(pid));

        double begin = check_now();
        CHECK_EQUAL(start(p, "exit", "3", NULL), 0);
        CHECK(check_now() - begin < 900); /* nobody waits for it to go */
        CHECK_EQUAL(process_wait_exit(p, 5000), 1);
        CHECK_EQUAL(process_exit_info(p).status, 3);
        process_end_life(p);
        CHECK(stands_still(pid));
        CHECK_EQUAL(process_held(p), pid);
        if (!release)
            break;
        process_release(p);
        for (begin = check_now(); process_held(p) != 0 && check_now() - begin < 5000;)
            check_sleep(1);
        CHECK_EQUAL(process_held(p), 0);
        CHECK(kill(pid, 0) < 0 && errno == ESRCH);
    }
    pid_t pid = process_held(p);
    process_close(p);
    CHECK(kill(pid, 0) < 0 && errno == ESRCH);
}

/* A process in advance is adopted as it is; it ends when nobody wants it. */
static void
test_spare(void)
{
    process *p = process_open(supervisor);
    char *argv[] = {here, "spare", NULL};

    CHECK_EQUAL(start(p, "pause", NULL, NULL), 0);
    int line = process_spare(p, argv, environ, NULL);
    CHECK(line >= 0);
    CHECK(readable(line, 5000)); /* it has said that it is there */
    pid_t old = process_pid(p);
    CHECK_EQUAL(process_adopt(p, line), 0);
    CHECK(process_pid(p) != old);
    CHECK(ready(p)); /* by its new descriptors */
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);
    CHECK_EQUAL(process_exit_info(p).status, 7);

    /* One that starts another life meanwhile does not end it; closing the line does. */
    line = process_spare(p, argv, environ, NULL);
    CHECK(line >= 0 && readable(line, 5000));
    CHECK_EQUAL(start(p, "exit", "3", NULL), 0);
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);
    CHECK(!hung_up(line));
    close(line);

    /* One that cannot be started is seen when it is to be adopted. */
    char *missing[] = {"/no/such/program", NULL};
    line = process_spare(p, missing, environ, NULL);
    CHECK(line >= 0);
    CHECK(process_adopt(p, line) < 0);
    CHECK_EQUAL(start(p, "exit", "3", NULL), 0);
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);
    process_close(p);
}

/* Limits hold for the lives that begin after they were set. */
static void
test_limits(void)
{
    process *p = process_open(supervisor);
    int before = getpriority(PRIO_PROCESS, 0);

    process_set_limits(p, &(struct process_limits){.memory = 1u << 30, .cpu = 5, .nice = 2});
    CHECK_EQUAL(start(p, "pause", NULL, NULL), 0);
    struct rlimit memory, cpu;
    CHECK_EQUAL(prlimit(process_pid(p), RLIMIT_DATA, NULL, &memory), 0);
    CHECK_EQUAL(prlimit(process_pid(p), RLIMIT_CPU, NULL, &cpu), 0);
    CHECK(memory.rlim_cur == 1u << 30 && memory.rlim_max == 1u << 30);
    /* The second signal comes a second and a quarter of the limit after the first. */
    CHECK(cpu.rlim_cur == 5 && cpu.rlim_max == 7);
    CHECK_EQUAL(getpriority(PRIO_PROCESS, process_pid(p)), before + 2 > 19 ? 19 : before + 2);

    process_set_limits(p, &(struct process_limits){0});
    CHECK_EQUAL(start(p, "pause", NULL, NULL), 0);
    CHECK_EQUAL(prlimit(process_pid(p), RLIMIT_CPU, NULL, &cpu), 0);
    CHECK(cpu.rlim_cur == RLIM_INFINITY);
    process_close(p);
}

static void
test_tentative(void)
{
    process *p = process_open(supervisor);

    CHECK_EQUAL(start(p, "recover", NULL, NULL), 0);
    CHECK(ready(p));
    CHECK(readable(process_alarm(p), 0));
    CHECK_EQUAL(process_shared(p)->announced, ANNOUNCED_TENTATIVE);
    CHECK_EQUAL(process_shared(p)->signal, SIGSEGV);
    process_alarm_clear(p);
    CHECK_EQUAL(process_shared(p)->announced, ANNOUNCED_NONE);
    CHECK(!readable(process_alarm(p), 50));
    CHECK_EQUAL(process_update(p), 0);

    CHECK_EQUAL(fdpass_send(process_fdpass(p), "f", 1, NULL, 0, 0), 0);
    CHECK(readable(process_alarm(p), 1000));
    CHECK_EQUAL(process_shared(p)->announced, ANNOUNCED_COMPLETE);
    CHECK_EQUAL(process_shared(p)->signal, SIGFPE);
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);
    CHECK_EQUAL(process_exit_info(p).status, SIGFPE);
    process_close(p);
}

static void
test_page_is_sealed(void)
{
    process *p = process_open(supervisor);
    char path[64];

    CHECK_EQUAL(start(p, "pause", NULL, NULL), 0);
    CHECK(ready(p));
    snprintf(path, sizeof path, "/proc/%d/fd/%d", process_pid(p), CHILD_FD_SHARED);
    CHECK(truncate(path, 0) < 0 && errno == EPERM);
    CHECK(truncate(path, 1 << 20) < 0 && errno == EPERM);
    process_close(p);
}

/* ---- the end, before it is reaped ------------------------------------------------------------ */

/* A process that is traced is not reaped before its tracer has heard of its end. So it looks for as
 * long as the test likes as if much memory had to be taken down. */
static int
hold_back(pid_t pid)
{
    return ptrace(PTRACE_SEIZE, pid, NULL, NULL) == 0;
}

static int
let_go(pid_t pid)
{
    return waitpid(pid, NULL, __WALL) == pid;
}

static int
start_end(process *p, const char *how, const char *number)
{
    return start(p, "end", how, number) == 0 && ready(p);
}

static int
go(process *p)
{
    return fdpass_send(process_fdpass(p), "g", 1, NULL, 0, 0) == 0;
}

/* Waits until the child of p has been reaped, and not only been seen to end. */
static int
await_reaped(process *p)
{
    while (!process_exit_info(p).reaped && readable(process_control(p), 5000))
        process_update(p);
    return process_exit_info(p).reaped;
}

static void
check_exit(process *p, int code, int status)
{
    struct process_exit info = process_exit_info(p);

    CHECK_EQUAL(info.known, 1);
    CHECK_EQUAL(info.pid, process_pid(p));
    CHECK_EQUAL(info.code, code);
    CHECK_EQUAL(info.status, status);
}

static void
test_end_is_seen(void)
{
    static const struct {
        const char *how, *number;
        int code, status;
    } cases[] = {
        {"exit", "0", CLD_EXITED, 0},          {"exit", "3", CLD_EXITED, 3},
        {"exit", "255", CLD_EXITED, 255},      {"signal", "9", CLD_KILLED, SIGKILL},
        {"copied", "4", CLD_EXITED, 4},        {"pretended", "7", CLD_EXITED, 7},
        {"outside", "9", CLD_KILLED, SIGKILL},
    };
    process *p = process_open(supervisor);

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK(start_end(p, cases[i].how, cases[i].number));
        pid_t pid = process_pid(p);
        CHECK(hold_back(pid));
        CHECK_EQUAL(process_wait_exit(p, 20), 0);
        if (strcmp(cases[i].how, "outside") == 0)
            kill(pid, SIGKILL);
        else
            CHECK(go(p));
        CHECK_EQUAL(process_wait_exit(p, 5000), 1);
        CHECK(readable(process_dead_fd(p), 0));
        check_exit(p, cases[i].code, cases[i].status);
        CHECK_EQUAL(process_exit_info(p).reaped, 0);
        CHECK(process_kill(p, SIGKILL) < 0 && errno == ESRCH);
        CHECK(let_go(pid));
        CHECK(await_reaped(p));
        check_exit(p, cases[i].code, cases[i].status);
        CHECK(process_exit_info(p).usage.ru_maxrss > 100);
        CHECK(is_gone(pid));
    }

    /* The next life does not wait for ever, and is not disturbed. */
    CHECK(start_end(p, "exit", "3"));
    pid_t pid = process_pid(p);
    CHECK(hold_back(pid));
    CHECK(go(p));
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);
    CHECK(start_end(p, "exit", "4"));
    CHECK(let_go(pid));
    double begin = check_now();
    while (!is_gone(pid) && check_now() - begin < 5000)
        check_sleep(1);
    CHECK(is_gone(pid));
    CHECK_EQUAL(process_update(p), 0);
    CHECK(go(p));
    CHECK(await_reaped(p));
    check_exit(p, CLD_EXITED, 4);
    process_close(p);
    CHECK(no_children());
}

/* As it is in earnest. */
static void
test_end_with_memory(void)
{
    process *p = process_open(supervisor);
    static const char *const signals[] = {"9", "11"};

    for (int i = 0; i < 2; i++) {
        CHECK(start_end(p, "memory", signals[i]));
        CHECK(go(p));
        double begin = check_now();
        CHECK_EQUAL(process_wait_exit(p, 5000), 1);
        double seen = check_now();
        check_exit(p, CLD_KILLED, atoi(signals[i]));
        CHECK(await_reaped(p));
        check_exit(p, CLD_KILLED, atoi(signals[i]));
        printf("   512 MB: end seen after %.2f ms, reaped %.1f ms later\n", seen - begin,
               check_now() - seen);
    }
    process_close(p);
}

/* No end of the child, though something of it has ended, or it says so. */
static void
test_no_end(void)
{
    process *p = process_open(supervisor);
    static const char *const cases[] = {"copy", "main thread", "pretended", "moved"};

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK(start_end(p, cases[i], "7"));
        CHECK_EQUAL(process_wait_exit(p, 100), 0);
        CHECK(go(p));
        CHECK(await_reaped(p));
        check_exit(p, CLD_EXITED, 7);
    }

    CHECK(start_end(p, "flutter", "0"));
    CHECK_EQUAL(process_wait_exit(p, 100), 0);
    CHECK_EQUAL(process_kill(p, SIGKILL), 0);
    CHECK(await_reaped(p));
    check_exit(p, CLD_KILLED, SIGKILL);

    /* An exec: it ends when the other program does. By turns in a thread, where the main one ends.
     */
    for (int i = 0; i < 100; i++) {
        CHECK(start_end(p, i % 2 ? "exec" : "exec in a thread", "9"));
        CHECK(go(p));
        CHECK(await_reaped(p));
        check_exit(p, CLD_EXITED, 9);
    }
    process_close(p);
}

/* A supervisor that the system does not let look into its child. */
static int
plain_kernel(void)
{
    if (geteuid() == 0 && prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0) < 0)
        return 1;
    process *p = process_open(supervisor);
    for (int i = 0; i < 20; i++) {
        if (!p || !start_end(p, "unseen", "3") || !go(p))
            return 2;
        if (!process_wait_exit(p, 5000))
            return 3;
        struct process_exit info = process_exit_info(p);
        if (!info.known || info.code != CLD_EXITED || info.status != 3)
            return 4;
        if (!await_reaped(p))
            return 5;
    }
    process_close(p);
    return 0;
}

static void
test_end_is_not_seen(void)
{
    int status;

    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0)
        _exit(plain_kernel());
    waitpid(pid, &status, 0);
    CHECK(WIFEXITED(status));
    CHECK_EQUAL(WEXITSTATUS(status), 0);
}

/* ---- killing -------------------------------------------------------------------------------- */

static void
test_signals(void)
{
    process *p = process_open(supervisor);
    static const int signals[] = {SIGKILL, SIGTERM, SIGINT};

    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(start(p, "pause", NULL, NULL), 0);
        CHECK(ready(p));
        CHECK_EQUAL(process_kill(p, signals[i]), 0);
        CHECK_EQUAL(process_wait_exit(p, 5000), 1);
        CHECK_EQUAL(process_exit_info(p).code, CLD_KILLED);
        CHECK_EQUAL(process_exit_info(p).status, signals[i]);
    }

    CHECK_EQUAL(start(p, "pause", NULL, NULL), 0);
    CHECK(ready(p));
    CHECK_EQUAL(process_kill(p, SIGSTOP), 0);
    CHECK(stands_still(process_pid(p))); /* else SIGTERM, whose number is less, goes first */
    CHECK_EQUAL(process_kill(p, SIGTERM), 0);
    CHECK_EQUAL(process_wait_exit(p, 100), 0);
    CHECK_EQUAL(process_kill(p, SIGKILL), 0);
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);
    CHECK_EQUAL(process_exit_info(p).status, SIGKILL);
    process_close(p);
}

/* The child with its group goes by SIGKILL, all others at the end of the life. */
static void
test_family(void)
{
    process *p = process_open(supervisor);

    CHECK_EQUAL(start(p, "family", "0", NULL), 0);
    CHECK(ready(p));
    CHECK_EQUAL(count_marked(), 9);
    CHECK_EQUAL(process_kill(p, SIGTERM), 0); /* for the child alone */
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);
    CHECK_EQUAL(count_marked(), 8);
    process_end_life(p);
    CHECK_EQUAL(process_shared(p) == NULL, 1);
    CHECK_EQUAL(process_out(p), -1);
    CHECK(readable(process_dead_fd(p), 0));
    CHECK(wait_marked(0) >= 0);

    CHECK_EQUAL(start(p, "family", "1", NULL), 0);
    CHECK(ready(p));
    CHECK_EQUAL(process_kill(p, SIGKILL), 0);
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);
    CHECK(wait_marked(7) >= 0); /* one was in the group */
    CHECK_EQUAL(count_marked(), 7);

    /* The end of a life that is not over: its exit is still reported. */
    CHECK_EQUAL(start(p, "family", "1", NULL), 0);
    CHECK(ready(p));
    CHECK_EQUAL(count_marked(), 9); /* none of the life before */
    process_end_life(p);
    CHECK_EQUAL(process_update(p), 1);
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);
    CHECK_EQUAL(process_exit_info(p).status, SIGKILL);

    CHECK_EQUAL(start(p, "family", "1", NULL), 0);
    CHECK(ready(p));
    pid_t pid = process_supervisor_pid(p);
    double begin = check_now();
    process_close(p);
    CHECK(check_now() - begin < 1000);
    CHECK(is_gone(pid));
    CHECK_EQUAL(count_marked(), 0);
    CHECK(no_children());
}

/* A pretended kernel, in a fork, with a family below it; killed by surprise. With a forked copy of
 * it left over, which still has the lifeline. */
static void
test_kernel_killed(int with_copy)
{
    int news[2];
    pid_t pids[2];

    CHECK(pipe(news) == 0);
    fflush(stdout);
    prctl(PR_SET_CHILD_SUBREAPER, 1); /* not every init reaps */
    pid_t kernel = fork();
    if (kernel == 0) {
        process *p = process_open(supervisor);
        if (!p || start(p, "family", "1", NULL) < 0 || !ready(p))
            _exit(1);
        pids[0] = process_supervisor_pid(p);
        pids[1] = with_copy ? fork() : 0;
        if (!with_copy || pids[1] > 0)
            if (write(news[1], pids, sizeof pids) < 0)
                _exit(2);
        for (;;)
            pause();
    }
    CHECK(read(news[0], pids, sizeof pids) == sizeof pids);
    int copies = with_copy ? 1 : 0;
    /* A process that is being started is there twice for a moment. */
    for (double begin = check_now(); count_marked() != 10 + copies && check_now() - begin < 10000;)
        check_sleep(1);
    CHECK_EQUAL(count_marked(), 10 + copies);
    kill(kernel, SIGKILL);
    waitpid(kernel, NULL, 0);
    double took = wait_marked(copies);
    CHECK(took >= 0);
    printf("  kernel killed%s: all gone after %.1f ms\n", with_copy ? ", copy left" : "", took);
    double begin = check_now();
    CHECK_EQUAL(waitpid(pids[0], NULL, 0), pids[0]); /* the supervisor */
    CHECK(check_now() - begin < 5000);
    if (with_copy) {
        kill(pids[1], SIGKILL);
        CHECK_EQUAL(waitpid(pids[1], NULL, 0), pids[1]);
    }
    CHECK_EQUAL(count_marked(), 0);
    CHECK(no_children()); /* so the supervisor has reaped its own */
    prctl(PR_SET_CHILD_SUBREAPER, 0);
    close(news[0]);
    close(news[1]);
}

static void
test_supervisor_killed(void)
{
    process *p = process_open(supervisor);

    CHECK_EQUAL(start(p, "pause", NULL, NULL), 0);
    CHECK(ready(p));
    pid_t pid = process_pid(p);
    kill(process_supervisor_pid(p), SIGKILL);
    CHECK(readable(process_control(p), 1000));
    CHECK_EQUAL(process_update(p), 1);
    CHECK(readable(process_dead_fd(p), 0));
    CHECK_EQUAL(process_wait_exit(p, 0), 1);
    CHECK_EQUAL(process_exit_info(p).known, 0);
    CHECK(process_kill(p, SIGKILL) < 0 && errno == ESRCH);
    double begin = check_now();
    while (count_marked() > 0 && check_now() - begin < 1000)
        check_sleep(1);
    CHECK_EQUAL(count_marked(), 0);
    CHECK(pid != 0);

    /* The next life has a new one. */
    CHECK_EQUAL(start(p, "exit", "5", NULL), 0);
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);
    CHECK_EQUAL(process_exit_info(p).status, 5);
    kill(process_supervisor_pid(p), SIGKILL);
    process_close(p);
    CHECK(no_children());
}

static void
test_supervisor_ignores_signals(void)
{
    process *p = process_open(supervisor);
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};

    CHECK_EQUAL(start(p, "pause", NULL, NULL), 0);
    CHECK(ready(p));
    for (int i = 0; i < 4; i++)
        kill(process_supervisor_pid(p), signals[i]);
    char path[64], name[32] = "";
    snprintf(path, sizeof path, "/proc/%d/comm", process_supervisor_pid(p));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    CHECK(read(fd, name, sizeof name - 1) > 0 && strcmp(name, "isolation-sup\n") == 0);
    close(fd);
    CHECK_EQUAL(getsid(process_supervisor_pid(p)), process_supervisor_pid(p));
    CHECK_EQUAL(process_kill(p, SIGKILL), 0);
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);
    CHECK_EQUAL(process_exit_info(p).known, 1);
    process_close(p);
}

/* ---- threads and forks ---------------------------------------------------------------------- */

static void *
wait_for_death(void *argument)
{
    process *p = argument;
    double begin = check_now();

    while (!process_update(p)) {
        struct pollfd fds[] = {
            {.fd = process_control(p), .events = POLLIN},
            {.fd = process_dead_fd(p), .events = POLLIN},
        };
        poll(fds, 2, 5000);
        if (check_now() - begin > 4000)
            return NULL;
    }
    return argument;
}

static void *
wait_for_exit(void *argument)
{
    return process_wait_exit(argument, 4000) ? argument : NULL;
}

static void
test_waiters(void)
{
    process *p = process_open(supervisor);
    pthread_t threads[8];

    for (int round = 0; round < 20; round++) {
        CHECK_EQUAL(start(p, "pause", NULL, NULL), 0);
        CHECK(ready(p));
        for (int i = 0; i < 8; i++)
            pthread_create(&threads[i], NULL, i % 2 ? wait_for_death : wait_for_exit, p);
        check_sleep(2);
        double begin = check_now();
        CHECK_EQUAL(process_kill(p, SIGKILL), 0);
        int woken = 0;
        for (int i = 0; i < 8; i++) {
            void *result;
            pthread_join(threads[i], &result);
            woken += result != NULL;
        }
        CHECK_EQUAL(woken, 8);
        CHECK(check_now() - begin < 1000);
    }
    process_close(p);
}

static void
test_forked_copy(void)
{
    process *p = process_open(supervisor);
    int status;

    notice *probe = notice_new(NULL, 0);
    int watches = probe != NULL; /* not everywhere, see notice.h */
    notice_free(probe);
    CHECK_EQUAL(start(p, "pause", NULL, NULL), 0);
    CHECK(ready(p));
    for (int how = 0; how < 2; how++) {
        int fds = count_fds();
        fflush(stdout);
        pid_t copy = fork();
        if (copy == 0) {
            if (process_kill(p, SIGKILL) == 0 || errno != EPERM)
                _exit(1);
            if (start(p, "pause", NULL, NULL) == 0)
                _exit(2);
            process_end_life(p);
            if (how == 0)
                process_forget(p);
            else
                process_close(p);
            _exit(fds - count_fds());
        }
        waitpid(copy, &status, 0);
        /* out, err, epoll, fdpass, alarm twice, eventfd, control; and what watches for output */
        CHECK_EQUAL(WEXITSTATUS(status), 8 + watches);
    }
    check_sleep(50);
    CHECK_EQUAL(process_update(p), 0);
    CHECK_EQUAL(process_kill(p, SIGTERM), 0);
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);
    CHECK_EQUAL(process_exit_info(p).status, SIGTERM);
    process_close(p);
}

/* Without stdin, stdout and stderr, and with SIGCHLD ignored. */
static int
odd_kernel(void)
{
    int keep = fcntl(1, F_DUPFD, 20);

    close(0);
    close(1);
    close(2);
    signal(SIGCHLD, SIG_IGN);
    process *p = process_open(supervisor);
    if (!p || start(p, "describe", "x", NULL) < 0)
        return 1;
    char text[1024];
    if (!read_text(process_out(p), text, sizeof text) || !strstr(text, "fds=6 "))
        return 2;
    if (!process_wait_exit(p, 5000) || process_exit_info(p).status != 0)
        return 3;
    double begin = check_now();
    process_close(p);
    dup2(keep, 1);
    return check_now() - begin < 900 ? 0 : 4; /* it ends by itself: after 1000 it is killed */
}

static void
test_odd_kernel(void)
{
    int status;

    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0)
        _exit(odd_kernel());
    waitpid(pid, &status, 0);
    CHECK(WIFEXITED(status));
    CHECK_EQUAL(WEXITSTATUS(status), 0);
}

/* ---- endurance ------------------------------------------------------------------------------ */

static int
supervisor_fds(process *p)
{
    char path[64];
    int count = 0;
    struct dirent *entry;

    snprintf(path, sizeof path, "/proc/%d/fd", process_supervisor_pid(p));
    DIR *directory = opendir(path);
    while (directory && (entry = readdir(directory)))
        count += entry->d_name[0] != '.';
    if (directory)
        closedir(directory);
    return count;
}

static int
zombies_below(pid_t parent)
{
    char path[64], text[4096] = "";

    snprintf(path, sizeof path, "/proc/%d/task/%d/children", parent, parent);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    close(fd);
    return n != 0;
}

static void
test_cycles(void)
{
    int outside = count_fds();
    process *p = process_open(supervisor);
    int fds = 0, below = 0;
    double begin = check_now();

    for (int i = 0; i < 200; i++) {
        if (start(p, "pause", NULL, NULL) < 0 || !ready(p)) {
            CHECK(!"start");
            break;
        }
        if (i % 2)
            process_kill(p, SIGKILL);
        if (i % 4 == 3)
            process_wait_exit(p, 5000);
        if (i == 5) {
            fds = count_fds();
            below = supervisor_fds(p);
        }
        if (i % 3)
            process_end_life(p);
    }
    printf("  a start and a kill: %.2f ms\n", (check_now() - begin) / 200);
    CHECK_EQUAL(start(p, "pause", NULL, NULL), 0);
    CHECK_EQUAL(count_fds(), fds);
    CHECK_EQUAL(supervisor_fds(p), below);
    CHECK_EQUAL(process_kill(p, SIGKILL), 0);
    CHECK_EQUAL(process_wait_exit(p, 5000), 1);
    CHECK_EQUAL(zombies_below(process_supervisor_pid(p)), 0);
    process_close(p);
    CHECK_EQUAL(count_fds(), outside);

    for (int i = 0; i < 20; i++) {
        p = process_open(supervisor);
        CHECK_EQUAL(start(p, "pause", NULL, NULL), 0);
        process_close(p);
    }
    CHECK_EQUAL(count_fds(), outside);
    CHECK(no_children());
    CHECK_EQUAL(count_marked(), 0);
}

int
main(int argc, char **argv)
{
    if (argc > 1)
        return child_main(argv);
    snprintf(mark, sizeof mark, "%d", getpid());
    if (!getenv(MARK)) { /* once more, so that /proc/self/environ has it: forks show that one */
        setenv(MARK, mark, 1);
        execv("/proc/self/exe", argv);
        return 2;
    }
    snprintf(mark, sizeof mark, "%s=%d", MARK, getpid()); /* which an exec has not changed */

    if (readlink("/proc/self/exe", here, sizeof here - 1) < 0)
        return 2;
    if (getenv("SUPERVISOR"))
        snprintf(supervisor, sizeof supervisor, "%s", getenv("SUPERVISOR"));
    else
        snprintf(supervisor, sizeof supervisor, "%.*s/_supervisor",
                 (int)(strrchr(here, '/') - here), here);
    if (access(supervisor, X_OK) < 0) {
        printf("no supervisor at %s\n", supervisor);
        return 2;
    }
    test_exit_codes();
    test_what_the_child_gets();
    test_failures();
    test_descriptors_pass();
    test_announced();
    test_tentative();
    test_hold();
    test_spare();
    test_limits();
    test_page_is_sealed();
    test_end_is_seen();
    test_end_with_memory();
    test_no_end();
    test_end_is_not_seen();
    test_signals();
    test_family();
    test_kernel_killed(0);
    test_kernel_killed(1);
    test_supervisor_killed();
    test_supervisor_ignores_signals();
    test_waiters();
    test_forked_copy();
    test_odd_kernel();
    test_cycles();
    return check_report();
}
