"""Names of pages, and the colours of the style sheet."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bdbench.report.format import TEMPLATES, slug

names = st.text(max_size=60) | st.sampled_from(["cbd", "cbd(t1=3)", "CBD", "a/b", "..", "", "con"])


@given(names, names)
def test_a_slug_is_a_safe_name_of_its_own(one, two):
    assert re.fullmatch(r"[a-z0-9_-]+", slug(one))
    assert (slug(one) == slug(two)) == (one == two)
    assert slug("fine_tuning2") == "fine_tuning2"


def luminance(colour):
    """Relative luminance of WCAG 2.2, of #rgb or #rrggbb."""
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, two):
    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("scheme", "sign"), [(0, -1), (1, 1)], ids=["light", "dark"])
def test_colours_are_read_by_their_lightness_alone(scheme, sign):
    """Heat maps grow steadily lighter or darker, and text contrasts with its background."""
    style = (TEMPLATES / "style.css").read_text()
    rule = re.compile(r"\.(asr|ca) \.l(\d+) \{ background: (#\w+); color: (#\w+); \}")
    found = rule.findall(style)
    assert len(found) == 44
    for kind in ("asr", "ca"):
        own = [each for each in found[22 * scheme :][:22] if each[0] == kind]
        assert [int(level) for _, level, _, _ in own] == list(range(11))
        lightness = [sign * luminance(ground) for _, _, ground, _ in own]
        assert lightness == sorted(lightness)
        assert all(contrast(ground, ink) >= 4.5 for _, _, ground, ink in own)
    words = dict(re.findall(r"--([\w-]+): (#\w+);", style.split("prefers-color-scheme")[scheme]))
    for ink in ("ink", "quiet", "link", "bad"):
        for ground in ("page", "raised", "wash"):
            assert contrast(words[ink], words[ground]) >= 4.5, f"{ink} on {ground}"
