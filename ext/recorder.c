#define _GNU_SOURCE
#include "recorder.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "fdfloor.h"

#define PAGE 4096
/* A stack that has overflowed may have been left by so much. */
#define UNMAPPED_PAGES 32

/* glibc's private record of what it said when it aborted. */
struct abort_message {
    unsigned int size;
    char text[];
};

/* A signal handler gets no context: this is what it works on. */
static struct {
    struct record *record;
    int fd;   /* of the memfd, for what writes to a descriptor */
    int maps; /* /proc/self/maps, opened while it can be: not in a jail that comes later */
    dev_t device;
    ino_t inode, maps_inode;
    pid_t pid;
    void (*dump)(int);
    int dump_number;
    struct abort_message **abort_message;
    int leaving, at_exit;
} state = {.fd = -1, .maps = -1};

/* ---- async-signal-safe --------------------------------------------------------------------- */

/* Reads own memory as another process would: no fault where there is none. The bytes read. */
static size_t
read_memory(uint64_t from, void *to, size_t size)
{
    struct iovec local = {.iov_base = to, .iov_len = size};
    struct iovec remote = {.iov_base = (void *)(uintptr_t)from, .iov_len = size};
    ssize_t n = syscall(SYS_process_vm_readv, state.pid, &local, 1ul, &remote, 1ul, 0ul);

    return n < 0 ? 0 : (size_t)n;
}

static void
copy_stack(struct record *record)
{
    struct record_header *header = &record->header;
    uint64_t start = header->sp & ~(uint64_t)15, at = start;
    unsigned unmapped = 0;

    header->stack_start = start;
    header->stack_size = 0;
    while (at - start < RECORD_STACK) {
        /* To the next page boundary, so that no read covers two pages. */
        size_t n = PAGE - at % PAGE, room = RECORD_STACK - (at - start);
        n = n < room ? n : room;
        if (read_memory(at, record->stack + (at - start), n) == n)
            header->stack_size = (uint32_t)(at - start + n);
        else if (header->stack_size > 0 || ++unmapped > UNMAPPED_PAGES)
            break;
        at += n;
    }
}

static void
copy_maps(struct record *record)
{
    uint32_t size = 0;
    ssize_t n;
    struct stat facts;
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    int kept = fd < 0 && fstat(state.maps, &facts) == 0 && facts.st_ino == state.maps_inode;

    if (kept) {
        fd = state.maps;
        lseek(fd, 0, SEEK_SET);
    }
    while (
        fd >= 0 && size < RECORD_MAPS &&
        ((n = read(fd, record->maps + size, RECORD_MAPS - size)) > 0 || (n < 0 && errno == EINTR)))
        size += n > 0 ? (uint32_t)n : 0;
    if (fd >= 0 && !kept)
        close(fd);
    record->header.maps_size = size;
}

static void
copy_registers(struct record_header *header, const ucontext_t *context)
{
#if defined __x86_64__
    static const int numbers[] = {
        REG_RAX, REG_RDX, REG_RCX, REG_RBX, REG_RSI, REG_RDI, REG_RBP, REG_RSP, REG_R8,
        REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15, REG_RIP,
    };
    header->machine = MACHINE_X86_64;
    header->nregisters = sizeof numbers / sizeof *numbers;
    for (unsigned i = 0; i < header->nregisters; i++)
        header->registers[i] = (uint64_t)context->uc_mcontext.gregs[numbers[i]];
    header->sp = header->registers[7];
    header->pc = header->registers[16];
#elif defined __aarch64__
    header->machine = MACHINE_AARCH64;
    header->nregisters = 33;
    for (unsigned i = 0; i < 31; i++)
        header->registers[i] = context->uc_mcontext.regs[i];
    header->registers[31] = header->sp = context->uc_mcontext.sp;
    header->registers[32] = header->pc = context->uc_mcontext.pc;
#else
    (void)context;
    header->machine = MACHINE_UNKNOWN;
    header->nregisters = 0;
    header->sp = header->pc = 0;
#endif
}

static void
copy_message(struct record_header *header)
{
    struct abort_message *message = NULL;
    unsigned int size = 0;

    header->message[0] = 0;
    if (header->signal != SIGABRT || state.abort_message == NULL)
        return;
    read_memory((uintptr_t)state.abort_message, &message, sizeof message);
    if (message == NULL ||
        read_memory((uintptr_t)&message->size, &size, sizeof size) != sizeof size)
        return;
    size -= size < sizeof size ? size : sizeof size; /* it counts itself */
    if (size > sizeof header->message - 1)
        size = sizeof header->message - 1;
    size = (unsigned int)read_memory((uintptr_t)message->text, header->message, size);
    header->message[size] = 0;
}

void
recorder_write(const siginfo_t *info, const ucontext_t *context)
{
    struct record *record = state.record;

    if (!record || getpid() != state.pid)
        return;
    struct record_header *header = &record->header;
    atomic_store(&header->state, RECORD_WRITING);
    header->exiting = header->kind == RECORD_EXIT;
    header->kind = info ? RECORD_SIGNAL : RECORD_EXIT;
    header->signal = info ? info->si_signo : 0;
    header->code = info ? info->si_code : 0;
    header->address = info && info->si_code > 0 ? (uint64_t)(uintptr_t)info->si_addr : 0;
    header->sender = info && info->si_code <= 0 ? info->si_pid : 0;
    header->pid = state.pid;
    header->tid = (int32_t)syscall(SYS_gettid);
    header->python_size = 0;
    prctl(PR_GET_NAME, header->thread);
    copy_registers(header, context);
    copy_message(header);
    copy_stack(record);
    copy_maps(record);
    atomic_store(&header->state, RECORD_NATIVE);
}

void
recorder_write_python(void)
{
    struct record *record = state.record;
    off_t start = sysconf(_SC_PAGESIZE) + (off_t)offsetof(struct record, python);
    struct stat facts;
    off_t end;

    if (!record || getpid() != state.pid)
        return;
    /* Another file may have got the number since. */
    if (state.dump && fstat(state.fd, &facts) == 0 && facts.st_dev == state.device &&
        facts.st_ino == state.inode && lseek(state.fd, start, SEEK_SET) == start) {
        state.dump(state.dump_number);
        end = lseek(state.fd, 0, SEEK_CUR);
        record->header.python_size = end > start ? (uint32_t)(end - start) : 0;
    }
    atomic_store(&record->header.state, RECORD_COMPLETE);
}

/* ---- exit() -------------------------------------------------------------------------------- */

/* Who has called exit()? Code of a library has no business to, and _exit() does not come here. */
static void
on_exit_called(void)
{
    ucontext_t context;

    if (state.leaving || !state.record || getpid() != state.pid || getcontext(&context) < 0)
        return;
    recorder_write(NULL, &context);
    recorder_write_python();
}

/* A sanitizer has reported and ends the process, by _exit() or abort(). What it prints is text that
 * any code can print; that it calls this is not. */
static void
on_sanitizer_death(void)
{
    struct record *record = state.record;
    ucontext_t context;

    if (state.leaving || !record || getpid() != state.pid)
        return;
    record->header.sanitizer = 1;
    /* A fault that it reports has its record already, and so has an exit() that found leaks. */
    int recorded = record->header.kind == RECORD_SIGNAL || record->header.kind == RECORD_EXIT;
    if (recorded || getcontext(&context) < 0)
        return;
    recorder_write(NULL, &context);
    recorder_write_python();
}

static void
watch_sanitizer(void)
{
    void (*set_callback)(void (*)(void));

    /* There when the process runs under one: its library has to be the first. */
    *(void **)&set_callback = dlsym(RTLD_DEFAULT, "__sanitizer_set_death_callback");
    if (set_callback)
        set_callback(on_sanitizer_death);
}

/* A word on the end that is to come, unless a signal has had one. */
static void
note(enum record_kind kind)
{
    struct record *record = state.record;

    if (record && getpid() == state.pid &&
        (atomic_load(&record->header.state) == RECORD_NONE || record->header.kind == RECORD_EXEC)) {
        record->header.kind = kind;
        atomic_store(&record->header.state, RECORD_COMPLETE);
    }
}

void
recorder_leave(void)
{
    state.leaving = 1;
    note(RECORD_LEFT);
}

void
recorder_exec(void)
{
    note(RECORD_EXEC);
}

/* ---- installation -------------------------------------------------------------------------- */

static void
open_maps(void)
{
    struct stat facts;

    if (state.maps >= 0 && fstat(state.maps, &facts) == 0 && facts.st_ino == state.maps_inode)
        close(state.maps);
    state.maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    if (state.maps < 0)
        return;
    state.maps = fd_raise(state.maps);
    if (fstat(state.maps, &facts) == 0)
        state.maps_inode = facts.st_ino;
}

int
recorder_install(int shared_fd)
{
    long page = sysconf(_SC_PAGESIZE);
    struct record *record, *old = state.record;
    struct stat facts;

    if (fstat(shared_fd, &facts) < 0)
        return -1;
    if (facts.st_size < page + (off_t)sizeof *record) {
        errno = EPROTO;
        return -1;
    }
    record = mmap(NULL, sizeof *record, PROT_READ | PROT_WRITE, MAP_SHARED, shared_fd, page);
    if (record == MAP_FAILED)
        return -1;
    state.record = NULL; /* meanwhile a handler of another thread writes nothing */
    state.fd = fd_raise(shared_fd);
    state.device = facts.st_dev;
    state.inode = facts.st_ino;
    state.pid = getpid();
    state.abort_message = dlsym(RTLD_DEFAULT, "__abort_msg"); /* NULL: another libc */
    open_maps();
    if (!state.at_exit) {
        state.at_exit = atexit(on_exit_called) == 0;
        watch_sanitizer();
    }
    record->header.magic = RECORD_MAGIC;
    state.record = record;
    if (old)
        munmap(old, sizeof *old);
    return 0;
}

void
recorder_set_dump(void (*dump)(int), int number)
{
    state.dump = NULL;
    state.dump_number = number;
    state.dump = dump;
}

int
recorder_python_fd(void)
{
    return state.fd;
}
