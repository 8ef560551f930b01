"""A second device without hardware: "away". Its tensors refuse to meet the CPU's, as CUDA's do.

`register()` makes PyTorch know it, for good: call it in a process of its own. An operation on away
tensors runs on the CPU and its result is away; only scalars and row numbers may come from the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "away"
# operations of which some arguments may live elsewhere
_BRIDGES = {"aten::_to_copy", "aten::copy_", "aten::index", "aten::index_put_", "aten::index_put"}
_BRIDGES |= {"aten::_index_put_impl_", "aten::_unsafe_index"}
_alive: list[object] = []  # as long as the process


class Away(torch.Tensor):
    """A tensor whose values lie in a CPU tensor that nobody else sees."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Away:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), dtype=inner.dtype, device=f"{NAME}:0"
        )
        made.inner = inner.detach()
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, *args, **(kwargs or {}))


def run(func: Any, *args: Any, **kwargs: Any) -> Any:
    """One operation of PyTorch's."""
    name = func._schema.name
    tensors = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    away = [x for x in tensors if isinstance(x, Away)]
    strangers = [x for x in tensors if not isinstance(x, Away) and x.dim() > 0]
    if away and strangers and name not in _BRIDGES:
        shapes = [tuple(x.shape) for x in tensors]
        raise RuntimeError(f"{name} met tensors of two devices, {NAME} and cpu: {shapes}")
    target = kwargs.get("device")
    stays = bool(away) if target is None else torch.device(target).type == NAME
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    bare = pytree.tree_map(lambda x: x.inner if isinstance(x, Away) else x, (args, kwargs))
    result = func(*bare[0], **bare[1])
    if name.endswith("_") and tensors and isinstance(args[0], torch.Tensor):
        return args[0]  # changed in place
    if not stays:
        return result
    return pytree.tree_map(lambda x: Away(x) if isinstance(x, torch.Tensor) else x, result)


class _Conversions(TorchFunctionMode):
    """Python's lists become tensors on the CPU first: PyTorch's way to a device fails for ours."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor):
            values = args[-1]
            like = args[0] if func is torch.Tensor.new_tensor else None
            if like is not None:
                kwargs = {"device": like.device, "dtype": like.dtype, **kwargs}
            device = kwargs.pop("device", None)
            made = (torch.as_tensor if func is torch.as_tensor else torch.tensor)(values, **kwargs)
            return made if device is None else made.to(device)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            args = (args[0], _rows(args[1]), *args[2:])
        if func is torch.Tensor.tolist:
            args = (args[0].cpu(),)
        return func(*args, **kwargs)


def _rows(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_rows, index))
    return torch.tensor(index) if isinstance(index, list) else index


def register() -> None:
    """Makes `device="away"` known to PyTorch."""
    _setup_privateuseone_for_python_backend(NAME)
    library = torch.library.Library("_", "IMPL")
    library.fallback(run, "PrivateUse1")  # what makes tensors from nothing: torch.zeros(...)
    _alive.append(library)
    _alive.append(_Conversions().__enter__())
