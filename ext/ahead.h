/* ahead.h: contents of nested containers of the other side, known before they are asked for. */
#ifndef ISOLATION_AHEAD_H
#define ISOLATION_AHEAD_H

#include "codec.h"
#include "proxy.h"

/* What a small value, a reference ... cost of what an answer may carry along. */
#define COST_VALUE 1
#define COST_BYTES 64 /* so many bytes cost as much as a small value more */
#define COST_REFERENCE 16

bool is_small_value(PyObject *o);
Py_ssize_t cost_of(PyObject *o, Py_ssize_t most);

/* ---- who answers ---- */

/* New reference: the contents that go along with one answer. */
PyObject *contents_new(void);
/* Adds those of o and of what is in it, if they cost no more than `most`, and their cost to *cost.
 * 1; 0: they cost more, and none was added; -1 with an exception. */
int contents_add(PyObject *contents, PyObject *o, Py_ssize_t most, Py_ssize_t *cost);
int contents_encode(struct message *m, PyObject *contents);
/* New reference to a tuple: proxy (or None, of what is none), tuple of what is in it, ... */
PyObject *contents_decode(struct incoming *in);

/* ---- who asks ---- */

/* Remembers the contents that came with an answer: 0, or -1 with an exception. */
int ahead_remember(PeerObject *peer, PyObject *contents);
/* New reference to what the method that `stub` stands for gives, where what is remembered says it;
 * NULL without an exception where it must be asked for. Only of a proxy with p->ahead. */
APART PyObject *ahead_answer(StubObject *stub, struct proxy *p, PyObject *const *args,
                             Py_ssize_t nargs);
/* New reference to a tuple of what iterating p, a list or dict, gives, or of what a view of the
 * dict does ("values", "items"), likewise. */
PyObject *ahead_items(struct proxy *p, PyObject *view);
/* Whether what was learnt at `at` (of ahead_now()) may still be used; each use counts for the next.
 */
bool ahead_is_fresh(PeerObject *peer, uint32_t at);
/* A container that is an argument of a call under way is changed without a request. Inline, as it
 * is looked at with each item of a loop. */
static inline bool
has_pairs(const PeerObject *peer)
{
    for (size_t i = 0; i < peer->nstrands; i++) {
        if (peer->strands[i]->npairs > 0) {
            return true;
        }
    }
    return false;
}
uint32_t ahead_now(void);
/* Whether what has n items has answered as many questions as it may; this is one more. */
bool ahead_is_enough(uint32_t *uses, Py_ssize_t n);
/* The proxy is on its end. */
void ahead_forget(struct proxy *p);
/* Nothing is remembered any more. */
APART void ahead_drop(PeerObject *peer);
static inline bool
ahead_is_any(PeerObject *peer)
{
    return peer->ahead.first != NULL || peer->seen.values != NULL || peer->ahead.begun != NULL;
}
/* The service thread is to forget what is remembered, when there is nothing else to do. */
void ahead_wake(PeerObject *peer);
/* The same, if it is too old to be used. */
void ahead_expire(PeerObject *peer);
int ahead_init(core_state *core, PyObject *module);

#endif
