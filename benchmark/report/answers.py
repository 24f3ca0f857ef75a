"""Questions about a cell, answered in sentences from its numbers and those of no defense."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from bdbench.records.by_class import ByClass
from bdbench.records.count import Count
from bdbench.records.record import CONTROL, LATER_STAGES, REACTIVATED, STAGES, Record
from bdbench.tables.groups import (
    ASR,
    FLOOR,
    attacked,
    exceeds,
    filtered,
    filtered_parts,
    is_none,
    lent,
    retuned,
)
from bdbench.tables.numbers import decimal
from bdbench.tables.statistics import proportions_separable

WORKS = 0.5
"""The least ASR with no defense of an attack that works, see the flag `attack_failed`."""
NO_BACKDOOR = "There was hardly a backdoor to remove."
STAGE_WORDS = {
    "load": "loading the data",
    "poison": "poisoning the data",
    "prepare": "training the attack",
    "capture": "recording and compiling steps",
    "undefended": "training the undefended network",
    "fit": "training the defense",
    "evaluate": "evaluating the network",
    "reactivate": "trying to reactivate the backdoor",
}
UNTRUSTED = {
    "not_finite": "The network has values that are not finite: its predictions mean nothing.",
    "diverged": "The network is not finite or at chance: its predictions mean little.",
    "at_chance": "The network is no better than always predicting one class: a low attack success "
    "rate means nothing.",
}
"""Flags that make all other answers meaningless, as sentences."""


@dataclass(frozen=True)
class Answer:
    """A question about a cell, and the answer that the numbers give."""

    question: str
    text: str


@dataclass(frozen=True)
class Case:
    """A record and its baseline.

    baseline: the record of no defense against the same attack with the same seed; None if there is
        none, and for no defense itself
    """

    record: Record
    baseline: Record | None

    def answers(self) -> Iterator[Answer]:
        """The answers, the most important first. A failed cell has one."""
        if self.record.error:
            yield Answer("What happened?", self._failure())
            return
        for flag in self.record.flags:
            if flag in UNTRUSTED:
                yield Answer("Can it be trusted?", UNTRUSTED[flag])
        if self.attacked:
            yield Answer("Did the attack work?", self._attack())
            if self.defended and self._asr:
                yield Answer("Did the defense remove the backdoor?", self._defense(self._asr))
            yield from self._reactivation()
        if self.defended:
            yield from self._cost()
        yield from self._parts()
        yield from self._classes()
        if self.attacked:
            yield from self._destinations()
        yield from self._filter()
        for warning in self.record.diagnostics.warnings:
            yield Answer("Did the defense warn of anything?", warning)
        if short := lent(self.record):
            yield Answer("How many clean images did it have?", f"The defense {short}.")

    @cached_property
    def attacked(self) -> bool:
        """Whether the cell has an attack."""
        return not is_none(self.record.labels.attack)

    @cached_property
    def defended(self) -> bool:
        """Whether the cell has a defense."""
        return not is_none(self.record.labels.defense)

    @cached_property
    def classes(self) -> ByClass | None:
        """The record's numbers by class."""
        return self.record.classes

    @cached_property
    def classes_without(self) -> ByClass | None:
        """The baseline's numbers by class, if it has the same classes."""
        other = self.baseline.classes if self.baseline else None
        return other if other and self.classes and other.names == self.classes.names else None

    @property
    def _asr(self) -> Count | None:
        return self.record.attack_success_rate

    def without(self, metric: str) -> Count | None:
        """A count of the baseline; of the part that the record's is about."""
        return self._of_same_part(self.baseline, metric) if self.baseline else None

    def _of_same_part(self, other: Record, metric: str) -> Count | None:
        """A count of another record of the same attack; of the part that this record's is about."""
        part = other.parts.get(self.record.worst_part, {})
        return part.get(metric) or other.count(metric)

    @property
    def _any_classes(self) -> ByClass | None:
        """Numbers by class of the same attack: the record's, or else the baseline's."""
        return self.classes or (self.baseline.classes if self.baseline else None)

    @cached_property
    def _victims(self) -> str:
        """The test images that the trigger should turn, in words."""
        found = self._any_classes
        if not found:
            return "the test images that it should turn"
        return f"the test images of {attacked(found, quote='`')}"

    @cached_property
    def _target(self) -> int | None:
        """The label that the trigger should cause; None for several, and where it is unknown."""
        found = self._any_classes
        return found.target if found else None

    def _failure(self) -> str:
        spent, wall = self.record.measured.seconds, self.record.measured.wall
        # Evaluation comes last, and with curves also in between.
        *stages, last = STAGES
        reached = [stage for stage in stages if spent[stage]]
        words = [STAGE_WORDS[stage] for stage in (*reached[-1:], *[last] * bool(spent[last]))]
        if any(spent.as_dict().get(stage) for stage in LATER_STAGES):
            words = [STAGE_WORDS[LATER_STAGES[-1]]]
        where = f" The last stage reached is {' or '.join(words)}." if words else ""
        name = self.record.error.type if self.record.error else ""
        after = "" if wall is None else f" after {wall:,.0f} s"
        return f"The cell failed{after}: {name}.{where} The reason is below."

    def _attack(self) -> str:
        undefended = self.baseline if self.defended else self.record
        found = undefended and self._of_same_part(undefended, ASR)
        if not undefended or not found:
            return (
                "Unknown: these results have no cell with the defense `none`, this attack and this "
                "seed."
            )
        start = "With no defense," if self.defended else "This cell has no defense, and"
        images = self._victims
        floor = self._of_same_part(undefended, FLOOR)
        if floor and found.rate >= WORKS and not exceeds(found, floor):
            return (
                f"No. {start} {_of(found, images)} get the target label with the trigger, and "
                f"{_percent(floor)} without it: the two are not separable."
            )
        text = f"{start} the trigger works on {_of(found, images)}."
        if floor:
            text += f" Without the trigger, {_percent(floor)} of them get the target label."
        return f"{'Yes' if found.rate >= WORKS else 'Hardly'}. {text}"

    def _defense(self, asr: Count) -> str:
        before, floor = self.without(ASR), self.record.asr_floor
        change = f"goes from {_percent(before)} to" if before else "is"
        without = self.without(FLOOR)
        worked = not before or (before.rate >= WORKS and (not without or exceeds(before, without)))
        text = f"The attack success rate {change} {_percent(asr)}"
        if floor and not exceeds(asr, floor):
            relation = "not above" if asr.rate <= floor.rate else "not separable from"
            share = f"the {_percent(floor)} of the same images that get the target label"
            text += f", {relation} {share} without the trigger."
            others = ", ".join(self._parts_above_floor())
            doubts = list(self._doubts(before))
            verdict = "Not clearly." if doubts else "Yes, as far as the test images tell."
            verdict = "Not of every attack." if others else verdict
            others = f" Those of other attacks are above their floors: {others}." * bool(others)
            doubt = "".join(f" {each}" for each in doubts)
            return f"{verdict if worked else NO_BACKDOOR} {text}{others}{doubt}"
        above = f" Without the trigger it is {_percent(floor)}." if floor else ""
        if before and asr.rate < before.rate and proportions_separable(asr, before):
            verdict = "Mostly, but not completely." if asr.rate < before.rate / 2 else "In part."
        else:
            verdict = "No." if before else "Not completely."
        return f"{verdict if worked else NO_BACKDOOR} {text}.{above}"

    def _doubts(self, before: Count | None) -> Iterator[str]:
        """Why an ASR at its floor does not show that the backdoor is gone.

        before: the ASR without a defense
        """
        if any(flag in UNTRUSTED for flag in self.record.flags):
            yield "But its predictions are not to be trusted, see above."
        if not before:
            yield "How high it is without a defense is unknown."
        if self._target is not None and self.classes and self.classes_without:
            own, usual = (c.own(self._target) for c in (self.classes, self.classes_without))
            if own and usual and own.rate < usual.rate / 2 and proportions_separable(own, usual):
                name = f"`{self.classes.names[self._target]}`"
                yield (
                    f"But the network hardly answers {name} any more, so a low rate says little: "
                    f"it recognises {_percent(own)} of the clean test images of that class, "
                    f"{_percent(usual)} with no defense."
                )
        after, control = self._reactivated()
        if after and control and self._asr:
            more = after.rate > max(control.rate, self._asr.rate)
            if more and all(proportions_separable(after, c) for c in (control, self._asr)):
                yield "But fine-tuning brings a part of it back, see below."

    def _parts_above_floor(self) -> Iterator[str]:
        """The parts of the attack whose ASR is above their floor, with both."""
        for name, part in self.record.parts.items():
            asr, floor = part[ASR], part[FLOOR]
            if exceeds(asr, floor):
                yield f"`{name}` {_percent(asr)}, without the trigger {_percent(floor)}"

    def _parts(self) -> Iterator[Answer]:
        found = self.record.parts
        if found:
            rates = [f"`{name}` {_percent(found[name]['attack_success_rate'])}" for name in found]
            text = f"{', '.join(rates)}. All other answers are about the worst of them, "
            text += f"`{self.record.worst_part}`, the one with the highest."
            yield Answer("What is the success rate of each attack?", text)

    def _reactivation(self) -> Iterator[Answer]:
        (after, control), before = self._reactivated(), self._asr
        if not after or not before:
            return
        undefended = self.baseline if self.defended else self.record
        images = retuned(self.record) or "2 % of the clean training images and five poisoned ones"
        text = f"After fine-tuning on {images}, the "
        text += f"attack success rate goes from {_percent(before)} to {_percent(after)}."
        if control:
            text += f" That of a network trained on clean images is {_percent(control)} then."
        each = []
        for part in self.record.parts:
            if own := self.record.count(f"{REACTIVATED}_{part}"):
                taught = undefended and undefended.count(f"{CONTROL}_{part}")
                beside = f" (clean network {_percent(taught)})" if taught else ""
                each.append(f"`{part}` {_percent(own)}{beside}")
        if each:
            text += f" By attack: {', '.join(each)}."
        yield Answer("Does the backdoor come back?", text)

    def _reactivated(self) -> tuple[Count | None, Count | None]:
        """P-ASR, and that of a network trained on clean images."""
        undefended = self.baseline if self.defended else self.record
        return self.record.count(REACTIVATED), undefended.count(CONTROL) if undefended else None

    def _cost(self) -> Iterator[Answer]:
        after = self.record.clean_accuracy
        before = self.baseline and self.baseline.clean_accuracy
        if not after or not before:
            return
        points = 100 * (after.rate - before.rate)
        if decimal(points) == decimal(0) or _percent(after) == _percent(before):
            text = f"Clean accuracy stays at {_percent(after)}."
            yield Answer("What did the defense cost?", text)
            return
        separable = proportions_separable(after, before)
        verb = "drops" if points < 0 else "rises"
        text = f"Clean accuracy {verb} by {abs(points):.1f} points, from {_percent(before)} to "
        text += f"{_percent(after)}" + ("." if separable else ", not separable at 95 %.")
        yield Answer("What did the defense cost?", text)

    def _classes(self) -> Iterator[Answer]:
        if not self.classes:
            return
        own = {n: c for n in range(len(self.classes.names)) if (c := self.classes.own(n))}
        name, without = self.classes.names, self.classes_without
        changes = {
            n: c.rate - before.rate
            for n, c in own.items()
            if without and (before := without.own(n))
        }
        if changes:
            worst = min(changes, key=lambda n: (changes[n], n))
            before = without.own(worst) if without else None
            if changes[worst] >= 0 or not before:
                yield Answer("Which class suffers most?", "No class loses accuracy.")
                return
            text = f"`{name[worst]}`: {_percent(own[worst])} of its clean test images are correct, "
            yield Answer("Which class suffers most?", f"{text}{_percent(before)} with no defense.")
        elif own:
            worst, best = (pick(own, key=lambda n: own[n].rate) for pick in (min, max))
            text = f"`{name[worst]}`: {_of(own[worst], 'its clean test images')} are correct."
            text += f" The best is `{name[best]}` with {_percent(own[best])}."
            yield Answer("Which class is worst?", text)

    def _destinations(self) -> Iterator[Answer]:
        found = self.classes
        if not found or not found.victims:
            return
        asr, of = found.sums()["attack_success_rate"]
        kept = found.sums()["robust_accuracy"][0]
        one = self._target
        target = "the target of their class" if one is None else f"`{found.names[one]}`"
        counts = [f"{asr:,} are classified as {target}", f"{kept:,} as their true class"]
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
            counts.append(
                f"{sum(rest.values()):,} as another class, most often `{found.names[most]}` "
                f"({rest[most]:,})"
            )
        text = f"Of {of:,} triggered images, {', '.join(counts)}."
        yield Answer("How are triggered images classified?", text)

    def _filter(self) -> Iterator[Answer]:
        tpr, fpr, auroc = filtered(self.record)
        if not math.isnan(tpr):
            text = f"It flags {decimal(100 * tpr)} % of the poisoned training images"
            parts = filtered_parts(self.record)
            shares = [f"{decimal(100 * each.tpr)} % of `{name}`" for name, each in parts.items()]
            text += f" ({', '.join(shares)})" if shares else ""
            if not math.isnan(fpr):
                text += f" and {decimal(100 * fpr)} % of the clean ones"
            if not math.isnan(auroc):
                text += f"; its scores have an AUROC of {auroc:.3f}"
            yield Answer("Did it find the poisoned images?", f"{text}.")
        elif not math.isnan(fpr):
            text = f"It flags {decimal(100 * fpr)} % of the training images, and none is poisoned."
            yield Answer("Did it flag clean images?", text)


def _percent(count: Count) -> str:
    return f"{decimal(100 * count.rate)} %"


def _of(count: Count, what: str) -> str:
    return f"{_percent(count)} of {what} ({count.hits:,} of {count.of:,})"
