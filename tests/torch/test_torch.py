"""CPU tensors of torch as arguments and results: real on both sides, with the rules of arrays (make test-torch)."""

import pytest
import torch
from behaviour.harness import both, worlds  # noqa: F401

from ipython_isolation import ProcessTerminationError, isproxy

TENSORS = {
    "vector": lambda: torch.arange(6.0),
    "matrix": lambda: torch.arange(6).reshape(2, 3),
    "transposed": lambda: torch.arange(6).reshape(2, 3).t(),
    "strided": lambda: torch.arange(10)[::3],
    "zero-dimensional": lambda: torch.tensor(2.5),
    "empty": lambda: torch.empty(0, 3),
    "bool": lambda: torch.tensor([True, False]),
    "complex": lambda: torch.tensor([1 + 2j]),
    "half": lambda: torch.arange(3, dtype=torch.float16),
    "bfloat16": lambda: torch.arange(3, dtype=torch.bfloat16),
    "bytes": lambda: torch.arange(3, dtype=torch.uint8),
    "big": lambda: torch.arange(300_000.0),
}
SHOW = "r = type(o).__name__, str(o.dtype), tuple(o.shape), repr(o)"


def shown(o):
    return type(o).__name__, str(o.dtype), tuple(o.shape), repr(o)


@pytest.mark.parametrize("name", TENSORS)
@both
def test_read(load, name):
    workshop = load("workshop")
    o = TENSORS[name]()
    assert workshop.is_real(o) and workshop.identity(o) is o
    seen = workshop.do(SHOW, o)
    assert seen == shown(o)
    moved = workshop.do("r = o.clone()", TENSORS[name]())
    assert type(moved) is torch.Tensor and not isproxy(moved) and moved.dtype == o.dtype
    return seen, shown(moved), workshop.do("r = [o, o]; r = r[0] is r[1]", o)


@pytest.mark.parametrize("name", TENSORS)
@both
def test_written(load, name):
    workshop = load("workshop")
    o = TENSORS[name]()
    view = o.view(-1) if o.is_contiguous() else o
    base = o._base

    def f(given):
        assert given is o
        o.fill_(1)
        return repr(o)

    seen = workshop.do("o.zero_(); r = f(o); o.add_(o)", o, f) if o.dtype is not torch.bool else workshop.do("o.logical_not_()", o)
    return seen, shown(o), shown(view), None if base is None else shown(base)


@both
def test_what_the_child_keeps(load):
    """What something else refers to is what it was."""
    workshop = load("workshop")
    workshop.do("import torch, workshop; workshop.kept[:] = [torch.ones(3)]")
    kept = workshop.do("import workshop; r = workshop.kept[0]")
    part = workshop.do("import workshop; r = workshop.kept[0][1:]")
    kept[1] = 5.0
    part[1] = 7.0
    return workshop.do("import workshop; r = workshop.kept[0].tolist()"), float(kept.sum())


@both
def test_gradients(load):
    """A tensor that takes part in them is by reference."""
    workshop = load("workshop")
    w = torch.ones(2, requires_grad=True)
    loss = workshop.do("r = (o * 3).sum()", w)
    loss.backward()
    return w.grad.tolist(), workshop.do("import torch; r = torch.ones(2, requires_grad=True).requires_grad")


@both
def test_dtypes_and_devices(load):
    workshop = load("workshop")
    o = torch.ones(2)
    there = workshop.do("import torch; r = o[0] is torch.float32, o[1] == torch.device('cpu'), o[2] is torch.strided", (o.dtype, o.device, o.layout))
    return there, workshop.do("r = o.dtype", o) is torch.float32, workshop.do("r = o.device", o) == o.device


def test_death(context):
    workshop, deaths = context.load_module("workshop"), context.load_module("_deaths")
    o = TENSORS["big"]()
    result = workshop.do("r = o * 2", o)
    with pytest.raises(ProcessTerminationError):
        workshop.do("o.zero_(); import ctypes; ctypes.string_at(0)", o)
    with pytest.raises(ProcessTerminationError):
        deaths.segfault()
    assert float(o[-1]) == 299_999.0 and float(result[-1]) == 599_998.0


@pytest.mark.parametrize(
    "source",
    [
        "o.data = o.data * 2",
        "o.unsqueeze_(0)",
        "o.t_()",
        "o.requires_grad_()",
        "o.requires_grad_(); (o * 3).sum().backward()",
        "import torch; o.set_(torch.zeros(2))",
        "o.note = 4",
    ],
)
@both
def test_more_than_its_bytes_changes(load, source):
    o = torch.arange(6.0).reshape(2, 3)
    load("workshop").do(source, o)
    return shown(o), o.requires_grad, None if o.grad is None else o.grad.tolist(), vars(o)


@both
def test_what_was_saved_for_a_gradient_is_written(load):
    x, saved = torch.ones(3, requires_grad=True), torch.tensor([1.0, 2.0, 3.0])
    total = (x * saved).sum()
    load("workshop").do("o.zero_()", saved)
    total.backward()


@both
def test_memory_that_an_array_has(load):
    workshop = load("workshop")
    workshop.do("import numpy, workshop; workshop.kept[:] = [numpy.ones(3)]")
    tensor = workshop.do("import torch, workshop; r = torch.from_numpy(workshop.kept[0])")
    tensor[0] = 5
    return workshop.do("import workshop; r = workshop.kept[0].tolist()")


def test_proxies_are_no_tensors_here(context):
    """What the child keeps is a proxy, which torch's C++ code must not take for a tensor: it would crash the session."""
    workshop = context.load_module("workshop")
    workshop.do("import torch, workshop; workshop.kept[:] = [torch.ones(3)]")
    kept = workshop.do("import workshop; r = workshop.kept[0]")
    assert isproxy(kept) and not isinstance(kept, torch.Tensor)
    assert (torch.ones(3) + kept).tolist() == [2, 2, 2]
    with pytest.raises(TypeError):
        torch.ones(3, requires_grad=True).grad = kept
