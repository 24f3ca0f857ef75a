"""Numbers of other benchmarks: BackdoorBench's leaderboard, and Table 1 of the FT-SAM paper.

`other_benchmarks.json` has them as published, in percent, with their source. Both sources use
another network than ours, so their numbers are shown beside ours without a verdict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

from bdbench.models.plugins.spec import Spec
from bdbench.tables.groups import ASR, CA, RACC
from bdbench.tables.published import Cell, Published, is_of_class, rate_of, spec_in

NETWORK = "PreAct-ResNet18"
NAMES = {"leaderboard": "BackdoorBench", "ft_sam_paper": "FT-SAM"}
"""By source in the file, its name in tables."""
SOURCES = {
    "BackdoorBench": f"its leaderboard as of 2025-06-04, {NETWORK}",
    "FT-SAM": f"Zhu et al., ICCV 2023, arXiv:2304.11823, Table 1, {NETWORK}",
}
ATTACKS = {
    "badnet": "badnets",
    "blended": "blend",
    "inputaware": "dynamic",
    "trojannn": "trojan",
}
"""Their names for attacks that have another name here."""
DEFENSES = {"ac": "activation_clustering", "i-bau": "i_bau", "nc": "neural_cleanse"}
"""The same for defenses."""
SHORT = {"CA": CA, "ASR": ASR, "R-Acc": RACC}
CONTRADICTION = 10.0
"""Sources that differ by more percentage points than this contradict each other."""
CLASSES = {"cifar10": 10}
"""By data set with classes of equal size, their number, to convert a share of one class into a
share of all images."""

Place = tuple[str, str, float, str]


@dataclass(frozen=True)
class Other:
    """The numbers that a source published for one cell.

    source: a key of `SOURCES`
    dataset, attack, defense: names of plugins here, or the source's own
    poisoning_rate: share of the whole training set, in (0, 1]
    shares: percent, by the name of our metric, for the metrics that the source gives
    """

    source: str
    dataset: str
    attack: str
    poisoning_rate: float
    defense: str
    shares: Mapping[str, float]


def others(cell: Cell) -> tuple[Other, ...]:
    """Numbers that others published for the data set, attack, poisoning rate and defense of a
    cell, whatever its other settings. Raises `InvalidInput` for an invalid text."""
    attack, dataset = spec_in(cell, "attack"), spec_in(cell, "dataset").name
    share = _poisoned_share(attack, dataset)
    if share is None:
        return ()
    place = (dataset, attack.name, share, spec_in(cell, "defense").name)
    return known().get(place, ())


@cache
def known() -> Mapping[Place, tuple[Other, ...]]:
    """All numbers by data set, attack, poisoning rate and defense, read from the file once."""
    text = (Path(__file__).parent / "other_benchmarks.json").read_text(encoding="utf-8")
    document = json.loads(text)
    found: dict[Place, tuple[Other, ...]] = {}
    for name, source in document["sources"].items():
        for values in source["rows"]:
            row: dict[str, Any] = dict(zip(document["columns"], values, strict=True))
            attack = ATTACKS.get(row["attack"], row["attack"])
            defense = DEFENSES.get(row["defense"], row["defense"])
            place = (row["dataset"], attack, row["poisoning_rate"], defense)
            shares = {SHORT[n]: row[n] for n in SHORT if row[n] is not None}
            found[place] = (*found.get(place, ()), Other(NAMES[name], *place, shares))
    return found


def contradictions(cell: Cell, paper: Published | None, found: tuple[Other, ...]) -> dict[str, str]:
    """By metric (CA, ASR), the sources that differ by more than `CONTRADICTION` points, as text.

    The paper is one of the sources if it uses the cell's poisoning rate. For sig it is not, because
    it does not state what its rate is a share of.
    """
    sides: dict[str, Mapping[str, float]] = {other.source: other.shares for other in found}
    rate = rate_of(spec_in(cell, "attack"))
    if paper and paper.poisoning_rate == rate and paper.attack != "sig":
        sides = {"the CBD paper": paper.shares, **sides}
    return {metric: text for metric in (CA, ASR) if (text := _contradiction(metric, sides))}


def _contradiction(metric: str, sides: Mapping[str, Mapping[str, float]]) -> str:
    values = {name: shares[metric] for name, shares in sides.items() if metric in shares}
    pairs = [p for p in combinations(values, 2) if abs(values[p[0]] - values[p[1]]) > CONTRADICTION]
    involved = [name for name in values if any(name in pair for pair in pairs)]
    return ", ".join(f"{name} {values[name]:g}" for name in involved)


def _poisoned_share(attack: Spec, dataset: str) -> float | None:
    """The share of the whole training set that an attack poisons; None if unknown.

    The rate of a clean-label attack may be a share of the target class; other sources give a share
    of all images.
    """
    rate = rate_of(attack)
    if not isinstance(rate, float):
        return None
    if is_of_class(attack):
        classes = CLASSES.get(dataset)
        return None if classes is None else round(rate / classes, 9)
    return rate
