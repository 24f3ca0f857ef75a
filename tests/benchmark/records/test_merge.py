"""Folders of records merged into one."""

from dataclasses import replace
from pathlib import Path

import pytest
from builders import make_record

from bdbench.cli import main
from bdbench.records import merge
from bdbench.records.claims import claimed, stamp
from bdbench.records.count import Count
from bdbench.records.files import network_of, read_all, write
from bdbench.records.record import REACTIVATED


def test_a_merge_keeps_the_better_record_or_else_the_first(tmp_path: Path, capsys):
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
    assert "has another result; the first is kept" in said
    found = {r.labels.defense: r for r in read_all(into)[0]}
    assert sorted(found) == ["abl", "cbd", "none"]
    assert found["none"].metrics.clean_accuracy.hits == 850
    assert found["cbd"].status == "ok"
    assert main(["merge", *names, "--results", str(into)]) == 0
    assert "all: 3 of 3 records taken" in capsys.readouterr().out


CURVES, PASR = "curves", "a P-ASR"


@pytest.mark.parametrize(
    ("folders", "kept", "said"),
    [
        ([set(), {CURVES}], {CURVES}, ""),
        ([set(), {PASR}, {PASR, CURVES}], {PASR, CURVES}, ""),
        ([{CURVES}, set()], {CURVES}, ""),
        ([{PASR}, {CURVES}], {PASR}, "has curves, which the one that is kept lacks"),
        ([{CURVES}, {PASR}], {CURVES}, "has a P-ASR, which the one that is kept lacks"),
        ([set(), {CURVES, "other"}], set(), "has another result; the first is kept"),
        # The network that may be stored beside the first is not that of the second.
        ([{"a"}, {CURVES, "b"}], set(), "has curves, which the one that is kept lacks"),
        ([{"a"}, {CURVES, "a"}], {CURVES}, ""),
        ([set(), {CURVES, "a"}], {CURVES}, ""),
    ],
)
def test_a_merge_keeps_what_only_some_runs_measure(folders, kept, said, tmp_path: Path, capsys):
    for n, has in enumerate(folders):
        made = make_record("cbd", "badnets", 851 if "other" in has else 850, 20)
        if CURVES in has:
            point = {"epoch": 1, "clean_accuracy": 0.85, "attack_success_rate": 0.02}
            made = replace(made, curves=[point])
        if PASR in has:
            made = replace(made, metrics=made.metrics.with_(**{REACTIVATED: Count(30, 1000)}))
        for network in has & {"a", "b"}:
            named = made.provenance.with_(network_sha256=64 * network)
            made = replace(made, provenance=named)
        write(tmp_path / str(n), made)
    names = [str(tmp_path / str(n)) for n in range(len(folders))]
    assert main(["merge", *names, "--results", str(tmp_path / "all")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " has " in line]
    assert [line.endswith(said) for line in lines] == [True] * bool(said)
    (found,), _ = read_all(tmp_path / "all")
    has = {CURVES: bool(found.curves), PASR: found.count(REACTIVATED) is not None}
    assert {name for name, present in has.items() if present} == kept


def test_a_merge_refuses_records_that_do_not_belong_together(tmp_path: Path, capsys):
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


def test_a_merge_leaves_what_a_run_writes(tmp_path: Path, capsys, monkeypatch):
    """It writes what it adds, and nothing else."""
    own, ours, theirs = (make_record(name, "badnets", 850, 20) for name in ("none", "cbd", "abl"))
    into, other = tmp_path / "all", tmp_path / "other"
    before = write(into, own).stat().st_mtime_ns
    for each in (ours, theirs):
        write(other, each)
    network = network_of(other, ours.key)
    network.parent.mkdir()
    network.touch()
    with claimed(into, theirs.key):
        assert main(["merge", str(other), "--results", str(into)]) == 1
    said = capsys.readouterr().out
    assert f"a run is working on {theirs.key}; merge again when it has ended" in said
    assert f"{other}: 1 saved network not copied" in said
    assert f"{into}: 2 records" in said
    assert stamp(into, own.key) == before
    assert {each.key for each in read_all(into)[0]} == {own.key, ours.key}

    # A run ends while the merge is at work.
    newer = make_record("abl", "badnets", 700, 10)
    read_first = merge.read_all

    def ends(folder: Path):
        found = read_first(folder)
        if folder == other:
            write(into, newer)
        return found

    monkeypatch.setattr(merge, "read_all", ends)
    assert main(["merge", str(other), "--results", str(into)]) == 1
    assert f"a run has just written {newer.key}, which is kept" in capsys.readouterr().out
    found = {each.key: each for each in read_all(into)[0]}
    assert found[newer.key] == newer
