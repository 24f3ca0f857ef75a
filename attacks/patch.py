"""Patches, defined in cells of one pixel for images of 32 pixels; they grow with the image."""

from __future__ import annotations

from torch import Tensor

from bdbench.models.plugins.errors import require


def cell_pixels(height: int) -> int:
    """Side of one cell in an image of `height` pixels: 1 at 32, 7 at 224."""
    return max(1, round(height / 32))


def enlarge(cells: Tensor, height: int) -> Tensor:
    """(channels, rows, columns) of cells -> the patch in pixels for images of `height`."""
    pixels = cell_pixels(height)
    return cells.repeat_interleave(pixels, 1).repeat_interleave(pixels, 2)


def place(height: int, width: int, patch: Tensor, margin: int) -> tuple[slice, slice]:
    """Rows and columns of a patch `margin` cells from the lower and the right border.

    Raises `InvalidInput` if it does not fit into the image.
    """
    rows, columns = patch.shape[1:]
    offset = margin * cell_pixels(height)
    top, left = height - rows - offset, width - columns - offset
    require(
        top >= 0 and left >= 0,
        f"a patch of {rows} x {columns} pixels, {offset} from the border, does not fit "
        f"{height} x {width}",
    )
    return slice(top, top + rows), slice(left, left + columns)
