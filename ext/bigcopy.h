/* bigcopy.h: copying big pieces of memory, by several threads where there are processors for them.
 */
#ifndef ISOLATION_BIGCOPY_H
#define ISOLATION_BIGCOPY_H

#include <stddef.h>

/* memcpy(). No thread of it is left when it returns. */
void big_copy(void *to, const void *from, size_t size);
/* Memory that was allocated just now and is about to be filled: big pages, where there are such,
 * take a fraction of the page faults. */
void big_fresh(void *data, size_t size);

#endif
