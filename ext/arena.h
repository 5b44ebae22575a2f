/* arena.h: memory that both processes have, each block a sealed memfd of its own. No Python.
 *
 * A block is made by one end and mapped by whoever is given its descriptor; it lives as long as one
 * of them has it. Between it and what lies next to it are pages that nobody may touch. */
#ifndef ISOLATION_ARENA_H
#define ISOLATION_ARENA_H

#include <stdbool.h>
#include <stddef.h>

/* Bytes: less is not worth a descriptor and page faults. */
#define ARENA_LEAST ((size_t)256 << 10)

struct block;

/* One user. Zeroed where `zeroed`. NULL: no memory, no descriptors, or as many blocks as there may
 * be (each takes a descriptor: a quarter of what the process may open). */
struct block *block_new(size_t size, bool zeroed);
/* The block that came with this descriptor, which is taken in any case: one more user of one that
 * is mapped already, or a new one. NULL and errno, EPROTO: no memory that may be mapped without
 * danger. */
struct block *block_take(int fd);
/* The block that this address is in, and how far: NULL, none. No new user. */
struct block *block_find(const void *data, size_t *at);
struct block *block_ref(struct block *block);
/* The last user gone, the memory goes, or is kept where nobody else has it. */
void block_unref(struct block *block);

char *block_data(const struct block *block);
size_t block_size(const struct block *block);
/* As block_pass(), for one that both ends keep (shelf.h). */
int block_fd(const struct block *block);
/* To be passed; stays the block's. From then on the other end may have it. */
int block_pass(struct block *block);
/* Whether the memory of blocks that go is kept for the next; false, as at first, gives it back. */
void blocks_keep(bool keep);
/* In a fork that has no other thread: whether a descriptor is a block's. */
bool block_has(int fd);
/* How many there are. */
unsigned blocks_live(void);

#endif
