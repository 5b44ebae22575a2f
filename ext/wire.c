#include "wire.h"

#include <stdlib.h>
#include <string.h>

void
writer_init(struct writer *w)
{
    w->data = w->small;
    w->size = 0;
    w->capacity = sizeof w->small;
    w->failed = false;
}

void
writer_free(struct writer *w)
{
    if (w->data != w->small) {
        free(w->data);
    }
    writer_init(w);
}

unsigned char *
writer_grow(struct writer *w, size_t n)
{
    if (w->failed) {
        return NULL;
    }
    if (n > w->capacity - w->size) {
        size_t capacity = w->capacity;
        while (capacity - w->size < n) {
            if (capacity > SIZE_MAX / 2) {
                w->failed = true;
                return NULL;
            }
            capacity *= 2;
        }
        unsigned char *data = w->data == w->small ? malloc(capacity) : realloc(w->data, capacity);
        if (data == NULL) {
            w->failed = true;
            return NULL;
        }
        if (w->data == w->small) {
            memcpy(data, w->small, w->size);
        }
        w->data = data;
        w->capacity = capacity;
    }
    return w->data + w->size;
}

void
write_bytes(struct writer *w, const void *data, size_t n)
{
    write_size(w, n);
    write_raw(w, data, n);
}

void
patch_u32(struct writer *w, size_t offset, uint32_t v)
{
    if (!w->failed && offset + sizeof v <= w->size) {
        memcpy(w->data + offset, &v, sizeof v);
    }
}

void
patch_u16(struct writer *w, size_t offset, uint16_t v)
{
    if (!w->failed && offset + sizeof v <= w->size) {
        memcpy(w->data + offset, &v, sizeof v);
    }
}

void
reader_init(struct reader *r, const void *data, size_t n)
{
    r->at = data;
    r->end = r->at + n;
    r->failed = false;
}

const unsigned char *
read_bytes(struct reader *r, size_t *n)
{
    uint64_t size = read_size(r, 1);
    *n = (size_t)size;
    return read_raw(r, (size_t)size);
}

static uint64_t
checked_count(struct reader *r, uint64_t n, size_t item)
{
    if (r->failed || n > reader_left(r) / (item ? item : 1)) {
        r->failed = true;
        return 0;
    }
    return n;
}

uint64_t
read_count(struct reader *r, size_t item)
{
    return checked_count(r, read_u64(r), item);
}

uint64_t
read_size(struct reader *r, size_t item)
{
    uint64_t n = read_u8(r);
    r->failed = r->failed || n == SIZE_NAME;
    return checked_count(r, n == SIZE_WIDE ? read_u64(r) : n, item);
}

void
write_header(struct writer *w, const struct frame_header *h)
{
    unsigned char *to = writer_reserve(w, WIRE_HEADER_SIZE);
    if (to != NULL) {
        to[0] = WIRE_VERSION;
        to[1] = h->op;
        memcpy(to + 2, &h->flags, 2);
        memcpy(to + 4, &h->epoch, 4);
        memcpy(to + 8, &h->strand, 4);
        memcpy(to + 12, &h->scope, 4);
        memcpy(to + 16, &h->request, 8);
        w->size += WIRE_HEADER_SIZE;
    }
}

bool
read_header(struct reader *r, struct frame_header *h)
{
    h->version = read_u8(r);
    h->op = read_u8(r);
    h->flags = read_u16(r);
    h->epoch = read_u32(r);
    h->strand = read_u32(r);
    h->scope = read_u32(r);
    h->request = read_u64(r);
    if (h->version != WIRE_VERSION) {
        r->failed = true;
    }
    return !r->failed;
}
