"""What a clip becomes under a contract, without decoding it: a look at packets and one frame."""

import os
from typing import NamedTuple

from videorft_jax.data.batch.layout import num_windows, token_grid
from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.decode import VideoFile
from videorft_jax.data.media.files import read_guarded
from videorft_jax.data.media.image import IMAGE_FPS, open_image, shown_size
from videorft_jax.data.media.sampling import target_size
from videorft_jax.data.media.video import look_at_video


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

    @property
    def num_pairs(self) -> int:
        return -(-self.frames // 2)

    @property
    def num_windows(self) -> int:
        return num_windows(self.height, self.width)

    @property
    def num_tokens(self) -> int:
        down, across = token_grid(self.height, self.width)
        return self.num_pairs * down * across


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
