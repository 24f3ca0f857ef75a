"""Networks as files: weights by name in safetensors, and their description as metadata.

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

PICKLES = (b"PK\x03\x04", *(bytes([0x80, n]) for n in range(2, 6)))
"""First bytes of files that `torch.save` wrote."""
CONVERT = (
    "import torch; from safetensors.torch import save_file; "
    "save_file(torch.load('FILE.pt', weights_only=True), 'FILE.safetensors')"
)


@dataclass(frozen=True)
class Stored:
    """The content of a file of weights.

    weights: by name, on the CPU
    facts: metadata of the file; bdbench writes key, model, classes and image_size
    origin: name for messages, such as the path
    file: name of the file without folders, empty where it has none
    """

    weights: Mapping[str, Tensor]
    facts: Mapping[str, str] = field(default_factory=dict)
    origin: str = "the network"
    file: str = ""


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """64 hex digits: a hash of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write(path: Path, weights: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write a network, with its hash among the facts. Raises `Unusable` where that fails."""
    # Copies, as safetensors refuses tensors that share memory.
    whole = {
        name: values.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, values in weights.items()
    }
    metadata = {"format": "pt", **facts, "sha256": weights_sha256(whole)}
    write_atomically(path, safetensors.torch.save(whole, metadata))


def read(path: Path) -> Stored:
    """Read the weights in a file, which is never unpickled. Raises `InvalidInput` for a file that
    is not complete safetensors, and for weights that do not match the hash in the file."""
    try:
        require(not path.exists() or path.is_file(), f"{path} is not a file of weights")
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from None
    require(bool(content), f"{path} is empty: save the state dict of a network as safetensors")
    try:
        weights = safetensors.torch.load(content)
        facts = _facts(content)
    except (SafetensorError, ValueError, LookupError, TypeError, RecursionError) as error:
        # Checked last: safetensors begin with a length, which may be the same bytes.
        require(
            not content.startswith(PICKLES),
            f"{path} is a pickle, which may run code and is not opened; convert it with "
            f'python -c "{CONVERT}"',
        )
        raise InvalidInput(
            f"{path} is not a complete safetensors file ({error}): copy it again, or save the "
            "state dict with safetensors.torch.save_file"
        ) from None
    stated = facts.get("sha256")
    require(
        stated is None or stated == weights_sha256(weights),
        f"{path} is corrupt: its weights do not match their hash; delete it and run the command "
        "that wrote it again",
    )
    return Stored(weights, facts, str(path), path.name)


def _facts(content: bytes) -> dict[str, str]:
    """The metadata of a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    found = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    return {str(name): str(text) for name, text in found.items()}
