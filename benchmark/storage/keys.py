"""Hashes by which cells, records and entries of the cache are called."""

from __future__ import annotations

import hashlib
import json
from typing import Any

KEY = "[0-9a-f]{16}"
"""What the first half of a digest looks like, by which cells and records are called."""
DIGEST = "[0-9a-f]{32}"
"""What a digest looks like, by which entries of the cache are called."""


def digest_of(value: Any) -> str:
    """32 hex digits that stand for a JSON value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
