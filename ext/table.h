/* table.h: a hash table from non-zero u64 keys (handles, addresses) to pointers. No Python. */
#ifndef ISOLATION_TABLE_H
#define ISOLATION_TABLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct table_slot {
    uint64_t key; /* 0: empty */
    void *value;
};

struct table {
    struct table_slot *slots;
    size_t mask; /* capacity - 1, a power of two; 0 when nothing was ever put */
    size_t used;
};

void table_init(struct table *t);
void table_free(struct table *t); /* frees the slots, not what they point to */
void *table_get(const struct table *t, uint64_t key);
/* Adds or replaces; false when out of memory. */
bool table_put(struct table *t, uint64_t key, void *value);
/* Removes; returns what was there, or NULL. */
void *table_remove(struct table *t, uint64_t key);
/* Iterates: start with *position = 0; false at the end. The table must not change meanwhile. */
bool table_next(const struct table *t, size_t *position, uint64_t *key, void **value);

#define ADDRESS(p) ((uint64_t)(uintptr_t)(p))

#endif
