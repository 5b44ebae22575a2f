/* _deaths: the ways in which native code dies, hangs or misbehaves, each one real.
 *
 * Pointers and numbers that must not be seen through by the compiler are volatile: it may assume
 * that undefined behaviour does not happen, and here it must happen.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

/* --- Time ---------------------------------------------------------------------------------------
 */

static double
now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + t.tv_nsec / 1e9;
}

/* Sleeps to the end whatever signals arrive, as C libraries do. */
static void
sleep_for(double seconds)
{
    struct timespec left = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    while (nanosleep(&left, &left) < 0 && errno == EINTR) {
    }
}

/* --- Signals ------------------------------------------------------------------------------------
 */

static void
touch(uintptr_t address)
{
    *(volatile char *)address = 42;
}

PyDoc_STRVAR(segfault_doc, "segfault($module, address=0)\n--\n\nWrites to the address.");

static PyObject *
deaths_segfault(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"address", NULL};
    unsigned long long address = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|K:segfault", names, &address)) {
        return NULL;
    }
    touch((uintptr_t)address);
    Py_RETURN_NONE;
}

static PyObject *
deaths_abort(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    abort();
}

static PyObject *
deaths_fpe(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    volatile int zero = 0;
    volatile int quotient = 1 / zero;
    (void)quotient;
    raise(SIGFPE); /* some processors divide by zero without a trap */
    Py_RETURN_NONE;
}

/* A page of a mapped file that the file does not have. */
static PyObject *
deaths_bus(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    int fd = memfd_create("empty", MFD_CLOEXEC);
    if (fd < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    touch((uintptr_t)page);
    Py_RETURN_NONE;
}

static PyObject *
deaths_ill(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
#if defined(__x86_64__) || defined(__i386__)
    __asm__ volatile("ud2");
#elif defined(__aarch64__)
    __asm__ volatile("udf #0");
#endif
    raise(SIGILL);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(kill_self_doc, "kill_self($module, signum, /)\n--\n\nSends the process a signal.");

static PyObject *
deaths_kill_self(PyObject *Py_UNUSED(module), PyObject *args)
{
    int signum;
    if (!PyArg_ParseTuple(args, "i:kill_self", &signum)) {
        return NULL;
    }
    if (kill(getpid(), signum) < 0) {
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static int recurse(int depth);
static int (*volatile recurse_again)(int depth) = recurse;

static int
recurse(int depth)
{
    volatile char frame[1024];
    frame[depth % 1024] = (char)depth;
    return recurse_again(depth + 1) + frame[0];
}

static PyObject *
deaths_stack_overflow(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyLong_FromLong(recurse(0));
}

/* --- Exits --------------------------------------------------------------------------------------
 */

static PyObject *
deaths_exit(PyObject *Py_UNUSED(module), PyObject *args)
{
    int code;
    if (!PyArg_ParseTuple(args, "i:exit", &code)) {
        return NULL;
    }
    exit(code);
}

static PyObject *
deaths__exit(PyObject *Py_UNUSED(module), PyObject *args)
{
    int code;
    if (!PyArg_ParseTuple(args, "i:_exit", &code)) {
        return NULL;
    }
    _exit(code);
}

/* --- Memory -------------------------------------------------------------------------------------
 */

PyDoc_STRVAR(
    wild_write_doc,
    "wild_write($module, buffer, offset, nbytes, *, crash=False, value=0xAA)\n--\n\n"
    "Writes nbytes bytes, offset bytes from where the buffer starts: before it when offset "
    "is\nnegative, behind it from len(buffer) on. Then dies of SIGSEGV, if asked to.");

static PyObject *
deaths_wild_write(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"buffer", "offset", "nbytes", "crash", "value", NULL};
    Py_buffer view;
    Py_ssize_t offset, nbytes;
    int crash = 0;
    unsigned char value = 0xAA;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*nn|$pb:wild_write", names, &view, &offset,
                                     &nbytes, &crash, &value)) {
        return NULL;
    }
    volatile unsigned char *out = (volatile unsigned char *)((uintptr_t)view.buf + offset);
    for (Py_ssize_t i = 0; i < nbytes; i++) {
        out[i] = value;
    }
    if (crash) {
        touch(0);
    }
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

/* glibc notices and aborts. */
static PyObject *
deaths_double_free(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    void *volatile block = malloc(64);
    void *volatile again = block;
    free(block);
    free(again);
    Py_RETURN_NONE;
}

typedef struct allocation {
    struct allocation *next;
    size_t size;
} allocation;

static allocation *allocations; /* guarded by the GIL, like all that a simple extension has */

PyDoc_STRVAR(allocate_doc,
             "allocate($module, megabytes, /)\n--\n\n"
             "Takes memory, touches all of it and keeps it; returns the megabytes kept "
             "so far.\nMemoryError when the system refuses.");

static PyObject *
deaths_allocate(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_ssize_t megabytes;
    if (!PyArg_ParseTuple(args, "n:allocate", &megabytes)) {
        return NULL;
    }
    size_t size = sizeof(allocation) + ((size_t)megabytes << 20);
    allocation *fresh = malloc(size);
    if (fresh == NULL) {
        return PyErr_NoMemory();
    }
    Py_BEGIN_ALLOW_THREADS
    memset(fresh, 0x5A, size);
    Py_END_ALLOW_THREADS
    fresh->next = allocations;
    fresh->size = size;
    allocations = fresh;
    size_t total = 0;
    for (allocation *each = allocations; each != NULL; each = each->next) {
        total += each->size >> 20;
    }
    return PyLong_FromSize_t(total);
}

static PyObject *
deaths_release_all(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    while (allocations != NULL) {
        allocation *next = allocations->next;
        free(allocations);
        allocations = next;
    }
    Py_RETURN_NONE;
}

/* --- Calls that do not return soon --------------------------------------------------------------
 */

/* The C code of the unfriendly kind: no other thread and no signal handler of Python gets a turn.
 */
static PyObject *
deaths_hold_gil(PyObject *Py_UNUSED(module), PyObject *args)
{
    double seconds;
    if (!PyArg_ParseTuple(args, "d:hold_gil", &seconds)) {
        return NULL;
    }
    for (double end = now() + seconds; now() < end;) {
    }
    Py_RETURN_NONE;
}

static PyObject *
deaths_busy_checking_signals(PyObject *Py_UNUSED(module), PyObject *args)
{
    double seconds;
    if (!PyArg_ParseTuple(args, "d:busy_checking_signals", &seconds)) {
        return NULL;
    }
    for (double end = now() + seconds; now() < end;) {
        if (PyErr_CheckSignals() < 0) {
            return NULL;
        }
    }
    Py_RETURN_NONE;
}

static PyObject *
deaths_sleep_in_c_without_gil(PyObject *Py_UNUSED(module), PyObject *args)
{
    double seconds;
    if (!PyArg_ParseTuple(args, "d:sleep_in_c_without_gil", &seconds)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    sleep_for(seconds);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* --- Output -------------------------------------------------------------------------------------
 */

PyDoc_STRVAR(printf_then_crash_doc, "printf_then_crash($module, text, /)\n--\n\n"
                                    "Prints with C printf, does not flush, dies of SIGSEGV.");

static PyObject *
deaths_printf_then_crash(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *text;
    if (!PyArg_ParseTuple(args, "s:printf_then_crash", &text)) {
        return NULL;
    }
    printf("%s", text);
    touch(0);
    Py_RETURN_NONE;
}

static PyObject *
deaths_close_all_fds(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"first", NULL};
    int first = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|i:close_all_fds", names, &first)) {
        return NULL;
    }
    for (int fd = first, end = (int)sysconf(_SC_OPEN_MAX); fd < end; fd++) {
        close(fd);
    }
    Py_RETURN_NONE;
}

/* --- Threads of the library ---------------------------------------------------------------------
 */

/* What a thread does, after a delay. It owns the job, unless somebody joins it. */
typedef struct {
    double delay;
    char *text;         /* print_late */
    PyObject *callable; /* call_back_from_thread */
    PyObject *result;   /* ... and what came of it; NULL after an exception, which is in error */
    PyObject *error;
} job;

static void
free_job(job *job)
{
    free(job->text);
    Py_XDECREF(job->callable);
    Py_XDECREF(job->result);
    Py_XDECREF(job->error);
    free(job);
}

/* Starts a thread, which the caller joins if it wants to know the thread. Takes the job. */
static int
start_thread(void *(*body)(void *), job *job, pthread_t *joinable)
{
    pthread_t thread;
    int failed = pthread_create(&thread, NULL, body, job);
    if (failed) {
        free_job(job);
        errno = failed;
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    if (joinable != NULL) {
        *joinable = thread;
    }
    else {
        pthread_detach(thread);
    }
    return 0;
}

static job *
new_job(double delay)
{
    job *fresh = calloc(1, sizeof *fresh);
    if (fresh == NULL) {
        PyErr_NoMemory();
    }
    else {
        fresh->delay = delay;
    }
    return fresh;
}

static void *
crash_late(void *argument)
{
    sleep_for(((job *)argument)->delay);
    touch(0);
    return NULL;
}

PyDoc_STRVAR(
    crash_in_thread_doc,
    "crash_in_thread($module, delay=0.0)\n--\n\n"
    "A C thread dies of SIGSEGV: at once, during this call, or so many seconds later, when "
    "the\ncall has long returned.");

static PyObject *
deaths_crash_in_thread(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"delay", NULL};
    double delay = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|d:crash_in_thread", names, &delay)) {
        return NULL;
    }
    job *job = new_job(delay);
    pthread_t thread;
    if (job == NULL || start_thread(crash_late, job, delay > 0 ? NULL : &thread) < 0) {
        return NULL;
    }
    if (delay <= 0) {
        Py_BEGIN_ALLOW_THREADS
        pthread_join(thread, NULL);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static void *
print_and_free(void *argument)
{
    job *job = argument;
    sleep_for(job->delay);
    printf("%s", job->text);
    fflush(stdout);
    free(job->text);
    free(job);
    return NULL;
}

PyDoc_STRVAR(print_late_doc, "print_late($module, text, delay, /)\n--\n\n"
                             "A C thread prints the text when the call has long returned.");

static PyObject *
deaths_print_late(PyObject *Py_UNUSED(module), PyObject *args)
{
    const char *text;
    double delay;
    if (!PyArg_ParseTuple(args, "sd:print_late", &text, &delay)) {
        return NULL;
    }
    job *job = new_job(delay);
    if (job == NULL) {
        return NULL;
    }
    job->text = strdup(text);
    if (job->text == NULL) {
        free_job(job);
        return PyErr_NoMemory();
    }
    if (start_thread(print_and_free, job, NULL) < 0) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* The thread is unknown to Python until here, as the threads of a C library are. */
static void *
call_back(void *argument)
{
    job *job = argument;
    PyGILState_STATE gil = PyGILState_Ensure();
    job->result = PyObject_CallNoArgs(job->callable);
    if (job->result == NULL) {
        PyObject *type, *traceback;
        PyErr_Fetch(&type, &job->error, &traceback);
        PyErr_NormalizeException(&type, &job->error, &traceback);
        if (traceback != NULL) {
            PyException_SetTraceback(job->error, traceback);
        }
        Py_XDECREF(type);
        Py_XDECREF(traceback);
    }
    PyGILState_Release(gil);
    return NULL;
}

static void *
call_back_and_free(void *argument)
{
    job *job = argument;
    sleep_for(job->delay);
    PyGILState_STATE gil = PyGILState_Ensure();
    PyObject *ignored = PyObject_CallNoArgs(job->callable);
    if (ignored == NULL) {
        PyErr_WriteUnraisable(job->callable);
    }
    Py_XDECREF(ignored);
    free_job(job);
    PyGILState_Release(gil);
    return NULL;
}

PyDoc_STRVAR(call_back_from_thread_doc,
             "call_back_from_thread($module, callable, delay=0.0)\n--\n\n"
             "Calls from a C thread. Waits for it and gives back what the callable gave or raised; "
             "with a\ndelay, returns None at once, and the call comes later.");

static PyObject *
deaths_call_back_from_thread(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"callable", "delay", NULL};
    PyObject *callable;
    double delay = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|d:call_back_from_thread", names, &callable,
                                     &delay)) {
        return NULL;
    }
    job *job = new_job(delay);
    if (job == NULL) {
        return NULL;
    }
    job->callable = Py_NewRef(callable);
    if (delay > 0) {
        if (start_thread(call_back_and_free, job, NULL) < 0) {
            return NULL;
        }
        Py_RETURN_NONE;
    }

    pthread_t thread;
    if (start_thread(call_back, job, &thread) < 0) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    pthread_join(thread, NULL);
    Py_END_ALLOW_THREADS
    PyObject *result = Py_XNewRef(job->result);
    if (result == NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(job->error), job->error);
    }
    free_job(job);
    return result;
}

/* --- Slots that break the rules -----------------------------------------------------------------
 */

static PyObject *
liar_repr(PyObject *Py_UNUSED(self))
{
    PyErr_SetString(PyExc_ValueError, "left behind");
    return PyUnicode_FromString("a liar");
}

static PyObject *
liar_subscript(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(key))
{
    return NULL;
}

static int
liar_assign(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(key), PyObject *Py_UNUSED(value))
{
    PyErr_SetString(PyExc_ValueError, "left behind");
    return 0;
}

static PyType_Slot liar_slots[] = {
    {Py_tp_doc, "Its slots return NULL without an exception, or something with one."},
    {Py_tp_repr, liar_repr},
    {Py_mp_subscript, liar_subscript},
    {Py_mp_ass_subscript, liar_assign},
    {0, NULL},
};

static PyType_Spec liar_spec = {
    .name = "_deaths.Liar", .flags = Py_TPFLAGS_DEFAULT, .slots = liar_slots};

static int
add_liar(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&liar_spec);
    int rc = type == NULL ? -1 : PyModule_AddObjectRef(module, "Liar", type);
    Py_XDECREF(type);
    return rc;
}

/* --- Module -------------------------------------------------------------------------------------
 */

#define KEYWORDS(function) (PyCFunction)(void (*)(void)) function, METH_VARARGS | METH_KEYWORDS

static PyMethodDef deaths_methods[] = {
    {"segfault", KEYWORDS(deaths_segfault), segfault_doc},
    {"abort", deaths_abort, METH_NOARGS, "abort($module)\n--\n\nSIGABRT."},
    {"fpe", deaths_fpe, METH_NOARGS, "fpe($module)\n--\n\nSIGFPE, by a division by zero."},
    {"bus", deaths_bus, METH_NOARGS, "bus($module)\n--\n\nSIGBUS, in a mapped file."},
    {"ill", deaths_ill, METH_NOARGS, "ill($module)\n--\n\nSIGILL."},
    {"kill_self", deaths_kill_self, METH_VARARGS, kill_self_doc},
    {"stack_overflow", deaths_stack_overflow, METH_NOARGS,
     "stack_overflow($module)\n--\n\nSIGSEGV, with no stack left for a handler."},
    {"exit", deaths_exit, METH_VARARGS,
     "exit($module, code, /)\n--\n\nC exit(): atexit handlers run."},
    {"_exit", deaths__exit, METH_VARARGS,
     "_exit($module, code, /)\n--\n\nC _exit(): nothing runs."},
    {"wild_write", KEYWORDS(deaths_wild_write), wild_write_doc},
    {"double_free", deaths_double_free, METH_NOARGS,
     "double_free($module)\n--\n\nSIGABRT, by glibc."},
    {"allocate", deaths_allocate, METH_VARARGS, allocate_doc},
    {"release_all", deaths_release_all, METH_NOARGS,
     "release_all($module)\n--\n\nGives back what allocate() took."},
    {"hold_gil", deaths_hold_gil, METH_VARARGS,
     "hold_gil($module, seconds, /)\n--\n\nBusy, with the GIL, deaf to signals."},
    {"busy_checking_signals", deaths_busy_checking_signals, METH_VARARGS,
     "busy_checking_signals($module, seconds, /)\n--\n\nBusy, with the GIL, but can be "
     "interrupted."},
    {"sleep_in_c_without_gil", deaths_sleep_in_c_without_gil, METH_VARARGS,
     "sleep_in_c_without_gil($module, seconds, /)\n--\n\nAsleep, without the GIL, deaf to "
     "signals."},
    {"printf_then_crash", deaths_printf_then_crash, METH_VARARGS, printf_then_crash_doc},
    {"close_all_fds", KEYWORDS(deaths_close_all_fds),
     "close_all_fds($module, first=0)\n--\n\nCloses every descriptor from `first` on, whoever owns "
     "it."},
    {"crash_in_thread", KEYWORDS(deaths_crash_in_thread), crash_in_thread_doc},
    {"print_late", deaths_print_late, METH_VARARGS, print_late_doc},
    {"call_back_from_thread", KEYWORDS(deaths_call_back_from_thread), call_back_from_thread_doc},
    {0},
};

static PyModuleDef_Slot deaths_slots[] = {
    {Py_mod_exec, add_liar},
    {0},
};

static struct PyModuleDef deaths_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_deaths",
    .m_doc = "Ways in which native code dies, hangs or misbehaves.",
    .m_methods = deaths_methods,
    .m_slots = deaths_slots,
};

PyMODINIT_FUNC
PyInit__deaths(void)
{
    return PyModuleDef_Init(&deaths_def);
}
