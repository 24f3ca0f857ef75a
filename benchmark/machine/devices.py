"""Which device and precision a run uses."""

from __future__ import annotations

import torch

from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.training.recipe import PRECISIONS


def device_of(name: str) -> torch.device:
    """`auto` is the first GPU, or the processor without one. Raises `InvalidInput` for a device
    that is not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    present = ["cpu", *(["cuda"] if count else []), *(f"cuda:{n}" for n in range(count))]
    if name not in present:
        raise InvalidInput(f"device {name!r} is not there{spec.did_you_mean(name, present)}")
    return torch.device("cuda:0" if name == "cuda" else name)


def devices_of(name: str) -> tuple[torch.device, ...]:
    """Those that a run may spread over: `auto` and `cuda` are all visible GPUs, `cuda:1` is one.
    Raises `InvalidInput` as `device_of`."""
    first = device_of(name)
    if first.type == "cpu" or ":" in name:
        return (first,)
    return tuple(torch.device(f"cuda:{n}") for n in range(torch.cuda.device_count()))


def precision_of(name: str, device: torch.device) -> str:
    """`auto` is bf16 on a processor with instructions for it, fp32 everywhere else."""
    if name == "auto":
        return "bf16" if device.type == "cpu" and has_bf16() else "fp32"
    if name not in PRECISIONS:
        known = ["auto", *PRECISIONS]
        raise InvalidInput(f"unknown precision {name!r}{spec.did_you_mean(name, known)}")
    return name


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 in hardware; where torch cannot tell, it is taken not
    to."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("arm_bf16"))
