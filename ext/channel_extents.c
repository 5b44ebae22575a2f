/* channel_extents.c: frames that go by extents, and the records of the lane that say where. */
#include "channel_parts.h"

#include "arena.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A record of the lane that says what is in extents: where each piece is, the frame first. */
struct extent_record {
    uint32_t skipped; /* descriptors that have been passed for nothing */
    uint32_t npieces;
    uint32_t frame; /* bytes of the frame that follow the places; 0: it is the first piece */
    uint32_t unused;
    struct place {
        uint32_t slot;
        uint32_t flags;
        uint64_t at, size;
    } places[];
};
enum {
    EXTENT_FRESH = 1, /* its descriptor has been passed */
    /* Not in an extent, but in a block, whose descriptor has been passed ... */
    EXTENT_BLOCK = 2,
    /* ... unless it is at the place `slot` of the shelf, and not EXTENT_FRESH there. */
    EXTENT_PLACED = 4,
};

/* ---- sending -------------------------------------------------------------------------------- */

void
channel_reclaim(channel *c)
{
    if (extents_busy(c->out) != 0) {
        struct extents_back *back = lane_returned(c->lane);
        if (atomic_load_explicit(&back->reclaimed, memory_order_relaxed) != 0) {
            extents_reclaim(c->out,
                            atomic_exchange_explicit(&back->reclaimed, 0, memory_order_acquire));
        }
        if (atomic_load_explicit(&back->retired, memory_order_relaxed) != 0) {
            extents_retire(c->out,
                           atomic_exchange_explicit(&back->retired, 0, memory_order_acquire));
        }
    }
}

/* The places of the blocks on the shelf. What gets none is passed as it is. */
static bool
place_blocks(channel *c, struct placed *placed, struct block *const *blocks, size_t n)
{
    if (c->shelf_out != NULL) {
        shelf_out_begin(c->shelf_out);
    }
    for (size_t i = 0; i < n; i++) {
        if (blocks[i] == NULL) {
            continue;
        }
        if (c->shelf_out == NULL && (c->shelf_out = shelf_out_new(c->lane, c->accepts)) == NULL) {
            return false;
        }
        placed[i].on_shelf =
            shelf_out_place(c->shelf_out, blocks[i], &placed[i].slot, &placed[i].fresh);
    }
    return true;
}

static void
take_places_back(channel *c, const struct placed *placed, struct block *const *blocks, size_t n)
{
    while (n-- > 0) {
        if (blocks[n] != NULL && placed[n].on_shelf) {
            shelf_out_unsent(c->shelf_out, placed[n].slot, placed[n].fresh);
        }
    }
}

/* The reader is given the descriptors that it does not have. `blocks`: for each piece, or NULL. */
static bool
pass_fresh(channel *c, const struct placed *placed, struct block *const *blocks, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (!placed[i].fresh && (blocks[i] == NULL || placed[i].on_shelf)) {
            continue;
        }
        int fd = blocks[i] == NULL    ? extents_fd(c->out, placed[i].slot)
                 : placed[i].on_shelf ? block_fd(blocks[i])
                                      : block_pass(blocks[i]);
        if (lane_pass(c->lane, fd) < 0) {
            return false;
        }
        c->skipped++;
    }
    return true;
}

/* Those that are not in blocks, into extents. 0, or -1. */
static int
write_pieces(channel *c, const struct piece *pieces, struct block *const *of, size_t n,
             struct placed *placed)
{
    struct piece *rest = malloc(n * sizeof *rest);
    struct placed *at = calloc(n, sizeof *at);
    size_t k = 0;
    int rc = rest == NULL || at == NULL ? -1 : 0;
    for (size_t i = 0; rc == 0 && i < n; i++) {
        if (of[i] == NULL) {
            rest[k++] = pieces[i];
        }
    }
    if (rc == 0 && k > 0) {
        rc = extents_write(c->out, rest, k, at);
    }
    for (size_t i = 0, j = 0; rc == 0 && i < n; i++) {
        if (of[i] == NULL) {
            placed[i] = at[j++];
        }
        else {
            placed[i].at = (size_t)((const char *)pieces[i].data - block_data(of[i]));
        }
    }
    free(rest);
    free(at);
    return rc;
}

bool
channel_send_extent(channel *c, const void *data, size_t size, const struct blob *blobs,
                    size_t nblobs)
{
    size_t head = sizeof(struct extent_record) + (nblobs + 1) * sizeof(struct place);
    if (nblobs > LANE_FRAME_MAX / sizeof(struct place) || head > LANE_FRAME_MAX ||
        (c->out == NULL &&
         (c->out = extents_out_new(c->accepts, !c->accepts, extents_idle_most())) == NULL)) {
        return false;
    }
    channel_reclaim(c);
    bool outside = nblobs == 0 || size > LANE_FRAME_MAX - head;
    size_t npieces = nblobs + outside, inside = outside ? 0 : size;
    size_t total = sizeof(struct extent_record) + npieces * sizeof(struct place) + inside;
    struct extent_record *record = lane_fits(c->lane, total) ? malloc(total) : NULL;
    struct piece *pieces = record == NULL ? NULL : malloc(npieces * sizeof *pieces);
    struct placed *placed = pieces == NULL ? NULL : calloc(npieces, sizeof *placed);
    struct block **of = placed == NULL ? NULL : calloc(npieces, sizeof *of);
    uint64_t before = extents_busy(c->out);
    bool sent = false;
    if (of == NULL) {
        goto done;
    }
    if (outside) {
        pieces[0] = (struct piece){data, size, false};
    }
    for (size_t i = 0; i < nblobs; i++) {
        of[outside + i] = blobs[i].block;
        pieces[outside + i] = (struct piece){blobs[i].data, blobs[i].size, blobs[i].apart};
    }
    if (write_pieces(c, pieces, of, npieces, placed) < 0) {
        goto done;
    }
    uint32_t skipped = c->skipped;
    if (!place_blocks(c, placed, of, npieces) || !pass_fresh(c, placed, of, npieces)) {
        goto done;
    }
    *record = (struct extent_record){skipped, (uint32_t)npieces, (uint32_t)inside, 0};
    for (size_t i = 0; i < npieces; i++) {
        uint32_t flags = (of[i] != NULL ? EXTENT_BLOCK : 0) | (placed[i].fresh ? EXTENT_FRESH : 0) |
                         (placed[i].on_shelf ? EXTENT_PLACED : 0);
        record->places[i] = (struct place){placed[i].slot, flags, placed[i].at, pieces[i].size};
    }
    if (inside > 0) {
        memcpy(&record->places[npieces], data, inside);
    }
    c->hot = true;
    sent = lane_send(c->lane, LANE_IS_EXTENT, record, total);
    for (size_t i = 0; sent && i < npieces; i++) {
        if (of[i] == NULL && placed[i].fresh) {
            extents_passed(c->out, placed[i].slot);
        }
    }
    c->skipped = sent ? 0 : c->skipped;
done:
    if (!sent && of != NULL) {
        take_places_back(c, placed, of, npieces);
    }
    if (!sent && c->out != NULL) {
        extents_reclaim(c->out, extents_busy(c->out) & ~before);
    }
    extents_guard(c->out);
    free(record);
    free(pieces);
    free(placed);
    free(of);
    return sent;
}

/* ---- receiving ------------------------------------------------------------------------------ */

/* A piece that a record names, with the descriptor that came for it. 0, or -1 and errno. */
static int
open_piece(channel *c, const struct place *place, struct extent_view **view)
{
    if (place->at > SIZE_MAX / 2 || place->size > SIZE_MAX / 2) {
        errno = EPROTO;
        return -1;
    }
    if (place->flags & EXTENT_FRESH) {
        int fd = lane_take(c->lane);
        if (fd < 0) {
            errno = EPROTO;
            return -1;
        }
        if (extents_take(c->in, place->slot, fd) < 0) {
            return -1;
        }
    }
    size_t size = (size_t)(place->at + place->size);
    /* Of nothing there is no mapping; the extent is another piece's, or given back as a whole. */
    *view = extents_view(c->in, place->slot, size > 0 ? size : 1);
    return *view == NULL ? -1 : 0;
}

static struct block *
take_block(channel *c, const struct place *place)
{
    bool placed = place->flags & EXTENT_PLACED;
    if (placed && c->shelf_in == NULL && (c->shelf_in = shelf_in_new(c->lane)) == NULL) {
        return NULL;
    }
    if (placed && !(place->flags & EXTENT_FRESH)) {
        return shelf_in_get(c->shelf_in, place->slot);
    }
    int fd = lane_take(c->lane);
    if (fd < 0) {
        errno = EPROTO;
        return NULL;
    }
    struct block *block = block_take(fd);
    if (block == NULL && placed) {
        int saved = errno;
        shelf_in_miss(c->shelf_in, place->slot);
        errno = saved;
    }
    if (block != NULL && placed && shelf_in_put(c->shelf_in, place->slot, block) < 0) {
        block_unref(block);
        return NULL;
    }
    return block;
}

static struct block *
open_block(channel *c, const struct place *place)
{
    struct block *block = take_block(c, place);
    if (block != NULL &&
        (place->at > block_size(block) || place->size > block_size(block) - place->at)) {
        block_unref(block);
        errno = EPROTO;
        return NULL;
    }
    return block;
}

/* One view for each extent: the last one of them to go gives it back. Where there is no memory for
 * one the others are opened all the same: both ends keep count of what was passed. */
static int
open_pieces(channel *c, const struct place *places, uint32_t n, struct extent_view **views,
            struct block **blocks)
{
    int failed = 0;
    for (uint32_t i = 0; i < n && failed != EPROTO; i++) {
        if (places[i].flags & EXTENT_BLOCK) {
            blocks[i] = open_block(c, &places[i]);
            failed = blocks[i] == NULL ? errno : failed;
            continue;
        }
        uint32_t last = i;
        bool seen = false;
        for (uint32_t k = 0; k < i && !seen; k++) {
            seen = views[k] != NULL && places[k].slot == places[i].slot;
        }
        if (seen) {
            continue;
        }
        /* The pieces of an extent come in the order of their places: the last one ends it. */
        struct place whole = places[i];
        for (uint32_t k = i + 1; k < n; k++) {
            if (places[k].slot == places[i].slot && !(places[k].flags & EXTENT_BLOCK)) {
                last = k;
            }
        }
        whole.at = places[last].at;
        whole.size = places[last].size;
        struct extent_view *view;
        if (open_piece(c, &whole, &view) < 0) {
            failed = errno;
            if (failed != EPROTO) {
                extents_unread(c->in, whole.slot);
            }
            continue;
        }
        size_t end = (size_t)(whole.at + whole.size);
        for (uint32_t k = i; k < n; k++) {
            if (places[k].slot != places[i].slot || places[k].flags & EXTENT_BLOCK) {
                continue;
            }
            if (places[k].at > end || places[k].size > end - places[k].at) {
                extent_unref(view);
                errno = EPROTO;
                return -1;
            }
            views[k] = extent_ref(view);
        }
        extent_unref(view);
    }
    errno = failed;
    return failed != 0 ? -1 : 0;
}

int
channel_open_extent(channel *c, const unsigned char *data, size_t size, struct frame *f)
{
    struct extent_record record;
    struct place *places = NULL;
    struct extent_view **views = NULL;
    struct block **blocks = NULL;
    size_t head = sizeof record;
    int rc = -1;
    if (size < head) {
        errno = EPROTO;
        return -1;
    }
    memcpy(&record, data, head);
    uint32_t n = record.npieces;
    if (n == 0 || n > (size - head) / sizeof *places ||
        size - head - n * sizeof *places != record.frame) {
        errno = EPROTO;
        return -1;
    }
    if (c->in == NULL && (c->in = extents_in_new(lane_to_return(c->lane))) == NULL) {
        return -1;
    }
    for (uint32_t i = 0; i < record.skipped; i++) {
        int fd = lane_take(c->lane);
        if (fd < 0) {
            errno = EPROTO;
            return -1;
        }
        close(fd);
    }
    places = malloc(n * sizeof *places);
    views = calloc(n, sizeof *views);
    blocks = calloc(n, sizeof *blocks);
    if (places == NULL || views == NULL || blocks == NULL) {
        errno = ENOMEM;
        goto done;
    }
    memcpy(places, data + head, n * sizeof *places);
    if (open_pieces(c, places, n, views, blocks) < 0) {
        goto done;
    }
    /* The frame itself is copied before anybody looks into it. */
    bool inside = record.frame > 0;
    if (!inside && views[0] == NULL) {
        errno = EPROTO;
        goto done;
    }
    f->size = inside ? record.frame : (size_t)places[0].size;
    f->data = malloc(f->size > 0 ? f->size : 1);
    if (f->data == NULL) {
        goto done;
    }
    memcpy(f->data,
           inside ? data + head + n * sizeof *places : extent_data(views[0]) + places[0].at,
           f->size);
    rc = 1;
    for (uint32_t i = inside ? 0 : 1; rc == 1 && i < n; i++) {
        struct frame *part = frame_new_part(f);
        if (part == NULL) {
            rc = -1;
            break;
        }
        part->size = (size_t)places[i].size;
        part->data = blocks[i] != NULL ? block_data(blocks[i]) + places[i].at
                                       : (void *)(uintptr_t)(extent_data(views[i]) + places[i].at);
        part->view = views[i];
        part->block = blocks[i];
        views[i] = NULL;
        blocks[i] = NULL;
    }
done:;
    int saved = errno;
    for (uint32_t i = 0; views != NULL && i < n; i++) {
        if (views[i] != NULL) {
            extent_unref(views[i]);
        }
        if (blocks != NULL && blocks[i] != NULL) {
            block_unref(blocks[i]);
        }
    }
    free(blocks);
    free(views);
    free(places);
    if (rc < 0) {
        frame_free(f);
    }
    errno = saved;
    return rc;
}
