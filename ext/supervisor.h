/* What process.c and the supervisor say to each other; private to these two.
 *
 * They share a SOCK_SEQPACKET socketpair, one struct per message. It is also the lifeline: when the
 * supervisor finds its end closed, it kills all below it and exits. Both programs are of one build
 * and on one machine, so the structs cross as they are. */
#ifndef ISOLATION_SUPERVISOR_H
#define ISOLATION_SUPERVISOR_H

#include <stdint.h>
#include <sys/resource.h>

#define SUPERVISOR_PROTOCOL 5u
#define SUPERVISOR_CONTROL_FD 3

/* Kernel to supervisor. */
enum command_type {
    COMMAND_START = 1, /* start the child of this life; with the descriptors of enum start_fd */
    COMMAND_KILL,      /* send `signal` to the child of this life */
    COMMAND_ADOPT,   /* `pid`, a child of the supervisor, is the child of this life; with the shared
                      * page's descriptor. All else below the supervisor is killed. */
    COMMAND_HOLD,    /* the child of this life stands still: leave it alone until RELEASE */
    COMMAND_RELEASE, /* kill what is held */
    COMMAND_SPARE, /* start a process that waits to be ADOPTed; with START_SPEC and, as START_PASS,
                    * the line on which it waits. Nothing is reported. */
    COMMAND_END,   /* kill all below the supervisor: this life is to leave nothing behind */
};

/* What the child is started with; all 0: as the supervisor is. */
struct process_limits {
    uint64_t memory; /* bytes that it may write to for itself: RLIMIT_DATA; 0: no limit */
    uint32_t cpu;    /* seconds of processor time: RLIMIT_CPU; 0: no limit */
    int32_t nice;    /* is added to its nice value */
};

struct command {
    uint32_t protocol;
    uint32_t type;
    uint32_t life;
    int32_t signal;
    int32_t pid;
    /* START: the first descriptor is a memfd of `size` bytes: argc strings of argv, envc of envp,
     * then cwd, each ended by NUL. argv and environment may be larger than any message. */
    uint32_t keep_core;
    uint32_t argc, envc;
    uint64_t size;
    struct process_limits limits;
};

enum start_fd {
    START_SPEC,
    START_OUT,
    START_ERR,
    START_PASS,
    START_SHARED,
    START_ALARM,
    START_FDS /* their number */
};

/* Supervisor to kernel. */
enum report_type {
    REPORT_STARTED = 1, /* pid has executed the program */
    REPORT_FAILED,      /* it could not be started: status is the errno */
    REPORT_ENDING,      /* pid runs no code any more, but is not gone: code, status */
    REPORT_RELEASED,    /* what was held, pid, has ended; of no life */
    REPORT_EXIT, /* pid was reaped: code, status, usage, cpu; with or without ENDING before */
};

struct report {
    uint32_t type;
    uint32_t life;
    int32_t pid;
    int32_t code; /* CLD_EXITED, CLD_KILLED, CLD_DUMPED */
    int32_t status;
    double cpu; /* seconds that count for RLIMIT_CPU, which usage does not tell; -1: not known */
    struct rusage usage;
};

#endif
