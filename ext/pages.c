#define _GNU_SOURCE 1
#include "pages.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/userfaultfd.h>

#include "fdfloor.h"

/* Linux 6.7; its headers may be older. Documentation/admin-guide/mm/pagemap.rst. */
struct region {
    uint64_t start, end, categories;
};
struct scan {
    uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
    uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PAGEMAP_SCAN_PAGES _IOWR('f', 16, struct scan)
enum { IS_WRITTEN = 1 << 1, IS_FILE = 1 << 2, IS_PRESENT = 1 << 3, IS_SWAPPED = 1 << 4 };
enum { SCAN_PROTECT = 1 << 0, SCAN_CHECK_WATCHED = 1 << 1 };

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
/* Linux 6.7: a write to a protected page is noted by the kernel alone, nobody is asked. */
#define NOTE_UNPOPULATED ((uint64_t)1 << 13)
#define NOTE_WRITES ((uint64_t)1 << 15)

#define REGIONS 256

static size_t
page_size(void)
{
    static size_t page;

    if (page == 0)
        page = (size_t)sysconf(_SC_PAGESIZE);
    return page;
}

/* Opened each time: an open one goes on telling of the process that opened it, also in a fork. */
static int
open_map(void)
{
    return open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
}

static int
scan_pages(int map, struct scan scan, pages_run *run, void *argument)
{
    struct region regions[REGIONS];
    uint64_t end = scan.end;

    scan.size = sizeof scan;
    scan.vec = (uint64_t)(uintptr_t)regions;
    scan.vec_len = REGIONS;
    while (scan.start < end) {
        int n = ioctl(map, PAGEMAP_SCAN_PAGES, &scan);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        for (int i = 0; i < n; i++)
            run(argument, (char *)(uintptr_t)regions[i].start,
                (size_t)(regions[i].end - regions[i].start));
        if (scan.walk_end <= scan.start)
            break;
        scan.start = scan.walk_end;
    }
    return 0;
}

/* The same as a scan for pages without a file, word by word, for Linux before 6.7. */
static int
read_map(int map, char *data, size_t size, pages_run *run, void *argument)
{
    uint64_t words[512];
    size_t page = page_size(), n = size / page, start = 0;
    bool in_run = false;

    for (size_t i = 0; i < n;) {
        size_t want = n - i < 512 ? n - i : 512;
        ssize_t got = pread(map, words, want * sizeof *words,
                            (off_t)(((uintptr_t)data / page + i) * sizeof *words));
        if (got < (ssize_t)sizeof *words)
            return -1;
        for (size_t k = 0; k < (size_t)got / sizeof *words; k++, i++) {
            bool own = (words[k] >> 62 & 1) || ((words[k] >> 63 & 1) && !(words[k] >> 61 & 1));
            if (own && !in_run)
                start = i;
            if (!own && in_run)
                run(argument, data + start * page, (i - start) * page);
            in_run = own;
        }
    }
    if (in_run)
        run(argument, data + start * page, (n - start) * page);
    return 0;
}

int
pages_copied(char *data, size_t size, pages_run *run, void *argument)
{
    struct scan scan = {.start = (uint64_t)(uintptr_t)data,
                        .end = (uint64_t)(uintptr_t)data + size,
                        .category_inverted = IS_FILE,
                        .category_mask = IS_FILE,
                        .category_anyof_mask = IS_PRESENT | IS_SWAPPED};
    int map = open_map();

    if (map < 0)
        return -1;
    int rc = scan_pages(map, scan, run, argument);
    if (rc < 0 && errno != EFAULT)
        rc = read_map(map, data, size, run, argument);
    close(map);
    return rc;
}

/* ---- watching ---------------------------------------------------------------------------------
 */

/* One list for the process: what one channel protects again would look unwritten to another. */
struct watch {
    uint64_t number;
    const char *data;
    size_t size;
    char *start, *end; /* the whole pages */
    struct watch *next;
};
static struct {
    pthread_mutex_t lock;
    int fd; /* a userfaultfd, while there are watches */
    pid_t owner;
    uint64_t last;
    struct watch *first;
} watching = {.lock = PTHREAD_MUTEX_INITIALIZER, .fd = -1};

static int
open_noting(void)
{
    struct uffdio_api api = {.api = UFFD_API, .features = NOTE_WRITES | NOTE_UNPOPULATED};
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);

    if (fd >= 0 && ioctl(fd, UFFDIO_API, &api) < 0) {
        close(fd);
        return -1;
    }
    return fd < 0 ? -1 : fd_raise(fd);
}

static void
end_watch(struct watch **at, bool unregister)
{
    struct watch *w = *at;
    struct uffdio_range range = {(uint64_t)(uintptr_t)w->start, (uint64_t)(w->end - w->start)};

    if (unregister)
        ioctl(watching.fd, UFFDIO_UNREGISTER, &range); /* what has been unmapped is gone from it */
    *at = w->next;
    free(w);
    if (watching.first == NULL) {
        close(watching.fd);
        watching.fd = -1;
    }
}

/* A fork has the list, but neither the notes nor, in effect, the descriptor. */
static void
forget_in_fork(void)
{
    while (watching.first != NULL && watching.owner != getpid())
        end_watch(&watching.first, false);
}

/* Nothing but private memory without a file, all of it: what others write to memory that they share
 * goes unnoticed, and what is behind a private mapping of a file may be written by anybody. Pages
 * cannot tell, where none is there yet. */
static bool
is_anonymous(const char *start, const char *end)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    uintptr_t at = (uintptr_t)start, from, to;
    unsigned long inode;
    char permissions[5], line[512];

    while (maps && at < (uintptr_t)end && fgets(line, sizeof line, maps)) {
        bool whole = strchr(line, '\n') != NULL;
        if (sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %4s %*x %*s %lu", &from, &to, permissions,
                   &inode) == 4 &&
            to > at && from < (uintptr_t)end) {
            if (from > at || permissions[3] != 'p' || inode != 0)
                break;
            at = to;
        }
        while (!whole && fgets(line, sizeof line, maps))
            whole = strchr(line, '\n') != NULL;
    }
    if (maps)
        fclose(maps);
    return at >= (uintptr_t)end;
}

static void
before_fork(void)
{
    pthread_mutex_lock(&watching.lock);
}

static void
after_fork(void)
{
    pthread_mutex_unlock(&watching.lock);
}

static void
watch_forks(void)
{
    pthread_atfork(before_fork, after_fork, after_fork);
}

static void
end_overlapping(const char *start, const char *end)
{
    for (struct watch **at = &watching.first; *at != NULL;)
        if ((*at)->start < end && start < (*at)->end)
            end_watch(at, true);
        else
            at = &(*at)->next;
}

uint64_t
pages_watch(const void *data, size_t size)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    size_t page = page_size();
    uintptr_t from = (uintptr_t)data, to = (from + size) / page * page;
    char *start = (char *)((from + page - 1) / page * page), *end = (char *)to;
    uint64_t number = 0;

    if (start >= end || !is_anonymous(start, end))
        return 0;
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&watching.lock);
    forget_in_fork();
    end_overlapping(start, end);
    struct watch *w = malloc(sizeof *w);
    if (w != NULL && watching.fd < 0) {
        watching.fd = open_noting();
        watching.owner = getpid();
    }
    struct uffdio_register all = {.range = {(uint64_t)(uintptr_t)start, (uint64_t)(end - start)},
                                  .mode = UFFDIO_REGISTER_MODE_WP};
    struct uffdio_writeprotect protect = {.range = all.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
    if (w != NULL && watching.fd >= 0 && ioctl(watching.fd, UFFDIO_REGISTER, &all) == 0) {
        number = ++watching.last;
        *w = (struct watch){number, data, size, start, end, watching.first};
        watching.first = w;
        if (ioctl(watching.fd, UFFDIO_WRITEPROTECT, &protect) < 0) {
            end_watch(&watching.first, true);
            number = 0;
        }
    }
    else {
        free(w);
        if (watching.fd >= 0 && watching.first == NULL) {
            close(watching.fd);
            watching.fd = -1;
        }
    }
    pthread_mutex_unlock(&watching.lock);
    return number;
}

static struct watch **
find(uint64_t number)
{
    struct watch **at = &watching.first;

    while (*at != NULL && (*at)->number != number)
        at = &(*at)->next;
    return at;
}

int
pages_watched(uint64_t number, pages_run *run, void *argument)
{
    int rc = -1, map = open_map();

    if (map < 0)
        return -1;
    pthread_mutex_lock(&watching.lock);
    forget_in_fork();
    struct watch **at = find(number), *w = *at;
    if (number != 0 && w != NULL) {
        const char *end = w->data + w->size;
        struct scan scan = {.flags = SCAN_PROTECT | SCAN_CHECK_WATCHED,
                            .start = (uint64_t)(uintptr_t)w->start,
                            .end = (uint64_t)(uintptr_t)w->end,
                            .category_mask = IS_WRITTEN,
                            .return_mask = IS_WRITTEN};
        if (w->data < w->start)
            run(argument, (char *)(uintptr_t)w->data, (size_t)(w->start - w->data));
        rc = scan_pages(map, scan, run, argument);
        /* Where the tables for a whole range of pages have gone (MADV_DONTNEED of a huge page),
         * some kernels do not say that it was written: what is there neither as memory nor as a
         * mark of the watch has been dropped. */
        scan.category_inverted = scan.category_mask = IS_PRESENT | IS_SWAPPED;
        scan.return_mask = IS_PRESENT;
        if (rc == 0)
            rc = scan_pages(map, scan, run, argument);
        if (rc == 0 && w->end < end)
            run(argument, w->end, (size_t)(end - w->end));
        if (rc < 0)
            end_watch(at, true);
    }
    pthread_mutex_unlock(&watching.lock);
    close(map);
    return rc;
}

void
pages_unwatch(uint64_t number)
{
    if (number == 0 || watching.owner != getpid())
        return;
    pthread_mutex_lock(&watching.lock);
    struct watch **at = find(number);
    if (*at != NULL)
        end_watch(at, true);
    pthread_mutex_unlock(&watching.lock);
}

void
pages_release(const void *data, size_t size)
{
    if (watching.first == NULL || watching.owner != getpid())
        return;
    pthread_mutex_lock(&watching.lock);
    end_overlapping(data, (const char *)data + size);
    pthread_mutex_unlock(&watching.lock);
}
