"""What a clip becomes under a contract, without decoding it: a look at packets and one frame."""

import os
from typing import NamedTuple

from videorft_jax.data.batch.patches import num_windows, token_grid
from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.image import IMAGE_FPS, look_at_image
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
    stamps: tuple[float, ...] = ()  # Each frame pair has one where times are read.
    times: tuple[float, ...] = ()  # Seconds of each frame, where they were asked for.

    def num_pairs(self, geometry: Geometry) -> int:
        """The number of frame pairs. A single frame and an odd last one are shown twice."""
        return -(-self.frames // geometry.temporal_patch)

    def num_windows(self, geometry: Geometry) -> int:
        """The number of windows of 16 visual tokens that hold a frame pair."""
        return num_windows(self.height, self.width, geometry)

    def num_tokens(self, geometry: Geometry) -> int:
        """The number of visual tokens of the clip."""
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
    fps: float | None = None,
    limits: Limits = Limits(),  # noqa: B008, frozen
    with_times: bool = False,
) -> Probe:
    """Looks at the packets and the first sampled frame of a video, or the header of an image, with
    the arguments of `load_media` and the shape that it will give. Never raises for bad input;
    damage further inside the file is found only by decoding."""

    where = {"root": root, "limits": limits}
    try:
        if kind == "image":
            sides = look_at_image(source, **where)
            return Probe(1, *target_size(*sides, 1, contract, image=True), IMAGE_FPS, *sides)
        look = look_at_video(source, contract, start, end, fps=fps, **where)
        num = len(look.sampling.indices)
        size = target_size(*look.source_size, num, contract)
        stamps = look.sampling.stamps if contract.geometry.timestamps else ()
        times = look.sampling.times if with_times else ()
        more = {"stamps": stamps, "times": times}
        return Probe(num, *size, look.sampling.fps, *look.source_size, **more)
    except MediaError as error:
        return Probe(reason=error.reason, detail=error.detail)
