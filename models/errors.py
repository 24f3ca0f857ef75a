"""The one exception a user can cause and mend."""


class InvalidInput(ValueError):
    """A request that cannot be met: an unknown name, a value out of range, a damaged file.

    Its message is one line that says what is wrong and what would be right. The command line
    prints it as it is and exits with code 2.
    """


def check(condition: bool, message: str) -> None:
    """Raise `InvalidInput(message)` unless `condition` holds."""
    if not condition:
        raise InvalidInput(message)
