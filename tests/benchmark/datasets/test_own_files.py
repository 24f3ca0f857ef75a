"""Data sets in files that come from a plugin: the cache keeps apart what differs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from bdbench.datasets.base import Source
from bdbench.datasets.registry import datasets
from bdbench.models.plugins.files import load_file
from bdbench.storage.cache import Cache

PLUGIN = """
    from dataclasses import dataclass
    from typing import ClassVar

    import torch

    from bdbench.datasets import register
    from bdbench.datasets.files import Decoded, FileSource, Located
    from bdbench.models import ImageSet


    @register("levels")
    @dataclass(frozen=True)
    class Levels(FileSource):
        name: ClassVar[str] = "levels"
        num_classes: ClassVar[int] = 2
        train_size: ClassVar[int] = 6
        test_size: ClassVar[int] = 4
        flip: ClassVar[bool] = True
        learning_rate: ClassVar[float] = 0.1
        layouts: ClassVar[tuple[str, ...]] = ("levels.txt",)

        size: int = 8
        grey: bool = False

        @property
        def image_size(self):
            return self.size

        def find(self, root):
            file = root / "levels.txt"
            if file.is_file():
                yield Located("a text file", root, (file,), lambda: self.decoded(file))

        def decoded(self, file):
            level = torch.tensor([int(n) for n in file.read_text().split()], dtype=torch.uint8)
            images = level.view(-1, 1, 1, 1).expand(-1, 3, self.size, self.size).clone()
            if not self.grey:
                images[:, 1:] = 0
            every = ImageSet(images, torch.arange(10) % 2, 2)
            return Decoded(every[torch.arange(6)], every[torch.arange(6, 10)], ("even", "odd"))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "levels.txt").write_text(" ".join(map(str, range(50, 60))))
    (tmp_path / "levels.py").write_text(dedent(PLUGIN))
    return tmp_path


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    yield
    datasets.unregister({"levels"} & {*datasets.names()})


def sources(folder: Path) -> list[Source]:
    load_file(folder / "levels.py")
    return datasets.swept("levels(size=[8, 10], grey=[False, True], train_images=[4, 6])")


def test_a_setting_gives_the_images_of_a_fresh_cache(folder: Path) -> None:
    shared = Cache(folder / "shared")
    for n, source in enumerate(sources(folder)):
        found = source.load([folder], shared)
        fresh = source.load([folder], Cache(folder / str(n)))
        assert torch.equal(found.train.images, fresh.train.images)
        assert found.train.images.shape[2] == source.image_size
        assert len(found.train) == source.count


def test_the_number_of_training_images_is_no_reason_to_decode_again(folder: Path) -> None:
    shared = Cache(folder / "shared")
    for source in sources(folder):
        source.load([folder], shared)
    assert len([*(folder / "shared/datasets").glob("*.json")]) == 4


def test_an_edit_of_the_code_is_decoded_anew(folder: Path) -> None:
    shared = Cache(folder / "shared")
    before = sources(folder)[0].load([folder], shared)
    plugin = folder / "levels.py"
    plugin.write_text(plugin.read_text().replace("images[:, 1:] = 0", "images[:, 1:] = 1"))
    after = sources(folder)[0].load([folder], shared)
    assert int(before.train.images[0, 1].max()) == 0
    assert int(after.train.images[0, 1].min()) == 1


def test_all_images_are_the_same_cell_whether_or_not_they_are_counted() -> None:
    counted, whole = datasets.build("digits(train_images=1200)"), datasets.build("digits")
    assert datasets.canonical(counted) == datasets.canonical(whole)
    assert datasets.label(datasets.build("digits(train_images=1199)")).endswith("1199)")
