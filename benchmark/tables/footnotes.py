"""What must be said below a table: marks, missing seeds, warnings, mixes of code and machines."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from bdbench.records.record import CONTROL, REACTIVATED, Record
from bdbench.tables.block import AT_FLOOR, FOOTNOTES, PASR, LeaderboardBlock
from bdbench.tables.groups import (
    ASR,
    BEFORE,
    CA,
    CODE,
    OTHER_CLASSES,
    Group,
    attacked,
    lent,
    retuned,
    unlike,
)
from bdbench.tables.numbers import listed, percent
from bdbench.tables.statistics import common_seeds

SHOWN = ("ASR", "R-Acc", "floor", AT_FLOOR, PASR, "mean", "DER", "seconds")
"""What of a leaderboard footnotes are about."""
MACHINE = {"device": "device", "threads": "number of threads"}
"""Parts of `unlike` that decide about seconds only."""


def footnotes(block: LeaderboardBlock, shown: Collection[str] = SHOWN) -> Iterator[str]:
    """One line per mark, set of missing seeds, warning, number of lent images, mix of devices
    or code, and other folder.

    shown: which of `SHOWN` the table has; there are no lines about the others
    """
    yield from marked(block, FOOTNOTES, lambda group: group.flagged)
    if files := _files(block):
        yield f"the network is that in {listed(files)}"
    yield from _missing_seeds(block)
    if "ASR" in shown and (alone := _bold_without_baseline(block)):
        yield f"no result of no defense on {listed(alone)}: bold is the lowest that there is"
    yield from _unpaired(block, shown)
    if PASR in shown and (controls := _controls(block)):
        yield f"P-ASR of a network trained on clean images: {controls}"
    if PASR in shown and (fewer := _fewer_reactivated(block)):
        yield f"P-ASR is over fewer seeds than ASR: {fewer}"
    if PASR in shown:
        sizes = ((g.names["attack"], retuned(r)) for g in block.ordered for r in g.used)
        found = (f"P-ASR on {attack} is with {size}" for attack, size in sizes if size)
        yield from dict.fromkeys(found)
    used = [record for group in block.groups for record in group.used]
    names = [name for name in ("ASR", "R-Acc", "floor") if name in shown]
    for attack in block.attacks:
        groups = (g for g in block.groups if g.names["attack"] == attack)
        if names and any(record.parts for group in groups for record in group.used):
            which = f"{listed(names)} {'are those' if len(names) > 1 else 'is that'}"
            floor = f"; {AT_FLOOR} holds for every part" * (AT_FLOOR in shown)
            yield f"{attack}: {which} of the part with the highest ASR{floor}"
    if names:
        which = f"{listed(names)} {'are those' if len(names) > 1 else 'is that'}"
        yield from (f"{attack}: {which} of {whose}" for attack, whose in _victims(block))
    yield from _warnings(block)
    lines = ((g.names["defense"], lent(r)) for g in block.groups for r in g.used)
    yield from dict.fromkeys(f"{defense} {text}" for defense, text in lines if text)
    if "seconds" in shown:
        yield from _mixed_machines(used)
    yield from _mixed_code(block)
    yield from _mixed_rows(block)
    yield from _other_undefended(block, shown)
    yield from block.origins.lines([r for group in block.groups for r in group.records])


def _victims(block: LeaderboardBlock) -> Iterator[tuple[str, str]]:
    """By attack, whose test images it should turn, in words, unless that is those of all other
    classes than the target, or not known."""
    for attack in block.poisoned:
        groups = (group for group in block.groups if group.names["attack"] == attack)
        records = (r for group in groups for r in group.used if not r.diagnostics.parts)
        if (found := next(filter(None, (r.classes for r in records)), None)) is None:
            continue
        if (whose := attacked(found)) != OTHER_CLASSES:
            own = ", which have several targets" * (found.target is None)
            yield attack, f"the triggered test images of {whose}{own}"


def _files(block: LeaderboardBlock) -> list[str]:
    """The names of the files of a network that a user brought; the model shows only its hash."""
    brought = (record.provenance.given for group in block.groups for record in group.records)
    return list(dict.fromkeys(each.file for each in brought if each is not None and each.file))


def _bold_without_baseline(block: LeaderboardBlock) -> list[str]:
    """The attacks with a bold ASR that cannot be compared with that of no defense."""
    bare = [attack for attack in block.poisoned if not block.has_baseline(attack)]
    return [attack for attack in bare if any(place[1] == attack for place in block.best)]


def _unpaired(block: LeaderboardBlock, shown: Collection[str]) -> Iterator[str]:
    """What is over seeds that are not the same, because none is shared."""
    means, ratings = [], []
    for defense in block.defenses:
        shares = block.shares(defense, CA, block.poisoned)
        if len(shares) > 1 and not common_seeds(shares.values()):
            means.append(defense)
        ratings += [
            f"{defense} on {attack}"
            for attack in block.ratings(defense)
            if not common_seeds(
                block.cells[name, attack].rates(ASR) for name in (defense, block.undefended)
            )
        ]
    if means and "mean" in shown:
        yield f"means are over all seeds, as the attacks share none: {', '.join(means)}"
    if ratings and "DER" in shown:
        cells = ", ".join(ratings)
        yield f"DER is over all seeds, as the undefended network shares none: {cells}"


def _controls(block: LeaderboardBlock) -> str:
    """The P-ASR of networks without a backdoor, by attack, over the seeds that all P-ASRs of
    the attack share; over its own without a common one. The seeds follow if it has more."""
    found = []
    for attack in block.poisoned:
        group = block.cells.get((block.undefended, attack))
        if group is None or not (own := group.counts(CONTROL)):
            continue
        measured = (g.counts(REACTIVATED) for g in block.groups if g.names["attack"] == attack)
        seeds = common_seeds([own, *filter(None, measured)]) or sorted(own)
        text = f"{percent([own[seed] for seed in seeds])} on {attack}"
        found.append(text + _some_seeds(group, seeds))
    return ", ".join(found)


def _fewer_reactivated(block: LeaderboardBlock) -> str:
    """The cells whose P-ASR is a mean over some of the seeds of their ASR, and these seeds."""
    cells = ((group, list(group.counts(REACTIVATED))) for group in block.ordered)
    return ", ".join(
        f"{group.names['defense']} on {group.names['attack']}{some}"
        for group, seeds in cells
        if seeds and (some := _some_seeds(group, seeds))
    )


def _missing_seeds(block: LeaderboardBlock) -> Iterator[str]:
    """One line per set of seeds that some cells have no record of, while others have one."""
    every = {record.cell.seed for group in block.groups for record in group.records}
    found: dict[tuple[int, ...], list[str]] = {}
    for group in block.ordered:
        if absent := sorted(every - {record.cell.seed for record in group.records}):
            place = f"{group.names['defense']} on {group.names['attack']}"
            found.setdefault(tuple(absent), []).append(place)
    for seeds, places in found.items():
        numbers = ", ".join(map(str, seeds))
        yield f"no record of seed{'s' * (len(seeds) > 1)} {numbers}: {', '.join(places)}"


def _mixed_code(block: LeaderboardBlock) -> Iterator[str]:
    """One line per set of parts of the code that differ between the seeds of a cell."""
    found: dict[tuple[str, ...], list[str]] = {}
    for group in block.ordered:
        if parts := group.mixed_code:
            place = f"{group.names['defense']} on {group.names['attack']}"
            found.setdefault(parts, []).append(place)
    for parts, places in found.items():
        all_cells = 1 < len(places) == len(block.groups)
        cells = "all cells" if all_cells else ", ".join(places)
        yield f"seeds were run with different code ({', '.join(parts)}): {cells}"


def _mixed_machines(used: Sequence[Record]) -> Iterator[str]:
    devices = sorted({str(d) for r in used if (d := r.provenance.device) is not None})
    if len(devices) > 1:
        yield f"seconds were measured on several devices: {', '.join(devices)}"
    threads = sorted({n for r in used if (n := r.provenance.threads) is not None})
    if len(threads) > 1:
        yield f"seconds were measured with {listed(list(map(str, threads)))} threads"


def _mixed_rows(block: LeaderboardBlock) -> Iterator[str]:
    """One line per set of parts of the code that differ between the attacks of a defense, but
    for the attack itself."""
    found: dict[tuple[str, ...], list[str]] = {}
    for defense in block.defenses:
        groups = [group for group in block.by_defense[defense] if group.used]
        inside = {part for group in groups for part in group.mixed_code}
        sources = [group.used[0].provenance.sources for group in groups]
        parts = tuple(
            part
            for part in CODE
            if part not in {"attack", *inside}
            and len({each[part] for each in sources if part in each}) > 1
        )
        if parts:
            found.setdefault(parts, []).append(defense)
    for parts, defenses in found.items():
        rows = "all rows" if 1 < len(defenses) == len(block.defenses) else ", ".join(defenses)
        yield f"attacks were run with different code ({', '.join(parts)}): {rows}"


def _other_undefended(block: LeaderboardBlock, shown: Collection[str]) -> Iterator[str]:
    """One line per set of what differs between cells and those of no defense that they are
    compared with, with the seeds that differ, unless all do."""
    timed = "seconds" in shown
    found: dict[str, list[str]] = {}
    for group in block.ordered:
        base = block.cells.get((block.undefended, group.names["attack"]))
        if base is None or base is group:
            continue
        told = {*BEFORE, *(MACHINE if timed else ())}
        shared = common_seeds((group.by_seed, base.by_seed))
        by_seed = {s: told & {*unlike(group.by_seed[s], base.by_seed[s])} for s in shared}
        parts = set().union(*by_seed.values())
        code = ", ".join(part for part in BEFORE if part in parts)
        words = [word for part, word in MACHINE.items() if part in parts]
        if words := [*words, *([f"code ({code})"] if code else [])]:
            place = f"{group.names['defense']} on {group.names['attack']}"
            some = _some_seeds(group, [seed for seed, differs in by_seed.items() if differs])
            found.setdefault(listed(words), []).append(place + some)
    for what, places in found.items():
        left = ", so seconds are not compared" * timed
        yield f"no defense was run with another {what}{left}: {', '.join(places)}"


def _warnings(block: LeaderboardBlock) -> Iterator[str]:
    """One line per distinct warning in the records of a defense, with the attacks on which it
    has it, unless these are all."""
    for defense in block.defenses:
        groups = [group for group in block.ordered if group.names["defense"] == defense]
        found: dict[str, list[str]] = {}
        for group in groups:
            texts = (text for record in group.used for text in record.diagnostics.warnings)
            for text in dict.fromkeys(texts):
                found.setdefault(text, []).append(group.names["attack"])
        for text, attacks in found.items():
            where = "" if len(attacks) == len(groups) else f" on {listed(attacks)}"
            yield f"{defense}{where}: {text}"


def marked(
    block: LeaderboardBlock,
    meanings: Mapping[str, tuple[str, str]],
    flagged: Callable[[Group], Mapping[str, Sequence[Record]]],
) -> Iterator[str]:
    """One line per mark: what it means and which cells have it.

    meanings: by flag, its mark and meaning
    flagged: the records of a group by flag
    """
    groups = block.ordered
    flags = [flagged(group) for group in groups]
    total = sum(len(group.records) for group in groups)
    for flag, (mark, meaning) in meanings.items():
        found = [(group, f[flag]) for group, f in zip(groups, flags, strict=True) if flag in f]
        places = ", ".join(
            f"{group.names['defense']} on {group.names['attack']} ({_seeds(group, own)})"
            for group, own in found
        )
        all_cells = len(groups) > 1 and sum(len(own) for _, own in found) == total
        if places:
            yield f"{mark} {flag}, {meaning}: {'all cells' if all_cells else places}"


def _some_seeds(group: Group, seeds: Sequence[int]) -> str:
    """These seeds in parentheses, see `_seeds`; empty if they are all of the used records."""
    chosen = [record for record in group.used if record.cell.seed in seeds]
    return f" ({_seeds(group, chosen)})" if len(chosen) < len(group.used) else ""


def _seeds(group: Group, records: Sequence[Record]) -> str:
    """The seeds of some records of a group and how many it has, then the types of their errors:
    "seed 1 of 3", or "seed 5; 1 of 2" if the seeds of the group are not counted from 0."""
    seeds = sorted(record.cell.seed for record in group.records)
    numbers = ", ".join(str(record.cell.seed) for record in records)
    raised = sorted({record.error.type for record in records if record.error})
    text = f"seed{'s' * (len(records) > 1)} {numbers}"
    if len(seeds) > 1:
        counted = seeds == list(range(len(seeds)))
        text += f" of {len(seeds)}" if counted else f"; {len(records)} of {len(seeds)}"
    return text + f": {', '.join(raised)}" * bool(raised)
