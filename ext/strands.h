/* strands.h: threads and their connections. */
#ifndef ISOLATION_STRANDS_H
#define ISOLATION_STRANDS_H

#include "state.h"

#define STRAND_SERVICE 0
#define STRAND_MAIN 1

/* What is sent along with a listening descriptor and, behind it, those of a lane. */
struct strand_offer {
    uint32_t magic, epoch, id, callback;
    uint32_t lane; /* LANE_VERSION, and the descriptors of a lane came along; or 0 */
    uint32_t zero;
    uint64_t first_handle;   /* the child numbers its exports from here: never twice in a context */
    unsigned char nonce[16]; /* what the child proves itself with */
    char endpoint[CHANNEL_ENDPOINT_SIZE];
};
#define STRAND_MAGIC 0x53545232u

/* The calling thread's strand, or NULL without an exception when there is none. */
struct strand *strand_known(PeerObject *peer);
/* The calling thread's strand, made when there is none; NULL with an exception. */
struct strand *strand_current(PeerObject *peer);
/* Kernel: makes strand `id` and offers its other end to the child. */
struct strand *strand_open(PeerObject *peer, uint32_t id, bool callback);
/* Child: takes the next offer from the descriptor-passing socket; NULL with an exception, or
 * without one when none is there (or the kernel is gone: *gone). */
struct strand *strand_take(PeerObject *peer, bool block, bool *gone);
struct strand *strand_by_id(PeerObject *peer, uint32_t id);
/* Ends the connection; the record stays until nobody is inside a request. */
void strand_close(struct strand *s);
void strands_close_all(PeerObject *peer);
/* The other end is there: libzmq opens nothing more for this strand. */
/* In a fork of the kernel, or of the child: they are closed, but libzmq, which is not whole here,
 * is left alone. */
void strands_forget_all(PeerObject *peer);
/* Frees the records of closed strands that nobody is inside of any more. */
void strands_sweep(PeerObject *peer);
/* A thread of the child gives a callback strand back. */
void strand_give_back(struct strand *s);

#endif
