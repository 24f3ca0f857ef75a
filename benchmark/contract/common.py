"""The promises of every plugin."""

from __future__ import annotations

import inspect
import re
from typing import Any

from bdbench.contract.promises import promise
from bdbench.contract.scenarios import expect
from bdbench.models.plugins.documentation import about_fields, about_module
from bdbench.models.plugins.registry import Registry
from bdbench.models.plugins.spec import Spec


def factory_of(registry: Registry[Any], name: str) -> Any:
    """The class or function of a spec."""
    return registry.factory(Spec.of(name).name)


@promise("", "it can be built from its settings")
def can_be_built(registry: Registry[Any], name: str) -> None:
    registry.build(name)


@promise("", "it can be written as a spec and parsed back", can_be_built)
def specs(registry: Registry[Any], name: str) -> None:
    canonical = registry.canonical(name)
    again = registry.canonical(canonical)
    expect(again == canonical, f"its spec {canonical!r} parses back as {again!r}")
    label = registry.label(name)
    expect(label == name, f"its label is {label!r}, not {name!r}: building it changes its settings")
    expect(registry.version(Spec.of(name).name) >= 1, "its version is below 1")
    built = registry.canonical(registry.build(name))
    expect(built == canonical, f"building it changes its settings to {built!r}")


@promise("", "its documentation names the method and every field")
def documentation(registry: Registry[Any], name: str) -> None:
    factory = factory_of(registry, name)
    first = about_module(factory).partition("\n")[0].rstrip()
    expect(
        bool(first),
        "its file has no docstring; write one, whose first line names method, authors and year",
    )
    expect(first.endswith((".", ":")), f"the first line of its file is not a sentence: {first!r}")
    words = {*re.findall(r"\w+", about_fields(factory))}
    for field in inspect.signature(factory).parameters.values():
        if field.default is not inspect.Parameter.empty:
            expect(field.name in words, f"its docstring does not explain {field.name}")
