/* The clock of the C programs of this folder. */
#include <stdint.h>
#include <time.h>

/* Monotonic nanoseconds. */
static inline uint64_t
now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
