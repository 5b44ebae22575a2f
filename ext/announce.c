#define _GNU_SOURCE
#include "announce.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef AT_MINSIGSTKSZ
#define AT_MINSIGSTKSZ 51
#endif

#include "recorder.h"

/* Enough for handlers that print stacks, as those chained may. */
#define STACK_SIZE (64 * 1024)
/* An alternate stack that somebody else has set is kept from this size on. */
#define STACK_ENOUGH (16 * 1024)

static const int fatal_signals[] = {SIGSEGV, SIGBUS, SIGFPE,  SIGILL,
                                    SIGABRT, SIGSYS, SIGTRAP, SIGXCPU};
#define FATAL_SIGNALS (sizeof fatal_signals / sizeof *fatal_signals)

/* A signal handler gets no context: this is what it works on. Written by announce_install() and
 * announce_interrupt_gate() only. */
static struct {
    pid_t pid; /* whose announcements these are; a fork of it is somebody else */
    struct shared_page *page;
    int alarm_fd;
    dev_t alarm_device; /* to notice that user code has closed it, and what has its number now */
    ino_t alarm_inode;
    struct sigaction previous[FATAL_SIGNALS];

    int have_stack_key;
    pthread_key_t stack_key;    /* frees a thread's alternate stack */
    struct stack_owner *stacks; /* all that were made */

    pid_t gate_pid;
    struct shared_page *gate_page;
    void (*trip)(void);
} state;

struct shared_page *
announce_map(int shared_fd)
{
    size_t size = sysconf(_SC_PAGESIZE);
    struct stat facts;
    struct shared_page *page;

    if (fstat(shared_fd, &facts) < 0)
        return NULL;
    if ((size_t)facts.st_size < size) { /* the record is behind it */
        errno = EPROTO;
        return NULL;
    }
    page = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, shared_fd, 0);
    if (page == MAP_FAILED)
        return NULL;
    if (page->magic != SHARED_MAGIC || page->version != SHARED_VERSION) {
        munmap(page, size);
        errno = EPROTO;
        return NULL;
    }
    return page;
}

void
announce_unmap(struct shared_page *page)
{
    munmap(page, sysconf(_SC_PAGESIZE));
}

/* ---- in the handler: async-signal-safe functions only -------------------------------------- */

/* Did the machine raise it at an instruction that would raise it again? Not a trap, which is behind
 * the instruction, nor a system call that seccomp refused. */
static int
is_fault(const siginfo_t *info)
{
    switch (info->si_signo) {
    case SIGBUS:
        if (info->si_code == BUS_MCEERR_AO) /* news of bad memory that nothing has touched yet */
            return 0;
        return info->si_code > 0;
    case SIGSEGV:
    case SIGFPE:
    case SIGILL:
        return info->si_code > 0;
    }
    return 0;
}

/* A thread is writing the record. */
static atomic_int recording;

static void
ring_alarm(void)
{
    struct stat facts;

    if (fstat(state.alarm_fd, &facts) == 0 && facts.st_dev == state.alarm_device &&
        facts.st_ino == state.alarm_inode)
        (void)!write(state.alarm_fd, "", 1);
}

/* What shows whether a limit of memory was behind it. An allocation that fails leaves ENOMEM in
 * errno, which nothing that succeeds afterwards takes away. */
static void
note_memory(int error)
{
    struct shared_page *page = state.page;
    struct rlimit limit;
    char text[4096], *field;
    uint64_t kilobytes = 0;
    int fd;

    if (atomic_load(&page->announced) != ANNOUNCED_NONE || getrlimit(RLIMIT_DATA, &limit) < 0 ||
        limit.rlim_cur == RLIM_INFINITY)
        return;
    page->no_memory = error == ENOMEM;
    fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0)
        close(fd);
    text[n > 0 ? n : 0] = 0;
    field = strstr(text, "\nVmData:");
    field = field ? field + strcspn(field, "0123456789") : "";
    while (*field >= '0' && *field <= '9')
        kilobytes = kilobytes * 10 + (uint64_t)(*field++ - '0');
    page->data_used = kilobytes * 1024;
}

/* The stack pointer of what was interrupted, 0 where this does not know the machine. */
static uintptr_t
interrupted_stack(const ucontext_t *context)
{
#if defined __x86_64__
    return (uintptr_t)context->uc_mcontext.gregs[REG_RSP];
#elif defined __aarch64__
    return (uintptr_t)context->uc_mcontext.sp;
#else
    (void)context;
    return 0;
#endif
}

/* Was this thread interrupted within the handler of a signal that it has announced already? Then
 * the first one is the cause, and this one only its handler's end, like abort(). */
static int
is_consequence(const struct shared_page *page, const ucontext_t *context, pid_t tid)
{
    const stack_t *stack = &context->uc_stack;

    return page->tid == tid &&
           interrupted_stack(context) - (uintptr_t)stack->ss_sp < stack->ss_size;
}

/* A handler that was installed after ours, such as faulthandler's, is heard first; it then sends
 * the signal again, without the address. But where it runs on the alternate stack, what the
 * operating system saved at the fault itself is still there, further up: found by the description
 * of that stack, which is a part of it. It has the registers and, of a fault of memory, the
 * address. Replaces info and context by those, if so; *cause is where the former then is. The stack
 * is searched word by word, also where a sanitizer keeps variables apart. */
__attribute__((no_sanitize("address"))) static void
find_original(const siginfo_t **info, const ucontext_t **context, siginfo_t *cause)
{
#if defined __x86_64__
    enum { GENERAL_PROTECTION = 13, PAGE_FAULT = 14, PROTECTION = 1 };
    const stack_t *stack = &(*context)->uc_stack;
    uintptr_t at = interrupted_stack(*context), start = (uintptr_t)stack->ss_sp;
    size_t room = offsetof(ucontext_t, uc_sigmask);

    if ((*info)->si_code > 0 || at < start || at >= start + stack->ss_size)
        return;
    for (at = (at + 7) & ~(uintptr_t)7; at + room <= start + stack->ss_size; at += 8) {
        const ucontext_t *saved = (const ucontext_t *)at;
        const greg_t *registers = saved->uc_mcontext.gregs;
        if (saved->uc_stack.ss_sp != stack->ss_sp || saved->uc_stack.ss_size != stack->ss_size ||
            interrupted_stack(saved) - start < stack->ss_size)
            continue;
        *context = saved;
        if ((*info)->si_signo == SIGSEGV && registers[REG_TRAPNO] == PAGE_FAULT) {
            *cause = (siginfo_t){.si_signo = SIGSEGV};
            cause->si_code = registers[REG_ERR] & PROTECTION ? SEGV_ACCERR : SEGV_MAPERR;
            cause->si_addr = (void *)registers[REG_CR2];
            *info = cause;
        }
        else if ((*info)->si_signo == SIGSEGV && registers[REG_TRAPNO] == GENERAL_PROTECTION) {
            *cause = (siginfo_t){.si_signo = SIGSEGV, .si_code = SI_KERNEL};
            *info = cause;
        }
        return;
    }
#else
    (void)info;
    (void)context;
    (void)cause;
#endif
}

/* How long a thread that dies as well lets the first one finish its record. */
#define RECORD_LIMIT_MS 100

/* Writes the facts and rings. Of several threads, the first one is heard; the others must not end
 * the process before it is through. */
static void
announce(const siginfo_t *info, const ucontext_t *context, enum announced how)
{
    struct shared_page *page = state.page;
    pid_t tid = (pid_t)syscall(SYS_gettid);
    uint32_t seen = atomic_load(&page->announced);

    do {
        if (seen != ANNOUNCED_NONE && seen != ANNOUNCED_TENTATIVE) {
            for (int i = 0;
                 i < RECORD_LIMIT_MS && page->tid != tid &&
                 (atomic_load(&page->announced) == ANNOUNCED_WRITING || atomic_load(&recording));
                 i++)
                poll(NULL, 0, 1);
            return;
        }
    } while (!atomic_compare_exchange_weak(&page->announced, &seen, ANNOUNCED_WRITING));

    int cause = seen == ANNOUNCED_NONE || !is_consequence(page, context, tid);
    if (cause) {
        siginfo_t original;
        find_original(&info, &context, &original);
        atomic_store(&recording, 1);
        recorder_write(info, context);
        page->signal = info->si_signo;
        page->code = info->si_code;
        page->pid = state.pid;
        page->tid = tid;
        page->address = info->si_code > 0 ? (uint64_t)(uintptr_t)info->si_addr : 0;
    }
    atomic_store(&page->announced, how);
    ring_alarm();
    if (cause) {
        recorder_write_python();
        atomic_store(&recording, 0);
    }
}

/* Where a debugger is to find the process as it is: stops it, all threads, until somebody continues
 * or kills it. */
static void
stand_still(void)
{
    if (!atomic_load(&state.page->hold))
        return;
    /* Where only parents may trace, the debugger is none. Fails where nobody restricts that. */
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY, 0, 0, 0);
    syscall(SYS_kill, getpid(), SIGSTOP);
}

/* Dies of the signal, as if there had never been a handler. */
static void
die(const siginfo_t *info)
{
    struct sigaction action = {.sa_handler = SIG_DFL};

    sigaction(info->si_signo, &action, NULL);
    /* A fault happens again when the handler returns, with its address for the core dump. Anything
     * else has to be sent again; it is blocked here, and so delivered at the return. */
    if (!is_fault(info))
        syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), info->si_signo);
}

/* Calls the earlier handler just as the operating system would have. */
static void
chain(const struct sigaction *previous, int signum, siginfo_t *info, void *context)
{
    sigset_t mask = ((ucontext_t *)context)->uc_sigmask;
    struct sigaction reset = {.sa_handler = SIG_DFL};

    for (int other = 1; other <= SIGRTMAX; other++)
        if (sigismember(&previous->sa_mask, other) == 1)
            sigaddset(&mask, other);
    if (!(previous->sa_flags & SA_NODEFER))
        sigaddset(&mask, signum);
    sigprocmask(SIG_SETMASK, &mask, NULL);
    if (previous->sa_flags & SA_RESETHAND)
        sigaction(signum, &reset, NULL);

    if (previous->sa_flags & SA_SIGINFO)
        previous->sa_sigaction(signum, info, context);
    else
        previous->sa_handler(signum);
}

/* After an earlier handler has returned: is the signal dealt with? Not where the handler has put
 * the default back, to die when it returns, as faulthandler and many others do. */
static void
settle(const struct sigaction *previous, int signum)
{
    uint32_t tentative = ANNOUNCED_TENTATIVE;
    struct sigaction now;

    int dying = !(previous->sa_flags & SA_RESETHAND) && sigaction(signum, NULL, &now) == 0 &&
                !(now.sa_flags & SA_SIGINFO) && now.sa_handler == SIG_DFL;
    atomic_compare_exchange_strong(&state.page->announced, &tentative,
                                   dying ? ANNOUNCED_COMPLETE : ANNOUNCED_NONE);
    if (dying)
        stand_still();
}

static void
on_fatal(int signum, siginfo_t *info, void *context)
{
    int saved_errno = errno;
    int mine = getpid() == state.pid;
    size_t i = 0;

    while (fatal_signals[i] != signum)
        i++;
    if (mine)
        note_memory(saved_errno);
    const struct sigaction *previous = &state.previous[i];
    int plain = !(previous->sa_flags & SA_SIGINFO);

    if (plain && previous->sa_handler == SIG_IGN && info->si_code <= 0) {
        /* Sent by a process, and was to be ignored; a fault cannot be. */
    }
    else if (plain && (previous->sa_handler == SIG_IGN || previous->sa_handler == SIG_DFL)) {
        if (mine) {
            announce(info, context, ANNOUNCED_COMPLETE);
            stand_still();
        }
        die(info);
    }
    else {
        if (mine)
            announce(info, context, ANNOUNCED_TENTATIVE);
        chain(previous, signum, info, context);
        if (mine)
            settle(previous, signum);
    }
    errno = saved_errno;
}

static void
on_interrupt(int signum, siginfo_t *info, void *context)
{
    int saved_errno = errno;
    pid_t pid = getpid();
    int own = info->si_code <= 0 && info->si_pid == pid; /* such as signal.raise_signal() */
    uint64_t request = atomic_load(&state.gate_page->interrupt_request);

    (void)signum;
    (void)context;
    if (own || pid != state.gate_pid ||
        (request != 0 && request == atomic_load(&state.gate_page->executing_request)))
        state.trip();
    errno = saved_errno;
}

/* ---- alternate stacks ---------------------------------------------------------------------- */

static size_t
stack_size(void)
{
    size_t least = getauxval(AT_MINSIGSTKSZ); /* depends on the CPU's registers */
    size_t page = sysconf(_SC_PAGESIZE);

    return (STACK_SIZE + least + page - 1) / page * page;
}

/* A link of the list of stacks, at the upper end of each: overflows come from the other one. */
struct stack_owner {
    struct stack_owner *next, **link;
};

static pthread_mutex_t stacks_lock = PTHREAD_MUTEX_INITIALIZER;

static struct stack_owner *
owner_of(void *stack)
{
    return (struct stack_owner *)((char *)stack + stack_size() - sizeof(struct stack_owner));
}

static void
lock_stacks(void)
{
    pthread_mutex_lock(&stacks_lock);
}

static void
unlock_stacks(void)
{
    pthread_mutex_unlock(&stacks_lock);
}

static void
unmap_stack(void *stack)
{
    size_t guard = sysconf(_SC_PAGESIZE);
    struct stack_owner *owner = owner_of(stack);

    *owner->link = owner->next;
    if (owner->next)
        owner->next->link = owner->link;
    munmap((char *)stack - guard, stack_size() + guard);
}

/* Frees a stack made by announce_thread_stack(), which has a guard page below it. */
static void
free_stack(void *stack)
{
    stack_t off = {.ss_flags = SS_DISABLE}, now;

    if (sigaltstack(NULL, &now) == 0 && now.ss_sp == stack)
        sigaltstack(&off, NULL);
    lock_stacks();
    unmap_stack(stack);
    unlock_stacks();
}

void
announce_forked(void)
{
    void *own = state.have_stack_key ? pthread_getspecific(state.stack_key) : NULL;

    for (struct stack_owner *o = state.stacks, *next; o; o = next) {
        void *stack = (char *)(o + 1) - stack_size();
        next = o->next;
        if (stack != own)
            unmap_stack(stack);
    }
}

int
announce_thread_stack(void)
{
    size_t guard = sysconf(_SC_PAGESIZE), size = stack_size();
    stack_t stack = {.ss_size = size - sizeof(struct stack_owner)}, now;
    char *memory;
    int error;

    if (sigaltstack(NULL, &now) < 0)
        return -1;
    if (!(now.ss_flags & SS_DISABLE) && now.ss_size >= STACK_ENOUGH)
        return 0;
    if (!state.have_stack_key) {
        errno = EINVAL;
        return -1;
    }
    memory = mmap(NULL, guard + size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -1;
    stack.ss_sp = memory + guard;
    if (mprotect(stack.ss_sp, size, PROT_READ | PROT_WRITE) < 0)
        goto error;
    /* One that was replaced by somebody's smaller one is still there to be freed. */
    void *old = pthread_getspecific(state.stack_key);
    if ((errno = pthread_setspecific(state.stack_key, stack.ss_sp)) != 0)
        goto error;
    if (sigaltstack(&stack, NULL) < 0) {
        pthread_setspecific(state.stack_key, old);
        goto error;
    }
    struct stack_owner *owner = owner_of(stack.ss_sp);
    lock_stacks();
    *owner = (struct stack_owner){state.stacks, &state.stacks};
    if (owner->next)
        owner->next->link = &owner->next;
    state.stacks = owner;
    unlock_stacks();
    if (old)
        free_stack(old);
    return 0;
error:
    error = errno;
    munmap(memory, guard + size);
    errno = error;
    return -1;
}

/* ---- installation -------------------------------------------------------------------------- */

static int
is_ours(const struct sigaction *action)
{
    return (action->sa_flags & SA_SIGINFO) && action->sa_sigaction == on_fatal;
}

/* 0, or -1 and errno. */
static int
install(size_t i, int again)
{
    struct sigaction action = {.sa_sigaction = on_fatal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    struct sigaction now;

    sigemptyset(&action.sa_mask);
    if (sigaction(fatal_signals[i], NULL, &now) < 0)
        return -1;
    if (is_ours(&now))
        return 0;
    /* A handler that came after ours has ours as its previous one. To chain to it would be a
     * circle. */
    if (again &&
        ((now.sa_flags & SA_SIGINFO) || (now.sa_handler != SIG_DFL && now.sa_handler != SIG_IGN)))
        return 0;
    state.previous[i] = now;
    return sigaction(fatal_signals[i], &action, NULL);
}

int
announce_install(struct shared_page *page, int alarm_fd)
{
    int again = state.page != NULL;
    struct stat facts;

    if (fstat(alarm_fd, &facts) < 0)
        return -1;
    /* The child's programs have no business with it. */
    if (fcntl(alarm_fd, F_SETFD, FD_CLOEXEC) < 0)
        return -1;
    if (!state.have_stack_key) {
        /* The list is whole in a fork. */
        if ((errno = pthread_atfork(lock_stacks, unlock_stacks, unlock_stacks)) != 0 ||
            (errno = pthread_key_create(&state.stack_key, free_stack)) != 0)
            return -1;
        state.have_stack_key = 1;
    }
    if (announce_thread_stack() < 0)
        return -1;

    state.page = page;
    state.alarm_fd = alarm_fd;
    state.alarm_device = facts.st_dev;
    state.alarm_inode = facts.st_ino;
    state.pid = getpid();
    for (size_t i = 0; i < FATAL_SIGNALS; i++)
        if (install(i, again) < 0)
            return -1;
    return 0;
}

/* ---- the end ------------------------------------------------------------------------------- */

/* The holder's stack: its frame and the static thread-local storage of all libraries. Address
 * space, of which a page or two are used. */
#define HOLDER_STACK_SIZE (256 * 1024)

/* Holds page->alive. A thread of its own, because the others may end before the process does, and
 * because libc has lists of robust futexes in those, which are not ours to change. Here it has no
 * use for its list, and ours takes the place. */
static void *
hold(void *argument)
{
    struct shared_page *page = argument;
    struct robust_list_head *list = &page->held;
    uint32_t forever = 0;

    prctl(PR_SET_NAME, HOLDER_NAME); /* where there is no /proc nobody else could */
    list->futex_offset = (long)((uintptr_t)&page->alive - (uintptr_t)&page->held_alive);
    list->list.next = &page->held_alive;
    page->held_alive.next = &list->list;
    if (syscall(SYS_set_robust_list, list, sizeof *list) < 0)
        return NULL;
    /* Who waits only reads: the bit for which it is woken is set here. */
    atomic_store(&page->alive, (uint32_t)syscall(SYS_gettid) | FUTEX_WAITERS);
    syscall(SYS_futex, &page->alive, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
    for (;;) /* in a call that no sandbox forbids */
        syscall(SYS_futex, &forever, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

int
announce_end(struct shared_page *page)
{
    pthread_attr_t attributes;
    sigset_t all, before;
    pthread_t holder;
    int error;

    if ((error = pthread_attr_init(&attributes)) != 0)
        goto done;
    error = pthread_attr_setstacksize(&attributes, HOLDER_STACK_SIZE);
    if (!error) {
        sigfillset(&all); /* signals are for the threads of the user's code */
        pthread_sigmask(SIG_SETMASK, &all, &before);
        error = pthread_create(&holder, &attributes, hold, page);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    }
    if (!error) {
        pthread_setname_np(holder, HOLDER_NAME); /* before it runs: see foreign_threads() */
        pthread_detach(holder);
    }
    pthread_attr_destroy(&attributes);
done:
    errno = error;
    return error ? -1 : 0;
}

/* ---- interrupts ---------------------------------------------------------------------------- */

int
announce_interrupt_gate(struct shared_page *page, void (*trip)(void))
{
    struct sigaction action = {.sa_sigaction = on_interrupt, .sa_flags = SA_SIGINFO | SA_ONSTACK};

    sigemptyset(&action.sa_mask);
    state.gate_page = page;
    state.trip = trip;
    state.gate_pid = getpid();
    return sigaction(SIGINT, &action, NULL);
}
