"""`bdbench report`: a folder of HTML pages made from records, which opens offline.

The same records give the same bytes, in any order. The pages are rendered from `templates/`, which
escape all text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import groupby
from pathlib import Path
from typing import Any

from bdbench.models.plugins.errors import require
from bdbench.records import files as record_files
from bdbench.records.consistency import AXES
from bdbench.records.parts import RecordedSpec
from bdbench.records.record import Record
from bdbench.records.rerun import quoted
from bdbench.report import charts, downloads
from bdbench.report.answers import Case
from bdbench.report.comparison import Section, compare
from bdbench.report.example import Example, example
from bdbench.report.folder import replace_files
from bdbench.report.format import ORIGINS, TEMPLATES, number, slug, templates
from bdbench.report.plugins import PACKAGES, Description, description
from bdbench.tables.block import LeaderboardBlock
from bdbench.tables.groups import (
    ASR,
    CA,
    Group,
    clean_fraction,
    collect,
    is_none,
    name_order,
)
from bdbench.tables.numbers import MISSING
from bdbench.tables.others import NETWORK, contradictions, others
from bdbench.tables.published import MODELS, reference

VALUES = 4
"""Values that the index shows of each part of the provenance."""
MATRIX = 20
"""Largest number of classes for which a page has a matrix of classes by predicted label."""


def write_report(
    records: Sequence[Record],
    folder: Path,
    out: Path | None = None,
    compared: tuple[Path, Sequence[Record]] | None = None,
) -> Path:
    """Write the report of the records of a results folder, and return its first page.

    Obsolete files of an earlier report are removed; other files are kept.

    out: folder of the report, `<folder>/report` if None
    compared: another results folder and its records, for the comparison page

    Raises `InvalidInput` for no records, for records that do not belong in one table (see
    `collect`), for an unwritable folder, and if it would overwrite a file that is not a report's.
    """
    for place, stored in ((folder, records), *([compared] if compared else [])):
        require(bool(stored), f"no records in {place / 'records'}; create some with `bdbench run`")
    copies = _pictures(folder / "figures")
    site = Site(collect(records), tuple(copies))
    pages = site.pages(compared and (compared[0].resolve().name, collect(compared[1])))
    own = {name: TEMPLATES / name for name in ("style.css", "report.js")}
    files = {name: path.read_bytes for name, path in (own | copies).items()}
    out = out or folder / "report"
    replace_files(out, {**files, **pages})
    return out / "index.html"


@dataclass(frozen=True, eq=False)
class Site:
    """The pages of a report.

    groups: as `collect` returns them
    pictures: file names of the trigger figures in the report
    """

    groups: Sequence[Group]
    pictures: Sequence[str] = ()
    _rows: dict[str, list[tuple[str, int, str]]] = field(default_factory=dict, init=False)
    _made: set[str] = field(default_factory=set, init=False)

    def pages(self, compared: tuple[str, Sequence[Group]] | None) -> dict[str, downloads.Content]:
        """By file name, a function that makes the file: pages, downloads and images.

        Raises `InvalidInput` for two records with the same key.
        """
        pages: dict[str, downloads.Content] = {}
        pages["index.html"] = partial(self._index, compared is not None)
        for block, anchor in self.blocks:
            pages |= downloads.of_block(f"tables/{anchor}", block)
        if compared:
            pages |= self._compared(*compared)
        for axis in PACKAGES:
            for name in self.plugins[axis]:
                pages |= self._plugin_files(axis, name)
        for block, anchor in self.blocks:
            for group in block.groups:
                for record in group.records:
                    require(
                        f"cells/{record.key}.html" not in pages,
                        f"two records have the key {record.key}; remove one of them",
                    )
                    pages |= self._cell_files(block, anchor, group, record)
        return pages

    def _compared(self, other: str, groups: Sequence[Group]) -> dict[str, downloads.Content]:
        sections = compare(self.groups, groups)
        grid = partial(downloads.comparison, f"Comparison with {other}", sections)
        return {
            "compare.html": partial(self._compare, other, sections),
            **downloads.files("tables/comparison", grid),
        }

    def _plugin_files(self, axis: str, name: str) -> dict[str, downloads.Content]:
        groups = self.members[axis, name]
        (across,) = PACKAGES.keys() - {axis}
        page = self.homes[axis][name]
        return {
            page: partial(self._plugin, axis, across, name),
            **downloads.files(
                page.removesuffix(".html"), partial(downloads.of_plugin, name, across, groups)
            ),
        }

    def _cell_files(
        self, block: LeaderboardBlock, anchor: str, group: Group, record: Record
    ) -> dict[str, downloads.Content]:
        stem, picture = f"cells/{record.key}", example(record)
        title = f"{group.names['defense']} on {group.names['attack']}, {block.title()}"
        files: dict[str, downloads.Content] = {
            f"{stem}.html": partial(self._cell, block, anchor, group, record, picture),
            f"{stem}.json": partial(record_files.content, record),
            f"{stem}.csv": partial(lambda own: downloads.everything(own).csv(), record),
        }
        if record.metrics:
            files[f"{stem}.tex"] = partial(lambda own: downloads.metrics(title, own).tex(), record)
        shown = picture.files() if picture and f"{picture.stem}-clean.png" not in self._made else {}
        self._made.update(shown)
        return files | {name: partial(bytes, content) for name, content in shown.items()}

    @cached_property
    def blocks(self) -> list[tuple[LeaderboardBlock, str]]:
        """The blocks of the leaderboard with their anchors on the index page."""
        found = groupby(self.groups, key=lambda group: [group.names[axis] for axis in AXES[:3]])
        return [(LeaderboardBlock(tuple(own)), f"table-{n}") for n, (_, own) in enumerate(found, 1)]

    @cached_property
    def attacks(self) -> dict[str, int]:
        """The attacks, numbered by name with `none` first."""
        return _numbered(group.names["attack"] for group in self.groups)

    @cached_property
    def defenses(self) -> dict[str, int]:
        """The defenses, numbered by name with `none` first."""
        return _numbered(group.names["defense"] for group in self.groups)

    @property
    def plugins(self) -> dict[str, dict[str, int]]:
        """By axis, the attacks and defenses, which have pages of their own."""
        return {"attack": self.attacks, "defense": self.defenses}

    @cached_property
    def homes(self) -> dict[str, dict[str, str]]:
        """By axis, the page of each attack and defense."""
        return {
            axis: {name: f"{axis}s/{slug(name)}.html" for name in names}
            for axis, names in self.plugins.items()
        }

    @cached_property
    def descriptions(self) -> dict[str, dict[str, Description]]:
        """By axis, the description of each attack and defense."""
        return {
            axis: {name: description(axis, name, self._records(axis, name)) for name in names}
            for axis, names in self.plugins.items()
        }

    @cached_property
    def members(self) -> dict[tuple[str, str], list[Group]]:
        """By axis and name, the groups of each attack and defense."""
        found: dict[tuple[str, str], list[Group]] = {}
        for group in self.groups:
            for axis in PACKAGES:
                found.setdefault((axis, group.names[axis]), []).append(group)
        return found

    def _records(self, axis: str, name: str) -> list[Record]:
        return [record for group in self.members[axis, name] for record in group.records]

    def _render(self, template: str, **context: Any) -> bytes:
        return (
            templates().get_template(template).render(site=self, **context).encode(errors="replace")
        )

    def _index(self, compared: bool) -> bytes:
        records = [record for group in self.groups for record in group.records]
        data = sorted({group.names["dataset"].partition("(")[0] for group in self.groups})
        facts = {
            "cell": len(records),
            "data set": len({group.names["dataset"] for group in self.groups}),
            "attack": sum(not is_none(name) for name in self.attacks),
            "defense": sum(not is_none(name) for name in self.defenses),
            "seed": len({record.cell.seed for record in records}),
        }
        flagged = Counter(
            f for group in self.groups for f, records in group.flagged.items() for _ in records
        )
        return self._render(
            "index.html",
            root="",
            heading=f"Backdoor defenses on {' and '.join(data)}",
            facts=[(f"{noun}s" if n != 1 else noun, n) for noun, n in facts.items()],
            flagged=sorted(flagged.items()),
            compared=compared,
            origins=list(_origins(records)),
        )

    def _plugin(self, axis: str, across: str, name: str) -> bytes:
        used = self._records(axis, name)
        return self._render(
            "plugin.html",
            root="../",
            axis=axis,
            across=across,
            plugin=name,
            stem=slug(name),
            blocks=[pair for pair in self.blocks if name in getattr(pair[0], f"{axis}s")],
            description=self.descriptions[axis][name],
            threat_model=_threat_model(axis, used),
            example=next(filter(None, map(example, used)), None) if axis == "attack" else None,
        )

    def _cell(
        self,
        block: LeaderboardBlock,
        anchor: str,
        group: Group,
        record: Record,
        picture: Example | None,
    ) -> bytes:
        baseline = _baseline(block, group, record)
        case = Case(record, baseline)
        configuration = [_settings(record, axis) for axis in AXES]
        return self._render(
            "cell.html",
            root="../",
            anchor=anchor,
            group=group,
            record=record,
            seeds=self._seeds(group),
            baseline=baseline,
            without=case.without,
            answers=list(case.answers()),
            classes=case.classes,
            classes_without=case.classes_without,
            matrix=MATRIX,
            example=picture,
            preview=preview(record),
            published=_published(record),
            changed=list(_only(configuration, changed=True)),
            unchanged=list(_only(configuration, changed=False)),
            charts=list(charts.charts(record.points)),
            curves=charts.names(record.points),
            diagnostics=list(_flat(record.diagnostics.as_dict())),
            provenance=[
                ("record", f"records/{record.key}.json"),
                *_flat(record.provenance.as_dict()),
            ],
        )

    def _seeds(self, group: Group) -> list[tuple[str, int, str]]:
        """(key, seed, table row) of each record of a group, rendered once for all its pages."""
        first = group.records[0].key
        if first not in self._rows:
            of_seed = templates().get_template("parts.html").module.of_seed  # type: ignore[attr-defined]
            self._rows[first] = [(r.key, r.cell.seed, of_seed(r)) for r in group.records]
        return self._rows[first]

    def _compare(self, other: str, sections: Sequence[Section]) -> bytes:
        pairs = [pair for section in sections for pair in section.pairs]
        facts = [
            ("in both", len(pairs)),
            ("CA separable", sum(pair.separable(CA) == "yes" for pair in pairs)),
            ("ASR separable", sum(pair.separable(ASR) == "yes" for pair in pairs)),
            ("only here", sum(len(section.here) for section in sections)),
            ("only there", sum(len(section.there) for section in sections)),
        ]
        return self._render("compare.html", root="", other=other, sections=sections, facts=facts)


def _pictures(folder: Path) -> dict[str, Path]:
    """The figures of triggers by file name in the report; as PNG if there are PNG and SVG."""
    found = {
        path.stem: path for kind in ("svg", "png") for path in folder.glob(f"triggers*.{kind}")
    }
    return {f"pictures/{slug(stem)}{path.suffix}": path for stem, path in sorted(found.items())}


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(sorted(set(names), key=name_order))}


def _baseline(block: LeaderboardBlock, group: Group, record: Record) -> Record | None:
    """The record of no defense against the same attack with the same seed."""
    first = block.defenses[0]
    undefended = block.cells.get((first, group.names["attack"])) if is_none(first) else None
    if undefended is None or undefended is group:
        return None
    return next((r for r in undefended.used if r.cell.seed == record.cell.seed), None)


def _published(record: Record) -> tuple[list[tuple[str, str, Mapping[str, float]]], dict[str, str]]:
    """Numbers that others published for a cell at its poisoning rate: (source, network, shares in
    percent by metric) of each source, and by metric where these contradict each other."""
    cell = record.cell
    found, beside = reference(cell), others(cell)
    paper = found.published if found else None
    rows = [(other.source, NETWORK, other.shares) for other in beside]
    if paper and paper.shares and found and found.same_rate:
        place = f"CBD paper, Table {paper.table}"
        rows.insert(0, (place, MODELS[paper.dataset], paper.shares))
    return rows, contradictions(cell, paper, beside)


Settings = tuple[str, str, list[tuple[str, str, bool]]]


def _settings(record: Record, axis: str) -> Settings:
    """Axis and name of a plugin, and of each field its name, value and whether that is changed."""
    spec, label = record.cell[axis], RecordedSpec.of(record.labels[axis])
    fields = [(name, repr(value), name in label.fields) for name, value in spec.fields.items()]
    return axis, spec.name, fields


def preview(record: Record) -> str:
    """The command that draws images with the trigger of a cell's attack."""
    attack, dataset = (quoted(record.labels[axis]) for axis in ("attack", "dataset"))
    return f"bdbench data preview {attack} --dataset {dataset}"


def _only(configuration: Iterable[Settings], changed: bool) -> Iterator[Settings]:
    """The settings that differ from their defaults, or those that do not, without empty axes."""
    for axis, name, fields in configuration:
        if own := [field for field in fields if field[2] == changed]:
            yield axis, name, own


def _threat_model(axis: str, records: Sequence[Record]) -> list[str]:
    """Sentences on what the attacker changes or the defender has, in all of these records."""
    if axis == "defense":
        shares = {share for record in records if not math.isnan(share := clean_fraction(record))}
        return [
            f"It is lent {100 * share:g} % of the clean training set, besides the poisoned images."
            if share
            else "It is lent no clean images."
            for share in sorted(shares)
        ]
    counts = [r.diagnostics for r in records if r.diagnostics.poisoned_images]
    poisoned, relabelled, cover = (
        _extent(found for each in counts if (found := each[f"{kind}_images"]) is not None)
        for kind in ("poisoned", "relabelled", "cover")
    )
    if not poisoned:
        return []
    changes = [f"It stamps its trigger on {poisoned} training images"]
    if relabelled:
        changes.append("changes no labels" if relabelled == "0" else f"changes {relabelled} labels")
    sentences = [f"{' and '.join(changes)}."]
    if cover not in ("", "0"):
        sentences.append(f"Another {cover} are changed and keep their labels (cover images).")
    return sentences


def _extent(counts: Iterable[int]) -> str:
    """The smallest and the largest count, or the only one; empty without any."""
    found = sorted(set(counts))
    ends = dict.fromkeys([*found[:1], *found[-1:]])
    return " to ".join(f"{count:,}" for count in ends)


def _origins(records: Sequence[Record]) -> Iterator[tuple[str, str]]:
    """The provenance of the records: the most frequent values of `ORIGINS`."""
    parts = [dict(_flat(record.provenance.as_dict())) for record in records]
    for name, path in ORIGINS.items():
        found = Counter(part[path] for part in parts if part.get(path, MISSING) != MISSING)
        texts = [
            f"{value} ({number(count)} of {number(len(records))})"
            if count < len(records)
            else value
            for value, count in found.most_common(VALUES)
        ]
        if len(found) > VALUES:
            texts.append(f"and {len(found) - VALUES} more")
        if texts:
            yield name, "; ".join(texts)
    started = min(record.measured.started for record in records)
    ended = max(record.measured.ended for record in records)
    yield "measured", f"{started} to {ended}"


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Nested JSON values as (path, text), with the names of a path joined by ` · `."""
    if isinstance(value, dict):
        for name, part in sorted(value.items()):
            yield from _flat(part, f"{path} · {name}" if path else name)
    elif isinstance(value, list):
        yield path, ", ".join(text for part in value for _, text in _flat(part)) or MISSING
    else:
        yield path, number(value)
