"""Which device and precision a run uses."""

from __future__ import annotations

import torch

from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput
from bdbench.models.training.recipe import PRECISIONS


def device_of(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU. Raises `InvalidInput` for a device that this machine
    does not have."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    present = ["cpu", *(["cuda"] if count else []), *(f"cuda:{n}" for n in range(count))]
    if name not in present:
        raise InvalidInput(f"device {name!r} does not exist{spec.did_you_mean(name, present)}")
    return torch.device("cuda:0" if name == "cuda" else name)


def devices_of(name: str) -> tuple[torch.device, ...]:
    """The devices of a run: `auto` and `cuda` are all visible GPUs, `cuda:1` is one. Raises
    `InvalidInput` as `device_of` does."""
    first = device_of(name)
    if first.type == "cpu" or ":" in name:
        return (first,)
    return tuple(torch.device(f"cuda:{n}") for n in range(torch.cuda.device_count()))


def use(device: torch.device) -> None:
    """Make a GPU the current one of this thread, whose generator and memory torch means where a
    call names no device, and initialise CUDA, which not every function of torch does."""
    if device.type == "cuda":
        torch.cuda.init()
        torch.cuda.set_device(device)


def precision_of(name: str, device: torch.device) -> str:
    """`auto` is bf16 on a CPU with instructions for it, else fp32."""
    if name == "auto":
        return "bf16" if device.type == "cpu" and has_bf16() else "fp32"
    if name not in PRECISIONS:
        known = ["auto", *PRECISIONS]
        raise InvalidInput(f"unknown precision {name!r}{spec.did_you_mean(name, known)}")
    return name


def has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware; False where torch does not know."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("arm_bf16"))
