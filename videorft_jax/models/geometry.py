"""The numbers by which a family of models cuts pixels, and what its chats open with.

This file imports nothing of the package, so that the loader can read it without the models. The
unit of vision is a frame pair. A pair is cut into square patches, `merge` x `merge` patches become
one visual token, and a batch holds patches in windows of 64 slots, which are 16 visual tokens. What
a window is differs. With `window` = 4 it is a square of 4 x 4 tokens and a layer of the tower may
attend within it. With `window` = 0 a pair's tokens fill its windows row after row, and windows mean
nothing to the tower.
"""

import dataclasses

WINDOW_TOKENS = 16  # visual tokens of a window


@dataclasses.dataclass(frozen=True)
class Geometry:
    """patch: pixels a side; merge: patches a side of a visual token; temporal_patch: frames of a
    pair; window: visual tokens a side of a square window, 0 for none; timestamps: whether each
    frame pair of a clip stands by itself in the prompt, behind its time; pixel_mean and pixel_std:
    of the normalisation, per channel, in units of [0, 1]; default_system: what a chat without a
    system turn opens with, empty for nothing."""

    patch: int
    merge: int
    temporal_patch: int
    window: int
    timestamps: bool
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]
    default_system: str

    @property
    def unit(self) -> int:
        """Pixels a side of a visual token; frames are resized to multiples of it."""
        return self.patch * self.merge

    @property
    def patch_dim(self) -> int:
        """Values of one patch: channel, frame of the pair, row and column."""
        return 3 * self.temporal_patch * self.patch**2

    @property
    def slots(self) -> int:
        """Patches of a window."""
        return WINDOW_TOKENS * self.merge**2


# Windows of 112 pixels, normalised as CLIP is: the geometry of the paper's model.
WINDOWED_14 = Geometry(
    patch=14,
    merge=2,
    temporal_patch=2,
    window=4,
    timestamps=False,
    pixel_mean=(0.48145466, 0.4578275, 0.40821073),
    pixel_std=(0.26862954, 0.26130258, 0.27577711),
    default_system="You are a helpful assistant.",
)

# Larger patches, no windows, and time written into the prompt.
PLAIN_16 = Geometry(
    patch=16,
    merge=2,
    temporal_patch=2,
    window=0,
    timestamps=True,
    pixel_mean=(0.5, 0.5, 0.5),
    pixel_std=(0.5, 0.5, 0.5),
    default_system="",
)
_GEOMETRIES = (WINDOWED_14, PLAIN_16)


def find_geometry(patch: int) -> Geometry:
    """The geometry with patches of so many pixels. Raises ValueError when no family has them."""
    for known in _GEOMETRIES:
        if known.patch == patch:
            return known
    sizes = " or ".join(str(known.patch) for known in _GEOMETRIES)
    raise ValueError(f"no model has patches of {patch} pixels; choose patches of {sizes} pixels")
