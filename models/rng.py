"""Named random streams: one independent CPU generator per (seed, purpose).

Every number of a stream is drawn on the CPU, so that all devices use the same ones. Layers such as
dropout draw from the global generator of their device.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch

_global = threading.RLock()


def derive(seed: int, *purpose: str) -> int:
    """A 63-bit seed that depends on every word of `purpose`."""
    text = "\x1f".join((str(seed), *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *purpose: str) -> torch.Generator:
    """A CPU generator, independent of that of any other (seed, purpose)."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


class GlobalGenerators:
    """The global generators of torch (on the CPU and on the current GPU, whichever that is when the
    state is loaded), numpy and Python, as one part of a checkpoint. Layers such as dropout draw
    from them."""

    def state_dict(self) -> dict[str, Any]:
        with _global:
            return self._state()

    def _state(self) -> dict[str, Any]:
        words_of: Any = numpy.random.get_state(legacy=True)
        kind, keys, *rest = words_of
        version, words, gauss = random.getstate()
        found: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "numpy": [kind, keys.tolist(), *rest],
            "python": [version, list(words), gauss],
        }
        if torch.cuda.is_initialized():
            found["gpu"] = torch.cuda.get_rng_state()
        return found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        version, words, gauss = state["python"]
        with _global:
            torch.set_rng_state(state["torch"])
            numpy.random.set_state(tuple(state["numpy"]))
            random.setstate((version, tuple(words), gauss))
            if "gpu" in state:
                torch.cuda.set_rng_state(state["gpu"])

    def fingerprint(self) -> str:
        """A hash that changes with every draw."""
        state = self.state_dict()
        tensors = [state.pop(name) for name in ("torch", "gpu") if name in state]
        digest = hashlib.sha256(str(state).encode())
        for each in tensors:
            digest.update(each.numpy().tobytes())
        return digest.hexdigest()

    def seed(self, seed: int) -> None:
        """Seed all of them."""
        torch.manual_seed(seed)
        numpy.random.seed(seed % 2**32)
        random.seed(seed)


GENERATORS = GlobalGenerators()
"""One set per process. `global_seed` makes other threads wait while a thread uses it."""


@contextmanager
def seeded(seed: int, *purpose: str) -> Iterator[None]:
    """Seed the global generators for the block and restore them afterwards. Several threads may
    draw inside."""
    before = GENERATORS.state_dict()
    GENERATORS.seed(derive(seed, *purpose))
    try:
        yield
    finally:
        GENERATORS.load_state_dict(before)


@contextmanager
def global_seed(seed: int, *purpose: str) -> Iterator[None]:
    """`seeded` for a block in which layers draw their initial weights. Other threads that enter
    such a block wait."""
    with _global, seeded(seed, *purpose):
        yield
