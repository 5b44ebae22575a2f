/* batch.h: calls whose results are not needed yet, many of them in one request. */
#ifndef ISOLATION_BATCH_H
#define ISOLATION_BATCH_H

#include "codec.h"
#include "state.h"

/* A request is sent when it has so many calls; the child takes no more. */
#define BATCH_CALLS 1000

/* Where the ways of a request lead to batches: each is one test there. */

/* Kernel: a request of this thread begins. 1: it is a call that a batch takes in: `m` is that of
 * the whole batch, to be encoded into, then finished or abandoned as ever. 0: it is none, and what
 * was to be called before has been. -1 with an exception. */
APART int batch_join(PeerObject *peer, struct message *m, unsigned op);
/* The call has been encoded: a new reference to its future, or NULL with an exception. */
PyObject *batch_defer(struct message *m);
/* It could not be encoded. False: there is nothing else in the message, which is the caller's. */
bool batch_take_back(struct message *m);
/* Before this thread answers: calls that code which has just been served left behind are made. */
void batches_flush(PeerObject *peer);

/* Where the answer to this request goes, which came inside an inner wait: NULL where it is none of
 * this batch, or is there already. */
struct answer *batch_place(struct BatchObject *b, uint64_t request);
/* Gives the answer back: true. Where the child has said that it is through with the batch, and has
 * not answered this call, that is the answer to it, too: it could not read the batch. */
bool batch_kept(struct BatchObject *b, uint64_t request, struct answer *answer);
/* Makes m the call in which the life ended, as far as is known; its number, for the report. */
void batch_blame(struct message *m, const struct ending *ending);
int batch_add_facts(const struct message *m, PyObject *facts);

/* The codec's: a future in an argument, its place in a received one, and a call's arguments are
 * complete (-1: one of them is the result of a call that has failed, which is raised). */
int future_encode(struct message *m, PyObject *o);
PyObject *batch_decode(struct incoming *in);
int batch_check(struct batch_calls *calls);
/* A call's arguments could not be read: later calls may refer to what was not. */
void batch_lose(struct batch_calls *calls);

/* The executor. */
PyObject *op_batch(struct incoming *in, unsigned *flags);
int batch_init(core_state *core, PyObject *module);

#endif
