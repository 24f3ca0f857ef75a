"""The registry of networks."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from bdbench.models.plugins import spec
from bdbench.models.plugins.blame import blaming
from bdbench.models.plugins.errors import require
from bdbench.models.plugins.registry import Registry

if TYPE_CHECKING:
    from bdbench.models.networks.classifier import Classifier


@dataclass(frozen=True)
class Model:
    """A registered function with its settings. It builds networks.

    factory: called with the number of classes, the height and width in pixels, and the settings
    settings: values by name
    """

    factory: Callable[..., Classifier]
    settings: Mapping[str, Any]

    def build(self, num_classes: int, image_size: int) -> Classifier:
        """A network with new random weights. Raises `InvalidInput` if the function returns anything
        but a `Classifier` of so many classes, or one that it has returned before."""
        from bdbench.models.networks.classifier import check_network

        owner, start = f"model {models.name_of(self.factory)!r}", next(_clock)
        settings = {**spec.marked(self.factory), **self.settings}
        with blaming(owner):
            network = self.factory(num_classes, image_size, **settings)
        check_network(network, num_classes, image_size, owner, self.factory.__name__)
        require(
            _returned.get(network, start) >= start,
            f"{owner} returned a network that it had returned before: {self.factory.__name__} must "
            "make a new one in each call",
        )
        _returned[network] = next(_clock)
        return network


_clock = itertools.count()
_returned: WeakKeyDictionary[Classifier, int] = WeakKeyDictionary()
"""When a model returned each living network last. One model may call another."""


class Models(Registry[Model]):
    """The registry of networks, whose plugins are functions, or classes of networks."""

    runtime_parameters = 2

    def check_factory(self, name: str, factory: Callable[..., Any]) -> None:
        require(
            inspect.isfunction(factory) or inspect.isclass(factory),
            f"model {name!r} is not a function: write one that takes the number of classes and the "
            "image size, and returns a network",
        )
        parameters = list(inspect.signature(factory).parameters.values())
        require(
            len(parameters) >= self.runtime_parameters
            or any(each.kind in spec.VARIABLE for each in parameters),
            f"model {name!r} must take the number of classes and the image size first",
        )

    def elsewhere(self, name: str) -> str:
        import torchvision.models as theirs  # as slow to import as torch, and rarely needed

        known = theirs.list_models(module=theirs)
        return f"; torchvision has it: write torchvision(name={name!r})" if name in known else ""

    def make(self, factory: Callable[..., Any], settings: Mapping[str, Any]) -> Model:
        return Model(factory, settings)

    def decompose(self, plugin: Model) -> tuple[Callable[..., Any], Mapping[str, Any]]:
        return plugin.factory, plugin.settings


models = Models("model", "bdbench.models.networks", (__name__, "Model"))
register = models.register
