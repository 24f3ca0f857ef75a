"""What every attack, defense, model and data set promises, as checks that say what is broken.

`bdbench check` runs them on a plugin, and the tests on everything that is registered.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bdbench.attacks.registry import attacks
from bdbench.contract.scenarios import Broken
from bdbench.datasets.registry import datasets
from bdbench.defenses.registry import defenses
from bdbench.models.plugins.blame import place
from bdbench.models.plugins.errors import InvalidInput, check
from bdbench.models.plugins.registry import Registry, load_file
from bdbench.models.plugins.spec import did_you_mean
from bdbench.models.registry import models
from bdbench.storage.folders import expanded

REGISTRIES: dict[str, Registry[Any]] = {
    registry.kind: registry for registry in (attacks, defenses, models, datasets)
}


Test = Callable[[Registry[Any], str], None]


@dataclass(frozen=True)
class Promise:
    """A check of one kind of plugin.

    kind: attack, defense, model, data set, or "" for all
    sentence: what is promised
    test: called with the kind's registry and a name; raises `Broken`
    needs: the tests of promises without which this one means nothing
    """

    kind: str
    sentence: str
    test: Test
    needs: tuple[Test, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether a promise is kept; None where that was not tested, since another is broken.

    why: how it is broken, or why it was not tested
    """

    promise: Promise
    kept: bool | None
    why: str | None = None


PROMISES: list[Promise] = []


def promise(kind: str, sentence: str, *needs: Test) -> Callable[[Test], Test]:
    """Decorator: the function checks this, once the promises that it `needs` are kept."""

    def remember(test: Test) -> Test:
        PROMISES.append(Promise(kind, sentence, test, needs))
        return test

    return remember


def found(what: str) -> list[tuple[str, str]]:
    """Kind and name of every plugin of that name, or that a file registers. Raises `InvalidInput`.

    A file is what ends in .py or has a folder before it; it is imported.
    """
    path = expanded(Path(what))
    if path.suffix == ".py" or len(path.parts) > 1:
        load_file(path)
        made = [
            (kind, name)
            for kind, registry in REGISTRIES.items()
            for name in registry.names()
            if Path(inspect.getfile(registry.factory(name))).resolve() == path.resolve()
        ]
        check(bool(made), f"plugin {what!r} registers nothing")
        return made
    for registry in REGISTRIES.values():
        if what in registry.broken:
            registry.factory(what)
    known = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry.names()]
    names = dict.fromkeys(name for _, name in known)
    check(what in names, f"nothing is called {what!r}{did_you_mean(what, names)}")
    return [(kind, name) for kind, name in known if name == what]


def promises(kind: str) -> list[Promise]:
    """Those that a plugin of this kind gives."""
    return [each for each in PROMISES if each.kind in ("", kind)]


def judged(kind: str, name: str) -> Iterator[Verdict]:
    """Every promise with its verdict, one after the other. A mistake breaks one promise: those that
    need it are not tested."""
    failed: dict[Test, Promise] = {}
    for each in promises(kind):
        first = next((failed[test] for test in each.needs if test in failed), None)
        why = _broken(each, kind, name) if first is None else None
        if first is not None:
            failed[each.test] = first
            yield Verdict(each, None, f"not tested until {first.sentence}")
        elif why is not None:
            failed[each.test] = each
            yield Verdict(each, False, why)
        else:
            yield Verdict(each, True)


def _broken(each: Promise, kind: str, name: str) -> str | None:
    try:
        each.test(REGISTRIES[kind], name)
    except (Broken, InvalidInput) as error:
        return str(error)
    except Exception as error:
        where = inspect.trace()[-1]
        file, line = place(error) or (Path(where.filename), where.lineno)
        return f"{type(error).__name__} in {file.name}, line {line}: {error}"
    return None
