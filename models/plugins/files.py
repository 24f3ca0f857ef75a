"""Plugin files: imported once, with helpers of their folder, and withdrawn when they are edited."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import os
import sys
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from bdbench.models.plugins.blame import location, reason
from bdbench.models.plugins.errors import SIGNALS, InvalidInput, require
from bdbench.models.plugins.notices import notify
from bdbench.models.plugins.registry import PLUGIN, REGISTRIES, Registry

PLUGIN_BASES = (
    "bdbench.attacks.base.Attack",
    "bdbench.defenses.base.Defense",
    "bdbench.datasets.base.Source",
    "torch.nn.modules.module.Module",
)
"""The base classes of plugins and networks."""


class RegistersNothing(UserWarning):
    """A plugin file that registers no plugin; it may have been loaded for another effect."""


def is_found_by_workers(
    registry: Registry[Any], factory: Callable[..., Any], files: Collection[Path]
) -> bool:
    """Whether another process finds a registered class or function: it is built in, installed, or
    comes with one of these plugin files."""
    module = factory.__module__
    if registry.is_built_in(factory) or registry.is_installed(factory):
        return True
    wanted = {file.resolve() for file in files}
    return any(
        module in (name, *_registers.get(name, ()))
        for name, loaded in sys.modules.items()
        if name.startswith(PLUGIN) and Path(str(loaded.__file__)).resolve() in wanted
    )


def plugin_files(modules: Collection[str]) -> list[Path]:
    """The loaded plugin files that are one of these modules, import one, or register what it
    defines."""
    loaded = {name: module for name, module in sys.modules.items() if name.startswith(PLUGIN)}
    needed = (
        module
        for name, module in loaded.items()
        if {name, *imported_by(module), *_registers.get(name, ())} & {*modules}
    )
    return sorted({Path(str(module.__file__)) for module in needed})


def load_file(path: Path | str) -> ModuleType:
    """Import a plugin file, once, and return it; it registers its plugins. It may import modules of
    its own folder. Raises `InvalidInput`."""
    path = Path(path)
    complaint = f"plugin {str(path)!r} is not a Python file"
    try:
        require(os.path.lexists(path), f"there is no plugin file {str(path)!r}")
        require(path.is_file(), complaint)
        identity = bytes(path.resolve()) + path.read_bytes()
    except OSError:  # a name that is too long, for example
        raise InvalidInput(complaint) from None
    name = f"{PLUGIN}{path.stem}_{zlib.crc32(identity):08x}"
    if name in sys.modules:
        if name in _edited:
            # An edit was undone.
            _withdraw(path)
            _give_back(name)
        return sys.modules[name]
    module_spec = importlib.util.spec_from_file_location(name, path)
    if module_spec is None or module_spec.loader is None:
        raise InvalidInput(complaint)
    module = importlib.util.module_from_spec(module_spec)
    withdrawn = _withdraw(path)
    sys.modules[name] = module
    known = _registered_modules()
    folder, paths = path.resolve().parent, list(sys.path)
    if str(folder) not in sys.path:
        # Last, so that a file with a common name does not shadow a library.
        sys.path.append(str(folder))
    try:
        module_spec.loader.exec_module(module)
        _check_helpers(module, folder)
        _check_registered(module, path)
        _registers[name] = _registered_modules() - known
    except BaseException as error:
        del sys.modules[name]
        sys.path[:] = paths
        for registry in REGISTRIES:
            registry.unregister(registry.registered([name]))
        for earlier in withdrawn:
            _give_back(earlier)
        file, line = location(error) or (path, 0)
        if isinstance(error, SIGNALS) or (isinstance(error, InvalidInput) and not line):
            raise
        where = f" at line {line}" if line else ""
        where += "" if file.resolve() == path.resolve() else f" of {file}"
        raise InvalidInput(f"plugin {str(path)!r} failed{where}: {reason(error)}") from error
    return module


_edited: dict[str, dict[Registry[Any], dict[str, Callable[..., Any]]]] = {}
"""By module, what plugin files have registered with a content that has been edited since."""


def _withdraw(path: Path) -> list[str]:
    """Take back what a plugin file has registered with another content. Returns the modules that
    it was registered by."""
    earlier = [
        name
        for name, module in sys.modules.items()
        if name.startswith(PLUGIN) and Path(str(module.__file__)).resolve() == path.resolve()
    ]
    taken = []
    for name in earlier:
        plugins = {registry: registry.registered([name]) for registry in REGISTRIES}
        if any(plugins.values()):
            _edited[name] = plugins
            taken.append(name)
        for registry, found in plugins.items():
            registry.unregister(found)
    return taken


def _give_back(name: str) -> None:
    """Register again what was taken back of a module."""
    for registry, plugins in _edited.pop(name, {}).items():
        registry.restore(plugins)


_registers: dict[str, set[str]] = {}
"""The modules of the plugins that were registered while a plugin file was imported, by its
module."""


def _registered_modules() -> set[str]:
    """The modules of all registered plugins."""
    return {module for registry in REGISTRIES for module in registry.modules}


def imported_by(module: ModuleType) -> set[str]:
    """The modules that a file imports, or imports names from, except those of bdbench."""
    found = set()
    for value in vars(module).values():
        name = getattr(value, "__name__" if inspect.ismodule(value) else "__module__", None)
        if isinstance(name, str) and name.partition(".")[0] != "bdbench":
            found.add(name)
    return found


def _check_helpers(module: ModuleType, folder: Path) -> None:
    """Raises `InvalidInput` if a file imports, at once or later, a module that shadows one of its
    own folder, such as the helper of a plugin in another folder."""
    for name in sorted(_imports_in(Path(str(module.__file__)))):
        places = (folder / f"{name}.py", folder / name / "__init__.py")
        own = next((place for place in places if place.is_file()), None)
        if own is None:
            continue
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is None:
            found = importlib.util.find_spec(name)
            file = found.origin if found else None
        if file is not None and Path(file).resolve() != own.resolve():
            raise InvalidInput(f"module {name!r} is {file}, not {own}; rename the latter")


def _imports_in(path: Path) -> set[str]:
    """The modules that a file imports anywhere, without those below them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def _check_registered(module: ModuleType, path: Path) -> None:
    """Raises `InvalidInput` for a registered object that cannot be a plugin, and if a file defines
    a plugin but registers none. Warns if it defines none either."""
    registered = 0
    for registry in REGISTRIES:
        for name, factory in registry.registered({module.__name__, *imported_by(module)}).items():
            registry.check_factory(name, factory)
            registered += 1
    if registered:
        return
    complaint = f"plugin {str(path)!r} registers nothing"
    require(
        not any(_is_plugin(value, module.__name__) for value in vars(module).values()),
        f"{complaint}: write @register('name') above its class",
    )
    notify(f"{complaint}, so no cell imports it", RegistersNothing, stacklevel=3)


def _is_plugin(value: object, module: str) -> bool:
    """Whether an object is a plugin or network class that this module defines."""
    return (
        inspect.isclass(value)
        and value.__module__ == module
        and any(f"{base.__module__}.{base.__name__}" in PLUGIN_BASES for base in value.__mro__[1:])
    )
