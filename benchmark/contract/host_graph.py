"""A CUDA graph without a GPU, as strict as a real one: operations are logged while a step runs,
their effects are undone, and a replay runs them again on the same memory.

A step that synchronises with the device fails. A step that stores state on the host, or in a new
tensor each time, gives wrong numbers, as it would on a GPU.

Functions of torch that synchronise on a CPU only, such as `one_hot`, fail here too. A CPU does not
dispatch a copy to itself, so calls such as `.cpu()` and `.tolist()` are watched where they are
made.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from bdbench.models.training.graphs import Recorder, Work

aten = torch.ops.aten
SYNCHRONISING = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.item,
    aten.lift_fresh,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten._unique2,
}
"""Operations that read a value from the device or copy a number to it."""
TO_HOST = {
    Tensor.cpu: "cpu",
    Tensor.numpy: "numpy",
    Tensor.tolist: "tolist",
    Tensor.__array__: "__array__",
}
"""Methods that copy values of a GPU to the host."""
UNDECLARED = {aten.native_batch_norm: ("running_mean", "running_var")}
"""Arguments that operations modify although their schemas do not say so."""


class HostGraph(Recorder):
    """
    recorded, replayed: the number of captures and of replays
    """

    def __init__(self, warm_up: int = 1) -> None:
        super().__init__(warm_up)
        self.recorded = self.replayed = 0

    def record(self, work: Work) -> Work:
        log = _Log()
        try:
            with _HostCalls(), log:
                work()
        finally:
            log.undo()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            log.replay()

        return replay


class _HostCalls(TorchFunctionMode):
    """Refuses the calls by which a step reads values on the host."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in TO_HOST:
            raise RuntimeError(f"Tensor.{TO_HOST[func]} is not permitted while recording")
        return func(*args, **(kwargs or {}))


class _Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lines: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.created: dict[int, Tensor] = {}
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        masks = func.overloadpacket in (aten.index, aten.index_put_, aten.index_put) and any(
            part is not None and part.dtype == torch.bool for part in args[1]
        )
        if func.overloadpacket in SYNCHRONISING or masks:
            raise RuntimeError(f"{func} is not permitted while recording")
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        for values in _changed(func, named):
            self._save(values)
        out = func(*args, **kwargs)
        fresh = _fresh(func, out)
        self.created |= {_storage(values): values for values in fresh}
        # Detached aliases: a graph holds the memory, not the history of gradients.
        aliases = tree_map_only(Tensor, Tensor.detach, (args, kwargs, fresh))
        self.lines.append((func, *aliases))
        return out

    def _save(self, values: Tensor) -> None:
        storage = _storage(values)
        if storage not in self.created and storage not in self.before:
            whole = values.detach().as_strided(
                (values.untyped_storage().nbytes() // values.element_size(),), (1,), 0
            )
            self.before[storage] = whole, whole.clone()

    def undo(self) -> None:
        for whole, copy in self.before.values():
            whole.copy_(copy)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, outputs in self.lines:
            for old, new in zip(outputs, _fresh(func, func(*args, **kwargs)), strict=True):
                old.copy_(new)


def _fresh(func: Any, out: Any) -> list[Tensor]:
    """The output tensors of an operation that are not views of its arguments."""
    returns = func._schema.returns
    pairs = zip(returns, out if len(returns) > 1 else (out,) * len(returns), strict=True)
    return [t for declared, part in pairs if declared.alias_info is None for t in _tensors(part)]


def _changed(func: Any, named: dict[str, Any]) -> Iterator[Tensor]:
    for argument in func._schema.arguments:
        declared = argument.alias_info is not None and argument.alias_info.is_write
        if declared or argument.name in UNDECLARED.get(func.overloadpacket, ()):
            yield from _tensors(named.get(argument.name))


def _tensors(tree: Any) -> list[Tensor]:
    return [part for part in tree_flatten(tree)[0] if isinstance(part, Tensor)]


def _storage(values: Tensor) -> int:
    storage: int = values.untyped_storage()._cdata
    return storage
