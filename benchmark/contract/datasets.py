"""The promises of a data set."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bdbench.contract.common import can_be_built, factory_of, specs
from bdbench.contract.promises import promise
from bdbench.contract.scenarios import Untested, expect, no_global_draws, run_whole_cell
from bdbench.datasets.base import Dataset, Source, fingerprint
from bdbench.models.data import ImageSet
from bdbench.models.plugins.registry import Registry
from bdbench.models.plugins.spec import Spec
from bdbench.storage.cache import Cache
from bdbench.storage.folders import cache_root, roots

MOST_PIXELS = 3_000_000
"""In the test images of a data set, for which the check runs a whole cell."""
FEW = 10
"""Training images of each class in a subset."""


@promise("data set", "it declares its name, sizes and recipe before it is loaded", can_be_built)
def declared(registry: Registry[Any], name: str) -> None:
    source = registry.build(name)
    expected = Spec.of(name).name
    expect(source.name == expected, f"its name is {source.name!r}, not {expected!r}")
    if not source.is_named:
        raise Untested(f"its settings do not name any images: {source.advice}")
    expect(source.num_classes > 1, f"it has {source.num_classes} classes")
    expect(source.image_size >= 8, f"its images have {source.image_size} pixels")
    if source.train_images is None:
        expect(source.count == source.train_size, "count is not train_size")
    expect(source.learning_rate > 0, "its learning rate is not above 0")
    expect(isinstance(source.flip, bool), "flip is not True or False")
    wanted = FEW * source.num_classes
    expect(fewer(registry, name, wanted).count == wanted, "it ignores train_images")


def fewer(registry: Registry[Any], name: str, count: int) -> Source:
    """The same data set with so many training images."""
    source: Source = registry.build(Spec.of(name).with_(train_images=count))
    return source


def searched() -> list[Path]:
    return roots(None)


@functools.lru_cache(maxsize=1)
def loaded(registry: Registry[Any], name: str, factory: Any, places: Sequence[Path]) -> Dataset:
    """The loaded data set, which several promises inspect. Raises `Untested` if its images are
    missing."""
    source = registry.build(name)
    if source.locate(places) is None:
        raise Untested(
            "its images were not found; set $BDBENCH_DATA to the folder that contains data sets"
        )
    found: Dataset = source.load(places, Cache(cache_root()))
    return found


def whole(registry: Registry[Any], name: str) -> Dataset:
    return loaded(registry, name, factory_of(registry, name), tuple(searched()))


@promise("data set", "its images match its declaration and are the same at every load", declared)
def as_declared(registry: Registry[Any], name: str) -> None:
    source, found = registry.build(name), whole(registry, name)
    expect(isinstance(found, Dataset), f"load returns a {type(found).__name__}, not a Dataset")
    for which, data in (("training", found.train), ("test", found.test)):
        _check_images(source, which, data)
    names = len(found.class_names)
    expect(
        names == source.num_classes, f"it has {names} class names for {source.num_classes} classes"
    )
    digest = fingerprint(found.train, found.test)
    expect(found.sha256 == digest, "sha256 is not the fingerprint of its images and labels")
    # Only the second load is checked: the first may import libraries that draw file names.
    with no_global_draws("it"):
        again = source.load(searched(), Cache(cache_root()))
    expect(again.sha256 == found.sha256, "a second load gives other images")


def _check_images(source: Source, which: str, data: ImageSet) -> None:
    images, labels = data.images, data.labels
    count, size = len(data), source.image_size
    expect(count > 0, f"it has no {which} images")
    expect(
        images.dtype == torch.uint8 and images.shape == (count, 3, size, size),
        f"its {which} images are {images.dtype} {tuple(images.shape)}, not uint8 "
        f"({count}, 3, {size}, {size})",
    )
    expect(
        labels.dtype == torch.int64 and labels.shape == (count,),
        f"its {which} labels are {labels.dtype} {tuple(labels.shape)}, not int64 ({count},)",
    )
    low, high = int(labels.min()), int(labels.max())
    expect(
        low >= 0 and high < source.num_classes == data.num_classes,
        f"its {which} labels are from {low} to {high} of {data.num_classes} classes, but it "
        f"declares {source.num_classes} classes",
    )


@promise(
    "data set", "a subset has the requested number of training images, of all classes", as_declared
)
def subset(registry: Registry[Any], name: str) -> None:
    every = whole(registry, name)
    classes = int((every.train.labels.bincount() > 0).sum())
    count = min(FEW * every.train.num_classes, len(every.train))
    part = fewer(registry, name, count).load(searched(), Cache(cache_root()))
    expect(len(part.train) == count, f"a subset of {count} images has {len(part.train)}")
    found = int((part.train.labels.bincount() > 0).sum())
    expect(found == classes, f"a subset has images of {found} of {classes} classes")
    same = torch.equal(part.test.labels, every.test.labels)
    expect(same, "a subset of the training images has other test images")


@promise("data set", "it runs in a whole cell, from its images to the record", specs, subset)
def dataset_cell(registry: Registry[Any], name: str) -> None:
    source = registry.build(name)
    tested = len(whole(registry, name).test)
    if tested * source.image_size**2 > MOST_PIXELS:
        raise Untested(f"a whole cell takes too long with its {tested:,} test images")
    few = Spec.of(name).with_(train_images=min(2 * source.num_classes, source.count))
    run_whole_cell("none", "none", dataset=str(few), roots=searched(), cache=Cache(cache_root()))
