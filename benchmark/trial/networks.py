"""Weights in files: those of a user, for `bdbench evaluate`, and those that --save writes."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from bdbench.cells.cell import Cell
from bdbench.cells.declared import undefended
from bdbench.datasets.base import Source
from bdbench.models.networks import given
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.spec import Spec
from bdbench.models.registry import Model, models
from bdbench.records.files import NETWORKS, network_of
from bdbench.records.record import Record
from bdbench.storage import networks
from bdbench.storage.networks import Stored, weights_sha256

NAMED = 3
"""Tensors that a message names, at most."""
SCALES = ("mean", "deviation")
"""Normalisation of pixels. A file may lack it, as the spec of a model states it."""

NEEDS_FILE = (
    f"model {given.NAME!r} is a network in a file, which cannot be trained: use `bdbench evaluate "
    "FILE` to evaluate it and to run defenses that start from it"
)


def given_model(stored: Stored, model: str | Model | None, source: Source) -> Model:
    """The model `weights(...)` for a user's weights: their architecture and their hash.

    model: the architecture; None to take it from the file

    Raises `InvalidInput` for weights of another architecture or number of classes, and for weights
    that are nan or infinite.
    """
    named = stored.facts.get("model") if model is None else model
    require(
        named is not None,
        f"{stored.origin} does not name the model of its weights: name it (--model), one of "
        f"{', '.join(name for name in models.names() if name != given.NAME)}",
    )
    assert named is not None
    inner = models.built(named)
    require(
        models.is_registered(inner.factory),
        f"the model {inner.factory.__name__} is not registered, so no spec of a cell can name it: "
        "write @register('name') of bdbench.models above it",
    )
    weights = fitted(stored, inner, source)
    bad = [name for name, values in weights.items() if not values.isfinite().all()]
    require(
        not bad,
        f"{stored.origin} has values that are nan or infinite, in {_few(bad)}: choose an earlier "
        "state of the network",
    )
    digits = weights_sha256(weights)[: given.DIGITS]
    fields = {"model": given.architecture(inner), "sha256": digits}
    return models.build(Spec(given.NAME, fields))


def starting_weights(stored: Stored | None, cell: Cell) -> dict[str, Tensor] | None:
    """The given weights that the defense of a cell starts from; None for a cell that trains its
    undefended networks. Raises `InvalidInput` unless `stored` has the hash that the cell names."""
    digits = given.given(cell.model)
    if digits is None:
        return None
    require(stored is not None, NEEDS_FILE)
    assert stored is not None
    weights = fitted(stored, models.build(given.architecture(cell.model)), cell.dataset)
    found = weights_sha256(weights)[: given.DIGITS]
    require(
        found == digits,
        f"{stored.origin} holds network {found}, but the cell needs {digits}: name its file",
    )
    return weights


def check_starts(cells: Iterable[Cell]) -> None:
    """Raises `InvalidInput` for a defense that does not start from one undefended network."""
    for cell in cells:
        name = cell.labels["defense"]
        count = undefended(cell.defense, name)
        require(
            count > 0,
            f"defense {name} trains a network from scratch and cannot start from a given one: "
            "choose a defense that can, such as ft, fp, nad or clp",
        )
        require(
            count < 2,
            f"defense {name} starts from {count} networks, but one is given: use a setting that "
            "starts from one, such as mcr(ends='single')",
        )


def fitted(stored: Stored, model: Model, source: Source) -> dict[str, Tensor]:
    """Weights as the state dict of a model for a data set: under the model's names, float32 for any
    floating-point type, and complete. A file may use the names of the library that the model comes
    from, and a prefix before all of them, such as `module.`.

    Raises `InvalidInput` for weights of another model.
    """
    built = model.build(source.num_classes, source.image_size)
    like, found = built.state_dict(), _named(stored.weights, built)
    if complaint := _misfit(found, like, source):
        others = fitting(stored, source)
        hint = f"; it fits --model {' or '.join(others)}" if others else ""
        raise InvalidInput(f"{stored.origin} is not a {models.label(model)}: {complaint}{hint}")
    theirs = {name: _channels(found.get(name, like[name])) for name in SCALES}
    for name in SCALES:
        ours = _channels(like[name])
        settings = ", ".join(f"{each}={_shown(theirs[each])}" for each in SCALES)
        require(
            theirs[name] == ours,
            f"{stored.origin} has a {name} of {_shown(theirs[name])}, the model {_shown(ours)}: "
            f'choose the model "{Spec.of(models.canonical(model)).name}({settings})"',
        )
    weights = {**found, **{name: like[name] for name in SCALES}}
    return {name: weights.get(name, like[name]).to(like[name].dtype) for name in like}


def _channels(scale: Tensor) -> list[float]:
    """A mean or deviation for red, green and blue, from one for each or for all of them."""
    values: list[float] = scale.float().flatten().tolist()
    return values * 3 if len(values) == 1 else values


def _shown(values: list[float]) -> str:
    """A mean or deviation as it is set in a model."""
    parts = [f"{value:.8g}" for value in values]
    return parts[0] if len({*parts}) == 1 else f"({', '.join(parts)})"


def converted(stored: Stored) -> str:
    """A sentence for weights that are converted to float32; empty if all have that type."""
    kinds = {
        str(values.dtype).removeprefix("torch.")
        for values in stored.weights.values()
        if values.is_floating_point() and values.dtype != torch.float32
    }
    found = " and ".join(sorted(kinds))
    return f"{stored.origin} holds {found} weights, which are used as float32" if kinds else ""


def network(stored: Stored) -> Classifier:
    """The network in a file that bdbench wrote, in eval mode, on the CPU. Raises `InvalidInput`."""
    facts = stored.facts
    try:
        text, shape = facts["model"], (int(facts["classes"]), int(facts["image_size"]))
    except (LookupError, ValueError):
        raise InvalidInput(
            f"{stored.origin} does not name its network: choose a file that bdbench wrote"
        ) from None
    made = models.build(text).build(*shape)
    like = made.state_dict()
    complaint = _misfit(stored.weights, like, None)
    require(not complaint, f"{stored.origin} is not a {text}: {complaint}")
    # What a file may lack is that of a new network.
    made.load_state_dict({**like, **stored.weights})
    return made.eval()


def kept(results: Path, record: Record) -> Classifier:
    """The network that a run with --save stored beside a record. Raises `InvalidInput` if it is
    missing or another one."""
    stored = saved(results, record)
    require(
        stored is not None,
        f"{results / NETWORKS} has no network of cell {record.key}: run it again with "
        "`bdbench run --save`",
    )
    assert stored is not None
    return network(stored)


def saved(results: Path, record: Record) -> Stored | None:
    """The stored network of a record, None without one. A failed cell has none; what is stored
    under its name is that of an earlier run. Raises `InvalidInput` for a corrupt one."""
    path = network_of(results, record.key)
    if record.status != "ok" or not os.path.lexists(path):
        return None
    stored = networks.read(path)
    expected = record.provenance.network_sha256
    require(
        expected in (None, weights_sha256(stored.weights)),
        f"{path} is not the network of record {record.key}: remove it and run `bdbench run --save` "
        "again",
    )
    return stored


def keep(results: Path, cell: Cell, classifier: Classifier) -> Path:
    """Write the network that a defense returned; gives the path. Raises `Unusable`."""
    path = network_of(results, cell.key)
    networks.write(path, classifier.state_dict(), facts_of(cell))
    return path


def facts_of(cell: Cell) -> dict[str, str]:
    """Metadata of a file, from which the network can be built again."""
    return {
        "key": cell.key,
        "model": models.canonical(given.architecture(cell.model)),
        "classes": str(cell.dataset.num_classes),
        "image_size": str(cell.dataset.image_size),
        "input": "float32 (n, 3, height, width), RGB in [0, 1]",
    }


def fitting(stored: Stored, source: Source) -> list[str]:
    """The models that weights fit, with default settings."""
    names = []
    for name in models.names():
        with suppress(Exception):  # a plugin that raises is not the one
            built = models.build(name).build(source.num_classes, source.image_size)
            fits = not _misfit(_named(stored.weights, built), built.state_dict(), None)
            names += [name] if fits and name != given.NAME else []
    return names


def _named(weights: Mapping[str, Tensor], network: Classifier) -> dict[str, Tensor]:
    """Weights under the names of a network, where it knows them."""
    own = _without_prefix(weights, network.state_dict())
    usual = _without_prefix(weights, network.original_names)
    renamed = {network.original_names.get(name, name): values for name, values in usual.items()}
    known = network.state_dict().keys()
    return max(own, renamed, key=lambda named: len(named.keys() & known))


def _without_prefix(weights: Mapping[str, Tensor], like: Collection[str]) -> dict[str, Tensor]:
    """Without a prefix of all names that the network does not have."""
    homes = zip(*(name.split(".")[:-1] for name in weights), strict=False)
    shared = takewhile(lambda parts: len(set(parts)) == 1, homes)
    prefix = "".join(f"{parts[0]}." for parts in shared)
    if not prefix or any(name.startswith(prefix) for name in like):
        return dict(weights)
    return {name.removeprefix(prefix): values for name, values in weights.items()}


def _misfit(found: Mapping[str, Tensor], like: Mapping[str, Tensor], source: Source | None) -> str:
    """Why weights do not fit a network; empty if they do."""
    missing = [name for name in like if name not in found and not _is_optional(name)]
    unknown = [name for name in found if name not in like]
    if missing or unknown:
        parts = [
            *([f"it lacks {_few(missing)}"] if missing else []),
            *([f"it has unexpected {_few(unknown)}"] if unknown else []),
        ]
        return " and ".join(parts)
    for name in [each for each in like if each in found and each not in SCALES]:
        shapes = tuple(found[name].shape), tuple(like[name].shape)
        if shapes[0] != shapes[1]:
            of = f" for the {source.num_classes} classes of {source.name}" if source else ""
            return f"its {name} has shape {shapes[0]} instead of {shapes[1]}{of}"
        if found[name].is_floating_point() != like[name].is_floating_point():
            return f"its {name} is {found[name].dtype} instead of {like[name].dtype}"
    return ""


def _is_optional(name: str) -> bool:
    """Whether a network gives its outputs without these values from a file."""
    return name in SCALES or name.rpartition(".")[2] == "num_batches_tracked"


def _few(names: list[str]) -> str:
    """The first names, and the number of others."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
