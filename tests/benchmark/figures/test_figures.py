"""Figures have the data that is written out below, and bad input is refused."""

from __future__ import annotations

import hashlib
import random
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pytest
import torch
from builders import RECIPE, ROOT, make_record
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from PIL import Image

from bdbench import figures
from bdbench.attacks.base import Attack, Poisoned, prepared
from bdbench.attacks.poison import dirty_label
from bdbench.attacks.registry import attacks
from bdbench.cells.cell import REGISTRIES, cell, cell_of, recipe_label
from bdbench.cells.grid import recipe_for
from bdbench.cells.suites import SUITES
from bdbench.cli import main
from bdbench.figures import curves, losses, pareto, picture, plane, triggers, tsne
from bdbench.figures.labels import _distance
from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.plugins.spec import Spec
from bdbench.models.scope import num_threads
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.recipe import Recipe
from bdbench.records import files as records
from bdbench.records.consistency import AXES
from bdbench.records.record import Record
from bdbench.running import speed
from bdbench.storage.cache import Arrays, Cache
from bdbench.tables.selection import Selection, _changed, _entries, agrees, select
from bdbench.trial.harness import Harness

CANONICAL = {
    "adaptive": "adaptive(poisoning_rate=0.1, attack=\"badnets(pattern='grid')\", steps=5)",
    "badnets": "badnets(poisoning_rate=0.1, pattern='grid')",
    "cbd(t1=2)": "cbd(t1=2, beta=0.0001)",
}


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine pictures take their time."""
    monkeypatch.setattr(picture, "DPI", 50)


def made(defense: str, attack: str, *arguments: Any, curve: Any = (), **options: Any) -> Record:
    """A record whose canonical specs can be read; `curve` holds tuples as `point` takes them."""
    record = make_record(defense, attack, *arguments, **options)
    specs = {
        axis: CANONICAL.get(name, f"{name.partition('(')[0]}(field=1)")
        for axis, name in (("attack", attack), ("defense", defense))
    }
    points = [point(epoch + 1, *shares) for epoch, shares in enumerate(curve)]
    return replace(record, curves=points, cell=record.cell.with_(**specs))


def point(
    epoch: int, ca: float, asr: float | None, clean: float, poisoned: float | None
) -> dict[str, Any]:
    shares = {"clean_accuracy": ca, "attack_success_rate": asr, "robust_accuracy": None}
    return {"epoch": epoch, **shares, "clean_loss": clean, "poisoned_loss": poisoned}


def folder(path: Path, *cells: Record) -> Path:
    for each in cells:
        records.write(path, each)
    return path


def drawn(cells: list[Record], **wanted: list[str]) -> Selection:
    return select(cells, Path("results/toy"), wanted)


def csv(table: pd.DataFrame) -> str:
    return str(table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


ONE_SEED = [
    made("none", "none", 940, 8),
    made("none", "badnets", 930, 1000, seconds=(60.0, 0.0)),
    made("none", "blend", 920, 960, seconds=(40.0, 0.0)),
    made("abl", "badnets", 880, 20, seconds=(0.0, 90.0)),
    made("abl", "blend", None),
    made("cbd(t1=2)", "badnets", 900, 12, seconds=(0.0, 150.0)),
    made("cbd(t1=2)", "blend", 930, 30, seconds=(0.0, 100.0)),
    made("ft", "badnets", 935, 900, seconds=(60.0, 6.0)),
    made("ft", "blend", 100, 0, flags=("not_finite",)),
]

ONE_SEED_CSV = """\
defense,attack,attacks,seeds,seconds_ratio,attack_success_rate,clean_accuracy_lost,\
front_attack_success_rate,front_clean_accuracy_lost
none,badnets,1,1,1,1,0,,
none,blend,1,1,1,0.96,0,,
none,mean,1,1,1,1,0,True,True
cbd(t1=2),badnets,1,1,2.5,0.012,0.03,,
cbd(t1=2),blend,1,1,2.5,0.03,-0.01,,
cbd(t1=2),mean,1,1,2.5,0.012,0.03,True,False
abl,badnets,1,1,1.5,0.02,0.05,,
abl,mean,1,1,1.5,0.02,0.05,True,False
ft,badnets,1,1,1.1,0.9,-0.005,,
ft,mean,1,1,1.1,0.9,-0.005,True,True
"""

CURVES = [
    made("none", "none", 940, 8, curve=[(0.5, 0.1, 2.0, None), (0.9, 0.1, 1.0, None)]),
    made("none", "badnets", 930, 990, curve=[(0.4, 0.6, 2.0, 1.0), (0.8, 1.0, 1.0, 0.0)]),
    made("none", "badnets", 930, 990, seed=1, curve=[(0.5, 0.8, 1.5, 0.5), (0.9, 1.0, 0.5, 0.25)]),
    made("none", "adaptive", 920, 990, curve=[(0.3, 0.5, 2.0, 2.5), (0.7, 1.0, 1.25, 0.125)]),
    made("cbd(t1=2)", "badnets", 880, 20, curve=[(0.2, 0.25, 2.25, 4.0)]),
    made("abl", "badnets", 100, 0, flags=("not_finite",), curve=[(0.1, 0.0, 9.0, 9.0)]),
]

CURVES_CSV = """\
attack,defense,epoch,seeds,clean_accuracy,clean_accuracy_low,clean_accuracy_high,\
attack_success_rate,attack_success_rate_low,attack_success_rate_high
adaptive,none,1,1,0.3,0.3,0.3,0.5,0.5,0.5
adaptive,none,2,1,0.7,0.7,0.7,1,1,1
badnets,none,1,2,0.45,0.4,0.5,0.7,0.6,0.8
badnets,none,2,2,0.85,0.8,0.9,1,1,1
badnets,cbd(t1=2),1,1,0.2,0.2,0.2,0.25,0.25,0.25
"""

LOSSES_CSV = """\
attack,defense,epoch,seeds,clean_loss,clean_loss_low,clean_loss_high,\
poisoned_loss,poisoned_loss_low,poisoned_loss_high
adaptive,none,1,1,2,2,2,2.5,2.5,2.5
adaptive,none,2,1,1.25,1.25,1.25,0.125,0.125,0.125
badnets,none,1,2,1.75,1.5,2,0.75,0.5,1
badnets,none,2,2,0.75,0.5,1,0.125,0,0.25
"""


def shown(figure: Figure) -> dict[str, list[str]]:
    """Titles, labels, captions and texts within panels."""
    return {
        "titles": [axes.get_title() for axes in figure.axes],
        "rows": [axes.get_ylabel() for axes in figure.axes if axes.get_ylabel()],
        "texts": [text.get_text().strip() for axes in figure.axes for text in axes.texts],
        "caption": [figure.get_supxlabel().replace("\n", " ").replace(picture.NO_BREAK, " ")],
        "legend": [text.get_text() for legend in figure.legends for text in legend.texts],
    }


def test_pareto_compares_over_the_attacks_that_defenses_share() -> None:
    made_picture = pareto.draw(drawn(ONE_SEED))
    data = made_picture.data
    ends = [name for name in data if name.endswith(("_low", "_high"))]
    assert csv(data.drop(columns=ends)) == ONE_SEED_CSV
    assert data[ends].isna().all(axis=None)
    (text,) = shown(made_picture.figure)["caption"]
    assert text == (
        "toy, wrn16_1, 30 epochs, 1 seed. Large markers: mean over 1 attack, "
        "BadNets 10 %; small: each attack. Dashed: Pareto front. "
        "Left out, not finite: ft on blend. Left out, failed: abl on blend."
    )


def test_pareto_has_intervals_over_complete_seeds() -> None:
    """Student's t for 95 % and three seeds is 4.302653, and the half width t s / sqrt(n)."""
    cells = [
        *(made("none", "badnets", 900, 1000, seed=s, seconds=(50.0, 0.0)) for s in range(3)),
        *(made("none", "blend", 900, 1000, seed=s, seconds=(50.0, 0.0)) for s in range(4)),
    ]
    for seed, (asr, seconds) in enumerate([(10, 100.0), (20, 200.0), (30, 400.0)]):
        cells.append(made("cbd(t1=2)", "badnets", 890, asr, seed=seed, seconds=(0.0, seconds)))
        cells.append(made("cbd(t1=2)", "blend", 870, 0, seed=seed, seconds=(0.0, seconds)))
    cells.append(made("cbd(t1=2)", "blend", 870, 0, seed=3, seconds=(0.0, 100.0)))
    data = pareto.draw(drawn(cells)).data
    row = data[(data["defense"] == "cbd(t1=2)") & (data["attack"] == "mean")].iloc[0]
    assert row["seeds"] == 3
    ratios, factor = [2.0, 4.0, 8.0], np.exp(4.302653 * np.log(2) / np.sqrt(3))
    mean = (2.0 * 4.0 * 8.0) ** (1 / 3)
    assert np.std(np.log(ratios), ddof=1) == pytest.approx(np.log(2))
    assert row["seconds_ratio"] == pytest.approx(mean)
    assert row["seconds_ratio_low"] == pytest.approx(mean / factor, rel=1e-5)
    assert row["seconds_ratio_high"] == pytest.approx(mean * factor, rel=1e-5)
    half = 4.302653 * 0.005 / np.sqrt(3)
    assert row["attack_success_rate"] == pytest.approx(0.01)
    assert row["attack_success_rate_low"] == 0.0
    assert row["attack_success_rate_high"] == pytest.approx(0.01 + half, rel=1e-5)
    lost = [row[f"clean_accuracy_lost{end}"] for end in ("_low", "", "_high")]
    assert lost == pytest.approx([0.02] * 3)


def test_pareto_compares_the_seeds_that_both_sides_have() -> None:
    """Every pair loses 0.02 of CA. The third seed of no defense, a poor one, is in no pair."""
    cells = [
        *(made("none", "badnets", ca, 1000, seed=s) for s, ca in enumerate((900, 800, 500))),
        *(made("cbd", "badnets", ca, 10, seed=s) for s, ca in enumerate((880, 780))),
    ]
    data = pareto.draw(drawn(cells)).data
    for _, row in data[data["defense"] == "cbd"].iterrows():
        lost = [row[f"clean_accuracy_lost{end}"] for end in ("_low", "", "_high")]
        assert lost == pytest.approx([0.02] * 3)
        assert row["seeds"] == 2


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        ([("none", 0), ("cbd", 0)], "1 seed. Large markers"),
        (
            [("none", 0), *(("cbd", seed) for seed in range(3))],
            "Left out, nothing run alike to compare with: cbd on badnets (2 of 3 seeds).",
        ),
        ([("none", 0), ("none", 1), ("cbd", 0)], "1 to 2 seeds. Large markers"),
        (
            [("none", 0), ("cbd", 1), ("cbd", 2), ("ft", 0)],
            "Over all seeds, without a common one: cbd.",
        ),
    ],
)
def test_the_caption_of_pareto_counts_seeds_with_a_partner(
    cells: list[tuple[str, int]], said: str
) -> None:
    records = [made(name, "badnets", 900, 100, seed=seed) for name, seed in cells]
    assert said in shown(pareto.draw(drawn(records)).figure)["caption"][0]


def test_pareto_names_what_has_no_result_of_no_defense() -> None:
    cells = [*ONE_SEED, made("ft", "sig", 900, 20), made("none", "sig", None)]
    cells.append(made("abl", "sig", 100, 0, flags=("diverged",)))
    (text,) = shown(pareto.draw(drawn(cells)).figure)["caption"]
    assert (
        "Left out, nothing run alike to compare with: ft on sig. Left out, diverged: abl on sig"
        in text
    )


PLANE_CSV = """\
attack,defense,seeds,clean_accuracy,attack_success_rate
badnets,none,1,0.93,1
badnets,abl,1,0.88,0.02
badnets,cbd(t1=2),1,0.9,0.012
badnets,ft,1,0.935,0.9
blend,none,1,0.92,0.96
blend,cbd(t1=2),1,0.93,0.03
"""


def test_the_plane_has_a_panel_for_each_attack_and_a_name_at_each_point() -> None:
    made_picture = plane.draw(drawn(ONE_SEED))
    data = made_picture.data
    ends = [name for name in data if name.endswith(("_low", "_high"))]
    assert csv(data.drop(columns=ends)) == PLANE_CSV
    assert len(ends) == 4
    # Wilson's interval of 12 of 1000.
    assert data.loc[2, ["attack_success_rate_low", "attack_success_rate_high"]].to_list() == (
        pytest.approx([0.00687765, 0.0208573], abs=1e-6)
    )
    found = shown(made_picture.figure)
    assert found["titles"][:2] == ["BadNets 10 %", "Blend"]
    assert sorted(found["texts"]) == sorted(
        ["No defense", "ABL", "CBD (t1=2)", "FT", "No defense", "CBD (t1=2)"]
    )
    assert found["caption"] == [
        "toy, wrn16_1, 30 epochs, 1 seed. The lower right corner is best: high CA, low ASR. "
        "Bars: 95 % Wilson interval of one seed. Left out, not finite: ft on blend. "
        "Left out, failed: abl on blend."
    ]
    panel = made_picture.figure.axes[0]
    points = np.vstack([line.get_xydata() for line in panel.lines[::3]])
    assert points == pytest.approx(np.array([[93, 100], [88, 2], [90, 1.2], [93.5, 90]]))


def crowd(count: int, apart: float) -> list[Record]:
    """Defenses whose points are `apart` percentage points of CA from one another."""
    names = ["none", *(f"mine_{n}(side={n})" for n in range(1, count))]
    return [
        made(name, "badnets", int(700 + 10 * apart * n), 20 + n % 3, seconds=(0.0, 60.0 + n))
        for n, name in enumerate(names)
    ]


@pytest.mark.parametrize("which", [pareto, plane])
@pytest.mark.parametrize(("count", "apart"), [(2, 5.0), (10, 1.0), (25, 0.0)])
def test_every_panel_has_each_name_once_and_no_names_overlap(
    which: Any, count: int, apart: float
) -> None:
    """However many points there are and however close they are, even on one another."""
    with picture.look():
        figure = which.draw(drawn(crowd(count, apart))).figure
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        width, height = canvas.get_width_height()
        panels = [axes for axes in figure.axes if axes.texts]
        assert len(panels) == {pareto: 2, plane: 1}[which]
        for panel in panels:
            words = [text.get_text() for text in panel.texts]
            assert sorted(words) == sorted(
                ["No defense", *(f"Mine {n} (side={n})" for n in range(1, count))]
            )
            boxes = [Text.get_window_extent(text) for text in panel.texts]
            assert all(0 <= box.x0 < box.x1 <= width for box in boxes)
            assert all(0 <= box.y0 < box.y1 <= height for box in boxes)
            assert not [pair for pair in combinations(boxes, 2) if pair[0].overlaps(pair[1])]


@pytest.mark.parametrize("asrs", [(63, 50), (50, 63), (50, 50), (70, 64), (900, 880)])
def test_a_name_without_a_line_is_nearest_to_its_own_point(asrs: tuple[int, int]) -> None:
    cells = [made("none", "badnets", 900, 990, seconds=(0.0, 60.0))]
    for name, asr in zip(("abl", "cbd(t1=2)"), asrs, strict=True):
        cells.append(made(name, "badnets", 880, asr, seconds=(0.0, 60.0)))
    figure = pareto.draw(drawn(cells)).figure
    FigureCanvasAgg(figure).draw()
    for panel in figure.axes:
        texts = [text for text in panel.texts if isinstance(text, Annotation)]
        places = [panel.transData.transform(text.xy) for text in texts]
        for text, own in zip(texts, places, strict=True):
            if text.arrow_patch is None:
                box = Text.get_window_extent(text)
                distances = [_distance(box, place) for place in places]
                assert _distance(box, own) == min(distances), text.get_text()


def test_only_crowded_names_have_lines_to_their_points() -> None:
    few, many = (plane.draw(drawn(crowd(*args))).figure.axes[0] for args in ((2, 5.0), (30, 0.0)))
    assert [text.arrow_patch for text in few.texts] == [None, None]
    assert all(text.arrow_patch is not None for text in many.texts)


def test_no_two_defenses_look_alike() -> None:
    looks = [tuple(picture.mark(rank).items()) for rank in range(100)]
    assert len(set(looks)) == 100
    lines = [tuple(picture.line_style(rank, 3).items()) for rank in range(100)]
    assert len(set(lines)) == 100


def test_a_folder_where_nothing_ran_alike_is_told_how_to_compare_times() -> None:
    cells = [made("none", "badnets", 930, 1000), made("ft", "badnets", 900, 10)]
    alone = [
        replace(each, provenance=each.provenance.with_(device="cpu: one", threads=threads))
        for threads, each in enumerate(cells, 1)
    ]
    with pytest.raises(InvalidInput, match="with and without a defense that ran alike") as refused:
        pareto.draw(drawn(alone))
    command = str(refused.value).split("`")[1]
    assert command.startswith("bdbench run")
    assert "--attack badnets" in command
    assert command.endswith("--results results/toy/again")


def test_the_front_is_what_nothing_beats() -> None:
    rng = random.Random(0)
    points = [(rng.randrange(6), rng.randrange(6)) for _ in range(40)]
    found = pareto.front(*zip(*points, strict=True))
    for point, is_front in zip(points, found, strict=True):
        better = [o for o in points if o != point and o[0] <= point[0] and o[1] <= point[1]]
        assert is_front == (not better)
    assert 0 < sum(found) < len(points)


def test_a_selection_always_includes_no_defense() -> None:
    data = pareto.draw(drawn(ONE_SEED, defense=["cbd"], attack=["blend"])).data
    assert list(data["defense"]) == ["none", "none", "cbd(t1=2)", "cbd(t1=2)"]
    assert set(data["attack"]) == {"blend", "mean"}


def test_curves_are_means_and_ranges_over_seeds() -> None:
    made_picture = curves.draw(drawn(CURVES))
    assert csv(made_picture.data) == CURVES_CSV
    found = shown(made_picture.figure)
    assert found["titles"] == ["adaptive", "badnets", "", ""]
    assert found["rows"] == ["CA (%)", "ASR (%)"]
    assert found["legend"] == ["none", "cbd(t1=2)"]
    assert found["caption"] == ["toy, wrn16_1, 30 epochs, 1 to 2 seeds. Bands: range over seeds."]
    assert made_picture.remarks == ("left out, not finite: abl on badnets",)
    line = made_picture.figure.axes[1].lines[0]
    assert np.asarray(line.get_ydata()) == pytest.approx([45.0, 85.0])


@pytest.mark.parametrize("which", [curves, losses])
def test_a_caption_counts_the_seeds_with_a_curve_and_names_the_others(which: Any) -> None:
    without = [made("none", "badnets", 930, 990, seed=seed) for seed in (2, 3)]
    diverged = made("none", "badnets", 100, 0, seed=4, flags=("diverged",))
    unmeasured = made("none", "blend", 930, 990)
    made_picture = which.draw(drawn([*CURVES[1:4], *without, diverged, unmeasured]))
    (text,) = shown(made_picture.figure)["caption"]
    assert text == (
        "toy, wrn16_1, 30 epochs, 1 to 2 seeds. Bands: range over seeds. "
        "Left out, no curve: none on badnets (2 of 5 seeds). "
        "Left out, diverged: none on badnets (1 of 5 seeds)."
    )
    assert made_picture.remarks == ("left out, no curve: none on blend",)
    alone = which.draw(drawn([CURVES[1], *without]))
    assert "30 epochs, 1 seed. Left out" in shown(alone.figure)["caption"][0]
    assert set(alone.data["seeds"]) == {1}


def test_a_curve_without_losses_is_no_seed_of_the_losses() -> None:
    """Older curves have shares alone."""
    older = made("none", "badnets", 930, 990, seed=2)
    shares = {"epoch": 1, "clean_accuracy": 0.5, "attack_success_rate": 0.5}
    older = replace(older, curves=[shares])
    made_picture = losses.draw(drawn([*CURVES[1:3], older]))
    assert set(made_picture.data["seeds"]) == {2}
    text = shown(made_picture.figure)["caption"][0]
    assert "2 seeds. Bands: range over seeds. Left out, no curve: none on badnets (1 of 3" in text
    assert max(curves.draw(drawn([*CURVES[1:3], older])).data["seeds"]) == 3


def test_clean_training_is_drawn_if_asked_for_and_has_no_asr() -> None:
    made_picture = curves.draw(drawn(CURVES, attack=["none"]))
    assert list(made_picture.data["clean_accuracy"]) == [0.5, 0.9]
    assert shown(made_picture.figure)["rows"] == ["CA (%)"]


def test_losses_draw_the_adaptive_attack_below_its_inner_attack() -> None:
    made_picture = losses.draw(drawn(CURVES))
    assert csv(made_picture.data) == LOSSES_CSV
    found = shown(made_picture.figure)
    assert found["titles"] == ["badnets", ""]
    assert found["rows"] == ["training loss", "training loss\nadaptive"]
    assert found["texts"] == ["T1 = 2", "T1 = 2"]
    above, below = made_picture.figure.axes
    assert list(above.lines[1].get_ydata()) == [0.75, 0.125]
    assert list(below.lines[1].get_ydata()) == [2.5, 0.125]


@pytest.mark.parametrize(
    ("defense", "scalars", "lines"),
    [
        ("cbd(t1=3, select='fixed')", {"chosen t1": 8.0}, ["T1 = 3"]),
        ("cbd(t1=5, select='cv')", {"chosen t1": 8.0}, ["T1 = 8"]),
        ("cbd(t1=5, select='cv')", {}, []),
        ("mine(t1=5)", {}, []),
        ("mine(t1='auto')", {}, []),
    ],
)
def test_losses_have_a_line_at_the_t1_that_cbd_used(defense, scalars, lines) -> None:
    one = made("cbd(t1=2)", "badnets", 880, 20, curve=[(0.2, 0.25, 2.25, 4.0)])
    labels, cell = (part.with_(defense=defense) for part in (one.labels, one.cell))
    one = replace(one, labels=labels, cell=cell, diagnostics={"scalars": scalars})
    found = losses.draw(drawn([*CURVES[:3], one], defense=["none"]))
    assert shown(found.figure)["texts"] == lines


@pytest.mark.parametrize(
    ("values", "said"), [((2, 3, 8), "T1 = 2, 3 and 8"), (range(2, 9), "T1 = 2 to 8")]
)
def test_several_t1_have_a_line_each_and_one_label(values: Iterable[int], said: str) -> None:
    """Labels at lines that are close would cover each other."""
    one = made("cbd(t1=2)", "badnets", 880, 20, curve=[(0.2, 0.25, 2.25, 4.0)])
    swept = [
        replace(one, labels=one.labels.with_(defense=text), cell=one.cell.with_(defense=text))
        for text in (f"cbd(t1={t1}, beta=0.0001)" for t1 in values)
    ]
    found = losses.draw(drawn([*CURVES[:3], *swept], defense=["none"]))
    assert shown(found.figure)["texts"] == [said]
    lines = [line.get_xdata()[0] for line in found.figure.axes[0].lines if line.get_ls() == ":"]
    assert lines == list(values)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [([500, 500], "over 500 training"), ([500, 1200], "over 500 to 1,200 training"), ([], "")],
)
def test_losses_say_how_many_training_images_they_are_of(sizes: list[int], said: str) -> None:
    points = [
        point(n + 1, 0.5, 0.5, 1.0, 1.0) | {"training_images": size} for n, size in enumerate(sizes)
    ] or [point(1, 0.5, 0.5, 1.0, 1.0)]
    found = losses.draw(drawn([replace(CURVES[1], curves=points)]))
    (text,) = shown(found.figure)["caption"]
    assert (f". Means {said} images" if said else "1 seed.") in text
    assert ("Means" in text) == bool(sizes)


def test_losses_of_another_defense_and_of_clean_training() -> None:
    found = losses.draw(drawn(CURVES, defense=["cbd"]))
    assert list(found.data["poisoned_loss"]) == [4.0]
    assert shown(found.figure)["rows"] == ["training loss\ncbd(t1=2)"]
    clean = losses.draw(drawn(CURVES, attack=["none"])).data
    assert list(clean["clean_loss"]) == [2.0, 1.0]
    assert clean["poisoned_loss"].isna().all()


def embeddings(names: str, count: int = 30) -> Arrays:
    """Embeddings of three classes, far apart after training. The first three images are poisoned
    to class 0, which r shows and z does not."""
    rng = np.random.default_rng(0)
    true = np.arange(count) % 3
    poisoned = np.arange(count) < 3
    labels = np.where(poisoned, 0, true)
    centres = 100 * np.eye(4, 8)
    places = {"r": centres[np.where(poisoned, 3, true)] - 500, "z": centres[true]}
    arrays: dict[str, Any] = {"rows": 2 * np.arange(count), "labels": labels}
    arrays |= {"true_labels": true, "poisoned": poisoned, "mask": poisoned}
    for name in names:
        noise = rng.normal(size=(2, count, 8))
        arrays[f"embedding/{name}/before"] = noise[0].astype(np.float32)
        arrays[f"embedding/{name}/after"] = (noise[1] + places[name]).astype(np.float32)
    return arrays


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, cache_folder: Path) -> dict[str, Arrays]:
    """Arrays by the key of a record, as if they were in the cache."""
    arrays: dict[str, Arrays] = {}

    def get(cache: Cache, kind: str, key: dict[str, str]) -> Arrays | None:
        assert (cache.root, kind) == (cache_folder, "embeddings")
        return arrays.get(key["cell"])

    monkeypatch.setattr(Cache, "get", get)
    return arrays


def test_tsne_shows_r_and_z_as_the_paper_does(kept: dict[str, Arrays]) -> None:
    one, two = (made("cbd(t1=2)", "badnets", 900, 10, seed=seed) for seed in (0, 1))
    kept |= {one.key: {"mask": np.array([True])}, two.key: embeddings("zr")}
    made_picture = tsne.draw(drawn([one, two]))
    data, found = made_picture.data, shown(made_picture.figure)
    assert found["titles"] == ["(a) before training", "(b) after training", "(c) r", "(d) z"]
    assert found["legend"] == ["r", "z", "poisoned image"]
    assert found["texts"] == ["0", "1", "2"] * 2
    assert found["caption"] == [
        "toy, wrn16_1, 30 epochs, 1 seed. cbd(t1=2) on badnets. 30 training images. "
        "In (c) and (d), colours and numbers are true labels."
    ]
    counts = data.groupby(["panel", "embedding"]).size().to_dict()
    assert counts == dict.fromkeys((*product("ab", "rz"), ("c", "r"), ("d", "z")), 30)
    first = data.iloc[1]
    assert list(first[:6]) == ["a", "r", 2, 0, 1, True]
    # What is close in an embedding is close in its panel.
    together = data[data["panel"] == "b"]
    groups = {"c": np.r_[[3] * 3, np.arange(3, 30) % 3], "d": np.arange(30) % 3}
    panels = {"b": together["embedding"].eq("z").to_numpy().astype(int), **groups}
    for panel, group in panels.items():
        points = data.loc[data["panel"] == panel, ["x", "y"]].to_numpy()
        distance = np.linalg.norm(points[:, None] - points, axis=2)
        np.fill_diagonal(distance, np.inf)
        assert (group[distance.argmin(1)] == group).all(), panel


def test_tsne_leaves_out_the_embeddings_of_another_run(
    kept: dict[str, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = made("none", "badnets", 900, 10)
    stated = replace(one, provenance=one.provenance.with_(network_sha256="ab" * 32))
    kept[one.key] = embeddings("z")
    for sha256, shows in (("ab" * 32, True), ("cd" * 32, False)):
        meta = {"network_sha256": sha256}
        monkeypatch.setattr(Cache, "meta_of", lambda cache, kind, name, meta=meta: meta)
        assert tsne.draw(drawn([one])).data is not None, "an older record does not say it"
        if shows:
            tsne.draw(drawn([stated]))
        else:
            with pytest.raises(InvalidInput, match="no embeddings of"):
                tsne.draw(drawn([stated]))


def test_tsne_of_one_embedding_is_before_and_after(
    kept: dict[str, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tsne, "POINTS", 12)
    one = made("none", "badnets", 900, 10)
    kept[one.key] = embeddings("z")
    made_picture = tsne.draw(drawn([one]))
    assert shown(made_picture.figure)["titles"] == ["(a) before training", "(b) after training"]
    assert shown(made_picture.figure)["caption"][0].endswith("Colours and numbers are true labels.")
    after = made_picture.data[made_picture.data["panel"] == "b"]
    assert list(after["image"]) == [2 * round(29 * n / 11) for n in range(12)]


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (lambda a: a[:4], "are of 4 images, too few to draw"),
        (lambda a: a * np.float32("nan"), "are not finite"),
        (np.zeros_like, "are the same for all images"),
    ],
)
def test_embeddings_that_show_nothing_are_refused(
    kept: dict[str, Arrays], fault: Any, complaint: str
) -> None:
    one = made("none", "badnets", 900, 10)
    kept[one.key] = {
        name: fault(array) if name.startswith("embedding") or len(fault(array)) < 30 else array
        for name, array in embeddings("z").items()
    }
    with pytest.raises(InvalidInput, match=f"embeddings z before training {complaint}"):
        tsne.draw(drawn([one]))


TOY = "toy(train_images=30, test_images=20)"


def real(attack: str, defense: str = "none", **options: Any) -> Record:
    """A record of a cell that could be run."""
    recipe = Recipe(epochs=1, batch_size=64, precision="fp32")
    asked = cell(TOY, "wrn16_1", attack, defense, recipe, options.get("seed", 0))
    filled = make_record(defense, attack, 900, 990)
    return replace(filled, key=asked.key, cell=asked.identity, labels=asked.labels)


def test_triggers_are_drawn_by_the_attacks(tmp_path: Path) -> None:
    names = ["badnets", "blend", "sig(delta=20.0)", "none"]
    made_picture = triggers.draw(drawn([real(name) for name in names]))
    data = made_picture.data.set_index("attack")
    assert list(data.index) == ["badnets", "blend", "sig(delta=20.0)"]
    assert data.loc["badnets", "pixels"] == 9
    assert data.loc["sig(delta=20.0)", "largest"] <= 20
    assert "".join(data["class"]) != ""
    assert made_picture.remarks == ()
    (axes,) = made_picture.figure.axes
    labels = [
        [label.get_text() for label in ticks]
        for ticks in (axes.get_xticklabels(), axes.get_yticklabels())
    ]
    assert labels == [["badnets", "blend", "sig\ndelta=20.0"], ["clean", "triggered", "difference"]]
    shown = np.stack([image.get_array() for image in axes.images]).reshape(3, 3, 32, 32, 3)
    for name, clean, triggered in zip(
        data.index, *torch.from_numpy(shown).movedim(-1, 2)[:2], strict=True
    ):
        assert torch.equal(attacks.build(name).trigger(clean[None]), triggered[None])


@dataclass(frozen=True)
class Tint(Attack):
    """Brightens by what it learns in training."""

    by: int | None = prepared()
    trains = True

    def prepare(self, clean: ImageSet, context: TrainingContext, rng: torch.Generator) -> Self:
        return replace(self, by=7)

    def trigger(self, images: torch.Tensor) -> torch.Tensor:
        assert self.by is not None
        return (images.int() + self.by).clamp(0, 255).byte()

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        return dirty_label(self, clean, rng)


@pytest.fixture
def tint() -> Iterator[None]:
    attacks.names()
    attacks.register("tint")(Tint)
    yield
    del attacks._factories["tint"]


@pytest.mark.usefixtures("tint")
def test_an_attack_that_trains_is_drawn_only_from_the_cache(cache_folder: Path) -> None:
    cells = [real("badnets"), real("tint", seed=0), real("tint", seed=1)]
    remark = f"the cache, {cache_folder}, lacks trained attacks: tint; run a cell of each"
    made_picture = triggers.draw(drawn(cells))
    assert list(made_picture.data["attack"]) == ["badnets"]
    assert made_picture.remarks == (f"left out: {remark}",)
    with pytest.raises(InvalidInput) as raised:
        triggers.draw(drawn(cells[1:]))
    assert str(raised.value) == remark
    # By a run with other threads than this process has.
    with num_threads(2):
        Harness(Cache(cache_folder), [], torch.device("cpu")).poisoned(
            cell_of(cells[2].cell.as_dict())
        )
    made_picture = triggers.draw(drawn(cells))
    assert made_picture.data["largest"].tolist()[1] == 7
    assert list(made_picture.data["attack"]) == ["badnets", "tint"]
    assert made_picture.remarks == ()


@pytest.mark.parametrize("which", ["pareto", "plane", "curves", "losses", "tsne"])
def test_the_same_records_give_the_same_bytes(
    which: str, tmp_path: Path, kept: dict[str, Arrays]
) -> None:
    cells = CURVES if which in ("curves", "losses") else ONE_SEED
    kept |= {one.key: embeddings("z", 12) for one in ONE_SEED[:2]}
    wanted = {"attack": ["badnets"]} if which == "tsne" else {}
    # What is drawn of a part of a folder does not replace what is drawn of all.
    name = f"{which}-selection" if wanted else which
    names = [f"{name}.{suffix}" for suffix in ("csv", "png", "svg")]
    hashes = []
    for turn in range(2):
        results = tmp_path / str(turn)
        shuffled = random.Random(turn).sample(cells, len(cells))
        lines = figures.make(which, shuffled, results, wanted)
        assert lines[-3:] == [str(results / "figures" / name) for name in names]
        files = sorted((results / "figures").iterdir())
        assert [path.name for path in files] == names
        hashes.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])
    assert hashes[0] == hashes[1]
    svg = files[2].read_text()
    assert "<dc:date>" not in svg
    with Image.open(files[1]) as image:
        assert image.size[0] in (int(picture.COLUMN * picture.DPI), int(picture.PAGE * picture.DPI))


def test_the_users_settings_of_matplotlib_change_nothing(tmp_path: Path) -> None:
    import matplotlib

    plain = figures.make("pareto", ONE_SEED, tmp_path / "plain", {}, ["png"])
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "#ff0000"}):
        changed = figures.make("pareto", ONE_SEED, tmp_path / "changed", {}, ["png"])
        assert matplotlib.rcParams["font.size"] == 20
    assert [Path(p).read_bytes() for p in plain] == [Path(p).read_bytes() for p in changed]


LONG = "cbd(rescale=False, critic_weight=1.0, select='cv')"


def visible(figure: Figure) -> list[Text]:
    """All texts that are drawn. Tick labels beyond the limits of their axis are not."""
    texts = [*figure.texts, *(text for legend in figure.legends for text in legend.texts)]
    for axes in figure.axes:
        if not axes.axison:
            continue
        frame = axes.get_window_extent().padded(1)
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
        for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
            (left, bottom), (right, top) = text.get_window_extent().get_points()
            across = frame.x0 <= (left + right) / 2 <= frame.x1
            along = frame.y0 <= (bottom + top) / 2 <= frame.y1
            if across or along:
                texts.append(text)
    return [text for text in texts if text.get_visible() and text.get_text()]


@pytest.mark.parametrize("which", [pareto, plane, curves, losses])
@pytest.mark.parametrize("count", [1, 5])
def test_no_text_is_clipped_or_overlaps_another(which: Any, count: int) -> None:
    names = ["badnets", "blend_per_image(alpha=0.1)", "sig(poisoning_rate=0.5)", "trojan", "wanet"]
    curve = [(0.1, 0.9, 2.0, 1.0), (0.9, 0.1, 0.5, 0.1)]
    cells = [
        made(defense, attack, 900, 10, seed=seed, curve=curve, seconds=(0.0, 60.0 + rank**3))
        for rank, defense in enumerate(("none", "abl", "cbd(t1=2)", "dbd", "fp", LONG))
        for attack in names[:count]
        for seed in range(2)
    ]
    with picture.look():
        figure = which.draw(drawn(cells)).figure
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        width, height = canvas.get_width_height()
        # The extent of a name without the line to its point.
        boxes = [(text.get_text(), Text.get_window_extent(text)) for text in visible(figure)]
    assert len(boxes) > 10
    for text, box in boxes:
        assert 0 <= box.x0 < box.x1 <= width, text
        assert 0 <= box.y0 < box.y1 <= height, text
    assert not [(a, b) for (a, x), (b, y) in combinations(boxes, 2) if x.overlaps(y)]


def test_a_spec_selects_all_that_agree_with_it_and_a_name_the_plain_one() -> None:
    canonical = Spec.of("blend(poisoning_rate=0.1, target=0, alpha=0.2)")
    assert agrees("blend", canonical)
    assert agrees("blend(target=0, alpha=0.2)", canonical)
    assert not agrees("blend(alpha=0.1)", canonical)
    assert not agrees("blend(beta=0.1)", canonical)
    assert not agrees("badnets", canonical)
    cells = [real("sig"), real("sig(delta=20.0)"), real("blend(alpha=0.1)"), real("badnets")]

    def chosen(*wanted: str) -> set[str]:
        return {group.names["attack"] for group in drawn(cells, attack=list(wanted)).groups}

    assert chosen("sig") == {"sig"}
    assert chosen("sig(frequency=6.0)") == {"sig", "sig(delta=20.0)"}
    assert chosen("blend", "badnets") == {"blend(alpha=0.1)", "badnets"}
    assert len(chosen()) == 4


def test_a_defense_has_one_colour_in_all_figures() -> None:
    whole, part = (drawn(CURVES, **wanted) for wanted in ({}, {"defense": ["cbd"]}))
    assert whole.ranks == part.ranks == {"none": 0, "abl": 1, "cbd(t1=2)": 2}
    line = curves.draw(part).figure.axes[0].lines[0]
    marks = pareto.draw(drawn(CURVES)).figure.axes[0].lines
    assert line.get_color() == picture.COLOURS[2]
    assert picture.COLOURS[2] in {mark.get_color() for mark in marks}


@pytest.mark.parametrize(
    ("name", "defense", "attack", "words"),
    [
        ("mine", "cbd", "badnets", []),
        ("mine", "cbd(t1=3)", "adaptive(attack='blend(alpha=0.1)')", ["--defense", "cbd"]),
        ("quick", "cbd(t1=3)", "badnets", ["--dataset", "toy", "--defense", "cbd"]),
    ],
)
def test_a_refusal_names_a_command_that_makes_what_is_missing(
    name: str,
    defense: str,
    attack: str,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its dry run lists the cells of the records. The recipe has the default learning rate, which
    is not that of the data set, and `cbd` stands for something else in a suite."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speed, "probe", lambda cell, device: 1e6)
    one = real(attack, defense, seed=1)
    folder(Path("results") / name, one)
    assert main(["figure", "curves", "--results", f"results/{name}", *words]) == 2
    message = capsys.readouterr().err
    assert message.count("`") == 2
    command = message.split("`")[1]
    assert "--curves" in command
    assert main([*shlex.split(command)[1:], "--dry-run", "--device=cpu"]) == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines()[:-1]}
    assert name == "quick" or one.key in listed
    assert ("--results" in command) == (name != "quick")


def test_a_refusal_says_that_no_cell_is_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path, made("none", "badnets", 100, 990, flags=("not_finite",)))
    assert main(["figure", "losses", "--results", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert line.endswith(
        "has no curves of clean loss of none: all these cells failed or are not finite\n"
    )


def test_a_refusal_names_the_suite_of_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["figure", "curves"]) == 2
    line = "bdbench: no records in results/quick/records; run `bdbench run quick`\n"
    assert capsys.readouterr().err == line
    folder(Path("results/quick"), made("none", "badnets", 900, 990))
    cells = f'--dataset toy --recipe "{RECIPE}"'
    assert main(["figure", "losses"]) == 2
    assert capsys.readouterr().err == (
        "bdbench: results/quick has no curves of clean loss of none; "
        f"run `bdbench run quick {cells} --attack badnets --defense none --curves`\n"
    )
    old = made("none", "badnets", 900, 990)
    short = {"epoch": 1, "clean_accuracy": 0.5, "attack_success_rate": 0.5}
    folder(Path("results/quick"), replace(old, curves=[short]))
    assert main(["figure", "losses", "--attack", "badnets"]) == 2
    assert capsys.readouterr().err == (
        "bdbench: results/quick has no curves of clean loss of none; run "
        f"`bdbench run quick {cells} --attack badnets --defense none --curves "
        "--results results/quick/again`\n"
    )
    folder(Path("results/other"), made("cbd", "badnets", 900, 100))
    assert main(["figure", "losses", "--results", "results/other"]) == 2
    assert "has no curves of clean loss of cbd; run `" in capsys.readouterr().err
    # What the figure does not draw needs no curve, and has one.
    whole = {**short, "clean_loss": 0.1, "poisoned_loss": 0.1}
    folder(
        Path("results/quick"),
        replace(made("cbd", "badnets", 900, 100), curves=[whole]),
        replace(old, curves=[]),
    )
    assert main(["figure", "losses", "--defense", "cbd"]) == 0
    capsys.readouterr()
    assert main(["figure", "losses"]) == 2
    assert capsys.readouterr().err == (
        "bdbench: results/quick has no curves of clean loss of none; "
        f"run `bdbench run quick {cells} --attack badnets --defense none --curves`\n"
    )


def test_a_command_leaves_out_only_what_is_all_of_the_suite() -> None:
    chosen = SUITES["table5"]
    every = []
    for attack, defense, seed in product(chosen.attacks, chosen.defenses, range(3)):
        label = "adaptive" if attack == "adaptive(attack='badnets')" else str(attack)
        record = make_record(str(defense), label, 900, 990, seed=seed)
        own = record.labels.with_(dataset="cifar10", recipe="recipe")
        every.append(replace(record, labels=own))
    plain = "bdbench run table5"

    def command(records: list[Record], **wanted: list[str]) -> str:
        return select(records, Path("results/table5"), wanted).command()

    assert command(every) == f"`{plain}`"
    few = [record for record in every if record.labels.attack == "adaptive"]
    assert command(few) == f"`{plain} --attack adaptive`"
    assert command(every, attack=["adaptive"]) == command(few)
    assert command(every[::3]) == f"`{plain} --seeds 1`"
    assert command(every[:6:3]) == f"`{plain} --attack adaptive --seeds 1`"
    other = [replace(r, labels=r.labels.with_(recipe="recipe(epochs=30)")) for r in few[:3]]
    assert command(other) == f'`{plain} --recipe "{RECIPE}" --attack adaptive --defense none`'


def test_the_cells_of_a_suite_cover_its_axes() -> None:
    """What plugins say of their labels, and data sets of their recipes, is read without them."""
    for name, each in SUITES.items():
        for axis in AXES:
            registry = REGISTRIES["dataset" if axis == "recipe" else axis]
            texts = getattr(each, "datasets" if axis == "recipe" else f"{axis}s")
            made_of = [p for t in texts for p in registry.swept(each.settings.get(t, t))]
            if axis == "recipe":
                labels = [recipe_label(recipe_for(p, each.recipe, each.precision)) for p in made_of]
            else:
                labels = [registry.label(p) for p in made_of]
            assert {_changed(axis, Spec.of(label)) for label in labels} == {
                _changed(axis, entry) for entry in _entries(each, axis)
            }, (name, axis)


@pytest.mark.parametrize("ratio", [1.05, 1.13, 1.5, 2.0, 12.0])
def test_the_time_axis_of_pareto_has_three_ticks_or_more(ratio: float) -> None:
    cells = [made("none", "badnets", 900, 990, seconds=(1000.0, 0.0))]
    cells.append(made("cbd", "badnets", 880, 10, seconds=(1000.0 * ratio, 0.0)))
    axes = pareto.draw(drawn(cells)).figure.axes[0]
    low, high = axes.get_xlim()
    ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
    assert 3 <= len(ticks) <= 10


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["paretto"], "unknown figure 'paretto'; did you mean 'pareto'?"),
        ([], "Missing argument"),
        (["pareto", "--format=pgn"], "unknown format 'pgn'; did you mean 'png'?"),
        (["pareto", "--attack=badnet"], "several has no attack 'badnet'; did you mean 'badnets'?"),
        (["pareto", "--defense=cdb"], "several has no defense 'cdb'; did you mean 'cbd'?"),
        (["pareto", "--attack=("], "expected name or name(field=value, ...), got '('"),
        (["pareto", "--attack=blend", "--dataset=gtsrb"], "matches all of blend, gtsrb"),
        (["plane"], "several has records of several data sets: gtsrb, toy; choose one with --dat"),
        (["plane", "--dataset=toy", "--attack=none"], "no records with an attack"),
        (
            ["plane", "--results=failed"],
            "all cells with an attack in failed failed or are not finite",
        ),
        (["plain"], "unknown figure 'plain'; did you mean 'plane'?"),
        (["pareto"], "several has records of several data sets: gtsrb, toy; choose one with --dat"),
        (["triggers"], "several has records of several data sets: gtsrb, toy; choose one with"),
        (["pareto", "--dataset=gtsrb"], "no records with no defense to compare with"),
        (["pareto", "--dataset=toy", "--attack=none"], "no records with an attack"),
        (["triggers", "--attack=none"], "several has no record of an attack"),
        (["curves", "--dataset=toy"], "several has no curves of clean accuracy of "),
        (["tsne", "--dataset=toy", "--defense=none"], "no embeddings of several in the cache, "),
        (
            ["pareto", "--results=failed"],
            "failed has no attack with results both with and without a",
        ),
        (
            ["pareto", "--dataset=toy", "--defense=none"],
            "no attack with results both with and without",
        ),
        (["pareto", "--results=blocked"], "cannot write pareto.csv in blocked"),
    ],
)
def test_bad_input_is_refused_in_one_line_and_nothing_is_drawn(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    other = made("cbd(t1=2)", "badnets", 900, 10, seed=7)
    other = replace(
        other,
        cell=other.cell.with_(dataset="gtsrb(field=1)"),
        labels=other.labels.with_(dataset="gtsrb"),
    )
    folder(Path("several"), *ONE_SEED, other)
    folder(Path("failed"), made("none", "badnets", None))
    (folder(Path("blocked"), *ONE_SEED) / "figures").write_text("in the way")
    assert main(["figure", "--results=several", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("bdbench: ")
    assert complaint in lines[0]
    assert not list(tmp_path.rglob("*.csv"))


def test_tsne_asks_to_choose_one_of_several_cells(
    kept: dict[str, Arrays],
) -> None:
    kept |= {one.key: embeddings("z", 12) for one in ONE_SEED if one.status == "ok"}
    with pytest.raises(InvalidInput, match="records of several attacks: none, badnets, blend; cho"):
        tsne.draw(drawn(ONE_SEED))
    with pytest.raises(InvalidInput, match=r"several defenses: none, abl, cbd.*with --defense"):
        tsne.draw(drawn(ONE_SEED, attack=["badnets"]))


def test_a_damaged_record_is_named_and_the_others_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder(tmp_path, *ONE_SEED)
    (tmp_path / "records" / f"{'0' * 16}.json").write_text("{")
    assert main(["figure", "pareto", "--format=svg", f"--results={tmp_path}"]) == 1
    streams = capsys.readouterr()
    assert "0000000000000000.json" in streams.err
    assert "left out" in streams.err
    drawn_files = [f"{tmp_path}/figures/pareto.csv", f"{tmp_path}/figures/pareto.svg"]
    assert streams.out.splitlines() == drawn_files


def test_figures_of_records_need_no_torch(tmp_path: Path) -> None:
    folder(tmp_path, *CURVES)
    program = f"""
import sys
from pathlib import Path
import bdbench.cli, bdbench.figures.tsne
from bdbench import figures
from bdbench.records import files as records
found, _ = records.read_all(Path({str(tmp_path)!r}))
for which in ("pareto", "losses"):
    figures.make(which, found, Path({str(tmp_path)!r}), {{}}, ["svg"])
sys.exit("torch" in sys.modules)
"""
    root = ROOT
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


def test_a_network_at_chance_is_in_no_pareto_front() -> None:
    """Its ASR is the lowest and means nothing, as in the leaderboard."""
    cells = [
        made("none", "badnets", 900, 1000, seconds=(50.0, 0.0)),
        made("cbd", "badnets", 880, 20, seconds=(0.0, 100.0)),
        made("ft", "badnets", 100, 0, flags=("at_chance",), seconds=(50.0, 5.0)),
    ]
    picture_of = pareto.draw(drawn(cells))
    means = picture_of.data[picture_of.data["attack"] == "mean"].set_index("defense")
    assert dict(means["front_attack_success_rate"]) == {"none": True, "cbd": True, "ft": False}
    (text,) = shown(picture_of.figure)["caption"]
    assert "Not in the front, as accuracy is at chance: FT." in text


def test_pareto_compares_no_seconds_of_other_machines_without_a_common_seed() -> None:
    def on(device: str, record: Record) -> Record:
        return replace(record, provenance=record.provenance.with_(device=device))

    cells = [
        on("cpu: one", made("none", "badnets", 900, 1000, seconds=(50.0, 0.0))),
        on("cpu: one", made("cbd", "badnets", 880, 20, seed=1, seconds=(0.0, 100.0))),
        on("cuda: other", made("nad", "badnets", 850, 30, seed=1, seconds=(1.0, 1.0))),
    ]
    data = pareto.draw(drawn(cells)).data
    assert set(data["defense"]) == {"none", "cbd"}


def test_the_bars_of_pareto_end_inside_its_axes() -> None:
    cells = [made("none", "badnets", 900, 1000, seed=s, seconds=(50.0, 0.0)) for s in range(2)]
    cells += [
        made("cbd", "badnets", 880, 20, seed=s, seconds=(0.0, 60.0 + 30 * s)) for s in range(2)
    ]
    picture_of = pareto.draw(drawn(cells))
    axes = picture_of.figure.axes[0]
    low, high = axes.get_xlim()
    ends = picture_of.data[["seconds_ratio_low", "seconds_ratio_high"]].stack()
    assert low < ends.min()
    assert ends.max() < high


def test_an_attack_without_a_baseline_is_in_no_mean() -> None:
    """And one defense alone with many attacks does not take the means of the others."""
    cells = [made("none", "badnets", 900, 1000), made("none", "blend", None)]
    cells += [
        made(name, attack, 880, 20) for name in ("cbd", "abl") for attack in ("badnets", "blend")
    ]
    data = pareto.draw(drawn(cells)).data
    means = data[data["attack"] == "mean"]
    assert set(means["defense"]) == {"none", "cbd", "abl"}
    assert set(means["attacks"]) == {1}
    many = [f"attack_{n}" for n in range(5)]
    cells = [made("none", name, 900, 1000) for name in ("badnets", *many)]
    cells += [made("cbd", name, 880, 20) for name in ("badnets", *many)]
    cells += [made("abl", "badnets", 880, 20)]
    data = pareto.draw(drawn(cells)).data
    assert set(data[data["attack"] == "mean"]["defense"]) == {"none", "cbd", "abl"}
