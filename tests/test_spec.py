"""Spec strings and the registry: what is accepted, what is refused, and in which words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from bdbench.attacks.registry import attacks
from bdbench.datasets.registry import datasets
from bdbench.defenses.registry import defenses
from bdbench.models.plugins.errors import InvalidInput, above, at_least, one_of
from bdbench.models.plugins.registry import Registry, load_file
from bdbench.models.plugins.spec import Spec, added
from bdbench.models.registry import models


def test_a_spec_is_a_name_with_literal_fields() -> None:
    assert Spec.of("badnets") == Spec("badnets")
    assert Spec.of(" blend(alpha=0.1, target=3) ") == Spec("blend", {"alpha": 0.1, "target": 3})
    assert Spec.of("x(a='b', c=(1, 2), d=None, e=-1)").fields == {
        "a": "b",
        "c": (1, 2),
        "d": None,
        "e": -1,
    }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "blend(0.1)",
        "blend(alpha=0.1",
        "blend(alpha=0.1, alpha=0.2)",
        "blend(**{'alpha': 1})",
        "blend(alpha=__import__('os').getcwd())",
        "__import__('os').system('true')",
        "blend.x",
        "../../blend",
        "blend;badnets",
        "blend(alpha=" + "(" * 300 + "1" + ")" * 300 + ")",
        "blend(alpha=1" + "0" * 10_000_000 + ")",
    ],
)
def test_anything_else_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        Spec.of(text)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 1_500


def test_the_canonical_spec_writes_every_field_and_is_its_own_canonical_form() -> None:
    text = attacks.canonical("blend(target=2)")
    assert text == "blend(poisoning_rate=0.1, target=2, alpha=0.2, pattern_seed=0)"
    assert attacks.canonical(text) == text
    assert attacks.label(text) == "blend(target=2)"
    assert attacks.label("blend(alpha=0.2)") == "blend"


def test_numbers_are_brought_to_the_type_of_the_field() -> None:
    assert attacks.canonical("blend(alpha=1)") == attacks.canonical("blend(alpha=1.0)")
    assert datasets.canonical("toy(train_images=100)").startswith("toy(train_images=100")


@pytest.mark.parametrize(
    ("registry", "text", "complaint"),
    [
        (attacks, "badnet", "unknown attack 'badnet'; did you mean 'badnets'?"),
        (defenses, "cdb", "unknown defense 'cdb'; did you mean 'cbd'?"),
        (models, "wrn16", "unknown model 'wrn16'; did you mean 'wrn16_1'?"),
        (datasets, "cifar", "unknown data set 'cifar'; did you mean 'cifar10'?"),
        (attacks, "blend(alfa=0.1)", "attack 'blend' has no field 'alfa'; did you mean 'alpha'?"),
        (attacks, "blend(alpha='a')", "alpha of attack 'blend' must be float, got 'a'"),
        (attacks, "blend(target=True)", "target of attack 'blend' must be int, got True"),
        (attacks, "blend(target=1.5)", "target of attack 'blend' must be int, got 1.5"),
        (defenses, "cbd(rescale=1)", "rescale of defense 'cbd' must be bool, got 1"),
        (datasets, "toy(train_images=3)", "train_images of toy must be at least 10"),
    ],
)
def test_a_wrong_name_or_field_is_answered_with_the_nearest(
    registry: Registry[object], text: str, complaint: str
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        registry.build(text)
    assert complaint in str(refusal.value)


def test_a_plugin_file_registers_and_a_broken_one_says_where(tmp_path: Path) -> None:
    good = tmp_path / "mine.py"
    good.write_text(
        "from dataclasses import dataclass\n"
        "from bdbench.attacks import register\n"
        "from bdbench.attacks.blend import Blend\n"
        "@register('mine')\n"
        "@dataclass(frozen=True)\n"
        "class Mine(Blend):\n"
        "    alpha: float = 0.5\n"
    )
    load_file(good)
    load_file(good)
    try:
        assert "mine" in attacks.names()
        assert attacks.origin("mine") == str(good)
        assert attacks.canonical("mine").startswith("mine(poisoning_rate=0.1, target=0, alpha=0.5")
    finally:
        del attacks._factories["mine"]
    bad = tmp_path / "broken.py"
    bad.write_text("x = 1\ny = x / 0\n")
    with pytest.raises(InvalidInput, match=r"broken\.py' failed at line 2: ZeroDivisionError"):
        load_file(bad)
    with pytest.raises(InvalidInput, match="is not a Python file"):
        load_file(tmp_path / "absent.py")


def test_an_added_field_is_written_only_where_it_is_not_at_its_default() -> None:
    @dataclass(frozen=True)
    class Thing:
        first: int = 1
        later: str = added("as ever")

    registry: Registry[object] = Registry("thing", "bdbench.models")
    registry._discovered = True
    registry.register("thing")(Thing)
    assert registry.canonical("thing") == "thing(first=1)"
    assert registry.canonical("thing(later='as ever')") == "thing(first=1)"
    assert registry.canonical("thing(later='x')") == "thing(first=1, later='x')"
    assert registry.label("thing(later='x')") == "thing(later='x')"
    assert registry.build("thing(later='x')") == Thing(later="x")
    assert registry.build("thing") == Thing()


def test_two_plugins_of_one_name_are_refused() -> None:
    registry: Registry[object] = Registry("thing", "bdbench.models")
    registry.register("x")(lambda: 1)
    with pytest.raises(InvalidInput, match="two things are called 'x'"):
        registry.register("x")(dict)


@pytest.mark.parametrize(
    ("test", "good", "bad", "complaint"),
    [
        (partial(at_least, 2), [2, 2.5, inf], [1.9, nan, -inf], "size must be at least 2, got "),
        (partial(above, 0), [1e-9, inf], [0, nan, -1], "size must be above 0, got "),
        (partial(one_of, ("a", "b")), ["a", "b"], ["c", ""], "size must be one of a, b, got "),
    ],
    ids=["at_least", "above", "one_of"],
)
def test_ranges_of_settings(
    test: Callable[..., None], good: list[Any], bad: list[Any], complaint: str
) -> None:
    for value in good:
        test(size=value, other=good[0])
    for value in bad:
        with pytest.raises(InvalidInput) as error:
            test(other=good[0], size=value)
        shown = repr(value) if isinstance(value, str) else str(value)
        assert str(error.value) == complaint + shown
