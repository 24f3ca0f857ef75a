"""What a data set promises."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bdbench.contract.others import made, made_by
from bdbench.contract.promises import promise
from bdbench.contract.scenarios import Untested, expect, untouched, whole_cell
from bdbench.datasets.base import Dataset, Source, fingerprint
from bdbench.models.data import ImageSet
from bdbench.models.plugins.registry import Registry
from bdbench.models.plugins.spec import Spec
from bdbench.storage.cache import Cache
from bdbench.storage.folders import cache_root, roots

MOST = 3_000_000
"""Pixels of the test images of a data set with which a cell is tried."""
FEW = 10
"""Training images of each class in a subset."""


@promise("data set", "it says beforehand what it is", made)
def declared(registry: Registry[Any], name: str) -> None:
    source = registry.build(name)
    expect(source.name == Spec.of(name).name, f"its name is {source.name!r}")
    if not source.is_named:
        raise Untested(f"its settings do not say which images are meant: {source.advice}")
    expect(source.num_classes > 1, f"it has {source.num_classes} classes")
    expect(source.image_size >= 8, f"its images have {source.image_size} pixels")
    if source.train_images is None:
        expect(source.count == source.train_size, "count is not train_size")
    expect(source.learning_rate > 0, "its learning rate is not above 0")
    expect(isinstance(source.flip, bool), "flip is not True or False")
    wanted = FEW * source.num_classes
    expect(fewer(registry, name, wanted).count == wanted, "train_images is ignored")


def fewer(registry: Registry[Any], name: str, count: int) -> Source:
    """The same with so many training images."""
    source: Source = registry.build(Spec.of(name).with_(train_images=count))
    return source


def searched() -> list[Path]:
    return roots(None)


@functools.lru_cache(maxsize=1)
def loaded(registry: Registry[Any], name: str, factory: Any, places: Sequence[Path]) -> Dataset:
    """What several promises look at. Raises `Untested` where there are no images."""
    source = registry.build(name)
    if source.locate(places) is None:
        raise Untested("its images are nowhere; $BDBENCH_DATA names the folder of data sets")
    found: Dataset = source.load(places, Cache(cache_root()))
    return found


def whole(registry: Registry[Any], name: str) -> Dataset:
    return loaded(registry, name, made_by(registry, name), tuple(searched()))


@promise("data set", "its images are what it says, the same at every time", declared)
def as_said(registry: Registry[Any], name: str) -> None:
    source, found = registry.build(name), whole(registry, name)
    expect(isinstance(found, Dataset), f"load returns a {type(found).__name__} and no Dataset")
    for which, data in (("training", found.train), ("test", found.test)):
        _check_images(source, which, data)
    expect(len(found.class_names) == source.num_classes, "it has not one name for each class")
    digest = fingerprint(found.train, found.test)
    expect(found.sha256 == digest, "sha256 is not the fingerprint of its images and labels")
    # At the first time libraries may be imported, which draw names for their own files.
    with untouched("it"):
        again = source.load(searched(), Cache(cache_root()))
    expect(again.sha256 == found.sha256, "it has other images when it is loaded again")


def _check_images(source: Source, which: str, data: ImageSet) -> None:
    images, labels = data.images, data.labels
    count, size = len(data), source.image_size
    expect(count > 0, f"it has no {which} images")
    expect(
        images.dtype == torch.uint8 and images.shape == (count, 3, size, size),
        f"its {which} images are {images.dtype} {tuple(images.shape)} and not uint8 "
        f"({count}, 3, {size}, {size})",
    )
    expect(
        labels.dtype == torch.int64 and labels.shape == (count,),
        f"its {which} labels are {labels.dtype} {tuple(labels.shape)} and not int64 ({count},)",
    )
    low, high = int(labels.min()), int(labels.max())
    expect(
        low >= 0 and high < source.num_classes == data.num_classes,
        f"its {which} labels are from {low} to {high} of {data.num_classes} classes, and it says "
        f"that there are {source.num_classes}",
    )


@promise("data set", "a subset has as many training images as asked, of every class", as_said)
def subset(registry: Registry[Any], name: str) -> None:
    every = whole(registry, name)
    there = int((every.train.labels.bincount() > 0).sum())
    count = min(FEW * every.train.num_classes, len(every.train))
    part = fewer(registry, name, count).load(searched(), Cache(cache_root()))
    expect(len(part.train) == count, f"of {count} training images it has {len(part.train)}")
    found = int((part.train.labels.bincount() > 0).sum())
    expect(found == there, f"of {there} classes a subset has images of {found}")
    same = torch.equal(part.test.labels, every.test.labels)
    expect(same, "a subset of the training images has other test images")


@promise("data set", "it goes through a whole cell, from its images to the record", subset)
def dataset_cell(registry: Registry[Any], name: str) -> None:
    source = registry.build(name)
    tested = len(whole(registry, name).test)
    if tested * source.image_size**2 > MOST:
        raise Untested(f"a cell is tested on its {tested:,} test images, which takes a while")
    few = Spec.of(name).with_(train_images=min(2 * source.num_classes, source.count))
    whole_cell("none", "none", dataset=str(few), roots=searched(), cache=Cache(cache_root()))
