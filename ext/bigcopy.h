/* bigcopy.h: copying big pieces of memory, by several threads where there are processors for them.
 */
#ifndef ISOLATION_BIGCOPY_H
#define ISOLATION_BIGCOPY_H

#include <stdbool.h>
#include <stddef.h>

/* Copies size bytes to whole pages that are this process's own. opens: they cannot be accessed yet;
 * closes: nor shall they be after that, so that stray writes do not get there. False: some could
 * not be opened, and what is in them is not known. No thread of it is left when it returns. */
bool big_copy(void *to, const void *from, size_t size, bool opens, bool closes);
/* Memory that was allocated just now and is about to be filled: big pages, where there are such,
 * take a fraction of the page faults. */
void big_fresh(void *data, size_t size);

#endif
