"""Ours against the paper's numbers: difference, inside or outside our interval, known reasons.

Beside them stands what other benchmarks published, which is of another network and gets no verdict.
A pure function of records, like every table. The published numbers are in `published.py` and
`others.py`.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.spec import Spec
from bdbench.records.record import Record
from bdbench.storage.atomic import write_atomically
from bdbench.tables.groups import ASR, CA, FLOOR, RACC, Group, collect, is_none
from bdbench.tables.leaderboard import FOOTNOTES, MISSING, pipe
from bdbench.tables.others import SOURCES, Other, contradictions, others
from bdbench.tables.published import TABLES, Published, Reference, reference
from bdbench.tables.text import as_csv, as_markdown

COMPARED = (1, 2, 5)
"""The paper's tables of CA and ASR."""
ROUNDING = 0.005
"""Half a unit of the paper's last digit, percent: 100 stands for 99.995 and above."""
NAMES = {CA: "CA", ASR: "ASR", RACC: "R-Acc"}
ANY = "*"
REASONS = {
    (ANY, ANY, ANY): "the paper gives no batch size, learning rate drops or size of cutout",
    (ANY, "none", ASR): "published as 0, ours is the floor: ordinary error, not compared",
    (ANY, "badnets", ANY): "the paper gives no patch, ours is a black and white corner pattern",
    (ANY, "trojan", ANY): "the paper gives no patch, ours by default adds seeded colours",
    (ANY, "blend", ANY): "the paper gives no pattern, ours is grey noise, one for all images",
    (ANY, "sig", ANY): "the paper says neither SIG's amplitude nor what its 10 % is a share of",
    (ANY, "dynamic", ANY): "the code has values out of the range of images, ours are in range",
    (ANY, "wanet", ANY): "the paper gives no settings of WaNet, ours by default has no covers",
    ("none", "wanet", ASR): "WaNet is hard to learn in a short training",
    (ANY, "adaptive", ANY): "noise is made after every epoch, in the paper after every batch",
    ("fp", ANY, ANY): "fp prunes the embedding, the paper only says original settings",
    ("mcr", ANY, ANY): "mcr takes t by clean validation, the paper only says original settings",
    (
        "nad",
        ANY,
        ANY,
    ): "nad has 320 and 640 updates by default, the paper only says original settings",
    ("abl", ANY, ANY): "abl by default bounds the loss that it unlearns, for 80 updates",
    ("dbd", ANY, ANY): "dbd has 100 and 50 epochs by default, in its paper 1,000 and 190",
    ("cbd", ANY, ANY): "cbd by default has T1 and beta fixed, which the paper searches, and two "
    "constants of its authors' code",
}
"""By defense, attack and metric: differences that README.md and DECISIONS.md give reasons for."""
LEGEND = """\
All in percent, after the last epoch. Ours: mean over seeds with its 95 % interval, Wilson's of \
one seed, which leaves out how seeds differ, or t of several. Paper: the printed value; inside: it \
lies in our interval, give or take its own rounding. Settings of attacks and defenses are compared \
with our defaults, as the paper prints few of them. BackdoorBench and FT-SAM: numbers of others \
for the same attack, poisoning rate and data set. They are of another network, so they get no \
verdict. """
LEGEND += " ".join(f"{name}: {what}." for name, what in SOURCES.items())


@dataclass(frozen=True)
class Row:
    """One metric of one cell over its seeds; numbers in percent, nan where there is none.

    table: of the paper, None where it does not have the cell
    dataset, model, recipe, attack, defense: as the leaderboard calls them
    metric: CA, ASR, or floor, which takes the place of ASR where nothing was poisoned; R-Acc only
        where others published it
    seeds: how many enter the mean
    ours, low, high: mean and 95 % interval
    published: as the paper prints it
    difference: ours minus published
    verdict: "inside" or "outside"; "failed" or "not finite" if no seed is left; else ""
    backdoorbench, ft_sam: as these published it, see `others`
    contradiction: which of the three sources are more than ten points apart, with their numbers
    reasons: why the two may differ, as far as is known
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
        """What the two metrics of a cell have in common."""
        return self.dataset, self.model, self.recipe, self.attack, self.defense


@dataclass(frozen=True)
class Verification:
    """rows: of the cells that the paper or another benchmark has too; missing: how many printed
    cells of each table of the paper have no record; beyond: how many of our cells are not in the
    paper."""

    rows: tuple[Row, ...]
    missing: Mapping[int, int]
    beyond: int

    def summary(self) -> dict[str, Any]:
        """The counts as JSON values. A cell is inside if all that is compared of it is."""
        verdicts = defaultdict(list)
        for row in self.rows:
            if row.verdict in ("inside", "outside"):
                verdicts[row.cell].append(row.verdict == "inside")
        return {
            "cells": len(verdicts),
            "cells_inside": sum(map(all, verdicts.values())),
            "values": sum(map(len, verdicts.values())),
            "values_inside": sum(map(sum, verdicts.values())),
            "without_record": {str(table): count for table, count in self.missing.items()},
            "not_in_the_paper": self.beyond,
        }

    def sentence(self) -> str:
        """The same in words."""
        counts = self.summary()
        gaps = (f"{n} of {len(TABLES[t])} in Table {t}" for t, n in self.missing.items())
        return (
            f"Inside our interval: {counts['cells_inside']} of {counts['cells']} cells, "
            f"{counts['values_inside']} of {counts['values']} values. The paper's cells without a "
            f"record: {', '.join(gaps)}. Our cells that are not in the paper: {self.beyond}."
        )

    def markdown(self) -> str:
        """A block for each data set, model and recipe, a legend and the sentence."""
        return self._markdown

    @cached_property
    def _markdown(self) -> str:
        blocks = [_block(list(rows)) for _, rows in groupby(self.rows, lambda row: row.cell[:3])]
        return "\n\n".join([*blocks, *([LEGEND] if blocks else []), self.sentence()]) + "\n"

    def csv(self) -> str:
        """One line per row, with nothing for nan and reasons separated by semicolons."""
        lines = [
            {**vars(row), "table": row.table or "", "reasons": "; ".join(row.reasons)}
            for row in self.rows
        ]
        frame = pd.DataFrame(lines, columns=[field.name for field in fields(Row)])
        return as_csv(frame)

    def json(self) -> str:
        """Rows and summary, with null for nan."""
        rows = [
            {name: None if _is_nan(value) else value for name, value in asdict(row).items()}
            for row in self.rows
        ]
        document = {"rows": rows, "summary": self.summary()}
        return json.dumps(document, indent=1, allow_nan=False) + "\n"


def verify(records: Iterable[Record]) -> Verification:
    """Every cell that the paper or another benchmark has, beside what they print.

    Raises `InvalidInput` for records that do not belong into one table, see `collect`.
    """
    rows: list[Row] = []
    seen: set[Published] = set()
    beyond = 0
    for group in collect(records):
        cell = group.records[0].cell
        if group.records[0].given is not None:
            # Nobody has published what a user brings.
            beyond += 1
            continue
        found, beside = reference(cell), others(cell)
        if found is None:
            beyond += 1
        else:
            seen.add(found.published)
        rows += _rows(group, found, beside)
    missing = {table: len(set(TABLES[table]) - seen) for table in COMPARED}
    return Verification(tuple(rows), missing, beyond)


def write_verification(records: Sequence[Record], folder: Path) -> Verification:
    """Write `verify.md` and `verify.csv` to `<folder>/tables`.

    Raises `InvalidInput` for no records, an unwritable folder, or as `verify` does.
    """
    if not records:
        raise InvalidInput(f"no records in {folder / 'records'}; `bdbench run` makes them")
    made = verify(records)
    for name, text in (("verify.md", made.markdown()), ("verify.csv", made.csv())):
        write_atomically(folder / "tables" / name, text.encode())
    return made


def _rows(group: Group, found: Reference | None, beside: tuple[Other, ...]) -> Iterator[Row]:
    """Of each metric; none for a cell that nobody else has. The paper has no R-Acc."""
    if found is None and not beside:
        return
    apart = contradictions(group.records[0].cell, found.published if found else None, beside)
    for metric in (CA, ASR, RACC):
        theirs = {other.source: other.shares.get(metric, math.nan) for other in beside}
        if metric != RACC:
            yield _row(group, metric, found, theirs, apart.get(metric, ""))
        elif not all(map(math.isnan, theirs.values())):
            yield _row(group, metric, None, theirs, "")


def _row(
    group: Group, metric: str, found: Reference | None, theirs: Mapping[str, float], apart: str
) -> Row:
    floor = metric == ASR and is_none(group.names["attack"])
    ours, low, high = (100 * share for share in group.estimate(FLOOR if floor else metric))
    published = found.published.shares.get(metric, math.nan) if found else math.nan
    if not group.used:
        verdict = group.state
    elif floor or math.isnan(published) or math.isnan(low):
        verdict = ""
    else:
        inside = low - ROUNDING <= published <= high + ROUNDING
        verdict = "inside" if inside else "outside"
    reasons = [
        *(found.departures if found else ()),
        *(note for record in group.records for note in record.provenance.get("data_notes", ())),
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
        contradiction=apart,
        reasons=tuple(dict.fromkeys(reasons)),
    )


def _reasons(cell: Mapping[str, Any], metric: str) -> Iterator[str]:
    trigger = Spec.of(cell["attack"])
    attacks = {ANY, trigger.name}
    if trigger.name == "adaptive":
        attacks.add(Spec.of(trigger.fields["attack"]).name)
    defenses = {ANY, Spec.of(cell["defense"]).name}
    for (defense, attack, concerned), reason in REASONS.items():
        if defense in defenses and attack in attacks and concerned in (ANY, metric):
            yield reason


def _flags(group: Group) -> Iterator[str]:
    for flag, those in group.flagged.items():
        seeds = ", ".join(f"seed {record.cell['seed']}" for record in those)
        raised = ", ".join(sorted({record.error["type"] for record in those if record.error}))
        _, meaning = FOOTNOTES.get(flag, ("", "a flag that this version does not know"))
        yield f"{flag}, {meaning}: {seeds}" + f" ({raised})" * bool(raised)


def _block(rows: Sequence[Row]) -> str:
    """Title, table, the reasons that all rows share, and a numbered list of the others."""
    every = list(dict.fromkeys(reason for row in rows for reason in row.reasons))
    of_paper = [row for row in rows if row.table] or rows
    of_all = set.intersection(*(set(row.reasons) for row in of_paper))
    shared = [reason for reason in every if reason in of_all]
    numbers = {reason: n for n, reason in enumerate((r for r in every if r not in of_all), 1)}
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
    table = pipe(headers, lines, align)
    apart = [
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
    if apart:
        parts.append(
            "Published numbers that are more than ten points apart:\n\n" + "\n".join(apart)
        )
    return "\n\n".join(parts)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _interval(row: Row) -> str:
    return MISSING if math.isnan(row.low) else f"{row.low:.2f} to {row.high:.2f}"


def _decimal(value: float, sign: str = "") -> str:
    return MISSING if math.isnan(value) else f"{value:{sign}.2f}"
