"""The frames of a clip as pictures of a request: known by their digests, decoded when sent."""

import hashlib
import io
from collections.abc import Callable

import numpy as np
from PIL import Image

from videorft_jax.curation.pool import Entry
from videorft_jax.curation.requests import Picture
from videorft_jax.curation.store import Store
from videorft_jax.data.media.contract import MediaContract, MediaError
from videorft_jax.data.media.load import load_media

JPEG_QUALITY = 90


class Frames:
    """times: seconds of each frame; pictures: their digests and sizes. Both come from the store
    once they are known, so that a request's key costs no decoding. Raises MediaError."""

    def __init__(
        self, entry: Entry, root: str, contract: MediaContract, store: Store,
        isolate: bool,
    ):  # fmt: skip
        record = entry.record
        how = record.media[0].load_arguments(contract)
        self._read = lambda: load_media(record.path, root, **how, isolate=isolate)
        name = f"{entry.media} {record.start} {record.end} {how['contract'].digest}"

        def look() -> dict:
            clip = self._read()
            if isinstance(clip, MediaError):
                return {"reason": clip.reason, "detail": clip.detail}
            pictures = [
                [hashlib.sha256(np.ascontiguousarray(f)).hexdigest(), f.shape[1], f.shape[0]]
                for f in clip.frames
            ]
            return {"times": [round(float(t), 3) for t in clip.timestamps], "pictures": pictures}

        found = store.derive("frames", name, look)
        if "reason" in found:
            raise MediaError(found["reason"], found["detail"], record.path)
        self.times: list[float] = found["times"]
        self.pictures = tuple(Picture(*fields) for fields in found["pictures"])

    def __len__(self) -> int:
        return len(self.times)

    def loader(self, start: int, stop: int) -> Callable[[], list[bytes]]:
        """A function that returns the JPEG bytes of frames start to stop."""

        def load() -> list[bytes]:
            clip = self._read()
            if isinstance(clip, MediaError):
                raise RuntimeError(f"{clip}: it was readable before; put the file back")
            return [_encode(frame) for frame in clip.frames[start:stop]]

        return load


def _encode(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=JPEG_QUALITY)
    return file.getvalue()
