"""What a clip becomes under a contract, without decoding it: a look at packets and one frame."""

import os
from typing import NamedTuple

from videorft_jax.data.batch.patches import num_windows, token_grid
from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.decode import VideoFile
from videorft_jax.data.media.files import read_guarded
from videorft_jax.data.media.image import IMAGE_FPS, open_image, shown_size
from videorft_jax.data.media.sampling import target_size
from videorft_jax.data.media.video import look_at_video
from videorft_jax.models.geometry import Geometry


class Probe(NamedTuple):
    """What a clip becomes under one media contract: `frames` frames of height x width pixels at
    `fps` sampled frames per second; or a reason and detail why it cannot be used."""

    frames: int = 0
    height: int = 0
    width: int = 0
    fps: float = 0.0
    source_height: int = 0
    source_width: int = 0
    reason: str = ""
    detail: str = ""

    def num_pairs(self, geometry: Geometry) -> int:
        """Frame pairs; a single frame and an odd last one are shown twice."""
        return -(-self.frames // geometry.temporal_patch)

    def num_windows(self, geometry: Geometry) -> int:
        """Windows of 16 visual tokens that hold a frame pair."""
        return num_windows(self.height, self.width, geometry)

    def num_tokens(self, geometry: Geometry) -> int:
        """Visual tokens."""
        down, across = token_grid(self.height, self.width, geometry)
        return self.num_pairs(geometry) * down * across


def probe_media(
    source: str | os.PathLike | bytes,
    root: str | os.PathLike | None,
    contract: MediaContract,
    *,
    kind: str = "video",
    start: float | None = None,
    end: float | None = None,
    limits: Limits = Limits(),  # noqa: B008, frozen
) -> Probe:
    """Looks at the packets and the first sampled frame of a video, or the header of an image, with
    the arguments of `load_media` and the shape that it will give. Never raises for bad input;
    damage further inside the file is found only by decoding."""

    def look(name: str | bytes) -> Probe:
        if kind == "image":
            with open_image(name, limits) as image:
                sides = shown_size(image)
            return Probe(1, *target_size(*sides, 1, contract, image=True), IMAGE_FPS, *sides)
        with VideoFile(name, limits) as file:
            sampling, sides = look_at_video(file, contract, start, end)
        num = len(sampling.indices)
        return Probe(num, *target_size(*sides, num, contract), sampling.fps, *sides)

    try:
        return read_guarded(look, source, root, limits)
    except MediaError as error:
        return Probe(reason=error.reason, detail=error.detail)
