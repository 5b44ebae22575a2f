/* views.c: keys(), values() and items() of a dict of the other side.
 *
 * Nearly all views are iterated at once and dropped, and an iteration can name the dict and the
 * class of the view instead. So the view is a proxy without a handle until something else is done
 * with it, which is when encode.c asks for it. In-process it would be there from the beginning, but
 * a view has no state besides its dict. */
#include "views.h"

#include "codec.h"
#include "handles.h"
#include "peer.h"

#include <stdlib.h>
#include <string.h>

unsigned char
view_which(PyObject *name)
{
    core_state *core = core_get();
    PyObject *names[] = {core->str_keys, core->str_values, core->str_items};
    for (unsigned char i = 0; i < 3; i++) {
        if (is_name(name, names[i])) {
            return i + 1;
        }
    }
    return 0;
}

/* Is it the mirror of dict itself? */
static bool
is_dict_class(PyObject *cls)
{
    struct mirror *mirror = table_get(&core_get()->mirrors, ADDRESS(cls));
    return mirror != NULL && mirror->reported == (PyObject *)&PyDict_Type;
}

/* A subclass may have a __len__ of its own, which views do not ask. */
static bool
has_length_of_dict(struct proxy *p)
{
    PyObject *stub = compat_type_lookup(Py_TYPE(p->object), core_get()->str___len__);
    return stub != NULL && is_stub(stub) && is_dict_class(((StubObject *)stub)->cls);
}

PyObject *
view_new(StubObject *stub, struct proxy *p)
{
    PeerObject *peer = p->peer;
    PyTypeObject *cls = peer->views[stub->view - 1];
    struct proxy *known = cls == NULL ? NULL : proxy_find((PyObject *)cls);
    struct mirror *mirror = table_get(&core_get()->mirrors, ADDRESS(Py_TYPE(p->object)));
    if (known == NULL || known->epoch != peer->epoch || p->epoch != peer->epoch || mirror == NULL ||
        (mirror->flags & CLASS_INSTANCE_DICT) || p->of != NULL || peer->batching > 0 ||
        peer->state != PEER_RUNNING || !is_dict_class(stub->cls) || !has_length_of_dict(p)) {
        return NULL;
    }
    PyObject *o = proxy_new_instance(cls, NULL);
    if (o != NULL && proxy_bind_view(peer, o, p->object, (PyObject *)stub) < 0) {
        Py_CLEAR(o);
    }
    return o;
}

bool
view_is_pure(StubObject *stub, struct proxy *p)
{
    return (PyObject *)Py_TYPE(p->object) == stub->cls && is_dict_class(stub->cls);
}

PyObject *
view_of(struct proxy *p, PyObject *name)
{
    PyObject *stub = compat_type_lookup(Py_TYPE(p->object), name);
    return stub != NULL && Py_IS_TYPE(stub, core_get()->method_type) &&
                   ((StubObject *)stub)->view != 0
               ? view_new((StubObject *)stub, p)
               : NULL;
}

PyObject *
view_name(struct proxy *p)
{
    return ((StubObject *)p->method)->name;
}

void
view_seen(StubObject *stub, PyObject *view)
{
    static const char *const classes[] = {"dict_keys", "dict_values", "dict_items"};
    struct proxy *p = proxy_find(view);
    PyTypeObject *cls = Py_TYPE(view);
    if (p != NULL && is_dict_class(stub->cls) && p->peer->views[stub->view - 1] != cls &&
        table_get(&core_get()->mirrors, ADDRESS(cls)) != NULL &&
        strcmp(cls->tp_name, classes[stub->view - 1]) == 0) {
        Py_XSETREF(p->peer->views[stub->view - 1], (PyTypeObject *)Py_NewRef(cls));
    }
}

int
view_resolve(struct proxy *p)
{
    struct message m;
    PeerObject *peer = p->peer;
    PyObject *object = Py_NewRef(p->object), *of = Py_NewRef(p->of), *result = NULL;
    StubObject *stub = (StubObject *)Py_NewRef(p->method);
    int rc = -1;
    if (request_begin(peer, &m, OP_METHOD) < 0) {
        goto done;
    }
    m.operation = "method";
    m.operand = (PyObject *)stub;
    m.pure = true;
    if (encode(&m, stub->cls, false) < 0 || encode_name(&m, stub->name) < 0 ||
        encode_call(&m, &of, 1, NULL) < 0) {
        request_abandon(&m);
        goto done;
    }
    result = request_finish(&m);
    struct proxy *made = result == NULL ? NULL : proxy_find(result);
    if (result == NULL || p->of == NULL) { /* or what ran meanwhile has asked for it as well */
        rc = result == NULL ? -1 : 0;
    }
    else if (made == NULL || made->peer != peer || made->handle == 0 || Py_REFCNT(result) != 1 ||
             Py_TYPE(result) != Py_TYPE(object)) {
        garbled("view");
    }
    else {
        rc = proxy_become(p, made);
    }
done:
    Py_XDECREF(result);
    Py_DECREF(object);
    Py_DECREF(of);
    Py_DECREF(stub);
    return rc;
}
