/* proxy.h: what stands here for an object of the other process. */
#ifndef ISOLATION_PROXY_H
#define ISOLATION_PROXY_H

#include "state.h"

/* A name in a mirrored class's own __dict__. It says (class, name); the value is looked up over
 * there with each use. Three types share this layout: methods (callable, bind self), data
 * (properties, slots and other data descriptors) and values (class attributes, class and static
 * methods). */
typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *cls;    /* strong: the mirrored class */
    PyObject *peer;   /* strong: see proxy_bind */
    PyObject *name;   /* strong */
    PyObject *target; /* strong or NULL: the descriptor itself, once its name means another */
    char kind;        /* 'f' function, 'm' other method, 'p' property, 'o' slot, 'd' other data,
                       * 'i' the __iter__ or __reversed__, 'n' the __len__, 'g' the __getitem__ of a plain
                       * container,
                       * 'q' the __radd__ that a proxied list has here,
                       * 'v' value, 'c' class method, 's' static method, 'a' the __subclasshook__ of a
                       * mirrored        abstract class */
    bool abstract;
    bool own;            /* of a name in the described class's own __dict__ */
    bool answers;        /* this side may know what it gives, see answer_here() */
    bool special;        /* it takes more than a request, see call_special() */
    unsigned char view;  /* 1, 2, 3: called keys, values, items; or 0 */
    unsigned deferrable; /* OP_DEFERRABLE: a batch may make calls of it later; or 0 */
} StubObject;

/* A class or static method, or any attribute that is certainly callable, before it is fetched. */
typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyObject *owner; /* strong: a proxy or a mirrored class */
    PyObject *name;  /* strong */
    PyObject *cls;   /* strong: the mirrored class whose method it is; super() may mean a base's */
    char kind;       /* 'c' or 's' */
    unsigned deferrable;
} BoundObject;

/* stubs.c */
/* New reference, or NULL with an exception. */
PyObject *stub_new(PyTypeObject *cls, PyObject *name, char kind, bool abstract);
bool is_stub(PyObject *o);
bool is_classmethod_kind(StubObject *stub); /* of a class or static method */
/* What such a stub gives when it is found in owner. New reference, or NULL with an exception. */
PyObject *bound_new(PyObject *owner, StubObject *stub);
/* Borrowed self and name when o is a bound method of a proxy that was not fetched. */
bool bound_method_parts(PyObject *o, PyObject **self, PyObject **name);

bool is_special_name(PyObject *name); /* begins with two underscores; ops.c */
/* Equal: CPython has static copies of some names beside the interned ones. */
static inline bool
is_name(PyObject *name, PyObject *known)
{
    /* Those that are known are interned, and so are nearly all others. */
    return name == known ||
           (!PyUnicode_CHECK_INTERNED(name) && PyUnicode_Compare(name, known) == 0);
}

/* proxy.c */
/* An instance of a proxy class, not yet bound to a handle; value: of its immutable base, or NULL.
 */
PyObject *proxy_new_instance(PyTypeObject *type, PyObject *value);

/* The slots that a mirrored class gets instead of those that type.__new__ gave it. */
PyObject *proxy_getattro(PyObject *self, PyObject *name);
int proxy_setattro(PyObject *self, PyObject *name, PyObject *value);
PyObject *proxy_tp_new(PyTypeObject *type, PyObject *args, PyObject *kwargs);
int proxy_tp_init(PyObject *self, PyObject *args, PyObject *kwargs);
/* A built-in `__new__` for the mirrored class's __dict__, so that super().__new__() works. */
PyObject *proxy_new_method(void);
/* `copy` knows by their very type what it need not copy; a mirror of such a type says so itself. */
int proxy_add_copying(PyTypeObject *type, PyObject *reported);

/* Requests that several slots make. */
PyObject *remote_getattr(PeerObject *peer, PyObject *o, PyObject *name);
int remote_setattr(PeerObject *peer, PyObject *o, PyObject *name, PyObject *value);

/* The struct mirror of type or of the first mirrored class in its MRO; NULL when there is none. */
struct mirror *mirror_of(PyTypeObject *type);
/* The peer of a mirrored class, or of a session class derived from one. */
PeerObject *peer_of_type(PyTypeObject *type);

/* New reference to the module proxy called `name`, made or re-bound to `handle`. */
PyObject *module_proxy(PeerObject *peer, PyObject *name, uint64_t handle, bool registered);

/* object_methods.c */
int object_methods_init(void);
bool is_object_method(PyObject *descriptor);

/* Adds the types of stubs.c and module_proxy.c to the state. */
int stubs_init(core_state *core, PyObject *module);
int module_proxy_init(core_state *core, PyObject *module);

#endif
