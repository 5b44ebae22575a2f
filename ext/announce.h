/* Child side: says that a fatal signal has come before the process dies of it, lets its end be seen
 * at once, and decides whether a SIGINT is meant for what is executing.
 *
 * The kernel (of the operating system) may report a death seconds later, because it writes a core
 * dump or takes down much memory first; these need microseconds. */
#ifndef ISOLATION_ANNOUNCE_H
#define ISOLATION_ANNOUNCE_H

#include "shared.h"

/* Maps the shared page from its descriptor, which may be closed afterwards. NULL and errno if it
 * cannot be, or is no page of this version. The mapping is the caller's; one page long. */
struct shared_page *announce_map(int shared_fd);

/* Takes that mapping away. Only once neither announce_install() nor announce_interrupt_gate() has
 * it as the last page given. */
void announce_unmap(struct shared_page *page);

/* Installs the handlers of SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGSYS, SIGTRAP and SIGXCPU,
 * and the calling thread's alternate stack. Page and descriptor must stay until it is called
 * again, with a new page and descriptor, in a forked copy that takes over; until then a fork of
 * this process announces nothing. Not SIGQUIT: like SIGTERM it is somebody's wish, not a fault.
 *
 * Python's faulthandler is to be enabled before: enabled after, it is heard first, prints for a
 * while, and raises the signal again without the address of the fault.
 *
 * 0, or -1 and errno. */
int announce_install(struct shared_page *page, int alarm_fd);

/* Gives the calling thread an alternate stack, so that its stack overflows are announced too; it is
 * freed at the thread's end. Does nothing if the thread has a big enough one. After
 * announce_install(). 0, or -1 and errno. */
int announce_thread_stack(void);

/* In a fork that is to take over, before it starts threads: frees the alternate stacks of the
 * threads that it does not have. */
void announce_forked(void);

/* Starts a thread that holds page->alive until this process ends, in whatever way; also by an exec,
 * after which nothing of it is left either. A fork of this process holds nothing. The page must
 * stay for good. To be called again, with the new page, in a forked copy that takes over. 0, or -1
 * and errno: then the end is seen when the process has been reaped. */
int announce_end(struct shared_page *page);
#define HOLDER_NAME "isolation-end" /* of that thread */

/* Installs a SIGINT handler (without SA_RESTART) that calls trip(), which must be
 * async-signal-safe, if page->interrupt_request is not 0 and equals page->executing_request; or if
 * this very process sent the signal, as with signal.raise_signal(); or in a fork of this process,
 * where nobody asks by page. It ignores every other SIGINT. 0, or -1 and errno. */
int announce_interrupt_gate(struct shared_page *page, void (*trip)(void));

#endif
