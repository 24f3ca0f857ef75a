"""Ranges of settings, and warnings of ours."""

from __future__ import annotations

import math
import re
import warnings

import pytest
from builders import ROOT

from bdbench.models import InvalidInput, within
from bdbench.models.plugins import notices
from bdbench.models.plugins.files import RegistersNothing

SHOW = notices._show
"""Before a fixture replaces it."""


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


@pytest.mark.parametrize("kind", [UserWarning, RegistersNothing])
def test_a_notice_is_no_error_where_warnings_are(
    kind: type[Warning], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notices, "_show", SHOW)
    with warnings.catch_warnings(record=True) as seen:
        for action in ("error", "ignore", "default"):
            warnings.simplefilter(action)
            notices.notify("as it is", kind)
    assert [(each.category, each.filename) for each in seen] == [(kind, __file__)] * 2


def test_the_harness_warns_by_notices_alone() -> None:
    texts = (file.read_text() for file in (ROOT / "benchmark").rglob("*.py"))
    assert not [text for text in texts if "warnings.warn(" in text]
