"""Pixels and files as callers of the library hand them over: paths, URIs, pictures and arrays.

`read_given` gives a path, the bytes of a file, a list of paths, or frames as uint8 [n, h, w, 3].
Nothing is fetched, and torch is not imported: its tensors are read as the arrays that they give.
"""

import base64
import binascii
import os
import re
from typing import Any

import numpy as np
from PIL import Image

from videorft_jax.data.media.contract import Limits, cut_text
from videorft_jax.data.media.files import guarded
from videorft_jax.data.media.image import check_pixels, open_image, to_rgb

_DATA = re.compile(r"data:[\w.+-]*/?[\w.+-]*(;[\w.+=-]+)*,", re.ASCII)


def read_given(source: Any, kind: str) -> str | os.PathLike | bytes | list | np.ndarray:
    """The source of a part whose kind is "image" or "video".

    A path, also behind file://, and the bytes of a file stay what they are, and a data URI becomes
    bytes. A file that is open in binary mode is read. Pillow's pictures, arrays, tensors and lists
    of them become frames, see `read_frames`; a list of paths stays one, for a clip alone.

    Raises ValueError, one short line, for anything else.
    """
    if isinstance(source, str):
        return _read_text(source, kind)
    if isinstance(source, os.PathLike):
        return source
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, list | tuple) and kind == "video":
        return _read_list([read_given(item, "image") for item in source])
    if isinstance(source, Image.Image):
        return _read_picture(source)[None]
    if callable(getattr(source, "read", None)):
        content = source.read()
        if not isinstance(content, bytes):
            raise ValueError(f"prepare: {kind}: the file gives text; open it in binary mode")
        return content
    if hasattr(source, "__array__"):
        return read_frames(source, kind)
    raise ValueError(
        f"prepare: {kind}: a {type(source).__name__} is no source; give a path, a data URI, bytes, "
        "a picture or an array"
    )


def _read_text(source, kind):
    if not source.startswith("data:"):
        return source.removeprefix("file://")
    head = _DATA.match(source[:200])
    if head is None or not head[0].endswith(";base64,"):
        raise ValueError(
            f"prepare: {kind}: {cut_text(source)!r} is no data URI of base64; write "
            f"data:{kind}/...;base64, and the content"
        )
    return read_base64(source[head.end() :], kind)


def read_base64(text: Any, kind: str) -> bytes:
    """The bytes that a text stands for. Raises ValueError where it is no base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise ValueError(
            f"prepare: {kind}: {cut_text(str(text))!r} is not base64; encode the file's bytes"
        ) from None


def _read_list(items):
    """A list of paths as it is, and any other list of pictures as frames."""
    if all(isinstance(item, str | os.PathLike) for item in items):
        return [os.fspath(item) for item in items]
    if any(isinstance(item, str | os.PathLike) for item in items):
        raise ValueError("prepare: video: frames are paths and pictures; give one kind of them")
    frames = [_decode(item) if isinstance(item, bytes) else item for item in items]
    sizes = {frame.shape[1:] for frame in frames}
    if len(sizes) > 1:
        named = ", ".join(f"{width} x {height}" for height, width, _ in sorted(sizes)[:3])
        raise ValueError(f"prepare: video: frames are {named}; give frames of one size")
    return np.concatenate(frames)


def _decode(content):
    def decode():
        with open_image(content, Limits()) as image:
            return to_rgb(image)[None]

    return guarded(decode, content)


def _read_picture(image):
    def convert():
        check_pixels(image, Limits())
        return to_rgb(image)

    return guarded(convert, image)


def read_frames(source: Any, kind: str) -> np.ndarray:
    """uint8 [n, h, w, 3] of an array or tensor of RGB: [h, w, 3] or [3, h, w] for an image, with a
    leading n for a clip. Where both ends are 3 the last is the colour.

    Whole numbers are from 0 to 255. Fractions are from 0 to 1 where none is larger, and else from 0
    to 255; they are rounded. Raises ValueError, one line, for other shapes, numbers and dtypes.
    """
    try:
        array = np.asarray(source)
    except Exception as error:  # A tensor of another library raises what it likes.
        reason = cut_text(" ".join(str(error).split()))
        raise ValueError(f"prepare: {kind}: no array ({reason}); give a NumPy array") from None
    wanted = "[h, w, 3] or [3, h, w]" if kind == "image" else "[n, h, w, 3] or [n, 3, h, w]"
    if kind == "image" and array.ndim == 3:
        array = array[None]
    is_whole = array.ndim == 4 and 0 not in array.shape and (kind == "video" or len(array) == 1)
    if is_whole and array.shape[3] != 3 and array.shape[1] == 3:
        array = array.transpose(0, 2, 3, 1)
    if not is_whole or array.shape[3] != 3:
        raise ValueError(
            f"prepare: {kind}: an array of shape {np.shape(source)} is no RGB; give {wanted}"
        )
    return np.ascontiguousarray(_to_bytes(array, kind))


def _to_bytes(array, kind):
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "iuf":
        raise ValueError(f"prepare: {kind}: an array of {array.dtype}; give numbers from 0 to 255")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):  # NaN is neither.
        raise ValueError(
            f"prepare: {kind}: values from {low} to {high}; give those of pixels, 0 to 255 or "
            "0 to 1"
        )
    if array.dtype.kind == "f":
        wide = array.astype(np.float32)
        array = np.rint(wide * 255 if high <= 1 else wide)
    return array.astype(np.uint8)
