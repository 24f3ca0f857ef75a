"""Thousands of records: each is read once, and a spec is parsed once, however many have it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import builders
import pytest

from bdbench.attacks.badnets import BadNets
from bdbench.cells import grid
from bdbench.cells.suites import Suite
from bdbench.cli import main
from bdbench.models.plugins import spec
from bdbench.models.plugins.registry import Registry
from bdbench.records import files
from bdbench.report import format
from bdbench.report.site import write_report
from bdbench.running.probing import Asking
from bdbench.running.worker import Job

SEEDS = 30


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for seed in range(SEEDS):
        for defense in ("none", "cbd"):
            files.write(
                tmp_path, builders.make_record(defense, "badnets", 900 - seed, 20, seed=seed)
            )
    return tmp_path


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often records are read, specs parsed and folders listed."""
    found: Counter[str] = Counter()

    def counted(owner: Any, name: str, what: str) -> None:
        plain = getattr(owner, name)

        def call(*arguments: Any, **options: Any) -> Any:
            found[what] += 1
            return plain(*arguments, **options)

        monkeypatch.setattr(owner, name, call)

    counted(files, "decode", "read")
    counted(spec.ast, "parse", "parsed")
    counted(Path, "glob", "listed")
    spec._parse.cache_clear()
    return found


@pytest.mark.parametrize("command", ["table", "table 1", "verify", "report", "merge"])
def test_records_are_read_once_and_specs_parsed_once(
    command: str, results: Path, counts: Counter[str], tmp_path: Path
) -> None:
    places = ["--results", str(results)]
    if command == "merge":
        places = [str(results), "--results", str(tmp_path / "merged")]
    assert main([*command.split(), *places]) == 0
    assert counts["read"] == 2 * SEEDS
    # Of specs, and of the sources of a few plugins.
    assert counts["parsed"] <= 20
    assert counts["listed"] <= 6


def test_plugins_of_a_suite_are_described_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[str] = Counter()
    stamp, canonical = BadNets.trigger, Registry.canonical

    def trigger(self: Any, images: Any) -> Any:
        seen["trigger"] += 1
        return stamp(self, images)

    def words(self: Any, what: Any) -> str:
        seen["canonical"] += 1
        return canonical(self, what)

    monkeypatch.setattr(BadNets, "trigger", trigger)
    monkeypatch.setattr(Registry, "canonical", words)
    suite = Suite("", ("toy",), attacks=("badnets",), defenses=("none", "ft"), seeds=SEEDS)
    found = grid.cells(suite, "fp32")
    assert len({each.key for each in found}) == 2 * SEEDS
    Asking(Job(Path(), Path(), (), "cpu"), None).triggers(found)
    assert seen["trigger"] == 1
    assert seen["canonical"] <= 10


def test_the_index_is_short_for_thousands_of_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format, "LARGE", 90)
    sizes = []
    for count in (10, 20):
        names = range(1, 1 + count)
        records = [
            builders.make_record(f"cbd(t1={t1})", f"blend(alpha={alpha})", 907, 23)
            for t1 in names
            for alpha in range(1, 11)
        ]
        page = write_report(records, tmp_path)
        assert "heat" not in page.read_text()
        sizes.append(page.stat().st_size)
    # The rest is of the rows, which have ten cells each here.
    assert sizes[1] - sizes[0] < 350 * 100
