"""Trojan, SIG and WaNet against slow references, their invariants, and values out of range."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample
from torch.utils._python_dispatch import TorchDispatchMode

from bdbench.attacks import wanet
from bdbench.attacks.blend import Blend
from bdbench.attacks.registry import attacks
from bdbench.attacks.sig import Sig
from bdbench.attacks.trojan import Trojan
from bdbench.attacks.wanet import WaNet, identity, warp
from bdbench.datasets.registry import datasets
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.rng import stream
from bdbench.storage.cache import Cache

DATA = os.environ.get("BDBENCH_DATA")


def noise(count: int, height: int, width: int) -> Tensor:
    rng = stream(0, "triggers")
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=rng)


def every_grey(height: int = 32, width: int = 32) -> Tensor:
    """256 images, each of one grey level."""
    levels = torch.arange(256, dtype=torch.uint8)
    return levels[:, None, None, None].expand(256, 3, height, width).contiguous()


def test_trojan_adds_its_colours_modulo_256_and_nothing_else() -> None:
    attack = Trojan()
    cells, images = attack.cells(), every_grey()
    stamped = attack.trigger(images)
    for level in range(0, 256, 15):
        for channel in range(3):
            for row in range(3):
                for column in range(3):
                    expected = (level + int(cells[channel, row, column])) % 256
                    assert int(stamped[level, channel, 25 + row, 25 + column]) == expected
    stamped[:, :, 25:28, 25:28] = images[:, :, 25:28, 25:28]
    assert torch.equal(stamped, images), "pixels outside the patch changed"
    assert not torch.equal(attack.trigger(attack.trigger(images)), attack.trigger(images))
    assert not torch.equal(cells, Trojan(patch_seed=1).cells())
    assert not torch.equal(cells, cells.transpose(1, 2)), "a swap of the axes would not show"


def test_trojan_can_overwrite_and_grows_with_the_image() -> None:
    images = noise(4, 40, 32)
    attack = Trojan(mode="overwrite")
    stamped = attack.trigger(images)
    assert torch.equal(stamped[:, :, 33:36, 25:28], attack.cells().expand(4, 3, 3, 3))
    large = Trojan().trigger(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
    rows, columns = large[0].any(0).nonzero().unbind(1)
    assert (int(rows.min()), int(rows.max())) == (175, 195)
    assert (int(columns.min()), int(columns.max())) == (175, 195)
    assert torch.equal(
        large[0, :, 175:182, 175:182].flatten(1).unique(dim=1).flatten(), Trojan().cells()[:, 0, 0]
    )


@pytest.mark.parametrize("width", [32, 48, 224])
def test_sig_adds_a_wave_that_is_the_same_in_every_row(width: int) -> None:
    attack = Sig(delta=20)
    grey = torch.full((1, 3, 6, width), 128, dtype=torch.uint8)
    wave = attack.trigger(grey).int() - 128
    for column in range(width):
        exact = 20 * math.sin(2 * math.pi * column * 6 / width)
        assert abs(int(wave[0, 0, 0, column]) - exact) <= 0.5 + 1e-9
    assert torch.equal(wave, wave[:, :1, :1].expand_as(wave))
    assert int(wave[0, 0, 0, 0]) == 0
    assert abs(int(wave.sum())) == 0
    spectrum = np.abs(np.fft.rfft(wave[0, 0, 0].numpy()))
    assert int(spectrum.argmax()) == 6


def test_sig_clips_and_never_wraps_around() -> None:
    attack = Sig(delta=40)
    wave = attack.wave(32).int()
    changed = attack.trigger(every_grey())
    expected = (every_grey().int() + wave).clamp(0, 255)
    assert torch.equal(changed.int(), expected)


def test_sig_poisons_the_target_class_and_changes_no_label() -> None:
    labels = torch.arange(200) % 4
    clean = ImageSet(noise(200, 8, 8), labels, 4)
    for attack, count in (
        (Sig(target=2), 5),
        (Sig(target=2, rate_basis="dataset"), 20),
        (Sig(target=2, poisoning_rate=1.0), 50),
    ):
        made = attack.poison(clean, stream(0, "poison"))
        assert int(made.mask.sum()) == count
        assert labels[made.mask].eq(2).all()
        assert torch.equal(made.train.labels, labels)


def test_wanet_reads_every_pixel_where_torch_would() -> None:
    attack = WaNet()
    images = noise(8, 32, 48)
    field = attack.field(32, 48)
    exact = grid_sample(
        images.double(), field[None].expand(8, -1, -1, -1), mode="bilinear", align_corners=True
    )
    assert float((attack.trigger(images) - exact).abs().max()) <= 0.5 + 255 / 2**11
    noisy = attack.disguise(images, stream(0, "noise"))
    assert noisy.shape == images.shape


def test_a_warp_by_hand() -> None:
    """Half a pixel to the right blends two neighbours, a quarter up blends two rows."""
    images = torch.tensor([[0, 100], [40, 200]], dtype=torch.uint8).expand(1, 3, 2, 2)
    field = identity(2, 2)[None].clone()
    field[0, 0, 0] = torch.tensor([0.0, -1.0], dtype=torch.float64)
    field[0, 1, 1] = torch.tensor([1.0, -0.5], dtype=torch.float64)
    assert warp(images, field)[0, 0].tolist() == [[50, 100], [40, 125]]


def test_wanet_without_a_field_changes_nothing_and_a_transposed_field_transposes() -> None:
    images = noise(3, 32, 32)
    assert torch.equal(warp(images, identity(32, 32)[None]), images)
    swapped = identity(32, 32).flip(-1)[None]
    assert torch.equal(warp(images, swapped), images.transpose(2, 3))


def test_wanet_moves_by_a_fraction_of_a_pixel() -> None:
    for seed in range(5):
        moved = (WaNet(grid_seed=seed).field(32, 32) - identity(32, 32)) * 31 / 2
        assert float(moved.abs().max()) <= 0.7
        assert 0.05 < float(moved.abs().mean()) < 0.3
    assert not torch.equal(WaNet().field(32, 32), WaNet(grid_seed=1).field(32, 32))
    assert torch.equal(WaNet().field(32, 32), WaNet(target=3).field(32, 32))


def test_wanet_covers_images_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fields of all images at once would take gigabytes; no image or draw depends on it."""
    attack, images = WaNet(cover_rate=0.1), noise(50, 32, 32)
    found = []
    for chunk in (1, 3 * 32 * 32 * 2, wanet.CHUNK):
        monkeypatch.setattr(wanet, "CHUNK", chunk)
        rng = stream(0, "cover")
        found.append((attack.disguise(images, rng), torch.rand(1, generator=rng)))
    for one, draw in found[1:]:
        assert torch.equal(one, found[0][0])
        assert torch.equal(draw, found[0][1])
    none = images[:0]
    made = attack.trigger(none), attack.disguise(none, stream(0, "cover"))
    assert all(each.shape == none.shape for each in made)


def test_wanet_covers_other_images_with_noise_of_their_own() -> None:
    images = noise(1, 32, 32).expand(200, -1, -1, -1).contiguous()
    clean = ImageSet(images, torch.arange(200) % 10, 10)
    made = WaNet(cover_rate=0.2).poison(clean, stream(0, "poison"))
    assert int(made.mask.sum()) == 20
    assert int(made.cover.sum()) == 40
    assert torch.equal(made.train.labels[made.cover], clean.labels[made.cover])
    covers = made.train.images[made.cover].flatten(1)
    assert len(covers.unique(dim=0)) == 40, "two cover images share their noise"
    assert len(made.train.images[made.mask].flatten(1).unique(dim=0)) == 1
    plain = WaNet().poison(clean, stream(0, "poison"))
    assert torch.equal(plain.mask, made.mask), "covers change who is poisoned"


def test_a_wave_that_is_zero_everywhere_is_refused() -> None:
    images = torch.zeros(1, 3, 12, 12, dtype=torch.uint8)
    with pytest.raises(InvalidInput, match="sig with frequency 6 and delta 40 is 0 in all of"):
        attacks.build("sig").trigger(images)
    assert attacks.build("sig(frequency=5)").trigger(images).any()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("trojan(mode='xor')", "mode .* must be one of 'add', 'overwrite'"),
        ("trojan(side=0)", "side must be from 1 to 224"),
        ("trojan(margin=-1)", "margin must be at least 0"),
        ("sig(delta=0)", r"delta must be in \(0, 255\]"),
        ("sig(frequency=0)", "frequency must be above 0"),
        ("sig(rate_basis='class')", "rate_basis .* must be one of 'target_class', 'dataset'"),
        ("wanet(strength=0)", "strength must be above 0"),
        ("wanet(grid=1)", "grid must be at least 2"),
        ("wanet(rescale=1.5)", r"rescale must be in \(0, 1\]"),
        ("wanet(cover_rate=0.95)", r"cover_rate must be in \[0, 0.9\]"),
    ],
)
def test_a_value_out_of_range_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        attacks.build(text)


def test_a_trigger_larger_than_the_image_is_refused() -> None:
    small = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(InvalidInput, match="33 x 33 pixels, 4 from the border, does not fit 32"):
        Trojan(side=33).trigger(small)
    with pytest.raises(InvalidInput, match="grid must be at most the image's side, 32, got 33"):
        WaNet(grid=33).trigger(small)


@pytest.mark.skipif(
    DATA is None or not Path(DATA, "cifar10").is_dir(), reason="CIFAR-10 is not here: $BDBENCH_DATA"
)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("badnets", 25.8),
        ("trojan", 29.7),
        ("trojan(mode='overwrite')", 28.6),
        ("blend", 22.4),
        ("sig(delta=20)", 25.2),
        ("sig(delta=40)", 19.4),
        ("wanet", 31.8),
    ],
)
def test_distortion_on_cifar10_has_the_known_size(
    text: str, expected: float, cache_folder: Path
) -> None:
    """Expected values were measured by other code, on 600 test images."""
    source = datasets.build("cifar10(train_images=1000)")
    images = source.load([Path(str(DATA))], Cache(cache_folder)).test.images[:600]
    error = (attacks.build(text).trigger(images).float() - images).square().mean((1, 2, 3))
    psnr = 10 * torch.log10(255**2 / error[error > 0])
    assert float(psnr.mean()) == pytest.approx(expected, abs=1)


class Operations(TorchDispatchMode):
    """Counts the operations on tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("text", ["badnets", "trojan", "blend", "sig", "wanet"])
def test_images_are_stamped_at_once_and_not_one_by_one(text: str) -> None:
    attack, images = attacks.build(text), noise(200, 32, 32)
    counts = []
    for count in (2, 2, 200):
        with Operations() as operations:
            attack.trigger(images[:count])
        counts.append(operations.count)
    assert counts[1] == counts[2] > 0


def test_blend_per_image_gives_each_image_noise_of_its_own() -> None:
    attack, grey = attacks.build("blend_per_image"), every_grey()
    stamped = attack.trigger(grey)
    noise = (stamped.float() - 0.8 * grey) / 0.2
    assert float(noise.min()) > -3
    assert float(noise.max()) < 258
    assert torch.equal(stamped[:, :1].expand_as(stamped), stamped), "the noise is grey"
    alike = torch.corrcoef(noise[:20, 0].flatten(1))
    assert float((alike - torch.eye(20)).abs().max()) < 0.2
    assert torch.equal(attack.trigger(grey[7:9]), stamped[7:9])
    assert not torch.equal(stamped, Blend().trigger(grey))


def test_wanets_noise_is_at_most_half_a_pixel() -> None:
    ramp = (7 * torch.arange(32)).to(torch.uint8).expand(4, 3, 32, 32)
    attack = WaNet(strength=1e-6)
    moved = attack.disguise(ramp, stream(0, "noise")).float() - ramp
    assert 2 < float(moved.abs().max()) <= 7 / 2 + 1


def test_wanets_field_is_scaled_as_its_setting_says() -> None:
    assert not torch.equal(WaNet().field(32, 32), WaNet(rescale=0.9).field(32, 32))
