"""Records of other folders in the same table: which of them fit, and why the rest is left out.

Nothing is copied. The own records say what is compared: data sets, models, recipes, attacks and
seeds. Of the other folders, only records that match these are taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bdbench.models.plugins.errors import require
from bdbench.models.plugins.spec import Spec, did_you_mean
from bdbench.records.consistency import AXES, Known, own_version
from bdbench.records.files import read_all
from bdbench.records.parts import Identity
from bdbench.records.record import Record, key_of

SETTING = AXES[:3]
"""What all records of one table share."""
SIGN = "◊"
"""Marks records of another folder; numbered if there are several folders."""
MOST = 4
"""Differences or values that a line names."""
LATEST_VERSION = 20
"""The highest version of a defense that is tried for an older record, which does not state it."""

Place = tuple[Any, ...]


@dataclass(frozen=True)
class Neighbour:
    """Another folder and its records.

    damaged: a line for each damaged file
    """

    folder: Path
    records: tuple[Record, ...]
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Origins:
    """Where the records of a table come from.

    own: the own folder
    signs: of the other folders, in their order
    folders: by key, of the records of other folders
    remarks: lines that say what is left out, and why
    """

    own: Path = Path()
    signs: Mapping[Path, str] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def of(self, record: Record) -> Path:
        """The folder of a record."""
        return self.folders.get(record.key, self.own)

    def sign(self, records: Iterable[Record]) -> str:
        """The signs of all other folders among these records, for a row of a table."""
        there = {self.of(record) for record in records}
        return " ".join(sign for folder, sign in self.signs.items() if folder in there)

    def lines(self, records: Sequence[Record]) -> Iterator[str]:
        """For a table of these records: code, device and precision of each folder, and the defenses
        that have records of several folders."""
        sides: dict[Path, list[Record]] = {}
        for record in records:
            sides.setdefault(self.of(record), []).append(record)
        parts = [
            f"{sign} from {folder}: {made_by(sides[folder])}"
            for folder, sign in self.signs.items()
            if folder in sides
        ]
        if parts:
            here = f"{self.own}, {made_by(sides[self.own])}" if self.own in sides else "none"
            yield "; ".join([*parts, f"others: {here}"])
        yield from self._mixed(records)

    def _mixed(self, records: Sequence[Record]) -> Iterator[str]:
        rows: dict[str, Counter[Path]] = {}
        for record in records:
            rows.setdefault(record.labels.defense, Counter())[self.of(record)] += 1
        for defense, counts in rows.items():
            if len(counts) > 1:
                shares = ", ".join(f"{n} in {folder}" for folder, n in sorted(counts.items()))
                yield f"{defense} has records of several folders: {shares}"


ALONE = Origins()
"""For the records of one folder."""


def made_by(records: Sequence[Record]) -> str:
    """Commit, device, precision and version of the code of these records, in words."""
    origins = [record.provenance for record in records]
    commits = _several(o.commit or "not known" for o in origins)
    devices = _several(o.device or "device not known" for o in origins)
    precisions = _several(o.precision or "precision not known" for o in origins)
    versions = _several(o.versions.get("bdbench", "not known") for o in origins)
    return f"commit {commits}, {devices}, {precisions}, bdbench {versions}"


def neighbours(folders: Iterable[Path], own: Path) -> tuple[Neighbour, ...]:
    """The records of other folders. Raises `InvalidInput` for the own folder, and for one without
    records."""
    found: dict[Path, Neighbour] = {}
    for folder in folders:
        require(
            not same(folder, own),
            f"--against names the results folder {folder} itself; name another folder",
        )
        records, damaged = read_all(folder)
        place = folder / "records"
        require(
            bool(records or damaged),
            f"no records in {place}, which --against names{_nearest(folder)}",
        )
        require(bool(records), f"all records in {place} are damaged; the first: {damaged[:1]}")
        found.setdefault(folder.resolve(), Neighbour(folder, tuple(records), tuple(damaged)))
    return tuple(found.values())


def _nearest(folder: Path) -> str:
    """A hint at folders with records: those in it, else the one beside it whose name is similar."""
    for place in (folder, folder.parent):
        found = (path.parent for path in place.glob("*/records") if any(path.glob("*.json")))
        if known := sorted(map(str, found)):
            inside = f"; choose one of: {', '.join(known)}"
            return inside if place == folder else did_you_mean(str(folder), known)
    return ""


def same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one folder, which need not exist."""
    return one.resolve() == other.resolve()


def join(
    own: Sequence[Record], others: Sequence[Neighbour], folder: Path, asked: Iterable[Known] = ()
) -> tuple[list[Record], Origins]:
    """The own records, and those of other folders that fit into a table with them.

    Of several records of a cell, the first that did not fail is taken, own records first.

    folder: the own one
    asked: cells that count as own ones, with or without a record
    """
    scope = _Scope()
    for record in own:
        scope.add(record.cell, record.versions, record.labels.attack)
        if data := record.provenance.data_sha256:  # unknown where a cell failed before it had any
            scope.data.setdefault(_setting(record.cell), data)
    for cell, versions in asked:
        scope.add(Identity(**cell), versions)
    kept = {_place(record): record for record in own}
    folders: dict[str, Path] = {}
    remarks: list[str] = []
    for other in others:
        remarks += _take(other, scope, kept, folders)
    numbers = [""] if len(others) == 1 else list(map(str, range(1, len(others) + 1)))
    signs = {o.folder: f"{SIGN}{n}" for o, n in zip(others, numbers, strict=True)}
    mine = {id(record) for record in own}
    taken = {place: record for place, record in kept.items() if id(record) not in mine}
    # Several own records of one cell all stay: a table refuses them, see `consistent`.
    records = [*(each for each in own if _place(each) not in taken), *taken.values()]
    return records, Origins(folder, signs, folders, tuple(remarks))


def _take(
    other: Neighbour, scope: _Scope, kept: dict[Place, Record], folders: dict[str, Path]
) -> Iterator[str]:
    """Add the records that fit to `kept` and `folders`. Yields lines on what is left out."""
    refused: dict[str, list[str]] = {}
    twice = changed = 0
    taken: list[Record] = []
    for record in other.records:
        if refusal := scope.refusal(record):
            kind, detail = refusal
            refused.setdefault(kind, []).append(detail)
            continue
        taken.append(record)
        first = kept.get(_place(record))
        if first is None or (first.status, record.status) == ("failed", "ok"):
            kept[_place(record)] = record
            folders[record.key] = other.folder
        else:
            twice += 1
            changed += first.contradicts(record)
    everyone = len(other.records)
    for kind, details in refused.items():
        said = list(dict.fromkeys(details))
        more = f" and {len(said) - MOST} more" if len(said) > MOST else ""
        text = ", ".join(said[:MOST]) + more
        yield f"{other.folder}: {len(details)} of {everyone} records left out, {kind}: {text}"
    if twice:
        differ = f", {changed} of them with another result" if changed else ""
        yield f"{other.folder}: {twice} records not shown, another folder has the cell{differ}"
    if taken:
        yield from scope.lacking(other.folder, taken)


@dataclass
class _Scope:
    """What is compared, by data set, model and recipe.

    attacks: their labels by spec
    data: hash of the images
    versions: of the plugins, by setting and attack
    defenses: their own versions, by setting and name
    """

    attacks: dict[Place, dict[Spec, str]] = field(default_factory=dict)
    seeds: dict[Place, set[int]] = field(default_factory=dict)
    data: dict[Place, str] = field(default_factory=dict)
    versions: dict[Place, Mapping[str, Any]] = field(default_factory=dict)
    defenses: dict[Place, Any] = field(default_factory=dict)

    def add(self, cell: Identity, versions: Mapping[str, Any], attack: str = "") -> None:
        """Add an own cell."""
        setting = _setting(cell)
        named = self.attacks.setdefault(setting, {})
        named[cell.attack] = attack or named.get(cell.attack) or str(cell.attack)
        self.seeds.setdefault(setting, set()).add(cell.seed)
        if versions:
            self.versions.setdefault((*setting, cell.attack), versions)
            self.defenses.setdefault(
                (*setting, cell.defense.name), own_version(versions["defense"])
            )

    def refusal(self, record: Record) -> tuple[str, str] | None:
        """Why a record is left out: the kind of reason, and the detail of this record."""
        setting = _setting(record.cell)
        if setting not in self.attacks:
            return "other settings", self._difference(record)
        if record.cell.attack not in self.attacks[setting]:
            return "attacks without a cell here", record.labels.attack
        if record.cell.seed not in self.seeds[setting]:
            return "seeds without a cell here", str(record.cell.seed)
        if newer := self._other_version(record):
            return "other versions of the plugins", newer
        data = record.provenance.data_sha256 or ""
        # The first record that states its images decides.
        self.data[setting] = mine = self.data.get(setting) or data
        if data and data != mine:
            return "trained on other images", f"data {data:.12} there, {mine:.12} here"
        return None

    def _other_version(self, record: Record) -> str:
        """The label of the plugin whose version differs from the own one; empty if none does."""
        setting = _setting(record.cell)
        known = self.versions.get((*setting, record.cell.attack))
        if not known:
            return ""
        stated = _versions(record, known)
        if any(stated.get(axis) != known.get(axis) for axis in ("dataset", "model", "attack")):
            return record.labels.attack
        # The first record that states the version of a defense decides.
        theirs = own_version(stated["defense"])
        mine = self.defenses.setdefault((*setting, record.cell.defense.name), theirs)
        return "" if theirs == mine else record.labels.defense

    def lacking(self, folder: Path, taken: Sequence[Record]) -> Iterator[str]:
        """Lines on own attacks and seeds that the other folder has no record of."""
        attacks = {record.cell.attack for record in taken}
        seeds = {record.cell.seed for record in taken}
        settings = {_setting(record.cell) for record in taken}
        own = {spec: name for setting in settings for spec, name in self.attacks[setting].items()}
        absent = [name for spec, name in own.items() if spec not in attacks]
        fewer = sorted({seed for setting in settings for seed in self.seeds[setting]} - seeds)
        if absent:
            yield f"{folder}: no records of the attacks {', '.join(absent)}"
        if fewer:
            numbers = ", ".join(map(str, fewer))
            yield f"{folder}: no records of seed{'s' * (len(fewer) > 1)} {numbers}"

    def _difference(self, record: Record) -> str:
        """What differs from the most similar setting that is compared."""
        found = [list(_differences(record.cell, setting)) for setting in self.attacks]
        nearest = min(found, key=len, default=["there is nothing here to compare with"])
        more = f" and {len(nearest) - MOST} more" if len(nearest) > MOST else ""
        return ", ".join(nearest[:MOST]) + more


def _versions(record: Record, known: Mapping[str, Any]) -> Mapping[str, Any]:
    """The versions of its plugins; empty if they are not known. An older record does not state
    them: its key tells whether they are the `known` ones, with any version of the defense."""
    if record.versions:
        return record.versions
    cell = record.cell.as_dict()
    guesses = ({**known, "defense": number} for number in range(1, LATEST_VERSION + 1))
    return next((g for g in guesses if key_of(cell, g) == record.key), {})


def _differences(theirs: Identity, setting: Place) -> Iterator[str]:
    for axis, here in zip(SETTING, setting, strict=True):
        there = theirs[axis]
        if there.name != here.name:
            noun = "data set" if axis == "dataset" else axis
            yield f"{noun} {there.name} there, {here.name} here"
            continue
        for name in dict.fromkeys([*there.fields, *here.fields]):
            one, two = (side.fields.get(name, "its default") for side in (there, here))
            if one != two:
                yield f"{name} {one} there, {two} here"


def _setting(cell: Identity) -> Place:
    return cell.dataset, cell.model, cell.recipe


def _place(record: Record) -> Place:
    return (*(record.cell[axis] for axis in AXES), record.cell.seed)


def _several(values: Iterable[str]) -> str:
    """The most frequent values, and the number of others."""
    found = [value for value, _ in Counter(values).most_common()]
    more = [f"{len(found) - MOST} more"] if len(found) > MOST else []
    return " and ".join([*found[:MOST], *more])
