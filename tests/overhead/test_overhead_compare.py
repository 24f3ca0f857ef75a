"""Benches are compared by their ratios, and files of them name no machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from overhead import conftest
from overhead.compare import main

PRINTED = """\
ratio of speeds, more is better         now    baseline    change
---------------------------------  --------  ----------  --------
step / bare step                       0.84        1.00      -16%
none / reference loader                1.72        2.00      -14%
cbd / reference loader                 5.00        4.00      +25%
new / bare step                    1,200.00           -         -
old / bare step                           -        0.50         -
worse: step / bare step is 0.84 and was 1.00
"""


def results(path: Path, *benches: dict[str, float | list[float]], threads: int = 2) -> Path:
    """A single number is the same in three rounds."""
    made = [
        {
            "name": str(n),
            "ratios": {
                name: ratio if isinstance(ratio, list) else [ratio] * 3
                for name, ratio in ratios.items()
            },
            "sizes": {},
        }
        for n, ratios in enumerate(benches)
    ]
    path.write_text(json.dumps({"threads": threads, "torch": "2.0", "benchmarks": made}))
    return path


def test_one_line_for_each_ratio_that_is_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = results(
        tmp_path / "now",
        {"step / bare step": 0.84},
        {"none / reference loader": 1.72, "cbd / reference loader": 5.0},
        {"new / bare step": 1200.0},
    )
    then = results(
        tmp_path / "then",
        {"none / reference loader": 2.0, "cbd / reference loader": 4.0},
        {"step / bare step": 1.0, "old / bare step": 0.5},
    )
    assert main(now, then) == 1
    assert capsys.readouterr().out == PRINTED


def test_fifteen_percent_are_allowed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    then = results(tmp_path / "then", {"a": 4.0, "b": 1.0})
    assert main(results(tmp_path / "now", {"a": 3.41, "b": 0.86}), then) == 0
    assert main(results(tmp_path / "now", {"a": 3.39, "b": 0.84}), then) == 1
    assert main(then, then) == 0
    assert capsys.readouterr().out.count("worse:") == 2


def test_worse_is_what_no_round_denies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    then = results(tmp_path / "then", {"a": [0.7, 1.0, 1.6]})
    assert main(results(tmp_path / "noise", {"a": [0.71, 0.4, 0.5]}), then) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "perhaps worse: a is 0.50 and was 1.00"
    assert main(results(tmp_path / "slower", {"a": [0.69, 0.4, 0.5]}), then) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "worse: a is 0.50 and was 1.00"
    even = results(tmp_path / "even", {"a": [1.0, 1.0, 1.0]})
    assert main(results(tmp_path / "a little", {"a": [0.86, 0.86, 0.87]}), even) == 0
    assert "worse:" not in capsys.readouterr().out


def test_what_cannot_be_compared_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    now = results(tmp_path / "now", {"a": 3.0})
    assert main(now, tmp_path / "then.json") == 0
    last = "no baseline in then.json; `make bench-baseline` records one"
    assert capsys.readouterr().out.splitlines()[-1] == last
    assert main(now, results(tmp_path / "then", {"a": 3.0}, threads=16)) == 0
    last = "the baseline has 16 threads and this machine 2"
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_results_hold_ratios_and_sizes_alone() -> None:
    notes = {"ratios": {"a / bare step": [2.0]}, "sizes": {"items": 5}}
    document = {
        "machine_info": {"node": "secret"},
        "commit_info": {"id": "ab"},
        "datetime": "2030-01-01",
        "version": "5",
        "benchmarks": [
            {"name": "test_a", "stats": {"min": 1.0}, "extra_info": notes},
            {"name": "test_broken", "stats": {"min": 1.0}, "extra_info": {}},
        ],
    }
    conftest.pytest_benchmark_update_json(document)
    assert document.keys() == {"threads", "torch", "benchmarks"}
    assert document["benchmarks"] == [{"name": "test_a", **notes}]
