/* yield.h: a process that ends makes way for those that live. No Python.
 * Needs _GNU_SOURCE. */
#ifndef ISOLATION_YIELD_H
#define ISOLATION_YIELD_H

#include <sched.h>
#include <sys/resource.h>
#include <sys/types.h>

/* To take down much memory occupies a processor for long: some 50 ms for each 2 GB. Nobody waits
 * for it, but everybody who wakes up on that processor does, until the next tick of the clock, some
 * 4 ms, because the system does not interrupt itself sooner. So a thread (0: the calling one) that
 * is about to do it goes last, and to one processor, the same for all of them. */
static inline void
make_way(pid_t tid)
{
    cpu_set_t allowed, one;

    setpriority(PRIO_PROCESS, (id_t)tid, 19);
    if (sched_getaffinity(tid, sizeof allowed, &allowed) < 0)
        return;
    for (int cpu = CPU_SETSIZE - 1; cpu >= 0; cpu--)
        if (CPU_ISSET(cpu, &allowed)) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
            sched_setaffinity(tid, sizeof one, &one);
            return;
        }
}

#endif
