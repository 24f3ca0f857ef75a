"""A block of the leaderboard, defenses by attacks: order, marks and footnotes, and its Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tabulate import tabulate

from bdbench.models.plugins.spec import Spec
from bdbench.records.beside import ALONE, Origins
from bdbench.records.record import Record
from bdbench.tables.groups import (
    ASR,
    CA,
    FLOOR,
    RACC,
    Group,
    filtered,
    is_none,
    lent,
    mean,
    name_order,
    seconds_total,
    trainings,
)
from bdbench.tables.statistics import average, common_seeds, half_width, tied
from bdbench.tables.text import as_markdown

MISSING = "-"
FOOTNOTES = {
    "not_finite": ("⊘", "in no mean"),
    "diverged": ("⊘", "in no mean; an older record, not finite or at chance"),
    "failed": ("¶", "in no mean"),
    "at_chance": ("†", "accuracy no better than always guessing one class, never the best"),
    "attack_failed": ("‡", "the trigger seldom works even with no defense"),
    "no_op": ("§", "the defense changed nothing"),
}
AT_FLOOR = "°"
"""Marks an ASR that is not above its floor."""
NO_CLEAN, CLEAN, UNKNOWN = "no clean images", "with clean images", "clean images not known"
"""The sections of a block, by what a defender has."""
EXTRA = ("floor", "R-Acc", "CA interval", "ASR interval", "TPR", "FPR")
"""What a table has of each attack only where it is asked for."""
HIGH_IS_GOOD = ("CA", "R-Acc", "DER", "TPR")
"""The last word of columns in which the highest number comes first."""
LEGEND = """\
In percent, after the last epoch. Rows are sorted by DER.

- Clean: share of the clean training set that a defense is given.
- Trainings: forward and backward passes, the undefended network included, relative to one plain \
training.
- CA: accuracy on clean test images. R-Acc: triggered test images of other classes that get their \
true label.
- ASR: triggered test images of other classes that get the target. **Bold**: the lowest of a group \
against an attack. ~: cannot be told from it.
- °: this ASR is not above the floor, the share of the same images that the network calls the \
target without the trigger. No backdoor is left there.
- ~ and ° are at 95 %: two-proportion z-test with one seed, paired t-test with several. ° needs \
the z-test of each seed too.
- Mean: over the attacks that a defense has results for (how many, if not all), from the seeds \
that all of these have. Falls and ratios are from the seeds that both sides have.
- DER: (max(0, fall of ASR) - max(0, fall of CA) + 1) / 2 against no defense. It is a trade-off \
score: 50 is no gain, and a high one does not say that CA is high or ASR is low.
- Seconds: training, the undefended network included. x none: relative to no defense.
- Floors, R-Acc by attack, intervals, TPR and FPR are in the CSV file and with --columns."""


@dataclass(frozen=True)
class Field:
    """What a table says about one cell, over its seeds. Shares are text, in percent.

    ca, asr: mean ± half width, `MISSING` where there is none
    floor: mean
    standing: of the ASR against this attack: "best", "tied" with it, or ""
    at_floor: whether the ASR is not above the floor, so that no backdoor is left
    marks: of `FOOTNOTES`, those that hold for any seed
    state: see `Group.state`
    """

    ca: str
    asr: str
    floor: str
    standing: str
    at_floor: bool
    marks: tuple[str, ...]
    state: str


@dataclass(frozen=True)
class LeaderboardBlock:
    """The groups of one data set, model and recipe.

    apart: whether defenses with and without clean images are compared each among themselves
    origins: from which folders the records come
    """

    groups: tuple[Group, ...]
    apart: bool = True
    origins: Origins = ALONE

    def markdown(self, order: str = "", extra: Sequence[str] = ()) -> str:
        """Title, table and footnotes.

        order: title of the column that sorts the defenses of a section, DER if not given
        extra: which of `EXTRA` to add for each attack
        """
        heads = {attack: self._subheads(attack, extra) for attack in self.attacks}
        totals = list(self.totals())[2:]
        means = [title.removeprefix("mean ") for title in totals if title.startswith("mean ")]
        headers = ["defense", "clean", "trainings"]
        for over, below in [*heads.items(), *([("mean", means)] if means else [])]:
            headers += [as_markdown(over), *[""] * (len(below) - 1)]
        headers += totals[len(means) :]
        below = [*(name for names in heads.values() for name in names), *means]
        filling = [""] * (len(totals) - len(means))
        rows = []
        for section, defenses in self.sections(order).items():
            rows.append([section, "", "", *below, *filling])
            for defense in defenses:
                clean, work, *rest = self.total(defense)
                fields = [
                    text
                    for attack in heads
                    for text in self._fields(defense, attack, heads[attack])
                ]
                name = " ".join(filter(None, (as_markdown(defense), self.sign(defense))))
                rows.append([name, clean, work, *fields, *rest])
        table = pipe(headers, rows, ["left", *["right"] * (len(headers) - 1)])
        notes = "\n".join(f"- {as_markdown(note)}" for note in self.footnotes())
        title = f"## {as_markdown(self.title())}"
        return "\n\n".join(part for part in (title, table, notes) if part)

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
        """In the order of their sections."""
        return [name for names in self.sections().values() for name in names]

    def sections(self, order: str = "") -> dict[str, list[str]]:
        """The defenses by what a defender has, `none` first, then by the column with this title.

        Without one by DER; equals, and those without, by mean ASR, then by mean CA. What has no
        number in the column comes last.
        """
        named: dict[str, list[str]] = {title: [] for title in (NO_CLEAN, CLEAN, UNKNOWN)}
        for name in sorted({group.names["defense"] for group in self.groups}):
            named[self._section(name)].append(name)
        titles = [*([order] if order and order != "defense" else []), "DER", "mean ASR", "mean CA"]
        by_name = order == "defense"

        def place(name: str) -> tuple[bool, tuple[float, ...]]:
            found = (_place(title, self.numbers[name]) for title in titles)
            return not is_none(name), () if by_name else tuple(found)

        return {title: sorted(names, key=place) for title, names in named.items() if names}

    def _section(self, defense: str) -> str:
        share = self._clean_fractions[defense]
        return UNKNOWN if math.isnan(share) else CLEAN if share else NO_CLEAN

    @cached_property
    def _clean_fractions(self) -> dict[str, float]:
        """By defense, that of the first of its groups that knows it."""
        found: dict[str, float] = {}
        for group in self.groups:
            name = group.names["defense"]
            if math.isnan(found.get(name, math.nan)):
                found[name] = group.clean_fraction
        return found

    @cached_property
    def numbers(self) -> dict[str, dict[str, float]]:
        """Of each defense the numbers of its row by title of column, nan where there is none:
        shares in percent, of an interval its lower end; those of `EXTRA` too."""
        return {name: dict(self._numbers(name)) for name in self._by_defense}

    @cached_property
    def _by_defense(self) -> dict[str, list[Group]]:
        found: dict[str, list[Group]] = {}
        for group in self.groups:
            found.setdefault(group.names["defense"], []).append(group)
        return found

    def sign(self, defense: str) -> str:
        """Marks a row that has records of other folders."""
        return self.origins.sign(r for group in self._by_defense[defense] for r in group.records)

    def _numbers(self, defense: str) -> Iterator[tuple[str, float]]:
        yield "clean", 100 * self._clean_fractions[defense]
        own = [g for g in self._by_defense[defense] if g.used]
        yield "trainings", mean(n for g in own if not math.isnan(n := g.mean(trainings)))
        for attack in self.attacks:
            group = self.cells.get((defense, attack))
            for name in self._subheads(attack, EXTRA):
                share = _number(group, name) if group else math.nan
                yield f"{attack} {name}", 100 * share
        if self.poisoned:
            for name, metric in MEANS.items():
                shares = self.shares(defense, metric, self.poisoned)
                yield f"mean {name}", 100 * average(list(shares.values()))[0]
            yield "DER", 100 * mean(self._ratings(defense).values())
        yield "seconds", mean(self._seconds(defense).values())
        # Seconds of two folders were measured at two times, if not on two machines.
        together = self.bare and self.sign(defense) == self.sign(self.bare)
        yield "x none", self._ratio(defense) if together else math.nan

    @cached_property
    def bare(self) -> str:
        """The first `none` by name; empty where there is none."""
        names = (group.names["defense"] for group in self.groups)
        return min(filter(is_none, names), default="")

    @cached_property
    def _contests(self) -> dict[tuple[str, str], list[Group]]:
        """By section and attack those that compete for the lowest ASR; no defense only if alone.

        Sections are one where they are not `apart`.
        """
        competing = [g for g in self.groups if not is_none(g.names["defense"])] or self.groups
        found: dict[tuple[str, str], list[Group]] = {}
        for group in competing:
            attacked = not is_none(group.names["attack"])
            if attacked and group.counts(ASR) and "at_chance" not in group.flagged:
                found.setdefault(self._contest(group), []).append(group)
        return found

    @cached_property
    def best(self) -> dict[tuple[str, str], Group]:
        """By section and attack, the group with the lowest ASR."""
        return {contest: min(groups, key=_asr) for contest, groups in self._contests.items()}

    def is_second(self, group: Group) -> bool:
        """Whether its ASR is the lowest of its contest above that of the best."""
        groups = self._contests.get(self._contest(group), [])
        higher = {_asr(each) for each in groups} - {min(map(_asr, groups), default=math.nan)}
        return group in groups and _asr(group) == min(higher, default=math.nan)

    def _contest(self, group: Group) -> tuple[str, str]:
        section = self._section(group.names["defense"]) if self.apart else ""
        return section, group.names["attack"]

    def _ratings(self, defense: str) -> dict[str, float]:
        """DER of a defense by attack, where there is one."""
        found = {
            attack: group.der(self.cells.get((self.bare, attack)))
            for attack in self.poisoned
            if (group := self.cells.get((defense, attack)))
        }
        return {attack: share for attack, share in found.items() if not math.isnan(share)}

    def shares(
        self, defense: str, metric: str, attacks: Iterable[str]
    ) -> dict[str, dict[int, float]]:
        """Those of a defense by attack and seed, of attacks that have any."""
        groups = ((attack, self.cells.get((defense, attack))) for attack in attacks)
        found = ((attack, group.rates(metric)) for attack, group in groups if group)
        return {attack: rates for attack, rates in found if rates}

    def _ratio(self, defense: str) -> float:
        """Seconds of a defense to those of none, over the cells and seeds that both have; nan
        where the network was given, as none then takes no time."""
        ours, theirs = [], []
        for attack in self.attacks:
            group, bare = (self.cells.get((name, attack)) for name in (defense, self.bare))
            if group and bare and bare.records[0].given is None:
                seconds, base = group.seconds, bare.seconds
                seeds = common_seeds((seconds, base))
                ours += [mean(seconds[seed] for seed in seeds)] * bool(seeds)
                theirs += [mean(base[seed] for seed in seeds)] * bool(seeds)
        base_mean = mean(theirs)
        return mean(ours) / base_mean if base_mean else math.nan

    def title(self) -> str:
        """Data set, model, recipe, precision and number of seeds."""
        records = [record for group in self.groups for record in group.records]
        recipe = Spec.of(records[0].cell["recipe"])
        altered = dict(Spec.of(self.groups[0].names["recipe"]).fields)
        epochs = recipe.fields.get("epochs")
        # Of a network that is given, they are those of its defenses.
        whose = "" if records[0].given is None else "defenses: "
        for said_elsewhere in ("epochs", "precision"):
            altered.pop(said_elsewhere, None)
        precisions = {str(record.provenance.get("precision", "")) for record in records} - {""}
        seeds = len({record.cell["seed"] for record in records})
        parts = [
            self.groups[0].names["dataset"],
            self.groups[0].names["model"],
            *([] if epochs is None else [f"{whose}{_several(epochs, 'epoch')}"]),
            *([str(Spec(recipe.name, altered))] if altered else []),
            *sorted(precisions),
            _several(seeds, "seed"),
        ]
        return " · ".join(parts)

    def _subheads(self, attack: str, extra: Sequence[str]) -> list[str]:
        """What is shown of an attack: without one there is no ASR, and the floor is as good."""
        if is_none(attack):
            return ["CA", *(name for name in EXTRA if name in extra and name in OF_CLEAN)]
        return ["CA", "ASR", *(name for name in EXTRA if name in extra)]

    def totals(self) -> Iterator[str]:
        """The headers of what `total` says."""
        yield from ("clean", "trainings")
        if self.poisoned:
            yield from (*(f"mean {name}" for name in MEANS), "DER")
        yield from ("seconds", "x none")

    def total(self, defense: str) -> Iterator[str]:
        """What a row says of a defense and about all attacks at once.

        Of how many attacks is said once, and again where that differs."""
        numbers = self.numbers[defense]
        counts = {
            f"mean {n}": len(self.shares(defense, m, self.poisoned)) for n, m in MEANS.items()
        }
        counts["DER"] = len(self._ratings(defense))
        said = len(self.poisoned)
        for title in self.totals():
            text = decimal(numbers[title])
            if title == "clean":
                text = MISSING if text == MISSING else f"{numbers[title]:g} %"
            count = counts.get(title, 0)
            if count not in (0, said):
                text += f" ({count} of {len(self.poisoned)})"
                said = count
            yield text

    def _seconds(self, defense: str) -> dict[str, float]:
        groups = ((attack, self.cells.get((defense, attack))) for attack in self.attacks)
        return {
            attack: group.mean(seconds_total) for attack, group in groups if group and group.used
        }

    def _fields(self, defense: str, attack: str, names: Sequence[str]) -> Iterator[str]:
        """The columns of an attack; a state and marks stand with the ASR, without one with CA."""
        group = self.cells.get((defense, attack))
        if group is None:
            yield from [MISSING] * len(names)
            return
        field, last = self.field(group), "CA" if is_none(attack) else "ASR"
        for name in names:
            text = _interval(group, name) or decimal(self.numbers[defense][f"{attack} {name}"])
            if name == "ASR":
                text = f"**{text}**" if field.standing == "best" else text
                text += AT_FLOOR * field.at_floor + " ~" * (field.standing == "tied")
            if name == last:
                text = " ".join([field.state or text, *field.marks])
            yield text

    def field(self, group: Group) -> Field:
        """Of one of the groups of this block."""
        return Field(
            ca=_share(group, CA),
            asr=_share(group, ASR),
            floor=_percent([group.estimate(FLOOR)[0]]),
            standing=self._standing(group),
            at_floor=group.at_floor,
            # A flag of a later version has no mark yet.
            marks=tuple(FOOTNOTES[flag][0] for flag in group.flagged if flag in FOOTNOTES),
            state=group.state,
        )

    def _standing(self, group: Group) -> str:
        best = self.best.get(self._contest(group))
        competes = best and is_none(best.names["defense"]) == is_none(group.names["defense"])
        out = not competes or not group.counts(ASR) or "at_chance" in group.flagged
        if best is None or out:
            return ""
        if _asr(group) == _asr(best):
            return "best"
        return "tied" if tied(best.counts(ASR), group.counts(ASR)) else ""

    def footnotes(self) -> Iterator[str]:
        """A line for each mark; and one if seconds cannot be compared, and on other folders."""
        yield from self.marked(FOOTNOTES, lambda group: group.flagged)
        used = (record for group in self.groups for record in group.used)
        devices = sorted({str(record.provenance.get("device")) for record in used})
        for defense, text in self._warnings():
            yield f"{defense}: {text}"
        lines = ((g.names["defense"], lent(r)) for g in self.groups for r in g.used)
        yield from dict.fromkeys(f"{defense} {text}" for defense, text in lines if text)
        if len(devices) > 1:
            yield f"seconds were measured on several devices: {', '.join(devices)}"
        yield from self.origins.lines([r for group in self.groups for r in group.records])

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


MEANS = {"CA": CA, "ASR": ASR, "R-Acc": RACC}
OF_CLEAN = ("floor", "CA interval", "FPR")
"""Of `EXTRA`, what there is without an attack."""
SHARES = {**MEANS, "floor": FLOOR, "CA interval": CA, "ASR interval": ASR}


def _number(group: Group, name: str) -> float:
    """The share in [0, 1] that a column shows, of an interval its lower end; nan for none."""
    if name in SHARES:
        return group.estimate(SHARES[name])[name.endswith(" interval")]
    return group.mean(lambda record: filtered(record)[name == "FPR"])


def _interval(group: Group, name: str) -> str:
    """Both ends, in percent; empty for a column of single numbers."""
    if not name.endswith(" interval"):
        return ""
    _, low, high = group.estimate(SHARES[name])
    return MISSING if math.isnan(low) else f"{decimal(100 * low)} to {decimal(100 * high)}"


def _place(title: str, numbers: Mapping[str, float]) -> float:
    """Sorts the best number of a column first, and none last."""
    value = numbers.get(title, math.nan)
    if math.isnan(value):
        return math.inf
    return -value if title.split()[-1] in HIGH_IS_GOOD else value


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
    """A table of cells in Markdown; `align` is left or right for each column."""
    # Of what it is told are headers, tabulate makes every column wider than they are.
    table = tabulate([headers, *rows], tablefmt="pipe", disable_numparse=True, colalign=align)
    rule, header, *others = table.splitlines()
    return "\n".join([header, rule, *others])


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
