"""A training step as one CUDA graph: all that it asks of the device, recorded once and replayed.

A step of a small network is some hundred kernels of a few microseconds each, and a host takes
longer to ask for one than a GPU to run it. A replay asks for all at once. The kernels and their
order are those of the step itself, which stays the reference and is what runs wherever a step
cannot be recorded, and on a processor.
"""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch.optim import Optimizer

from bdbench.models import observer
from bdbench.models.plugins.errors import one_line
from bdbench.models.scope import set_in_context

REHEARSALS = 3
"""Optimizers make their state in the first step, and libraries choose their algorithms."""

Work = Callable[[], None]


class Recorder(ABC):
    """Records what is asked of a device.

    rehearsals: steps of each shape that run as they are before one is recorded
    """

    def __init__(self, rehearsals: int = REHEARSALS) -> None:
        self.rehearsals = rehearsals

    @abstractmethod
    def record(self, work: Work) -> Work:
        """Call `work` without running what it asks of the device; what is returned runs that."""

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Around all steps of a training, those that are not recorded too."""
        yield


class _Streams(threading.local):
    """Those of one thread."""

    def __init__(self) -> None:
        self.by_device: dict[torch.device, torch.cuda.Stream] = {}


class CudaRecorder(Recorder):
    """Records on a stream of its own, on which everything else of the training runs too: autograd
    goes back on the stream that a parameter was first used on. A thread has one stream, so that
    what is trained in several threads runs side by side."""

    _streams = _Streams()
    _one_at_a_time = threading.Lock()

    def __init__(self, device: torch.device, rehearsals: int = REHEARSALS) -> None:
        super().__init__(rehearsals)
        known = self._streams.by_device
        if device not in known:
            known[device] = torch.cuda.Stream(device)
        self.device, self.stream = device, known[device]
        self.pool = torch.cuda.graph_pool_handle()

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # Nothing lives in the memory of a graph from one step to the next, so all can share it. And
        # other threads may go on asking for memory meanwhile.
        with (
            self._one_at_a_time,
            torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"),
        ):
            work()
        replay: Work = graph.replay
        return replay

    @contextmanager
    def prepared(self) -> Iterator[None]:
        outside = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            outside.wait_stream(self.stream)


Choice = Callable[[torch.device], Recorder | None]


def by_device(device: torch.device) -> Recorder | None:
    """None where there is nothing to gain."""
    return CudaRecorder(device) if device.type == "cuda" else None


_choice: ContextVar[Choice | None] = ContextVar("choice", default=None)


def recorder_for(device: torch.device, wanted: bool) -> Recorder | None:
    """What records the steps of a training on this device; None for nothing."""
    choice = _choice.get() or (by_device if wanted else None)
    return choice(device) if choice else None


def recorded_by(choice: Choice) -> AbstractContextManager[None]:
    """A choice of the recorder inside the block, whatever recipes say."""
    return set_in_context(_choice, choice)


class Runner:
    """Runs a step, which is called with the sizes of its batches, and replays it once it can.

    A recording belongs to one set of sizes. What the step tells an observer is told again at every
    replay; nothing else that it does on the host is.

    compiles: whether the first step of each shape is spent on compiling
    """

    def __init__(
        self, step: Callable[..., None], recorder: Recorder | None, compiles: bool = False
    ) -> None:
        self.step, self.recorder, self.compiles = step, recorder, compiles
        self._seen: Counter[tuple[int, ...]] = Counter()
        self._replays: dict[tuple[int, ...], Work] = {}

    def __call__(self, *sizes: int) -> None:
        if sizes in self._replays:
            self._replays[sizes]()
            return
        if self.recorder is None or self._seen[sizes] < self.recorder.rehearsals:
            apart = self.compiles and not self._seen[sizes]
            self._seen[sizes] += 1
            with observer.current().capture() if apart else nullcontext():
                self.step(*sizes)
            return
        try:
            with observer.current().capture():
                self._replays[sizes] = self._recorded(sizes, self.recorder)
        except Exception as error:
            self.recorder = None
            # What came of leaving the recording says less than what ended it.
            reason = one_line(str(error.__context__ or error))
            warnings.warn(f"a step runs without a CUDA graph: {reason}", stacklevel=2)
        self(*sizes)

    def _recorded(self, sizes: tuple[int, ...], recorder: Recorder) -> Work:
        counted = _Counter()
        with observer.observed_by(counted):
            replay = recorder.record(lambda: self.step(*sizes))

        def again() -> None:
            replay()
            looker = observer.current()
            looker.forward(counted.forwards)
            looker.backward(counted.backwards)

        return again


class _Counter(observer.Observer):
    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    def forward(self, images: int) -> None:
        self.forwards += images

    def backward(self, images: int) -> None:
        self.backwards += images


class LearningRates:
    """Learning rates of optimizers, each from where it is when this is made, and there again after
    `release`. Where steps are recorded, `set` makes a rate a tensor, which a replay reads anew."""

    def __init__(self, optimizers: list[Optimizer], recorder: Recorder | None) -> None:
        self.optimizers = optimizers
        self.initial = [[float(g["lr"]) for g in each.param_groups] for each in optimizers]
        self.recordable = recorder is not None
        self._tensors: dict[tuple[int, int], torch.Tensor] = {}
        self._decay: float | None = None

    def set(self, decay: float) -> None:
        """`decay` times the initial rates."""
        if decay == self._decay:
            return
        self._decay = decay
        for n, (optimizer, rates) in enumerate(zip(self.optimizers, self.initial, strict=True)):
            for m, (group, rate) in enumerate(zip(optimizer.param_groups, rates, strict=True)):
                group["lr"] = rate * decay
                if self.recordable:
                    group["lr"] = self._tensor(n, m, group).fill_(rate * decay)
                    # So that it never waits for the device, with whatever it has for that.
                    group |= dict.fromkeys(group.keys() & {"fused", "capturable"}, True)

    def _tensor(self, n: int, m: int, group: dict[str, Any]) -> torch.Tensor:
        """Always the same for a group, also when a restored optimizer has a new one."""
        if (n, m) not in self._tensors:
            self._tensors[n, m] = torch.zeros((), device=group["params"][0].device)
        return self._tensors[n, m]

    def release(self) -> None:
        """The initial rates, as numbers: what the next training with an optimizer starts from."""
        for optimizer, rates in zip(self.optimizers, self.initial, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
