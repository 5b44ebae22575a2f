/* scope.h: which containers and values of a strand a frame may mention. */
#ifndef ISOLATION_SCOPE_H
#define ISOLATION_SCOPE_H

#include "codec.h"

/* Whether a request that begins now does so while this side waits, and serves nothing. */
bool asked_aside(const struct strand *s);
/* m's request begins, in the scope of its strand or one of its own; scope_end() leaves that again.
 * A request that is put by leaves it, too, and comes back by scope_resume(). */
void scope_begin(struct message *m);
void scope_resume(struct message *m);
void scope_end(const struct message *m);

#endif
