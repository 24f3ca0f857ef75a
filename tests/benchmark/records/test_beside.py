"""One's own records beside those of other folders: what joins, what is left out, and what runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import make_record
from commands import refused

import bdbench as bd
from bdbench.cli import main
from bdbench.records import files as records
from bdbench.records.beside import Known, Neighbour, Origins, join
from bdbench.records.record import Record, key_of
from bdbench.tables.write import leaderboard, leaderboard_files

OWN, THERE = Path("results/own"), Path("results/published")
MINE = make_record("mine", "badnets", 900, 10)
MINE = replace(MINE, provenance=MINE.provenance.with_(clean_fraction=0.0))
PUBLISHED = [make_record("none", "badnets", 930, 990), make_record("cbd", "badnets", 880, 20)]
OTHER_RECIPE = "recipe(epochs=100, learning_rate=0.1, precision='bf16')"
PLUGIN = '''"""Plain training, mine."""
from dataclasses import dataclass
from bdbench.defenses import Context, Defense, register
from bdbench.models import Classifier, ImageSet, train

@register("mine", title="Mine & co")
@dataclass(frozen=True)
class Mine(Defense):
    def fit(self, data: ImageSet, context: Context) -> Classifier:
        return train(context.build(), data, context.recipe, context.rng("classifier"))
'''
TINY = [
    "--dataset=toy(train_images=100, test_images=50, image_size=16)",
    *("--attack=badnets", "--epochs=1", "--precision=fp32", "--device=cpu", "--in-process"),
]


def joined(
    own: list[Record], *there: Record, asked: list[Known] | None = None
) -> tuple[list[Record], Origins]:
    return join(own, [Neighbour(THERE, there)], OWN, asked or [])


def changed(record: Record, axis: str, text: str) -> Record:
    cell = record.cell.with_(**{axis: text})
    return replace(record, cell=cell, key=key_of(record.cell.as_dict(), {axis: text}))


def rows(text: str) -> dict[str, list[str]]:
    """Of the first table, by the words of the first column."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [each.strip() for each in cells[1:]] for cells in lines}


def test_what_is_published_stands_beside_ones_own_under_a_sign() -> None:
    found, origins = joined([MINE], *PUBLISHED)
    board = leaderboard(found, origins=origins)
    text = board.markdown()
    table = rows(text)
    assert {"mine", "none ◊", "cbd ◊"} <= table.keys()
    assert table["mine"][3] == "**1.0**°"
    # Only the other folder has no defense, against which this is.
    assert table["mine"][-3] == "97.5"
    assert origins.remarks == ()
    assert list(board.summary["folder"]) == [
        *("results/published", "results/published", "results/own")
    ]


@pytest.mark.parametrize(
    ("own", "there", "ratio"),
    [
        ([("mine", 0), ("none", 0)], [], "1.0"),
        ([("mine", 0)], [("none", 0)], "-"),
        ([("mine", 0)], [("mine", 1), ("none", 0), ("none", 1)], "-"),
        ([("none", 0), ("mine", 0)], [("none", 1), ("mine", 1)], "-"),
        ([("abl", 0)], [("mine", 0), ("none", 0)], "1.0"),
    ],
)
def test_seconds_are_compared_only_if_both_rows_come_from_one_folder(
    own: list[tuple[str, int]], there: list[tuple[str, int]], ratio: str
) -> None:
    """A row may have records of both."""
    sides = [
        [make_record(defense, "badnets", 900, 10, seed=seed) for defense, seed in side]
        for side in (own, there)
    ]
    asked: list[Known] = [(make_record("mine", "badnets", seed=1).cell.as_dict(), {})]
    found, origins = joined(sides[0], *sides[1], asked=asked)
    assert len(found) == len(own) + len(there)
    table = rows(leaderboard(found, origins=origins).markdown())
    (mine,) = (cells for name, cells in table.items() if name.startswith("mine"))
    assert mine[-1] == ratio


def test_the_legend_says_code_device_and_precision_of_each_side() -> None:
    def made_on(record: Record, commit: str, device: str, precision: str) -> Record:
        origin = {"commit": commit, "device": device, "precision": precision}
        libraries = {"bdbench": "0.1.0"}
        origin = record.provenance.with_(**origin, versions=libraries)
        return replace(record, provenance=origin)

    there = [made_on(record, "abc1234", "cpu: AMD EPYC", "fp32") for record in PUBLISHED]
    found, origins = joined([made_on(MINE, "fed4321+", "cuda: a GPU", "bf16")], *there)
    text = leaderboard(found, origins=origins).markdown()
    assert (
        "- ◊ from results/published: commit abc1234, cpu: AMD EPYC, fp32, bdbench 0.1.0; "
        "others: results/own, commit fed4321+, cuda: a GPU, bf16, bdbench 0.1.0\n"
    ) in text
    assert "seconds were measured on several devices: cpu: AMD EPYC, cuda: a GPU" in text


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (
            changed(PUBLISHED[1], "recipe", OTHER_RECIPE),
            "other settings: epochs 100 there, 30 here, precision bf16 there, fp32 here",
        ),
        (
            changed(PUBLISHED[1], "dataset", "digits(field=1)"),
            "other settings: data set digits there, toy here",
        ),
        (
            changed(PUBLISHED[1], "model", "wrn16_1(field=2)"),
            "other settings: field 2 there, 1 here",
        ),
        (changed(PUBLISHED[1], "model", "{no spec}"), "other settings: model {no spec} there"),
        (make_record("cbd", "blend", 880, 20), "attacks without a cell here: blend"),
        (make_record("cbd", "badnets", 880, 20, seed=3), "seeds without a cell here: 3"),
        (
            replace(PUBLISHED[1], provenance={"data_sha256": "cd" * 32}),
            "trained on other images: data cdcdcdcdcdcd there, abababababab here",
        ),
    ],
    ids=["recipe", "data set", "model", "no spec", "attack", "seed", "images"],
)
def test_what_does_not_belong_there_is_left_out_in_words(record: Record, line: str) -> None:
    found, origins = joined([MINE], PUBLISHED[0], record)
    assert found == [MINE, PUBLISHED[0]]
    assert origins.remarks[0].startswith(f"results/published: 1 of 2 records left out, {line}")
    text = leaderboard(found, origins=origins).markdown()
    assert "- results/published: 1 of 2 records left out" in text


VERSIONS = {"dataset": 1, "model": 1, "attack": 2, "defense": 1}


@pytest.mark.parametrize(
    ("versions", "stated", "kept"),
    [
        (VERSIONS, True, True),
        (VERSIONS | {"defense": 7}, True, True),
        (VERSIONS | {"attack": 1}, True, False),
        (VERSIONS, False, True),
        (VERSIONS | {"defense": 7}, False, True),
        (VERSIONS | {"attack": 1}, False, False),
    ],
)
def test_records_of_other_versions_of_an_attack_do_not_stand_beside(
    versions: dict[str, Any], stated: bool, kept: bool
) -> None:
    """An older record does not state its versions: they are in its key."""
    other = PUBLISHED[1]
    key = key_of(other.cell.as_dict(), versions)
    other = replace(other, versions=versions if stated else {}, key=key)
    found, origins = joined([replace(MINE, versions=VERSIONS)], other)
    assert (other in found) is kept
    line = "results/published: 1 of 1 records left out, other versions of the plugins: badnets"
    assert (line in origins.remarks) is not kept


def test_seeds_of_one_defense_are_of_one_version() -> None:
    own = [
        replace(make_record("cbd", "badnets", 880, 20), versions=VERSIONS),
        replace(make_record("mine", "badnets", 880, 20, seed=1), versions=VERSIONS),
    ]
    other = replace(
        make_record("cbd", "badnets", 880, 900, seed=1), versions=VERSIONS | {"defense": 2}
    )
    found, origins = joined(own, other)
    assert found == own
    assert origins.remarks == (
        "results/published: 1 of 1 records left out, other versions of the plugins: cbd",
    )


def test_two_other_folders_bring_one_version_of_a_defense() -> None:
    own = [
        replace(make_record("mine", "badnets", 880, 20, seed=seed), versions=VERSIONS)
        for seed in range(2)
    ]
    first, second = (
        replace(make_record("cbd", "badnets", 880, 900, seed=seed), versions=versions)
        for seed, versions in enumerate((VERSIONS, VERSIONS | {"defense": 2}))
    )
    others = [Neighbour(Path(name), (each,)) for name, each in (("a", first), ("b", second))]
    found, origins = join(own, others, Path("results/own"))
    assert found == [*own, first]
    assert "b: 1 of 1 records left out, other versions of the plugins: cbd" in origins.remarks


def test_a_cell_of_both_is_ones_own_unless_that_failed() -> None:
    other = replace(MINE, metrics=PUBLISHED[0].metrics)
    found, origins = joined([MINE], other)
    assert found == [MINE]
    assert origins.folders == {}
    assert origins.remarks == (
        "results/published: 1 records not shown, another folder has the cell, "
        "1 of them with another result",
    )
    failed = make_record("mine", "badnets")
    found, origins = joined([failed], MINE)
    assert found == [MINE]
    assert origins.folders == {MINE.key: THERE}


def test_a_row_of_several_folders_says_so() -> None:
    own = [
        MINE,
        make_record("mine", "badnets", 900, 12, seed=1),
        make_record("cbd", "badnets", 870, 30),
    ]
    found, origins = joined(own, make_record("cbd", "badnets", 880, 20, seed=1))
    text = leaderboard(found, origins=origins).markdown()
    assert (
        "- cbd has records of several folders: 1 in results/own, 1 in results/published\n" in text
    )
    assert {"mine", "cbd ◊"} <= rows(text).keys()
    assert "results/published: no records of seed 0" in text


def test_attacks_and_seeds_that_are_only_here_are_said() -> None:
    own = [
        MINE,
        make_record("mine", "blend", 900, 10),
        make_record("mine", "badnets", 900, 10, seed=1),
    ]
    _, origins = joined(own, *PUBLISHED)
    assert origins.remarks == (
        "results/published: no records of the attacks blend",
        "results/published: no records of seed 1",
    )


def test_cells_that_are_asked_for_count_as_ones_own() -> None:
    """So that a folder in which nothing has run yet has a table."""
    found, origins = joined([], *PUBLISHED, asked=[(MINE.cell.as_dict(), {})])
    assert found == PUBLISHED
    text = leaderboard(found, origins=origins).markdown()
    assert "others: none" in text
    none, origins = joined([], *PUBLISHED)
    assert none == []
    assert "there is nothing here to compare with" in origins.remarks[0]


def test_several_folders_have_signs_of_their_own() -> None:
    others = [
        Neighbour(Path("a"), (PUBLISHED[0],)),
        Neighbour(Path("b"), (PUBLISHED[1], PUBLISHED[0])),
    ]
    found, origins = join([MINE], others, OWN)
    text = leaderboard(found, origins=origins).markdown()
    assert {"mine", "none ◊1", "cbd ◊2"} <= rows(text).keys()
    assert "- ◊1 from a: commit not known" in text
    assert "; ◊2 from b: commit not known" in text


def test_a_sign_sorts_and_extends_like_any_row() -> None:
    found, origins = joined([MINE], *PUBLISHED)
    made = leaderboard(found, "badnets CA", ["floor"], origins)
    assert list(rows(made.markdown()))[2:] == ["none ◊", "mine", "cbd ◊"]
    assert rows(made.markdown())["cbd ◊"][4] == "1.0"


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One's own results and published ones below the current folder, and some that are no such."""
    monkeypatch.chdir(tmp_path)
    records.write(OWN, MINE)
    for record in PUBLISHED:
        records.write(THERE, record)
    Path("results/empty/records").mkdir(parents=True)
    Path("results/damaged/records").mkdir(parents=True)
    Path("results/damaged/records/0123456789abcdef.json").write_text("{")
    Path("results/later/records").mkdir(parents=True)
    Path("results/later/records/0123456789abcdef.json").write_text('{"schema": 99}')
    Path("file").write_text("")
    for name, title in {"long": "x" * 61, "lines": "a\\nb", "number": "1"}.items():
        text = PLUGIN.replace('"Mine & co"', "1" if name == "number" else f'"{title}"')
        Path(f"{name}.py").write_text(text)
    return tmp_path


TABLE = ["table", "leaderboard", "--results=results/own"]


def test_the_command_writes_and_prints_both_and_copies_nothing(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*TABLE, "--against=results/published", "--latex"]) == 0
    shown = capsys.readouterr().out
    tables = OWN / "tables"
    assert shown.startswith((tables / "leaderboard.md").read_text())
    assert {"mine", "cbd ◊"} <= rows(shown).keys()
    assert r"CBD $\diamond$ &" in (tables / "leaderboard.tex").read_text()
    frame = (tables / "leaderboard.csv").read_text().splitlines()
    assert frame[0].endswith(",folder")
    assert [line.rsplit(",", 1)[1] for line in frame[1:]] == [
        *("results/published", "results/published", "results/own")
    ]
    assert [path.stem for path in (OWN / "records").iterdir()] == [MINE.key]
    assert main(TABLE) == 0
    assert "folder" not in (tables / "leaderboard.csv").read_text()


def test_damaged_records_of_another_folder_are_named(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (THERE / "records/0123456789abcdef.json").write_text("{")
    assert main([*TABLE, "--against=results/published"]) == 1
    streams = capsys.readouterr()
    assert "damaged record results/published/records/0123456789abcdef.json" in streams.err
    assert len(streams.err.splitlines()) == 1
    assert "cbd ◊" in rows(streams.out)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([*TABLE, "--against=absent"], "no records in absent/records, which --against names"),
        ([*TABLE, "--against=results/empty"], "no records in results/empty/records"),
        ([*TABLE, "--against=results/publishd"], "did you mean 'results/published'?"),
        ([*TABLE, "--against=results/damaged"], "are damaged; the first: "),
        ([*TABLE, "--against=results/later"], "this version reads schema 1"),
        ([*TABLE, "--against=results/own"], "names the results folder results/own itself"),
        ([*TABLE, "--against=results/../results/own/"], "itself; name another folder"),
        ([*TABLE, "--against=file"], "'file' is a file"),
        ([*TABLE, "--against=a\0b"], "is not a path"),
        ([*TABLE, "--agianst=a"], "No such option"),
        (["table", "--results=absent", "--against=results/own"], "no records in absent/records"),
        (
            ["table", "1", "--results=results/own", "--against=a"],
            "--against is for the leaderboard",
        ),
        ([*TABLE, "--label=tab:a"], "--label is for --latex: add it"),
        (["table", "1", "--latex", "--label=a"], "--label is for the leaderboard"),
        ([*TABLE, "--latex", "--label=a}b"], "invalid label 'a}b'; use letters, digits and"),
        ([*TABLE, "--latex", "--label=" + "a" * 101], "invalid label"),
        ([*TABLE, "--sort=badnet ASR"], "did you mean 'badnets ASR'?"),
        ([*TABLE, "--against=results"], "which --against names; choose one of: results/"),
        (["run", *TINY, "--against=absent"], "no records in absent/records, which --against names"),
        (["run", *TINY, "--against=results/damaged"], "are damaged; the first: "),
        (
            ["run", *TINY, "--results=results/own", "--against=results/own"],
            "itself; name another folder",
        ),
        (["run", *TINY, "--plugin=long.py"], "must be a line of at most 60 characters"),
        (["run", *TINY, "--plugin=lines.py"], "must be a line of at most 60 characters"),
        (["run", *TINY, "--plugin=number.py"], "must be a line of at most 60 characters, got 1"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_lost(
    arguments: list[str],
    complaint: str,
    folders: Path,
    capsys: pytest.CaptureFixture[str],
    unregistered: None,
) -> None:
    before = {path: path.read_bytes() for path in folders.rglob("*") if path.is_file()}
    assert complaint in refused(capsys, *arguments)
    assert {path: path.read_bytes() for path in folders.rglob("*") if path.is_file()} == before


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with no defense against one attack, for two seeds."""
    folder = tmp_path_factory.mktemp("published")
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:
        patched.setenv("BDBENCH_CACHE", str(folder / "cache"))
        assert main(["run", *TINY, "--defense=none", "--seeds=2", f"--results={folder}/two"]) == 0
    return folder / "two"


def test_a_run_trains_only_what_nobody_has(
    published: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    unregistered: None,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(PLUGIN)
    before = sorted(published.rglob("*"))
    command = ["run", *TINY, f"--against={published}", "--plugin=mine.py"]
    command += ["--defense=none", "--defense=mine"]
    assert main([*command, "--dry-run"]) == 0
    listed = capsys.readouterr().out
    assert f"none: has its record in {published}" in listed
    assert "mine: about" in listed
    assert "1 of 2 cells to run" in listed
    assert not Path("results").exists()
    assert main(command) == 0
    shown = capsys.readouterr().out
    (made,) = Path("results/quick/records").glob("*.json")
    record = records.read(made)
    assert record.labels.defense == "mine"
    assert record.provenance.titles["defense"] == "Mine & co"
    assert f"1 of 2 cells have their record in {published}\n" in shown
    assert f"{published}: 1 of 2 records left out, seeds without a cell here: 1\n" in shown
    table = rows(shown)
    assert {"mine", "none ◊"} <= table.keys()
    # DER is against no defense of the other folder.
    assert table["mine"][-3] != "-"
    # Seconds are not.
    assert table["mine"][-1] == "-"
    assert table["none ◊"][-1] == "1.0"
    assert f"◊ from {published}: commit " in shown
    assert main(command) == 0
    assert f"all 2 cells have records in results/quick or {published}" in capsys.readouterr().out
    assert sorted(published.rglob("*")) == before


def test_settings_that_do_not_match_are_said_before_anything_trains(
    published: Path, own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["run", *TINY, "--epochs=2", f"--against={published}", "--defense=ft", "--dry-run"]
    assert main(command) == 0
    line = f"{published}: 2 of 2 records left out, other settings: epochs 1 there, 2 here"
    assert line in capsys.readouterr().out.splitlines()


def test_the_folder_of_a_suite_that_is_published_stays_as_it_is(
    published: Path, own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """New records go to another by default."""
    Path("results").mkdir()
    Path("results/quick").symlink_to(published)
    assert main(["run", *TINY, "--against=results/quick", "--defense=none"]) == 0
    shown = capsys.readouterr().out
    assert "written: results/quick-own/tables/leaderboard.csv" in shown
    assert "none ◊" in rows(shown)
    assert not Path("results/quick-own/records").exists()


def test_a_run_writes_among_published_records_only_if_it_is_told_to(
    published: Path, own_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("results/quick")
    shutil.copytree(published, folder)
    assert main(["run", *TINY, "--defense=none", "--dry-run"]) == 0
    assert "has its record" in capsys.readouterr().out
    (folder / "PUBLISHED").touch()
    assert main(["run", *TINY, "--defense=none", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "has its record" not in shown
    assert f"the records in {folder} are published, so new ones go to {folder}-own" in shown
    assert main(["run", *TINY, "--defense=none", "--dry-run", f"--results={folder}"]) == 0
    assert "has its record" in capsys.readouterr().out


def test_python_compares_as_the_command_does(published: Path, tmp_path: Path) -> None:
    """Nothing is trained: all cells are there."""
    results = bd.run(
        datasets=["toy(train_images=100, test_images=50, image_size=16)"],
        attacks=["badnets"],
        defenses=["none"],
        epochs=1,
        precision="fp32",
        device="cpu",
        results=tmp_path / "mine",
        against=published,
        progress=False,
    )
    assert len(results) == 0
    assert "none ◊" in rows(results.leaderboard().markdown())
    assert not (tmp_path / "mine/records").exists()
    whole = bd.load(published).leaderboard()
    assert "folder" not in whole.frame()
    for name, record in (("own", MINE), ("there", PUBLISHED[1])):
        records.write(tmp_path / name, record)
    board = bd.load(tmp_path / "own").leaderboard(against=[tmp_path / "there"])
    assert set(board.frame()["folder"]) == {str(tmp_path / "own"), str(tmp_path / "there")}
    with pytest.raises(bd.InvalidInput, match="no records in"):
        bd.load(published).leaderboard(against=tmp_path / "absent")


def test_the_same_records_give_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    own = [MINE, make_record("mine", "badnets", 900, 12, seed=1)]
    texts = []
    for turn in (1, -1):
        found, origins = joined(own[::turn], *PUBLISHED[::turn])
        texts.append(leaderboard_files(found, tmp_path, origins, label=""))
    assert texts[0] == texts[1]
