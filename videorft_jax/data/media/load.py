"""The frames of one record's media, or the reason why there are none."""

import os
from collections.abc import Sequence

from videorft_jax.data.media.clip import Clip
from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.image import read_image
from videorft_jax.data.media.isolate import read_isolated
from videorft_jax.data.media.video import read_video

KINDS = ("video", "image")


def load_media(
    source: str | os.PathLike | bytes | Sequence[str],
    root: str | os.PathLike,
    contract: MediaContract,
    *,
    kind: str = "video",
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
    limits: Limits = Limits(),  # noqa: B008, frozen
    isolate: bool = False,
) -> Clip | MediaError:
    """A Clip, or the MediaError to be quarantined; never raises for bad input.

    kind is the record's data_type, "video" or "image"; fps is the rate of frames that lie in a
    folder or list of pictures. With isolate, decoding runs in a process of its own that is killed
    past its limits of time and memory. That costs about 0.3 s a clip and is meant for media of
    unknown origin. Raises ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"load_media: kind is 'video' or 'image', got {kind!r}")
    try:
        if isolate:
            frames, *rest = read_isolated(source, root, contract, kind, (start, end, fps), limits)
            return Clip(frames.transpose(0, 3, 1, 2), *rest)
        if kind == "image":
            return read_image(source, contract, root=root, limits=limits)
        return read_video(source, contract, start, end, fps=fps, root=root, limits=limits)
    except MediaError as error:
        return error


def patience(limits: Limits, isolate: bool) -> float:
    """The seconds after which the thread that loads a clip is given up. They are more than the
    clip's own deadline, so that the decoder, which knows where it stopped, refuses first."""
    return 1.5 * limits.timeout_s + (20 if isolate else 1)
