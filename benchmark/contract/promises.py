"""Promises: the registered checks of the contract, and how they are run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bdbench.attacks.registry import attacks
from bdbench.contract.scenarios import Broken, Untested, settings_kept
from bdbench.datasets.registry import datasets
from bdbench.defenses.registry import defenses
from bdbench.models.plugins.blame import location
from bdbench.models.plugins.errors import SIGNALS, InvalidInput, require
from bdbench.models.plugins.files import imported_by, load_file
from bdbench.models.plugins.registry import Registry
from bdbench.models.plugins.spec import asked, did_you_mean
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
    sentence: the promise in words
    test: called with the registry of the kind and a spec; raises `Broken` or `Untested`
    needs: the tests of promises that this one presupposes
    """

    kind: str
    sentence: str
    test: Test
    needs: tuple[Test, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The result of a check.

    kept: whether the promise is kept; None if it was not tested
    why: how it is broken, or why it was not tested
    """

    promise: Promise
    kept: bool | None
    why: str | None = None


PROMISES: list[Promise] = []


def promise(kind: str, sentence: str, *needs: Test) -> Callable[[Test], Test]:
    """Register a function as the check of a promise; it runs if the promises that it `needs` are
    kept."""

    def add(test: Test) -> Test:
        PROMISES.append(Promise(kind, sentence, test, needs))
        return test

    return add


def resolve(what: str) -> list[tuple[str, str]]:
    """Kind and label of every plugin with this spec, or that this file registers; if it registers
    none itself, those of the modules that it imports. Raises `InvalidInput`.

    A text without fields that ends in .py or contains a folder is a file, which is imported.
    """
    path = expanded(Path(what))
    if not what.rstrip().endswith(")") and (path.suffix == ".py" or len(path.parts) > 1):
        module = load_file(path)
        for modules in ({module.__name__}, imported_by(module)):
            registered = [
                (kind, name)
                for kind, registry in REGISTRIES.items()
                for name in sorted(registry.registered(modules))
            ]
            if registered:
                return registered
        raise InvalidInput(f"plugin {what!r} registers nothing")
    wanted = asked(what)
    for registry in REGISTRIES.values():
        if wanted.name in registry.broken:
            registry.factory(wanted.name)
    known = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry.names()]
    names = dict.fromkeys(name for _, name in known)
    guess = did_you_mean(wanted.name, names)
    require(wanted.name in names, f"unknown plugin {wanted.name!r}{guess}")
    return [(kind, _label(REGISTRIES[kind], what)) for kind, name in known if name == wanted.name]


def _label(registry: Registry[Any], what: str) -> str:
    """That of the plugin, which may spell the specs in its fields anew; else that of the text."""
    try:
        return registry.label(registry.build(what))
    except SIGNALS:
        raise
    except BaseException:  # a promise will say why
        return registry.label(what)


def promises(kind: str) -> list[Promise]:
    """The promises of a plugin of this kind."""
    return [each for each in PROMISES if each.kind in ("", kind)]


def check_plugin(kind: str, name: str) -> Iterator[Verdict]:
    """Check one promise after another and yield the verdicts. Promises that need a broken one are
    not tested, so that one mistake breaks one promise."""
    failed: dict[Test, str] = {}
    for each in promises(kind):
        first = next((failed[test] for test in each.needs if test in failed), None)
        verdict = _verdict(each, kind, name) if first is None else Verdict(each, None, first)
        if not verdict.kept:
            until = verdict.why if verdict.kept is None else f"not tested until {each.sentence}"
            failed[each.test] = str(until)
        yield verdict


def _verdict(each: Promise, kind: str, name: str) -> Verdict:
    try:
        with settings_kept():
            each.test(REGISTRIES[kind], name)
    except Untested as reason:
        return Verdict(each, None, f"not tested: {reason}")
    except (Broken, InvalidInput) as error:
        return Verdict(each, False, str(error))
    except SIGNALS:
        raise
    except BaseException as error:
        where = inspect.trace()[-1]
        file, line = location(error) or (Path(where.filename), where.lineno)
        return Verdict(each, False, f"{type(error).__name__} in {file.name}, line {line}: {error}")
    return Verdict(each, True)
