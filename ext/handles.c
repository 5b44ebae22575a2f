#include "handles.h"

#include "ahead.h"

#include <stdlib.h>
#include <unistd.h>

struct export *
export_object(PeerObject *peer, PyObject *o)
{
    struct export *e = table_get(&peer->export_of, ADDRESS(o));
    if (e != NULL) {
        return e;
    }
    e = calloc(1, sizeof *e);
    if (e == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    e->object = Py_NewRef(o);
    e->handle = peer->next_handle++;
    if (!table_put(&peer->exports, e->handle, e)) {
        goto error;
    }
    if (!table_put(&peer->export_of, ADDRESS(o), e)) {
        table_remove(&peer->exports, e->handle);
        goto error;
    }
    return e;
error:
    Py_DECREF(e->object);
    free(e);
    PyErr_NoMemory();
    return NULL;
}

PyObject *
export_find(PeerObject *peer, uint64_t handle)
{
    struct export *e = handle == 0 ? NULL : table_get(&peer->exports, handle);
    return e == NULL ? NULL : e->object;
}

static void
export_remove(PeerObject *peer, struct export *e)
{
    PyObject *object = e->object;
    table_remove(&peer->exports, e->handle);
    table_remove(&peer->export_of, ADDRESS(object));
    free(e);
    Py_DECREF(object); /* last: may run arbitrary code */
}

void
export_release(PeerObject *peer, uint64_t handle, uint64_t count)
{
    struct export *e = handle == 0 ? NULL : table_get(&peer->exports, handle);
    if (e == NULL) {
        return; /* of an earlier life, or garbage */
    }
    e->count = count >= e->count ? 0 : e->count - count;
    /* A frozen copy may still know it. */
    if (e->count == 0 && (peer->rollback.line < 0 || handle >= peer->rollback.mine)) {
        export_remove(peer, e);
    }
}

int
exports_keep(PeerObject *peer, bool (*keep)(struct export *e, void *argument), void *argument)
{
    PyObject *dropped = PyList_New(0); /* the last references, given up when the tables are whole */
    uint64_t handle;
    void *value;
    bool again = dropped != NULL;
    while (again) {
        again = false; /* removing moves entries: start over after some */
        struct export *victims[64];
        size_t n = 0;
        for (size_t i = 0; n < 64 && table_next(&peer->exports, &i, &handle, &value);) {
            if (!keep(value, argument)) {
                victims[n++] = value;
            }
        }
        for (size_t i = 0; i < n; i++) {
            if (PyList_Append(dropped, victims[i]->object) < 0) {
                Py_DECREF(dropped);
                return -1;
            }
            export_remove(peer, victims[i]);
            again = true;
        }
    }
    Py_XDECREF(dropped);
    return dropped == NULL ? -1 : 0;
}

void
exports_clear(PeerObject *peer)
{
    peer->nlate = 0; /* of what is cleared here */
    struct table old = peer->exports;
    table_init(&peer->exports);
    table_free(&peer->export_of);
    uint64_t handle;
    void *value;
    for (size_t i = 0; table_next(&old, &i, &handle, &value);) {
        struct export *e = value;
        PyObject *object = e->object;
        free(e);
        Py_DECREF(object);
    }
    table_free(&old);
}

struct proxy *
proxy_find(PyObject *o)
{
    return table_get(&core_get()->proxies, ADDRESS(o));
}

PyObject *
proxy_of_handle(PeerObject *peer, uint64_t handle)
{
    PyObject *o = handle == 0 ? NULL : table_get(&peer->imports, handle);
    /* A proxy on the trashcan has no references left and is as good as gone. */
    return o != NULL && Py_REFCNT(o) > 0 ? o : NULL;
}

void
proxy_received(struct proxy *p)
{
    p->count++;
}

void
release_queue(PeerObject *peer, uint64_t handle, uint64_t count)
{
    if (peer->nreleases == peer->capreleases) {
        size_t capacity = peer->capreleases ? peer->capreleases * 2 : 32;
        struct release *more = realloc(peer->releases, capacity * sizeof *more);
        if (more == NULL) {
            return; /* the target lives until the child ends: a leak, but no harm */
        }
        peer->releases = more;
        peer->capreleases = capacity;
    }
    if (peer->drowsy) {
        uint64_t one = 1;
        peer->drowsy = false;
        ssize_t ignored = write(peer->wake_fd, &one, sizeof one); /* never blocks */
        (void)ignored;
    }
    peer->releases[peer->nreleases].handle = handle;
    peer->releases[peer->nreleases++].count = count;
}

void
release_later(PeerObject *peer, uint64_t handle, uint64_t count, uint64_t stamp)
{
    if (peer->nlate == peer->caplate) {
        size_t capacity = peer->caplate ? peer->caplate * 2 : 32;
        struct late_release *more = realloc(peer->late, capacity * sizeof *more);
        if (more == NULL) {
            return; /* the export lives on: a leak, but no harm */
        }
        peer->late = more;
        peer->caplate = capacity;
    }
    peer->late[peer->nlate++] = (struct late_release){handle, count, stamp};
}

/* Has its end no finaliser over there, but for those of what is in it alone? Containers, their
 * views, and what an iteration goes by. */
static bool
ends_quietly(PyTypeObject *cls)
{
    static const char *const names[] = {"Cursor",     "dict_keys",    "dict_values", "dict_items",
                                        "odict_keys", "odict_values", "odict_items"};
    const char *dot = strrchr(cls->tp_name, '.');
    struct mirror *mirror = table_get(&core_get()->mirrors, ADDRESS(cls));
    if (mirror != NULL && mirror->flags & CLASS_MUTABLE_BUILTIN) {
        return true;
    }
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(dot == NULL ? cls->tp_name : dot + 1, names[i]) == 0) {
            return true;
        }
    }
    return false;
}

void
proxy_drop(struct proxy *p)
{
    PeerObject *peer = p->peer;
    table_remove(&core_get()->proxies, ADDRESS(p->object));
    if (p->handle != 0 && table_get(&peer->imports, p->handle) == p->object) {
        table_remove(&peer->imports, p->handle);
    }
    if (p->handle != 0 && p->epoch == peer->epoch && peer->state == PEER_RUNNING) {
        release_queue(peer, p->handle, p->count);
        peer->ahead.stale = peer->ahead.stale || (p->ahead == NULL && peer->ahead.first != NULL &&
                                                  !ends_quietly(Py_TYPE(p->object)));
    }
    ahead_forget(p);
    Py_XDECREF(p->of);
    Py_XDECREF(p->method);
    Py_XDECREF(p->module);
    Py_XDECREF(p->qualname);
    Py_XDECREF(p->watch);
    bool is_class = p->is_class;
    free(p);
    if (!is_class) {
        Py_DECREF(peer);
    }
}

void
proxies_forget(PeerObject *peer)
{
    core_state *core = core_get();
    uint64_t key;
    void *value;
    for (bool again = true; again;) {
        again = false; /* removing moves entries: start over after each */
        for (size_t i = 0; !again && table_next(&core->proxies, &i, &key, &value);) {
            struct proxy *p = value;
            if (p->peer == peer) {
                proxy_drop(p);
                again = true;
            }
        }
        for (size_t i = 0; !again && table_next(&core->mirrors, &i, &key, &value);) {
            struct mirror *mirror = value;
            if (mirror->peer == peer) {
                table_remove(&core->mirrors, key);
                Py_XDECREF(mirror->reported);
                Py_XDECREF(mirror->shadow);
                free(mirror);
                again = true;
            }
        }
    }
}

void
proxy_finalize(PyObject *o)
{
    struct proxy *p = proxy_find(o);
    if (p != NULL) {
        proxy_drop(p);
    }
}

/* Ends what proxy_bind tied only for the requests under way. */
void
proxies_let_go(PeerObject *peer)
{
    PyObject *held = peer->held, *type, *value, *traceback;
    if (held == NULL) {
        return;
    }
    peer->held = NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(held); i++) {
        proxy_finalize(PyList_GET_ITEM(held, i));
    }
    PyErr_Fetch(&type, &value, &traceback); /* finalisers of frames may run */
    Py_DECREF(held);
    PyErr_Restore(type, value, traceback);
}

/* A weak reference's callback stands in for tp_finalize where the class has a __del__ of its own.
 */
static PyObject *
watch_gone(PyObject *address, PyObject *Py_UNUSED(reference))
{
    void *key = PyLong_AsVoidPtr(address);
    struct proxy *p = key == NULL ? NULL : table_get(&core_get()->proxies, ADDRESS(key));
    if (p != NULL) {
        proxy_drop(p);
    }
    Py_RETURN_NONE;
}

static PyMethodDef watch_gone_def = {"_proxy_gone", watch_gone, METH_O, NULL};

/* Is the end of o seen by us? An entry that outlived its object would make a proxy of whatever
 * comes to that address. Instances of built-in exceptions have neither finaliser nor weak
 * references. */
static bool
is_tracked(PyObject *o)
{
    return PyType_Check(o) || PyModule_Check(o) || Py_TYPE(o)->tp_finalize == proxy_finalize ||
           PyType_SUPPORTS_WEAKREFS(Py_TYPE(o));
}

int
proxy_bind(PeerObject *peer, PyObject *o, uint64_t handle)
{
    struct proxy *p = proxy_find(o);
    if (p != NULL) {
        if (p->peer == peer && p->handle == handle) {
            p->count++;
            return 0;
        }
        /* Re-bound after a restart: the old handle is of a life that is over. */
        if (p->peer == peer) {
            if (table_get(&peer->imports, p->handle) == o) {
                table_remove(&peer->imports, p->handle);
            }
            p->handle = handle;
            p->count = 1;
            p->epoch = peer->epoch;
            if (!table_put(&peer->imports, handle, o)) {
                PyErr_NoMemory();
                return -1;
            }
            return 0;
        }
        PyErr_SetString(PyExc_TypeError, "one object cannot be the proxy of two contexts");
        return -1;
    }
    bool tracked = is_tracked(o);
    if (!tracked) {
        /* A copy that nothing ties to its original: only for as long as the requests under way. */
        if ((peer->held == NULL && (peer->held = PyList_New(0)) == NULL) ||
            PyList_Append(peer->held, o) < 0) {
            return -1;
        }
    }
    if (handle > peer->rollback.newest) {
        peer->rollback.newest = handle;
    }
    p = calloc(1, sizeof *p);
    if (p == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    p->object = o;
    /* Instances and modules keep their peer (and so the context) alive; classes do so by their
     * stubs, where the garbage collector can see it: peer and classes refer to each other. */
    p->is_class = PyType_Check(o);
    p->peer = p->is_class ? peer : (PeerObject *)Py_NewRef(peer);
    p->handle = handle;
    p->count = 1;
    p->epoch = peer->epoch;
    if (tracked && !PyType_Check(o) && !PyModule_Check(o) &&
        Py_TYPE(o)->tp_finalize != proxy_finalize) {
        PyObject *address = PyLong_FromVoidPtr(o);
        PyObject *callback = address ? PyCFunction_New(&watch_gone_def, address) : NULL;
        p->watch = callback ? PyWeakref_NewRef(o, callback) : NULL;
        Py_XDECREF(address);
        Py_XDECREF(callback);
        if (p->watch == NULL) {
            goto error;
        }
    }
    if (!table_put(&core_get()->proxies, ADDRESS(o), p)) {
        PyErr_NoMemory();
        goto error;
    }
    if (!table_put(&peer->imports, handle, o)) {
        table_remove(&core_get()->proxies, ADDRESS(o));
        PyErr_NoMemory();
        goto error;
    }
    return 0;
error:
    Py_XDECREF(p->watch);
    if (!p->is_class) {
        Py_DECREF(peer);
    }
    free(p);
    return -1;
}

int
proxy_bind_view(PeerObject *peer, PyObject *o, PyObject *of, PyObject *method)
{
    struct proxy *p = calloc(1, sizeof *p);
    if (p == NULL || !table_put(&core_get()->proxies, ADDRESS(o), p)) {
        free(p);
        PyErr_NoMemory();
        return -1;
    }
    p->object = o;
    p->peer = (PeerObject *)Py_NewRef(peer);
    p->epoch = peer->epoch;
    p->of = Py_NewRef(of);
    p->method = Py_NewRef(method);
    return 0;
}

int
proxy_become(struct proxy *p, struct proxy *made)
{
    PeerObject *peer = p->peer;
    if (!table_put(&peer->imports, made->handle, p->object)) {
        PyErr_NoMemory();
        return -1;
    }
    p->handle = made->handle;
    p->count = made->count;
    p->epoch = made->epoch;
    Py_CLEAR(p->of);
    Py_CLEAR(p->method);
    made->handle = 0; /* its end releases nothing */
    return 0;
}
