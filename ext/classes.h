/* classes.h: what the files about classes share: describe.c, which writes them, classes.c, which
 * reads them, and mirrors.c, which makes those that stand for them. */
#ifndef ISOLATION_CLASSES_H
#define ISOLATION_CLASSES_H

#include "codec.h"

enum class_tag { CLASS_BACK, CLASS_NAMED, CLASS_KNOWN, CLASS_DEFINED };

/* A description that was read. */
struct description {
    uint64_t handle;
    uint32_t flags;
    PyObject *module, *qualname, *doc, *meta; /* strong */
    PyObject *name, *full_name;               /* strong: __name__, tp_name */
    PyObject *bases;                          /* strong: list */
    PyObject *inherited; /* strong: list of names lists of bases that are shared Python classes */
    PyObject *names;     /* strong: list of (name, kind, abstract, literal) */
    bool home;           /* a base has its home here, or derives from one that has */
};

/* describe.c */
/* Classes that both sides have and that a mirrored class may really derive from: their instances'
 * layout is copied (immutable values, exceptions) or empty (object), or they make classes (type).
 */
bool is_shared_base(PyTypeObject *cls);
/* Which stub a name in a class's __dict__ needs; 0: none. */
char stub_kind(PyTypeObject *cls, PyObject *name, PyObject *value);

/* classes.c */
/* A class of this side that can stand for an un-isolated one of the other: loaded already, found by
 * its name. New reference, or NULL without an exception. */
PyTypeObject *local_class(PeerObject *peer, PyObject *module, PyObject *qualname);

/* mirrors.c */
/* New reference to the mirrored class that d describes: the one that is there, bound to the handle,
 * or a new one. NULL with an exception. */
PyTypeObject *find_or_make_mirror(PeerObject *peer, struct description *d);

#endif
