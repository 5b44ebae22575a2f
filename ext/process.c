#define _GNU_SOURCE
#include "process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "fdpass.h"
#include "freeze.h"
#include "notice.h"
#include "supervisor.h"

/* The supervisor needs milliseconds for its last work; after this it is killed. */
#define CLOSE_LIMIT_MS 1000

/* A copy says that it is there within a millisecond or two. */
#define BIRTH_LIMIT_MS 1000

enum life_state {
    LIFE_NONE, /* none yet, or it could not be started */
    LIFE_STARTING,
    LIFE_RUNNING,
    LIFE_OVER,
};

struct process {
    pid_t owner; /* the process that opened it; a forked copy of that is none */
    char *supervisor_path;
    uint32_t life; /* numbers the lives, so that a late report is not taken for one of the next */

    struct process_limits limits; /* of the lives to come */

    /* Of this life, changed only by the thread that starts and ends it; -1 and NULL if closed. */
    int out, err, fdpass, alarm, dead;
    int output;       /* epoll of out and err */
    notice *news;     /* of the same, or NULL */
    bool looked;      /* there was nothing when `output` was last asked */
    int alarm_writer; /* kept so that the alarm never hangs up, which would wake waiters for good */
    struct shared_page *shared;

    /* What the supervisor reports, and the socket that it reports on. */
    pthread_mutex_t lock;
    pid_t supervisor; /* 0: none, or reaped */
    int control;
    int lost; /* the supervisor closed its end: it was killed */
    enum life_state state;
    int start_error; /* errno of a failed start */
    pid_t pid;
    struct process_exit exit;
    pid_t held; /* a crashed child that is kept, 0: none */
};

static void
close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

static long
milliseconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* poll() of one descriptor that is not cut short by signals: nonzero if it has an event (or has
 * hung up, which is never masked), 0 after the time. */
static int
poll_one(int fd, short events, long timeout_ms)
{
    struct pollfd item = {.fd = fd, .events = events};
    long deadline = milliseconds() + timeout_ms;
    int n;

    while ((n = poll(&item, 1, (int)timeout_ms)) < 0 && errno == EINTR)
        if (timeout_ms >= 0) {
            timeout_ms = deadline - milliseconds();
            if (timeout_ms < 0)
                return 0;
        }
    return n;
}

/* ---- the supervisor ------------------------------------------------------------------------ */

/* 0, or an errno. */
static int
spawn(const char *path, int control, pid_t *pid)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t all, none;
    char kernel[16], name[] = "isolation-sup";
    char *argv[] = {name, kernel, NULL};
    /* Nothing of the kernel's environment is for the supervisor, LD_PRELOAD least of all. */
    char *envp[] = {NULL};
    int error;

    snprintf(kernel, sizeof kernel, "%d", getpid());
    sigfillset(&all);
    sigemptyset(&none);
    error = posix_spawn_file_actions_init(&actions);
    if (error)
        return error;
    error = posix_spawnattr_init(&attributes);
    if (error)
        goto free_actions;

    /* Every other descriptor the supervisor closes itself, at once. The control socket comes first:
     * it may be 0 or 1 where the kernel has no stdin or stdout. */
    error = posix_spawn_file_actions_adddup2(&actions, control, SUPERVISOR_CONTROL_FD);
    if (!error)
        error = posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    if (!error)
        error = posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
    if (!error)
        error = posix_spawnattr_setsigdefault(&attributes, &all);
    if (!error)
        error = posix_spawnattr_setsigmask(&attributes, &none);
    if (!error)
        error = posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGDEF |
                                                          POSIX_SPAWN_SETSIGMASK);
    if (!error)
        error = posix_spawn(pid, path, &actions, &attributes, argv, envp);

    posix_spawnattr_destroy(&attributes);
free_actions:
    posix_spawn_file_actions_destroy(&actions);
    return error;
}

/* 0, or -1 and errno. */
static int
start_supervisor(process *self)
{
    int ends[2];
    pid_t pid;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return -1;
    int error = spawn(self->supervisor_path, ends[1], &pid);
    close(ends[1]);
    if (error) {
        close(ends[0]);
        errno = error;
        return -1;
    }
    pthread_mutex_lock(&self->lock);
    self->supervisor = pid;
    self->control = ends[0];
    self->lost = 0;
    pthread_mutex_unlock(&self->lock);
    return 0;
}

/* Lets the supervisor kill all below it and exit; reaps it. Kills it if it does not exit. */
static void
stop_supervisor(process *self)
{
    static const struct timespec pause = {.tv_nsec = 1000000};
    int gone;

    if (self->supervisor == 0)
        return;
    /* Not close(): a forked copy of this process may hold a duplicate. */
    shutdown(self->control, SHUT_WR);
    gone = poll_one(self->control, 0, CLOSE_LIMIT_MS);
    /* The socket closes a moment before the process can be reaped. (Where it is not ours to reap,
     * because SIGCHLD is ignored or somebody waits for all children, this is ECHILD.) */
    for (int i = 0; gone && i < 100; i++) {
        if (waitpid(self->supervisor, NULL, WNOHANG) != 0)
            goto reaped;
        nanosleep(&pause, NULL);
    }
    kill(self->supervisor, SIGKILL);
    while (waitpid(self->supervisor, NULL, 0) < 0 && errno == EINTR)
        ;
reaped:
    self->supervisor = 0;
    close_fd(&self->control);
}

/* ---- reports ------------------------------------------------------------------------------- */

/* Wakes all that wait on process_dead_fd(). The lock is held. */
static void
set_over(process *self)
{
    self->state = LIFE_OVER;
    if (self->dead >= 0)
        (void)eventfd_write(self->dead, 1);
}

/* The lock is held. */
static void
take_report(process *self, const struct report *report)
{
    if (report->type == REPORT_RELEASED) {
        if (report->pid == self->held)
            self->held = 0;
        return;
    }
    if (report->life != self->life)
        return;
    switch (report->type) {
    case REPORT_STARTED:
        self->pid = report->pid;
        self->state = LIFE_RUNNING;
        break;
    case REPORT_FAILED:
        self->start_error = report->status;
        self->state = LIFE_NONE;
        break;
    case REPORT_ENDING:
    case REPORT_EXIT:
        self->exit = (struct process_exit){
            .known = 1,
            .pid = report->pid,
            .code = report->code,
            .status = report->status,
            .reaped = report->type == REPORT_EXIT,
            .usage = report->usage,
            .cpu = report->cpu,
        };
        set_over(self);
        break;
    }
}

/* The lock is held. */
static void
take_reports(process *self)
{
    struct report report;
    ssize_t n;

    if (self->control < 0 || self->lost)
        return;
    while ((n = fdpass_recv(self->control, &report, sizeof report, NULL, NULL, MSG_DONTWAIT)) ==
           sizeof report)
        take_report(self, &report);
    if (n < 0 && errno == EAGAIN)
        return;
    /* End of file. The child dies with its supervisor (PR_SET_PDEATHSIG). */
    self->lost = 1;
    if (self->state == LIFE_STARTING) {
        self->start_error = EPIPE;
        self->state = LIFE_NONE;
    }
    else if (self->state == LIFE_RUNNING) {
        set_over(self);
    }
}

int
process_update(process *self)
{
    pthread_mutex_lock(&self->lock);
    take_reports(self);
    int over = self->state == LIFE_OVER;
    pthread_mutex_unlock(&self->lock);
    return over;
}

struct process_exit
process_exit_info(process *self)
{
    pthread_mutex_lock(&self->lock);
    struct process_exit info = self->exit;
    pthread_mutex_unlock(&self->lock);
    return info;
}

int
process_wait_exit(process *self, int timeout_ms)
{
    long deadline = milliseconds() + timeout_ms;

    for (;;) {
        pthread_mutex_lock(&self->lock);
        take_reports(self);
        int settled = self->exit.known || self->lost || self->state == LIFE_NONE;
        int over = self->state == LIFE_OVER;
        pthread_mutex_unlock(&self->lock);
        if (settled)
            return 1;

        long left = timeout_ms < 0 ? -1 : deadline - milliseconds();
        if (timeout_ms >= 0 && left <= 0)
            return 0;
        /* Another thread may take the report off the socket; then the eventfd wakes this one. It
         * cannot where the life was ended before its exit was reported: look again now and then. */
        if (over && (left < 0 || left > 10))
            left = 10;
        struct pollfd fds[] = {
            {.fd = self->control, .events = POLLIN},
            {.fd = over ? -1 : self->dead, .events = POLLIN},
        };
        poll(fds, 2, (int)left);
    }
}

/* Another supervisor if the present one was killed. 0, or -1 and errno. */
static int
need_supervisor(process *self)
{
    pthread_mutex_lock(&self->lock);
    take_reports(self);
    int lost = self->lost;
    pthread_mutex_unlock(&self->lock);
    if (lost)
        stop_supervisor(self);
    return self->supervisor == 0 ? start_supervisor(self) : 0;
}

/* ---- commands ------------------------------------------------------------------------------ */

/* To the child of this life. 0, or -1 and errno. */
static int
command_life(process *self, enum command_type type, int signal)
{
    struct command command = {
        .protocol = SUPERVISOR_PROTOCOL,
        .type = type,
        .life = self->life,
        .signal = signal,
    };

    return fdpass_send(self->control, &command, sizeof command, NULL, 0, 0);
}

int
process_kill(process *self, int sig)
{
    int result = -1;

    if (getpid() != self->owner) {
        errno = EPERM;
        return -1;
    }
    pthread_mutex_lock(&self->lock);
    take_reports(self);
    if (self->state == LIFE_RUNNING)
        result = command_life(self, COMMAND_KILL, sig);
    else
        errno = ESRCH;
    pthread_mutex_unlock(&self->lock);
    return result;
}

int
process_alive(process *self)
{
    char path[40], program[1];
    pid_t pid = process_pid(self);

    /* The kernel lets go of a process's memory, and with it of its program, before its descriptors.
     */
    snprintf(path, sizeof path, "/proc/%d/exe", (int)pid);
    return pid > 0 && (readlink(path, program, sizeof program) >= 0 || errno == EACCES);
}

int
process_hold(process *self)
{
    int held = 0;

    pthread_mutex_lock(&self->lock);
    take_reports(self);
    if (getpid() == self->owner && self->state == LIFE_RUNNING && !self->held &&
        command_life(self, COMMAND_HOLD, 0) == 0) {
        self->held = self->pid;
        set_over(self);
        held = 1;
    }
    pthread_mutex_unlock(&self->lock);
    return held;
}

void
process_release(process *self)
{
    pthread_mutex_lock(&self->lock);
    take_reports(self);
    if (getpid() == self->owner && self->held && !self->lost)
        (void)command_life(self, COMMAND_RELEASE, 0);
    pthread_mutex_unlock(&self->lock);
}

pid_t
process_held(process *self)
{
    pthread_mutex_lock(&self->lock);
    take_reports(self);
    if (self->lost)
        self->held = 0; /* it has ended with the supervisor */
    pid_t held = self->held;
    pthread_mutex_unlock(&self->lock);
    return held;
}

/* ---- one life ------------------------------------------------------------------------------ */

/* Of the memfd: the shared page, and the record of a death. */
static size_t
shared_size(void)
{
    size_t page = sysconf(_SC_PAGESIZE);

    return page + (sizeof(struct record) + page - 1) / page * page;
}

/* A memfd of the shared page and the record, mapped to *page. -1 and errno. */
static int
make_shared(struct shared_page **page)
{
    size_t size = shared_size();
    int fd = memfd_create("isolation-shared", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return -1;
    if (ftruncate(fd, size) < 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        goto error;
    *page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (*page == MAP_FAILED)
        goto error;
    (*page)->magic = SHARED_MAGIC;
    (*page)->version = SHARED_VERSION;
    return fd;
error:
    *page = NULL;
    close(fd);
    return -1;
}

static int
write_string(FILE *file, const char *text)
{
    return fwrite(text, strlen(text) + 1, 1, file) == 1 ? 0 : -1;
}

/* A memfd of what to execute, laid out as struct command says; completes the command. -1 and
 * errno. */
static int
make_spec(struct command *command, char *const argv[], char *const envp[], const char *cwd)
{
    int fd = memfd_create("isolation-spec", MFD_CLOEXEC);
    int copy = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
    FILE *file = copy < 0 ? NULL : fdopen(copy, "w");
    int failed;
    long size;

    if (!file)
        goto error;
    for (command->argc = 0; argv[command->argc]; command->argc++)
        if (write_string(file, argv[command->argc]) < 0)
            goto error;
    for (command->envc = 0; envp[command->envc]; command->envc++)
        if (write_string(file, envp[command->envc]) < 0)
            goto error;
    if (write_string(file, cwd ? cwd : "") < 0 || (size = ftell(file)) < 0)
        goto error;
    command->size = size;
    failed = fclose(file);
    file = NULL;
    copy = -1;
    if (failed)
        goto error;
    return fd;
error:
    if (file)
        fclose(file);
    else
        close_fd(&copy);
    close_fd(&fd);
    return -1;
}

/* Opens both ends of what connects kernel and child. -1 and errno; the caller closes either way. */
static int
open_life(process *self, int child[START_FDS])
{
    int pair[2];

    if (pipe2(pair, O_CLOEXEC) < 0)
        return -1;
    self->out = pair[0];
    child[START_OUT] = pair[1];
    if (pipe2(pair, O_CLOEXEC) < 0)
        return -1;
    self->err = pair[0];
    child[START_ERR] = pair[1];
    /* Only our ends: the child's stdout is to block when the pipe is full. */
    if (fcntl(self->out, F_SETFL, O_NONBLOCK) < 0 || fcntl(self->err, F_SETFL, O_NONBLOCK) < 0)
        return -1;
    struct epoll_event readable = {.events = EPOLLIN};
    self->output = epoll_create1(EPOLL_CLOEXEC);
    if (self->output < 0 || epoll_ctl(self->output, EPOLL_CTL_ADD, self->out, &readable) < 0 ||
        epoll_ctl(self->output, EPOLL_CTL_ADD, self->err, &readable) < 0)
        return -1;
    self->news = notice_new((const int[]){self->out, self->err}, 2);
    self->looked = false;

    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return -1;
    self->fdpass = pair[0];
    child[START_PASS] = pair[1];

    /* A signal handler writes to it, which must never block. */
    if (pipe2(pair, O_CLOEXEC | O_NONBLOCK) < 0)
        return -1;
    self->alarm = pair[0];
    self->alarm_writer = pair[1];
    child[START_ALARM] = fcntl(pair[1], F_DUPFD_CLOEXEC, 0);
    if (child[START_ALARM] < 0)
        return -1;

    child[START_SHARED] = make_shared(&self->shared);
    if (child[START_SHARED] < 0)
        return -1;
    self->dead = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return self->dead < 0 ? -1 : 0;
}

/* All but the eventfd. */
static void
close_life(process *self)
{
    notice_free(self->news); /* first: it holds on to the pipes */
    self->news = NULL;
    close_fd(&self->output);
    close_fd(&self->out);
    close_fd(&self->err);
    close_fd(&self->fdpass);
    close_fd(&self->alarm);
    close_fd(&self->alarm_writer);
    if (self->shared)
        munmap(self->shared, shared_size());
    self->shared = NULL;
}

/* Waits for the supervisor's word on a START. 0, or -1 and errno. */
static int
await_start(process *self)
{
    for (;;) {
        pthread_mutex_lock(&self->lock);
        take_reports(self);
        int starting = self->state == LIFE_STARTING;
        int error = self->state == LIFE_NONE ? self->start_error : 0;
        int control = self->control;
        pthread_mutex_unlock(&self->lock);
        if (error) {
            errno = error;
            return -1;
        }
        if (!starting)
            return 0;
        /* Another thread may take the report off the socket, hence the limit. */
        poll_one(control, POLLIN, 10);
    }
}

/* A new life: `life` is its number. */
static uint32_t
begin_life(process *self)
{
    pthread_mutex_lock(&self->lock);
    close_fd(&self->dead);
    uint32_t life = ++self->life;
    self->state = LIFE_STARTING;
    self->pid = 0;
    self->exit = (struct process_exit){0};
    pthread_mutex_unlock(&self->lock);
    return life;
}

/* Closes the child's ends, and all where the start failed; passes on the result, with errno. */
static int
end_start(process *self, int child[START_FDS], int result)
{
    int error = errno;

    if (result < 0) {
        pthread_mutex_lock(&self->lock);
        self->state = LIFE_NONE;
        pthread_mutex_unlock(&self->lock);
        close_life(self);
        close_fd(&self->dead);
    }
    for (int i = 0; i < START_FDS; i++)
        close_fd(&child[i]);
    errno = error;
    return result;
}

int
process_start(process *self, char *const argv[], char *const envp[], const char *cwd, int keep_core)
{
    struct command command = {
        .protocol = SUPERVISOR_PROTOCOL,
        .type = COMMAND_START,
        .keep_core = keep_core != 0,
        .limits = self->limits,
    };
    int child[START_FDS] = {-1, -1, -1, -1, -1, -1};
    int result = -1;

    if (getpid() != self->owner) {
        errno = EPERM;
        return -1;
    }
    if (!argv[0]) {
        errno = EINVAL;
        return -1;
    }
    process_end_life(self);
    if (need_supervisor(self) < 0)
        return -1;
    command.life = begin_life(self);
    if (open_life(self, child) < 0)
        goto done;
    child[START_SPEC] = make_spec(&command, argv, envp, cwd);
    if (child[START_SPEC] < 0)
        goto done;
    if (fdpass_send(self->control, &command, sizeof command, child, START_FDS, 0) < 0)
        goto done;
    result = await_start(self);
done:
    return end_start(self, child, result);
}

int
process_spare(process *self, char *const argv[], char *const envp[], const char *cwd)
{
    struct command command = {
        .protocol = SUPERVISOR_PROTOCOL, .type = COMMAND_SPARE, .limits = self->limits};
    int ends[2], result = -1;

    if (getpid() != self->owner || self->lost) {
        errno = EPERM;
        return -1;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
        return -1;
    int spec = make_spec(&command, argv, envp, cwd);
    if (spec >= 0) {
        result = fdpass_send(self->control, &command, sizeof command, (int[]){spec, ends[1]}, 2, 0);
        close(spec);
    }
    int error = errno;
    close(ends[1]);
    if (result < 0)
        close(ends[0]);
    errno = error;
    return result < 0 ? -1 : ends[0];
}

/* What the copy said at its birth. 0, or -1 and errno. */
static int
read_birth(int line, pid_t *pid)
{
    struct freeze_birth birth;

    if (poll_one(line, POLLIN, BIRTH_LIMIT_MS) == 0) {
        errno = ETIMEDOUT;
        return -1;
    }
    ssize_t n = fdpass_recv(line, &birth, sizeof birth, NULL, NULL, MSG_DONTWAIT);
    if (n != sizeof birth || birth.magic != FREEZE_MAGIC) {
        if (n >= 0)
            errno = ESRCH; /* it has died */
        return -1;
    }
    *pid = birth.pid;
    return 0;
}

int
process_adopt(process *self, int line)
{
    static const enum start_fd handed[FREEZE_FDS] = {
        [FREEZE_OUT] = START_OUT,       [FREEZE_ERR] = START_ERR,     [FREEZE_PASS] = START_PASS,
        [FREEZE_SHARED] = START_SHARED, [FREEZE_ALARM] = START_ALARM,
    };
    struct command command = {.protocol = SUPERVISOR_PROTOCOL, .type = COMMAND_ADOPT};
    struct freeze_order order = {.magic = FREEZE_MAGIC};
    int child[START_FDS] = {-1, -1, -1, -1, -1, -1}, fds[FREEZE_FDS];
    int result = -1;

    if (getpid() != self->owner) {
        close(line);
        errno = EPERM;
        return -1;
    }
    pthread_mutex_lock(&self->lock);
    take_reports(self);
    if (self->state == LIFE_RUNNING)
        set_over(self);
    close_life(self);
    int lost = self->lost;
    pthread_mutex_unlock(&self->lock);
    command.life = begin_life(self);
    if (lost)
        errno = EPIPE; /* and the copy has gone with it */
    else if (read_birth(line, &command.pid) == 0 && open_life(self, child) == 0 &&
             fdpass_send(self->control, &command, sizeof command, &child[START_SHARED], 1, 0) ==
                 0 &&
             await_start(self) == 0) {
        for (int i = 0; i < FREEZE_FDS; i++)
            fds[i] = child[handed[i]];
        result = fdpass_send(line, &order, sizeof order, fds, FREEZE_FDS, 0);
    }
    int error = errno;
    close(line);
    errno = error;
    return end_start(self, child, result);
}

void
process_end_life(process *self)
{
    if (getpid() != self->owner)
        return;
    pthread_mutex_lock(&self->lock);
    take_reports(self);
    /* Also where the child is dead: what it started is not. */
    if (self->shared && !self->lost)
        (void)command_life(self, COMMAND_END, 0);
    if (self->state == LIFE_RUNNING)
        set_over(self);
    close_life(self);
    pthread_mutex_unlock(&self->lock);
}

void
process_close_output(process *self, int fd)
{
    if (fd < 0)
        return;
    /* Whoever else holds the pipe (notice.c) keeps it in the set, with nothing left to read. */
    if (self->output >= 0)
        epoll_ctl(self->output, EPOLL_CTL_DEL, fd, NULL);
    if (fd == self->out)
        close_fd(&self->out);
    else if (fd == self->err)
        close_fd(&self->err);
}

void
process_alarm_clear(process *self)
{
    uint32_t tentative = ANNOUNCED_TENTATIVE;
    char drained[64];

    pthread_mutex_lock(&self->lock);
    if (self->shared) {
        _Atomic uint32_t *announced = &self->shared->announced;
        atomic_compare_exchange_strong(announced, &tentative, ANNOUNCED_NONE);
        if (atomic_load(announced) == ANNOUNCED_NONE) {
            while (read(self->alarm, drained, sizeof drained) > 0)
                ;
            /* The byte of a new announcement may have gone with the others. */
            if (atomic_load(announced) != ANNOUNCED_NONE)
                (void)!write(self->alarm_writer, "", 1);
        }
    }
    pthread_mutex_unlock(&self->lock);
}

/* ---- the whole ----------------------------------------------------------------------------- */

process *
process_open(const char *supervisor_path)
{
    process *self = calloc(1, sizeof *self);
    int error;

    if (!self)
        return NULL;
    self->owner = getpid();
    self->output = self->out = self->err = self->fdpass = self->alarm = self->alarm_writer =
        self->dead = -1;
    self->control = -1;
    pthread_mutex_init(&self->lock, NULL);
    self->supervisor_path = strdup(supervisor_path);
    if (!self->supervisor_path)
        goto error;
    if (start_supervisor(self) < 0)
        goto error;
    return self;
error:
    error = errno;
    process_close(self);
    errno = error;
    return NULL;
}

void
process_stop(process *self)
{
    if (getpid() != self->owner) {
        process_forget(self);
        return;
    }
    process_end_life(self);
    stop_supervisor(self);
    pthread_mutex_lock(&self->lock);
    self->lost = 1; /* nobody will report any more */
    close_fd(&self->dead);
    pthread_mutex_unlock(&self->lock);
}

void
process_close(process *self)
{
    if (!self)
        return;
    process_stop(self);
    if (getpid() == self->owner)
        pthread_mutex_destroy(&self->lock);
    free(self->supervisor_path);
    free(self);
}

/* Another thread may have held the lock at the fork, and does not exist here: a new one. */
void
process_forget(process *self)
{
    pthread_mutex_init(&self->lock, NULL);
    close_life(self);
    close_fd(&self->dead);
    close_fd(&self->control);
    self->supervisor = 0;
    self->lost = 1;
    if (self->state != LIFE_NONE)
        self->state = LIFE_OVER;
}

void
process_set_limits(process *self, const struct process_limits *limits)
{
    self->limits = *limits;
}

/* ---- accessors ----------------------------------------------------------------------------- */

pid_t
process_pid(const process *self)
{
    return self->pid;
}

pid_t
process_supervisor_pid(const process *self)
{
    return self->supervisor;
}

int
process_out(const process *self)
{
    return self->out;
}

int
process_err(const process *self)
{
    return self->err;
}

int
process_has_output(process *self)
{
    struct epoll_event ready;

    if (self->news && self->looked && notice_quiet(self->news))
        return 0;
    if (self->news)
        notice_take(self->news);
    /* A write to a pipe puts it on the epoll's list before it returns, so that asking an empty list
     * costs half of what poll() or a read() of each pipe would. */
    self->looked = epoll_wait(self->output, &ready, 1, 0) == 0;
    return !self->looked;
}

int
process_fdpass(const process *self)
{
    return self->fdpass;
}

int
process_alarm(const process *self)
{
    return self->alarm;
}

int
process_control(const process *self)
{
    return self->control;
}

int
process_dead_fd(const process *self)
{
    return self->dead;
}

struct shared_page *
process_shared(process *self)
{
    return self->shared;
}

struct record *
process_record(process *self)
{
    return self->shared ? (struct record *)((char *)self->shared + sysconf(_SC_PAGESIZE)) : NULL;
}
