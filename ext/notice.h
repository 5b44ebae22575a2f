/* notice.h: whether something may have come to some descriptors, asked without a system call. No
 * Python. */
#ifndef ISOLATION_NOTICE_H
#define ISOLATION_NOTICE_H

#include <stdbool.h>

typedef struct notice notice;

/* Watches these descriptors, which stay the caller's; but what they refer to is let go of only
 * when the watch is freed too. Belongs to the calling thread. NULL and errno where the system does
 * not offer it: then the caller has to look. */
notice *notice_new(const int *fds, int n);
/* NULL is allowed. */
void notice_free(notice *n);

/* False: something may have come since the last notice_take(); may be so for nothing. Whatever was
 * written, by any process, before that became known to the calling thread, is seen. Any thread. */
bool notice_quiet(const notice *n);
/* The caller is about to look at the descriptors: what comes from now on is news again. Works in
 * the thread that made it; in another nothing is ever quiet again until that thread does it. */
void notice_take(notice *n);

#endif
