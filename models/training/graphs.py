"""A training step as one CUDA graph: its kernel launches, captured once and replayed.

A step of a small network consists of some hundred kernels of a few microseconds each, and a host
needs longer to launch a kernel than a GPU to run it. A replay launches all of them at once, in the
same order. The eager step remains the reference. It runs on a CPU, and wherever a step cannot be
captured.
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

WARM_UP = 3
"""Eager steps before a capture, in which optimizers create their state and libraries choose their
algorithms."""

Work = Callable[[], None]


class Recorder(ABC):
    """Captures the operations that a function launches on a device.

    warm_up: eager steps of each shape before a step is captured
    """

    def __init__(self, warm_up: int = WARM_UP) -> None:
        self.warm_up = warm_up

    @abstractmethod
    def record(self, work: Work) -> Work:
        """Call `work` and capture its device operations without running them; return a function
        that runs them."""

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """A block for all steps of a training, including those that are not captured."""
        yield


class _Streams(threading.local):
    """The CUDA streams of one thread."""

    def __init__(self) -> None:
        self.by_device: dict[torch.device, torch.cuda.Stream] = {}


class CudaRecorder(Recorder):
    """Captures on a stream of its own. The rest of the training uses this stream too, because the
    backward pass of autograd runs on the stream on which a parameter was first used. Each thread
    has one stream, so that trainings in several threads run in parallel."""

    _streams = _Streams()
    _one_at_a_time = threading.Lock()

    def __init__(self, device: torch.device, warm_up: int = WARM_UP) -> None:
        super().__init__(warm_up)
        known = self._streams.by_device
        if device not in known:
            known[device] = torch.cuda.Stream(device)
        self.device, self.stream = device, known[device]
        self.pool = torch.cuda.graph_pool_handle()

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        # No tensor in the memory of a graph survives a step, so all graphs can share one pool.
        # "thread_local" lets other threads allocate memory meanwhile.
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


RecorderFactory = Callable[[torch.device], Recorder | None]


def by_device(device: torch.device) -> Recorder | None:
    """A recorder for a GPU; None for any other device, where a graph brings nothing."""
    return CudaRecorder(device) if device.type == "cuda" else None


_factory: ContextVar[RecorderFactory | None] = ContextVar("recorder factory", default=None)


def recorder_for(device: torch.device, wanted: bool) -> Recorder | None:
    """The recorder for the steps of a training on this device; None to run them eagerly."""
    factory = _factory.get() or (by_device if wanted else None)
    return factory(device) if factory else None


def recorded_by(factory: RecorderFactory) -> AbstractContextManager[None]:
    """Use the recorders of this factory inside the block, whatever the recipe says."""
    return set_in_context(_factory, factory)


class StepRunner:
    """Runs a training step, which is called with the sizes of its batches: eagerly during warm-up,
    then as a replayed graph.

    There is one graph for each combination of sizes. A replay repeats the reports to the observer;
    nothing else that the step does on the host is repeated.

    compiles: whether the first step of each shape compiles the network
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
        if self.recorder is None or self._seen[sizes] < self.recorder.warm_up:
            compiling = self.compiles and not self._seen[sizes]
            self._seen[sizes] += 1
            with observer.current().capture() if compiling else nullcontext():
                self.step(*sizes)
            return
        try:
            with observer.current().capture():
                self._replays[sizes] = self._capture(sizes, self.recorder)
        except Exception as error:
            self.recorder = None
            # The first error says more than the one that ending the capture raised.
            reason = one_line(str(error.__context__ or error))
            warnings.warn(f"a step runs without a CUDA graph: {reason}", stacklevel=2)
        self(*sizes)

    def _capture(self, sizes: tuple[int, ...], recorder: Recorder) -> Work:
        counted = _Counter()
        with observer.observed_by(counted):
            replay = recorder.record(lambda: self.step(*sizes))

        def replay_and_report() -> None:
            replay()
            current = observer.current()
            current.forward(counted.forwards)
            current.backward(counted.backwards)

        return replay_and_report


class _Counter(observer.Observer):
    def __init__(self) -> None:
        self.forwards = self.backwards = 0

    def forward(self, images: int) -> None:
        self.forwards += images

    def backward(self, images: int) -> None:
        self.backwards += images


class LearningRates:
    """The learning rates of several optimizers. Each starts at the rate that it has on entry, and
    `release` restores that rate. For captured steps, `set` turns a rate into a tensor, which every
    replay reads."""

    def __init__(self, optimizers: list[Optimizer], recorder: Recorder | None) -> None:
        self.optimizers = optimizers
        self.initial = [[float(g["lr"]) for g in each.param_groups] for each in optimizers]
        self.captured = recorder is not None
        self._tensors: dict[tuple[int, int], torch.Tensor] = {}
        self._decay: float | None = None

    def set(self, decay: float) -> None:
        """Set all rates to `decay` times the initial ones."""
        if decay == self._decay:
            return
        self._decay = decay
        for n, (optimizer, rates) in enumerate(zip(self.optimizers, self.initial, strict=True)):
            for m, (group, rate) in enumerate(zip(optimizer.param_groups, rates, strict=True)):
                group["lr"] = rate * decay
                if self.captured:
                    group["lr"] = self._tensor(n, m, group).fill_(rate * decay)
                    # Options with which the optimizer never synchronises with the device.
                    group |= dict.fromkeys(group.keys() & {"fused", "capturable"}, True)

    def _tensor(self, n: int, m: int, group: dict[str, Any]) -> torch.Tensor:
        """The one tensor of a group, even after an optimizer was restored with another."""
        if (n, m) not in self._tensors:
            self._tensors[n, m] = torch.zeros((), device=group["params"][0].device)
        return self._tensors[n, m]

    def release(self) -> None:
        """Restore the initial rates, as numbers, for the next training with these optimizers."""
        for optimizer, rates in zip(self.optimizers, self.initial, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
