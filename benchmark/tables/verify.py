"""Our numbers against the paper's: the difference, a verdict and known reasons for it.

The verdict is whether the paper's number is inside our interval. Numbers of other benchmarks are
shown beside ours without a verdict, because they use another network. Like every table, this is a
pure function of records; the published numbers are in `published.py` and `others.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from bdbench.models.plugins.errors import InvalidInput
from bdbench.records.consistency import AXES
from bdbench.records.parts import Identity
from bdbench.records.record import Record
from bdbench.storage.atomic import write_atomically
from bdbench.tables.block import footnote
from bdbench.tables.groups import ASR, CA, FLOOR, RACC, Group, collect, is_none
from bdbench.tables.numbers import MISSING, markdown_table
from bdbench.tables.others import SOURCES, Other, contradictions, others
from bdbench.tables.published import TABLES, Published, Reference, hardened, reference
from bdbench.tables.text import as_csv, as_markdown

COMPARED = (1, 2, 5)
"""The paper's tables that have CA and ASR."""
ROUNDING = 0.005
"""Half a unit of the paper's last digit, percent: a printed 100 means 99.995 or more."""
NAMES = {CA: "CA", ASR: "ASR", RACC: "R-Acc"}
ANY = "*"
REASONS = {
    (ANY, ANY, ANY): "the paper does not state batch size, learning rate drops or cutout size",
    (ANY, "none", ASR): "the paper prints 0 and ours is the floor: ordinary error, not compared",
    (ANY, "badnets", ANY): "the paper gives no patch, ours is a black and white corner pattern",
    (ANY, "trojan", ANY): "the paper gives no patch, ours adds seeded colours by default",
    (ANY, "blend", ANY): "the paper gives no pattern, ours is grey noise, one for all images",
    (ANY, "sig", ANY): "the paper states neither SIG's amplitude nor what its 10 % is a share of",
    (ANY, "dynamic", ANY): "the authors' code leaves the pixel range, ours stays within it",
    (ANY, "wanet", ANY): "the paper gives no settings for WaNet, ours has no covers by default",
    ("none", "wanet", ASR): "WaNet is hard to learn in few epochs",
    (ANY, "adaptive", ANY): "ours updates the noise after every epoch, the paper after every batch",
    ("fp", ANY, ANY): "fp prunes the embedding, the paper only says original settings",
    ("mcr", ANY, ANY): "mcr selects t by clean validation, the paper only says original settings",
    ("nad", ANY, ANY): "nad runs 320 and 640 updates, the paper only says original settings",
    ("abl", ANY, ANY): "abl bounds the loss that it unlearns and runs 80 updates of it by default",
    ("dbd", ANY, ANY): "dbd runs 100 and 50 epochs by default, in its paper 1,000 and 190",
    ("cbd", ANY, ANY): "cbd fixes T1 and beta by default, which the paper searches, and uses two "
    "constants from its authors' code",
}
"""By defense, attack and metric: known reasons for a difference, explained in DECISIONS.md.

A reason has no semicolon, which separates reasons in the CSV file."""
LEGEND = """\
In percent, after the last epoch. Ours: mean over seeds with its 95 % interval: Wilson's for one \
seed, which leaves out the variation between seeds; for several the t interval, and at least \
Wilson's of all their images. Paper: the printed \
value; inside: it is in our interval, up to its own rounding. Settings of attacks and defenses are \
compared with our defaults, because the paper prints few of them. BackdoorBench and FT-SAM: \
numbers that these published for the same attack, poisoning rate and data set. They use another \
network and get no verdict. """
LEGEND += " ".join(f"{name}: {what}." for name, what in SOURCES.items())


@dataclass(frozen=True)
class Row:
    """One metric of one cell over its seeds; numbers in percent, nan where there is none.

    table: of the paper, None if the paper does not have the cell
    dataset, model, recipe, attack, defense: names as in the leaderboard
    metric: CA, ASR, or floor, which replaces ASR without an attack; R-Acc only if others published
        it
    seeds: number of seeds in the mean
    ours, low, high: mean and 95 % interval
    published: the number that the paper prints
    difference: ours minus published
    verdict: "inside" or "outside"; "failed" or "not finite" without a usable seed; else ""
    backdoorbench, ft_sam: the numbers that these published, see `others`
    contradiction: the sources that differ by more than ten points, with their numbers
    reasons: known reasons for the difference
    """

    table: int | None
    dataset: str
    model: str
    recipe: str
    attack: str
    defense: str
    metric: str
    seeds: int
    ours: float
    low: float
    high: float
    published: float
    difference: float
    verdict: str
    backdoorbench: float
    ft_sam: float
    contradiction: str
    reasons: tuple[str, ...]

    @property
    def cell(self) -> tuple[str, ...]:
        """The names that identify the cell."""
        found: tuple[str, ...] = tuple(getattr(self, axis) for axis in AXES)
        return found


@dataclass(frozen=True)
class Verification:
    """Our numbers beside published ones.

    rows: for the cells that the paper or another benchmark has
    missing: by table of the paper, the number of printed cells without a record that has results
        and the paper's data, model and recipe
    compared: by the names of our cells with the paper's data, model and recipe, what it prints
    elsewhere: number of our cells that the paper has for other data, model or recipe
    beyond: number of our cells that are not in the paper, at their poisoning rate
    """

    rows: tuple[Row, ...]
    missing: Mapping[int, int]
    compared: Mapping[tuple[str, ...], Published]
    elsewhere: int
    beyond: int

    def summary(self) -> dict[str, Any]:
        """The counts as JSON values, of the paper's cells. A value is inside if it is for each of
        our cells that are compared with it, and a cell if all of its values are."""
        verdicts: dict[Published, dict[str, bool]] = {}
        for row in self.rows:
            if row.verdict in ("inside", "outside") and row.cell in self.compared:
                values = verdicts.setdefault(self.compared[row.cell], {})
                values[row.metric] = values.get(row.metric, True) and row.verdict == "inside"
        return {
            "cells": len(verdicts),
            "cells_inside": sum(all(values.values()) for values in verdicts.values()),
            "values": sum(map(len, verdicts.values())),
            "values_inside": sum(sum(values.values()) for values in verdicts.values()),
            "without_record": {str(table): count for table, count in self.missing.items()},
            "other_setting": self.elsewhere,
            "not_in_the_paper": self.beyond,
        }

    def sentence(self) -> str:
        """The summary in words."""
        counts = self.summary()
        gaps = (f"{n} of {len(TABLES[t])} in Table {t}" for t, n in self.missing.items())
        return (
            f"Inside our interval: {counts['cells_inside']} of {counts['cells']} cells, "
            f"{counts['values_inside']} of {counts['values']} values. The paper's cells without a "
            f"record: {', '.join(gaps)}. Our cells that are not in the paper: {self.beyond}."
            + f" With other data, model or recipe, and not counted: {self.elsewhere}."
            * bool(self.elsewhere)
        )

    def markdown(self) -> str:
        """One block per data set, model and recipe, a legend and the summary."""
        return self._markdown

    @cached_property
    def _markdown(self) -> str:
        blocks = [_block(list(rows)) for _, rows in groupby(self.rows, lambda row: row.cell[:3])]
        return "\n\n".join([*blocks, *([LEGEND] if blocks else []), self.sentence()]) + "\n"

    def csv(self) -> str:
        """The rows as CSV, empty for nan, with reasons separated by semicolons."""
        lines = [
            {**vars(row), "table": row.table or "", "reasons": "; ".join(row.reasons)}
            for row in self.rows
        ]
        frame = pd.DataFrame(lines, columns=[field.name for field in fields(Row)])
        return as_csv(frame)

    def write(self, folder: Path) -> None:
        """Write `verify.md` and `verify.csv` to `<folder>/tables`. Raises `InvalidInput` for an
        unwritable folder."""
        for name, text in (("verify.md", self.markdown()), ("verify.csv", self.csv())):
            write_atomically(folder / "tables" / name, text.encode())

    def json(self) -> str:
        """Rows and summary as JSON, null for nan."""
        rows = [
            {name: None if _is_nan(value) else value for name, value in asdict(row).items()}
            for row in self.rows
        ]
        document = {"rows": rows, "summary": self.summary()}
        return json.dumps(document, indent=1, allow_nan=False) + "\n"


def verify(records: Iterable[Record]) -> Verification:
    """Compare our cells with the numbers of the paper and of other benchmarks.

    Raises `InvalidInput` for records that do not belong in one table, see `collect`.
    """
    rows: list[Row] = []
    compared: dict[tuple[str, ...], Published] = {}
    elsewhere = beyond = 0
    for group in collect(records):
        cell = group.records[0].cell
        if group.records[0].given is not None:
            # There are no published numbers for a network that the user brought.
            beyond += 1
            continue
        found, beside = reference(cell), others(cell)
        if found is None or not found.same_rate:
            beyond += 1
        elif not found.same_setting:
            elsewhere += 1
        elif group.used:
            compared[tuple(group.names[axis] for axis in AXES)] = found.published
        rows += _rows(group, found, beside)
    missing = {table: len({*TABLES[table]} - {*compared.values()}) for table in COMPARED}
    return Verification(tuple(rows), missing, compared, elsewhere, beyond)


def verified(records: Sequence[Record], folder: Path) -> Verification:
    """`verify` the records of a folder. Raises as it does, and `InvalidInput` for no records."""
    if not records:
        raise InvalidInput(f"no records in {folder / 'records'}; create some with `bdbench run`")
    return verify(records)


def _rows(group: Group, found: Reference | None, beside: tuple[Other, ...]) -> Iterator[Row]:
    """The rows of a cell; empty if none are published. The paper has no R-Acc."""
    if found is None and not beside:
        return
    cell, published = group.records[0].cell, found.published if found else None
    conflicts = contradictions(cell, published, beside)
    for metric in (CA, ASR, RACC):
        theirs = {other.source: other.shares.get(metric, math.nan) for other in beside}
        if metric != RACC:
            yield _row(group, metric, found, theirs, conflicts.get(metric, ""))
        elif not all(map(math.isnan, theirs.values())):
            yield _row(group, metric, None, theirs, "")


def _row(
    group: Group,
    metric: str,
    found: Reference | None,
    theirs: Mapping[str, float],
    contradiction: str,
) -> Row:
    floor = metric == ASR and is_none(group.names["attack"])
    ours, low, high = (100 * share for share in group.estimate(FLOOR if floor else metric))
    published = found.published.shares.get(metric, math.nan) if found else math.nan
    if not group.used:
        verdict = group.state
    elif floor or math.isnan(published) or math.isnan(low) or not (found and found.same_rate):
        verdict = ""
    else:
        inside = low - ROUNDING <= published <= high + ROUNDING
        verdict = "inside" if inside else "outside"
    reasons = [
        *(found.departures if found else ()),
        *(note for record in group.records for note in record.provenance.data_notes),
        *([found.published.note] if found and found.published.note else []),
        *(_reasons(group.records[0].cell, metric) if found else ()),
        *_flags(group),
    ]
    return Row(
        table=found.published.table if found else None,
        **group.names,
        metric="floor" if floor else NAMES[metric],
        seeds=len(group.counts(FLOOR if floor else metric)) if group.used else 0,
        ours=round(ours, 4),
        low=round(low, 4),
        high=round(high, 4),
        published=published,
        difference=round(ours - published, 4),
        verdict=verdict,
        backdoorbench=theirs.get("BackdoorBench", math.nan),
        ft_sam=theirs.get("FT-SAM", math.nan),
        contradiction=contradiction,
        reasons=tuple(dict.fromkeys(reasons)),
    )


def _reasons(cell: Identity, metric: str) -> Iterator[str]:
    trigger = cell.attack
    attacks = {ANY, trigger.name}
    if trigger.name == "adaptive":
        attacks.add(hardened(trigger).name)
    defenses = {ANY, cell.defense.name}
    for (defense, attack, affected), reason in REASONS.items():
        if defense in defenses and attack in attacks and affected in (ANY, metric):
            yield reason


def _flags(group: Group) -> Iterator[str]:
    for flag, records in group.flagged.items():
        seeds = ", ".join(f"seed {record.cell.seed}" for record in records)
        raised = ", ".join(sorted({record.error.type for record in records if record.error}))
        yield f"{flag}, {footnote(flag)[1]}: {seeds}" + f" ({raised})" * bool(raised)


def _block(rows: Sequence[Row]) -> str:
    """Title, table, the reasons that all rows share, and the other reasons, numbered."""
    reasons = list(dict.fromkeys(reason for row in rows for reason in row.reasons))
    in_paper = [row for row in rows if row.table] or rows
    in_all = set.intersection(*(set(row.reasons) for row in in_paper))
    shared = [reason for reason in reasons if reason in in_all]
    numbers = {reason: n for n, reason in enumerate((r for r in reasons if r not in in_all), 1)}
    headers = ["attack", "defense", "metric", "seeds", "ours", "95 % interval"]
    headers += ["paper", "table", "difference", "verdict", *SOURCES, "reasons"]
    lines = [
        [
            *(as_markdown(row.attack), as_markdown(row.defense), row.metric, str(row.seeds)),
            *(_decimal(row.ours), _interval(row), _decimal(row.published)),
            str(row.table or MISSING),
            *(_decimal(row.difference, "+z"), row.verdict or MISSING),
            *(_decimal(row.backdoorbench), _decimal(row.ft_sam)),
            " ".join(map(str, sorted(numbers[r] for r in row.reasons if r in numbers))),
        ]
        for row in rows
    ]
    align = [*["left"] * 3, *["right"] * 6, "left", *["right"] * len(SOURCES), "left"]
    table = markdown_table(headers, lines, align)
    conflicts = [
        f"- {as_markdown(f'{row.defense} on {row.attack}, {row.metric}: {row.contradiction}')}"
        for row in rows
        if row.contradiction
    ]
    dataset, model, recipe, *_ = rows[0].cell
    named = "default recipe" if recipe == "recipe" else recipe
    parts = [f"## {as_markdown(f'{dataset} · {model} · {named}')}", table]
    if shared:
        parts.append(
            "All rows of the paper's tables:\n\n"
            + "\n".join(f"- {as_markdown(reason)}" for reason in shared)
        )
    if numbers:
        parts.append("\n".join(f"{n}. {as_markdown(reason)}" for reason, n in numbers.items()))
    if conflicts:
        parts.append(
            "Published numbers that are more than ten points apart:\n\n" + "\n".join(conflicts)
        )
    return "\n\n".join(parts)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _interval(row: Row) -> str:
    return MISSING if math.isnan(row.low) else f"{row.low:.2f} to {row.high:.2f}"


def _decimal(value: float, sign: str = "") -> str:
    return MISSING if math.isnan(value) else f"{value:{sign}.2f}"
