"""Objects of pandas, Arrow, Pillow and torch as real ones on both sides: what they are made of, and how they are made of
that again. `parts.c` asks, and passes the parts.

Parts are ``(library, pickle, buffers, others)``. The pickle's buffers are out of band (PEP 574), or arrays. `others` is None or a
dict of what crosses by its own rules: what a user may put into an object, and hold on to.

What can change is written back, if it has: `content` remembers, `changes` compares, and `restore` puts into the original
what its copy has become: ``("buffers", ...)`` are written where they were, else all of it is made anew.
"""

import importlib.util
import io
import pickle
import sys
import zlib

from . import _core


class _NotValue(pickle.PicklingError):
    """Something that a copy cannot stand for."""


#: Whose classes and functions are the same in both processes, and whose objects are values.
_COMMON = frozenset(
    "pandas numpy pyarrow PIL torch builtins datetime decimal fractions uuid zoneinfo copyreg _codecs collections pytz dateutil".split()
)


def _check(module, isolated=()):
    root = module.partition(".")[0] if isinstance(module, str) else None
    if root not in _COMMON or root in isolated:
        raise _NotValue(f"something of the module {module!r}")


class _Pickler(pickle.Pickler):
    """Refuses what is not a value: a copy of an object of the program's, or of an isolated module, would be another one."""

    def __init__(self, file, isolated, buffers):
        super().__init__(file, 5, buffer_callback=None if buffers is None else buffers.append)
        self._isolated = isolated

    def reducer_override(self, o):
        if _core.isproxy(o):
            raise _NotValue(f"a {type(o).__name__} of another process")
        # Functions, of C and of Cython too, have a name of their own; `o` is not asked for one.
        named = o if isinstance(o, type) or "__qualname__" in vars(type(o)) else type(o)
        # A builtin method has no module; what it is bound to is pickled with it.
        _check(named.__module__ or "builtins", self._isolated)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        _check(module)
        return super().find_class(module, name)


class _Library:
    """One library whose objects are made of a pickle, and never change."""

    #: What must not be isolated either: the objects have its arrays in them.
    needs = ()

    def knows(self, cls):
        """Whether instances of this class of the library may cross."""
        raise NotImplementedError

    def crosses(self, o):
        """Whether this one may: True, or False where a copy would be another thing than the original is."""
        return True

    def changeable(self, o):
        return False

    def moves(self, o):
        """Whether nothing else has any of `o`, which nobody else refers to."""
        return True

    def parts(self, o, isolated=(), copied=False):
        """The pickle, buffers and others of `o`; `copied`: for others that nobody else has."""
        file, buffers = io.BytesIO(), []
        _Pickler(file, isolated, buffers).dump(self.reduced(o))
        return file.getvalue(), tuple(buffers), self.others(o, copied)

    def whole(self, content, buffers, others):
        """What these parts make."""
        o = self.rebuilt(_Unpickler(io.BytesIO(content), buffers=buffers).load())
        if others is not None:
            self.set_others(o, others)
        return o

    def reduced(self, o):
        return o

    def rebuilt(self, reduced):
        return reduced

    def others(self, o, copied):
        return None

    def set_others(self, o, others):
        pass

    def mark_of_others(self, o):
        """What tells whether others of `o` were replaced; what is changed in them they tell themselves."""
        return None

    def content(self, o, came):
        """What to compare with later. `came`: the parts that it was made of just now, or None."""
        # Not what came: the same object may be pickled in another way there (what is the same text twice).
        content, buffers, _ = self.parts(o)
        places = [_core.buffer_address(buffer) for buffer in buffers]
        return content, list(map(_core.buffer_mark, buffers)), places, self.mark_of_others(o)

    def changes(self, o, before):
        """What `restore` is given, or None."""
        content, marks, places, others = before
        now, buffers, _ = self.parts(o)
        if now != content or len(buffers) != len(marks) or self.mark_of_others(o) != others:
            return ("whole", *self.parts(o, copied=True))
        changed = [i for i, mark in enumerate(marks) if _core.buffer_changed(buffers[i], mark)]
        if all(_core.buffer_address(buffers[i]) == places[i] for i in changed):
            return ("buffers", *((i, buffers[i]) for i in changed)) if changed else None
        return ("whole", *self.parts(o, copied=True))

    def restore(self, o, how, *parts):
        """Makes `o` what its copy has become."""
        if how == "whole":
            self.become(o, self.whole(*parts))
            return
        content, buffers, _ = self.parts(o)
        if self.writable(o, buffers, parts):
            for i, new in parts:
                memoryview(buffers[i]).cast("B")[:] = memoryview(new)
            return
        # Others have the same memory, and must not see it.
        buffers = list(buffers)
        for i, new in parts:
            buffers[i] = new
        self.become(o, self.whole(content, buffers, self.others(o, False)))

    def writable(self, o, buffers, new):
        """Whether what was written may be written into the memory of `o`."""
        own = [memoryview(buffers[i]) if i < len(buffers) else None for i, _ in new]
        return all(
            view is not None and not view.readonly and view.contiguous and view.nbytes == memoryview(b).nbytes
            for view, (_, b) in zip(own, new)
        )

    def become(self, o, new):
        """Makes `o` what `new` is, which nobody else has."""


class _Arrow(_Library):
    def knows(self, cls):
        arrow = sys.modules["pyarrow"]
        kinds = (arrow.Array, arrow.ChunkedArray, arrow.RecordBatch, arrow.Table, arrow.Schema, arrow.Field)
        return issubclass(cls, (*kinds, arrow.DataType, arrow.Scalar))


class _Zones(_Library):
    """Time zones: pytz, dateutil."""

    def knows(self, cls):
        import datetime

        return issubclass(cls, datetime.tzinfo)


#: What `pandas.api.types.infer_dtype` says of objects that a copy can stand for.
_VALUES = frozenset(
    "string bytes empty boolean integer floating mixed-integer-float decimal complex datetime datetime64 date"
    " timedelta timedelta64 time period interval".split()
)


class _Pandas(_Library):
    needs = ("numpy",)

    def knows(self, cls):
        pandas = sys.modules["pandas"]
        constants = (pandas.api.extensions.ExtensionDtype, pandas.tseries.offsets.BaseOffset)
        return cls in (pandas.DataFrame, pandas.Series) or issubclass(cls, (pandas.Index, *constants))

    def changeable(self, o):
        pandas = sys.modules["pandas"]
        return isinstance(o, (pandas.DataFrame, pandas.Series, pandas.Index))

    @staticmethod
    def _is_table(o):
        return hasattr(o, "_mgr")

    def crosses(self, o):
        if self._is_table(o):
            return self._labels_cross(o) and not self._odd(o) and not self._attributes(o)
        return not self.changeable(o) or (self._has_values(o) and not self._attributes(o))

    def _labels_cross(self, o):
        return all(map(self._has_values, o.axes)) and all(isinstance(name, (str, int, float, tuple, type(None))) for name in self._names(o))

    @staticmethod
    def _names(o):
        return [*(name for axis in o.axes for name in axis.names), getattr(o, "_name", None)]

    @staticmethod
    def _attributes(o):
        """What users have put into the object: pandas' own names begin with an underscore, but for one."""
        return {name: value for name, value in vars(o).items() if not name.startswith("_") and name != "sortorder"}

    def _odd(self, o):
        """The columns (of a Series: 0) that have references in them: list of int."""
        return [
            int(place)
            for block in o._mgr.blocks
            for place, values in self._columns(block)
            if not self._are_values(values)
        ]

    @staticmethod
    def _columns(block):
        """(place, values) of the columns of a block that are to be looked at one by one."""
        places = block.mgr_locs if hasattr(block.mgr_locs, "__iter__") else [block.mgr_locs]
        if getattr(block.values, "ndim", 1) == 1:
            return [(place, block.values) for place in places]
        if block.values.dtype != object:
            return [(place, block.values) for place in list(places)[:1]]
        return zip(places, block.values)

    def _has_values(self, index):
        levels = getattr(index, "levels", None)
        return all(map(self._has_values, levels)) if levels is not None else self._are_values(index)

    def _are_values(self, values):
        dtype = values.dtype
        categories = getattr(dtype, "categories", None)
        if categories is not None:
            return self._has_values(categories)
        if type(dtype).__module__.partition(".")[0] == "numpy":
            return dtype.kind != "O" or sys.modules["pandas"].api.types.infer_dtype(values) in _VALUES
        return type(dtype).__module__.partition(".")[0] == "pandas"

    def moves(self, o):
        if not self._is_table(o):
            return True
        shares = not self._copies_on_write()
        return not any(self._is_seen(block, shares) for block in o._mgr.blocks)

    @staticmethod
    def _is_seen(block, shares):
        """Whether anything else has the memory of a block: an array, or before copy-on-write another table."""
        references = getattr(block, "refs", None)
        if shares and (references is None or references.has_reference()):
            return True
        owner = values = block.values
        if not hasattr(owner, "base"):
            return False
        while hasattr(owner.base, "base"):
            owner = owner.base
        # The block or a view has it, `owner`, and the call; and `values`, if it is that.
        return sys.getrefcount(owner) > (4 if owner is values else 3)

    def reduced(self, o):
        if not getattr(o, "attrs", None):
            return o
        return self._bare(o)

    @staticmethod
    def _bare(o):
        """The same table without what users have put into it; its own copy() would copy that, at all depths."""
        bare = type(o).__new__(type(o))
        own = {name: value for name, value in vars(o).items() if name in ("_name", "_flags", "_is_copy")}
        vars(bare).update(own, _mgr=o._mgr.copy(deep=False), _attrs={}, _item_cache={})
        return bare

    def others(self, o, copied):
        attrs = getattr(o, "attrs", None)
        return {"attrs": dict(attrs) if copied else attrs} if attrs else None

    def set_others(self, o, others):
        for name, value in others.items():
            if name == "attrs":
                object.__setattr__(o, "_attrs", value)
            elif name == "cells":
                self._set_cells(o, value)
            else:
                object.__setattr__(o, name, value)

    def mark_of_others(self, o):
        if not self._is_table(o):
            return sorted((name, id(value)) for name, value in self._attributes(o).items())
        return id(o.attrs), bool(o.attrs), sorted((name, id(value)) for name, value in self._attributes(o).items())

    def _apart(self, o):
        """(table without what is in odd columns, {place: list of that}): it goes by its own rules, cell by cell."""
        odd = self._odd(o) if self._is_table(o) else ()
        if not odd:
            return o, {}
        if o.ndim == 1:
            return sys.modules["pandas"].Series(0, index=o.index, name=o.name), {0: list(o)}
        bare, cells = self._bare(o), {}
        for place in odd:
            cells[place] = list(o.iloc[:, place])
            bare.isetitem(place, 0)
        return bare, cells

    def content(self, o, came):
        bare, cells = self._apart(o)
        return super().content(bare, None)[:3] + (self.mark_of_others(o), cells)

    def changes(self, o, before):
        content, marks, places, others, cells = before
        bare, now = self._apart(o)
        same = others == self.mark_of_others(o) and cells.keys() == now.keys()
        if same and all(a is b for place in cells for a, b in zip(cells[place], now[place])):
            changes = super().changes(bare, (content, marks, places, self.mark_of_others(bare)))
            if changes is None or changes[0] == "buffers":
                return changes
        content, buffers, _ = self.parts(bare)
        others = dict(self._attributes(o))
        if now:
            others["cells"] = now
        if getattr(o, "attrs", None):
            others["attrs"] = dict(o.attrs)
        return "whole", content, buffers, others or None

    def _set_cells(self, o, cells):
        import numpy

        for place, values in cells.items():
            array = numpy.empty(len(values), dtype=object)
            for i, value in enumerate(values):
                array[i] = value
            if o.ndim == 2:
                o.isetitem(place, array)
            else:
                series = sys.modules["pandas"].Series(array, index=o.index, dtype=object)
                object.__setattr__(o, "_mgr", series._mgr)

    def writable(self, o, buffers, new):
        return super().writable(o, buffers, new) and not any(
            getattr(block, "refs", None) is not None and block.refs.has_reference() and self._copies_on_write()
            for block in getattr(getattr(o, "_mgr", None), "blocks", ())
        )

    @staticmethod
    def _copies_on_write():
        pandas = sys.modules["pandas"]
        return int(pandas.__version__.partition(".")[0]) >= 3 or pandas.options.mode.copy_on_write is True

    def become(self, o, new):
        pandas = sys.modules["pandas"]
        if isinstance(o, pandas.Index):
            o.names = new.names  # all else is as it was made
            return
        # Who has an index of it goes on having it.
        for number, (old, axis) in enumerate(zip(o.axes, new.axes)):
            if type(old) is type(axis) and old.equals(axis) and old.dtype == axis.dtype:
                old.names = axis.names
                setattr(new, ("index", "columns")[number], old)
        object.__setattr__(o, "_mgr", new._mgr)
        for name in ("_reset_cache", "_clear_item_cache"):
            reset = getattr(o, name, None)
            if reset is not None:
                reset()
        if isinstance(o, pandas.Series):
            o.name = new.name
        if o.attrs != new.attrs or list(map(id, o.attrs.values())) != list(map(id, new.attrs.values())):
            attrs = dict(new.attrs)
            o.attrs.clear()
            o.attrs.update(attrs)
        for name in self._attributes(o).keys() - self._attributes(new).keys():
            object.__delattr__(o, name)
        for name, value in self._attributes(new).items():
            object.__setattr__(o, name, value)
        if o.flags.allows_duplicate_labels is not new.flags.allows_duplicate_labels:
            o.flags.allows_duplicate_labels = new.flags.allows_duplicate_labels


class _Pillow(_Library):
    #: What an image is made of; all else in it is passed as it is.
    _OWN = frozenset(("_im", "im", "_mode", "mode", "_size", "size", "palette", "info", "readonly", "pyaccess"))

    def knows(self, cls):
        return issubclass(cls, sys.modules["PIL.Image"].Image)

    def crosses(self, o):
        # One that is still in a file is more than its pixels; so is one that has others there.
        return not getattr(o, "tile", None) and not self._is_closed(o) and getattr(o, "n_frames", 1) == 1

    def changeable(self, o):
        return True

    def moves(self, o):
        pixels = None if self._is_closed(o) else o.im
        return sys.getrefcount(pixels) <= 3  # the image, `pixels` and the call: no access object, no drawing

    def reduced(self, o):
        data = pickle.PickleBuffer(o.tobytes())
        palette = None
        if o.palette is not None and o.mode in ("P", "PA", "L", "LA"):
            mode = "RGBA" if o.palette.mode == "RGBA" else "RGB"
            palette = mode, bytes(o.getpalette(mode) or ())
        return type(o), o.mode, o.size, palette, data

    def rebuilt(self, reduced):
        cls, mode, size, palette, data = reduced
        o = cls.__new__(cls)
        image = sys.modules["PIL.Image"].frombytes(mode, size, memoryview(data)) if 0 not in size else None
        image = image if image is not None else sys.modules["PIL.Image"].new(mode, size)
        if palette is not None:
            image.putpalette(palette[1], palette[0])
        vars(o).update(vars(image))
        return o

    def others(self, o, copied):
        rest = {name: value for name, value in vars(o).items() if name not in self._OWN}
        return {"info": dict(o.info) if copied else o.info, "rest": rest}

    def set_others(self, o, others):
        o.info = others["info"]
        vars(o).update(others["rest"])

    def mark_of_others(self, o):
        return id(o.info), sorted((name, id(value)) for name, value in vars(o).items() if name not in self._OWN)

    def content(self, o, came):
        if came is None:
            came = self.parts(o)
        return came[0], came[1], None, self.mark_of_others(o)

    @staticmethod
    def _is_closed(o):
        try:
            return o.im is None
        except ValueError:
            return True

    def changes(self, o, before):
        content, (data,), _, others = before
        if self._is_closed(o):
            return ("closed",)
        now, (new,), _ = self.parts(o)
        if now == content and self.mark_of_others(o) == others and not _core.buffer_changed(new, data):
            return None
        return ("whole", *self.parts(o, copied=True))

    def restore(self, o, how, *parts):
        if how == "closed":
            o.close()
        else:
            super().restore(o, how, *parts)

    def become(self, o, new):
        if (o.mode, o.size) == (new.mode, new.size) and not o.readonly:
            o.im.paste(new.im, (0, 0, *new.size))  # where it is: whoever draws on it goes on
        else:
            for name in ("_im", "_mode", "_size"):
                setattr(o, name, getattr(new, name))
            o.readonly = 0
        o.palette = new.palette
        info = dict(new.info)
        o.info.clear()
        o.info.update(info)
        rest = {name: value for name, value in vars(new).items() if name not in self._OWN}
        for name in [name for name in vars(o) if name not in self._OWN and name not in rest]:
            delattr(o, name)
        vars(o).update(rest)


class _Torch(_Library):
    """To NumPy tensors are arrays: these cross, with the rules of arrays, and have the tensor's memory."""

    needs = ("numpy",)
    #: dtypes that NumPy does not have, as those that have their bytes.
    _AS = {2: "int16", 1: "uint8"}

    def knows(self, cls):
        return cls is sys.modules["torch"].Tensor

    def crosses(self, o):
        return self._is_plain(o) and not o.requires_grad and o.grad_fn is None and o.grad is None and not vars(o)

    def _is_plain(self, o):
        plain = o.device.type == "cpu" and o.layout is sys.modules["torch"].strided
        return plain and not (o.is_quantized or o.is_conj() or o.is_neg() or any(getattr(o, "names", ())))

    def changeable(self, o):
        return True

    def moves(self, o):
        torch = sys.modules["torch"]
        count = getattr(torch._C, "_storage_Use_Count", None)
        storage = o.untyped_storage()
        # Its own use, and the one just made to ask; not of memory that an array has.
        return o._base is None and count is not None and count(storage._cdata) <= 2 and storage.resizable()

    def parts(self, o, isolated=(), copied=False):
        torch = sys.modules["torch"]
        o = o.detach()
        try:
            return b"", (o.numpy(),), None
        except TypeError:
            name = str(o.dtype).partition(".")[2]
            return name.encode(), (o.view(getattr(torch, self._AS[o.element_size()])).numpy(),), None

    def whole(self, content, buffers, others):
        import torch

        tensor = torch.from_numpy(buffers[0])
        tensor = tensor.view(getattr(torch, content.decode())) if content else tensor
        if others is not None:
            tensor.requires_grad_(others["requires_grad"])
            tensor.grad = self.whole(content, buffers[1:], None) if len(buffers) > 1 else None
            vars(tensor).update(others["attributes"])
        return tensor

    def content(self, o, came):
        return self._form(o), o._version

    @staticmethod
    def _form(o):
        attributes = sorted((name, id(value)) for name, value in vars(o).items())
        return o.data_ptr(), o.dtype, o.shape, o.stride(), o.requires_grad, id(o.grad), attributes

    def changes(self, o, before):
        form, version = before
        if self._form(o) == form:
            return None if o._version == version else ("written",)  # the bytes its array tells
        if not self._is_plain(o):
            raise TypeError(f"a tensor argument has become one that cannot be passed back: {o.layout}, {o.dtype}")
        others = {"requires_grad": o.requires_grad, "attributes": dict(vars(o))}
        content, buffers, _ = self.parts(o)
        if o.grad is not None:
            buffers += self.parts(o.grad)[1]
        return "whole", content, buffers, others

    def restore(self, o, how, *parts):
        torch = sys.modules["torch"]
        if how == "whole":
            new = self.whole(*parts)
            o.data = new.data
            o.requires_grad_(new.requires_grad)
            o.grad = new.grad
            vars(o).update(vars(new))
        increment = getattr(torch.autograd.graph, "increment_version", None)
        if increment is not None:
            increment(o)  # whoever has saved it for a gradient is to know


_LIBRARIES = {
    "pandas": _Pandas(),
    "pyarrow": _Arrow(),
    "PIL": _Pillow(),
    "torch": _Torch(),
    "pytz": _Zones(),
    "dateutil": _Zones(),
}


def _library(cls):
    """(name, library) of a class."""
    name = cls.__module__.partition(".")[0]
    return name, _LIBRARIES.get(name)


def is_known(cls):
    """Whether instances of a class may cross as real ones.

    Parameters
    ----------
    cls : type

    Returns
    -------
    bool
    """
    name, library = _library(cls)
    return library is not None and name in sys.modules and library.knows(cls)


def dumps(o):
    """The pickle of a value, as bytes; raises `pickle.PicklingError` for what is none."""
    file = io.BytesIO()
    _Pickler(file, (), None).dump(o)
    return file.getvalue()


def loads(data):
    """What `dumps` has pickled; raises `pickle.UnpicklingError` and whatever a garbled pickle leads to."""
    return _Unpickler(io.BytesIO(data)).load()


def take_apart(peer, o, result, movable):
    """What `o` is made of, where it crosses as a real object.

    Parameters
    ----------
    peer : _core.Peer
    o : object
        Of a class that `is_known`.
    result : bool
        It is a result, not an argument: one that can change has to move.
    movable : bool
        Nothing but the caller refers to `o`, if it is a result.

    Returns
    -------
    tuple or None
        Whether it can change, and its parts. None: it goes by reference.
    """
    name, library = _library(type(o))
    if not peer.isolated.isdisjoint((name, *library.needs)):
        return None
    changeable = library.changeable(o)
    if result and changeable and not (movable and library.moves(o)):
        return None
    try:
        if not library.crosses(o) or not _has_library(peer, name):
            return None
        content, *rest = library.parts(o, peer.isolated, result)
    except MemoryError:
        raise
    except Exception:
        return None  # it cannot be taken apart
    return changeable, (name, zlib.crc32(content), content, *rest)


def _has_library(peer, name):
    """Whether the other process has a library, too: asked once in each life of a child."""
    asked = getattr(peer.host, "libraries", None)
    if asked is None:
        return True  # the session's has it, where the child's has
    if asked.get(None) != peer.epoch:
        asked.clear()
        asked[None] = peer.epoch
    if name not in asked:
        asked[name] = peer.host_call("has_library", name)
    return asked[name]


def has(name):
    """Whether this process can import a library.

    Parameters
    ----------
    name : str

    Returns
    -------
    bool
    """
    return name in sys.modules or importlib.util.find_spec(name) is not None


def _checked(crc, content):
    if zlib.crc32(content) != crc:
        raise ValueError("the parts of an object are garbled")
    return content


def put_together(name, crc, content, *rest):
    """The object that `take_apart` has taken apart."""
    return _LIBRARIES[name].whole(_checked(crc, content), *rest)


def content(o, parts=None):
    """What `changes` compares with later: any object but None. `parts`: what it was made of just now."""
    came = None if parts is None else (parts[2], *parts[3:])
    return _library(type(o))[1].content(o, came)


def changes(o, before):
    """What `restore` is told of a copy that has changed; or None.

    Raises
    ------
    TypeError
        What was put into it cannot be passed back.
    """
    library = _library(type(o))[1]
    try:
        changed = library.changes(o, before)
    except _NotValue as error:
        raise TypeError(f"the {type(o).__name__} argument was given {error}, which cannot be passed back in it") from None
    if changed is None or changed[0] != "whole":
        return changed
    return "whole", zlib.crc32(changed[1]), *changed[1:]


def restore(o, how, *parts):
    """Makes `o` what the other process has made of its copy."""
    if how == "whole":
        crc, content, *rest = parts
        parts = (_checked(crc, content), *rest)
    _library(type(o))[1].restore(o, how, *parts)
