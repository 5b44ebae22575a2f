/* recorder.h: child side: writes down, in a signal handler, what a death looked like. No Python.
 *
 * The heap may be corrupt and any lock may be held, so nothing is interpreted here: registers, a
 * copy of the stack and the list of mappings are enough for the kernel to find out the rest when
 * the child is dead. Memory is read by a system call, which fails where an access would fault. */
#ifndef ISOLATION_RECORDER_H
#define ISOLATION_RECORDER_H

#include <signal.h>
#include <ucontext.h>

#include "record.h"

/* Maps the record behind the shared page of this memfd and takes the descriptor over, which stays
 * open for the Python stack. To be called again in a forked copy that takes over. 0, or -1 and
 * errno: then deaths are reported without details. */
int recorder_install(int shared_fd);

/* How the Python stack is dumped: an async-signal-safe function that writes it, when called with
 * this number, to the descriptor that recorder_python_fd() gives. */
void recorder_set_dump(void (*dump)(int), int number);
int recorder_python_fd(void);

/* This process is about to end as it should: its exit() is no death. */
void recorder_leave(void);

/* This process is about to become another program. If it does, the end is that one's. */
void recorder_exec(void);

/* The following are async-signal-safe. */

/* Writes all but the Python stack. */
void recorder_write(const siginfo_t *info, const ucontext_t *context);
/* Adds the Python stack; may take milliseconds, and may die of corrupted objects. */
void recorder_write_python(void);

#endif
