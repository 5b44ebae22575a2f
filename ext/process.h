/* The child as a process, seen from the kernel: its supervisor starts it, reaps it, reports how it
 * ended, and kills it with all its descendants when this process ends, however that happens.
 *
 * Threads: process_update(), process_kill(), process_wait_exit(), process_exit_info() and
 * process_alarm_clear() may be called by any thread at any time between process_open() and
 * process_close(). process_start(), process_end_life() and process_close() belong to one thread at
 * a time, and nobody else may be using the descriptors or the shared page that they close. */
#ifndef ISOLATION_PROCESS_H
#define ISOLATION_PROCESS_H

#include <sys/resource.h>
#include <sys/types.h>

#include "record.h"
#include "shared.h"

/* A supervisor and its current child; one per context, over all its lives. */
typedef struct process process;

/* How a life ended. */
struct process_exit {
    int known; /* 0: not over, or nobody could tell (the supervisor was killed) */
    pid_t pid;
    int code;            /* CLD_EXITED, CLD_KILLED or CLD_DUMPED */
    int status;          /* the exit status, or the signal */
    int reaped;          /* 0: its memory is still being taken down */
    struct rusage usage; /* once it is reaped; with the sub-processes that it waited for */
    double cpu;          /* seconds of processor time of its own; -1: not known (yet) */
};

/* Starts the supervisor, but no child. NULL and errno. */
process *process_open(const char *supervisor_path);

/* What the lives that begin from now on are started with; see supervisor.h. */
struct process_limits;
void process_set_limits(process *self, const struct process_limits *limits);

/* Starts the next life; ends the present one first if need be, and starts another supervisor if the
 * first was killed. Returns when the program has been executed. argv[0] is an absolute path. cwd
 * may be NULL: "/". The child gets the descriptors of enum child_fd and these only, and writes no
 * core dump; with keep_core as large a one as the hard limit allows. 0, or -1 and errno: that of
 * execve() or chdir(), or EPIPE if the supervisor went away. */
int process_start(process *self, char *const argv[], char *const envp[], const char *cwd,
                  int keep_core);

/* The next life is that of a frozen copy of the child (freeze.h), at the other end of `line`: it
 * takes over with descriptors of its own, and what is left of the present life ends, without being
 * waited for. Closes the line. 0, or -1 and errno: then there is no life, as after a failed start.
 */
int process_adopt(process *self, int line);

pid_t process_pid(const process *self); /* 0 before the first life; stays after the last */
pid_t process_supervisor_pid(const process *self);

/* Descriptors of this life, all close-on-exec and owned by the process; -1 outside of a life. */

/* Non-blocking read ends of the child's stdout and stderr; -1 once closed. */
int process_out(const process *self);
int process_err(const process *self);
/* Whether there is something to read in one of them, or an end of file. Without a system call where
 * there is nothing, and notice.h does its work. */
int process_has_output(process *self);
/* Closes one of these two, given by its number, at its end of file. */
void process_close_output(process *self, int fd);

/* The kernel's end of the socketpair for descriptors, see fdpass.h. */
int process_fdpass(const process *self);

/* Readable: the child announced a fatal signal; see the shared page for which. Not to be read from,
 * so that it wakes every thread that waits. It never hangs up. */
int process_alarm(const process *self);
/* Takes a tentative announcement back, once an answer of the child has shown that it recovered; or
 * silences the alarm after one that the child took back itself (announced is 0 again). Leaves a
 * complete one alone. */
void process_alarm_clear(process *self);

/* Readable: call process_update(). Of the supervisor, not of one life. */
int process_control(const process *self);

/* Becomes readable, and stays so, when this life is known to be over. Stays open after
 * process_end_life(), until the next process_start() or process_close(). */
int process_dead_fd(const process *self);

/* Takes in what the supervisor has reported, without blocking. 1 if this life is over, else 0. */
int process_update(process *self);

/* How this life ended, as far as is known; kept until the next process_start(). */
struct process_exit process_exit_info(process *self);

/* The shared page, NULL outside of a life. */
struct shared_page *process_shared(process *self);

/* What the child has written down about its death, NULL outside of a life. */
struct record *process_record(process *self);

/* Does the child of this life run? 0 as soon as it has begun to die, before its connections are
 * closed, and when there is no life. */
int process_alive(process *self);

/* SIGKILL for the child and its process group, any other signal for the child alone; by way of the
 * supervisor, so that a reused pid is never hit. 0, or -1 and errno: ESRCH if there is no life. */
int process_kill(process *self, int sig);

/* The child stands still at its fatal signal: the life is over, and the process is kept, one at a
 * time, until process_release() or process_stop(). 1, or 0 if it is not kept. */
int process_hold(process *self);
/* Ends what is held, if anything is. Does not wait for it. */
void process_release(process *self);
pid_t process_held(process *self); /* 0: nothing is */

/* Starts a process in advance that waits for a life: a line to it, close-on-exec and the caller's,
 * for process_adopt(); it ends when the line is closed. Returns before it runs; whether it does is
 * seen when it is adopted. Another ends. -1 and errno. */
int process_spare(process *self, char *const argv[], char *const envp[], const char *cwd);

/* Waits until this life is over: 1, or 0 after timeout_ms (negative: no limit). */
int process_wait_exit(process *self, int timeout_ms);

/* Kills the child and all its descendants, closes this life's descriptors (all but
 * process_dead_fd()), unmaps the shared page. Does not wait for the dead. */
void process_end_life(process *self);

/* Ends everything, the supervisor too, and closes all descriptors. Takes about a second at most.
 * All functions may still be called: this life is over, and there is nothing to wait for or to
 * kill; but process_start() would start another supervisor. In a forked copy of the kernel this is
 * process_forget(). */
void process_stop(process *self);

/* process_stop(), and frees the process. NULL is allowed. */
void process_close(process *self);

/* In a forked copy of the kernel, which owns nothing: closes its duplicates of the descriptors. */
void process_forget(process *self);

#endif
