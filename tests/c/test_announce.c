/* Each case dies, or does not, in a fork of its own; the page and the alarm pipe are shared. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "announce.h"
#include "check.h"

/* The sanitizer's own handlers would be chained; here the bare system is under test. */
const char *
__asan_default_options(void)
{
    return "handle_segv=0:handle_sigbus=0:handle_sigfpe=0:handle_sigill=0:handle_abort=0:"
           "use_sigaltstack=0:detect_leaks=0:detect_stack_use_after_return=0";
}

static struct shared_page *page; /* of this test and its forks */
static int alarm_pipe[2];

/* Runs body in a fork and returns its wait status; 10 s at most. */
static int
run(void (*body)(void))
{
    char drained[64];
    int status = 0;

    memset(page, 0, sizeof *page);
    while (read(alarm_pipe[0], drained, sizeof drained) > 0)
        ;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        struct rlimit core = {0, 0};
        setrlimit(RLIMIT_CORE, &core);
        alarm(10);
        body();
        _exit(0);
    }
    waitpid(pid, &status, 0);
    return status;
}

static int
rung(void)
{
    char bytes[64];
    ssize_t n = read(alarm_pipe[0], bytes, sizeof bytes);

    return n > 0 ? (int)n : 0;
}

static int
died_of(int status, int signum)
{
    return WIFSIGNALED(status) && WTERMSIG(status) == signum;
}

static int
ended_well(int status)
{
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static void
install(void)
{
    if (announce_install(page, alarm_pipe[1]) < 0)
        _exit(100);
}

static void
handle(int signum, void (*handler)(int), int flags)
{
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};

    sigaction(signum, &action, NULL);
}

#define BAD_ADDRESS 0xdead000

__attribute__((no_sanitize("address", "undefined"))) static void
touch(uintptr_t address)
{
    *(volatile char *)address = 1;
}

/* ---- the default: announced, and really dead of it ----------------------------------------- */

static void
fault_segv(void)
{
    install();
    touch(BAD_ADDRESS);
}

static void
fault_bus(void)
{
    install();
    int fd = memfd_create("empty", 0);
    touch((uintptr_t)mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
}

__attribute__((no_sanitize("undefined"))) static void
fault_fpe(void)
{
#if defined __x86_64__
    volatile int zero = 0;
    install();
    zero = 7 / zero;
#else
    install();
    raise(SIGFPE);
#endif
}

static void
fault_ill(void)
{
#if defined __x86_64__
    install();
    __asm__ volatile("ud2");
#else
    install();
    raise(SIGILL);
#endif
}

static void
fault_trap(void)
{
#if defined __x86_64__
    install();
    __asm__ volatile("int3");
#else
    install();
    raise(SIGTRAP);
#endif
}

static void
call_abort(void)
{
    install();
    abort();
}

static void
raise_sys(void)
{
    install();
    raise(SIGSYS);
}

static void
kill_segv(void)
{
    install();
    kill(getpid(), SIGSEGV);
}

static void
test_defaults(void)
{
    static const struct {
        void (*body)(void);
        int signum;
    } cases[] = {
        {fault_segv, SIGSEGV}, {fault_bus, SIGBUS}, {fault_fpe, SIGFPE},   {fault_ill, SIGILL},
        {fault_trap, SIGTRAP}, {raise_sys, SIGSYS}, {call_abort, SIGABRT}, {kill_segv, SIGSEGV},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int status = run(cases[i].body);
        CHECK(died_of(status, cases[i].signum));
        CHECK_EQUAL(page->announced, ANNOUNCED_COMPLETE);
        CHECK_EQUAL(page->signal, cases[i].signum);
        CHECK(page->pid > 0 && page->tid == page->pid);
        CHECK_EQUAL(rung(), 1);
        if (cases[i].body == fault_segv) {
            CHECK_EQUAL(page->address, BAD_ADDRESS);
            CHECK_EQUAL(page->code, SEGV_MAPERR);
        }
        if (cases[i].body == kill_segv) {
            CHECK_EQUAL(page->address, 0);
            CHECK_EQUAL(page->code, SI_USER);
        }
    }
}

/* ---- stack overflows ------------------------------------------------------------------------ */

__attribute__((noinline, no_sanitize("address", "undefined"))) static int
recurse(int depth)
{
    volatile char frame[4096];

    frame[0] = (char)depth;
    return depth < 0 ? 0 : recurse(depth + 1) + frame[0];
}

static void
overflow(void)
{
    install();
    recurse(1);
}

static void *
overflow_thread(void *argument)
{
    if (announce_thread_stack() < 0)
        _exit(101);
    recurse(1);
    return argument;
}

static void
overflow_in_thread(void)
{
    pthread_t thread;

    install();
    pthread_create(&thread, NULL, overflow_thread, NULL);
    pthread_join(thread, NULL);
}

static void
test_stack_overflow(void)
{
    CHECK(died_of(run(overflow), SIGSEGV));
    CHECK_EQUAL(page->announced, ANNOUNCED_COMPLETE);
    CHECK(page->address != 0);

    CHECK(died_of(run(overflow_in_thread), SIGSEGV));
    CHECK_EQUAL(page->announced, ANNOUNCED_COMPLETE);
    CHECK(page->tid != page->pid);
}

static void *
with_stack(void *argument)
{
    stack_t now;

    /* Twice is once. */
    if (announce_thread_stack() < 0 || announce_thread_stack() < 0)
        _exit(102);
    if (sigaltstack(NULL, &now) < 0 || (now.ss_flags & SS_DISABLE))
        _exit(103);
    return argument;
}

static long
mappings(void)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    long lines = 0;
    int c;

    while ((c = fgetc(maps)) != EOF)
        lines += c == '\n';
    fclose(maps);
    return lines;
}

static void
many_threads(void)
{
    pthread_t thread;
    long first = 0;

    install();
    for (int i = 0; i < 200; i++) {
        pthread_create(&thread, NULL, with_stack, NULL);
        pthread_join(thread, NULL);
        if (i == 20)
            first = mappings();
    }
    if (mappings() > first + 10)
        _exit(104);
}

static void
test_thread_stacks_are_freed(void)
{
    CHECK(ended_well(run(many_threads)));
}

/* ---- earlier handlers ----------------------------------------------------------------------- */

static char *broken_page;
static sigjmp_buf way_out;

static void
mend(int signum)
{
    (void)signum;
    if (page->announced != ANNOUNCED_TENTATIVE)
        _exit(105);
    mprotect(broken_page, 4096, PROT_READ | PROT_WRITE);
}

static void
recover_by_return(void)
{
    broken_page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    handle(SIGSEGV, mend, 0);
    install();
    touch((uintptr_t)broken_page);
}

static void
jump(int signum)
{
    (void)signum;
    siglongjmp(way_out, 1);
}

static void
recover_by_jump(void)
{
    handle(SIGSEGV, jump, 0);
    install();
    for (volatile int i = 0; i < 3; i++)
        if (sigsetjmp(way_out, 1) == 0)
            touch(BAD_ADDRESS);
}

static void
die_after_recovery(void)
{
    recover_by_jump();
    page->tid = 0; /* to see that the new facts are written */
    raise(SIGFPE);
}

static void
call_abort_in_handler(int signum)
{
    (void)signum;
    abort();
}

/* On the alternate stack as well, but no consequence of what was dealt with before. */
static void
abort_in_another_handler(void)
{
    recover_by_return();
    handle(SIGUSR1, call_abort_in_handler, SA_ONSTACK);
    raise(SIGUSR1);
}

static void
abort_in_handler(void)
{
    handle(SIGSEGV, call_abort_in_handler, 0);
    install();
    touch(BAD_ADDRESS);
}

static void
give_up(int signum)
{
    handle(signum, SIG_DFL, 0);
}

static void
default_and_return(void)
{
    handle(SIGSEGV, give_up, 0);
    install();
    touch(BAD_ADDRESS);
}

static void
give_up_and_raise(int signum)
{
    handle(signum, SIG_DFL, 0);
    raise(signum);
    _exit(106); /* SA_NODEFER: the line above does not return */
}

static void
default_and_raise(void)
{
    handle(SIGABRT, give_up_and_raise, SA_NODEFER);
    install();
    raise(SIGABRT);
}

static void
check_once(int signum)
{
    struct sigaction now;

    sigaction(signum, NULL, &now);
    if (now.sa_handler != SIG_DFL)
        _exit(107);
}

static void
reset_handler(void)
{
    handle(SIGTRAP, check_once, SA_RESETHAND);
    install();
    raise(SIGTRAP);
}

static void
check_mask(int signum)
{
    sigset_t mask;

    (void)signum;
    sigprocmask(SIG_SETMASK, NULL, &mask);
    if (sigismember(&mask, SIGUSR1) != 1 || sigismember(&mask, SIGUSR2) != 0 ||
        sigismember(&mask, SIGSYS) != 1)
        _exit(108);
}

static void
masked_handler(void)
{
    struct sigaction action = {.sa_handler = check_mask};

    sigaddset(&action.sa_mask, SIGUSR1);
    sigaction(SIGSYS, &action, NULL);
    install();
    raise(SIGSYS);
}

static void
ignored_and_sent(void)
{
    handle(SIGSEGV, SIG_IGN, 0);
    install();
    kill(getpid(), SIGSEGV);
}

static void
ignored_and_fault(void)
{
    handle(SIGSEGV, SIG_IGN, 0);
    install();
    touch(BAD_ADDRESS);
}

static void
test_earlier_handlers(void)
{
    CHECK(ended_well(run(recover_by_return)));
    CHECK_EQUAL(page->announced, ANNOUNCED_NONE);
    CHECK_EQUAL(page->signal, SIGSEGV);

    CHECK(ended_well(run(recover_by_jump)));
    CHECK_EQUAL(page->announced, ANNOUNCED_TENTATIVE);
    CHECK_EQUAL(rung(), 3);

    CHECK(died_of(run(die_after_recovery), SIGFPE));
    CHECK_EQUAL(page->announced, ANNOUNCED_COMPLETE);
    CHECK_EQUAL(page->signal, SIGFPE);
    CHECK(page->tid != 0);

    CHECK(died_of(run(abort_in_handler), SIGABRT));
    CHECK_EQUAL(page->announced, ANNOUNCED_COMPLETE);
    CHECK_EQUAL(page->signal, SIGSEGV); /* the cause */
    CHECK_EQUAL(page->address, BAD_ADDRESS);

    CHECK(died_of(run(abort_in_another_handler), SIGABRT));
    CHECK_EQUAL(page->signal, SIGABRT);

    CHECK(died_of(run(default_and_return), SIGSEGV));
    CHECK_EQUAL(page->announced, ANNOUNCED_COMPLETE);

    CHECK(died_of(run(default_and_raise), SIGABRT));
    CHECK_EQUAL(page->announced, ANNOUNCED_TENTATIVE);

    CHECK(ended_well(run(reset_handler)));
    CHECK_EQUAL(page->announced, ANNOUNCED_NONE);
    CHECK(ended_well(run(masked_handler)));
    CHECK_EQUAL(page->signal, SIGSYS);

    CHECK(ended_well(run(ignored_and_sent)));
    CHECK_EQUAL(page->announced, ANNOUNCED_NONE);
    CHECK_EQUAL(rung(), 0);
    CHECK(died_of(run(ignored_and_fault), SIGSEGV));
    CHECK_EQUAL(page->announced, ANNOUNCED_COMPLETE);
}

/* ---- user code that is in the way ----------------------------------------------------------- */

static void
reused_descriptor(void)
{
    int other[2];

    install();
    if (pipe2(other, O_NONBLOCK) < 0)
        _exit(109);
    pid_t pid = fork(); /* announces nothing itself, so the same case again in it */
    if (pid == 0) {
        install();
        dup2(other[1], alarm_pipe[1]);
        touch(BAD_ADDRESS);
    }
    waitpid(pid, NULL, 0);
    char byte;
    if (page->announced != ANNOUNCED_COMPLETE || read(other[0], &byte, 1) > 0)
        _exit(110);
}

static void
closed_descriptor(void)
{
    install();
    close(alarm_pipe[1]);
    touch(BAD_ADDRESS);
}

static void
unmapped_page(void)
{
    install();
    munmap(page, 4096);
    touch(BAD_ADDRESS);
}

static void
full_pipe(void)
{
    char bytes[4096] = {0};

    install();
    while (write(alarm_pipe[1], bytes, sizeof bytes) > 0)
        ;
    touch(BAD_ADDRESS);
}

static void
crashing_fork(void)
{
    int status;

    install();
    pid_t pid = fork();
    if (pid == 0)
        touch(BAD_ADDRESS);
    waitpid(pid, &status, 0);
    if (!died_of(status, SIGSEGV))
        _exit(111);
}

/* A frozen copy takes over: with another page, in another process. */
static void
taking_over(void)
{
    struct shared_page *second =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int status;

    install();
    pid_t pid = fork();
    if (pid == 0) {
        if (announce_install(second, alarm_pipe[1]) < 0)
            _exit(112);
        touch(BAD_ADDRESS);
    }
    waitpid(pid, &status, 0);
    if (!died_of(status, SIGSEGV) || second->announced != ANNOUNCED_COMPLETE ||
        second->pid != pid || page->announced != ANNOUNCED_NONE)
        _exit(113);
}

static struct sigaction below;

static void
call_below(int signum, siginfo_t *info, void *context)
{
    if (!(below.sa_flags & SA_SIGINFO))
        _exit(114);
    below.sa_sigaction(signum, info, context);
}

/* A handler that came after ours, as faulthandler's, and then ours again: no circle. */
static void
no_circle(void)
{
    struct sigaction above = {.sa_sigaction = call_below, .sa_flags = SA_SIGINFO};

    install();
    sigaction(SIGSEGV, &above, &below);
    install();
    touch(BAD_ADDRESS);
}

static pthread_barrier_t barrier;

static void *
crash_together(void *argument)
{
    pthread_barrier_wait(&barrier);
    touch(BAD_ADDRESS + (uintptr_t)argument);
    return NULL;
}

static void
two_at_once(void)
{
    pthread_t threads[2];

    install();
    pthread_barrier_init(&barrier, NULL, 2);
    for (uintptr_t i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, crash_together, (void *)i);
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
}

static void
test_obstacles(void)
{
    char byte;

    CHECK(ended_well(run(reused_descriptor)));
    CHECK_EQUAL(rung(), 0);
    CHECK(died_of(run(closed_descriptor), SIGSEGV));
    CHECK_EQUAL(page->announced, ANNOUNCED_COMPLETE);
    CHECK_EQUAL(rung(), 0);
    CHECK(died_of(run(unmapped_page), SIGSEGV));
    CHECK(died_of(run(full_pipe), SIGSEGV));
    CHECK_EQUAL(page->announced, ANNOUNCED_COMPLETE);
    while (read(alarm_pipe[0], &byte, 1) > 0)
        ;

    CHECK(ended_well(run(crashing_fork)));
    CHECK_EQUAL(page->announced, ANNOUNCED_NONE);
    CHECK_EQUAL(rung(), 0);
    CHECK(ended_well(run(taking_over)));
    CHECK(died_of(run(no_circle), SIGSEGV));
    CHECK_EQUAL(page->announced, ANNOUNCED_COMPLETE);
    CHECK_EQUAL(rung(), 1);

    for (int i = 0; i < 50; i++) {
        int status = run(two_at_once);
        if (!died_of(status, SIGSEGV) || page->address - BAD_ADDRESS > 1 || rung() > 1)
            CHECK(!"two crashes at once");
    }
}

/* ---- the end ------------------------------------------------------------------------------- */

static void
hold(void)
{
    if (announce_end(page) < 0)
        _exit(100);
    while (atomic_load(&page->alive) == 0)
        syscall(SYS_futex, &page->alive, FUTEX_WAIT, 0, NULL, NULL, 0);
}

static int
held(void)
{
    uint32_t word = atomic_load(&page->alive);

    return (word & FUTEX_TID_MASK) != 0 && (word & FUTEX_WAITERS) && !(word & FUTEX_OWNER_DIED);
}

static void
end_by_exit(void)
{
    hold();
    _exit(held() ? 0 : 1);
}

static void
end_by_kill(void)
{
    hold();
    raise(SIGKILL);
}

static void
end_by_exec(void)
{
    hold();
    execl("/bin/true", "true", NULL);
}

/* The end of a copy is not the end; and where it takes over, it is another one's. */
static void
end_of_copies(void)
{
    int status;

    hold();
    pid_t pid = fork();
    if (pid == 0)
        _exit(0);
    waitpid(pid, &status, 0);
    if (!ended_well(status) || !held())
        _exit(1);

    uint32_t before = atomic_load(&page->alive);
    pid = fork();
    if (pid == 0) {
        page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        hold();
        if (!held() || atomic_load(&page->alive) == before)
            _exit(1);
        pid = fork();
        if (pid == 0)
            _exit(0);
        waitpid(pid, &status, 0);
        _exit(ended_well(status) && held() ? 0 : 2);
    }
    waitpid(pid, &status, 0);
    _exit(ended_well(status) && held() && atomic_load(&page->alive) == before ? 0 : 2);
}

static void
end_unseen(void)
{
    _exit(atomic_load(&page->alive) != 0);
}

static int
seen_to_end(void)
{
    return (atomic_load(&page->alive) & FUTEX_OWNER_DIED) != 0;
}

static void
test_end(void)
{
    CHECK(ended_well(run(end_by_exit)));
    CHECK(seen_to_end());
    CHECK(died_of(run(end_by_kill), SIGKILL));
    CHECK(seen_to_end());
    CHECK(ended_well(run(end_by_exec)));
    CHECK(seen_to_end());
    CHECK(ended_well(run(end_of_copies)));
    CHECK(seen_to_end());
    CHECK(ended_well(run(end_unseen)));
    CHECK(!seen_to_end());
}

static void
test_descriptor_is_not_inherited(void)
{
    CHECK_EQUAL(fcntl(alarm_pipe[1], F_SETFD, 0), 0);
    CHECK_EQUAL(announce_install(page, alarm_pipe[1]), 0);
    CHECK_EQUAL(fcntl(alarm_pipe[1], F_GETFD), FD_CLOEXEC);
    CHECK(announce_install(page, 999) < 0 && errno == EBADF);
}

static void
test_map(void)
{
    size_t size = sysconf(_SC_PAGESIZE);
    int fd = memfd_create("page", MFD_CLOEXEC);

    CHECK(announce_map(-1) == NULL && errno == EBADF);
    CHECK(announce_map(fd) == NULL && errno == EPROTO); /* empty */
    CHECK(ftruncate(fd, size) == 0);
    CHECK(announce_map(fd) == NULL && errno == EPROTO); /* no magic */
    struct shared_page contents = {.magic = SHARED_MAGIC, .version = SHARED_VERSION + 1};
    CHECK(pwrite(fd, &contents, sizeof contents, 0) == sizeof contents);
    CHECK(announce_map(fd) == NULL && errno == EPROTO); /* another version */
    contents.version = SHARED_VERSION;
    CHECK(pwrite(fd, &contents, sizeof contents, 0) == sizeof contents);
    struct shared_page *mapped = announce_map(fd);
    CHECK(mapped && mapped->magic == SHARED_MAGIC);
    munmap(mapped, size);
    close(fd);
}

/* ---- the gate ------------------------------------------------------------------------------- */

static volatile sig_atomic_t tripped;

static void
trip(void)
{
    tripped++;
}

/* As the kernel does it: from another process. */
static void
interrupt_from_outside(pid_t target)
{
    pid_t pid = fork();

    if (pid == 0) {
        kill(target, SIGINT);
        _exit(0);
    }
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
}

static int
trips(uint64_t requested, uint64_t executing)
{
    atomic_store(&page->interrupt_request, requested);
    atomic_store(&page->executing_request, executing);
    tripped = 0;
    interrupt_from_outside(getpid());
    return tripped;
}

static void
test_gate(void)
{
    struct sigaction before, now;

    memset(page, 0, sizeof *page);
    sigaction(SIGINT, NULL, &before);
    CHECK_EQUAL(announce_interrupt_gate(page, trip), 0);
    sigaction(SIGINT, NULL, &now);
    CHECK(!(now.sa_flags & SA_RESTART));
    CHECK_EQUAL(trips(7, 7), 1);
    CHECK_EQUAL(trips(7, 8), 0);
    CHECK_EQUAL(trips(7, 0), 0);
    CHECK_EQUAL(trips(0, 7), 0);
    CHECK_EQUAL(trips(0, 0), 0);
    CHECK_EQUAL(trips(1ull << 40, 1ull << 40), 1);
    CHECK_EQUAL(trips((1ull << 40) + 1, 1), 0);

    trips(0, 0);
    raise(SIGINT);
    CHECK_EQUAL(tripped, 1);
    kill(getpid(), SIGINT);
    CHECK_EQUAL(tripped, 2);

    int status;
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0)
        _exit(trips(0, 0));
    waitpid(pid, &status, 0);
    CHECK_EQUAL(WEXITSTATUS(status), 1);
    sigaction(SIGINT, &before, NULL);
}

int
main(void)
{
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED || pipe2(alarm_pipe, O_NONBLOCK | O_CLOEXEC) < 0)
        return 2;
    test_defaults();
    test_stack_overflow();
    test_thread_stacks_are_freed();
    test_earlier_handlers();
    test_obstacles();
    test_map();
    test_end();
    test_gate();
    test_descriptor_is_not_inherited(); /* the last: installs in this process */
    return check_report();
}
