"""P-ASR: what is fine-tuned on which images, that nothing else changes, and where it is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from builders import make_record
from torch import nn
from torch.nn.functional import cross_entropy

import bdbench as bd
from bdbench.cells import cost
from bdbench.cells.cell import Cell, cell, without_attack
from bdbench.cli import main
from bdbench.defenses.base import Context, Defense
from bdbench.defenses.registry import defenses
from bdbench.machine.clock import Stopwatch
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import Signal
from bdbench.models.rng import stream
from bdbench.models.training.augment import to_float
from bdbench.models.training.loop import predict
from bdbench.models.training.recipe import Recipe
from bdbench.records import rerun
from bdbench.records.count import Count
from bdbench.records.files import path_of, read, write
from bdbench.records.merge import merge
from bdbench.records.record import CONTROL, REACTIVATED, REACTIVATED_CA, Record, decode, encode
from bdbench.report.answers import Case
from bdbench.report.site import write_report
from bdbench.running.cached_work import cached_work
from bdbench.running.speed import Speed
from bdbench.running.states import state_of
from bdbench.storage.cache import Cache
from bdbench.tables import export, frames
from bdbench.tables import write as tables
from bdbench.tables.groups import RETUNED
from bdbench.trial import reactivation
from bdbench.trial.harness import Harness
from bdbench.trial.poisoned import PoisonedData, poison
from bdbench.trial.undefended import train_undefended, undefended_copy
from bdbench.trial.workspace import Workspace

CPU = torch.device("cpu")
TOY = "toy(train_images=100, test_images=50, image_size=16)"
RECIPE = Recipe(epochs=1, batch_size=32, learning_rate=0.02, updates=0.05)
NEW = {REACTIVATED, REACTIVATED_CA}


def tiny(attack: str = "badnets", defense: str = "none", seed: int = 0, **fields: Any) -> Cell:
    return cell(TOY, "wrn16_1", attack, defense, replace(RECIPE, **fields), seed)


def run(folder: Path, made: Cell, reactivate: bool = True) -> Record:
    return Harness(Cache(folder), [], CPU, reactivate=reactivate).run(made)


@pytest.fixture
def workspace(tmp_path: Path) -> Callable[[Cell], Workspace]:
    def of(made: Cell) -> Workspace:
        cache = Cache(tmp_path / "cache")
        data = Harness(cache, [], CPU).dataset(made.dataset)
        return Workspace(made, data, CPU, cache, Stopwatch(CPU), reactivate=True)

    return of


def without(record: Record, *names: str) -> dict[str, Any]:
    """A record as JSON, without these metrics, their number of images and without what another run
    measures."""
    found = encode(record)
    del found["measured"]
    found["diagnostics"].pop("retuned", None)
    found["metrics"] = {n: c for n, c in found["metrics"].items() if n not in names}
    return found


@pytest.mark.parametrize("defense", ["none", "abl"])
def test_the_numbers_of_a_cell_are_the_same(defense: str, tmp_path: Path) -> None:
    """Bit for bit: its metrics, passes and weights, in another cache too."""
    plain = run(tmp_path / "a", tiny(defense=defense), reactivate=False)
    asked = run(tmp_path / "b", tiny(defense=defense))
    assert asked.status == "ok", asked.error
    added = NEW | {CONTROL} if defense == "none" else NEW
    assert asked.counts.keys() - plain.counts.keys() == added
    assert without(asked, *added) == without(plain)
    assert asked.measured.images == plain.measured.images
    assert "reactivate" not in encode(plain)["measured"]["seconds"]
    assert encode(asked)["measured"]["seconds"]["reactivate"] > 0
    assert decode(json.loads(json.dumps(encode(asked)))) == asked
    assert run(tmp_path / "b", tiny(defense=defense)).metrics == asked.metrics


def test_without_an_attack_nothing_is_reactivated(tmp_path: Path) -> None:
    one, other = (run(tmp_path, tiny("none"), asked) for asked in (True, False))
    assert without(one) == without(other)
    assert one.count(REACTIVATED) is None
    assert one.is_reactivated
    assert "reactivate" not in encode(one)["measured"]["seconds"]


def test_the_images_are_two_percent_and_five_for_every_defense(
    workspace: Callable[[Cell], Workspace],
) -> None:
    source = "toy(train_images=1000, test_images=50, image_size=16)"

    def drawn(attack: str, defense: str, seed: int = 0) -> tuple[Workspace, PoisonedData, ImageSet]:
        ws = workspace(cell(source, "wrn16_1", attack, defense, RECIPE, seed))
        data = poison(ws)
        return ws, data, reactivation.retuning_set(ws, data)

    ws, data, images = drawn("badnets", "none")
    clean, few = images[torch.arange(len(images) - 5)], images[torch.arange(-5, 0)]
    sizes = ws.dataset.train.labels.bincount()
    assert torch.equal(clean.labels.bincount(), (0.02 * sizes.double()).round().long().clamp(min=1))

    def rows(of: ImageSet, among: ImageSet) -> list[int]:
        same = (of.images[:, None] == among.images[None]).flatten(2).all(2)
        assert bool((same.sum(1) == 1).all())
        found = same.int().argmax(1)
        assert torch.equal(of.labels, among.labels[found])
        return found.tolist()

    assert rows(clean, ws.dataset.train) == sorted(rows(clean, ws.dataset.train))
    chosen = rows(few, data.train)
    assert len(set(chosen)) == 5
    assert bool(data.mask[chosen].all())
    assert bool((few.labels == 0).all())
    assert bool((ws.dataset.train.labels[chosen] != 0).all()), "an image of the target class"
    for other in (drawn("badnets", "abl")[2], drawn("badnets", "ft")[2]):
        assert torch.equal(other.images, images.images)
        assert torch.equal(other.labels, images.labels)
    blended = drawn("blend", "none")[2]
    assert torch.equal(blended.images[:-5], clean.images), "the clean ones depend on the attack"
    other = drawn("badnets", "none", 1)[2]
    assert not torch.equal(other.images[:-5], clean.images)


def test_each_seed_fine_tunes_in_an_order_of_its_own(
    workspace: Callable[[Cell], Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[tuple[int, ...]] = []

    def noted(*arguments: Any, **_: Any) -> None:
        states.append(tuple(arguments[3].get_state().tolist()))

    monkeypatch.setattr(reactivation, "train", noted)
    for seed in (0, 0, 1):
        ws = workspace(tiny(defense="ft", seed=seed))
        data = poison(ws)
        network = ws.cell.model.build(10, 16)
        reactivation.reactivated(ws, network, data)
    same, again, other = states
    assert same == again != other


def test_images_with_a_true_label_and_few_of_them_serve_too(
    workspace: Callable[[Cell], Workspace],
) -> None:
    ws = workspace(tiny("sig(poisoning_rate=0.5)"))
    data = poison(ws)
    images = reactivation.retuning_set(ws, data)
    assert len(images) == 15
    assert bool((images.labels[-5:] == 0).all())
    three = data.mask & (data.mask.cumsum(0) <= 3)
    few = replace(data, mask=three)
    assert len(reactivation.retuning_set(ws, few)) == 13
    size = {"clean": 10, "poisoned": 5, "of": 100, "classes": 10}
    assert reactivation.retuning_size(ws, data) == size
    assert reactivation.retuning_size(ws, few) == {**size, "poisoned": 3}
    assert reactivation.retuning_size(workspace(tiny("none")), data) == {}


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((24, 5, 1200, 10), ""),
        ((20, 5, 1200, 10), ""),
        ((1000, 3, 50_000, 10), "1,000 of 50,000 clean images (2 %) and 3 poisoned ones"),
        ((100, 5, 500, 100), "100 of 500 clean images (20 %) and 5 poisoned ones"),
        (None, ""),
    ],
)
def test_a_note_says_with_how_many_images_if_not_with_two_percent_and_five(
    size: tuple[int, ...] | None, said: str
) -> None:
    assert cost.RETUNING[2:] == RETUNED
    record = make_record("ft", "badnets", 880, 50)
    metrics = record.metrics.with_(**{REACTIVATED: Count(600, 1000)})
    names = ("clean", "poisoned", "of", "classes")
    found = {"retuned": dict(zip(names, size, strict=True))} if size else {}
    text = tables.leaderboard([replace(record, metrics=metrics, diagnostics=found)]).blocks[0]
    assert (f"- P-ASR on badnets is with {said}" in text.splitlines()) == bool(said)
    assert ("is with" in text) == bool(said)


@pytest.mark.parametrize("second", ["blend(target=1)", "sig(poisoning_rate=0.5, target=1)"])
def test_the_parts_of_an_attack_take_turns(
    second: str, workspace: Callable[[Cell], Workspace]
) -> None:
    """Or a part whose labels are true would never come after one that changes labels."""
    ws = workspace(tiny(f"mixed(attacks={json.dumps(['badnets', second])})"))
    data = poison(ws)

    def drawn(of: PoisonedData) -> list[int]:
        """How many of the five are of each part."""
        few = reactivation.retuning_set(ws, of).images[-5:]
        same = (few[:, None] == data.train.images[None]).flatten(2).all(2)
        return [int((same & part.mask).any(1).sum()) for part in data.parts.values()]

    assert drawn(data) == [3, 2]
    assert drawn(data.part("badnets_1")) == [5, 0]


def test_each_part_of_an_attack_has_its_own_rate_and_control(
    tmp_path: Path, workspace: Callable[[Cell], Workspace]
) -> None:
    """P-ASR is that of the part that is the worst after the fine-tuning, the control that of the
    worst part then. These may be different parts, so the record has all of them."""
    made = tiny(f"mixed(attacks={json.dumps(['badnets', 'blend(target=1)'])})")
    record = run(tmp_path, made)
    assert len(record.parts) == 2
    for metric in (REACTIVATED, CONTROL):
        rates = [record.counts[f"{metric}_{part}"].rate for part in record.parts]
        assert record.counts[metric].rate == max(rates)
    ws = workspace(made)
    data = ws.poisoned = poison(ws)
    train_undefended(ws, data.train, 0)
    images = reactivation.retuning_set(ws, data)
    retuned = reactivation._retuned(ws, undefended_copy(ws, 0), images, data)
    for part in record.parts:
        assert record.counts[f"{REACTIVATED}_{part}"] == retuned[f"attack_success_rate_{part}"]
    text = " ".join(answer.text for answer in Case(record, None).answers())
    assert "By attack: `badnets_1`" in text
    assert text.count("clean network") == 2


def test_the_fine_tuning_is_plain_sgd(workspace: Callable[[Cell], Workspace]) -> None:
    """Against PyTorch's SGD on a batch of all images, written out: no augmentation here."""
    made = tiny(padding=0, cutout=0, flip=False, drops=(0.5,))
    ws = workspace(made)
    data = ws.poisoned = poison(ws)
    train_undefended(ws, data.train, 0)
    network = undefended_copy(ws, 0)
    before = deepcopy(network.state_dict())
    found = reactivation.reactivated(ws, network.requires_grad_(False), data)
    assert all(torch.equal(values, before[name]) for name, values in network.state_dict().items())
    assert not any(each.requires_grad for each in network.parameters())
    assert not network.training

    images = reactivation.retuning_set(ws, data)
    slow = deepcopy(network).requires_grad_(True).train()
    sgd = torch.optim.SGD(slow.parameters(), 0.01, 0.9, weight_decay=1e-4, nesterov=True)
    order = stream(0, "reactivation", "training")
    for _ in range(2):
        batch = images[torch.randperm(len(images), generator=order)]
        sgd.zero_grad()
        cross_entropy(slow(to_float(batch.images)), batch.labels).backward()
        sgd.step()
    victims = ws.goal != ws.dataset.test.labels
    fooled = predict(slow, data.triggered) == ws.goal
    assert found[REACTIVATED] == Count(int(fooled[victims].sum()), int(victims.sum()))
    right = int((predict(slow, ws.dataset.test.images) == ws.dataset.test.labels).sum())
    assert found[REACTIVATED_CA] == Count(right, 50)


def test_the_control_is_the_network_of_attack_none(tmp_path: Path) -> None:
    """It is trained once for all attacks, and cells of attack none share it."""
    made = tiny("blend(target=3)")
    run(tmp_path, made)
    networks = list((tmp_path / "undefended").glob("*.safetensors"))
    assert len(networks) == 2
    run(tmp_path, tiny("none(target=3)"))
    run(tmp_path, tiny("badnets(target=3)", "clp"))
    assert len(list((tmp_path / "undefended").glob("*.safetensors"))) == 3
    assert without_attack(made).labels["attack"] == "none(target=3)"
    assert without_attack(tiny()) == tiny("none")


class _Stopped(Signal):
    pass


def test_an_interrupted_reactivation_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny(defense="ft(updates=40)")
    whole = run(tmp_path / "whole", made)
    calls = iter(range(10))

    def stop(*arguments: Any, **named: Any) -> nn.Module:
        next(calls)
        raise _Stopped

    with monkeypatch.context() as patch:
        patch.setattr(reactivation, "train", stop)
        with pytest.raises(_Stopped):
            Harness(Cache(tmp_path / "cut"), [], CPU, patience=-1.0, reactivate=True).run(made)
    assert next(calls) == 1
    again = Harness(Cache(tmp_path / "cut"), [], CPU, patience=-1.0, reactivate=True).run(made)
    assert without(again) == without(whole)
    assert again.measured.resumed, "the defense has run again"


@pytest.fixture
def odd(unregistered: None) -> None:
    @defenses.register("odd")
    class Odd(Defense):
        """Returns a network whose weights are frozen, and nan."""

        undefended = 1

        def fit(self, data: ImageSet, context: Context) -> Classifier:
            network = context.undefended().requires_grad_(False)
            with torch.no_grad():
                network.head.weight.fill_(torch.nan)
            return network


@pytest.mark.usefixtures("odd")
def test_a_network_that_is_frozen_and_not_finite_has_a_whole_record(tmp_path: Path) -> None:
    record = run(tmp_path, tiny(defense="odd()"))
    assert (record.status, record.flags) == ("ok", ("not_finite",))
    assert record.count(REACTIVATED) is not None


# Which cells run, and how long they take.


def test_a_record_without_p_asr_runs_again(tmp_path: Path) -> None:
    wanted = {"stale": False, "curves": False, "save": False}
    for made in (tiny(), tiny("none")):
        write(tmp_path, run(tmp_path / "cache", made, reactivate=False))
    folders = [tmp_path / "other", tmp_path]

    def kind(made: Cell, reactivate: bool = True) -> str:
        return state_of(made, folders, reactivate=reactivate, **wanted).kind

    assert kind(tiny()) == "unreactivated"
    assert kind(tiny(), reactivate=False) == "finished"
    assert kind(tiny("none")) == "finished"
    assert kind(tiny(seed=1)) == "missing"
    write(tmp_path, run(tmp_path / "cache", tiny()))
    assert kind(tiny()) == "finished"


SHORT = "recipe(epochs=1, batch_size=32, updates=0.05)"
ON_TOY = ["--dataset", TOY, "--attack", "badnets", "--recipe", SHORT, "--device", "cpu"]
ARGUMENTS = ["run", *ON_TOY, "--defense", "none", "--defense", "clp", "--precision", "fp32"]


def test_the_option_runs_cells_again_and_says_so(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*ARGUMENTS, "--in-process"]
    assert main(arguments) == 0
    assert "P-ASR" not in (own_folder / "results/quick/tables/leaderboard.md").read_text()
    why = "2 records have no P-ASR, so --reactivate runs the cells again"
    capsys.readouterr()
    assert main([*arguments, "--reactivate", "--dry-run"]) == 0
    assert why in capsys.readouterr().out
    assert main([*arguments, "--reactivate"]) == 0
    assert why in capsys.readouterr().out
    board = (own_folder / "results/quick/tables/leaderboard.md").read_text()
    assert "| P-ASR |" in " ".join(board.split())
    assert "P-ASR of a network trained on clean images: " in board
    assert main([*arguments, "--reactivate"]) == 0
    assert "all 2 cells have records" in capsys.readouterr().out
    found = bd.load(own_folder / "results/quick")
    assert {record.count(REACTIVATED) is None for record in found} == {False}
    assert main(["explain", found.records[0].key]) == 0
    explained = capsys.readouterr().out
    assert f"{REACTIVATED} " in explained
    assert explained.rstrip().endswith("--reactivate --results results/quick/again")


def test_python_asks_for_it_too(tmp_path: Path) -> None:
    tiny_cell: dict[str, Any] = {"dataset": TOY, "recipe": SHORT, "device": "cpu"}
    assert bd.run_cell(**tiny_cell, results=tmp_path).count(REACTIVATED) is None
    record = bd.run_cell(**tiny_cell, results=tmp_path, reactivate=True)
    assert record.count(REACTIVATED) is not None
    assert read(path_of(tmp_path, record.key)).metrics == record.metrics
    curved = bd.run_cell(**tiny_cell, results=tmp_path, curves=True)
    assert curved.curves
    assert curved.metrics == record.metrics
    saved = bd.run_cell(**tiny_cell, results=tmp_path, save=True)
    assert (saved.metrics, saved.curves) == (record.metrics, curved.curves)
    own = {**tiny_cell, "attack": "badnets", "model": "wrn16_1"}
    given = bd.evaluate(record.network, **own, reactivate=True)
    assert given.count(REACTIVATED) is not None
    assert given.count(CONTROL) is None, "its network was trained elsewhere"


def test_an_estimate_has_the_passes_of_a_reactivation(
    tmp_path: Path, work: Callable[[Callable[[], object]], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fine-tuning on 2 + 5 images of 100, 2 updates; counted on 10 + 5, one clean image a class."""
    plain, pruned, control = tiny(), tiny(defense="clp"), tiny("none")
    assert cost.controls([plain, pruned, tiny("blend"), control]) == [control]
    assert cost.reactivation_work(pruned) == 3 * 2 * 7
    assert cost.reactivation_work(plain) == 2 * 3 * 2 * 7
    assert cost.reactivation_work(control) == 0

    def seconds(*cells: Cell, **options: Any) -> float:
        return Speed(CPU, probing=lambda cell, device: 1.0, **options).seconds(cells)

    added = seconds(plain, pruned, reactivate=True) - seconds(plain, pruned)
    assert added == pytest.approx(3 * 100 + 3 * 3 * 2 * 7)
    run(tmp_path, control)
    done = cached_work([plain, control], Cache(tmp_path), CPU, 1, curves=False)
    assert seconds(plain, reactivate=True, done=done) == pytest.approx(3 * 100 + 84)

    counted: list[int] = []
    train = reactivation.train

    def count(network: Classifier, *rest: Any, **named: Any) -> Classifier:
        counted.append(work(lambda: train(network, *rest, **named)))
        return network

    monkeypatch.setattr(reactivation, "train", count)
    run(tmp_path, plain)
    assert counted == [3 * 2 * 15] * 2


# Tables, files and pages.


def measured(record: Record, hits: int, control: int | None = None) -> Record:
    counts = {REACTIVATED: Count(hits, 1000), REACTIVATED_CA: Count(850, 1000)}
    if control is not None:
        counts[CONTROL] = Count(control, 1000)
    return replace(record, metrics={**record.counts, **counts})


NONE, CBD = make_record("none", "none", 940, floor=8), make_record("cbd", "badnets", 890, 12, 11)
OLD = [
    NONE,
    *(make_record("none", "badnets", 930, 998, 9, seed) for seed in (0, 1)),
    *(make_record("abl", "badnets", 880, 20, 15, seed) for seed in (0, 1)),
    CBD,
]
SOME = [
    NONE,
    *(measured(record, 997, 40 + 10 * seed) for seed, record in enumerate(OLD[1:3])),
    *(measured(record, 600 + 100 * seed) for seed, record in enumerate(OLD[3:5])),
    CBD,
]


def rows(text: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {line[0].strip(): [each.strip() for each in line] for line in lines}


def test_the_leaderboard_has_a_column_where_it_was_measured() -> None:
    board = tables.leaderboard(SOME)
    found = rows(board.markdown())
    assert found["no clean images"][3:7] == ["CA", "CA", "ASR", "P-ASR"]
    assert found["abl"][4:7] == ["88.0", "2.0 ~", "65.0"]
    assert found["cbd"][6] == "-"
    assert found["none"][6] == "99.7"
    more = rows(tables.leaderboard([*SOME, make_record("abl", "sig", 880, 20)]).markdown())
    assert more["no clean images"][3:9] == ["CA", "CA", "ASR", "P-ASR", "CA", "ASR"]
    assert "- P-ASR of a network trained on clean images: 4.5 ± 6.4 on badnets" in board.markdown()
    assert "\n- P-ASR: ASR of a copy" in board.markdown()
    old = tables.leaderboard(OLD).markdown()
    assert "P-ASR" not in old


def test_a_note_says_which_seeds_are_in_a_mean() -> None:
    """The control is one over the seeds that all P-ASRs have, if there are any."""
    third = [
        make_record(defense, "badnets", 900, asr, seed=2)
        for defense, asr in (("none", 990), ("abl", 20))
    ]
    some = [measured(third[0], 998, 60), third[1]]
    text = tables.leaderboard([*SOME, *some]).markdown()
    assert "- P-ASR is over fewer seeds than ASR: abl on badnets (seeds 0, 1 of 3)" in text
    controls = "- P-ASR of a network trained on clean images: "
    assert f"{controls}4.5 ± 6.4 on badnets (seeds 0, 1 of 3)" in text
    assert "P-ASR is over fewer seeds than ASR: abl on badnets (seeds 0, 1 of 3)." in (
        tables.leaderboard([*SOME, *some]).latex()
    )
    frame = frames.summarise([*SOME, *some]).set_index(["defense", "attack"])
    assert frame.loc[("abl", "badnets"), ["seeds", f"{REACTIVATED}_seeds"]].tolist() == [3, 2]
    apart = [some[0], *SOME[3:5]]
    assert f"{controls}6.0 on badnets\n" in tables.leaderboard(apart).markdown()
    assert "fewer seeds" not in tables.leaderboard(SOME).markdown()


def test_its_interval_is_shown_on_request() -> None:
    found = rows(tables.leaderboard(SOME, columns=["P-ASR interval"]).markdown())
    assert found["no clean images"][6:8] == ["P-ASR", "P-ASR interval"]
    assert found["abl"][6:8] == ["65.0", "1.5 to 100.0"]
    assert "1.5 to 100.0" in rows(tables.leaderboard(SOME, columns=["all"]).markdown())["abl"]
    usual = tables.leaderboard(SOME).markdown()
    assert tables.leaderboard(SOME, columns=["P-ASR"]).markdown() == usual
    assert "P-ASR" not in tables.leaderboard(OLD, columns=["all"]).markdown()
    with pytest.raises(bd.InvalidInput, match="did you mean 'P-ASR'"):
        tables.leaderboard(SOME, columns=["P-ASRR"])
    by = tables.leaderboard(SOME, sort="badnets P-ASR").markdown()
    assert by.index("| abl") < by.index("| cbd")


def test_the_files_have_it(tmp_path: Path) -> None:
    whole = tables.leaderboard(SOME)
    summary = whole.summary.set_index(["defense", "attack"])
    assert summary.loc[("abl", "badnets"), REACTIVATED] == pytest.approx(0.65)
    assert summary.loc[("abl", "badnets"), f"{REACTIVATED}_high"] == 1
    assert summary.loc[("abl", "badnets"), REACTIVATED_CA] == pytest.approx(0.85)
    assert summary.loc[("none", "badnets"), CONTROL] == pytest.approx(0.045)
    assert pd.isna(summary.loc[("cbd", "badnets"), REACTIVATED])
    assert list(tables.leaderboard(OLD).summary.columns) == list(frames.COLUMNS)
    tex = whole.latex()
    assert "CA & CA & ASR & P-ASR & R-Acc" in tex
    assert "65.0 {\\scriptsize $\\pm$" in tex
    assert "P-ASR: ASR of a copy that was" in tex
    assert "P-ASR" not in tables.leaderboard(OLD).latex()
    frame = export.frame(SOME)
    assert frame[f"{REACTIVATED}_hits"].tolist()[3:5] == [600, 700]
    assert frame[REACTIVATED].isna().tolist() == [True, False, False, False, False, True]


def test_the_pages_have_it(tmp_path: Path) -> None:
    home = write_report(SOME, tmp_path / "new").parent
    index = (home / "index.html").read_text()
    assert '<span class="aside">badnets </span>P-ASR</th>' in index
    assert "<dt>P-ASR</dt>" in index
    page = (home / f"cells/{SOME[3].key}.html").read_text().replace("&nbsp;", " ")
    assert "Does the backdoor come back?" in page
    assert "goes from 2.0 % to 60.0 %. That of a network trained on clean images is 4.0 %" in page
    assert '<th scope="row">P-ASR<br>' in page
    old = write_report(OLD, tmp_path / "old").parent
    for path in old.rglob("*.html"):
        assert "P-ASR" not in path.read_text()


def test_a_merge_prefers_the_record_that_says_more(tmp_path: Path) -> None:
    write(tmp_path / "a", OLD[3])
    write(tmp_path / "b", SOME[3])
    lines, whole = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert whole
    assert not [line for line in lines if "another result" in line]
    assert read(path_of(tmp_path / "all", SOME[3].key)).count(REACTIVATED) == Count(600, 1000)
    assert not OLD[3].contradicts(SOME[3])
    assert OLD[3].contradicts(SOME[5])


def test_the_command_that_runs_a_cell_again_asks_for_it() -> None:
    assert "--reactivate" in rerun.command(SOME[3], Path("x"))
    assert "--reactivate" not in rerun.command(OLD[3], Path("x"))
