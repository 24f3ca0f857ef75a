"""Any network as a classifier: its stages, its embedding and its head are found in its graph.

The network is traced, and one batch goes through it. Its head is the linear layer that gives the
answers, and the embedding is what that reads. A stage is what is computed at one resolution: it
ends with the last map there through which everything passes. What only pools is no stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import interpolate

from bdbench.models.networks.classifier import Channels, Classifier
from bdbench.models.plugins.errors import InvalidInput, require

PROBED = 2
"""Images that go through a network to find its maps."""


class Traced(Classifier):
    """A network that knows nothing of stages, in three pieces: up to the end of the last stage,
    from there to the embedding, and the head.

    network: gives logits for float32 (n, 3, height, width); its layers are used, not copied
    image_size: height and width, pixels
    scale: how many times a side is enlarged before the network sees an image
    mean, deviation: see `Classifier`
    owner: what the network is called in an error

    Raises `InvalidInput` for a network that has no such pieces.
    """

    def __init__(
        self,
        network: nn.Module,
        image_size: int,
        scale: int = 1,
        mean: Channels = 0.0,
        deviation: Channels = 1.0,
        owner: str = "the network",
    ) -> None:
        super().__init__(mean, deviation)
        self.scale = scale
        seen = _Seen(network.eval(), image_size * scale, owner)
        self.head = seen.head
        stages = seen.stages()
        self.trunk = seen.piece(None, stages[-1], stages)
        self.neck = seen.piece(stages[-1], seen.embedding, seen.embedding)
        self.made_of(network)
        with torch.no_grad():
            same = self.head(self.neck(self.trunk(seen.images)[-1])).allclose(seen.answers)
        require(same, f"{owner} does not answer the same when it is taken apart")
        self.train()

    def body(self, images: Tensor) -> list[Tensor]:
        if self.scale > 1:
            images = interpolate(images, scale_factor=self.scale, mode="bilinear")
        maps: list[Tensor] = self.trunk(images)
        return maps

    def embed(self, last: Tensor) -> Tensor:
        embedding: Tensor = self.neck(last)
        return embedding[:, :, None, None]


class _Tracer(fx.Tracer):
    """Looks into no layer that has no parts: what it does may differ in training, as dropout."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return super().is_leaf_module(module, name) or next(module.children(), None) is None


class _Shapes(fx.Interpreter):
    """Remembers the shape of every tensor, by node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        if isinstance(made, Tensor):
            self.found[n] = made.shape
        return made


class _Seen:
    """What there is to see of a network in eval mode through which a few images went.

    images, answers: float32 (n, 3, height, width) and what the network made of it
    head: the layer that gives the answers
    embedding: what it reads
    """

    def __init__(self, network: nn.Module, size: int, owner: str) -> None:
        self.network, self.owner = network, owner
        self.images = torch.linspace(0, 1, PROBED * 3 * size**2).view(PROBED, 3, size, size)
        with torch.no_grad():
            self.answers = _tried(
                lambda: network(self.images), f"{owner} cannot take images of {size} pixels"
            )
            self.graph = _tried(lambda: _Tracer().trace(network), f"{owner} cannot be traced")
            shapes = _Shapes(fx.GraphModule(network, self.graph))
            shapes.run(self.images)
        self.shapes: Mapping[fx.Node, torch.Size] = shapes.found
        self.nodes = list(self.graph.nodes)
        self.head, self.embedding = self._head()

    def _head(self) -> tuple[nn.Linear, fx.Node]:
        last = self.nodes[-1].args[0]
        layer = self._layer(last) if isinstance(last, fx.Node) else None
        require(
            isinstance(layer, nn.Linear),
            f"{self.owner} does not end in a linear layer from an embedding to the classes",
        )
        assert isinstance(layer, nn.Linear)
        assert isinstance(last, fx.Node)
        (embedding,) = last.all_input_nodes
        require(
            len(self.shapes[embedding]) == 2,
            f"the last layer of {self.owner} does not read one vector for each image",
        )
        return layer, embedding

    def stages(self) -> list[fx.Node]:
        """The maps with which stages end, each smaller than the one before."""
        found: list[fx.Node] = []
        place = {node: n for n, node in enumerate(self.nodes)}
        for side, maps in groupby(filter(self._is_map, self._passed()), self._side):
            last, begun = list(maps)[-1], place[found[-1]] if found else 0
            learned = any(map(self._learns, self.nodes[begun + 1 : place[last] + 1]))
            if learned and (not found or side < self._side(found[-1])):
                found.append(last)
        require(
            bool(found),
            f"{self.owner} has no feature map through which everything passes, so no defense could "
            "look into it",
        )
        return found

    def piece(self, first: fx.Node | None, last: fx.Node, given: Any) -> fx.GraphModule:
        """What is computed after `first`, or from the images on, up to `last`, and `given` back."""
        graph, known, begin = fx.Graph(), dict[fx.Node, fx.Node](), 0

        def copied(node: fx.Node) -> fx.Node:
            # What is read of the network itself may be read in either piece.
            if node not in known:
                known[node] = graph.node_copy(node, copied)
            return known[node]

        if first is not None:
            known[first], begin = graph.placeholder("last"), self.nodes.index(first) + 1
        for node in self.nodes[begin : self.nodes.index(last) + 1]:
            copied(node)
        graph.output(fx.map_arg(given, copied))
        return fx.GraphModule(self.network, graph)

    def _passed(self) -> Iterable[fx.Node]:
        """The nodes through which everything passes on its way to the embedding."""
        place = {node: n for n, node in enumerate(self.nodes)}
        needed = 0
        for n, node in enumerate(self.nodes[: place[self.embedding] + 1]):
            if node.op == "get_attr":
                continue
            if needed <= n and node.op != "placeholder":
                yield node
            needed = max([needed, *(place[user] for user in node.users)])

    def _is_map(self, node: fx.Node) -> bool:
        shape = self.shapes.get(node, ())
        return len(shape) == 4 and shape[2] == shape[3]

    def _side(self, node: fx.Node) -> int:
        return self.shapes[node][2]

    def _layer(self, node: fx.Node) -> nn.Module | None:
        return self.network.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _learns(self, node: fx.Node) -> bool:
        """Whether its layer has weights, and not only the scales of a normalisation."""
        layer = self._layer(node)
        return layer is not None and any(values.dim() > 1 for values in layer.parameters())


def _tried(call: Callable[[], Any], complaint: str) -> Any:
    """What a call returns. Raises `InvalidInput` with the first line of what it raises."""
    try:
        return call()
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise InvalidInput(f"{complaint}: {first or type(error).__name__}") from error
