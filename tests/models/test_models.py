"""Networks of all architectures keep the contract."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from bdbench.models.networks.classifier import Classifier, compiled
from bdbench.models.observer import Observer, observed_by
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import global_seed, stream


def network(name: str, size: int = 32, classes: int = 10) -> Classifier:
    with global_seed(0, "test"):
        return models.build(name).build(classes, size)


def picture(size: int, count: int = 4) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=stream(0, "picture"))


@pytest.mark.parametrize("name", models.names())
@pytest.mark.parametrize(("size", "classes"), [(32, 10), (40, 43), (96, 12)])
def test_stages_features_and_head_make_up_the_whole(name: str, size: int, classes: int) -> None:
    model = network(name, size, classes).eval()
    images = picture(size)
    maps = model.stages(images)
    assert len(maps) >= 3
    assert all(maps[i].shape[2] > maps[i + 1].shape[2] for i in range(len(maps) - 1))
    features = model.features(images)
    assert features.shape == (4, model.head.in_features)
    assert torch.equal(model.head(features), model(images))
    assert model(images).shape == (4, classes)


@pytest.mark.parametrize("name", models.names())
def test_images_of_a_batch_are_independent_in_eval_mode(name: str) -> None:
    model = network(name).eval()
    images = picture(32)
    together, alone = model(images), torch.cat([model(images[n : n + 1]) for n in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_wrn16_1_has_the_known_size() -> None:
    model = network("wrn16_1")
    assert sum(values.numel() for values in model.parameters()) == 175_066
    assert [maps.shape[1:] for maps in model.stages(picture(32))] == [
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
    ]


def test_small_and_large_images_get_different_stems() -> None:
    for name in ("resnet18", "resnet34", "preact_resnet18"):
        small = network(name, 32).stages(picture(32, 2))[0]
        large = network(name, 224).stages(picture(224, 2))[0]
        assert small.shape[2:] == (32, 32)
        assert large.shape[2:] == (56, 56)


def test_normalisation_is_the_first_layer() -> None:
    with global_seed(0, "test"):
        plain = models.build("wrn16_1").build(10, 32).eval()
    with global_seed(0, "test"):
        scaled = models.build("wrn16_1(mean=0.5, deviation=0.25)").build(10, 32).eval()
    images = picture(32)
    assert torch.equal(scaled(images), plain((images - 0.5) / 0.25))


def test_normalisation_comes_with_the_weights() -> None:
    scaled = models.build("wrn16_1(mean=0.5, deviation=0.25)").build(10, 32).eval()
    plain = models.build("wrn16_1").build(10, 32).eval()
    before = plain.state_dict()
    plain.load_state_dict(scaled.state_dict())
    images = picture(32)
    assert torch.equal(plain(images), scaled(images))
    assert plain.normalises
    plain.load_state_dict({**before, "mean": torch.tensor(0.0), "deviation": torch.tensor(1.0)})
    assert not plain.normalises


def test_every_batch_size_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """By default torch runs all sizes after the first eight as they are."""
    calls = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(inputs)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    compiled.cache_clear()
    try:
        model = network("wrn16_1").eval()
        model.compiled = True
        with torch.no_grad():
            for size in range(2, 14):
                model(picture(16)[:1].expand(size, -1, -1, -1))
    finally:
        compiled.cache_clear()
        torch.compiler.reset()
    assert len(calls) == 12


@torch.no_grad()
def test_bf16_is_close_and_its_outputs_are_float32() -> None:
    model = network("wrn16_1").eval()
    exact = model.features(picture(32))
    model.precision = "bf16"
    rounded = model.features(picture(32))
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    assert float((exact - rounded).norm() / exact.norm()) < 0.02


def test_passes_are_counted() -> None:
    class Counter(Observer):
        forwards = backwards = 0

        def forward(self, images: int) -> None:
            self.forwards += images

        def backward(self, images: int) -> None:
            self.backwards += images

    model, counter = network("wrn16_1"), Counter()
    with observed_by(counter):
        model(picture(32)).sum().backward()
        with torch.no_grad():
            model(picture(32))
        model(picture(32))
    assert (counter.forwards, counter.backwards) == (12, 4)


@pytest.mark.parametrize("name", [n for n in models.names() if n != "weights"])
@pytest.mark.parametrize("settings", ["deviation=0.0", "deviation=-1.0", "deviation=1e-300"])
def test_a_deviation_near_zero_is_refused(name: str, settings: str) -> None:
    with pytest.raises(InvalidInput, match="deviation of a model must be finite and at least"):
        models.build(f"{name}({settings})").build(10, 32)
