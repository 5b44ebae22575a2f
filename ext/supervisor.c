/* The supervisor: starts the child, reaps it and whatever it leaves behind, reports how it ended,
 * and kills everything below itself when its lifeline to the kernel closes.
 *
 * It is a program of its own because the kernel cannot do this for itself once it has been killed,
 * and because only a sub-reaper learns how the frozen copies of a child end. It runs no code but
 * this, and is built from this one file. All is done by one thread; another only waits. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shared.h"
#include "supervisor.h"
#include "yield.h"
#include "fdpass.c"

/* How long a restart waits until nothing of the last life runs any more, though its memory may
 * still be taken down; and how long to go on killing after the end, where something sleeps
 * uninterruptibly in the kernel. */
#define END_LIFE_MS 1000
#define END_ALL_MS 10000

/* Deeper descendants are left for the next round; by then they are nearer. Bounds open files. */
#define WALK_DEPTH 16

/* The thread that waits for the child's end. */
struct watch {
    int running;
    pthread_t thread;
    const struct shared_page *page; /* the child's too: what it says is looked into, not believed */
    int ended;                      /* an eventfd: the wait is over */
    atomic_int stop;
};

struct supervisor {
    pid_t pid;
    int signals;       /* signalfd of SIGCHLD */
    int kernel;        /* pidfd of the kernel, -1 where there are none */
    rlim_t core_limit; /* the RLIMIT_CORE under which no core is dumped */
    pid_t child;       /* 0: none */
    uint32_t life;     /* of that child */
    pid_t held;        /* a crashed child that a debugger may look at, 0: none */
    pid_t spare;       /* waits to be adopted, 0: none */
    struct watch watch;
    int look_ms; /* the watch is over: look at the child again after this time; -1: do not */
};

static long
milliseconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* ---- set-up -------------------------------------------------------------------------------- */

/* Closes what was inherited from the kernel, such as the sockets of other libraries. */
static void
close_from(int first)
{
    DIR *entries;
    struct dirent *entry;

#ifdef SYS_close_range
    if (syscall(SYS_close_range, first, ~0u, 0) == 0)
        return;
#endif
    entries = opendir("/proc/self/fd");
    if (!entries)
        return;
    while ((entry = readdir(entries))) {
        int fd = atoi(entry->d_name); /* "." and ".." are 0, which is kept */
        if (fd >= first && fd != dirfd(entries))
            close(fd);
    }
    closedir(entries);
}

/* Where the pattern names a program, a limit of 0 is not looked at, but 1 stops the dump; where it
 * names a file, both do, and 0 is what everyone expects to see. */
static rlim_t
core_limit(void)
{
    char first = 0;
    int fd = open("/proc/sys/kernel/core_pattern", O_RDONLY | O_CLOEXEC);

    if (fd >= 0) {
        if (read(fd, &first, 1) != 1)
            first = 0;
        close(fd);
    }
    return first == '|' ? 1 : 0;
}

/* Ends the watch's system call, and does nothing else. */
static void
ignore(int signum)
{
    (void)signum;
}

/* 0, or -1 and errno. */
static int
set_up(struct supervisor *self, pid_t kernel)
{
    static const int ignored[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGUSR2};
    struct sigaction wake = {.sa_handler = ignore};
    sigset_t child_signal, blocked;

    memset(self, 0, sizeof *self);
    self->pid = getpid();
    self->look_ms = -1;
    close_from(SUPERVISOR_CONTROL_FD + 1);
    prctl(PR_SET_NAME, "isolation-sup");
    for (size_t i = 0; i < sizeof ignored / sizeof *ignored; i++)
        signal(ignored[i], SIG_IGN);
    sigaction(SIGUSR1, &wake, NULL); /* only the watch does not block it */
    if (chdir("/") < 0)              /* keep no file system busy */
        return -1;
    self->core_limit = core_limit();

    if (prctl(PR_SET_CHILD_SUBREAPER, 1) < 0)
        return -1;
    sigemptyset(&child_signal);
    sigaddset(&child_signal, SIGCHLD);
    blocked = child_signal;
    sigaddset(&blocked, SIGUSR1);
    if (sigprocmask(SIG_BLOCK, &blocked, NULL) < 0)
        return -1;
    self->signals = signalfd(-1, &child_signal, SFD_CLOEXEC | SFD_NONBLOCK);
    self->watch.ended = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (self->signals < 0 || self->watch.ended < 0)
        return -1;
    if (fcntl(SUPERVISOR_CONTROL_FD, F_SETFD, FD_CLOEXEC) < 0)
        return -1;

    /* The lifeline does not close while a forked copy of the kernel holds a duplicate of it, so the
     * kernel's process is watched as well. */
    self->kernel = -1;
#ifdef SYS_pidfd_open
    self->kernel = (int)syscall(SYS_pidfd_open, kernel, 0);
#endif
    if (getppid() != kernel) { /* dead already; a reused pid must not be watched */
        errno = ESRCH;
        return -1;
    }
    return 0;
}

/* ---- the child's end, before it can be reaped ----------------------------------------------- */

/* The kernel (of the operating system) says that a process has ended when its memory is taken down,
 * which takes some 60 ms for each GB. But first it lets go of the robust futexes that its threads
 * hold, and of these there is one in the shared page. */
static void *
watch_main(void *argument)
{
    struct watch *self = argument;
    const _Atomic uint32_t *alive = &self->page->alive;
    sigset_t wake;

    sigemptyset(&wake);
    sigaddset(&wake, SIGUSR1);
    pthread_sigmask(SIG_UNBLOCK, &wake, NULL);
    while (!atomic_load(&self->stop)) {
        uint32_t seen = atomic_load(alive);
        if (seen & FUTEX_OWNER_DIED)
            break;
        if (syscall(SYS_futex, alive, FUTEX_WAIT, seen, NULL, NULL, 0) < 0 && errno != EAGAIN &&
            errno != EINTR)
            break;
    }
    eventfd_write(self->ended, 1);
    return NULL;
}

static void
watch_stop(struct watch *self)
{
    struct pollfd ended = {.fd = self->ended, .events = POLLIN};
    eventfd_t count;

    if (!self->running)
        return;
    atomic_store(&self->stop, 1);
    /* A signal ends the wait, whatever the child does to the futex; one that comes just before the
     * wait does not, and has to be sent again. */
    while (poll(&ended, 1, 0) == 0) {
        pthread_kill(self->thread, SIGUSR1);
        poll(&ended, 1, 1);
    }
    pthread_join(self->thread, NULL);
    eventfd_read(self->ended, &count);
    munmap((void *)self->page, sysconf(_SC_PAGESIZE));
    self->running = 0;
}

/* Where it cannot be, the child's end is only seen later. */
static void
watch_start(struct watch *self, int shared)
{
    struct shared_page *page = mmap(NULL, sysconf(_SC_PAGESIZE), PROT_READ, MAP_SHARED, shared, 0);

    if (page == MAP_FAILED)
        return;
    self->page = page;
    atomic_store(&self->stop, 0);
    self->running = pthread_create(&self->thread, NULL, watch_main, self) == 0;
    if (!self->running)
        munmap(page, sysconf(_SC_PAGESIZE));
}

/* Reads what the system says about a process. Returns where its third field begins, NULL if there
 * is none. */
static const char *
read_stat(pid_t pid, char *text, size_t size)
{
    char path[64];
    ssize_t n;
    int fd;

    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    n = read(fd, text, size - 1);
    close(fd);
    if (n <= 0)
        return NULL;
    text[n] = 0;
    /* "pid (name) state parent ...", and the name may hold anything */
    char *name_end = strrchr(text, ')');
    return name_end && name_end[1] == ' ' ? name_end + 2 : NULL;
}

/* Has that task, or is there no such task? EACCES, where the system does not let us look, is no. */
static int
has_no_program(const char *task)
{
    char path[80], text[1];

    snprintf(path, sizeof path, "%s/exe", task);
    return readlink(path, text, sizeof text) < 0 && errno == ENOENT;
}

/* Has a process of ours begun to end, and how? Then none of its threads has a program any more,
 * since that goes when its memory begins to be taken down. One thread that still has one may be on
 * the way to another: an exec ends all others first, the main one too, and then takes over the
 * number of that one. Its own has gone by then; so the main one is looked at last. */
static int
has_ended(pid_t pid, int *status)
{
    char path[64], text[1024];
    struct dirent *thread;
    int ended = 1;

    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *threads = opendir(path);
    if (!threads)
        return 0;
    while (ended && (thread = readdir(threads))) {
        snprintf(path, sizeof path, "/proc/%d/task/%.16s", pid, thread->d_name);
        ended = thread->d_name[0] == '.' || has_no_program(path);
    }
    closedir(threads);
    snprintf(path, sizeof path, "/proc/%d", pid);
    ended = ended && has_no_program(path);

    const char *field = ended ? read_stat(pid, text, sizeof text) : NULL;
    for (int i = 3; field && i < 52; i++)
        if ((field = strchr(field, ' ')))
            field++;
    return field && sscanf(field, "%d", status) == 1 &&
           (WIFEXITED(*status) || WIFSIGNALED(*status));
}

static void
process_makes_way(pid_t pid)
{
    char path[64];
    struct dirent *thread;
    DIR *threads;

    snprintf(path, sizeof path, "/proc/%d/task", pid);
    threads = opendir(path);
    while (threads && (thread = readdir(threads)))
        if (thread->d_name[0] != '.')
            make_way(atoi(thread->d_name));
    if (threads)
        closedir(threads);
}

/* ---- reaping ------------------------------------------------------------------------------- */

/* A kernel that does not listen any more is noticed at the lifeline, not here. */
static void
report(const struct report *report)
{
    (void)fdpass_send(SUPERVISOR_CONTROL_FD, report, sizeof *report, NULL, 0, 0);
}

static void
report_end(const struct supervisor *self, enum report_type type, int status,
           const struct rusage *usage, double cpu)
{
    struct report message = {.type = type, .life = self->life, .pid = self->child, .cpu = cpu};

    if (usage)
        message.usage = *usage;
    if (WIFEXITED(status)) {
        message.code = CLD_EXITED;
        message.status = WEXITSTATUS(status);
    }
    else {
        message.code = WCOREDUMP(status) ? CLD_DUMPED : CLD_KILLED;
        message.status = WTERMSIG(status);
    }
    report(&message);
}

/* From now on there is no child. */
static void
forget_child(struct supervisor *self)
{
    watch_stop(&self->watch);
    self->look_ms = -1;
    self->child = 0;
}

/* The watch is over: reports how the child ends if it does. The other threads may need a moment
 * more. It may also have become another program, or play with the futex: then its end is seen when
 * it is reaped, and this looks ever more rarely. */
static void
look(struct supervisor *self, int again)
{
    int status;

    if (has_ended(self->child, &status)) {
        report_end(self, REPORT_ENDING, status, NULL, -1);
        kill(self->child, SIGKILL); /* whatever its threads were when they were looked at */
        process_makes_way(self->child);
        self->look_ms = -1;
    }
    else if (again && self->look_ms < 1 << 20)
        self->look_ms *= 2;
}

/* Seconds of processor time of a process that has ended and is not reaped, -1 if nobody tells. The
 * usage that wait4() gives includes the sub-processes that it has waited for; its limit does not.
 */
static double
cpu_of(pid_t pid)
{
    char text[1024];
    const char *field = read_stat(pid, text, sizeof text);
    unsigned long user, system;

    for (int i = 3; field && i < 14; i++)
        if ((field = strchr(field, ' ')))
            field++;
    if (!field || sscanf(field, "%lu %lu", &user, &system) != 2)
        return -1;
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

/* Reaps whatever has ended, and reports it if it was the child. 1 if other children are left. */
static int
reap(struct supervisor *self)
{
    struct signalfd_siginfo drained[8];
    struct rusage usage;
    int status;

    while (read(self->signals, drained, sizeof drained) > 0)
        ;
    for (;;) {
        siginfo_t ended = {0};
        if (waitid(P_ALL, 0, &ended, WEXITED | WNOHANG | WNOWAIT | __WALL) < 0)
            return 0;
        pid_t pid = ended.si_pid;
        if (pid == 0)
            return 1;
        double cpu = pid == self->child ? cpu_of(pid) : -1;
        if (wait4(pid, &status, WNOHANG | __WALL, &usage) != pid)
            return 1;
        if (pid == self->held) {
            self->held = 0;
            report(&(struct report){.type = REPORT_RELEASED, .pid = pid});
        }
        else if (pid == self->spare) {
            self->spare = 0;
        }
        else if (pid == self->child) {
            report_end(self, REPORT_EXIT, status, &usage, cpu);
            forget_child(self);
        }
    }
}

/* ---- killing ------------------------------------------------------------------------------- */

static pid_t
parent_of(pid_t pid)
{
    char text[512];
    const char *field = read_stat(pid, text, sizeof text);
    pid_t parent;

    return field && sscanf(field, "%*c %d", &parent) == 1 ? parent : -1;
}

/* Our own children keep their pids until we reap them. Others are reaped by their parents at any
 * moment, so the pid is pinned first and then seen to be what it was. Where that is not possible,
 * nothing is lost: they become our children when their parents die. */
static void
kill_descendant(const struct supervisor *self, pid_t pid, pid_t parent)
{
    if (parent == self->pid) {
        kill(pid, SIGKILL);
        return;
    }
#if defined SYS_pidfd_open && defined SYS_pidfd_send_signal
    int pinned = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pinned < 0)
        return;
    fcntl(pinned, F_SETFD, FD_CLOEXEC);
    pid_t now = parent_of(pid);
    if (now == parent || now == self->pid)
        syscall(SYS_pidfd_send_signal, pinned, SIGKILL, NULL, 0);
    close(pinned);
#endif
}

/* Kills the descendants of a process, but for `spared` (0: none), what is held, the spare, and
 * theirs; each before its own children, so that it makes no more. Returns how many there were that
 * had not ended: what only has memory to be taken down is not worth waiting for. */
static int
kill_below(const struct supervisor *self, pid_t parent, pid_t spared, int depth)
{
    char path[128];
    DIR *tasks;
    struct dirent *task;
    int count = 0;

    snprintf(path, sizeof path, "/proc/%d/task", parent);
    tasks = opendir(path);
    if (!tasks)
        return 0;
    while ((task = readdir(tasks))) {
        if (task->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/%d/task/%.16s/children", parent, task->d_name);
        FILE *children = fopen(path, "re");
        if (!children)
            continue;
        pid_t pid;
        while (fscanf(children, "%d", &pid) == 1) {
            if (pid == spared || pid == self->held || pid == self->spare)
                continue;
            int status;
            count += !has_ended(pid, &status);
            kill_descendant(self, pid, parent);
            if (depth > 1)
                count += kill_below(self, pid, spared, depth - 1);
        }
        fclose(children);
    }
    closedir(tasks);
    return count;
}

/* Kills until nothing runs but what is held and the spare; with `reaped` until there is nothing at
 * all. One pass is not enough: the list is not a snapshot, and orphans of the killed come to us.
 * Gives up after a time, when all that is left cannot react. */
static void
kill_all(struct supervisor *self, long limit_ms, int reaped)
{
    long deadline = milliseconds() + limit_ms;
    int pause = 1;

    while (reap(self)) {
        int count = kill_below(self, self->pid, 0, WALK_DEPTH);
        if ((count == 0 && !reaped) || milliseconds() >= deadline)
            return;
        struct pollfd death = {.fd = self->signals, .events = POLLIN};
        poll(&death, 1, pause);
        pause = pause < 32 ? pause * 2 : pause;
    }
}

/* The child of this life leaves it as it stands. */
static void
hold_child(struct supervisor *self)
{
    if (self->child == 0 || self->held != 0)
        return;
    self->held = self->child;
    forget_child(self);
}

static void
release_held(const struct supervisor *self)
{
    if (self->held == 0)
        return;
    kill(-self->held, SIGKILL);
    kill(self->held, SIGKILL);
}

static void
kill_child(const struct supervisor *self, int signal)
{
    if (self->child == 0)
        return;
    if (signal == SIGKILL)
        kill(-self->child, SIGKILL);
    kill(self->child, signal); /* also where it has left the group that it was put into */
}

/* ---- starting ------------------------------------------------------------------------------ */

/* What to execute; the strings point into the mapping. */
struct spec {
    void *mapping;
    size_t size;
    char **argv; /* one allocation, argv and then envp */
    char **envp;
    char *cwd;
};

static void
spec_free(struct spec *self)
{
    if (self->mapping != MAP_FAILED)
        munmap(self->mapping, self->size);
    free(self->argv);
}

/* 0, or an errno; spec_free() either way. */
static int
spec_read(struct spec *self, const struct command *command, int fd)
{
    size_t strings = (size_t)command->argc + command->envc + 1;
    struct stat facts;

    memset(self, 0, sizeof *self);
    self->mapping = MAP_FAILED;
    self->size = command->size;
    if (fstat(fd, &facts) < 0)
        return errno;
    if (command->argc == 0 || strings > command->size || (uint64_t)facts.st_size != command->size)
        return EPROTO;
    self->mapping = mmap(NULL, self->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (self->mapping == MAP_FAILED)
        return errno;
    self->argv = calloc(strings + 2, sizeof *self->argv);
    if (!self->argv)
        return ENOMEM;
    self->envp = self->argv + command->argc + 1;

    char *next = self->mapping, *end = next + self->size;
    for (size_t i = 0; i < strings; i++) {
        char *nul = memchr(next, 0, end - next);
        if (!nul)
            return EPROTO;
        if (i < command->argc)
            self->argv[i] = next;
        else if (i < (size_t)command->argc + command->envc)
            self->envp[i - command->argc] = next;
        else
            self->cwd = next;
        next = nul + 1;
    }
    return 0;
}

/* Moves a descriptor out of the way of the child's fixed ones. */
static int
move_up(int fd)
{
    return fcntl(fd, F_DUPFD_CLOEXEC, 10);
}

/* In the child: puts the descriptors where they belong; those that are -1 it does not get, and of
 * stdout and stderr it keeps the supervisor's. All others are close-on-exec. */
static int
place_descriptors(const int *fds)
{
    static const struct {
        int from, to;
    } places[] = {
        {START_OUT, 1},
        {START_ERR, 2},
        {START_PASS, CHILD_FD_PASS},
        {START_SHARED, CHILD_FD_SHARED},
        {START_ALARM, CHILD_FD_ALARM},
    };
    int moved[START_FDS];

    /* All are moved before the first is placed, or one would overwrite another. */
    for (int i = 0; i < START_FDS; i++)
        if ((moved[i] = fds[i] < 0 ? -1 : move_up(fds[i])) < 0 && fds[i] >= 0)
            return -1;
    for (size_t i = 0; i < sizeof places / sizeof *places; i++)
        if (moved[places[i].from] >= 0 && dup2(moved[places[i].from], places[i].to) < 0)
            return -1;
    return 0; /* 0 stays /dev/null, which the supervisor has there too */
}

/* In the child: a limit that nobody there may raise, `more` above the one that warns. A lower one
 * that stands already is kept. */
static int
set_limit(int resource, rlim_t value, rlim_t more)
{
    struct rlimit limit;

    if (getrlimit(resource, &limit) < 0)
        return -1;
    limit.rlim_max = limit.rlim_max < value + more ? limit.rlim_max : value + more;
    limit.rlim_cur = limit.rlim_max < value ? limit.rlim_max : value;
    return setrlimit(resource, &limit);
}

/* In the child. 0, or -1 and errno. */
static int
apply_limits(const struct process_limits *limits)
{
    /* Not RLIMIT_AS: what is only reserved counts there too, and each thread reserves 64 MB. */
    if (limits->memory && set_limit(RLIMIT_DATA, limits->memory, 0) < 0)
        return -1;
    /* First SIGXCPU, which says what happened; to one that ignores it SIGKILL, so much later that
     * the process can be seen to have been beyond the first. */
    if (limits->cpu && set_limit(RLIMIT_CPU, limits->cpu, 1 + limits->cpu / 4) < 0)
        return -1;
    if (limits->nice) {
        errno = 0;
        int now = getpriority(PRIO_PROCESS, 0);
        if (errno != 0 || setpriority(PRIO_PROCESS, 0, now + limits->nice) < 0)
            return -1;
    }
    return 0;
}

/* In the child: from the fork to the exec. Returns, with errno, only if that fails. */
static void
become_child(const struct supervisor *self, const struct command *command, const struct spec *spec,
             const int *fds)
{
    struct rlimit core;
    sigset_t none;

    if (setpgid(0, 0) < 0)
        return;
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        return;
    if (getppid() != self->pid) /* it died before the line above, and there will be no signal */
        raise(SIGKILL);
    /* Python leaves SIGINT ignored where it was ignored before. */
    for (int signum = 1; signum <= SIGRTMAX; signum++)
        signal(signum, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (getrlimit(RLIMIT_CORE, &core) == 0) {
        /* Who asks for core dumps wants them, whatever the usual limit is. */
        core.rlim_cur = command->keep_core || core.rlim_max < self->core_limit ? core.rlim_max
                                                                               : self->core_limit;
        setrlimit(RLIMIT_CORE, &core);
    }
    if (apply_limits(&command->limits) < 0)
        return;
    if (place_descriptors(fds) < 0)
        return;
    if (*spec->cwd && chdir(spec->cwd) < 0)
        return;
    execve(spec->argv[0], spec->argv, spec->envp);
}

/* Forks and executes; sets *pid. 0, or an errno; what failed to execute is reaped like any orphan.
 */
static int
launch(const struct supervisor *self, const struct command *command, const struct spec *spec,
       const int *fds, pid_t *pid)
{
    int failure[2] = {-1, -1}; /* closed by a successful exec, else carries its errno */
    int error = 0;

    if (pipe2(failure, O_CLOEXEC) < 0)
        return errno;
    *pid = fork();
    if (*pid == 0) {
        int high = move_up(failure[1]);
        if (high >= 0)
            become_child(self, command, spec, fds);
        error = errno;
        if (high < 0 || write(high, &error, sizeof error) < 0)
            _exit(126);
        _exit(127);
    }
    if (*pid < 0) {
        error = errno;
        close(failure[1]);
    }
    else {
        close(failure[1]);
        ssize_t n = read(failure[0], &error, sizeof error);
        if (n != 0 && n != sizeof error)
            error = EIO;
    }
    close(failure[0]);
    return error;
}

/* Closes the descriptors, before the report: from then on only the child holds its ends. */
static void
start(struct supervisor *self, const struct command *command, const int *fds, int nfds)
{
    struct report answer = {.type = REPORT_FAILED, .life = command->life};
    struct spec spec = {.mapping = MAP_FAILED};
    pid_t pid = 0;

    if (self->child) /* of the last life; killed, and cannot be reaped yet */
        forget_child(self);
    if (nfds != START_FDS)
        answer.status = EPROTO;
    else
        answer.status = spec_read(&spec, command, fds[START_SPEC]);
    if (answer.status == 0)
        answer.status = launch(self, command, &spec, fds, &pid);
    if (answer.status == 0) {
        self->child = pid;
        self->life = command->life;
        watch_start(&self->watch, fds[START_SHARED]);
        answer.type = REPORT_STARTED;
        answer.pid = pid;
    }
    spec_free(&spec);
    close_all(fds, nfds);
    report(&answer);
}

/* A process that gets its descriptors when it is adopted. */
static void
start_spare(struct supervisor *self, const struct command *command, int *fds, int nfds)
{
    struct spec spec = {.mapping = MAP_FAILED};
    int line = nfds == 2 ? fds[1] : -1;
    pid_t pid = 0;

    if (self->spare)
        kill(self->spare, SIGKILL);
    for (int i = 1; i < START_FDS; i++)
        fds[i] = -1;
    fds[START_PASS] = line;
    if (nfds == 2 && spec_read(&spec, command, fds[START_SPEC]) == 0 &&
        launch(self, command, &spec, fds, &pid) == 0)
        self->spare = pid;
    spec_free(&spec);
    close_all(fds, nfds == 2 ? 1 : nfds);
    if (line >= 0)
        close(line); /* whoever has the other end sees if there is no spare */
}

/* A frozen copy of the last life's child takes over: what else is left of that life ends. */
static void
adopt(struct supervisor *self, const struct command *command, const int *fds, int nfds)
{
    struct report answer = {.type = REPORT_FAILED, .life = command->life, .pid = command->pid};

    if (nfds != 1)
        answer.status = EPROTO;
    else if (command->pid <= 0 || parent_of(command->pid) != self->pid)
        answer.status = ESRCH;
    else {
        /* Twice: an orphan may come to us while we look elsewhere. */
        for (int i = 0; i < 2; i++)
            kill_below(self, self->pid, command->pid, WALK_DEPTH);
        forget_child(self);
        if (self->spare == command->pid)
            self->spare = 0;
        self->child = command->pid;
        self->life = command->life;
        watch_start(&self->watch, fds[0]);
        answer.type = REPORT_STARTED;
    }
    close_all(fds, nfds);
    report(&answer);
}

/* ---- the loop ------------------------------------------------------------------------------ */

/* Takes one command. -1 at the end of the lifeline. */
static int
obey(struct supervisor *self)
{
    struct command command;
    int fds[START_FDS];
    int nfds = START_FDS;
    ssize_t n = fdpass_recv(SUPERVISOR_CONTROL_FD, &command, sizeof command, fds, &nfds, 0);

    if (n != sizeof command || command.protocol != SUPERVISOR_PROTOCOL) {
        if (n > 0)
            fprintf(stderr, "isolation-sup: a kernel of another version\n");
        close_all(fds, nfds);
        return -1;
    }
    switch (command.type) {
    case COMMAND_START:
        start(self, &command, fds, nfds);
        return 0;
    case COMMAND_ADOPT:
        adopt(self, &command, fds, nfds);
        return 0;
    case COMMAND_KILL:
        if (command.life == self->life)
            kill_child(self, command.signal);
        break;
    case COMMAND_HOLD:
        if (command.life == self->life)
            hold_child(self);
        break;
    case COMMAND_RELEASE:
        release_held(self);
        break;
    case COMMAND_SPARE:
        start_spare(self, &command, fds, nfds);
        return 0;
    case COMMAND_END:
        kill_all(self, END_LIFE_MS, 0);
        break;
    }
    close_all(fds, nfds);
    return 0;
}

int
main(int argc, char **argv)
{
    struct supervisor self;

    if (argc != 2) {
        fprintf(stderr, "isolation-sup: started by ipython_isolation only\n");
        return 2;
    }
    if (set_up(&self, (pid_t)atol(argv[1])) < 0) {
        if (errno != ESRCH)
            fprintf(stderr, "isolation-sup: %s\n", strerror(errno));
        return 1;
    }
    for (;;) {
        struct pollfd fds[] = {
            {.fd = self.signals, .events = POLLIN},
            {.fd = SUPERVISOR_CONTROL_FD, .events = POLLIN},
            {.fd = self.kernel, .events = POLLIN},
            {.fd = self.watch.ended, .events = POLLIN},
        };
        int n = poll(fds, 4, self.look_ms);
        if (n < 0 && errno != EINTR)
            break;
        if (fds[0].revents)
            reap(&self); /* before a command, which could mean the pid that this frees */
        if (fds[3].revents && self.watch.running) { /* there still is that child */
            watch_stop(&self.watch);
            self.look_ms = 1;
        }
        if (self.look_ms >= 0)
            look(&self, n == 0);
        if (fds[1].revents && obey(&self) < 0)
            break;
        if (fds[2].revents)
            break;
    }
    self.held = self.spare = 0;
    kill_all(&self, END_ALL_MS, 1);
    _exit(0);
}
