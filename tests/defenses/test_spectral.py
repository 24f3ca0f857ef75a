"""Spectral signatures: outlier scores by hand and by a slow way, and what is dropped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bdbench.contract import scenarios
from bdbench.defenses.base import Context
from bdbench.defenses.registry import defenses
from bdbench.defenses.spectral import Spectral, outlier_scores
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.rng import stream
from bdbench.models.training.loop import features, train


def by_hand(points: Tensor) -> Tensor:
    """The squared projections on the main direction, found by power iteration, float64 (n,)."""
    rows = points.double().tolist()
    width = range(len(rows[0]))
    middle = [sum(row[k] for row in rows) / len(rows) for k in width]
    centred = [[row[k] - middle[k] for k in width] for row in rows]
    covariance = [[sum(row[i] * row[j] for row in centred) for j in width] for i in width]
    direction = [1.0 + 0.1 * k for k in width]
    for _ in range(2_000):
        direction = [sum(line[k] * direction[k] for k in width) for line in covariance]
        length = math.sqrt(sum(value**2 for value in direction))
        direction = [value / length for value in direction]
    scores = [sum(row[k] * direction[k] for k in width) ** 2 for row in centred]
    return torch.tensor(scores, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(12, 3), (30, 6), (4, 7)])
def test_scores_are_squared_projections_on_the_first_eigenvector(shape: tuple[int, int]) -> None:
    points = torch.randn(*shape, generator=stream(0, "points")).double()
    points[:, 0] *= 3
    assert_close(outlier_scores(points), by_hand(points), rtol=1e-6, atol=1e-9)


def test_scores_of_four_points_by_hand() -> None:
    """Three points at -1 and one at 3 along an axis, and something small across it."""
    points = torch.tensor([[3.0, 0.0], [-1.0, 0.0], [-1.0, 0.1], [-1.0, -0.1]]).double()
    found = outlier_scores(points + torch.tensor([5.0, 7.0]))
    assert_close(found, torch.tensor([9.0, 1.0, 1.0, 1.0]).double())


def test_scores_depend_on_neither_a_shift_nor_a_rotation() -> None:
    points = torch.randn(20, 5, generator=stream(0, "points")).double()
    rotation, _ = torch.linalg.qr(torch.randn(5, 5, generator=stream(0, "turn")).double())
    assert_close(outlier_scores(points @ rotation + 3), outlier_scores(points))


def test_a_single_image_and_equal_images_have_no_score() -> None:
    assert outlier_scores(torch.ones(1, 4).double()).tolist() == [0]
    assert outlier_scores(torch.ones(3, 4).double()).tolist() == [0, 0, 0]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], None]:
    """Replace the embeddings of the undefended network."""

    def planted(points: Tensor) -> None:
        monkeypatch.setattr(
            "bdbench.defenses.spectral.embeddings", lambda network, data: points.double()
        )

    return planted


def with_poison(count: int) -> tuple[ImageSet, Tensor, Tensor]:
    """200 images of two labels, their embeddings, and the positions of the poison, which are some
    of label 1 and lie apart from its others."""
    images = scenarios.random_images(200, 16, 2)
    points = torch.randn(200, 8, generator=stream(0, "points"))
    poison = torch.arange(1, 200, 2)[:count]
    points[poison, 2] += 10
    return images, points, poison


def fitted(images: ImageSet, **fields: float) -> Context:
    context = scenarios.defense_context(images, 0.0)
    Spectral(**fields).fit(images, context)
    return context


def dropped(context: Context) -> list[int]:
    return torch.nonzero(context.journal.samples["kept"] == 0).flatten().tolist()


@pytest.mark.parametrize(("epsilon", "each"), [(0.1, 15), (0.05, 7), (0.2, 30), (0.006, 0)])
def test_each_label_loses_its_highest_scores(
    epsilon: float, each: int, plant: Callable[[Tensor], None]
) -> None:
    images, points, poison = with_poison(10)
    plant(points)
    context = fitted(images, epsilon=epsilon)
    found, scores = dropped(context), context.journal.samples["spectral score"]
    assert context.journal.scalars == {"dropped images": 2 * each}
    for label in (0, 1):
        rows = [n for n in range(200) if n % 2 == label]
        expected = sorted(rows, key=lambda n: float(scores[n]))[:each]
        assert [n for n in found if n % 2 == label] == sorted(expected)
        assert_close(-scores[rows].double(), by_hand(points[rows]), rtol=1e-4, atol=1e-4)
    if each >= 10:
        assert set(poison.tolist()) <= set(found)


def test_poison_that_outnumbers_its_label_is_kept(plant: Callable[[Tensor], None]) -> None:
    """The mean moves to it: the limit of the method at a poisoning rate of 0.1 and ten classes."""
    images, points, poison = with_poison(70)
    plant(points)
    found = {n for n in dropped(fitted(images)) if n % 2}
    assert len(found) == 15
    assert not found & set(poison.tolist())


def test_a_network_trains_on_the_rest_and_the_undefended_one_stays(images: ImageSet) -> None:
    context = scenarios.defense_context(images, 0.0)
    shared = context.undefended()
    before = features(shared, images.images)
    context = replace(context, train_undefended=lambda n: shared)
    made = Spectral(epsilon=0.3).fit(images, context)
    kept = context.journal.samples["kept"] == 1
    assert int(kept.sum()) == 60 - 10 * 2
    expected = train(context.build(), images[kept], context.recipe, context.rng("classifier"))
    assert_close(made.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert torch.equal(features(shared, images.images), before)
    again = fitted(images, epsilon=0.3)
    assert torch.equal(
        again.journal.samples["spectral score"], context.journal.samples["spectral score"]
    )


def test_a_diverged_network_is_not_an_error(images: ImageSet) -> None:
    context = scenarios.defense_context(images, 0.0)
    broken: Classifier = context.undefended()
    for p in broken.parameters():
        p.data.fill_(torch.nan)
    context = replace(context, train_undefended=lambda n: broken)
    Spectral(epsilon=0.3).fit(images, context)
    assert not context.journal.samples["spectral score"].any()
    assert dropped(context) == list(range(20))


def test_it_costs_a_plain_training_and_one_on_the_rest(
    work: Callable[[Callable[[], object]], int],
) -> None:
    images = scenarios.random_images(200, 16, 10)
    context = scenarios.defense_context(images, 0.0)
    counted = work(lambda: Spectral().fit(images, context)) / 200
    plain = defenses.build("none").cost(context.recipe, 200)
    assert Spectral().cost(context.recipe, 200) == pytest.approx(plain + counted)
    assert counted == pytest.approx(1 + 3 * 0.85)


@pytest.mark.parametrize("epsilon", [0.0, -0.1, 2 / 3, 0.9, math.nan, np.inf])
def test_a_bad_setting_is_refused_in_one_line(epsilon: float) -> None:
    with pytest.raises(InvalidInput) as raised:
        Spectral(epsilon)
    assert str(raised.value) == (
        "epsilon must be above 0 and below 2/3, so that a label loses some of its images and keeps "
        f"some, got {epsilon}"
    )
