/* mirrors.c: the class that stands here for one of the other side, made from its description: same
 * name, module, documentation, bases in order, and a stub for each name in its own __dict__. */
#include "classes.h"

#include "buffers.h"
#include "handles.h"
#include "proxy.h"

#include <stdlib.h>
#include <string.h>

/* type.__setattr__ keeps the slots in step with the special methods; but what the metaclass has a
 * data descriptor for (__name__, __doc__ ...: attributes of functions, say) must go around that. */
static int
set_class_attribute(PyTypeObject *type, PyObject *name, PyObject *value)
{
    PyObject *own = compat_type_lookup(Py_TYPE(type), name);
    if (own != NULL && Py_TYPE(own)->tp_descr_set != NULL) {
        PyObject *dict = compat_type_dict(type);
        int rc = dict == NULL ? -1 : PyDict_SetItem(dict, name, value);
        Py_XDECREF(dict);
        PyType_Modified(type);
        return rc;
    }
    return class_setattro_here(type, name, value);
}

static int
add_stubs(PyTypeObject *mirror, PyTypeObject *cls, PyObject *names, PyObject *existing)
{
    core_state *core = core_get();
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names); i++) {
        PyObject *row = PyList_GET_ITEM(names, i), *name = PyTuple_GET_ITEM(row, 0);
        Py_UCS4 kind = PyUnicode_READ_CHAR(PyTuple_GET_ITEM(row, 1), 0);
        bool abstract =
            PyTuple_GET_ITEM(row, 2) != Py_False && PyLong_AsLong(PyTuple_GET_ITEM(row, 2));
        if (kind == 'r') {
            continue;
        }
        if (existing != NULL && PyUnicode_Compare(name, core->str___init_subclass__) == 0) {
            continue; /* that of a shared base runs here, where the class is made */
        }
        if (existing != NULL) {
            int there = PyDict_Contains(existing, name);
            if (there != 0) {
                if (there < 0) {
                    return -1;
                }
                continue;
            }
            if (PyUnicode_Compare(name, core->str___subclasshook__) == 0) {
                continue; /* the base's own answers here as well */
            }
        }
        if (PyUnicode_Compare(name, core->str___abstractmethods__) == 0) {
            continue;
        }
        struct mirror *record = table_get(&core->mirrors, ADDRESS(mirror));
        if (kind == 'o' && record != NULL && record->home) {
            continue; /* a real slot: see mirror_slots() */
        }
        if (is_name(name, core->str___new__) && (record == NULL || !record->home)) {
            continue; /* an instance is made over there, __new__ and all */
        }
        PyObject *value = kind == 'l' || kind == 'b' ? Py_NewRef(PyTuple_GET_ITEM(row, 3))
                                                     : stub_new(cls, name, (char)kind, abstract);
        if (value != NULL && is_stub(value)) {
            ((StubObject *)value)->own = existing == NULL;
        }
        int rc = value == NULL ? -1 : set_class_attribute(mirror, name, value);
        Py_XDECREF(value);
        if (rc < 0) {
            return -1;
        }
    }
    return 0;
}

/* The names of the list that the class does not have yet, or has as something else. Borrowed names
 * in a new list. */
static PyObject *
rows_that_differ(PyObject *dict, PyObject *names)
{
    PyObject *rows = PyList_New(0);
    for (Py_ssize_t i = 0; rows != NULL && i < PyList_GET_SIZE(names); i++) {
        PyObject *row = PyList_GET_ITEM(names, i);
        PyObject *there = PyDict_GetItemWithError(dict, PyTuple_GET_ITEM(row, 0));
        Py_UCS4 kind = PyUnicode_READ_CHAR(PyTuple_GET_ITEM(row, 1), 0);
        bool same =
            there != NULL && (kind == 'l' || kind == 'b'
                                  ? there == PyTuple_GET_ITEM(row, 3)
                                  : is_stub(there) && ((StubObject *)there)->kind == (char)kind);
        if (PyErr_Occurred() || (!same && PyList_Append(rows, row) < 0)) {
            Py_CLEAR(rows);
        }
    }
    return rows;
}

/* The names in the dict that came by a description and are in none any more. New list. */
static PyObject *
names_that_went(PyTypeObject *cls, PyObject *dict, PyObject *names)
{
    PyObject *went = PyList_New(0), *now = PySet_New(NULL), *name, *value;
    Py_ssize_t i = 0;
    for (Py_ssize_t k = 0; now != NULL && k < PyList_GET_SIZE(names); k++) {
        if (PySet_Add(now, PyTuple_GET_ITEM(PyList_GET_ITEM(names, k), 0)) < 0) {
            Py_CLEAR(now);
        }
    }
    while (went != NULL && now != NULL && PyDict_Next(dict, &i, &name, &value)) {
        /* What is no stub and not part of every class is an object of this side, see 'b'. */
        bool described = is_stub(value) ? ((StubObject *)value)->own
                                        : stub_kind(cls, name, value) != 0 &&
                                              !is_name(name, core_get()->str___new__) &&
                                              !Py_IS_TYPE(value, &PyGetSetDescr_Type) &&
                                              !Py_IS_TYPE(value, &PyMemberDescr_Type);
        int kept = described ? PySet_Contains(now, name) : 1;
        if (kept < 0 || (kept == 0 && PyList_Append(went, name) < 0)) {
            Py_CLEAR(went);
        }
    }
    Py_XDECREF(now);
    return went;
}

int
mirror_change(PyTypeObject *type, PyObject *row)
{
    PyObject *name = PyTuple_GET_ITEM(row, 0), *dict = compat_type_dict(type);
    PyObject *there = dict == NULL ? NULL : PyDict_GetItemWithError(dict, name);
    bool gone = PyUnicode_READ_CHAR(PyTuple_GET_ITEM(row, 1), 0) == 0;
    int rc = dict == NULL || PyErr_Occurred() ? -1 : 0;
    if (rc == 0 && table_get(&core_get()->mirrors, ADDRESS(type)) != NULL) {
        building++;
        if (gone) {
            rc = there == NULL ? 0 : class_setattro_here(type, name, NULL);
        }
        else {
            PyObject *names = PyList_New(1);
            if (names != NULL) {
                PyList_SET_ITEM(names, 0, Py_NewRef(row));
            }
            rc = names == NULL ? -1 : add_stubs(type, type, names, NULL);
            Py_XDECREF(names);
        }
        building--;
    }
    Py_XDECREF(dict);
    return rc;
}

/* Gives a mirrored class the names of a new description. 0, or -1. */
static int
mirror_refresh(PyTypeObject *type, PyObject *names)
{
    if (table_get(&core_get()->mirrors, ADDRESS(type)) == NULL) {
        return 0;
    }
    PyObject *dict = compat_type_dict(type);
    PyObject *rows = dict == NULL ? NULL : rows_that_differ(dict, names);
    PyObject *went = rows == NULL ? NULL : names_that_went(type, dict, names);
    int rc = went == NULL ? -1 : 0;
    building++;
    for (Py_ssize_t i = 0; rc == 0 && i < PyList_GET_SIZE(went); i++) {
        rc = class_setattro_here(type, PyList_GET_ITEM(went, i), NULL);
    }
    rc = rc < 0 ? -1 : add_stubs(type, type, rows, NULL);
    building--;
    Py_XDECREF(dict);
    Py_XDECREF(rows);
    Py_XDECREF(went);
    return rc;
}

/* The slots of a class whose instances are proxies (or copies with a home elsewhere). */
static void
patch_slots(PyTypeObject *type, uint32_t flags, bool proxies)
{
    if (!(flags & CLASS_METACLASS)) {
        type->tp_finalize = proxy_finalize;
    }
    if (!(flags & CLASS_METACLASS) || (flags & CLASS_BUSY_META)) {
        type->tp_new = proxy_tp_new;
        if (flags & CLASS_OWN_INIT) {
            type->tp_init = proxy_tp_init; /* else object's: its check of arguments goes by that */
        }
    }
    if (proxies) {
        type->tp_getattro = proxy_getattro;
        type->tp_setattro = proxy_setattro;
        if (flags & CLASS_BUFFER) {
            ((PyHeapTypeObject *)type)->as_buffer.bf_getbuffer = proxy_getbuffer;
            ((PyHeapTypeObject *)type)->as_buffer.bf_releasebuffer = proxy_releasebuffer;
            type->tp_as_buffer = &((PyHeapTypeObject *)type)->as_buffer;
        }
    }
    PyType_Modified(type);
}

static int
set_abstract(PyTypeObject *type, PyObject *names)
{
    core_state *core = core_get();
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(names); i++) {
        PyObject *row = PyList_GET_ITEM(names, i);
        if (PyUnicode_Compare(PyTuple_GET_ITEM(row, 0), core->str___abstractmethods__) == 0) {
            return class_setattro_here(type, core->str___abstractmethods__,
                                       PyTuple_GET_ITEM(row, 3));
        }
    }
    return 0;
}

/* Mirrors share ABCMeta but not what was registered with the classes over there. */
static int
add_subclasshook(PyTypeObject *type)
{
    PyObject *dict = compat_type_dict(type), *name = core_get()->str___subclasshook__;
    int there = dict == NULL ? -1 : PyDict_Contains(dict, name);
    Py_XDECREF(dict);
    if (there != 0) {
        return there < 0 ? -1 : 0;
    }
    PyObject *stub = stub_new(type, name, 'a', false);
    int rc = stub == NULL ? -1 : class_setattro_here(type, name, stub);
    Py_XDECREF(stub);
    return rc;
}

/* Methods of other bases (a frozenset's __reduce__) that would answer for the proxy. */
static int
add_object_stubs(PyTypeObject *type)
{
    core_state *core = core_get();
    PyObject *names[] = {core->str___reduce_ex__, core->str___dir__, core->str___sizeof__,
                         core->str___reduce__, core->str___getstate__};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        PyObject *found = compat_type_lookup(type, names[i]);
        if (found == NULL || Py_TYPE(found) == core->method_type || is_object_method(found)) {
            continue; /* object's: see object_methods.c */
        }
        PyObject *stub = stub_new(type, names[i], 'm', false);
        int rc = stub == NULL ? -1 : class_setattro_here(type, names[i], stub);
        Py_XDECREF(stub);
        if (rc < 0) {
            return -1;
        }
    }
    return 0;
}

static struct mirror *
mirror_add(PeerObject *peer, PyTypeObject *type, uint32_t flags, bool proxies)
{
    struct mirror *mirror = calloc(1, sizeof *mirror);
    if (mirror == NULL || !table_put(&core_get()->mirrors, ADDRESS(type), mirror)) {
        free(mirror);
        PyErr_NoMemory();
        return NULL;
    }
    mirror->type = type;
    mirror->peer = peer;
    mirror->flags = flags;
    mirror->proxies = proxies;
    mirror->home = false;
    return mirror;
}

/* What instance.__class__ says: the real local class of an un-isolated target. Not where C++ code
 * takes for a real one, with its layout, whatever isinstance() does: that of torch would crash. */
static PyObject *
reported_class(PeerObject *peer, struct description *d)
{
    if (PyUnicode_Check(d->module) &&
        (PyUnicode_CompareWithASCIIString(d->module, "torch") == 0 ||
         PyUnicode_CompareWithASCIIString(d->module, "torch._C") == 0)) {
        return NULL;
    }
    return (PyObject *)local_class(peer, d->module, d->qualname);
}

/* For a class that derives from list, dict, set, bytearray or deque: a class that isinstance()
 * finds to be both. It has no instances; calling it makes an instance of the mirrored class. */
static PyObject *
facade_class(PeerObject *peer, PyTypeObject *type, struct description *d)
{
    (void)peer;
    PyTypeObject *real[] = {&PyList_Type, &PyDict_Type, &PySet_Type, &PyByteArray_Type,
                            (PyTypeObject *)core_get()->deque_type};
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(type->tp_mro); i++) {
        struct mirror *base =
            table_get(&core_get()->mirrors, ADDRESS(PyTuple_GET_ITEM(type->tp_mro, i)));
        for (size_t k = 0; base != NULL && k < sizeof real / sizeof *real; k++) {
            if (real[k] != NULL && base->reported == (PyObject *)real[k]) {
                PyObject *facade = PyObject_CallFunction((PyObject *)Py_TYPE(type), "O(OO){sOsO}",
                                                         d->name, type, real[k], "__module__",
                                                         d->module, "__qualname__", d->qualname);
                PyErr_Clear(); /* a metaclass may refuse: then isinstance() sees less */
                if (facade != NULL) {
                    ((PyTypeObject *)facade)->tp_new = proxy_tp_new;
                    ((PyTypeObject *)facade)->tp_init = proxy_tp_init;
                }
                return facade;
            }
        }
    }
    return NULL;
}

static PyObject *
silent_hook(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kwargs))
{
    Py_RETURN_NONE;
}

static PyMethodDef silent_hook_def = {"__init_subclass__", (PyCFunction)(void (*)(void))silent_hook,
                                      METH_VARARGS | METH_KEYWORDS, NULL};

/* The bases with a class in front whose __init_subclass__ does nothing: the hooks of real bases
 * have been called where the class was made. It adds nothing to the layout, so that it can be taken
 * away again. New reference. */
static PyObject *
silenced(PyObject *bases)
{
    PyObject *function = PyCFunction_New(&silent_hook_def, NULL);
    PyObject *silencer =
        function == NULL
            ? NULL
            : PyObject_CallFunction((PyObject *)&PyType_Type, "s(O){sOs()}", "silencer",
                                    &PyBaseObject_Type, "__init_subclass__", function, "__slots__");
    PyObject *front = silencer == NULL ? NULL : PyTuple_Pack(1, silencer);
    PyObject *all = front == NULL ? NULL : PySequence_Concat(front, bases);
    Py_XDECREF(function);
    Py_XDECREF(silencer);
    Py_XDECREF(front);
    return all;
}

/* Does a base of this side have an __init_subclass__ that would run for the mirror too? */
static bool
has_hooks(PyObject *bases)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(bases); i++) {
        PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(bases, i);
        PyObject *name = core_get()->str___init_subclass__;
        PyObject *hook = compat_type_lookup(base, name);
        if (hook != compat_type_lookup(&PyBaseObject_Type, name) &&
            Py_TYPE(hook) != core_get()->value_type) {
            return true;
        }
    }
    return false;
}

static bool
any_base(PyObject *bases, bool (*has)(PyTypeObject *))
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(bases); i++) {
        if (has((PyTypeObject *)PyTuple_GET_ITEM(bases, i))) {
            return true;
        }
    }
    return false;
}

static bool
supports_weakrefs(PyTypeObject *type)
{
    return PyType_SUPPORTS_WEAKREFS(type);
}

/* The __slots__ that give the mirror's instances a __dict__ and weak references if, and only if,
 * the target's have them: then a class that derives from it may say __slots__ as it might there.
 * For an instance that is real here, its own slots too. NULL without an exception: as by default.
 */
static PyObject *
mirror_slots(struct description *d, PyObject *bases)
{
    if (d->flags & (CLASS_EXCEPTION | CLASS_METACLASS)) {
        return NULL;
    }
    bool dict = (d->flags & CLASS_INSTANCE_DICT) && !any_base(bases, compat_has_instance_dict);
    bool weak = (d->flags & CLASS_WEAKREF) && !any_base(bases, supports_weakrefs);
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(bases); i++) {
        if (((PyTypeObject *)PyTuple_GET_ITEM(bases, i))->tp_itemsize != 0 && (dict || weak)) {
            return NULL; /* int, tuple ...: CPython allows no __slots__ there but an empty one */
        }
    }
    PyObject *names = PyList_New(0), *slots = NULL;
    if (names == NULL || (dict && PyList_Append(names, core_get()->str___dict__) < 0) ||
        (weak && PyList_Append(names, core_get()->str___weakref__) < 0)) {
        goto done;
    }
    for (Py_ssize_t i = 0; d->home && i < PyList_GET_SIZE(d->names); i++) {
        PyObject *row = PyList_GET_ITEM(d->names, i);
        if (PyUnicode_READ_CHAR(PyTuple_GET_ITEM(row, 1), 0) == 'o' &&
            PyList_Append(names, PyTuple_GET_ITEM(row, 0)) < 0) {
            goto done;
        }
    }
    slots = PyList_AsTuple(names);
done:
    Py_XDECREF(names);
    return slots;
}

/* Types in C may derive from one that Python code cannot derive from; so may their mirrors. */
static void
allow_deriving(PyObject *bases, bool allow)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(bases); i++) {
        PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(bases, i);
        struct mirror *mirror = table_get(&core_get()->mirrors, ADDRESS(base));
        if (mirror != NULL && mirror->proxies && (mirror->flags & CLASS_FINAL)) {
            base->tp_flags = allow ? base->tp_flags | Py_TPFLAGS_BASETYPE
                                   : base->tp_flags & ~Py_TPFLAGS_BASETYPE;
        }
    }
}

/* Error messages name a type in C by its tp_name, with the module. */
static int
set_full_name(PyTypeObject *type, PyObject *full)
{
    PyObject *kept = PyDict_SetDefault(core_get()->type_names, full, full); /* keeps the text */
    const char *text = kept == NULL ? NULL : PyUnicode_AsUTF8(kept);
    if (text != NULL && strchr(text, '.') != NULL) {
        type->tp_name = text;
    }
    return text == NULL ? -1 : 0;
}

/* Registers a mirror as its description says. What this side does not have is left out. */
static void
register_mirror(PyTypeObject *type, PyObject *names)
{
    PyObject *abcs = NULL, *all = PyList_New(0), *none = NULL;
    for (Py_ssize_t i = 0; all != NULL && i < PyList_GET_SIZE(names); i++) {
        PyObject *row = PyList_GET_ITEM(names, i);
        if (PyUnicode_READ_CHAR(PyTuple_GET_ITEM(row, 1), 0) == 'r' &&
            PyList_Append(all, PyTuple_GET_ITEM(row, 3)) < 0) {
            Py_CLEAR(all);
        }
    }
    if (all != NULL && PyList_GET_SIZE(all) > 0 &&
        (abcs = PyImport_ImportModule("ipython_isolation.abcs")) != NULL) {
        none = PyObject_CallMethod(abcs, "register", "OO", type, all);
    }
    Py_XDECREF(none);
    Py_XDECREF(abcs);
    Py_XDECREF(all);
    PyErr_Clear();
}

static PyTypeObject *
make_mirror(PeerObject *peer, struct description *d)
{
    core_state *core = core_get();
    PyTypeObject *type = NULL;
    PyObject *bases = PyList_AsTuple(d->bases);
    PyObject *namespace =
        Py_BuildValue("{OOOOOO}", core->str___module__, d->module, core->str___qualname__,
                      d->qualname, core->str___doc__, d->doc);
    /* A metaclass with a mind of its own (Enum's) would take the stubs for something else. */
    bool plain = (PyTypeObject *)d->meta == &PyType_Type ||
                 strcmp(((PyTypeObject *)d->meta)->tp_name, "ABCMeta") == 0;
    bool home = d->home;
    PyObject *own_slots = bases == NULL ? NULL : mirror_slots(d, bases);
    bool slots = own_slots != NULL;
    if (PyErr_Occurred() || (slots && namespace != NULL &&
                             PyDict_SetItem(namespace, core->str___slots__, own_slots) < 0)) {
        Py_CLEAR(namespace);
    }
    Py_XDECREF(own_slots);
    building++;
    if (bases != NULL && namespace != NULL) {
        allow_deriving(bases, true);
        PyObject *meta = plain ? d->meta : NULL;
        if (meta != NULL) {
            bool hooks = home || has_hooks(bases);
            PyObject *all = hooks ? silenced(bases) : Py_NewRef(bases);
            type = all == NULL ? NULL
                               : (PyTypeObject *)PyObject_CallFunction(meta, "OOO", d->name, all,
                                                                       namespace);
            Py_XDECREF(all);
            if (hooks && type != NULL &&
                PyObject_SetAttr((PyObject *)type, core->str___bases__, bases) < 0) {
                PyErr_Clear(); /* an unusual layout: the silencer stays among the bases */
            }
        }
        else {
            PyObject *args = Py_BuildValue("(OOO)", d->name, bases, namespace);
            type = args == NULL
                       ? NULL
                       : (PyTypeObject *)PyType_Type.tp_new((PyTypeObject *)d->meta, args, NULL);
            Py_XDECREF(args);
        }
        allow_deriving(bases, false);
    }
    if (type == NULL) {
        goto error;
    }
    PyObject *dict = compat_type_dict(type);
    if (dict == NULL || (slots && PyDict_DelItem(dict, core->str___slots__) < 0)) {
        Py_XDECREF(dict);
        goto error;
    }
    Py_DECREF(dict); /* what the target has to say of its __slots__ is among the names */
    if (set_full_name(type, d->full_name) < 0) {
        goto error;
    }
    bool proxies = !home && !(d->flags & (CLASS_EXCEPTION | CLASS_METACLASS));
    struct mirror *mirror = mirror_add(peer, type, d->flags, proxies);
    if (mirror != NULL) {
        mirror->home = home;
    }
    if (mirror == NULL || proxy_bind(peer, (PyObject *)type, d->handle) < 0 ||
        add_stubs(type, type, d->names, NULL) < 0) {
        goto error;
    }
    type->tp_flags |= (d->flags & CLASS_SEQUENCE ? Py_TPFLAGS_SEQUENCE : 0) |
                      (d->flags & CLASS_MAPPING ? Py_TPFLAGS_MAPPING : 0);
    PyObject *own_new = home ? compat_type_lookup(type, core->str___new__) : NULL;
    if (home && (own_new == NULL || !is_stub(own_new))) {
        /* A mixin of the other side must not take over the making of what is real here. */
        for (Py_ssize_t i = 1; i < PyTuple_GET_SIZE(type->tp_mro); i++) {
            PyTypeObject *base = (PyTypeObject *)PyTuple_GET_ITEM(type->tp_mro, i);
            if (table_get(&core->mirrors, ADDRESS(base)) == NULL) {
                type->tp_new = base->tp_new;
                break;
            }
        }
    }
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(d->inherited); i++) {
        PyObject *names = PyList_GET_ITEM(d->inherited, i);
        PyObject *dict = compat_type_dict(type);
        int rc = dict == NULL ? -1 : add_stubs(type, type, names, dict);
        Py_XDECREF(dict);
        if (rc < 0) {
            goto error;
        }
    }
    if (!home && (!(d->flags & CLASS_METACLASS) || (d->flags & CLASS_BUSY_META))) {
        if (proxies || (d->flags & CLASS_METACLASS)) {
            PyObject *new_method = proxy_new_method();
            int rc =
                new_method == NULL ? -1 : class_setattro_here(type, core->str___new__, new_method);
            Py_XDECREF(new_method);
            if (rc < 0 || (proxies && add_object_stubs(type) < 0)) {
                goto error;
            }
        }
        patch_slots(type, d->flags, proxies);
    }
    if (d->flags & CLASS_NO_SEQUENCE) {
        ((PyHeapTypeObject *)type)->as_sequence.sq_item = NULL;
    }
    if (proxies && strcmp(Py_TYPE(type)->tp_name, "ABCMeta") == 0 && add_subclasshook(type) < 0) {
        goto error;
    }
    if (set_abstract(type, d->names) < 0) {
        PyErr_Clear();
    }
    mirror->reported = proxies ? reported_class(peer, d) : NULL;
    if (proxies && mirror->reported == NULL && (d->flags & CLASS_MUTABLE_BUILTIN)) {
        mirror->reported = facade_class(peer, type, d);
    }
    if (proxies && proxy_add_copying(type, mirror->reported) < 0) {
        PyErr_Clear();
    }
    if (proxies && mirror->reported == (PyObject *)&PyList_Type) {
        /* `[1] + p`: list.__add__ takes only real ones, and asks no other operand. */
        PyObject *stub = stub_new(type, core->str___radd__, 'q', false);
        if (stub == NULL || class_setattro_here(type, core->str___radd__, stub) < 0) {
            PyErr_Clear();
        }
        Py_XDECREF(stub);
    }
    if (proxies) { /* last: this class, too, was filled and derived from until here */
        type->tp_flags |= d->flags & CLASS_IMMUTABLE ? Py_TPFLAGS_IMMUTABLETYPE : 0;
        type->tp_flags &= ~(d->flags & CLASS_FINAL ? Py_TPFLAGS_BASETYPE : 0);
    }
    building--;
    register_mirror(type, d->names);
    Py_DECREF(bases);
    Py_DECREF(namespace);
    return type;
error:
    building--;
    Py_XDECREF(bases);
    Py_XDECREF(namespace);
    if (type != NULL) {
        /* Records go by address: none may outlive the type. */
        struct mirror *record = table_remove(&core->mirrors, ADDRESS(type));
        struct proxy *p = proxy_find((PyObject *)type);
        if (record != NULL) {
            Py_XDECREF(record->reported);
            free(record);
        }
        if (p != NULL) {
            proxy_drop(p);
        }
        Py_DECREF(type);
    }
    return NULL;
}

PyTypeObject *
find_or_make_mirror(PeerObject *peer, struct description *d)
{
    /* A class that can be found by name is the same class in the next life; any other is this one.
     */
    PyObject *key = d->flags & CLASS_IMPORTABLE ? PyTuple_Pack(2, d->module, d->qualname)
                                                : PyLong_FromUnsignedLongLong(d->handle);
    PyObject *known = key == NULL ? NULL : PyDict_GetItemWithError(peer->mirrors, key);
    PyTypeObject *type = NULL;
    if (known != NULL) {
        struct proxy *p = proxy_find(known);
        if (p != NULL && p->epoch == peer->epoch && p->handle == d->handle) {
            proxy_received(p); /* described once more, on another strand */
            Py_DECREF(key);
            return (PyTypeObject *)Py_NewRef(known);
        }
        if (p != NULL && p->epoch != peer->epoch) {
            Py_INCREF(known);
            int rc = proxy_bind(peer, known, d->handle);
            rc = rc < 0 ? -1 : mirror_refresh((PyTypeObject *)known, d->names);
            Py_DECREF(key);
            if (rc < 0) {
                Py_DECREF(known);
                return NULL;
            }
            return (PyTypeObject *)known;
        }
    }
    if (key != NULL && !PyErr_Occurred()) {
        type = make_mirror(peer, d);
    }
    if (type != NULL && PyDict_SetItem(peer->mirrors, key, (PyObject *)type) < 0) {
        Py_CLEAR(type);
    }
    if (type != NULL && (d->flags & CLASS_IMPORTABLE)) {
        struct proxy *p = proxy_find((PyObject *)type);
        p->module = Py_NewRef(d->module);
        p->qualname = Py_NewRef(d->qualname);
        if (known != NULL) {
            /* The name means a new class now (a reload): the old one must outlive its instances. */
            PyObject *old = PyLong_FromVoidPtr(known);
            if (old == NULL || PyDict_SetItem(peer->mirrors, old, known) < 0) {
                PyErr_Clear();
            }
            Py_XDECREF(old);
        }
    }
    Py_XDECREF(key);
    return type;
}
