"""CLP: bounds by hand, matched layers, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.testing import assert_close

from bdbench.contract import scenarios
from bdbench.defenses.base import Context
from bdbench.defenses.clp import CLP, bounds, match_layers, outliers
from bdbench.defenses.registry import defenses
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.loop import logits
from bdbench.models.training.recipe import Recipe

WRN = [
    ("stem", "groups.0.0.norm1"),
    *((f"groups.{n}.{m}.conv1", f"groups.{n}.{m}.norm2") for n in range(3) for m in range(2)),
]


@pytest.fixture
def images() -> ImageSet:
    return scenarios.random_images(20, 16, 10)


def randomised(network: Classifier) -> Classifier:
    """The network with random weights and statistics in its normalisation layers."""
    rng = stream(0, "norms")
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            shape = (norm.num_features,)
            norm.weight.data = torch.randn(shape, generator=rng)
            norm.bias.data = torch.randn(shape, generator=rng)
            norm.running_mean = torch.randn(shape, generator=rng)
            norm.running_var = 0.5 + torch.rand(shape, generator=rng)
    return network.eval()


def make_context(images: ImageSet, network: Classifier | None = None) -> Context:
    context = scenarios.defense_context(images, 0.0)
    made = randomised(context.build()) if network is None else network
    return replace(context, train_undefended=lambda n: made)


def changed(one: Classifier, other: Classifier) -> dict[str, list[int]]:
    """The names of entries that differ, with their positions along the first axis."""
    a, b = one.state_dict(), other.state_dict()
    assert a.keys() == b.keys()
    found = {}
    for name, values in a.items():
        differs = torch.atleast_1d(values != b[name])
        if differs.any():
            found[name] = differs.reshape(len(differs), -1).any(1).nonzero().flatten().tolist()
    return found


def test_bounds_by_hand() -> None:
    """Kernels of two input channels and two pixels, with singular values (3, 1), (2, 0), (0, 0)."""
    convolution, norm = nn.Conv2d(2, 3, (1, 2)), nn.BatchNorm2d(3, eps=0.5)
    kernels = [[[0.0, 3.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]
    convolution.weight.data = torch.tensor(kernels).view(3, 2, 1, 2)
    norm.weight.data = torch.tensor([2.0, -1.5, 7.0])
    norm.running_var = torch.tensor([3.5, 0.5, 0.5])
    assert bounds(convolution, norm).tolist() == pytest.approx([3 * 2 / 2, 2 * 1.5 / 1, 0])


def test_outliers_by_hand() -> None:
    """Mean 2 and variance 9: four channels of ten fold."""
    values = torch.tensor([11.0] + [1.0] * 9)
    assert outliers(values, 2.9).tolist() == [True] + [False] * 9
    assert not outliers(values, 3.1).any()
    assert not outliers(torch.full((5,), 0.7), 0.0).any()


@pytest.mark.parametrize("u", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("width", [1, 9, 10, 11, 16, 64])
def test_at_most_a_share_of_channels_can_be_outliers(width: int, u: float) -> None:
    """Up to that share, in the worst case: equal outliers among equal values."""
    most = width / (1 + u**2)
    for count in range(width + 1):
        values = torch.arange(width) < count
        found = int(outliers(values.double(), u).sum())
        assert found == (count if 0 < count < most - 1e-9 else 0)


@pytest.mark.parametrize("u", [0.0, 1.0, 2.0])
def test_exactly_the_outliers_of_each_layer_are_pruned(u: float, images: ImageSet) -> None:
    """Channel by channel, with the singular values of another library."""
    context = make_context(images)
    before = context.undefended()
    made = CLP(u).fit(images, context)
    state = {name: values.numpy() for name, values in before.state_dict().items()}
    expected, total = {}, 0
    for convolution, norm in WRN:
        found = []
        for k, kernel in enumerate(state[f"{convolution}.weight"]):
            largest = np.linalg.svd(kernel.reshape(len(kernel), -1), compute_uv=False)[0]
            slope = state[f"{norm}.weight"][k] / np.sqrt(state[f"{norm}.running_var"][k] + 1e-5)
            found.append(largest * abs(slope))
        total += len(found)
        pruned = np.flatnonzero(np.array(found) > np.mean(found) + u * np.std(found)).tolist()
        if pruned:
            expected |= {f"{norm}.weight": pruned, f"{norm}.bias": pruned}
    assert changed(before, made) == expected
    assert expected
    after = made.state_dict()
    assert all(not after[name][rows].any() for name, rows in expected.items())
    assert context.journal.scalars == {
        "layers with bounds": 7,
        "channels with bounds": total,
        "pruned channels": sum(map(len, expected.values())) / 2,
    }


def test_a_pruned_channel_is_zero_for_all_images(images: ImageSet) -> None:
    network = randomised(scenarios.defense_context(images, 0.0).build())
    with torch.no_grad():
        network.get_submodule("groups.1.0.norm2").weight[5] = 100.0
    made = CLP().fit(images, make_context(images, network))
    outputs = []
    norm = made.get_submodule("groups.1.0.norm2")
    norm.register_forward_hook(lambda _, __, output: outputs.append(output.clone()))
    logits(made, images.images)
    assert not outputs[0][:, 5].any()
    assert outputs[0].flatten(2).any(2).sum(1).tolist() == [31] * len(images)


def test_without_outliers_the_network_is_unchanged(images: ImageSet) -> None:
    context = make_context(images)
    before = deepcopy(context.undefended())
    made = CLP(u=16.0).fit(images, context)
    assert context.journal.scalars["pruned channels"] == 0
    assert_close(made.state_dict(), before.state_dict(), rtol=0, atol=0)


def test_the_shared_network_is_unchanged(images: ImageSet) -> None:
    context = make_context(images)
    before = deepcopy(context.undefended())
    made = CLP(u=0.5).fit(images, context)
    assert_close(context.undefended().state_dict(), before.state_dict(), rtol=0, atol=0)
    assert not made.training
    assert changed(made, before)


def test_the_result_depends_on_no_image_and_no_seed(images: ImageSet) -> None:
    context = make_context(images)
    other = ImageSet(255 - images.images[:3], images.labels[:3], 10)
    one, two = CLP(1.0).fit(images, context), CLP(1.0).fit(other, replace(context, seed=7))
    assert not changed(one, two)


def test_a_network_that_is_not_finite_passes_unchanged(images: ImageSet) -> None:
    network = randomised(scenarios.defense_context(images, 0.0).build())
    for p in network.parameters():
        p.data.fill_(torch.nan)
    made = CLP().fit(images, make_context(images, network))
    assert all(bool(p.isnan().all()) for p in made.parameters())


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("wrn16_1", WRN),
        (
            "preact_resnet18",
            [
                ("stem", "groups.0.0.norm1"),
                *(
                    (f"groups.{n}.{m}.conv1", f"groups.{n}.{m}.norm2")
                    for n in range(4)
                    for m in range(2)
                ),
            ],
        ),
        (
            "resnet18",
            [
                ("stem.0", "stem.1"),
                *(
                    (f"groups.{n}.{m}.conv{k}", f"groups.{n}.{m}.bn{k}")
                    for n in range(4)
                    for m in range(2)
                    for k in (1, 2)
                ),
                *((f"groups.{n}.0.downsample.0", f"groups.{n}.0.downsample.1") for n in (1, 2, 3)),
            ],
        ),
    ],
)
def test_all_normalisations_after_a_convolution_are_matched(
    model: str, expected: list[tuple[str, str]]
) -> None:
    data = scenarios.random_images(1, 8, 10)
    context = replace(
        scenarios.defense_context(data, 0.0),
        build_network=partial(models.build(model).build, 10, 8),
    )
    noise = torch.rand(1, 3, 8, 8, generator=stream(0, "noise"))
    assert sorted(match_layers(context.build(), noise)) == sorted(expected)


class Odd(Classifier):
    """Connections from a convolution to a normalisation, of which one is direct."""

    def __init__(self) -> None:
        super().__init__(0.0, 1.0)
        self.head = nn.Linear(4, 10)
        self.convolutions = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4, affine=n != 4) for n in range(5))

    def body(self, images: Tensor) -> list[Tensor]:
        a, b, c, d, e = (convolution(images) for convolution in self.convolutions)
        b.add_(a)
        c = relu(c, inplace=True)
        maps = [a, b, c, -d, e]
        return [norm(each) for norm, each in zip(self.norms, maps, strict=True)]

    def embed(self, last: Tensor) -> Tensor:
        return last


def test_only_a_direct_connection_counts() -> None:
    """Not a sum, an activation, a change of sign, or a normalisation without weights."""
    network = Odd()
    assert match_layers(network, torch.rand(1, 3, 4, 4) - 0.5) == [("convolutions.0", "norms.0")]
    assert not any(module._forward_hooks for module in network.modules())
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_network_without_such_pairs_is_refused(images: ImageSet) -> None:
    class Bare(Odd):
        def body(self, images: Tensor) -> list[Tensor]:
            return [self.convolutions[0](images)]

    context = replace(make_context(images, Bare().eval()), build_network=Bare)
    with pytest.raises(InvalidInput, match="clp needs a BatchNorm2d that reads the output"):
        CLP().fit(images, context)


def test_it_costs_nothing(images: ImageSet, work: Callable[[Callable[[], object]], int]) -> None:
    context = make_context(images)
    assert work(lambda: CLP().fit(images, context)) == 0
    assert CLP().cost(Recipe(), 60) == defenses.build("none").cost(Recipe(), 60)
    assert CLP().clean_fraction == 0


@pytest.mark.parametrize("u", [-0.1, float("nan")])
def test_a_bad_setting_is_refused(u: float) -> None:
    with pytest.raises(InvalidInput, match=f"u must be at least 0, got {u}"):
        CLP(u)
