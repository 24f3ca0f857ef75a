"""Records of other folders beside one's own: which of them may share a table, and why not others.

Nothing is copied. One's own records say what is compared: their data sets, models and recipes,
their attacks and their seeds. Of the other folders, only what fits these is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.models.plugins.spec import Spec, did_you_mean
from bdbench.records.consistency import AXES
from bdbench.records.files import read_all
from bdbench.records.record import Record, key_of

SETTING = AXES[:3]
"""What all records of one table have in common."""
SIGN = "◊"
"""Marks what is from another folder; numbered where there are several."""
MOST = 4
"""Differences, or values, that are said."""
LATEST_VERSION = 20
"""Of a plugin, up to which an older record is asked for the one that it does not state."""

Known = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A cell: its specs and seed, and the versions of its plugins, which may be empty."""
Place = tuple[Any, ...]


@dataclass(frozen=True)
class Neighbour:
    """Another folder and its records.

    damaged: a line for each file that is no record
    """

    folder: Path
    records: tuple[Record, ...]
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True)
class Origins:
    """Where the records of a table come from.

    own: one's own folder
    signs: of the other folders, in their order
    folders: by the key of a record, of those from other folders
    remarks: what is left out, and why, each in a line
    """

    own: Path = Path()
    signs: Mapping[Path, str] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def of(self, record: Record) -> Path:
        """The folder of a record."""
        return self.folders.get(record.key, self.own)

    def sign(self, records: Iterable[Record]) -> str:
        """Of a row: those of all other folders that it has records from."""
        there = {self.of(record) for record in records}
        return " ".join(sign for folder, sign in self.signs.items() if folder in there)

    def lines(self, records: Sequence[Record]) -> Iterator[str]:
        """For a table of these records, code, device and precision of each side; and which defenses
        have records of several."""
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
            rows.setdefault(record.labels["defense"], Counter())[self.of(record)] += 1
        for defense, counts in rows.items():
            if len(counts) > 1:
                shares = ", ".join(f"{n} in {folder}" for folder, n in sorted(counts.items()))
                yield f"{defense} has records of several folders: {shares}"


ALONE = Origins()
"""Of records of one folder."""


def made_by(records: Sequence[Record]) -> str:
    """Commit, device, precision and version of the code of these records, in words."""
    origins = [record.provenance for record in records]
    commits = _several(str(o.get("commit") or "not known") for o in origins)
    devices = _several(str(o.get("device") or "device not known") for o in origins)
    precisions = _several(str(o.get("precision") or "precision not known") for o in origins)
    libraries = (o.get("versions") for o in origins)
    versions = _several(
        str(found.get("bdbench", "not known")) if isinstance(found, dict) else "not known"
        for found in libraries
    )
    return f"commit {commits}, {devices}, {precisions}, bdbench {versions}"


def neighbours(folders: Iterable[Path], own: Path) -> tuple[Neighbour, ...]:
    """The records of other folders. Raises `InvalidInput` for one without, or one's own."""
    found: dict[Path, Neighbour] = {}
    for folder in folders:
        require(
            not same(folder, own),
            f"{folder} is the folder of the results themselves: leave out --against, or name "
            "another folder with --results",
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
    """A folder with records beside one that has none, whose name is close."""
    known = sorted(path.parent.name for path in folder.parent.glob("*/records"))
    return did_you_mean(folder.name, known) if known else ""


def same(one: Path, other: Path) -> bool:
    """Whether two paths lead to one folder, which need not be there."""
    return one.resolve() == other.resolve()


def join(
    own: Sequence[Record], others: Sequence[Neighbour], folder: Path, asked: Iterable[Known] = ()
) -> tuple[list[Record], Origins]:
    """One's own records, and those of other folders that may stand beside them.

    Of several records of a cell the first is taken that did not fail, one's own before others.

    folder: one's own
    asked: cells that count as one's own, though they may have no record here
    """
    scope = _Scope()
    for record in own:
        scope.add((record.cell, record.versions), record.labels["attack"])
        scope.data.setdefault(_setting(record.cell), record.provenance.get("data_sha256") or "")
    for cell in asked:
        scope.add(cell)
    kept = {_place(record): record for record in own}
    folders: dict[str, Path] = {}
    remarks: list[str] = []
    for other in others:
        remarks += _take(other, scope, kept, folders)
    numbers = [""] if len(others) == 1 else list(map(str, range(1, len(others) + 1)))
    signs = {o.folder: f"{SIGN}{n}" for o, n in zip(others, numbers, strict=True)}
    mine = {id(record) for record in own}
    taken = {place: record for place, record in kept.items() if id(record) not in mine}
    # Also several of one cell, of whose data only one may be right: who makes a table says so.
    records = [*(each for each in own if _place(each) not in taken), *taken.values()]
    return records, Origins(folder, signs, folders, tuple(remarks))


def _take(
    other: Neighbour, scope: _Scope, kept: dict[Place, Record], folders: dict[str, Path]
) -> Iterator[str]:
    """Add to `kept` and `folders` what may stand there. Yields lines on what is left out."""
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
            changed += first.metrics != record.metrics
    everyone = len(other.records)
    for kind, details in refused.items():
        said = list(dict.fromkeys(details))
        more = f" and {len(said) - MOST} more" if len(said) > MOST else ""
        text = ", ".join(said[:MOST]) + more
        yield f"{other.folder}: {len(details)} of {everyone} records left out, {kind}: {text}"
    if twice:
        differ = f", {changed} of them with another result" if changed else ""
        yield f"{other.folder}: of {twice} cells another folder's record is shown{differ}"
    if taken:
        yield from scope.lacking(other.folder, taken)


@dataclass
class _Scope:
    """What is compared, by data set, model and recipe.

    attacks: specs and what they are called
    data: hash of the images
    versions: of the plugins, by setting and attack; that of each defense by setting and defense
    """

    attacks: dict[Place, dict[str, str]] = field(default_factory=dict)
    seeds: dict[Place, set[int]] = field(default_factory=dict)
    data: dict[Place, str] = field(default_factory=dict)
    versions: dict[Place, Mapping[str, Any]] = field(default_factory=dict)
    defenses: dict[Place, Any] = field(default_factory=dict)

    def add(self, known: Known, attack: str = "") -> None:
        """A cell of one's own."""
        cell, versions = known
        setting, spec = _setting(cell), cell["attack"]
        named = self.attacks.setdefault(setting, {})
        named[spec] = attack or named.get(spec) or spec
        self.seeds.setdefault(setting, set()).add(cell["seed"])
        if versions:
            self.versions.setdefault((*setting, spec), versions)
            self.defenses.setdefault((*setting, cell["defense"]), versions["defense"])

    def refusal(self, record: Record) -> tuple[str, str] | None:
        """Why a record is left out, as the kind of reason and what is special of this record."""
        setting, attack = _setting(record.cell), record.cell["attack"]
        if setting not in self.attacks:
            return "other settings", self._difference(record)
        if attack not in self.attacks[setting]:
            return "attacks without a cell here", record.labels["attack"]
        if record.cell["seed"] not in self.seeds[setting]:
            return "seeds without a cell here", str(record.cell["seed"])
        if newer := self._other_version(record):
            return "other versions of the plugins", newer
        data = record.provenance.get("data_sha256") or ""
        # The first to say on what images it was trained.
        self.data[setting] = mine = self.data.get(setting) or data
        if data and data != mine:
            return "trained on other images", f"data {data:.12} there, {mine:.12} here"
        return None

    def _other_version(self, record: Record) -> str:
        """Of what a record has another version than one's own side; empty if of nothing."""
        setting, attack = _setting(record.cell), record.cell["attack"]
        known = self.versions.get((*setting, attack))
        if not known:
            return ""
        stated = _versions(record, known)
        if any(stated.get(axis) != known.get(axis) for axis in ("dataset", "model", "attack")):
            return record.labels["attack"]
        mine = self.defenses.get((*setting, record.cell["defense"]), stated["defense"])
        return "" if stated["defense"] == mine else record.labels["defense"]

    def lacking(self, folder: Path, taken: Sequence[Record]) -> Iterator[str]:
        """Attacks and seeds of one's own that the other folder has no record of."""
        attacks = {record.cell["attack"] for record in taken}
        seeds = {record.cell["seed"] for record in taken}
        settings = {_setting(record.cell) for record in taken}
        own = {spec: name for setting in settings for spec, name in self.attacks[setting].items()}
        absent = [name for spec, name in own.items() if spec not in attacks]
        fewer = sorted({seed for setting in settings for seed in self.seeds[setting]} - seeds)
        if absent:
            yield f"{folder}: no record of {', '.join(absent)}, which are only here"
        if fewer:
            numbers = ", ".join(map(str, fewer))
            yield f"{folder}: no record of seed{'s' * (len(fewer) > 1)} {numbers}, only here"

    def _difference(self, record: Record) -> str:
        """From the nearest of what is compared."""
        found = [list(_differences(record.cell, setting)) for setting in self.attacks]
        nearest = min(found, key=len, default=["there is nothing here to compare with"])
        more = f" and {len(nearest) - MOST} more" if len(nearest) > MOST else ""
        return ", ".join(nearest[:MOST]) + more


def _versions(record: Record, known: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those of its plugins; nothing where they are not known. An older record does not state them:
    its key says whether they are the `known` ones, but for the defense's, which may be any."""
    if record.versions:
        return record.versions
    guesses = ({**known, "defense": number} for number in range(1, LATEST_VERSION + 1))
    return next((g for g in guesses if key_of(record.cell, g) == record.key), {})


def _differences(theirs: Mapping[str, Any], setting: Place) -> Iterator[str]:
    for axis, ours in zip(SETTING, setting, strict=True):
        try:
            there, here = Spec.of(theirs[axis]), Spec.of(ours)
        except InvalidInput:
            there, here = Spec(theirs[axis]), Spec(ours)
        if there.name != here.name:
            noun = "data set" if axis == "dataset" else axis
            yield f"{noun} {there.name} there, {here.name} here"
            continue
        for name in dict.fromkeys([*there.fields, *here.fields]):
            one, two = (side.fields.get(name, "its default") for side in (there, here))
            if one != two:
                yield f"{name} {one} there, {two} here"


def _setting(cell: Mapping[str, Any]) -> Place:
    return tuple(cell[axis] for axis in SETTING)


def _place(record: Record) -> Place:
    return (*(record.cell[axis] for axis in AXES), record.cell["seed"])


def _several(values: Iterable[str]) -> str:
    """The most frequent, and how many others there are."""
    found = [value for value, _ in Counter(values).most_common()]
    more = [f"{len(found) - MOST} more"] if len(found) > MOST else []
    return " and ".join([*found[:MOST], *more])
