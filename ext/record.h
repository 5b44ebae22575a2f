/* record.h: what a dying child leaves behind, in the shared memfd behind the shared page.
 *
 * Written by a signal handler of the child (recorder.c), read by the kernel when the child is dead,
 * and by the helper program that turns addresses into names (symbolize.c). The kernel hands it on
 * as one block: the header, then the used parts of stack, maps and python. Nothing in it is
 * believed: sizes are bounded, everything else is only shown. */
#ifndef ISOLATION_RECORD_H
#define ISOLATION_RECORD_H

#include <stdatomic.h>
#include <stdint.h>

#define RECORD_MAGIC 0x44454144u
#define RECORD_REGISTERS 36 /* enough for aarch64 */
#define RECORD_MESSAGE 512
#define RECORD_STACK (256 * 1024)
#define RECORD_MAPS (512 * 1024)
#define RECORD_PYTHON (128 * 1024)

enum record_state {
    RECORD_NONE = 0,
    RECORD_WRITING, /* the header is being written */
    RECORD_NATIVE,  /* all but the Python stack is there */
    RECORD_COMPLETE,
};

enum record_kind {
    RECORD_SIGNAL = 1, /* a fatal signal */
    RECORD_EXIT,       /* exit(): not _exit() */
    RECORD_EXEC,       /* Python code executed another program; nothing else is there */
    RECORD_LEFT,       /* it ends by itself, since the session has gone; nothing else is there */
};

/* Registers have the numbers that DWARF gives them. */
enum record_machine { MACHINE_UNKNOWN, MACHINE_X86_64, MACHINE_AARCH64 };

struct record_header {
    uint32_t magic;
    _Atomic uint32_t state;
    uint32_t kind;
    int32_t signal, code; /* si_signo, si_code */
    int32_t sender;       /* si_pid, where a process sent it */
    int32_t pid, tid;
    uint32_t exiting;   /* exit() had been called before */
    uint32_t sanitizer; /* a sanitizer's run-time library said that it ends the process */
    uint32_t machine;
    uint64_t address; /* si_addr, where the machine raised it */
    uint64_t pc, sp;
    uint64_t stack_start; /* address of the first byte of the copy of the stack */
    uint32_t stack_size, maps_size, python_size, nregisters;
    uint64_t registers[RECORD_REGISTERS];
    char thread[16];              /* its name */
    char message[RECORD_MESSAGE]; /* what libc said when it aborted */
};

struct record {
    struct record_header header;
    /* Pages that are not written to cost nothing. */
    _Alignas(4096) unsigned char stack[RECORD_STACK];
    char maps[RECORD_MAPS];
    char python[RECORD_PYTHON]; /* last: it is written by write(), which cannot go on behind it */
};

#endif
