#define _GNU_SOURCE
#include "fitness.h"

#include "announce.h"
#include "fdfloor.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <sys/wait.h>
#include <unistd.h>

/* How long threads may take to end or to begin. */
#define THREADS_SETTLE_MS 50
/* Below this size a copy is made whatever memory is left. */
#define SMALL_KB (256ul * 1024)

static bool
unfit(char *reason, size_t size, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(reason, size, format, arguments);
    va_end(arguments);
    return false;
}

/* ---- threads ------------------------------------------------------------------------------- */

#define OWN_MOST 512

static struct {
    pthread_mutex_t lock;
    pid_t tids[OWN_MOST]; /* 0: free */
} own = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void
replace_own(pid_t from, pid_t to)
{
    pthread_mutex_lock(&own.lock);
    for (int i = 0; i < OWN_MOST; i++)
        if (own.tids[i] == from) {
            own.tids[i] = to;
            break;
        }
    pthread_mutex_unlock(&own.lock);
}

void
own_thread_begins(void)
{
    replace_own(0, (pid_t)syscall(SYS_gettid));
}

void
own_thread_ends(void)
{
    replace_own((pid_t)syscall(SYS_gettid), 0);
}

void
own_threads_forget(void)
{
    pthread_mutex_init(&own.lock, NULL);
    memset(own.tids, 0, sizeof own.tids);
}

static bool
is_own(pid_t tid)
{
    bool found = false;

    pthread_mutex_lock(&own.lock);
    for (int i = 0; i < OWN_MOST && !found; i++)
        found = own.tids[i] == tid;
    pthread_mutex_unlock(&own.lock);
    return found;
}

/* "" if it has gone meanwhile. -1: that cannot be known. */
static int
thread_name(pid_t tid, char name[32])
{
    char path[64];

    snprintf(path, sizeof path, "/proc/self/task/%d/comm", tid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    int gone = fd < 0 && errno == ENOENT;
    ssize_t n = fd < 0 ? 0 : read(fd, name, 31);
    if (fd >= 0)
        close(fd);
    name[n > 0 ? n : 0] = 0;
    name[strcspn(name, "\n")] = 0;
    return fd >= 0 || gone ? 0 : -1;
}

/* Threads that are neither ours nor libzmq's for us; the name of one of them, and a number that
 * says which they are. -1: nobody knows. */
static int
foreign_threads(char name[32], uint64_t *which)
{
    int foreign = 0, zmq = 2, holder = 1; /* how many there may be of these */
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *task;

    *which = 0;
    if (!tasks)
        return -1;
    while ((task = readdir(tasks))) {
        pid_t tid = (pid_t)atoi(task->d_name);
        char candidate[32];
        if (tid == 0 || tid == getpid() || is_own(tid))
            continue;
        if (thread_name(tid, candidate) < 0) {
            foreign = -1;
            break;
        }
        if (!*candidate || (strncmp(candidate, "ZMQbg/", 6) == 0 && zmq-- > 0) ||
            (strcmp(candidate, HOLDER_NAME) == 0 && holder-- > 0))
            continue;
        foreign++;
        *which += (uint64_t)tid * tid;
        memcpy(name, candidate, 32);
    }
    closedir(tasks);
    return foreign;
}

static bool
threads_fit(bool *unsettled, char *reason, size_t size)
{
    static uint64_t refused; /* those that were there the last time, and stayed */
    char name[32] = "";
    uint64_t which;
    int foreign = foreign_threads(name, &which);

    *unsettled = foreign > 0 && (*unsettled || which != refused);
    refused = which;
    if (foreign < 0)
        return unfit(reason, size, "/proc cannot be read, so nobody knows what threads run");
    if (foreign > 0)
        return unfit(reason, size, "%d thread%s of a library or of the module run%s (%s)", foreign,
                     foreign > 1 ? "s" : "", foreign > 1 ? "" : "s", name);
    return true;
}

/* What is opened to look at them leaves no hole in what fd_fill() has taken. */
static int
scan(void)
{
    char name[32];
    uint64_t which;
    int foreign = 1;

    if (fd_hold()) {
        foreign = foreign_threads(name, &which);
        fd_release();
    }
    return foreign;
}

void
threads_settle(void)
{
    static const struct timespec pause = {.tv_nsec = 100 * 1000};
    struct timespec now, end;

    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_nsec += THREADS_SETTLE_MS * 1000000L;
    end.tv_sec += end.tv_nsec / 1000000000L;
    end.tv_nsec %= 1000000000L;
    do {
        nanosleep(&pause, NULL);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (scan() > 0 &&
             (now.tv_sec < end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec)));
}

/* ---- pools of threads ---------------------------------------------------------------------- */

/* Libraries with pools that can be paused. There is rarely more than one of each kind. */
enum { POOLS_MOST = 16 };
struct pools {
    void *libraries[POOLS_MOST]; /* handles */
    bool gomp[POOLS_MOST];       /* else OpenBLAS */
    int count;
};

/* For each library that is loaded. */
static int
find_pool(struct dl_phdr_info *info, size_t size, void *argument)
{
    struct pools *pools = argument;
    const char *file = info->dlpi_name ? strrchr(info->dlpi_name, '/') : NULL;

    (void)size;
    if (!file || (!strstr(file, "gomp") && !strstr(file, "openblas")) || pools->count == POOLS_MOST)
        return 0;
    void *library = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    if (library) {
        pools->gomp[pools->count] = strstr(file, "gomp") != NULL;
        pools->libraries[pools->count++] = library;
    }
    return 0;
}

/* An OpenBLAS that shows no function for it ends its threads by its own handler before any fork:
 * one of a process that ends at once will do. */
static bool
pause_by_fork(void)
{
    char name[32];
    uint64_t which;

    if (foreign_threads(name, &which) <= 0)
        return false;
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    return pid > 0;
}

/* Not while the loader's lock is held, as it is in find_pool(): the pool's threads end, and the
 * first thread of a process that does so loads libgcc. Functions are looked up in that very
 * library: a wheel brings its own copy of such libraries, under its own name. */
bool
pools_pause(void)
{
    struct pools pools = {.count = 0};
    bool paused = false, hidden = false;

    dl_iterate_phdr(find_pool, &pools);
    for (int i = 0; i < pools.count; i++) {
        int (*pause_all)(int) = NULL;
        int (*shutdown)(void) = NULL;
        if (pools.gomp[i])
            *(void **)&pause_all = dlsym(pools.libraries[i], "omp_pause_resource_all");
        else
            *(void **)&shutdown = dlsym(pools.libraries[i], "blas_thread_shutdown_");
        if (pause_all)
            pause_all(2); /* omp_pause_hard: its threads end */
        if (shutdown)
            shutdown(); /* what it does before a fork anyhow; the next operation starts them again
                         */
        paused = paused || pause_all || shutdown;
        hidden = hidden || (!pools.gomp[i] && !shutdown);
        dlclose(pools.libraries[i]);
    }
    return (hidden && pause_by_fork()) || paused;
}

/* ---- files and sockets --------------------------------------------------------------------- */

static bool
file_fits(int fd, const struct stat *facts, const char *target, char *reason, size_t size)
{
    int flags = fcntl(fd, F_GETFL);
    int high = fd >= fd_floor();

    if (fd <= 2 || flags < 0)
        return true; /* replaced in the copy; or closed meanwhile */
    if (S_ISREG(facts->st_mode)) {
        if (high && strncmp(target, "/memfd:isolation-", 17) == 0)
            return true;
        /* For a moment, while a thread of ours is opening others; a copy closes them. */
        if (strncmp(target, FD_FILLER, sizeof FD_FILLER - 1) == 0)
            return true;
        if ((flags & O_ACCMODE) != O_RDONLY)
            return unfit(reason, size, "a file is open for writing: %s", target);
        return true;
    }
    if (S_ISDIR(facts->st_mode))
        return true;
    if (S_ISCHR(facts->st_mode)) {
        if (strcmp(target, "/dev/null") == 0 || strcmp(target, "/dev/zero") == 0 ||
            strcmp(target, "/dev/random") == 0 || strcmp(target, "/dev/urandom") == 0)
            return true;
        return unfit(reason, size, "a device is open: %s", target);
    }
    if (high)
        return true; /* ours, or libzmq's for us */
    if (S_ISSOCK(facts->st_mode))
        return unfit(reason, size, "a socket is open (descriptor %d)", fd);
    if (S_ISFIFO(facts->st_mode))
        return unfit(reason, size, "a pipe is open (descriptor %d)", fd);
    return unfit(reason, size, "a descriptor that a copy would share is open: %s (%d)", target, fd);
}

static bool
files_fit(char *reason, size_t size)
{
    DIR *entries = opendir("/proc/self/fd");
    struct dirent *entry;
    bool fits = true;

    if (!entries)
        return unfit(reason, size, "/proc cannot be read, so nobody knows what files are open");
    while (fits && (entry = readdir(entries))) {
        int fd = atoi(entry->d_name);
        struct stat facts;
        char target[256] = "";
        if (entry->d_name[0] == '.' || fd == dirfd(entries) || fstat(fd, &facts) < 0)
            continue;
        if (readlinkat(dirfd(entries), entry->d_name, target, sizeof target - 1) < 0)
            continue;
        fits = file_fits(fd, &facts, target, reason, size);
    }
    closedir(entries);
    return fits;
}

/* ---- memory -------------------------------------------------------------------------------- */

/* Memory that is mapped shared and writable is no part of the copy. */
static bool
mappings_fit(char *reason, size_t size)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[4608];
    bool fits = true;

    if (!maps)
        return unfit(reason, size, "/proc cannot be read, so nobody knows what memory is shared");
    while (fits && fgets(line, sizeof line, maps)) {
        char rights[8] = "";
        int name = 0;
        if (sscanf(line, "%*s %7s %*s %*s %*s %n", rights, &name) < 1 || rights[1] != 'w' ||
            rights[3] != 's')
            continue;
        line[strcspn(line, "\n")] = 0;
        if (strncmp(line + name, "/memfd:isolation-", 17) != 0)
            fits = unfit(reason, size, "memory is mapped shared and writable: %s",
                         line[name] ? line + name : "of no file");
    }
    fclose(maps);
    return fits;
}

static unsigned long
field_kb(const char *path, const char *field)
{
    FILE *file = fopen(path, "re");
    unsigned long value = 0;
    char line[256];
    size_t length = strlen(field);

    while (file && fgets(line, sizeof line, file))
        if (strncmp(line, field, length) == 0) {
            value = strtoul(line + length, NULL, 10);
            break;
        }
    if (file)
        fclose(file);
    return value;
}

/* In the worst case all of it is copied. */
static bool
memory_fits(char *reason, size_t size)
{
    unsigned long resident = field_kb("/proc/self/status", "RssAnon:");

    if (resident < SMALL_KB)
        return true;
    unsigned long available = field_kb("/proc/meminfo", "MemAvailable:");
    if (resident > available / 2)
        return unfit(reason, size, "a copy of %.1f GB may not fit into the %.1f GB that are free",
                     resident / 1048576.0, available / 1048576.0);
    return true;
}

/* ---- processes ----------------------------------------------------------------------------- */

static bool
children_fit(char *reason, size_t size)
{
    DIR *tasks = opendir("/proc/self/task");
    struct dirent *task;
    int pid = 0;

    while (tasks && pid == 0 && (task = readdir(tasks))) {
        char path[300];
        if (task->d_name[0] == '.')
            continue;
        snprintf(path, sizeof path, "/proc/self/task/%s/children", task->d_name);
        FILE *children = fopen(path, "re");
        if (children && fscanf(children, "%d", &pid) != 1)
            pid = 0;
        if (children)
            fclose(children);
    }
    if (tasks)
        closedir(tasks);
    return pid == 0 || unfit(reason, size, "it has started a process (%d) that still runs", pid);
}

bool
fit_to_freeze(bool *unsettled, char *reason, size_t size)
{
    return threads_fit(unsettled, reason, size) && files_fit(reason, size) &&
           mappings_fit(reason, size) && children_fit(reason, size) && memory_fits(reason, size);
}
