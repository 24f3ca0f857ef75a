"""The one exception for errors that a user can cause and fix, and the checks that raise it."""

from collections.abc import Collection
from dataclasses import fields
from numbers import Integral, Real
from typing import Any

LONGEST = 1_000
"""Characters of a message that are shown."""
LARGEST_BATCH = 2**20
"""Images."""
PLAIN: dict[str, tuple[Any, str]] = {
    "bool": (bool, "True or False"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "str": (str, "text"),
    "None": (type(None), "None"),
}
"""By annotation, the type of a plain value and its name in words."""


class InvalidInput(ValueError):
    """An invalid request: an unknown name, a value out of range, a corrupt file.

    Its message is one line that says what is wrong, then what to do. The command line prints it
    unchanged and exits with code 2. `one_line` makes whatever the message quotes printable.

    of_code: whether user code raised another exception first, see `blaming`
    """

    def __init__(self, message: str, of_code: bool = False) -> None:
        super().__init__(one_line(message))
        self.of_code = of_code


class Signal(BaseException):
    """Ends work from outside. It is not an Exception, so that no plugin catches it."""


SIGNALS = (KeyboardInterrupt, GeneratorExit, Signal)
"""What a plugin may pass on and has not raised itself."""


def require(condition: bool, message: str) -> None:
    """Raise `InvalidInput(message)` unless `condition` holds."""
    if not condition:
        raise InvalidInput(message)


def at_least(bound: float, **values: float) -> None:
    """Raise `InvalidInput` unless all of these settings are at least `bound`; NaN is not."""
    for name, value in values.items():
        require(value >= bound, f"{name} must be at least {bound}, got {value}")


def above(bound: float, **values: float) -> None:
    """Raise `InvalidInput` unless all of these settings are above `bound`; NaN is not."""
    for name, value in values.items():
        require(value > bound, f"{name} must be above {bound}, got {value}")


def within(interval: str, **values: float) -> None:
    """Raise `InvalidInput` unless all of these settings are in `interval`, written as `[0, 1)`, of
    which a round bracket excludes its end; NaN is in none."""
    low, high = map(float, interval[1:-1].split(","))
    for name, value in values.items():
        inside = (low < value if interval[0] == "(" else low <= value) and (
            value < high if interval[-1] == ")" else value <= high
        )
        require(inside, f"{name} must be in {interval}, got {value}")


def of_types(options: Any, *others: str) -> None:
    """Raise `InvalidInput` unless the plain fields of a dataclass have the types that it declares.
    Its module must have its annotations as text.

    others: fields that something else checks
    """
    for field in fields(options):
        kinds, value = str(field.type).split(" | "), getattr(options, field.name)
        if field.name in others or not {*kinds} <= PLAIN.keys():
            continue
        fits = any(isinstance(value, PLAIN[kind][0]) for kind in kinds)
        # True is a number for Python, and a mistake here.
        fits = fits and (not isinstance(value, bool) or "bool" in kinds)
        words = " or ".join(PLAIN[kind][1] for kind in kinds)
        require(fits, f"{field.name} must be {words}, got {value!r}")


def batch_sizes(**values: int) -> None:
    """Raise `InvalidInput` unless all of these settings are sizes of a batch: at least 2, as the
    statistics of one image say nothing, and at most `LARGEST_BATCH`."""
    at_least(2, **values)
    for name, value in values.items():
        require(value <= LARGEST_BATCH, f"{name} must be at most {LARGEST_BATCH:,}, got {value:,}")


def one_of(known: Collection[str], **values: str) -> None:
    """Raise `InvalidInput` unless all of these settings are among `known`."""
    for name, value in values.items():
        require(value in known, f"{name} must be one of {', '.join(known)}, got {value!r}")


def one_line(text: str) -> str:
    """`text` as one line for a terminal: spaces for white space and escapes for unprintable
    characters. A text of more than `LONGEST` characters is cut in the middle."""
    return _cut(visible(" ".join(_cut(text).split())))


def visible(text: str) -> str:
    """`text` with escapes for unprintable characters, such as terminal control codes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(text: str) -> str:
    """`visible` applied to each line of `text`."""
    if text.isprintable():
        return text
    return "\n".join(map(visible, text.split("\n")))


def _cut(text: str) -> str:
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[5 - half :]}"
