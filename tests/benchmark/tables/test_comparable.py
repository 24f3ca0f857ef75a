"""What a table compares was run alike, or the table says so."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import make_record

from bdbench.cells.cell import cell
from bdbench.cli import main
from bdbench.figures.pareto import points
from bdbench.models import Recipe
from bdbench.models.plugins.errors import InvalidInput
from bdbench.records import files
from bdbench.records.beside import Neighbour, join
from bdbench.records.record import Record
from bdbench.tables.block import LeaderboardBlock
from bdbench.tables.footnotes import footnotes
from bdbench.tables.frames import summarise
from bdbench.tables.groups import CODE, collect, unlike
from bdbench.tables.verify import verify
from bdbench.trial.evaluation import diagnose

CODES = dict.fromkeys(CODE, "a" * 16)


def made(
    defense: str, attack: str = "badnets", *numbers: Any, seed: int = 0, **origin: Any
) -> Record:
    """A record with its origin: device, threads and code."""
    ca, asr = numbers or (900, 20)
    record = make_record(defense, attack, ca, asr, seed=seed, seconds=(60.0, 60.0))
    sources = CODES | origin.pop("sources", {})
    stated: dict[str, Any] = {"device": "cpu: one", "threads": 2, "sources": sources} | origin
    return replace(record, provenance=record.provenance.with_(**stated))


def board(*records: Record) -> LeaderboardBlock:
    return LeaderboardBlock(tuple(collect(records)))


OTHERWISE: dict[str, dict[str, Any]] = {
    "number of threads": {"threads": 1},
    "device": {"device": "cpu: another"},
    "code (training)": {"sources": {"training": "b" * 16}},
    "code (attack)": {"sources": {"attack": "b" * 16}},
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_seconds_are_compared_only_with_a_cell_that_was_run_alike(what: str) -> None:
    plain = made("none", "badnets", 900, 990)
    block = board(plain, made("cbd"), made("ft", **OTHERWISE[what]))
    assert block.numbers["cbd"]["x none"] == 1.0
    assert math.isnan(block.numbers["ft"]["x none"])
    said = f"no defense was run with another {what}, so seconds are not compared: ft on badnets"
    assert said in list(footnotes(block))
    untimed = f"no defense was run with another {what}: ft on badnets"
    assert (untimed in list(footnotes(block, ["ASR"]))) == what.startswith("code")
    drawn = points(block)
    assert set(drawn["defense"]) == {"none", "cbd"}


@pytest.mark.parametrize(("seeds", "some"), [((1,), " (seed 1 of 2)"), ((0, 1), "")])
def test_the_seeds_that_were_run_otherwise_are_named(seeds: tuple[int, ...], some: str) -> None:
    cells = [made("none", "badnets", 900, 990, seed=seed) for seed in (0, 1)]
    cells += [made("ft", seed=seed, threads=1 if seed in seeds else 2) for seed in (0, 1)]
    (line,) = (text for text in footnotes(board(*cells)) if "was run with another" in text)
    assert line.endswith(f"number of threads, so seconds are not compared: ft on badnets{some}")


def test_bold_without_a_row_of_no_defense_is_said_to_be_the_lowest_that_there_is() -> None:
    lines = list(footnotes(board(made("ft"), made("ft", "blend"), made("none", "blend", 900, 990))))
    said = "no result of no defense on badnets: bold is the lowest that there is"
    assert [text for text in lines if "bold" in text] == [said]
    # Without an accuracy above chance, none is bold.
    lost = replace(made("ft"), flags=("at_chance",))
    assert not any("bold" in text for text in footnotes(board(lost)))


def test_a_ratio_is_over_the_cells_that_were_run_alike() -> None:
    slow = made("ft", "blend", threads=1)
    seconds = {**vars(slow.measured.seconds), "fit": 6_000.0}
    slow = replace(slow, measured=slow.measured.with_(seconds=seconds))
    plain = [made("none", attack, 900, 990) for attack in ("badnets", "blend")]
    block = board(*plain, made("ft"), slow)
    assert block.numbers["ft"]["x none"] == block.numbers["none"]["x none"] == 1.0


def test_what_a_record_does_not_say_is_not_judged() -> None:
    old = make_record("ft", "badnets", 900, 20)
    assert unlike(old, made("none")) == unlike(made("none"), old) == ()
    assert unlike(made("ft", sources={"defense": "c" * 16}), made("none")) == ()


def test_a_row_says_that_its_attacks_are_of_different_code() -> None:
    """The usual way of a new defense: a first attack, an edit, a second attack."""
    first, second = made("ft"), made("ft", "blend", sources={"defense": "b" * 16})
    said = "attacks were run with different code (defense): ft"
    assert said in list(footnotes(board(first, second)))
    assert said not in list(footnotes(board(first, made("ft", "blend"))))
    # The code of the attacks differs anyway.
    other = made("ft", "blend", sources={"attack": "b" * 16})
    assert not any("different code" in line for line in footnotes(board(first, other)))


def versioned(defense: str, version: Any, attack: str = "badnets") -> Record:
    record = make_record("cbd", attack, 900, 20)
    name, _, rest = defense.partition("(")
    key = hashlib.sha256(f"{defense} {version}".encode()).hexdigest()[:16]
    return replace(
        record,
        key=key,
        cell=record.cell.with_(defense=f"{name}(field=1, {rest}" if rest else f"{name}(field=1)"),
        labels=record.labels.with_(defense=defense),
        versions={"dataset": 1, "model": 1, "attack": 1, "defense": version},
    )


def test_settings_of_one_plugin_share_a_table_only_if_its_version_is_the_same() -> None:
    """A sweep would mix versions point by point."""
    with pytest.raises(InvalidInput, match="different versions of the defense cbd"):
        board(versioned("cbd", 1), versioned("cbd(t1=3)", 2))
    assert board(versioned("cbd", 2), versioned("cbd(t1=3)", 2))
    # What a plugin holds may have any version, and a hash is that of a notebook's whole code.
    assert board(versioned("cbd", [2, 1]), versioned("cbd(t1=3)", [2, 7]))
    assert board(versioned("cbd", "ab"), versioned("cbd(t1=3)", "cd"))


def test_a_cell_without_an_attack_has_no_asr_in_any_table() -> None:
    records = [made("none", "none", 900, 20), made("ft", "none", 890, 30)]
    frame = summarise(records)
    for column in ("attack_success_rate", "robust_accuracy", "der"):
        assert frame[column].isna().all()
    assert not frame["at_floor"].any()
    assert frame["asr_floor"].notna().all()


@pytest.mark.parametrize("order", [1, -1])
def test_a_cell_that_failed_before_it_had_images_does_not_choose_them(order: int) -> None:
    failed = made("abl", "badnets", None, None, data_sha256=None)
    own = [failed, made("none")][::order]
    there = made("cbd", data_sha256="cd" * 32)
    found, origins = join(own, [Neighbour(Path("there"), (there,))], Path("here"))
    assert {record.labels.defense for record in found} == {"abl", "none"}
    assert "trained on other images" in origins.remarks[0]


def test_a_number_printed_for_another_rate_is_no_verdict() -> None:
    def real(attack: str) -> Record:
        own = cell("cifar10", "wrn16_1", attack, "none", Recipe(epochs=100), 0)
        record = make_record("none", "badnets", 853, 1000)
        return replace(record, key=own.key, cell=own.identity, labels=own.labels)

    other = verify([real("badnets(poisoning_rate=0.003)")])
    assert {row.verdict for row in other.rows} == {""}
    assert (other.missing[1], other.beyond) == (133, 1)
    same = verify([real("badnets")])
    assert "inside" in {row.verdict for row in same.rows}
    assert (same.missing[1], same.beyond) == (132, 0)
    # SIG's rate is a share of one class, which the paper does not print.
    assert {row.verdict for row in verify([real("sig(poisoning_rate=0.5)")]).rows} != {""}


def test_counts_of_a_class_without_clean_images_are_none() -> None:
    labels, mask = torch.tensor([0, 1, 2]), torch.tensor([False, False, True])
    found = diagnose({"weight": torch.tensor([0.1, 0.2, 0.9])}, mask, labels)
    assert found["weight"]["by_class"] == [0.1, 0.2, None]


def test_a_table_of_some_cells_has_files_of_its_own_and_no_defense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for defense in ("none", "cbd", "ft"):
        for attack in ("badnets", "blend"):
            files.write(tmp_path, made(defense, attack))
    options = ["--defense=cbd", "--attack=blend", f"--results={tmp_path}"]
    assert main(["table", *options, "--latex", "--columns=floor"]) == 0
    assert " ft " not in (shown := capsys.readouterr().out)
    assert "badnets" not in shown
    found = {path.name: path.read_text() for path in (tmp_path / "tables").iterdir()}
    assert found.keys() == {f"leaderboard-selection.{kind}" for kind in ("csv", "md", "tex")}
    lines = found["leaderboard-selection.csv"].splitlines()
    assert [line.split(",")[2:4] for line in lines[1:]] == [["blend", "none"], ["blend", "cbd"]]
    assert main(["table", "--results", str(tmp_path)]) == 0
    assert "ft" in (tmp_path / "tables/leaderboard.csv").read_text()
    assert main(["table", "--defense=cbx", f"--results={tmp_path}"]) == 2
    assert "has no defense 'cbx'; did you mean 'cbd'?" in capsys.readouterr().err
