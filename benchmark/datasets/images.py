"""Decodes image files into one tensor, without trusting what their headers say."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLEFORMAT,
    TiffImageFile,
)
from torch import Tensor

from bdbench.models.data import ImageSet
from bdbench.models.plugins.errors import InvalidInput, require

LARGEST = 10_000
"""Largest number of pixels along a side, enough for photographs of cameras."""
# Some other formats of Pillow start external programs.
FORMATS = ("PNG", "JPEG", "WEBP", "PPM", "BMP", "TIFF")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of the files that are read as images, in lower case."""
EIGHT_BITS = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""The pixel modes of Pillow that it converts to RGB correctly."""
SIGNED = 2
"""The sample format of signed integers in a TIFF."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that undoes each Exif orientation, by its number."""

Resize = Callable[[Image.Image, int], Image.Image]
"""Makes a square image of so many pixels a side from an image of any size."""


def squash(image: Image.Image, size: int) -> Image.Image:
    """Resize the whole image to a square with a bilinear filter, whatever its aspect ratio."""
    return image.resize((size, size), Image.Resampling.BILINEAR)


def centre(image: Image.Image, size: int, share: float = 1.0) -> Image.Image:
    """Crop the central square and resize it with a bilinear filter.

    share: side of the square, relative to the shorter side of the image

    Only the square is resized, so that a long and narrow image does not fill the memory.
    """
    width, height = image.size
    side = min(width, height) * share
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box)


def decode(content: bytes, size: int, resize: Resize | None, origin: str) -> bytes:
    """Decode one image to the uint8 bytes of (3, size, size), oriented as its Exif data says.

    resize: applied to an image of another size; None refuses it
    origin: file and row, for messages

    Raises `InvalidInput` for an image that is damaged, too large, or of the wrong size.
    """
    with _named_errors(origin):
        image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
        width, height = image.size
        found = f"{origin}: image is {width}x{height} pixels"
        require(max(width, height) <= LARGEST, f"{found}, larger than {LARGEST}x{LARGEST}")
        fits = image.size == (size, size)
        require(fits or resize is not None, f"{found}; all must be {size}x{size}")
        if image.format == "PNG":
            # Decoding does not verify the checksums, and a verified image cannot be decoded.
            image.verify()
            image = Image.open(io.BytesIO(content), formats=FORMATS)
        image = upright(to_rgb(image, origin))
        if resize is not None and not fits:
            image = resize(image, size)
    return np.asarray(image).transpose(2, 0, 1).tobytes()


def frames(content: bytes) -> int:
    """The number of frames of an animation, or of pages, of which `decode` reads the first; 1 if it
    cannot be read."""
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return int(getattr(Image.open(io.BytesIO(content), formats=FORMATS), "n_frames", 1))
    return 1


def to_rgb(image: Image.Image, origin: str) -> Image.Image:
    """Convert an image of any mode to RGB with 8 bits per channel.

    Of 12 or 16 bits, the upper 8 are kept. Transparency is dropped, not blended with a background,
    as in Pillow's `convert` and the loaders of torchvision: a pixel keeps its stored colour. Raises
    `InvalidInput` for pixels without a known range, such as floating point.
    """
    mode, bits, white_is_zero, signed = image.mode, 16, False, False
    if isinstance(image, TiffImageFile):
        # Pillow drops the sign of 8 bits, and neither scales nor inverts more than 8 bits of grey.
        tags = image.tag_v2
        bits = tags.get(BITSPERSAMPLE, (1,))[0]
        white_is_zero = tags.get(PHOTOMETRIC_INTERPRETATION, 0) == 0
        signed = SIGNED in tags.get(SAMPLEFORMAT, ())
    # Older versions of Pillow, and its PPM reader, return 16 bits as 32.
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
        levels = np.asarray(image).astype(np.int64) >> (bits - 8)
        grey = Image.fromarray(levels.clip(0, 255).astype(np.uint8))
        if white_is_zero:
            grey = ImageOps.invert(grey)
        grey.info = image.info
        return grey.convert("RGB")
    kinds = {"I": "32-bit integers", "F": "floating point"}
    kind = "signed integers" if signed else kinds.get(mode, f"the kind {mode}")
    require(
        mode in EIGHT_BITS and not signed,
        f"{origin}: image has pixels of {kind}, whose range of colours is not known: save it with "
        "8 or 16 bits, unsigned",
    )
    return image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """Rotate and flip an image as its Exif data says; leave it if that cannot be read."""
    turn = None
    with suppress(Exception):  # damaged Exif data makes Pillow raise almost anything
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


@contextmanager
def _named_errors(origin: str) -> Iterator[None]:
    """Raises `InvalidInput` with `origin` for whatever Pillow raises in the block."""
    try:
        with warnings.catch_warnings():
            # Whatever Pillow warns about, the image can be decoded or not.
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
    """Collects decoded images and their labels, and holds them in memory only once.

    size: height and width of all images, pixels
    resize: applied to images of another size; None refuses them
    several: the number of images with several frames or pages
    """

    size: int
    resize: Resize | None
    num_classes: int
    pixels: bytearray = field(default_factory=bytearray)
    labels: list[int] = field(default_factory=list)
    several: int = 0

    def add(self, content: bytes, label: int, origin: str) -> None:
        """Decode one image. Raises `InvalidInput` as `decode` does, and for a wrong label."""
        if not 0 <= label < self.num_classes:
            raise InvalidInput(f"{origin}: label {label} is not in [0, {self.num_classes})")
        self.pixels += decode(content, self.size, self.resize, origin)
        self.several += frames(content) > 1
        self.labels.append(label)

    def add_file(self, path: Path, label: int) -> None:
        """Decode one image file. Raises `InvalidInput` as `add` does and for unreadable files."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InvalidInput(f"cannot read {path}: {error.strerror or error}") from None
        except ValueError as error:  # a name with a NUL
            raise InvalidInput(f"cannot read {path}: {error}") from None
        self.add(content, label, str(path))

    def finish(self) -> ImageSet:
        """All images, in the order in which they were added; there must be at least one."""
        images: Tensor = torch.frombuffer(self.pixels, dtype=torch.uint8)
        return ImageSet(
            images.view(-1, 3, self.size, self.size), torch.tensor(self.labels), self.num_classes
        )
