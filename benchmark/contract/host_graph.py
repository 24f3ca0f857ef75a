"""A CUDA graph without a GPU, as strict as one: operations are written down while a step runs, what
they changed is undone, and a replay runs them again on the very same memory.

So a step that waits for the device fails, and one that keeps something on the host, or in another
tensor each time, goes wrong as it would on a GPU.

Of torch's own functions, those that wait on a processor alone, such as `one_hot`, fail here too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from bdbench.models.training.graphs import Recorder, Work

aten = torch.ops.aten
WAITS = {
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
"""What needs an answer from the device, or brings a number to it."""
UNDECLARED = {aten.native_batch_norm: ("running_mean", "running_var")}
"""What operations change without a word of it in their schemas."""


class HostGraph(Recorder):
    """
    recorded, replayed: how often
    """

    def __init__(self, rehearsals: int = 1) -> None:
        super().__init__(rehearsals)
        self.recorded = self.replayed = 0

    def record(self, work: Work) -> Work:
        log = _Log()
        try:
            with log:
                work()
        finally:
            log.undo()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            log.replay()

        return replay


class _Log(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lines: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self.made: dict[int, Tensor] = {}
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        masks = func.overloadpacket in (aten.index, aten.index_put_, aten.index_put) and any(
            part is not None and part.dtype == torch.bool for part in args[1]
        )
        if func.overloadpacket in WAITS or masks:
            raise RuntimeError(f"{func} is not permitted while recording")
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        for values in _changed(func, named):
            self._remember(values)
        out = func(*args, **kwargs)
        fresh = _fresh(func, out)
        self.made |= {_place(values): values for values in fresh}
        # Aliases: what was recorded is the memory and not the history of gradients.
        kept = tree_map_only(Tensor, Tensor.detach, (args, kwargs, fresh))
        self.lines.append((func, *kept))
        return out

    def _remember(self, values: Tensor) -> None:
        place = _place(values)
        if place not in self.made and place not in self.before:
            whole = values.detach().as_strided(
                (values.untyped_storage().nbytes() // values.element_size(),), (1,), 0
            )
            self.before[place] = whole, whole.clone()

    def undo(self) -> None:
        for whole, copy in self.before.values():
            whole.copy_(copy)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, kept in self.lines:
            for old, new in zip(kept, _fresh(func, func(*args, **kwargs)), strict=True):
                old.copy_(new)


def _fresh(func: Any, out: Any) -> list[Tensor]:
    """The tensors of an answer that are no views of the arguments."""
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


def _place(values: Tensor) -> int:
    place: int = values.untyped_storage()._cdata
    return place
