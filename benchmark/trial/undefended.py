"""Networks trained on a poisoned set without a defense, which post-training defenses start from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from bdbench.cells.cost import UNDEFENDED_SHARE
from bdbench.machine.clock import peak_memory
from bdbench.machine.contention import Contention, combine
from bdbench.models.data import ImageSet
from bdbench.models.networks.classifier import Classifier
from bdbench.models.plugins.errors import require
from bdbench.models.rng import derive
from bdbench.models.training.context import TrainingContext
from bdbench.models.training.loop import train
from bdbench.storage.cache import CacheEntry, Payload
from bdbench.storage.checkpoints import discard
from bdbench.trial import keys
from bdbench.trial.curves import POINT
from bdbench.trial.monitor import TrainingMonitor
from bdbench.trial.workspace import Workspace


def train_undefended(ws: Workspace, data: ImageSet, n: int, announced: bool = True) -> None:
    """Add the weights of the n-th undefended network to `ws.undefended`. Cells share it by way of
    the cache; its seconds and passes are charged once to each. A network that a user brought costs
    nothing.

    announced: by the defense; a network that is trained unannounced, inside `fit`, is for this cell
        alone, as what `fit` has done by then is in the key of no other
    """
    if ws.given is not None:
        require(n == 0, f"one network is given, and the defense asks for {n + 1}")
        ws.undefended[n] = dict(ws.given)
        return
    key = ws.key(keys.undefended_key(ws.cell, n, ws.machine))
    kept = ws.kept(key, keys.TRAINED)
    work = kept if announced and ws.shares else ws.own_key(f"undefended {n}")
    build, suffices = partial(_train, ws, data, n, work), partial(_suffices, ws, n)
    if announced:
        entry = ws.shared("undefended", key, kept, build, suffices)
    else:
        entry = CacheEntry(*build(), fresh=True)
    for curve in (False, True):
        discard(ws.folder("undefended", keys.with_curve(work, curve)))
    if not entry.fresh:
        ws.stopwatch.charge("undefended", entry.meta["seconds"])
        ws.contention.append(entry.meta.get("others"))
        ws.peak = max(ws.peak, entry.meta.get("peak", 0))
    ws.monitor.add(entry.meta, with_curve=ws.curves and not ws.cell.is_defended)
    ws.undefended[n] = entry.tensors


def undefended_copy(ws: Workspace, n: int) -> Classifier:
    """A copy of the n-th undefended network, in eval mode."""
    network = _context(ws, n).build()
    if not ws.cell.is_defended:
        ws.monitor.watch(network)
    network.load_state_dict(ws.undefended[n])
    return network.eval()


def _train(ws: Workspace, data: ImageSet, n: int, work: Mapping[str, Any]) -> Payload:
    """Weights, and the seconds, memory, passes and curve of their training.

    work: the key of its checkpoints, apart from the curve
    """
    key = keys.with_curve(work, _has_curve(ws, n))
    context, spent = _context(ws, n), ws.stopwatch.seconds["undefended"]
    # Asking for other processes may take a second, which belongs to no stage.
    with ws.stage("others"):
        others = Contention(ws.device)
    monitor, network = TrainingMonitor(ws.progress, ws.stopwatch, UNDEFENDED_SHARE), context.build()
    monitor.judge = ws.monitor.judge if _has_curve(ws, n) else None
    monitor.sizes = ws.monitor.sizes
    monitor.watch(network)
    with ws.resumable("undefended", key, monitor), ws.seeded("undefended", str(n)):
        train(network, data, context.recipe, context.rng("classifier"))
    with ws.stage("others"):
        contention = combine([others.meanwhile(), *ws.contention])
    meta = {
        "seconds": ws.stopwatch.seconds["undefended"] - spent,
        "others": contention,
        "peak": peak_memory(ws.device),
        "timed": ws.timed,
        "points": POINT if _has_curve(ws, n) else (),
        **monitor.counts(),
    }
    return {name: values.cpu().clone() for name, values in network.state_dict().items()}, meta


def _context(ws: Workspace, n: int) -> TrainingContext:
    """Network 0 starts from the same weights as a defense that trains from scratch. The others have
    seeds of their own."""
    training = ws.training
    return replace(training, seed=derive(training.seed, "undefended", str(n))) if n else training


def _has_curve(ws: Workspace, n: int) -> bool:
    return ws.curves and n == 0


def _suffices(ws: Workspace, n: int, meta: Mapping[str, Any]) -> bool:
    """Only a cell without a defense publishes the curve, so only there must a stored network have
    one. Where seconds are compared, they must be those of a run in which no other cell trained."""
    curve = ws.cell.is_defended or not _has_curve(ws, n) or has_curve(meta)
    return curve and (not ws.timed or is_timed(meta))


def is_timed(meta: Mapping[str, Any]) -> bool:
    """Whether a stored network was trained in a run whose cells follow each other."""
    return meta.get("timed") is True


def has_curve(meta: Mapping[str, Any]) -> bool:
    """Whether a stored network has a curve with all that a record states."""
    return tuple(meta.get("points", ())) == POINT
