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
from bdbench.models.plugins.errors import InvalidInput, check
from bdbench.models.plugins.registry import Registry, load_file
from bdbench.models.plugins.spec import did_you_mean
from bdbench.models.registry import models
from bdbench.storage.folders import expanded

REGISTRIES: dict[str, Registry[Any]] = {
    registry.kind: registry for registry in (attacks, defenses, models, datasets)
}


@dataclass(frozen=True)
class Promise:
    """A check of one kind of plugin.

    kind: attack, defense, model, data set, or "" for all
    sentence: what is promised
    test: called with the kind's registry and a name; raises `Broken`
    """

    kind: str
    sentence: str
    test: Callable[[Registry[Any], str], None]


PROMISES: list[Promise] = []


def promise(kind: str, sentence: str) -> Callable[[Any], Any]:
    """Decorator: the function checks this."""

    def remember(test: Callable[[Registry[Any], str], None]) -> Any:
        PROMISES.append(Promise(kind, sentence, test))
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


def broken(kind: str, name: str) -> Iterator[tuple[Promise, str | None]]:
    """Every promise with None where it is kept, or how it is broken, one after the other."""
    for each in promises(kind):
        try:
            each.test(REGISTRIES[kind], name)
        except Broken as error:
            yield each, str(error)
        except InvalidInput as error:
            yield each, f"it refuses its own defaults: {error}"
        except Exception as error:
            where = inspect.trace()[-1]
            file = where.filename.rpartition("/")[2]
            yield each, f"{type(error).__name__} in {file}, line {where.lineno}: {error}"
        else:
            yield each, None
