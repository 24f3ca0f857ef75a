"""Settings of torch, one for each process, and environment variables that change the numbers it
computes, or their speed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch


@dataclass(frozen=True)
class Setting:
    """One of them.

    usual: its value unless somebody sets another
    gpu: whether it is for GPUs only
    """

    read: Callable[[], Any]
    write: Callable[[Any], object]
    usual: Any
    gpu: bool = False

    def value(self) -> Any:
        """The value now, as JSON; None where torch cannot say, as with two conflicting settings of
        TF32."""
        with suppress(RuntimeError):
            value = self.read()
            return value if isinstance(value, bool | str) else str(value)
        return None


CUDNN, MATMUL = torch.backends.cudnn, torch.backends.cuda.matmul


def _of(module: Any, name: str, usual: Any, gpu: bool = True) -> Setting:
    return Setting(partial(getattr, module, name), partial(setattr, module, name), usual, gpu)


def _set_device(device: torch.device) -> None:
    # With a device, torch intercepts every call, also for the one that it uses anyway.
    torch.set_default_device(None if device == torch.device("cpu") else device)


SETTINGS: Mapping[str, Setting] = {
    "dtype": Setting(torch.get_default_dtype, torch.set_default_dtype, "torch.float32"),
    "default device": Setting(torch.get_default_device, _set_device, "cpu"),
    "gradients": Setting(torch.is_grad_enabled, torch.set_grad_enabled, True),
    **{
        f"autocast on {kind}": Setting(
            partial(torch.is_autocast_enabled, kind),
            partial(torch.set_autocast_enabled, kind),
            False,
            gpu=kind != "cpu",
        )
        for kind in ("cpu", "cuda")
    },
    "anomaly detection": Setting(
        torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly, False
    ),
    "deterministic": Setting(
        torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, False
    ),
    "matmul": Setting(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"
    ),
    "onednn": _of(torch.backends.mkldnn, "enabled", True, gpu=False),
    "cudnn": _of(CUDNN, "enabled", True),
    "cudnn deterministic": _of(CUDNN, "deterministic", False),
    "cudnn benchmark": _of(CUDNN, "benchmark", False),
    "cudnn tf32": _of(CUDNN, "allow_tf32", True),
    "matmul tf32": _of(MATMUL, "allow_tf32", False),
}


KERNELS = ("ATEN_CPU_CAPABILITY", "DNNL_", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_")
"""Prefixes of environment variables by which libraries choose the code that computes."""
GPU_KERNELS = (*KERNELS, "NVIDIA_TF32_OVERRIDE")
"""The same for a GPU, beside which the CPU computes."""


def state(settings: Mapping[str, Setting] = SETTINGS) -> dict[Callable[[Any], object], Any]:
    """What restores each setting, and its value; without those that torch cannot tell."""
    found = {}
    for setting in settings.values():
        with suppress(RuntimeError):
            found[setting.write] = setting.read()
    return found


def unusual(device: torch.device) -> dict[str, Any]:
    """The settings that a device obeys and that have another value than usual, and the environment
    variables that choose its kernels, where they are set."""
    gpu = device.type != "cpu"
    found = {name: each.value() for name, each in SETTINGS.items() if gpu or not each.gpu}
    found = {name: value for name, value in found.items() if value != SETTINGS[name].usual}
    kernels = GPU_KERNELS if gpu else KERNELS
    return found | {
        name: os.environ[name] for name in sorted(os.environ) if name.startswith(kernels)
    }
