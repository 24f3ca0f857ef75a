"""Attacks that are not in the paper: triggers, poisoned images, and images that count for ASR."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import floor
from typing import Any

import pytest
import torch
from builders import FirstPixel, first_pixels
from torch import Tensor

from bdbench.attacks.adap_blend import AdapBlend
from bdbench.attacks.adap_patch import AdapPatch
from bdbench.attacks.badnets import BadNets
from bdbench.attacks.badnets_all_to_all import BadNetsAllToAll
from bdbench.attacks.base import Attack
from bdbench.attacks.blend import Blend
from bdbench.attacks.bpp import Bpp
from bdbench.attacks.registry import attacks
from bdbench.attacks.tact import TaCT
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.rng import stream
from bdbench.records.count import Count
from bdbench.trial.evaluation import answers

CORNERS = [(4, 4), (4, 22), (22, 4), (22, 22)]
"""Row and column of the patches 0 to 3 of Adap-Patch in an image of 32 pixels."""

SETTINGS: list[Attack] = [
    AdapBlend(poisoning_rate=0.1, cover_rate=0.2),
    AdapPatch(poisoning_rate=0.1, cover_rate=0.2),
    TaCT(poisoning_rate=0.05, cover_rate=0.1),
    Bpp(poisoning_rate=0.1),
    Bpp(poisoning_rate=0.1, cover_rate=0.2, dither=False),
    BadNetsAllToAll(poisoning_rate=0.1),
]
"""Each attack, with rates that poison some of a few images."""


def noise(count: int, height: int, width: int, purpose: str = "noise") -> Tensor:
    shape = (count, 3, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream(0, purpose))


def labelled(count: int = 100, size: int = 32, classes: int = 10) -> ImageSet:
    return ImageSet(noise(count, size, size), torch.arange(count) % classes, classes)


def mixed(x: int, k: int, weight: float, got: int) -> bool:
    """Whether `got` is (1 - weight) x + weight k, rounded."""
    return abs((1 - weight) * x + weight * k - got) <= 0.5 + 1e-4


@pytest.mark.parametrize("attack", SETTINGS, ids=repr)
def test_counts_labels_and_unchanged_images(attack: Attack) -> None:
    clean = labelled()
    before = clean.images.clone(), clean.labels.clone()
    made = attack.poison(clean, stream(0, "poison"))
    cover_rate = getattr(attack, "cover_rate", 0)
    assert int(made.mask.sum()) == round(attack.poisoning_rate * 100)
    assert int(made.cover.sum()) == round(cover_rate * 100)
    assert not (made.mask & made.cover).any()
    goal = attack.goal(clean.labels, 10)
    assert torch.equal(made.train.labels[made.mask], goal[made.mask])
    assert torch.equal(made.train.labels[~made.mask], clean.labels[~made.mask])
    touched = made.mask | made.cover
    assert torch.equal(made.train.images[~touched], clean.images[~touched])
    changed = (made.train.images != clean.images).flatten(1).any(1)
    assert torch.equal(changed, touched)
    assert torch.equal(clean.images, before[0]), "the clean images were written"
    assert torch.equal(clean.labels, before[1]), "the clean labels were written"


@pytest.mark.parametrize("attack", SETTINGS, ids=repr)
def test_the_poisoned_set_depends_on_the_seed_only(attack: Attack) -> None:
    clean = labelled()
    one, two, other = (attack.poison(clean, stream(seed, "poison")) for seed in (0, 0, 1))
    assert torch.equal(one.mask, two.mask)
    assert torch.equal(one.cover, two.cover)
    assert torch.equal(one.train.images, two.train.images)
    assert not torch.equal(one.mask, other.mask)
    assert torch.equal(attack.trigger(clean.images), replace(attack).trigger(clean.images))
    fewer = replace(attack, poisoning_rate=attack.poisoning_rate / 2)
    assert bool((one.mask | ~fewer.poison(clean, stream(0, "poison")).mask).all())


@pytest.mark.parametrize("attack", SETTINGS, ids=repr)
@pytest.mark.parametrize("size", [32, 64, 224])
def test_any_size(attack: Attack, size: int) -> None:
    images = noise(2, size, size)
    before = images.clone()
    stamped = attack.trigger(images)
    trained = attack.training_trigger(images, stream(0, "training"))
    hidden = attack.disguise(images, stream(0, "training"))
    for result in (stamped, trained, hidden):
        assert result.dtype == torch.uint8
        assert result.shape == images.shape
        assert bool((result != images).flatten(1).any(1).all())
    assert torch.equal(images, before), "the images were written"
    assert torch.equal(attack.trigger(images[1:]), stamped[1:])
    assert attack.trigger(images[:0]).shape == (0, 3, size, size)
    channels_last = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(attack.trigger(channels_last), stamped)


def test_the_papers_rates_of_adap() -> None:
    clean = ImageSet(noise(1000, 16, 16), torch.arange(1000) % 10, 10)
    for attack, covered in ((AdapBlend(), 3), (AdapPatch(), 6)):
        made = attack.poison(clean, stream(0, "poison"))
        assert int(made.mask.sum()) == 3
        assert int(made.cover.sum()) == covered


def test_adap_blend_shows_all_of_blends_pattern_to_test_images() -> None:
    images = noise(2, 32, 32)
    stamped, pattern = AdapBlend().trigger(images), Blend().pattern(32, 32)
    for n, c, y, x in torch.cartesian_prod(*map(torch.arange, images.shape)).tolist():
        assert mixed(int(images[n, c, y, x]), int(pattern[0, y, x]), 0.2, int(stamped[n, c, y, x]))


def test_adap_blend_gives_each_training_image_a_random_half_of_the_tiles() -> None:
    images = noise(6, 32, 32)
    stamped = AdapBlend().training_trigger(images, stream(0, "masks"))
    pattern = AdapBlend(pattern_seed=0).blended(images, 0.15)
    grey = Blend(pattern_seed=0).pattern(32, 32)
    found = []
    for n in range(6):
        tiles = set()
        for row in range(4):
            for column in range(4):
                part = (
                    n,
                    slice(None),
                    slice(8 * row, 8 * row + 8),
                    slice(8 * column, 8 * column + 8),
                )
                if torch.equal(stamped[part], images[part]):
                    continue
                tiles.add((row, column))
                assert torch.equal(stamped[part], pattern[part])
                y, x = 8 * row + 3, 8 * column + 5
                got = int(stamped[n, 1, y, x])
                assert mixed(int(images[n, 1, y, x]), int(grey[0, y, x]), 0.15, got)
        assert len(tiles) == 8
        found.append(frozenset(tiles))
    assert len(set(found)) == 6, "the same half for all"


def test_adap_blends_tiles_cover_every_size_and_share() -> None:
    kept = AdapBlend(tiles=4, mask_rate=0.5).tile_mask(3, 30, 45, stream(0, "masks"))
    assert kept.shape == (3, 1, 30, 45)
    for image in kept[:, 0]:
        tiles: dict[tuple[int, int], set[bool]] = {}
        for y in range(30):
            for x in range(45):
                tiles.setdefault((y * 4 // 30, x * 4 // 45), set()).add(bool(image[y, x]))
        assert len(tiles) == 16
        assert all(len(values) == 1 for values in tiles.values()), "a tile is divided"
        assert sum(True in values for values in tiles.values()) == 8
    assert AdapBlend(mask_rate=0.0).tile_mask(2, 8, 8, stream(0, "masks")).all()
    share = AdapBlend(tiles=8, mask_rate=0.9).tile_mask(2, 8, 8, stream(0, "masks"))
    assert share.sum((1, 2, 3)).tolist() == [64 - 57] * 2
    with pytest.raises(InvalidInput, match="tiles must be at most the image's side, 8, got 9"):
        AdapBlend(tiles=9).tile_mask(1, 16, 8, stream(0, "masks"))


def test_adap_patch_shows_two_opaque_patches_to_test_images() -> None:
    images, attack = noise(2, 32, 32), AdapPatch()
    stamped, cells = attack.trigger(images), attack.cells()
    for number in (0, 2):
        top, left = CORNERS[number]
        part = stamped[:, :, top : top + 6, left : left + 6]
        assert torch.equal(part, cells[number].expand(2, 3, 6, 6))
        stamped[:, :, top : top + 6, left : left + 6] = images[:, :, top : top + 6, left : left + 6]
    assert torch.equal(stamped, images), "pixels outside the patches changed"
    assert not torch.equal(cells[0], cells[1])
    assert not torch.equal(cells, AdapPatch(patch_seed=1).cells())
    half = AdapPatch(test_patches=(3,), test_opacity=0.5).trigger(images)
    assert mixed(int(images[0, 1, 23, 24]), int(cells[3, 1, 1, 2]), 0.5, int(half[0, 1, 23, 24]))


def test_adap_patch_shows_one_faint_patch_to_each_training_image() -> None:
    images, attack = noise(40, 32, 32), AdapPatch()
    stamped = attack.training_trigger(images, stream(0, "patches"))
    cells, opacities, found = attack.cells(), (0.5, 0.2, 0.5, 0.3), []
    for n in range(40):
        changed = (stamped[n] != images[n]).any(0).nonzero()
        (number,) = (
            k
            for k, (top, left) in enumerate(CORNERS)
            if bool((changed >= torch.tensor([top, left])).all())
            and bool((changed < torch.tensor([top + 6, left + 6])).all())
        )
        found.append(number)
        top, left = CORNERS[number]
        for c in range(3):
            for y in range(6):
                for x in range(6):
                    before = int(images[n, c, top + y, left + x])
                    after = int(stamped[n, c, top + y, left + x])
                    assert mixed(before, int(cells[number, c, y, x]), opacities[number], after)
    assert [found.count(number) for number in range(4)] == [10, 10, 10, 10]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 42, 43, 150])
def test_adap_patch_gives_each_patch_to_a_quarter(count: int) -> None:
    """The patch is known by the corner that changed; counts differ by at most one."""
    images = torch.zeros(count, 3, 32, 32, dtype=torch.uint8)
    stamped = AdapPatch().training_trigger(images, stream(0, "patches"))
    corners = [stamped[:, :, y : y + 6, x : x + 6] for y, x in CORNERS]
    given = torch.stack([part.flatten(1).any(1) for part in corners])
    assert bool((given.sum(0) == 1).all())
    counts = given.sum(1).tolist()
    assert max(counts) - min(counts) <= 1


def test_adap_patchs_quarters_are_of_random_images() -> None:
    """For poisoned and cover images; the patch does not depend on the position of an image."""
    clean = ImageSet(torch.zeros(800, 3, 32, 32, dtype=torch.uint8), torch.arange(800) % 10, 10)
    made = AdapPatch(poisoning_rate=0.5, cover_rate=0.5).poison(clean, stream(0, "poison"))
    corners = [made.train.images[:, :, y : y + 6, x : x + 6] for y, x in CORNERS]
    given = torch.stack([part.flatten(1).any(1) for part in corners])
    for rows in (made.mask, made.cover):
        assert given[:, rows].sum(1).tolist() == [100] * 4
    for part in given:
        assert 60 < int(part[:400].sum()) < 140
        assert int((part[1:] != part[:-1]).sum()) > 200


def test_adap_patch_grows_with_the_image_and_keeps_its_corner() -> None:
    attack = AdapPatch(test_patches=(0, 1, 2, 3))
    black = torch.zeros(1, 3, 224, 448, dtype=torch.uint8)
    stamped, cells = attack.trigger(black), attack.cells()
    for number, (top, left) in enumerate([(28, 28), (28, 378), (154, 28), (154, 378)]):
        part = stamped[0, :, top : top + 42, left : left + 42]
        assert torch.equal(part, cells[number].repeat_interleave(7, 1).repeat_interleave(7, 2))
    assert stamped.count_nonzero() == 49 * cells.count_nonzero()
    with pytest.raises(InvalidInput, match="four patches of 6 x 6 pixels do not fit 8 x 11"):
        attack.trigger(noise(1, 8, 11))


@pytest.mark.parametrize(("side", "corner"), [(12, 0), (16, 2), (18, 3), (20, 4), (33, 4)])
def test_adap_patch_shows_whole_patches_in_small_images(side: int, corner: int) -> None:
    attack = AdapPatch(test_patches=(0, 1, 2, 3))
    stamped, cells = attack.trigger(noise(1, side, side)), attack.cells()
    places = (corner, side - corner - 6)
    for number, (top, left) in enumerate(product(places, places)):
        assert torch.equal(stamped[0, :, top : top + 6, left : left + 6], cells[number])


def test_counts_follow_the_decimal_rates() -> None:
    """29 and 57 of 100, although the products in floating point are a little less."""
    clean = labelled()
    for attack in (AdapBlend(), AdapPatch()):
        made = replace(attack, poisoning_rate=0.29, cover_rate=0.57).poison(clean, stream(0, "p"))
        assert (int(made.mask.sum()), int(made.cover.sum())) == (29, 57)
    ones = ImageSet(clean.images, torch.cat([torch.ones(50), torch.full((50,), 5)]).long(), 10)
    tact = TaCT(poisoning_rate=0.29, cover_rate=0.29).poison(ones, stream(0, "p"))
    assert (int(tact.mask.sum()), int(tact.cover.sum())) == (29, 29)
    tiles = AdapBlend(tiles=10, mask_rate=0.29).tile_mask(5, 20, 20, stream(0, "tiles"))
    assert (~tiles).flatten(1).sum(1).tolist() == [29 * 4] * 5


def test_tact_changes_its_source_and_covers_others() -> None:
    clean = labelled(200)
    made = TaCT(target=3).poison(clean, stream(0, "poison"))
    assert made.train.labels[made.mask].tolist() == [3, 3]
    assert clean.labels[made.mask].tolist() == [1, 1]
    assert set(clean.labels[made.cover].tolist()) <= {5, 7}
    touched = made.mask | made.cover
    assert torch.equal(made.train.images[touched], BadNets().trigger(clean.images[touched]))
    goal = TaCT(target=3).goal(torch.tensor([0, 1, 2, 3, 5]), 10)
    assert goal.tolist() == [0, 3, 2, 3, 5]
    bare = TaCT(cover_classes=(), cover_rate=0.0).poison(clean, stream(0, "poison"))
    assert torch.equal(bare.mask, made.mask)
    assert not bare.cover.any()


@pytest.mark.parametrize(("count", "classes", "source"), [(50_000, 10, 5000), (39_209, 43, 2220)])
def test_tacts_rates_fit_the_data_sets(count: int, classes: int, source: int) -> None:
    """GTSRB has 2220 images of class 1, and 1860 and 1440 of the classes 5 and 7."""
    labels = torch.full((count,), 2)
    labels[:source] = 1
    labels[source : source + 1860] = 5
    labels[source + 1860 : source + 3300] = 7
    clean = ImageSet(torch.zeros(count, 3, 4, 4, dtype=torch.uint8), labels, classes)
    made = TaCT().poison(clean, stream(0, "poison"))
    assert int(made.mask.sum()) == count // 100
    assert int(made.cover.sum()) == count // 50


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "tact(poisoning_rate=0.2)",
            r"poisoning_rate 0.2 .* is 20 images but there are 10 of class 1; .* rate is 0\.1$",
        ),
        (
            "tact(cover_rate=0.3)",
            r"cover_rate 0.3 .* is 30 images but there are 20 of class 5 and 7; .* rate is 0\.2$",
        ),
        (
            "tact(cover_classes=())",
            r"cover_rate 0.02 .* 2 images .* 0 of class none; .* rate is 0$",
        ),
        ("tact(poisoning_rate=0.005)", "poisoning_rate 0.005 of 100 images selects none"),
        ("tact(target=10)", "target must be a class of the data set, 0 to 9, got 10"),
        ("tact(source=10)", "source must be among the data set's classes, 0 to 9, got 10"),
        ("tact(cover_classes=(5, 11))", "cover_classes must be among .* 0 to 9, got 11"),
        ("adap_blend(target=10)", "target must be a class of the data set, 0 to 9, got 10"),
        ("adap_patch(poisoning_rate=0.005)", "poisoning_rate 0.005 of 100 images selects none"),
    ],
)
def test_a_rate_or_class_that_does_not_fit_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        attacks.build(text).poison(labelled(), stream(0, "poison"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("sig(target=1)", "class 1 has no training image: choose another target"),
        ("sig(target=1, rate_basis='dataset')", "class 1 has no training image: choose another"),
        ("lc(target=1, epsilon=0)", "class 1 has no training image: choose another target"),
        ("tact(poisoning_rate=0.1)", "class 1 has no training image: choose another source"),
        (
            "mixed(attacks=['badnets', 'sig(target=1)'])",
            "class 1 has no training image: choose another target",
        ),
    ],
)
def test_a_class_without_training_images_is_refused(text: str, complaint: str) -> None:
    data = labelled()
    with pytest.raises(InvalidInput, match=f"^{complaint}"):
        attacks.build(text).poison(data[data.labels != 1], stream(0, "poison"))


def palette(levels: int) -> list[int]:
    return [floor(Fraction(255 * k, levels - 1) + Fraction(1, 2)) for k in range(levels)]


def reduced(value: Fraction, levels: int) -> int:
    """The grey level of the palette nearest to a value, which may be outside of [0, 255]."""
    level = floor(value * (levels - 1) / 255 + Fraction(1, 2))
    return palette(levels)[min(max(level, 0), levels - 1)]


def floyd_steinberg(plane: list[list[int]], levels: int) -> list[list[int]]:
    """Pixel by pixel in reading order; the error at a pixel is rounded to sixteenths."""
    height, width = len(plane), len(plane[0])
    arrived = [[Fraction(0)] * width for _ in range(height)]
    result = [[0] * width for _ in range(height)]
    for y in range(height):
        for x in range(width):
            passed = Fraction(floor(arrived[y][x] * 16 + Fraction(1, 2)), 16)
            value = plane[y][x] + passed
            result[y][x] = reduced(value, levels)
            error = value - result[y][x]
            for down, right, weight in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if y + down < height and 0 <= x + right < width:
                    arrived[y + down][x + right] += error * weight / 16
    return result


@pytest.mark.parametrize("levels", [2, 3, 8, 100, 255, 256])
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (5, 2), (12, 5), (6, 13)])
def test_bpp_dithers_like_floyd_and_steinberg(levels: int, size: tuple[int, int]) -> None:
    images = torch.cat([noise(2, *size), torch.full((1, 3, *size), 255, dtype=torch.uint8)])
    stamped = Bpp(levels=levels).trigger(images)
    for n in range(3):
        for c in range(3):
            assert stamped[n, c].tolist() == floyd_steinberg(images[n, c].tolist(), levels)


@pytest.mark.parametrize("levels", [2, 3, 8, 100, 256])
def test_bpp_without_dithering_takes_the_nearest_level(levels: int) -> None:
    images = torch.arange(256, dtype=torch.uint8).repeat(3).view(1, 3, 16, 16)
    stamped = Bpp(levels=levels, dither=False).trigger(images)
    assert stamped.flatten().tolist() == [
        reduced(Fraction(x), levels) for x in images.flatten().tolist()
    ]
    assert set(stamped.flatten().tolist()) == set(palette(levels))


@pytest.mark.parametrize("levels", [2, 8])
def test_bpp_keeps_the_brightness_and_only_uses_its_levels(levels: int) -> None:
    shades = torch.tensor([20, 60, 100, 200], dtype=torch.uint8)
    images = shades[:, None, None, None].expand(4, 3, 64, 64)
    stamped = Bpp(levels=levels).trigger(images)
    assert set(stamped.unique().tolist()) <= set(palette(levels))
    blocks = stamped.float().unfold(2, 16, 16).unfold(3, 16, 16).mean((1, 4, 5))
    assert float((blocks - shades[:, None, None]).abs().max()) < 255 / (levels - 1) / 16
    plain = Bpp(levels=levels, dither=False).trigger(images)
    assert plain[:, 0, 0, 0].tolist() == [reduced(Fraction(x), levels) for x in shades.tolist()]


def test_bpps_worst_errors_fit_their_integers() -> None:
    """A dark image, a bright one, and edges between both, with two levels."""
    edges = torch.zeros(4, 3, 12, 12, dtype=torch.uint8)
    edges[0] = 127
    edges[1] = 128
    edges[2, :, :, 6:] = 255
    edges[2, :, :, :6] = 127
    edges[3, :, ::2] = 255
    edges[3, :, 1::2] = 128
    stamped = Bpp(levels=2).trigger(edges)
    for n in range(4):
        assert stamped[n, 0].tolist() == floyd_steinberg(edges[n, 0].tolist(), 2)


def test_bpp_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    images = noise(7, 8, 8)
    whole = Bpp().trigger(images)
    monkeypatch.setattr("bdbench.attacks.bpp.CHUNK", 400)
    assert torch.equal(Bpp().trigger(images), whole)


def test_bpps_cover_images_get_noise_and_not_the_levels() -> None:
    images = torch.full((8, 3, 32, 32), 100, dtype=torch.uint8)
    hidden = Bpp().disguise(images, stream(0, "noise")).int()
    assert (int(hidden.min()), int(hidden.max())) == (100 - 18, 100 + 18)
    assert len(hidden.unique()) == 37
    assert not torch.equal(hidden[0], hidden[1])
    bright = Bpp().disguise(torch.full_like(images, 250), stream(0, "noise"))
    assert int(bright.min()) == 232


def test_all_to_all_is_badnets_with_another_goal() -> None:
    images = noise(3, 32, 32)
    white: dict[str, Any] = {"pattern": "white", "margin": 2}
    for settings in ({}, white):
        expected = BadNets(**settings).trigger(images)
        assert torch.equal(BadNetsAllToAll(**settings).trigger(images), expected)
    clean = labelled()
    made = BadNetsAllToAll().poison(clean, stream(0, "poison"))
    assert torch.equal(made.mask, BadNets().poison(clean, stream(0, "poison")).mask)
    poisoned = zip(clean.labels[made.mask], made.train.labels[made.mask], strict=True)
    assert all(int(after) == (int(before) + 1) % 10 for before, after in poisoned)


def test_only_the_source_class_counts_for_tact() -> None:
    """Two of three images of class 1 are classified as the target 0; class 5 does not count."""
    labels = torch.tensor([0, 1, 1, 1, 5, 2])
    test = ImageSet(first_pixels([0, 1, 1, 0, 5, 2]), labels, 10)
    counts = answers(
        FirstPixel(), test, first_pixels([0, 0, 0, 1, 0, 3]), TaCT().goal(labels, 10)
    ).counts()
    assert counts == {
        "clean_accuracy": Count(5, 6),
        "attack_success_rate": Count(2, 3),
        "robust_accuracy": Count(1, 3),
        "asr_floor": Count(1, 3),
    }


def test_every_image_counts_for_all_to_all() -> None:
    labels = torch.tensor([0, 1, 8, 9])
    test = ImageSet(first_pixels([0, 2, 8, 9]), labels, 10)
    goal = BadNetsAllToAll().goal(labels, 10)
    assert goal.tolist() == [1, 2, 9, 0]
    counts = answers(FirstPixel(), test, first_pixels([1, 1, 9, 0]), goal).counts()
    assert counts == {
        "clean_accuracy": Count(3, 4),
        "attack_success_rate": Count(3, 4),
        "robust_accuracy": Count(1, 4),
        "asr_floor": Count(1, 4),
    }


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("adap_blend(alpha=0)", r"alpha must be in \(0, 1\], got 0.0"),
        ("adap_blend(test_alpha=1.1)", r"test_alpha must be in \(0, 1\], got 1.1"),
        ("adap_blend(tiles=0)", "tiles must be at least 1, got 0"),
        ("adap_blend(mask_rate=1)", r"mask_rate must be in \[0, 1\), got 1.0"),
        ("adap_blend(mask_rate=-0.1)", r"mask_rate must be in \[0, 1\), got -0.1"),
        ("adap_blend(cover_rate=1)", r"cover_rate must be in \[0, 0.997\], .* got 1.0"),
        ("adap_blend(poisoning_rate=0)", r"poisoning_rate must be in \(0, 1\]"),
        ("adap_patch(opacities=(0.5, 0.5))", r"opacities must be 4 values in \(0, 1\], got"),
        ("adap_patch(opacities=(0.5, 0, 0.5, 1))", "opacities must be 4 values"),
        (
            "adap_patch(opacities=('a', 0.5, 0.5, 1))",
            r"opacities of .* must be tuple\[float",
        ),
        ("adap_patch(test_patches=())", "test_patches must be different numbers from 0 to 3"),
        ("adap_patch(test_patches=(1, 1))", "test_patches must be different numbers"),
        ("adap_patch(test_patches=(4,))", "test_patches must be different numbers"),
        ("adap_patch(test_patches=(1.0,))", r"test_patches of .* must be tuple\[int, ...\], got"),
        ("adap_patch(test_opacity=0)", r"test_opacity must be in \(0, 1\], got 0.0"),
        ("adap_patch(cover_rate=-0.1)", r"cover_rate must be in \[0, 0.997\], .* got -0.1"),
        ("tact(source=-1)", "source must be a class of the data set, got -1"),
        ("tact(target=1)", "source and target must be different classes, both are 1"),
        (
            "tact(cover_classes=(1, 5))",
            r"cover_classes must not contain the source, 1, got \(1, 5\)",
        ),
        (
            "tact(cover_classes=(5, 0))",
            r"cover_classes must not contain the target, 0, got \(5, 0\)",
        ),
        ("tact(cover_classes=(-1,))", r"cover_classes must be classes .* got \(-1,\)"),
        ("tact(cover_classes=(2.0,))", r"cover_classes of .* must be tuple\[int, ...\], got"),
        ("tact(cover_rate=1)", r"cover_rate must be in \[0, 0.99\], .* got 1.0"),
        ("bpp(levels=1)", "levels must be from 2 to 256, got 1"),
        ("bpp(levels=257)", "levels must be from 2 to 256, got 257"),
        ("bpp(cover_rate=0.95)", r"cover_rate must be in \[0, 0.9\], .* got 0.95"),
        ("badnets_all_to_all(target=1)", "has no single target; leave target at 0, got 1"),
        ("badnets_all_to_all(pattern='dots')", "pattern .* must be one of 'grid', 'white'"),
        ("badnets_all_to_all(margin=-1)", "margin must be at least 0"),
        ("badnets_all_to_all(poisoning_rate=2)", r"poisoning_rate must be in \(0, 1\], got 2.0"),
    ],
)
def test_a_value_out_of_range_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        attacks.build(text)
