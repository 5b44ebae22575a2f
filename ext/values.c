/* values.c: an immutable value that was an argument and comes back is the original. Both sides
 * number the values of a request's arguments in the order in which they were written, and keep them
 * while the request lasts; a frame that mentions one of them says the number. */
#include "codec.h"

#include <stdlib.h>
#include <string.h>

#define FEW 16 /* values that are searched one by one, and searches before a table is made */

int
values_add(struct values *v, PyObject *o)
{
    if (v->n == v->capacity) {
        size_t few = sizeof v->few / sizeof *v->few, capacity = v->capacity ? v->capacity * 2 : few;
        bool inside = v->items == NULL || v->items == v->few;
        PyObject **more = capacity > UINT32_MAX ? NULL
                          : capacity == few
                              ? v->few
                              : realloc(inside ? NULL : v->items, capacity * sizeof *more);
        if (more == NULL) {
            PyErr_NoMemory();
            return -1;
        }
        if (inside && more != v->few) {
            memcpy(more, v->few, sizeof v->few);
        }
        v->items = more;
        v->capacity = capacity;
    }
    v->items[v->n++] = Py_NewRef(o);
    return 0;
}

void
values_truncate(struct values *v, size_t n)
{
    if (v->indexed > n) {
        table_free(&v->index);
        v->indexed = 0;
    }
    while (v->n > n) {
        Py_DECREF(v->items[--v->n]);
    }
}

void
values_clear(struct values *v)
{
    PyObject **items = v->items;
    size_t n = v->n;
    table_free(&v->index);
    v->items = NULL;
    v->n = v->capacity = v->indexed = 0;
    for (size_t i = 0; i < n; i++) {
        Py_DECREF(items[i]); /* can run anything */
    }
    if (items != v->few) {
        free(items);
    }
}

void
values_begin(struct strand *s, struct values *v)
{
    v->outer = s->values;
    s->values = v;
}

void
values_end(struct strand *s, struct values *v)
{
    s->values = v->outer;
    values_clear(v);
}

/* Where o is in v, from 1; 0: nowhere. */
static size_t
position(struct values *v, PyObject *o)
{
    if (v->n <= FEW || v->searches < FEW) {
        v->searches++;
        for (size_t i = 0; i < v->n; i++) {
            if (v->items[i] == o) {
                return i + 1;
            }
        }
        return 0;
    }
    for (; v->indexed < v->n; v->indexed++) {
        if (!table_put(&v->index, ADDRESS(v->items[v->indexed]),
                       (void *)(uintptr_t)(v->indexed + 1))) {
            return 0; /* it crosses as a copy */
        }
    }
    return (size_t)(uintptr_t)table_get(&v->index, ADDRESS(o));
}

struct values *
values_find(struct message *m, PyObject *o, uint32_t *index)
{
    size_t at;
    if (m->values != NULL && (at = position(m->values, o)) > 0) {
        *index = (uint32_t)(at - 1);
        return m->values;
    }
    /* A request of this side that is waited for may have been answered by the time this frame is
     * read; not so what lies outside of a request that this side is serving. */
    bool lasts = false;
    for (struct values *v = m->strand->values; v != NULL; v = v->outer) {
        lasts = lasts || !v->mine;
        if (lasts && v->scope == m->strand->scope && (at = position(v, o)) > 0) {
            *index = (uint32_t)(at - 1);
            return v;
        }
    }
    return NULL;
}

PyObject *
values_get(struct strand *s, uint64_t request, bool mine, uint32_t index)
{
    for (struct values *v = s->values; v != NULL; v = v->outer) {
        if (v->request == request && v->mine == mine) {
            return index < v->n ? v->items[index] : NULL;
        }
    }
    return NULL;
}
