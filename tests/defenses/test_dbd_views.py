"""Batched SimCLR views against torchvision's functions, image by image with the same draws."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional

from bdbench.defenses.dbd_views import REACH, ViewDraws, draw_views, make_views
from bdbench.models.rng import global_seed, stream


def pictures(count: int, size: tuple[int, int]) -> Tensor:
    """Smooth, grey and saturated images, as parts of photographs are."""
    images = torch.rand(count, 3, *size, generator=stream(1, "images"))
    images[1::4] = images[1::4].round()
    images[2::4] = images[2::4, :1]
    images[3::4] = images[3::4].cumsum(3) / images[3::4].sum(3, keepdim=True)
    return images.contiguous(memory_format=torch.channels_last)


def reference(image: Tensor, draws: ViewDraws, n: int) -> Tensor:
    """One view as torchvision makes it, step by step."""
    top, left = int(draws.top[n]), int(draws.left[n])
    height, width = int(draws.height[n]), int(draws.width[n])
    view = functional.resized_crop(
        image, top, left, height, width, list(image.shape[1:]), InterpolationMode.BICUBIC, True
    ).clamp(0, 1)
    if draws.mirrored[n]:
        view = functional.horizontal_flip(view)
    if draws.brightness[n] != 1:
        view = functional.adjust_brightness(view, float(draws.brightness[n]))
        view = functional.adjust_contrast(view, float(draws.contrast[n]))
        view = functional.adjust_saturation(view, float(draws.saturation[n]))
        view = functional.adjust_hue(view, float(draws.hue[n]))
    if draws.grey[n]:
        view = functional.rgb_to_grayscale(view, num_output_channels=3)
    if draws.sigma[n]:
        sides = [2 * min(REACH, side - 1) + 1 for side in reversed(view.shape[1:])]
        view = functional.gaussian_blur(view, sides, [float(draws.sigma[n])] * 2)
    return view


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("size", [(32, 32), (12, 20), (5, 5), (48, 40)])
def test_equals_torchvision_for_each_image(size: tuple[int, int], flip: bool) -> None:
    images = pictures(130, size)
    before = images.clone()
    draws = draw_views(130, size, flip, stream(2, "draws"))
    expected = torch.stack([reference(images[n], draws, n) for n in range(130)])
    made = make_views(images, draws)
    # A 150th of a grey level: weights that are no binary fractions, and a division by chroma.
    torch.testing.assert_close(made, expected, rtol=0, atol=2.5e-5)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before), "the input was written"


def neutral(count: int, size: tuple[int, int]) -> ViewDraws:
    """Draws that leave an image unchanged."""
    nothing, one = torch.zeros(count), torch.ones(count)
    return ViewDraws(
        top=nothing.long(),
        left=nothing.long(),
        height=one.long() * size[0],
        width=one.long() * size[1],
        mirrored=nothing.bool(),
        brightness=one,
        contrast=one,
        saturation=one,
        hue=nothing,
        grey=nothing.bool(),
        sigma=nothing,
    )


def test_neutral_draws_change_nothing() -> None:
    images = pictures(8, (32, 32))
    draws = neutral(8, (32, 32))
    torch.testing.assert_close(make_views(images, draws), images, rtol=0, atol=1e-6)
    mirrored = make_views(images, replace(draws, mirrored=torch.ones(8).bool()))
    torch.testing.assert_close(mirrored, images.flip(3), rtol=0, atol=1e-6)


def test_colours_by_hand() -> None:
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    draws = neutral(1, (8, 8))

    def colour(**choices: float | bool) -> list[float]:
        changed = {name: torch.tensor([value]) for name, value in choices.items()}
        view = make_views(red, replace(draws, **changed))[0]
        assert torch.allclose(view, view[:, :1, :1])
        return [round(value, 4) for value in view[:, 0, 0].tolist()]

    assert colour(hue=1 / 3) == [0, 1, 0]
    assert colour(hue=-1 / 3) == [0, 0, 1]
    assert colour(hue=1 / 6) == [1, 1, 0]
    assert colour(brightness=0.6) == [0.6, 0, 0]
    assert colour(saturation=0.6) == [round(0.6 + 0.4 * 0.2989, 4)] + [round(0.4 * 0.2989, 4)] * 2
    assert colour(grey=True) == [0.2989] * 3
    assert colour(sigma=2.0) == [1, 0, 0]


def test_views_stay_in_range_and_differ() -> None:
    same = pictures(1, (32, 32)).expand(200, -1, -1, -1)
    views = make_views(same, draw_views(200, (32, 32), True, stream(3, "draws")))
    assert views.dtype == torch.float32
    assert float(views.min()) >= 0
    assert float(views.max()) <= 1
    assert len({view.numpy().tobytes() for view in views}) == 200


def test_a_view_does_not_depend_on_its_neighbours() -> None:
    images, draws = pictures(150, (32, 32)), draw_views(150, (32, 32), True, stream(4, "draws"))
    together = make_views(images, draws)
    alone = torch.cat([make_views(images[n : n + 1], draws[n : n + 1]) for n in range(150)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    rows = torch.tensor([140, 3, 77])
    torch.testing.assert_close(make_views(images[rows], draws[rows]), together[rows])


def test_draws_have_the_frequencies_of_the_paper() -> None:
    draws = draw_views(20_000, (32, 32), True, stream(0, "draws"))
    assert len(draws) == 20_000
    shares = {
        "mirrored": (draws.mirrored, 0.5),
        "jittered": (draws.brightness != 1, 0.8),
        "grey": (draws.grey, 0.2),
        "blurred": (draws.sigma > 0, 0.5),
    }
    for name, (happened, expected) in shares.items():
        assert float(happened.float().mean()) == pytest.approx(expected, abs=0.015), name
    jittered = draws.brightness != 1
    assert torch.equal(jittered, draws.hue != 0)
    for factors in (draws.brightness, draws.contrast, draws.saturation):
        assert torch.equal(jittered, factors != 1)
        assert float(factors[jittered].min()) == pytest.approx(0.6, abs=1e-3)
        assert float(factors[jittered].max()) == pytest.approx(1.4, abs=1e-3)
        assert float(factors[jittered].mean()) == pytest.approx(1.0, abs=0.01)
    assert float(draws.hue.abs().max()) == pytest.approx(0.1, abs=1e-3)
    sigma = draws.sigma[draws.sigma > 0]
    assert float(sigma.min()) == pytest.approx(0.1, abs=2e-3)
    assert float(sigma.max()) == pytest.approx(2.0, abs=2e-3)


@pytest.mark.parametrize("size", [(32, 32), (20, 24)])
def test_crops_are_distributed_as_torchvision_draws_them(size: tuple[int, int]) -> None:
    draws = draw_views(20_000, size, True, stream(0, "draws"))
    assert int(draws.top.min()) == int(draws.left.min()) == 0
    assert int((draws.top + draws.height).max()) == size[0]
    assert int((draws.left + draws.width).max()) == size[1]
    ours = torch.stack([draws.top, draws.left, draws.height, draws.width], 1).float()
    with global_seed(0, "crops"):
        image = torch.zeros(3, *size)
        theirs = torch.tensor(
            [RandomResizedCrop.get_params(image, [0.2, 1], [3 / 4, 4 / 3]) for _ in range(20_000)]
        ).float()
    for moment in (torch.mean, torch.std):
        assert torch.allclose(moment(ours, 0), moment(theirs, 0), rtol=0.03, atol=0.02)


def test_without_flips_no_view_is_mirrored_and_other_draws_are_the_same() -> None:
    with_flips = draw_views(500, (32, 32), True, stream(5, "draws"))
    without = draw_views(500, (32, 32), False, stream(5, "draws"))
    assert bool(with_flips.mirrored.any())
    assert not bool(without.mirrored.any())
    for field in fields(ViewDraws):
        if field.name != "mirrored":
            assert torch.equal(getattr(with_flips, field.name), getattr(without, field.name))
