/* views.h: views of dicts of the other side that it makes only once something needs them. */
#ifndef ISOLATION_VIEWS_H
#define ISOLATION_VIEWS_H

#include "proxy.h"

/* Which of keys, values and items a stub of that name stands for, counted from 1; 0: none. */
unsigned char view_which(PyObject *name);
/* New reference to what the method that `stub` stands for gives of the dict p; NULL, perhaps
 * without an exception: it must be asked for. */
APART PyObject *view_new(StubObject *stub, struct proxy *p);
/* The same by the method's name. */
PyObject *view_of(struct proxy *p, PyObject *name);
/* Whether asking for it changes nothing over there. */
APART bool view_is_pure(StubObject *stub, struct proxy *p);
/* Borrowed: the name of the method that gives the view p. */
PyObject *view_name(struct proxy *p);
/* One came from the other side: its class is known from now on. */
APART void view_seen(StubObject *stub, PyObject *view);
/* Asks for the view itself, so that it has a handle. 0, or -1 with an exception. */
int view_resolve(struct proxy *p);

#endif
