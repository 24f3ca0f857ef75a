"""Records as a run would write them, a network and files of data sets, for several test files."""

import cProfile
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bdbench.models.networks.classifier import Classifier
from bdbench.records.by_class import ByClass
from bdbench.records.count import Count
from bdbench.records.record import METRICS, SCHEMA, STAGES, Record

ROOT = Path(__file__).parent.parent
"""Of the source tree."""
RECIPE = "recipe(epochs=30, learning_rate=0.1, precision='fp32')"
FAILED = {"type": "RuntimeError", "message": "out of memory", "traceback": "Traceback"}


def make_record(
    defense, attack, ca=None, asr=None, floor=10, seed=0, flags=(), seconds=(0.0, 60.0)
):
    """A record; counts of 1000 images, None for a cell that failed."""
    metrics = None
    if ca is not None:
        metrics = {
            "clean_accuracy": Count(ca, 1000),
            "attack_success_rate": None if asr is None else Count(asr, 1000),
            "robust_accuracy": None if asr is None else Count((1000 - asr) // 2, 1000),
            "asr_floor": Count(floor, 1000),
        }
    labels = {"dataset": "toy", "model": "wrn16_1", "attack": attack, "defense": defense}
    canonical = {axis: f"{name}(field=1)" for axis, name in labels.items()}
    undefended, fit = seconds
    return Record(
        schema=SCHEMA,
        key=hashlib.sha256(f"{defense} {attack} {seed}".encode()).hexdigest()[:16],
        status="failed" if ca is None else "ok",
        cell=canonical | {"recipe": RECIPE, "seed": seed},
        labels=labels | {"recipe": "recipe(epochs=30)"},
        metrics=metrics,
        passes={"forward": 30.0, "backward": 30.0},
        flags=flags,
        curves=[],
        diagnostics={},
        provenance={"data_sha256": "ab" * 32, "precision": "fp32"},
        measured={
            "seconds": dict.fromkeys(STAGES, 1.0) | {"undefended": undefended, "fit": fit},
            "peak_memory_bytes": 1024,
            "images": 600,
            "images_per_second": 10.5,
            "others": 0.0,
            "started": "2030-01-01T00:00:00+00:00",
            "ended": "2030-01-01T00:01:00+00:00",
        },
        error=FAILED if ca is None else None,
    )


def make_mixed(defense, seed=0, /, **parts):
    """A record of an attack that consists of several. Its metrics are those of the worst part.

    parts: by name, the ASR and the floor of 1000 images
    """
    made = make_record(defense, "mixed", 880, *max(parts.values()), seed)
    counts = {
        f"{metric}_{part}": Count(hits, 1000)
        for part, (asr, floor) in parts.items()
        for metric, hits in zip(METRICS[1:], (asr, (1000 - asr) // 2, floor), strict=True)
    }
    named = {part: {"attack": part} for part in parts}
    return replace(made, metrics=made.metrics.with_(**counts), diagnostics={"parts": named})


def make_classified(
    defense, attack, own, sent, names=("cat", "dog", "ship"), aimed=1, goals=None, **given
):
    """A record with counts by class, whose metrics are their sums.

    own: clean images of each class that are right
    sent: for each class, how many triggered images get which label
    aimed: clean images of each attacked class that get its goal
    goals: of the classes, all the first one by default
    """
    goals = goals or [0] * len(names)
    classes = {
        "names": list(names),
        "images": [sum(row) for row in sent],
        "clean_own": list(own),
        "clean_goal": [own[n] if goal == n else aimed for n, goal in enumerate(goals)],
        "goals": goals,
        "triggered": [{str(n): count for n, count in enumerate(row) if count} for row in sent],
    }
    sums = ByClass(**classes).sums()
    made = make_record(defense, attack, 0, 0, **given)
    counts = {name: Count(*sums[name]) for name in METRICS}
    return replace(made, metrics=counts, classes=classes)


def write_shard(
    path: Path, images: Sequence[bytes], labels: Sequence[int] = (), **options: Any
) -> None:
    """Write encoded images as Parquet, all of class 0 unless labels are given."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    shape = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": image, "path": "x"} for image in images], shape)
    classes = pa.array([*labels] or [0] * len(images), pa.int64())
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"img": column, "label": classes}), path, **options)


def write_gtsrb(base: Path, images: Sequence[bytes], names: Sequence[str] = ()) -> Path:
    """Write the archives of GTSRB with one training image and these test images, which the table
    of classes calls by their own names unless others are given. Returns the folder of the test
    images."""
    training, pictures = base / "GTSRB/Training/00000", base / "GTSRB/Final_Test/Images"
    own = [f"{number:05d}.ppm" for number in range(len(images))]
    for folder, count in ((training, 1), (pictures, len(images))):
        folder.mkdir(parents=True, exist_ok=True)
        for name, image in zip(own[:count], images, strict=False):
            (folder / name).write_bytes(image)
    rows = [f"{name};8;{7 + 14 * number}" for number, name in enumerate(names or own)]
    (base / "GT-final_test.csv").write_text("\n".join(["Filename;Width;ClassId", *rows, ""]))
    return pictures


def calls(work: Callable[[], object]) -> int:
    """How many functions a piece of work calls, which unlike its time is the same everywhere."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return sum(entry.callcount for entry in profile.getstats())


class FirstPixel(Classifier):
    """Predicts the class that the first pixel of an image names."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)
        self.head = nn.Linear(10, 10, bias=False)
        nn.init.eye_(self.head.weight)

    def body(self, images: Tensor) -> list[Tensor]:
        named = (images[:, 0, 0, 0] * 255).round().long()
        return [nn.functional.one_hot(named, 10).float()[:, :, None, None]]

    def embed(self, last: Tensor) -> Tensor:
        return last


def first_pixels(values: list[int]) -> Tensor:
    """uint8 (n, 3, 4, 4), black images but for the first pixel."""
    images = torch.zeros(len(values), 3, 4, 4, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(values, dtype=torch.uint8)
    return images
