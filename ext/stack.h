/* stack.h: whether this thread is about to use up its C stack. No Python. */
#ifndef ISOLATION_STACK_H
#define ISOLATION_STACK_H

#include <stdbool.h>

/* True when so little is left that what goes deeper has to end: another request, or, with half of
 * that, another object in an object; so there is room to say what the request has ended with. Where
 * the stack cannot be known (no /proc, code that switches stacks) it never is. */
enum stack_use { STACK_REQUEST, STACK_OBJECT };
bool stack_is_low(enum stack_use use);

#endif
