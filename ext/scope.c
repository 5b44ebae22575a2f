/* scope.c: which containers and values of a strand a frame may mention.
 *
 * Requests of one strand are nested: what is called by code that is being served is a request
 * inside that one, and both sides know all those around it. But a signal handler, a stream of the
 * session or a finaliser may also ask something while this side waits, and has no control. Nobody
 * knows then where the other side is: it may have answered what is waited for, or be about to call
 * back. So such a request begins a scope of its own. It mentions no container and no value of the
 * requests around it, and says nothing of their changes; nor does what is called while it is
 * served. Each frame says its scope, so that a callback that comes meanwhile is served in the scope
 * that it belongs to. */
#include "exchange.h"

#include "scope.h"
#include "strands.h"

bool
is_aside(const struct strand *s)
{
    if (s->waiting == NULL) { /* nobody has called what runs in an idle child */
        return s->serving == 0 && !s->callback && s->id != STRAND_SERVICE;
    }
    return !s->waiting->reading && s->serving == s->waiting->serving;
}

void
scope_of_its_own(struct strand *s)
{
    /* Those of the two sides never meet; 0 is that of what is asked in turn. */
    s->last_scope = s->last_scope == INT32_MAX ? 1 : s->last_scope + 1;
    s->scope = s->last_scope << 1 | (s->peer->is_kernel ? 1 : 0);
}
