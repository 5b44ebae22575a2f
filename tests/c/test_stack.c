/* stack.c: a stack is low before it is used up, for requests before it is for objects. */
#include <pthread.h>
#include <string.h>

#include "check.h"
#include "stack.h"

#define STEP 1024

struct depths {
    unsigned request, object; /* how deep it was low first; 0: never */
};

/* Goes deeper until the stack is low for both. */
static void
deeper(struct depths *found, unsigned depth)
{
    volatile char used[STEP];

    memset((char *)used, 1, sizeof used);
    if (found->request == 0 && stack_is_low(STACK_REQUEST)) {
        found->request = depth;
    }
    if (stack_is_low(STACK_OBJECT)) {
        found->object = depth;
        return;
    }
    deeper(found, depth + 1);
    used[0] = 2; /* no tail call */
}

static void *
in_thread(void *found)
{
    deeper(found, 1);
    return NULL;
}

static void
test_thread(size_t size)
{
    struct depths found = {0};
    pthread_attr_t attributes;
    pthread_t thread;

    CHECK(pthread_attr_init(&attributes) == 0);
    CHECK(pthread_attr_setstacksize(&attributes, size) == 0);
    CHECK(pthread_create(&thread, &attributes, in_thread, &found) == 0);
    pthread_join(thread, NULL);
    pthread_attr_destroy(&attributes);
    CHECK(found.request > 0);
    CHECK(found.object > found.request);
    CHECK(found.object < size / STEP);
}

int
main(void)
{
    struct depths found = {0};

    CHECK(!stack_is_low(STACK_REQUEST));
    CHECK(!stack_is_low(STACK_OBJECT));
    test_thread(256 * 1024);
    test_thread(1024 * 1024);
    test_thread(4096 * 1024);
    deeper(&found, 1); /* of the main thread, which grows */
    CHECK(found.object > found.request);
    CHECK(!stack_is_low(STACK_REQUEST));
    return check_report();
}
