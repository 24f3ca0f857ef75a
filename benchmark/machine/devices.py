"""Which device and precision a run uses."""

from __future__ import annotations

import torch

from bdbench.models.plugins import spec
from bdbench.models.plugins.errors import InvalidInput, one_line
from bdbench.models.training.recipe import PRECISIONS

FREE = 0.8
"""The share of its memory that is free on a GPU which no other process uses, at least."""


class DeviceFailed(Exception):
    """A GPU cannot run a cell now, and another one may."""


class DeviceFull(DeviceFailed):
    """It has too little memory for this cell, beside other processes."""


def device_of(name: str) -> torch.device:
    """`auto` is the first GPU, else the CPU. Raises `InvalidInput` for a device that this machine
    does not have."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    if name.partition(":")[0] == "cuda" and not count:
        build = "is built without CUDA" if torch.version.cuda is None else "finds no GPU"
        raise InvalidInput(f"device {name!r} does not exist: torch {build}; use 'cpu' or 'auto'")
    present = ["cpu", *(["cuda"] if count else []), *(f"cuda:{n}" for n in range(count))]
    if name not in present:
        raise InvalidInput(f"device {name!r} does not exist{spec.did_you_mean(name, present)}")
    return indexed(name)


def indexed(name: str) -> torch.device:
    """A device by its name; `cuda`, as on a cluster, is the first GPU that a process sees."""
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


def check_device(device: torch.device) -> None:
    """Raises `DeviceFailed` for a GPU that does not work, such as one that is lost, full, or in the
    exclusive use of another process."""
    if device.type != "cuda":
        return
    try:
        use(device)
        torch.zeros(1, device=device)
        torch.cuda.synchronize(device)
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        # The lines after the first advise programmers.
        first = str(error).partition("\n")[0]
        raise DeviceFailed(f"{device} cannot be used: {one_line(first)}") from error


def is_shared(device: torch.device) -> bool:
    """Whether other processes use much of the memory of a GPU."""
    if device.type != "cuda":
        return False
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:
        return False
    return free + torch.cuda.memory_reserved(device) < FREE * total


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
    return bool({"avx512_bf16", "arm_bf16"} & _capabilities())


def instructions() -> str:
    """The instructions of the CPU by which libraries choose the code that computes, such as "AVX512
    with bf16": processors of one name may differ in them, and then in the last bits of numbers."""
    found = _capabilities()
    matrices = ["AMX"] * any(name.startswith("amx_") for name in found)
    more = " and ".join(["bf16"] * has_bf16() + matrices)
    return torch.backends.cpu.get_cpu_capability() + (f" with {more}" if more else "")


def _capabilities() -> set[str]:
    """What the CPU can do; nothing where torch does not know."""
    every: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return {name for name, value in every.items() if value}
