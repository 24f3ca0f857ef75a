"""What a run takes of memory and disk, estimated before it starts, and whether that is there.

The estimates are meant to be right within a factor of two, rather above than below. They count
images, networks and the activations of a training step or an evaluation batch; what the interpreter
and libraries take is counted for further processes only: this one has it by then.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.filesize import decimal
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from bdbench.attacks.base import Attack
from bdbench.cells.cell import Cell
from bdbench.cells.cost import tests
from bdbench.datasets.base import Source
from bdbench.datasets.files import FileSource
from bdbench.machine.cgroup import groups
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import require
from bdbench.models.registry import Model
from bdbench.models.rng import global_seed
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.loop import ASKED
from bdbench.models.training.recipe import Recipe
from bdbench.storage.cache import DAMAGE, Cache
from bdbench.storage.maintenance import contents

CPU = torch.device("cpu")
LABEL = 8
"""Bytes of a label."""
PACKED = 4
"""Copies of a data set in memory while it is decoded and stored."""
COPIES = 8
"""What a cell holds of networks, in sizes of one: two, with gradient, momentum and a copy each."""
LIBRARIES = 650_000_000
"""Bytes that a process of its own has before its first cell, and a GPU keeps for it."""
RECORD = 20_000
"""Bytes of a record with curves."""
SAMPLES = 4
"""Numbers that a defense publishes of each training image."""
EMBEDDED = 8_000
"""Embeddings that a cell keeps with curves: of two networks, before and after."""
PARTS = ("name", "attack", "model", "recipe", "seed")
"""What tells cache entries of a kind apart, but for the data and the code."""

Identity = tuple[Any, ...]


@dataclass(frozen=True)
class Need:
    """What a run takes in one place.

    needed: bytes
    where: such as "in /x/cache"
    free: bytes, None where that cannot be told
    remedy: what a user can do where they are too few
    """

    needed: int
    where: str
    free: int | None
    remedy: str

    def __str__(self) -> str:
        there = "" if self.free is None else f", {decimal(self.free)} are free there"
        return f"about {decimal(self.needed)} {self.where}{there}"

    @property
    def fits(self) -> bool:
        """Also where it cannot be told."""
        return self.free is None or self.needed <= self.free


@dataclass(frozen=True)
class Footprint:
    """Of a network, in bytes.

    state: its weights and buffers
    saved: what a forward pass keeps of one image for the backward pass
    largest: the largest tensor of those
    embedding: of one image
    """

    state: int
    saved: int
    largest: int
    embedding: int


def check_needs(needs: Iterable[Need]) -> None:
    """Raises `InvalidInput`, with the numbers, for what does not fit."""
    for need in needs:
        require(need.fits, f"the run needs {need}; {need.remedy}")


def estimate(
    cells: Sequence[Cell],
    device: torch.device,
    results: Path,
    cache_root: Path,
    curves: bool = False,
    jobs: int = 1,
) -> list[Need]:
    """What a run of `cells`, of which none has its record, takes in each place: memory, then disk,
    where two folders of one file system are one place.

    jobs: cells that are run at the same time; more than one are in processes of their own
    """
    if not cells:
        return []
    cache = Cache(cache_root)
    host, accelerator = memory(cells, device, cache, jobs)
    smaller = "fewer --train-images or a smaller batch_size need less"
    found = [Need(host, "in memory", free_memory(CPU), smaller)]
    if device.type != "cpu":
        where = f"in the memory of {device}"
        found.append(Need(accelerator, where, free_memory(device), smaller))
    grown = Need(
        cache_growth(cells, cache, curves, jobs),
        f"in {cache_root}",
        free_disk(cache_root),
        "BDBENCH_CACHE names another folder",
    )
    written = Need(
        RECORD * len(cells),
        f"in {results}",
        free_disk(results),
        "--results names another folder",
    )
    if _file_system(cache_root) != _file_system(results):
        return [*found, grown, written]
    both = f"in {cache_root} and {results}"
    return [*found, Need(grown.needed + written.needed, both, grown.free, grown.remedy)]


def memory(
    cells: Sequence[Cell], device: torch.device, cache: Cache, jobs: int = 1
) -> tuple[int, int]:
    """Bytes that a run takes beside the processor and, where that is another place, on the device.

    All data sets stay; cells of a job come one after the other. One job decodes for all.
    """
    sources = {cell.located["dataset"]: cell.dataset for cell in cells}
    decoded = _entries(cache)
    loading = max(
        _whole(source) * (1 if _identity("datasets", {"name": source.name}) in decoded else PACKED)
        for source in sources.values()
    )
    held = sum((source.count + tests(source)) * _image(source) for source in sources.values())
    axes = ("dataset", "model", "defense", "recipe")
    unlike = {tuple(cell.specs[axis] for axis in axes): cell for cell in cells}
    most = max(_cell_memory(cell, device) for cell in unlike.values())
    started = LIBRARIES * jobs if jobs > 1 else 0
    running = jobs * (held + most) + started
    if device.type == "cpu":
        return running + max(0, loading - most), 0
    return loading + started, running


def cache_growth(cells: Sequence[Cell], cache: Cache, curves: bool = False, jobs: int = 1) -> int:
    """Bytes that a run adds to the cache. Of an entry that is there for the same settings, the
    size is taken off: it may be of other data."""
    expected: dict[tuple[str, Identity], int] = {}
    artefacts = checkpoints = 0
    for cell in cells:
        source, attack, specs = cell.dataset, cell.attack, cell.specs
        network = footprint_of(cell)
        if isinstance(source, FileSource):
            expected[source.name, _identity("datasets", {"name": source.name})] = _whole(source)
        settings = {axis: specs[axis] for axis in ("attack", "model", "recipe")}
        trained: dict[str, Any] = {**settings, "seed": cell.seed}
        shared = trained if attack.trains else {"attack": specs["attack"], "seed": cell.seed}
        images = _changed(attack, source) + tests(source)
        poisoned = images * _image(source) + 2 * source.count
        expected[specs["dataset"], _identity("poisoned", shared)] = poisoned
        expected[specs["dataset"], _identity("undefended", trained)] = network.state
        artefacts += (4 * SAMPLES + 1) * source.count + curves * EMBEDDED * network.embedding
        checkpoints = max(checkpoints, COPIES * network.state)
    there = _entries(cache)
    missing = sum(max(0, size - there.get(made, 0)) for (_, made), size in expected.items())
    return missing + artefacts + jobs * checkpoints


_footprints: dict[tuple[Any, ...], Footprint] = {}


def footprint_of(cell: Cell, measure: Callable[[Cell], Footprint] | None = None) -> Footprint:
    """That of a cell's network, measured once, here or as it is said."""
    source = cell.dataset
    shape = source.num_classes, source.image_size, cell.recipe.precision
    identity = cell.specs["model"], *shape
    if identity not in _footprints:
        _footprints[identity] = measure(cell) if measure else footprint(cell.model, *shape)
    return _footprints[identity]


def footprint(model: Model, num_classes: int, image_size: int, precision: str) -> Footprint:
    """Measured on a few blank images beside the processor: what grows with their number is
    theirs."""
    builder = partial(model.build, num_classes, image_size)
    network = TrainingContext(Recipe(precision=precision), CPU, builder, seed=0).build()
    two, four = (_saved(network, count, image_size) for count in (2, 4))
    each = [(more - less) // 2 for less, more in zip(two, four, strict=False)]
    return Footprint(
        state=sum(values.nbytes for values in network.state_dict().values()),
        saved=sum(each),
        largest=max(each, default=0),
        embedding=4 * network.head.in_features,
    )


def free_memory(device: torch.device, system: Path = Path("/")) -> int | None:
    """Bytes that this process may still take, None where that cannot be told.

    system: the folder above `proc` and `sys`
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    found = []
    with suppress(OSError):
        text = (system / "proc/meminfo").read_text()
        found += [1024 * int(size) for size in re.findall(r"MemAvailable: +(\d+) kB", text)]
    for group in groups(system):
        found += _free_in(group)
    return min(found, default=None)


def free_disk(folder: Path) -> int | None:
    """Bytes that can be written below a folder, which need not be there yet."""
    try:
        return shutil.disk_usage(_nearest(folder)).free
    except OSError:
        return None


def _cell_memory(cell: Cell, device: torch.device) -> int:
    """Bytes beside the data set: the poisoned copy, another two that an attack or a defense may
    make, the test set with the trigger, networks, and what a batch takes."""
    source, network = cell.dataset, footprint_of(cell)
    copies = (3 * source.count + tests(source)) * _image(source)
    # As much as the largest tensors of a network: gradients on their way, inputs and workspaces.
    passing = 3 * network.largest + 2 * 4 * _image(source)
    trained = _widest(cell) * (network.saved + passing)
    evaluated = ASKED.get(device.type, ASKED["cuda"]) * passing
    return copies + COPIES * network.state + max(trained, evaluated)


def _widest(cell: Cell) -> int:
    """Images of the largest batch: the recipe's, or two views of a defense's own."""
    own = vars(cell.defense).items()
    sizes: list[int] = [n for name, n in own if name.endswith("batch_size") and isinstance(n, int)]
    return max(cell.recipe.batch_size, *(2 * size for size in sizes), 0)


def _saved(network: Classifier, count: int, image_size: int) -> list[int]:
    """Bytes of each tensor that a forward pass of `count` images keeps for the backward pass."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(values: Tensor) -> Tensor:
        storage = values.untyped_storage()
        # Held on to, so that no other one gets its address.
        kept.setdefault(storage.data_ptr(), storage)
        return values

    with global_seed(0, "footprint"), saved_tensors_hooks(keep, lambda values: values):
        network(torch.zeros(count, 3, image_size, image_size))
    return [storage.nbytes() for storage in kept.values()]


def _image(source: Source) -> int:
    """Bytes of an image and its label."""
    return 3 * source.image_size**2 + LABEL


def _whole(source: Source) -> int:
    """Bytes of all images that are decoded, 0 for a source that has no files."""
    if not isinstance(source, FileSource):
        return 0
    return (source.train_size + source.test_size) * _image(source)


def _changed(attack: Attack, source: Source) -> int:
    """Training images that differ after the attack, at most."""
    rates = ("poisoning_rate", "cover_rate", "cross_rate")
    share = sum(getattr(attack, name, 0.0) for name in rates)
    if getattr(attack, "rate_basis", "dataset") == "target_class":
        # Classes are not of one size: the target's may have thrice its share.
        share *= 3 / source.num_classes
    return min(source.count, math.ceil(share * source.count))


def _identity(kind: str, key: Mapping[str, Any]) -> Identity:
    return kind, *(key.get(part) for part in PARTS)


def _entries(cache: Cache) -> dict[Identity, int]:
    """Bytes of what the cache has, the largest of several that look the same."""
    found: dict[Identity, int] = {}
    for kind in ("datasets", "poisoned", "undefended"):
        for stored in contents(cache, kind):
            with suppress(*DAMAGE):
                made = _identity(kind, stored.key())
                found[made] = max(stored.size, found.get(made, 0))
    return found


def _free_in(group: Path) -> list[int]:
    """Bytes that a control group may still take, nothing where it has no limit."""
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        pages = re.search(
            r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE
        )
    except (OSError, ValueError):
        return []
    # Cached pages of files are given up first.
    return [max(0, limit - used + int(pages[1] if pages else 0))]


def _file_system(folder: Path) -> int:
    return _nearest(folder).stat().st_dev


def _nearest(folder: Path) -> Path:
    """The folder, or the one above it that is there."""
    whole = folder.absolute()
    # Path.exists would raise below a folder that may not be read.
    return next(path for path in (whole, *whole.parents) if os.path.exists(path))
