"""Two results of `make bench`: `python compare.py NOW BASELINE`.

Prints the median ratios of both, then a line for each that is worse by more than 15 %. On a machine
that others use too a median alone says little, so it is surely worse, and the exit code 1, where no
round is as good as the worst of the baseline.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from statistics import median
from typing import Any

from tabulate import tabulate

LIMIT = 0.15


def ratios(document: dict[str, Any]) -> dict[str, list[float]]:
    """The ratios of every round by name; more is better."""
    return {name: value for b in document["benchmarks"] for name, value in b["ratios"].items()}


def shown(value: float, form: str = ",.2f") -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def main(now: Path, baseline: Path) -> int:
    made = json.loads(now.read_text())
    known = json.loads(baseline.read_text()) if baseline.exists() else {"benchmarks": []}
    ours, theirs = ratios(made), ratios(known)
    rows, worse, perhaps = [], [], []
    for name in dict.fromkeys([*ours, *theirs]):
        rounds, known_rounds = (each.get(name, [math.nan]) for each in (ours, theirs))
        one, other = median(rounds), median(known_rounds)
        change = one / other - 1
        rows.append((name, shown(one), shown(other), shown(change, "+.0%")))
        if change < -LIMIT:
            surely = max(rounds) < min(known_rounds)
            line = f"{name} is {shown(one)} and was {shown(other)}"
            (worse if surely else perhaps).append(line)
    headers = ["ratio of speeds, more is better", "now", "baseline", "change"]
    print(tabulate(rows, headers, disable_numparse=True, colalign=("left", *["right"] * 3)))
    if not theirs:
        print(f"no baseline in {baseline.name}; `make bench-baseline` records one")
    elif made["threads"] != known["threads"]:
        print(f"the baseline has {known['threads']} threads and this machine {made['threads']}")
    for line in perhaps:
        print(f"perhaps worse: {line}")
    for line in worse:
        print(f"worse: {line}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
