"""Hashes that name cells, records and entries of the cache."""

from __future__ import annotations

import hashlib
import json
from typing import Any

KEY = "[0-9a-f]{16}"
"""Pattern of the first half of a digest, which names cells and records."""
DIGEST = "[0-9a-f]{32}"
"""Pattern of a digest, which names entries of the cache."""


def digest_of(value: Any) -> str:
    """32 hex digits: a hash of a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
