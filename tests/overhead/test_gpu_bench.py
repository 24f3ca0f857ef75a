"""The bench for GPUs runs on a processor, too, where its numbers mean nothing."""

import json
from pathlib import Path

import gpu
from click.testing import CliRunner


def test_the_bench_measures_every_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    small = ["--device=cpu", "--images=48", "--epochs=1", "--batch-size=16", "--many=2"]
    done = CliRunner().invoke(gpu.main, [*small, "--budget=1e6", f"--json={path}"])
    assert done.exit_code == 0, done.output
    rows = json.loads(path.read_text())["rows"]
    names = {row["name"] for row in rows}
    assert len(rows) == len(names) == 12
    assert {"cbd, fp32, graph", "2 at once, threads", "none, public loader"} < names
    assert all(row["steps"] > 0 and row["seconds"] > 0 for row in rows)
