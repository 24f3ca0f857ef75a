"""The leaderboard; what a few records give is in `golden/leaderboard-*`."""

import io
import random
import re
from dataclasses import replace
from itertools import accumulate

import pandas as pd
import pytest
from builders import make_classified, make_mixed, make_record
from commands import refused

from bdbench.cli import main
from bdbench.models.plugins.errors import InvalidInput
from bdbench.records import files as records
from bdbench.records.record import key_of
from bdbench.tables import frames
from bdbench.tables import write as tables
from bdbench.tables.numbers import decimal

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
    ("cells", "name"),
    [(ONE_SEED, "leaderboard-one-seed"), (SEEDS, "leaderboard-three-seeds")],
)
def test_the_order_of_records_does_not_change_the_table(cells, name, golden):
    made = tables.leaderboard(random.Random(0).sample(cells, len(cells)))
    (block,) = made.blocks
    golden(f"{name}.md", f"{block}\n")
    golden(f"{name}.csv", made.csv())


def test_a_footnote_on_exact_seeds_says_how_many_of_how_many():
    """Seeds 3 and 5 are not "3, 5 of 2"."""
    cells = [
        make_record("none", "badnets", 930, 990, 10, 3, flags=("attack_failed",)),
        make_record("none", "badnets", 930, 990, 10, 5, flags=("attack_failed",)),
        make_record("cbd", "badnets", 890, 31, 11, 3),
        make_record("cbd", "badnets", None, seed=5),
    ]
    block = board(*cells)
    assert "none on badnets (seeds 3, 5; 2 of 2)" in block
    assert "cbd on badnets (seed 5; 1 of 2: RuntimeError)" in block


def test_the_legend_explains_every_sign():
    made = tables.leaderboard(ONE_SEED)
    legend = made.markdown().removeprefix(f"{made.blocks[0]}\n\n")
    assert legend.startswith("In percent, after the last epoch.")
    for sign in ("Clean", "Trainings", "CA", "R-Acc", "ASR", "°", "**Bold**", "~", "Mean", "DER"):
        assert f"{sign}: " in legend
    assert "Seconds: " in legend
    assert "x none: " in legend
    assert "It is a trade-off score" in legend


@pytest.mark.parametrize("cells", [ONE_SEED, SEEDS], ids=["one seed", "three seeds"])
def test_three_attacks_fit_160_columns(cells):
    names = {"none": "trojan"}
    attacked = [
        replace(c, labels=c.labels.with_(attack=names.get(c.labels.attack, c.labels.attack)))
        for c in cells
        if c.labels.attack != "none"
    ]
    table = [line for line in board(*attacked).splitlines() if line.startswith("|")]
    assert max(map(len, table)) <= 160


def test_the_files_are_the_leaderboard_of_the_records_on_disk(tmp_path):
    for each in ONE_SEED:
        records.write(tmp_path, each)
    made = tables.leaderboard(ONE_SEED)
    for _ in range(2):
        files = tables.leaderboard_files(records.read_all(tmp_path)[0], tmp_path)
        paths = tables.write_files(files, tmp_path)
        found = {path.name: path.read_text() for path in paths}
        assert found == {"leaderboard.md": made.markdown(), "leaderboard.csv": made.csv()}
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == sorted(found)


def test_dates_and_speeds_are_not_in_the_csv():
    slower = [
        replace(each, measured=each.measured.with_(started="2031-01-01", images_per_second=1.0))
        for each in ONE_SEED
    ]
    assert tables.leaderboard(slower).csv() == tables.leaderboard(ONE_SEED).csv()


def test_the_csv_reads_back():
    summary = frames.summarise(SEEDS)
    assert list(summary.columns) == list(frames.COLUMNS)
    text = tables.leaderboard(SEEDS).csv()
    again = pd.read_csv(io.StringIO(text), keep_default_na=False, na_values=[""])
    again["flags"] = again["flags"].fillna("")
    again["at_floor"] = again["at_floor"].astype(object)
    pd.testing.assert_frame_equal(again, summary, rtol=1e-5, check_dtype=False)


def test_a_table_of_no_records_is_refused(tmp_path):
    with pytest.raises(InvalidInput) as raised:
        tables.leaderboard_files([], tmp_path)
    assert (
        str(raised.value) == f"no records in {tmp_path / 'records'}; create some with `bdbench run`"
    )
    assert frames.summarise([]).empty
    assert tables.leaderboard([]).blocks == ()


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / "tables").write_text("in the way")
    with pytest.raises(
        InvalidInput, match=f"cannot write leaderboard.csv in {tmp_path / 'tables'}"
    ):
        tables.write_files(tables.leaderboard_files(ONE_SEED, tmp_path), tmp_path)


@pytest.mark.parametrize(("defense", "seed"), [("abl", 1), ("cbd", 0)])
def test_records_of_different_data_cannot_share_a_table(defense, seed):
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
            "share a table; give each its own folder with --results"
        )


def test_a_cell_that_failed_before_loading_its_data_does_not_conflict():
    unknown = replace(make_record("abl", "badnets"), provenance={})
    block = board(unknown, make_record("cbd", "badnets", 880, 20))
    assert row(block, "abl")["badnets ASR"] == "failed ¶"


VERSIONS = {"dataset": 1, "model": 1, "attack": 1, "defense": 1}


def versioned(defense, attack, seed=0, /, **versions):
    """A record that states the versions of its plugins, all 1 unless given."""
    record, found = make_record(defense, attack, 880, 20, seed=seed), VERSIONS | versions
    return replace(record, key=key_of(record.cell.as_dict(), found), versions=found)


@pytest.mark.parametrize(
    ("other", "shown", "plugin"),
    [
        (versioned("abl", "badnets", 1, defense=2), "2", "defense abl"),
        (versioned("abl", "badnets", defense=2), "2", "defense abl"),
        (versioned("none", "badnets", attack=[1, 2]), "1 and 2", "attack badnets"),
        (versioned("none", "badnets", model="ab" * 32), "abababababab", "model wrn16_1"),
        (versioned("none", "blend", dataset=2), "2", "data set toy"),
    ],
    ids=["seed", "cell", "attack", "model", "data set"],
)
def test_records_of_different_versions_of_a_plugin_cannot_share_a_table(other, shown, plugin):
    one = versioned("abl", "badnets")
    for order in ([one, other], [other, one]):
        with pytest.raises(InvalidInput) as raised:
            tables.leaderboard(order)
        labels = other.labels
        for part in (
            f"{one.key} (abl on badnets, version 1)",
            f"{other.key} ({labels.defense} on {labels.attack}, version {shown})",
            f"are of different versions of the {plugin} and cannot share a table; remove those",
        ):
            assert part in str(raised.value)


def test_only_stated_versions_of_one_plugin_and_setting_are_compared():
    older = replace(make_record("abl", "badnets", 880, 20, seed=1), versions={})
    tables.leaderboard(
        [
            versioned("abl", "badnets"),
            older,
            versioned("cbd", "badnets", defense=2),
            versioned("cbd", "blend", attack=3, defense=2),
        ]
    )


def coded(defense, seed, /, **sources):
    """A record that states the hashes of its code."""
    record = make_record(defense, "badnets", 880, 20, seed=seed)
    return replace(record, provenance=record.provenance.with_(sources=sources))


def test_a_footnote_names_cells_whose_seeds_were_run_with_different_code():
    note = "- seeds were run with different code"
    alike = [coded("abl", seed, attack="a", training="b") for seed in range(2)]
    assert note not in board(*alike, coded("abl", 2), coded("cbd", 0, attack="c"))
    other, alone = coded("abl", 2, attack="c", training="b"), coded("cbd", 0, attack="d")
    assert f"{note} (attack): abl on badnets" in board(*alike, other, alone)
    assert note not in board(*alike, replace(other, flags=("not_finite",))), "it is in no mean"
    both = [coded(name, 2, attack="c", training="d") for name in ("abl", "cbd")]
    assert f"{note} (attack, training): all cells" in board(
        *alike, *both, coded("cbd", 0, attack="a", training="b")
    )


def test_a_seed_counts_once():
    one = make_record("abl", "badnets", 880, 20)
    with pytest.raises(InvalidInput, match=f"records {one.key} and f+ are both of abl on badnets"):
        frames.summarise([one, replace(one, key="f" * 16)])


def test_no_defense_is_not_ranked():
    alone = board(make_record("none", "badnets", 930, 998), make_record("none", "none", 940))
    assert row(alone, "none")["badnets ASR"] == "99.8"
    both = board(make_record("none", "badnets", 930, 5), make_record("ft", "badnets", 880, 2))
    assert row(both, "none")["badnets ASR"] == "0.5°"


@pytest.mark.parametrize(
    ("undefended", "best", "marked"),
    [
        (998, 997, False),
        (998, 1000, False),
        (998, 980, True),
        (5, 2, False),
        (5, 200, False),
        (None, 1000, True),
    ],
)
def test_among_failures_none_is_the_best(undefended: int | None, best: int, marked: bool) -> None:
    """Whether the lowest ASR of a section is marked, with the one that is not separable from it:
    only if it is separable from that of no defense, or if that is not known."""
    base = [] if undefended is None else [make_record("none", "badnets", 930, undefended)]
    defended = [make_record("abl", "badnets", 880, best), make_record("cbd", "badnets", 890, best)]
    block = board(*base, *defended, make_record("ft", "badnets", 900, 100))
    shown = f"{best / 10:.1f}"
    for name in ("abl", "cbd"):
        cell = row(block, name)["badnets ASR"].rstrip("°")
        assert cell == (f"**{shown}**" if marked else shown)
    assert ("**" in row(block, "ft")["badnets ASR"]) == (undefended != 5)


def test_with_several_seeds_the_test_is_paired() -> None:
    """It works with one seed of three: the mean is far lower, but that may be chance."""
    base = [make_record("none", "badnets", 930, 1000, 10, seed) for seed in range(3)]
    asr = (0, 1000, 950)
    mixed = [make_record("cbd", "badnets", 880, n, 10, seed) for seed, n in enumerate(asr)]
    assert "**" not in row(board(*base, *mixed), "cbd")["badnets ASR"]
    sure = [make_record("cbd", "badnets", 880, n, 10, seed) for seed, n in enumerate((20, 50, 30))]
    assert "**" in row(board(*base, *sure), "cbd")["badnets ASR"]


@pytest.mark.parametrize("asr", [(300, 0, 0), (300, 200, 0)])
def test_a_mean_over_other_seeds_is_not_the_best(asr) -> None:
    """Its mean is the lowest, and it is separably worse on the only seed that both have."""
    wide = [make_record("cbd", "badnets", 880, hits, seed=seed) for seed, hits in enumerate(asr)]
    other = make_record("abl", "badnets", 890, 200)
    base = [make_record("none", "badnets", 930, 998, seed=seed) for seed in range(3)]
    shown = board(*base, *wide, other)
    assert "**" not in shown
    assert "~" not in shown
    worse = board(make_record("none", "badnets", 930, 200), *wide)
    assert "**" not in worse


def test_a_higher_mean_is_not_told_from_the_best_by_a_seed_on_which_it_is_lower() -> None:
    cells = [
        *(make_record("cbd", "badnets", 880, hits, seed=s) for s, hits in enumerate((100, 0, 0))),
        *(make_record("abl", "badnets", 880, hits, seed=s) for s, hits in enumerate((95, 300))),
    ]
    assert row(board(*cells), "cbd")["badnets ASR"].startswith("**")
    assert row(board(*cells), "abl")["badnets ASR"].endswith("~")


def test_the_same_hits_in_another_order_are_equally_good() -> None:
    """0.1 + 0.2 + 0.3 and three times 0.2 differ in the last bit."""
    cells = [make_record("none", "badnets", 930, 998, seed=seed) for seed in range(3)]
    for defense, ca, asr in (("abl", 880, (100, 200, 300)), ("cbd", 890, (200, 200, 200))):
        cells += [make_record(defense, "badnets", ca, n, seed=s) for s, n in enumerate(asr)]
    block = board(*cells)
    assert [row(block, name)["badnets ASR"] for name in ("abl", "cbd")] == ["**20.0**"] * 2
    assert r"\underline" not in tables.leaderboard(cells).latex()
    ordered = order(tables.leaderboard(cells, "mean ASR").blocks[0])
    assert ordered == ["no clean images", "none", "cbd", "abl"]


def test_means_of_seconds_say_over_how_many_attacks_they_are() -> None:
    cells = [
        make_record("none", "badnets", 930, 998, seconds=(50.0, 0.0)),
        make_record("none", "blend", 930, 998, seconds=(50.0, 0.0)),
        make_record("none", "none", 940, seconds=(50.0, 0.0)),
        make_record("cbd", "badnets", 880, 20, seconds=(0.0, 100.0)),
        make_record("abl", "badnets", 880, 20),
        make_record("abl", "blend"),
        make_record("abl", "none", 880),
    ]
    shown = row(board(*cells), "cbd")
    assert shown["mean CA"] == "88.0 (1 of 2)"
    assert [shown[name] for name in ("seconds", "x none")] == ["100.0 (1 of 3)", "2.0"]
    assert row(board(*cells), "abl")["seconds"] == "60.0 (2 of 3)"
    assert row(board(*cells), "none")["seconds"] == "50.0"


@pytest.mark.parametrize(
    ("goals", "whose"),
    [
        ([0, 0, 0, 0, 0], ""),
        ([0, 0, 2, 3, 4], "dog"),
        ([0, 0, 0, 3, 4], "dog and ship"),
        ([1, 2, 3, 4, 0], "all classes, which have several targets"),
        ([0, 2, 3, 4, 0], "4 of 5 classes, which have several targets"),
    ],
)
def test_a_note_says_which_classes_an_attack_attacks_if_not_all_others(goals, whose) -> None:
    names = ("cat", "dog", "ship", "car", "tree")
    made = make_classified("abl", "tact", [9] * 5, [[2] * 5] * 5, names, goals=goals)
    said = [line for line in board(made).splitlines() if line.startswith("- tact: ")]
    line = "- tact: ASR, R-Acc and floor are those of the triggered test images of"
    assert said == ([f"{line} {whose}"] if whose else [])


@pytest.mark.parametrize(("number", "text"), [(-0.04, "0.0"), (-0.06, "-0.1"), (0.0, "0.0")])
def test_a_zero_has_no_sign(number, text) -> None:
    assert decimal(number) == text


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
    note = block.splitlines()[-1]
    assert note.startswith("- † at_chance, ")
    assert note.endswith("never marked best: cbd on badnets (seed 0)")


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
def test_the_clean_share_comes_from_the_record_or_else_the_source(record, share, text):
    given = {} if share is None else {"clean_fraction": share}
    record = replace(record, provenance=record.provenance.with_(**given))
    assert row(board(record), record.labels.defense)["clean"] == text


def test_trainings_are_passes_relative_to_plain_training():
    record = make_record("cbd", "badnets", 880, 20)
    more = replace(record, passes={"forward": 60.0, "backward": 33.0})
    assert row(board(more), "cbd")["trainings"] == "1.4"
    without = replace(more, cell=more.cell.with_(recipe="recipe()"))
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
    """A t-test cannot tell the last three from their floors, but two of these have a backdoor."""
    pairs = zip(asr, floor, strict=True)
    some = [make_record("abl", "badnets", 880, *pair, seed) for seed, pair in enumerate(pairs)]
    assert row(board(*some), "abl")["badnets ASR"].endswith("°") == marked
    (said,) = frames.summarise(some)["at_floor"]
    assert said is marked


@pytest.mark.parametrize(
    ("seeds", "marked"),
    [
        ([{"a_1": (100, 100), "b_2": (50, 45)}], True),
        ([{"a_1": (100, 100), "b_2": (50, 10)}], False),
        ([{"a_1": (50, 10), "b_2": (100, 100)}], False),
        ([{"a_1": (900, 10), "b_2": (50, 50)}], False),
        ([{"a_1": (100, 99), "b_2": (20, 25)}, {"a_1": (90, 100), "b_2": (30, 28)}], True),
        ([{"a_1": (100, 99), "b_2": (20, 25)}, {"a_1": (90, 100), "b_2": (60, 20)}], False),
    ],
)
def test_a_mixed_asr_is_at_its_floor_only_if_that_of_each_part_is(seeds, marked):
    """A part that is left may have a lower ASR than one that is gone and has a high floor."""
    some = [make_mixed("abl", seed, **parts) for seed, parts in enumerate(seeds)]
    assert row(board(*some), "abl")["mixed ASR"].endswith("°") == marked
    assert "mixed: ASR, R-Acc and floor are those of the part with the highest ASR" in board(*some)


def test_der_follows_equation_7_of_its_paper():
    """Equation 7 by hand: (0.998 - 0.02 - (0.93 - 0.88) + 1) / 2, and no gain from more CA."""
    some = [
        make_record("none", "badnets", 930, 998),
        make_record("abl", "badnets", 880, 20),
        make_record("none", "blend", 900, 900),
        make_record("abl", "blend", 950, 950),
        make_record("cbd", "badnets", 880, 20),
    ]
    made = frames.summarise(some).set_index(["defense", "attack"])["der"]
    assert made["abl", "badnets"] == pytest.approx(0.964)
    assert made["abl", "blend"] == pytest.approx(0.5)
    assert pd.isna(made["none", "badnets"])
    block = board(*some)
    assert row(block, "abl")["DER"] == "73.2"
    assert row(block, "cbd")["DER"] == "96.4"
    assert row(block, "cbd")["mean CA"] == "88.0 (1 of 2)"
    assert row(block, "none")["DER"] == "-"
    assert row(board(some[1]), "abl")["DER"] == "-"


def test_der_is_computed_from_means_over_seeds():
    made = frames.summarise(SEEDS).set_index("defense")["der"]
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
    assert sorted_by("badnets CA interval") == ["dbd", "abl", "cbd"]
    assert sorted_by("badnets ASR interval") == ["cbd", "abl", "dbd"]
    for column, named in (("", "DER"), ("badnets ASR", "badnets ASR"), ("defense", "defense")):
        assert f"Rows are sorted by {named}." in tables.leaderboard(some, column).markdown()
    with pytest.raises(InvalidInput) as raised:
        sorted_by("badnet ASR")
    assert str(raised.value) == "unknown column 'badnet ASR'; did you mean 'badnets ASR'?"


def test_a_further_column_without_a_number_is_left_out():
    """A filter ran against one of two attacks: TPR, FPR and AUROC are columns of that one only."""
    judged = {"mean_clean": 0.9, "mean_poisoned": 0.25, "tpr": 0.75, "fpr": 0.1}
    filtering = make_record("abl", "badnets", 880, 20, 15)
    some = [
        replace(filtering, diagnostics={"samples": {"kept": judged}}),
        make_record("abl", "blend", 880, 20, 15),
        make_record("none", "blend", 930, 998),
    ]
    shown = row(tables.leaderboard(some, columns=["TPR", "FPR", "AUROC"]).blocks[0], "abl")
    assert shown["badnets TPR"] == "75.0"
    assert {title for title in shown if title.startswith("badnets")} == {
        *("badnets CA", "badnets ASR", "badnets TPR", "badnets FPR"),
    }
    assert {title for title in shown if title.startswith("blend")} == {"blend CA", "blend ASR"}


def test_more_columns_are_shown_on_request():
    judged = {"mean_clean": 0.9, "mean_poisoned": 0.25, "recall": 0.75, "precision": 0.5}
    some = [
        make_record("none", "none", 940, floor=8),
        make_record("none", "badnets", 930, 998),
        replace(
            make_record("abl", "badnets", 880, 20, 15),
            diagnostics={
                "samples": {"kept": judged, "a loss": {"mean_clean": 0.5, "auroc": 0.625}}
            },
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
        "badnets AUROC": "62.5",
    }
    none = row(tables.leaderboard(some, columns=["all"]).blocks[0], "none")
    assert none["none floor"] == "0.8"
    one = row(tables.leaderboard(some, columns=["TPR"]).blocks[0], "abl")
    assert one.keys() - row(board(*some), "abl").keys() == {"badnets TPR"}
    with pytest.raises(InvalidInput) as raised:
        tables.leaderboard(some, columns=["flor"])
    assert str(raised.value) == "unknown column 'flor'; did you mean 'floor'?"


def test_rates_of_a_filter_come_from_the_record():
    # The verdict has an AUROC of its own, which is not that of the scores.
    kept = {"mean_clean": 0.9, "fpr": 0.1, "tpr": 0.3, "auroc": 0.6}
    score, found = {"mean_clean": 2.0, "auroc": 0.75}, {}
    found["abl"] = {"kept": kept, "a score": score}
    found["dbd"] = {"kept": kept, "a score": score, "another": score}
    found["cbd"] = {"a score": score}
    found["fp"] = {"kept": {"mean_clean": 0.9, "fpr": 0.1}, "a score": {"mean_clean": 2.0}}
    some = [
        replace(make_record(defense, "badnets", 880, 20), diagnostics={"samples": samples})
        for defense, samples in found.items()
    ]
    some += [make_record("abl", "badnets", 880, 20, seed=1), make_record("clp", "badnets", 880, 20)]
    made = frames.summarise(some).set_index("defense")[["tpr", "fpr", "auroc"]]
    assert tuple(made.loc["abl"]) == (0.3, 0.1, 0.75)
    # Several scores: which of them filters is not known.
    assert made.loc["dbd"].dropna().to_dict() == {"tpr": 0.3, "fpr": 0.1}
    # Without poison there are only false positives.
    assert made.loc["fp"].dropna().to_dict() == {"fpr": 0.1}
    assert made.loc[["cbd", "clp"]].isna().all(axis=None)


def test_a_defense_without_results_comes_last():
    block = board(
        make_record("abl", "badnets"),
        make_record("cbd", "badnets", 890, 20),
        make_record("dbd", "badnets", 890, 10),
        make_record("clp", "badnets", 100, 0, flags=("not_finite",)),
    )
    assert order(block) == ["no clean images", "dbd", "cbd", "abl", "clp"]
    filled = {title: text for title, text in row(block, "clp").items() if text != "-"}
    assert filled == {"defense": "clp", "clean": "0 %", "badnets ASR": "not finite ⊘"}


def test_clean_training_alone_makes_a_table():
    block = board(
        make_record("none", "none", 940, floor=8), make_record("abl", "none", 870, floor=20)
    )
    titles = ["defense", "clean", "trainings", "none CA", "seconds", "x none"]
    expected = dict(zip(titles, ["abl", "0 %", "1.0", "87.0", "60.0", "1.0"], strict=True))
    assert row(block, "abl") == expected
    failed = board(make_record("none", "none", 940, floor=8), make_record("abl", "none"))
    assert row(failed, "abl")["none CA"] == "failed ¶"


def test_each_data_set_model_and_recipe_has_a_block():
    one = make_record("abl", "badnets", 880, 20)
    longer = replace(
        one,
        cell=one.cell.with_(recipe="recipe(epochs=100, learning_rate=0.01)"),
        labels=one.labels.with_(recipe="recipe(learning_rate=0.01)"),
        provenance={"data_sha256": "cd" * 32, "precision": "bf16"},
    )
    titles = [block.splitlines()[0] for block in tables.leaderboard([longer, one]).blocks]
    assert titles == [
        "## toy · wrn16_1 · 30 epochs · fp32 · 1 seed",
        "## toy · wrn16_1 · 100 epochs · recipe(learning_rate=0.01) · bf16 · 1 seed",
    ]


def test_specs_that_share_a_label_are_written_out():
    one = make_record("abl", "badnets", 880, 20)
    other = replace(one, key="f" * 16, cell=one.cell.with_(defense="abl(field=2)"))
    assert list(frames.summarise([one, other])["defense"]) == ["abl(field=1)", "abl(field=2)"]


def test_a_bar_in_a_spec_does_not_split_a_column():
    block = board(make_record("mine(name='a|b')", "badnets", 880, 20))
    assert "| mine(name='a\\|b')      |" in block


def test_a_note_names_several_devices():
    one, two = make_record("none", "badnets", 850, 990), make_record("cbd", "badnets", 840, 20)
    assert "several devices" not in tables.leaderboard([one, two]).markdown()
    moved = replace(two, provenance=two.provenance.with_(device="cuda: a GPU"))
    stayed = replace(one, provenance=one.provenance.with_(device="cpu: a processor"))
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


@pytest.mark.parametrize("option", ["--sort=badnet ASR", "--columns=FRP"])
def test_the_command_refuses_a_wrong_column_in_one_line(option, tmp_path, capsys):
    for each in SEEDS:
        records.write(tmp_path, each)
    assert "unknown column" in refused(
        capsys, "table", "leaderboard", f"--results={tmp_path}", option
    )
    assert "for the leaderboard" in refused(capsys, "table", "1", f"--results={tmp_path}", option)


def test_flags_of_other_versions_are_understood_or_ignored() -> None:
    """An older "diverged" enters no mean, and an unknown flag changes nothing."""
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
    assert "⊘ diverged, excluded from means; an older record, not finite or at chance" in text


@pytest.mark.parametrize(
    ("seeds", "title", "notes"),
    [
        ({"badnets": [0, 1], "blend": [0, 1]}, "2 seeds", []),
        ({"badnets": [0, 1, 2], "blend": [0]}, "1 to 3 seeds", ["seeds 1, 2: cbd on blend"]),
        (
            {"badnets": [0, 1], "blend": [2, 3], "sig": [2, 3]},
            "2 seeds",
            ["seeds 2, 3: cbd on badnets", "seeds 0, 1: cbd on blend, cbd on sig"],
        ),
        ({"badnets": [0, 1], "blend": [1]}, "1 to 2 seeds", ["seed 0: cbd on blend"]),
    ],
)
def test_the_title_counts_the_seeds_of_cells_and_notes_name_missing_ones(seeds, title, notes):
    some = [make_record("cbd", attack, 880, 20, seed=s) for attack in seeds for s in seeds[attack]]
    made = tables.leaderboard(some)
    first, *others = made.blocks[0].splitlines()
    assert first.endswith(f" · {title}")
    said = [line.removeprefix("- no record of ") for line in others if "no record of" in line]
    assert said == notes
    assert made.latex().count("No record of ") == len(notes)


def test_der_uses_the_seeds_that_both_sides_have():
    records = [
        *(make_record("none", "badnets", ca, 1000, seed=s) for s, ca in enumerate((900, 800, 500))),
        *(make_record("cbd", "badnets", ca, 1000, seed=s) for s, ca in enumerate((880, 780))),
    ]
    assert summarised(records)["cbd"] == pytest.approx((1 - 0.02) / 2)


def summarised(records):
    frame = frames.summarise(records)
    return dict(zip(frame["defense"], frame["der"], strict=True))


def test_a_warning_names_the_attacks_on_which_it_was_given():
    def warned(defense, attack, *texts, seed=0):
        made = make_record(defense, attack, 880, 20, 11, seed)
        return replace(made, diagnostics={"warnings": list(texts)})

    text = board(
        warned("cbd", "badnets", "f_B sees too much"),
        warned("cbd", "badnets", "f_B sees too much", seed=1),
        warned("cbd", "blend", "f_B sees too much"),
        warned("abl", "badnets", "isolates none", "diverges"),
        warned("abl", "blend", "diverges"),
        warned("abl", "sig"),
    )
    assert [line for line in text.splitlines() if line.startswith(("- abl", "- cbd"))] == [
        "- abl on badnets: isolates none",
        "- abl on badnets and blend: diverges",
        "- cbd: f_B sees too much",
    ]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"fit": 10, "validation": 10, "of": 100, "classes": 10}, True),
        ({"fit": 5, "validation": 5, "of": 100, "classes": 10}, False),
        ({"fit": 2, "validation": 1, "of": 60, "classes": 2}, False),
        ({"fit": 10, "validation": 10}, False),
        (None, False),
    ],
)
def test_a_note_says_that_a_defense_had_another_clean_share_than_declared(given, said):
    record = make_record("ft", "badnets", 880, 20)
    record = replace(record, provenance=record.provenance.with_(clean_fraction=0.05))
    record = replace(record, diagnostics={"lent": given})
    line = "- ft was lent 20 of 100 clean images (20 %) instead of the declared 5 %"
    assert (line in board(record)) is said


@pytest.mark.parametrize(
    ("defense", "stated", "reason"),
    [
        ("mine", {}, ""),
        ("mine", {"least": 10}, ", because it gets at least 10 per class"),
        ("asd", {}, ", because it gets at least 10 per class"),
        ("asd", {"least": 3}, ", because it gets at least 3 per class"),
        ("ft", {}, ", because it gets at least 2 per class"),
    ],
)
def test_the_reason_for_another_share_is_what_the_record_or_a_built_in_defense_says(
    defense, stated, reason
):
    record = make_record(defense, "badnets", 880, 20)
    given = {"fit": 80, "validation": 20, "of": 2_000, "classes": 10, **stated}
    record = replace(
        record,
        provenance=record.provenance.with_(clean_fraction=0.01),
        diagnostics={"lent": given},
    )
    line = f"- {defense} was lent 100 of 2,000 clean images (5 %) instead of the declared 1 %"
    assert f"{line}{reason}\n" in f"{board(record)}\n"
