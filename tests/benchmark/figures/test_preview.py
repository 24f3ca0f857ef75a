"""Previews: the numbers by hand, the images and labels of the picture, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, pairwise, product
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from bdbench.attacks.badnets import BadNets
from bdbench.attacks.base import Attack, Poisoned, prepared
from bdbench.attacks.poison import dirty_label
from bdbench.attacks.registry import attacks
from bdbench.cells import grid
from bdbench.cells.cell import cell
from bdbench.cli import main
from bdbench.datasets.registry import datasets
from bdbench.figures import distortion, preview
from bdbench.figures.picture import COLUMN, DPI, PAGE, ImageRows, look
from bdbench.models.data import ImageSet
from bdbench.models.rng import stream
from bdbench.models.training.augment import Augmentation, AugmentationDraws, draw_augmentation
from bdbench.models.training.context import TrainingContext
from bdbench.storage.cache import Cache
from bdbench.trial.harness import Harness

DATASET = "toy(train_images=100, test_images=30)"
TINY = [f"--dataset={DATASET}", "--device=cpu"]
CPU = torch.device("cpu")
PREPARED: list[TrainingContext] = []


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures are drawn in the current folder, and few views are looked at."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preview, "VIEWS", 400)
    return tmp_path


@dataclass(frozen=True)
class Shade(Attack):
    """Darkens a random corner that it learns; weaker in training, and much weaker in covers."""

    depth: float = 8.0
    corner: int | None = prepared()

    @property
    def trains(self) -> bool:
        return True

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        PREPARED.append(context)
        return replace(self, corner=int(torch.randint(1, 32, (), generator=context.rng("corner"))))

    def darken(self, images: Tensor, by: float) -> Tensor:
        assert self.corner is not None
        made = images.clone()
        made[:, :, : self.corner] = (made[:, :, : self.corner].int() - int(by)).clamp(0).byte()
        return made

    def trigger(self, images: Tensor) -> Tensor:
        return self.darken(images, self.depth)

    def training_trigger(self, images: Tensor, rng: torch.Generator) -> Tensor:
        return self.darken(images, self.depth / 2)

    def disguise(self, images: Tensor, rng: torch.Generator) -> Tensor:
        return self.darken(images, self.depth / 4)

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        made = dirty_label(self, clean, rng, cover_rate=0.05)
        return replace(made, facts={"corner_side": float(self.corner or 0)})


@pytest.fixture
def shade() -> Iterator[None]:
    attacks.names()
    attacks.register("shade")(Shade)
    PREPARED.clear()
    yield
    del attacks._factories["shade"]


def every_crop(padding: int) -> AugmentationDraws:
    """One view for every place of the crop, not mirrored."""
    places = torch.tensor(list(product(range(2 * padding + 1), repeat=2)))
    nothing = torch.zeros(len(places), dtype=torch.int64)
    return AugmentationDraws(
        torch.arange(len(places)), places[:, 0], places[:, 1], nothing, nothing, nothing
    )


def test_survival_of_the_corner_patch_over_all_81_crops() -> None:
    """A crop from t on, of 0 to 8, shows row r of the image if t <= r + 4 < t + 32."""
    before = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    after = BadNets().trigger(before)
    energy = (after[0, 0].double() - 100).square()
    counts, energies = [], []
    for top, left in product(range(9), repeat=2):
        shown = [
            float(energy[r, c])
            for r, c in product(range(29, 32), repeat=2)
            if top <= r + 4 < top + 32 and left <= c + 4 < left + 32
        ]
        counts.append(len(shown))
        energies.append(sum(shown) / float(energy.sum()))
    left = distortion.survival(before, after, every_crop(4), Augmentation(4, flip=False, cutout=0))
    assert left.views == 81
    assert left.seen == pytest.approx(sum(n > 0 for n in counts) / 81) == pytest.approx(49 / 81)
    assert left.whole == pytest.approx(sum(n == 9 for n in counts) / 81) == pytest.approx(25 / 81)
    assert left.energy == pytest.approx(sum(energies) / 81)


def test_survival_counts_cutout_and_leaves_out_what_was_never_changed() -> None:
    images = torch.randint(1, 255, (5, 3, 32, 32), dtype=torch.uint8, generator=stream(0, "x"))
    stamped = BadNets().trigger(images)
    stamped[1] = images[1]
    for how, kept in ((Augmentation(0, True, 0), 1.0), (Augmentation(4, True, 200), 0.0)):
        draws = draw_augmentation(600, (32, 32), how, stream(0, "draws"))
        expected = distortion.Survival(480, kept, kept, kept)
        assert distortion.survival(images, stamped, draws, how) == expected
    nothing = distortion.survival(images, images, draws, how)
    assert nothing.views == 0
    assert np.isnan(nothing.seen)


def test_distortion_by_hand() -> None:
    """Four white and five black cells on grey 100, and an image that has the patch already."""
    before = torch.full((2, 3, 32, 32), 100, dtype=torch.uint8)
    before[1] = BadNets().trigger(before[1:])[0]
    found = distortion.distortion(before, BadNets().trigger(before))
    error = 3 * (4 * 155**2 + 5 * 100**2) / (3 * 32 * 32)
    assert found.psnr == pytest.approx(10 * np.log10(255**2 / error))
    assert (found.unchanged, found.pixels, found.largest) == (1, 4.5, 155)


def test_a_difference_is_amplified_to_fill_the_range() -> None:
    before = torch.full((1, 3, 2, 2), 100, dtype=torch.uint8)
    for change, factor in ((0, 127), (1, 127), (51, 2.4), (-100, 1.2), (155, 1)):
        after = (before.int() + change).byte()
        shown, by = preview.amplified(before, after)
        assert by == factor
        assert shown.unique().tolist() == [min(255, round(128 + factor * change))]


def test_columns_show_one_image_of_each_class_first() -> None:
    labels, among = torch.tensor([1, 1, 0, 2, 1, 2, 3]), torch.tensor([1, 1, 0, 1, 1, 1, 1]) > 0
    assert preview.one_of_each(labels, among).tolist() == [0, 3, 6, 1, 5, 4]


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """The printed values by label."""
    assert main(["data", "preview", *arguments, *TINY]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line[:15].strip(): line[16:] for line in lines}


def test_badnets_is_measured_and_drawn_without_any_training(
    own_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a network was built")

    monkeypatch.setattr(TrainingContext, "build", refuse)
    values = shown(capsys, "badnets", "--count=3")
    assert values["attack"] == "badnets"
    assert values["changed pixels"] == "9.0 of 1,024"
    assert values["poisoned images"].startswith("10, 10.0 % of all, ")
    assert values["cover images"] == "0"
    seen = float(values["seen"].split()[1])
    assert abs(seen - 60.5) < 8
    assert "trained with" not in values
    assert values["picture"] == "preview-badnets.png"
    assert [path.name for path in own_folder.iterdir()] == ["preview-badnets.png"]
    with Image.open("preview-badnets.png") as picture:
        assert picture.size[0] == round(COLUMN * DPI)
        assert picture.size[1] > DPI * COLUMN * 0.8
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_an_attack_that_changes_nothing_is_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    values = shown(capsys, "none", "--out=folder/none.PDF")
    assert values["trigger"] == "changes no test image"
    assert Path("folder/none.PDF").read_bytes().startswith(b"%PDF")


@pytest.mark.usefixtures("shade")
def test_a_preview_is_of_what_a_run_poisons(
    capsys: pytest.CaptureFixture[str], cache_folder: Path
) -> None:
    values = shown(capsys, "shade", "--seed=3", "--epochs=1", "--count=2")
    assert values["trained with"].startswith("wrn16_1, recipe(epochs=1, learning_rate=0.01")
    assert values["largest change"] == "8 grey levels"
    assert values["cover images"] == "5"
    recipe = PREPARED[0].recipe
    assert (recipe.epochs, recipe.learning_rate, recipe.flip) == (1, 0.01, True)
    corner = torch.randint(1, 32, (), generator=PREPARED[0].rng("corner"))
    assert values["corner side"] == str(int(corner))
    record = Harness(Cache(cache_folder), [], CPU).run(
        cell(DATASET, "wrn16_1", "shade", "none", recipe, seed=3)
    )
    assert record.status == "ok", record.error
    assert len(PREPARED) == 1, "the run prepared another attack"


@pytest.mark.usefixtures("shade")
def test_training_and_cover_images_have_rows_of_their_own(cache_folder: Path) -> None:
    recipe = grid.recipe_for(datasets.build(DATASET), {"epochs": 1}, "fp32")
    asked = cell(DATASET, "wrn16_1", "shade", "none", recipe, seed=0)
    harness = Harness(Cache(cache_folder), [], CPU)
    dataset, made = harness.dataset(asked.dataset), harness.poisoned(asked)
    blocks = preview.blocks(attacks.build("shade"), dataset, made, count=4)
    assert [list(block.rows)[1] for block in blocks] == [
        "poisoned",
        "training image",
        "cover image",
    ]
    for block, change in zip(blocks, (8, 4, 2), strict=True):
        before, after, _ = (images.astype(int) for images in block.rows.values())
        assert (before - after).max() == change
    assert [len(block.titles) for block in blocks] == [4, 4, 4]
    assert "disc" not in blocks[0].titles


NAMES = ["checkerboard", "no passing for vehicles over 3.5 tons", "cat"]


def block(columns: int, size: tuple[int, int] = (32, 32), name: str = "poisoned") -> ImageRows:
    rng = stream(0, "block")
    before, after = torch.randint(0, 256, (2, columns, 3, *size), dtype=torch.uint8, generator=rng)
    return preview.compared(name, (NAMES * columns)[:columns], before, after)


def drawn(*blocks: ImageRows) -> tuple[Figure, FigureCanvasAgg]:
    """The figure of a preview, and the canvas on which it was drawn."""
    title = "wanet(poisoning_rate=0.05, cover_rate=0.15) on gtsrb(train_images=4000), seed 3"
    long = {f"surrogate accuracy {n}": "0.123456" for n in range(9)}
    with look():
        figure = preview.draw(title, [{"PSNR": "22.4 dB, 3 unchanged left out"}, long], blocks)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return figure, canvas


@pytest.mark.parametrize("size", [(32, 32), (20, 48)])
def test_images_are_in_their_row_and_column_and_keep_their_shape(size: tuple[int, int]) -> None:
    blocks = [block(3, size), block(2, size, "training image")]
    figure, _ = drawn(*blocks)
    widths = set()
    for axes, made in zip(figure.axes, blocks, strict=True):
        labels = [text.get_text() for text in axes.get_yticklabels()]
        assert [text.split() for text in labels] == [label.split() for label in made.rows]
        columns = [text.get_text() for text in axes.get_xticklabels()]
        assert [" ".join(text.split()) for text in columns] == made.titles
        images = np.stack([image.get_array() for image in axes.images])
        expected = np.concatenate([np.moveaxis(row, 1, -1) for row in made.rows.values()])
        assert np.array_equal(images, expected)
        boxes = [image.get_window_extent() for image in axes.images]
        assert all(b.height / b.width == pytest.approx(size[0] / size[1]) for b in boxes)
        widths |= {round(b.width, 3) for b in boxes}
        rows = [boxes[start : start + len(columns)] for start in range(0, 9, len(columns))][:3]
        assert all(one.x1 < two.x0 for row in rows for one, two in pairwise(row))
        assert all(one.y0 > two.y1 for one, two in pairwise(row[0] for row in rows))
    assert len(widths) == 1


@pytest.mark.parametrize("name", ["poisoned", "poisoned adaptive_blend"])
@pytest.mark.parametrize("columns", [1, 4, 12])
def test_no_text_is_clipped_or_overlaps_anything(columns: int, name: str) -> None:
    figure, canvas = drawn(block(columns, name=name), block(1, name="training image"))
    width, height = canvas.get_width_height()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert all(b.x0 >= 0 and b.x1 <= width and b.y0 >= 0 and b.y1 <= height for b in boxes)
    boxes += [image.get_window_extent() for axes in figure.axes for image in axes.images]
    assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]


def test_many_images_continue_below() -> None:
    figure, _ = drawn(block(12))
    assert [len(axes.get_xticklabels()) for axes in figure.axes] == [6, 6]
    assert figure.get_figwidth() == PAGE


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["badnet"], "unknown attack 'badnet'; did you mean 'badnets'?"),
        (["badnets(target=10)"], "0 to 9, got 10"),
        (["badnets", "--count=0"], "count must be from 1 to 50, got 0"),
        (["badnets", "--epochs=0"], "epochs must be at least 1"),
        (["badnets", "--out=x.bmp"], "a picture ends in .png or .pdf or .svg, got 'x.bmp'"),
        (["badnets", "--out=x"], "a picture ends in .png or .pdf or .svg, got 'x'"),
        (["badnets", "--out=blocked/x.png"], "cannot write"),
        (["badnets", "--out=."], "is a directory"),
        (["badnets", "--dataset=cifar10", "--data=nowhere"], "there is no folder nowhere with"),
        (["badnets", "--dataset=cifr10"], "unknown data set 'cifr10'; did you mean 'cifar10'?"),
        (["badnets", "--model=wrn16"], "unknown model 'wrn16'; did you mean 'wrn16_1'?"),
        (["badnets", "--device=cuda:9"], "device 'cuda:9' does not exist"),
        (["badnets", "--seed=x"], "'x' is not a valid integer"),
        (["badnets", "--seed=-1"], "a seed must be a whole number from 0 to"),
        (["badnets", f"--seed={2**63}"], "a seed must be a whole number from 0 to"),
        ([], "Missing argument 'ATTACK'"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_drawn(
    arguments: list[str], complaint: str, own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (own_folder / "blocked").write_text("in the way")
    assert main(["data", "preview", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("bdbench: ")
    assert complaint in lines[0]
    assert [path.name for path in own_folder.iterdir()] == ["blocked"]
