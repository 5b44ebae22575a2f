/* Part of sanitizer builds only. Before gcc 15 the address sanitizer does not survive a fork while
 * another thread begins, ends or allocates: its locks stay held in the forked process, which hangs
 * at its next malloc. pytest begins and ends a thread with each test. So a fork first waits until
 * the other threads sleep; one that runs on and on is not waited for. */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define LONGEST_MS 500

/* From /proc/self/task/THREAD/stat; a thread that has ended sleeps, too. */
static bool
sleeps(int tasks, const char *thread)
{
    char path[64], line[128];
    snprintf(path, sizeof path, "%.32s/stat", thread);
    int fd = openat(tasks, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return true;
    ssize_t got = read(fd, line, sizeof line - 1);
    close(fd);
    if (got <= 0)
        return true;
    line[got] = '\0';
    const char *name_end = strrchr(line, ')');
    return name_end == NULL || strncmp(name_end, ") S", 3) == 0;
}

static bool
others_sleep(void)
{
    DIR *tasks = opendir("/proc/self/task");
    if (tasks == NULL)
        return true;
    bool all = true;
    long me = syscall(SYS_gettid);
    for (struct dirent *entry; all && (entry = readdir(tasks)) != NULL;)
        if (entry->d_name[0] != '.' && atol(entry->d_name) != me)
            all = sleeps(dirfd(tasks), entry->d_name);
    closedir(tasks);
    return all;
}

static void
wait_for_sleep(void)
{
    const struct timespec pause = {.tv_nsec = 100000};
    struct timespec now, end;
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_nsec += LONGEST_MS * 1000000L;
    do {
        if (others_sleep())
            return;
        nanosleep(&pause, NULL);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - end.tv_sec) * 1000000000L + now.tv_nsec < end.tv_nsec);
}

__attribute__((constructor)) static void
watch_forks(void)
{
    pthread_atfork(wait_for_sleep, NULL, NULL);
}
