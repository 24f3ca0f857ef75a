"""The figure of a swept field has this data, and bad input is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from builders import make_record
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bdbench.cli import main
from bdbench.figures import picture, sweep
from bdbench.models.plugins.errors import InvalidInput
from bdbench.records import files
from bdbench.records.count import Count, wilson
from bdbench.records.record import Record
from bdbench.tables.selection import select
from bdbench.tables.statistics import estimate


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fine pictures take their time."""
    monkeypatch.setattr(picture, "DPI", 50)


def made(defense: str, attack: str, *shares: int | None, seed: int = 0, **axes: str) -> Record:
    """A record whose canonical specs are its labels and one more field, the same in all."""
    record = make_record(defense, attack, *shares, seed=seed)
    labels = {"defense": defense, "attack": attack, **axes}
    specs = {}
    for axis, text in labels.items():
        name, _, rest = text.partition("(")
        specs[axis] = f"{name}(fixed=1{', ' + rest[:-1] if rest else ''})"
    return replace(record, labels=record.labels.with_(**labels), cell=record.cell.with_(**specs))


T1 = [
    made(f"cbd(t1={t1})", "badnets", 900 - 10 * t1 - seed, 20 * t1 + seed, seed=seed)
    for t1 in (3, 5, 8)
    for seed in (0, 1)
] + [made("none", "badnets", 950, 1000), made("abl", "badnets", 940, 100)]
RATES = [
    made(defense, f"{attack}(poisoning_rate={rate})", 900, int(1000 * rate))
    for defense in ("none", "ft")
    for attack in ("badnets", "blend")
    for rate in (0.01, 0.1, 0.5)
]


def drawn(records: list[Record], field: str = "", **wanted: list[str]) -> picture.Picture:
    with picture.look():
        return sweep.draw(select(records, Path("results/toy"), wanted, field=field))


def csv(data: pd.DataFrame) -> str:
    return str(data.to_csv())


def means(data: pd.DataFrame) -> pd.DataFrame:
    return data[data["seed"].isna()]


def test_a_line_has_the_colour_of_its_first_defense_in_other_figures() -> None:
    selection = select(T1, Path("results/toy"), {})
    assert selection.ranks["cbd(t1=3)"] == 2
    line = drawn(T1).figure.axes[0].lines[1]
    assert line.get_color() == picture.mark(2)["color"]
    (other, *_) = drawn(RATES, defense=["ft"]).figure.axes[0].lines
    assert other.get_color() == picture.mark(1)["color"]


def test_sweeps_against_several_fields_have_files_of_their_own(tmp_path: Path) -> None:
    for record in [*T1, made("cbd(t1=5, beta=0.1)", "badnets", 900, 30)]:
        files.write(tmp_path, record)
    for field in ("t1", "defense.beta"):
        assert main(["figure", "sweep", f"--results={tmp_path}", f"--field={field}"]) == 0
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert names == {"sweep-defense-t1", "sweep-defense-beta"}


def test_a_defense_is_drawn_against_its_field_with_seeds_and_intervals() -> None:
    found = drawn(T1)
    data = means(found.data)
    assert data["defense"].tolist() == ["none", "cbd", "cbd", "cbd"]
    assert data["value"].tolist()[1:] == [3, 5, 8]
    assert set(data["field"]) == {"defense.t1"}
    assert data["seeds"].tolist() == [1, 2, 2, 2]
    row = data.iloc[1]
    expected = estimate([Count(870, 1000), Count(869, 1000)])
    assert [row[f"clean_accuracy{end}"] for end in ("", "_low", "_high")] == list(expected)
    bare = data.iloc[0]
    assert (bare["clean_accuracy_low"], bare["clean_accuracy_high"]) == wilson(950, 1000)
    seeds = found.data[found.data["seed"].notna()]
    assert len(seeds) == 7
    assert seeds[seeds["value"] == 8]["attack_success_rate"].tolist() == [0.16, 0.161]
    assert found.remarks == ("left out, no field t1: abl",)
    more = drawn([*T1, made("cbd(t1=5, beta=0.5)", "badnets", 900, 10)], field="t1")
    assert csv(more.data) == csv(found.data)
    assert more.remarks[1] == "left out, a single value of t1: cbd(t1=5, beta=0.5) on badnets"


def test_each_attack_has_a_column_of_panels() -> None:
    found = drawn(RATES)
    assert [axes.get_title() for axes in found.figure.axes if axes.get_title()] == [
        "badnets",
        "blend",
    ]
    assert len(found.figure.axes) == 4
    axes = found.figure.axes[0]
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in found.figure.axes[-1].get_xticklabels()] == [
        "0.01",
        "0.1",
        "0.5",
    ]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[0.01, 0.1, 0.5]] * 2
    assert {text.get_text() for axes in found.figure.axes for text in axes.texts} == {"none", "ft"}
    assert len(means(found.data)) == 12


def test_values_that_are_not_numbers_are_drawn_side_by_side() -> None:
    cells = [
        made(f"nad(betas={betas!r})", "badnets", 900, 10, seed=seed)
        for betas in ("search", (1.0, 2.0), None)
        for seed in (0, 1)
    ]
    found = drawn(cells)
    axes = found.figure.axes[0]
    texts = [text.get_text() for text in found.figure.axes[-1].get_xticklabels()]
    assert texts == ["(1.0, 2.0)", "None", "search"]
    assert axes.get_xscale() == "linear"
    assert axes.lines[0].get_linestyle() == "None"
    assert set(means(found.data)["value"]) == {"search", "(1.0, 2.0)", "None"}


@pytest.mark.parametrize(
    ("axis", "texts", "values"),
    [
        ("recipe", ["recipe(epochs=5)", "recipe(epochs=10)"], [5, 10]),
        ("recipe", ["recipe(epochs=5)", "recipe(epochs=5, updates=0.5)"], [0.5, 1.0]),
        ("dataset", ["toy(train_images=100)", "toy(train_images=5000)"], [100, 5000]),
        ("model", ["wrn16_1(deviation=1.0)", "wrn16_1(deviation=2.0)"], [1, 2]),
        ("defense", ["cbd(t1=5)", "cbd(t1=5, t1s=(1,))"], ["(1,)", "(3, 5, 8)"]),
    ],
)
def test_a_field_of_any_axis_is_found(axis: str, texts: list[str], values: list[Any]) -> None:
    """A field that a spec does not write has its default."""
    found = drawn([_at(axis, text) for text in texts])
    assert sorted(means(found.data)["value"].dropna()) == values
    assert set(means(found.data)["field"]) == {found.data["field"][0]}


def _at(axis: str, text: str) -> Record:
    axes = {"defense": "ft", "attack": "badnets", axis: text}
    return made(axes.pop("defense"), axes.pop("attack"), 900, 100, **axes)


def test_each_setting_of_other_fields_is_a_line_and_clean_training_has_no_asr() -> None:
    cells = [
        made(f"cbd(t1={t1}, beta={beta})", attack, 900, None if attack == "none" else 10)
        for t1 in (3, 5)
        for beta in (0.1, 0.2)
        for attack in ("none", "badnets")
    ]
    with pytest.raises(InvalidInput, match=r"--field defense\.t1 or --field defense\.beta"):
        drawn(cells)
    found = drawn(cells, field="t1")
    assert set(found.data["defense"]) == {"cbd(beta=0.1)", "cbd(beta=0.2)"}
    assert set(found.data["attack"]) == {"badnets"}
    clean = drawn(cells, field="defense.t1", attack=["none"])
    assert len(clean.figure.axes) == 1
    assert clean.data["attack_success_rate"].isna().all()


def test_cells_without_numbers_are_left_out_and_named() -> None:
    cells = [*T1, made("cbd(t1=9)", "badnets", None)]
    found = drawn(cells)
    assert 9 not in set(found.data["value"])
    assert "Left out, failed: cbd on badnets at t1=9." in _caption(found.figure)
    lost = made("ft", "blend(poisoning_rate=0.9)", None)
    assert "failed: ft on blend at poisoning_rate=0.9." in _caption(drawn([*RATES, lost]).figure)
    with pytest.raises(InvalidInput, match="failed or are not finite"):
        drawn([made("cbd(t1=9)", "badnets", None)])


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ({3: [0, 1], 5: [0, 1]}, "Bands: 95 % interval over seeds. Dots: seeds. "),
        ({3: [0], 5: [0]}, "Bands: 95 % Wilson interval of one seed. Dotted"),
        (
            {3: [0, 1], 5: [1]},
            "Bands: 95 % interval over seeds or Wilson interval of one seed. Dots: seeds. ",
        ),
    ],
)
def test_the_caption_says_which_intervals_are_drawn(seeds: dict[int, list[int]], said: str) -> None:
    """No defense, which has one seed here, is drawn without an interval."""
    cells = [
        made(f"cbd(t1={t1})", "badnets", 900, 20, seed=seed) for t1 in seeds for seed in seeds[t1]
    ]
    assert said in _caption(drawn([*cells, T1[-2]]).figure)


def _caption(figure: Figure) -> str:
    return figure.get_supxlabel().replace("\n", " ").replace(picture.NO_BREAK, " ")


@pytest.mark.parametrize("attacks", [1, 3])
@pytest.mark.parametrize("lines", [1, 6, 12])
def test_no_text_is_clipped_or_overlaps_another(attacks: int, lines: int) -> None:
    cells = [
        made(f"d{line}(t1={t1})", attack, 900, 10 + line)
        for line in range(lines)
        for attack in ("badnets", "blend", "trojan")[:attacks]
        for t1 in (1, 2, 3, 4, 5, 6, 40)
    ]
    with picture.look():
        figure = drawn(cells).figure
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        width, height = canvas.get_width_height()
        texts = [*figure.texts, *(text for legend in figure.legends for text in legend.texts)]
        for axes in figure.axes:
            texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            texts += axes.get_xticklabels()
        boxes = [
            (t.get_text(), t.get_window_extent()) for t in texts if t.get_text() and t.get_visible()
        ]
    assert len(boxes) > 8
    for text, box in boxes:
        assert 0 <= box.x0 < box.x1 <= width, text
        assert 0 <= box.y0 < box.y1 <= height, text
    assert not [(a, b) for (a, x), (b, y) in combinations(boxes, 2) if x.overlaps(y)]
    assert bool(figure.legends) == (lines > sweep.MOST_LABELS)


@pytest.mark.parametrize("plugins", [1, 3])
@pytest.mark.parametrize("wide", [False, True])
def test_categories_are_named_by_what_differs_and_their_names_do_not_overlap(
    plugins: int, wide: bool
) -> None:
    """The values are specs with all settings, or so long that only upright names have room."""
    inner = ["badnets(pattern='grid', margin=0)", "blend(alpha=0.3)"]
    inner += [f"trojan(mode='{'inverted' * 3}')", "wanet(strength=0.5, grid=8)"] if wide else []
    cells = [
        made(defense, f"{attack}(attack={each!r})", 900, 10)
        for defense in ("none", "cbd")
        for attack in ("adaptive", "other", "third")[:plugins]
        for each in inner
    ]
    figure = drawn(cells, field="attack").figure
    FigureCanvasAgg(figure).draw()
    labels = figure.axes[-1].get_xticklabels()
    texts = [label.get_text().replace("\n", "") for label in labels]
    assert texts[:2] == ["badnets", "blend(alpha=0.3)"]
    boxes = [label.get_window_extent() for label in labels]
    assert not [1 for one, two in pairwise(boxes) if one.overlaps(two)]


def test_labels_are_moved_apart_and_stay_in_order() -> None:
    spread = sweep._spread({"a": 50.0, "b": 50.0, "c": 51.0, "d": 0.0, "e": 100.0, "f": 100.0})
    heights = list(spread.values())
    assert list(spread) == ["d", "a", "b", "c", "e", "f"]
    gaps = [high - low for low, high in pairwise(heights)]
    assert min(gaps) >= sweep.LINE_HEIGHT - 1e-9
    assert not any(map(math.isnan, heights))


@pytest.mark.parametrize(
    ("records", "arguments", "complaint"),
    [
        (T1, ["--field=t2"], "no record has a field 't2'; did you mean 't1'?"),
        (T1, ["--field=defense.t2"], "did you mean 'defense.t1'?"),
        (T1, ["--field=fixed"], "several"),
        (T1[:1], [], "no field is swept in several: no two specs differ in one field only"),
        (
            T1[:1],
            ["--field=t1"],
            'has one value in several, 3; run several values with `bdbench run --defense "',
        ),
        (T1, ["--defense=abl"], "no field is swept"),
        ([*T1, *RATES], [], "choose --field defense.t1 or --field attack.poisoning_rate"),
        (RATES, ["--attack=blnd"], "several has no attack 'blnd'; did you mean"),
        (RATES, ["--format=pgn"], "unknown format 'pgn'"),
        (
            [
                *RATES,
                *(made("ft", f"sig(poisoning_rate={n})", 9, 9, dataset="gtsrb") for n in "12"),
            ],
            [],
            "several has records of several data sets",
        ),
    ],
)
def test_an_impossible_figure_is_refused_in_one_line(
    records: list[Record],
    arguments: list[str],
    complaint: str,
    own_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for record in records:
        files.write(Path("several"), record)
    assert main(["figure", "sweep", "--results=several", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert complaint in lines[0]
    assert not Path("several/figures").exists()


def test_the_command_writes_pictures_and_data(
    own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for record in T1:
        files.write(Path("mine"), record)
    assert main(["figure", "sweep", "--results=mine", "--field=t1"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "left out, no field t1: abl",
        *(f"mine/figures/sweep-defense-t1.{suffix}" for suffix in ("csv", "png", "svg")),
    ]
    first = {path.name: path.read_bytes() for path in Path("mine/figures").iterdir()}
    assert first["sweep-defense-t1.csv"].startswith(
        b"attack,defense,field,value,seed,seeds,clean_accuracy,"
    )
    assert main(["figure", "sweep", "--results=mine"]) == 0
    assert first == {path.name: path.read_bytes() for path in Path("mine/figures").iterdir()}
    assert main(["figure", "pareto", "--results=mine", "--field=t1"]) == 2
    assert "--field applies only to the figure sweep" in capsys.readouterr().err
