"""The published tables and figures follow from the published records."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pandas as pd
import pytest
from builders import ROOT

from bdbench.cells import cost, grid
from bdbench.cells.suites import SUITES
from bdbench.defenses.neural_cleanse import LABELS, NeuralCleanse
from bdbench.figures import make
from bdbench.models.training.recipe import Recipe
from bdbench.records.files import read_all
from bdbench.records.parts import Diagnostics
from bdbench.tables.verify import verified
from bdbench.tables.write import leaderboard_files, table_files, write_files

# By name, as a user's own runs are in the same folder.
PUBLISHED = (
    "attacks-cifar10",
    "archive/cifar10-small",
    "archive/abl-without-limits",
    "table1-cifar10-bf16",
    "table1-cifar10",
    "digits",
    "digits-second-processor",
    "abl-unlearning",
    "cbd-12-epochs",
    "cbd-one-change",
    "cbd-first-stage",
    "digits-diagnostics",
    "digits-reactivation",
    "field-2026-short",
    "field-2026-digits",
)
FOLDERS = [ROOT / "results" / name for name in PUBLISHED]
METRICS = ("clean_accuracy", "attack_success_rate", "asr_floor")
FP32 = "recipe(precision='fp32')"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_published_tables_come_from_the_published_records(folder: Path, tmp_path: Path) -> None:
    records, damaged = read_all(folder)
    assert records
    assert damaged == []
    write_files(leaderboard_files(records, folder), tmp_path)
    for path in sorted((folder / "tables").iterdir()):
        number = re.match(r"table(\d)", path.name)
        if number:
            write_files(table_files(int(number[1]), records, folder, latex=True), tmp_path)
        elif path.stem == "verify":
            verified(records, folder).write(tmp_path)
        assert path.read_bytes() == (tmp_path / "tables" / path.name).read_bytes(), path


def test_published_figures_have_the_data_of_the_published_records(tmp_path: Path) -> None:
    folder = ROOT / "results/archive/cifar10-small"
    records, _ = read_all(folder)
    list(make("pareto", records, tmp_path, {"recipe": [FP32]}, ["svg"]))
    drawn, published = tmp_path / "figures/pareto-selection.csv", folder / "figures/pareto.csv"
    assert drawn.read_bytes() == published.read_bytes()
    assert f'--recipe "{FP32}"' in (ROOT / "results/archive/README.md").read_text()


def diagnostics(folder: str, defense: str, attack: str) -> dict[int, Diagnostics]:
    """What the published records of a defense against an attack say, by seed."""
    records, _ = read_all(ROOT / "results" / folder)
    return {
        record.cell.seed: record.diagnostics
        for record in records
        if (record.cell.defense.name, record.cell.attack.name) == (defense, attack)
    }


def test_the_page_quotes_the_losses_of_f_b() -> None:
    page = (ROOT / "results/README.md").read_text("utf-8")
    losses = {
        attack: {
            seed: each.samples["f_B loss"]
            for seed, each in diagnostics("digits", "cbd", attack).items()
        }
        for attack in ("badnets", "blend")
    }
    ranges = []
    for attack, by_seed in losses.items():
        clean = [each["mean_clean"] for each in by_seed.values()]
        ranges.append(f"{min(clean):.1f} to {max(clean):.1f} on {attack}")
    assert f"mean loss on clean images is {' and '.join(ranges)}" in page
    missed = losses["blend"][2]
    poisoned, clean = (f"{missed[f'mean_{kind}']:.2f}" for kind in ("poisoned", "clean"))
    assert f"in seed 2 (loss {poisoned} on poisoned, {clean} on clean images)" in page


def test_the_page_quotes_the_answers_to_each_class() -> None:
    page = (ROOT / "results/README.md").read_text("utf-8")
    records, _ = read_all(ROOT / "results/table1-cifar10")
    found = {(r.cell.defense.name, r.cell.seed): r for r in records}
    for defense, seed in (("none", 0), ("cbd", 0), ("none", 1), ("cbd", 1), ("cbd", 2)):
        record = found[defense, seed]
        classes, samples = record.classes, record.diagnostics.samples
        assert classes is not None
        own, goal = (
            [f"{100 * count / n:.1f}" for count, n in zip(counts, classes.images, strict=True)]
            for counts in (classes.clean_own, classes.clean_goal)
        )
        assert f"| accuracy, {defense} | {' | '.join(own)} |" in page
        if (defense, seed) != ("none", 1):
            assert f"| called airplane, {defense} | - | {' | '.join(goal[1:])} |" in page
        title = f"seed {seed} " if seed else ""
        assert f"| {title}| airplane (target) | {' | '.join(classes.names[1:])} |" in page
        if defense == "cbd" and seed:
            for what, sample in (("f_B's loss", "f_B loss"), ("weight", "w")):
                means = " | ".join(f"{mean:.2f}" for mean in samples[sample]["by_class"])
                assert f"| {what} | {means} |" in page


def test_the_page_quotes_what_f_b_knows_of_three_classes() -> None:
    """In fifths of a class by f_B's loss. The last weights are those of clean training images."""
    page = (ROOT / "results/README.md").read_text("utf-8")
    folder = ROOT / "results/table1-cifar10"
    test = pd.read_csv(folder / "cbd-test-images.csv")
    training = pd.read_csv(folder / "cbd-training-images.csv.gz")
    (record,) = [
        r
        for r in read_all(folder)[0]
        if r.cell.defense.name == "cbd" and r.cell.attack.name == "badnets" and r.cell.seed == 0
    ]
    published = {name: record.diagnostics.samples[name] for name in ("f_B loss", "w")}
    poisoned, clean = (training[training.poisoned == n] for n in (1, 0))
    for name, column in (("f_B loss", "f_b_loss"), ("w", "weight")):
        assert clean[column].mean() == pytest.approx(published[name]["mean_clean"], abs=1e-4)
        assert poisoned[column].mean() == pytest.approx(published[name]["mean_poisoned"], abs=1e-4)
    hard = f"{100 * (poisoned.weight > 0.1).mean():.1f} %"
    assert f"{hard} of the poisoned images end with a weight above 0.1" in " ".join(page.split())
    assert 0.0014 < poisoned.f_b_loss.max() < 0.0015
    assert "39.5 % of the crops show none of it" in " ".join(page.split())
    assert round(1 - (7 / 9) ** 2, 3) == 0.395

    def fifths(images: pd.DataFrame, label: int) -> list[pd.DataFrame]:
        own = images[images.label == label].sort_values("f_b_loss", kind="stable")
        return [own.iloc[n * len(own) // 5 : (n + 1) * len(own) // 5] for n in range(5)]

    for name, label in (("automobile", 1), ("truck", 9), ("horse", 7)):
        lost = [f"{100 * (each.f_c_answer == 0).mean():.1f}" for each in fifths(test, label)]
        loss = [f"{each.f_b_loss.median():.2g}" for each in fifths(clean, label)]
        weight = [f"{each.weight.mean():.2f}" for each in fifths(clean, label)]
        for values in (lost, loss, weight):
            assert f"| {name} | {' | '.join(values)} |" in page, (name, values)


def test_the_page_quotes_the_test_of_why_a_class_is_lost() -> None:
    page = (ROOT / "results/README.md").read_text("utf-8")
    records, _ = read_all(ROOT / "results/cbd-12-epochs")
    assert len(records) == 2
    for record in records:
        spec = "cbd(per_view=False)" if "per_view" in record.cell.defense.fields else "cbd"
        classes, samples = record.classes, record.diagnostics.samples
        assert classes is not None
        car, dog = classes.names.index("automobile"), classes.names.index("dog")
        rates = [f"{100 * record.counts[m].rate:.1f}" for m in METRICS]
        answers = [
            f"{100 * counts[label] / classes.images[label]:.1f}"
            for label in (car, dog)
            for counts in (classes.clean_own, classes.clean_goal)
        ]
        w = samples["w"]
        weights = [f"{w['mean_poisoned']:.2f}", f"{w['by_class'][car]:.3f}"]
        shown = [f"{rates[0]} / {rates[1]} ({rates[2]})", *weights, *answers]
        assert f"| {spec} | {' | '.join(shown)} |" in page, shown
        known = sorted(range(10), key=samples["f_B loss"]["by_class"].__getitem__)
        assert known[:2] == [car, dog]


def test_the_page_quotes_cbd_with_one_change() -> None:
    """Each beside CBD with the same seed, by class."""
    page = (ROOT / "results/README.md").read_text("utf-8")
    (plain,) = [
        r
        for r in read_all(ROOT / "results/table1-cifar10")[0]
        if (r.cell.defense.name, r.cell.seed) == ("cbd", 0)
    ]
    changed, _ = read_all(ROOT / "results/cbd-one-change")
    assert changed
    for record in (plain, *changed):
        classes, samples = record.classes, record.diagnostics.samples
        assert classes is not None
        rates = [f"{100 * record.counts[m].rate:.1f}" for m in METRICS]
        loss, w = samples["f_B loss"], samples["w"]
        shown = [
            f"{rates[0]} / {rates[1]} ({rates[2]})",
            f"{loss['mean_clean']:.2f}",
            f"{loss['auroc']:.3f}",
            f"{w['mean_poisoned']:.2f}",
            f"{w['mean_clean']:.2f}",
        ]
        name = record.labels.defense
        assert f"| {name} | {' | '.join(shown)} |" in page, shown
        own, goal = (
            [f"{100 * count / n:.1f}" for count, n in zip(counts, classes.images, strict=True)]
            for counts in (classes.clean_own, classes.clean_goal)
        )
        assert f"| accuracy, {name} | {' | '.join(own)} |" in page, own
        assert f"| called airplane, {name} | - | {' | '.join(goal[1:])} |" in page, goal
        if record is not plain:
            for what, each in (("f_B's loss", loss), ("weight", w)):
                means = " | ".join(f"{mean:.2f}" for mean in each["by_class"])
                assert f"| {what}, {name} | {means} |" in page, means


def test_the_page_quotes_when_f_b_knows_the_trigger() -> None:
    page = (ROOT / "results/README.md").read_text("utf-8")
    every, _ = read_all(ROOT / "results/cbd-first-stage")
    records = [record for record in every if record.cell.defense.name == "f_b_by_epoch"]
    cbd = diagnostics("table1-cifar10", "cbd", "badnets")
    assert sorted(record.cell.seed for record in records) == [0, 1, 2]
    for record in records:
        seed, classes = record.cell.seed, record.classes
        assert classes is not None
        found = [
            record.diagnostics.samples[f"f_B loss after {epochs} epochs"] for epochs in range(1, 9)
        ]
        poisoned = [each["mean_poisoned"] for each in found]
        known = [min(range(10), key=each["by_class"].__getitem__) for each in found]
        rows = {
            f"{seed} | loss, poisoned": [f"{n:.2f}" if n >= 0.1 else f"{n:.4f}" for n in poisoned],
            " | loss, clean": [f"{each['mean_clean']:.2f}" for each in found],
            " | AUROC": [f"{each['auroc']:.3f}" for each in found],
            " | class with the lowest loss": [classes.names[label] for label in known],
        }
        lines = [f"| {name} | {' | '.join(values)} |" for name, values in rows.items()]
        assert "\n".join(lines).replace("|  |", "| |") in page
        assert max(each["auroc"] for each in found[1:3]) < 0.5
        assert 0.9 < found[4]["auroc"] <= found[7]["auroc"]
        if seed in cbd:
            whole = cbd[seed].samples["f_B loss"]
            for name in ("mean_clean", "mean_poisoned", "auroc"):
                assert found[4][name] == whole[name]


def test_the_page_quotes_how_f_b_is_read() -> None:
    """With running batch-norm statistics and with those estimated anew."""
    page = (ROOT / "results/README.md").read_text("utf-8")
    by_epoch = diagnostics("cbd-first-stage", "f_b_by_epoch", "badnets")
    both = diagnostics("cbd-first-stage", "f_b_statistics", "badnets")
    every: dict[str, list[float]] = {"running": [], "anew": []}
    for seed, found in sorted(both.items()):
        epochs = [f"f_B loss after {n} epochs" for n in range(3, 9)]
        for name in epochs:
            assert found.samples[name] == by_epoch[seed].samples[name]
        ratios = {}
        for how, ending in (("running", ""), ("anew", ", statistics anew")):
            samples = [found.samples[f"{name}{ending}"] for name in epochs]
            losses = [each["by_class"] for each in samples]
            ratios[how] = [max(each) / min(each) for each in losses]
            first = f"| {seed} |" if how == "running" else "| |"
            rows = {
                f"{first} {how} | loss, clean": [f"{each['mean_clean']:.2f}" for each in samples],
                "| | | largest loss of a class / smallest": [f"{n:.1f}" for n in ratios[how]],
                "| | | AUROC": [f"{each['auroc']:.3f}" for each in samples],
            }
            lines = [f"{name} | {' | '.join(values)} |" for name, values in rows.items()]
            assert "\n".join(lines) in page
        every["running"] += ratios["running"]
        every["anew"] += ratios["anew"]
    smaller = sum(a < b for a, b in zip(every["anew"], every["running"], strict=True))
    ranges = [f"{min(each):.1f} to {max(each):.1f}" for each in every.values()]
    flat = " ".join(page.split())
    after = {
        how: [
            f"{both[seed].samples[f'f_B loss after 5 epochs{end}']['auroc']:.3f}"
            for seed in (0, 1, 2)
        ]
        for how, end in (("running", ""), ("anew", ", statistics anew"))
    }
    new, old = ("{}, {} and {}".format(*each) for each in (after["anew"], after["running"]))
    assert f"the AUROC is {new} with new ones, and {old} with running ones" in flat
    assert f"is {ranges[0]} times the smallest with running statistics" in flat
    assert f"and {ranges[1]} times with new ones; it is less in {smaller} of " in flat
    assert f"of {len(every['anew'])} cases" in flat


def test_the_page_quotes_when_abl_loses_the_target_class() -> None:
    page = (ROOT / "results/README.md").read_text("utf-8")
    records, _ = read_all(ROOT / "results/abl-unlearning")
    found = {r.labels.defense: r for r in records}
    names = {
        "abl(joint_updates=0)": "none, ",
        "abl(joint_updates=20)": "20 updates, ",
        "abl": "80 updates, ",
        "abl(objective='sequential')": "the ascent of the authors' code, ",
    }
    assert found.keys() == names.keys()
    for label, record in found.items():
        classes = record.classes
        assert classes is not None
        assert classes.names[0] == "airplane"
        own, images = classes.clean_own, classes.images
        ca, asr, floor = (f"{100 * record.counts[m].rate:.1f}" for m in METRICS)
        shown = f"{100 * own[0] / images[0]:.1f} | {100 * sum(own[1:]) / sum(images[1:]):.1f}"
        assert f"| {names[label]}`{label}` | {ca} | {asr} ({floor}) | {shown} |" in page
        assert record.diagnostics.scalars["isolated images"] == 100
        assert record.diagnostics.samples["kept"]["precision"] == 0.99
    records, _ = read_all(ROOT / "results/table1-cifar10")
    by_class = {(r.cell.defense.name, r.cell.seed): r.classes for r in records}
    text = " ".join(page.split())
    for seed in (0, 1):
        abl, none = by_class["abl", seed], by_class["none", seed]
        assert abl is not None
        assert none is not None
        own = abl.clean_own[0], none.clean_own[0]
        every = sum(none.clean_own) - sum(abl.clean_own)
        assert (
            f"{own[0]} of 1,000 clean airplanes, where `none` has {own[1]}. "
            f"That is {(own[1] - own[0]) / 100:.1f} of the {every / 100:.1f} points of CA"
        ) in text


def test_the_page_quotes_nad_without_attention() -> None:
    page = (ROOT / "results/README.md").read_text("utf-8")
    records, _ = read_all(ROOT / "results/digits-diagnostics")
    shown = []
    for attack in ("badnets", "blend"):
        found = [
            record
            for record in records
            if record.labels.defense == "nad(betas=(0.0, 0.0, 0.0))"
            and record.cell.attack.name == attack
        ]
        assert sorted(record.cell.seed for record in found) == [0, 1, 2]
        rates = [100 * mean(record.counts[m].rate for record in found) for m in METRICS[:2]]
        shown.append(" / ".join("100" if rate == 100 else f"{rate:.1f}" for rate in rates))
    said = f"as long as NAD and without them, has {'; '.join(shown)}"
    assert f"`nad(betas=(0.0, 0.0, 0.0))`, {said}" in page


def test_the_pages_quote_the_first_cells_by_seed() -> None:
    front, page = (
        " ".join((ROOT / name).read_text("utf-8").split())
        for name in ("README.md", "results/README.md")
    )
    found: dict[tuple[str, str], list[float]] = {}
    records, _ = read_all(ROOT / "results/table1-cifar10")
    for record in sorted(records, key=lambda each: each.cell.seed):
        for name, metric in (("CA", "clean_accuracy"), ("ASR", "attack_success_rate")):
            count = record.count(metric)
            assert count is not None
            found.setdefault((record.cell.defense.name, name), []).append(100 * count.rate)
    assert f"is below the {mean(found['none', 'CA']):.1f} of no defense" in front
    assert f"{mean(found['cbd', 'ASR']):.1f}, matches its *floor*" in front
    lost = [a - b for a, b in zip(found["none", "CA"], found["cbd", "CA"], strict=True)]
    assert f"ours are {', '.join(f'{points:.1f}' for points in lost)} and, in bf16," in page
    first, second, third = (f"{rate:.1f}" for rate in found["fp", "ASR"])
    assert f"but for FP's: {first}, {second} and {third}." in page
    assert f"to {first}, {second} and {third}, with" in page


def test_the_page_quotes_the_validation_accuracies_of_fp() -> None:
    page = (ROOT / "results/README.md").read_text("utf-8")
    single, half = (
        diagnostics(folder, "fp", "badnets")[0].scalars
        for folder in ("table1-cifar10", "table1-cifar10-bf16")
    )
    channels = [f"{each['pruned channels']:g}" for each in (single, half)]
    before, pruned, after = (
        [f"{100 * each[f'validation accuracy {when}']:.1f}" for each in (single, half)]
        for when in ("before", "pruned", "after")
    )
    assert before[0] == before[1]
    assert (
        f"FP removes {' and '.join(channels)} of 64 channels, with which validation accuracy falls "
        f"from {before[0]} to {' and '.join(pruned)}; after fine-tuning it is {' and '.join(after)}"
    ) in page


def test_the_pages_say_what_a_search_of_neural_cleanse_costs() -> None:
    method = NeuralCleanse()

    def passes(images: int, updates: int, batch_size: int) -> float:
        return method.tuning_passes(Recipe(), images, updates, batch_size)

    short = passes(10_000, method.updates, method.batch_size) / passes(10_000, method.updates, 32)
    page = (ROOT / "results/README.md").read_text("utf-8")
    assert f"at the default one the search sees {short:.1f} times as many images" in page
    plain = 3 * Recipe().epochs
    own, allowed = (
        3 * LABELS * passes(50_000, *each) / plain
        for each in ((method.updates, method.batch_size), (31_000, 32))
    )
    decisions = (ROOT / "DECISIONS.md").read_text("utf-8")
    assert f"for {own:.1f} plain trainings;" in decisions
    assert round(allowed) == 2
    assert "the 31,000 batches of 32 that its authors allow would take two." in decisions


def test_no_run_writes_among_the_published_records_by_default() -> None:
    for name in PUBLISHED:
        marked = (ROOT / "results" / name / "PUBLISHED").is_file()
        assert marked or name not in SUITES, f"add the file results/{name}/PUBLISHED"


def test_the_planning_page_says_what_the_suites_cost() -> None:
    """It counts plain trainings for one seed, and those of DBD."""
    rows = re.findall(
        r"^\| (\S+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$",
        (ROOT / "results/PLANNING.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) == 6
    for name, count, total, dbd in rows:
        cells = grid.cells(replace(SUITES[name], seeds=1), "fp32")
        recipe, images = Recipe(), 50_000
        if name == "table1-imagenet":
            images = cells[0].dataset.count
        unit = 3 * recipe.epochs * images
        shares = cost.added_work(cells)
        assert len(cells) == int(count)
        assert f"{sum(shares.values()) / unit:.1f}" == total
        of_dbd = sum(share for cell, share in shares.items() if cell.labels["defense"] == "dbd")
        assert f"{of_dbd / unit:.1f}" == dbd


def test_the_page_quotes_the_curve_of_mcr() -> None:
    page = (ROOT / "results/README.md").read_text("utf-8")
    folder = ROOT / "results/table1-cifar10"
    records, _ = read_all(folder)
    (record,) = (r for r in records if r.cell.defense.name == "mcr")
    scalars = record.diagnostics.scalars
    points = [n / 10 for n in range(1, 10)]
    validated = [scalars[f"validation accuracy at t = {t}"] for t in points]
    assert min(validated[0] - each for each in validated[1:]) > 0.02, "another t would be chosen"
    assert scalars["t"] == points[0]
    curve = pd.read_csv(folder / "mcr-curve.csv")
    assert curve["t"].tolist() == points
    rows = {
        "validation accuracy": validated,
        "CA": curve["clean_hits"] / curve["clean_of"],
        "ASR": curve["attacked_hits"] / curve["attacked_of"],
        "floor": curve["floor_hits"] / curve["attacked_of"],
    }
    for name, shares in rows.items():
        shown = " | ".join(f"{100 * each:.1f}" for each in shares)
        assert f"| {name} | {shown} |" in page
    chosen = curve.iloc[0]
    counts = [record.counts[metric].hits for metric in METRICS]
    assert counts == [chosen["clean_hits"], chosen["attacked_hits"], chosen["floor_hits"]]
