"""Networks as files: weights by name in safetensors, with what they are as metadata.

The hash of a network is that of its weights, not of its file: metadata may be added or lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from bdbench.models.plugins.errors import InvalidInput, require
from bdbench.storage.atomic import write_atomically

FOLDER = "networks"
PICKLES = (b"PK\x03\x04", *(bytes([0x80, n]) for n in range(2, 6)))
"""How files begin that `torch.save` wrote."""
CONVERT = (
    "import torch; from safetensors.torch import save_file; "
    "save_file(torch.load('FILE.pt', weights_only=True), 'FILE.safetensors')"
)


@dataclass(frozen=True)
class Stored:
    """What a file of weights holds.

    weights: by name, on the CPU
    facts: what the file says about them; bdbench writes key, model, classes and image_size
    origin: what it is called in messages, such as its path
    file: its name without folders, empty where there is none
    """

    weights: Mapping[str, Tensor]
    facts: Mapping[str, str] = field(default_factory=dict)
    origin: str = "the network"
    file: str = ""


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """64 hex digits that stand for names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def path_of(results: Path, key: str) -> Path:
    """Where the network of a cell is, or would be."""
    return results / FOLDER / f"{key}.safetensors"


def write(path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write a network, with its hash among the facts. Raises `Unusable` where it cannot be."""
    # Each a copy of its own: safetensors refuses tensors that share memory.
    whole = {
        name: values.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, values in weights.items()
    }
    metadata = {"format": "pt", **facts, "sha256": weights_sha256(whole)}
    write_atomically(path, safetensors.torch.save(whole, metadata))


def read(path: Path) -> Stored:
    """The weights in a file, which is never unpickled. Raises `InvalidInput` for what is no whole
    safetensors file, and for weights that are not those whose hash the file states."""
    try:
        # To open a pipe is to wait for somebody who writes to it.
        require(not path.exists() or path.is_file(), f"{path} is no file of weights")
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from None
    require(bool(content), f"{path} is empty: save the state dict of a network as safetensors")
    try:
        weights = safetensors.torch.load(content)
        facts = _facts(content)
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        # Only now, as the length with which safetensors begin may be any bytes.
        require(
            not content.startswith(PICKLES),
            f"{path} is a pickle, which may hold code and is not opened; convert it with "
            f'python -c "{CONVERT}"',
        )
        raise InvalidInput(
            f"{path} is no whole safetensors file ({error}): copy it again, or save the state dict "
            "with safetensors.torch.save_file"
        ) from None
    stated = facts.get("sha256")
    require(
        stated is None or stated == weights_sha256(weights),
        f"{path} is damaged: its weights are not those that were saved; remove it, and the command "
        "that made it makes it again",
    )
    return Stored(weights, facts, str(path), path.name)


def _facts(content: bytes) -> dict[str, str]:
    """The metadata of a file that was read as safetensors."""
    length = int.from_bytes(content[:8], "little")
    found = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return {str(name): str(text) for name, text in found.items()}
