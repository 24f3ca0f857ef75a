"""From weights to networks and back: those that a user brings, and those that a run keeps."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from bdbench.cells.cell import Cell
from bdbench.datasets.base import Source
from bdbench.models.networks import given
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.spec import Spec
from bdbench.models.registry import Model, models
from bdbench.records.record import Record
from bdbench.storage import networks
from bdbench.storage.networks import Stored, weights_sha256

NAMED = 3
"""How many tensors a message names."""
SCALES = ("mean", "deviation")
"""Of pixels: what a file need not hold, as the spec of a model says them."""


def brought(stored: Stored, model: str | Model | None, source: Source) -> Model:
    """The model that stands for a user's weights on a data set: what they are of, and their hash.

    model: what they are of; None for what the file says

    Raises `InvalidInput` for weights of another model or number of classes, and for such as are no
    finite numbers.
    """
    named = stored.facts.get("model") if model is None else model
    require(
        named is not None,
        f"{stored.origin} does not say of which model its weights are: name it with --model, one "
        f"of {', '.join(name for name in models.names() if name != given.NAME)}",
    )
    assert named is not None
    inner = models.built(named)
    weights = fitted(stored, inner, source)
    bad = [name for name, values in weights.items() if not values.isfinite().all()]
    require(
        not bad,
        f"{stored.origin} has values that are no finite numbers, in {_few(bad)}: there is nothing "
        "to evaluate, so choose an earlier state of the network",
    )
    digits = weights_sha256(weights)[: given.DIGITS]
    fields = {"model": given.architecture(inner), "sha256": digits}
    return models.build(Spec(given.NAME, fields))


def lent(stored: Stored | None, cell: Cell) -> dict[str, Tensor] | None:
    """The weights that the defense of a cell starts from; None for a cell whose undefended networks
    are trained. Raises `InvalidInput` unless they are there and those that the cell names."""
    digits = given.given(cell.model)
    if digits is None:
        return None
    require(
        stored is not None,
        f"model {given.NAME!r} stands for a network in a file, so it cannot be trained: `bdbench "
        "evaluate FILE` evaluates it and runs the defenses that start from it",
    )
    assert stored is not None
    weights = fitted(stored, models.build(given.architecture(cell.model)), cell.dataset)
    found = weights_sha256(weights)[: given.DIGITS]
    require(
        found == digits,
        f"{stored.origin} holds the network {found}, and not {digits}, of which the cell is",
    )
    return weights


def check_starts(cells: Iterable[Cell]) -> None:
    """Raises `InvalidInput` for a defense that does not start from one undefended network."""
    for cell in cells:
        name, count = cell.labels["defense"], cell.defense.undefended
        require(
            count > 0,
            f"defense {name} trains a network from the start and makes nothing of one that is "
            "given: choose one that starts from a network, such as ft, fp, nad or clp",
        )
        require(
            count < 2,
            f"defense {name} starts from {count} networks, and one is given; where it has a field "
            "for that, such as mcr(ends='single'), choose a single one",
        )


def fitted(stored: Stored, model: Model, source: Source) -> dict[str, Tensor]:
    """Weights as the state dict of a model for a data set: float32 for any floating-point type,
    with its names and what a file need not hold. A file may have those of the network that the
    model was made of, and anything before all of them, such as `module.`.

    Raises `InvalidInput` where they are of another model.
    """
    built = model.build(source.num_classes, source.image_size)
    like, found = built.state_dict(), _named(stored.weights, built)
    if complaint := _misfit(found, like, source):
        others = fitting(stored, source)
        hint = f"; it is one of model {' or '.join(others)}" if others else ""
        raise InvalidInput(f"{stored.origin} is no {models.label(model)}: {complaint}{hint}")
    for name in SCALES:
        if name in found and not torch.equal(found[name].float().cpu(), like[name]):
            raise InvalidInput(
                f"{stored.origin} has a {name} of {found[name].tolist()} and the model has "
                f"{like[name].flatten().tolist()}: say it in the model, as in "
                f'"{Spec.of(models.canonical(model)).name}(mean=0.5, deviation=0.25)"'
            )
    return {name: found.get(name, like[name]).to(like[name].dtype) for name in like}


def converted(stored: Stored) -> str:
    """In words, that weights have another type than they are computed in; empty where they have
    not."""
    kinds = {
        str(values.dtype).removeprefix("torch.")
        for values in stored.weights.values()
        if values.is_floating_point() and values.dtype != torch.float32
    }
    few = " and ".join(sorted(kinds))
    return f"{stored.origin} holds {few} weights, which are used as float32" if kinds else ""


def network(stored: Stored) -> Classifier:
    """The network in a file that bdbench wrote, in eval mode, on the CPU. Raises `InvalidInput`."""
    facts = stored.facts
    try:
        text, shape = facts["model"], (int(facts["classes"]), int(facts["image_size"]))
    except (LookupError, ValueError):
        raise InvalidInput(
            f"{stored.origin} does not say which network it holds: it was not written by bdbench"
        ) from None
    made = models.build(text).build(*shape)
    like = made.state_dict()
    complaint = _misfit(stored.weights, like, None)
    require(not complaint, f"{stored.origin} is no {text}: {complaint}")
    made.load_state_dict(stored.weights)
    return made.eval()


def kept(results: Path, record: Record) -> Classifier:
    """The network that a run with --save kept beside a record. Raises `InvalidInput` where there is
    none, or another."""
    stored = saved(results, record)
    require(
        stored is not None,
        f"no network of cell {record.key} in {results / networks.FOLDER}: `bdbench run --save` "
        "keeps those of its cells",
    )
    assert stored is not None
    return network(stored)


def saved(results: Path, record: Record) -> Stored | None:
    """The file of `kept`; None where there is none. Raises `InvalidInput` for a damaged one."""
    path = networks.path_of(results, record.key)
    if not os.path.lexists(path):
        return None
    stored = networks.read(path)
    expected = record.provenance.get("network_sha256")
    require(
        expected in (None, weights_sha256(stored.weights)),
        f"{path} holds another network than the one that record {record.key} is of; remove it, and "
        "`bdbench run --save` makes it again",
    )
    return stored


def keep(results: Path, cell: Cell, classifier: Classifier) -> Path:
    """Write what the defense of a cell returned; gives the path. Raises `Unusable`."""
    path = networks.path_of(results, cell.key)
    networks.write(path, classifier.state_dict(), facts_of(cell))
    return path


def facts_of(cell: Cell) -> dict[str, str]:
    """What a file says of the network of a cell, so that it can be built again."""
    return {
        "key": cell.key,
        "model": given.architecture(cell.model),
        "classes": str(cell.dataset.num_classes),
        "image_size": str(cell.dataset.image_size),
        "input": "float32 (n, 3, height, width), RGB in [0, 1]",
    }


def fitting(stored: Stored, source: Source) -> list[str]:
    """The models, with their defaults, that weights are of."""
    names = []
    for name in models.names():
        with suppress(Exception):  # whatever a plugin raises, it is not the one
            built = models.build(name).build(source.num_classes, source.image_size)
            fits = not _misfit(_named(stored.weights, built), built.state_dict(), None)
            names += [name] if fits and name != given.NAME else []
    return names


def _named(weights: Mapping[str, Tensor], network: Classifier) -> dict[str, Tensor]:
    """With the names that they have in a network, as far as it knows them."""
    own = _without_prefix(weights, network.state_dict())
    usual = _without_prefix(weights, network.usual)
    renamed = {network.usual.get(name, name): values for name, values in usual.items()}
    known = network.state_dict().keys()
    return max(own, renamed, key=lambda named: len(named.keys() & known))


def _without_prefix(weights: Mapping[str, Tensor], like: Collection[str]) -> dict[str, Tensor]:
    """Without what stands before all names, unless that is theirs."""
    homes = zip(*(name.split(".")[:-1] for name in weights), strict=False)
    shared = takewhile(lambda parts: len(set(parts)) == 1, homes)
    prefix = "".join(f"{parts[0]}." for parts in shared)
    if not prefix or any(name.startswith(prefix) for name in like):
        return dict(weights)
    return {name.removeprefix(prefix): values for name, values in weights.items()}


def _misfit(found: Mapping[str, Tensor], like: Mapping[str, Tensor], source: Source | None) -> str:
    """Why weights are not those of a network; empty where they are."""
    optional = (*SCALES, "num_batches_tracked")
    missing = [name for name in like if name not in found and not name.endswith(optional)]
    unknown = [name for name in found if name not in like]
    if missing or unknown:
        parts = [
            *([f"it lacks {_few(missing)}"] if missing else []),
            *([f"it has {_few(unknown)} too much"] if unknown else []),
        ]
        return " and ".join(parts)
    for name in [each for each in like if each in found and each not in SCALES]:
        shapes = tuple(found[name].shape), tuple(like[name].shape)
        if shapes[0] != shapes[1]:
            of = f" for the {source.num_classes} classes of {source.name}" if source else ""
            return f"its {name} has the shape {shapes[0]}, which must be {shapes[1]}{of}"
        if found[name].is_floating_point() != like[name].is_floating_point():
            return f"its {name} is {found[name].dtype}, which must be {like[name].dtype}"
    return ""


def _few(names: list[str]) -> str:
    """The first of several names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
