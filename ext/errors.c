/* errors.c: exceptions cross by copy: class, arguments, the C fields of their built-in base,
 * __dict__, cause, context and the frames of the traceback; a handle keeps their identity. */
#include "codec.h"
#include "handles.h"
#include "peer.h"
#include "proxy.h"

#include <frameobject.h>
#include <string.h>

enum { FIELD_MEMBER = 1, FIELD_DICT = 2, FIELD_END = 0 };

/* The built-in exception class whose layout the instance has. */
static PyTypeObject *
builtin_base(PyTypeObject *type)
{
    while (type->tp_flags & Py_TPFLAGS_HEAPTYPE) {
        type = type->tp_base;
    }
    return type;
}

static int
encode_fields(struct message *m, PyObject *exc)
{
    for (PyTypeObject *type = builtin_base(Py_TYPE(exc)); type != NULL; type = type->tp_base) {
        if (type == (PyTypeObject *)PyExc_BaseException) {
            break;
        }
        for (PyMemberDef *member = type->tp_members; member != NULL && member->name != NULL;
             member++) {
            /* AttributeError.obj would drag the object along with each failed hasattr(). */
            if (strcmp(member->name, "obj") == 0) {
                continue;
            }
            PyObject *value = PyObject_GetAttrString(exc, member->name);
            if (value == NULL) {
                PyErr_Clear();
                continue;
            }
            int rc = 0;
            if (value != Py_None) {
                write_u8(&m->w, FIELD_MEMBER);
                write_bytes(&m->w, member->name, strlen(member->name));
                rc = encode(m, value, false);
            }
            Py_DECREF(value);
            if (rc < 0) {
                return -1;
            }
        }
    }
    PyObject *dict = compat_instance_dict(exc), *key, *value;
    PyObject *copy = dict == NULL ? NULL : PyDict_Copy(dict);
    Py_ssize_t i = 0;
    while (copy != NULL && PyDict_Next(copy, &i, &key, &value)) {
        if (PyUnicode_Check(key)) {
            write_u8(&m->w, FIELD_DICT);
            if (encode_name(m, key) < 0 || encode(m, value, false) < 0) {
                Py_DECREF(copy);
                return -1;
            }
        }
    }
    Py_XDECREF(copy);
    write_u8(&m->w, FIELD_END);
    return message_check(m);
}

int
encode_traceback(struct message *m, PyObject *traceback)
{
    if (traceback != NULL && !PyTraceBack_Check(traceback)) {
        traceback = NULL; /* None, where somebody took it away */
    }
    size_t count_at = m->w.size;
    uint64_t n = 0;
    int rc = 0;
    write_u64(&m->w, 0);
    for (PyTracebackObject *tb = (PyTracebackObject *)traceback; rc == 0 && tb != NULL;
         tb = tb->tb_next) {
        PyCodeObject *code = PyFrame_GetCode(tb->tb_frame);
        if (PyUnicode_CompareWithASCIIString(code->co_filename, "<isolation>") == 0) {
            Py_DECREF(code); /* see call_as_overridden() */
            continue;
        }
        PyObject *number = PyObject_GetAttrString((PyObject *)tb, "tb_lineno");
        long line = number == NULL || number == Py_None ? 0 : PyLong_AsLong(number);
        Py_XDECREF(number);
        PyErr_Clear();
        if (encode_name(m, code->co_filename) < 0 || encode_name(m, code->co_name) < 0) {
            rc = -1;
        }
        write_u64(&m->w, (uint64_t)(line < 0 ? 0 : line));
        n++;
        Py_DECREF(code);
    }
    if (rc == 0 && !m->w.failed) {
        memcpy(m->w.data + count_at, &n, sizeof n);
    }
    return rc < 0 ? -1 : message_check(m);
}

int
encode_exception(struct message *m, PyObject *exc)
{
    struct export *e;
    if (encode_export(m, exc, &e) < 0) {
        return -1;
    }
    PyObject *key = PyLong_FromVoidPtr(exc);
    if (key == NULL || (m->seen == NULL && (m->seen = PySet_New(NULL)) == NULL)) {
        Py_XDECREF(key);
        return -1;
    }
    int seen = PySet_Contains(m->seen, key);
    if (seen == 0) {
        seen = PySet_Add(m->seen, key);
    }
    else if (seen > 0) {
        Py_DECREF(key);
        e->count--; /* the receiver counts one receipt */
        m->nsent--;
        write_u8(&m->w, TAG_EXCEPTION_SEEN);
        write_u64(&m->w, e->handle);
        return message_check(m);
    }
    Py_DECREF(key);
    if (seen < 0) {
        return -1;
    }
    bool result = m->result;
    m->result = true; /* nothing in an exception is copied back */
    write_u8(&m->w, TAG_EXCEPTION);
    write_u64(&m->w, e->handle);
    int rc = encode_class(m, Py_TYPE(exc), CLASS_AS_VALUE);
    PyObject *args = rc < 0 ? NULL : PyObject_GetAttr(exc, core_get()->str_args);
    PyObject *cause = PyException_GetCause(exc), *context = PyException_GetContext(exc);
    if (args == NULL || encode(m, args, false) < 0 || encode_fields(m, exc) < 0 ||
        encode(m, cause != NULL ? cause : Py_None, false) < 0 ||
        encode(m, context != NULL ? context : Py_None, false) < 0) {
        rc = -1;
    }
    write_u8(&m->w, (uint8_t)((PyBaseExceptionObject *)exc)->suppress_context);
    if (rc == 0) {
        PyObject *traceback = PyException_GetTraceback(exc);
        rc = encode_traceback(m, traceback);
        Py_XDECREF(traceback);
    }
    m->result = result;
    Py_XDECREF(args);
    Py_XDECREF(cause);
    Py_XDECREF(context);
    return rc;
}

/* ---- the other side ---------------------------------------------------------------------- */

static PyObject *
new_exception(PyTypeObject *cls, PyObject *args)
{
    PyTypeObject *base = builtin_base(cls);
    PyObject *exc = base->tp_new(cls, args, NULL);
    if (exc == NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
        /* Its own __init__ takes other arguments than its args say. */
        PyErr_Clear();
        exc = ((PyTypeObject *)PyExc_BaseException)->tp_new(cls, args, NULL);
    }
    if (exc != NULL && PyObject_SetAttr(exc, core_get()->str_args, args) < 0) {
        PyErr_Clear();
    }
    return exc;
}

static int
decode_fields(struct incoming *in, PyObject *exc)
{
    for (;;) {
        uint8_t kind = read_u8(&in->r);
        if (kind == FIELD_END) {
            return in->r.failed ? garbled("exception") : 0;
        }
        PyObject *name = decode_name(in);
        PyObject *value = name == NULL ? NULL : decode(in);
        if (value == NULL) {
            Py_XDECREF(name);
            return -1;
        }
        int rc = PyObject_GenericSetAttr(exc, name, value);
        if (rc < 0) {
            PyErr_Clear(); /* a read-only field that __new__ has set */
        }
        Py_DECREF(name);
        Py_DECREF(value);
    }
}

PyObject *
decode_traceback(struct incoming *in)
{
    uint64_t n = read_count(&in->r, 1 + 1 + 8);
    if (n == 0) {
        return in->r.failed ? (garbled("traceback"), NULL) : Py_NewRef(Py_None);
    }
    PyObject *frames = PyList_New(0), *traceback = NULL;
    for (uint64_t i = 0; frames != NULL && i < n; i++) {
        PyObject *file = decode_name(in), *function = file == NULL ? NULL : decode_name(in);
        uint64_t line = read_u64(&in->r);
        PyObject *row = function == NULL
                            ? NULL
                            : Py_BuildValue("(OOK)", file, function, (unsigned long long)line);
        if (row == NULL || PyList_Append(frames, row) < 0) {
            Py_CLEAR(frames);
        }
        Py_XDECREF(row);
        Py_XDECREF(file);
        Py_XDECREF(function);
    }
    if (frames != NULL) {
        traceback = PyObject_CallMethod(core_get()->errors, "build_traceback", "O", frames);
        Py_DECREF(frames);
    }
    return traceback;
}

PyObject *
decode_exception(struct incoming *in)
{
    uint64_t handle = read_u64(&in->r);
    PyObject *cls = decode_class(in, CLASS_AS_VALUE);
    PyObject *args = cls == NULL ? NULL : decode(in);
    PyObject *exc = NULL, *cause = NULL, *context = NULL, *traceback = NULL;
    if (args == NULL) {
        goto done;
    }
    if (!PyTuple_Check(args) || !PyExceptionClass_Check(cls) || handle == 0) {
        garbled("exception");
        goto done;
    }
    exc = proxy_of_handle(in->peer, handle);
    if (exc != NULL && !PyExceptionInstance_Check(exc)) {
        exc = NULL; /* borrowed */
        garbled("exception");
        goto done;
    }
    if (exc != NULL) {
        proxy_received(proxy_find(Py_NewRef(exc)));
        if (PyObject_SetAttr(exc, core_get()->str_args, args) < 0) {
            PyErr_Clear();
        }
    }
    else {
        exc = new_exception((PyTypeObject *)cls, args);
        if (exc == NULL || proxy_bind(in->peer, exc, handle) < 0) {
            goto error;
        }
    }
    if (in->seen == NULL) {
        in->seen = PyDict_New();
    }
    PyObject *key = in->seen == NULL ? NULL : PyLong_FromUnsignedLongLong(handle);
    int rc = key == NULL ? -1 : PyDict_SetItem(in->seen, key, exc);
    Py_XDECREF(key);
    if (rc < 0 || decode_fields(in, exc) < 0 || (cause = decode(in)) == NULL ||
        (context = decode(in)) == NULL) {
        goto error;
    }
    bool suppress = read_u8(&in->r);
    if ((cause != Py_None && !PyExceptionInstance_Check(cause)) ||
        (context != Py_None && !PyExceptionInstance_Check(context))) {
        garbled("exception");
        goto error;
    }
    traceback = decode_traceback(in);
    if (traceback == NULL) {
        goto error;
    }
    PyException_SetCause(exc, cause == Py_None ? NULL : Py_NewRef(cause));
    PyException_SetContext(exc, context == Py_None ? NULL : Py_NewRef(context));
    ((PyBaseExceptionObject *)exc)->suppress_context = suppress;
    if (PyException_SetTraceback(exc, traceback) < 0) {
        goto error;
    }
    goto done;
error:
    Py_CLEAR(exc);
done:
    Py_XDECREF(cls);
    Py_XDECREF(args);
    Py_XDECREF(cause);
    Py_XDECREF(context);
    Py_XDECREF(traceback);
    return exc;
}

PyObject *
decode_exception_back(struct incoming *in)
{
    PyObject *exc = export_find(in->peer, read_u64(&in->r));
    PyObject *traceback = decode_traceback(in);
    if (traceback == NULL) {
        return NULL;
    }
    if (exc == NULL || !PyExceptionInstance_Check(exc)) {
        garbled("exception");
        exc = NULL;
    }
    else if (traceback != Py_None && PyException_SetTraceback(exc, traceback) < 0) {
        exc = NULL;
    }
    Py_DECREF(traceback);
    return Py_XNewRef(exc);
}

void
chain_context(PyObject *exc)
{
    PyObject *type, *handled, *traceback;
    PyErr_GetExcInfo(&type, &handled, &traceback);
    PyObject *last = Py_NewRef(exc);
    bool known = handled == NULL || !PyExceptionInstance_Check(handled);
    for (int i = 0; !known && i < 1000; i++) { /* a chain can be a cycle */
        known = last == handled;
        PyObject *next = known ? NULL : PyException_GetContext(last);
        if (next == NULL) {
            break;
        }
        Py_SETREF(last, next);
    }
    if (!known) {
        /* Nor may what is handled lead back to this. */
        PyObject *at = Py_NewRef(handled);
        for (int i = 0; !known && at != NULL && i < 1000; i++) {
            known = at == exc || at == last;
            Py_SETREF(at, PyException_GetContext(at));
        }
        Py_XDECREF(at);
    }
    if (!known) {
        PyObject *end = PyException_GetContext(last);
        if (end == NULL) {
            PyException_SetContext(last, Py_NewRef(handled));
        }
        Py_XDECREF(end);
    }
    Py_DECREF(last);
    Py_XDECREF(type);
    Py_XDECREF(handled);
    Py_XDECREF(traceback);
}
