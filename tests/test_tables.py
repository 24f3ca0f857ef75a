"""The leaderboard, literally: what a few records give is written out below."""

# A row of a table is one line, however long.
# ruff: noqa: E501

import io
import random
from dataclasses import replace

import pandas as pd
import pytest
from made import cell

from bdbench.models.plugins.errors import InvalidInput
from bdbench.records import files as records
from bdbench.tables import write as tables

ONE_SEED = [
    cell("none", "none", 940, floor=8),
    cell("none", "badnets", 930, 998, 9),
    cell("none", "blend", 925, 960, 12),
    cell("none", "sig", 920, 25, 10, flags=("attack_failed",)),
    cell("abl", "none", 870, floor=20, seconds=(60.0, 30.0)),
    cell("abl", "badnets", 880, 20, 15, seconds=(60.0, 30.0)),
    cell("abl", "blend"),
    cell("abl", "sig", 875, 15, 13, flags=("no_op",), seconds=(60.0, 40.0)),
    cell("cbd", "badnets", 890, 12, 11, seconds=(0.0, 150.0)),
    cell("cbd", "blend", 885, 700, 14, seconds=(0.0, 120.0)),
    cell("cbd", "sig", 100, 0, 0, flags=("diverged",), seconds=(0.0, 120.0)),
]

SEEDS = [
    *(cell("none", "badnets", 930 + s, 990 + s, 10, s, seconds=(0.0, 60.0 + s)) for s in range(3)),
    *(cell("abl", "badnets", 880 + s, 20 + 10 * s, 15, s, seconds=(60.0, 30.0)) for s in range(3)),
    cell("cbd", "badnets", 890, 31, 11, 0, seconds=(0.0, 150.0)),
    cell("cbd", "badnets", 890, 41, 11, 1, seconds=(0.0, 150.0)),
    cell("cbd", "badnets", 890, 51, 11, 2, seconds=(0.0, 150.0)),
    cell("ft", "badnets", 900, 15, 11, 0, seconds=(60.0, 6.0)),
    cell("ft", "badnets", 902, 55, 11, 1, seconds=(60.0, 6.0)),
    cell("ft", "badnets", 100, 0, 0, 2, flags=("diverged", "no_op")),
    cell("nad", "badnets", 900, 200, 11, 0, seconds=(60.0, 6.0)),
    cell("nad", "badnets", None, seed=1),
    cell("nad", "badnets", None, seed=2),
]

ONE_SEED_MARKDOWN = """\
## toy · wrn16_1 · 30 epochs · fp32 · 1 seed

| defense   |   none CA |   none floor |   badnets CA |         badnets ASR |   blend CA |            blend ASR |     sig CA |               sig ASR |       mean CA |      mean ASR |   seconds |   x none |
|:----------|----------:|-------------:|-------------:|--------------------:|-----------:|---------------------:|-----------:|----------------------:|--------------:|--------------:|----------:|---------:|
| none      |      94.0 |          0.8 |         93.0 |    99.8 (floor 0.9) |       92.5 |     96.0 (floor 1.2) |       92.0 |     2.5 (floor 1.0) ‡ |          92.5 |          66.1 |      60.0 |      1.0 |
| cbd       |         - |            - |         89.0 | **1.2** (floor 1.1) |       88.5 | **70.0** (floor 1.4) | diverged † |            diverged † | 88.8 (2 of 3) | 35.6 (2 of 3) |     135.0 |      2.2 |
| abl       |      87.0 |          2.0 |         88.0 |   2.0 ~ (floor 1.5) |     failed |               failed |       87.5 | **1.5** (floor 1.3) § | 87.8 (2 of 3) |  1.8 (2 of 3) |      93.3 |      1.6 |

- † diverged, in no mean: cbd on sig (seed 0)
- ¶ failed, in no mean: abl on blend (seed 0: RuntimeError)
- ‡ attack_failed, the trigger seldom works even with no defense: none on sig (seed 0)
- § no_op, the defense changed nothing: abl on sig (seed 0)"""

ONE_SEED_CSV = """\
dataset,model,attack,defense,recipe,seeds,clean_accuracy,clean_accuracy_low,clean_accuracy_high,attack_success_rate,attack_success_rate_low,attack_success_rate_high,robust_accuracy,robust_accuracy_low,robust_accuracy_high,asr_floor,seconds_own,seconds_total,passes_forward,passes_backward,flags,excluded
toy,wrn16_1,none,none,recipe(epochs=30),1,0.94,0.923529,0.953104,,,,,,,0.008,60,60,30,30,,0
toy,wrn16_1,none,abl,recipe(epochs=30),1,0.87,0.847732,0.889436,,,,,,,0.02,30,90,30,30,,0
toy,wrn16_1,badnets,none,recipe(epochs=30),1,0.93,0.912485,0.944224,0.998,0.992737,0.999451,0.001,0.000176546,0.00564256,0.009,60,60,30,30,,0
toy,wrn16_1,badnets,abl,recipe(epochs=30),1,0.88,0.858391,0.898701,0.02,0.0129837,0.03069,0.49,0.459114,0.520963,0.015,30,90,30,30,,0
toy,wrn16_1,badnets,cbd,recipe(epochs=30),1,0.89,0.869095,0.907921,0.012,0.00687765,0.0208573,0.494,0.463095,0.524951,0.011,150,150,30,30,,0
toy,wrn16_1,blend,none,recipe(epochs=30),1,0.925,0.906999,0.939748,0.96,0.94599,0.970489,0.02,0.0129837,0.03069,0.012,60,60,30,30,,0
toy,wrn16_1,blend,abl,recipe(epochs=30),0,,,,,,,,,,,,,,,failed:1,1
toy,wrn16_1,blend,cbd,recipe(epochs=30),1,0.885,0.863737,0.903317,0.7,0.670876,0.727593,0.15,0.12921,0.173469,0.014,120,120,30,30,,0
toy,wrn16_1,sig,none,recipe(epochs=30),1,0.92,0.901534,0.935252,0.025,0.0169901,0.0366453,0.487,0.45613,0.51797,0.01,60,60,30,30,attack_failed:1,0
toy,wrn16_1,sig,abl,recipe(epochs=30),1,0.875,0.853056,0.894074,0.015,0.00911098,0.024601,0.492,0.461104,0.522957,0.013,40,100,30,30,no_op:1,0
toy,wrn16_1,sig,cbd,recipe(epochs=30),0,,,,,,,,,,,,,,,diverged:1,1
"""

SEEDS_MARKDOWN = """\
## toy · wrn16_1 · 30 epochs · fp32 · 3 seeds

| defense   |   badnets CA |                  badnets ASR |   mean CA |   mean ASR |   seconds |   x none |
|:----------|-------------:|-----------------------------:|----------:|-----------:|----------:|---------:|
| none      |   93.1 ± 0.2 |       99.1 ± 0.2 (floor 1.0) |      93.1 |       99.1 |      61.0 |      1.0 |
| abl       |   88.1 ± 0.2 |    **3.0 ± 2.5** (floor 1.5) |      88.1 |        3.0 |      90.0 |      1.5 |
| ft        |   90.1 ± 1.3 | 3.5 ± 25.4 ~ (floor 1.1) † § |      90.1 |        3.5 |      66.0 |      1.1 |
| cbd       |   89.0 ± 0.0 |        4.1 ± 2.5 (floor 1.1) |      89.0 |        4.1 |     150.0 |      2.5 |
| nad       |         90.0 |           20.0 (floor 1.1) ¶ |      90.0 |       20.0 |      66.0 |      1.1 |

- † diverged, in no mean: ft on badnets (seed 2 of 3)
- ¶ failed, in no mean: nad on badnets (seeds 1, 2 of 3: RuntimeError)
- § no_op, the defense changed nothing: ft on badnets (seed 2 of 3)"""

SEEDS_CSV = """\
dataset,model,attack,defense,recipe,seeds,clean_accuracy,clean_accuracy_low,clean_accuracy_high,attack_success_rate,attack_success_rate_low,attack_success_rate_high,robust_accuracy,robust_accuracy_low,robust_accuracy_high,asr_floor,seconds_own,seconds_total,passes_forward,passes_backward,flags,excluded
toy,wrn16_1,badnets,none,recipe(epochs=30),3,0.931,0.928516,0.933484,0.991,0.988516,0.993484,0.00433333,0.00289912,0.00576755,0.01,61,61,30,30,,0
toy,wrn16_1,badnets,abl,recipe(epochs=30),3,0.881,0.878516,0.883484,0.03,0.00515862,0.0548414,0.485,0.472579,0.497421,0.015,30,90,30,30,,0
toy,wrn16_1,badnets,cbd,recipe(epochs=30),3,0.89,0.89,0.89,0.041,0.0161586,0.0658414,0.479,0.466579,0.491421,0.011,150,150,30,30,,0
toy,wrn16_1,badnets,ft,recipe(epochs=30),2,0.901,0.888294,0.913706,0.035,0,0.289124,0.482,0.354938,0.609062,0.011,6,66,30,30,diverged:1 no_op:1,1
toy,wrn16_1,badnets,nad,recipe(epochs=30),1,0.9,0.879848,0.917091,0.2,0.176377,0.225919,0.4,0.370075,0.430691,0.011,6,66,30,30,failed:2,2
"""


def board(*cells):
    return tables.leaderboard(cells).blocks[0]


def row(block, defense):
    """The cells of one defense by header."""
    lines = [line.strip("| ") for line in block.splitlines() if line.startswith("| ")]
    headers, *rows = ([cell.strip() for cell in line.split(" | ")] for line in lines)
    found = next(cells for cells in rows if cells[0] == defense)
    return dict(zip(headers, found, strict=True))


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
    assert text.startswith(ONE_SEED_MARKDOWN + "\n\nCA: accuracy")
    assert text.endswith(".\n")
    for sign in ("ASR: ", "floor: ", "**Bold**: ", "~: ", "±: ", "Mean: ", "x none: "):
        assert sign in text[len(ONE_SEED_MARKDOWN) :]


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
    one = cell("abl", "badnets", 880, 20)
    two = replace(
        cell(defense, "badnets", 880, 20, seed=seed),
        key="f" * 16,
        provenance={"data_sha256": "cd" * 32},
    )
    for order in ([one, two], [two, one]):
        with pytest.raises(InvalidInput) as raised:
            tables.leaderboard(order)
        assert str(raised.value) == (
            f"records {one.key} (abl on badnets, data abababababab) and ffffffffffffffff "
            f"({defense} on badnets, data cdcdcdcdcdcd) were trained on different data and cannot "
            "share a table"
        )


def test_a_cell_that_failed_before_its_data_was_known_is_no_conflict():
    unknown = replace(cell("abl", "badnets"), provenance={})
    assert row(board(unknown, cell("cbd", "badnets", 880, 20)), "abl")["badnets ASR"] == "failed"


def test_a_seed_counts_once():
    one = cell("abl", "badnets", 880, 20)
    with pytest.raises(InvalidInput, match=f"records {one.key} and f+ are both of abl on badnets"):
        tables.summarise([one, replace(one, key="f" * 16)])


def test_no_defense_is_bold_only_if_alone():
    alone = board(cell("none", "badnets", 930, 998), cell("none", "none", 940))
    assert row(alone, "none")["badnets ASR"] == "**99.8** (floor 1.0)"
    both = board(cell("none", "badnets", 930, 5), cell("abl", "badnets", 880, 20))
    assert row(both, "none")["badnets ASR"] == "0.5 (floor 1.0)"
    assert row(both, "abl")["badnets ASR"] == "**2.0** (floor 1.0)"


def test_equally_good_defenses_are_both_bold_and_sorted_by_accuracy():
    block = board(cell("abl", "badnets", 880, 20), cell("cbd", "badnets", 890, 20))
    assert (
        row(block, "abl")["badnets ASR"]
        == row(block, "cbd")["badnets ASR"]
        == "**2.0** (floor 1.0)"
    )
    assert block.index("| cbd") < block.index("| abl")


def test_a_defense_without_results_comes_last_and_leaves_the_order_of_the_others():
    block = board(
        cell("abl", "badnets"),
        cell("cbd", "badnets", 890, 20),
        cell("nad", "badnets", 890, 10),
        cell("ft", "badnets", 100, 0, flags=("diverged",)),
    )
    order = [line.split()[1] for line in block.splitlines() if line.startswith("| ")]
    assert order == ["defense", "nad", "cbd", "abl", "ft"]
    assert row(block, "ft") == {
        "defense": "ft",
        "badnets CA": "diverged †",
        "badnets ASR": "diverged †",
        "mean CA": "-",
        "mean ASR": "-",
        "seconds": "-",
        "x none": "-",
    }


def test_only_clean_training_makes_a_table_too():
    block = board(cell("none", "none", 940, floor=8), cell("abl", "none", 870, floor=20))
    assert row(block, "abl") == {
        "defense": "abl",
        "none CA": "87.0",
        "none floor": "2.0",
        "seconds": "60.0",
        "x none": "1.0",
    }


def test_a_block_for_each_data_set_model_and_recipe():
    one = cell("abl", "badnets", 880, 20)
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
    one = cell("abl", "badnets", 880, 20)
    other = replace(one, key="f" * 16, cell=one.cell | {"defense": "abl(field=2)"})
    assert list(tables.summarise([one, other])["defense"]) == ["abl(field=1)", "abl(field=2)"]


def test_a_bar_in_a_spec_does_not_split_a_column():
    block = board(cell("mine(name='a|b')", "badnets", 880, 20))
    assert "| mine(name='a\\|b') |" in block


def test_seconds_of_several_devices_are_said():
    one, two = cell("none", "badnets", 850, 990), cell("cbd", "badnets", 840, 20)
    assert "several devices" not in tables.leaderboard([one, two]).markdown()
    moved = replace(two, provenance=two.provenance | {"device": "cuda: a GPU"})
    stayed = replace(one, provenance=one.provenance | {"device": "cpu: a processor"})
    found = tables.leaderboard([stayed, moved]).markdown()
    assert "- seconds were measured on several devices: cpu: a processor, cuda: a GPU\n" in found
