"""Built-in plugins, read from their source files, because importing one imports torch.

A plugin that is not built in has no file here; its record holds what tables and reports need.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any

from bdbench.models.plugins.registry import file_of

_TITLE = re.compile(r'^@register\("(\w+)", title="([^"\\]+)"\)$', re.MULTILINE)


@cache
def titles(package: str) -> Mapping[str, str]:
    """The titles that the plugins of a package are registered with, by name."""
    folder = file_of(package, "__init__").parent
    texts = (path.read_text("utf-8") for path in sorted(folder.glob("*.py")))
    return dict(pair for text in texts for pair in _TITLE.findall(text))


@cache
def defaults(package: str, name: str) -> Mapping[str, Any]:
    """The annotated class attributes of a built-in plugin that have a literal value, by name.

    Empty for a plugin that is not built in. Attributes of base classes and computed values are
    left out: a spec states the former and cannot hold the latter.
    """
    found = _plugin(package, name)
    if found is None:
        return {}
    module, plugin = found
    constants = dict(_constants(module))
    values: dict[str, Any] = {}
    for node in plugin.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            with suppress(ValueError):  # computed
                values[node.target.id] = ast.literal_eval(_default(node.value, constants))
    return values


def docstrings(package: str, name: str) -> tuple[str, str] | None:
    """The docstrings of a built-in plugin's module and class; None for any other plugin."""
    found = _plugin(package, name)
    if found is None:
        return None
    module, plugin = (ast.get_docstring(node) or "" for node in found)
    return module, plugin


def _plugin(package: str, name: str) -> tuple[ast.Module, ast.ClassDef] | None:
    """The module named after a plugin, and the class that it registers under that name."""
    path = file_of(package, name)
    if not name.isidentifier() or not path.is_file():
        return None
    module = ast.parse(path.read_text("utf-8"))
    classes = (node for node in module.body if isinstance(node, ast.ClassDef))
    plugin = next((node for node in classes if _registers(node, name)), None)
    return (module, plugin) if plugin else None


def _registers(node: ast.ClassDef, name: str) -> bool:
    calls = (each for each in node.decorator_list if isinstance(each, ast.Call) and each.args)
    return any(
        ast.unparse(call.func) == "register" and ast.unparse(call.args[0]) == repr(name)
        for call in calls
    )


def _constants(module: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for node in module.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value


def _default(value: ast.expr, constants: Mapping[str, ast.expr]) -> ast.expr:
    """The value behind `added(value)`, which marks a later field, and behind a constant's name."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "added":
        value = value.args[0]
    return constants.get(value.id, value) if isinstance(value, ast.Name) else value
