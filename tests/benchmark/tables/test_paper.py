"""The tables of the paper; what a few records give is in `golden/table*`."""

import io
from dataclasses import replace
from itertools import product
from pathlib import Path

import pandas as pd
import pytest
from builders import make_mixed, make_record
from scipy import stats

from bdbench.cli import main
from bdbench.models.plugins.errors import InvalidInput
from bdbench.records.count import Count
from bdbench.records.files import write
from bdbench.records.record import ALONE, CONTROL, REACTIVATED
from bdbench.tables.block import LeaderboardBlock
from bdbench.tables.footnotes import marked
from bdbench.tables.groups import collect
from bdbench.tables.paper import CONTENTION, TABLES, TIMING, contention, paper_tables
from bdbench.tables.sheet import PaperTable, TableCell
from bdbench.tables.write import leaderboard, paper_table, table_files, write_files

RECIPE = "recipe(epochs=100, learning_rate=0.1, precision='fp32')"


def on_cifar10(record, attack=None):
    """A record as if its cell had all of CIFAR-10 and the recipe of the paper."""
    attack = attack or record.labels.attack
    own = {"dataset": "cifar10", "model": "wrn16_1", "attack": attack}
    return replace(
        record,
        cell=record.cell.with_(**own, defense=record.labels.defense, recipe=RECIPE),
        labels=record.labels.with_(**own, recipe="recipe()"),
    )


def three_seeds(defense, attack, cas, asrs, **fields):
    return [
        on_cifar10(make_record(defense, attack, ca, asr, seed=seed, **fields))
        for seed, (ca, asr) in enumerate(zip(cas, asrs, strict=True))
    ]


def with_seconds(record, others=0.0, **seconds):
    measured = record.measured
    seconds = measured.seconds.with_(**seconds)
    return replace(record, measured=measured.with_(seconds=seconds, others=others))


def older(record):
    """A record as it was before captures, images and others were measured."""
    measured = record.measured.as_dict()
    del measured["seconds"]["capture"], measured["images"], measured["others"]
    return replace(record, measured=measured)


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

TABLE_5 = [
    on_cifar10(make_record(defense, "adaptive", ca, asr), f"adaptive(attack={attack!r})")
    for attack, defense, ca, asr in (
        ("badnets", "none", 850, 990),
        ("badnets", "cbd", 840, 40),
        ("wanet", "cbd", 850, 50),
    )
]

WORKED = {1: TABLE_1, 2: TABLE_2, 3: TABLE_3, 5: TABLE_5}


def written(records, table, folder, latex=False):
    paths = write_files(table_files(table, records, folder, latex), folder)
    return {path.name: path.read_text() for path in paths}


@pytest.mark.parametrize("table", TABLES)
def test_worked_examples_give_the_files_in_golden(table, golden, tmp_path):
    found = written(WORKED[table], table, tmp_path, latex=True)
    suffixes = [".csv", ".md", ".tex", *([] if table == 3 else ["-differences.csv"])]
    assert sorted(found) == sorted(f"table{table}{suffix}" for suffix in suffixes)
    sheet, legend = found.pop(f"table{table}.md").rsplit("\n\n", 1)
    assert legend.startswith("Seconds: training time" if table == 3 else "In percent")
    for name, text in {**found, f"table{table}.md": f"{sheet}\n"}.items():
        golden(name, text)


def test_the_order_of_records_does_not_matter(tmp_path):
    assert written(TABLE_1[::-1], 1, tmp_path) == written(TABLE_1, 1, tmp_path)


def test_a_sheet_names_departures_from_the_paper(tmp_path):
    some = [
        replace(record, cell=record.cell.with_(recipe=RECIPE.replace("100", "30")))
        for record in TABLE_1
    ]
    found = written(some, 1, tmp_path)
    assert "- deviations from the paper's setup: epochs 30 instead of 100\n" in found["table1.md"]
    rows = pd.read_csv(io.StringIO(found["table1.csv"]))
    assert set(rows.departures[rows.defense != "mine"]) == {"epochs 30 instead of 100"}


def test_the_range_of_repeats_covers_the_median_as_often_as_the_legend_says():
    """Five repeats lie below or above the median in 32 ways, and 30 of these have some of both."""
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


@pytest.mark.parametrize(
    ("passes", "text", "median"),
    [
        ((90, 90, 90), "1.00", 1.0),
        ((90, 99, 180), "1.10 [1.00, 2.00]", 1.1),
        ((99, 90), "1.05 [1.00, 1.10]", 1.05),
        ((90.01, 90.02, 90.03), "1.00", 1.00022),
        ((45,), "0.50", 0.5),
    ],
)
def test_passes_have_a_median_and_where_they_vary_a_range(passes, text, median, tmp_path: Path):
    """A filter may leave another number of images for each seed. No defense takes 90."""
    records = [*three_seeds("none", "badnets", (850,) * 3, (990,) * 3)]
    records += [
        replace(
            on_cifar10(make_record("cbd", "badnets", 850, 10, seed=seed)),
            passes={"forward": float(number), "backward": 0.0},
        )
        for seed, number in enumerate(passes)
    ]
    files = written(records, 3, tmp_path)
    line = next(line for line in files["table3.md"].splitlines() if line.startswith("| badnets"))
    assert line.split("|")[-2].strip() == text
    frame = pd.read_csv(io.StringIO(files["table3.csv"]))
    assert list(frame["passes_ratio"]) == pytest.approx([1.0, median])


def test_seconds_are_marked_where_others_used_the_device(tmp_path):
    found = {
        others: written([with_seconds(TABLE_3[0], others)], 3, tmp_path)["table3.md"]
        for others in (0, ALONE, 2 * ALONE, 1, None)
    }
    assert [" ‖ (1152)" in text for text in found.values()] == [False, False, True, True, False]
    assert [" ? (1152)" in text for text in found.values()] == [False] * 4 + [True]
    assert written([older(TABLE_3[0])], 3, tmp_path)["table3.md"].count("not known whether") == 1


def test_paired_differences_agree_with_scipy(tmp_path):
    found = written(TABLE_1, 1, tmp_path)["table1-differences.csv"]
    rows = pd.read_csv(io.StringIO(found))
    row = rows[(rows.attack == "blend") & (rows.metric == "clean_accuracy")].iloc[0]
    test = stats.ttest_rel([0.79, 0.80, 0.82], [0.84, 0.85, 0.86])
    low, high = test.confidence_interval(0.95)
    assert (row.difference, row.low, row.high) == pytest.approx((-0.14 / 3, low, high), abs=1e-6)
    assert row.separable == (test.pvalue < 0.05)


@pytest.mark.parametrize(
    ("attack", "default", "rates", "taken"),
    [
        ("badnets", 0.1, (0.01, 0.1, 0.2), 0.1),
        ("tact", 0.01, (0.003, 0.01, 0.1), 0.01),
        ("mine", 0.7, (0.1, 0.7), 0.7),
        ("sig", 0.1, (0.1, 0.3, 0.5), 0.5),
        ("sig", 0.1, (0.3, 0.5), 0.5),
        ("sig", 0.1, (0.1, 0.3), 0.1),
        ("badnets", 0.1, (0.01, 0.2), 0.2),
    ],
)
def test_table_1_shows_one_rate_of_an_attack(attack, default, rates, taken):
    """That of its suites, else the default, else the highest: never none."""

    def label(rate):
        return attack if rate == default else f"{attack}(poisoning_rate={rate})"

    records = []
    for rate in rates:
        record = on_cifar10(
            make_record("none", attack, 850, 990), f"{attack}(poisoning_rate={rate})"
        )
        records.append(replace(record, labels=record.labels.with_(attack=label(rate))))
    (((table,), groups),) = paper_tables(1, collect(records))
    assert [group.names["attack"] for group in groups] == [label(taken)]
    others = ", ".join(sorted(label(rate) for rate in rates if rate != taken))
    assert table.notes[-1] == (
        f"of several rates this has {label(taken)}; left out, see Table 2: {others}"
    )


def test_table_1_has_the_rate_of_its_suites_also_with_another_target(tmp_path: Path) -> None:
    attacks = [f"sig(poisoning_rate={rate}, target=1)" for rate in (0.3, 0.5)]
    cells = [
        on_cifar10(make_record(defense, name, 850, 990), attack)
        for attack in (*attacks, "blend")
        for defense, name in (("none", attack), ("cbd", attack))
    ]
    found = written(cells, 1, tmp_path)["table1.md"]
    rows = [line.split("|")[1].strip() for line in found.splitlines() if line[:1] == "|"]
    assert rows[2:] == ["blend", attacks[1], "average"]


def test_table_2_says_whose_rates_are_shares_of_a_class() -> None:
    specs = [
        f"{name}poisoning_rate={rate}, rate_basis={basis!r})"
        for name, basis in (("sig(", "target_class"), ("lc(", "dataset"))
        for rate in (0.05, 0.5)
    ]
    cells = []
    for spec in (*specs, "badnets(poisoning_rate=0.05)", "badnets(poisoning_rate=0.5)"):
        record = on_cifar10(make_record("none", spec, 850, 990), spec)
        label = spec.replace(", rate_basis='target_class'", "")
        cells.append(replace(record, labels=record.labels.with_(attack=label)))
    (((table,), _),) = paper_tables(2, collect(cells))
    assert table.notes[-1] == "rates are shares of the target class, not of all images: sig"
    (((table,), _),) = paper_tables(2, collect(cells[2:]))
    assert not any("target class" in note for note in table.notes)


def test_an_average_uses_the_seeds_that_all_attacks_have(tmp_path):
    shares = {"badnets": (900, 900, 300), "blend": (900, 900)}
    records = [
        on_cifar10(make_record("none", attack, ca, 990, seed=seed), attack)
        for attack, those in shares.items()
        for seed, ca in enumerate(those)
    ]
    found = written(records, 1, tmp_path)["table1.md"]
    (line,) = (line for line in found.splitlines() if line.startswith("| average"))
    assert "90.0 ± 0.9 " in line
    (line,) = (line for line in leaderboard(records).markdown().splitlines() if "| none " in line)
    assert line.split("|")[8].strip() == "90.0"


def test_each_recipe_has_a_sheet_of_its_own(tmp_path):
    other = [
        replace(record, cell=record.cell.with_(recipe=RECIPE.replace("100", "30")))
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
    assert found.startswith(r"% Needs \usepackage{booktabs} and \usepackage{adjustbox}.")
    assert r"\caption{50 \% \& more. Bold: best.}" in sheet.latex("**Bold**: best.")


def test_every_negative_number_has_a_minus_in_latex() -> None:
    cell = TableCell("-0.3 [-1.2, 0.4]", "1e-05; -2.5")
    assert cell.latex() == "$-$0.3 [$-$1.2, 0.4] (1e-05; $-$2.5)"
    assert TableCell("-").latex() == "-"


@pytest.mark.parametrize(
    ("attack", "shown"), [("badnets(poisoning_rate=0.2)", False), ("sig(poisoning_rate=0.5)", True)]
)
def test_a_printed_value_of_another_rate_is_not_beside_ours(attack, shown, tmp_path):
    """The rate of `sig` is a share of a class, and the paper's 10 % may be one of all images."""
    files = written([on_cifar10(make_record("cbd", "any", 850, 10), attack)], 1, tmp_path)
    (line,) = (line for line in files["table1.md"].splitlines() if line[2:].startswith(attack))
    assert ("(" in line.split("|", 2)[2]) == shown
    row = pd.read_csv(io.StringIO(files["table1.csv"])).iloc[0]
    printed = row[
        ["paper_clean_accuracy", "paper_attack_success_rate", "clean_accuracy_difference"]
    ]
    assert list(printed.notna()) == 3 * [shown]


def test_table_2_has_attacks_at_a_single_rate_that_table_1_lacks(tmp_path):
    """As after an interruption, at which only some cells of a second rate are done."""
    attacks = [f"{name}(poisoning_rate=0.01)" for name in ("badnets", "blend")]
    few = [on_cifar10(make_record("cbd", attack, 850, 10), attack) for attack in attacks]
    usual = [on_cifar10(make_record("cbd", name, 850, 10)) for name in ("trojan", "tact")]
    second = on_cifar10(make_record("cbd", "more", 850, 10), "badnets(poisoning_rate=0.05)")
    for records in (few, [*few, *usual], [*few, second]):
        (line,) = (
            line
            for line in written(records, 2, tmp_path)["table2.md"].splitlines()
            if line.startswith("| 1 %")
        )
        assert line.count("%") == 1
        assert line.count("(") == 4
    with pytest.raises(InvalidInput, match="belongs in table 2"):
        table_files(2, usual, tmp_path)


def test_table_5_names_the_hardened_attacks_in_the_papers_order(tmp_path):
    attacks = [f"adaptive(attack={name!r})" for name in ("blend", "wanet", "trojan")]
    attacks += ["adaptive", "adaptive(attack='blend', epsilon=4.0)"]
    cells = []
    for label in attacks:
        full = "adaptive(attack='badnets')" if label == "adaptive" else label
        record = on_cifar10(make_record("cbd", label, 850, 10), full)
        cells.append(replace(record, labels=record.labels.with_(attack=label)))
    head = written(cells, 5, tmp_path)["table5.md"].splitlines()[2]
    names = [each.strip() for each in head.split("|")[2:-1]]
    shown = ["badnets", "trojan", "blend", attacks[-1], "wanet"]
    assert names == [f"{name} {metric}" for name in shown for metric in ("ASR", "CA")]


def test_a_note_says_where_the_papers_average_is_not_that_of_its_cells(tmp_path):
    attacks = ("badnets", "trojan", "blend", "sig", "dynamic", "wanet")
    cells = [on_cifar10(make_record(name, a, 850, 10)) for a in attacks for name in ("fp", "cbd")]
    found = written(cells, 1, tmp_path)["table1.md"]
    (line,) = (line for line in found.splitlines() if "on average" in line)
    assert line == (
        "- paper, fp on average: the printed cells give ASR 82.04, the printed average is ASR 82.03"
    )
    assert " (82.04; " in found
    assert "on average" not in written(cells[2:], 1, tmp_path)["table1.md"]


def test_a_table_without_cells_is_refused(tmp_path):
    with pytest.raises(
        InvalidInput, match=r"belongs in table 5; create some with `bdbench run table5`"
    ):
        table_files(5, TABLE_2, tmp_path)
    assert not (tmp_path / "tables").exists()


def test_the_command_prints_and_writes_a_table(tmp_path: Path, capsys):
    for record in TABLE_1:
        write(tmp_path, record)
    arguments = ["table", "1", "--latex", "--results", str(tmp_path)]
    assert main(arguments) == 0
    assert (tmp_path / "tables/table1.md").read_text() in capsys.readouterr().out
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


def test_a_title_counts_the_seeds_of_its_own_table(tmp_path: Path) -> None:
    """Table 5 has one seed, whatever the other cells of the folder have."""
    records = [*three_seeds("none", "badnets", (850,) * 3, (990,) * 3), TABLE_5[0]]
    for table, title in ((1, "3 seeds"), (5, "1 seed")):
        found = written(records, table, tmp_path)[f"table{table}.md"]
        assert found.splitlines()[0].endswith(f" · {title}")
        assert "no record of" not in found


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (make_record("cbd", "blend", 850, 10), "nothing to compare with: cbd on blend"),
        (make_record("cbd", "trojan"), "failed: cbd on trojan"),
        (make_record("none", "blend"), "failed: none on blend"),
        (make_record("cbd", "trojan", 10, 0, flags=("not_finite",)), "not finite: cbd on trojan"),
    ],
)
def test_table_3_names_the_cells_that_it_leaves_out(lost, said, tmp_path: Path) -> None:
    records = [on_cifar10(lost), *TABLE_3[:-1]]
    found = written(records, 3, tmp_path)["table3.md"]
    assert [line for line in found.splitlines() if "left out" in line] == [f"- left out, {said}"]


def test_a_mark_of_all_cells_names_none_of_them() -> None:
    records = [
        on_cifar10(make_record("none", attack, 850, 990)) for attack in ("badnets", "trojan")
    ]
    block = LeaderboardBlock(tuple(collect([older(record) for record in records])))
    assert list(marked(block, CONTENTION, contention)) == [
        "? unwatched, not known whether other processes used the device at the same time: all cells"
    ]
    block = LeaderboardBlock(tuple(collect([older(records[0]), records[1]])))
    (line,) = marked(block, CONTENTION, contention)
    assert line.endswith(": none on badnets (seed 0)")


def test_footnotes_are_about_what_the_table_shows(tmp_path: Path) -> None:
    """P-ASR, floors and devices are no matter of a table without them; each mark has a cell."""
    counts = {REACTIVATED: Count(600, 1000), CONTROL: Count(30, 1000)}
    plain, cbd = (on_cifar10(make_record(name, "badnets", 880, 50)) for name in ("none", "cbd"))
    plain = replace(plain, metrics=plain.metrics.with_(**counts))
    cells = [
        plain,
        replace(cbd, provenance=cbd.provenance.with_(device="a GPU")),
        on_cifar10(make_record("cbd", "badnets", seed=1)),
        on_cifar10(make_mixed("none", badnets_1=(900, 10), blend_2=(800, 10))),
        on_cifar10(make_record("cbd", "mixed", 120, 30, flags=("at_chance",))),
    ]
    cells[3] = replace(cells[3], provenance=cells[3].provenance.with_(device="a CPU"))
    board = leaderboard(cells).blocks[0]
    first, third = (paper_table(n, cells, tmp_path).markdown() for n in (1, 3))
    for said in ("P-ASR of a network", "° holds for every part", "several devices: a CPU, a GPU"):
        assert said in board
    assert "mixed: ASR is that of the part with the highest ASR\n" in first
    assert "P-ASR" not in first + third
    assert "°" not in first + third
    assert "several devices" not in first
    assert "several devices" in third
    assert "highest ASR" not in third
    for table in (first, third):
        rows, notes = (
            "".join(line for line in table.splitlines() if line.startswith(start))
            for start in ("|", "- ")
        )
        assert all((mark in rows) == (mark in notes) for mark in "¶†")
        assert "¶" in notes


@pytest.mark.parametrize(
    ("seeds", "means", "ratings"),
    [
        (((0, 1), (1, 2)), "", ""),
        (((0,), (1,)), "cbd", ""),
        (((5,), (6,)), "cbd", "cbd on badnets, cbd on blend"),
        (((0,), (6,)), "cbd", "cbd on blend"),
        (((5,), (5,)), "", "cbd on badnets, cbd on blend"),
    ],
)
def test_a_footnote_names_means_over_seeds_that_nothing_shares(
    seeds: tuple[tuple[int, ...], ...], means: str, ratings: str, tmp_path: Path
) -> None:
    cells = [
        on_cifar10(make_record("none", attack, 900, 990, seed=seed))
        for attack, seed in product(("badnets", "blend"), range(3))
    ]
    for attack, own in zip(("badnets", "blend"), seeds, strict=True):
        cells += [on_cifar10(make_record("cbd", attack, 880, 50, seed=seed)) for seed in own]
    tables = [leaderboard(cells).blocks[0], paper_table(1, cells, tmp_path).markdown()]
    for number, table in enumerate(tables):
        lines = [line[2:] for line in table.splitlines() if "over all seeds" in line]
        expected = [f"means are over all seeds, as the attacks share none: {means}"] * bool(means)
        if number == 0 and ratings:
            expected.append(
                f"DER is over all seeds, as the undefended network shares none: {ratings}"
            )
        assert lines == expected
