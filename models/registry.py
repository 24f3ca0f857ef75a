"""The networks there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bdbench.models.plugins.registry import Registry

if TYPE_CHECKING:
    from bdbench.models.networks.classifier import Classifier


@dataclass(frozen=True)
class Model:
    """A registered function with its settings, which makes networks.

    factory: called with the number of classes, height and width in pixels, and the settings
    settings: values by name
    """

    factory: Callable[..., Classifier]
    settings: Mapping[str, Any]

    def build(self, num_classes: int, image_size: int) -> Classifier:
        """A network with new random weights."""
        return self.factory(num_classes, image_size, **self.settings)


class Models(Registry[Model]):
    """The registry of networks, whose plugins are functions."""

    def make(self, factory: Callable[..., Any], settings: Mapping[str, Any]) -> Model:
        return Model(factory, settings)

    def taken_apart(self, plugin: Model) -> tuple[Callable[..., Any], Mapping[str, Any]]:
        return plugin.factory, plugin.settings


models = Models("model", "bdbench.models.networks", (__name__, "Model"))
register = models.register
