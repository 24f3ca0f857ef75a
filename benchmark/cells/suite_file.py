"""A suite as a TOML file, with the fields of `Suite` and the plugin files that it needs.

Finding one needs no torch; `NamedSuite.prepare` loads its plugins and checks its specs.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

from bdbench.cells.plugins import load_plugin
from bdbench.cells.suites import SUITES, Suite, check_seeds, is_name, suite
from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, one_of, require
from bdbench.storage.folders import expanded

SUFFIX = ".toml"
LARGEST_FILE, MOST_LINES = 2**16, 1_000
WIDEST = 88
AXES = {"datasets": "digits", "models": "wrn16_1", "attacks": "badnets", "defenses": "none"}
"""The axes, each with an example."""
PRECISIONS = ("auto", "fp32", "bf16")
FIELDS = (*(field.name for field in fields(Suite)), "plugins")
NOTES = {
    "attacks": 'a list in a spec is a sweep: "blend(alpha=[0.1, 0.2])"',
    "seeds": "how many, counted from 0; a list such as [3, 5] is exactly these",
    "precision": "auto, fp32 or bf16",
    "timed": "true: seconds are compared, so cells run one after the other",
    "settings": "specs that take the place of a defense's bare name",
    "recipe": "what differs from the defaults; a list in place of a value is a sweep",
}


@dataclass(frozen=True)
class NamedSuite:
    """A suite, its name, and where it comes from.

    name: that of the suite and of its results folder
    plugins: the plugin files that it needs
    lines: the lines of its file, None for a built-in suite
    """

    name: str
    suite: Suite
    plugins: tuple[Path, ...] = ()
    lines: Lines | None = None

    def prepare(self) -> None:
        """Load the plugins of a suite file, then check its specs and its recipe. Raises
        `InvalidInput` with the line of what is wrong."""
        if self.lines is None:
            return
        for path in self.plugins:
            with self.lines.named("plugins", path.name):
                load_plugin(path)
        self._check_specs(self.lines)

    def _check_specs(self, lines: Lines) -> None:
        from bdbench.cells.cell import REGISTRIES, check_targets, recipes_of
        from bdbench.cells.declared import num_classes
        from bdbench.cells.overrides import accept_one
        from bdbench.models.training.recipe import Recipe

        for axis in AXES:
            registry, known = REGISTRIES[axis.removesuffix("s")], dict[str, str]()
            for text in getattr(self.suite, axis):
                with lines.named(axis, text):
                    for plugin in registry.swept(text):
                        other = known.setdefault(registry.located(plugin), text)
                        require(other == text, f"{axis} has {text!r} twice: {other!r} is the same")
        known_sources = []
        for text in self.suite.datasets:
            for source in REGISTRIES["dataset"].swept(text):
                # The classes of a folder are known where its images are.
                with suppress(InvalidInput):
                    num_classes(source)
                    known_sources.append(source)
        for text in map(str, self.suite.attacks):
            with lines.named("attacks", text):
                for attack, source in product(REGISTRIES["attack"].swept(text), known_sources):
                    check_targets(attack, source)
        for name, text in self.suite.settings.items():
            with lines.named("settings", name):
                REGISTRIES["defense"].factory(name)
                REGISTRIES["defense"].swept(text)
                require(
                    spec.asked(text).name == name,
                    f"the settings of {name} must be a spec of {name}, got {text!r}",
                )
                alone = [each for each in map(str, self.suite.defenses) if is_name(each, name)]
                require(bool(alone), f"no defense is {name} alone, so this would change nothing")
        for key, value in self.suite.recipe.items():
            with lines.named("recipe", key):
                if key == "precision":
                    accept_one(key, value)
                for each in recipes_of({key: value}):
                    Recipe(**each)


def find(name: str) -> NamedSuite:
    """The built-in suite of this name, or the suite in a file whose name ends in .toml. Raises
    `InvalidInput`, with the line of the file that is wrong."""
    if name.lower().endswith(SUFFIX):
        return _read(expanded(Path(name)))
    if name not in SUITES and _is_file(Path(f"{name}{SUFFIX}")):
        raise InvalidInput(f"unknown suite {name!r}; did you mean '{name}{SUFFIX}'?")
    return NamedSuite(name, suite(name))


def written(suite: Suite, plugins: Iterable[Path] = ()) -> str:
    """The text of a TOML file with the same cells. The axes of the suite must be specs.

    plugins: the plugin files that it needs, which the text names by absolute paths
    """
    files = [str(path.absolute()) for path in plugins]
    lines = [
        "# Every combination of data sets, models, attacks, defenses and seeds is a cell.",
        "# Save this as NAME.toml and run it with `bdbench run NAME.toml`.",
        f"plugins = {_value(files)}"
        if files
        else '# plugins = ["my_defense.py"]  # files, relative to the folder of this one',
    ]
    tables = []
    for field in fields(Suite):
        value, note = getattr(suite, field.name), NOTES.get(field.name)
        remark = f"  # {note}" if note else ""
        if isinstance(value, Mapping):
            # Only ASCII letters and digits need no quotes.
            names = {key: key if key.isascii() else _value(key) for key in value}
            entries = [f"{names[key]} = {_value(each)}" for key, each in value.items()]
            tables += ["", f"[{field.name}]{remark}", *entries]
        else:
            lines.append(f"{field.name} = {_value(value)}{remark}")
    return "\n".join([*lines, *tables, ""])


def _value(value: Any) -> str:
    """A value as TOML: like JSON, but for long lists and unprintable characters."""
    if isinstance(value, list | tuple):
        parts = list(map(_value, value))
        line = f"[{', '.join(parts)}]"
        return line if len(line) <= WIDEST else "[\n" + "".join(f"    {p},\n" for p in parts) + "]"
    text = json.dumps(value, ensure_ascii=False)
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in text)


def _read(path: Path) -> NamedSuite:
    _check_name(path)
    text = _text(path)
    try:
        given = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # an endless number is a ValueError
        last = f"at line {len(text.splitlines())}, the last"
        reason = str(error).replace("at end of document", last)
        raise InvalidInput(f"{path} is not valid TOML: {reason}") from None
    lines = Lines(path, text)
    for key, value in given.items():
        with lines.named(key):
            require(key in FIELDS, f"a suite has no field {key!r}{spec.did_you_mean(key, FIELDS)}")
            CHECKS[key](key, value)
    for name, value in given.get("settings", {}).items():
        with lines.named("settings", name):
            _check_text(name, value)
    if "precision" in given and "precision" in given.get("recipe", {}):
        with lines.named("recipe", "precision"):
            raise InvalidInput("precision is a field of the suite already: remove one of the two")
    require("datasets" in given, f"{path} has no field datasets: write {_example('datasets')}")
    plugins = tuple(path.parent / expanded(Path(each)) for each in given.pop("plugins", ()))
    values: dict[str, Any] = {"description": path.stem, **given}
    values |= {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
    return NamedSuite(path.stem, Suite(**values), plugins, lines)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, for example
        return False


def _check_name(path: Path) -> None:
    """Raises `InvalidInput` if there is no file, or if its name cannot be that of a suite."""
    if not _is_file(path):
        beside = [str(each) for each in sorted(path.parent.glob(f"*{SUFFIX}")) if _is_file(each)]
        hint = "; `bdbench describe quick --toml` prints one to start from"
        raise InvalidInput(
            f"there is no file {path}{spec.did_you_mean(str(path), beside) if beside else hint}"
        )
    plain = path.stem.translate(str.maketrans("", "", "-_. "))
    require(
        plain.isalnum() and path.stem[0].isalnum() and path.stem[-1].isalnum(),
        f"{path} cannot name a suite and its results folder: rename the file, using letters, "
        "digits, - and _",
    )
    require(
        path.stem.lower() not in SUITES,
        f"{path} has the name of the built-in suite {path.stem.lower()}, so their results would "
        "mix: rename the file",
    )


def _text(path: Path) -> str:
    """The text of the file. Raises `InvalidInput` unless it is UTF-8 of a reasonable size."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE + 1)
        # Some editors begin a file with a byte-order mark.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from None
    fits = len(content) <= LARGEST_FILE and text.count("\n") <= MOST_LINES
    require(fits, f"{path} has more than {LARGEST_FILE:,} bytes or {MOST_LINES:,} lines")
    return text


class Lines:
    """The lines of a valid TOML file, to name the one that holds a wrong value."""

    def __init__(self, path: Path, text: str) -> None:
        self._path, self._lines = path, text.replace("\r\n", "\n").split("\n")

    @contextmanager
    def named(self, *keys: str) -> Iterator[None]:
        """Add the file, and the line of the value at these keys, to an `InvalidInput` of the block.
        The last key may be an element of a list."""
        try:
            yield
        except InvalidInput as error:
            raise InvalidInput(f"{self._path}, line {self._line(keys)}: {error}") from None

    def _line(self, keys: tuple[str, ...]) -> int:
        """The line of a value, counted from 1. A statement ends where all lines so far are valid
        TOML again."""
        start = 0
        for end in range(1, len(self._lines) + 1):
            try:
                parsed = tomllib.loads("\n".join(self._lines[:end]))
            except ValueError:
                continue
            if _holds(parsed, keys):
                return self._inside(start, end, keys[-1])
            start = end
        return 1

    def _inside(self, start: int, end: int, word: str) -> int:
        """Of the lines of one statement, the first with the word in quotes, else the first."""
        quoted = (json.dumps(word, ensure_ascii=False), f"'{word}'")
        found = (n for n in range(start, end) if any(each in self._lines[n] for each in quoted))
        return 1 + next(found, start)


def _holds(parsed: Any, keys: tuple[str, ...]) -> bool:
    for key in keys:
        if isinstance(parsed, list):
            return key in parsed
        if not isinstance(parsed, dict) or key not in parsed:
            return False
        parsed = parsed[key]
    return True


def _example(key: str) -> str:
    return f'{key} = ["{AXES.get(key, "my_defense.py")}"]'


def _check_text(key: str, value: Any) -> None:
    require(isinstance(value, str), f"{key} must be a string in quotes, got {value!r}")


def _check_list(key: str, value: Any) -> None:
    require(
        isinstance(value, list), f"{key} must be a list, such as {_example(key)}, got {value!r}"
    )
    for each in value:
        require(isinstance(each, str), f"{key} must hold strings in quotes, got {each!r}")
        require(value.count(each) == 1, f"{key} has {each!r} twice")


def _check_axis(key: str, value: Any) -> None:
    _check_list(key, value)
    require(bool(value), f"{key} is an empty list: write, for example, {_example(key)}")


def _check_table(key: str, value: Any) -> None:
    require(isinstance(value, dict), f"{key} must be a table below [{key}], got {value!r}")


def _check_precision(key: str, value: Any) -> None:
    _check_text(key, value)
    one_of(PRECISIONS, precision=value)


def _check_flag(key: str, value: Any) -> None:
    require(isinstance(value, bool), f"{key} must be true or false, got {value!r}")


CHECKS: dict[str, Callable[[str, Any], None]] = {
    "description": _check_text,
    **dict.fromkeys(AXES, _check_axis),
    "settings": _check_table,
    "seeds": lambda key, value: check_seeds(value),
    "recipe": _check_table,
    "precision": _check_precision,
    "timed": _check_flag,
    "plugins": _check_list,
}
