/* wire.h: primitive values in a byte buffer, bounds-checked both ways. No Python, no sockets.
 *
 * A writer grows; the first failure (out of memory) sticks in `failed` and later writes do nothing,
 * so callers check once at the end. A reader never reads past `end`; a short or malformed buffer
 * sets `failed` and every later read returns zero. All integers are little-endian. */
#ifndef ISOLATION_WIRE_H
#define ISOLATION_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define WIRE_VERSION 2 /* also of the order of names.def, see naming.c */
#define WIRE_HEADER_SIZE 24

struct writer {
    unsigned char *data;
    size_t size, capacity;
    bool failed;
    unsigned char small[480]; /* most frames fit: no allocation for them */
};

struct reader {
    const unsigned char *at, *end;
    bool failed;
};

/* Every frame starts with this. */
struct frame_header {
    uint8_t version;
    uint8_t op;     /* a row of ops.def */
    uint16_t flags; /* FRAME_* */
    uint32_t epoch;
    uint32_t strand;
    uint32_t scope; /* of the strand: what the sender may mention, see scope.c */
    uint64_t request;
};

enum {
    FRAME_REPLY = 1,       /* answers `request`; else this frame is a request or an event */
    FRAME_ERROR = 2,       /* with FRAME_REPLY: the body is an exception */
    FRAME_RELEASES = 4,    /* the body starts with counted releases */
    FRAME_PAIRS = 8,       /* then come changes of copy-restored containers */
    FRAME_EVENT = 16,      /* no reply is expected */
    FRAME_INVALIDATE = 32, /* cached module attributes may have changed */
    FRAME_CACHEABLE = 64,  /* the result may be cached until an INVALIDATE */
    FRAME_CLASSES = 128,   /* after the releases come new names of classes described before */
    FRAME_BUFFERS = 256,   /* the body starts with changes of buffers, before the releases */
};

void writer_init(struct writer *w);
void writer_free(struct writer *w);
/* Room for n more bytes where `small` or what was allocated is full; as writer_reserve(). */
unsigned char *writer_grow(struct writer *w, size_t n);
/* Their number (a size) and the bytes. */
void write_bytes(struct writer *w, const void *data, size_t n);
/* Overwrite an u32 or u16 written earlier, at `offset`. */
void patch_u32(struct writer *w, size_t offset, uint32_t v);
void patch_u16(struct writer *w, size_t offset, uint16_t v);
void write_header(struct writer *w, const struct frame_header *h);

void reader_init(struct reader *r, const void *data, size_t n);
const unsigned char *read_bytes(struct reader *r, size_t *n);
/* A count of items of at least `item` bytes each: fails when they cannot all be in what is left,
 * so that a garbled count never makes the caller allocate. */
uint64_t read_count(struct reader *r, size_t item);
/* The same, where the count is a size. */
uint64_t read_size(struct reader *r, size_t item);
/* False (and `failed`) when the frame is shorter than a header or of another version. */
bool read_header(struct reader *r, struct frame_header *h);

/* What follows is inline because every value of every frame goes through it. */

/* The machines this runs on are little-endian; a big-endian one would swap in WRITE and READ. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "wire.h assumes a little-endian machine");

/* Room for n more bytes; returns where they go, or NULL (failed). Does not advance `size`. */
static inline unsigned char *
writer_reserve(struct writer *w, size_t n)
{
    return !w->failed && n <= w->capacity - w->size ? w->data + w->size : writer_grow(w, n);
}

static inline void
write_raw(struct writer *w, const void *data, size_t n)
{
    unsigned char *to = writer_reserve(w, n);
    if (to != NULL && n != 0) {
        memcpy(to, data, n);
        w->size += n;
    }
}

#define WRITE(name, type)                                                                          \
    static inline void name(struct writer *w, type v)                                              \
    {                                                                                              \
        write_raw(w, &v, sizeof v);                                                                \
    }
WRITE(write_u8, uint8_t)
WRITE(write_u16, uint16_t)
WRITE(write_u32, uint32_t)
WRITE(write_u64, uint64_t)
WRITE(write_f64, double)
#undef WRITE

/* Most lengths, and all of a call that is meant to be fast, take one byte: such a frame is one line
 * of the lane, which comes over in one piece. */
#define SIZE_NAME 254u /* no size: a name that has a number, see naming.c */
#define SIZE_WIDE 255u /* an u64 follows */

static inline void
write_size(struct writer *w, uint64_t n)
{
    if (n < SIZE_NAME) {
        write_u8(w, (uint8_t)n);
    }
    else {
        write_u8(w, SIZE_WIDE);
        write_u64(w, n);
    }
}

static inline size_t
reader_left(const struct reader *r)
{
    return (size_t)(r->end - r->at);
}

/* n bytes in place, valid as long as the buffer is; NULL when fewer are left. */
static inline const unsigned char *
read_raw(struct reader *r, size_t n)
{
    if (r->failed || n > reader_left(r)) {
        r->failed = true;
        return NULL;
    }
    const unsigned char *from = r->at;
    r->at += n;
    return from;
}

#define READ(name, type)                                                                           \
    static inline type name(struct reader *r)                                                      \
    {                                                                                              \
        type v = 0;                                                                                \
        const unsigned char *from = read_raw(r, sizeof v);                                         \
        if (from != NULL) {                                                                        \
            memcpy(&v, from, sizeof v);                                                            \
        }                                                                                          \
        return v;                                                                                  \
    }
READ(read_u8, uint8_t)
READ(read_u16, uint16_t)
READ(read_u32, uint32_t)
READ(read_u64, uint64_t)
READ(read_f64, double)
#undef READ

#endif
