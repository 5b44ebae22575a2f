/* fitness.h: child side: can this process be copied and the copy take its place? No Python.
 *
 * A fork has one thread and shares files, sockets and shared memory with the process it came from.
 * What depends on more than its private memory would be a wrong answer or a hang after a take-over;
 * where there is such a thing, there is no frozen copy, and it is said why. */
#ifndef ISOLATION_FITNESS_H
#define ISOLATION_FITNESS_H

#include <stdbool.h>
#include <stddef.h>

/* The calling thread is one of ours: made again after a take-over. Until own_thread_ends(), by the
 * same thread. */
void own_thread_begins(void);
void own_thread_ends(void);
/* In the copy: only the calling thread is there. */
void own_threads_forget(void);

/* Lets the pools of threads go that are made again when they are needed: GNU's OpenMP, OpenBLAS.
 * True when there were any, whose threads may need a moment to end. */
bool pools_pause(void);

/* False: with the reason, one line, in `reason`. *unsettled is what pools_pause() has said; then,
 * whether threads are the reason that may be about to end, or are ours and have not said so yet. */
bool fit_to_freeze(bool *unsettled, char *reason, size_t size);
/* Waits for such threads, for a moment at most. Not with the GIL: those of Python need it to begin
 * and to end. */
void threads_settle(void);

#endif
