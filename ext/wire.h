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

#define WIRE_VERSION 1
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
/* Room for n more bytes; returns where they go, or NULL (failed). Does not advance `size`. */
unsigned char *writer_reserve(struct writer *w, size_t n);
void write_u8(struct writer *w, uint8_t v);
void write_u16(struct writer *w, uint16_t v);
void write_u32(struct writer *w, uint32_t v);
void write_u64(struct writer *w, uint64_t v);
void write_f64(struct writer *w, double v);
void write_raw(struct writer *w, const void *data, size_t n);
/* A length (u64) and that many bytes. */
void write_bytes(struct writer *w, const void *data, size_t n);
/* Overwrite an u32 or u16 written earlier, at `offset`. */
void patch_u32(struct writer *w, size_t offset, uint32_t v);
void patch_u16(struct writer *w, size_t offset, uint16_t v);

void reader_init(struct reader *r, const void *data, size_t n);
uint8_t read_u8(struct reader *r);
uint16_t read_u16(struct reader *r);
uint32_t read_u32(struct reader *r);
uint64_t read_u64(struct reader *r);
double read_f64(struct reader *r);
/* n bytes in place, valid as long as the buffer is; NULL when fewer are left. */
const unsigned char *read_raw(struct reader *r, size_t n);
const unsigned char *read_bytes(struct reader *r, size_t *n);
/* A count of items of at least `item` bytes each: fails when they cannot all be in what is left,
 * so that a garbled count never makes the caller allocate. */
uint64_t read_count(struct reader *r, size_t item);
size_t reader_left(const struct reader *r);

void write_header(struct writer *w, const struct frame_header *h);
/* False (and `failed`) when the frame is shorter than a header or of another version. */
bool read_header(struct reader *r, struct frame_header *h);

#endif
