"""Low frequency: the filter, the search for the pattern, and what is left of it in images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor, nn

from bdbench.attacks.evaluated import evaluated
from bdbench.attacks.lf import Judge, LowFrequency, energy_in_band, low_pass, projection
from bdbench.attacks.pixels import add
from bdbench.attacks.registry import attacks
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.recipe import Recipe


def make_context(epochs: int = 8, seed: int = 0, batch_size: int = 20) -> TrainingContext:
    recipe = Recipe(epochs, batch_size, learning_rate=0.05)
    build = partial(models.build("wrn16_1").build, 10, 16)
    return TrainingContext(recipe, torch.device("cpu"), build, seed)


def poison_stream() -> torch.Generator:
    return stream(0, "poison")


def filtered(images: Tensor, band: float) -> Tensor:
    """The low-pass filter by scipy: of each axis, the lowest frequencies of the DCT."""
    spectrum = dctn(images.double().numpy(), axes=(-2, -1), norm="ortho")
    height, width = (max(1, round(band * size)) for size in images.shape[-2:])
    spectrum[..., height:, :] = 0
    spectrum[..., :, width:] = 0
    return torch.from_numpy(idctn(spectrum, axes=(-2, -1), norm="ortho"))


@pytest.fixture(scope="module")
def stripes() -> ImageSet:
    """Ten brightnesses of the upper half, which a network learns at once."""
    shape, labels = (120, 3, 16, 12), torch.arange(120) % 10
    images = torch.randint(60, 75, shape, dtype=torch.uint8, generator=stream(0, "stripes"))
    images[:, :, :8] += (12 * labels[:, None, None, None]).to(torch.uint8)
    return ImageSet(images, labels, 10)


@pytest.fixture(scope="module")
def prepared(stripes: ImageSet) -> LowFrequency:
    attack, context = LowFrequency(target=3, fooled=0.6, step=4.0, passes=8), make_context()
    context = replace(context, recipe=context.recipe.still)
    return attack.prepare(stripes, context, poison_stream())


class Linear(Classifier):
    """One weight for each value of an image of 8 x 8, so that gradients are known."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)
        self.head = nn.Linear(192, 10)

    def body(self, images: Tensor) -> list[Tensor]:
        return [images.reshape(len(images), 192, 1, 1)]

    def embed(self, last: Tensor) -> Tensor:
        return last


@pytest.mark.parametrize("band", [0.01, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("size", [(16, 16), (9, 14), (1, 5)])
def test_the_filter_is_that_of_the_cosine_transform(band: float, size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size, generator=stream(0, "images"))
    keep = LowFrequency(band=band).filters(*size)
    once = low_pass(images, *keep)
    torch.testing.assert_close(once.double(), filtered(images, band), rtol=0, atol=1e-5)
    torch.testing.assert_close(low_pass(once, *keep), once, rtol=0, atol=1e-5)
    if band == 1:
        torch.testing.assert_close(once, images, rtol=0, atol=1e-5)


def test_the_filter_keeps_what_is_constant_and_removes_a_checkerboard() -> None:
    keep = projection(16, 0.25), projection(16, 0.25)
    grey = torch.full((3, 16, 16), 7.0)
    torch.testing.assert_close(low_pass(grey, *keep), grey)
    board = (-1.0) ** (torch.arange(16)[:, None] + torch.arange(16)).expand(3, 16, 16)
    assert energy_in_band(grey, *keep) == pytest.approx(1)
    assert energy_in_band(board, *keep) < 0.01
    assert energy_in_band(torch.zeros(3, 16, 16), *keep) == 1


def test_energy_in_band_is_a_share_of_the_spectrum() -> None:
    change = torch.randn(2, 3, 8, 12, generator=stream(0, "change"))
    spectrum = dctn(change.double().numpy(), axes=(-2, -1), norm="ortho") ** 2
    by_hand = spectrum[..., :2, :3].sum() / spectrum.sum()
    keep = LowFrequency(band=0.25).filters(8, 12)
    assert energy_in_band(change, *keep) == pytest.approx(by_hand, rel=1e-4)


def test_one_step_by_hand() -> None:
    """The gradient of the loss of the target, filtered, and scaled to its largest value. The recipe
    augments, the search does not."""
    torch.manual_seed(0)
    network = Linear().eval().requires_grad_(False)
    shape = (20, 3, 8, 8)
    pixels = torch.randint(100, 150, shape, dtype=torch.uint8, generator=stream(0, "pixels"))
    clean = ImageSet(pixels, torch.arange(20) % 10, 10)
    attack = LowFrequency(target=7, epsilon=255.0, step=90.0, passes=1, band=0.5)
    found = attack.search(attack.judge(network, clean), clean, make_context(epochs=1))
    gradient = torch.zeros(192)
    for image in pixels:
        shares = network.head(image.flatten() / 255).softmax(0)
        shares[7] -= 1
        gradient += network.head.weight.T @ shares
    downhill = filtered(-gradient.view(3, 8, 8), 0.5)
    expected = 90 * downhill / downhill.abs().max()
    assert found.dtype == torch.int16
    assert float((found - expected).abs().max()) <= 0.51
    assert int(found.abs().max()) == 90


def test_steps_add_up_until_the_bound_which_keeps_the_pattern_smooth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All steps of a linear network go nearly the same way; the sum is scaled, not clipped."""
    monkeypatch.setattr(Judge, "fooled", lambda *given: 0.0)
    torch.manual_seed(0)
    network = Linear().eval().requires_grad_(False)
    clean = ImageSet(torch.full((20, 3, 8, 8), 128, dtype=torch.uint8), torch.arange(20) % 10, 10)
    attack = LowFrequency(target=7, epsilon=100.0, step=4.0, band=0.25)
    context = make_context()
    for passes, largest in ((3, 12), (10, 40), (60, 100)):
        longer = replace(attack, passes=passes)
        found = longer.search(attack.judge(network, clean), clean, context)
        assert int(found.abs().max()) == pytest.approx(largest, abs=2)
        assert energy_in_band(found.float(), *attack.filters(8, 8)) > 0.99
    assert int(found.abs().max()) == 100


def test_the_search_ends_with_the_first_bound_that_fools_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bound grows by a quarter after each pass; a share just below is not enough."""
    torch.manual_seed(0)
    network = Linear().eval().requires_grad_(False)
    clean = ImageSet(torch.full((40, 3, 8, 8), 128, dtype=torch.uint8), torch.arange(40) % 10, 10)
    attack = LowFrequency(target=7, fooled=0.25, epsilon=80.0, step=80.0, passes=4)
    judge = attack.judge(network, clean)
    assert len(judge.before) == 36
    shares, asked = [0.0, 8 / 36, 9 / 36], []

    def answers(self: Judge, pattern: Tensor) -> Tensor:
        asked.append(int(pattern.abs().max()))
        changed = torch.arange(36) < round(36 * shares[len(asked) - 1])
        return self.before + changed

    monkeypatch.setattr(Judge, "answers", answers)
    found = attack.search(judge, clean, make_context())
    assert asked == [20, 40, 60]
    assert int(found.abs().max()) == 60


def test_only_images_of_other_classes_and_changed_answers_count() -> None:
    torch.manual_seed(0)
    clean = ImageSet(torch.full((20, 3, 8, 8), 128, dtype=torch.uint8), torch.arange(20) % 10, 10)
    network, pattern = Linear().eval(), torch.zeros(3, 8, 8, dtype=torch.int16)
    said = int(network(clean.images[:1] / 255).argmax())
    # All images get the same answer, which is right for one class.
    for target, wrong, share in ((said, 1.0, 1.0), ((said + 1) % 10, 8 / 9, 0.0)):
        attack = LowFrequency(target=target)
        facts = attack.evaluate(pattern, attack.judge(network, clean))
        assert facts["surrogate_error"] == pytest.approx(wrong)
        assert facts["surrogate_fooled"] == 0
        assert facts["surrogate_target_share"] == pytest.approx(share)
    with torch.no_grad():
        network.head.bias[said] -= 1e6
    attack = LowFrequency(target=said)
    judge = replace(attack.judge(network, clean), before=torch.full((18,), said))
    assert judge.fooled(pattern) == 1


def test_sorted_images_are_judged_at_random_and_the_target_alone_is_refused() -> None:
    """Every class is judged, the same images for a seed, however the data set is sorted."""
    labels = (torch.arange(3_000) // 300).long()
    images = torch.arange(3_000)[:, None, None, None] % 256
    clean = ImageSet(images.expand(-1, 3, 8, 8).to(torch.uint8), labels, 10)
    seen, again = (evaluated(clean, make_context(seed=1)) for _ in range(2))
    assert len(seen) == 1_000
    assert int(seen.labels.bincount(minlength=10).min()) > 60
    assert torch.equal(seen.images, again.images)
    assert not torch.equal(seen.images, evaluated(clean, make_context(seed=2)).images)
    few = clean[torch.arange(20)]
    assert sorted(evaluated(few, make_context()).images[:, 0, 0, 0].tolist()) == [*range(20)]
    with pytest.raises(InvalidInput, match="lf needs training images of other classes than 0"):
        LowFrequency(target=0).judge(Linear().eval(), few)


def test_the_pattern_is_smooth_small_and_turns_the_surrogate(prepared: LowFrequency) -> None:
    assert prepared.smooth is not None
    pattern, facts = prepared.smooth.pattern, prepared.smooth.facts
    assert pattern.shape == (3, 16, 12)
    assert 4 <= facts["largest_change"] == int(pattern.abs().max()) <= 32
    assert facts["rms_change"] == pytest.approx(float(pattern.double().square().mean().sqrt()))
    rest = pattern - filtered(pattern, 0.25)
    share = 1 - float(rest.square().sum() / pattern.double().square().sum())
    assert facts["energy_in_band"] == pytest.approx(share, abs=1e-5)
    assert facts["energy_in_band"] > 0.98
    # Nothing is clipped, because no image is near black or white.
    assert facts["energy_in_band_after_clipping"] == pytest.approx(share, abs=1e-5)
    assert facts["surrogate_target_share"] > 0


def test_every_image_gets_the_same_pattern(prepared: LowFrequency, stripes: ImageSet) -> None:
    assert prepared.smooth is not None
    before = stripes.images.clone()
    stamped = prepared.trigger(stripes.images)
    assert torch.equal(stripes.images, before), "the images were written"
    change = stamped.int() - stripes.images.int()
    assert torch.equal(change, prepared.smooth.pattern.int().expand_as(change))
    assert prepared.trigger(stripes.images[:0]).shape == (0, 3, 16, 12)
    made = prepared.poison(stripes, poison_stream())
    assert int(made.mask.sum()) == 12
    assert set(made.train.labels[made.mask].tolist()) == {3}
    assert torch.equal(made.train.images[made.mask], stamped[made.mask])
    assert torch.equal(made.train.images[~made.mask], stripes.images[~made.mask])
    assert torch.equal(made.train.labels[~made.mask], stripes.labels[~made.mask])
    assert made.facts == prepared.smooth.facts


def test_what_is_clipped_leaves_the_band() -> None:
    """On black images, the positive halves of a wave, a tenth of whose energy is in harmonics."""
    wave = (90 * torch.cos(3 * torch.pi * (torch.arange(16) + 0.5) / 16)).round().to(torch.int16)
    black = ImageSet(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.arange(4), 10)
    network = make_context().build().eval()
    attack = LowFrequency(target=9)
    facts = attack.evaluate(wave.expand(3, 16, 16), attack.judge(network, black))
    assert facts["energy_in_band"] > 0.999
    assert facts["energy_in_band_after_clipping"] == pytest.approx(0.9, abs=0.02)


def test_the_pattern_is_a_function_of_the_seed_and_the_target(stripes: ImageSet) -> None:
    def found(seed: int, target: int = 3) -> Tensor:
        attack = LowFrequency(target=target)
        attack = attack.prepare(stripes, make_context(2, seed), poison_stream())
        assert attack.smooth is not None
        return attack.smooth.pattern

    one = found(0)
    assert torch.equal(one, found(0))
    assert not torch.equal(one, found(1))
    assert not torch.equal(one, found(0, target=4))


@pytest.mark.parametrize(("epochs", "passes"), [(1, 1), (2, 3)])
def test_the_cost_equals_the_counted_passes(
    epochs: int, passes: int, stripes: ImageSet, work: Callable[[Callable[[], object]], int]
) -> None:
    """If the search does not end early."""
    attack, context = LowFrequency(passes=passes, fooled=1.0), make_context(epochs)
    done = work(lambda: attack.prepare(stripes, context, poison_stream()))
    assert done == pytest.approx(120 * attack.cost(context.recipe, 120))


def test_it_costs_at_most_a_sixth_more_than_its_surrogate() -> None:
    judged = 900 * (16 + 2) / 50_000
    assert LowFrequency().cost(Recipe(), 50_000) == pytest.approx(348 + judged)


def test_an_unprepared_attack_says_so(stripes: ImageSet) -> None:
    with pytest.raises(RuntimeError, match="lf must be prepared before it can stamp"):
        LowFrequency().poison(stripes, poison_stream())


def test_sums_are_clipped() -> None:
    images = torch.tensor([0, 10, 250, 255], dtype=torch.uint8)
    change = torch.tensor([-5, -5, 5, 100], dtype=torch.int16)
    assert add(images, change).tolist() == [0, 5, 255, 255]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("lf(poisoning_rate=0)", r"poisoning_rate must be in \(0, 1\], got 0.0"),
        ("lf(fooled=0)", r"fooled must be in \(0, 1\], got 0.0"),
        ("lf(fooled=1.1)", r"fooled must be in \(0, 1\], got 1.1"),
        ("lf(epsilon=0)", "from 1 to 255, got 0.0"),
        ("lf(epsilon=0.5)", "from 1 to 255, got 0.5"),
        ("lf(epsilon=31.5)", "from 1 to 255, got 31.5"),
        ("lf(epsilon=256)", "from 1 to 255, got 256.0"),
        ("lf(band=0)", r"band must be in \(0, 1\], got 0.0"),
        ("lf(band=1.5)", r"band must be in \(0, 1\], got 1.5"),
        ("lf(step=0)", "step must be above 0, got 0.0"),
        ("lf(passes=0)", "passes must be at least 1, got 0"),
        ("lf(target=-1)", "target must be a class of the data set, got -1"),
    ],
)
def test_a_value_out_of_range_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        attacks.build(text)
