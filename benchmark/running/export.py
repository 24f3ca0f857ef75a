"""`bdbench export KEY`: a cell as files that need no bdbench: network, images and record."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bdbench.cells.cell import Cell, cell_of_record
from bdbench.cells.cost import added_work
from bdbench.datasets import parquet_writer
from bdbench.machine.devices import device_of
from bdbench.machine.terminal import Terminal
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import require
from bdbench.models.scope import num_threads
from bdbench.records.files import read
from bdbench.records.record import METRICS, Record
from bdbench.running.names import whole
from bdbench.running.progress import Reporter, elapsed
from bdbench.storage import networks
from bdbench.storage.atomic import check_writable, write_atomically
from bdbench.storage.cache import Cache
from bdbench.storage.folders import cache_root, roots
from bdbench.tables.text import as_markdown
from bdbench.trial.harness import Harness
from bdbench.trial.networks import facts_of, network, saved
from bdbench.trial.poisoned import PoisonedData
from bdbench.trial.program import program

WEIGHTS, PROGRAM = "network.safetensors", "network.pt2"
POISONED, TRIGGERED = "poisoned.parquet", "triggered.parquet"
RECORD, ABOUT = "record.json", "README.md"
FILES = {
    WEIGHTS: "the weights of the defended network, float32 and int64 by name.",
    PROGRAM: f"""\
the network as a program of `torch.export`, which holds its weights too. It takes float32
  (n, 3, {{size}}, {{size}}), RGB in [0, 1], normalises them itself and gives logits
  (n, {{classes}}). PyTorch runs it without bdbench:

```python
import torch
from safetensors.torch import load_file

network = torch.export.load("{PROGRAM}").module()
network.load_state_dict(load_file("{WEIGHTS}"))
logits = network(torch.rand(8, 3, {{size}}, {{size}}))
```
""",
    POISONED: """\
the training set after the attack. `image` is a PNG, {{bytes, path}}; `label` is what a defender
  sees, `true_label` what it was; `poisoned` images have the trigger, `cover` images are changed and
  keep their labels.""",
    TRIGGERED: """\
all test images with the trigger. `label` is the true one, `target` what the attack wants; where the
  two are the same, an image does not count for the attack success rate.""",
    RECORD: "the record of the cell.",
}
"""What an export may hold beside `ABOUT`, which says this of each file."""


@dataclass(frozen=True)
class Export:
    """What is exported, and how.

    record: path of the record of the cell
    out: the folder for it
    force: write over what an earlier export wrote there
    with_network: whether the network is exported, too, which may have to be made again
    device: where it would be
    data: folder of data sets, None for the usual ones
    """

    record: Path
    out: Path
    force: bool = False
    with_network: bool = True
    device: str = "auto"
    data: Path | None = None

    def write(self, console: Terminal) -> Iterator[str]:
        """Write the files, and give a line about each. Raises `InvalidInput` before anything is
        written where the record, the data or the folder are not as they must be."""
        record = read(self.record)
        require(
            record.status == "ok",
            f"cell {record.key} failed, so there is nothing to export; "
            f"`bdbench explain {record.key}` says why",
        )
        self._check_out()
        cell = cell_of_record(record)
        harness = Harness(Cache(cache_root()), roots(self.data), device_of(self.device))
        dataset = harness.dataset(cell.dataset)
        known = record.provenance.get("data_sha256")
        require(
            known in (None, dataset.sha256),
            f"the images of {cell.labels['dataset']} here are not those of the record, whose hash "
            f"is {known:.12}: name their folder with --data",
        )
        made, notes = None, list[str]()
        if self.with_network:
            stored = saved(self.record.parent.parent, record)
            if stored is None:
                made, notes = _made_again(harness, cell, record, console)
            else:
                made = network(stored)
        # An earlier export of another cell may have more files.
        for name in (*FILES, ABOUT):
            (self.out / name).unlink(missing_ok=True)
        if made is not None:
            yield from self._write_network(made, cell)
        yield from self._write_images(harness, cell)
        write_atomically(self.out / RECORD, self.record.read_bytes())
        yield f"{self.out / RECORD}: the record of cell {record.key}"
        write_atomically(self.out / ABOUT, self._about(cell, notes).encode())
        yield f"{self.out / ABOUT}: what each file is"
        yield from notes

    def _check_out(self) -> None:
        """Raises `InvalidInput` for a folder in which something is, unless it may be replaced."""
        out = self.out
        require(
            not os.path.lexists(out) or out.is_dir(), f"{out} is no folder: choose another --out"
        )
        inside = {path.name for path in out.iterdir()} if out.is_dir() else set()
        ours = {*FILES, ABOUT}
        there = sorted(inside & ours)
        require(
            self.force or not there,
            f"{out} holds {', '.join(there)} already: choose another --out, or replace them with "
            "--force",
        )
        require(
            inside <= ours,
            f"{out} holds what no export made, such as {min(inside - ours, default='')}: "
            "choose another --out",
        )
        check_writable(out)

    def _write_network(self, made: Classifier, cell: Cell) -> Iterator[str]:
        networks.write(self.out / WEIGHTS, made.state_dict(), facts_of(cell))
        yield f"{self.out / WEIGHTS}: the weights of the defended network"
        try:
            content = program(made, cell.dataset.image_size)
        except Exception as error:  # whatever torch makes of a plugin's network
            yield f"no {PROGRAM}: torch.export cannot make a program of it ({type(error).__name__})"
            return
        write_atomically(self.out / PROGRAM, content)
        yield f"{self.out / PROGRAM}: the network as a program, for torch.export.load"

    def _write_images(self, harness: Harness, cell: Cell) -> Iterator[str]:
        dataset, data = harness.dataset(cell.dataset), harness.poisoned(cell)
        clean, test, names = dataset.train, dataset.test, dataset.class_names
        columns = {
            "label": data.train.labels,
            "poisoned": data.mask,
            "cover": data.cover,
            "true_label": clean.labels,
        }
        labels = ("label", "true_label", "target")
        parquet_writer.write(self.out / POISONED, data.train.images, columns, labels, names)
        yield f"{self.out / POISONED}: {len(clean):,} training images, {_count(data)} poisoned"
        goal = cell.attack.goal(test.labels.clone(), test.num_classes)
        tested = {"label": test.labels, "target": goal}
        parquet_writer.write(self.out / TRIGGERED, data.triggered, tested, labels, names)
        yield f"{self.out / TRIGGERED}: {len(test):,} test images with the trigger"

    def _about(self, cell: Cell, notes: list[str]) -> str:
        """What the files are, for whoever finds the folder."""
        shape = {"size": cell.dataset.image_size, "classes": cell.dataset.num_classes}
        there = [
            f"- `{name}`: {text.format(**shape)}"
            for name, text in FILES.items()
            if (self.out / name).exists()
        ]
        parts = [
            f"# Cell {cell.key}",
            f"{as_markdown(' · '.join(whole(cell)))}, exported by bdbench.",
            "\n".join(there),
            *(f"Note: {as_markdown(note)}." for note in notes),
        ]
        return "\n\n".join(parts) + "\n"


def _count(data: PoisonedData) -> str:
    return f"{int(data.mask.sum()):,}"


def _made_again(
    harness: Harness, cell: Cell, record: Record, console: Terminal
) -> tuple[Classifier, list[str]]:
    """The network of a cell that was not saved, and in how far it is another than the one of the
    record. Raises `InvalidInput` where it cannot be made, or what its defense raises."""
    require(
        record.given is None,
        f"cell {cell.key} starts from a network in a file, and its own was not saved: run `bdbench "
        "evaluate` again with --save, or leave it out with --no-network",
    )
    seconds = elapsed(sum(record.measured["seconds"].values()))
    console.print(
        f"the network of cell {cell.key} was not saved, so it is trained again; it took {seconds} "
        "(--no-network leaves it out)",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    work = sum(added_work([cell]).values())
    threads = record.provenance.get("threads") if harness.device.type == "cpu" else None
    with Reporter(1, work, console) as reporter, num_threads(threads):
        short = f"{cell.labels['attack']} · {cell.labels['defense']}"
        reporter.begin(cell.key, whole(cell), short, work)
        harness.progress = lambda done: reporter.advance(cell.key, done)
        finished = harness.finish(cell)
        if finished.failure is not None:
            raise finished.failure
    harness.discard(cell)
    assert finished.network is not None
    return finished.network, list(_differences(record, finished.record))


def _differences(record: Record, again: Record) -> Iterator[str]:
    """In how far a network that was trained again is another one; nothing where it is not."""
    before, after = record.metrics or {}, again.metrics or {}
    for metric in METRICS:
        one, other = before.get(metric), after.get(metric)
        if one is not None and other is not None and one != other:
            yield (
                f"the network that was trained again has another {metric.replace('_', ' ')} than "
                f"the record: {100 * other.rate:.2f} % in place of {100 * one.rate:.2f} %"
            )
    known = record.provenance.get("network_sha256")
    if before == after and known not in (None, again.provenance.get("network_sha256")):
        yield (
            "the network that was trained again differs from that of the record in its last bits, "
            "and in none of its metrics"
        )
