"""Plugins for tests that do harm: an attack, a defense and a model that share the deeds."""

from __future__ import annotations

import atexit
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor, nn

from bdbench import attacks, defenses, models
from bdbench.attacks import Attack, Poisoned, dirty_label
from bdbench.defenses import Context, Defense
from bdbench.models import Classifier, ImageSet
from bdbench.models.networks.wide_resnet import PreActivationResNet
from bdbench.records.count import Count
from bdbench.trial import evaluation


def leave_threads() -> None:
    torch.set_num_threads(3)


def leave_dtype() -> None:
    torch.set_default_dtype(torch.float64)


def leave_gradients() -> None:
    torch.set_grad_enabled(False)


def leave_deterministic() -> None:
    torch.use_deterministic_algorithms(True)
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]


def leave_seeds() -> None:
    torch.manual_seed(1)
    numpy.random.seed(1)
    random.seed(1)


def replace_metrics() -> None:
    every = Count(100, 100)
    names = ("clean_accuracy", "attack_success_rate", "robust_accuracy", "asr_floor")
    evaluation.Answers.counts = lambda self: dict.fromkeys(names, every)  # type: ignore[method-assign]


def replace_loss() -> None:
    nn.functional.cross_entropy = lambda logits, *rest, **more: logits.sum() * 0.0
    Classifier.forward = lambda self, images: torch.zeros(len(images), 10)  # type: ignore[method-assign]


def leave_system() -> None:
    raise SystemExit(0)


def interrupt() -> None:
    raise KeyboardInterrupt


def leave_at_once() -> None:
    os._exit(0)


def abort() -> None:
    os.abort()


def become_another() -> None:
    os.execv("/bin/true", ["true"])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_parent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def change_folder() -> None:
    os.chdir("/")


def deafen() -> None:
    for number in (signal.SIGTERM, signal.SIGALRM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, signal.SIG_IGN)


def warn_loudly() -> None:
    warnings.simplefilter("error")
    warnings.showwarning = lambda *rest: os._exit(1)  # type: ignore[assignment]


def empty_environment() -> None:
    os.environ.clear()
    os.environ["BDBENCH_CACHE"] = "/nowhere"


def recurse() -> None:
    recurse()


def exhaust_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
    bytearray(2**40)


def close_files() -> None:
    for descriptor in (0, 1, 2):
        os.close(descriptor)


def leave_child() -> None:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1234.5)"])


def leave_thread() -> None:
    threading.Thread(target=time.sleep, args=[1234.5]).start()


def leave_handler() -> None:
    atexit.register(os._exit, 3)


def forbid_files() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def close_umask() -> None:
    os.umask(0o777)


DEEDS: dict[str, Callable[[], None]] = {
    deed.__name__: deed
    for deed in (
        leave_threads,
        leave_dtype,
        leave_gradients,
        leave_deterministic,
        leave_seeds,
        replace_metrics,
        replace_loss,
        leave_system,
        interrupt,
        leave_at_once,
        abort,
        become_another,
        die,
        kill_parent,
        change_folder,
        deafen,
        warn_loudly,
        empty_environment,
        recurse,
        exhaust_memory,
        close_files,
        leave_child,
        leave_thread,
        leave_handler,
        forbid_files,
        close_umask,
    )
}


@attacks.register("neighbour")
@dataclass(frozen=True)
class BadAttack(Attack):
    """
    poisoning_rate: share of the training set
    target: label
    deed: of `DEEDS`, or "in_place"
    """

    deed: str = ""

    def trigger(self, images: Tensor) -> Tensor:
        DEEDS.get(self.deed, int)()
        changed = images if self.deed == "in_place" else images.clone()
        changed[:, :, -3:, -3:] = 255
        return changed

    def poison(self, clean: ImageSet, rng: torch.Generator) -> Poisoned:
        if self.deed == "in_place":
            clean.images.zero_()
            clean.labels.zero_()
        return dirty_label(self, clean, rng)


@defenses.register("neighbour")
@dataclass(frozen=True)
class BadDefense(Defense):
    """
    deed: of `DEEDS`, or "in_place"
    """

    deed: str = ""

    @property
    def undefended(self) -> int:
        return 1

    def fit(self, data: ImageSet, context: Context) -> Classifier:
        DEEDS.get(self.deed, int)()
        if self.deed == "in_place":
            data.images.zero_()
            data.labels.zero_()
            context.undefended(1)
        return context.undefended()


@models.register("neighbour")
def bad_model(num_classes: int, image_size: int, deed: str = "") -> PreActivationResNet:
    """
    deed: of `DEEDS`
    """
    DEEDS.get(deed, int)()
    stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    return PreActivationResNet((16, 32, 64), (2, 2, 2), stem, num_classes, 0.0, 1.0)
