/* codec.h: objects to bytes and back. What crosses how is in docs/crossing.md; the order of the
 * rules is the order of the code in encode(). */
#ifndef ISOLATION_CODEC_H
#define ISOLATION_CODEC_H

#include "state.h"

enum tag {
    TAG_NONE,
    TAG_FALSE,
    TAG_TRUE,
    TAG_ELLIPSIS,
    TAG_NOTIMPLEMENTED,
    TAG_INT,    /* i64 */
    TAG_BYTE,   /* i8: a small int */
    TAG_BIGINT, /* bytes, little-endian two's complement */
    TAG_FLOAT,
    TAG_COMPLEX,
    TAG_ASCII, /* bytes */
    TAG_STR,   /* bytes, utf-8 with surrogates passed */
    TAG_BYTES,
    TAG_RANGE, /* start, stop, step */
    TAG_SLICE, /* start, stop, step */
    TAG_TUPLE, /* count, items */
    TAG_FROZENSET,
    TAG_LIST, /* a container that moves: count, items */
    TAG_DICT,
    TAG_SET,
    TAG_BYTEARRAY,
    TAG_DEQUE,    /* maxlen, count, items */
    TAG_PAIR,     /* id, kind, content: a container that is copied and restored */
    TAG_PAIRREF,  /* id */
    TAG_REF,      /* handle, class, named?: an object of the sender */
    TAG_REFVALUE, /* handle, class, value: the same with the value of its immutable base */
    TAG_BACKREF,  /* handle: an object of the receiver */
    TAG_NAMED,    /* module, qualname: resolved by the receiver */
    TAG_CLASS,    /* a class as a value */
    TAG_MODULE,   /* handle, name: a module of the sender, as a module proxy */
    TAG_METHOD,   /* self, name: a bound method of the receiver */
    TAG_STUB,   /* class, name: what a class of the receiver has under that name in its __dict__ */
    TAG_REDUCE, /* callable, args, state: a registered value type */
    TAG_EXCEPTION,
    TAG_EXCEPTION_SEEN, /* handle: an exception earlier in this frame */
    TAG_NDARRAY,
    TAG_ARRAY,
    TAG_MEMORYVIEW,
    TAG_TRACEBACK,      /* frames: file, function, line */
    TAG_EXCEPTION_BACK, /* handle, frames: an exception of the receiver, raised through the sender
                         */
    TAG_ARGUMENT,       /* request * 2 + (the sender asked), number: a value of its arguments */
    TAG_BLOBTEXT,       /* blob: a long ASCII text */
    TAG_LIBRARY,    /* id (0: it moves), which, factory, content: a dict of class `collections` */
    TAG_SHADOW,     /* handle, class, id, kind, content: a container of a session class */
    TAG_OBJECTS,    /* order and writeable, shape, items: an array of objects */
    TAG_FUTURE,     /* u32: what that call of the same batch has returned */
    TAG_SCALAR,     /* dtype, bytes or value: a scalar of NumPy */
    TAG_DTYPE,      /* text or pickle */
    TAG_MEMORY,     /* writable?, blob: a buffer among parts */
    TAG_PARTS,      /* id (0: it moves, or cannot change), parts: an object of a known library */
    TAG_CONTENTS,   /* count; of each: handle of the sender, what is in it (a tuple); see ahead.c */
    TAG_RUN,        /* kind, count, numbers: items of a list or tuple; see runs.h */
    TAG_KEPT = 128, /* added to the tag of a value that gets the next number of its request */
};

/* A frame being built. */
struct message {
    struct writer w;
    PeerObject *peer;
    struct strand *strand;
    bool result; /* what is encoded is a result: fresh containers move; else they are copied */
    unsigned char op;
    unsigned flags;
    uint64_t request;
    size_t released;             /* where queued releases are in this frame; 0: there are none */
    bool begun;                  /* counted in strand->framing */
    size_t npairs;               /* of the strand, before this message */
    uint32_t scope, outer_scope; /* a request's, and the one in which it was begun; see scope.c */
    uint64_t changes_upto; /* serial of the last change of a class that went into this frame */
    struct sent {
        uint64_t handle;
        bool described; /* its description went into this frame */
    } * sent;           /* to take back when the frame is abandoned */
    size_t nsent, capsent;
    PyObject *seen;     /* strong or NULL: exceptions already in this frame, by handle */
    struct blob *blobs; /* sent along without a copy; each owns a reference to its object */
    size_t nblobs;
    bool reducing;         /* what is encoded is part of a registered value */
    bool taking_apart;     /* ... or of an object of a known library, see parts.c */
    bool pure;             /* a request that changes nothing over there */
    bool openly;           /* over libzmq, whatever its size */
    const char *operation; /* what is asked for, and of what (borrowed): for the error text */
    PyObject *operand;
    struct arguments { /* likewise (borrowed); the caller keeps them until the request is over */
        PyObject *const *vector;
        Py_ssize_t nargs;
        PyObject *kwnames;        /* of the vector; or ... */
        PyObject *tuple, *kwargs; /* ... what a type is called with */
    } arguments;
    struct values *values; /* `own_values`, once there are any in this request; or NULL */
    struct values own_values;
    struct BatchObject *batch; /* borrowed or NULL: it is a call of this batch, see batch.c */
    bool interrupted; /* a signal has interrupted its wait; or, before that, is to do so at once */
    bool died;        /* its wait has found the life over */
    bool cacheable;   /* its reply said that the result may be cached */
};

/* A frame being read. */
struct incoming {
    struct reader r;
    PeerObject *peer;
    struct strand *strand;
    struct frame frame;
    struct frame_header header;
    PyObject *seen;        /* strong or NULL: dict of the exceptions in this frame, by handle */
    struct values *values; /* borrowed: of the request that is read; NULL in any other frame */
    bool discarded;        /* read for its handles alone: requests it refers to may be over */
    struct batch_calls
        *batch;      /* borrowed or NULL: the batch that is being served; see batch_serve.c */
    bool unanswered; /* a call of it could not be answered: this end has to give up */
};

/* A reply that has been read. */
struct answer {
    unsigned flags;  /* the frame's */
    bool failed;     /* `value` is what reading it has raised */
    PyObject *value; /* strong, or NULL before */
};

void message_init(struct message *m, PeerObject *peer, struct strand *strand, bool result);
/* Says what is asked: the function, class, module or object (or a module's name), which the caller
 * keeps until the request is over. What the child prints meanwhile belongs to its module. */
static inline void
message_about(struct message *m, PyObject *subject)
{
    if (m->strand->depth == 1 && m->strand->serving == 0) {
        m->strand->subject = subject;
    }
}
/* Frees the buffer. With `abandon`, also takes back what the frame would have exported. */
void message_free(struct message *m, bool abandon);

/* Appends o; `owned`: nothing but our caller refers to it (its container moved or is fresh).
 * 0, or -1 with an exception. */
int encode(struct message *m, PyObject *o, bool owned);
int encode_name(struct message *m, PyObject *name);
/* New reference to the str of an argument that is said to be ASCII: what is not comes as U+FFFD.
 * The caller adds it to the values of its request. */
PyObject *argument_text(const struct values *values, const char *text, size_t size);
/* Once, when the core is loaded: 0, or -1 with an exception. */
int number_names(core_state *core);
/* The text of a name that is written as a number, which is read then; NULL where none is next. */
const char *read_name_number(struct reader *r);
int encode_call(struct message *m, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
/* An argument as such, not inside a container: numbers are told apart by identity too. */
int encode_argument(struct message *m, PyObject *o);
/* The numbers that `items` begins with, if they are many of one kind, as one run of a list or tuple
 * that is being encoded. How many were written, perhaps none. */
Py_ssize_t encode_run(struct message *m, PyObject *const *items, Py_ssize_t most);
/* New reference, or NULL with an exception. */
PyObject *decode(struct incoming *in);
/* The items of a list or tuple. */
struct sequence {
    struct incoming *in;
    uint64_t left; /* items to come */
    uint64_t run;  /* ... of which so many are numbers of one kind: */
    uint8_t kind;  /* see runs.h */
};
/* 0, or -1 with an exception: garbled. */
int sequence_begin(struct sequence *s, struct incoming *in);
/* New reference, or NULL with an exception. Only while there are items left. */
PyObject *sequence_next(struct sequence *s);
PyObject *decode_name(struct incoming *in);
/* Positional and keyword arguments, in vectorcall form, in one block that starts with a
 * free slot (PY_VECTORCALL_ARGUMENTS_OFFSET). */
struct call {
    PyObject **block, **args; /* the block is `few`, or allocated */
    Py_ssize_t nargs, total;
    PyObject *kwnames; /* strong or NULL */
    PyObject *few[6];
};
int decode_call(struct incoming *in, struct call *call, PyObject *first);
void call_free(struct call *call);

/* Bytes of `owner` (which nobody changes until they are sent): in the frame when they are few, else
 * sent along without being encoded. */
int encode_blob(struct message *m, const void *data, size_t size, PyObject *owner, bool apart);
/* The same of what may get another size before libzmq has sent it: copied, unless it is `ours`. */
int encode_resizable(struct message *m, PyObject *o, const void *data, size_t size, bool ours);
/* As PyBytes_FromStringAndSize(): many of them are copied by all processors. */
PyObject *bytes_of(const void *data, size_t size);
/* The same of bytes in a block, which is shared and not sent where the connection can do that. */
int encode_shared(struct message *m, const void *data, size_t size, PyObject *owner,
                  struct block *block);
/* In place, and the frame that holds them; NULL (failed reader) when garbled. The other end may
 * still be able to change them: what is checked has to be a copy. */
const unsigned char *decode_blob(struct incoming *in, size_t *size, const struct frame **frame);
/* Lets go of objects whose bytes have been sent; for owners of blobs. */
void blob_done(void *owner);
void blobs_collect(void);

/* For the files that share the work. */
/* Bytes; below this a copy into the frame is cheaper than a part of its own. */
#define BLOB_SIZE 65536
static inline void
write_tag(struct message *m, enum tag tag)
{
    write_u8(&m->w, (uint8_t)tag);
}
enum crossing { BY_REFERENCE, BY_VALUE, IN_PARTS };
enum crossing crossing_of(PyTypeObject *type); /* encode.c */

/* message.c */
RARE int garbled(const char *what);   /* sets the exception; always -1 */
int message_check(struct message *m); /* MemoryError when the writer failed */
int encode_export(struct message *m, PyObject *o, struct export **out);

/* naming.c */
bool is_isolated_name(PeerObject *peer, PyObject *module);
PyObject *resolve_name(PyObject *module, PyObject *qualname, bool import);
/* True when o is a C function or class that the other side can find under the same name; then with
 * new references to that name. */
bool is_named(PeerObject *peer, PyObject *o, PyObject **module, PyObject **qualname);

/* containers.c */
/* Does nothing but our caller refer to o, so that it may move? */
bool is_unshared(PyObject *o, bool owned);
/* The number of items and the items: of a list, tuple, set, frozenset or deque. */
int encode_sequence(struct message *m, PyObject *o, bool owned);
/* A mutable built-in container: copied with a pair in arguments; in results it moves when nothing
 * else refers to it. *done stays false when it goes by reference. */
int encode_container(struct message *m, PyObject *o, bool owned, bool *done);
/* New reference to the container that `tag` begins, or NULL with an exception. */
PyObject *decode_container(struct incoming *in, uint8_t tag);

/* describe.c, classes.c, mirrors.c: see classes.h */
enum class_use { CLASS_AS_VALUE, CLASS_OF_INSTANCE, CLASS_AS_BASE, CLASS_AS_META };
int encode_class(struct message *m, PyTypeObject *cls, enum class_use use);
PyObject *decode_class(struct incoming *in, enum class_use use);
/* A name in the class's own __dict__, and what stub it needs (value NULL: it has gone); a new row
 * (name, kind, abstract, literal) of it. */
int encode_class_name(struct message *m, PyTypeObject *cls, PyObject *name, PyObject *value);
PyObject *decode_class_name(struct incoming *in);
/* Does to a mirrored class what a row says. 0, or -1. */
int mirror_change(PyTypeObject *type, PyObject *row);
/* Forgets what the handles of a life that is over stood for; mirrored classes stay. 0, or -1. */
int mirrors_forget_handles(PeerObject *peer);

/* class_changes.c */
int class_changes_init(void);
/* Notes that `name` of a class of this side changed, if the other side knows the class. */
int class_changed(PeerObject *peer, PyObject *cls, PyObject *name);
/* type.__setattr__ as it was: on a mirrored class, for this side alone; also on an immutable one.
 */
int class_setattro_here(PyTypeObject *type, PyObject *name, PyObject *value);
APART int class_changes_encode(struct message *m);
APART int class_changes_decode(struct incoming *in);
/* What a frame that was sent has told. */
void class_changes_forget(PeerObject *peer, uint64_t upto);

/* errors.c */
int encode_exception(struct message *m, PyObject *exc);
PyObject *decode_exception(struct incoming *in);
int encode_traceback(struct message *m, PyObject *traceback);
PyObject *decode_traceback(struct incoming *in);
PyObject *decode_exception_back(struct incoming *in);
/* As `raise` does: what is being handled here is the context of what arrived. */
APART void chain_context(PyObject *exc);

/* dtypes.c */
enum numpy_name { NUMPY_NDARRAY, NUMPY_DTYPE, NUMPY_GENERIC, NUMPY_UFUNC };
/* Borrowed; NULL without an exception: NumPy is not loaded. */
PyObject *numpy_name(enum numpy_name which);
/* What says a dtype in a frame: a text or a pickle; new reference. NULL without an exception where
 * it has *objects in it. */
PyObject *dtype_text(PyObject *dtype, bool *objects);
/* What was said, never one with objects in it; new reference, or NULL, perhaps without an
 * exception. */
PyObject *dtype_of_text(PyObject *text);
/* The same of what comes next in the frame; mostly without an object for it. */
PyObject *decode_array_dtype(struct incoming *in);
/* Do its instances cross as values, or as arrays? */
bool is_numpy_value_class(PyTypeObject *cls);
/* A scalar, a dtype or a ufunc of NumPy itself. */
bool is_numpy_value(PeerObject *peer, PyObject *o);
int encode_numpy_value(struct message *m, PyObject *o, bool *done);
PyObject *decode_scalar(struct incoming *in);
PyObject *decode_dtype(struct incoming *in);

/* arrays.c */
/* Is this top-level module isolated? */
bool module_isolated(PeerObject *peer, PyObject *name);
bool is_plain_ndarray(PyObject *o); /* of NumPy, isolated or not */
bool is_ndarray(PeerObject *peer, PyObject *o);
bool is_array(PeerObject *peer, PyObject *o);
bool is_array_class(PyTypeObject *cls);     /* array.array itself */
bool is_fresh(PyObject *array, bool owned); /* may it move? */
PyObject *decode_objects(struct incoming *in);
int encode_ndarray(struct message *m, PyObject *o, bool owned, bool *done);
PyObject *decode_ndarray(struct incoming *in);
int encode_array(struct message *m, PyObject *o, bool owned, bool *done);
PyObject *decode_array(struct incoming *in);
int encode_memoryview(struct message *m, PyObject *o, bool *done);
PyObject *decode_memoryview(struct incoming *in);
/* The bytes as memory that may be written, without a copy, where that is worth it: NULL, without an
 * exception. */
struct extent_copy *copy_of_frame(const struct frame *frame, const unsigned char *data,
                                  size_t size);
/* What came, as a snapshot of a pair, without a copy; new reference. */
PyObject *share_of_frame(const struct frame *frame, const unsigned char *data, size_t size);
/* What a snapshot that share_of_frame made holds. */
const char *share_bytes(PyObject *capsule, size_t *size);
/* The bytes of an array-like in a pair, for comparison and write-back. */
struct flat {
    char *data;
    size_t size;
    size_t unit; /* bytes of a number, which is written as one; 1 where that is not known */
    bool contiguous;
    Py_buffer view;
    PyObject *capsule;
};
int flat_open(PyObject *o, struct flat *f);
void flat_close(struct flat *f);

/* parts.c */
/* Is it one of a known library that may cross as a real one? */
bool has_parts(PyTypeObject *type);
/* *done stays false when it goes by reference. */
int encode_parts(struct message *m, PyObject *o, bool owned, bool *done);
PyObject *decode_parts(struct incoming *in);
/* What to compare it with later; new reference. */
PyObject *parts_snapshot(PyObject *o);
int encode_parts_changes(struct message *m, PyObject *o, PyObject *before, bool *changed);
int apply_parts(struct incoming *in, PyObject *target);

/* values.c */
int values_add(struct values *v, PyObject *o);
void values_clear(struct values *v);
/* Takes back all but the first n. */
void values_truncate(struct values *v, size_t n);
/* The request that v belongs to begins, and ends, on this strand. */
void values_begin(struct strand *s, struct values *v);
void values_end(struct strand *s, struct values *v);
/* Of which request under way, known to the receiver of m, o is a value; NULL: of none. */
struct values *values_find(struct message *m, PyObject *o, uint32_t *index);
/* Borrowed; NULL when there is none. */
PyObject *values_get(struct strand *s, uint64_t request, bool mine, uint32_t index);

/* pairs.c */
enum pair_kind {
    PAIR_LIST,
    PAIR_DICT,
    PAIR_SET,
    PAIR_BYTEARRAY,
    PAIR_DEQUE,
    PAIR_BUFFER,
    PAIR_PARTS
};
struct pair *pair_find(struct strand *s, PyObject *o);
/* Writes which pair o is of. False: of none. */
bool encode_paired(struct message *m, PyObject *o);
struct pair *pair_by_id(struct strand *s, uint64_t id);
struct pair *pair_add(struct strand *s, PyObject *o, enum pair_kind kind, uint64_t id);
uint64_t pair_new_id(struct strand *s);
/* This side gains control: remember the contents of pairs[from...]. */
APART int pairs_snapshot(struct strand *s, size_t from);
/* This side loses control: append what changed since. Sets *any when there was something. */
APART int pairs_encode_changes(struct message *m, bool *any);
APART int pairs_decode_changes(struct incoming *in);
void pairs_truncate(struct strand *s, size_t npairs);
/* Whether one of pairs[from...] is not what it was when it was remembered: 1, 0, or -1. */
int pairs_changed(PeerObject *peer, struct strand *s, size_t from);
/* What was remembered of pairs[from...] counts no more. */
void pairs_forget(struct strand *s, size_t from);
/* Dicts in the order that they show, which an OrderedDict keeps apart from the dict's own. */
struct walk {
    PyObject *dict; /* borrowed */
    PyObject *keys; /* strong: list; NULL for a plain order */
    Py_ssize_t i;
};
int walk_begin(struct walk *w, PyObject *dict);
/* Borrowed key and value; false at the end, where the walk ends itself. */
bool walk_next(struct walk *w, PyObject **key, PyObject **value);
void walk_end(struct walk *w);
/* What a subclass defines does not count. */
int dict_set(PyObject *dict, PyObject *key, PyObject *value);
int container_clear(PyObject *o, enum pair_kind kind);
PyObject *container_iter(PyObject *o);
/* Borrowed; NULL when there is none. */
PyObject *deque_class(void);
PyObject *deque_call(PyObject *deque, const char *method, PyObject *arg);

/* shadows.c */
/* Which class of the library that both sides have o is of; -1: of none. */
int library_container(PeerObject *peer, PyObject *o);
/* A new one; NULL, perhaps without an exception. */
PyObject *library_new(unsigned which, PyObject *factory);
/* Is o, of this side, passed as a shadow? */
bool has_shadow(PeerObject *peer, PyObject *o, enum pair_kind *kind);
/* An empty shadow of an instance of a mirrored class, the proxy of `handle`. */
PyObject *shadow_new(PeerObject *peer, PyTypeObject *type, uint64_t handle, enum pair_kind kind);
bool is_shadow(PyObject *o, enum pair_kind kind);
/* The runs of bytes that are not what they were `before`: count, (offset, bytes). */
int encode_ranges(struct message *m, const char *now, const char *before, size_t size,
                  bool *changed);
int apply_ranges(struct incoming *in, char *data, size_t size);

#endif
