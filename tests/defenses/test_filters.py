"""What filters share: embeddings, labels, the lowest scores, and training on the rest."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from bdbench.contract import scenarios
from bdbench.defenses.filters import by_label, embeddings, lowest, retrain
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.training.augment import to_float
from bdbench.models.training.loop import train


def test_embeddings_are_those_of_the_network_and_finite(images: ImageSet) -> None:
    network = scenarios.defense_context(images, 0.0).build().eval()
    found = embeddings(network, images)
    assert found.dtype == torch.float64
    assert_close(found, network.features(to_float(images.images)).double())
    for p in network.parameters():
        p.data.fill_(torch.nan)
    assert not embeddings(network, images).any()


def test_every_image_belongs_to_one_label_that_occurs() -> None:
    labels = torch.tensor([3, 0, 3, 3, 1])
    data = ImageSet(torch.zeros(5, 3, 4, 4, dtype=torch.uint8), labels, 6)
    assert [rows.tolist() for rows in by_label(data.labels)] == [[1], [4], [0, 2, 3]]


def test_the_lowest_scores_are_chosen_the_first_among_equals_and_nan_last() -> None:
    scores = torch.tensor([2.0, math.nan, 0.0, 1.0, 1.0, -math.inf])
    assert [lowest(scores, n).nonzero().flatten().tolist() for n in (0, 3, 5)] == [
        [],
        [2, 3, 5],
        [0, 2, 3, 4, 5],
    ]


def test_a_new_network_trains_on_the_rest(images: ImageSet) -> None:
    context = scenarios.defense_context(images, 0.0)
    suspects = torch.arange(60) % 7 == 0
    made = retrain(images, suspects, context)
    rest = images[torch.tensor([n for n in range(60) if n % 7])]
    expected = train(context.build(), rest, context.recipe, context.rng("classifier"))
    assert_close(made.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert not made.training


def test_a_filter_that_keeps_nothing_is_refused(images: ImageSet) -> None:
    context = scenarios.defense_context(images, 0.0)
    with pytest.raises(InvalidInput) as raised:
        retrain(images, torch.ones(60, dtype=torch.bool), context)
    assert str(raised.value) == "the filter drops every training image; make it keep some"


@pytest.mark.parametrize(
    ("suspects", "got"),
    [
        ((torch.arange(60) % 7 == 0).long(), r"int64 \(60,\)"),
        ((torch.arange(60) % 7 == 0).float(), r"float32 \(60,\)"),
        (torch.arange(9), r"int64 \(9,\)"),
        (torch.ones(59, dtype=torch.bool), r"bool \(59,\)"),
        (torch.zeros(60, 1, dtype=torch.bool), r"bool \(60, 1\)"),
    ],
)
def test_suspects_that_are_no_mask_are_refused(
    suspects: Tensor, got: str, images: ImageSet
) -> None:
    """Of integers, ~ would make the positions of other images, without an error."""
    context = scenarios.defense_context(images, 0.0)
    message = rf"suspects must be a mask, bool \(60,\), got {got}: "
    with pytest.raises(InvalidInput, match=message):
        retrain(images, suspects, context)
    with pytest.raises(InvalidInput, match=message):
        context.journal.filtered("loss", torch.zeros(60), suspects)
    assert not context.journal.samples
