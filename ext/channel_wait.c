/* channel_wait.c: the one wait: spins where that pays, then sleeps until a frame, a descriptor or
 * the time limit. */
#define _GNU_SOURCE 1
#include "channel_parts.h"

#include "fdfloor.h"
#include "zmq_late.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/timerfd.h>
#include <time.h>

#define SPIN_LOOKS 32 /* between two looks at the clock */
/* How long channel_wait() may spin. Putting a processor to sleep and waking it again costs 50 to
 * 250 us on a virtual machine: spinning for as long as that costs at most as much again, and an end
 * that spins so long is still awake when the other, which slept, answers. */
#define SPIN_US 250
#define SPIN_LEAST_US 4
/* A wait that was over by then would better have spun: what it slept includes the waking up. */
#define SPIN_WORTH_US (2 * SPIN_US)
/* Where two ends wake each other up all the time, neither sees that spinning would do: try again
 * after so many waits. */
#define SPIN_RETRY 32
/* After so many waits with both ends on one processor, one of them moves. To move costs about what
 * that many round trips through the scheduler do. */
#define STACKED_FEW 8
/* Where that did not last for so many round trips (the other processors are busy too), twice as
 * many waits go by before the next time; but never more than that. */
#define MOVED_WORTH 32
#define STACKED_MOST 128
/* An end that sleeps on the other's processor leaves it this often at most: it takes some 20 us. */
#define LEAVE_MS 10

static bool
several_processors(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) < 0 || CPU_COUNT(&set) > 1;
}

int
channel_set_up_wait(channel *c)
{
    c->timer_fd = fd_raise(timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC));
    c->spins = c->lane != NULL && several_processors();
    c->spin_us = SPIN_US;
    c->patience = STACKED_FEW;
    return c->timer_fd < 0 ? -1 : 0;
}

/* Makes timer_fd readable in timeout_ms or earlier. Hardly any wait gets as far as its limit, and
 * setting up a timer and taking it down again for each would cost more than the rest of the wait (a
 * virtual machine leaves to its host for both). So one that an earlier wait has set up is kept. */
static int
arm_timer(channel *c, int timeout_ms)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    int64_t now = (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
    if (c->timer_at > now && c->timer_at <= now + timeout_ms) {
        return 0;
    }
    /* The millisecond that `now` has begun counts in full: it fires at timer_at, not before. */
    c->timer_at = now + timeout_ms;
    struct itimerspec at = {
        .it_value = {.tv_sec = c->timer_at / 1000, .tv_nsec = c->timer_at % 1000 * 1000000}};
    return timerfd_settime(c->timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

int64_t
channel_now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Looks at the lane alone, until `until`. */
static bool
spin_until(const channel *c, int64_t until)
{
    do {
        if (lane_spin(c->lane, SPIN_LOOKS)) {
            return true;
        }
    } while (!lane_stacked(c->lane) && channel_now_us() < until);
    return false;
}

/* Whether the next frame comes by the lane, soon if at all, and while this thread is awake. */
static bool
may_spin(const channel *c)
{
    return c->hot && c->spins && !await_zmq(c) && !lane_stacked(c->lane);
}

/* When one end wakes the other, the scheduler likes to put it on the waker's processor, and
 * leaves it there although another is idle: both then take turns, at ten times the cost. So now and
 * then this thread goes elsewhere; what it may run on stays what it was. */
static void
go_elsewhere(channel *c)
{
    cpu_set_t allowed, others;
    int cpu = sched_getcpu();
    if (cpu < 0 || sched_getaffinity(0, sizeof allowed, &allowed) < 0) {
        return;
    }
    others = allowed;
    CPU_CLR((unsigned)cpu, &others);
    if (CPU_COUNT(&others) == 0) {
        return;
    }
    /* Said before: an end that went to sleep now would be woken by this one, and put on the very
     * processor that this one moves to. */
    lane_place(c->lane, false);
    if (sched_setaffinity(0, sizeof others, &others) == 0) {
        (void)sched_setaffinity(0, sizeof allowed, &allowed);
    }
    lane_place(c->lane, true);
}

/* The other end, where it is about to sleep: that takes nobody's time, and it is woken where it
 * slept. Where the ends are asked a few times and then pause, the one below would have to move each
 * time anew. */
static void
sleep_elsewhere(channel *c)
{
    if (c->moves || !c->spins || await_zmq(c) || !lane_stacked(c->lane)) {
        return;
    }
    int64_t now = channel_now_us() / 1000;
    if (now - c->left_at >= LEAVE_MS) {
        c->left_at = now;
        go_elsewhere(c);
    }
}

/* Only the accepting end does so while frames come and go, lest both do. */
static void
move_away(channel *c)
{
    if (!c->moves || !c->hot || !c->spins || await_zmq(c) || !lane_stacked(c->lane) ||
        ++c->stacked < c->patience) {
        return;
    }
    c->patience = c->spun >= MOVED_WORTH           ? STACKED_FEW
                  : c->patience < STACKED_MOST / 2 ? c->patience * 2
                                                   : STACKED_MOST;
    c->stacked = c->spun = 0;
    go_elsewhere(c);
}

bool
channel_spin(channel *c, unsigned us)
{
    if (c->lane == NULL || !may_spin(c)) {
        return false;
    }
    /* The first looks without one at the clock. */
    if (lane_spin(c->lane, SPIN_LOOKS) || spin_until(c, channel_now_us() + us)) {
        c->spun++;
        return true;
    }
    return false;
}

/* The time to spin follows what it was good for: where a frame came soon, the next is waited for in
 * full, else half as long. So who waits long, or is asked rarely, hardly spins. */
static void
learn(channel *c, bool soon)
{
    c->slept = soon ? 0 : c->slept + 1;
    if (soon || c->slept % SPIN_RETRY == 0) {
        c->spin_us = SPIN_US;
    }
    else {
        c->spin_us = c->spin_us / 2 < SPIN_LEAST_US ? SPIN_LEAST_US : c->spin_us / 2;
    }
}

int
channel_wait(channel *c, const int *fds, int nfds, int timeout_ms, unsigned *ready)
{
    struct pollfd items[CHANNEL_MAX_FDS + 3];
    int n = 0, timer = -1;
    int64_t since = 0; /* of a wait that has spun */
    bool dozing = false;
    *ready = 0;
    if (nfds > CHANNEL_MAX_FDS) {
        errno = EINVAL;
        return -1;
    }
    if (c->lane != NULL && timeout_ms != 0) {
        move_away(c);
    }
    if (c->lane != NULL && c->together != lane_stacked(c->lane)) {
        c->together = !c->together;
        c->spin_us = SPIN_US; /* what was learnt before does not hold any more */
    }
    if (c->lane != NULL && timeout_ms != 0 && may_spin(c)) {
        since = channel_now_us();
        if (spin_until(c, since + c->spin_us)) {
            learn(c, true);
            *ready = CHANNEL_FRAME;
            return 1;
        }
    }
    if (c->lane != NULL && timeout_ms != 0) {
        c->spins = several_processors(); /* that may change, and before sleeping costs little */
        if (c->out != NULL && c->hot) {
            channel_reclaim(c);
            extents_prepare(c->out);
        }
    }
    bool was_hot = c->hot;
    c->hot = false;
    if (await_zmq(c) && channel_need_socket(c) < 0) {
        return -1;
    }
    if (await_zmq(c) && !c->drained) {
        int events = 0;
        size_t size = sizeof events;
        if (zmq_getsockopt(c->socket, ZMQ_EVENTS, &events, &size) < 0) {
            return -1;
        }
        if (events & ZMQ_POLLIN) {
            timeout_ms = 0;
            *ready = CHANNEL_FRAME;
        }
        else {
            c->drained = true;
        }
    }
    if (c->lane != NULL && c->received >= c->owed && timeout_ms != 0) {
        dozing = lane_doze(c->lane);
        if (!dozing) {
            timeout_ms = 0;
            *ready = CHANNEL_FRAME;
        }
        else if (was_hot) {
            sleep_elsewhere(c);
        }
    }
    for (; n < nfds; n++) {
        items[n] = (struct pollfd){.fd = fds[n], .events = POLLIN};
    }
    items[n++] = (struct pollfd){.fd = await_zmq(c) ? c->signal_fd : -1, .events = POLLIN};
    items[n++] =
        (struct pollfd){.fd = dozing && !c->hung_up ? lane_bell(c->lane) : -1, .events = POLLIN};
    if (timeout_ms > 0) {
        if (arm_timer(c, timeout_ms) < 0) {
            return -1;
        }
        timer = n;
        items[n++] = (struct pollfd){.fd = c->timer_fd, .events = POLLIN};
    }
    /* One poll() over everything, where zmq_poll() would make two and ask libzmq around each. */
    int rc = poll(items, (nfds_t)n, timeout_ms > 0 ? -1 : timeout_ms);
    int saved = errno;
    if (dozing && !lane_woken(c->lane)) {
        rc = -1;
        saved = EBADF;
    }
    if (rc < 0) {
        errno = saved;
        return -1;
    }
    for (int i = 0; i < nfds; i++) {
        if (items[i].revents != 0) {
            *ready |= 1u << i;
        }
    }
    if (items[nfds].revents != 0 || items[nfds + 1].revents != 0) {
        *ready |= CHANNEL_FRAME;
        c->hung_up = c->hung_up || (items[nfds + 1].revents & (POLLHUP | POLLERR));
    }
    if (timer >= 0 && items[timer].revents != 0) {
        c->timer_at = 0; /* arming it again makes it unreadable */
    }
    if (since != 0) {
        learn(c, *ready & CHANNEL_FRAME && channel_now_us() - since < SPIN_WORTH_US);
    }
    return __builtin_popcount(*ready);
}
