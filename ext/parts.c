/* parts.c: objects of known libraries (pandas, Arrow, Pillow, torch) that cross as real ones. What
 * they are made of, and how they are made again, libraries.py says; the parts are a pickle, its
 * buffers out of band, and arrays. Those that can change are copied and written back as containers
 * are (pairs.c). */
#include "codec.h"

#include "memory.h"

/* Borrowed, or NULL with an exception. Not imported before it is needed. */
static PyObject *
libraries(void)
{
    core_state *core = core_get();
    if (core->libraries == NULL) {
        core->libraries = PyImport_ImportModule("ipython_isolation.libraries");
    }
    return core->libraries;
}

bool
has_parts(PyTypeObject *type)
{
    PyObject *module = libraries();
    PyObject *answer =
        module == NULL ? NULL : PyObject_CallMethod(module, "is_known", "O", (PyObject *)type);
    bool yes = answer == Py_True;
    PyErr_Clear();
    Py_XDECREF(answer);
    return yes;
}

/* The parts belong to nobody else: arrays among them need not be fresh, and buffers go along. */
static int
write_parts(struct message *m, PyObject *parts)
{
    bool apart = m->taking_apart;
    m->taking_apart = true;
    int rc = encode(m, parts, true);
    m->taking_apart = apart;
    return rc;
}

int
encode_parts(struct message *m, PyObject *o, bool owned, bool *done)
{
    if (encode_paired(m, o)) {
        *done = true;
        return message_check(m);
    }
    bool movable = !m->result || (owned && Py_REFCNT(o) == 1);
    PyObject *module = libraries(), *parts, *changes;
    PyObject *taken =
        module == NULL
            ? NULL
            : PyObject_CallMethod(module, "take_apart", "OOOO", (PyObject *)m->peer, o,
                                  m->result ? Py_True : Py_False, movable ? Py_True : Py_False);
    if (taken == NULL || taken == Py_None) {
        Py_XDECREF(taken);
        return taken == NULL ? -1 : 0;
    }
    int rc = -1;
    uint64_t id = 0;
    if (!PyArg_ParseTuple(taken, "OO", &changes, &parts)) {
        goto done;
    }
    if (!m->result && changes == Py_True) {
        id = pair_new_id(m->strand);
        if (pair_add(m->strand, o, PAIR_PARTS, id) == NULL) {
            goto done;
        }
    }
    *done = true;
    write_u8(&m->w, TAG_PARTS);
    write_u64(&m->w, id);
    rc = write_parts(m, parts);
done:
    Py_DECREF(taken);
    return rc;
}

/* function(first, *rest): new reference, or NULL with an exception. */
static PyObject *
call_with(PyObject *module, const char *name, PyObject *first, PyObject *rest)
{
    PyObject *function = PyObject_GetAttrString(module, name), *args = NULL, *result = NULL;
    if (function != NULL && first != NULL) {
        PyObject *head = PyTuple_Pack(1, first);
        args = head == NULL ? NULL : PySequence_Concat(head, rest);
        Py_XDECREF(head);
    }
    else if (function != NULL) {
        args = Py_NewRef(rest);
    }
    result = args == NULL ? NULL : PyObject_Call(function, args, NULL);
    Py_XDECREF(args);
    Py_XDECREF(function);
    return result;
}

/* What came is what it is compared with. 0, or -1. */
static int
pair_parts(struct incoming *in, PyObject *o, uint64_t id, PyObject *parts)
{
    if (in->strand == NULL || pair_by_id(in->strand, id) != NULL ||
        pair_find(in->strand, o) != NULL) {
        return garbled("parts");
    }
    PyObject *content = PyObject_CallMethod(libraries(), "content", "OO", o, parts);
    struct pair *pair = content == NULL ? NULL : pair_add(in->strand, o, PAIR_PARTS, id);
    if (pair == NULL) {
        Py_XDECREF(content);
        return -1;
    }
    pair->snapshot = content;
    return 0;
}

PyObject *
decode_parts(struct incoming *in)
{
    uint64_t id = read_u64(&in->r);
    PyObject *parts = decode(in), *module = parts == NULL ? NULL : libraries(), *o = NULL;
    if (module != NULL && !PyTuple_Check(parts)) {
        garbled("parts");
        module = NULL;
    }
    if (module != NULL) {
        o = call_with(module, "put_together", NULL, parts);
    }
    if (o != NULL && id != 0 && pair_parts(in, o, id, parts) < 0) {
        Py_CLEAR(o);
    }
    Py_XDECREF(parts);
    return o;
}

PyObject *
parts_snapshot(PyObject *o)
{
    PyObject *module = libraries();
    return module == NULL ? NULL : PyObject_CallMethod(module, "content", "O", o);
}

int
encode_parts_changes(struct message *m, PyObject *o, PyObject *before, bool *changed)
{
    PyObject *module = libraries();
    PyObject *parts =
        module == NULL ? NULL : PyObject_CallMethod(module, "changes", "OO", o, before);
    int rc = parts == NULL ? -1 : 0;
    *changed = parts != NULL && parts != Py_None;
    if (*changed) {
        rc = write_parts(m, parts);
    }
    Py_XDECREF(parts);
    return rc;
}

int
apply_parts(struct incoming *in, PyObject *target)
{
    PyObject *parts = decode(in), *module = parts == NULL ? NULL : libraries(), *none = NULL;
    if (module != NULL && !PyTuple_Check(parts)) {
        garbled("changed parts");
    }
    else if (module != NULL) {
        none = call_with(module, "restore", target, parts);
    }
    Py_XDECREF(parts);
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}
