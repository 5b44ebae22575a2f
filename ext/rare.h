/* rare.h: what a request hardly ever comes to is kept out of the functions that each request goes
 * through. Linked as a whole, the compiler would make it part of them; they are then several times
 * as long and save more registers. docs/profile.md says what that costs. */
#ifndef ISOLATION_RARE_H
#define ISOLATION_RARE_H

#define RARE __attribute__((noinline, cold))
/* The same of what is not rare, but not for every request either. */
#define APART __attribute__((noinline))

#endif
