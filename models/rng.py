"""Named random streams: one independent CPU generator per (seed, purpose).

Every random choice is drawn on the CPU, so that all devices see the same numbers.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_global = threading.RLock()


def derive(seed: int, *purpose: str) -> int:
    """A 63-bit seed that depends on every word of `purpose`."""
    text = "\x1f".join((str(seed), *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, *purpose: str) -> torch.Generator:
    """A CPU generator, independent of every other (seed, purpose)."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


@contextmanager
def global_seed(seed: int, *purpose: str) -> Iterator[None]:
    """Seeds torch's global CPU generator inside the block (layers draw their weights from it), and
    restores it afterwards. Other threads wait for their turn."""
    with _global, torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, *purpose))
        yield
