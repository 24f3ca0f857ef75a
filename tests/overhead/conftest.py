"""Benches use all cores, and keep only what can be compared between machines."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def all_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    yield
    torch.set_num_threads(before)


def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    """Keep ratios and sizes, but no seconds and no names of machines."""
    made = [
        {"name": bench["name"], **bench["extra_info"]}
        for bench in output_json["benchmarks"]
        if bench["extra_info"]
    ]
    output_json.clear()
    output_json.update(
        threads=len(os.sched_getaffinity(0)), torch=torch.__version__, benchmarks=made
    )
