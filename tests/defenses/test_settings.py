"""What the settings of all defenses have in common."""

from __future__ import annotations

import pytest

from bdbench.defenses.registry import defenses
from bdbench.models.plugins.errors import LARGEST_BATCH, InvalidInput
from bdbench.models.plugins.literals import choices
from bdbench.models.plugins.spec import fields_of

BUILT_IN = [name for name in defenses.names() if defenses.is_built_in(defenses.factory(name))]
BATCHES = [
    (name, field)
    for name in defenses.names()
    for field in fields_of(defenses.factory(name))
    if field.endswith("batch_size")
]


@pytest.mark.parametrize(("name", "field"), BATCHES)
def test_a_batch_that_no_training_can_have_is_refused_before_anything_trains(
    name: str, field: str
) -> None:
    """Within `fit` it would be found after hours, in which an undefended network is trained."""
    assert len(BATCHES) >= 10
    for size in (2, LARGEST_BATCH):
        defenses.build(f"{name}({field}={size})")
    for size, bound in ((1, "at least 2, got 1"), (2_000_000, "at most 1,048,576, got 2,000,000")):
        with pytest.raises(InvalidInput, match=f"{field} must be {bound}"):
            defenses.build(f"{name}({field}={size})")


CHOICES = [
    (name, field)
    for name in BUILT_IN
    for field, kind in fields_of(defenses.factory(name)).items()
    if choices(kind.type)
]


def test_settings_in_words_list_their_choices_as_types() -> None:
    """So that an editor and `bdbench describe` show them."""
    words = {
        (name, field)
        for name in BUILT_IN
        for field, kind in fields_of(defenses.factory(name)).items()
        if isinstance(kind.default, str)
    }
    assert {*CHOICES} >= words
    assert {("abl", "objective"), ("cbd", "select"), ("mcr", "ends")} <= words


@pytest.mark.parametrize(("name", "field"), CHOICES)
def test_a_word_that_is_no_choice_is_refused(name: str, field: str) -> None:
    known = choices(fields_of(defenses.factory(name))[field].type)
    for word in known:
        defenses.build(f"{name}({field}={word!r})")
    listed = ", ".join(map(repr, known))
    with pytest.raises(InvalidInput, match=f"{field} of .* must be one of {listed}, got 'other'"):
        defenses.build(f"{name}({field}='other')")
