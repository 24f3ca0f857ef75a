"""A block of the leaderboard, defenses by attacks: order, ranks, numbers and marks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from bdbench.models.plugins.spec import Spec
from bdbench.records.beside import ALONE, Origins
from bdbench.records.count import Count
from bdbench.records.parts import RecordedSpec
from bdbench.records.record import REACTIVATED
from bdbench.tables.groups import (
    ASR,
    CA,
    FLOOR,
    RACC,
    Group,
    filtered,
    is_none,
    mean,
    name_order,
    seconds_total,
    trainings,
)
from bdbench.tables.numbers import MISSING, decimal, percent, plural
from bdbench.tables.statistics import average, separably_lower

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
MEANS = {"CA": CA, "ASR": ASR, "R-Acc": RACC}
CLEAN_COLUMNS = ("floor", "CA interval", "FPR")
"""The `EXTRA_COLUMNS` that exist without an attack."""
SHARES = {
    **MEANS,
    **{"floor": FLOOR, "CA interval": CA, "ASR interval": ASR},
    **{PASR: REACTIVATED, PASR_INTERVAL: REACTIVATED},
}
HIGHER_IS_BETTER = ("CA", "R-Acc", "DER", "TPR", "AUROC")
"""The last words of column titles, without "interval", that sort in descending order."""


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

    @cached_property
    def ordered(self) -> list[Group]:
        """The groups in the order of the rows, then of the attacks."""
        places = ((defense, attack) for defense in self.defenses for attack in self.attacks)
        return [group for place in places if (group := self.cells.get(place))]

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
        return {name: dict(self._numbers(name)) for name in self.by_defense}

    @cached_property
    def by_defense(self) -> dict[str, list[Group]]:
        found: dict[str, list[Group]] = {}
        for group in self.groups:
            found.setdefault(group.names["defense"], []).append(group)
        return found

    def sign(self, defense: str) -> str:
        """The mark of a row with records from other folders."""
        return self.origins.sign(r for group in self.by_defense[defense] for r in group.records)

    def _numbers(self, defense: str) -> Iterator[tuple[str, float]]:
        yield "clean", 100 * self._clean_fractions[defense]
        used = [group for group in self.by_defense[defense] if group.used]
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
            yield "DER", 100 * mean(self.ratings(defense).values())
        yield "seconds", mean(self._seconds(defense).values())
        # Seconds from two folders were measured at different times or on different machines.
        sides = self.by_defense[defense], self.by_defense.get(self.undefended, [])
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
        attack = group.names["attack"]
        if not self.has_baseline(attack):
            return True
        base = self.cells[self.undefended, attack]
        return _asr(group) < _asr(base) and separably_lower(group.counts(ASR), base.counts(ASR))

    def has_baseline(self, attack: str) -> bool:
        """Whether the ASR of no defense against an attack is known."""
        base = self.cells.get((self.undefended, attack))
        return base is not None and bool(base.counts(ASR))

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

    def ratings(self, defense: str) -> dict[str, float]:
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
            *([] if epochs is None else [f"{subject}{plural(epochs, 'epoch')}"]),
            *([str(Spec(recipe.name, altered))] if altered else []),
            *sorted(precisions),
            f"{seeds[0]} to " * (len(seeds) > 1) + plural(seeds[-1], "seed"),
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

    def has_numbers(self, attack: str, name: str) -> bool:
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

    def overall(self, defense: str, terse: bool = True) -> Iterator[str]:
        """The columns of a row that concern all attacks at once, as text.

        A mean over some of the attacks states how many.

        terse: unless the column before it does
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
                text += f" ({own[0]} of {own[1]})" * (own != (stated if terse else whole))
                stated = own
            yield text

    def _extents(self, defense: str) -> dict[str, tuple[int, int]]:
        """By title of a mean that says it, over how many attacks it is, and how many there are."""
        poisoned, every = len(self.poisoned), len(self.attacks)
        shares = {n: self.shares(defense, metric, self.poisoned) for n, metric in MEANS.items()}
        return {
            **{f"mean {name}": (len(found), poisoned) for name, found in shares.items()},
            "DER": (len(self.ratings(defense)), poisoned),
            "seconds": (len(self._seconds(defense)), every),
            "x none": (len(self._timed_pairs(defense)), every),
        }

    def _seconds(self, defense: str) -> dict[str, float]:
        """By attack, the mean training time of a defense."""
        groups = ((attack, self.cells.get((defense, attack))) for attack in self.attacks)
        return {
            attack: group.mean(seconds_total) for attack, group in groups if group and group.used
        }

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


def _number(group: Group, name: str) -> float:
    """The share in [0, 1] that a column shows, or the lower end of its interval; nan for none."""
    if name in SHARES:
        return group.estimate(SHARES[name])[name.endswith(" interval")]
    return group.mean(lambda record: getattr(filtered(record), name.lower()))


def _sort_key(title: str, numbers: Mapping[str, float]) -> float:
    """Sort key that puts the best number of a column first and a missing one last."""
    value = numbers.get(title, math.nan)
    if math.isnan(value):
        return math.inf
    better = title.removesuffix(" interval").split()[-1]
    return _rounded(-value if better in HIGHER_IS_BETTER else value)


def _asr(group: Group) -> float:
    """The mean that is ranked, a share in [0, 1]."""
    return _rounded(group.estimate(ASR)[0])


def _rounded(number: float) -> float:
    """A number to rank by: means of the same hits may differ in the last bits."""
    return round(number, 10)


def _share(group: Group, metric: str) -> str:
    return percent(list(group.counts(metric).values()))
