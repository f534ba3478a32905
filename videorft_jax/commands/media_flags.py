"""The flags by which a command that loads a model reads clips otherwise than its contract says."""

import argparse
from typing import Any


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `read_changes` reads, and `--system`."""
    parser.add_argument("--frames", type=int, help="take so many frames of a clip")
    parser.add_argument(
        "--fps", type=float, help="take so many frames a second, of a clip at least 4, at most 768"
    )
    parser.add_argument("--max_pixels", type=int, help="most pixels of a frame or image")
    parser.add_argument(
        "--system", help="system turn in place of that of its training; '': the chat format's"
    )


def read_changes(given: argparse.Namespace) -> dict[str, Any]:
    """Fields of a media contract that the flags replace; without flags none. Raises ValueError for
    flags that contradict each other and for numbers that no contract can hold."""
    frames, fps, max_pixels = given.frames, given.fps, given.max_pixels
    if frames is not None and fps is not None:
        raise ValueError("--frames and --fps both say how many frames are taken; give one")
    changes: dict[str, Any] = {}
    if frames is not None:
        if frames < 2:
            raise ValueError(f"--frames={frames}: a clip has at least 2; give an --image for one")
        changes = {"num_frames": None, "min_frames": frames, "max_frames": frames}
    if fps is not None:
        if not 0 < fps < 1000:
            raise ValueError(f"--fps={fps}: give a rate above 0 and below 1000")
        changes = {"num_frames": None, "fps": fps, "min_frames": 4, "max_frames": 768}
    if max_pixels is not None:
        if max_pixels < 28 * 28:
            raise ValueError(f"--max_pixels={max_pixels}: less than one visual token; give more")
        changes |= {"max_pixels": max_pixels, "image_max_pixels": max_pixels}
    return changes
