/* pages.h: which pages of this process's memory were written. No Python.
 *
 * Where the operating system cannot tell (no /proc, an older kernel, userfaultfd forbidden), all of
 * it says so, and the caller compares or copies everything instead. */
#ifndef ISOLATION_PAGES_H
#define ISOLATION_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Called with each run of whole pages, in rising order. */
typedef void pages_run(void *argument, char *start, size_t size);

/* In a private mapping of a file, [data, data + size) page-aligned: the pages that this process has
 * a copy of its own of, because it wrote to them. 0, or -1: cannot tell. */
int pages_copied(char *data, size_t size, pages_run *run, void *argument);

/* From now on it is noted which whole pages in [data, data + size) are written, at the cost of a
 * page fault for the first write to each. Any memory that no file is behind. Nobody else's watch
 * overlaps: an earlier one ends. The watch's number, or 0: cannot be done. */
uint64_t pages_watch(const void *data, size_t size);
/* The pages that were written since pages_watch(), or since the last call of this; also what lies
 * before the first whole page and after the last. A page that is written during the call is in this
 * answer or in the next. 0, or -1: cannot tell (the watch has ended, or the memory is other memory
 * by now). */
int pages_watched(uint64_t watch, pages_run *run, void *argument);
/* Ends what is watched there: it is about to be written, all of it or much, which would take a page
 * fault for each page. */
void pages_release(const void *data, size_t size);
/* 0 and an ended watch are allowed. */
void pages_unwatch(uint64_t watch);

#endif
