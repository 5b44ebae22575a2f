/* fdfloor.h: keeps our descriptors away from the numbers that other code uses. No Python.
 *
 * Code of the user may close a number that is not its own: one that the other process gave it, or
 * 3 to 9 because a daemon does so. libzmq aborts the process when one of its descriptors goes that
 * way. So ours, and those that libzmq opens for us, have numbers from fd_floor() on, where hardly
 * anybody else has one. It also tells them from the user's, see fitness.c. */
#ifndef ISOLATION_FDFLOOR_H
#define ISOLATION_FDFLOOR_H

#include <stdbool.h>

/* 256, or half of what the process may open where that is less. */
int fd_floor(void);

/* Moves fd to a number from fd_floor() on: the new one, close-on-exec; or fd itself where that
 * cannot be done. */
int fd_raise(int fd);

/* From the first fd_fill() to the last fd_unfill() whatever is opened gets such a number, since all
 * lower ones are taken: in this thread, in libzmq's, and, which harms nobody, in any other. */
void fd_fill(void);
void fd_unfill(void);
/* From fd_hold() to fd_release() no thread begins with that; a fork in between, by this thread, has
 * no half of what another one was opening. False: one is at it now. In the fork fd_release() is to
 * be called as well. */
bool fd_hold(void);
void fd_release(void);
/* What the lower numbers are taken by meanwhile, as /proc/self/fd says. */
#define FD_FILLER_NAME "isolation-filler"
#define FD_FILLER "/memfd:" FD_FILLER_NAME

#endif
