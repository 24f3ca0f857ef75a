"""CBD against a slow implementation of its equations."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam

import bdbench.defenses.cbd
from bdbench.attacks.badnets import BadNets
from bdbench.defenses.base import Context
from bdbench.defenses.batch_norm import reset_statistics
from bdbench.defenses.cbd import BETAS, CBD, Critic, dependence, sample_weights
from bdbench.defenses.registry import defenses as registry
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import global_seed, stream
from bdbench.models.training.augment import to_float
from bdbench.models.training.feed import Batch
from bdbench.models.training.loop import loop, train
from bdbench.models.training.recipe import Recipe
from bdbench.trial.evaluation import diagnose

RECIPE = Recipe(epochs=2, batch_size=20, learning_rate=0.05)


def make_context(recipe: Recipe = RECIPE, seed: int = 0) -> Context:
    return Context(
        recipe, torch.device("cpu"), partial(models.build("wrn16_1").build, 10, 32), seed
    )


def test_weights_are_equation_6() -> None:
    b, c = torch.tensor([0.0, 1.0, 3.0, 100.0, 0.0]), torch.tensor([2.0, 1.0, 1.0, 0.001, 0.0])
    expected = [0.0, 0.5, 0.75, 100 / 100.001, 0.0]
    assert sample_weights(b, c).tolist() == pytest.approx(expected)


def test_the_weighted_loss_is_a_mean_and_may_be_rescaled() -> None:
    w, losses = torch.tensor([0.1, 0.5, 0.9, 0.3]), torch.tensor([4.0, 3.0, 2.0, 1.0])
    literal = (0.4 + 1.5 + 1.8 + 0.3) / 4
    assert float(CBD(rescale=False).weigh(w, losses)) == pytest.approx(literal)
    assert float(CBD().weigh(w, losses)) == pytest.approx(literal / 0.45)
    assert float(CBD(reweight=False).weigh(w, losses)) == pytest.approx(2.5)
    nothing = torch.zeros(4)
    assert math.isfinite(float(CBD().weigh(nothing, losses)))


def test_equal_losses_of_f_b_leave_plain_training_up_to_scale() -> None:
    losses = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert float(CBD().weigh(torch.full((4,), 0.2), losses)) == pytest.approx(2.5)


def test_dependence_is_the_bracket_of_equation_7() -> None:
    with global_seed(0, "critic"):
        critic = Critic(8).eval()
    z, r = torch.rand(5, 4, generator=stream(0, "z")), torch.rand(5, 4, generator=stream(0, "r"))
    critic.requires_grad_(False)
    joint = sum(float(critic(z[n : n + 1], r[n : n + 1])) for n in range(5)) / 5
    strangers = sum(float(critic(z[n - 1 : n or None], r[n : n + 1])) for n in range(5)) / 5
    assert float(dependence(critic, z, r)) == pytest.approx(joint - strangers, abs=1e-6)


@torch.no_grad()
def estimate(critic: Critic, z: torch.Tensor, r: torch.Tensor) -> float:
    return float(dependence(critic, z, r))


def test_the_critic_rises_and_f_c_lowers_the_same_estimate() -> None:
    with global_seed(0, "critic"):
        critic = Critic(16)
    z = torch.randn(256, 8, generator=stream(0, "z")).requires_grad_()
    r = z.detach().clone()
    optimizer = torch.optim.Adam(critic.parameters(), lr=0.01)
    before = estimate(critic, z, r)
    for _ in range(50):
        optimizer.zero_grad()
        (-dependence(critic, z.detach(), r)).backward()
        optimizer.step()
    risen = estimate(critic, z, r)
    assert risen > before + 0.05
    gradient = torch.autograd.grad(dependence(critic, z, r), z)[0]
    assert estimate(critic, z - 0.5 * gradient * len(z), r) < risen
    independent = torch.randn(256, 8, generator=stream(1, "r"))
    assert estimate(critic, z, independent) < risen


def test_the_critic_is_nearly_one_lipschitz() -> None:
    with global_seed(0, "critic"):
        critic = Critic(16)
    with torch.no_grad():
        for layer in critic.layers:
            if isinstance(layer, nn.Linear):
                layer.parametrizations.weight.original.mul_(20)
        for _ in range(100):
            critic(torch.zeros(2, 8), torch.zeros(2, 8))
    critic.eval()
    a = torch.randn(200, 16, generator=stream(0, "a"))
    b = torch.randn(200, 16, generator=stream(0, "b"))
    gap = (critic(a[:, :8], a[:, 8:]) - critic(b[:, :8], b[:, 8:])).abs()
    assert bool((gap <= 1.05 * (a - b).norm(dim=1)).all())


def fitted(images: ImageSet, **fields: Any) -> tuple[Classifier, Context]:
    context = make_context()
    return CBD(**{"t1": 1, **fields}).fit(images, context), context


@pytest.mark.parametrize("per_view", [True, False])
def test_f_c_equals_a_slow_implementation_of_the_equations(
    images: ImageSet, per_view: bool
) -> None:
    """Re-weighting and the l2 term, image by image, with the literal constants. f_B's loss is that
    of the augmented view, or that of the image itself."""
    context = make_context()
    early = Recipe(epochs=1, batch_size=20, learning_rate=0.05, drops=())
    f_b = train(context.build("f_B"), images, early, context.rng("f_B"))
    f_c = context.build()
    optimizer = RECIPE.sgd(f_c)
    from bdbench.models.training.loop import loop

    def step(batch) -> None:  # type: ignore[no-untyped-def]
        z = f_c.features(batch.images)
        total = torch.zeros(())
        with torch.no_grad():
            seen = batch.images if per_view else images.images[batch.index] / 255
            theirs = f_b(seen)
        for n in range(len(z)):
            ours = f_c.head(z[n])
            loss_c = cross_entropy(ours, batch.labels[n])
            loss_b = cross_entropy(theirs[n], batch.labels[n])
            w = float(loss_b / (loss_b + loss_c.detach()))
            total = total + w * loss_c + 0.001 * (z[n] ** 2).sum()
        optimizer.zero_grad()
        (total / len(z)).backward()
        optimizer.step()

    f_c.train()
    loop(step, images, recipe=RECIPE, rng=context.rng("classifier"), state={"optimizer": optimizer})
    ours, _ = fitted(images, rescale=False, critic_weight=0.0, beta=0.001, per_view=per_view)
    for name, values in f_c.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], values, rtol=1e-3, atol=1e-4)


def test_f_b_is_frozen_with_its_buffers(images: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    held: dict[str, object] = {}
    plain = bdbench.defenses.cbd.train

    def remember(model: Classifier, *rest: object) -> Classifier:
        trained = plain(model, *rest)  # type: ignore[arg-type]
        held["network"] = trained
        held["state"] = {name: t.clone() for name, t in trained.state_dict().items()}
        return trained

    monkeypatch.setattr(bdbench.defenses.cbd, "train", remember)
    fitted(images)
    network, before = held["network"], held["state"]
    assert isinstance(network, Classifier)
    assert isinstance(before, dict)
    assert not network.training
    for name, values in network.state_dict().items():
        assert torch.equal(values, before[name]), name


def test_f_b_has_the_statistics_that_it_is_read_with(images: ImageSet) -> None:
    """Its weights are the same; anew, the statistics are means over the batches of one pass."""
    f_bs = {}
    choices: tuple[Literal["running", "anew"], ...] = ("running", "anew")
    for statistics in choices:
        context = make_context()
        f_bs[statistics] = f_b = context.build("f_B")
        CBD(t1=1, statistics=statistics).train_f_b(f_b, images, context)
        assert not f_b.training
        assert not any(p.requires_grad for p in f_b.parameters())
    running, anew = f_bs.values()
    for one, other in zip(running.parameters(), anew.parameters(), strict=True):
        assert torch.equal(one, other)
    own, before = anew.state_dict(), running.state_dict()
    moved = {name for name in own if not torch.equal(own[name], before[name])}
    assert any(name.endswith("running_mean") for name in moved)
    expected, context = deepcopy(running), make_context()
    recipe = replace(context.recipe, epochs=1, drops=())
    reset_statistics(expected, images, recipe, context.rng("statistics"))
    for name, values in expected.state_dict().items():
        assert torch.equal(values, own[name]), name


def test_variants_differ_and_the_published_ones_are_specs(images: ImageSet) -> None:
    variants = {
        "default": {},
        "literal": {"rescale": False, "critic_weight": 1.0},
        "released": {"critic_weight": 0.0, "beta": 0.0},
        "no weights": {"reweight": False},
        "weights of images": {"per_view": False},
        "statistics anew": {"statistics": "anew"},
    }
    heads = {name: fitted(images, **how)[0].head.weight for name, how in variants.items()}
    names = list(heads)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not torch.equal(heads[one], heads[other]), (one, other)


def test_without_all_three_terms_it_is_plain_training(images: ImageSet) -> None:
    context = make_context()
    plain = train(context.build(), images, RECIPE, context.rng("classifier"))
    ours, _ = fitted(images, reweight=False, critic_weight=0.0, beta=0.0)
    for name, values in plain.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], values, rtol=1e-4, atol=1e-6)


def test_the_journal_holds_one_value_for_each_image(images: ImageSet) -> None:
    _, context = fitted(images)
    assert {name: values.shape for name, values in context.journal.samples.items()} == {
        "f_B loss": (60,),
        "w": (60,),
    }
    weights = context.journal.samples["w"]
    assert bool(((weights >= 0) & (weights <= 1)).all())


def test_the_search_takes_the_best_of_nine_on_images_held_out(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    train_f_c = CBD.train_f_c

    def spy(
        self: CBD, f_c: Classifier, f_b: Classifier, data: ImageSet, context: Context
    ) -> Tensor:
        seen.append(len(data))
        return train_f_c(self, f_c, f_b, data, context)

    monkeypatch.setattr(CBD, "train_f_c", spy)
    found, context = fitted(images, select="cv", folds=2)
    assert seen == [30] * 18 + [60], "nine candidates on each half, then all images"
    scalars = context.journal.scalars
    accuracies = {name: value for name, value in scalars.items() if name.startswith("accuracy")}
    t1, beta = int(scalars["chosen t1"]), scalars["chosen beta"]
    assert len(accuracies) == 9
    assert accuracies[f"accuracy at t1={t1}, beta={beta:g}"] == max(accuracies.values())
    fixed, _ = fitted(images, t1=t1, beta=beta)
    for name, values in fixed.state_dict().items():
        assert torch.equal(found.state_dict()[name], values), name


def test_the_search_tries_the_t1s_it_is_given(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """f_B trains for these epochs, and the journal has an accuracy for each."""
    lengths: list[int] = []
    plain = bdbench.defenses.cbd.train

    def remember(model: Classifier, data: ImageSet, recipe: Recipe, *rest: Any) -> Classifier:
        lengths.append(recipe.epochs)
        return plain(model, data, recipe, *rest)

    monkeypatch.setattr(bdbench.defenses.cbd, "train", remember)
    _, context = fitted(images, select="cv", folds=2, t1s=(2, 1))
    scalars = context.journal.scalars
    names = {name for name in scalars if name.startswith("accuracy")}
    betas = ("1e-05", "0.0001", "0.001")
    assert names == {f"accuracy at t1={t1}, beta={beta}" for t1 in (1, 2) for beta in betas}
    assert sorted(lengths[:-1]) == [1, 1, 2, 2]
    assert lengths[-1] == scalars["chosen t1"]
    best = max(scalars[name] for name in names)
    assert scalars[f"accuracy at t1={int(lengths[-1])}, beta={scalars['chosen beta']:g}"] == best


@pytest.mark.parametrize(
    "text",
    [
        "cbd(t1s=())",
        "cbd(t1s=(3, 3))",
        "cbd(t1s=(0, 3))",
        "cbd(t1s=(-1,))",
        "cbd(t1s=(1.5, 3))",
        "cbd(t1s='all')",
        "cbd(t1s=3)",
        "cbd(t1s=None)",
    ],
)
def test_bad_t1s_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(InvalidInput, match="t1s") as told:
        registry.build(text)
    assert "\n" not in str(told.value)


def test_defaults_of_later_fields_are_not_part_of_a_key() -> None:
    """So that records from before a field existed keep their keys."""
    assert "t1s" not in registry.canonical("cbd")
    assert "per_view" not in registry.canonical("cbd")
    assert "statistics" not in registry.canonical("cbd")
    assert registry.canonical("cbd(t1s=(3, 5, 8))") == registry.canonical("cbd")
    assert "t1s=(1, 2)" in registry.canonical("cbd(t1s=(1, 2))")


@pytest.mark.parametrize(
    ("t1", "epochs", "share"), [(1, 3, "0.33"), (3, 1, "3.00"), (1, 4, ""), (1, 5, ""), (2, 8, "")]
)
def test_a_warning_says_that_f_b_trains_too_long(
    t1: int, epochs: int, share: str, images: ImageSet
) -> None:
    few = images[torch.arange(20)]
    context = make_context(replace(RECIPE, epochs=epochs))
    CBD(t1=t1).fit(few, context)
    found = [each for each in context.journal.warnings if "f_B sees" in each]
    if not share:
        assert found == []
        return
    (warning,) = found
    assert warning.startswith(f"f_B sees {share} times as many images as f_C (paper: 0.05)")
    assert "\n" not in warning


def test_the_warning_is_about_the_t1_that_was_chosen(images: ImageSet) -> None:
    few, context = images[torch.arange(20)], make_context(replace(RECIPE, epochs=3))
    CBD(t1=1_000, select="cv", folds=2, t1s=(1,)).fit(few, context)
    (warning,) = (each for each in context.journal.warnings if "f_B sees" in each)
    assert "f_B sees 0.33 times" in warning


@pytest.mark.parametrize(("loss", "warned"), [(2.2, False), (2.4, True)])
def test_a_warning_says_that_f_b_does_worse_than_a_guess(
    loss: float, warned: bool, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, context = images[torch.arange(20)], make_context(RECIPE)
    assert 2.2 < math.log(few.num_classes) < 2.4
    losses = torch.full((20,), loss)
    monkeypatch.setattr(bdbench.defenses.cbd, "sample_losses", lambda *_: losses)
    CBD(t1=1).fit(few, context)
    told = [each for each in context.journal.warnings if "above that of a guess" in each]
    assert len(told) == warned


def test_the_papers_setting_gives_no_warning() -> None:
    assert 8 / 100 <= bdbench.defenses.cbd.LARGE_SHARE == 0.25


def test_the_cost_of_the_search(images: ImageSet) -> None:
    recipe = Recipe(epochs=100)
    assert CBD(t1=5).cost(recipe, 60) == 15 + 1 + 400
    folds = 4 * (3 * (3 + 5 + 8) + 9 * 400)
    assert CBD(t1=5, select="cv").cost(recipe, 60) == 416 + folds + 9
    assert CBD(t1=5, per_view=False).cost(recipe, 60) == 417
    assert CBD(t1=5, statistics="anew").cost(recipe, 60) == 417
    assert CBD(select="cv", statistics="anew").cost(recipe, 60) == 417 + folds + 9 + 4 * 3
    assert CBD(select="cv", per_view=False).cost(recipe, 60) == 417 + folds + 9 + 4 * 9
    folds = 4 * (3 * (2 + 9) + 6 * 400)
    assert CBD(t1=5, select="cv", t1s=(2, 9)).cost(recipe, 60) == 416 + folds + 6


@pytest.mark.slow
def test_it_starves_poisoned_images_when_f_b_knows_the_trigger() -> None:
    from bdbench.datasets.registry import datasets
    from bdbench.storage.cache import Cache

    source = datasets.build("toy(image_size=16)")
    toy = source.load([], Cache.__new__(Cache))
    made = BadNets().poison(toy.train, stream(0, "poison"))
    recipe = Recipe(6, batch_size=64, learning_rate=source.learning_rate, padding=0, cutout=0)
    context = make_context(recipe)
    CBD(t1=3).fit(made.train, context)
    found = diagnose(context.journal.samples, made.mask)
    assert found["f_B loss"]["auroc"] > 0.9
    assert found["w"]["mean_poisoned"] < 0.3 * found["w"]["mean_clean"]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"t1": 0}, "t1 must be at least 1"),
        ({"beta": -1.0}, "beta must be at least 0"),
        ({"folds": 1}, "folds must be at least 2"),
        ({"critic_weight": -0.1}, "critic_weight must be at least 0"),
    ],
)
def test_a_bad_setting_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint):
        CBD(**fields)


def test_critic_and_f_c_in_turn_equal_a_slow_implementation(images: ImageSet) -> None:
    context = make_context()
    early = Recipe(epochs=1, batch_size=20, learning_rate=0.05, drops=())
    f_b = train(context.build("f_B"), images, early, context.rng("f_B"))
    f_c = context.build().train()
    with global_seed(context.seed, "weights", "critic"):
        critic = Critic(128)
    optimizer, adam = RECIPE.sgd(f_c), Adam(critic.parameters(), lr=0.02)

    def step(batch: Batch) -> None:
        r, z = f_b.features(batch.images).detach(), f_c.features(batch.images)

        def bracket(z: Tensor) -> Tensor:
            joint = critic(z, r).mean()
            return joint - critic(torch.stack([z[n - 1] for n in range(len(z))]), r).mean()

        adam.zero_grad()
        (-bracket(z.detach())).backward()
        adam.step()
        optimizer.zero_grad()
        (cross_entropy(f_c.head(z), batch.labels) + 5.0 * bracket(z)).backward()
        optimizer.step()

    state = {"optimizer": optimizer, "adam": adam}
    loop(step, images, recipe=RECIPE, rng=context.rng("classifier"), state=state)
    own = CBD(t1=1, reweight=False, beta=0.0, critic_weight=5.0, critic_learning_rate=0.02)
    ours = own.fit(images, make_context())
    for name, values in f_c.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], values, rtol=1e-3, atol=1e-4)


def pictures(data: ImageSet) -> set[bytes]:
    return {image.numpy().tobytes() for image in data.images}


def test_each_candidate_is_judged_on_the_fold_that_it_did_not_see(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, set[bytes]]] = []
    judged: list[set[bytes]] = []

    def remember(self: CBD, f_c: Any, f_b: Any, data: ImageSet, context: Context) -> Tensor:
        seen.append((self.beta, pictures(data)))
        return torch.zeros(len(data))

    def judge(network: Any, data: ImageSet) -> float:
        judged.append(pictures(data))
        return 0.5

    monkeypatch.setattr(CBD, "train_f_b", lambda *_: None)
    monkeypatch.setattr(CBD, "train_f_c", remember)
    monkeypatch.setattr(bdbench.defenses.cbd, "accuracy", judge)
    CBD(select="cv", folds=3, t1s=(1, 2)).search(images, make_context())
    assert [beta for beta, _ in seen] == [*BETAS] * 6
    for (_, trained), held_out in zip(seen, judged, strict=True):
        assert (len(trained), len(held_out)) == (40, 20)
        assert trained | held_out == pictures(images)


def test_the_weight_of_an_image_is_its_own(images: ImageSet) -> None:
    """Those of one step on all images, in the order of the images and not of the batch."""
    plain = Recipe(epochs=1, batch_size=len(images), padding=0, flip=False, cutout=0)
    context = make_context(plain)
    f_b, f_c = context.build("f_B").eval(), context.build()
    with torch.no_grad():
        inputs = to_float(images.images)
        losses = [
            cross_entropy(network(inputs), images.labels, reduction="none")
            for network in (f_b, deepcopy(f_c).train())
        ]
    found = CBD(critic_weight=0.0).train_f_c(f_c, f_b, images, context)
    expected = sample_weights(*losses)
    assert expected.std() > 0.001
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
