"""The tables of the paper, filled from our records, with the printed numbers beside ours.

For each table, one function selects its groups from those of one data set, model and recipe, and
one or more functions lay them out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from statistics import median

from bdbench.cells.suites import ATTACKS, DEFENSES
from bdbench.models.plugins.spec import Spec
from bdbench.records.consistency import AXES
from bdbench.records.parts import RecordedSpec
from bdbench.records.record import ALONE, STAGES, Record
from bdbench.tables.block import LeaderboardBlock, footnote
from bdbench.tables.footnotes import footnotes, marked
from bdbench.tables.groups import ASR, CA, FLOOR, Group, is_none, mean, passes
from bdbench.tables.numbers import MISSING, decimal, plus_minus
from bdbench.tables.published import AVERAGES, hardened, is_of_class, reference
from bdbench.tables.published import TABLES as PRINTED
from bdbench.tables.sheet import NOTHING, PaperTable, TableCell
from bdbench.tables.statistics import Estimate, average, common_seeds

Selection = Callable[[Sequence[Group]], list[Group]]
Layout = Callable[[LeaderboardBlock, Sequence[Group]], PaperTable]
METRICS = {ASR: "ASR", CA: "CA"}
SHOWN = {1: ("ASR", "mean"), 2: ("ASR",), 3: ("seconds",), 5: ("ASR",)}
"""What footnotes of a table are about, see `footnotes`."""
LEGEND = """\
In percent, after the last epoch. ASR: share of the triggered test images of other classes that \
are classified as the target; CA: accuracy on clean test images. ±: half width of the 95 % \
interval over seeds (t, and at least Wilson's of all images); for one seed, the CSV file has \
Wilson's. **Bold**: lowest ASR against \
an attack, if separable from that of no defense; ~: not separable from the lowest at 95 %. In \
parentheses: the printed value and the difference (ours minus paper). The ASR of no attack is the \
floor, the share that is classified as the target without any trigger; the paper prints 0. \
Averages are over the attacks that have results (how many, if not all), and use the seeds that all \
of these attacks share; in parentheses, the mean of the paper's cells for these attacks."""
TIMING = """\
Seconds: training time, including the undefended network a defense starts from. Loading, \
poisoning, graph capture and evaluation are recorded separately. Increase: relative to no defense \
on the same data, paired by seed. Passes: forward passes per image relative to no defense; a \
backward pass counts as two. Each number is the median over the seeds, with the range from minimum \
to maximum in square brackets: the range of n repeats contains the median of all possible repeats \
with probability 1 - 2^(1-n), 94 % for five. In parentheses: the printed value for one V100, and \
for the increase the difference (ours minus paper). Other stages: loading the data (load), \
poisoning it (poison), training the attack (prepare), recording and compiling steps (capture) and \
evaluation (evaluate); a cached result takes no time."""
OTHER_STAGES = tuple(stage for stage in STAGES if stage not in ("undefended", "fit"))
"""The stages of a cell that are not training."""
CONTENTION = {
    "shared": ("‖", "other processes used the device at the same time"),
    "unwatched": ("?", "not known whether other processes used the device at the same time"),
}
"""Marks of seconds and their meaning, by what a record says about other processes."""


def table_1(block: LeaderboardBlock, groups: Sequence[Group]) -> PaperTable:
    """Attacks by defenses, with averages over the attacks."""
    defenses = _in_order({g.names["defense"] for g in groups}, DEFENSES)
    attacks = _in_order({g.names["attack"] for g in groups}, _plugins(ATTACKS))
    rows = [
        ((attack,), _pairs(block, [(defense, attack) for defense in defenses], 1))
        for attack in attacks
    ]
    poisoned = [attack for attack in attacks if not is_none(attack)]
    if len(poisoned) > 1:
        averages = (
            _average(block, name, metric, poisoned) for name in defenses for metric in METRICS
        )
        rows.append((("average",), tuple(averages)))
    remarks = (*_other_rates(block.groups, groups), *_other_averages(block, defenses, poisoned))
    notes = (*_notes(groups, 1), *remarks)
    return PaperTable(_title(groups), ("attack",), _under(defenses), tuple(rows), notes)


def table_2(block: LeaderboardBlock, groups: Sequence[Group]) -> PaperTable:
    """Poisoning rates and defenses by attacks."""
    places = {(*_name_and_rate(group), group.names["defense"]): group for group in groups}
    attacks = _in_order({attack for attack, *_ in places}, _plugins(ATTACKS))
    defenses = _in_order({defense for *_, defense in places}, DEFENSES)
    rows = []
    for rate in sorted({rate for _, rate, _ in places}):
        for defense in defenses:
            found = [places.get((attack, rate, defense)) for attack in attacks]
            if any(found):
                cells = [(defense, group.names["attack"] if group else "") for group in found]
                rows.append(((f"{100 * rate:g} %", defense), _pairs(block, cells, 2)))
    corner = ("rate", "defense")
    notes = (*_notes(groups, 2), *_shares_of_a_class(groups))
    return PaperTable(_title(groups), corner, _under(attacks), tuple(rows), notes)


def table_3(block: LeaderboardBlock, groups: Sequence[Group]) -> PaperTable:
    """Attacks by defenses: training time, and its increase over no defense, paired by seed."""
    defenses = _in_order({g.names["defense"] for g in groups}, DEFENSES)
    attacks = _in_order({g.names["attack"] for g in groups}, _plugins(ATTACKS))
    columns = [
        (defense, heading)
        for defense in defenses
        for heading in (
            ("seconds",) if is_none(defense) else ("seconds", "increase, %", "passes, x")
        )
    ]
    rows = []
    for attack in attacks:
        undefended = next(g for g in groups if g.names["attack"] == attack and _is_undefended(g))
        row = [
            cell
            for number, defense in enumerate(defenses)
            for cell in _timing(block.cells.get((defense, attack)), undefended, number == 0)
        ]
        rows.append(((attack,), tuple(row)))
    notes = (*_notes(groups, 3), *_left_out(block.groups, groups))
    return PaperTable(_title(groups), ("attack",), tuple(columns), tuple(rows), notes)


def stage_table(block: LeaderboardBlock, groups: Sequence[Group]) -> PaperTable:
    """Time of the stages that are not training, for the cells of Table 3."""
    attacks = _in_order({g.names["attack"] for g in groups}, _plugins(ATTACKS))
    defenses = _in_order({g.names["defense"] for g in groups}, DEFENSES)
    rows = [
        (
            (attack, defense),
            tuple(TableCell(_with_range(stage_seconds(group, s))) for s in OTHER_STAGES),
        )
        for attack in attacks
        for defense in defenses
        if (group := block.cells.get((defense, attack))) and group.used
    ]
    columns = tuple(("seconds", stage) for stage in OTHER_STAGES)
    title = f"{_title(groups)} · other stages"
    return PaperTable(title, ("attack", "defense"), columns, tuple(rows))


def table_5(block: LeaderboardBlock, groups: Sequence[Group]) -> PaperTable:
    """Defenses by attacks."""
    inner = {g.names["attack"]: hardened(g.records[0].cell.attack).name for g in groups}
    order = _in_order(set(inner.values()), _plugins(ATTACKS))
    attacks = sorted(inner, key=lambda name: (order.index(inner[name]), name))
    defenses = _in_order({g.names["defense"] for g in groups}, DEFENSES)
    rows = [
        ((defense,), _pairs(block, [(defense, attack) for attack in attacks], 5))
        for defense in defenses
    ]
    columns = _under(_without_adaptive(name, inner[name]) for name in attacks)
    notes = ("all attacks are hardened by adaptive", *_notes(groups, 5))
    return PaperTable(_title(groups), ("defense",), columns, tuple(rows), notes)


def select_table_1(groups: Sequence[Group]) -> list[Group]:
    """For Table 1: no adaptive attacks, and of several rates of an attack one: that of the suites
    of Table 1, else the default, else the highest."""
    swept: dict[str, list[Group]] = {}
    for group in select_table_2(groups):
        swept.setdefault(_name_and_rate(group)[0], []).append(group)
    taken = {name: _name_and_rate(max(each, key=_preference))[1] for name, each in swept.items()}
    places = ((group, *_name_and_rate(group)) for group in groups if not _is_adaptive(group))
    return [group for group, name, rate in places if taken.get(name, rate) == rate]


def select_table_2(groups: Sequence[Group]) -> list[Group]:
    """For Table 2: attacks that occur at several rates and differ only in their rate, and those at
    a rate that is neither that of the suites of Table 1 nor the default."""
    poisoned = [g for g in groups if not _is_adaptive(g) and not is_none(g.names["attack"])]
    rates = Counter(name for name, _ in set(map(_name_and_rate, poisoned)))
    return [g for g in poisoned if rates[_name_and_rate(g)[0]] > 1 or not any(_preference(g)[:2])]


def select_table_3(groups: Sequence[Group]) -> list[Group]:
    """For Table 3: the cells of attacks that have a result with no defense."""
    known = {g.names["attack"] for g in groups if g.used and _is_undefended(g)}
    return [group for group in groups if group.used and group.names["attack"] in known]


def select_table_5(groups: Sequence[Group]) -> list[Group]:
    """For Table 5: adaptive attacks."""
    return [group for group in groups if _is_adaptive(group)]


TABLES: Mapping[int, tuple[Selection, tuple[Layout, ...]]] = {
    1: (select_table_1, (table_1,)),
    2: (select_table_2, (table_2,)),
    3: (select_table_3, (table_3, stage_table)),
    5: (select_table_5, (table_5,)),
}


def paper_tables(
    number: int, groups: Sequence[Group]
) -> list[tuple[list[PaperTable], list[Group]]]:
    """For each data set, model and recipe with cells of a table, its layouts and their groups."""
    select, layouts = TABLES[number]
    tables = []
    for _, members in groupby(groups, key=lambda group: [group.names[axis] for axis in AXES[:3]]):
        block = LeaderboardBlock(tuple(members), by_section=False)
        if chosen := select(block.groups):
            tables.append(([lay_out(block, chosen) for lay_out in layouts], chosen))
    return tables


def _pairs(
    block: LeaderboardBlock, cells: Iterable[tuple[str, str]], table: int
) -> tuple[TableCell, ...]:
    """ASR and CA of each cell, given by defense and attack."""
    return tuple(
        _cell(block, group, metric, table) if group else NOTHING
        for group in map(block.cells.get, cells)
        for metric in METRICS
    )


def _cell(block: LeaderboardBlock, group: Group, metric: str, table: int) -> TableCell:
    summary = block.summary(group)
    marks = "".join(summary.marks)
    if summary.state:
        return TableCell(summary.state, marks=marks)
    if metric == CA:
        return TableCell(summary.ca, _paper_share(group, CA, table))
    if is_none(group.names["attack"]):
        return TableCell(summary.floor, _paper_share(group, ASR, table), marks=marks)
    best, tied = summary.standing == "best", summary.standing == "tied"
    return TableCell(summary.asr, _paper_share(group, ASR, table), best, tied, marks)


def _paper_share(group: Group, metric: str, table: int) -> str:
    """The printed value and the difference (ours minus paper), percent; empty if not printed."""
    printed = _printed(group, metric, table)
    if printed is None:
        return ""
    floor = metric == ASR and is_none(group.names["attack"])
    return _comparison(printed, 100 * group.estimate(FLOOR if floor else metric)[0])


def _comparison(printed: float, ours: float) -> str:
    difference = "" if math.isnan(ours) else f"; {ours - printed:+z.1f}"
    return f"{printed:g}{difference}"


def _printed(group: Group, metric: str, table: int) -> float | None:
    """The printed value, percent; None also if it is of another poisoning rate."""
    found = reference(group.records[0].cell, table)
    return found.printed(metric) if found else None


def _average(
    block: LeaderboardBlock, defense: str, metric: str, attacks: Sequence[str]
) -> TableCell:
    """Average over the attacks that the defense has results for, see `statistics.average`."""
    shares = block.shares(defense, metric, attacks)
    if not shares:
        return NOTHING
    groups = [block.cells[defense, attack] for attack in shares]
    ours, half = average(list(shares.values()))
    count = f" [{len(groups)} of {len(attacks)}]" * (len(groups) < len(attacks))
    printed = [_printed(group, metric, 1) for group in groups]
    known = [value for value in printed if value is not None]
    paper = _comparison(round(mean(known), 2), 100 * ours) if len(known) == len(groups) else ""
    return TableCell(plus_minus(100 * ours, 100 * half) + count, paper)


def _timing(group: Group | None, undefended: Group, seconds_only: bool) -> list[TableCell]:
    """Seconds; unless `seconds_only`, also their increase and the passes relative to no defense."""
    if group is None or not group.used:
        return [NOTHING] * (1 if seconds_only else 3)
    flags = [footnote(flag) for flag in group.flagged]
    marks = "".join(mark for mark, _ in (*flags, *(CONTENTION[f] for f in contention(group))))
    seconds = list(group.seconds.values())
    first = TableCell(_with_range(seconds), _paper_seconds(group), marks=marks)
    if seconds_only:
        return [first]
    increase = overhead(group, undefended)
    return [
        first,
        TableCell(_with_range(increase), _paper_increase(group, undefended, increase)),
        TableCell(_ratio(passes_ratios(group, undefended))),
    ]


def _ratio(values: Sequence[float]) -> str:
    """The median, and the range where the values differ, as those of most defenses do not."""
    middle, *ends = spread(values)
    if math.isnan(middle):
        return MISSING
    low, high = (f"{end:.2f}" for end in ends)
    return f"{middle:.2f}" + f" [{low}, {high}]" * (len(set(values)) > 1 and low != high)


def overhead(group: Group, undefended: Group) -> list[float]:
    """Increase in training time over no defense, percent, for each seed that both have and that was
    run alike, see `unlike`."""
    seconds, base = group.seconds, undefended.seconds
    seeds = group.seeds_alike(undefended)
    return [100 * (seconds[seed] / base[seed] - 1) for seed in seeds if base[seed]]


def passes_ratios(group: Group, undefended: Group) -> list[float]:
    """Passes relative to no defense for each seed that both have, see `groups.passes`."""
    own, plain = ({r.cell.seed: passes(r) for r in side.used} for side in (group, undefended))
    return [own[seed] / plain[seed] for seed in common_seeds((own, plain)) if plain[seed]]


def stage_seconds(group: Group, stage: str) -> list[float]:
    """Seconds of a stage in each used record. Older records, which captured nothing, count as 0."""
    return [float(record.measured.seconds[stage] or 0) for record in group.used]


def contention(group: Group) -> dict[str, list[Record]]:
    """By flag of `CONTENTION`, the used records that have it."""
    found: dict[str, list[Record]] = {flag: [] for flag in CONTENTION}
    for record in group.used:
        others = record.measured.others
        if others is None:
            found["unwatched"].append(record)
        elif others > ALONE:
            found["shared"].append(record)
    return {flag: records for flag, records in found.items() if records}


def spread(values: Sequence[float]) -> Estimate:
    """(median, minimum, maximum). One value has no range (nan); without values all are nan."""
    middle = median(values) if values else math.nan
    return (middle, min(values), max(values)) if len(values) > 1 else (middle, math.nan, math.nan)


def _with_range(values: Sequence[float]) -> str:
    """Median and range, in whole numbers if the median is at least 100."""
    found = spread(values)
    middle, low, high = (f"{v:.0f}" if found[0] >= 100 else decimal(v) for v in found)
    return f"{middle} [{low}, {high}]" if len(values) > 1 else middle


def _printed_seconds(group: Group) -> float | None:
    found = reference(group.records[0].cell, 3)
    return found.published.seconds if found else None


def _paper_seconds(group: Group) -> str:
    seconds = _printed_seconds(group)
    return "" if seconds is None else f"{seconds:g}"


def _paper_increase(group: Group, undefended: Group, ours: Sequence[float]) -> str:
    printed, base = _printed_seconds(group), _printed_seconds(undefended)
    if printed is None or base is None:
        return ""
    return _comparison(round(100 * (printed / base - 1), 1), spread(ours)[0])


def _under(names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, heading) for name in names for heading in METRICS.values())


def _title(groups: Sequence[Group]) -> str:
    """The title of a table of these groups, which may have fewer seeds than others of a folder."""
    return LeaderboardBlock(tuple(groups), by_section=False).title()


def _left_out(groups: Sequence[Group], chosen: Sequence[Group]) -> Iterator[str]:
    """One line per reason why cells have no seconds in Table 3."""
    found: dict[str, list[str]] = {}
    shown = {id(group) for group in chosen}
    for group in groups:
        if id(group) not in shown:
            place = f"{group.names['defense']} on {group.names['attack']}"
            found.setdefault(group.state or "nothing to compare with", []).append(place)
    for why, places in found.items():
        yield f"left out, {why}: {', '.join(places)}"


def _notes(groups: Sequence[Group], table: int) -> tuple[str, ...]:
    """The marks that occur, the deviations from the paper's setup, and notes on the paper."""
    found = [reference(group.records[0].cell, table) for group in groups]
    departures = dict.fromkeys(d for row in found if row for d in row.departures)
    remarks = dict.fromkeys(
        f"paper, {row.published.defense} on {row.published.attack}: {row.published.note}"
        for row in found
        if row and row.published.note
    )
    deviations = "deviations from the paper's setup: " + "; ".join(departures)
    block = LeaderboardBlock(tuple(groups), by_section=False)
    contended = marked(block, CONTENTION, contention) if table == 3 else ()
    return (
        *footnotes(block, SHOWN[table]),
        *contended,
        *([deviations] if departures else []),
        *remarks,
    )


def _is_undefended(group: Group) -> bool:
    return is_none(group.names["defense"])


def _is_adaptive(group: Group) -> bool:
    return group.records[0].cell.attack.name == "adaptive"


def _name_and_rate(group: Group) -> tuple[str, float]:
    """The name of an attack without its poisoning rate, and the rate; 0 if it has none."""
    rate = group.records[0].cell.attack.fields.get("poisoning_rate")
    if not isinstance(rate, int | float):
        return group.names["attack"], 0.0
    shown = RecordedSpec.of(group.names["attack"])
    fields = {key: value for key, value in shown.fields.items() if key != "poisoning_rate"}
    return str(Spec(shown.name, fields)), float(rate)


def _preference(group: Group) -> tuple[bool, bool, float]:
    """The larger, the rather Table 1 has this rate of an attack."""
    # A label has only the fields that differ from their defaults, as an entry of a suite.
    shown = RecordedSpec.of(group.records[0].labels.attack)
    fields = {key: value for key, value in shown.fields.items() if key != "target"}
    in_suites = str(Spec(shown.name, fields)) in ATTACKS
    return in_suites, "poisoning_rate" not in fields, _name_and_rate(group)[1]


def _other_rates(groups: Sequence[Group], chosen: Sequence[Group]) -> Iterator[str]:
    """One line per attack at several rates: which of them Table 1 has, and which not."""
    found: dict[str, list[str]] = {}
    shown = {_name_and_rate(group)[0]: group.names["attack"] for group in chosen}
    for group in groups:
        name = group.names["attack"]
        # Adaptive attacks belong in Table 5.
        taken = name if _is_adaptive(group) else shown[_name_and_rate(group)[0]]
        if taken != name and name not in found.setdefault(taken, []):
            found[taken].append(name)
    for taken, others in found.items():
        yield f"of several rates this has {taken}; left out, see Table 2: {', '.join(others)}"


def _other_averages(
    block: LeaderboardBlock, defenses: Sequence[str], attacks: Sequence[str]
) -> Iterator[str]:
    """One line per defense whose average in the paper is not that of the paper's cells, if the
    average here is over all of these."""
    for name in defenses:
        groups = [block.cells[name, attack] for attack in block.shares(name, ASR, attacks)]
        found = [reference(group.records[0].cell, 1) for group in groups]
        rows = [each.published for each in found if each and each.same_rate]
        for last in AVERAGES if rows else ():
            place = (last.dataset, last.defense)
            every = {row.attack for row in PRINTED[1] if (row.dataset, row.defense) == place}
            alike = place == (rows[0].dataset, rows[0].defense)
            if last.note and alike and {row.attack for row in rows} == every - {"none"}:
                printed = " and ".join(
                    f"{heading} {getattr(last, metric):g}"
                    for metric, heading in METRICS.items()
                    if heading in last.note
                )
                yield f"paper, {name} on average: {last.note}, the printed average is {printed}"


def _without_adaptive(name: str, inner: str) -> str:
    """A spec of `adaptive` as the attack that it hardens; unchanged if it has other settings."""
    fields = dict(RecordedSpec.of(name).fields)
    shown = str(fields.pop("attack", inner))
    return name if fields else shown


def _shares_of_a_class(groups: Sequence[Group]) -> Iterator[str]:
    """One line about the attacks whose rate is a share of the target class."""
    of_class = {
        _name_and_rate(group)[0] for group in groups if is_of_class(group.records[0].cell.attack)
    }
    if of_class:
        names = ", ".join(sorted(of_class))
        yield f"rates are shares of the target class, not of all images: {names}"


def _plugins(specs: Iterable[str]) -> list[str]:
    return [RecordedSpec.of(text).name for text in specs]


def _in_order(names: Iterable[str], known: Sequence[str]) -> list[str]:
    """Sort specs by the position of their plugin in `known`; others follow by name."""

    def sort_key(text: str) -> tuple[int, str]:
        name = RecordedSpec.of(text).name
        return (list(known).index(name) if name in known else len(known)), text

    return sorted(names, key=sort_key)
