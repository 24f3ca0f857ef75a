"""The bench for GPUs runs on a processor too, where its numbers mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import gpu
import pytest
import torch
from click.testing import CliRunner

SMALL = ["--device", "cpu", "--images", "48", "--epochs", "1", "--batch-size", "16"]


def test_every_row_is_there(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    done = CliRunner().invoke(gpu.main, [*SMALL, "--many", "2", "--json", str(path)])
    assert done.exit_code == 0, done.output
    found = json.loads(path.read_text())
    names = [row["name"] for row in found["rows"]]
    assert len(names) == len(set(names)) == 12
    for name in (
        "none, fp32, graph",
        "cbd, fp32, graph",
        "2 at once, threads",
        "none, public loader",
    ):
        assert name in names
        assert f"\n{name} " in done.output
    assert all(row["steps"] > 0 and row["seconds"] > 0 for row in found["rows"])


def test_nothing_begins_after_the_budget() -> None:
    done = CliRunner().invoke(gpu.main, [*SMALL, "--budget", "0"])
    assert done.exit_code == 0, done.output
    assert "no time left for: cbd, fp32, graph" in done.output
    assert "at once" not in done.output


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(gpu.main, [])
    assert done.exit_code == 2
    assert "no CUDA device is there" in done.output


def test_traffic_counts_what_is_read_and_written() -> None:
    one, two = torch.zeros(10), torch.zeros(10)
    with gpu.Traffic() as traffic:
        three = one + two
        three.view(2, 5).add_(1)
    assert traffic.bytes == 4 * (30 + 20)
