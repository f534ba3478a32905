"""Fewer frames of the longest clip where a record's prompt is too long for a row.

Only evaluations shorten, since every question has to be asked. The frames that are left are chosen
as the contract chooses them, by its own rule with a smaller greatest number of frames.
"""

import logging
import math
from collections.abc import Mapping

import numpy as np

from videorft_jax.data.loader.measure import Measured, Measurer
from videorft_jax.data.loader.size_cache import SizeCache
from videorft_jax.data.media.probe import Probe
from videorft_jax.data.records.records import Record

log = logging.getLogger(__name__)

Frames = tuple[int | None, ...]  # the greatest number of frames of each item, None as it is


def shorten(
    measurer: Measurer, measured: Measured, sizes: SizeCache, row_tokens: int
) -> dict[int, Frames]:
    """Shortens the records that are longer than `row_tokens`, and writes their new sizes into
    `measured`. Returns the frames of each shortened record; records that are too long with the
    fewest frames are left as they are."""
    found = {}
    for index in map(int, np.flatnonzero(measured.sizes.tokens > row_tokens)):
        record = measurer.source[index]
        made = _shorten_record(measurer, index, record, measured.probes[index], sizes, row_tokens)
        if made is None:
            continue
        frames, probes, tokens = made
        cut = measurer.contract.geometry
        measured.probes[index] = probes
        measured.visual_tokens[index] = sum(probe.num_tokens(cut) for probe in probes)
        measured.sizes.tokens[index] = tokens
        measured.sizes.pairs[index] = sum(probe.num_pairs(cut) for probe in probes)
        measured.sizes.windows[index] = max(probe.num_windows(cut) for probe in probes)
        found[index] = frames
    if found:
        log.warning(
            "%d records are shown with fewer frames, as their prompts are longer than row_tokens"
            " (%d); the first is %s",
            len(found), row_tokens, measurer.source.where(min(found)),
        )  # fmt: skip
    return found


def _shorten_record(measurer, index, record: Record, probes, sizes, row_tokens):
    """(frames, probes, tokens) of the record with as many frames as fit, None where none do."""
    cut, step = measurer.contract.geometry, measurer.contract.temporal_patch_size
    frames: list[int | None] = [None] * len(probes)
    probes = list(probes)
    while True:
        visual = sum(probe.num_tokens(cut) for probe in probes)
        tokens = visual + measurer.text(record, sizes, probes)
        if tokens <= row_tokens:
            return tuple(frames), tuple(probes), tokens
        longest = _find_longest(record, probes, cut)
        if longest is None:
            return None
        probe: Probe = probes[longest]
        of_pair = probe.num_tokens(cut) / probe.num_pairs(cut)
        fewer = math.ceil((tokens - row_tokens) / of_pair)
        frames[longest] = step * max(1, probe.num_pairs(cut) - fewer)
        found = measurer.media(index, record.media[longest], sizes, frames[longest])
        if found.reason or found.num_pairs(cut) >= probe.num_pairs(cut):
            return None
        probes[longest] = found


def _find_longest(record, probes, cut) -> int | None:
    """The video with the most tokens that has more than one frame pair."""
    videos = [
        place for place, item in enumerate(record.media)
        if item.kind == "video" and probes[place].num_pairs(cut) > 1
    ]  # fmt: skip
    return max(videos, key=lambda place: probes[place].num_tokens(cut), default=None)


def frames_of(shortened: Mapping[int, Frames], index: int, place: int) -> int | None:
    """The greatest number of frames of an item of a record, None as the contract says."""
    return shortened[index][place] if index in shortened else None
