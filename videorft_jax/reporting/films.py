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
from videorft_jax.data.records.records import Record

HEIGHT = 96  # pixels of a strip
MOST_FRAMES = 8  # of a strip
_QUALITY = 70  # of JPEG


@dataclasses.dataclass(frozen=True)
class Film:
    """jpeg: the frames side by side, in base64. times: seconds of the frames within the clip."""

    jpeg: str
    times: list[float]


def make_film(record: Record, root: str, contract: MediaContract) -> Film | str:
    """The strip of a record's clip, or the reason why it has none."""
    clip = load_media(
        record.path, root, contract, kind=record.data_type, start=record.start, end=record.end
    )
    if isinstance(clip, MediaError):
        return str(clip)
    count = len(clip.planes)
    chosen = np.unique(np.linspace(0, count - 1, min(count, MOST_FRAMES)).round().astype(int))
    frames = clip.frames[chosen]
    width = max(1, round(HEIGHT * frames.shape[2] / frames.shape[1]))
    images = [Image.fromarray(frame).resize((width, HEIGHT)) for frame in frames]
    strip = Image.new("RGB", (width * len(images), HEIGHT))
    for place, image in enumerate(images):
        strip.paste(image, (place * width, 0))
    buffer = io.BytesIO()
    strip.save(buffer, "JPEG", quality=_QUALITY)
    times = [round(float(second), 2) for second in clip.timestamps[chosen]]
    return Film(base64.b64encode(buffer.getvalue()).decode(), times)


def make_films(
    records: Mapping[str, Record],
    root: str | os.PathLike,
    contract: MediaContract,
    limit: int,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Film], dict[str, str]]:
    """(films, reasons why others are missing) by path, up to `limit` bytes of images.

    records: path -> a record of that clip, in the order in which clips are wanted most. say: is
    told how far this is, every hundred clips.
    """
    films, reasons, size = {}, {}, 0
    for number, (path, record) in enumerate(records.items()):
        if number % 100 == 0:
            say(f"frames of {number} of {len(records)} clips, {size / 2**20:.1f} MiB")
        if size >= limit:
            reasons[path] = "left out, so that the page does not become larger"
            continue
        film = make_film(record, str(root), contract)
        if isinstance(film, str):
            reasons[path] = film
        else:
            films[path] = film
            size += len(film.jpeg)
    return films, reasons
