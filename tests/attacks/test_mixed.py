"""Several attacks at once: disjoint parts, their metrics, and what cannot be mixed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import pyarrow.parquet as pq
import pytest
import torch
from builders import FirstPixel, first_pixels
from torch import Tensor

from bdbench.attacks.base import Attack, Poisoned, prepared
from bdbench.attacks.mixed import Mixed, exchanged
from bdbench.attacks.poison import apply, dirty_label
from bdbench.attacks.registry import attacks
from bdbench.cells.cell import Cell, cell, factories
from bdbench.cells.grid import cells
from bdbench.cells.suites import SUITES
from bdbench.cli import main
from bdbench.contract.promises import resolve
from bdbench.defenses.base import Context, Defense
from bdbench.defenses.registry import defenses
from bdbench.machine.clock import Stopwatch
from bdbench.machine.terminal import Terminal
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.observer import observed_by
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.registry import models
from bdbench.models.rng import stream
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.loop import predict, train
from bdbench.models.training.recipe import Recipe
from bdbench.records.count import Count
from bdbench.records.files import write
from bdbench.records.record import decode, encode
from bdbench.report.answers import Case
from bdbench.report.charts import charts
from bdbench.running.export import Export
from bdbench.storage.cache import Cache
from bdbench.tables.block import LeaderboardBlock
from bdbench.tables.export import frame
from bdbench.tables.footnotes import footnotes
from bdbench.tables.groups import collect, filtered, filtered_parts
from bdbench.trial import provenance
from bdbench.trial.evaluation import answers, diagnose_parts, flags, worst
from bdbench.trial.harness import Harness
from bdbench.trial.monitor import TrainingMonitor
from bdbench.trial.poisoned import PoisonedData, PoisonedPart
from bdbench.trial.workspace import Workspace

CPU = torch.device("cpu")
TINY = "toy(train_images=120, test_images=80, image_size=16)"
RECIPE = Recipe(epochs=1, batch_size=32, learning_rate=0.02, updates=0.005)
SELECTING = [
    n for n in attacks.names() if n not in ("none", "mixed") and not attacks.build(n).trains
]
"""Attacks that can be mixed without training."""


def noise(count: int = 430, size: int = 8) -> ImageSet:
    shape = (count, 3, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream(0, "noise"))
    return ImageSet(images, torch.arange(count) % 10, 10)


def poison_stream() -> torch.Generator:
    return stream(0, "poison")


def mix(*texts: str) -> Mixed:
    return Mixed(attacks=texts)


def tiny(attack: str, defense: str = "none") -> Cell:
    return cell(TINY, "wrn16_1", attack, defense, RECIPE, 0)


@dataclass(frozen=True)
class Odd(Attack):
    """Poisons odd classes only, by a rule of its own, and covers images after it has stamped."""

    poisoning_rate: float = 0.1

    def trigger(self, images: Tensor) -> Tensor:
        return 255 - images

    def training_trigger(self, images: Tensor, rng: torch.Generator) -> Tensor:
        torch.rand(5, generator=rng)
        return self.trigger(images)

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        odd = torch.nonzero(clean.labels % 2 == 1).flatten()
        odd = odd[torch.randperm(len(odd), generator=rng)]
        count = round(self.poisoning_rate * len(clean))
        made = apply(self, clean, odd[:count], odd[:0], rng)
        left = odd[count:][torch.randperm(len(odd) - count, generator=rng)][:7]
        other = apply(self, made.train, odd[:0], left, rng)
        return Poisoned(other.train, made.mask, other.cover)


@dataclass(frozen=True)
class Bright(Attack):
    """Selects images by their pixels: the brightest."""

    def trigger(self, images: Tensor) -> Tensor:
        return images // 2

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        order = clean.images.float().mean((1, 2, 3)).argsort(descending=True, stable=True)
        return apply(self, clean, order[: round(self.poisoning_rate * len(clean))], order[:0], rng)


@dataclass(frozen=True)
class Remembering(Attack):
    """Must be prepared on the images that it poisons, as one that optimises noise for each."""

    seen: tuple[Tensor, int] | None = prepared()

    @property
    def trains(self) -> bool:
        return True

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        PREPARED.append(context.seed)
        mask = dirty_label(self, clean, rng).mask
        return replace(self, seen=(clean.images[mask], context.seed))

    def trigger(self, images: Tensor) -> Tensor:
        return 255 - images

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        if self.seen is None:
            raise RuntimeError("not prepared")
        made = dirty_label(self, clean, rng)
        assert torch.equal(clean.images[made.mask], self.seen[0])
        return replace(made, facts={"seen": float(len(self.seen[0]))})


@dataclass(frozen=True)
class Waiting(Attack):
    """Has a trigger once prepared, and selects without it."""

    level: int | None = prepared()

    @property
    def trains(self) -> bool:
        return True

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        PREPARED.append(context.seed)
        return replace(self, level=7)

    def trigger(self, images: Tensor) -> Tensor:
        assert self.level is not None
        return torch.full_like(images, self.level)

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        return dirty_label(self, clean, rng)


@dataclass(frozen=True)
class Schooled(Waiting):
    """Trains a network for its trigger."""

    def cost(self, recipe: Recipe, images: int) -> float:
        return 3.0 * recipe.epochs

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        train(context.build(), clean, context.recipe, context.rng("classifier"))
        return super().prepare(clean, context, rng)


PREPARED: list[int] = []
"""Seeds with which attacks were prepared."""


@pytest.fixture
def plugins(unregistered: None) -> None:
    PREPARED.clear()
    for kind in (Odd, Bright, Remembering, Waiting, Schooled):
        attacks.register(kind.__name__.lower())(kind)


@pytest.mark.parametrize("name", [*SELECTING, "odd"])
@pytest.mark.parametrize(
    "others", [("badnets(poisoning_rate=0.6)",), ("sig", "wanet(cover_rate=0.3)")]
)
def test_parts_are_disjoint_and_have_the_counts_of_the_attack_alone(
    name: str, others: tuple[str, ...], plugins: None
) -> None:
    """Some would surely overlap: of 43 images that one attack selects, another has 0.6."""
    clean = noise(size=16)
    before = clean.images.clone(), clean.labels.clone()
    made = mix(*others, name).poison(clean, poison_stream())
    names = [f"{text.partition('(')[0]}_{n}" for n, text in enumerate((*others, name), start=1)]
    assert list(made.masks) == list(made.covers) == names
    owners = torch.stack([*made.masks.values(), *made.covers.values()]).int().sum(0)
    assert owners.max() == 1
    assert torch.equal(owners.bool(), made.mask | made.cover)
    for part, text in zip(names, (*others, name), strict=True):
        attack = attacks.build(text)
        alone = attack.poison(clean, poison_stream())
        for mask, single in ((made.masks[part], alone.mask), (made.covers[part], alone.cover)):
            assert int(mask.sum()) == int(single.sum())
        goal = attack.goal(clean.labels, 10)[made.masks[part]]
        assert torch.equal(made.train.labels[made.masks[part]], goal)
    left = ~(made.mask | made.cover)
    assert torch.equal(made.train.images[left], clean.images[left])
    assert torch.equal(made.train.labels[~made.mask], clean.labels[~made.mask])
    assert torch.equal(clean.images, before[0]), "the clean images were written"
    assert torch.equal(clean.labels, before[1]), "the clean labels were written"
    again = mix(*others, name).poison(clean, poison_stream())
    assert torch.equal(made.train.images, again.train.images)
    other = mix(*others, name).poison(clean, stream(1, "poison"))
    assert not torch.equal(made.mask, other.mask)


def test_one_attack_of_each_kind_against_a_slow_reference() -> None:
    """Image by image: who owns it, what its pixels are, and what its label is."""
    texts = ("badnets", "sig(target=2, poisoning_rate=0.5)", "tact(poisoning_rate=0.05, target=3)")
    clean, made = noise(200, 16), mix(*texts).poison(noise(200, 16), poison_stream())
    owners = {"poisoned": [0, 0, 0], "cover": [0, 0, 0]}
    for i in range(200):
        image, label = clean.images[i : i + 1], int(clean.labels[i])
        expected, wanted = image, label
        for n, text in enumerate(texts):
            attack, name = attacks.build(text), f"{text.partition('(')[0]}_{n + 1}"
            if made.masks[name][i]:
                owners["poisoned"][n] += 1
                expected, wanted = attack.trigger(image), attack.target
                assert n != 1 or label == 2, "clean label"
                assert n != 2 or label == 1, "source class"
            if made.covers[name][i]:
                owners["cover"][n] += 1
                expected = attack.trigger(image)
                assert n == 2
                assert label in (5, 7)
        assert torch.equal(made.train.images[i : i + 1], expected)
        assert int(made.train.labels[i]) == wanted
    assert owners == {"poisoned": [20, 10, 10], "cover": [0, 0, 4]}


def test_images_are_exchanged_within_their_class_first() -> None:
    """Places 0 and 1 are selected and taken: 0 swaps with 3, the only free image of its class, and
    1, whose class has none, with one of another class."""
    labels = torch.tensor([0, 1, 1, 0, 2])
    rows = torch.tensor([True, True, False, False, False])
    taken = torch.tensor([True, True, True, False, False])
    found = exchanged(torch.arange(5), rows, taken, labels, stream(0, "x"))
    assert found.tolist() == [3, 4, 2, 0, 1]
    assert not (rows & taken[found]).any()


def test_an_attack_that_selects_by_pixels_must_be_named_first(plugins: None) -> None:
    clean = noise()
    made = mix("bright", "badnets(poisoning_rate=0.5)").poison(clean, poison_stream())
    brightest = clean.images.float().mean((1, 2, 3)).topk(43).indices
    assert made.masks["bright_1"].nonzero().flatten().tolist() == sorted(brightest.tolist())
    assert int(made.mask.sum()) == 43 + 215
    with pytest.raises(InvalidInput, match="bright_2 selects the same images in whatever order"):
        mix("badnets(poisoning_rate=0.5)", "bright").poison(clean, poison_stream())


def test_attacks_can_share_all_images() -> None:
    made = mix("badnets(poisoning_rate=0.5)", "blend(poisoning_rate=0.5)").poison(
        noise(100), poison_stream()
    )
    assert made.mask.all()
    assert [int(mask.sum()) for mask in made.masks.values()] == [50, 50]


def context(seed: int = 0) -> TrainingContext:
    return TrainingContext(RECIPE, CPU, partial(models.build("wrn16_1").build, 10, 8), seed)


def test_a_part_is_prepared_once_on_the_images_that_it_poisons(plugins: None) -> None:
    """The one that cannot say before what it will poison comes first, and its numbers go along."""
    clean, mixture = noise(), mix("badnets(poisoning_rate=0.5)", "waiting", "remembering")
    assert mixture.trains
    ready = mixture.prepare(clean, context(), poison_stream())
    assert len(PREPARED) == len({*PREPARED, 0}) - 1 == 2, "each with a seed of its own"
    made = ready.poison(clean, poison_stream())
    assert [int(mask.sum()) for mask in made.masks.values()] == [215, 43, 43]
    assert torch.stack([*made.masks.values()]).int().sum(0).max() == 1
    assert bool((made.train.images[made.masks["waiting_2"]] == 7).all())
    mask = made.masks["remembering_3"]
    assert torch.equal(made.train.images[mask], 255 - clean.images[mask])
    assert made.facts == {"remembering_3_seen": 43.0}
    assert ready.parts["waiting_2"].trigger(clean.images[:1]).unique().tolist() == [7]


def test_two_that_cannot_say_it_are_prepared_until_they_are_disjoint(plugins: None) -> None:
    clean, mixture = noise(), mix("remembering(poisoning_rate=0.4)", "remembering(target=1)")
    made = mixture.prepare(clean, context(), poison_stream()).poison(clean, poison_stream())
    assert [int(mask.sum()) for mask in made.masks.values()] == [172, 43]
    assert not (made.masks["remembering_1"] & made.masks["remembering_2"]).any()
    assert len(PREPARED) == 3


def test_the_cost_is_that_of_all_parts() -> None:
    recipe = Recipe(epochs=30)
    texts = ("dynamic", "badnets", "adaptive(attack='blend')")
    each = [attacks.build(text).cost(recipe, 50_000) for text in texts]
    assert mix(*texts).cost(recipe, 50_000) == sum(each) > 0
    assert mix("badnets", "blend").cost(recipe, 50_000) == 0


def test_the_passes_of_all_parts_are_those_expected(plugins: None) -> None:
    clean, mixture = noise(60), mix("schooled(poisoning_rate=0.5)", "badnets", "schooled(target=1)")
    counted = TrainingMonitor(lambda work: None, Stopwatch(CPU))
    with observed_by(counted):
        mixture.prepare(clean, context(), poison_stream())
    assert counted.work / len(clean) == mixture.cost(RECIPE, 60) == 6 * RECIPE.epochs


def test_equal_settings_have_equal_keys_and_a_part_counts_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = tiny("mixed(attacks=['badnets(target=0)', 'sig(target=2, poisoning_rate=0.5)'])")
    two = tiny("mixed(attacks=('badnets', 'sig(poisoning_rate=0.5,target=2)'))")
    label = "mixed(attacks=('badnets', 'sig(poisoning_rate=0.5, target=2)'))"
    assert one == two
    assert one.labels["attack"] == label
    assert "pattern='grid'" in one.specs["attack"]
    assert resolve("mixed(attacks=['badnets()', 'sig(target=2, poisoning_rate=0.5)'])") == [
        ("attack", label)
    ]
    kinds = [each.__name__ for each in factories("attack", one.attack)]
    assert kinds == ["Mixed", "BadNets", "Sig"]
    assert one.versions["attack"] == [1, 1, 1]
    assert provenance.sources(one)["attack"] != provenance.sources(tiny("mixed"))["attack"]
    key = one.key
    monkeypatch.setattr(attacks.factory("sig"), "version", 2, raising=False)
    assert tiny(label).key != key
    # A list of attacks is one mixture; a list of lists is a sweep.
    assert len(attacks.swept("mixed(attacks=[['badnets', 'sig'], ['badnets', 'blend']])")) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mixed(attacks=[])", "mixed needs at least two attacks, got 0"),
        ("mixed(attacks=['badnets'])", "mixed needs at least two attacks, got 1"),
        ("mixed(attacks=['badnets', 'mixed'])", "mixed cannot contain mixed: name all"),
        ("mixed(attacks=['badnets', 'none'])", "mixed cannot contain none, which poisons nothing"),
        ("mixed(attacks=['badnets', 'blnd'])", "unknown attack 'blnd'; did you mean 'blend'?"),
        ("mixed(attacks=['badnets', 'sig(delt=1)'])", "attack 'sig' has no field 'delt'"),
        ("mixed(attacks=['badnets', 'sig(delta=0)'])", "delta must be in"),
        (
            "mixed(attacks='badnets')",
            "attacks of attack 'mixed' must be tuple[str, ...], got 'badnets'; write ['badnets']",
        ),
        ("mixed(target=1)", "attack 'mixed' has no field 'target'"),
        ("mixed(attacks=['badnets', 'blend(target=10)'])", "target of blend_2 must be a class of"),
        ("adaptive(attack='mixed')", "adaptive cannot harden mixed: name it inside"),
    ],
)
def test_what_cannot_be_mixed_is_one_line(text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        tiny(text)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidInput):
        cells(replace(SUITES["quick"], attacks=(text,)), "fp32")


def test_in_python_parts_are_specs_or_attacks() -> None:
    made = Mixed(attacks=(attacks.build("badnets"), "blend(target=1)"))  # type: ignore[arg-type]
    assert made == mix("badnets", "blend(target=1)")
    with pytest.raises(InvalidInput, match="needs at least two attacks, got 1"):
        Mixed(attacks="badnets")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="attack must be a spec or an Attack, got 3"):
        Mixed(attacks=("badnets", 3))  # type: ignore[arg-type]


def test_the_same_attack_and_target_may_occur_twice() -> None:
    made = mix("badnets", "badnets").poison(noise(), poison_stream())
    assert [int(mask.sum()) for mask in made.masks.values()] == [43, 43]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            ("badnets(poisoning_rate=0.5)", "blend(poisoning_rate=0.6)"),
            "mixed: blend_2 changes 60 images, but the other parts leave 50 of 100",
        ),
        (("sig(poisoning_rate=0.6)", "sig(poisoning_rate=0.6)"), "mixed: sig_2 needs 6 images of"),
        (("tact(poisoning_rate=0.06)",) * 2, "mixed: tact_2 needs 6 images of class 1, but the"),
    ],
)
def test_parts_that_cannot_be_disjoint_are_refused(texts: tuple[str, ...], message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        mix(*texts).poison(noise(100), poison_stream())
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_the_command_says_why_and_exits_with_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked = ["run", "quick", "--defense", "none", "--results", str(tmp_path), "--attack"]
    assert main([*asked, "mixed(attacks=['badnets', 'none'])"]) == 2
    assert "mixed cannot contain none" in capsys.readouterr().err


def test_the_worst_part_is_the_one_with_the_highest_asr_and_sums_are_its_own() -> None:
    """Six images, goals 0 and 1: the first trigger turns two of four victims, the second three of
    four, and each has a floor of its own."""
    test = ImageSet(first_pixels([0, 1, 1, 2, 0, 3]), torch.tensor([0, 0, 1, 2, 3, 1]), 10)
    zero, one = (torch.full((6,), goal) for goal in (0, 1))
    parts = {
        "b_1": answers(FirstPixel(), test, first_pixels([0, 0, 0, 2, 0, 7]), zero),
        "a_2": answers(FirstPixel(), test, first_pixels([1, 1, 1, 1, 3, 1]), one),
    }
    counts = worst(parts).counts()
    assert counts["clean_accuracy"] == Count(3, 6)
    assert counts["attack_success_rate"] == counts["attack_success_rate_a_2"] == Count(3, 4)
    assert counts["robust_accuracy"] == counts["robust_accuracy_a_2"] == Count(1, 4)
    assert counts["asr_floor"] == counts["asr_floor_a_2"] == Count(1, 4)
    assert counts["attack_success_rate_b_1"] == Count(2, 4)
    assert len(counts) == 4 + 2 * 3
    equal = worst({"b_1": parts["b_1"], "a_2": parts["b_1"]})
    assert equal.counts()["attack_success_rate"] == Count(2, 4)


@pytest.mark.parametrize(("second", "failed"), [(49, True), (51, False)])
def test_an_attack_fails_if_one_of_its_parts_does(
    tmp_path: Path, second: int, failed: bool
) -> None:
    """The rate of the record is the worst part's, which hides a part that never works."""
    made = cell(
        TINY, "wrn16_1", f"mixed(attacks={['badnets', 'blend(target=1)']})", "none", RECIPE, 0
    )
    dataset = Harness(Cache(tmp_path), [], CPU).dataset(made.dataset)
    ws = Workspace(made, dataset, CPU, Cache(tmp_path), Stopwatch(CPU))
    counts = {
        "clean_accuracy": Count(80, 80),
        "attack_success_rate": Count(90, 100),
        "attack_success_rate_badnets_1": Count(90, 100),
        "attack_success_rate_blend_2": Count(second, 100),
    }
    found = flags(ws, models.build("wrn16_1").build(10, 16), counts)
    assert ("attack_failed" in found) == failed


def test_a_filter_is_judged_by_part() -> None:
    """Images 0 and 1 are of the first part, 2 and 3 of the second; 0, 1, 2 and 4 are flagged."""
    one, two = torch.zeros(2, 8, dtype=torch.bool)
    one[:2], two[2:4] = True, True
    clean = noise(8)
    parts = {
        "a_1": PoisonedPart(one, ~one, clean.images),
        "b_2": PoisonedPart(two, ~two, clean.images),
    }
    data = PoisonedData(clean, one | two, ~(one | two), clean.images, {}, parts)
    found = diagnose_parts({"kept": torch.tensor([0, 0, 0, 1, 0, 1, 1, 1])}, data)
    assert found["a_1"]["kept"]["tpr"] == 1.0
    assert found["b_2"]["kept"]["tpr"] == 0.5
    assert found["a_1"]["kept"]["fpr"] == found["b_2"]["kept"]["fpr"] == 0.25
    assert found["a_1"]["kept"]["auroc"] == 1 - 0.25 / 2


@dataclass(frozen=True)
class Flags(Defense):
    """Flags the images whose label is 0, and returns the undefended network."""

    undefended = 1

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        context.journal.samples["kept"] = (data.labels != 0).float()
        return context.undefended()


def test_a_cell_has_the_numbers_of_each_part(
    cache_folder: Path, tmp_path: Path, unregistered: None
) -> None:
    """Those of the record are the worst part's, and each is what a test of this trigger gives."""
    defenses.register("flags")(Flags)
    asked = tiny(
        "mixed(attacks=['badnets', 'tact(target=1, source=2, cover_classes=(5,))'])", "flags"
    )
    harness = Harness(Cache(cache_folder), [], CPU, curves=True)
    finished = harness.finish(asked)
    record, network, data = finished.record, finished.network, finished.poisoned
    assert finished.failure is None
    assert network is not None
    assert data is not None
    test = harness.dataset(asked.dataset).test
    names = ["badnets_1", "tact_2"]
    assert list(record.diagnostics.parts) == list(record.parts) == names
    rates = {}
    for name, text in zip(names, asked.attack.attacks, strict=True):  # type: ignore[attr-defined]
        attack = attacks.build(text)
        triggered = predict(network, attack.trigger(test.images))
        goal = attack.goal(test.labels, 10)
        hit = (triggered == goal)[goal != test.labels]
        count = record.parts[name]["attack_success_rate"]
        assert (count.hits, count.of) == (int(hit.sum()), len(hit))
        rates[name] = count.rate
        assert torch.equal(data.parts[name].triggered, attack.trigger(test.images))
        part = record.diagnostics.parts[name]
        assert part.attack == attacks.label(text)
        assert part.poisoned_images == int(data.parts[name].mask.sum()) > 0
        flagged = (data.train.labels == 0)[data.parts[name].mask]
        assert part.samples["kept"]["tpr"] == pytest.approx(float(flagged.float().mean()))
    assert record.attack_success_rate == record.parts[record.worst_part]["attack_success_rate"]
    assert rates[record.worst_part] == max(rates.values())
    assert record.example is not None
    assert record.example.part == "badnets_1"
    assert record.curves[-1]["attack_success_rate_tact_2"] == pytest.approx(
        rates["tact_2"], abs=1e-6
    )
    assert decode(encode(record)) == record

    shown = {answer.question: answer.text for answer in Case(record, None).answers()}
    assert f"`{record.worst_part}`" in shown["What is the success rate of each attack?"]
    found = shown["Did it find the poisoned images?"]
    assert "(100.0 % of `badnets_1`, 0.0 % of `tact_2`)" in found
    shares = {name: each.tpr for name, each in filtered_parts(record).items()}
    assert shares == {"badnets_1": 1.0, "tact_2": 0.0}
    assert 0 < filtered(record)[0] < 1
    drawn = {chart.title: chart.lines for chart in charts(record.curves)}
    # A metric has one name and one style, whichever part it is of.
    own, whole = (
        drawn["Shares of test images by epoch, tact_2"],
        drawn["Shares of test images by epoch"],
    )
    floors = [line for line in (*own, *whole) if line.name == "ASR floor, without the trigger"]
    assert len(floors) == 2
    assert len({line.style for line in floors}) == 1
    table = frame([record])
    assert table["attack_success_rate_tact_2"][0] == pytest.approx(rates["tact_2"])
    notes = [*footnotes(LeaderboardBlock(tuple(collect([record]))))]
    assert any("the part with the highest ASR" in note for note in notes)

    out = tmp_path / "out"
    lines = [*Export(write(tmp_path, record), out, with_network=False).write(Terminal(quiet=True))]
    assert any("triggered.parquet" in line for line in lines)
    table = pq.read_table(out / "triggered.parquet")
    assert table.column("part").to_pylist() == [1] * 80 + [2] * 80
    goals = [attacks.build(text).goal(test.labels, 10) for text in asked.attack.attacks]  # type: ignore[attr-defined]
    assert table.column("target").to_pylist() == torch.cat(goals).tolist()
    owners = sum(n * data.parts[name].mask.long() for n, name in enumerate(names, 1))
    assert isinstance(owners, torch.Tensor)
    owners += 2 * data.parts["tact_2"].cover
    assert pq.read_table(out / "poisoned.parquet").column("part").to_pylist() == owners.tolist()


def test_a_preview_shows_each_part(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = ["data", "preview", "mixed(attacks=['badnets', 'wanet(target=1, cover_rate=0.1)'])"]
    assert main([*asked, "--dataset", TINY, "--count", "2", "--out", str(tmp_path / "p.png")]) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split(maxsplit=1)[1] for line in lines if line.startswith("part ")]
    assert shown == ["badnets_1, badnets", "wanet_2, wanet(target=1, cover_rate=0.1)"]
    assert sum(line.startswith("PSNR") for line in lines) == 2
    counts = [line for line in lines if line.startswith(("poisoned images", "cover images"))]
    assert [line.split()[2].strip(",") for line in counts] == ["12", "0", "12", "12"]
    assert (tmp_path / "p.png").stat().st_size > 1000
