"""Activation clustering: clusters and silhouettes by slow ways, the rule, and what is dropped."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import pytest
import torch
from numpy.random import RandomState
from sklearn.decomposition import FastICA
from torch import Tensor
from torch.testing import assert_close

from bdbench.contract import scenarios
from bdbench.defenses.activation_clustering import ActivationClustering, two_means, whiten
from bdbench.defenses.base import Context
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.rng import stream
from bdbench.models.training.loop import train


def random_points(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=stream(0, "points")).double()


def test_whitened_components_are_centred_uncorrelated_and_of_unit_variance() -> None:
    points = random_points(40, 6) @ random_points(6, 6) + 4
    found = whiten(points, 4)
    assert found.shape == (40, 4)
    assert_close(found.mean(0), torch.zeros(4).double())
    assert_close(found.T @ found / 40, torch.eye(4).double())
    # The first is the direction of the largest variance.
    centred = points - points.mean(0)
    main = centred @ torch.linalg.eigh(centred.T @ centred)[1][:, -1]
    cosine = float(found[:, 0] @ main / (found[:, 0].norm() * main.norm()))
    assert abs(cosine) == pytest.approx(1)


def test_distances_are_those_between_independent_components() -> None:
    """So the clusters of the paper's ICA are those of whitening alone."""
    points = random_points(60, 5) ** 3 @ random_points(5, 5)
    ica = FastICA(3, whiten="unit-variance", random_state=0, max_iter=1000, tol=1e-6)
    independent = torch.from_numpy(ica.fit_transform(points.numpy()))
    assert_close(
        torch.cdist(whiten(points, 3), whiten(points, 3)), torch.cdist(independent, independent)
    )


@pytest.mark.parametrize(
    ("points", "count"),
    [
        (torch.ones(9, 4), 0),
        (torch.arange(9.0)[:, None] * torch.tensor([1.0, 2.0, -3.0]), 1),
        (torch.zeros(9, 4).index_fill(1, torch.tensor([1]), 0.5), 0),
        (torch.eye(9, 4), 4),
    ],
)
def test_embeddings_of_fewer_dimensions_have_fewer_components(points: Tensor, count: int) -> None:
    found = whiten(points.double(), 10)
    assert found.shape == (9, count)
    assert bool(found.isfinite().all())


def spread(points: Tensor, first: list[bool]) -> float:
    """The sum of squared distances from the mean of each of two clusters."""
    total = 0.0
    for part in (True, False):
        own = [point for point, mine in zip(points, first, strict=True) if mine == part]
        middle = sum(own) / len(own)
        total += sum(float(((point - middle) ** 2).sum()) for point in own)
    return total


def silhouette(points: Tensor, first: list[bool], n: int) -> float:
    apart = [float((points[n] - point).norm()) for point in points]
    own = [apart[m] for m in range(len(points)) if first[m] == first[n] and m != n]
    other = [apart[m] for m in range(len(points)) if first[m] != first[n]]
    if not own:
        return 0.0
    a, b = sum(own) / len(own), sum(other) / len(other)
    return (b - a) / max(a, b)


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_the_best_of_all_and_have_their_silhouettes(seed: int) -> None:
    points = torch.randn(9, 3, generator=stream(seed, "points")).double()
    points[:3] += 2
    found, silhouettes = two_means(points, RandomState(0))
    splits = [list(split) for split in product([True, False], repeat=9) if 0 < sum(split) < 5]
    best = min(splits, key=lambda split: spread(points, split))
    assert found.tolist() == best
    expected = [silhouette(points, best, n) for n in range(9)]
    assert_close(silhouettes, torch.tensor(expected).double())


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ((), 0.2, {0.2: True, 0.1: True, 0.09: False}),
        ((), 0.35, {0.2: True}),
        ((), 0.36, {0.9: False}),
        ((0.15, 0.2), 0.2, {0.15: True, 0.14: False}),
        ((0.15, 0.2), 0.21, {0.9: False}),
        ((-1.0, 0.5), 0.5, {-0.5: True}),
    ],
)
def test_both_rules_must_agree(
    values: tuple[float, ...], share: float, expected: dict[float, bool]
) -> None:
    fields = dict(zip(("min_silhouette", "max_share"), values, strict=False))
    for score, called in expected.items():
        assert ActivationClustering(**fields).poisoned(score, share) == called  # type: ignore[arg-type]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], None]:
    """Replace the activations of the undefended network."""

    def planted(points: Tensor) -> None:
        monkeypatch.setattr(
            "bdbench.defenses.activation_clustering.embeddings", lambda network, data: points
        )

    return planted


def with_poison(count: int) -> tuple[ImageSet, Tensor, list[int]]:
    """300 images of two labels, their activations, and the positions of the poison, which are some
    of label 1 and a cluster apart from its others."""
    activations = random_points(300, 16)
    poison = torch.arange(1, 300, 2)[:count]
    activations[poison, 2] += 12
    return scenarios.random_images(300, 16, 2), activations, poison.tolist()


def fitted(images: ImageSet, **fields: float) -> tuple[Classifier, Context]:
    context = scenarios.defense_context(images, 0.0)
    return ActivationClustering(**fields).fit(images, context), context  # type: ignore[arg-type]


def dropped(context: Context) -> list[int]:
    return torch.nonzero(context.journal.samples["kept"] == 0).flatten().tolist()


@pytest.mark.parametrize("count", [10, 45])
def test_exactly_a_small_cluster_is_dropped(count: int, plant: Callable[[Tensor], None]) -> None:
    images, activations, poison = with_poison(count)
    plant(activations)
    made, context = fitted(images)
    assert dropped(context) == poison
    scalars, scores = context.journal.scalars, context.journal.samples["silhouette"]
    assert scalars["labels judged"] == 2
    assert scalars["labels called poisoned"] == 1
    assert scalars["dropped images"] == count
    assert scalars["largest silhouette"] > 0.1
    assert float(scores[poison].max()) < 0
    assert float(scores[[n for n in range(1, 300, 2) if n not in poison]].min()) > 0
    kept = context.journal.samples["kept"] == 1
    expected = train(context.build(), images[kept], context.recipe, context.rng("classifier"))
    assert_close(made.state_dict(), expected.state_dict(), rtol=0, atol=0)
    _, again = fitted(images)
    assert torch.equal(again.journal.samples["silhouette"], scores)


def test_without_clusters_nothing_is_dropped_and_training_is_plain(
    plant: Callable[[Tensor], None],
) -> None:
    images, activations, _ = with_poison(0)
    plant(activations)
    made, context = fitted(images)
    assert context.journal.scalars["labels called poisoned"] == 0
    assert dropped(context) == []
    plain = train(context.build(), images, context.recipe, context.rng("classifier"))
    assert_close(made.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_poison_that_outnumbers_its_label_is_kept(plant: Callable[[Tensor], None]) -> None:
    """The limit of the method at a poisoning rate of 0.1 and ten classes."""
    images, activations, poison = with_poison(80)
    plant(activations)
    assert dropped(fitted(images)[1]) == []
    found = dropped(fitted(images, min_silhouette=-1.0, max_share=0.5)[1])
    assert {n for n in found if n % 2} == set(range(1, 300, 2)) - set(poison)


def test_labels_with_few_images_and_equal_images_are_not_judged(
    images: ImageSet, plant: Callable[[Tensor], None]
) -> None:
    _, context = fitted(images, components=6)
    assert context.journal.scalars == {
        "labels judged": 0,
        "labels called poisoned": 0,
        "largest silhouette": 0,
        "dropped images": 0,
    }
    assert fitted(images, components=5)[1].journal.scalars["labels judged"] == 10
    plant(torch.ones(60, 4).double())
    assert fitted(images, components=2)[1].journal.scalars["labels judged"] == 0


def test_a_diverged_network_is_not_an_error_and_the_shared_one_stays() -> None:
    images = scenarios.random_images(60, 16, 2)
    context = scenarios.defense_context(images, 0.0)
    broken = context.undefended()
    for p in broken.parameters():
        p.data.fill_(torch.nan)
    context = replace(context, train_undefended=lambda n: broken)
    ActivationClustering().fit(images, context)
    assert dropped(context) == []
    assert all(bool(p.isnan().all()) for p in broken.parameters())


def test_it_costs_at_most_two_plain_trainings(
    work: Callable[[Callable[[], object]], int], plant: Callable[[Tensor], None]
) -> None:
    images = scenarios.random_images(300, 16, 2)
    context = scenarios.defense_context(images, 0.0)
    plain = defenses.build("none").cost(context.recipe, 300)
    counted = work(lambda: ActivationClustering().fit(images, context)) / 300
    lost = context.journal.scalars["dropped images"] / 300
    assert counted == pytest.approx(1 + plain * (1 - lost))
    assert ActivationClustering().cost(context.recipe, 300) == pytest.approx(2 * plain + 1)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"components": 1}, "components must be at least 2, got 1"),
        ({"min_silhouette": 1.1}, "min_silhouette must be from -1 to 1, got 1.1"),
        ({"min_silhouette": math.nan}, "min_silhouette must be from -1 to 1, got nan"),
        ({"max_share": 0.0}, "max_share must be above 0 and at most 0.5, got 0.0"),
        ({"max_share": 0.6}, "max_share must be above 0 and at most 0.5, got 0.6"),
    ],
)
def test_a_bad_setting_is_refused_in_one_line(fields: dict[str, float], complaint: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        ActivationClustering(**fields)  # type: ignore[arg-type]
    assert str(raised.value) == complaint
