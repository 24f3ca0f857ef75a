"""Attacks with their own training: Dynamic, the adaptive attack and the inverted Trojan patch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bdbench.attacks import adaptive as adaptive_attack
from bdbench.attacks import dynamic as module
from bdbench.attacks import trojan
from bdbench.attacks.adaptive import Adaptive
from bdbench.attacks.badnets import BadNets
from bdbench.attacks.dynamic import Dynamic, Generator, binary, blend, diversity
from bdbench.attacks.registry import attacks
from bdbench.attacks.trojan import Trojan
from bdbench.cells.cell import cell
from bdbench.contract.scenarios import random_images
from bdbench.datasets.registry import datasets
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.augment import to_float
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.recipe import Recipe
from bdbench.storage.cache import Cache
from bdbench.trial.harness import Harness

CPU = torch.device("cpu")


def make_context(epochs: int = 4, seed: int = 0) -> TrainingContext:
    recipe = Recipe(epochs, batch_size=20, learning_rate=0.01)
    return TrainingContext(recipe, CPU, partial(models.build("wrn16_1").build, 10, 32), seed)


def poison_stream() -> torch.Generator:
    return stream(0, "poison")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    source = datasets.build("toy(train_images=300, test_images=100, image_size=16)")
    return source.load([], Cache(tmp_path_factory.mktemp("toy"))).train


@pytest.fixture(scope="module")
def dynamic(toy: ImageSet) -> Dynamic:
    return Dynamic(mask_epochs=150, joint_epochs=1).prepare(toy, make_context(), poison_stream())


@pytest.fixture(scope="module")
def adaptive(toy: ImageSet) -> Adaptive:
    return Adaptive(rounds=4).prepare(toy, make_context(), poison_stream())


def test_the_trigger_networks_have_the_published_size() -> None:
    """The numbers of parameters are those of the published networks."""
    assert sum(values.numel() for values in Generator(3).parameters()) == 723_273
    assert sum(values.numel() for values in Generator(1).parameters()) == 722_691
    images = torch.rand(2, 3, 40, 32)
    assert Generator(3)(images).shape == images.shape
    assert Generator(1)(images).shape == (2, 1, 40, 32)


def test_a_trigger_of_its_own_for_each_image(dynamic: Dynamic, toy: ImageSet) -> None:
    assert dynamic.networks is not None
    images = to_float(toy.images[:20])
    with torch.no_grad():
        masks = binary(dynamic.networks.mask(images))
        patterns = dynamic.networks.pattern(images)
        stamped = blend(images, images, dynamic.networks)
    assert bool(((masks >= 0) & (masks <= 1)).all())
    assert bool(((patterns >= 0) & (patterns <= 1)).all())
    by_hand = (1 - masks) * images + masks * patterns
    torch.testing.assert_close(stamped, by_hand, rtol=0, atol=1e-6)
    written = dynamic.trigger(toy.images[:20])
    assert float((written / 255 - by_hand).abs().max()) <= 0.5 / 255 + 1e-5
    assert float((masks[0] - masks[1]).abs().max()) > 0.01
    assert float((patterns[0] - patterns[1]).abs().max()) > 0.001


def test_a_finished_trigger_does_not_depend_on_the_batch(dynamic: Dynamic, toy: ImageSet) -> None:
    together = dynamic.trigger(toy.images[:70])
    alone = torch.cat([dynamic.trigger(toy.images[n : n + 1]) for n in range(3)])
    assert torch.equal(together[:3], alone)
    assert not any(module.training for module in parts(dynamic))


def parts(attack: Dynamic) -> list[nn.Module]:
    assert attack.networks is not None
    return [*attack.networks.mask.modules(), *attack.networks.pattern.modules()]


def test_dynamic_is_a_function_of_its_seed(toy: ImageSet) -> None:
    short, few = Dynamic(mask_epochs=1, joint_epochs=1), toy[torch.arange(60)]
    one, two, other = (
        short.prepare(few, make_context(seed=seed), poison_stream()).trigger(toy.images[:5])
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_dynamic_learns_small_masks_and_reports_how_well_it_did(dynamic: Dynamic) -> None:
    assert dynamic.networks is not None
    facts = dynamic.networks.facts
    assert set(facts) == {
        "surrogate_accuracy",
        "surrogate_success",
        "surrogate_cross_accuracy",
        "mask_density",
        "mask_binary",
    }
    assert all(0 <= value <= 1 for value in facts.values())
    assert facts["mask_density"] < 0.25


def test_diversity_by_hand() -> None:
    """Root mean squares of the differences: the mean of 0.5 / 0.1 and 1 / 0.2."""
    one, other = torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 2, 2)
    one[0], one[1] = 0.5, 1.0
    drawn, drawn_other = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    drawn[0], drawn[1] = 0.1, 0.2
    assert float(diversity(one, other, drawn, drawn_other)) == pytest.approx(5, rel=1e-3)
    drawn[1] = 0.1
    assert float(diversity(one, other, drawn, drawn_other)) == pytest.approx(7.5, rel=1e-3)


def test_masks_are_compared_with_images_as_networks_see_them(
    toy: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For masks the images are normalised, which multiplies distances by four; for patterns neither
    side is."""
    seen: list[tuple[int, float]] = []
    plain = module.diversity

    def watched(one: Tensor, other: Tensor, drawn: Tensor, drawn_other: Tensor) -> Tensor:
        seen.append((drawn.shape[1], float(one.max())))
        return plain(one, other, drawn, drawn_other)

    monkeypatch.setattr(module, "diversity", watched)
    white = ImageSet(torch.full_like(toy.images[:20], 255), toy.labels[:20], 10)
    context = replace(make_context(), recipe=Recipe(1, batch_size=20, padding=0, cutout=0))
    Dynamic(mask_epochs=1, joint_epochs=1).prepare(white, context, poison_stream())
    assert seen == [(1, pytest.approx(1 / module.DEVIATION)), (3, pytest.approx(1.0))]


def test_cross_images_get_anothers_trigger_and_keep_their_labels(
    dynamic: Dynamic, toy: ImageSet
) -> None:
    with pytest.raises(InvalidInput, match="dynamic needs two cover images or more"):
        replace(dynamic, cross_rate=1 / len(toy)).poison(toy, poison_stream())
    made = replace(dynamic, cross_rate=0.2).poison(toy, poison_stream())
    assert int(made.mask.sum()) == 30
    assert int(made.cover.sum()) == 60
    assert torch.equal(made.train.labels[made.cover], toy.labels[made.cover])
    own = dynamic.trigger(toy.images[made.cover])
    assert not torch.equal(made.train.images[made.cover], own)
    assert torch.equal(made.mask, BadNets().poison(toy, poison_stream()).mask)


def test_training_ends_when_the_trigger_works(
    toy: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def evaluated(attack: Dynamic, classifier: Classifier, clean: ImageSet) -> dict[str, float]:
        asked.append(len(clean))
        success = 0.96 if len(asked) < 2 else 0.97
        return {
            "surrogate_success": success,
            "surrogate_accuracy": 0.9,
            "surrogate_cross_accuracy": 0.83,
        }

    monkeypatch.setattr("bdbench.attacks.dynamic.evaluate", evaluated)
    Dynamic(mask_epochs=1).prepare(toy[torch.arange(60)], make_context(epochs=6), poison_stream())
    assert len(asked) == 2, "the recipe has 4 epochs"


def test_noise_stays_within_its_bound_and_on_the_poisoned_images(
    adaptive: Adaptive, toy: ImageSet
) -> None:
    plain = BadNets().poison(toy, poison_stream())
    made = adaptive.poison(toy, poison_stream())
    assert torch.equal(made.mask, plain.mask)
    assert torch.equal(made.train.labels, plain.train.labels)
    assert torch.equal(made.train.images[~made.mask], toy.images[~made.mask])
    noise = (made.train.images.int() - plain.train.images.int())[made.mask]
    assert int(noise.abs().max()) <= 8
    assert float((noise != 0).float().mean()) > 0.5
    error = noise.float().square().mean((1, 2, 3))
    assert float((10 * torch.log10(255**2 / error)).min()) >= 30.07


@pytest.mark.parametrize("epochs", [1, 2, 100])
def test_the_surrogate_is_trained_at_the_full_rate_in_every_round(
    epochs: int, toy: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the drops of the recipe, and with its other settings."""
    rates: list[tuple[float, float, float, bool]] = []
    step = torch.optim.SGD.step

    def watched(self: torch.optim.SGD, *given: object) -> object:
        (group,) = self.param_groups
        rates.append(tuple(group[n] for n in ("lr", "momentum", "weight_decay", "nesterov")))  # type: ignore[arg-type]
        return step(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    recipe = Recipe(epochs, batch_size=20, learning_rate=0.03, drops=(0.01, 0.2, 0.7))
    few, context = toy[torch.arange(60)], replace(make_context(), recipe=recipe)
    Adaptive(rounds=5, steps=1).prepare(few, context, poison_stream())
    assert rates == [(0.03, 0.9, 1e-4, True)] * (5 * 3)


def test_the_test_trigger_has_no_noise(adaptive: Adaptive, toy: ImageSet) -> None:
    assert torch.equal(adaptive.trigger(toy.images), BadNets().trigger(toy.images))


def test_noise_raises_the_surrogates_loss_and_the_record_says_so(adaptive: Adaptive) -> None:
    assert adaptive.hardening is not None
    facts = adaptive.hardening.facts
    assert facts["surrogate_loss_after"] > facts["surrogate_loss_before"]
    assert facts["largest_noise"] <= 8


class Linear(Classifier):
    """One weight for each pixel, so that gradients are known."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)
        self.head = nn.Linear(12, 10)

    def body(self, images: Tensor) -> list[Tensor]:
        return [images.reshape(len(images), 12, 1, 1)]

    def embed(self, last: Tensor) -> Tensor:
        return last


@pytest.mark.parametrize("signed", [True, False])
def test_one_step_of_equation_10_by_hand(signed: bool) -> None:
    torch.manual_seed(0)
    network = Linear().eval()
    images = torch.randint(20, 230, (4, 3, 2, 2), dtype=torch.uint8)
    victims = ImageSet(images, torch.tensor([0, 1, 2, 3]), 10)
    attack = Adaptive(signed=signed, steps=1, step=2.0)
    delta = attack.ascend(network, victims, torch.zeros(4, 3, 2, 2))
    for n in range(4):
        pixels = (images[n].float() / 255).flatten()
        shares = network.head(pixels).softmax(0)
        shares[n] -= 1
        gradient = (network.head.weight.T @ shares).view(3, 2, 2)
        step = gradient.sign() if signed else gradient
        torch.testing.assert_close(delta[n], 2 * step, rtol=1e-3, atol=1e-4)


def test_noise_stops_at_black_and_white() -> None:
    network = Linear().eval()
    images = torch.zeros(2, 3, 2, 2, dtype=torch.uint8)
    images[1] = 255
    victims = ImageSet(images, torch.tensor([0, 1]), 10)
    attack = Adaptive(steps=30, step=2.0)
    delta = attack.ascend(network, victims, torch.zeros(2, 3, 2, 2))
    assert float(delta[0].min()) >= 0
    assert float(delta[1].max()) <= 0
    assert float(delta.abs().max()) <= 8


WHOLE = "epsilon must be a whole number of grey levels from 1 to 255"


@pytest.mark.parametrize("epsilon", [1, 2, 5])
def test_noise_reaches_a_whole_bound_and_stays_within_it(epsilon: int, images: ImageSet) -> None:
    """With steps that would exceed it."""
    attack = Adaptive(epsilon=epsilon, step=0.7, steps=10, rounds=1)
    made = attack.prepare(images, make_context(1), poison_stream()).poison(images, poison_stream())
    assert made.facts["largest_noise"] == epsilon


def test_adaptive_hardens_any_attack_and_keeps_rate_and_target() -> None:
    attack = attacks.build("adaptive(attack='blend(alpha=0.1)', poisoning_rate=0.05, target=3)")
    assert isinstance(attack, Adaptive)
    inner = attack.inner()
    assert (inner.poisoning_rate, inner.target) == (0.05, 3)
    assert attack.attack == "blend(alpha=0.1, pattern_seed=0)"
    assert attacks.label("adaptive") == "adaptive"
    short = "adaptive(attack='blend(alpha=0.1)')"
    assert attacks.label(short) == short
    assert attacks.canonical("adaptive") == attacks.canonical("adaptive(attack='badnets()')")
    assert attacks.parts("adaptive(attack='trojan')") == ["adaptive", "trojan"]


def test_adaptive_over_a_trained_attack(toy: ImageSet) -> None:
    text = "adaptive(attack='dynamic(mask_epochs=1, joint_epochs=1)', rounds=1)"
    attack = attacks.build(text).prepare(toy, make_context(epochs=1), poison_stream())
    made = attack.poison(toy, poison_stream())
    noise = made.train.images[made.mask].int() - attack.trigger(toy.images[made.mask]).int()
    assert 0 < int(noise.abs().max()) <= 8
    assert {"mask_density", "surrogate_loss_after"} <= set(made.facts)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("adaptive(attack='adaptive')", "adaptive cannot harden adaptive"),
        ("adaptive(attack='none')", "adaptive needs an attack to harden"),
        ("adaptive(attack='badnet')", "unknown attack 'badnet'; did you mean 'badnets'"),
        ("adaptive(attack='blend(alpha=2)')", r"alpha must be in \(0, 1\]"),
        ("adaptive(attack='blend(poisoning_rate=0.2)')", "poisoning_rate is a field of attack"),
        ("adaptive(epsilon=0)", f"{WHOLE}, got 0.0"),
        ("adaptive(epsilon=0.5)", f"{WHOLE}, got 0.5"),
        ("adaptive(epsilon=7.6)", f"{WHOLE}, got 7.6"),
        ("adaptive(epsilon=255.5)", f"{WHOLE}, got 255.5"),
        ("adaptive(epsilon=256)", f"{WHOLE}, got 256.0"),
        ("adaptive(epsilon=-8)", f"{WHOLE}, got -8.0"),
        ("adaptive(step=0)", "step must be above 0"),
        ("adaptive(steps=0)", "steps must be at least 1"),
        ("adaptive(rounds=0)", "rounds must be at least 1"),
        ("dynamic(density=0)", r"density must be in \(0, 1\)"),
        ("dynamic(cross_rate=-0.1)", r"cross_rate must be in \[0, 0.9\]"),
        ("dynamic(mask_epochs=0)", "mask_epochs must be at least 1"),
        ("dynamic(joint_epochs=0)", "joint_epochs must be at least 1"),
    ],
)
def test_a_value_out_of_range_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        attacks.build(text)


def test_dynamic_refuses_sides_that_cannot_be_halved_three_times() -> None:
    pixels = torch.zeros(4, 3, 36, 32, dtype=torch.uint8)
    with pytest.raises(InvalidInput, match="multiples of 8"):
        Dynamic().prepare(ImageSet(pixels, torch.arange(4), 10), make_context(), poison_stream())


def test_an_inverted_patch_drives_its_neurons(toy: ImageSet) -> None:
    attack = Trojan(mode="inverted").prepare(toy, make_context(), poison_stream())
    made = attack.poison(toy, poison_stream())
    assert made.facts["activation_after"] > made.facts["activation_before"]
    stamped = attack.trigger(toy.images[:3])
    assert torch.equal(stamped[:, :, 9:12, 9:12], attack.cells().expand(3, 3, 3, 3))
    assert not torch.equal(attack.cells(), Trojan().cells())


TRAINED = [name for name in attacks.names() if attacks.build(name).trains]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        *((f"{name}(poisoning_rate=0.01)", "selects none; raise it") for name in TRAINED),
        *(
            (f"adaptive(attack={name!r}, poisoning_rate=0.01)", "selects none; raise it")
            for name in ("sig", *TRAINED)
            if name != "adaptive"
        ),
        ("trojan(mode='inverted', poisoning_rate=0.01)", "0.01 of 60 images selects none; raise"),
        (
            "mixed(attacks=['badnets', 'ssba(poisoning_rate=0.01)'])",
            "0.01 of 60 images selects none; raise",
        ),
        ("lf(target=10)", "target must be a class of the data set, 0 to 9, got 10"),
        ("trojan(mode='inverted', side=13)", "a patch of 13 x 13 pixels, 4 from the border, does"),
        ("trojan(mode='inverted', margin=14)", "14 from the border, does not fit 16 x 16"),
        ("dynamic(cross_rate=0.02)", "dynamic needs two cover images or more"),
    ],
)
def test_what_selects_or_fits_nothing_is_refused_before_the_training(
    text: str, complaint: str, images: ImageSet, work: Callable[[Callable[[], object]], int]
) -> None:
    attack, context = attacks.build(text), make_context(1)
    assert attack.trains

    def refused() -> None:
        with pytest.raises(InvalidInput, match=complaint):
            attack.prepare(images, context, poison_stream())

    assert work(refused) == 0


@pytest.mark.parametrize("text", ["dynamic", "adaptive", "trojan(mode='inverted')"])
def test_an_unprepared_attack_says_so(text: str) -> None:
    attack = attacks.build(text)
    assert attack.trains
    assert attack.cost(Recipe(), 50_000) > 0
    clean = ImageSet(torch.zeros(20, 3, 32, 32, dtype=torch.uint8), torch.arange(20) % 10, 10)
    with pytest.raises(RuntimeError, match="must be prepared"):
        attack.poison(clean, poison_stream())


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize(
    "text",
    [
        "dynamic(mask_epochs=100, joint_epochs=100)",
        "dynamic(mask_epochs=30, joint_epochs=140)",
        "trojan(mode='inverted')",
        "adaptive(rounds=2)",
        "adaptive(attack='sig', poisoning_rate=0.5, rounds=2, steps=20)",
        "adaptive(attack='lc(steps=10)', poisoning_rate=0.5, rounds=1)",
        "adaptive(attack='dynamic', rounds=4)",
        "lf(passes=2, fooled=1.0)",
        "lc(poisoning_rate=0.5, steps=20)",
        "ssba(encoder_epochs=140)",
        "mixed(attacks=['lf(passes=2, fooled=1.0)', 'lc(poisoning_rate=0.5, target=1, steps=10)'])",
    ],
)
def test_the_cost_is_that_of_the_passes(
    text: str,
    epochs: int,
    images: ImageSet,
    work: Callable[[Callable[[], object]], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trojan, "ITERATIONS", 20)
    attack, context = attacks.build(text), make_context(epochs)
    assert attack.trains
    done = work(lambda: attack.prepare(images, context, poison_stream()))
    assert done / 60 == pytest.approx(attack.cost(context.recipe, 60), rel=0.1)


JOINT = 3 + 7 * 12 / 128 + (3 * 1_000 + 4 * 1_024 + 64) / 50_000
"""Of an epoch of dynamic's joint stage in batches of 128: 12 images with a pattern, 12 crossed."""


@pytest.mark.parametrize(
    ("text", "epochs", "passes"),
    [
        ("dynamic", 100, 3 * 25 + JOINT * 75),
        ("dynamic", 30, 3 * 8 + JOINT * 22),
        ("dynamic", 1, 3 + JOINT),
        ("trojan(mode='inverted')", 100, 300 + (3 * 300 + 2) * 128 / 50_000),
        ("trojan", 100, 0),
        ("adaptive", 100, 10 * (3 + 3 * 5 * 0.1) + 2 * 0.1),
        ("adaptive(attack='sig')", 100, 10 * (3 + 3 * 5 * 0.01) + 2 * 0.01),
        ("adaptive(attack='sig(rate_basis=\"dataset\")')", 100, 10 * (3 + 3 * 5 * 0.1) + 2 * 0.1),
        (
            "adaptive(attack='lc')",
            100,
            300 + 0.01 * (3 * 100 + 2) + 10 * (3 + 3 * 5 * 0.01) + 2 * 0.01,
        ),
    ],
)
def test_the_cost_under_a_long_recipe_by_hand(text: str, epochs: int, passes: float) -> None:
    assert attacks.build(text).cost(Recipe(epochs), 50_000) == pytest.approx(passes)


def test_a_prepared_attack_is_cached_with_its_seconds(cache_folder: Path) -> None:
    recipe = Recipe(epochs=1, batch_size=32, learning_rate=0.01)
    spec = "dynamic(mask_epochs=1, joint_epochs=1)"
    made = cell(
        "toy(train_images=100, test_images=50, image_size=16)", "wrn16_1", spec, "none", recipe, 0
    )
    records = [Harness(Cache(cache_folder), [], CPU).run(made) for _ in range(2)]
    seconds = [record.measured.seconds.prepare for record in records]
    assert seconds[0] > 0.05
    assert seconds[0] == pytest.approx(seconds[1], abs=1e-5), "the stored trigger brings its time"
    assert records[0].metrics == records[1].metrics
    assert records[0].diagnostics.attack == records[1].diagnostics.attack
    assert "mask_density" in records[0].diagnostics.attack
    other = replace(made, seed=1)
    assert Harness(Cache(cache_folder), [], CPU).run(other).metrics is not None


def grey(count: int) -> ImageSet:
    """Image n has the grey level n, and all labels are 1."""
    levels = torch.arange(count, dtype=torch.uint8)[:, None, None, None]
    return ImageSet(levels.expand(-1, 3, 16, 16).contiguous(), torch.ones(count).long(), 10)


def test_the_joint_stage_of_dynamic_gives_images_their_own_goal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without masks, the classifier sees every image once: a tenth with the goal."""
    labels: list[Tensor] = []
    inputs: list[Tensor] = []
    plain, forward = module.cross_entropy, Classifier.forward

    def watched(outputs: Tensor, goal: Tensor) -> Tensor:
        labels.append(goal)
        return plain(outputs, goal)

    def seeing(network: Classifier, images: Tensor) -> Tensor:
        if network.training:
            inputs.append((255 * images[:, 0, 0, 0]).round().detach())
        return forward(network, images)

    monkeypatch.setattr(module, "cross_entropy", watched)
    monkeypatch.setattr(module, "train_mask", lambda *_: None)
    monkeypatch.setattr(module, "binary", lambda soft: 0 * soft)
    monkeypatch.setattr(Classifier, "forward", seeing)
    recipe = Recipe(1, batch_size=60, padding=0, flip=False, cutout=0)
    context = TrainingContext(recipe, CPU, partial(models.build("wrn16_1").build, 10, 16), 0)
    Dynamic(target=7, mask_epochs=1, joint_epochs=1).prepare(grey(60), context, stream(0, "p"))
    assert labels[0].tolist() == [7] * 6 + [1] * 54
    assert sorted(inputs[0].tolist()) == list(range(60))


def test_the_surrogate_learns_the_images_with_the_noise_of_the_last_round(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ImageSet] = []
    deltas: list[Tensor] = []
    plain, ascend = adaptive_attack.loop, Adaptive.ascend

    def watched(step: Any, data: ImageSet, **how: Any) -> None:
        seen.append(data)
        plain(step, data, **how)

    def remember(self: Adaptive, surrogate: Classifier, *given: Any) -> Tensor:
        assert not surrogate.training
        deltas.append(ascend(self, surrogate, *given))
        return deltas[-1]

    monkeypatch.setattr(adaptive_attack, "loop", watched)
    monkeypatch.setattr(Adaptive, "ascend", remember)
    context = TrainingContext(
        Recipe(epochs=2, batch_size=20), CPU, partial(models.build("wrn16_1").build, 10, 16), 0
    )
    attack = Adaptive(rounds=3, steps=2)
    attack.prepare(images, context, stream(0, "poison"))
    plain_set = attack.inner().poison(images, stream(0, "poison"))
    mask = plain_set.mask
    for before, after in zip(deltas, seen[1:], strict=False):
        noise = after.images[mask].float() - plain_set.train.images[mask].float()
        torch.testing.assert_close(noise, before.round())
        assert bool(noise.any())


def test_the_neurons_of_an_inverted_patch_have_the_largest_absolute_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trojan, "ITERATIONS", 1)
    data = random_images(20, 16, 10)
    context = TrainingContext(
        Recipe(epochs=2, batch_size=20), CPU, partial(models.build("wrn16_1").build, 10, 16), 0
    )
    network = context.build().eval()
    with torch.no_grad():
        network.head.weight[:, 5], network.head.weight[:, 9] = -3.0, -2.0
    plain = Classifier.features

    def features(self: Classifier, images: Tensor) -> Tensor:
        return 0 * plain(self, images) + torch.arange(64.0)

    monkeypatch.setattr(Classifier, "features", features)
    made = trojan.Trojan(mode="inverted").invert(network, data, context)
    # The mean of neurons 5 and 9.
    assert made.before == pytest.approx(7.0)


def test_dynamic_judges_success_on_images_of_other_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By hand: one of three, where two of four images get the target."""
    answers = iter(([0, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 0]))
    monkeypatch.setattr(
        module, "logits", lambda *_: nn.functional.one_hot(torch.tensor(next(answers)), 10)
    )
    attack = SimpleNamespace(
        networks=SimpleNamespace(mask=lambda images: torch.zeros(1)),
        goal=lambda labels, classes: 0 * labels,
        trigger=lambda images: images,
        disguise=lambda images, rng: images,
    )
    labels = torch.tensor([0, 1, 1, 1])
    found = module.evaluate(attack, None, replace(grey(4), labels=labels))  # type: ignore[arg-type]
    assert found["surrogate_accuracy"] == 1.0
    assert found["surrogate_success"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["surrogate_cross_accuracy"] == 0.75


def test_the_diversity_loss_of_dynamic_is_minimised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a loss that is the mean of the patterns, training lowers the patterns."""
    means: list[float] = []

    def level(own: Tensor, other: Tensor, patterns: Tensor, partners: Tensor) -> Tensor:
        means.append(float(patterns.detach().mean()))
        return 1000 * patterns.mean()

    monkeypatch.setattr(module, "diversity", level)
    monkeypatch.setattr(module, "train_mask", lambda *_: None)
    monkeypatch.setattr(module, "cross_entropy", lambda outputs, goal: 0 * outputs.sum())
    facts = dict.fromkeys(("surrogate_success", "surrogate_accuracy"), 0.0)
    monkeypatch.setattr(module, "evaluate", lambda *_: {**facts, "surrogate_cross_accuracy": 0.0})
    recipe = Recipe(epochs=100, batch_size=60, padding=0, flip=False, cutout=0)
    context = TrainingContext(recipe, CPU, partial(models.build("wrn16_1").build, 10, 16), 0)
    Dynamic(mask_epochs=1, joint_epochs=20).prepare(grey(60), context, stream(0, "p"))
    assert len(means) == 20
    assert means[-1] < means[0] - 0.02
