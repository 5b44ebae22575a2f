/* state.h: the structs that the files with Python.h share, and who owns what. */
#ifndef ISOLATION_STATE_H
#define ISOLATION_STATE_H

#include "compat.h"

#include "announce.h"
#include "channel.h"
#include "process.h"
#include "rare.h"
#include "shared.h"
#include "stack.h"
#include "table.h"
#include "wire.h"

#include <pthread.h>

typedef struct PeerObject PeerObject;

#define LIBRARY_CONTAINERS 3 /* see shadows.c */
#define KNOWN_DTYPES 32      /* the built-in dtypes: some two dozen, which stay */

/* One object that the other side knows by a handle. Owned by peer->exports. */
struct export
{
    PyObject *object; /* strong */
    uint64_t handle;
    uint64_t count; /* how often the handle was sent and not yet released */
};

/* One proxy of this process, found by its address in core->proxies. The proxy's finaliser frees it.
 */
struct proxy {
    PyObject *object; /* borrowed: the proxy itself */
    PeerObject *peer; /* strong; borrowed for a class, whose stubs keep the peer alive */
    uint64_t handle;
    uint64_t count; /* how often the handle was received */
    bool is_class;
    uint32_t epoch;              /* the life in which `handle` means something */
    PyObject *module, *qualname; /* strong or NULL: the target can be reached by this name */
    struct ahead *ahead;         /* owned or NULL: what is in it, see ahead.c */
    PyObject *of;     /* strong or NULL: the dict of a view that was not asked for, see views.c;
                       * `handle` is 0 then */
    PyObject *method; /* strong or NULL: the stub that asks for that view */
    PyObject *watch;  /* strong or NULL: weak reference, where the type has no finaliser of ours */
};

enum {
    CLASS_IMPORTABLE = 1,       /* module.qualname gives this very class */
    CLASS_INSTANCE_DICT = 2,    /* instances have a __dict__ */
    CLASS_OWN_GETATTRIBUTE = 4, /* somewhere in the MRO: every look-up goes to the target */
    CLASS_EXCEPTION = 8,
    CLASS_MUTABLE_BUILTIN = 16, /* has list, dict, set, bytearray or deque among its bases */
    CLASS_BUFFER = 32,          /* exports the buffer protocol */
    CLASS_METACLASS = 64,       /* derives from type */
    CLASS_SEQUENCE = 256,       /* a `match` statement takes it for a sequence */
    CLASS_MAPPING = 512,        /* ... for a mapping */
    CLASS_WEAKREF = 1024,       /* instances can be referred to weakly */
    CLASS_IMMUTABLE = 2048,     /* its attributes cannot be set */
    CLASS_FINAL = 4096,         /* nothing can derive from it */
    CLASS_OWN_INIT = 8192,      /* somewhere in the MRO there is an __init__ besides object's */
    CLASS_BUSY_META = 16384,    /* a metaclass with a __new__ or __init__ of its own */
    CLASS_NO_SEQUENCE = 32768, /* a mapping in C: no sq_item, which a __getitem__ here would make */
    CLASS_HOME = 1 << 30,      /* never on the wire: see remember() */
};

/* A mirrored class, found by the address of its type in core->mirrors. Never freed while the peer
 * lives; peer->mirrors owns the type. */
struct mirror {
    PyTypeObject *type; /* borrowed */
    PeerObject *peer;   /* borrowed: the peer owns the mirror */
    PyObject *reported; /* strong or NULL: what instance.__class__ says instead of the type */
    uint32_t flags;     /* CLASS_* */
    bool proxies;     /* instances are proxies (false: exceptions, and classes with a home here) */
    PyObject *shadow; /* strong or NULL: the class with the real layout, see shadows.c */
    PyTypeObject *of; /* borrowed or NULL: this is the shadow of that mirror */
    bool home;        /* derives from a class of this side: instances are real here */
};

/* An attribute that a class got, or lost, after it was described. */
struct changed_class {
    PyObject *cls, *name; /* strong */
    uint64_t serial;
};

/* A container (or buffer) that an argument was copied from or to; see pairs.c. */
struct pair {
    uint64_t id;
    PyObject *object;   /* strong */
    PyObject *snapshot; /* strong or NULL: the content when this side last gained control */
    PyObject *memory;   /* strong or NULL: what a memoryview is of, which may be released */
    unsigned char kind; /* PAIR_* */
    bool shared;        /* both have the same memory: nothing is to be written back */
    uint32_t scope;     /* of the request that made it */
    size_t hides;       /* index + 1 of the pair with the same object, of another scope; or 0 */
};

/* Facts that came along with the items of an iteration; they hold until the next effect. */
struct seen {
    uint64_t of_length, length_effects; /* handle; peer->effects then */
    Py_ssize_t length;                  /* -1: not known */
    uint64_t of_values, values_effects;
    uint32_t length_at, values_at;     /* ahead_now() then */
    uint32_t length_uses, values_uses; /* how many questions they have answered */
    PyObject *values;                  /* strong or NULL: dict */
    PyObject *keys;              /* strong or NULL: tuple of the keys that came last, if not all of
                                  * their values did */
    uint64_t keys_from, keys_of; /* how many keys are before these, and how many there are in all */
    Py_ssize_t key;              /* which of them was asked for last */
    uint64_t want;               /* what the next values may cost */
};

/* The immutable values of one request's arguments, by number; see values.c. */
struct values {
    uint64_t request;
    uint32_t scope;
    bool mine;        /* this side asked */
    bool numbers;     /* there are int, float or complex among them */
    PyObject **items; /* strong; `few` as long as that does */
    size_t n, capacity;
    unsigned searches;
    struct table index; /* address -> number + 1, of the first `indexed` */
    size_t indexed;
    struct values *outer;
    PyObject *few[4];
};

/* How a life of the child ended, kept for the requests that were under way. */
enum ending_how { END_NONE, END_DIED, END_CLOSED, END_RESTARTED };
struct ending {
    enum ending_how how;
    bool idle; /* when no request was under way */
    pid_t pid;
    struct process_exit exit;
    unsigned announced; /* enum announced; what follows is valid as said there */
    int signal, code;
    uint64_t address;
    bool cut_off;       /* this side killed it, since nothing could be said to it any more */
    bool no_memory;     /* likewise, see shared.h */
    uint64_t data_used; /* likewise */
    double timeout;     /* it was killed for taking longer than so many seconds; or 0 */
    uint64_t taken;     /* the last request that the child's main thread began */
};

/* Kernel: the frozen copy of the child that takes over when the child dies; see rollback.c. */
struct rollback {
    int line;        /* to the copy; -1: there is none */
    uint64_t theirs; /* the child's handles below this one were exported before the copy was made */
    uint64_t mine;   /* likewise this side's, which are kept for the copy */
    uint64_t newest; /* the highest handle of the child's that was received */
    uint64_t seen;   /* what `newest` was when the copy was made */
    double at, soon; /* monotonic seconds: when the next copy is due, and when it is if the child
                      * has exported something since; 0: never */
    PyObject *changes; /* strong or NULL: list of (class, name) that were told since */
};

/* Where a request of the other side was begun in the stack of this side's thread. */
struct entry {
    struct entry *outer;
    PyFrameObject *frame; /* strong or NULL: the frame that waits meanwhile */
};

/* One thread of this side and its connection to the paired thread. */
struct strand {
    PeerObject *peer; /* borrowed */
    channel *channel;
    uint32_t id;
    uint32_t epoch;
    unsigned depth;      /* requests of ours under way, nested */
    unsigned serving;    /* requests of the other side being executed, nested */
    uint64_t busy_since; /* peer->stamp when its outermost request began */
    unsigned pins;       /* loops that hold on to the record */
    unsigned long thread;
    bool checked;  /* child: the kernel is at the other end */
    bool garbled;  /* its lane is of no use any more */
    bool closed;   /* the connection is gone: another life, or the thread has ended */
    bool owned;    /* a capsule in its thread's state refers to the record */
    bool callback; /* lent to threads of the child that no kernel thread is paired with */
    double
        deadline;   /* kernel: monotonic seconds, when its outermost request is interrupted; or 0 */
    double timeout; /* kernel: how long that request may take, in seconds */
    bool timed_out; /* kernel: that has happened */
    struct waiting *waiting;    /* innermost wait of this strand, on its thread's stack; or NULL */
    uint32_t scope, last_scope; /* see scope.c */
    PyObject *subject;     /* kernel: borrowed while depth > 0: what its outermost request asks, or
                            * NULL; see message_about() */
    struct entry *entries; /* innermost request being executed, on its thread's stack; or NULL */
    unsigned framing;      /* a frame is being written or read: nothing may be asked meanwhile */
    struct pair *pairs;
    size_t npairs, cappairs;
    unsigned
        in_pairs; /* > 0: contents of pairs are being read, compared or written. What a
                   * __hash__ or __eq__ asks of the other side meanwhile says nothing of them */
    uint64_t next_pair;
    struct table pair_by_address; /* address -> index + 1 */
    struct table pair_by_id;
    struct values *values; /* borrowed: of the requests under way, innermost first */
    /* Handles of the classes described in frames of this strand. Per strand, because frames of two
     * strands may be read in another order than they were written. */
    struct table described;
    struct ending ending; /* kernel: of the strand's life, once the life is over */
};

enum peer_state { PEER_NEW, PEER_RUNNING, PEER_DEAD, PEER_CLOSED, PEER_FORKED };

struct PeerObject {
    PyObject_HEAD
    PeerObject *next_peer; /* borrowed: of core->first_peer's list */
    bool is_kernel;
    bool wants_lane; /* kernel: strands are offered with a lane */
    enum peer_state state;
    PyObject *host; /* strong: the Python object that knows policy (host.py, child.py) */
    uint32_t epoch;
    uint64_t next_handle, next_request, requests_sent;
    uint64_t effects; /* requests of either side that may have changed something */
    struct seen seen;
    struct {
        struct ahead *first; /* borrowed: of the list of all; their proxies own them */
        Py_ssize_t items;    /* in all of them */
        uint32_t used;       /* ahead_now() when one was used last, or came */
        bool stale;          /* something was released that may change what is remembered */
        uint64_t probed;     /* handle of the list that was asked for __array__; or 0 */
        uint64_t begun_of;
        PyObject *begun; /* strong or NULL: an iterator over that, for whom asks for it next */
    } ahead;
    PyTypeObject *views[3]; /* strong or NULL: mirrored classes of views of dicts, see views.c */
    struct table exports;   /* handle -> struct export */
    struct table export_of; /* address of the object -> struct export */
    struct table imports;   /* handle -> proxy object (borrowed) */
    PyObject *mirrors;      /* dict: (module, qualname) or handle -> type */
    PyObject *modules;      /* dict: name -> module proxy */
    PyObject *isolated;     /* set of module names isolated here; their types are always mirrored */
    PyObject *names;        /* dict: interned attribute names */
    PyObject *held; /* list or NULL: proxies whose end nobody would tell, until the request ends */
    struct release {
        uint64_t handle, count;
    } * releases;
    size_t nreleases, capreleases;
    struct copy *copies;      /* owned: of the other side's buffers; see buffers.c */
    struct HoldObject *holds; /* borrowed: of this side's buffers that it has copies of */
    struct late_release {
        uint64_t handle, count, stamp;
    } * late; /* received, but a frame of another strand may still name the handle; see frames.c */
    size_t nlate, caplate;
    uint64_t stamp;
    uint64_t
        turn; /* frames received so far: as long as it stands, the other side changed nothing */
    uint64_t cache_generation; /* module attribute caches of older generations are void */
    struct watched {
        PyObject *dict, *name, *value; /* strong */
        uint64_t version;
    } * watched; /* child: what the kernel may have cached */
    size_t nwatched, capwatched;
    bool invalidate;
    struct changed_class *changed; /* to be told to the other side with the next frame */
    size_t nchanged, capchanged;
    uint64_t change_serial;
    uint32_t gil_given;       /* ms: when a wait last let go of the GIL */
    void *zmq;                /* the context, or NULL: nothing has gone over libzmq yet */
    process *process;         /* kernel */
    struct shared_page *page; /* child, and kernel while a life lasts */
    struct strand **strands;
    size_t nstrands, capstrands;
    uint32_t next_strand;
    int wake_fd;         /* eventfd: wakes the service thread */
    int fdpass;          /* child: our end of the descriptor-passing socket; -1 in the kernel */
    int alarm_fd;        /* child: to announce on */
    int active;          /* kernel: calls under way, which read the output pipes themselves */
    int draining;        /* kernel: threads that pass on the child's output */
    int polling;         /* kernel: threads inside the one wait; descriptors are closed only at 0 */
    int needed;          /* child: callback strands asked for and not yet there */
    bool late_output;    /* kernel: the service thread waits for the end of a call to read output */
    bool syncing;        /* kernel: host.sync() is running */
    uint64_t state_seen; /* kernel: state_generation at the last sync */
    PyObject
        *call_context;   /* kernel: strong or NULL: contextvars of the last call, for late output */
    bool sync;           /* kernel: host.sync() runs before the next request */
    PyObject *path_seen; /* kernel: strong or NULL: the items sys.path had at the last sync */
    unsigned char nonce[16];
    PyObject *tap; /* strong or NULL: for tests, is called with each frame that is received */
    struct ending ending; /* kernel: of this life; END_NONE while it lasts */
    bool cut_off;         /* kernel: see struct ending; of this life */
    struct rollback rollback;
    bool hold;           /* kernel: a child that crashes is kept for a debugger */
    int spare;           /* kernel: the line to an interpreter that waits for a life; -1: none */
    double timeout;      /* kernel: seconds that an outermost request may take; 0: no limit */
    double killed_after; /* kernel: what it was when a request of this life took longer; or 0 */
    int changes_fd;    /* kernel: borrowed; readable when files of the child may have changed; -1 */
    double changes_at; /* kernel: monotonic seconds, when to look at them anyhow; 0: never */
    bool shares_arrays; /* arrays="shared" */
    bool reborn;        /* child: this is a copy that has been told to take over */
    uint64_t cell;      /* kernel: the number of the session's cell that runs, or ran last */
    int batching;       /* kernel: batches that are open, of all threads; see batch.c */
    struct BatchObject *batches; /* borrowed: these, the newest first */
    int life_fds[3];           /* child: those of the new life then: passing, shared page, alarm */
    unsigned long starter;     /* kernel: the thread that starts a life and sets it up, or 0 */
    bool drowsy;               /* the service thread sleeps until it is woken: releases do that */
    unsigned long main_thread; /* kernel: the one that strand 1 belongs to */
    unsigned long service_thread; /* child: the one that must never ask, or 0 */
    pid_t kernel_pid;             /* child: who may connect */
    uid_t kernel_uid;
    pthread_mutex_t lock;   /* child: of `arrived` */
    pthread_cond_t arrived; /* child: a callback strand came */
};

typedef struct core_state {
    PyTypeObject *peer_type, *method_type, *data_type, *value_type, *bound_type, *module_type,
        *hold_type, *memory_type, *cursor_type, *iterator_type, *contents_type, *batch_type,
        *future_type;
    PeerObject *first_peer; /* borrowed: all that live */
    struct table proxies;   /* address of a proxy -> struct proxy */
    struct table mirrors;   /* address of a type -> struct mirror */
    PyObject *value_types;  /* dict: type -> True; registered to cross by value */
    PyObject *empty_tuple;
    PyObject *type_names;  /* dict: the texts that tp_name of mirrors points to, as keys */
    PyObject *sys_dict;    /* strong: sys.__dict__ */
    PyObject *path;        /* borrowed: what it has as `path`, as long as it is ... */
    uint64_t path_version; /* ... of this version */
#define RECENT_NAMES 256
#define RECENT_TEXTS 64
    PyObject
        *recent_names[RECENT_NAMES]; /* strong or NULL: interned, that arrived; by their hash */
    struct recent_text {
        PyObject *text; /* strong or NULL */
        size_t hash;
    } recent_texts[RECENT_TEXTS]; /* short ones that were arguments; by their hash, see naming.c */
    PyObject *errors;             /* the module ipython_isolation.errors */
    PyObject *library[LIBRARY_CONTAINERS];  /* NULL until first needed */
    PyObject *deque_type, *array_type;      /* NULL until first needed */
    PyObject *numpy_names[4];               /* likewise; see dtypes.c */
    PyObject *numpy_scalar, *dtype_of_text; /* likewise */
    PyObject *dtype_of_char[128];           /* those of one character; strong, or NULL */
    struct table dtype_texts;               /* dtype -> text, both strong */
    struct known_dtype {
        PyObject *dtype, *text; /* strong */
        char kind;
        int itemsize;
    } known_dtypes[KNOWN_DTYPES]; /* that arrays were seen to have; see ndarray.c */
    unsigned nknown_dtypes;
    unsigned nested;     /* what recursion_enter() has let in and is not over yet, in all threads */
    PyObject *libraries; /* the module ipython_isolation.libraries, once it is needed */
    struct table name_numbers; /* address of a DUNDER of names.def -> its number + 1 */
#define NAME(n) PyObject *str_##n;
#define DUNDER(n) PyObject *str___##n##__;
#include "names.def"
#undef NAME
#undef DUNDER
} core_state;

/* The one state of this process: sub-interpreters are refused (module.c), and slots patched onto
 * mirrored classes have no way to reach a module. */
core_state *core_get(void);

/* Around what may go deeper and deeper, as Py_EnterRecursiveCall(), which counts calls but does not
 * know how much C stack they take. 0, or -1 with RecursionError. */
#define NESTED_FEW 4 /* no stack is used up by so many */
static inline int
recursion_enter(const char *where, enum stack_use use)
{
    core_state *core = core_get();
    if (core->nested > NESTED_FEW && stack_is_low(use)) {
        PyErr_Format(PyExc_RecursionError,
                     "maximum recursion depth exceeded%s: the C stack is nearly used up", where);
        return -1;
    }
    if (Py_EnterRecursiveCall(where) != 0) {
        return -1;
    }
    core->nested++;
    return 0;
}

static inline void
recursion_leave(void)
{
    Py_LeaveRecursiveCall();
    core_get()->nested--;
}

/* Grows with each change of cwd or environment of this process. */
extern uint64_t state_generation;
/* > 0 while this thread makes a mirror: stubs that type.__new__ calls do nothing. */
extern _Thread_local int building;

#endif
