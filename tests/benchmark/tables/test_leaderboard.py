"""The leaderboard, literally: what a few records give is written out below."""

# A row of a table is one line, however long.
# ruff: noqa: E501

import io
import random
import re
from dataclasses import replace
from itertools import accumulate

import pandas as pd
import pytest
from builders import make_record

from bdbench.cli import main
from bdbench.models.plugins.errors import InvalidInput
from bdbench.records import files as records
from bdbench.tables import write as tables

ONE_SEED = [
    make_record("none", "none", 940, floor=8),
    make_record("none", "badnets", 930, 998, 9),
    make_record("none", "blend", 925, 960, 12),
    make_record("none", "sig", 920, 25, 10, flags=("attack_failed",)),
    make_record("abl", "none", 870, floor=20, seconds=(60.0, 30.0)),
    make_record("abl", "badnets", 880, 20, 15, seconds=(60.0, 30.0)),
    make_record("abl", "blend"),
    make_record("abl", "sig", 875, 15, 13, flags=("no_op",), seconds=(60.0, 40.0)),
    make_record("cbd", "badnets", 890, 12, 11, seconds=(0.0, 150.0)),
    make_record("cbd", "blend", 885, 700, 14, seconds=(0.0, 120.0)),
    make_record("cbd", "sig", 100, 0, 0, flags=("not_finite",), seconds=(0.0, 120.0)),
]

SEEDS = [
    *(
        make_record("none", "badnets", 930 + s, 990 + s, 10, s, seconds=(0.0, 60.0 + s))
        for s in range(3)
    ),
    *(
        make_record("abl", "badnets", 880 + s, 20 + 10 * s, 15, s, seconds=(60.0, 30.0))
        for s in range(3)
    ),
    make_record("cbd", "badnets", 890, 31, 11, 0, seconds=(0.0, 150.0)),
    make_record("cbd", "badnets", 890, 41, 11, 1, seconds=(0.0, 150.0)),
    make_record("cbd", "badnets", 890, 51, 11, 2, seconds=(0.0, 150.0)),
    make_record("ft", "badnets", 900, 15, 11, 0, seconds=(60.0, 6.0)),
    make_record("ft", "badnets", 902, 55, 11, 1, seconds=(60.0, 6.0)),
    make_record("ft", "badnets", 100, 0, 0, 2, flags=("not_finite", "no_op")),
    make_record("nad", "badnets", 900, 200, 11, 0, seconds=(60.0, 6.0)),
    make_record("nad", "badnets", None, seed=1),
    make_record("nad", "badnets", None, seed=2),
]

ONE_SEED_MARKDOWN = """\
## toy · wrn16_1 · 30 epochs · fp32 · 1 seed

| defense         | clean | trainings | none | badnets |          | blend |          |  sig |              |          mean |      |       |  DER | seconds | x none |
|:----------------|------:|----------:|-----:|--------:|---------:|------:|---------:|-----:|-------------:|--------------:|-----:|------:|-----:|--------:|-------:|
| no clean images |       |           |   CA |      CA |      ASR |    CA |      ASR |   CA |          ASR |            CA |  ASR | R-Acc |      |         |        |
| none            |   0 % |       1.0 | 94.0 |    93.0 |     99.8 |  92.5 |     96.0 | 92.0 |        2.5 ‡ |          92.5 | 66.1 |  16.9 |    - |    60.0 |    1.0 |
| cbd             |   0 % |       1.0 |    - |    89.0 | **1.2**° |  88.5 | **70.0** |    - | not finite ⊘ | 88.8 (2 of 3) | 35.6 |  32.2 | 79.1 |   135.0 |    2.2 |
| abl             |   0 % |       1.0 | 87.0 |    88.0 |   2.0° ~ |     - | failed ¶ | 87.5 |   **1.5**° § | 87.8 (2 of 3) |  1.8 |  49.1 | 72.3 |    93.3 |    1.6 |

- ⊘ not_finite, in no mean: cbd on sig (seed 0)
- ¶ failed, in no mean: abl on blend (seed 0: RuntimeError)
- ‡ attack_failed, the trigger seldom works even with no defense: none on sig (seed 0)
- § no_op, the defense changed nothing: abl on sig (seed 0)"""

ONE_SEED_CSV = """\
dataset,model,attack,defense,recipe,seeds,clean_accuracy,clean_accuracy_low,clean_accuracy_high,attack_success_rate,attack_success_rate_low,attack_success_rate_high,robust_accuracy,robust_accuracy_low,robust_accuracy_high,asr_floor,at_floor,der,tpr,fpr,clean_fraction,trainings,seconds_own,seconds_total,passes_forward,passes_backward,flags,excluded
toy,wrn16_1,none,none,recipe(epochs=30),1,0.94,0.923529,0.953104,,,,,,,0.008,,,,,0,1,60,60,30,30,,0
toy,wrn16_1,none,abl,recipe(epochs=30),1,0.87,0.847732,0.889436,,,,,,,0.02,,,,,0,1,30,90,30,30,,0
toy,wrn16_1,badnets,none,recipe(epochs=30),1,0.93,0.912485,0.944224,0.998,0.992737,0.999451,0.001,0.000176546,0.00564256,0.009,False,,,,0,1,60,60,30,30,,0
toy,wrn16_1,badnets,abl,recipe(epochs=30),1,0.88,0.858391,0.898701,0.02,0.0129837,0.03069,0.49,0.459114,0.520963,0.015,True,0.964,,,0,1,30,90,30,30,,0
toy,wrn16_1,badnets,cbd,recipe(epochs=30),1,0.89,0.869095,0.907921,0.012,0.00687765,0.0208573,0.494,0.463095,0.524951,0.011,True,0.973,,,0,1,150,150,30,30,,0
toy,wrn16_1,blend,none,recipe(epochs=30),1,0.925,0.906999,0.939748,0.96,0.94599,0.970489,0.02,0.0129837,0.03069,0.012,False,,,,0,1,60,60,30,30,,0
toy,wrn16_1,blend,abl,recipe(epochs=30),0,,,,,,,,,,,,,,,0,,,,,,failed:1,1
toy,wrn16_1,blend,cbd,recipe(epochs=30),1,0.885,0.863737,0.903317,0.7,0.670876,0.727593,0.15,0.12921,0.173469,0.014,False,0.61,,,0,1,120,120,30,30,,0
toy,wrn16_1,sig,none,recipe(epochs=30),1,0.92,0.901534,0.935252,0.025,0.0169901,0.0366453,0.487,0.45613,0.51797,0.01,False,,,,0,1,60,60,30,30,attack_failed:1,0
toy,wrn16_1,sig,abl,recipe(epochs=30),1,0.875,0.853056,0.894074,0.015,0.00911098,0.024601,0.492,0.461104,0.522957,0.013,True,0.4825,,,0,1,40,100,30,30,no_op:1,0
toy,wrn16_1,sig,cbd,recipe(epochs=30),0,,,,,,,,,,,,,,,0,,,,,,not_finite:1,1
"""

SEEDS_MARKDOWN = """\
## toy · wrn16_1 · 30 epochs · fp32 · 3 seeds

| defense           | clean | trainings | badnets |             | mean |      |       |  DER | seconds | x none |
|:------------------|------:|----------:|--------:|------------:|-----:|-----:|------:|-----:|--------:|-------:|
| no clean images   |       |           |      CA |         ASR |   CA |  ASR | R-Acc |      |         |        |
| none              |   0 % |       1.0 |    93.1 |        99.1 | 93.1 | 99.1 |   0.4 |    - |    61.0 |    1.0 |
| abl               |   0 % |       1.0 |    88.1 |     **3.0** | 88.1 |  3.0 |  48.5 | 95.5 |    90.0 |    1.5 |
| cbd               |   0 % |       1.0 |    89.0 |         4.1 | 89.0 |  4.1 |  47.9 | 95.4 |   150.0 |    2.5 |
| with clean images |       |           |      CA |         ASR |   CA |  ASR | R-Acc |      |         |        |
| ft                |   5 % |       1.0 |    90.1 | **3.5** § ⊘ | 90.1 |  3.5 |  48.2 | 96.3 |    66.0 |    1.1 |
| nad               |   5 % |       1.0 |    90.0 |      20.0 ¶ | 90.0 | 20.0 |  40.0 | 88.0 |    66.0 |    1.1 |

- ⊘ not_finite, in no mean: ft on badnets (seed 2 of 3)
- ¶ failed, in no mean: nad on badnets (seeds 1, 2 of 3: RuntimeError)
- § no_op, the defense changed nothing: ft on badnets (seed 2 of 3)"""

SEEDS_CSV = """\
dataset,model,attack,defense,recipe,seeds,clean_accuracy,clean_accuracy_low,clean_accuracy_high,attack_success_rate,attack_success_rate_low,attack_success_rate_high,robust_accuracy,robust_accuracy_low,robust_accuracy_high,asr_floor,at_floor,der,tpr,fpr,clean_fraction,trainings,seconds_own,seconds_total,passes_forward,passes_backward,flags,excluded
toy,wrn16_1,badnets,none,recipe(epochs=30),3,0.931,0.928516,0.933484,0.991,0.988516,0.993484,0.00433333,0.00289912,0.00576755,0.01,False,,,,0,1,61,61,30,30,,0
toy,wrn16_1,badnets,abl,recipe(epochs=30),3,0.881,0.878516,0.883484,0.03,0.00515862,0.0548414,0.485,0.472579,0.497421,0.015,False,0.9555,,,0,1,30,90,30,30,,0
toy,wrn16_1,badnets,cbd,recipe(epochs=30),3,0.89,0.89,0.89,0.041,0.0161586,0.0658414,0.479,0.466579,0.491421,0.011,False,0.9545,,,0,1,150,150,30,30,,0
toy,wrn16_1,badnets,ft,recipe(epochs=30),2,0.901,0.888294,0.913706,0.035,0,0.289124,0.482,0.354938,0.609062,0.011,False,0.963,,,0.05,1,6,66,30,30,no_op:1 not_finite:1,1
toy,wrn16_1,badnets,nad,recipe(epochs=30),1,0.9,0.879848,0.917091,0.2,0.176377,0.225919,0.4,0.370075,0.430691,0.011,False,0.88,,,0.05,1,6,66,30,30,failed:2,2
"""


def board(*cells):
    return tables.leaderboard(cells).blocks[0]


def lines(block):
    """The cells of each line of a table."""
    found = [line.strip("|") for line in block.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r" ?(?<!\\)\| ?", line)] for line in found]


def order(block):
    """Sections and defenses from the top."""
    return [first for first, *_ in lines(block)[1:]]


def row(block, defense):
    """The cells of one defense by the title of their column."""
    over, *rows = lines(block)
    filled = list(accumulate(over, lambda left, here: here or left))
    titles = [f"{above} {below}".strip() for above, below in zip(filled, rows[0], strict=True)]
    titles[0] = "defense"
    return dict(zip(titles, next(cells for cells in rows if cells[0] == defense), strict=True))


@pytest.mark.parametrize(
    ("cells", "markdown", "csv"),
    [(ONE_SEED, ONE_SEED_MARKDOWN, ONE_SEED_CSV), (SEEDS, SEEDS_MARKDOWN, SEEDS_CSV)],
    ids=["one seed", "three seeds"],
)
def test_the_tables_are_these(cells, markdown, csv):
    shuffled = random.Random(0).sample(cells, len(cells))
    made = tables.leaderboard(shuffled)
    assert made.blocks == (markdown,)
    assert made.csv() == csv


def test_the_legend_explains_every_sign():
    text = tables.leaderboard(ONE_SEED).markdown()
    assert text.startswith(ONE_SEED_MARKDOWN + "\n\nIn percent, after the last epoch.")
    assert text.endswith(".\n")
    legend = text[len(ONE_SEED_MARKDOWN) :]
    for sign in ("Clean", "Trainings", "CA", "R-Acc", "ASR", "°", "**Bold**", "~", "Mean", "DER"):
        assert f"{sign}: " in legend
    assert "Seconds: " in legend
    assert "x none: " in legend
    assert "It is a trade-off score" in legend


@pytest.mark.parametrize("cells", [ONE_SEED, SEEDS], ids=["one seed", "three seeds"])
def test_three_attacks_fit_160_columns(cells):
    names = {"none": "trojan"}
    attacked = [
        replace(c, labels=c.labels | {"attack": names.get(c.labels["attack"], c.labels["attack"])})
        for c in cells
        if c.labels["attack"] != "none"
    ]
    table = [line for line in board(*attacked).splitlines() if line.startswith("|")]
    assert max(map(len, table)) <= 160


def test_regenerated_files_are_identical(tmp_path):
    for each in ONE_SEED:
        records.write(tmp_path, each)
    first, second = ({}, {})
    for contents in (first, second):
        good, damaged = records.read_all(tmp_path)
        assert damaged == []
        paths = tables.write_leaderboard(good, tmp_path)
        contents.update((path.name, path.read_bytes()) for path in paths)
    assert first == second
    assert first["leaderboard.csv"].decode() == ONE_SEED_CSV
    assert first["leaderboard.md"].decode().startswith(ONE_SEED_MARKDOWN)
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == sorted(first)


def test_times_leave_the_metrics_alone():
    slower = [
        replace(each, measured=each.measured | {"started": "2031-01-01", "images_per_second": 1.0})
        for each in ONE_SEED
    ]
    assert tables.leaderboard(slower).csv() == ONE_SEED_CSV


def test_the_csv_reads_back():
    summary = tables.summarise(SEEDS)
    assert list(summary.columns) == list(tables.COLUMNS)
    again = pd.read_csv(io.StringIO(SEEDS_CSV), keep_default_na=False, na_values=[""])
    again["flags"] = again["flags"].fillna("")
    again["at_floor"] = again["at_floor"].astype(object)
    pd.testing.assert_frame_equal(again, summary, rtol=1e-5, check_dtype=False)


def test_no_records_is_an_error_that_says_what_makes_them(tmp_path):
    with pytest.raises(InvalidInput) as raised:
        tables.write_leaderboard([], tmp_path)
    assert str(raised.value) == f"no records in {tmp_path / 'records'}; `bdbench run` makes them"
    assert tables.summarise([]).empty
    assert tables.leaderboard([]).blocks == ()


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "tables").write_text("in the way")
    with pytest.raises(
        InvalidInput, match=f"cannot write leaderboard.csv in {tmp_path / 'tables'}"
    ):
        tables.write_leaderboard(ONE_SEED, tmp_path)


@pytest.mark.parametrize(("defense", "seed"), [("abl", 1), ("cbd", 0)])
def test_records_of_different_data_share_no_table(defense, seed):
    one = make_record("abl", "badnets", 880, 20)
    two = replace(
        make_record(defense, "badnets", 880, 20, seed=seed),
        key="f" * 16,
        provenance={"data_sha256": "cd" * 32},
    )
    for order in ([one, two], [two, one]):
        with pytest.raises(InvalidInput) as raised:
            tables.leaderboard(order)
        assert str(raised.value) == (
            f"records {one.key} (abl on badnets, data abababababab) and ffffffffffffffff "
            f"({defense} on badnets, data cdcdcdcdcdcd) were trained on different data and cannot "
            "share a table; put them into folders of their own with --results"
        )


def test_a_cell_that_failed_before_its_data_was_known_is_no_conflict():
    unknown = replace(make_record("abl", "badnets"), provenance={})
    assert (
        row(board(unknown, make_record("cbd", "badnets", 880, 20)), "abl")["badnets ASR"]
        == "failed ¶"
    )


def test_a_seed_counts_once():
    one = make_record("abl", "badnets", 880, 20)
    with pytest.raises(InvalidInput, match=f"records {one.key} and f+ are both of abl on badnets"):
        tables.summarise([one, replace(one, key="f" * 16)])


def test_no_defense_is_bold_only_if_alone():
    alone = board(make_record("none", "badnets", 930, 998), make_record("none", "none", 940))
    assert row(alone, "none")["badnets ASR"] == "**99.8**"
    both = board(make_record("none", "badnets", 930, 5), make_record("ft", "badnets", 880, 200))
    assert row(both, "none")["badnets ASR"] == "0.5°"
    assert row(both, "ft")["badnets ASR"] == "**20.0**"


def test_equally_good_defenses_are_both_bold_and_sorted_by_accuracy():
    block = board(make_record("abl", "badnets", 880, 200), make_record("cbd", "badnets", 890, 200))
    assert row(block, "abl")["badnets ASR"] == row(block, "cbd")["badnets ASR"] == "**20.0**"
    assert order(block) == ["no clean images", "cbd", "abl"]


def test_each_group_has_its_own_best():
    block = board(
        make_record("none", "badnets", 930, 998),
        make_record("abl", "badnets", 880, 300),
        make_record("cbd", "badnets", 890, 310),
        make_record("ft", "badnets", 900, 100),
        make_record("nad", "badnets", 900, 200),
        make_record("mine", "badnets", 910, 400),
    )
    assert {name: row(block, name)["badnets ASR"] for name in ("abl", "cbd", "ft", "nad")} == {
        "abl": "**30.0**",
        "cbd": "31.0 ~",
        "ft": "**10.0**",
        "nad": "20.0",
    }
    assert order(block) == [
        *("no clean images", "none", "abl", "cbd"),
        *("with clean images", "ft", "nad"),
        *("clean images not known", "mine"),
    ]
    assert row(block, "mine")["clean"] == "-"
    assert row(block, "mine")["badnets ASR"] == "**40.0**"


def test_at_chance_enters_means_with_a_mark_and_is_never_the_best():
    block = board(
        make_record("none", "badnets", 930, 998),
        make_record("abl", "badnets", 880, 300),
        make_record("cbd", "badnets", 100, 100, 100, flags=("at_chance",)),
    )
    assert row(block, "cbd")["badnets ASR"] == "10.0° †"
    assert row(block, "cbd")["mean CA"] == "10.0"
    assert row(block, "abl")["badnets ASR"] == "**30.0**"
    assert "- † at_chance, accuracy no better than always guessing one class, never the best: cbd on badnets (seed 0)" in block.splitlines()  # fmt: skip


@pytest.mark.parametrize(
    ("record", "share", "text"),
    [
        (make_record("ft", "badnets", 880, 20), 0.1, "10 %"),
        (make_record("mine", "badnets", 880, 20), 0.005, "0.5 %"),
        (make_record("mine", "badnets", 880, 20), 0, "0 %"),
        (make_record("ft", "badnets", 880, 20), None, "5 %"),
        (make_record("cbd", "badnets", 880, 20), None, "0 %"),
        (make_record("mine", "badnets", 880, 20), None, "-"),
        (make_record("a.py", "badnets", 880, 20), None, "-"),
    ],
)
def test_the_clean_share_is_the_records_or_that_of_the_source(record, share, text):
    given = {} if share is None else {"clean_fraction": share}
    record = replace(record, provenance=record.provenance | given)
    assert row(board(record), record.labels["defense"])["clean"] == text


def test_trainings_are_passes_relative_to_plain_training():
    record = make_record("cbd", "badnets", 880, 20)
    more = replace(record, passes={"forward": 60.0, "backward": 33.0})
    assert row(board(more), "cbd")["trainings"] == "1.4"
    without = replace(more, cell=more.cell | {"recipe": "recipe()"})
    assert row(board(without), "cbd")["trainings"] == "-"
    assert row(board(make_record("cbd", "badnets")), "cbd")["trainings"] == "-"


@pytest.mark.parametrize(
    ("asr", "floor", "marked"),
    [
        ([20], [15], True),
        ([12], [20], True),
        ([40], [15], False),
        ([1], [40], True),
        ([20, 30, 40], [15, 20, 45], True),
        ([20, 30, 40], [15, 25, 34], False),
        ([24, 1000, 1000], [20, 20, 20], False),
    ],
)
def test_an_asr_at_its_floor_is_marked(asr, floor, marked):
    """The last ones cannot be told from their floors by a t-test, and two have a backdoor."""
    some = [make_record("abl", "badnets", 880, a, f, n) for n, (a, f) in enumerate(zip(asr, floor, strict=True))]  # fmt: skip
    assert row(board(*some), "abl")["badnets ASR"].endswith("°") == marked
    (said,) = tables.summarise(some)["at_floor"]
    assert said is marked


def test_der_is_what_its_paper_says():
    """Equation 7 by hand: (0.998 - 0.02 - (0.93 - 0.88) + 1) / 2, and no gain from more CA."""
    some = [
        make_record("none", "badnets", 930, 998),
        make_record("abl", "badnets", 880, 20),
        make_record("none", "blend", 900, 900),
        make_record("abl", "blend", 950, 950),
        make_record("cbd", "badnets", 880, 20),
    ]
    made = tables.summarise(some).set_index(["defense", "attack"])["der"]
    assert made["abl", "badnets"] == pytest.approx(0.964)
    assert made["abl", "blend"] == pytest.approx(0.5)
    assert pd.isna(made["none", "badnets"])
    block = board(*some)
    assert row(block, "abl")["DER"] == "73.2"
    assert row(block, "cbd")["DER"] == "96.4"
    assert row(block, "cbd")["mean CA"] == "88.0 (1 of 2)"
    assert row(block, "none")["DER"] == "-"
    assert row(board(some[1]), "abl")["DER"] == "-"


def test_der_is_of_the_means_over_seeds():
    made = tables.summarise(SEEDS).set_index("defense")["der"]
    assert made["abl"] == pytest.approx((0.991 - 0.03 - (0.931 - 0.881) + 1) / 2)


def test_rows_are_sorted_by_der_or_by_any_column():
    some = [
        make_record("none", "badnets", 930, 998),
        make_record("abl", "badnets", 880, 20, seconds=(60.0, 30.0)),
        make_record("cbd", "badnets", 800, 10, seconds=(0.0, 150.0)),
        make_record("dbd", "badnets", 920, 300, seconds=(0.0, 20.0)),
    ]

    def sorted_by(column):
        return order(tables.leaderboard(some, column).blocks[0])[2:]

    assert sorted_by("") == sorted_by("DER") == ["abl", "cbd", "dbd"]
    assert sorted_by("badnets ASR") == sorted_by("mean ASR") == ["cbd", "abl", "dbd"]
    assert sorted_by("badnets CA") == ["dbd", "abl", "cbd"]
    assert sorted_by("badnets R-Acc") == ["cbd", "abl", "dbd"]
    assert sorted_by("seconds") == sorted_by("x none") == ["dbd", "abl", "cbd"]
    assert sorted_by("defense") == ["abl", "cbd", "dbd"]
    with pytest.raises(InvalidInput) as raised:
        sorted_by("badnet ASR")
    assert str(raised.value) == "unknown column 'badnet ASR'; did you mean 'badnets ASR'?"


def test_more_columns_are_shown_where_they_are_asked_for():
    judged = {"mean_clean": 0.9, "mean_poisoned": 0.25, "recall": 0.75, "precision": 0.5}
    some = [
        make_record("none", "none", 940, floor=8),
        make_record("none", "badnets", 930, 998),
        replace(
            make_record("abl", "badnets", 880, 20, 15),
            diagnostics={"samples": {"kept": judged, "a loss": {"mean_clean": 0.5}}},
        ),
    ]
    whole = row(tables.leaderboard(some, columns=["all"]).blocks[0], "abl")
    assert {title: text for title, text in whole.items() if title.startswith("badnets")} == {
        "badnets CA": "88.0",
        "badnets ASR": "**2.0**°",
        "badnets floor": "1.5",
        "badnets R-Acc": "49.0",
        "badnets CA interval": "85.8 to 89.9",
        "badnets ASR interval": "1.3 to 3.1",
        "badnets TPR": "75.0",
        "badnets FPR": "10.0",
    }
    none = row(tables.leaderboard(some, columns=["all"]).blocks[0], "none")
    assert none["none floor"] == "0.8"
    one = row(tables.leaderboard(some, columns=["TPR"]).blocks[0], "abl")
    assert one.keys() - row(board(*some), "abl").keys() == {"badnets TPR"}
    with pytest.raises(InvalidInput) as raised:
        tables.leaderboard(some, columns=["flor"])
    assert str(raised.value) == "unknown column 'flor'; did you mean 'floor'?"


def test_rates_of_a_filter_are_those_of_the_record():
    samples = {"kept": {"mean_clean": 0.9, "fpr": 0.1, "tpr": 0.3}}
    some = [replace(make_record("abl", "badnets", 880, 20), diagnostics={"samples": samples})]
    some += [make_record("abl", "badnets", 880, 20, seed=1), make_record("cbd", "badnets", 880, 20)]
    made = tables.summarise(some).set_index("defense")
    assert tuple(made.loc["abl", ["tpr", "fpr"]]) == (0.3, 0.1)
    assert made.loc["cbd", ["tpr", "fpr"]].isna().all()


def test_a_defense_without_results_comes_last_and_leaves_the_order_of_the_others():
    block = board(
        make_record("abl", "badnets"),
        make_record("cbd", "badnets", 890, 20),
        make_record("dbd", "badnets", 890, 10),
        make_record("clp", "badnets", 100, 0, flags=("not_finite",)),
    )
    assert order(block) == ["no clean images", "dbd", "cbd", "abl", "clp"]
    assert row(block, "clp") == {
        "defense": "clp",
        "clean": "0 %",
        "trainings": "-",
        "badnets CA": "-",
        "badnets ASR": "not finite ⊘",
        "mean CA": "-",
        "mean ASR": "-",
        "mean R-Acc": "-",
        "DER": "-",
        "seconds": "-",
        "x none": "-",
    }


def test_only_clean_training_makes_a_table_too():
    block = board(
        make_record("none", "none", 940, floor=8), make_record("abl", "none", 870, floor=20)
    )
    assert row(block, "abl") == {
        "defense": "abl",
        "clean": "0 %",
        "trainings": "1.0",
        "none CA": "87.0",
        "seconds": "60.0",
        "x none": "1.0",
    }
    failed = board(make_record("none", "none", 940, floor=8), make_record("abl", "none"))
    assert row(failed, "abl")["none CA"] == "failed ¶"


def test_a_block_for_each_data_set_model_and_recipe():
    one = make_record("abl", "badnets", 880, 20)
    longer = replace(
        one,
        cell=one.cell | {"recipe": "recipe(epochs=100, learning_rate=0.01)"},
        labels=one.labels | {"recipe": "recipe(learning_rate=0.01)"},
        provenance={"data_sha256": "cd" * 32, "precision": "bf16"},
    )
    titles = [block.splitlines()[0] for block in tables.leaderboard([longer, one]).blocks]
    assert titles == [
        "## toy · wrn16_1 · 30 epochs · fp32 · 1 seed",
        "## toy · wrn16_1 · 100 epochs · recipe(learning_rate=0.01) · bf16 · 1 seed",
    ]


def test_specs_that_share_a_label_are_written_out():
    one = make_record("abl", "badnets", 880, 20)
    other = replace(one, key="f" * 16, cell=one.cell | {"defense": "abl(field=2)"})
    assert list(tables.summarise([one, other])["defense"]) == ["abl(field=1)", "abl(field=2)"]


def test_a_bar_in_a_spec_does_not_split_a_column():
    block = board(make_record("mine(name='a|b')", "badnets", 880, 20))
    assert "| mine(name='a\\|b')      |" in block


def test_seconds_of_several_devices_are_said():
    one, two = make_record("none", "badnets", 850, 990), make_record("cbd", "badnets", 840, 20)
    assert "several devices" not in tables.leaderboard([one, two]).markdown()
    moved = replace(two, provenance=two.provenance | {"device": "cuda: a GPU"})
    stayed = replace(one, provenance=one.provenance | {"device": "cpu: a processor"})
    found = tables.leaderboard([stayed, moved]).markdown()
    assert "- seconds were measured on several devices: cpu: a processor, cuda: a GPU\n" in found


def test_the_command_sorts_and_adds_columns_and_leaves_the_files_alone(tmp_path, capsys):
    for each in SEEDS:
        records.write(tmp_path, each)
    command = ["table", "leaderboard", "--results", str(tmp_path)]
    assert main(command) == 0
    plain = capsys.readouterr().out
    written = (tmp_path / "tables/leaderboard.md").read_text()
    assert plain.startswith(written)
    more = ["--sort", "seconds", "--columns", "floor", "--columns", "ASR interval"]
    assert main([*command, *more]) == 0
    shown = capsys.readouterr().out
    assert row(shown, "cbd")["badnets floor"] == "1.1"
    assert row(shown, "cbd")["badnets ASR interval"] == "1.6 to 6.6"
    assert order(shown)[-2:] == ["ft", "nad"]
    assert (tmp_path / "tables/leaderboard.md").read_text() == written


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--sort", "badnet ASR"], "unknown column 'badnet ASR'; did you mean 'badnets ASR'?"),
        (["--columns", "FRP"], "unknown column 'FRP'; did you mean 'FPR'?"),
    ],
)
def test_the_command_refuses_a_wrong_column_in_one_line(options, complaint, tmp_path, capsys):
    for each in SEEDS:
        records.write(tmp_path, each)
    assert main(["table", "leaderboard", "--results", str(tmp_path), *options]) == 2
    assert capsys.readouterr().err == f"bdbench: {complaint}\n"
    assert main(["table", "1", "--results", str(tmp_path), *options]) == 2
    assert capsys.readouterr().err == "bdbench: --sort and --columns are for the leaderboard\n"


def test_flags_of_older_and_later_versions_do_no_harm() -> None:
    """An older "diverged" enters no mean, and a flag that nobody knows yet changes nothing."""
    made = [
        make_record("none", "badnets", 900, 1000),
        make_record("none", "badnets", 100, 1000, seed=1, flags=("diverged",)),
        make_record("ft", "badnets", 890, 20, flags=("as_yet_unknown",)),
        make_record("fp", "badnets", 100, 0, flags=("diverged",)),
    ]
    text = tables.leaderboard(made).markdown()
    rows = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:1] == "|"}
    assert "90.0" in rows["none"]
    assert "50.0" not in rows["none"]
    assert "89.0" in rows["ft"]
    assert "diverged ⊘" in rows["fp"]
    assert "⊘ diverged, in no mean; an older record, not finite or at chance" in text


def test_falls_and_ratios_are_of_the_seeds_that_both_sides_have():
    records = [
        *(make_record("none", "badnets", ca, 1000, seed=s) for s, ca in enumerate((900, 800, 500))),
        *(make_record("cbd", "badnets", ca, 1000, seed=s) for s, ca in enumerate((880, 780))),
    ]
    assert summarised(records)["cbd"] == pytest.approx((1 - 0.02) / 2)


def summarised(records):
    frame = tables.summarise(records)
    return dict(zip(frame["defense"], frame["der"], strict=True))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fit": 10, "validation": 10, "of": 100, "classes": 10}, True),
        ({"fit": 5, "validation": 5, "of": 100, "classes": 10}, False),
        ({"fit": 2, "validation": 1, "of": 60, "classes": 2}, False),
        ({"fit": "many"}, False),
        (None, False),
    ],
)
def test_another_clean_share_than_declared_is_said(given, said):
    record = make_record("ft", "badnets", 880, 20)
    record = replace(record, provenance=record.provenance | {"clean_fraction": 0.05})
    record = replace(record, diagnostics={"lent": given})
    line = "- ft was lent 20 clean images of 100, 20 %, where it declares 5 %: at least two of each class"  # fmt: skip
    assert (line in board(record).splitlines()) is said
