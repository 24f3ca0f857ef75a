"""The published tables and figures follow from the published records."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from builders import ROOT

from bdbench.cells import cost, grid
from bdbench.cells.suites import SUITES
from bdbench.figures import make
from bdbench.models.training.recipe import Recipe
from bdbench.records.files import read_all
from bdbench.tables.verify import write_verification
from bdbench.tables.write import write_leaderboard, write_table

# By name, as a user's own runs are in the same folder.
PUBLISHED = (
    "attacks-cifar10",
    "archive/cifar10-small",
    "archive/abl-without-limits",
    "table1-cifar10-bf16",
    "table1-cifar10",
    "digits",
    "digits-second-processor",
    "digits-diagnostics",
    "field-2026-short",
    "field-2026-digits",
)
FOLDERS = [ROOT / "results" / name for name in PUBLISHED]
FP32 = "recipe(precision='fp32')"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_published_tables_come_from_the_published_records(folder: Path, tmp_path: Path) -> None:
    records, damaged = read_all(folder)
    assert records
    assert damaged == []
    write_leaderboard(records, tmp_path)
    for path in sorted((folder / "tables").iterdir()):
        number = re.match(r"table(\d)", path.name)
        if number:
            write_table(int(number[1]), records, tmp_path, latex=True)
        elif path.stem == "verify":
            write_verification(records, tmp_path)
        assert path.read_bytes() == (tmp_path / "tables" / path.name).read_bytes(), path


def test_published_figures_have_the_data_of_the_published_records(tmp_path: Path) -> None:
    folder = ROOT / "results/archive/cifar10-small"
    records, _ = read_all(folder)
    list(make("pareto", records, tmp_path, {"recipe": [FP32]}, ["svg"]))
    drawn, published = (path / "figures/pareto.csv" for path in (tmp_path, folder))
    assert drawn.read_bytes() == published.read_bytes()
    assert f'--recipe "{FP32}"' in (ROOT / "results/archive/README.md").read_text()


def test_the_planning_page_says_what_the_suites_cost() -> None:
    """It counts plain trainings for one seed, and those of DBD."""
    rows = re.findall(
        r"^\| (\S+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$",
        (ROOT / "results/PLANNING.md").read_text(),
        re.MULTILINE,
    )
    assert len(rows) == 6
    for name, count, total, dbd in rows:
        cells = grid.cells(replace(SUITES[name], seeds=1), "fp32")
        recipe, images = Recipe(), 50_000
        if name == "table1-imagenet":
            images = cells[0].dataset.count
        unit = 3 * recipe.epochs * images
        shares = cost.added_work(cells)
        assert len(cells) == int(count)
        assert f"{sum(shares.values()) / unit:.1f}" == total
        of_dbd = sum(share for cell, share in shares.items() if cell.labels["defense"] == "dbd")
        assert f"{of_dbd / unit:.1f}" == dbd
