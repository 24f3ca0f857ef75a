"""What every plugin promises."""

from __future__ import annotations

import inspect
from typing import Any

from bdbench.contract.promises import promise
from bdbench.contract.scenarios import expect
from bdbench.models.plugins.registry import Registry
from bdbench.models.plugins.spec import Spec


def made_by(registry: Registry[Any], name: str) -> Any:
    """The class or function of a spec."""
    return registry.factory(Spec.of(name).name)


@promise("", "it can be made with its settings")
def made(registry: Registry[Any], name: str) -> None:
    registry.build(name)


@promise("", "it can be written as a spec, and read back", made)
def specs(registry: Registry[Any], name: str) -> None:
    canonical = registry.canonical(name)
    expect(registry.canonical(canonical) == canonical, f"{canonical!r} reads back as another")
    label = registry.label(name)
    expect(label == name, f"its settings are shown as {label!r}: they change when built")
    expect(registry.version(Spec.of(name).name) >= 1, "its version is below 1")
    built = registry.canonical(registry.build(name))
    expect(built == canonical, f"its settings change when it is built, to {built!r}")


@promise("", "its documentation names the method, and every field with a default")
def documentation(registry: Registry[Any], name: str) -> None:
    factory = made_by(registry, name)
    module = inspect.getdoc(inspect.getmodule(factory)) or ""
    first = module.partition("\n")[0].rstrip()
    expect(bool(first), "its file has no docstring; the first line names method, authors and year")
    expect(first.endswith((".", ":")), f"the first line of its file is not a sentence: {first!r}")
    doc = inspect.getdoc(factory) or ""
    for field in inspect.signature(factory).parameters.values():
        if field.default is not inspect.Parameter.empty:
            expect(field.name in doc, f"its docstring does not say what {field.name} is")
