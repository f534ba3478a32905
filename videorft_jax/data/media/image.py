"""From a picture to the one frame of a clip: orientation, colours and transparency."""

import contextlib
import os
from collections.abc import Iterator
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from videorft_jax.data.media.clip import Clip
from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.decode import UNKNOWN_CONTAINER, read_single_frame
from videorft_jax.data.media.files import read_guarded
from videorft_jax.data.media.resize import resize_planes
from videorft_jax.data.media.sampling import target_size

# JPEG includes the MPO of phones.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
# The box that opens an AVIF or HEIC file lists the brands, the standards that the file conforms to.
AVIF_BRANDS = {b"avif", b"avis"}
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # orientations that swap height and width
MOST_BRANDS = 256  # So many bytes of the opening box are read.
IMAGE_FPS = 2.0  # A still image becomes a clip whose grid steps last one second.


def read_image(
    source: str | os.PathLike | bytes,
    contract: MediaContract,
    *,
    root: str | os.PathLike | None = None,
    limits: Limits = Limits(),  # noqa: B008, frozen
) -> Clip:
    """Reads a still image as a clip of one frame; layout repeats it.

    The camera's orientation is applied and transparency is laid on white (as qwen-vl-utils does).
    16-bit grey is scaled to 8 bits. CMYK goes through Pillow's own formula, without its colour
    profile, as in qwen-vl-utils. A video of one frame is a picture too, an animation is none.
    Raises MediaError as `read_video`.
    """

    def decode(name: str | bytes) -> Clip:
        frame = _read_still(name, limits)
        size = target_size(*frame.shape[:2], 1, contract, image=True)
        planes, zero = [resize_planes(frame, *size)], np.zeros(1)
        return Clip(planes, zero, IMAGE_FPS, zero.astype(np.int64), frame.shape[:2])

    return read_guarded(decode, source, root, limits)


def look_at_image(
    source: str | os.PathLike | bytes,
    *,
    root: str | os.PathLike | None = None,
    limits: Limits = Limits(),  # noqa: B008, frozen
) -> tuple[int, int]:
    """(height, width) of a still image as it is shown, by its header alone."""

    def look(name: str | bytes) -> tuple[int, int]:
        try:
            with open_image(name, limits) as image:
                return shown_size(image)
        except UnidentifiedImageError:
            return _read_video_of_one(name, limits).shape[:2]

    return read_guarded(look, source, root, limits)


def _read_still(name: str | bytes, limits: Limits) -> np.ndarray:
    try:
        with open_image(name, limits) as image:
            return to_rgb(image)
    except UnidentifiedImageError:
        return _read_video_of_one(name, limits)


def _read_video_of_one(name: str | bytes, limits: Limits) -> np.ndarray:
    """The frame of a video that has one. A file that is no video either is called no picture."""
    try:
        return read_single_frame(name, limits)
    except MediaError as error:
        if error.detail != UNKNOWN_CONTAINER:
            raise
        raise MediaError("not_media", "no picture of a known format") from None


@contextlib.contextmanager
def open_image(name: str | bytes, limits: Limits) -> Iterator[Image.Image]:
    """A still image whose header was read and whose pixels were not. Raises MediaError
    too_many_pixels and unsupported, and what Pillow raises."""
    file = BytesIO(name) if isinstance(name, bytes) else name
    with Image.open(file, "r", _formats(name)) as image:
        check_pixels(image, limits)
        if getattr(image, "is_animated", False) and image.format != "MPO":
            raise MediaError(
                "unsupported", f"an animation of {image.n_frames} frames is no still image"
            )
        yield image


def check_pixels(image: Image.Image, limits: Limits) -> None:
    """Raises MediaError too_many_pixels, known from the header, before anything is decoded."""
    if image.width * image.height > limits.max_source_pixels:
        size = f"{image.width}x{image.height}"
        raise MediaError("too_many_pixels", f"{size} > {limits.max_source_pixels} pixels")


def _formats(name: str | bytes) -> tuple[str, ...]:
    """The formats that are tried: AVIF where Pillow was built with it, HEIC where the plug-in
    pillow-heif is installed. Raises MediaError unsupported where the file needs what is missing."""
    if isinstance(name, bytes):
        head = name[:MOST_BRANDS]
    else:
        with open(name, "rb") as file:
            head = file.read(MOST_BRANDS)
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[i : i + 4] for i in range(16, end, 4))}
    if head[4:8] != b"ftyp" or not brands & (AVIF_BRANDS | HEIF_BRANDS):
        return IMAGE_FORMATS
    if brands & AVIF_BRANDS:
        if not features.check("avif"):
            raise MediaError("unsupported", "an AVIF picture; install pillow 11.3 or newer")
        return ("AVIF",)
    try:
        import pillow_heif
    except ImportError:
        raise MediaError("unsupported", "a HEIC picture; pip install pillow-heif") from None
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def shown_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) after the camera's orientation is applied."""
    sides = (image.height, image.width)
    return sides[::-1] if _orientation(image) in SIDEWAYS else sides


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1, upright, for any value without a meaning. The other tags are not read."""
    value = image.getexif().get(ORIENTATION, 1)
    return value if isinstance(value, int) and value in TURNS else 1


def to_rgb(image: Image.Image) -> np.ndarray:
    """The picture upright, uint8 [h, w, 3]."""
    turn = TURNS.get(_orientation(image))
    image.load()
    if image.mode.startswith("I") or image.mode == "F":
        image = _scale_grey(image)
    if turn is not None:
        image = image.transpose(turn)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.asarray(image.convert("RGB"))


def _scale_grey(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8, round(value / 257). Pillow itself cuts off above 255, which
    makes almost everything white.

    Raises MediaError unsupported where the values have no agreed range: negative or above 65535, or
    fractions.
    """
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        what = f"grey values of mode {image.mode} from {values.min():g} to {values.max():g}"
        raise MediaError("unsupported", f"{what} have no agreed range")
    grey = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # the one value that is not to be seen
        grey = Image.merge("LA", [grey, Image.fromarray((values != transparent) * np.uint8(255))])
    return grey
