"""Whole cells at tiny size: records, caches, metrics by hand, resuming, and damage."""

from __future__ import annotations

import asyncio
import json
import time
import warnings
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from builders import FirstPixel, first_pixels
from scipy.stats import mannwhitneyu
from torch import Tensor, nn

from bdbench.attacks.base import Attack, Poisoned
from bdbench.attacks.poison import dirty_label
from bdbench.cells import cost, grid
from bdbench.cells.cell import Cell, cell, check_trigger, recipe_of
from bdbench.cells.cost import Sample
from bdbench.cells.suites import SUITES, suite
from bdbench.defenses.base import Context, Defense
from bdbench.defenses.registry import defenses
from bdbench.machine.clock import Stopwatch
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.spec import Spec
from bdbench.models.registry import models
from bdbench.models.rng import derive, stream
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.loop import train
from bdbench.models.training.recipe import Recipe
from bdbench.records.count import Count
from bdbench.records.files import read, write
from bdbench.records.parts import Passes
from bdbench.records.record import METRICS, encode
from bdbench.storage.cache import Cache, CacheEntry, DamagedCache, UnwritableCache
from bdbench.storage.keys import digest_of
from bdbench.trial import evaluation as metrics
from bdbench.trial import provenance
from bdbench.trial.clean_budget import clean_budget
from bdbench.trial.curves import POINT
from bdbench.trial.harness import Harness
from bdbench.trial.poisoned import PoisonedData, poison
from bdbench.trial.record import finite
from bdbench.trial.undefended import train_undefended
from bdbench.trial.workspace import Workspace

DATASET = "toy(train_images=120, test_images=80, image_size=16)"
RECIPE = Recipe(epochs=1, batch_size=32, learning_rate=0.02, updates=0.005)
CPU = torch.device("cpu")


def tiny(attack: str = "badnets", defense: str = "none", seed: int = 0, **fields: object) -> Cell:
    recipe = replace(RECIPE, **fields)  # type: ignore[arg-type]
    return cell(DATASET, "wrn16_1", attack, defense, recipe, seed)


@pytest.fixture
def harness(cache_folder: Path) -> Harness:
    return Harness(Cache(cache_folder), [], CPU)


def test_metrics_by_hand() -> None:
    """Six images, target 0: two of class 0, which no share of victims counts."""
    test = ImageSet(first_pixels([0, 1, 1, 2, 0, 3]), torch.tensor([0, 0, 1, 2, 3, 4]), 10)
    target = torch.zeros(6, dtype=torch.int64)
    counts = metrics.answers(FirstPixel(), test, first_pixels([0, 0, 0, 2, 0, 7]), target).counts()
    assert counts["clean_accuracy"] == Count(3, 6)
    assert counts["attack_success_rate"] == Count(2, 4)
    assert counts["robust_accuracy"] == Count(1, 4)
    assert counts["asr_floor"] == Count(1, 4)


def test_at_chance_is_no_better_than_always_one_class() -> None:
    """By three standard errors of the guess: of 100 images 10 +- 9, and 60 +- 14.7."""
    test = ImageSet(first_pixels([0] * 100), torch.arange(100) % 10, 10)
    for hits, guessed in ((0, True), (10, True), (18, True), (20, False), (60, False)):
        assert metrics.at_chance(Count(hits, 100), test) is guessed
    uneven = ImageSet(test.images, (torch.arange(100) - 60).clamp(min=0) % 10, 10)
    share = float((uneven.labels == 0).sum()) / 100
    limit = 100 * (share + 3 * (share * (1 - share) / 100) ** 0.5)
    for hits in range(101):
        assert metrics.at_chance(Count(hits, 100), uneven) is (hits <= limit)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_not_finite_is_a_bad_weight_or_statistic(bad: float) -> None:
    """Whatever the accuracy."""
    network = models.build("wrn16_1").build(10, 16)
    assert not metrics.not_finite(network)
    for name, values in network.state_dict().items():
        if not values.is_floating_point():
            continue
        other = deepcopy(network)
        other.state_dict()[name].view(-1)[-1] = bad
        assert metrics.not_finite(other), name
    assert any("running_var" in name for name in network.state_dict())


def test_diagnostics_by_hand() -> None:
    mask = torch.tensor([True, False, True, False])
    loss = torch.tensor([0.1, 0.9, 0.5, 0.5])
    assert metrics.diagnose({"loss": loss}, mask)["loss"] == {
        "auroc": pytest.approx((1 + 1 + 1 + 0.5) / 4),
        "mean_poisoned": pytest.approx(0.3),
        "mean_clean": pytest.approx(0.7),
    }
    kept = metrics.diagnose({"kept": torch.tensor([0.0, 0.0, 1.0, 1.0])}, mask)["kept"]
    assert (kept["precision"], kept["recall"]) == (0.5, 0.5)
    all_kept = metrics.diagnose({"kept": torch.ones(4)}, mask)["kept"]
    for constant in (torch.zeros(4), torch.ones(4)):
        # Scores of a network that diverged: they judge nothing, and tie.
        score = metrics.diagnose({"a score": constant}, mask)["a score"]
        assert score["auroc"] == 0.5
        assert not score.keys() & {"tpr", "fpr", "precision", "recall"}
    verdict = metrics.diagnose({"my verdict": torch.tensor([0.0, 1.0, 1.0, 1.0])}, mask)
    assert verdict["my verdict"]["tpr"] == 0.5
    assert "precision" not in all_kept
    assert (all_kept["tpr"], all_kept["fpr"]) == (0, 0)


@pytest.mark.parametrize("different", [1, 2, 5, 1000])
def test_auroc_is_the_statistic_of_mann_and_whitney(different: int) -> None:
    """different: values of which some are equal, if they are few"""
    rng = stream(different, "values")
    low, high = (torch.randint(different, (n,), generator=rng).double() for n in (70, 300))
    expected = mannwhitneyu(high.numpy(), low.numpy()).statistic / (70 * 300)
    assert metrics.auroc(low, high) == float(expected)


def test_the_rates_of_a_filter_by_hand() -> None:
    """Of four poisoned images three are found, with two of six clean ones."""
    mask = torch.tensor([True] * 4 + [False] * 6)
    kept = torch.tensor([0, 0, 0, 1, 0, 0, 1, 1, 1, 1]).float()
    found = metrics.diagnose({"kept": kept}, mask)["kept"]
    assert (found["tpr"], found["fpr"]) == (0.75, 0.333333)
    assert (found["recall"], found["precision"]) == (0.75, 0.6)
    clean = metrics.diagnose({"kept": kept}, torch.zeros(10, dtype=torch.bool))["kept"]
    assert clean == {"mean_clean": 0.5, "fpr": 0.5}
    assert "tpr" not in metrics.diagnose({"w": kept / 2}, mask)["w"]


def test_means_by_class_are_of_clean_images() -> None:
    """Class 1 has none, and class 2 only one that is not finite."""
    values = torch.tensor([9.0, 1.0, 2.0, torch.nan, 4.0, 9.0])
    mask = torch.tensor([True, False, False, False, False, True])
    labels = torch.tensor([0, 0, 0, 2, 3, 1])
    found = metrics.diagnose({"w": values}, mask, labels)["w"]
    assert found["by_class"] == [1.5, None, None, 4.0]
    assert "by_class" not in metrics.diagnose({"w": values}, mask)["w"]
    assert "by_class" not in metrics.diagnose({"w": values}, torch.ones(6).bool(), labels)["w"]


def test_diagnostics_leave_out_values_that_are_not_finite() -> None:
    values = torch.tensor([torch.nan, torch.inf, 2.0, 3.0])
    mask = torch.tensor([True, False, True, False])
    found = metrics.diagnose({"loss": values}, mask)["loss"]
    assert found == {"not_finite": 2, "mean_poisoned": 2.0, "mean_clean": 3.0, "auroc": 1.0}
    assert metrics.diagnose({"loss": values.fill_(torch.nan)}, mask) == {"loss": {"not_finite": 4}}
    assert finite({"a": torch.nan, "b": 2, "c": -torch.inf}) == {
        "a": None,
        "b": 2,
        "c": None,
    }


@pytest.mark.parametrize("defense", ["abl", "abl(objective='sequential')", "cbd(t1=1)"])
def test_a_training_that_diverges_has_a_whole_record(
    defense: str, harness: Harness, tmp_path: Path
) -> None:
    record = harness.run(tiny("badnets", defense, learning_rate=1e30))
    assert (record.status, record.flags) == ("ok", ("not_finite",))
    assert read(write(tmp_path, record)).diagnostics == record.diagnostics
    assert any("not_finite" in found for found in record.diagnostics.samples.values())


def test_a_warning_of_a_defense_is_in_its_record(harness: Harness, tmp_path: Path) -> None:
    """Once, and only where there is one."""
    record = harness.run(tiny(defense="cbd(t1=2)", epochs=3))
    (warning,) = record.diagnostics.warnings
    assert "f_B sees 0.67 times as many images as f_C" in warning
    assert read(write(tmp_path, record)).diagnostics == record.diagnostics
    for defense in ("cbd(t1=1)", "none", "nad"):
        assert harness.run(tiny(defense=defense, epochs=4)).diagnostics.warnings == []


@pytest.mark.parametrize("attack", ["none", "badnets"])
@pytest.mark.parametrize("defense", defenses.names())
def test_every_pair_gives_a_whole_record(attack: str, defense: str, harness: Harness) -> None:
    record = harness.run(tiny(attack, defense))
    assert record.error is None
    assert record.metrics is not None
    encode(record)
    poisoned = 0 if attack == "none" else 12
    assert record.diagnostics.poisoned_images == poisoned
    of = {name: count.of for name, count in record.counts.items()}
    assert of == {
        "clean_accuracy": 80,
        "attack_success_rate": 72,
        "robust_accuracy": 72,
        "asr_floor": 72,
    }
    if attack == "none":
        assert record.metrics.attack_success_rate == record.metrics.asr_floor
    assert record.passes.backward >= 1
    assert len(record.provenance.data_sha256) == 64


def content(record: object) -> str:
    parts = vars(record).copy()
    del parts["measured"]
    return json.dumps(parts, default=repr, sort_keys=True)


def test_the_same_cell_gives_the_same_bytes_with_and_without_a_cache(tmp_path: Path) -> None:
    runs = []
    for folder in ("a", "b"):
        for _ in range(2):
            harness = Harness(Cache(tmp_path / folder), [], CPU)
            runs.append([content(harness.run(tiny(defense=d))) for d in ("none", "cbd")])
    assert runs[0] == runs[1] == runs[2] == runs[3]


def test_the_undefended_network_is_trained_once_and_charged_to_each(harness: Harness) -> None:
    first = harness.run(tiny())
    again = harness.run(tiny())
    for record in (first, again):
        assert record.measured.seconds.undefended > 0
        assert record.measured.seconds.fit < record.measured.seconds.undefended
    assert first.measured.seconds.undefended == again.measured.seconds.undefended
    assert first.passes == again.passes == Passes(forward=1.0, backward=1.0)
    assert first.metrics == again.metrics


def test_the_peak_of_a_training_is_that_of_all_cells_that_use_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is in the cache; an older entry does not say it."""
    peaks = {"undefended": 900, "poisoned": 700, "harness": 400}
    for module in peaks:
        monkeypatch.setattr(
            f"bdbench.trial.{module}.peak_memory", lambda device, module=module: peaks[module]
        )
    harness = Harness(Cache(tmp_path), [], CPU)

    def peak() -> int:
        return harness.run(tiny()).measured.peak_memory_bytes

    peak()
    assert peak() == 900
    peaks["harness"] = 1000
    assert peak() == 1000
    peaks["harness"] = 400
    for path in (tmp_path / "undefended").glob("*.json"):
        document = json.loads(path.read_text())
        del document["meta"]["peak"], document["digest"]
        path.write_text(json.dumps({**document, "digest": digest_of(document)}))
    assert peak() == 700


def test_a_timed_run_takes_no_network_of_a_run_that_was_not(tmp_path: Path) -> None:
    """Its seconds may be those of several cells at once; the network is the same."""
    work: list[int] = []
    plain, timed = (
        Harness(Cache(tmp_path), [], CPU, progress=work.append, timed=timed)
        for timed in (False, True)
    )
    records, trained = [], []
    for harness in (plain, timed, timed, plain):
        work.clear()
        records.append(harness.run(tiny()))
        trained.append(sum(work) > 0)
    assert trained == [True, True, False, False]
    assert len({record.provenance.network_sha256 for record in records}) == 1


@dataclass(frozen=True)
class Hooked(Defense):
    """Asks for one network more than it announces, while all layers of the process are changed."""

    announced: int = 0

    @property
    def undefended(self) -> int:
        return self.announced

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        with nn.modules.module.register_module_forward_hook(lambda layer, given, out: 1.1 * out):
            return context.undefended(self.announced)


@pytest.mark.parametrize("announced", [0, 1])
@pytest.mark.usefixtures("unregistered")
def test_a_network_that_a_defense_did_not_announce_is_its_own(
    announced: int, tmp_path: Path
) -> None:
    defenses.register("hooked")(Hooked)
    odd, pair = tiny(defense=f"hooked(announced={announced})"), tiny(defense="mcr(ends='two')")
    alone, shared = (Harness(Cache(tmp_path / folder), [], CPU) for folder in "ab")
    made = content(alone.run(odd))
    assert len(list((tmp_path / "a").glob("undefended/*.json"))) == announced
    assert content(alone.run(pair)) == content(shared.run(pair))
    assert content(shared.run(odd)) == made, "though the cache has both networks"


def test_waiting_for_another_worker_is_not_charged(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock is set forward while the cache is asked."""
    harness.run(tiny())
    fetch, real, hours = Cache.fetch, time.perf_counter, [0]

    def late(self: Cache, kind: str, *rest: Any, **more: Any) -> CacheEntry:
        hours[0] += kind == "undefended"
        return fetch(self, kind, *rest, **more)

    monkeypatch.setattr(Cache, "fetch", late)
    monkeypatch.setattr("bdbench.machine.clock.now", lambda: real() + 3600 * hours[0])
    seconds = harness.run(tiny(defense="ft(updates=400)")).measured.seconds
    assert hours == [1]
    assert 0 < seconds.fit < 3600
    assert seconds.total < 3600


def test_cbd_costs_what_it_says(harness: Harness) -> None:
    made = tiny(defense="cbd(t1=2)", epochs=3)
    record = harness.run(made)
    passes = record.passes.forward + 2 * record.passes.backward
    assert passes == pytest.approx(cost.expected_passes(made) / 120)


def test_curves_have_a_point_for_each_epoch_and_end_where_the_record_does(
    cache_folder: Path,
) -> None:
    harness = Harness(Cache(cache_folder), [], CPU, curves=True)
    for defense in ("none", "cbd(t1=1)"):
        for _ in range(2):
            record = harness.run(tiny(defense=defense, epochs=3))
            assert [point["epoch"] for point in record.curves] == [1, 2, 3]
            assert record.metrics is not None
            final = record.metrics.clean_accuracy
            assert final is not None
            assert record.curves[-1]["clean_accuracy"] == pytest.approx(final.rate, abs=1e-6)
            assert all(set(point) == set(POINT) for point in record.curves)
    pruned = harness.run(tiny(defense="clp(u=1.0)"))
    assert [point["epoch"] for point in pruned.curves] == [1], "it has no epochs"
    # 25 updates are 12 rounds of two and one more; 9 are as many rounds.
    for updates, points in ((5_000, 13), (1_800, 9)):
        tuned = harness.run(tiny(defense=f"ft(updates={updates})"))
        assert [point["epoch"] for point in tuned.curves] == list(range(1, points + 1))
        assert tuned.metrics is not None
        final = tuned.metrics.clean_accuracy
        assert final is not None
        assert tuned.curves[-1]["clean_accuracy"] == pytest.approx(final.rate, abs=1e-6)
    plain = Harness(Cache(cache_folder), [], CPU).run(tiny(defense="cbd(t1=1)", epochs=3))
    assert plain.metrics == record.metrics, "looking on changed the training"
    assert plain.curves == []


def test_a_curve_is_that_of_the_network_that_is_returned(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search tries several students one after the other, whose curves are not one."""
    monkeypatch.setattr("bdbench.trial.monitor.sample", every)
    told = iter([0.9, 0.1, 0.2, 0.95] * 2)
    monkeypatch.setattr("bdbench.defenses.nad.accuracy", lambda *_: next(told))
    harness = Harness(Cache(cache_folder), [], CPU, curves=True)
    searched = harness.run(tiny(defense="nad(betas='search', updates=1000)"))
    assert searched.diagnostics.scalars["betas times"] == 0.01
    alone = harness.run(tiny(defense="nad(betas=(5.0, 10.0, 10.0), updates=1000)"))
    assert [point["epoch"] for point in alone.curves] == [1, 2, 3, 4, 5]
    assert searched.curves == alone.curves
    assert searched.metrics == alone.metrics


def every(budget: float, training: int, test: int, triggers: int) -> Sample:
    """All images for each point."""
    return Sample(training, test, triggers)


def test_losses_of_a_curve_by_hand(cache_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bdbench.trial.monitor.sample", every)
    harness = Harness(Cache(cache_folder), [], CPU, curves=True)
    point = harness.run(tiny(epochs=1)).curves[-1]
    network, made = undefended_of(tiny(epochs=1), harness)
    outcome = network(made.train.images / 255).detach()
    losses = nn.functional.cross_entropy(outcome, made.train.labels, reduction="none")
    assert point["clean_loss"] == pytest.approx(float(losses[~made.mask].mean()), rel=1e-4)
    assert point["poisoned_loss"] == pytest.approx(float(losses[made.mask].mean()), rel=1e-4)
    assert harness.run(tiny("none")).curves[-1]["poisoned_loss"] is None


def undefended_of(made: Cell, harness: Harness) -> tuple[Classifier, PoisonedData]:
    """The network of a cell without a defense, trained without the harness."""
    data = harness.poisoned(made)
    build = partial(made.model.build, 10, 32)
    context = TrainingContext(made.recipe, CPU, build, derive(made.seed, "training"))
    return train(context.build(), data.train, context.recipe, context.rng("classifier")), data


def test_embeddings_before_and_after_are_kept_for_figures(cache_folder: Path) -> None:
    harness = Harness(Cache(cache_folder), [], CPU, curves=True)
    for defense, names in (("none", ["z"]), ("none", ["z"]), ("cbd(t1=1)", ["r", "z"])):
        made = tiny(defense=defense)
        record = harness.run(made)
        kept = Cache(cache_folder).get("embeddings", {"cell": record.key})
        assert kept is not None
        shown = sorted(name for name in kept if name.startswith("embedding"))
        assert shown == [
            f"embedding/{name}/{when}" for name in names for when in ("after", "before")
        ]
        assert kept["rows"].tolist() == list(range(120))
        data = harness.poisoned(made)
        assert kept["poisoned"].tolist() == kept["mask"].tolist() == data.mask.tolist()
        assert kept["labels"].tolist() == data.train.labels.tolist()
        changed = kept["labels"] != kept["true_labels"]
        assert 0 < changed.sum() <= kept["poisoned"].sum()
        assert not changed[~kept["poisoned"]].any()
        for name in names:
            before, after = kept[f"embedding/{name}/before"], kept[f"embedding/{name}/after"]
            assert before.shape == after.shape == (120, 64)
            assert not numpy.array_equal(before, after)
    assert kept["samples/w"].shape == kept["samples/f_B loss"].shape == (120,)
    network, data = undefended_of(tiny(), harness)
    expected = network.features(data.train.images / 255).detach().numpy()
    undefended = Cache(cache_folder).get("embeddings", {"cell": tiny().key})
    assert undefended is not None
    numpy.testing.assert_allclose(undefended["embedding/z/after"], expected, atol=1e-4)


def test_without_curves_only_the_journal_is_kept(harness: Harness, cache_folder: Path) -> None:
    record = harness.run(tiny(defense="cbd(t1=1)"))
    kept = Cache(cache_folder).get("embeddings", {"cell": record.key})
    assert kept is not None
    assert sorted(kept) == ["mask", "samples/f_B loss", "samples/w"]
    assert Cache(cache_folder).get("embeddings", {"cell": harness.run(tiny()).key}) is None


def test_hashes_are_of_the_code_at_the_first_cell_of_a_process(cache_folder: Path) -> None:
    """As in a notebook, where a file may be edited between two cells."""
    made = [tiny("sig", "abl"), tiny("mixed(attacks=('badnets', 'bpp'))", "dbd")]
    for each in (provenance._content, provenance._hash, provenance._together, provenance.files_of):
        each.cache_clear()  # type: ignore[attr-defined]
    Harness(Cache(cache_folder), [], CPU)
    known = provenance._content.cache_info().misses
    assert known
    assert all(map(provenance.sources, made))
    assert provenance._content.cache_info().misses == known


class Wrapped(Classifier):
    """A network whose forward is a text about another one, n, and images, x."""

    def __init__(self, n: Classifier, text: str) -> None:
        super().__init__(0.0, 1.0)
        self.n, self.text = n, text

    def body(self, images: Tensor) -> list[Tensor]:
        return self.n.body(images)

    def embed(self, last: Tensor) -> Tensor:
        return self.n.embed(last)

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = eval(self.text, {"n": self.n, "x": images, "purified": purified})
        return made


class Stating(Wrapped):
    def get_extra_state(self) -> dict[str, int]:
        return {"calls": 1}


def purified(n: Classifier, x: Tensor) -> Tensor:
    """Images moved along the gradient of a network."""
    with torch.enable_grad():
        x = x.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(n(x).logsumexp(1).sum(), x)
    return x.detach() - 0.01 * gradient.sign()


@dataclass(frozen=True)
class Broken(Defense):
    """Fails in the way that `how` names."""

    how: str = "raise"
    undefended = 1

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        if self.how == "raise":
            raise RuntimeError("this defense is broken")
        if self.how == "nothing returned":
            return None
        if self.how == "nine classes":
            return replace(
                context, build_network=partial(models.build("wrn16_1").build, 9, 32)
            ).build()
        model = context.undefended()
        with torch.no_grad():
            if self.how == "nan":
                model.head.weight.fill_(torch.nan)
            if self.how == "infinite statistic":
                model.norm.running_var.fill_(torch.inf)
            if self.how == "one class":
                model.head.weight.zero_()
                model.head.bias.copy_(torch.arange(10.0))
            if self.how == "in place":
                model.head.weight.mul_(0.5)
            if "n(x)" in self.how:
                return Wrapped(model, self.how)
            if self.how == "extra":
                return Stating(model, "")
            if self.how == "cancelled":
                raise asyncio.CancelledError("the server is gone")
            if self.how == "layer":
                return model.head
            if self.how == "twice":
                assert context.undefended() is not model
        return model


@pytest.fixture
def broken() -> object:
    defenses.names()
    defenses.register("broken")(Broken)
    yield
    del defenses._factories["broken"]


@pytest.mark.usefixtures("broken")
def test_a_failing_defense_fails_its_own_cell(harness: Harness) -> None:
    record = harness.run(tiny(defense="broken"))
    encode(record)
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.message == "this defense is broken"
    assert "in fit" in record.error.traceback
    assert harness.run(tiny()).status == "ok"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("evaluation.Answers.counts", lambda answers: dict.fromkeys(METRICS, Count(80, 80))),
        ("trial.flags", lambda *_: ("not a name!",)),
        ("trial.finite", lambda numbers: {"loss": object()}),
        ("trial.diagnose", lambda *_: {"loss": 3}),
    ],
)
def test_results_that_no_record_holds_fail_their_cell(
    name: str, value: object, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a plugin may leave them that replaces what computes them."""
    with monkeypatch.context() as replaced:
        replaced.setattr(f"bdbench.trial.{name}", value, raising=False)
        record = harness.run(tiny())
    encode(record)
    assert record.status == "failed"
    assert record.error is not None
    assert record.error.type == "InvalidResults"
    assert harness.run(tiny()).status == "ok"


@pytest.mark.usefixtures("broken")
def test_an_error_that_is_no_exception_fails_its_own_cell(harness: Harness) -> None:
    """As of a library that waits for a server; such errors are not for a method to catch."""
    record = harness.run(tiny(defense="broken(how='cancelled')"))
    assert record.error is not None
    assert (record.error.type, record.error.message) == ("CancelledError", "the server is gone")


@pytest.mark.usefixtures("broken")
def test_a_network_may_need_the_gradient_of_its_input(harness: Harness) -> None:
    plain, moved = (
        harness.run(tiny(defense=f"broken(how={how!r})")) for how in ("n(x)", "n(purified(n, x))")
    )
    assert (plain.status, moved.status) == ("ok", "ok")
    assert plain.passes == moved.passes == harness.run(tiny()).passes


def test_prepare_must_return_an_attack(harness: Harness) -> None:
    @dataclass(frozen=True)
    class Forgetful(Attack):
        trains = True

        def prepare(self, *given: Any) -> Any: ...

        def trigger(self, images: Tensor) -> Tensor:
            return 255 - images

        def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
            return dirty_label(self, clean, rng)

    record = harness.run(cell(DATASET, "wrn16_1", Forgetful(), "none", RECIPE, 0))
    assert record.error is not None
    assert record.error.message == (
        "prepare of attack Forgetful must return the prepared attack, got None; is a `return` "
        "missing?"
    )


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            "nothing returned",
            "defense 'broken' returned None: fit must return a bdbench.models.Classifier; is a "
            "`return` missing?",
        ),
        ("layer", "defense 'broken' returned a Linear: fit must return a bdbench.models.Classi"),
        ("nine classes", "a network whose head has 9 outputs: it needs one for each of 10"),
        ("n(x)[:, :, None]", "a Wrapped whose forward gives float32 (2, 10, 1) for two images"),
        ("n(x).repeat(1, 2)", "gives float32 (2, 20) for two images: it must give logits, float "),
        ("n(x)[:, :5]", "whose forward gives float32 (2, 5) for two images"),
        ("(n(x), n(x))", "whose forward gives a tuple for two images"),
        ("n(x).argmax(1)", "whose forward gives int64 (2,) for two images"),
        ("extra", "returned a Stating with _extra_state in its state dict, which is no tensor"),
    ],
)
def test_the_network_that_fit_returns_is_checked_at_once(
    how: str, said: str, harness: Harness
) -> None:
    record = harness.run(tiny(defense=f"broken(how={how!r})"))
    assert record.status == "failed"
    assert record.error is not None
    assert said in record.error.message
    assert record.measured.seconds.evaluate == 0


@pytest.mark.usefixtures("broken")
def test_a_record_holds_classes_and_an_image_and_a_failed_one_the_image(harness: Harness) -> None:
    record = harness.run(tiny("blend"))
    found = record.classes
    assert found is not None
    assert {name: Count(*pair) for name, pair in found.sums().items()} == record.counts
    assert list(found.names) == list(harness.dataset(tiny().dataset).class_names)
    assert record.example is not None
    assert record.example.label != record.example.goal
    failed = harness.run(tiny("blend", "broken(how='layer')"))
    assert (failed.status, failed.classes) == ("failed", None)
    assert failed.example == record.example
    assert failed.plugins.attack == record.plugins.attack
    assert harness.run(tiny("none")).example is None


def test_an_attack_without_a_victim_is_refused_before_training(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = harness.dataset(tiny().dataset)
    few = dataset.test[dataset.test.labels != 1]
    monkeypatch.setattr(Harness, "dataset", lambda *_: replace(dataset, test=few))
    said = r"attack tact\(.*\) has no victim among the .*; classes without a test image: 1$"
    with pytest.raises(InvalidInput, match=said):
        harness.run(tiny("tact(poisoning_rate=0.05)"))
    assert harness.run(tiny("tact(poisoning_rate=0.05, source=2)")).status == "ok"


def test_a_class_without_clean_images_is_named_in_one_line(images: ImageSet) -> None:
    one_of_nine = images[torch.cat([torch.arange(9), torch.arange(20, 60)])]
    lone = one_of_nine[(one_of_nine.labels != 8) | (torch.arange(49) == 8)]
    with pytest.raises(InvalidInput, match=r"class 8 has 1 training image, and clean images"):
        clean_budget(lone, 0.05, seed=0)
    budget = clean_budget(images, 0.05, seed=0)
    assert budget is not None
    for part in (budget.fit, budget.validation):
        assert sorted(set(part.labels.tolist())) == list(range(10))


def test_a_record_says_how_many_clean_images_a_defense_gets_at_least(harness: Harness) -> None:
    lent = harness.run(tiny(defense="ft")).diagnostics.lent
    assert lent is not None
    assert lent.least == tiny(defense="ft").defense.clean_images == 2
    assert lent.fit + lent.validation >= lent.least * lent.classes
    assert harness.run(tiny()).diagnostics.lent is None


@pytest.mark.usefixtures("broken")
def test_an_undefended_network_is_charged_once(harness: Harness) -> None:
    once = harness.run(tiny(defense="broken(how='nothing')"))
    twice = harness.run(tiny(defense="broken(how='twice')"))
    assert twice.error is None
    assert twice.passes == once.passes
    seconds = [record.measured.seconds.undefended for record in (once, twice)]
    assert seconds[0] == pytest.approx(seconds[1], abs=1e-5)


@pytest.mark.usefixtures("broken")
def test_networks_without_numbers_without_knowledge_and_unchanged_ones_are_flagged(
    harness: Harness,
) -> None:
    """Of the first two only one: where nothing is finite there is no accuracy."""
    assert "no_op" not in harness.run(tiny(defense="broken(how='in place')")).flags
    for how in ("nan", "infinite statistic"):
        assert harness.run(tiny(defense=f"broken(how='{how}')")).flags == ("not_finite",)
    assert harness.run(tiny(defense="broken(how='one class')")).flags == ("at_chance",)
    recipe = replace(RECIPE, epochs=4, learning_rate=0.1, drops=(0.7,), cutout=0, padding=0)
    learns = cell("digits(train_images=400)", "wrn16_1", "badnets", "none", recipe, 0)
    assert not {"at_chance", "not_finite"} & set(harness.run(learns).flags)
    assert "no_op" in harness.run(tiny(defense="broken(how='nothing')")).flags
    assert "no_op" not in harness.run(tiny(defense="none")).flags


def test_a_damaged_cache_entry_is_said_once_and_made_anew(
    harness: Harness, cache_folder: Path
) -> None:
    expected = content(harness.run(tiny()))
    files = sorted(cache_folder.rglob("*.safetensors"))
    assert {file.parent.name for file in files} == {"poisoned", "undefended"}
    for file in files:
        damaged = bytearray(file.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        file.write_bytes(damaged)
    fresh = Harness(Cache(cache_folder), [], CPU)
    with pytest.warns(DamagedCache) as said:
        assert content(fresh.run(tiny())) == expected
    assert len(said) == 2
    fresh.run(tiny())


@pytest.mark.parametrize("what", ["truncated", "no payload", "not json", "a pickle"])
def test_any_damage_to_a_cache_entry_is_mended(tmp_path: Path, what: str) -> None:
    cache, calls = Cache(tmp_path), []

    def build() -> tuple[dict[str, Tensor], dict[str, int]]:
        calls.append(1)
        return {"x": torch.arange(100)}, {"n": 1}

    assert cache.fetch("kind", {"a": 1}, build).fresh
    assert not cache.fetch("kind", {"a": 1}, build).fresh
    payload, description = (
        next((tmp_path / "kind").glob(f"*.{s}")) for s in ("safetensors", "json")
    )
    if what == "truncated":
        payload.write_bytes(payload.read_bytes()[:-7])
    elif what == "no payload":
        payload.unlink()
    elif what == "not json":
        description.write_text("{")
    else:
        torch.save({"x": 1}, payload)
    with pytest.warns(DamagedCache, match="is corrupt; rebuilding it"):
        mended = cache.fetch("kind", {"a": 1}, build)
    assert mended.fresh
    assert torch.equal(cache.fetch("kind", {"a": 1}, build).tensors["x"], torch.arange(100))
    assert len(calls) == 2
    assert not list(tmp_path.rglob("*.tmp"))


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> tuple[dict[str, Tensor], dict[str, int]]:
        raise KeyboardInterrupt

    cache = Cache(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        cache.fetch("kind", {}, fail)
    assert cache.fetch("kind", {}, lambda: ({"x": torch.zeros(1)}, {})).fresh


def test_a_folder_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidInput, match=r"cannot write CACHEDIR.TAG in .*file: File exists"):
        Cache(tmp_path / "file").prepare()
    # In the middle of a run it costs no cell.
    with pytest.warns(UnwritableCache, match="kind/.* is not cached:"):
        assert Cache(tmp_path / "file").fetch("kind", {}, lambda: ({}, {})).fresh


def test_stages_keep_their_own_time_when_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("bdbench.machine.clock.now", lambda: clock[0])
    watch = Stopwatch(CPU)
    with watch.stage("outer"):
        clock[0] += 2
        with watch.stage("inner"):
            clock[0] += 5

    def fail() -> None:
        clock[0] += 1
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"), watch.stage("failed"):
        fail()
    assert watch.seconds == {"inner": 5, "outer": 2, "failed": 1}


def test_a_cell_is_its_specs() -> None:
    one = tiny("blend(alpha=0.3)")
    assert one == tiny("blend(target=0, alpha=0.3)")
    assert one.key == tiny("blend( alpha = 0.30 )").key
    others = [
        tiny("blend"),
        tiny("blend(alpha=0.3)", "cbd"),
        tiny("blend(alpha=0.3)", seed=1),
        tiny("blend(alpha=0.3)", epochs=2),
    ]
    assert len({one.key, *(other.key for other in others)}) == 5
    assert recipe_of(one.specs["recipe"]) == one.recipe == RECIPE
    assert one.labels["attack"] == "blend(alpha=0.3)"
    assert (
        one.labels["recipe"] == "recipe(epochs=1, batch_size=32, learning_rate=0.02, updates=0.005)"
    )


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ({"attack": "badnets(target=10)"}, "0 to 9, got 10"),
        ({"attack": "badnets(margin=30)"}, "does not fit 32 x 32"),
        ({"dataset": "gtsrb", "attack": "badnets(target=43)"}, "0 to 42, got 43"),
        ({"defense": "cbd(t1=0)"}, "t1 must be at least 1"),
        ({"model": "wrn16_1(depth=3)"}, "has no field 'depth'"),
    ],
)
def test_a_bad_cell_is_refused_before_anything_is_loaded(
    parts: dict[str, str], complaint: str
) -> None:
    axes = {"dataset": "toy", "model": "wrn16_1", "attack": "badnets", "defense": "none"}
    with pytest.raises(InvalidInput, match=complaint):
        check_trigger(cell(**(axes | parts), recipe=RECIPE, seed=0))


def names(cells: Iterable[Cell]) -> set[str]:
    """Of the defenses."""
    return {Spec.of(made.specs["defense"]).name for made in cells}


def test_suites_are_sound_and_bring_the_settings_of_their_data_set() -> None:
    for name in SUITES:
        cells = grid.cells(suite(name), "fp32")
        assert len({made.key for made in cells}) == len(cells)
    quick = grid.cells(suite("quick"), "fp32")
    of_the_paper = {"none", "fp", "mcr", "nad", "abl", "dbd", "cbd"}
    assert names(quick) == {*of_the_paper, "ft"} - {"dbd"}
    assert {made.dataset.name for made in quick} == {"digits"}
    shortened = {each.labels["defense"] for each in quick} - names(quick)
    assert shortened == {"mcr(updates=2370)"}
    for name in SUITES:
        assert {made.recipe.updates for made in grid.cells(suite(name), "fp32")} == {1.0}
    tables = [grid.cells(suite(name), "fp32") for name in SUITES if name.startswith("table")]
    assert names(made for cells in tables for made in cells) == of_the_paper
    aims = {made.attack for made in grid.cells(suite("table1-gtsrb"), "fp32")}
    assert all(attack.target == 1 for attack in aims)
    assert len(tables[0]) == 7 * 7 * 3
    signs = replace(suite("quick"), datasets=("gtsrb",))
    recipe = grid.cells(signs, "fp32")[0].recipe
    assert (recipe.learning_rate, recipe.flip) == (0.01, False)
    with pytest.raises(InvalidInput, match="seeds must be at least 1"):
        grid.cells(replace(suite("quick"), seeds=0), "fp32")


SMALLEST = "toy(train_images=60, test_images=40, image_size=16)"


def workspace(tmp_path: Path) -> Workspace:
    made = cell(SMALLEST, "wrn16_1", "badnets", "none", Recipe(epochs=1, batch_size=20), 0)
    cache = Cache(tmp_path)
    data = Harness(cache, [], CPU).dataset(made.dataset)
    return Workspace(made, data, CPU, cache, Stopwatch(CPU))


def test_undefended_networks_of_one_cell_are_two(tmp_path: Path) -> None:
    ws = workspace(tmp_path)
    data = poison(ws)
    for n in range(2):
        train_undefended(ws, data.train, n)
    one, other = (ws.undefended[n]["head.weight"] for n in range(2))
    assert float((one - other).norm()) > 0.5 * float(one.norm())


def test_other_seeds_lend_other_images(images: ImageSet) -> None:
    one, other = (clean_budget(images, 0.5, seed) for seed in (0, 1))
    assert one is not None
    assert other is not None
    assert not torch.equal(one.fit.images, other.fit.images)
    assert not torch.equal(one.validation.images, other.validation.images)


def test_a_cell_without_an_attack_has_no_failed_one(cache_folder: Path) -> None:
    made = cell(SMALLEST, "wrn16_1", "none", "none", Recipe(epochs=1, batch_size=20), 0)
    assert "attack_failed" not in Harness(Cache(cache_folder), [], CPU).run(made).flags


def test_the_extent_of_an_attack_is_counted_by_hand() -> None:
    """Six images, of which three are poisoned, two of these relabelled and one of the target
    class."""
    images = torch.zeros(6, 3, 4, 4, dtype=torch.uint8)
    clean = ImageSet(images, torch.tensor([0, 0, 1, 1, 1, 2]), 3)
    made = PoisonedData(
        train=ImageSet(images, torch.tensor([0, 0, 0, 0, 1, 2]), 3),
        mask=torch.tensor([True, False, True, True, False, False]),
        cover=torch.tensor([False, False, False, False, False, True]),
        triggered=images,
        facts={},
    )
    assert made.extent(clean, 0) == {
        "poisoned_images": 3,
        "cover_images": 1,
        "relabelled_images": 2,
        "share_of_dataset": 0.5,
        "share_of_target_class": 0.5,
    }


@dataclass(frozen=True)
class Seeing(Attack):
    """Keeps the seed that its networks would have."""

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Attack:
        SEEN.append(context.seed)
        return self

    def trigger(self, images: torch.Tensor) -> torch.Tensor:
        return 255 - images

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        return dirty_label(self, clean, rng)


SEEN: list[int] = []


def test_the_networks_of_an_attack_have_a_seed_of_their_own(tmp_path: Path) -> None:
    """Or else a defense could draw their initial weights."""
    made = cell(SMALLEST, "wrn16_1", Seeing(), "none", Recipe(epochs=1, batch_size=20), 0)
    cache = Cache(tmp_path)
    data = Harness(cache, [], CPU).dataset(made.dataset)
    ws = Workspace(made, data, CPU, cache, Stopwatch(CPU))
    poison(ws)
    (seed,) = SEEN
    assert seed not in (ws.training.seed, made.seed)


@pytest.mark.parametrize(
    ("attack", "whose"),
    [
        ("bpp(levels=256)", "attack bpp(levels=256)"),
        ("blend(alpha=0.001)", "attack blend(alpha=0.001)"),
        ("lc(epsilon=0, amplitude=0.0015)", "attack lc("),
        ("mixed(attacks=['badnets', 'bpp(levels=256, target=1)'])", "part bpp"),
        ("bpp(levels=255)", None),
        ("none", None),
    ],
)
def test_a_trigger_that_is_rounded_away_is_named(
    attack: str, whose: str | None, harness: Harness
) -> None:
    """Also by the cells that take the poisoned set from the cache."""
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            harness.poisoned(tiny(attack))
        said = [line for each in caught if "changes no" in (line := str(each.message))]
        assert len(said) == (whose is not None)
        assert all(line.startswith(f"the trigger of {whose}") for line in said), said
