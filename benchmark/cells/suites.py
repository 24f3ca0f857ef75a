"""Suites: named sets of cells. This module needs no torch; `grid.py` makes the cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.spec import Spec

if TYPE_CHECKING:
    from bdbench.attacks.base import Attack
    from bdbench.datasets.base import Source
    from bdbench.defenses.base import Defense
    from bdbench.models.registry import Model

MOST_SEEDS = 10_000
LARGEST_SEED = 2**63 - 1
DEFENSES = ("none", "fp", "mcr", "nad", "abl", "dbd", "cbd")
"""The defenses of the paper's Table 1, in its order."""
SINCE = (
    *("ft_sam", "clp", "anp", "i_bau", "asd"),
    *("neural_cleanse", "spectral", "activation_clustering"),
)
"""Defenses that the paper does not have and that others compare with."""


@dataclass(frozen=True)
class Suite:
    """A set of cells: every combination of its axes and seeds.

    description: one line
    datasets, models, attacks, defenses: the axes, as specs or built plugins
    settings: specs that replace a defense given by its bare name
    seeds: number of seeds, counted from 0, or the exact seeds
    recipe: fields of the recipe that differ from its defaults, for every data set
    precision: auto, fp32 or bf16
    timed: whether seconds are compared; cells then run one after the other, and seeds are repeats
    """

    description: str
    datasets: tuple[str | Source, ...]
    models: tuple[str | Model, ...] = ("wrn16_1",)
    attacks: tuple[str | Attack, ...] = ("none", "badnets", "blend")
    defenses: tuple[str | Defense, ...] = (*DEFENSES, "ft")
    settings: Mapping[str, str] = field(default_factory=dict)
    seeds: int | tuple[int, ...] = 1
    recipe: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    timed: bool = False

    @property
    def each_seed(self) -> Sequence[int]:
        """The seeds, in order. Raises `InvalidInput` unless `seeds` are valid."""
        check_seeds(self.seeds)
        return range(self.seeds) if isinstance(self.seeds, int) else self.seeds


def check_seeds(seeds: object) -> None:
    """Raises `InvalidInput` unless `seeds` is a number of seeds or a list of exact seeds."""
    if _is_integer(seeds):
        require(seeds >= 1, f"seeds must be at least 1, got {seeds}")
        require(seeds <= MOST_SEEDS, f"seeds must be at most {MOST_SEEDS:,}, got {seeds:,}")
        return
    if not isinstance(seeds, list | tuple):
        raise InvalidInput(
            f"seeds must be a number, such as 3, or a list such as [3, 5], got {seeds!r}"
        )
    require(
        0 < len(seeds) <= MOST_SEEDS,
        f"seeds must list 1 to {MOST_SEEDS:,} seeds, got {len(seeds):,}",
    )
    for place, each in enumerate(seeds):
        fits = _is_integer(each) and 0 <= each <= LARGEST_SEED
        require(fits, f"a seed must be a whole number from 0 to {LARGEST_SEED:,}, got {each!r}")
        require(each not in seeds[:place], f"seed {each} is given twice")


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def of_paper(description: str, dataset: str, attacks: Sequence[str], **fields: Any) -> Suite:
    """The suite of a table of the paper: the default recipe, in fp32, usually with three seeds."""
    settings = {"defenses": DEFENSES, "seeds": 3, **fields}
    return Suite(description, (dataset,), attacks=tuple(attacks), **settings)


def with_target(attacks: Sequence[str], target: int) -> list[str]:
    """The same attacks with another target class."""
    return [str(Spec.of(attack).with_(target=target)) for attack in attacks]


# The attacks of Table 1 with a static trigger; all of Table 1; those of Tables 2, 3 and 5.
STATIC = ("none", "badnets", "trojan", "blend", "sig(poisoning_rate=0.5)")
ATTACKS = (*STATIC, "dynamic", "wanet")
FOUR = ("badnets", "trojan", "blend", "wanet")
# What papers since compare with. All rates are shares of the training set.
FIELD = ("badnets", "trojan", "blend", "dynamic", "wanet", "bpp", "ssba", "lf")
CLEAN_LABEL = ("sig(rate_basis='dataset')", "lc(rate_basis='dataset')")
SEVERAL = "mixed(attacks=['badnets', 'blend(target=1)', 'wanet(target=2)'])"


def at_rates(attacks: Sequence[str], rates: Sequence[float]) -> list[str]:
    """Each of the attacks at each of the poisoning rates, rate by rate."""
    return [str(Spec.of(attack).with_(poisoning_rate=rate)) for rate in rates for attack in attacks]


SUITES = {
    "quick": Suite(
        description="the paper's defenses but DBD on handwritten digits, minutes on a laptop",
        datasets=("digits",),
        attacks=("badnets", "blend"),
        defenses=tuple(name for name in (*DEFENSES, "ft") if name != "dbd"),
        # Chosen by plain training: the learning rate drops late, because 30 epochs of 1,200 images
        # are few updates; small images are augmented little.
        recipe={"epochs": 30, "batch_size": 64, "drops": (0.6, 0.85), "padding": 2, "cutout": 0},
        # 30 % of the published updates, which would take longer than all other cells together.
        settings={"mcr": "mcr(updates=2370)"},
    ),
    "table1-cifar10": of_paper("Table 1 of the paper, CIFAR-10", "cifar10", ATTACKS),
    "table1-gtsrb": of_paper("Table 1 of the paper, GTSRB", "gtsrb", with_target(ATTACKS, 1)),
    "table1-imagenet": of_paper(
        "Table 1 of the paper, ImageNet subset", "imagenet_subset", STATIC, models=("resnet34",)
    ),
    "table2": of_paper(
        "Table 2 of the paper, poisoning rates from 1 to 50 %",
        "cifar10",
        [f"{name}(poisoning_rate={rate})" for rate in (0.01, 0.05, 0.2, 0.5) for name in FOUR],
        defenses=("none", "cbd"),
    ),
    "table3": of_paper(
        "Table 3 of the paper, training time, CIFAR-10",
        "cifar10",
        FOUR,
        defenses=("none", "cbd"),
        seeds=5,
        timed=True,
    ),
    "table3-imagenet": of_paper(
        "Table 3 of the paper, training time, ImageNet subset",
        "imagenet_subset",
        FOUR,
        models=("resnet34",),
        defenses=("none", "cbd"),
        seeds=5,
        timed=True,
    ),
    "table5": of_paper(
        "Table 5 of the paper, adaptive attacks",
        "cifar10",
        [f"adaptive(attack={name!r})" for name in FOUR],
        defenses=("none", "cbd"),
    ),
    "field-2026": of_paper(
        "all defenses against the attacks that papers compare with, at 10, 5 and 1 %, CIFAR-10",
        "cifar10",
        ("none", *at_rates((*FIELD, *CLEAN_LABEL), (0.1, 0.05, 0.01)), SEVERAL),
        models=("preact_resnet18",),
        defenses=(*DEFENSES, "ft", *SINCE),
    ),
}


def is_name(text: str, name: str) -> bool:
    """Whether a spec is this name alone, without any field."""
    asked = spec.asked(text)
    return asked.name == name and not asked.fields


def suite(name: str) -> Suite:
    """The suite of that name. Raises `InvalidInput` with the nearest name."""
    if name not in SUITES:
        raise InvalidInput(f"unknown suite {name!r}{spec.did_you_mean(name, SUITES)}")
    return SUITES[name]
