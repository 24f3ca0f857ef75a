"""Cells join the records of a folder only if their images are those of these records."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bdbench.cli import main
from bdbench.records import files as records

COMMAND = [
    *("run", "--dataset=toy(train_images=30, test_images=20, image_size=16)", "--device=cpu"),
    *("--attack=none", "--defense=none", "--recipe=recipe(epochs=1)", "--precision=fp32"),
]


@pytest.mark.parametrize("engine", [["--in-process"], ["--jobs=1"]])
def test_other_images_are_refused_before_they_are_trained_on(
    engine: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As those of `--data DIR` may be, which no spec names. A second seed would have made a record
    that no table takes beside the first."""
    command = [*COMMAND, f"--results={tmp_path}", *engine]
    assert main(command) == 0
    ((first,), _) = records.read_all(tmp_path)
    other = "ab" * 32
    changed = replace(first, provenance=first.provenance.with_(data_sha256=other))
    records.write(tmp_path, changed)
    capsys.readouterr()
    assert main([*command, "--seeds=2"]) == 2
    said = capsys.readouterr()
    assert f"records in {tmp_path} (data {other:.12}), with which they" in said.out + said.err
    kept = {record.cell.seed: record.status for record in records.read_all(tmp_path)[0]}
    assert kept.get(1) != "ok"
    records.write(tmp_path, first)
    assert main([*command, "--seeds=2"]) == 0


def test_other_images_than_those_of_the_records_beside_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Or else the table after the training would have no row of these records."""
    there, own = tmp_path / "there", tmp_path / "own"
    command = [*COMMAND, "--in-process"]
    assert main([*command, f"--results={there}"]) == 0
    ((first,), _) = records.read_all(there)
    other = "ab" * 32
    records.write(there, replace(first, provenance=first.provenance.with_(data_sha256=other)))
    beside = [*command, "--defense=ft", f"--against={there}", f"--results={own}"]
    capsys.readouterr()
    assert main(beside) == 2
    said = capsys.readouterr()
    assert f"records in {there} (data {other:.12}), with which they" in said.out + said.err
    assert f"leave out --against {there}, or name the images" in said.out + said.err
    assert not [each for each in records.read_all(own)[0] if each.status == "ok"]
    # Records that share no table do not count.
    assert main([*beside, "--seed=7"]) == 0
    records.write(there, first)
    assert main(beside) == 0
