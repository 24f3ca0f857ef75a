"""What happened in a cell, in sentences made from its numbers and those of no defense."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from bdbench.records.by_class import ByClass
from bdbench.records.count import Count
from bdbench.records.record import STAGES, Record
from bdbench.tables.groups import filtered, is_none, lent
from bdbench.tables.leaderboard import decimal
from bdbench.tables.statistics import proportions_separable

WORKS = 0.5
"""ASR with no defense from which on an attack has worked, see the flag `attack_failed`."""
FEEBLE = "There was hardly a backdoor to remove."
STAGE_WORDS = {
    "load": "reading the data",
    "poison": "poisoning them",
    "prepare": "training the attack",
    "capture": "recording and compiling steps",
    "undefended": "training without defense",
    "fit": "training the defense",
    "evaluate": "testing",
}
UNTRUSTED = {
    "not_finite": "The network holds numbers that are not finite, so its answers mean nothing.",
    "diverged": "The network is not finite or at chance, so its answers mean little.",
    "at_chance": "The network is no better than always guessing one class: a low attack success "
    "rate is no merit here.",
}
"""Flags that take all other sentences their meaning."""


@dataclass(frozen=True)
class Answer:
    """A question that a reader has, and what the numbers say."""

    question: str
    text: str


@dataclass(frozen=True)
class Case:
    """A record, and that of no defense against the same attack with the same seed, if there is one.

    baseline: None for the record of no defense itself, too
    """

    record: Record
    baseline: Record | None

    def answers(self) -> Iterator[Answer]:
        """The most important first. A cell that failed has but one."""
        if self.record.error:
            yield Answer("What happened?", self._failure())
            return
        for flag in self.record.flags:
            if flag in UNTRUSTED:
                yield Answer("Can it be trusted?", UNTRUSTED[flag])
        if self.attacked:
            yield Answer("Did the attack work?", self._attack())
            if self.defended and self._asr:
                yield Answer("Did the defense remove it?", self._defense(self._asr))
        if self.defended:
            yield from self._cost()
        yield from self._classes()
        if self.attacked:
            yield from self._destinations()
        yield from self._filter()
        for warning in _texts(self.record.diagnostics.get("warnings")):
            yield Answer("What did the defense warn of?", warning)
        if short := lent(self.record):
            yield Answer("What was it given?", f"The defense {short}.")

    @cached_property
    def attacked(self) -> bool:
        """Whether there is an attack."""
        return not is_none(self.record.labels["attack"])

    @cached_property
    def defended(self) -> bool:
        """Whether there is a defense."""
        return not is_none(self.record.labels["defense"])

    @cached_property
    def classes(self) -> ByClass | None:
        """Of the record."""
        return ByClass.of(self.record.classes)

    @cached_property
    def classes_without(self) -> ByClass | None:
        """Of no defense, where its classes are the same."""
        other = ByClass.of(self.baseline.classes) if self.baseline else None
        return other if other and self.classes and other.names == self.classes.names else None

    @property
    def _asr(self) -> Count | None:
        return self.record.attack_success_rate

    def _failure(self) -> str:
        spent = self.record.measured["seconds"]
        begun = [stage for stage in STAGES[:-1] if spent.get(stage)]
        where = f" It had come to {STAGE_WORDS[begun[-1]]}." if begun else ""
        error = self.record.error or {}
        total = math.fsum(spent.values())
        return f"The cell failed after {total:,.0f} s: {error['type']}.{where} The reason is below."

    def _attack(self) -> str:
        bare = self.baseline if self.defended else self.record
        found = bare and bare.attack_success_rate
        if not found:
            return (
                "Not known: these results have no cell with the defense `none`, this attack and "
                "this seed."
            )
        without = "With no defense" if self.defended else "There is no defense here, and"
        said = f"{without} the trigger turns {_of(found, 'the test images of other classes')}."
        floor = bare.asr_floor if bare else None
        if floor:
            said += f" Without the trigger, {_percent(floor)} of them get that label."
        return f"{'Yes' if found.rate >= WORKS else 'Hardly'}. {said}"

    def _defense(self, asr: Count) -> str:
        before = self.baseline and self.baseline.attack_success_rate
        floor = self.record.asr_floor
        fell = f"from {_percent(before)} to {_percent(asr)}" if before else f"at {_percent(asr)}"
        moved = "goes" if before else "is"
        worked = not before or before.rate >= WORKS
        said = f"The attack success rate {moved} {fell}"
        if floor and (asr.rate <= floor.rate or not proportions_separable(floor, asr)):
            place = "not above" if asr.rate <= floor.rate else "which cannot be told from"
            share = f"the {_percent(floor)} of the same images that get that label"
            said += f", {place} {share} without the trigger"
            found = "Yes, no backdoor can be found."
            return f"{found if worked else FEEBLE} {said}."
        above = f" Without the trigger it is {_percent(floor)}." if floor else ""
        if before and asr.rate < before.rate and proportions_separable(asr, before):
            word = "Mostly, not wholly" if asr.rate < before.rate / 2 else "In part"
            return f"{f'{word}.' if worked else FEEBLE} {said}.{above}"
        found = "No." if before else "Not wholly."
        return f"{found if worked else FEEBLE} {said}.{above}"

    def _cost(self) -> Iterator[Answer]:
        here = self.record.clean_accuracy
        before = self.baseline and self.baseline.clean_accuracy
        if not here or not before:
            return
        points = 100 * (here.rate - before.rate)
        apart = proportions_separable(here, before)
        word = "falls" if points < 0 else "rises"
        text = f"Clean accuracy {word} by {abs(points):.1f} points, from {_percent(before)} to "
        text += f"{_percent(here)}" + ("." if apart else ", which may be chance.")
        yield Answer("What did it cost?", text)

    def _classes(self) -> Iterator[Answer]:
        if not self.classes:
            return
        own = {n: c for n in range(len(self.classes.names)) if (c := self.classes.own(n))}
        name, without = self.classes.names, self.classes_without
        fallen = {
            n: c.rate - before.rate
            for n, c in own.items()
            if without and (before := without.own(n))
        }
        if fallen:
            worst = min(fallen, key=lambda n: (fallen[n], n))
            before = without.own(worst) if without else None
            if fallen[worst] >= 0 or not before:
                yield Answer("Which class suffered most?", "None: no class lost accuracy.")
                return
            text = f"`{name[worst]}`: of its clean test images {_percent(own[worst])} are right, "
            yield Answer("Which class suffered most?", f"{text}{_percent(before)} with no defense.")
        elif own:
            worst, best = (pick(own, key=lambda n: own[n].rate) for pick in (min, max))
            text = f"`{name[worst]}`: {_of(own[worst], 'its clean test images')} are right."
            text += f" The best is `{name[best]}`, {_percent(own[best])}."
            yield Answer("Which class is worst?", text)

    def _destinations(self) -> Iterator[Answer]:
        found = self.classes
        if not found or not found.victims:
            return
        asr, of = found.sums()["attack_success_rate"]
        kept = found.sums()["robust_accuracy"][0]
        goals = {found.goals[label] for label in found.victims}
        aim = f"`{found.names[min(goals)]}`" if len(goals) == 1 else "what the attack wants"
        text = f"Of {of:,} triggered images of other classes {asr:,} are called {aim}, and "
        text += f"{kept:,} keep their own label."
        rest = {
            to: count
            for to, count in (
                (to, sum(found.sent(n, to) for n in found.victims if to not in (n, found.goals[n])))
                for to in found.destinations()
            )
            if count
        }
        if rest:
            most = max(rest, key=lambda to: (rest[to], -to))
            others = f"{sum(rest.values()):,} get another label, most often"
            text += f" {others} `{found.names[most]}` ({rest[most]:,})."
        yield Answer("Where do triggered images go?", text)

    def _filter(self) -> Iterator[Answer]:
        tpr, fpr = filtered(self.record)
        if not math.isnan(tpr):
            text = f"It calls {decimal(100 * tpr)} % of the poisoned training images poisoned"
            if not math.isnan(fpr):
                text += f", and {decimal(100 * fpr)} % of the clean ones"
            yield Answer("Did it find the poisoned images?", f"{text}.")


def _percent(count: Count) -> str:
    return f"{decimal(100 * count.rate)} %"


def _of(count: Count, what: str) -> str:
    return f"{_percent(count)} of {what} ({count.hits:,} of {count.of:,})"


def _texts(value: object) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []
