/* wire.c: what is written is read; what is short or garbled fails and never reads past its end. */
#include <math.h>
#include <stdlib.h>

#include "check.h"
#include "wire.h"

static void
test_round_trip(void)
{
    struct writer w;
    struct reader r;
    size_t n;

    writer_init(&w);
    write_u8(&w, 200);
    write_u16(&w, 60000);
    write_u32(&w, 4000000000u);
    write_u64(&w, UINT64_MAX);
    write_f64(&w, -0.0);
    write_bytes(&w, "hello", 5);
    write_bytes(&w, NULL, 0);
    CHECK(!w.failed);
    reader_init(&r, w.data, w.size);
    CHECK_EQUAL(read_u8(&r), 200);
    CHECK_EQUAL(read_u16(&r), 60000);
    CHECK_EQUAL(read_u32(&r), 4000000000u);
    CHECK(read_u64(&r) == UINT64_MAX);
    CHECK(signbit(read_f64(&r)));
    CHECK(memcmp(read_bytes(&r, &n), "hello", 5) == 0);
    CHECK_EQUAL(n, 5);
    read_bytes(&r, &n);
    CHECK_EQUAL(n, 0);
    CHECK(!r.failed);
    CHECK_EQUAL(reader_left(&r), 0);
    writer_free(&w);
}

static void
test_growth(void)
{
    struct writer w;
    struct reader r;

    writer_init(&w);
    for (uint32_t i = 0; i < 100000; i++)
        write_u32(&w, i);
    CHECK(!w.failed);
    CHECK_EQUAL(w.size, 400000);
    CHECK(w.data != w.small);
    patch_u32(&w, 4, 77);
    patch_u16(&w, 399998, 5);
    patch_u32(&w, 399998, 9); /* past the end: nothing happens */
    reader_init(&r, w.data, w.size);
    CHECK_EQUAL(read_u32(&r), 0);
    CHECK_EQUAL(read_u32(&r), 77);
    CHECK_EQUAL(read_u32(&r), 2);
    CHECK_EQUAL(w.data[399998], 5);
    writer_free(&w);
    CHECK(w.data == w.small && w.size == 0);
}

static void
test_failure_sticks(void)
{
    struct writer w;

    writer_init(&w);
    write_u8(&w, 1);
    CHECK(writer_reserve(&w, SIZE_MAX - 8) == NULL);
    CHECK(w.failed);
    write_u8(&w, 2);
    CHECK_EQUAL(w.size, 1);
    patch_u16(&w, 0, 7);
    CHECK_EQUAL(w.data[0], 1);
    writer_free(&w);
    CHECK(!w.failed);
}

/* Every prefix of a frame fails somewhere, and from there on everything reads as zero. */
static void
test_short(void)
{
    struct writer w;

    writer_init(&w);
    write_u64(&w, 1);
    write_bytes(&w, "abcdef", 6);
    write_u16(&w, 3);
    for (size_t size = 0; size < w.size; size++) {
        unsigned char *copy =
            malloc(size ? size : 1); /* so that a sanitizer sees a read past the end */
        struct reader r;
        size_t n = 99;

        memcpy(copy, w.data, size);
        reader_init(&r, copy, size);
        uint64_t first = read_u64(&r);
        const unsigned char *bytes = read_bytes(&r, &n);
        uint16_t last = read_u16(&r);
        CHECK(r.failed);
        CHECK_EQUAL(last, 0);
        CHECK(size >= 8 ? first == 1 : first == 0);
        CHECK(size >= 15 ? bytes != NULL && n == 6 : bytes == NULL && n == 0);
        CHECK_EQUAL(read_u64(&r), 0);
        CHECK(read_raw(&r, 0) == NULL);
        free(copy);
    }
    writer_free(&w);
}

/* A size is one byte as long as it can be, and never more than what follows it. */
static void
test_sizes(void)
{
    const struct {
        uint64_t n;
        size_t bytes;
    } sizes[] = {{0, 1}, {1, 1}, {253, 1}, {254, 9}, {255, 9}, {256, 9}, {100000, 9}};

    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        struct writer w;
        struct reader r;
        size_t n;
        char *text = calloc(1, sizes[i].n + 1);

        writer_init(&w);
        write_size(&w, sizes[i].n);
        CHECK_EQUAL(w.size, sizes[i].bytes);
        write_raw(&w, text, sizes[i].n);
        reader_init(&r, w.data, w.size);
        CHECK_EQUAL(read_size(&r, 1), sizes[i].n);
        CHECK_EQUAL(reader_left(&r), sizes[i].n);
        reader_init(&r, w.data, w.size);
        CHECK(read_bytes(&r, &n) != NULL);
        CHECK_EQUAL(n, sizes[i].n);
        CHECK_EQUAL(reader_left(&r), 0);
        if (sizes[i].n > 0) { /* of two bytes each there are not so many */
            reader_init(&r, w.data, w.size);
            CHECK_EQUAL(read_size(&r, 2), 0);
            CHECK(r.failed);
        }
        writer_free(&w);
        free(text);
    }
    const unsigned char name[] = {SIZE_NAME, 0, 0, 0, 0, 0, 0, 0, 0}, wide[] = {SIZE_WIDE, 0, 0};
    struct reader r;
    reader_init(&r, name, sizeof name);
    CHECK_EQUAL(read_size(&r, 1), 0);
    CHECK(r.failed);
    reader_init(&r, wide, sizeof wide);
    CHECK_EQUAL(read_size(&r, 1), 0);
    CHECK(r.failed);
}

static void
test_lengths_that_lie(void)
{
    const uint64_t lies[] = {1, 100, UINT32_MAX, INT64_MAX, UINT64_MAX, UINT64_MAX - 7};

    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        struct reader r;
        size_t n;

        unsigned char size[1 + sizeof lies[i]] = {SIZE_WIDE};
        memcpy(size + 1, &lies[i], sizeof lies[i]);
        reader_init(&r, size, sizeof size);
        CHECK(read_bytes(&r, &n) == NULL);
        CHECK(r.failed);
        CHECK_EQUAL(n, 0);
        reader_init(&r, &lies[i], sizeof lies[i]);
        CHECK_EQUAL(read_count(&r, 1), 0);
        CHECK(r.failed);
    }
    uint64_t fits[2] = {8, 0};
    struct reader r;
    reader_init(&r, fits, sizeof fits);
    CHECK_EQUAL(read_count(&r, 1), 8);
    reader_init(&r, fits, sizeof fits);
    CHECK_EQUAL(read_count(&r, 2), 0); /* eight items of two bytes are not there */
    CHECK(r.failed);
}

static void
test_header(void)
{
    struct writer w;
    struct reader r;
    struct frame_header h = {WIRE_VERSION, 7, FRAME_REPLY | FRAME_ERROR, 3, 5, 9, 1ull << 40}, got;

    writer_init(&w);
    write_header(&w, &h);
    CHECK_EQUAL(w.size, WIRE_HEADER_SIZE);
    reader_init(&r, w.data, w.size);
    CHECK(read_header(&r, &got));
    CHECK_EQUAL(got.op, 7);
    CHECK_EQUAL(got.flags, FRAME_REPLY | FRAME_ERROR);
    CHECK_EQUAL(got.epoch, 3);
    CHECK_EQUAL(got.strand, 5);
    CHECK_EQUAL(got.scope, 9);
    CHECK(got.request == 1ull << 40);
    for (size_t size = 0; size < WIRE_HEADER_SIZE; size++) {
        reader_init(&r, w.data, size);
        CHECK(!read_header(&r, &got));
        CHECK(r.failed);
    }
    w.data[0] = WIRE_VERSION + 1;
    reader_init(&r, w.data, w.size);
    CHECK(!read_header(&r, &got));
    CHECK(r.failed);
    writer_free(&w);
}

/* Whatever the bytes are, reading stays inside. */
static void
test_noise(void)
{
    unsigned seed = 7;
    unsigned long sum = 0;

    for (int round = 0; round < 2000; round++) {
        size_t size = rand_r(&seed) % 64, n;
        unsigned char *data = malloc(size ? size : 1);
        struct reader r;

        for (size_t i = 0; i < size; i++)
            data[i] = rand_r(&seed) % 4 ? 0 : rand_r(&seed);
        reader_init(&r, data, size);
        while (!r.failed) {
            const unsigned char *bytes;

            switch (rand_r(&seed) % 5) {
            case 0:
                sum += read_u8(&r);
                break;
            case 1:
                sum += read_u64(&r);
                break;
            case 2:
                sum += read_count(&r, 3);
                break;
            case 3:
                sum += read_size(&r, 3);
                break;
            default:
                bytes = read_bytes(&r, &n);
                for (size_t i = 0; bytes != NULL && i < n; i++)
                    sum += bytes[i];
            }
            CHECK(r.at <= r.end);
        }
        free(data);
    }
    CHECK(sum > 0);
}

int
main(void)
{
    test_round_trip();
    test_growth();
    test_failure_sticks();
    test_short();
    test_sizes();
    test_lengths_that_lie();
    test_header();
    test_noise();
    return check_report();
}
