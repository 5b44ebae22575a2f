#include "table.h"

#include <stdlib.h>
#include <string.h>

#define FIRST_CAPACITY 16

void
table_init(struct table *t)
{
    memset(t, 0, sizeof *t);
}

void
table_free(struct table *t)
{
    free(t->slots);
    table_init(t);
}

/* Fibonacci hashing (Knuth, The Art of Computer Programming, volume 3, 6.4), but not by the highest
 * bits of the product: then the keys of one table, in the order of its slots, would all go to the
 * front of another that grows. */
static size_t
home(const struct table *t, uint64_t key)
{
    return (size_t)((key * 0x9E3779B97F4A7C15ull) >> 32) & t->mask;
}

static struct table_slot *
find(const struct table *t, uint64_t key)
{
    if (t->slots == NULL) {
        return NULL;
    }
    size_t i = home(t, key);
    while (t->slots[i].key != 0 && t->slots[i].key != key) {
        i = (i + 1) & t->mask;
    }
    return &t->slots[i];
}

void *
table_get(const struct table *t, uint64_t key)
{
    struct table_slot *slot = find(t, key);
    return slot != NULL && slot->key == key ? slot->value : NULL;
}

static bool
grow(struct table *t)
{
    struct table old = *t;
    size_t capacity = old.slots == NULL ? FIRST_CAPACITY : (old.mask + 1) * 2;
    t->slots = calloc(capacity, sizeof *t->slots);
    if (t->slots == NULL) {
        *t = old;
        return false;
    }
    t->mask = capacity - 1;
    for (size_t i = 0; old.slots != NULL && i <= old.mask; i++) {
        if (old.slots[i].key != 0) {
            *find(t, old.slots[i].key) = old.slots[i];
        }
    }
    free(old.slots);
    return true;
}

bool
table_put(struct table *t, uint64_t key, void *value)
{
    if (t->slots == NULL || (t->used + 1) * 2 > t->mask + 1) {
        if (!grow(t)) {
            return false;
        }
    }
    struct table_slot *slot = find(t, key);
    if (slot->key == 0) {
        slot->key = key;
        t->used++;
    }
    slot->value = value;
    return true;
}

void *
table_remove(struct table *t, uint64_t key)
{
    struct table_slot *slot = find(t, key);
    if (slot == NULL || slot->key != key) {
        return NULL;
    }
    void *value = slot->value;
    size_t hole = (size_t)(slot - t->slots);
    t->used--;
    /* Linear probing without tombstones: move back every follower that may not stay behind a hole.
     */
    for (size_t i = (hole + 1) & t->mask; t->slots[i].key != 0; i = (i + 1) & t->mask) {
        size_t want = home(t, t->slots[i].key);
        if (((i - want) & t->mask) >= ((i - hole) & t->mask)) {
            t->slots[hole] = t->slots[i];
            hole = i;
        }
    }
    t->slots[hole] = (struct table_slot){0, NULL};
    return value;
}

bool
table_next(const struct table *t, size_t *position, uint64_t *key, void **value)
{
    for (size_t i = *position; t->slots != NULL && i <= t->mask; i++) {
        if (t->slots[i].key != 0) {
            *key = t->slots[i].key;
            *value = t->slots[i].value;
            *position = i + 1;
            return true;
        }
    }
    return false;
}
