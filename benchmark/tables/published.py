"""The numbers that the paper prints: Zhang et al., CVPR 2023, Tables 1, 2, 3 and 5.

They are as in the paper: ASR and CA in percent, times in seconds, a dash where a number is missing.
`reference` finds the numbers printed for a cell and lists how the cell departs from the paper's
setup (section 5.1). Where the paper contradicts itself, the table's value is used and a note gives
the other one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from bdbench.models.plugins.errors import require
from bdbench.models.plugins.spec import Spec
from bdbench.records.parts import Identity, RecordedSpec
from bdbench.tables.source import defaults

TABLE_1 = {
    "cifar10": """
                none           fp          mcr          nad          abl          dbd          cbd
           ASR    CA    ASR    CA    ASR    CA    ASR    CA    ASR    CA    ASR    CA    ASR    CA
none         0 89.14      0 85.17      0 87.55      0 88.21      0 88.49      0 88.63      0 88.95
badnets    100 85.37  99.96 82.41   4.52 79.66   3.07 82.25   3.13 86.30   1.76 86.94   1.06 87.46
trojan     100 84.54  68.95 81.03  19.47 77.12  19.96 80.05   3.88 87.29   3.79 87.29   1.24 87.52
blend      100 84.56  87.14 81.57  36.15 78.24  10.65 83.71  14.60 85.02   5.12 86.83   1.96 87.48
sig      99.32 84.14  73.87 81.04   2.34 77.93   1.79 83.54   0.36 88.10   0.44 87.52   0.25 87.29
dynamic    100 85.48  89.22 80.63  25.26 75.03  25.60 74.94  17.26 85.29  10.21 85.42   0.86 85.67
wanet    98.55 86.77  73.12 81.58  28.59 77.12  24.15 79.50  22.24 75.74   5.86 84.60   4.24 86.55
average  99.65 85.14  82.03 81.38  19.39 77.52  14.20 80.67  10.25 84.62   4.53 86.43   1.60 87.00
""",
    "gtsrb": """
                none           fp          mcr          nad          abl          dbd          cbd
           ASR    CA    ASR    CA    ASR    CA    ASR    CA    ASR    CA    ASR    CA    ASR    CA
none         0 97.74      0 90.18      0 95.27      0 95.29      0 96.47      0 96.45      0 96.54
badnets    100 96.58  99.48 88.57   1.27 93.30   0.31 89.90   0.05 96.01   0.24 96.05   0.16 96.21
trojan   99.95 96.49  97.40 88.51   4.62 92.99   0.56 90.32   0.47 94.91   0.56 94.69   0.12 95.29
blend      100 95.57  98.78 87.50   6.85 93.11  13.06 89.20  22.97 93.25   6.36 93.72   0.90 94.16
sig      98.24 96.55  85.04 89.97  26.80 91.14   5.35 89.27   5.09 96.28   4.70 94.58   5.41 94.37
dynamic    100 96.87  98.33 88.09  59.54 90.51  62.35 84.30   6.32 95.76   5.16 95.86   0.96 96.02
wanet    99.92 95.94  97.93 90.13  55.25 91.24  34.16 83.09   5.56 93.83   3.47 94.71   3.13 95.64
average  99.69 96.33  96.16 88.80  25.72 92.05  19.30 87.68   7.96 95.01   3.42 94.94   1.82 95.17
""",
    "imagenet_subset": """
                none           fp          mcr          nad          abl          dbd          cbd
           ASR    CA    ASR    CA    ASR    CA    ASR    CA    ASR    CA    ASR    CA    ASR    CA
none         0 88.95      0 83.05      0 85.61      0 87.34      0 88.12      0 88.30      0 88.57
badnets    100 85.24  98.03 82.76  25.14 77.90   7.38 82.11   1.02 87.47   1.27 87.61   0.66 88.12
trojan     100 85.65  97.29 81.46   6.65 77.06  13.80 81.49   1.68 88.21   1.48 88.20   0.72 88.24
blend    99.89 86.10  99.10 81.37  18.37 76.21  25.05 82.54  20.80 85.23   4.73 86.25   1.82 87.95
sig      98.53 86.06  77.39 82.55  24.62 78.97   5.30 83.24   0.22 86.65   1.95 87.09   0.45 87.27
average  99.61 85.74  92.95 82.04  18.70 77.54  12.88 82.35   5.93 86.89   2.36 87.29   0.91 87.90
""",
}

# On CIFAR-10. The first column is the poisoning rate.
TABLE_2 = """
              badnets       trojan        blend        wanet
            ASR    CA    ASR    CA    ASR    CA    ASR    CA
1%  none    100 85.67    100 85.15    100 85.22  97.56 86.55
1%  cbd    0.62 88.83   1.13 88.56   0.67 87.52   1.06 86.59
5%  none    100 84.68    100 84.82    100 85.06  99.83 86.27
5%  cbd    0.93 87.50   1.10 88.45   0.73 87.47   1.07 86.56
20% none    100 83.42    100 79.32    100 82.08    100 74.41
20% cbd    1.16 84.35   1.57 81.71   5.17 86.53   5.72 74.25
50% none    100 79.45    100 72.83    100 69.67    100 67.25
50% cbd    1.47 78.88   2.31 75.34   8.14 85.56   8.75 70.43
"""

# Average training time; the third column is the printed increase.
TABLE_3 = """
                     cifar10      imagenet_subset
          none    cbd   more   none    cbd   more
badnets   1152   1317  14.3%   2640   2987  13.1%
trojan    1204   1356  12.6%   2621   2933  11.9%
blend     1159   1311  13.1%   2623   3076  17.3%
wanet     1164   1293  11.1%   2647   3074  16.1%
"""

# On CIFAR-10, each attack hardened by `adaptive`.
TABLE_5 = """
          badnets       trojan        blend        wanet
        ASR    CA    ASR    CA    ASR    CA    ASR    CA
none  99.62 84.55      -     -      -     -      -     -
cbd    4.31 84.19   3.77 84.37   2.57 84.49   5.19 85.33
"""

ILLEGIBLE = "illegible in the available copies of Table 5"
NOTES = {
    (1, "gtsrb", "wanet", "cbd"): "section 5.2 prints ASR 3.41 instead of 3.13",
    (1, "cifar10", "average", "fp"): "the printed cells give ASR 82.04",
    (1, "gtsrb", "average", "abl"): "the printed cells give ASR 6.74",
    (1, "gtsrb", "average", "cbd"): "the printed cells give ASR 1.78 and CA 95.28",
    (1, "imagenet_subset", "average", "none"): "the printed cells give CA 85.76",
    (5, "cifar10", "badnets", "none"): f"from section 5.3, {ILLEGIBLE}",
    (5, "cifar10", "trojan", "none"): ILLEGIBLE,
    (5, "cifar10", "blend", "none"): ILLEGIBLE,
    (5, "cifar10", "wanet", "none"): ILLEGIBLE,
}

RATE = 0.1
TARGETS = {"cifar10": 0, "gtsrb": 1, "imagenet_subset": 0}
MODELS = {"cifar10": "wrn16_1", "gtsrb": "wrn16_1", "imagenet_subset": "resnet34"}
LEARNING_RATES = {"cifar10": 0.1, "gtsrb": 0.01, "imagenet_subset": 0.1}
RECIPE = {"epochs": 100, "momentum": 0.9, "weight_decay": 1e-4, "updates": 1.0}
AUGMENTATIONS = {"padding": "random crop", "flip": "horizontal flip", "cutout": "cutout"}
UNAVOIDABLE = {"gtsrb": ("no horizontal flip",)}
"""By data set, the deviations of the suites of Table 1: a mirrored traffic sign may be another."""


Cell = Identity | Mapping[str, Any]
"""A cell as a record has it, or the text of its specs by axis."""


@dataclass(frozen=True)
class Published:
    """The numbers that the paper prints for one attack and defense.

    table: 1, 2, 3 or 5
    dataset, attack, defense: names of plugins; in Table 5 the attack that `adaptive` hardens
    poisoning_rate: in (0, 1], None without an attack
    clean_accuracy, attack_success_rate: percent
    seconds: training time
    adaptive: whether `adaptive` hardens the attack
    note: a remark on these numbers, or empty
    """

    table: int
    dataset: str
    attack: str
    defense: str
    poisoning_rate: float | None
    clean_accuracy: float | None = None
    attack_success_rate: float | None = None
    seconds: float | None = None
    adaptive: bool = False
    note: str = ""

    @property
    def shares(self) -> dict[str, float]:
        """By metric, the printed CA and ASR in percent."""
        both = {name: getattr(self, name) for name in ("clean_accuracy", "attack_success_rate")}
        return {name: value for name, value in both.items() if value is not None}


@dataclass(frozen=True)
class Reference:
    """The printed numbers for a cell, and how its setup departs from the paper's, as phrases.

    same_rate: whether they are printed for its poisoning rate, as far as that is a share of all
        images, as in the paper
    same_setting: whether data, model and recipe are the paper's, as far as they can be: our GTSRB
        is never mirrored
    """

    published: Published
    departures: tuple[str, ...]
    same_rate: bool = True
    same_setting: bool = True

    def printed(self, metric: str) -> float | None:
        """The CA or ASR in percent that is printed for the rate of the cell; None without one."""
        return self.published.shares.get(metric) if self.same_rate else None


def reference(cell: Cell, table: int | None = None) -> Reference | None:
    """The numbers that a table of the paper prints for the cell of a record; None without any.

    table: 1, 2, 3 or 5; None searches Tables 1, 2 and 5, and prefers the cell's own poisoning rate

    In Table 2, which varies the poisoning rate, the rate must match. Raises `InvalidInput` for
    another table or an invalid text.
    """
    require(table is None or table in TABLES, f"table must be 1, 2, 3 or 5, got {table}")
    dataset, attack, defense = (spec_in(cell, axis) for axis in ("dataset", "attack", "defense"))
    adaptive = attack.name == "adaptive"
    trigger = hardened(attack).name if adaptive else attack.name
    rate = rate_of(attack)
    wanted = (dataset.name, trigger, defense.name, adaptive)
    rows = [
        row
        for row in PLACES.get(wanted, ())
        if row.table in ((1, 2, 5) if table is None else (table,))
        and (row.table != 2 or row.poisoning_rate == rate)
    ]
    if not rows:
        return None
    nearest = min(rows, key=lambda row: row.poisoning_rate not in (None, rate))
    same_rate = nearest.poisoning_rate in (None, rate) or is_of_class(attack)
    setting, methods = tuple(_of_setting(cell, dataset.name)), tuple(_of_methods(cell, nearest))
    same_setting = {*setting} <= {*UNAVOIDABLE.get(dataset.name, ())}
    return Reference(nearest, (*setting, *methods), same_rate, same_setting)


def _of_setting(cell: Cell, dataset: str) -> Iterator[str]:
    """The deviations in data, model and recipe. A field that a spec leaves out is as in the
    paper."""
    given = spec_in(cell, "dataset")
    fields = dict(given.fields)
    size = defaults("bdbench.datasets", dataset).get("train_size")
    images = fields.pop("train_images", None)
    if images not in (None, size):
        count = f"{images:,}" if isinstance(images, int) else repr(images)
        yield f"{count} of {size:,} images" if size else f"{count} images, not all"
    yield from _settings("bdbench.datasets", Spec(dataset, fields))

    yield from _difference("model", spec_in(cell, "model").name, MODELS[dataset])

    fields = dict(spec_in(cell, "recipe").fields)
    stated = {**RECIPE, "learning_rate": LEARNING_RATES[dataset]}
    for name, printed in stated.items():
        yield from _difference(name, fields.get(name, printed), printed)
    for name, augmentation in AUGMENTATIONS.items():
        if not fields.get(name, True):
            yield f"no {augmentation}"
    if fields.get("precision", "fp32") != "fp32":
        yield f"precision {fields['precision']}"


def _of_methods(cell: Cell, row: Published) -> Iterator[str]:
    """The deviations in attack and defense."""
    attack = spec_in(cell, "attack")
    fields = dict(attack.fields)
    if row.poisoning_rate is not None:
        stated = {"poisoning_rate": row.poisoning_rate, "target": TARGETS[row.dataset]}
        usual = {**stated, "poisoning_rate": default_rate(attack.name)}
        for name, printed in stated.items():
            if (ours := fields.pop(name, usual[name])) != printed:
                yield f"{attack.name}: {name}={ours!r} instead of {printed!r}"
        if row.adaptive:
            fields.pop("attack")
            yield from _settings("bdbench.attacks", hardened(attack))
        yield from _settings("bdbench.attacks", Spec(attack.name, fields))
    yield from _settings("bdbench.defenses", spec_in(cell, "defense"))


def _difference(name: str, ours: Any, printed: Any) -> Iterator[str]:
    if ours != printed:
        yield f"{name} {ours} instead of {printed}"


def _settings(package: str, given: Spec) -> Iterator[str]:
    """The fields of a plugin that differ from its defaults, which stand in for the paper's."""
    ours = defaults(package, given.name)
    for field, value in given.fields.items():
        if field in ours and value != ours[field]:
            yield f"{given.name}: {field}={value!r} instead of {ours[field]!r}"


def spec_in(cell: Cell, axis: str) -> Spec:
    """Raises `InvalidInput` for an invalid text."""
    found = cell[axis]
    return found if isinstance(found, Spec) else Spec.of(found)


def hardened(adaptive: Spec) -> Spec:
    """The attack that `adaptive` hardens; without a name if its spec does not say."""
    return RecordedSpec.of(str(adaptive.fields.get("attack", "")))


def rate_of(attack: Spec) -> Any:
    """The poisoning rate of an attack, its default if the spec has none."""
    return attack.fields.get("poisoning_rate", default_rate(attack.name))


def is_of_class(attack: Spec) -> bool:
    """Whether the poisoning rate of an attack is a share of its target class, not of all images."""
    usual = defaults("bdbench.attacks", attack.name).get("rate_basis")
    return bool(attack.fields.get("rate_basis", usual) == "target_class")


def default_rate(attack: str) -> float:
    """The poisoning rate of an attack whose spec has none."""
    return float(defaults("bdbench.attacks", attack).get("poisoning_rate", RATE))


def _grid(text: str, labels: int, width: int = 2) -> Iterator[tuple[list[str], str, list[Any]]]:
    """Parse a table: for each line and heading, the line's labels, the heading and its numbers."""
    headings, _, *lines = text.strip("\n").splitlines()
    for line in lines:
        words = line.split()
        numbers = [None if word == "-" else float(word.strip("%")) for word in words[labels:]]
        for place, heading in enumerate(headings.split()):
            yield words[:labels], heading, numbers[place * width : (place + 1) * width]


def _rows() -> Iterator[Published]:
    for dataset, text in TABLE_1.items():
        for (attack,), defense, (asr, ca) in _grid(text, 1):
            note = NOTES.get((1, dataset, attack, defense), "")
            rate = None if attack == "none" else RATE
            yield Published(1, dataset, attack, defense, rate, ca, asr, note=note)
    for (percent, defense), attack, (asr, ca) in _grid(TABLE_2, 2):
        yield Published(2, "cifar10", attack, defense, float(percent.strip("%")) / 100, ca, asr)
    for (attack,), dataset, (bare, cbd, _) in _grid(TABLE_3, 1, 3):
        yield Published(3, dataset, attack, "none", RATE, seconds=bare)
        yield Published(3, dataset, attack, "cbd", RATE, seconds=cbd)
    for (defense,), attack, (asr, ca) in _grid(TABLE_5, 1):
        note = NOTES.get((5, "cifar10", attack, defense), "")
        yield Published(5, "cifar10", attack, defense, RATE, ca, asr, adaptive=True, note=note)


_ROWS = tuple(_rows())
TABLES: Mapping[int, tuple[Published, ...]] = {
    table: tuple(row for row in _ROWS if row.table == table and row.attack != "average")
    for table in (1, 2, 3, 5)
}
PLACES: dict[tuple[str, str, str, bool], list[Published]] = {}
"""The rows of all tables by data set, attack, defense and whether the attack is adaptive."""
for _row in chain.from_iterable(TABLES.values()):
    PLACES.setdefault((_row.dataset, _row.attack, _row.defense, _row.adaptive), []).append(_row)
AVERAGES = tuple(row for row in _ROWS if row.attack == "average")
"""The averages over the attacks that Table 1 prints."""
INCREASES = {(dataset, attack): more for (attack,), dataset, (*_, more) in _grid(TABLE_3, 1, 3)}
"""The increases in percent that Table 3 prints, by data set and attack."""
