"""One registry for attacks, defenses, models and data sets.

Modules of a package are found by being there; other distributions join through entry points
`bdbench.attacks`, `bdbench.defenses`, `bdbench.models`, `bdbench.datasets`; a file joins with
`load_file`. A plugin that fails to import is left out, and named when somebody asks for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, check

T = TypeVar("T")
PLUGIN = "bdbench_plugin_"
F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[T]):
    """Names of one kind of plugin, such as "attack"; `package` holds the built-in ones."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self.broken: dict[str, str] = {}
        self._factories: dict[str, Callable[..., T]] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[F], F]:
        """Class or function decorator. A name is given once: a second use raises `InvalidInput`."""

        def remember(factory: F) -> F:
            known = self._factories.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (
                factory.__module__,
                factory.__qualname__,
            ):
                raise InvalidInput(f"two {self.kind}s are called {name!r}")
            self._factories[name] = factory
            return factory

        return remember

    def names(self) -> list[str]:
        """All names, sorted, `none` first."""
        self._discover()
        return sorted(self._factories, key=lambda name: (name != "none", name))

    def factory(self, name: str) -> Callable[..., T]:
        """The registered class or function. Raises `InvalidInput` with the nearest name."""
        self._discover()
        if name in self._factories:
            return self._factories[name]
        if name in self.broken:
            raise InvalidInput(f"{self.kind} {name!r} failed to import: {self.broken[name]}")
        raise InvalidInput(f"unknown {self.kind} {name!r}{spec.did_you_mean(name, self.names())}")

    def settings(self, text: str) -> tuple[str, dict[str, Any]]:
        """Name and checked values of every field of a spec. Raises `InvalidInput`."""
        name, given = spec.parse(text)
        fields = spec.fields_of(self.factory(name))
        for key in given:
            if key not in fields:
                guess = spec.did_you_mean(key, fields)
                raise InvalidInput(f"{self.kind} {name!r} has no field {key!r}{guess}")
        owner = f"{self.kind} {name!r}"
        values = {
            key: field.accept(given[key], owner) if key in given else field.default
            for key, field in fields.items()
        }
        for key, kept in self._nested(name).items():
            values[key] = self._inner(values[key], kept, owner)
        return name, values

    def _nested(self, name: str) -> Mapping[str, Sequence[str]]:
        """The fields of a plugin that hold specs of this registry, as the plugin declares them in
        `nested`, each with the fields that are the outer plugin's to set."""
        nested: Mapping[str, Sequence[str]] = getattr(self.factory(name), "nested", {})
        return nested

    def _inner(self, text: str, kept: Sequence[str], owner: str) -> str:
        for key in kept:
            if key in spec.parse(text)[1]:
                raise InvalidInput(f"{key} is a field of {owner}, not of what it holds: {text!r}")
        name, values = self.settings(text)
        outer = {key: value for key, value in values.items() if key not in kept}
        return spec.canonical(name, outer, spec.fields_of(self.factory(name)))

    def parts(self, text: str) -> list[str]:
        """The name in a spec, and those in the specs that it holds."""
        name, values = self.settings(text)
        inner = [part for key in self._nested(name) for part in self.parts(values[key])]
        return [name, *inner]

    def canonical(self, text: str) -> str:
        """The spec with every field written out, but see `spec.added`."""
        name, values = self.settings(text)
        return spec.canonical(name, values, spec.fields_of(self.factory(name)))

    def label(self, text: str) -> str:
        """The spec with only the fields that differ from their defaults."""
        name, values = self.settings(text)
        defaults = self.settings(name)[1]
        shown = {key: value for key, value in values.items() if value != defaults[key]}
        for key in self._nested(name):
            if key in shown:
                shown[key] = self.label(shown[key])
        return spec.render(name, shown)

    def build(self, text: str, *arguments: Any) -> T:
        """The plugin of a spec; `arguments` are what its factory takes beside its fields."""
        name, values = self.settings(text)
        return self.factory(name)(*arguments, **values)

    def version(self, name: str) -> int:
        """Raised by an author whose change alters the numbers; part of every key."""
        return int(getattr(self.factory(name), "version", 1))

    def origin(self, name: str) -> str:
        """Where a plugin comes from: `built in`, its module, or its file."""
        factory = self.factory(name)
        if factory.__module__.startswith(f"{self.package}."):
            return "built in"
        loaded_from_file = factory.__module__.startswith(PLUGIN)
        return inspect.getfile(factory) if loaded_from_file else factory.__module__

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        for point in entry_points(group=f"bdbench.{self.kind.replace(' ', '')}s"):
            try:
                self.register(point.name)(point.load())
            except (Exception, SystemExit) as error:
                self.broken[point.name] = f"{type(error).__name__}: {error}"


def file_of(package: str, name: str) -> Path:
    """Where a module of a package lies, if there is one. Neither is imported."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / f"{name}.py"


def load_file(path: Path) -> None:
    """Import one plugin file, which registers what it holds, once. Raises `InvalidInput`."""
    complaint = f"plugin {str(path)!r} is not a Python file"
    try:
        check(path.is_file(), complaint)
        identity = bytes(path.resolve()) + path.read_bytes()
    except OSError:  # a name that is too long, for example
        raise InvalidInput(complaint) from None
    name = f"{PLUGIN}{path.stem}_{zlib.crc32(identity):08x}"
    if name in sys.modules:
        return
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise InvalidInput(complaint)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        raise InvalidInput(
            f"plugin {str(path)!r} failed at line {line}: {type(error).__name__}: {error}"
        ) from error
