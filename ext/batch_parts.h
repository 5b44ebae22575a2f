/* batch_parts.h: what the files that make up the kernel's batches share: batch.c, batch_send.c,
 * batch_type.c and future.c, and no others. */
#ifndef ISOLATION_BATCH_PARTS_H
#define ISOLATION_BATCH_PARTS_H

#include "batch.h"

enum future_state { FUTURE_PENDING, FUTURE_DONE, FUTURE_FAILED };

typedef struct {
    PyObject_HEAD
    enum future_state state;
    bool asked;                /* somebody has seen that it failed */
    struct BatchObject *batch; /* strong while it is pending, else NULL */
    PyObject *value;           /* strong or NULL: the result, or the exception */
    uint32_t index;            /* in its request */
    uint64_t number;           /* in its batch, from 1 */
    size_t flag_at;            /* where its request says that a later call needs its result */
    /* For the report of a death; `operation` is static. References are strong or NULL. */
    const char *operation;
    PyObject *operand, *args, *kwnames, *kwargs;
    Py_ssize_t nargs;
    bool by_tuple;   /* `args` is as a type is called, see struct arguments */
    PyObject *needs; /* list of the pending futures among its arguments, or NULL */
} FutureObject;

typedef struct BatchObject {
    PyObject_HEAD
    PeerObject *peer;         /* strong */
    struct BatchObject *next; /* of peer->batches; borrowed */
    unsigned long thread;     /* whose calls it takes */
    unsigned level;           /* how deep that thread was in requests when it was opened */
    bool open;                /* it is in peer->batches */
    bool pending;             /* `message` has calls that have not been sent */
    bool busy;                /* a call is being written, or calls are being made */
    bool full;                /* nothing more may be added to the message */
    struct message message;
    size_t count_at;        /* where it says how many calls there are */
    uint64_t change_serial; /* of the classes' changes that the message tells of */
    PyObject *futures;      /* list: of the message, or of what is being made */
    uint64_t first;         /* number of the first of them */
    PyObject *failed;       /* list of futures that nobody had asked for when they failed */
    uint64_t base;          /* number of the request that is being made, and ... */
    Py_ssize_t at;          /* ... which of its calls is waited for */
    uint64_t blamed;        /* number of the call that killed the child */
    /* While the replies are awaited, those that came too early; by request, from `base` on. */
    struct answer *early;
    bool unread; /* the child could not read the request: its answer to that is one to all calls */
    struct {     /* where the message was before the call that is being written */
        size_t size, nsent, nblobs, npairs, nvalues;
    } mark;
    PyObject *needs; /* of the call that is being written: list or NULL */
} BatchObject;

/* ---- future.c ------------------------------------------------------------------------------- */

/* A future, pending, of the call that m has just taken in; it remembers what is called, for the
 * report of a death. Takes b->needs. A new reference, of which b->futures has one of its own, or
 * NULL with an exception. */
FutureObject *future_new(BatchObject *b, const struct message *m);
/* Steals value: the result, or the exception. */
void future_settle(FutureObject *f, enum future_state state, PyObject *value);
/* Adds the type to the module: 0, or -1 with an exception. */
int future_init(core_state *core, PyObject *module);

/* ---- batch.c -------------------------------------------------------------------------------- */

/* A message that has not grown is where its bytes are. */
void batch_move_message(struct message *to, const struct message *from);
/* How deep this thread is in requests of either side: what is called there by code that is served
 * is none of the block's. */
unsigned batch_depth(PeerObject *peer, unsigned long thread);
/* The batch that takes this thread's calls, borrowed. Others of this thread, which are inside or
 * around it, have none pending then. NULL, perhaps with an exception. */
BatchObject *batch_of_thread(PeerObject *peer);

/* ---- batch_send.c --------------------------------------------------------------------------- */

/* Makes the calls that are pending. What they raise is their futures' to raise; -1 with an
 * exception when that was interrupted. */
int batch_flush(BatchObject *b);
/* What was to be sent is not: `why` is raised by the futures. Steals it; NULL is allowed. */
void batch_drop(BatchObject *b, PyObject *why);

#endif
