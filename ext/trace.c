/* trace.c: ISOLATION_DEBUG=1 prints every frame on stderr, readably, without making any object. */
#include "codec.h"
#include "peer.h"
#include "runs.h"

#include <stdlib.h>
#include <unistd.h>

#define LINE 1000

struct line {
    char text[LINE];
    size_t used;
};

static void
add(struct line *l, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    size_t room = sizeof l->text - l->used;
    int n = vsnprintf(l->text + l->used, room, format, args);
    va_end(args);
    if (n > 0) {
        l->used += (size_t)n < room ? (size_t)n : room - 1;
    }
}

static void
add_text(struct line *l, struct reader *r, const char *quote)
{
    size_t n;
    const char *name = read_name_number(r);
    if (name != NULL) {
        add(l, "%s%s%s", quote, name, quote);
        return;
    }
    const unsigned char *text = read_bytes(r, &n);
    add(l, "%s%.*s%s%s", quote, text == NULL ? 0 : (int)(n < 60 ? n : 60),
        text == NULL ? "" : (const char *)text, n > 60 ? "..." : "", quote);
}

static bool value(struct line *l, struct reader *r, int depth);

/* One of a run. */
static void
number(struct line *l, struct reader *r, uint8_t kind)
{
    switch (kind) {
    case 1:
        add(l, "%d", (int8_t)read_u8(r));
        break;
    case 2:
        add(l, "%d", (int16_t)read_u16(r));
        break;
    case 4:
        add(l, "%d", (int32_t)read_u32(r));
        break;
    case 8:
        add(l, "%lld", (long long)read_u64(r));
        break;
    default:
        add(l, "%g", read_f64(r));
    }
}

static bool
values(struct line *l, struct reader *r, uint64_t n, int depth, const char *open, const char *close)
{
    bool go = true;
    uint64_t run = 0;
    uint8_t kind = 0;
    add(l, "%s", open);
    for (uint64_t i = 0; go && i < n && !r->failed; i++) {
        if (i == 8) {
            add(l, ", ... %llu in all", (unsigned long long)n);
            return false;
        }
        if (i > 0) {
            add(l, ", ");
        }
        if (run == 0 && reader_left(r) > 0 && *r->at == TAG_RUN) {
            read_u8(r);
            kind = read_u8(r);
            run = run_width(kind) > 0 ? read_count(r, run_width(kind)) : 0;
        }
        if (run == 0) {
            go = value(l, r, depth + 1);
        }
        else {
            number(l, r, kind);
            run--;
        }
    }
    add(l, "%s", close);
    return go;
}

/* Prints one value; false when the rest of the frame cannot be followed (a class description). */
static bool
value(struct line *l, struct reader *r, int depth)
{
    if (depth > 8 || l->used > LINE - 100) {
        add(l, "...");
        return false;
    }
    switch (read_u8(r) & ~TAG_KEPT) {
    case TAG_NONE:
        add(l, "None");
        return true;
    case TAG_FALSE:
        add(l, "False");
        return true;
    case TAG_TRUE:
        add(l, "True");
        return true;
    case TAG_ELLIPSIS:
        add(l, "...");
        return true;
    case TAG_NOTIMPLEMENTED:
        add(l, "NotImplemented");
        return true;
    case TAG_INT:
        add(l, "%lld", (long long)read_u64(r));
        return true;
    case TAG_BYTE:
        add(l, "%d", (int8_t)read_u8(r));
        return true;
    case TAG_FLOAT:
        add(l, "%g", read_f64(r));
        return true;
    case TAG_COMPLEX: {
        double real = read_f64(r);
        add(l, "(%g%+gj)", real, read_f64(r));
        return true;
    }
    case TAG_BYTES:
    case TAG_BYTEARRAY:
        if (read_u8(r)) {
            add(l, "<blob %llu>", (unsigned long long)read_u64(r));
            return true;
        }
        /* fall through */
    case TAG_BIGINT: {
        size_t n;
        read_bytes(r, &n);
        add(l, "<%zu bytes>", n);
        return true;
    }
    case TAG_ASCII:
    case TAG_STR:
        add_text(l, r, "'");
        return true;
    case TAG_TUPLE:
        return values(l, r, read_count(r, 1), depth, "(", ")");
    case TAG_LIST:
        return values(l, r, read_count(r, 1), depth, "[", "]");
    case TAG_SET:
    case TAG_FROZENSET:
        return values(l, r, read_count(r, 1), depth, "{", "}");
    case TAG_DICT:
        return values(l, r, 2 * read_count(r, 2), depth, "dict(", ")");
    case TAG_SLICE:
        return values(l, r, 3, depth, "slice(", ")");
    case TAG_RANGE:
        return values(l, r, 3, depth, "range(", ")");
    case TAG_BACKREF:
        add(l, "<yours %llx>", (unsigned long long)read_u64(r));
        return true;
    case TAG_PAIRREF:
        add(l, "<copy %llu>", (unsigned long long)read_u64(r));
        return true;
    case TAG_PAIR: {
        uint64_t id = read_u64(r);
        uint8_t kind = read_u8(r);
        add(l, "<copy %llu>=", (unsigned long long)id);
        if (kind == PAIR_LIST || kind == PAIR_SET) {
            return values(l, r, read_count(r, 1), depth, "[", "]");
        }
        if (kind == PAIR_DICT) {
            return values(l, r, 2 * read_count(r, 2), depth, "dict(", ")");
        }
        return false;
    }
    case TAG_ARGUMENT: {
        uint64_t request = read_u64(r);
        add(l, "<argument %u of #%llu>", read_u32(r), (unsigned long long)request >> 1);
        return true;
    }
    case TAG_FUTURE:
        add(l, "<result %u>", read_u32(r));
        return true;
    case TAG_BLOBTEXT:
        read_u8(r);
        add(l, "<text blob %llu>", (unsigned long long)read_u64(r));
        return true;
    case TAG_NAMED:
        add_text(l, r, "");
        add(l, ".");
        add_text(l, r, "");
        return true;
    case TAG_MODULE: {
        uint64_t handle = read_u64(r);
        read_u8(r);
        add(l, "<mine %llx module ", (unsigned long long)handle);
        add_text(l, r, "");
        add(l, ">");
        return true;
    }
    case TAG_REF:
    case TAG_REFVALUE:
        add(l, "<mine %llx>", (unsigned long long)read_u64(r));
        return false;
    case TAG_EXCEPTION:
        add(l, "<exception %llx>", (unsigned long long)read_u64(r));
        return false;
    case TAG_CLASS:
        if (read_u8(r) == 0) {
            add(l, "<your class %llx>", (unsigned long long)read_u64(r));
            return true;
        }
        add(l, "<class>");
        return false;
    case TAG_CONTENTS: {
        uint64_t n = read_u64(r);
        add(l, "<contents of %llu>", (unsigned long long)n);
        return n == 0;
    }
    case TAG_NDARRAY:
    case TAG_OBJECTS:
        add(l, "<ndarray>");
        return false;
    case TAG_MEMORY:
        add(l, "<buffer>");
        return false;
    case TAG_PARTS:
        add(l, "<parts>");
        return false;
    case TAG_SCALAR:
        add(l, "<scalar>");
        return false;
    case TAG_DTYPE:
        add(l, "dtype ");
        return value(l, r, depth + 1);
    case TAG_ARRAY:
        add(l, "<array>");
        return false;
    case TAG_MEMORYVIEW:
        add(l, "<memoryview>");
        return false;
    default:
        add(l, "<...>");
        return false;
    }
}

static bool
call(struct line *l, struct reader *r)
{
    uint64_t nargs = read_size(r, 1), nkw = read_size(r, 1);
    bool go = true;
    add(l, "(");
    for (uint64_t i = 0; i < nkw; i++) {
        add(l, i == 0 ? "keywords " : ", ");
        add_text(l, r, "");
    }
    for (uint64_t i = 0; go && i < nargs + nkw && !r->failed; i++) {
        add(l, i > 0 ? ", " : nkw > 0 ? ": " : "");
        go = value(l, r, 1);
    }
    add(l, ")");
    return go;
}

/* The calls of a batch: as many as the line has room for. */
static void
batch(struct line *l, struct reader *r)
{
    uint64_t n = read_count(r, 10);
    add(l, "%llu calls: ", (unsigned long long)n);
    for (uint64_t i = 0; i < n && !r->failed && l->used <= LINE - 100; i++) {
        unsigned op = read_u8(r);
        read_u8(r);
        uint64_t length = read_u64(r);
        if (r->failed || length > reader_left(r)) {
            break;
        }
        struct reader one;
        reader_init(&one, r->at, length);
        add(l, i == 0 ? "" : "; ");
        bool go = value(l, &one, 0);
        if (go && op != OP_CALL) {
            add(l, ".");
            add_text(l, &one, "");
        }
        if (go) {
            call(l, &one);
        }
        r->at += length;
    }
}

void
peer_trace(PeerObject *peer, const char *direction, const void *data, size_t size)
{
    static int enabled = -1; /* the environment is read once: this is on the way of every frame */
    if (enabled < 0) {
        const char *text = getenv("ISOLATION_DEBUG");
        enabled = text != NULL && text[0] != '\0' && text[0] != '0';
    }
    if (!enabled) {
        return;
    }
    struct line l = {.used = 0};
    struct reader r;
    struct frame_header h;
    reader_init(&r, data, size);
    if (!read_header(&r, &h)) {
        return;
    }
    add(&l, "isolation %s e%u s%u %s #%llu %s%s%s", peer->is_kernel ? "kernel" : "child ", h.epoch,
        h.strand, direction, (unsigned long long)h.request, op_name(h.op),
        h.flags & FRAME_REPLY ? " reply" : "", h.flags & FRAME_ERROR ? " error" : "");
    if (h.flags & FRAME_BUFFERS) {
        add(&l, " [buffers]  %zu bytes\n", size);
        ssize_t ignored = write(2, l.text, l.used);
        (void)ignored;
        return;
    }
    if (h.flags & FRAME_RELEASES) {
        uint64_t n = read_count(&r, 16);
        read_raw(&r, (size_t)n * 16);
        add(&l, " [releases %llu]", (unsigned long long)n);
    }
    add(&l, " ");
    if (h.flags & FRAME_CLASSES) {
        add(&l, "[classes]"); /* what follows their names cannot be found without reading them */
    }
    else if (h.flags & FRAME_PAIRS) {
        add(&l, "[changes]");
    }
    else if (h.flags & FRAME_REPLY) {
        value(&l, &r, 0);
    }
    else if (h.op == OP_BATCH) {
        batch(&l, &r);
    }
    else if (!(h.flags & FRAME_EVENT)) {
        bool go = h.op == OP_HOST || value(&l, &r, 0);
        if (go && h.op != OP_CALL && h.op != OP_NEW && h.op != OP_BUFFER) {
            add(&l, ".");
            add_text(&l, &r, "");
        }
        switch (go ? h.op : 0) {
        case OP_HOST:
        case OP_CALL:
        case OP_CALLATTR:
        case OP_METHOD:
        case OP_NEW:
            call(&l, &r);
            break;
        case OP_SETATTR:
        case OP_GET:
        case OP_SET:
        case OP_DELETE:
            add(&l, " ");
            value(&l, &r, 0);
            break;
        default:
            break;
        }
    }
    add(&l, "  %zu bytes\n", size);
    ssize_t ignored = write(2, l.text, l.used); /* one line, one write: two processes share it */
    (void)ignored;
}
