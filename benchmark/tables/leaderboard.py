"""A block of the leaderboard, defenses by attacks: order, marks and footnotes, and its Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tabulate import tabulate

from bdbench.models.plugins.spec import Spec
from bdbench.records.record import Record
from bdbench.tables.groups import Group, is_none, mean, name_order, seconds_total
from bdbench.tables.statistics import half_width, tied

CA, ASR, FLOOR = "clean_accuracy", "attack_success_rate", "asr_floor"
MISSING = "-"
FOOTNOTES = {
    "not_finite": ("⊘", "in no mean"),
    "failed": ("¶", "in no mean"),
    "at_chance": ("†", "accuracy no better than always guessing one class, never the best"),
    "attack_failed": ("‡", "the trigger seldom works even with no defense"),
    "no_op": ("§", "the defense changed nothing"),
}
LEGEND = """\
CA: accuracy on clean test images. ASR: share of the test images of other classes that the \
trigger turns into the target; floor: share of them that the same network calls the target \
without it. All in percent, after the last epoch. **Bold**: lowest ASR against an attack; ~: ASR \
that cannot be told from it at 95 % (paired t-test over seeds; with one seed, two-proportion \
z-test). ±: half width of the 95 % t interval over seeds; with one seed, the CSV file has Wilson \
intervals. Mean: over the attacks that a defense has results for (how many, if not all); rows are \
sorted by mean ASR over the attacks that all defenses have results for. Seconds: training of a \
defense and of the undefended network it starts from; x none: relative to no defense."""


@dataclass(frozen=True)
class Field:
    """What a table says about one cell, over its seeds. Shares are text, in percent.

    ca, asr: mean ± half width, `MISSING` where there is none
    floor: mean
    standing: of the ASR against this attack: "best", "tied" with it, or ""
    marks: of `FOOTNOTES`, those that hold for any seed
    state: "not finite" or "failed" where that left no seed for a mean, or ""
    """

    ca: str
    asr: str
    floor: str
    standing: str
    marks: tuple[str, ...]
    state: str


@dataclass(frozen=True)
class Block:
    """The groups of one data set, model and recipe."""

    groups: tuple[Group, ...]

    def markdown(self) -> str:
        """Title, table and footnotes."""
        headers = ["defense", *self._headers()]
        rows = [[name, *self._row(name)] for name in self.defenses]
        table = pipe(headers, rows, ["left", *["right"] * (len(headers) - 1)])
        notes = "\n".join(f"- {note}" for note in self.footnotes())
        return "\n\n".join(part for part in (f"## {self.title()}", table, notes) if part)

    @cached_property
    def cells(self) -> dict[tuple[str, str], Group]:
        """By defense and attack."""
        return {(g.names["defense"], g.names["attack"]): g for g in self.groups}

    @cached_property
    def attacks(self) -> list[str]:
        """`none` first, the others by name."""
        return sorted({group.names["attack"] for group in self.groups}, key=name_order)

    @cached_property
    def poisoned(self) -> list[str]:
        """The attacks that are one."""
        return [attack for attack in self.attacks if not is_none(attack)]

    @cached_property
    def defenses(self) -> list[str]:
        """`none` first, the others by mean ASR over the attacks that all have results for.

        Equals are sorted by mean CA; a defense without any result comes last.
        """
        names = {group.names["defense"] for group in self.groups}
        done = {name: set(self._shares(name, ASR, self.poisoned)) for name in names}
        contenders = [done[name] for name in names if done[name] and not is_none(name)]
        shared = set.intersection(*contenders) if contenders else set()

        def order(name: str) -> tuple[bool, float, float, str]:
            attacks = shared & done[name] or done[name] or self.attacks
            asr = mean(self._shares(name, ASR, attacks).values())
            ca = mean(self._shares(name, CA, attacks).values())
            last = math.inf
            return (
                not is_none(name),
                last if math.isnan(asr) else asr,
                last if math.isnan(ca) else -ca,
                name,
            )

        return sorted(names, key=order)

    @cached_property
    def best(self) -> dict[str, Group]:
        """By attack, the group with the lowest ASR; no defense competes only if alone."""
        competing = [g for g in self.groups if not is_none(g.names["defense"])] or self.groups
        best: dict[str, Group] = {}
        for group in competing:
            attack = group.names["attack"]
            if not is_none(attack) and group.counts(ASR) and "at_chance" not in group.flagged:
                best[attack] = min(best.get(attack, group), group, key=_asr)
        return best

    def _shares(self, defense: str, metric: str, attacks: Iterable[str]) -> dict[str, float]:
        """Means of a defense by attack, where there are any."""
        found = (
            (attack, self.cells[defense, attack].estimate(metric)[0])
            for attack in attacks
            if (defense, attack) in self.cells
        )
        return {attack: share for attack, share in found if not math.isnan(share)}

    def title(self) -> str:
        """Data set, model, recipe, precision and number of seeds."""
        records = [record for group in self.groups for record in group.records]
        recipe = Spec.of(records[0].cell["recipe"])
        altered = dict(Spec.of(self.groups[0].names["recipe"]).fields)
        epochs = recipe.fields.get("epochs")
        for said_elsewhere in ("epochs", "precision"):
            altered.pop(said_elsewhere, None)
        precisions = {str(record.provenance.get("precision", "")) for record in records} - {""}
        seeds = len({record.cell["seed"] for record in records})
        parts = [
            self.groups[0].names["dataset"],
            self.groups[0].names["model"],
            *([] if epochs is None else [_several(epochs, "epoch")]),
            *([str(Spec(recipe.name, altered))] if altered else []),
            *sorted(precisions),
            _several(seeds, "seed"),
        ]
        return " · ".join(parts)

    def _headers(self) -> Iterator[str]:
        for attack in self.attacks:
            yield f"{attack} CA"
            yield f"{attack} {'floor' if is_none(attack) else 'ASR'}"
        yield from self.totals()

    def totals(self) -> Iterator[str]:
        """The headers of what `total` says."""
        if self.poisoned:
            yield from ("mean CA", "mean ASR")
        yield from ("seconds", "x none")

    def _row(self, defense: str) -> Iterator[str]:
        for attack in self.attacks:
            yield from self._pair(self.cells.get((defense, attack)))
        yield from self.total(defense)

    def total(self, defense: str) -> Iterator[str]:
        """What a row says about all attacks at once."""
        for metric in (CA, ASR) if self.poisoned else ():
            shares = self._shares(defense, metric, self.poisoned).values()
            some = 0 < len(shares) < len(self.poisoned)
            yield decimal(100 * mean(shares)) + f" ({len(shares)} of {len(self.poisoned)})" * some
        seconds = self._seconds(defense)
        yield decimal(mean(seconds.values()))
        bare = next((self._seconds(name) for name in self.defenses if is_none(name)), {})
        both = seconds.keys() & bare.keys()
        base = mean(bare[attack] for attack in both)
        yield decimal(mean(seconds[attack] for attack in both) / base if base else math.nan)

    def _seconds(self, defense: str) -> dict[str, float]:
        groups = ((attack, self.cells.get((defense, attack))) for attack in self.attacks)
        return {
            attack: group.mean(seconds_total) for attack, group in groups if group and group.used
        }

    def _pair(self, group: Group | None) -> tuple[str, str]:
        """CA, and ASR with its floor or, without an attack, the floor alone."""
        if group is None:
            return MISSING, MISSING
        field = self.field(group)
        if field.state:
            state = " ".join([field.state, *field.marks])
            return state, state
        marks = "".join(f" {mark}" for mark in field.marks)
        if is_none(group.names["attack"]):
            return field.ca, field.floor + marks
        asr = {"best": f"**{field.asr}**", "tied": f"{field.asr} ~", "": field.asr}[field.standing]
        suffix = f" (floor {field.floor})" if field.floor != MISSING else ""
        return field.ca, asr + suffix + marks

    def field(self, group: Group) -> Field:
        """Of one of the groups of this block."""
        return Field(
            ca=_share(group, CA),
            asr=_share(group, ASR),
            floor=_percent([group.estimate(FLOOR)[0]]),
            standing=self._standing(group),
            marks=tuple(FOOTNOTES[flag][0] for flag in group.flagged),
            state=group.state,
        )

    def _standing(self, group: Group) -> str:
        best = self.best.get(group.names["attack"])
        competes = best and is_none(best.names["defense"]) == is_none(group.names["defense"])
        out = not competes or not group.counts(ASR) or "at_chance" in group.flagged
        if best is None or out:
            return ""
        if _asr(group) == _asr(best):
            return "best"
        return "tied" if tied(best.counts(ASR), group.counts(ASR)) else ""

    def footnotes(self) -> Iterator[str]:
        """A line for each mark; and one if seconds cannot be compared."""
        yield from self.marked(FOOTNOTES, lambda group: group.flagged)
        used = (record for group in self.groups for record in group.used)
        devices = sorted({str(record.provenance.get("device")) for record in used})
        for defense, text in self._warnings():
            yield f"{defense}: {text}"
        if len(devices) > 1:
            yield f"seconds were measured on several devices: {', '.join(devices)}"

    def _warnings(self) -> list[tuple[str, str]]:
        """What records warn of, by defense, each text once."""
        return list(
            dict.fromkeys(
                (group.names["defense"], str(text))
                for group in self.groups
                for record in group.used
                for text in record.diagnostics.get("warnings", ())
            )
        )

    def marked(
        self,
        footnotes: Mapping[str, tuple[str, str]],
        flagged: Callable[[Group], Mapping[str, Sequence[Record]]],
    ) -> Iterator[str]:
        """A line for each mark: what it means and which cells have it. `flagged` gives the records
        of a group by flag."""
        groups = [
            group
            for defense in self.defenses
            for attack in self.attacks
            if (group := self.cells.get((defense, attack)))
        ]
        flags = [flagged(group) for group in groups]
        everyone = sum(len(group.records) for group in groups)
        for flag, (mark, meaning) in footnotes.items():
            marked = [(group, f[flag]) for group, f in zip(groups, flags, strict=True) if flag in f]
            places = ", ".join(
                f"{group.names['defense']} on {group.names['attack']} ({_seeds(group, those)})"
                for group, those in marked
            )
            whole = len(groups) > 1 and sum(len(those) for _, those in marked) == everyone
            if places:
                yield f"{mark} {flag}, {meaning}: {'all cells' if whole else places}"


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _asr(group: Group) -> float:
    return group.estimate(ASR)[0]


def _share(group: Group, metric: str) -> str:
    return _percent([count.rate for count in group.counts(metric).values()])


def _percent(rates: Iterable[float]) -> str:
    rates = list(rates)
    return plus_minus(100 * mean(rates), 100 * half_width(rates))


def plus_minus(middle: float, half: float) -> str:
    """A number with the half width of its interval, if that is not nan."""
    return decimal(middle) if math.isnan(half) else f"{decimal(middle)} ± {decimal(half)}"


def pipe(headers: Sequence[str], rows: Iterable[Sequence[str]], align: Sequence[str]) -> str:
    """A Markdown table; `align` is left or right for each column."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in [headers, *rows]]
    table: str = tabulate(
        lines[1:], lines[0], tablefmt="pipe", disable_numparse=True, colalign=align
    )
    return table


def decimal(value: float) -> str:
    """With one digit after the point; `MISSING` for nan."""
    return MISSING if math.isnan(value) else f"{value:.1f}"


def _seeds(group: Group, those: Sequence[Record]) -> str:
    everyone = len(group.records)
    numbers = ", ".join(str(record.cell["seed"]) for record in those)
    raised = sorted({record.error["type"] for record in those if record.error})
    text = f"seed{'s' * (len(those) > 1)} {numbers}"
    text += f" of {everyone}" if everyone > 1 else ""
    return text + f": {', '.join(raised)}" * bool(raised)
