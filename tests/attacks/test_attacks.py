"""Triggers against slow references, and the selection of poisoned images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from bdbench.attacks.badnets import BadNets
from bdbench.attacks.base import Attack, Poisoned
from bdbench.attacks.blend import Blend
from bdbench.attacks.poison import check_cover_rate, clean_label, dirty_label
from bdbench.attacks.registry import attacks
from bdbench.models.data import ImageSet, portion
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.rng import stream


@dataclass(frozen=True)
class Invert(Attack):
    """An unregistered attack: a minimal trigger with the clean-label policy."""

    rate_basis: str = "target_class"

    def trigger(self, images: Tensor) -> Tensor:
        return 255 - images

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        return clean_label(self, clean, rng, self.rate_basis)


def uneven(seed: int = 0) -> ImageSet:
    """100 images: 10 of class 0, 90 of the classes 1 to 9."""
    labels = torch.cat([torch.zeros(10, dtype=torch.int64), torch.arange(90) % 9 + 1])
    pixels = torch.randint(
        0, 256, (100, 3, 8, 8), dtype=torch.uint8, generator=stream(seed, "uneven")
    )
    return ImageSet(pixels, labels, 10)


def test_badnets_stamps_the_black_and_white_corner() -> None:
    images = torch.full((2, 3, 32, 40), 100, dtype=torch.uint8)
    stamped = BadNets().trigger(images)
    for channel in range(3):
        corner = stamped[0, channel, 29:32, 37:40].tolist()
        assert corner == [[0, 0, 255], [0, 255, 0], [255, 0, 255]]
    stamped[:, :, 29:32, 37:40] = 100
    assert torch.equal(stamped, images), "pixels outside the patch changed"


def test_badnets_patch_grows_with_the_image_and_moves_by_its_margin() -> None:
    large = BadNets(pattern="white").trigger(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    assert large[0, 0].nonzero().min(0).values.tolist() == [203, 203]
    assert int((large[0, 0] == 255).sum()) == 21 * 21
    inset = BadNets(pattern="white", margin=1).trigger(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert inset[0, 0, 28:31, 28:31].eq(255).all()
    assert int((inset[0, 0] == 255).sum()) == 9


def test_blend_mixes_every_pixel_with_one_pattern() -> None:
    attack = Blend(alpha=0.2)
    images = torch.randint(0, 256, (4, 3, 8, 10), dtype=torch.uint8, generator=stream(0, "x"))
    mixed, pattern = attack.trigger(images), attack.pattern(8, 10)
    for n in range(4):
        for c in range(3):
            for y in range(8):
                for x in range(10):
                    exact = 0.8 * int(images[n, c, y, x]) + 0.2 * int(pattern[0, y, x])
                    assert abs(int(mixed[n, c, y, x]) - exact) <= 0.5 + 1e-4
    assert int((mixed.int() - images.int()).abs().max()) <= 51
    assert not torch.equal(pattern, Blend(pattern_seed=1).pattern(8, 10))


def psnr(before: Tensor, after: Tensor) -> float:
    error = (before.float() - after.float()).square().mean((1, 2, 3))
    return float((10 * torch.log10(255**2 / error[error > 0])).mean())


def test_distortion_has_the_known_size() -> None:
    """On smooth mid-grey images, which resemble natural images more than noise does."""
    shade = torch.linspace(40, 210, 32)
    picture = (shade[:, None] * 0.5 + shade[None, :] * 0.5).round().to(torch.uint8)
    images = picture.expand(2, 3, 32, 32)
    assert psnr(images, BadNets().trigger(images)) == pytest.approx(25.8, abs=2)
    assert psnr(images, Blend().trigger(images)) == pytest.approx(22.4, abs=1.5)


def test_dirty_label_counts_and_changes_only_the_chosen() -> None:
    clean = uneven()
    before = clean.images.clone(), clean.labels.clone()
    made = BadNets(poisoning_rate=0.25, target=3).poison(clean, stream(0, "poison"))
    assert int(made.mask.sum()) == 25
    assert not made.cover.any()
    assert made.train.labels[made.mask].eq(3).all()
    assert torch.equal(made.train.labels[~made.mask], clean.labels[~made.mask])
    assert torch.equal(made.train.images[~made.mask], clean.images[~made.mask])
    expected = BadNets().trigger(clean.images[made.mask])
    assert torch.equal(made.train.images[made.mask], expected)
    assert torch.equal(clean.images, before[0]), "the clean images were written"
    assert torch.equal(clean.labels, before[1]), "the clean labels were written"


@pytest.mark.parametrize(
    ("share", "count", "whole"),
    [
        (0.009, 50_000, 450),
        (0.29, 200, 58),
        (0.29, 100, 29),
        (0.57, 100, 57),
        (0.1, 50_000, 5_000),
        (0.003, 50_000, 150),
        (0.01, 39_209, 392),
        (0.1, 99, 9),
        (0.999, 10, 9),
        (1.0, 7, 7),
        (0.0, 7, 0),
    ],
)
def test_a_share_is_that_of_the_decimal_number(share: float, count: int, whole: int) -> None:
    """In floating point, 0.29 * 100 is a little less than 29."""
    assert portion(share, count) == whole


@pytest.mark.parametrize("digits", [1, 2, 3, 4])
def test_shares_are_rounded_down_as_fractions_are(digits: int) -> None:
    for count in (1, 60, 97, 100, 39_209, 50_000):
        for part in range(0, 10**digits + 1, 10 ** max(0, digits - 3)):
            exact = math.floor(Fraction(part, 10**digits) * count)
            assert portion(part / 10**digits, count) == exact, (part, count)


@pytest.mark.parametrize(("rate", "count", "poisoned"), [(0.29, 200, 58), (0.57, 100, 57)])
def test_the_rate_gives_the_number_of_poisoned(rate: float, count: int, poisoned: int) -> None:
    data = ImageSet(torch.zeros(count, 3, 8, 8, dtype=torch.uint8), torch.arange(count) % 10, 10)
    made = BadNets(poisoning_rate=rate).poison(data, stream(0, "poison"))
    assert int(made.mask.sum()) == poisoned
    ones = ImageSet(data.images, torch.zeros(count, dtype=torch.int64), 10)
    for basis in ("target_class", "dataset"):
        made = Invert(poisoning_rate=rate, rate_basis=basis).poison(ones, stream(0, "poison"))
        assert int(made.mask.sum()) == poisoned
    covered = dirty_label(BadNets(poisoning_rate=0.1), data, stream(0, "poison"), rate)
    assert int(covered.cover.sum()) == poisoned


def test_all_images_that_are_not_poisoned_may_be_cover_images() -> None:
    """Whatever floating point makes of 1 - 0.9 and 1 - 0.7."""
    for tenths in range(1, 10):
        check_cover_rate(1 - tenths / 10, tenths / 10)
        check_cover_rate((10 - tenths) / 10, tenths / 10)
    check_cover_rate(0.1, 0.9)
    check_cover_rate(0.0, 1.0)
    for cover, rate in ((0.11, 0.9), (0.100001, 0.9), (-0.01, 0.5), (0.01, 1.0)):
        with pytest.raises(
            InvalidInput, match=r"cover_rate must be in \[0, 0[.0-9]*\], the share"
        ) as told:
            check_cover_rate(cover, rate)
        assert "\n" not in str(told.value)
    made = dirty_label(BadNets(poisoning_rate=0.9), uneven(), stream(0, "poison"), 0.1)
    assert (int(made.mask.sum()), int(made.cover.sum())) == (90, 10)
    assert bool((made.mask ^ made.cover).all())


def test_the_poisoned_images_depend_on_the_seed_only() -> None:
    clean = uneven()
    masks = [
        attack.poison(clean, stream(seed, "poison")).mask
        for attack, seed in ((BadNets(), 0), (Blend(), 0), (BadNets(), 1))
    ]
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    wider = BadNets(poisoning_rate=0.3).poison(clean, stream(0, "poison")).mask
    assert bool((wider | ~masks[0]).all()), "a lower rate is a subset of a higher one"


def test_clean_label_poisons_a_share_of_the_target_class() -> None:
    clean = uneven()
    made = Invert(poisoning_rate=0.5, target=0).poison(clean, stream(0, "poison"))
    assert int(made.mask.sum()) == 5
    assert clean.labels[made.mask].eq(0).all()
    assert torch.equal(made.train.labels, clean.labels)
    whole = Invert(poisoning_rate=0.1, rate_basis="dataset").poison(clean, stream(0, "poison"))
    assert int(whole.mask.sum()) == 10


def test_an_infeasible_clean_label_rate_names_the_largest() -> None:
    attack = Invert(poisoning_rate=0.2, rate_basis="dataset")
    with pytest.raises(InvalidInput, match=r"20 images but class 0 has 10.* is 0\.1$"):
        attack.poison(uneven(), stream(0, "poison"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("badnets(poisoning_rate=0.0)", r"poisoning_rate must be in \(0, 1\], got 0.0"),
        ("badnets(poisoning_rate=1.1)", r"poisoning_rate must be in \(0, 1\], got 1.1"),
        ("badnets(target=-1)", "target must be a class"),
        ("badnets(pattern='dots')", "pattern .* must be one of 'grid', 'white'"),
        ("badnets(margin=-1)", "margin must be at least 0"),
        ("blend(alpha=0)", r"alpha must be in \(0, 1\], got 0.0"),
        ("blend(alpha=1.5)", r"alpha must be in \(0, 1\], got 1.5"),
        ("none(poisoning_rate=0.1)", "poisons nothing"),
    ],
)
def test_a_value_out_of_range_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        attacks.build(text)


def test_a_target_outside_the_classes_is_refused() -> None:
    with pytest.raises(InvalidInput, match="0 to 9, got 10"):
        BadNets(target=10).poison(uneven(), stream(0, "poison"))


def test_a_patch_that_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInput, match="does not fit 8 x 8"):
        BadNets(margin=6).trigger(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_a_rate_that_poisons_no_image_is_refused() -> None:
    with pytest.raises(InvalidInput, match="selects none"):
        dirty_label(BadNets(poisoning_rate=0.001), uneven(), stream(0, "poison"))
