"""Turns the bytes of image files into one tensor, and trusts nothing that their headers say."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput, require

LARGEST = 10_000
"""Pixels along a side: enough for photographs as cameras make them."""
# Among the other formats that Pillow knows are some that start external programs.
FORMATS = ("PNG", "JPEG", "WEBP", "PPM", "BMP", "TIFF")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Of files that are taken for images, in small letters."""
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes of pixels whose colours it converts as one expects."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation of Exif, by its number."""

NAMED = 3
"""How many files a note names."""

Resize = Callable[[Image.Image, int], Image.Image]
"""Makes an image of any size one of so many pixels a side."""


def squash(image: Image.Image, size: int) -> Image.Image:
    """The whole image, whatever its proportions, with a bilinear filter."""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def centre(image: Image.Image, size: int, share: float = 1.0) -> Image.Image:
    """The central square, `share` of the shorter side, with a bilinear filter.

    What lies outside is never made, so that a long and narrow image does not fill the memory.
    """
    width, height = image.size
    side = min(width, height) * share
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box)


def decode(content: bytes, size: int, resize: Resize | None, origin: str) -> bytes:
    """One image as the uint8 bytes of (3, size, size).

    It is turned as its Exif says. An image of another size is resized or, without `resize`,
    refused. Raises `InvalidInput` with `origin`, which names file and row.
    """
    with _refusal(origin):
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        found = f"{origin}: image is {width}x{height} pixels"
        require(max(width, height) <= LARGEST, f"{found}, larger than {LARGEST}x{LARGEST}")
        fits = image.size == (size, size)
        require(fits or resize is not None, f"{found}, all must be {size}x{size}")
        if image.format == "PNG":
            # Decoding compares no checksum of the pixels, and what is verified is used up.
            image.verify()
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        image = upright(colour(image, origin))
        if resize is not None and not fits:
            image = resize(image, size)
    return np.asarray(image).transpose(2, 0, 1).tobytes()


def colour(image: Image.Image, origin: str) -> Image.Image:
    """An image of any kind in 8 bits of red, green and blue.

    Of 16 bits the upper eight stay. Transparency is dropped and put on no background, as Pillow's
    `convert` and the loaders of torchvision do: a pixel has the colour that is stored for it.
    Raises `InvalidInput` for pixels whose range is not known, such as floating point.
    """
    mode = image.mode
    # Older versions of Pillow, and that of PPM, read 16 bits into 32.
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        levels = np.asarray(image).astype(np.int64) >> 8
        grey = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
        grey.info = image.info
        return grey.convert("RGB")
    kinds = {"I": "32-bit integers", "F": "floating point"}
    require(
        mode in EIGHT_BITS,
        f"{origin}: image has pixels of {kinds.get(mode, f'the kind {mode}')}, whose range of "
        "colours is not known; save it with 8 or 16 bits",
    )
    return image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """An image turned and mirrored as its Exif says; as it is, where that cannot be read."""
    turn = None
    with suppress(Exception):  # a damaged Exif makes Pillow raise almost anything
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def left_out(names: Iterable[str], read: Sequence[str] = SUFFIXES) -> str:
    """A note that names and counts what lies among images and is not `read`; empty for no names."""
    found = sorted(names)
    if not found:
        return ""
    few = ", ".join(found[:NAMED])
    more = f" and {len(found) - NAMED:,} more" if len(found) > NAMED else ""
    return f"left out {len(found):,}, as not *{', *'.join(read)}: {few}{more}"


@contextmanager
def _refusal(origin: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # Pillow warns of what is judged here by its outcome.
            warnings.simplefilter("ignore")
            yield
    except InvalidInput:
        raise
    except Image.DecompressionBombError:
        raise InvalidInput(f"{origin}: image is larger than {LARGEST}x{LARGEST} pixels") from None
    except Exception as error:  # damaged files make Pillow raise almost anything
        raise InvalidInput(f"{origin}: image cannot be decoded ({type(error).__name__})") from error


@dataclass
class ImageCollector:
    """Collects decoded images and their labels, without ever holding them twice.

    size: height and width of all images, pixels
    resize: what is done with images of another size, None if they are refused
    """

    size: int
    resize: Resize | None
    num_classes: int
    pixels: bytearray = field(default_factory=bytearray)
    labels: list[int] = field(default_factory=list)

    def add(self, content: bytes, label: int, origin: str) -> None:
        """Decode one image. Raises `InvalidInput` with `origin` for it or a label out of range."""
        if not 0 <= label < self.num_classes:
            raise InvalidInput(f"{origin}: label {label} is not in [0, {self.num_classes})")
        self.pixels += decode(content, self.size, self.resize, origin)
        self.labels.append(label)

    def add_file(self, path: Path, label: int) -> None:
        """Decode one image file. Raises `InvalidInput` as `add`, and for an unreadable file."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from None
        except ValueError as error:  # a name with a NUL
            raise InvalidInput(f"cannot read {path}: {error}") from None
        self.add(content, label, str(path))

    def finish(self) -> ImageSet:
        """All of them in order; at least one must have been added."""
        images: Tensor = torch.frombuffer(self.pixels, dtype=torch.uint8)
        return ImageSet(
            images.view(-1, 3, self.size, self.size), torch.tensor(self.labels), self.num_classes
        )
