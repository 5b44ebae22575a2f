"""Objects of pandas, Arrow, Pillow and torch as real ones on both sides: what they are made of, and how they are made of
that again. `parts.c` asks, and passes the parts: a pickle, whose buffers are out of band (PEP 574), or arrays.

Those that can change are written back as a whole, if they have: `content` remembers, `changes` compares, `restore` puts
what has changed into the original.
"""

import importlib.util
import pickle
import sys

from . import _core, adapters


class _Library:
    """One library, by pickle and for objects that never change."""

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
        """Whether nothing else refers to what is in `o`, to which nothing refers."""
        return True

    def parts(self, o):
        """What `o` is made of: tuple of bytes, buffers and arrays."""
        buffers = []
        return (pickle.dumps(self.reduced(o), 5, buffer_callback=buffers.append), *buffers)

    def whole(self, parts):
        """What `parts` makes."""
        content, *buffers = parts
        return self.rebuilt(pickle.loads(content, buffers=buffers))

    def reduced(self, o):
        return o

    def rebuilt(self, reduced):
        return reduced

    def content(self, o, came):
        """What to compare with later. `came`: the parts that it was made of just now, or None."""
        content, *buffers = self.parts(o)
        return content, [_core.buffer_mark(buffer) for buffer in buffers]

    def changes(self, o, before):
        """The parts, where they are not what they were; or None."""
        content, marks = before
        parts = self.parts(o)
        same = parts[0] == content and len(parts) == len(marks) + 1
        if same and not any(map(_core.buffer_changed, parts[1:], marks)):
            return None
        return parts

    def restore(self, o, new):
        """Makes `o` what `new` is, which nobody else has."""


class _Arrow(_Library):
    def knows(self, cls):
        arrow = sys.modules["pyarrow"]
        kinds = (arrow.Array, arrow.ChunkedArray, arrow.RecordBatch, arrow.Table, arrow.Schema, arrow.Field)
        return issubclass(cls, (*kinds, arrow.DataType, arrow.Scalar))

    def crosses(self, o):
        # Types that a program has added: the other process may not know them.
        added = sys.modules["pyarrow"].BaseExtensionType
        fields = getattr(o, "schema", o)
        types = [field.type for field in fields] if hasattr(fields, "names") else [getattr(o, "type", o)]
        return not any(isinstance(kind, added) for kind in types)


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

    def crosses(self, o):
        pandas = sys.modules["pandas"]
        if isinstance(o, pandas.DataFrame):
            odd = [i for i, dtype in enumerate(o.dtypes.values) if not self._is_plain(dtype)]
            return self._has_values(o.index) and self._has_values(o.columns) and all(
                self._has_values(o.iloc[:, i]) for i in odd
            )
        if isinstance(o, pandas.Series):
            return self._has_values(o.index) and self._has_values(o)
        return not isinstance(o, pandas.Index) or self._has_values(o)

    def _has_values(self, column):
        """Whether a Series or Index has no objects in it that are references."""
        levels = getattr(column, "levels", None)
        if levels is not None:
            return all(map(self._has_values, levels))
        if self._is_plain(column.dtype):
            return True
        return column.dtype == object and sys.modules["pandas"].api.types.infer_dtype(column) in _VALUES

    def _is_plain(self, dtype):
        """Whether a dtype is one of pandas' or NumPy's, of values alone."""
        categories = getattr(dtype, "categories", None)
        if categories is not None:
            return self._has_values(categories)
        return dtype.kind != "O" if type(dtype).__module__.startswith("numpy") else type(dtype).__module__.startswith("pandas")

    def moves(self, o):
        pandas = sys.modules["pandas"]
        if int(pandas.__version__.partition(".")[0]) >= 3 or not self.changeable(o) or isinstance(o, pandas.Index):
            return True
        # Before copy-on-write, views share what is written.
        blocks = getattr(getattr(o, "_mgr", None), "blocks", None)
        if pandas.options.mode.copy_on_write is True:
            return True
        return blocks is not None and not any(getattr(b, "refs", None) is None or b.refs.has_reference() for b in blocks)

    def restore(self, o, new):
        pandas = sys.modules["pandas"]
        if isinstance(o, pandas.Index):
            o.names = new.names  # all else is as it was made
            return
        # As its own methods do that work in place.
        object.__setattr__(o, "_mgr", new._mgr)
        for name in ("_reset_cache", "_clear_item_cache"):
            reset = getattr(o, name, None)
            if reset is not None:
                reset()
        if isinstance(o, pandas.Series):
            o.name = new.name
        o.attrs = new.attrs
        if o.flags.allows_duplicate_labels is not new.flags.allows_duplicate_labels:
            o.flags.allows_duplicate_labels = new.flags.allows_duplicate_labels


class _Pillow(_Library):
    #: What an image says of itself in `__getstate__`, or cannot be said.
    _STATE = frozenset("im info palette pyaccess fp tile filename _mode _size _im readonly png _exclusive_fp".split())

    def knows(self, cls):
        return issubclass(cls, sys.modules["PIL.Image"].Image)

    def crosses(self, o):
        return getattr(o, "n_frames", 1) == 1  # others are in the file

    def changeable(self, o):
        return True

    def reduced(self, o):
        info, mode, size, palette, data, *more = o.__getstate__()
        # What kinds of files have besides: texts, tables, numbers.
        others = {name: value for name, value in vars(o).items() if name not in self._STATE}
        others = {n: value for n, value in others.items() if value is None or adapters.plain(value) is not None}
        return type(o), (info, mode, size, palette, pickle.PickleBuffer(data), *more), others

    def rebuilt(self, reduced):
        cls, (info, mode, size, palette, data, *more), others = reduced
        image = cls.__new__(cls)
        image.__setstate__([info, mode, size, palette, memoryview(data), *more])
        vars(image).update(others)
        return image

    def content(self, o, came):
        return came if came is not None else self.parts(o)

    def changes(self, o, before):
        parts = self.parts(o)
        same = len(parts) == len(before) and not any(map(_core.buffer_changed, parts, before))
        return None if same else parts

    def restore(self, o, new):
        o.load()
        if (o.mode, o.size) == (new.mode, new.size) and not o.readonly:
            o.im.paste(new.im, (0, 0, *new.size))  # where it is: whoever draws on it goes on
        else:
            o.im = new.im
            o._mode, o._size = new.mode, new.size
            o.readonly = 0
        o.palette = new.palette
        o.info.clear()
        o.info.update(new.info)


class _Torch(_Library):
    """Tensors are arrays to whom NumPy asks: these cross, with the rules of arrays, and have the tensor's memory."""

    needs = ("numpy",)
    #: dtypes that NumPy does not have, as those that have their bytes.
    _AS = {2: "int16", 1: "uint8"}

    def knows(self, cls):
        return cls is sys.modules["torch"].Tensor

    def crosses(self, o):
        torch = sys.modules["torch"]
        plain = o.device.type == "cpu" and o.layout is torch.strided and not o.requires_grad
        return plain and not (o.is_quantized or o.is_conj() or o.is_neg() or any(getattr(o, "names", ())))

    def changeable(self, o):
        return True

    def moves(self, o):
        torch = sys.modules["torch"]
        count = getattr(torch._C, "_storage_Use_Count", None)
        if o._base is not None or count is None:
            return False
        storage = o.untyped_storage()
        return count(storage._cdata) <= 2  # its own, and the one just made to ask

    def parts(self, o):
        torch = sys.modules["torch"]
        try:
            return "", o.numpy()
        except TypeError:
            name = str(o.dtype).partition(".")[2]
            return name, o.view(getattr(torch, self._AS[o.element_size()])).numpy()

    def whole(self, parts):
        import torch

        name, array = parts
        tensor = torch.from_numpy(array)
        return tensor.view(getattr(torch, name)) if name else tensor

    def content(self, o, came):
        return ()  # the array is what is written back

    def changes(self, o, before):
        return None


_LIBRARIES = {"pandas": _Pandas(), "pyarrow": _Arrow(), "PIL": _Pillow(), "torch": _Torch()}
#: By `id`: objects that have come and their parts, until their content is asked for.
_came = {}


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
    if any(needed in peer.isolated for needed in library.needs):
        return None
    changeable = library.changeable(o)
    try:
        if result and changeable and not (movable and library.moves(o)):
            return None
        if not library.crosses(o) or not _has_library(peer, name):
            return None
        return changeable, (name, *library.parts(o))
    except Exception:
        return None  # it cannot be taken apart


def _has_library(peer, name):
    """Whether the other process has a library, too: asked once in each life of a child."""
    if not isinstance(getattr(peer.host, "libraries", None), dict):
        return True  # the session's has it, where the child's has
    asked = peer.host.libraries
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


def put_together(parts, paired):
    """The object that `take_apart` has taken apart.

    Parameters
    ----------
    parts : tuple
    paired : bool
        It will be asked for its content, since it may change.

    Returns
    -------
    object
    """
    name, *rest = parts
    o = _LIBRARIES[name].whole(rest)
    if paired:
        _came[id(o)] = o, rest
    return o


def content(o):
    """What `changes` compares with later: any object but None."""
    _, came = _came.pop(id(o), (None, None))
    return _library(type(o))[1].content(o, came)


def changes(o, before):
    """What `o` is made of, if that is not what it was; or None."""
    name, library = _library(type(o))
    parts = library.changes(o, before)
    return None if parts is None else (name, *parts)


def restore(o, parts):
    """Makes `o` what the other process has made of its copy."""
    name, *rest = parts
    library = _LIBRARIES[name]
    library.restore(o, library.whole(rest))
