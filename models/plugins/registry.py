"""The registry of attacks, defenses, models and data sets.

A registry imports every module of its package. Other distributions register plugins through the
entry points `bdbench.attacks`, `bdbench.defenses`, `bdbench.models` and `bdbench.datasets`, and
`files.py` loads plugin files. A plugin that fails to import is left out; asking for it gives the
reason.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar
from weakref import WeakSet

from bdbench.models.plugins import spec
from bdbench.models.plugins.blame import blaming, installed_packages, reason
from bdbench.models.plugins.errors import SIGNALS, InvalidInput, one_line, require
from bdbench.models.plugins.spec import Spec

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
Form = Callable[[Callable[..., Any], Spec], Spec]
"""Another form of the complete spec of a class or function."""
PLUGIN = "bdbench_plugin_"
"""Prefix of the module names of plugin files."""
LONGEST_TITLE = 60


class Registry(Generic[T]):
    """The plugins of one kind, by name.

    kind: such as "attack"
    package: the package of the built-in plugins
    base: module and name of the base class of all plugins, None if they have none
    reserved: names that no plugin may have, by what has them already
    """

    runtime_parameters = 0
    """The number of leading parameters that a caller supplies and that are not settings."""

    def __init__(
        self,
        kind: str,
        package: str,
        base: tuple[str, str] | None = None,
        reserved: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.kind = kind
        self.package = package
        self.base = base
        self.reserved = reserved
        self.broken: dict[str, str] = {}
        self._factories: dict[str, Callable[..., T]] = {}
        self._titles: dict[str, str] = {}
        self._discovered = self._imported = False
        REGISTRIES.add(self)

    def register(self, name: str, title: str = "") -> Callable[[F], F]:
        """Register a class or function; use it as a decorator. A class or file that is loaded again
        replaces its predecessor. Raises `InvalidInput` if another plugin has the name, for a name
        that no spec can hold or that is reserved, and for an unprintable or overlong title.

        title: the name in tables and figures, such as "BadNets"
        """
        self._check_name(name)
        require(
            isinstance(title, str) and title.isprintable() and len(title) <= LONGEST_TITLE,
            f"the title of {self.kind} {name!r} must be a line of at most {LONGEST_TITLE} "
            f"characters, got {title!r}",
        )

        def add(factory: F) -> F:
            require(
                inspect.isclass(factory) or inspect.isroutine(factory),
                f"{self.kind} {name!r} must be a class or function, got {factory!r}",
            )
            if not self.is_built_in(factory):
                self.import_package()
            known = self._factories.get(name)
            if known is not None and not _is_redefinition(known, factory):
                files = f"{_source_file(known)} and {_source_file(factory)}"
                raise InvalidInput(
                    f"two {self.kind}s are called {name!r}, in {files}; rename one of them"
                )
            self._factories[name] = factory
            if title:
                self._titles[name] = title
            return factory

        return add

    def _check_name(self, name: Any) -> None:
        """Raises `InvalidInput` for a name that `register` does not accept."""
        called = getattr(name, "__name__", "")
        require(
            isinstance(name, str),
            f"@register above {called} needs a name: write @register('{called.lower()}')"
            if called
            else f"the name of a {self.kind} must be text, got {name!r}",
        )
        require(
            spec.is_name(name),
            f"no spec can hold the name {name!r} of a {self.kind}: use letters, digits and "
            f"underscores, at most {spec.LONGEST_NAME} and no digit first",
        )
        require(
            name not in self.reserved,
            f"no {self.kind} may be called {name!r}: {self.reserved.get(name)}; rename it",
        )

    def title(self, name: str) -> str:
        """The name in tables and figures; empty if the plugin has no title."""
        return self._titles.get(name, "")

    def names(self) -> list[str]:
        """All names, sorted, `none` first."""
        self._discover()
        return sorted(self._factories, key=lambda name: (name != "none", name))

    def factory(self, name: str) -> Callable[..., T]:
        """The registered class or function. Raises `InvalidInput` for an unknown name, with the
        nearest known one, and for an object that cannot be a plugin. Installed plugins of other
        names are imported only if the name is unknown."""
        self._discover(name)
        if name not in self._factories and name not in self.broken:
            self._discover()
        if name in self._factories:
            self.check_factory(name, self._factories[name])
            return self._factories[name]
        if name in self.broken:
            raise InvalidInput(f"{self.kind} {name!r} failed to import: {self.broken[name]}")
        raise InvalidInput(
            f"unknown {self.kind} {name!r}{self.elsewhere(name) or self._hint(name)}"
        )

    def _hint(self, name: str) -> str:
        """What a name that is not registered may be, as the end of a message."""
        known = self.names()
        own = "" if spec.nearest(name, known) else ", or load the file of your own as a plugin"
        return f"{self._kind_of(name)}{spec.did_you_mean(name, known)}{own}"

    def elsewhere(self, name: str) -> str:
        """For a name that is not registered, where it is found, as the end of a message; empty if
        that is not known."""
        return ""

    def _kind_of(self, name: str) -> str:
        """What a name is that belongs to another registry, such as ", which is an attack"."""
        kinds = sorted(each.kind for each in REGISTRIES if name in each.names())
        return f", which is {_a(kinds[0])}" if kinds else ""

    def registered(self, modules: Collection[str]) -> dict[str, Callable[..., T]]:
        """The classes and functions that these modules have registered, by name."""
        found = self._factories.items()
        return {name: factory for name, factory in found if factory.__module__ in modules}

    def unregister(self, names: Iterable[str]) -> None:
        """Remove registered plugins."""
        for name in names:
            del self._factories[name]

    def restore(self, plugins: Mapping[str, Callable[..., T]]) -> None:
        """Register again what was removed."""
        self._factories.update(plugins)

    @property
    def modules(self) -> set[str]:
        """The modules of all registered plugins."""
        return {factory.__module__ for factory in self._factories.values()}

    def check_factory(self, name: str, factory: Callable[..., Any]) -> None:
        """Raises `InvalidInput` for a registered object that cannot be a plugin."""
        if self.base is None:
            return
        module, base = self.base
        owner, required = f"{self.kind} {name!r}", f"{self.package}.{base}"
        fits = inspect.isclass(factory) and issubclass(
            factory, getattr(importlib.import_module(module), base)
        )
        require(fits, f"{owner} is not a subclass of {required}: write `class ...({base})`")
        missing = sorted(getattr(factory, "__abstractmethods__", ()))
        require(
            not missing, f"{owner} has no {' and no '.join(missing)}: every {base} must define it"
        )
        require(
            "__dataclass_params__" in vars(factory) or not _settings_of(factory),
            f"{owner} is not a dataclass: write @dataclass(frozen=True) above the class and make "
            "its settings fields",
        )

    def build(self, what: str | Spec) -> T:
        """The plugin of a spec. Raises `InvalidInput`."""
        factory, complete = self._read(spec.asked(what) if isinstance(what, str) else what)
        plugin = self._made(factory, complete)
        found = self._configured(plugin)[1]
        if found != complete:
            self._check_settled(factory, found)
        return plugin

    def rebuilt(self, plugin: T) -> T:
        """A plugin built anew from its settings, as another process has it. Raises
        `InvalidInput`."""
        return self._made(*self._configured(plugin))

    def _made(self, factory: Callable[..., Any], complete: Spec) -> T:
        """The plugin of a spec with all fields. Raises `InvalidInput`."""
        fields = spec.fields_of(factory)
        settings = {key: fields[key].from_literal(value) for key, value in complete.fields.items()}
        source = "" if self.is_built_in(factory) else _source_file(factory)
        with blaming(f"{self.kind} {complete}", source):
            return self.make(factory, settings)

    def _check_settled(self, factory: Callable[..., Any], found: Spec) -> T:
        """The plugin that is built from the settings of another one. Raises `InvalidInput` if it
        has other settings: each process would have others, and look for another record."""
        plugin = self._made(factory, found)
        again = self._configured(plugin)[1].fields
        for name, value in found.fields.items():
            require(
                spec.is_same(again[name], value),
                f"building {self.kind} {found.name!r} changes {name} from {value!r} to "
                f"{again[name]!r}: keep the setting as it is, and convert it where it is used",
            )
        return plugin

    def built(self, what: str | T) -> T:
        """A plugin as it is, or the plugin of a spec. Raises `InvalidInput`."""
        if isinstance(what, str):
            return self.build(what)
        if self.base is not None:
            module, name = self.base
            fits = isinstance(what, getattr(importlib.import_module(module), name))
            hint = ": write it with parentheses" if isinstance(what, type) else ""
            require(fits, f"{self.kind} must be a spec or {_a(name)}, got {what!r}{hint}")
        factory, complete = self._configured(what)
        settled = self._check_settled(factory, complete)
        for name in _hidden_in(what, settled) if type(what) is factory else ():
            raise InvalidInput(
                f"{name} of {self.kind} {type(what).__name__} is no setting, so nothing tells this "
                f"{self.kind} from others in the cache and in records: make it a field of text or "
                "numbers, name a file with path_field(), or, if the object fills it itself, write "
                "field(init=False, repr=False)"
            )
        return what

    def swept(self, what: str | T) -> list[T]:
        """The plugins of a sweep, which is a spec with lists in place of values: one for each
        combination, see `spec.swept`. Raises `InvalidInput`."""
        if not isinstance(what, str):
            return [self.built(what)]
        given = spec.asked(what)
        fields = spec.fields_of(self.factory(given.name))
        owner = f"{self.kind} {given.name!r}"
        return [self.build(each) for each in spec.swept(given, fields, owner)]

    def make(self, factory: Callable[..., Any], settings: Mapping[str, Any]) -> T:
        """Call a class or function with these settings."""
        plugin: T = factory(**settings)
        return plugin

    def decompose(self, plugin: T) -> tuple[Callable[..., Any], Mapping[str, Any]]:
        """The inverse of `make`: the class or function, and the settings."""
        kind: Callable[..., Any] = type(plugin)
        self._check_defaults(kind, kind.__name__)
        for name in spec.fields_of(kind):
            require(
                hasattr(plugin, name),
                f"{self.kind} {kind.__name__} does not keep its setting {name}: store it as "
                f"self.{name}",
            )
        return kind, {name: getattr(plugin, name) for name in spec.fields_of(kind)}

    def complete(self, what: str | T) -> Spec:
        """The spec of a plugin with all fields, checked and in the order of the class. Raises
        `InvalidInput`."""
        return self._configured(what)[1]

    def canonical(self, what: str | T) -> str:
        """The spec with every field written out, except those of `spec.added` at their defaults."""
        return self._written(*self._configured(what), _canonical)

    def located(self, what: str | T) -> str:
        """The spec with absolute paths, from which another process of this machine builds the
        plugin."""
        return self._written(*self._configured(what), _located)

    def label(self, what: str | T) -> str:
        """The spec with the fields that differ from their defaults only."""
        return self._written(*self._configured(what), self._differing)

    def _differing(self, factory: Callable[..., Any], complete: Spec) -> Spec:
        fields = spec.fields_of(factory)
        defaults = self._checked(factory, Spec(complete.name)).fields
        shown = {
            key: fields[key].without_folder(value)
            for key, value in complete.fields.items()
            if not spec.is_same(value, defaults[key])
        }
        return Spec(complete.name, shown)

    def _written(self, factory: Callable[..., Any], complete: Spec, form: Form) -> str:
        """The spec in a form, with the specs in its fields in the same form."""
        written = form(factory, complete)
        inner = {
            key: _each(complete.fields[key], self._inner_written, form)
            for key in _nested(factory)
            if key in written.fields
        }
        return str(written.with_(**inner))

    def _inner_written(self, text: str, form: Form) -> str:
        inner = Spec.of(text)
        return self._written(self.factory(inner.name), inner, form)

    def factories(self, what: str | T) -> list[Callable[..., Any]]:
        """The class or function of a plugin, and those of the specs in its fields."""
        factory, complete = self._configured(what)
        return [
            factory,
            *(part for each in _inner_specs(factory, complete) for part in self.factories(each)),
        ]

    def files(self, what: str | T) -> list[Path]:
        """The files and folders that settings of a plugin name, see `spec.path_field`, and those of
        the specs in its fields."""
        factory, complete = self._configured(what)
        paths = [
            Path(field.absolute(complete.fields[key]))
            for key, field in spec.fields_of(factory).items()
            if field.is_path and complete.fields[key]
        ]
        inner = [path for each in _inner_specs(factory, complete) for path in self.files(each)]
        return [*(path for path in paths if path.is_file() or path.is_dir()), *inner]

    def parts(self, what: str | T) -> list[str]:
        """The name of a spec, and those of the specs in its fields."""
        factory, complete = self._configured(what)
        inner = [part for each in _inner_specs(factory, complete) for part in self.parts(each)]
        return [complete.name, *inner]

    def name_of(self, factory: Callable[..., Any]) -> str:
        """The name under which a class or function is registered, or else its own name. Raises
        `InvalidInput` if that name belongs to another plugin."""
        own = getattr(factory, "__name__", None)
        require(
            isinstance(own, str),
            f"{factory!r} has no name to call the {self.kind} by: write a function or a class",
        )
        assert isinstance(own, str)
        self.import_package()
        for name, other in self._factories.items():
            if other is factory:
                return name
        self._discover()
        if own in self._factories:
            raise InvalidInput(f"the {self.kind} {own!r} exists already; give yours another name")
        return own

    def is_local(self, factory: Callable[..., Any]) -> bool:
        """Whether a class or function belongs to a notebook or a script, or was never registered,
        so that no other process finds it by its name."""
        if self.is_built_in(factory):
            return False
        if factory not in self._factories.values():
            self._discover()
        return factory.__module__ == "__main__" or factory not in self._factories.values()

    def is_registered(self, factory: Callable[..., Any]) -> bool:
        """Whether a spec can name a class or function."""
        self._discover()
        return factory in self._factories.values()

    def version(self, name: str) -> int:
        """See `version_of`."""
        return version_of(self.factory(name))

    def _configured(self, what: str | T) -> tuple[Callable[..., Any], Spec]:
        if isinstance(what, str):
            return self._read(spec.asked(what))
        factory, settings = self.decompose(what)
        return factory, self._checked(factory, Spec(self.name_of(factory), settings))

    def _read(self, given: Spec) -> tuple[Callable[..., Any], Spec]:
        factory = self.factory(given.name)
        return factory, self._checked(factory, given)

    def _checked(self, factory: Callable[..., Any], given: Spec) -> Spec:
        """The spec with every field, checked. Raises `InvalidInput`."""
        owner = f"{self.kind} {given.name!r}"
        self._check_defaults(factory, given.name)
        fields = spec.fields_of(factory)
        for key in given.fields:
            if key not in fields:
                guess = spec.did_you_mean(key, fields)
                bare = not self.is_built_in(factory) and _is_bare(factory, key)
                advice = f": write `{key}: TYPE = ...`, as fields have types" if bare else guess
                raise InvalidInput(f"{owner} has no field {key!r}{advice}")
        values = {
            key: field.accept(given.fields[key], owner)
            if key in given.fields
            else field.accept_default(owner)
            for key, field in fields.items()
        }
        for key, reserved in _nested(factory).items():
            values[key] = _each(values[key], self._inner, reserved, owner)
        return Spec(given.name, values)

    def _check_defaults(self, factory: Callable[..., Any], name: str) -> None:
        """Raises `InvalidInput` for a parameter without a default, or without a name."""
        for star in spec.variable(factory) if not self.runtime_parameters else ():
            raise InvalidInput(
                f"{star} of {self.kind} {name!r} is no setting that a spec can write: give each "
                "setting a parameter with a default"
            )
        for field in spec.required(factory, self.runtime_parameters):
            raise InvalidInput(
                f"{field} of {self.kind} {name!r} has no default: give it one, because every "
                "setting needs a default"
            )

    def _inner(self, text: str, reserved: Sequence[str], owner: str) -> str:
        """A nested spec with every field but those that the outer plugin sets. Raises
        `InvalidInput`."""
        given = spec.asked(text)
        for key in reserved:
            if key in given.fields:
                raise InvalidInput(f"{key} is a field of {owner}; remove it from {text!r}")
        _, complete = self._read(given)
        own = {key: value for key, value in complete.fields.items() if key not in reserved}
        return str(Spec(complete.name, own))

    def origin(self, name: str) -> str:
        """The source of a plugin: `built in`, its module, or its file."""
        factory = self.factory(name)
        if self.is_built_in(factory):
            return "built in"
        loaded_from_file = factory.__module__.startswith(PLUGIN)
        return inspect.getfile(factory) if loaded_from_file else factory.__module__

    def is_built_in(self, factory: Callable[..., Any]) -> bool:
        """Whether a class or function comes with bdbench."""
        return factory.__module__.startswith(f"{self.package}.")

    @property
    def group(self) -> str:
        """The group of entry points of other distributions."""
        return f"bdbench.{self.kind.replace(' ', '')}s"

    @cached_property
    def _installed(self) -> dict[str, dict[str, EntryPoint]]:
        """Plugins of other distributions that are not imported yet, by name and by what is to be
        imported."""
        found: dict[str, dict[str, EntryPoint]] = {}
        for point in entry_points(group=self.group):
            found.setdefault(point.name, {})[point.value] = point
        return found

    def is_installed(self, factory: Callable[..., Any]) -> bool:
        """Whether a class or function is in a package with an entry point, or one names it."""
        names = {name for name, each in self._factories.items() if each is factory}
        return any(
            point.name in names
            or point.module.partition(".")[0] == factory.__module__.partition(".")[0]
            for point in entry_points(group=self.group)
        )

    def import_package(self) -> None:
        if self._imported:
            return
        self._imported = True
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
            importlib.import_module(f"{self.package}.{module.name}")

    def _discover(self, wanted: str | None = None) -> None:
        """Import the built-in plugins and the installed ones: all of them, or only the one that is
        wanted, so that a broken or slow plugin does not affect the use of another."""
        self.import_package()
        if self._discovered or wanted in self._factories:
            return
        self._discovered = wanted is None
        for name in [each for each in self._installed if wanted in (None, each)]:
            points = self._installed.pop(name)
            if len(points) > 1:
                self.broken[name] = f"{' and '.join(points)} have this name; uninstall one of them"
            else:
                self._load(*points.values())

    def _load(self, point: EntryPoint) -> None:
        """Import an installed plugin. What its module registers and cannot be used is taken back,
        all of it if the import fails."""
        known = {registry: {*registry._factories} for registry in REGISTRIES}
        installed_packages.add(point.module.partition(".")[0])
        whole = True
        try:
            self.register(point.name)(point.load())
        except SIGNALS:
            raise
        except BaseException as error:
            self.broken[point.name], whole = one_line(reason(error)), False
        for registry, names in known.items():
            for name, factory in list(registry._factories.items()):
                if name in names or registry.is_built_in(factory):
                    continue
                try:
                    registry.check_factory(name, factory)
                except InvalidInput as error:
                    registry.broken[name] = str(error)
                if name in registry.broken or not whole:
                    registry.unregister([name])


REGISTRIES: WeakSet[Registry[Any]] = WeakSet()
"""All registries."""


def _hidden_in(plugin: object, settled: object) -> list[str]:
    """The attributes that tell a plugin from one with the same settings: the cache and the records
    would take one for the other.

    settled: the plugin that is built from the same settings
    """
    kind: Any = type(plugin)
    built = vars(settled)
    known = {*spec.fields_of(kind), *spec.filled_by(kind)}
    return [
        name
        for name, value in vars(plugin).items()
        if name not in known
        and not isinstance(getattr(kind, name, None), cached_property)
        and not (name in built and _is_same(value, built[name]))
    ]


def _is_same(value: Any, other: Any) -> bool:
    """Whether two values are equal, as far as they can tell: two objects of a class that does not
    compare them may be."""
    identity: Any = object.__eq__
    if type(value) is not type(other):
        return False
    if value is other or type(value).__eq__ is identity:
        return True
    try:
        same = value == other
        return bool(same.all() if hasattr(same, "all") else same)
    except (TypeError, ValueError, RuntimeError):
        return False


def _is_bare(factory: Callable[..., Any], name: str) -> bool:
    """Whether a class has a value that its author may have meant for a field, without a type."""
    found = vars(factory).get(name) if inspect.isclass(factory) else None
    plain = isinstance(found, int | float | str | tuple | list | dict)
    return plain and name not in ("version", "nested", *inspect.get_annotations(factory))


def _a(noun: str) -> str:
    """The noun with its article."""
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def _source_file(factory: Callable[..., Any]) -> str:
    """The file of a class or function, or else its module."""
    try:
        return inspect.getfile(factory)
    except (TypeError, OSError):
        return factory.__module__


def _is_redefinition(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether the second is the first, defined again: in its module, in its file, which may have
    been imported under another name, or in a notebook, also with another name of its class."""
    if one.__qualname__ != other.__qualname__:
        interactive = not hasattr(sys.modules["__main__"], "__file__")
        return interactive and one.__module__ == other.__module__ == "__main__"
    files = (Path(_source_file(each)).resolve() for each in (one, other))
    return one.__module__ == other.__module__ or len({*files}) == 1


def _settings_of(factory: Callable[..., Any]) -> list[str]:
    """The settings that a class itself declares, as annotations or in `__init__`."""
    declared = inspect.get_annotations(factory).items()
    fields = [name for name, annotation in declared if "ClassVar" not in str(annotation)]
    return [*fields, *({"__init__"} & vars(factory).keys())]


def version_of(factory: Callable[..., Any]) -> int:
    """The version of a plugin, which is part of every key. Its author raises it with a change that
    alters the numbers. Raises `InvalidInput` for one that is not an integer."""
    stated: Any = getattr(factory, "version", 1)
    what = f"the version of {factory.__name__}, in {_source_file(factory)}, must be an integer"
    try:
        version = int(stated)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{what}: {error}") from None
    # Or else 1.5 would have the records of 1.
    require(version == stated, f"{what}, got {stated!r}")
    return version


def _nested(factory: Callable[..., Any]) -> Mapping[str, Sequence[str]]:
    """The fields of a plugin that hold specs of its own registry, one or a sequence, as its class
    declares them in `nested`. Each comes with the fields of the inner plugins that the outer one
    sets."""
    nested: Mapping[str, Sequence[str]] = getattr(factory, "nested", {})
    return nested


def _inner_specs(factory: Callable[..., Any], complete: Spec) -> list[str]:
    """The specs in the fields of a plugin."""
    values = [complete.fields[key] for key in _nested(factory)]
    return [text for value in values for text in ([value] if isinstance(value, str) else value)]


def _each(value: Any, form: Callable[..., str], *more: Any) -> Any:
    """A field that holds a spec, or a sequence of them, in another form."""
    if isinstance(value, str):
        return form(value, *more)
    return type(value)(form(text, *more) for text in value)


def _canonical(factory: Callable[..., Any], complete: Spec) -> Spec:
    return spec.canonical(complete, spec.fields_of(factory))


def _located(factory: Callable[..., Any], complete: Spec) -> Spec:
    return spec.located(complete, spec.fields_of(factory))


def file_of(package: str, name: str) -> Path:
    """The path at which a module of a package would be stored. Neither is imported."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / f"{name}.py"
