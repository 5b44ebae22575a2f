#define _GNU_SOURCE 1
#include "zmq_late.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>

/* The name of the interface that <zmq.h> describes since libzmq 4.0. */
#define LIBRARY "libzmq.so.5"

struct zmq_late zmq_late;

static pthread_mutex_t loading = PTHREAD_MUTEX_INITIALIZER;
static int loaded; /* set under the lock, and then for good */
static char message[256];

/* Never unloaded: its threads may outlive any use of it. A failure may be for now (no memory), and
 * is not kept. */
static int
load(void)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    const char *missing = library == NULL ? LIBRARY : NULL;
#define FIND(name)                                                                                 \
    if (missing == NULL && (*(void **)&zmq_late.name = dlsym(library, "zmq_" #name)) == NULL) {    \
        missing = "zmq_" #name;                                                                    \
    }
    ZMQ_LATE(FIND)
#undef FIND
    if (missing != NULL) {
        const char *why = dlerror();
        snprintf(message, sizeof message, "%s", why == NULL ? missing : why);
    }
    return missing == NULL;
}

int
zmq_late_load(void)
{
    int found = __atomic_load_n(&loaded, __ATOMIC_ACQUIRE);
    if (!found) {
        pthread_mutex_lock(&loading);
        found = loaded || load();
        __atomic_store_n(&loaded, found, __ATOMIC_RELEASE);
        pthread_mutex_unlock(&loading);
    }
    if (!found) {
        errno = ELIBACC;
    }
    return found ? 0 : -1;
}

const char *
zmq_late_error(void)
{
    return message;
}
