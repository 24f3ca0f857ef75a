"""NAD against a slow implementation of its equations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import bdbench.defenses.nad
from bdbench.defenses.base import CleanBudget, Context
from bdbench.defenses.nad import BETAS, NAD, attention
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.loop import loop, predict, train
from bdbench.models.training.recipe import Recipe

RECIPE = Recipe(epochs=4, batch_size=20, learning_rate=0.05)
SHORT: dict[str, Any] = {
    "teacher_updates": 4,
    "updates": 6,
    "drop": 4,
    "batch_size": 20,
    "learning_rate": 0.02,
}


@pytest.fixture
def images() -> ImageSet:
    """60 small images of noise, six of each of ten classes."""
    rng = stream(0, "test images")
    pixels = torch.randint(0, 256, (60, 3, 16, 16), dtype=torch.uint8, generator=rng)
    return ImageSet(pixels, torch.arange(60) % 10, 10)


def make_context(
    images: ImageSet, recipe: Recipe = RECIPE, model: str = "wrn16_1", seed: int = 0
) -> Context:
    """40 clean images to fit, 10 for validation and an untrained network."""
    size = images.size[0]
    training = TrainingContext(
        recipe, torch.device("cpu"), partial(models.build(model).build, 10, size), seed
    )
    return Context(
        **vars(training),
        clean=CleanBudget(images[torch.arange(40)], images[torch.arange(40, 50)]),
        train_undefended=lambda n: training.build().eval(),
    )


def clean_of(context: Context) -> CleanBudget:
    assert context.clean is not None
    return context.clean


def slow_attention(F: Tensor, p: float) -> Tensor:  # noqa: N803
    """One image, (channels, height, width) -> (height, width), pixel by pixel."""
    _, height, width = F.shape
    rows = []
    for y in range(height):
        pixels = []
        for x in range(width):
            total = torch.zeros(())
            for value in F[:, y, x]:
                total = total + value.abs() ** p
            pixels.append(total)
        rows.append(torch.stack(pixels))
    A = torch.stack(rows)  # noqa: N806
    return A / (A**2).sum().sqrt()


def random_maps(seed: int = 0, stages: int = 3) -> list[Tensor]:
    rng = stream(seed, "maps")
    shapes = [(3, 2, 12, 12), (3, 2, 8, 6), (3, 4, 4, 4), (3, 6, 2, 2)][-stages:]
    return [torch.randn(shape, generator=rng) for shape in shapes]


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_attention_is_its_formula(p: float) -> None:
    for maps in random_maps():
        ours = attention(maps, p)
        for n, F in enumerate(maps):  # noqa: N806
            torch.testing.assert_close(ours[n], slow_attention(F, p).flatten())


def test_attention_does_not_see_the_scale_of_its_maps() -> None:
    for maps in random_maps():
        scales = torch.tensor([0.01, 1.0, 70.0]).view(3, 1, 1, 1)
        torch.testing.assert_close(attention(maps, 2.0), attention(scales * maps, 2.0))
        torch.testing.assert_close(attention(maps, 2.0).norm(dim=1), torch.ones(3))


def test_the_distillation_loss_is_its_formula() -> None:
    ours, theirs, betas = random_maps(0), random_maps(1), (1.0, 20.0, 300.0)
    expected = 0.0
    for beta, F_S, F_T in zip(betas, ours, theirs, strict=True):  # noqa: N806
        squares = [
            float(((slow_attention(s, 2.0) - slow_attention(t, 2.0)) ** 2).mean())
            for s, t in zip(F_S, F_T, strict=True)
        ]
        expected += beta * sum(squares) / len(squares)
    found = NAD().distillation(betas, ours, theirs)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_it_is_zero_for_the_teacher_itself() -> None:
    maps = random_maps()
    assert float(NAD().distillation(BETAS, maps, [part.clone() for part in maps])) == 0


def test_of_four_stages_the_last_three_count() -> None:
    ours, theirs = random_maps(0, stages=4), random_maps(1, stages=4)
    last = NAD().distillation(BETAS, ours[1:], theirs[1:])
    assert torch.equal(NAD().distillation(BETAS, ours, theirs), last)
    assert ours[0].shape[2:] == (12, 12)


def test_two_stages_are_too_few() -> None:
    maps = random_maps(stages=2)
    with pytest.raises(InvalidInput, match="a network of at least three stages, got 2"):
        NAD().distillation(BETAS, maps, maps)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_each_term_reaches_the_first_stage_and_the_stem(stage: int, images: ImageSet) -> None:
    context = make_context(images)
    student, teacher = context.build(), context.build("teacher")
    betas = tuple(float(n == stage) for n in range(3))
    pixels = images.images[:8].float() / 255
    with torch.no_grad():
        F_T = teacher.stages(pixels)  # noqa: N806
    NAD().distillation(betas, student.stages(pixels), F_T).backward()
    reached = {name.split(".")[0] for name, p in student.named_parameters() if p.grad is not None}
    assert "stem" in reached
    first = next(p for name, p in student.named_parameters() if name.startswith("groups.0"))
    assert first.grad is not None
    assert float(first.grad.abs().sum()) > 0
    assert "head" not in reached


def test_the_student_equals_a_slow_implementation_of_the_paper(images: ImageSet) -> None:
    """Image by image; 4 of the student's 6 updates have the initial learning rate."""
    context, betas = make_context(images, replace(RECIPE, padding=0)), (5.0, 10.0, 20.0)
    ours = NAD(betas=betas, **SHORT).fit(images, context)

    fast = replace(context.recipe, epochs=2, learning_rate=0.02, drops=())
    teacher = train(context.undefended(), clean_of(context).fit, fast, context.rng("teacher"))
    student = context.undefended().train()
    optimizer = fast.sgd(student)

    def step(batch) -> None:  # type: ignore[no-untyped-def]
        with torch.no_grad():
            F_T = teacher.stages(batch.images)  # noqa: N806
        F_S = student.stages(batch.images)  # noqa: N806
        logits = student.head(student.pool(F_S[-1]))
        total = torch.zeros(())
        for n in range(len(batch.labels)):
            total = total + cross_entropy(logits[n], batch.labels[n])
            for beta, s, t in zip(betas, F_S, F_T, strict=True):
                A_S, A_T = ((F[n] ** 2).sum(0) for F in (s, t))  # noqa: N806
                gap = A_S / (A_S**2).sum().sqrt() - A_T / (A_T**2).sum().sqrt()
                total = total + beta * (gap**2).sum() / gap.numel()
        optimizer.zero_grad()
        (total / len(batch.labels)).backward()
        optimizer.step()

    slow = replace(fast, epochs=3, drops=(2 / 3,))
    state = {"student": student, "optimizer": optimizer}
    loop(step, clean_of(context).fit, recipe=slow, rng=context.rng("student"), state=state)
    for name, values in student.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], values, rtol=1e-3, atol=1e-4)


def test_the_teacher_is_frozen_with_its_buffers(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: dict[str, Any] = {}
    plain = bdbench.defenses.nad.train

    def remember(model: Classifier, *rest: Any, **how: Any) -> Classifier:
        held["teacher"] = plain(model, *rest, **how)
        held["state"] = {name: t.clone() for name, t in model.state_dict().items()}
        return model

    monkeypatch.setattr(bdbench.defenses.nad, "train", remember)
    context = make_context(images)
    made = NAD(**SHORT).fit(images, context)
    teacher = held["teacher"]
    assert made is not teacher
    assert not teacher.training
    assert all(p.grad is None or not p.requires_grad for p in teacher.parameters())
    for name, values in teacher.state_dict().items():
        assert torch.equal(values, held["state"][name]), name
    assert not torch.equal(made.head.weight, teacher.head.weight)
    # The teacher is a trained copy of the undefended network.
    assert not torch.equal(teacher.head.weight, context.undefended().head.weight)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_attention_it_is_fine_tuning(precision: str, images: ImageSet) -> None:
    context = make_context(images, replace(RECIPE, precision=precision))
    ours = NAD(betas=(0.0, 0.0, 0.0), **SHORT).fit(images, context)
    how = replace(context.recipe, epochs=3, batch_size=20, learning_rate=0.02, drops=(2 / 3,))
    tuned = train(context.undefended(), clean_of(context).fit, how, context.rng("student"))
    for name, values in tuned.state_dict().items():
        assert torch.equal(ours.state_dict()[name], values), name
    with_attention = NAD(**SHORT).fit(images, context)
    assert not torch.equal(with_attention.head.weight, tuned.head.weight)
    assert all(bool(values.isfinite().all()) for values in with_attention.parameters())


def test_the_student_sees_each_batch_once(images: ImageSet) -> None:
    made = NAD(**SHORT).fit(images, make_context(images))
    counts = [
        int(values)
        for name, values in made.state_dict().items()
        if name.endswith("num_batches_tracked")
    ]
    assert counts
    assert set(counts) == {6}, "updates of the student"


def test_the_training_set_is_not_used(images: ImageSet) -> None:
    one = NAD(**SHORT).fit(images, make_context(images))
    other = NAD(**SHORT).fit(images[torch.arange(20)], make_context(images))
    assert torch.equal(one.head.weight, other.head.weight)


def test_the_learning_rate_falls_once() -> None:
    """After 64 updates, whatever the length; never, if there are no more."""
    for count in (320, 640, 65):
        how, updates = NAD().schedule(RECIPE, count)
        assert updates == count, "not scaled with the recipe's epochs"
        rates = [how.learning_rate * how.decay(update / updates) for update in range(updates)]
        assert rates == pytest.approx([0.1] * 64 + [0.01] * (count - 64))
    assert NAD().schedule(RECIPE, 64)[0].drops == ()
    how, updates = NAD().schedule(replace(RECIPE, updates=0.1), 640)
    assert updates == 64
    assert [how.decay(n / 64) for n in (0, 6, 7, 63)] == pytest.approx([1, 1, 0.1, 0.1])


def test_the_cost_equals_the_counted_passes(
    images: ImageSet, work: Callable[[Callable[[], object]], int]
) -> None:
    defense = NAD(**SHORT)
    own = defense.cost(RECIPE, 1_000) - 3 * RECIPE.epochs
    # 40 images are 4 % of 1,000.
    assert work(lambda: defense.fit(images, make_context(images))) == pytest.approx(1000 * own)


@pytest.mark.parametrize("epochs", [30, 100])
def test_its_own_cost_is_small(epochs: int) -> None:
    plain = 3.0 * epochs
    assert 0 < NAD().cost(Recipe(epochs=epochs), 50_000) - plain <= 0.06 * plain


def test_the_teacher_is_judged_on_validation_images(images: ImageSet) -> None:
    context = make_context(images)
    NAD(**SHORT).fit(images, context)
    (name, value), *rest = context.journal.scalars.items()
    assert name == "teacher validation accuracy"
    assert value in {n / 10 for n in range(11)}
    assert not rest


def test_maps_of_one_pixel_are_refused() -> None:
    with pytest.raises(InvalidInput, match="more than one pixel"):
        attention(torch.rand(2, 5, 1, 1), 2.0)
    pixels = torch.randint(0, 256, (60, 3, 4, 4), dtype=torch.uint8, generator=stream(0, "small"))
    small = ImageSet(pixels, torch.arange(60) % 10, 10)
    with pytest.raises(InvalidInput, match="use larger images"):
        NAD(**SHORT).fit(small, make_context(small))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"betas": (1.0, 2.0)}, "betas must be three numbers of at least 0, or 'search', got"),
        ({"betas": (1.0,) * 4}, "betas must be three numbers of at least 0, or 'search', got"),
        ({"betas": ()}, "betas must be three numbers of at least 0, or 'search', got"),
        ({"betas": "find"}, "three numbers of at least 0, or 'search', got 'find'"),
        ({"betas": (1.0, 2.0, -1.0)}, "betas must be three numbers of at least 0, or"),
        ({"betas": (1.0, 2.0, math.nan)}, "betas must be three numbers of at least 0, or"),
        ({"p": 0.5}, "p must be at least 1, got 0.5"),
        ({"teacher_updates": 0}, "teacher_updates must be at least 1, got 0"),
        ({"updates": 0}, "updates must be at least 1, got 0"),
        ({"drop": 0}, "drop must be at least 1, got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
    ],
)
def test_a_bad_setting_is_refused(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint) as told:
        NAD(**fields)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("nad(betas=(1.0, 2.0))", "betas must be three numbers"),
        ("nad(betas='seek')", "betas must be three numbers"),
        ("nad(betas=('a', 1.0, 2.0))", "betas"),
        ("nad(betas=7.0)", "betas"),
        ("nad(betas=None)", "betas"),
    ],
)
def test_bad_betas_of_a_spec_are_one_line(text: str, complaint: str) -> None:
    with pytest.raises(InvalidInput, match=complaint) as told:
        defenses.build(text)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("text", ["nad(betas='search')", "nad(betas=(1.0, 2.0, 3.0))", "nad"])
def test_betas_are_written_as_they_are_read(text: str) -> None:
    assert defenses.build(defenses.canonical(text)) == defenses.build(text)


@pytest.mark.parametrize(
    ("teacher", "students", "factor"),
    [
        (0.9, [0.88], 1.0),
        (0.9, [1.0], 1.0),
        (0.9, [0.879, 0.88], 0.1),
        (0.5, [0.1, 0.47, 0.6], 0.01),
        (0.9, [0.1, 0.2, 0.3, 0.9], 0.001),
        (0.9, [0.8, 0.7, 0.87, 0.4], 0.001),
    ],
)
def test_a_search_takes_the_first_within_two_points_of_the_teacher(
    teacher: float,
    students: list[float],
    factor: float,
    images: ImageSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or the last if none is. The result equals that of these betas without a search."""
    judged: list[Classifier] = []
    told = iter([teacher, *students])

    def judge(network: Classifier, images: ImageSet) -> float:
        judged.append(network)
        return next(told)

    monkeypatch.setattr(bdbench.defenses.nad, "accuracy", judge)
    context = make_context(images)
    made = NAD(betas="search", **SHORT).fit(images, context)
    assert list(told) == [], "all are used"
    assert made is judged[-1]
    factors = [1.0, 0.1, 0.01, 0.001][: len(students)]
    assert context.journal.scalars == {
        "teacher validation accuracy": teacher,
        **{
            f"validation accuracy at betas times {each:g}": found
            for each, found in zip(factors, students, strict=True)
        },
        "betas times": factor,
    }
    monkeypatch.undo()
    betas = (500 * factor, 1000 * factor, 1000 * factor)
    alone = NAD(betas=betas, **SHORT).fit(images, make_context(images))
    for name, values in alone.state_dict().items():
        assert torch.equal(made.state_dict()[name], values), name


def test_a_search_judges_by_validation_images(images: ImageSet) -> None:
    """With the teacher's predictions as labels, the teacher is always right."""
    context = make_context(images)
    fit, held = clean_of(context).fit, clean_of(context).validation
    how, updates = NAD(**SHORT).schedule(context.recipe, 4)
    teacher = train(context.undefended(), fit, how, context.rng("teacher"), updates=updates)
    told = replace(held, labels=predict(teacher, held.images))
    context = replace(context, clean=CleanBudget(fit, told))
    made = NAD(betas="search", **SHORT).fit(images, context)
    scalars = context.journal.scalars
    assert scalars["teacher validation accuracy"] == 1.0
    right = int((predict(made, held.images) == told.labels).sum())
    factor = scalars["betas times"]
    assert scalars[f"validation accuracy at betas times {factor:g}"] == right / 10


def test_the_cost_is_the_largest_of_a_search(
    images: ImageSet, work: Callable[[Callable[[], object]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    defense, accuracy = NAD(betas="search", **SHORT), bdbench.defenses.nad.accuracy
    own = 1_000 * (defense.cost(RECIPE, 1_000) - 3 * RECIPE.epochs)
    by_hand = 3 * 4 * 20 + 4 * (4 * 6 * 20) + 5 * 10
    assert own == pytest.approx(by_hand)
    for judge, most in (([1.0, 1.0], False), ([1.0, 0.0, 0.0, 0.0, 0.0], True)):
        told = iter(judge)
        monkeypatch.setattr(
            bdbench.defenses.nad,
            "accuracy",
            lambda *given, told=told: 0 * accuracy(*given) + next(told),
        )
        done = work(lambda: defense.fit(images, make_context(images)))
        assert (done == pytest.approx(own)) == most
        assert done <= own + 1e-6


def test_the_power_of_the_attention_is_that_of_the_setting() -> None:
    maps = [random_maps(seed) for seed in range(2)]
    found = [float(NAD(p=p).distillation((1.0,) * 3, *maps)) for p in (1.0, 2.0)]
    assert found[0] != pytest.approx(found[1], rel=1e-3)
