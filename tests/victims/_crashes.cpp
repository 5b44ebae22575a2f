/* _crashes: more ways in which native code dies, those that C++ and the run-time libraries add.
 *
 * What must not be seen through by the compiler is volatile, as in _deaths.c. */
#define _FORTIFY_SOURCE 2
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cassert>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <malloc.h>
#include <pthread.h>
#include <stdexcept>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>

#ifdef NDEBUG
#error "assert() is one of the deaths"
#endif

namespace
{

/* --- Faults ------------------------------------------------------------------------------------ */

void
call_null()
{
    void (*volatile nowhere)() = nullptr;
    nowhere();
}

void
call_data()
{
    static unsigned char data[] = {0xc3};
    void (*volatile function)() = reinterpret_cast<void (*)()>(data);
    function();
}

void
write_to_constant()
{
    static const char text[] = "constant";
    *const_cast<volatile char *>(text) = 'C';
}

void
noncanonical()
{
    volatile char *volatile wild = reinterpret_cast<volatile char *>(0x1234567812345678u);
    *wild = 1;
}

void
memcpy_to_null()
{
    static char from[4096];
    void *(*volatile copy)(void *, const void *, size_t) = memcpy;
    copy(nullptr, from, sizeof from);
}

void
divide()
{
    volatile int rows = 100, zero = 0;
    volatile int quotient = rows / zero;
    (void)quotient;
#if !defined __x86_64__
    raise(SIGFPE); /* some processors divide by zero without a trap */
#endif
}

void
trap()
{
#if defined __x86_64__
    __asm__ volatile("int3");
#else
    raise(SIGTRAP);
#endif
}

/* --- The C library ----------------------------------------------------------------------------- */

void
assertion()
{
    volatile int rows = -1;
    assert(rows > 0 && "an image has rows");
}

void
free_invalid()
{
    char *volatile block = static_cast<char *>(malloc(64));
    char *volatile inside = block + 16;
    free(inside);
}

void
heap_overflow()
{
    static const size_t size = 2000;
    char *volatile next = static_cast<char *>(malloc(size));
    for (int i = -8; i < 0; i++) /* what a write past the end of the block before it does */
        const_cast<volatile char *>(next)[i] = 'A';
    free(next);
}

void
corrupt_then_segfault()
{
    char *volatile block = static_cast<char *>(malloc(24));
    volatile size_t n = 4096;
    memset(block, 0xff, n);
    volatile char *volatile null = nullptr;
    *null = 1;
}

__attribute__((noinline, optimize("stack-protector-all"))) void
smash(const char *from, size_t n)
{
    char buffer[16];
    for (volatile size_t i = 0; i < n; i++)
        const_cast<volatile char *>(buffer)[i] = from[i];
}

void
stack_smashing()
{
    static const char from[64] = "more than there is room for, by far";
    smash(from, sizeof from);
}

void
fortified()
{
    char buffer[8];
    static const char *volatile from = "more than eight";
    strcpy(buffer, from);
    static volatile char sink;
    sink = buffer[0];
}

/* Whoever prints the statistics of malloc() holds the lock of its main arena. */
ssize_t
die_while_writing(void *, const char *, size_t)
{
    volatile char *volatile null = nullptr;
    *null = 1;
    return 0;
}

void
holding_malloc_lock()
{
    cookie_io_functions_t functions = {};
    functions.write = die_while_writing;
    stderr = fopencookie(nullptr, "w", functions);
    setvbuf(stderr, nullptr, _IONBF, 0);
    malloc_stats();
}

/* --- C++ ---------------------------------------------------------------------------------------- */

void
uncaught()
{
    throw std::runtime_error("the kernel size must be odd");
}

void
uncaught_int()
{
    throw 42;
}

void
through_noexcept() noexcept
{
    throw std::logic_error("thrown where nothing may be");
}

void
unjoined_thread()
{
    std::thread unjoined([] { pause(); });
}

struct Shape {
    Shape() { draw_now(); }
    virtual ~Shape() = default;
    virtual void draw() = 0;
    __attribute__((noinline)) void draw_now() { draw(); }
};
struct Circle : Shape {
    void draw() override {}
};

void
pure_virtual()
{
    Circle circle;
}

/* --- Threads ------------------------------------------------------------------------------------ */

void
two_threads_at_once()
{
    pthread_barrier_t barrier;
    pthread_barrier_init(&barrier, nullptr, 2);
    auto die = [&barrier] {
        pthread_barrier_wait(&barrier);
        volatile char *volatile null = nullptr;
        *null = 1;
    };
    std::thread one(die), two(die);
    one.join();
    two.join();
}

void
abort_in_thread()
{
    std::thread([] { abort(); }).join();
}

void
exit_in_thread()
{
    std::thread([] { exit(8); }).join();
}

void
deadlock()
{
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&mutex);
    pthread_mutex_lock(&mutex);
}

void
abort_at_exit()
{
    atexit([] { abort(); });
    exit(0);
}

void
use_after_free()
{
    volatile char *volatile block = static_cast<char *>(malloc(100));
    free(const_cast<char *>(block));
    block[10] = 1;
}

/* --- Module -------------------------------------------------------------------------------------- */

template <void (*function)()>
PyObject *
without_gil(PyObject *, PyObject *)
{
    PyThreadState *saved = PyEval_SaveThread();
    function();
    PyEval_RestoreThread(saved);
    Py_RETURN_NONE;
}

/* Not one that lets go of the GIL: an exception would leave it in no way that Python knows. */
template <void (*function)()>
PyObject *
plain(PyObject *, PyObject *)
{
    function();
    Py_RETURN_NONE;
}

#define PLAIN(name) {#name, plain<name>, METH_NOARGS, nullptr}
#define FREE(name) {#name, without_gil<name>, METH_NOARGS, nullptr}

PyMethodDef methods[] = {
    PLAIN(call_null),
    PLAIN(call_data),
    PLAIN(write_to_constant),
    PLAIN(noncanonical),
    PLAIN(memcpy_to_null),
    PLAIN(divide),
    PLAIN(trap),
    PLAIN(assertion),
    PLAIN(free_invalid),
    PLAIN(heap_overflow),
    PLAIN(corrupt_then_segfault),
    PLAIN(stack_smashing),
    PLAIN(fortified),
    PLAIN(holding_malloc_lock),
    PLAIN(uncaught),
    PLAIN(uncaught_int),
    PLAIN(through_noexcept),
    PLAIN(unjoined_thread),
    PLAIN(pure_virtual),
    FREE(two_threads_at_once),
    FREE(abort_in_thread),
    FREE(exit_in_thread),
    FREE(deadlock),
    PLAIN(abort_at_exit),
    PLAIN(use_after_free),
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                          "_crashes",
                          "More ways in which native code dies.",
                          0,
                          methods,
                          nullptr,
                          nullptr,
                          nullptr,
                          nullptr};

} // namespace

PyMODINIT_FUNC
PyInit__crashes()
{
    return PyModule_Create(&definition);
}
