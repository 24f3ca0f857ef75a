"""`bdbench export KEY`: network, images and record of a cell as files to use without bdbench."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from bdbench.attacks.compound import parts_of
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
from bdbench.storage.atomic import check_writable, remove_abandoned, write_atomically
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
the network as a program of `torch.export`, with its weights. It takes float32
  (n, 3, {{size}}, {{size}}), RGB in [0, 1], normalises them itself and returns logits
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
the training set after the attack. `image` is a PNG, {{bytes, path}}; `label` is the one that a
  defender sees, `true_label` the one before the attack; `poisoned` images have the trigger, `cover`
  images are changed and keep their labels. With several attacks, `part` is the number of the one
  that changed the image, 0 if none did.""",
    TRIGGERED: """\
all test images with the trigger. `label` is the true label, `target` the one that the attack wants.
  Images for which they are equal do not count for the attack success rate. With several attacks,
  all test images are there once for each trigger, and `part` is the number of the attack.""",
    RECORD: "the record of the cell.",
}
"""Files of an export, as `ABOUT` describes them."""


@dataclass(frozen=True)
class Export:
    """An export of one cell.

    record: path of the record of the cell
    out: the folder to write
    force: replace an earlier export in that folder
    with_network: also export the network; trains it again if it was not saved
    device: for that training
    data: folder of data sets, None for the usual ones
    """

    record: Path
    out: Path
    force: bool = False
    with_network: bool = True
    device: str = "auto"
    data: Path | None = None

    def write(self, console: Terminal) -> Iterator[str]:
        """Write the files and give a line about each. Raises `InvalidInput`, before anything is
        written, for a failed record, for other data and for a folder with other files."""
        record = read(self.record)
        require(
            record.status == "ok",
            f"cell {record.key} failed and has no results: see `bdbench explain {record.key}`",
        )
        self._check_out()
        cell = cell_of_record(record)
        harness = Harness(Cache(cache_root()), roots(self.data), device_of(self.device))
        _check_data(harness, cell, record)
        classifier, notes = self._network(harness, cell, record, console)
        # An earlier export of another cell may have more files.
        for name in (*FILES, ABOUT):
            (self.out / name).unlink(missing_ok=True)
        if classifier is not None:
            yield from self._write_network(classifier, cell)
        yield from self._write_images(harness, cell, record)
        write_atomically(self.out / RECORD, self.record.read_bytes())
        yield f"{self.out / RECORD}: the record of cell {record.key}"
        write_atomically(self.out / ABOUT, self._about(cell, notes).encode())
        yield f"{self.out / ABOUT}: a description of each file"
        yield from notes

    def _check_out(self) -> None:
        """Raises `InvalidInput` for a folder with files that may not be replaced."""
        out = self.out
        require(
            not os.path.lexists(out) or out.is_dir(),
            f"{out} is not a folder: choose another --out",
        )
        for name in (*FILES, ABOUT):
            remove_abandoned(out, name)
        inside = {path.name for path in out.iterdir()} if out.is_dir() else set()
        exported = sorted(inside & {*FILES, ABOUT})
        require(
            self.force or not exported,
            f"refusing to overwrite {', '.join(exported)} in {out}: choose another --out, or "
            "replace them with --force",
        )
        others = sorted(inside - {*FILES, ABOUT})
        require(
            not others,
            f"refusing to write into {out}: {', '.join(others[:1])} was not written by `bdbench "
            "export`; choose another --out",
        )
        check_writable(out)

    def _network(
        self, harness: Harness, cell: Cell, record: Record, console: Terminal
    ) -> tuple[Classifier | None, list[str]]:
        """The network to export, None without one, and notes for a reader of the export."""
        if not self.with_network:
            return None, []
        stored = saved(self.record.parent.parent, record)
        if stored is None:
            return _train_again(harness, cell, record, console)
        return network(stored), []

    def _write_network(self, classifier: Classifier, cell: Cell) -> Iterator[str]:
        networks.write(self.out / WEIGHTS, classifier.state_dict(), facts_of(cell))
        yield f"{self.out / WEIGHTS}: the weights of the defended network"
        try:
            content = program(classifier, cell.dataset.image_size)
        except Exception as error:  # torch may raise anything for the network of a plugin
            yield f"no {PROGRAM}: torch.export cannot export the network ({type(error).__name__})"
            return
        write_atomically(self.out / PROGRAM, content)
        yield f"{self.out / PROGRAM}: the network as a program, for torch.export.load"

    def _write_images(self, harness: Harness, cell: Cell, record: Record) -> Iterator[str]:
        with _threads_of(record, harness):
            dataset, data = harness.dataset(cell.dataset), harness.poisoned(cell)
        clean, test, names = dataset.train, dataset.test, dataset.class_names
        columns = {
            "label": data.train.labels,
            "poisoned": data.mask,
            "cover": data.cover,
            "true_label": clean.labels,
        }
        every = parts_of(cell.attack) or {"": cell.attack}
        numbers = range(1, len(data.parts) + 1)
        if data.parts:
            mine = torch.stack([part.mask | part.cover for part in data.parts.values()])
            # Not a matrix product, which a GPU does not have for integers.
            columns["part"] = (torch.tensor(numbers, device=mine.device)[:, None] * mine).sum(0)
        labels = ("label", "true_label", "target")
        parquet_writer.write(self.out / POISONED, data.train.images, columns, labels, names)
        yield f"{self.out / POISONED}: {len(clean):,} training images, {_count(data)} poisoned"
        goals = [each.goal(test.labels.clone(), test.num_classes) for each in every.values()]
        tested = {"label": test.labels.repeat(len(goals)), "target": torch.cat(goals)}
        triggered = data.triggered
        if data.parts:
            tested["part"] = torch.tensor(numbers).repeat_interleave(len(test))
            triggered = torch.cat([part.triggered for part in data.parts.values()])
        parquet_writer.write(self.out / TRIGGERED, triggered, tested, labels, names)
        yield f"{self.out / TRIGGERED}: {len(test):,} test images with the trigger"

    def _about(self, cell: Cell, notes: list[str]) -> str:
        """A description of the files, as Markdown."""
        shape = {"size": cell.dataset.image_size, "classes": cell.dataset.num_classes}
        files = [
            f"- `{name}`: {text.format(**shape)}"
            for name, text in FILES.items()
            if (self.out / name).exists()
        ]
        parts = [
            f"# Cell {cell.key}",
            f"{as_markdown(' · '.join(whole(cell)))}, exported by bdbench.",
            "\n".join(files),
            *(f"Note: {as_markdown(note)}." for note in notes),
        ]
        return "\n\n".join(parts) + "\n"


def _count(data: PoisonedData) -> str:
    return f"{int(data.mask.sum()):,}"


def _check_data(harness: Harness, cell: Cell, record: Record) -> None:
    """Raises `InvalidInput` if the record was made with other images."""
    known = record.provenance.data_sha256
    require(
        known in (None, harness.dataset(cell.dataset).sha256),
        f"the images of {cell.labels['dataset']} on this machine differ from those of the record "
        f"(hash {str(known)[:12]}): name their folder with --data",
    )


def _train_again(
    harness: Harness, cell: Cell, record: Record, console: Terminal
) -> tuple[Classifier, list[str]]:
    """Run a cell again for its network; also gives the differences from the record. Raises
    `InvalidInput` for a cell that starts from the file of a network, and what its defense
    raises."""
    require(
        record.given is None,
        f"cell {cell.key} starts from a network in a file, and its result was not saved: run "
        "`bdbench evaluate` again with --save, or leave the network out with --no-network",
    )
    seconds = elapsed(record.measured.seconds.total)
    console.print(
        f"the network of cell {cell.key} was not saved: training it again, which took {seconds} "
        "before (--no-network leaves it out)",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    work = sum(added_work([cell]).values())
    with Reporter(1, work, console) as reporter, _threads_of(record, harness):
        short = f"{cell.labels['attack']} · {cell.labels['defense']}"
        reporter.begin(cell.key, whole(cell), short, work)
        harness.progress = lambda done: reporter.advance(cell.key, done)
        finished = harness.finish(cell)
        if finished.failure is not None:
            raise finished.failure
    harness.discard(cell)
    assert finished.network is not None
    return finished.network, list(_differences(record, finished.record))


def _threads_of(record: Record, harness: Harness) -> AbstractContextManager[None]:
    """Computes with as many threads as the run that made a record."""
    return num_threads(record.provenance.threads if harness.device.type == "cpu" else None)


def _differences(record: Record, again: Record) -> Iterator[str]:
    """Sentences on how a network that was trained again differs; none if it does not."""
    for metric in METRICS:
        one, other = record.count(metric), again.count(metric)
        if one is not None and other is not None and one != other:
            yield (
                f"the {metric.replace('_', ' ')} of the network trained again differs from the "
                f"record: {100 * other.rate:.2f} % instead of {100 * one.rate:.2f} %"
            )
    known = record.provenance.network_sha256
    equal = all(record.count(metric) == again.count(metric) for metric in METRICS)
    if equal and known not in (None, again.provenance.network_sha256):
        yield (
            "the network trained again has the metrics of the record, but its weights differ in "
            "their last bits"
        )
