"""The one exception a user can cause and mend, and checks that raise it."""

from collections.abc import Collection

LONGEST = 1_000


class InvalidInput(ValueError):
    """A request that cannot be met: an unknown name, a value out of range, a damaged file.

    Its message is one line that says what is wrong and what would be right. The command line
    prints it as it is and exits with code 2. Whatever it quotes, it is shown by `one_line`.

    of_code: whether a user's code raised something else, see `blaming`
    """

    def __init__(self, message: str, of_code: bool = False) -> None:
        super().__init__(one_line(message))
        self.of_code = of_code


def require(condition: bool, message: str) -> None:
    """Raise `InvalidInput(message)` unless `condition` holds."""
    if not condition:
        raise InvalidInput(message)


def at_least(bound: float, **values: float) -> None:
    """Raise `InvalidInput` unless all of these settings are; a NaN never is."""
    for name, value in values.items():
        require(value >= bound, f"{name} must be at least {bound}, got {value}")


def above(bound: float, **values: float) -> None:
    """Raise `InvalidInput` unless all of these settings are; a NaN never is."""
    for name, value in values.items():
        require(value > bound, f"{name} must be above {bound}, got {value}")


def one_of(known: Collection[str], **values: str) -> None:
    """Raise `InvalidInput` unless all of these settings are."""
    for name, value in values.items():
        require(value in known, f"{name} must be one of {', '.join(known)}, got {value!r}")


def one_line(text: str) -> str:
    """`text` for a terminal: spaces for white space, escapes for what cannot be seen, and of a text
    of more than `LONGEST` characters its beginning and its end."""
    return _cut(visible(" ".join(_cut(text).split())))


def visible(text: str) -> str:
    """`text` with escapes for what cannot be printed, such as a terminal's commands."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(text: str) -> str:
    """`text` of several lines, each as `visible` has it."""
    if text.isprintable():
        return text
    return "\n".join(map(visible, text.split("\n")))


def _cut(text: str) -> str:
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]} ... {text[5 - half :]}"
