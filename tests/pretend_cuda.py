"""A device that says it is ``cuda:0``, on any machine: real values on the CPU, under CUDA's rules for mixing devices.

``with pretending() as waits:``; inside, whatever is made on "cuda" or sent there, tensors and modules, makes such
tensors. What CUDA refuses is refused: a tensor of each device in one operation, ``numpy``, a CPU's generator. What
makes the host wait for the device is counted in ``waits``, by its kind: "to device", "from device", "read".
Speed, memory and kernels are not pretended: which numbers come out, and where, is all that can be seen.
``pretending("xpu")``: the same of Intel's cards, of which many refuse float64. ``pretending("mps")``: of Apple's, which
all refuse it, under a PyTorch (2.4 to 2.6) that has no antialiased bicubic for them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

#: The device that is pretended now.
_device = [torch.device("cuda:0")]

#: Operations that a kind of device lacks.
_MISSING = {"mps": ("_upsample_bicubic2d_aa", "_upsample_bicubic2d_aa_backward")}

#: Operations that read a value, or a shape that depends on values.
_READS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")
#: Those that take tensors of both devices, if the first one is on the device.
_INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")


class Held(Tensor):
    """A tensor on the device: ``held`` has its values. To PyTorch's own code it is on the CPU."""

    held: Tensor
    device = property(lambda self: _device[0])  # pyright: ignore
    is_cuda = property(lambda self: _device[0].type == "cuda")  # pyright: ignore
    is_cpu = property(lambda self: False)  # pyright: ignore
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, requires_grad: bool = False) -> Held:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.size(), **layout, requires_grad=requires_grad)
        made.held = held
        return made

    def __repr__(self) -> str:  # pyright: ignore
        return f"Held({tuple(self.shape)}, {self.dtype})"

    def numpy(self, *_: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, Counter())


def _values(leaf: Any) -> Any:
    return leaf.held if isinstance(leaf, Held) else leaf


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == _device[0].type


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], waits: Counter[str]) -> Any:
    """One operation of PyTorch's, on the values; the result is where CUDA would have it."""
    name = func._schema.name.removeprefix("aten::")
    held = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Held)]
    backward = torch._C._current_graph_task_id() != -1  # its own code takes what is ours for the CPU's
    ours = bool(held) and name != "_local_scalar_dense"
    if "device" in kwargs:
        ours = ours or backward or _is_ours(kwargs["device"])
        kwargs = {**kwargs, "device": torch.device("cpu")}
    generator = kwargs.get("generator")
    if ours and generator is not None:
        raise RuntimeError(f"{name}: expected a generator of cuda, got one of {generator.device}")
    if held and name in _MISSING.get(_device[0].type, ()):
        raise NotImplementedError(f"The operator 'aten::{name}.out' is not currently implemented for the MPS device.")
    if held:
        _check(name, args, kwargs, backward)
        waits["read"] += name in _READS
    if name == "copy_" and isinstance(args[0], Held) != isinstance(args[1], Held):
        waits["to device" if isinstance(args[0], Held) else "from device"] += 1
    if ours and _device[0].type != "cuda" and any(_is_double(leaf) for leaf in (*held, kwargs.get("dtype"))):
        raise RuntimeError(f"{name}: {_device[0].type} has no float64")
    known = {id(leaf.held): leaf for leaf in held}
    result = func(*tree_map(_values, args), **tree_map(_values, kwargs))

    def wrap(leaf: Any) -> Any:
        if not ours or not isinstance(leaf, Tensor) or isinstance(leaf, Held):
            return known.get(id(leaf), leaf)
        return known.get(id(leaf)) if id(leaf) in known else Held(leaf)

    return tree_map(wrap, result)


def _is_double(leaf: Any) -> bool:
    return leaf is torch.float64 or (isinstance(leaf, Tensor) and leaf.dtype == torch.float64)


def _check(name: str, args: tuple[Any, ...], kwargs: dict[str, Any], backward: bool) -> None:
    others = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and not isinstance(x, Held) and x.ndim]
    mixed = bool(others) and name not in ("copy_", "_to_copy", *_INDEXED) and not backward
    if mixed or (name in _INDEXED and not isinstance(args[0], Held)):
        raise RuntimeError(f"{name}: expected all tensors on the same device, found {_device[0]} and cpu")


class _Operations(TorchDispatchMode):
    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.waits)


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, given: Tensor) -> Tensor:
        return given.held.clone() if isinstance(given, Held) else Held(given.detach().clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Calls(TorchFunctionMode):
    """What is decided before an operation is one: ways to the device and back, and new values there."""

    def __init__(self, waits: Counter[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if func is torch._has_compatible_shallow_copy_type:  # Module.to: whether a parameter can be filled in place
            return isinstance(args[0], Held) == isinstance(args[1], Held)
        if func is torch.tensor and _is_ours(kwargs.get("device")):
            del kwargs["device"]
            return self._moved(func(*args, **kwargs))
        if func is Tensor.data.__set__ and isinstance(args[0], Held):  # pyright: ignore
            args[0].held = args[1].held
            return None
        if name == "cpu" and isinstance(args[0], Held):
            return self._moved(args[0])
        if name == "to" and isinstance(args[0], Tensor):
            return self._to(func, args, kwargs)
        return func(*args, **kwargs)

    def _to(self, func: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        like = [x for x in args[1:] if isinstance(x, Tensor)]
        places = [x for x in (kwargs.get("device"), *args[1:]) if isinstance(x, (str, torch.device))]
        dtypes = [x for x in (kwargs.get("dtype"), *args[1:]) if isinstance(x, torch.dtype)]
        place, dtype = (like[0].device, like[0].dtype) if like else ((places or [None])[0], (dtypes or [None])[0])
        tensor, wanted = args[0], {k: v for k, v in kwargs.items() if k in ("memory_format", "copy") and v}
        if place is not None and _is_ours(place) != isinstance(tensor, Held):
            if dtype is not None and not isinstance(tensor, Held):  # on the CPU first, as copies do
                tensor, dtype = func(tensor, dtype=dtype), None
            tensor = self._moved(tensor)
        if dtype is not None:
            wanted["dtype"] = dtype
        return func(tensor, **wanted) if wanted else tensor

    def _moved(self, tensor: Tensor) -> Tensor:
        self.waits["from device" if isinstance(tensor, Held) else "to device"] += 1
        if tensor.requires_grad and torch.is_grad_enabled():
            return _Moved.apply(tensor)  # pyright: ignore
        if _device[0].type != "cuda" and _is_double(tensor):
            raise RuntimeError(f"{_device[0].type} has no float64")
        return tensor.held.clone() if isinstance(tensor, Held) else Held(tensor.detach().clone())


@contextmanager
def pretending(kind: str = "cuda", capability: tuple[int, int] = (9, 0)) -> Generator[Counter[str], None, None]:
    """Inside, there is such a device; yields how often it was waited for. capability: CUDA's compute capability."""
    waits: Counter[str] = Counter()
    before, _device[0] = _device[0], torch.device(kind, 0)
    begin, enabled, dtype = torch.autocast.__init__, torch.is_autocast_enabled, torch.get_autocast_dtype

    def ruled(kind: str = "cpu") -> str:
        return "cpu" if kind == _device[0].type else kind

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.autocast, "__init__", lambda self, device_type, *a, **k: begin(self, ruled(device_type), *a, **k)
        )
        patch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": enabled(ruled(kind)))
        patch.setattr(torch, "get_autocast_dtype", lambda kind: dtype(ruled(kind)))
        for module in (torch.cuda, torch.xpu):
            patch.setattr(module, "_lazy_init", lambda: None)
        patch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10**11, 10**11))
        for name in ("memory_reserved", "memory_allocated", "max_memory_allocated"):
            patch.setattr(torch.cuda, name, lambda device=None: 0)
        for name in ("driver_allocated_memory", "current_allocated_memory"):
            patch.setattr(torch.mps, name, lambda: 0)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        for name in ("can_use_flash_attention", "can_use_efficient_attention"):
            patch.setattr(torch.backends.cuda, name, lambda params: True)
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with _Calls(waits), _Operations(waits):
                yield waits
        finally:
            _device[0] = before
            torch.__future__.set_overwrite_module_params_on_conversion(overwrite)
