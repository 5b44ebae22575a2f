/* scope.h: which containers and values of a strand a frame may mention. */
#ifndef ISOLATION_SCOPE_H
#define ISOLATION_SCOPE_H

#include "codec.h"

/* scope.c: what asked_aside() and scope_begin() do where this side waits, or is an idle child. */
APART bool is_aside(const struct strand *s);
void scope_of_its_own(struct strand *s);

/* Whether a request that begins now does so while this side waits, and serves nothing. */
static inline bool
asked_aside(const struct strand *s)
{
    return (s->waiting != NULL || !s->peer->is_kernel) && is_aside(s);
}

/* m's request begins, in the scope of its strand or one of its own; scope_end() leaves that again.
 * A request that is put by leaves it, too, and comes back by scope_resume(). */
static inline void
scope_begin(struct message *m)
{
    m->outer_scope = m->strand->scope;
    if (asked_aside(m->strand)) {
        scope_of_its_own(m->strand);
    }
    m->scope = m->strand->scope;
}

static inline void
scope_resume(struct message *m)
{
    m->outer_scope = m->strand->scope;
    m->strand->scope = m->scope;
}

static inline void
scope_end(const struct message *m)
{
    m->strand->scope = m->outer_scope;
}

#endif
