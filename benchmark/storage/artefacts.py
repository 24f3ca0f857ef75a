"""What is kept of a cell beside its record: values for each training image, and embeddings.

One file in the cache, `artefacts/<key of the cell>-<hash of the content>.safetensors`. This module
needs no torch; the harness writes, figures read.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from bdbench.models.plugins.errors import require
from bdbench.storage import mark
from bdbench.storage.atomic import Unusable, write_atomically
from bdbench.storage.keys import KEY

FOLDER = "artefacts"
Arrays = dict[str, NDArray[numpy.generic]]


def save(record_key: str, root: Path, arrays: Mapping[str, NDArray[numpy.generic]]) -> Path:
    """Keep `arrays` for a cell in place of what was kept before; returns where.

    mask: bool (n,), training images with the trigger
    samples/<name>: float32 (n,), what a defense published for each training image
    rows: int64 (m,), the training images that the following are about
    labels, true_labels: int64 (m,), as given and before the attack
    poisoned: bool (m,)
    embedding/<name>/before, embedding/<name>/after: float32 (m, d), of a network before and after
        its training; z is the network that a defense returns, r is CBD's f_B

    Where the file cannot be written, that is warned of. Raises `InvalidInput` for a key that is
    none, and for a folder that is somebody else's.
    """
    files = _files(record_key, root)
    whole = {name: numpy.ascontiguousarray(array) for name, array in arrays.items()}
    content = safetensors.numpy.save(whole)
    path = root / FOLDER / f"{record_key}-{_digest(content)}.safetensors"
    try:
        mark.claim(root)
        write_atomically(path, content)
    except Unusable as error:
        warnings.warn(f"no figure will show what is inside this cell: {error}", stacklevel=2)
        return path
    for other in files:
        if other != path and mark.own_name(other, FOLDER) is not None:
            with suppress(OSError):
                other.unlink(missing_ok=True)
    return path


def load(record_key: str, root: Path) -> Arrays | None:
    """What `save` kept, or None where nothing is, or nothing whole. Raises `InvalidInput` for a key
    that is none."""
    for path in _files(record_key, root):
        try:
            content = path.read_bytes() if path.is_file() else b""
            if path.stem == f"{record_key}-{_digest(content)}":
                return dict(safetensors.numpy.load(content))
        except (OSError, SafetensorError):
            continue
    return None


def _files(record_key: str, root: Path) -> list[Path]:
    """Whatever bears the name of a cell."""
    require(re.fullmatch(KEY, record_key) is not None, f"key {record_key!r} is not 16 hex digits")
    return sorted((root / FOLDER).glob(f"{record_key}-*.safetensors"))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
