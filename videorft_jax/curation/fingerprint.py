"""Fingerprints of videos: whether two files show the same clip, however they were encoded.

A frame is known by a 64-bit difference hash, which survives smaller sizes, stronger compression,
darker pictures and logos, and by a thumbnail. Hashes find candidates. Where many clips share a
background, as rendered ones do, their hashes agree; what moves in the thumbnails then decides.
"""

import base64
import dataclasses
from collections.abc import Iterator

import numpy as np
from PIL import Image

from videorft_jax.data.media.contract import MediaContract

CONTRACT = MediaContract(
    fps=1.0, min_frames=8, max_frames=64, min_pixels=4 * 28 * 28, max_pixels=64 * 28 * 28,
    image_min_pixels=4 * 28 * 28, image_max_pixels=64 * 28 * 28,
)  # fmt: skip
SIDE = 24  # A thumbnail has so many pixels a side.
FLAT = 8.0  # Frames with a smaller standard deviation, of 255, tell nothing.
NEAR_BITS = 10
LEAST_FRAMES = 3
LEAST_SHARE = 0.5
MOVES_ALIKE = 0.6  # correlation of two frames, each less the mean frame of its clip
LOOKS_ALIKE = 0.8  # correlation of two frames as they are
_STEP = 2.0  # Neighbours that differ by less are equal, so that noise in flat parts sets no bit.


@dataclasses.dataclass(frozen=True)
class View:
    """The k frames of a clip that are not flat, with or without its border.

    hashes uint64 [k]; mirrored: the hashes of the mirrored frames, uint64 [k]; thumbnails uint8
    [k, SIDE, SIDE].
    """

    hashes: np.ndarray
    mirrored: np.ndarray
    thumbnails: np.ndarray


def make_views(frames: np.ndarray) -> list[View]:
    """Views of frames uint8 [n, h, w, 3]: as they are and, where they have one, without border."""
    grey = frames.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    views, trimmed = [_view(grey)], _trim(grey)
    if trimmed.shape != grey.shape:
        views.append(_view(trimmed))
    return views


def _view(grey: np.ndarray) -> View:
    grey = grey[grey.std((1, 2)) >= FLAT]
    small = np.array([_resize(frame, (9, 8)) for frame in grey]).reshape(-1, 8, 9)
    thumbnails = np.array([_resize(frame, (SIDE, SIDE)) for frame in grey])
    thumbnails = np.clip(thumbnails.reshape(-1, SIDE, SIDE).round(), 0, 255).astype(np.uint8)
    return View(_hash(small), _hash(small[:, :, ::-1]), thumbnails)


def _resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))


def _hash(small: np.ndarray) -> np.ndarray:
    """float [k, 8, 9] -> uint64 [k]: a bit for each point that is brighter than the next."""
    bits = (small[:, :, :-1] - small[:, :, 1:] > _STEP).reshape(-1, 64)
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def _trim(grey: np.ndarray) -> np.ndarray:
    """Takes off bars of one colour that stand at opposite sides of all frames, as a letterbox
    does, and are about equally wide."""
    for axis in (1, 2):
        others = tuple({0, 1, 2} - {axis})
        is_plain = grey.std(others) < 4.0
        length = len(is_plain)
        first = int(np.argmin(is_plain)) if not is_plain.all() else 0
        last = int(np.argmin(is_plain[::-1])) if not is_plain.all() else 0
        if min(first, last) > 0.02 * length and abs(first - last) <= 0.02 * length + 2:
            grey = np.take(grey, np.arange(first + 1, length - last - 1), axis)
    return grey


def find_match(a: list[View], b: list[View]) -> float:
    """Share of the frames of the shorter clip that the other one shows too, mirrored or not, with
    or without borders; 0 unless the two are one clip."""
    return max((_match(*pair) for pair in _pairs(a, b)), default=0.0)


def _pairs(a: list[View], b: list[View]) -> Iterator[tuple]:
    for x in a:
        for y in b:
            yield x.hashes, x.thumbnails, y.hashes, y.thumbnails
            yield x.hashes, x.thumbnails, y.mirrored, y.thumbnails[:, :, ::-1]


def _match(hashes, thumbnails, other_hashes, other_thumbnails) -> float:
    if len(hashes) > len(other_hashes):
        return _match(other_hashes, other_thumbnails, hashes, thumbnails)
    near = np.bitwise_count(hashes[:, None] ^ other_hashes[None]) <= NEAR_BITS
    if near.any(1).sum() < max(LEAST_FRAMES, LEAST_SHARE * len(hashes)):
        return 0.0
    looks, looks_other = _unit(_level(thumbnails)), _unit(_level(other_thumbnails))
    moves, moves_other = _motion(thumbnails), _motion(other_thumbnails)
    alike = np.where(near, looks @ looks_other.T, -1.0)
    best = alike.argmax(1)
    is_same = (alike.max(1) >= LOOKS_ALIKE) & ((moves * moves_other[best]).sum(1) >= MOVES_ALIKE)
    share = float(is_same.mean())
    if len(np.unique(best[is_same])) < LEAST_FRAMES or share < LEAST_SHARE:
        return 0.0
    return round(share, 4)


def _level(thumbnails: np.ndarray) -> np.ndarray:
    """Each frame as a row of mean 0 and standard deviation 1, so that brightness is no matter."""
    rows = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    return (rows - rows.mean(1, keepdims=True)) / (rows.std(1, keepdims=True) + 1e-6)


def _motion(thumbnails: np.ndarray) -> np.ndarray:
    """What each frame adds to the mean frame of its clip, as rows of unit length."""
    rows = _level(thumbnails)
    return _unit(rows - rows.mean(0))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6)


def pack(views: list[View]) -> list[list]:
    """The views as JSON: for each the number of frames, hashes, mirrored hashes and thumbnails."""
    return [
        [len(view.hashes)] + [base64.b64encode(array.tobytes()).decode() for array in
                              (view.hashes, view.mirrored, view.thumbnails)]
        for view in views
    ]  # fmt: skip


def unpack(rows: list[list]) -> list[View]:
    """Inverse of `pack`."""
    views = []
    for count, *texts in rows:
        hashes, mirrored, thumbnails = map(base64.b64decode, texts)
        pixels = np.frombuffer(thumbnails, np.uint8).reshape(count, SIDE, SIDE)
        views.append(View(np.frombuffer(hashes, "u8"), np.frombuffer(mirrored, "u8"), pixels))
    return views
