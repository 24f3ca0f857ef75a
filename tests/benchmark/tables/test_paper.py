"""The tables of the paper, literally: what a few records give is written out below."""

# A row of a table is one line, however long.
# ruff: noqa: E501

import io
import math
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from builders import ROOT, make_record
from scipy import stats

from bdbench.cli import main
from bdbench.models.plugins.errors import InvalidInput
from bdbench.records.files import read_all, write
from bdbench.records.record import ALONE
from bdbench.tables.groups import collect
from bdbench.tables.leaderboard import LeaderboardBlock
from bdbench.tables.paper import COMPANY, TABLES, TIMING, company, sheets
from bdbench.tables.sheet import PaperTable, TableCell
from bdbench.tables.write import leaderboard, write_table

GOLDEN = ROOT / "tests" / "golden"
RECIPE = "recipe(epochs=100, learning_rate=0.1, precision='fp32')"


def on_cifar10(record, attack=None):
    """A record made by `cell`, as if of all of CIFAR-10, at the recipe of the paper."""
    attack = attack or record.labels["attack"]
    own = {"dataset": "cifar10", "model": "wrn16_1", "attack": attack}
    return replace(
        record,
        cell=record.cell | own | {"defense": record.labels["defense"], "recipe": RECIPE},
        labels=record.labels | own | {"recipe": "recipe()"},
    )


def three_seeds(defense, attack, cas, asrs, **fields):
    return [
        on_cifar10(make_record(defense, attack, ca, asr, seed=seed, **fields))
        for seed, (ca, asr) in enumerate(zip(cas, asrs, strict=True))
    ]


def with_seconds(record, others=0.0, **seconds):
    seconds = record.measured["seconds"] | seconds
    return replace(record, measured=record.measured | {"seconds": seconds, "others": others})


def older(record):
    """As it was before captures, images and others were measured."""
    seconds = {k: v for k, v in record.measured["seconds"].items() if k != "capture"}
    kept = {k: v for k, v in record.measured.items() if k not in ("images", "others")}
    return replace(record, measured=kept | {"seconds": seconds})


TABLE_1 = [
    *three_seeds("none", "none", (880, 890, 900), (20, 10, 30), floor=20),
    *three_seeds("none", "badnets", (850, 860, 870), (1000, 1000, 1000)),
    *three_seeds("none", "blend", (840, 850, 860), (990, 1000, 1000)),
    *three_seeds("abl", "badnets", (800, 810, 820), (20, 10, 30)),
    *three_seeds("abl", "blend", (790, 800, 820), (500, 510, 530)),
    *three_seeds("cbd", "badnets", (860, 870, 880), (10, 20, 30)),
    *three_seeds("cbd", "blend", (850, 860, 870), (20, 20, 20), flags=("not_finite",)),
    on_cifar10(make_record("mine", "badnets", 700, 400)),
    on_cifar10(make_record("mine", "blend")),
    on_cifar10(make_record("none", "adaptive", 800, 900), "adaptive(attack='badnets')"),
]
SHEET_1 = """\
## cifar10 · wrn16_1 · 100 epochs · fp32 · 3 seeds

| attack  |                none ASR |                  none CA |                      abl ASR |                   abl CA |                         cbd ASR |                            cbd CA |      mine ASR |       mine CA |
|:--------|------------------------:|-------------------------:|-----------------------------:|-------------------------:|--------------------------------:|----------------------------------:|--------------:|--------------:|
| none    |           2.0 (0; +2.0) | 89.0 ± 2.5 (89.14; -0.1) |                            - |                        - |                               - |                                 - |             - |             - |
| badnets | 100.0 ± 0.0 (100; +0.0) | 86.0 ± 2.5 (85.37; +0.6) |   **2.0 ± 2.5** (3.13; -1.1) |  81.0 ± 2.5 (86.3; -5.3) |      **2.0 ± 2.5** (1.06; +0.9) |          87.0 ± 2.5 (87.46; -0.5) |          40.0 |          70.0 |
| blend   |  99.7 ± 1.4 (100; -0.3) | 85.0 ± 2.5 (84.56; +0.4) | **51.3 ± 3.8** (14.6; +36.7) | 80.3 ± 3.8 (85.02; -4.7) |                    not finite ⊘ |                      not finite ⊘ |      failed ¶ |      failed ¶ |
| average |  99.8 ± 0.7 (100; -0.2) | 85.5 ± 2.5 (84.97; +0.5) |     26.7 ± 2.9 (8.87; +17.8) | 80.7 ± 3.1 (85.66; -5.0) | 2.0 ± 2.5 [1 of 2] (1.06; +0.9) | 87.0 ± 2.5 [1 of 2] (87.46; -0.5) | 40.0 [1 of 2] | 70.0 [1 of 2] |

- ⊘ not_finite, in no mean: cbd on blend (seeds 0, 1, 2 of 3)
- ¶ failed, in no mean: mine on blend (seed 0: RuntimeError)
"""

TABLE_2 = [
    on_cifar10(make_record(defense, "badnets", ca, asr), attack)
    for attack, defense, ca, asr in (
        ("badnets(poisoning_rate=0.01)", "none", 850, 990),
        ("badnets(poisoning_rate=0.01)", "cbd", 880, 10),
        ("badnets(poisoning_rate=0.5)", "none", 790, 1000),
        ("wanet(poisoning_rate=0.01)", "cbd", 860, 20),
        ("wanet(poisoning_rate=0.05)", "cbd", 850, 20),
        ("sig(poisoning_rate=0.5)", "none", 850, 980),
    )
]
SHEET_2 = """\
## cifar10 · wrn16_1 · 100 epochs · fp32 · 1 seed

| rate | defense |          badnets ASR |         badnets CA |            wanet ASR |           wanet CA |
|:-----|:--------|---------------------:|-------------------:|---------------------:|-------------------:|
| 1 %  | none    |     99.0 (100; -1.0) | 85.0 (85.67; -0.7) |                    - |                  - |
| 1 %  | cbd     | **1.0** (0.62; +0.4) | 88.0 (88.83; -0.8) | **2.0** (1.06; +0.9) | 86.0 (86.59; -0.6) |
| 5 %  | cbd     |                    - |                  - | **2.0** (1.07; +0.9) | 85.0 (86.56; -1.6) |
| 50 % | none    |    100.0 (100; +0.0) | 79.0 (79.45; -0.5) |                    - |                  - |
"""

TABLE_3 = [
    *(
        with_seconds(record, undefended=seconds, fit=0.0, load=load)
        for record, seconds, load in zip(
            three_seeds("none", "badnets", (850,) * 3, (990,) * 3),
            (1000.0, 1040.0, 1010.0),
            (7.25, 0.0, 0.0),
            strict=True,
        )
    ),
    *(
        replace(
            with_seconds(record, others, fit=seconds),
            passes={"forward": 39.0, "backward": 33.0},
        )
        for record, seconds, others in zip(
            three_seeds("cbd", "badnets", (850,) * 3, (10,) * 3),
            (1300.0, 1144.0, 1212.0),
            (0.2, 1.5, 0.0),
            strict=True,
        )
    ),
    older(on_cifar10(make_record("none", "trojan", 850, 990, seconds=(90.125, 0.0)))),
    on_cifar10(make_record("cbd", "blend", 850, 10)),
]
SHEET_3 = """\
## cifar10 · wrn16_1 · 100 epochs · fp32 · 3 seeds

| attack  |             none seconds |                cbd seconds |                    cbd more, % | cbd passes, x |
|:--------|-------------------------:|---------------------------:|-------------------------------:|--------------:|
| badnets | 1010 [1000, 1040] (1152) | 1212 [1144, 1300] ‖ (1317) | 20.0 [10.0, 30.0] (14.3; +5.7) |          1.17 |
| trojan  |            90.1 ? (1204) |                          - |                              - |             - |

- ‖ shared, others used the device meanwhile: cbd on badnets (seed 1 of 3)
- ? unwatched, not known whether others used the device meanwhile: none on trojan (seed 0)

## cifar10 · wrn16_1 · 100 epochs · fp32 · 3 seeds · apart from training

| attack  | defense |   seconds load | seconds poison | seconds prepare | seconds capture | seconds evaluate |
|:--------|:--------|---------------:|---------------:|----------------:|----------------:|-----------------:|
| badnets | none    | 0.0 [0.0, 7.2] | 1.0 [1.0, 1.0] |  1.0 [1.0, 1.0] |  1.0 [1.0, 1.0] |   1.0 [1.0, 1.0] |
| badnets | cbd     | 1.0 [1.0, 1.0] | 1.0 [1.0, 1.0] |  1.0 [1.0, 1.0] |  1.0 [1.0, 1.0] |   1.0 [1.0, 1.0] |
| trojan  | none    |            1.0 |            1.0 |             1.0 |             0.0 |              1.0 |
"""

TABLE_5 = [
    on_cifar10(make_record(defense, "adaptive", ca, asr), f"adaptive(attack={attack!r})")
    for attack, defense, ca, asr in (
        ("badnets", "none", 850, 990),
        ("badnets", "cbd", 840, 40),
        ("wanet", "cbd", 850, 50),
    )
]
SHEET_5 = """\
## cifar10 · wrn16_1 · 100 epochs · fp32 · 1 seed

| defense | adaptive(attack='badnets') ASR | adaptive(attack='badnets') CA | adaptive(attack='wanet') ASR | adaptive(attack='wanet') CA |
|:--------|-------------------------------:|------------------------------:|-----------------------------:|----------------------------:|
| none    |             99.0 (99.62; -0.6) |            85.0 (84.55; +0.5) |                            - |                           - |
| cbd     |           **4.0** (4.31; -0.3) |            84.0 (84.19; -0.2) |         **5.0** (5.19; -0.2) |          85.0 (85.33; -0.3) |

- paper, none on badnets: from section 5.3, illegible in the copies of Table 5 at hand
"""

WORKED = {
    1: (TABLE_1, SHEET_1),
    2: (TABLE_2, SHEET_2),
    3: (TABLE_3, SHEET_3),
    5: (TABLE_5, SHEET_5),
}


def written(records, table, folder, latex=False):
    paths = write_table(table, records, folder, latex)
    return {path.name: path.read_text() for path in paths}


@pytest.mark.parametrize("table", TABLES)
def test_worked_examples(table, tmp_path):
    records, expected = WORKED[table]
    found = written(records, table, tmp_path)[f"table{table}.md"]
    sheet, legend = found.rsplit("\n\n", 1)
    assert sheet + "\n" == expected
    assert legend.startswith("Seconds of training" if table == 3 else "In percent")


@pytest.mark.parametrize("table", TABLES)
def test_csv_and_latex_are_as_they_were_read_over(table, tmp_path):
    """The files in `golden/` were compared by eye with the sheets above."""
    found = written(WORKED[table][0], table, tmp_path, latex=True)
    suffixes = [".csv", ".md", ".tex", *([] if table == 3 else ["-differences.csv"])]
    assert sorted(found) == sorted(f"table{table}{suffix}" for suffix in suffixes)
    for name, text in found.items():
        if not name.endswith(".md"):
            assert text == (GOLDEN / name).read_text(), name


def test_the_order_of_records_does_not_matter(tmp_path):
    assert written(TABLE_1[::-1], 1, tmp_path) == written(TABLE_1, 1, tmp_path)


def test_the_long_form_has_the_paper_beside_ours(tmp_path):
    rows = pd.read_csv(io.StringIO(written(TABLE_1, 1, tmp_path)["table1.csv"]))
    row = rows[(rows.attack == "blend") & (rows.defense == "abl")].iloc[0]
    assert row.paper_attack_success_rate == pytest.approx(0.146)
    assert row.attack_success_rate_more == pytest.approx(0.513333 - 0.146, abs=1e-6)
    assert row.clean_accuracy_more == pytest.approx(0.803333 - 0.8502, abs=1e-6)
    own = rows[rows.defense == "mine"]
    assert own.paper_clean_accuracy.isna().all()
    assert list(own.excluded) == [0, 1]
    assert not (rows.attack == "adaptive(attack='badnets')").any()


def test_departures_are_said(tmp_path):
    some = [
        replace(record, cell=record.cell | {"recipe": RECIPE.replace("100", "30")})
        for record in TABLE_1
    ]
    found = written(some, 1, tmp_path)
    assert "- otherwise than in the paper: epochs 30 instead of 100\n" in found["table1.md"]
    rows = pd.read_csv(io.StringIO(found["table1.csv"]))
    assert set(rows.departures[rows.defense != "mine"]) == {"epochs 30 instead of 100"}


def test_stages_and_the_overhead_of_table_3(tmp_path):
    rows = pd.read_csv(io.StringIO(written(TABLE_3, 3, tmp_path)["table3.csv"]))
    assert list(rows.seconds_fit) == [0, 1212, 0]
    assert list(rows.seconds_undefended) == [1010, 0, 90.125]
    assert list(rows.seconds_capture) == [1, 1, 0]
    assert list(rows.paper_seconds) == [1152, 1317, 1204]
    # Seed by seed 1300 / 1000, 1144 / 1040 and 1212 / 1010.
    assert list(rows.loc[1, ["seconds_more", "more_low", "more_high"]]) == [0.2, 0.1, 0.3]
    alone, shared, unknown = rows.others
    assert (alone, shared) == (0, 1.5)
    assert math.isnan(unknown)


def test_the_range_of_repeats_covers_the_median_as_often_as_the_legend_says():
    """Of all ways in which five repeats may lie below or above the median, 30 in 32 have both."""
    below = list(product((True, False), repeat=5))
    covered = sum(any(way) and not all(way) for way in below)
    assert covered / len(below) == 1 - 2 ** (1 - 5)
    assert f"{100 * covered / len(below):.0f} % for five" in TIMING


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ([1161.4, 1150.2, 1152.0], "1152 [1150, 1161]"),
        ([3.0, 1.0, 4.0, 1.5], "2.2 [1.0, 4.0]"),
        ([1152.0], "1152"),
        ([9.0, 9.0], "9.0 [9.0, 9.0]"),
    ],
)
def test_repeats_have_a_median_and_a_range(seconds, text, tmp_path):
    records = [
        with_seconds(record, undefended=own, fit=0.0)
        for record, own in zip(
            three_seeds("none", "tact", (850,) * len(seconds), (990,) * len(seconds)),
            seconds,
            strict=True,
        )
    ]
    row = written(records, 3, tmp_path)["table3.md"].splitlines()[4]
    assert [part.strip() for part in row.split("|")] == ["", "tact", text, ""]


def test_seconds_are_marked_by_who_else_used_the_device(tmp_path):
    found = {
        others: written([with_seconds(TABLE_3[0], others)], 3, tmp_path)["table3.md"]
        for others in (0, ALONE, 2 * ALONE, 1, None)
    }
    assert [" ‖ (1152)" in text for text in found.values()] == [False, False, True, True, False]
    assert [" ? (1152)" in text for text in found.values()] == [False] * 4 + [True]
    assert written([older(TABLE_3[0])], 3, tmp_path)["table3.md"].count("not known whether") == 1


def test_paired_differences_are_those_of_scipy(tmp_path):
    found = written(TABLE_1, 1, tmp_path)["table1-differences.csv"]
    rows = pd.read_csv(io.StringIO(found))
    row = rows[(rows.attack == "blend") & (rows.metric == "clean_accuracy")].iloc[0]
    test = stats.ttest_rel([0.79, 0.80, 0.82], [0.84, 0.85, 0.86])
    low, high = test.confidence_interval(0.95)
    assert (row.more, row.low, row.high) == pytest.approx((-0.14 / 3, low, high), abs=1e-6)
    assert row.separable == (test.pvalue < 0.05)


@pytest.mark.parametrize(
    ("attack", "default"), [("badnets", 0.1), ("tact", 0.01), ("adap_blend", 0.003), ("mine", 0.7)]
)
def test_of_several_rates_table_1_shows_the_attacks_own_default(attack, default):
    records = []
    for rate in {0.003, 0.01, 0.1, 0.2, default}:
        whole = f"{attack}(poisoning_rate={rate})"
        record = on_cifar10(make_record("none", attack, 850, 990), whole)
        label = attack if rate == default else whole
        records.append(replace(record, labels=record.labels | {"attack": label}))
    ((_, groups),) = sheets(1, collect(records))
    assert [group.names["attack"] for group in groups] == [attack]


def test_an_average_and_its_interval_are_of_the_seeds_that_all_attacks_have(tmp_path):
    shares = {"badnets": (900, 900, 300), "blend": (900, 900)}
    records = [
        on_cifar10(make_record("none", attack, ca, 990, seed=seed), attack)
        for attack, those in shares.items()
        for seed, ca in enumerate(those)
    ]
    found = written(records, 1, tmp_path)["table1.md"]
    (line,) = (line for line in found.splitlines() if line.startswith("| average"))
    assert "90.0 ± 0.0" in line
    (line,) = (line for line in leaderboard(records).markdown().splitlines() if "| none " in line)
    assert line.split("|")[8].strip() == "90.0"


def test_each_recipe_has_a_sheet_of_its_own(tmp_path):
    other = [
        replace(record, cell=record.cell | {"recipe": RECIPE.replace("100", "30")})
        for record in TABLE_5
    ]
    found = written([*TABLE_5, *other], 5, tmp_path)["table5.md"]
    assert found.count("\n## ") + found.startswith("## ") == 2


def test_a_sheet_escapes_what_it_shows():
    sheet = PaperTable(
        "50 % & more", ("a_b",), (("c|d", "e"),), ((("x#y",), (TableCell("1~2", "3"),)),)
    )
    assert r" c\|d e |" in sheet.markdown()
    found = sheet.latex()
    assert r"50 \% \& more" in found
    assert r"a\_b" in found
    assert r"x\#y & 1$\sim$2 (3) \\" in found


def test_nothing_for_a_table_is_said_in_one_line(tmp_path):
    with pytest.raises(InvalidInput, match=r"belongs into table 5; `bdbench run table5` makes"):
        write_table(5, TABLE_2, tmp_path)
    assert not (tmp_path / "tables").exists()


def test_the_command(tmp_path: Path, capsys):
    for record in TABLE_1:
        write(tmp_path, record)
    arguments = ["table", "1", "--latex", "--results", str(tmp_path)]
    assert main(arguments) == 0
    assert SHEET_1 in capsys.readouterr().out
    assert (tmp_path / "tables/table1.tex").exists()
    (tmp_path / "records" / f"{TABLE_1[0].key}.json").write_text("{")
    assert main(arguments) == 1
    assert "damaged record" in capsys.readouterr().err
    for bad, complaint in (
        (["table", "4"], "unknown table '4'"),
        (["table", "leaderboard", "--label=a"], "--label is for --latex: add it"),
        (["table", "5", "--results", "nowhere"], "no record in nowhere/records belongs"),
    ):
        assert main(bad) == 2
        assert complaint in capsys.readouterr().err


def test_merging_keeps_the_better_and_the_first(tmp_path: Path, capsys):
    for folder, records in (
        ("a", [make_record("none", "badnets", 850, 990), make_record("cbd", "badnets")]),
        ("b", [make_record("none", "badnets", 860, 990), make_record("cbd", "badnets", 800, 20)]),
        ("c", [make_record("abl", "badnets", 820, 30)]),
    ):
        for record in records:
            write(tmp_path / folder, record)
    names = [str(tmp_path / name) for name in "abc"]
    into = tmp_path / "all"
    assert main(["merge", *names, "--results", str(into)]) == 0
    said = capsys.readouterr().out
    assert "b: 1 of 2 records taken" in said
    assert "has another result, the first one is kept" in said
    found = {r.labels["defense"]: r for r in read_all(into)[0]}
    assert sorted(found) == ["abl", "cbd", "none"]
    assert found["none"].metrics["clean_accuracy"].hits == 850
    assert found["cbd"].status == "ok"
    assert main(["merge", *names, "--results", str(into)]) == 0
    assert "all: 3 of 3 records taken" in capsys.readouterr().out


def test_records_that_do_not_belong_together_are_not_merged(tmp_path: Path, capsys):
    write(tmp_path / "a", make_record("none", "badnets", 850, 990))
    other = make_record("cbd", "badnets", 850, 990)
    write(tmp_path / "b", replace(other, provenance={"data_sha256": "cd" * 32}))
    into = tmp_path / "all"
    assert main(["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--results", str(into)]) == 2
    assert "were trained on different data" in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "nowhere"), "--results", str(into)]) == 2
    assert not into.exists()
    newer = tmp_path / "b/records" / f"{other.key}.json"
    newer.write_text(newer.read_text().replace('"schema": 1', '"schema": 2'))
    assert main(["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--results", str(into)]) == 2
    assert "this version reads schema 1" in capsys.readouterr().err
    newer.write_text("{")
    write(tmp_path / "b", make_record("abl", "badnets", 850, 990))
    assert main(["merge", str(tmp_path / "a"), str(tmp_path / "b"), "--results", str(into)]) == 1
    assert "damaged record" in capsys.readouterr().out


def test_tables_need_no_torch():
    code = (
        "import sys, bdbench.tables.write, bdbench.records.merge; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_mark_of_all_cells_names_none_of_them() -> None:
    records = [
        on_cifar10(make_record("none", attack, 850, 990)) for attack in ("badnets", "trojan")
    ]
    block = LeaderboardBlock(tuple(collect([older(record) for record in records])))
    assert list(block.marked(COMPANY, company)) == [
        "? unwatched, not known whether others used the device meanwhile: all cells"
    ]
    block = LeaderboardBlock(tuple(collect([older(records[0]), records[1]])))
    (line,) = block.marked(COMPANY, company)
    assert line.endswith(": none on badnets (seed 0)")
