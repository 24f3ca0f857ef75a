"""What a model and a data set promise, and what every plugin does."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch

from bdbench.contract.promises import promise
from bdbench.contract.scenarios import CPU, RECIPE, expect, pictures, untouched
from bdbench.models.plugins.registry import Registry
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.loop import logits, predict


@promise("", "it can be made with its defaults")
def made(registry: Registry[Any], name: str) -> None:
    registry.build(name)


@promise("", "it can be written as a spec, and read back", made)
def specs(registry: Registry[Any], name: str) -> None:
    canonical = registry.canonical(name)
    expect(registry.canonical(canonical) == canonical, f"{canonical!r} reads back as another")
    label = registry.label(name)
    expect(label == name, f"its defaults are shown as {label!r}: they change when built")
    expect(registry.version(name) >= 1, "its version is below 1")
    built = registry.canonical(registry.build(name))
    expect(built == canonical, f"its settings change when it is built, to {built!r}")


@promise("", "its documentation names the method, and every field with a default")
def documentation(registry: Registry[Any], name: str) -> None:
    factory = registry.factory(name)
    module = inspect.getdoc(inspect.getmodule(factory)) or ""
    first = module.partition("\n")[0].rstrip()
    expect(bool(first), "its file has no docstring; the first line names method, authors and year")
    expect(first.endswith((".", ":")), f"the first line of its file is not a sentence: {first!r}")
    doc = inspect.getdoc(factory) or ""
    for field in inspect.signature(factory).parameters.values():
        if field.default is not inspect.Parameter.empty:
            expect(field.name in doc, f"its docstring does not say what {field.name} is")


def small(registry: Registry[Any], name: str) -> TrainingContext:
    """The means of training such networks of 7 classes on images of 48 pixels."""
    return TrainingContext(RECIPE, CPU, partial(registry.build(name).build, 7, 48), seed=0)


@promise("model", "it is a classifier for images of any size", made)
def any_size(registry: Registry[Any], name: str) -> None:
    network, images = small(registry, name).build(), pictures(3, 48, 7).images
    answers = logits(network, images)
    expect(answers.shape == (3, 7), f"its logits have the shape {tuple(answers.shape)}")
    expect(predict(network, images).shape == (3,), "it does not name one class for each image")


@promise("model", "its answers in eval mode draw from no generator", any_size)
def model_draws(registry: Registry[Any], name: str) -> None:
    means, images = small(registry, name), pictures(3, 48, 7).images
    network = means.build()
    with untouched("an answer in eval mode"):
        logits(network, images)
    # Layers such as dropout have no other generator than torch's.
    with untouched("an answer in training mode", but_torch=True), torch.random.fork_rng(devices=[]):
        network.train()(images / 255)


@promise("model", "its weights follow the seed", model_draws)
def weights_follow(registry: Registry[Any], name: str) -> None:
    means = small(registry, name)
    networks = means.build(), means.build(), means.build("other")
    one, two, other = (torch.cat([p.flatten() for p in m.parameters()]) for m in networks)
    expect(torch.equal(one, two), "the same seed gives other weights")
    expect(not torch.equal(one, other), "another seed gives the same weights")


@promise("data set", "it says beforehand what it is", made)
def declared(registry: Registry[Any], name: str) -> None:
    source = registry.build(name)
    expect(source.name == name, f"its name is {source.name!r}")
    if not source.is_named:
        return
    expect(source.num_classes > 1, f"it has {source.num_classes} classes")
    expect(source.image_size >= 8, f"its images have {source.image_size} pixels")
    expect(source.count == source.train_size, "count is not train_size")
    expect(source.learning_rate > 0, "its learning rate is not above 0")
    expect(isinstance(source.flip, bool), "flip is not True or False")
    expect(registry.build(f"{name}(train_images=500)").count == 500, "train_images is ignored")
