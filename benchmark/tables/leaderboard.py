"""A block of the leaderboard, defenses by attacks: order, marks, footnotes and Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tabulate import tabulate

from bdbench.models.plugins.spec import Spec
from bdbench.records.beside import ALONE, Origins
from bdbench.records.count import Count
from bdbench.records.parts import RecordedSpec
from bdbench.records.record import CONTROL, REACTIVATED, Record
from bdbench.tables.groups import (
    ASR,
    BEFORE,
    CA,
    CODE,
    FLOOR,
    OTHER_CLASSES,
    RACC,
    Group,
    attacked,
    filtered,
    is_none,
    lent,
    mean,
    name_order,
    retuned,
    seconds_total,
    trainings,
    unlike,
)
from bdbench.tables.statistics import average, common_seeds, separably_lower, spread
from bdbench.tables.text import as_markdown

MISSING = "-"
FOOTNOTES = {
    "not_finite": ("⊘", "excluded from means"),
    "diverged": ("⊘", "excluded from means; an older record, not finite or at chance"),
    "failed": ("¶", "excluded from means"),
    "at_chance": ("†", "accuracy no better than always predicting one class; never marked best"),
    "attack_failed": ("‡", "the trigger rarely works even with no defense"),
    "no_op": ("§", "the defense changed nothing"),
}
AT_FLOOR = "°"
"""Marks an ASR that does not exceed its floor."""
UNKNOWN_FLAG = ("", "a flag unknown to this version")
NO_CLEAN, CLEAN, UNKNOWN = "no clean images", "with clean images", "clean images not known"
"""The sections of a block, by what the defender has."""
EXTRA_COLUMNS = ("floor", "R-Acc", "CA interval", "ASR interval", "TPR", "FPR", "AUROC")
"""Columns of each attack that are shown on request."""
PASR, PASR_INTERVAL = "P-ASR", "P-ASR interval"
"""The first is shown where it was measured, the second on request then."""
SHOWN = ("ASR", "R-Acc", "floor", AT_FLOOR, PASR, "mean", "DER", "seconds")
"""What of a leaderboard footnotes are about."""
HIGHER_IS_BETTER = ("CA", "R-Acc", "DER", "TPR", "AUROC")
"""The last words of column titles, without "interval", that sort in descending order."""
LEGEND = """\
In percent, after the last epoch. Rows are sorted by {order}.

- Clean: share of the clean training set that a defense is given.
- Trainings: forward and backward passes, including the undefended network, relative to one plain \
training.
- CA: accuracy on clean test images. R-Acc: share of the triggered test images of other classes \
that are classified as their true label.
- ASR: share of the triggered test images of other classes that are classified as the target. \
**Bold**: the lowest ASR of a section against an attack, if separable from that of no defense. ~: \
not separable from the lowest.
- °: not separable from its floor, the share of the same images that the network classifies as \
the target without the trigger.
- ~ and ° are tested at 95 %: two-proportion z-test for one seed; for several the paired t-test, \
and McNemar's for the images of all. ° also requires the z-test of every seed, which misses an \
effect of the trigger on a few images.
- Mean: over the attacks that have results (how many, if not all) and the seeds that all of them \
share. Drops and ratios use the seeds that both sides share.
- DER: (max(0, drop in ASR) - max(0, drop in CA) + 1) / 2 relative to no defense. It is a \
trade-off score: 50 means no gain, and a high DER implies neither a high CA nor a low ASR.
- Seconds: training time, including the undefended network. x none: relative to no defense.
- Floors, R-Acc by attack and intervals, and TPR, FPR and AUROC of filters are in the CSV file and \
with --columns."""
PASR_LEGEND = """\
- P-ASR: ASR of a copy of the network that was fine-tuned on 2 % of the clean training images and \
five poisoned ones. If it is far above the ASR, and above that of a network trained on clean \
images, the defense hid the backdoor and did not remove it."""


def footnote(flag: str) -> tuple[str, str]:
    """The mark and the meaning of a flag. One of a later version has no mark."""
    return FOOTNOTES.get(flag, UNKNOWN_FLAG)


@dataclass(frozen=True)
class CellSummary:
    """What a table shows of one cell, over its seeds. Shares are text, in percent.

    ca, asr, pasr: mean ± half width of the interval, `MISSING` where there is none
    floor: mean
    standing: of the ASR among the defenses against this attack: "best", "tied" with it, or ""
    at_floor: whether the ASR does not exceed the floor, so that the trigger has no effect
    marks: those of `FOOTNOTES` that apply to any seed
    state: see `Group.state`
    """

    ca: str
    asr: str
    pasr: str
    floor: str
    standing: str
    at_floor: bool
    marks: tuple[str, ...]
    state: str


@dataclass(frozen=True)
class LeaderboardBlock:
    """The groups of one data set, model and recipe.

    by_section: whether defenses with and without clean images are ranked separately
    origins: the folders that the records come from
    """

    groups: tuple[Group, ...]
    by_section: bool = True
    origins: Origins = ALONE

    def markdown(self, order: str = "", extra: Sequence[str] = ()) -> str:
        """Title, table and footnotes.

        order: title of the column that sorts the defenses of a section, DER if empty
        extra: the `EXTRA_COLUMNS` to add for each attack that has a number in them
        """
        columns = {
            attack: [n for n in self.columns(attack, extra) if self._has_numbers(attack, n)]
            for attack in self.attacks
        }
        overall = list(self.overall_titles())[2:]
        means = [title.removeprefix("mean ") for title in overall if title.startswith("mean ")]
        headers = ["defense", "clean", "trainings"]
        for heading, subheadings in [*columns.items(), *([("mean", means)] if means else [])]:
            headers += [as_markdown(heading), *[""] * (len(subheadings) - 1)]
        headers += overall[len(means) :]
        subheadings = [*(name for names in columns.values() for name in names), *means]
        padding = [""] * (len(overall) - len(means))
        rows = []
        for section, defenses in self.sections(order).items():
            rows.append([section, "", "", *subheadings, *padding])
            for defense in defenses:
                clean, work, *rest = self.overall(defense)
                texts = [
                    text
                    for attack, names in columns.items()
                    for text in self._texts(defense, attack, names)
                ]
                name = " ".join(filter(None, (as_markdown(defense), self.sign(defense))))
                rows.append([name, clean, work, *texts, *rest])
        table = markdown_table(headers, rows, ["left", *["right"] * (len(headers) - 1)])
        notes = "\n".join(f"- {as_markdown(note)}" for note in self.footnotes())
        title = f"## {as_markdown(self.title())}"
        return "\n\n".join(part for part in (title, table, notes) if part)

    @cached_property
    def cells(self) -> dict[tuple[str, str], Group]:
        """By defense and attack, the group."""
        return {(g.names["defense"], g.names["attack"]): g for g in self.groups}

    @cached_property
    def attacks(self) -> list[str]:
        """The attacks by name, `none` first."""
        return sorted({group.names["attack"] for group in self.groups}, key=name_order)

    @cached_property
    def poisoned(self) -> list[str]:
        """The attacks except `none`."""
        return [attack for attack in self.attacks if not is_none(attack)]

    @cached_property
    def defenses(self) -> list[str]:
        """The defenses in the order of their sections."""
        return [name for names in self.sections().values() for name in names]

    def sections(self, order: str = "") -> dict[str, list[str]]:
        """The defenses of each section: `none` first, then sorted by the column with this title.

        Ties are sorted by DER, mean ASR and mean CA, in this order; so are all defenses if `order`
        is empty. A defense without a number in a column comes last.
        """
        sections: dict[str, list[str]] = {title: [] for title in (NO_CLEAN, CLEAN, UNKNOWN)}
        for name in sorted({group.names["defense"] for group in self.groups}):
            sections[self._section(name)].append(name)
        titles = [*([order] if order and order != "defense" else []), "DER", "mean ASR", "mean CA"]
        by_name = order == "defense"

        def sort_key(name: str) -> tuple[bool, tuple[float, ...]]:
            keys = (_sort_key(title, self.numbers[name]) for title in titles)
            return not is_none(name), () if by_name else tuple(keys)

        return {title: sorted(names, key=sort_key) for title, names in sections.items() if names}

    def _section(self, defense: str) -> str:
        share = self._clean_fractions[defense]
        return UNKNOWN if math.isnan(share) else CLEAN if share else NO_CLEAN

    @cached_property
    def _clean_fractions(self) -> dict[str, float]:
        """By defense, the clean fraction of the first of its groups that has one."""
        found: dict[str, float] = {}
        for group in self.groups:
            name = group.names["defense"]
            if math.isnan(found.get(name, math.nan)):
                found[name] = group.clean_fraction
        return found

    @cached_property
    def numbers(self) -> dict[str, dict[str, float]]:
        """By defense and column title, the number in that column, nan where there is none.

        Shares are in percent, `EXTRA_COLUMNS` are included, and an interval has its lower end.
        """
        return {name: dict(self._numbers(name)) for name in self._by_defense}

    @cached_property
    def _by_defense(self) -> dict[str, list[Group]]:
        found: dict[str, list[Group]] = {}
        for group in self.groups:
            found.setdefault(group.names["defense"], []).append(group)
        return found

    def sign(self, defense: str) -> str:
        """The mark of a row with records from other folders."""
        return self.origins.sign(r for group in self._by_defense[defense] for r in group.records)

    def _numbers(self, defense: str) -> Iterator[tuple[str, float]]:
        yield "clean", 100 * self._clean_fractions[defense]
        used = [group for group in self._by_defense[defense] if group.used]
        yield "trainings", mean(n for g in used if not math.isnan(n := g.mean(trainings)))
        for attack in self.attacks:
            group = self.cells.get((defense, attack))
            for name in self.columns(attack, (*EXTRA_COLUMNS, PASR_INTERVAL)):
                share = _number(group, name) if group else math.nan
                yield f"{attack} {name}", 100 * share
        if self.poisoned:
            for name, metric in MEANS.items():
                shares = self.shares(defense, metric, self.poisoned)
                yield f"mean {name}", 100 * average(list(shares.values()))[0]
            yield "DER", 100 * mean(self._ratings(defense).values())
        yield "seconds", mean(self._seconds(defense).values())
        # Seconds from two folders were measured at different times or on different machines.
        sides = self._by_defense[defense], self._by_defense.get(self.undefended, [])
        folders = {self.origins.of(r) for side in sides for group in side for r in group.records}
        yield "x none", self._time_ratio(defense) if len(folders) == 1 else math.nan

    @cached_property
    def undefended(self) -> str:
        """The first defense by name that is `none`; empty if there is none."""
        names = (group.names["defense"] for group in self.groups)
        return min(filter(is_none, names), default="")

    @cached_property
    def _competitors(self) -> dict[tuple[str, str], list[Group]]:
        """By section and attack, the groups that are ranked by ASR. No defense itself is not.

        There are none if the lowest is not separable from the ASR of no defense, as among failures
        none is the best, or if another is separably lower over the seeds that both have. The
        section is "" unless `by_section`.
        """
        found: dict[tuple[str, str], list[Group]] = {}
        for group in self.groups:
            if is_none(group.names["defense"]):
                continue
            if not is_none(group.names["attack"]) and group.is_ranked:
                found.setdefault(self._competition(group), []).append(group)
        return {place: each for place, each in found.items() if self._has_best(each)}

    def _has_best(self, groups: Sequence[Group]) -> bool:
        """Whether the lowest ASR of some groups may be called the best."""
        best = min(groups, key=_asr)
        lower = (separably_lower(each.counts(ASR), best.counts(ASR)) for each in groups)
        return self._lowers(best) and not any(lower)

    def _lowers(self, group: Group) -> bool:
        """Whether its ASR is below that of no defense; true where that is not known."""
        base = self.cells.get((self.undefended, group.names["attack"]))
        if base is None or not base.counts(ASR):
            return True
        return _asr(group) < _asr(base) and separably_lower(group.counts(ASR), base.counts(ASR))

    @cached_property
    def best(self) -> dict[tuple[str, str], Group]:
        """By section and attack, the group with the lowest ASR.

        It is the lowest of the means that are shown, each over all seeds of its own cell;
        `separably_lower` compares the seeds that two cells share.
        """
        return {place: min(groups, key=_asr) for place, groups in self._competitors.items()}

    def is_second(self, group: Group) -> bool:
        """Whether its ASR is the lowest above that of the best."""
        groups = self._competitors.get(self._competition(group), [])
        higher = {_asr(each) for each in groups} - {min(map(_asr, groups), default=math.nan)}
        return group in groups and _asr(group) == min(higher, default=math.nan)

    def _competition(self, group: Group) -> tuple[str, str]:
        section = self._section(group.names["defense"]) if self.by_section else ""
        return section, group.names["attack"]

    def _ratings(self, defense: str) -> dict[str, float]:
        """By attack, the DER of a defense where it has one."""
        found = {
            attack: group.der(self.cells.get((self.undefended, attack)))
            for attack in self.poisoned
            if (group := self.cells.get((defense, attack)))
        }
        return {attack: share for attack, share in found.items() if not math.isnan(share)}

    def shares(
        self, defense: str, metric: str, attacks: Iterable[str]
    ) -> dict[str, dict[int, Count]]:
        """By attack and seed, the counts of a metric of a defense, where it has one."""
        groups = ((attack, self.cells.get((defense, attack))) for attack in attacks)
        found = ((attack, group.counts(metric)) for attack, group in groups if group)
        return {attack: counts for attack, counts in found if counts}

    def _time_ratio(self, defense: str) -> float:
        """Seconds of a defense relative to no defense, over the cells and seeds that both have and
        that were run alike, see `unlike`.

        nan for a network that the user brought, for which no defense takes no time.
        """
        pairs = self._timed_pairs(defense)
        plain = mean(base for _, base in pairs)
        return mean(own for own, _ in pairs) / plain if plain else math.nan

    def _timed_pairs(self, defense: str) -> list[tuple[float, float]]:
        """Mean seconds of a defense and of no defense, for each attack with seeds to compare."""
        pairs = []
        for attack in self.attacks:
            group, base = (self.cells.get((name, attack)) for name in (defense, self.undefended))
            if group is None or base is None or base.records[0].given is not None:
                continue
            if seeds := group.seeds_alike(base):
                own, plain = (mean(g.seconds[seed] for seed in seeds) for g in (group, base))
                pairs.append((own, plain))
        return pairs

    def title(self) -> str:
        """Data set, model, epochs, other recipe settings, precision and number of seeds, which may
        differ between cells."""
        records = [record for group in self.groups for record in group.records]
        recipe = records[0].cell.recipe
        altered = dict(RecordedSpec.of(self.groups[0].names["recipe"]).fields)
        epochs = recipe.fields.get("epochs")
        # A network that the user brought was trained elsewhere: only its defenses have epochs.
        subject = "" if records[0].given is None else "defenses: "
        for shown_separately in ("epochs", "precision"):
            altered.pop(shown_separately, None)
        precisions = {record.provenance.precision or "" for record in records} - {""}
        seeds = sorted({len(group.records) for group in self.groups})
        parts = [
            self.groups[0].names["dataset"],
            self.groups[0].names["model"],
            *([] if epochs is None else [f"{subject}{_plural(epochs, 'epoch')}"]),
            *([str(Spec(recipe.name, altered))] if altered else []),
            *sorted(precisions),
            f"{seeds[0]} to " * (len(seeds) > 1) + _plural(seeds[-1], "seed"),
        ]
        return " · ".join(parts)

    def columns(self, attack: str, extra: Sequence[str] = ()) -> list[str]:
        """The columns of an attack. No attack has no ASR; its floor says the same."""
        if is_none(attack):
            return ["CA", *(name for name in CLEAN_COLUMNS if name in extra)]
        asked = [name for name in EXTRA_COLUMNS if name in extra]
        if any(g.counts(REACTIVATED) for g in self.groups if g.names["attack"] == attack):
            return ["CA", "ASR", PASR, *asked, *[PASR_INTERVAL] * (PASR_INTERVAL in extra)]
        return ["CA", "ASR", *asked]

    def _has_numbers(self, attack: str, name: str) -> bool:
        """Whether a column of an attack is shown always, or has a number for any defense."""
        values = (numbers[f"{attack} {name}"] for numbers in self.numbers.values())
        return name in ("CA", "ASR") or not all(map(math.isnan, values))

    @cached_property
    def reactivated(self) -> bool:
        """Whether any record says if the backdoor comes back."""
        return any(group.counts(REACTIVATED) for group in self.groups)

    def overall_titles(self) -> Iterator[str]:
        """The column titles of `overall`."""
        yield from ("clean", "trainings")
        if self.poisoned:
            yield from (*(f"mean {name}" for name in MEANS), "DER")
        yield from ("seconds", "x none")

    def overall(self, defense: str) -> Iterator[str]:
        """The columns of a row that concern all attacks at once, as text.

        A mean over some of the attacks states how many, unless the column before it does.
        """
        numbers, extents = self.numbers[defense], self._extents(defense)
        stated = whole = (0, 0)
        for title in self.overall_titles():
            text = decimal(numbers[title])
            if title == "clean":
                text = MISSING if text == MISSING else f"{numbers[title]:g} %"
            count, of = extents.get(title, whole)
            if count and text != MISSING:
                own = (count, of) if count < of else whole
                text += f" ({count} of {of})" * (own != stated)
                stated = own
            yield text

    def _extents(self, defense: str) -> dict[str, tuple[int, int]]:
        """By title of a mean that says it, over how many attacks it is, and how many there are."""
        poisoned, every = len(self.poisoned), len(self.attacks)
        shares = {n: self.shares(defense, metric, self.poisoned) for n, metric in MEANS.items()}
        return {
            **{f"mean {name}": (len(found), poisoned) for name, found in shares.items()},
            "DER": (len(self._ratings(defense)), poisoned),
            "seconds": (len(self._seconds(defense)), every),
            "x none": (len(self._timed_pairs(defense)), every),
        }

    def _seconds(self, defense: str) -> dict[str, float]:
        """By attack, the mean training time of a defense."""
        groups = ((attack, self.cells.get((defense, attack))) for attack in self.attacks)
        return {
            attack: group.mean(seconds_total) for attack, group in groups if group and group.used
        }

    def _texts(self, defense: str, attack: str, names: Sequence[str]) -> Iterator[str]:
        """The columns of an attack, as text. State and marks are in the ASR column, or in the CA
        column if there is no attack."""
        group = self.cells.get((defense, attack))
        if group is None:
            yield from [MISSING] * len(names)
            return
        summary, last = self.summary(group), "CA" if is_none(attack) else "ASR"
        for name in names:
            text = _interval(group, name) or decimal(self.numbers[defense][f"{attack} {name}"])
            if name == "ASR":
                text = f"**{text}**" if summary.standing == "best" else text
                text += AT_FLOOR * summary.at_floor + " ~" * (summary.standing == "tied")
            if name == last:
                text = " ".join([summary.state or text, *summary.marks])
            yield text

    def summary(self, group: Group) -> CellSummary:
        """What a table shows of one of the groups of this block."""
        return CellSummary(
            ca=_share(group, CA),
            asr=_share(group, ASR),
            pasr=_share(group, REACTIVATED),
            floor=decimal(100 * group.estimate(FLOOR)[0]),
            standing=self._standing(group),
            at_floor=group.at_floor,
            marks=tuple(mark for flag in group.flagged if (mark := footnote(flag)[0])),
            state=group.state,
        )

    def _standing(self, group: Group) -> str:
        if group not in self._competitors.get(self._competition(group), []):
            return ""
        best = self.best[self._competition(group)]
        if _asr(group) == _asr(best):
            return "best"
        return "" if separably_lower(best.counts(ASR), group.counts(ASR)) else "tied"

    def footnotes(self, shown: Collection[str] = SHOWN) -> Iterator[str]:
        """One line per mark, set of missing seeds, warning, number of lent images, mix of devices
        or code, and other folder.

        shown: which of `SHOWN` the table has; there are no lines about the others
        """
        yield from self.marked(FOOTNOTES, lambda group: group.flagged)
        yield from self._missing_seeds()
        yield from self._unpaired(shown)
        if PASR in shown and (controls := self._controls()):
            yield f"P-ASR of a network trained on clean images: {controls}"
        if PASR in shown and (fewer := self._fewer_reactivated()):
            yield f"P-ASR is over fewer seeds than ASR: {fewer}"
        if PASR in shown:
            sizes = ((g.names["attack"], retuned(r)) for g in self._ordered for r in g.used)
            found = (f"P-ASR on {attack} is with {size}" for attack, size in sizes if size)
            yield from dict.fromkeys(found)
        used = [record for group in self.groups for record in group.used]
        names = [name for name in ("ASR", "R-Acc", "floor") if name in shown]
        for attack in self.attacks:
            groups = (g for g in self.groups if g.names["attack"] == attack)
            if names and any(record.parts for group in groups for record in group.used):
                which = f"{_listed(names)} {'are those' if len(names) > 1 else 'is that'}"
                floor = f"; {AT_FLOOR} holds for every part" * (AT_FLOOR in shown)
                yield f"{attack}: {which} of the part with the highest ASR{floor}"
        if names:
            which = f"{_listed(names)} {'are those' if len(names) > 1 else 'is that'}"
            yield from (f"{attack}: {which} of {whose}" for attack, whose in self._victims())
        yield from self._warnings()
        lines = ((g.names["defense"], lent(r)) for g in self.groups for r in g.used)
        yield from dict.fromkeys(f"{defense} {text}" for defense, text in lines if text)
        if "seconds" in shown:
            yield from self._mixed_machines(used)
        yield from self._mixed_code()
        yield from self._mixed_rows()
        yield from self._other_undefended(shown)
        yield from self.origins.lines([r for group in self.groups for r in group.records])

    def _victims(self) -> Iterator[tuple[str, str]]:
        """By attack, whose test images it should turn, in words, unless that is those of all other
        classes than the target, or not known."""
        for attack in self.poisoned:
            groups = (group for group in self.groups if group.names["attack"] == attack)
            records = (r for group in groups for r in group.used if not r.diagnostics.parts)
            if (found := next(filter(None, (r.classes for r in records)), None)) is None:
                continue
            if (whose := attacked(found)) != OTHER_CLASSES:
                own = ", which have several targets" * (found.target is None)
                yield attack, f"the triggered test images of {whose}{own}"

    def _unpaired(self, shown: Collection[str]) -> Iterator[str]:
        """What is over seeds that are not the same, because none is shared."""
        means, ratings = [], []
        for defense in self.defenses:
            shares = self.shares(defense, CA, self.poisoned)
            if len(shares) > 1 and not common_seeds(shares.values()):
                means.append(defense)
            ratings += [
                f"{defense} on {attack}"
                for attack in self._ratings(defense)
                if not common_seeds(
                    self.cells[name, attack].rates(ASR) for name in (defense, self.undefended)
                )
            ]
        if means and "mean" in shown:
            yield f"means are over all seeds, as the attacks share none: {', '.join(means)}"
        if ratings and "DER" in shown:
            cells = ", ".join(ratings)
            yield f"DER is over all seeds, as the undefended network shares none: {cells}"

    def _controls(self) -> str:
        """The P-ASR of networks without a backdoor, by attack, over the seeds that all P-ASRs of
        the attack share; over its own without a common one. The seeds follow if it has more."""
        found = []
        for attack in self.poisoned:
            group = self.cells.get((self.undefended, attack))
            if group is None or not (own := group.counts(CONTROL)):
                continue
            measured = (g.counts(REACTIVATED) for g in self.groups if g.names["attack"] == attack)
            seeds = common_seeds([own, *filter(None, measured)]) or sorted(own)
            text = f"{_percent([own[seed] for seed in seeds])} on {attack}"
            found.append(text + _some_seeds(group, seeds))
        return ", ".join(found)

    def _fewer_reactivated(self) -> str:
        """The cells whose P-ASR is a mean over some of the seeds of their ASR, and these seeds."""
        cells = ((group, list(group.counts(REACTIVATED))) for group in self._ordered)
        return ", ".join(
            f"{group.names['defense']} on {group.names['attack']}{some}"
            for group, seeds in cells
            if seeds and (some := _some_seeds(group, seeds))
        )

    def _missing_seeds(self) -> Iterator[str]:
        """One line per set of seeds that some cells have no record of, while others have one."""
        every = {record.cell.seed for group in self.groups for record in group.records}
        found: dict[tuple[int, ...], list[str]] = {}
        for group in self._ordered:
            if absent := sorted(every - {record.cell.seed for record in group.records}):
                place = f"{group.names['defense']} on {group.names['attack']}"
                found.setdefault(tuple(absent), []).append(place)
        for seeds, places in found.items():
            numbers = ", ".join(map(str, seeds))
            yield f"no record of seed{'s' * (len(seeds) > 1)} {numbers}: {', '.join(places)}"

    def _mixed_code(self) -> Iterator[str]:
        """One line per set of parts of the code that differ between the seeds of a cell."""
        found: dict[tuple[str, ...], list[str]] = {}
        for group in self._ordered:
            if parts := group.mixed_code:
                place = f"{group.names['defense']} on {group.names['attack']}"
                found.setdefault(parts, []).append(place)
        for parts, places in found.items():
            all_cells = 1 < len(places) == len(self.groups)
            cells = "all cells" if all_cells else ", ".join(places)
            yield f"seeds were run with different code ({', '.join(parts)}): {cells}"

    def _mixed_machines(self, used: Sequence[Record]) -> Iterator[str]:
        devices = sorted({str(d) for r in used if (d := r.provenance.device) is not None})
        if len(devices) > 1:
            yield f"seconds were measured on several devices: {', '.join(devices)}"
        threads = sorted({n for r in used if (n := r.provenance.threads) is not None})
        if len(threads) > 1:
            yield f"seconds were measured with {_listed(list(map(str, threads)))} threads"

    def _mixed_rows(self) -> Iterator[str]:
        """One line per set of parts of the code that differ between the attacks of a defense, but
        for the attack itself."""
        found: dict[tuple[str, ...], list[str]] = {}
        for defense in self.defenses:
            groups = [group for group in self._by_defense[defense] if group.used]
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
            rows = "all rows" if 1 < len(defenses) == len(self.defenses) else ", ".join(defenses)
            yield f"attacks were run with different code ({', '.join(parts)}): {rows}"

    def _other_undefended(self, shown: Collection[str]) -> Iterator[str]:
        """One line per set of what differs between cells and those of no defense that they are
        compared with."""
        timed = "seconds" in shown
        found: dict[str, list[str]] = {}
        for group in self._ordered:
            base = self.cells.get((self.undefended, group.names["attack"]))
            if base is None or base is group:
                continue
            seeds = common_seeds((group.by_seed, base.by_seed))
            parts = [part for s in seeds for part in unlike(group.by_seed[s], base.by_seed[s])]
            code = ", ".join(part for part in BEFORE if part in parts)
            words = [word for part, word in MACHINE.items() if part in parts and timed]
            if words := [*words, *([f"code ({code})"] if code else [])]:
                place = f"{group.names['defense']} on {group.names['attack']}"
                found.setdefault(_listed(words), []).append(place)
        for what, places in found.items():
            left = ", so seconds are not compared" * timed
            yield f"no defense was run with another {what}{left}: {', '.join(places)}"

    @cached_property
    def _ordered(self) -> list[Group]:
        """The groups in the order of the rows, then of the attacks."""
        places = ((defense, attack) for defense in self.defenses for attack in self.attacks)
        return [group for place in places if (group := self.cells.get(place))]

    def _warnings(self) -> Iterator[str]:
        """One line per distinct warning in the records of a defense, with the attacks on which it
        has it, unless these are all."""
        for defense in self.defenses:
            groups = [group for group in self._ordered if group.names["defense"] == defense]
            found: dict[str, list[str]] = {}
            for group in groups:
                texts = (text for record in group.used for text in record.diagnostics.warnings)
                for text in dict.fromkeys(texts):
                    found.setdefault(text, []).append(group.names["attack"])
            for text, attacks in found.items():
                where = "" if len(attacks) == len(groups) else f" on {_listed(attacks)}"
                yield f"{defense}{where}: {text}"

    def marked(
        self,
        footnotes: Mapping[str, tuple[str, str]],
        flagged: Callable[[Group], Mapping[str, Sequence[Record]]],
    ) -> Iterator[str]:
        """One line per mark: what it means and which cells have it.

        footnotes: by flag, its mark and meaning
        flagged: the records of a group by flag
        """
        groups = self._ordered
        flags = [flagged(group) for group in groups]
        total = sum(len(group.records) for group in groups)
        for flag, (mark, meaning) in footnotes.items():
            marked = [(group, f[flag]) for group, f in zip(groups, flags, strict=True) if flag in f]
            places = ", ".join(
                f"{group.names['defense']} on {group.names['attack']} ({_seeds(group, own)})"
                for group, own in marked
            )
            all_cells = len(groups) > 1 and sum(len(own) for _, own in marked) == total
            if places:
                yield f"{mark} {flag}, {meaning}: {'all cells' if all_cells else places}"


MEANS = {"CA": CA, "ASR": ASR, "R-Acc": RACC}
MACHINE = {"device": "device", "threads": "number of threads"}
"""Parts of `unlike` that decide about seconds only."""
CLEAN_COLUMNS = ("floor", "CA interval", "FPR")
"""The `EXTRA_COLUMNS` that exist without an attack."""
SHARES = {
    **MEANS,
    **{"floor": FLOOR, "CA interval": CA, "ASR interval": ASR},
    **{PASR: REACTIVATED, PASR_INTERVAL: REACTIVATED},
}


def _number(group: Group, name: str) -> float:
    """The share in [0, 1] that a column shows, or the lower end of its interval; nan for none."""
    if name in SHARES:
        return group.estimate(SHARES[name])[name.endswith(" interval")]
    return group.mean(lambda record: getattr(filtered(record), name.lower()))


def _interval(group: Group, name: str) -> str:
    """Both ends of an interval, in percent; empty if the column is not an interval."""
    if not name.endswith(" interval"):
        return ""
    _, low, high = group.estimate(SHARES[name])
    return MISSING if math.isnan(low) else f"{decimal(100 * low)} to {decimal(100 * high)}"


def _sort_key(title: str, numbers: Mapping[str, float]) -> float:
    """Sort key that puts the best number of a column first and a missing one last."""
    value = numbers.get(title, math.nan)
    if math.isnan(value):
        return math.inf
    better = title.removesuffix(" interval").split()[-1]
    return _rounded(-value if better in HIGHER_IS_BETTER else value)


def _listed(names: Sequence[str]) -> str:
    """Such as `ASR, R-Acc and floor`."""
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _asr(group: Group) -> float:
    """The mean that is ranked, a share in [0, 1]."""
    return _rounded(group.estimate(ASR)[0])


def _rounded(number: float) -> float:
    """A number to rank by: means of the same hits may differ in the last bits."""
    return round(number, 10)


def _share(group: Group, metric: str) -> str:
    return _percent(list(group.counts(metric).values()))


def _percent(counts: Sequence[Count]) -> str:
    """The mean over seeds with the half width of its interval."""
    return plus_minus(100 * mean(count.rate for count in counts), 100 * spread(counts))


def plus_minus(middle: float, half: float) -> str:
    """A number with the half width of its interval, unless that is nan."""
    return decimal(middle) if math.isnan(half) else f"{decimal(middle)} ± {decimal(half)}"


def markdown_table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], align: Sequence[str]
) -> str:
    """A table in Markdown; `align` is "left" or "right" for each column."""
    # tabulate pads columns beyond the width of its headers, so they are passed as a row.
    table = tabulate([headers, *rows], tablefmt="pipe", disable_numparse=True, colalign=align)
    rule, header, *others = table.splitlines()
    return "\n".join([header, rule, *others])


def decimal(value: float) -> str:
    """A number with one decimal, without the sign of a zero; `MISSING` for nan."""
    return MISSING if math.isnan(value) else f"{value:z.1f}"


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
