"""Ranges of settings."""

from __future__ import annotations

import math
import re

import pytest

from bdbench.models import InvalidInput, within


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1]", (0, 0.5, 1), (-0.1, 1.1, math.nan)),
        ("(0, 1]", (0.1, 1), (0, 1.1, math.nan)),
        ("[0, 1)", (0, 0.9), (-0.1, 1, math.nan)),
        ("(0, 1)", (0.1, 0.9), (0, 1, math.inf, math.nan)),
        ("(-2, 0.5]", (-1.9, 0.5), (-2, 0.6)),
    ],
)
def test_an_interval_has_the_ends_that_its_brackets_say(
    interval: str, inside: tuple[float, ...], outside: tuple[float, ...]
) -> None:
    for value in inside:
        within(interval, share=value)
    for value in outside:
        complaint = f"share must be in {interval}, got {value}"
        with pytest.raises(InvalidInput, match=re.escape(complaint)):
            within(interval, other=inside[0], share=value)
