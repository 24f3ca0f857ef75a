"""Writing records, reading them, and making tables of them."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import pytest
from builders import make_record
from turns import TINY, beside_bare

from bdbench.records import files as records
from bdbench.records.record import Record
from bdbench.tables.write import leaderboard_files, table_files, write_files


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the time that a disk takes to sync a file."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module")
def made() -> list[Record]:
    """200 records: eight defenses, five attacks, five seeds."""
    defenses = ("none", "fp", "mcr", "nad", "abl", "dbd", "cbd", "ft")
    attacks = ("none", "badnets", "trojan", "blend", "sig")
    seeds = range(1 if TINY else 5)
    return [
        make_record(
            defense, attack, 900 + seed, None if attack == "none" else 100 + seed, seed=seed
        )
        for defense, attack, seed in product(defenses, attacks, seeds)
    ]


def test_writing_records(made: list[Record], tmp_path: Path, benchmark: object) -> None:
    def write() -> None:
        for record in made:
            records.write(tmp_path, record)

    beside_bare(benchmark, "writing records", write, len(made), "records")


def test_reading_records(made: list[Record], tmp_path: Path, benchmark: object) -> None:
    for record in made:
        records.write(tmp_path, record)
    assert records.read_all(tmp_path) == (sorted(made, key=lambda record: record.key), [])
    beside_bare(
        benchmark, "reading records", lambda: records.read_all(tmp_path), len(made), "records"
    )


def test_writing_tables(made: list[Record], tmp_path: Path, benchmark: object) -> None:
    def write() -> None:
        write_files(leaderboard_files(made, tmp_path), tmp_path)
        write_files(table_files(1, made, tmp_path), tmp_path)

    beside_bare(benchmark, "records in tables", write, len(made), "records")
