"""Film strips: the frames that the model saw of a clip, side by side in one small image."""

import base64
import dataclasses
import io
import os
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from videorft_jax.data.media.contract import MediaContract, MediaError
from videorft_jax.data.media.load import load_media
from videorft_jax.data.records.chats import MediaItem

HEIGHT = 96  # pixels of a strip
MOST_FRAMES = 8  # frames of a strip
_QUALITY = 70  # quality of the JPEG, of 100


@dataclasses.dataclass(frozen=True)
class Film:
    """jpeg: the frames side by side, in base64. times: seconds of the frames within the clip."""

    jpeg: str
    times: list[float]


@dataclasses.dataclass(frozen=True)
class Clip:
    """A clip to show: the item of a record, and what to read it from."""

    item: MediaItem
    media: str | bytes | tuple[str, ...]

    @property
    def label(self) -> str:
        """What the page calls the clip; the same item has the same label."""
        item = self.item
        whole = item.start is None and item.end is None
        span = "" if whole else f" from {item.start or 0:g} s to {item.end or 'the end'}"
        return f"{item.name}{span}"


def make_film(clip: Clip, root: str, contract: MediaContract) -> Film | str:
    """The strip of a clip, or the reason why it has none."""
    item = clip.item
    found = load_media(clip.media, root, **item.load_arguments(contract))
    if isinstance(found, MediaError):
        return str(found)
    count = len(found.planes)
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_FRAMES)).round().astype(int))
    frames = found.frames[chosen]
    width = max(1, round(HEIGHT * frames.shape[2] / frames.shape[1]))
    images = [Image.fromarray(frame).resize((width, HEIGHT)) for frame in frames]
    strip = Image.new("RGB", (width * len(images), HEIGHT))
    for place, image in enumerate(images):
        strip.paste(image, (place * width, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=_QUALITY)
    times = [round(float(second), 2) for second in found.timestamps[chosen]]
    return Film(base64.b64encode(buffer.getvalue()).decode(), times)


def make_films(
    clips: Mapping[str, Clip],
    root: str | os.PathLike,
    contract: MediaContract,
    limit: int,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[dict[str, Film], dict[str, str]]:
    """(films, reasons why others are missing) by label, up to `limit` bytes of images.

    clips: by label, in the order in which they are wanted most. show: is told how many of them
    have been read, of how many.
    """
    films, reasons, size = {}, {}, 0
    for number, (label, clip) in enumerate(clips.items()):
        show(number + 1, len(clips))
        if size >= limit:
            reasons[label] = "left out, so that the page does not become larger"
            continue
        film = make_film(clip, str(root), contract)
        if isinstance(film, str):
            reasons[label] = film
        else:
            films[label] = film
            size += len(film.jpeg)
    return films, reasons
