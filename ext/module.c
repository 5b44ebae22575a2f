/* module.c: ipython_isolation._core. */
#include "numpy_memory.h"
#include "buffers.h"
#include "thread_start.h"
#include "batch.h"
#include "codec.h"
#include "cursor.h"
#include "ahead.h"
#include "handles.h"
#include "iteration.h"
#include "memory.h"
#include "peer.h"
#include "proxy.h"
#include "recorder.h"
#include "zmq_late.h"

#include <string.h>

/* See core_get() in state.h. */
static core_state *the_core;

core_state *
core_get(void)
{
    return the_core;
}

uint64_t state_generation;
_Thread_local int building;

/* cwd and environment are followed by the child: note that they changed, for each peer to compare.
 * A C hook, since a Python one would slow down every audited event of the session. */
static int
audit(const char *event, PyObject *Py_UNUSED(args), void *Py_UNUSED(data))
{
    if (event[0] == 'o' && (strcmp(event, "os.chdir") == 0 || strcmp(event, "os.putenv") == 0 ||
                            strcmp(event, "os.unsetenv") == 0)) {
        state_generation++;
    }
    else if (event[0] == 'o' && strcmp(event, "os.exec") == 0) {
        recorder_exec();
    }
    return 0;
}

static PyObject *
core_isproxy(PyObject *Py_UNUSED(module), PyObject *o)
{
    return PyBool_FromLong(proxy_find(o) != NULL);
}

/* proxy_info(o) -> (peer, handle, epoch, lost) or None */
static PyObject *
core_proxy_info(PyObject *Py_UNUSED(module), PyObject *o)
{
    struct proxy *p = proxy_find(o);
    if (p == NULL) {
        Py_RETURN_NONE;
    }
    return Py_BuildValue("(OKIO)", p->peer, (unsigned long long)p->handle, p->epoch,
                         proxy_is_lost(p) ? Py_True : Py_False);
}

/* contents(o) -> a tuple of all items of a list of the other side, or of all (key, value) of a
 * dict; None where o is no proxy of either, or that has to be asked for in another way. */
static PyObject *
core_contents(PyObject *Py_UNUSED(module), PyObject *o)
{
    PyObject *items = iteration_contents(o);
    return items != NULL || PyErr_Occurred() ? items : Py_NewRef(Py_None);
}

/* target_name(o) -> "module.qualname" of a class or function, or None; local */
static PyObject *
core_target_name(PyObject *Py_UNUSED(module), PyObject *o)
{
    struct proxy *p = proxy_find(o);
    if (p != NULL && p->module != NULL && PyUnicode_GET_LENGTH(p->qualname) > 0) {
        return PyUnicode_FromFormat("%U.%U", p->module, p->qualname);
    }
    if (p != NULL && p->module != NULL) {
        return Py_NewRef(p->module);
    }
    if (PyType_Check(o)) {
        PyObject *module = PyObject_GetAttr(o, core_get()->str___module__);
        PyObject *qualname = PyType_GetQualName((PyTypeObject *)o);
        PyObject *name = module == NULL || qualname == NULL
                             ? NULL
                             : PyUnicode_FromFormat("%S.%U", module, qualname);
        Py_XDECREF(module);
        Py_XDECREF(qualname);
        return name;
    }
    Py_RETURN_NONE;
}

/* class_peer(cls) -> the peer whose other side the class is of, or None; local */
static PyObject *
core_class_peer(PyObject *Py_UNUSED(module), PyObject *cls)
{
    struct mirror *mirror = table_get(&core_get()->mirrors, ADDRESS(cls));
    return Py_NewRef(mirror == NULL || mirror->home ? Py_None : (PyObject *)mirror->peer);
}

static PyObject *
core_zmq_version(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    int major, minor, patch;
    if (zmq_late_load() < 0) {
        return PyErr_Format(PyExc_ImportError, "libzmq: %s", zmq_late_error());
    }
    zmq_version(&major, &minor, &patch);
    return Py_BuildValue("(iii)", major, minor, patch);
}

static PyObject *
raise_result(PyObject *function, PyObject *argument)
{
    PyObject *result = PyObject_CallOneArg(function, argument);
    if (result != NULL && PyExceptionInstance_Check(result)) {
        PyException_SetTraceback(result, Py_None);
        PyErr_SetObject((PyObject *)Py_TYPE(result), result);
        Py_CLEAR(result);
    }
    return result;
}

static PyMethodDef raise_result_def = {"raise_result", raise_result, METH_O, NULL};

/* raiser(f): a function of one argument that calls f and raises what it returns, if that is an
 * exception, without a trace of f: as the caller's own. */
static PyObject *
core_raiser(PyObject *Py_UNUSED(module), PyObject *function)
{
    return PyCFunction_New(&raise_result_def, function);
}

static PyMethodDef methods[] = {
    {"isproxy", core_isproxy, METH_O,
     "isproxy(o) -> bool\n\nWhether o stands for an object of another process. Local and safe for "
     "any object."},
    {"proxy_info", core_proxy_info, METH_O, NULL},
    {"target_name", core_target_name, METH_O, NULL},
    {"class_peer", core_class_peer, METH_O, NULL},
    {"contents", core_contents, METH_O, NULL},
    {"raiser", core_raiser, METH_O, NULL},
    {"share_arrays", share_arrays, METH_O, NULL},
    {"buffer_mark", buffer_mark, METH_O, NULL},
    {"buffer_address", buffer_address, METH_O, NULL},
    {"buffer_changed", buffer_changed, METH_VARARGS, NULL},
    {"thread_starter", thread_starter, METH_O, NULL},
    {"thread_cell", thread_cell, METH_NOARGS, NULL},
    {"zmq_version", core_zmq_version, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static int
module_exec(PyObject *module)
{
    if (the_core != NULL) {
        PyErr_SetString(PyExc_ImportError,
                        "ipython_isolation._core works in the main interpreter only");
        return -1;
    }
    core_state *core = PyModule_GetState(module);
#define NAME(n)                                                                                    \
    if ((core->str_##n = PyUnicode_InternFromString(#n)) == NULL) {                                \
        return -1;                                                                                 \
    }
#define DUNDER(n)                                                                                  \
    if ((core->str___##n##__ = PyUnicode_InternFromString("__" #n "__")) == NULL) {                \
        return -1;                                                                                 \
    }
#include "names.def"
#undef NAME
#undef DUNDER
    if (number_names(core) < 0) {
        return -1;
    }
    PyObject *sys = PyImport_ImportModule("sys");
    core->sys_dict = sys == NULL ? NULL : Py_NewRef(PyModule_GetDict(sys));
    Py_XDECREF(sys);
    core->value_types = PyDict_New();
    core->empty_tuple = PyTuple_New(0);
    core->type_names = PyDict_New();
    core->errors = PyImport_ImportModule("ipython_isolation.errors");
    if (core->sys_dict == NULL || core->value_types == NULL || core->empty_tuple == NULL ||
        core->type_names == NULL || core->errors == NULL ||
        PyModule_AddObjectRef(module, "value_types", core->value_types) < 0) {
        return -1;
    }
    the_core = core;
    if (PySys_AddAuditHook(audit, NULL) < 0) {
        return -1;
    }
    PyObject *collections = PyImport_ImportModule("_collections");
    core->deque_type = collections ? PyObject_GetAttrString(collections, "deque") : NULL;
    Py_XDECREF(collections);
    PyObject *operations = PyTuple_New(OP_COUNT);
    for (unsigned i = 0; operations != NULL && i < OP_COUNT; i++) {
        PyTuple_SET_ITEM(operations, i, PyUnicode_FromString(op_name(i)));
    }
    int rc = core->deque_type == NULL || operations == NULL ||
                     PyModule_AddObjectRef(module, "operations", operations) < 0 ||
                     class_changes_init() < 0 || object_methods_init() < 0 ||
                     stubs_init(core, module) < 0 || buffers_init(core, module) < 0 ||
                     memory_init(core, module) < 0 || module_proxy_init(core, module) < 0 ||
                     cursor_init(core, module) < 0 || iteration_init(core, module) < 0 ||
                     ahead_init(core, module) < 0 || batch_init(core, module) < 0 ||
                     peer_init(core, module) < 0
                 ? -1
                 : 0;
    Py_XDECREF(operations);
    return rc;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "ipython_isolation._core",
    .m_doc = "Relays operations between this process and an isolated one.",
    .m_size = sizeof(core_state),
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__core(void)
{
    return PyModuleDef_Init(&definition);
}
