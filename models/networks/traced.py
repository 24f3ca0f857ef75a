"""Any network as a classifier: stages, embedding and head are found in its traced graph.

The network is traced, and one batch passes through it. The head is the linear layer that computes
the logits, and the embedding is the input of the head. A stage covers one resolution: it ends with
the last feature map of that resolution through which every path to the logits leads. A part that
only pools is not a stage.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.functional import interpolate

from bdbench.models.networks.classifier import Channels, Classifier
from bdbench.models.plugins.errors import InvalidInput, require

DROPPED = ("p", "dropout", "attention_dropout")
"""Names of arguments that are shares of what a dropout leaves out."""
PROBES = 2
"""Images that pass through a network to find its feature maps."""


class Traced(Classifier):
    """A network without stages of its own, split into three pieces: up to the end of the last
    stage, from there to the embedding, and the head.

    network: gives logits for float32 (n, 3, height, width); its layers are used, not copied
    image_size: height and width, pixels
    scale: factor by which images are enlarged before they enter the network
    mean, deviation: every pixel becomes (pixel - mean) / deviation
    owner: the name of the network in an error

    Raises `InvalidInput` for a network that cannot be split, and for one whose own code, not that
    of its layers, computes something else in training.
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
        trace = _Trace(network.eval(), image_size * scale, owner)
        self.head = trace.head
        stages = trace.stages()
        self.trunk = trace.piece(None, stages[-1], stages)
        self.neck = trace.piece(stages[-1], trace.embedding, trace.embedding)
        self.record_names(network)
        with torch.no_grad():
            same = self.head(self.neck(self.trunk(trace.images)[-1])).allclose(trace.logits)
        require(same, f"{owner} gives other logits when it is split into stages")
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
    """Keeps every layer without children whole, because it may act differently in training, as
    dropout does."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return super().is_leaf_module(module, name) or next(module.children(), None) is None


class _Shapes(fx.Interpreter):
    """Records the shape of every tensor, by node."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = result.shape
        return result


def _is_frozen(node: fx.Node) -> bool:
    """Whether a node calls a function that acts in training only, such as `F.dropout`: the graph
    has its argument as it was in eval mode. A share of 0 acts in neither."""
    given = _arguments(node)
    shares = [value for name, value in given.items() if name in DROPPED]
    return given.get("training") is False and (not shares or any(shares))


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a node, by name where its function tells their names."""
    if node.op == "call_function" and callable(node.target):
        with suppress(TypeError, ValueError):  # no signature
            given = inspect.signature(node.target).bind(*node.args, **node.kwargs)
            given.apply_defaults()
            return given.arguments
    return {**{str(n): value for n, value in enumerate(node.args)}, **node.kwargs}


def _operations(graph: fx.Graph) -> list[tuple[str, Any, dict[str, Any]]]:
    """What computes the logits, in order, but for modes, see `_is_frozen`. What else a network
    gives, such as auxiliary logits, comes after them and is left out."""
    (given,) = next(reversed(graph.nodes)).args
    left = [given[0] if isinstance(given, tuple | list) else given]
    needed: set[fx.Node] = set()
    while left:
        node = left.pop()
        if isinstance(node, fx.Node) and node not in needed:
            needed.add(node)
            left += node.all_input_nodes
    place = {node: n for n, node in enumerate(node for node in graph.nodes if node in needed)}
    arguments = (fx.map_arg(_arguments(node), lambda inner: place[inner]) for node in place)
    return [
        (node.op, node.target, {name: value for name, value in each.items() if name != "training"})
        for node, each in zip(place, arguments, strict=True)
    ]


def _name(node: fx.Node | None) -> str:
    return getattr(node.target, "__name__", str(node.target)) if node else ""


class _Trace:
    """The graph of a network in eval mode, with the shapes of a small batch at every node.

    images, logits: float32 (n, 3, height, width) and the output of the network for it
    head: the layer that computes the logits
    embedding: the node that the head reads
    """

    def __init__(self, network: nn.Module, size: int, owner: str) -> None:
        self.network, self.owner = network, owner
        self.images = torch.linspace(0, 1, PROBES * 3 * size**2).view(PROBES, 3, size, size)
        with torch.no_grad():
            self.logits = _attempt(
                lambda: network(self.images), f"{owner} cannot take images of {size} pixels"
            )
            self.graph = _attempt(lambda: _Tracer().trace(network), f"{owner} cannot be traced")
            shapes = _Shapes(fx.GraphModule(network, self.graph))
            shapes.run(self.images)
        frozen = next(filter(_is_frozen, self.graph.nodes), None)
        require(
            frozen is None,
            f"{owner} calls {_name(frozen)} with its own mode, which is fixed once it is traced: "
            "use a layer, such as nn.Dropout",
        )
        trained = self._trained()
        require(
            _operations(trained) == _operations(self.graph),
            f"{owner} computes something else in training, which is lost once it is traced: use a "
            "layer, such as nn.Dropout, for what acts in training only",
        )
        self.shapes: Mapping[fx.Node, torch.Size] = shapes.found
        self.nodes = list(self.graph.nodes)
        self.head, self.embedding = self._head()

    def _trained(self) -> fx.Graph:
        """The graph in training mode."""
        self.network.train()
        try:
            complaint = f"{self.owner} cannot be traced in training mode"
            graph: fx.Graph = _attempt(lambda: _Tracer().trace(self.network), complaint)
            return graph
        finally:
            self.network.eval()

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
        """The feature maps at which stages end, each smaller than the one before."""
        ends: list[fx.Node] = []
        index = {node: n for n, node in enumerate(self.nodes)}
        for side, maps in groupby(filter(self._is_map, self._bottlenecks()), self._side):
            last, start = list(maps)[-1], index[ends[-1]] if ends else 0
            learned = any(map(self._learns, self.nodes[start + 1 : index[last] + 1]))
            if learned and (not ends or side < self._side(ends[-1])):
                ends.append(last)
        require(
            bool(ends),
            f"{self.owner} has no feature map that every path to the logits passes through, so "
            "defenses cannot inspect it; choose another network",
        )
        return ends

    def piece(self, first: fx.Node | None, last: fx.Node, returned: Any) -> fx.GraphModule:
        """The part of the graph after `first`, or from the images, up to `last`."""
        graph, copies, start = fx.Graph(), dict[fx.Node, fx.Node](), 0

        def copied(node: fx.Node) -> fx.Node:
            # Either piece may read attributes of the network itself.
            if node not in copies:
                copies[node] = graph.node_copy(node, copied)
            return copies[node]

        if first is not None:
            copies[first], start = graph.placeholder("last"), self.nodes.index(first) + 1
        for node in self.nodes[start : self.nodes.index(last) + 1]:
            copied(node)
        graph.output(fx.map_arg(returned, copied))
        return fx.GraphModule(self.network, graph)

    def _bottlenecks(self) -> Iterable[fx.Node]:
        """The nodes through which every path from the images to the embedding leads."""
        index = {node: n for n, node in enumerate(self.nodes)}
        last_user = 0
        for n, node in enumerate(self.nodes[: index[self.embedding] + 1]):
            if node.op == "get_attr":
                continue
            if last_user <= n and node.op != "placeholder":
                yield node
            last_user = max([last_user, *(index[user] for user in node.users)])

    def _is_map(self, node: fx.Node) -> bool:
        shape = self.shapes.get(node, ())
        return len(shape) == 4 and shape[2] == shape[3]

    def _side(self, node: fx.Node) -> int:
        return self.shapes[node][2]

    def _layer(self, node: fx.Node) -> nn.Module | None:
        return self.network.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _learns(self, node: fx.Node) -> bool:
        """Whether the layer of a node has weights, not just the scales of a normalisation."""
        layer = self._layer(node)
        return layer is not None and any(values.dim() > 1 for values in layer.parameters())


def _attempt(call: Callable[[], Any], complaint: str) -> Any:
    """The result of a call. Raises `InvalidInput` with the first line of any error in it."""
    try:
        return call()
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise InvalidInput(f"{complaint}: {first or type(error).__name__}") from error
