"""One record to one sample: decoded, rendered and laid out, within a bounded time."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from videorft_jax.data.batch.layout import Sample, make_sample
from videorft_jax.data.batch.patches import pair_planes
from videorft_jax.data.loader.measure import Measurer
from videorft_jax.data.loader.recent import RecentClips
from videorft_jax.data.loader.shorten import Frames, frames_of
from videorft_jax.data.loader.watchdog import call_within
from videorft_jax.data.media.clip import Clip
from videorft_jax.data.media.contract import MediaError
from videorft_jax.data.media.load import load_media, patience
from videorft_jax.data.records.chats import MediaItem
from videorft_jax.data.records.prompts import build_messages, build_target
from videorft_jax.data.records.quarantine import Failure
from videorft_jax.data.records.records import Record, RecordError
from videorft_jax.data.records.render import render, write_media
from videorft_jax.data.records.source import media_of


class Loaded(NamedTuple):
    record: Record
    sample: Sample


@dataclasses.dataclass(frozen=True)
class Load:
    """From a record's index to its sample, or to the reason why there is none. Pickles, for worker
    processes."""

    measurer: Measurer
    needs: np.ndarray  # int64 [N, 3], tokens, frame pairs, windows as measured
    known: dict[int, Failure]
    cache: Any  # a FrameCache or None
    recent: RecentClips | None = None
    shortened: Mapping[int, Frames] = dataclasses.field(default_factory=dict)

    def __call__(
        self, index: int, place: Callable[[Sample], Sample] | None = None
    ) -> Loaded | Failure:
        """`place` takes the sample's pixels to where they belong."""
        index, m = int(index), self.measurer
        if index in self.known:
            return self.known[index]

        def finish(found: tuple[Record, list[Clip]] | Failure) -> Loaded | Failure:
            if isinstance(found, Failure):
                return found
            found = self._lay_out(index, *found)
            if place is None or isinstance(found, Failure):
                return found
            return found._replace(sample=place(found.sample))

        try:
            return call_within(patience(m.limits, m.isolate), self.read, index, then=finish)
        except TimeoutError as error:
            return Failure(index, m.source.where(index), "timeout", str(error))

    def read(self, index: int) -> tuple[Record, list[Clip]] | Failure:
        """The record and its decoded clips."""
        m = self.measurer
        try:
            record = m.source[index]
        except RecordError as error:
            return Failure(index, m.source.where(index), "schema", str(error))
        clips = []
        for place, item in enumerate(record.media):
            clip = self._read_clip(index, item, frames_of(self.shortened, index, place))
            if isinstance(clip, MediaError):
                return Failure(index, item.name, clip.reason, clip.detail)
            clips.append(clip)
        return record, clips

    def _read_clip(self, index: int, item: MediaItem, frames: int | None) -> Clip | MediaError:
        """The frames of one item: those that a record shortly before had, or from the frame cache
        if it has them, else decoded."""
        media = media_of(self.measurer.source, index, item)
        if self.recent is None or isinstance(media, bytes):
            return self._decode(media, item, frames)
        decode = functools.partial(self._decode, media, item, frames)
        return self.recent.get((item, frames), decode)

    def _decode(
        self, media: str | bytes | tuple[str, ...], item: MediaItem, frames: int | None
    ) -> Clip | MediaError:
        m, root = self.measurer, self.measurer.source.data_root
        is_cached = self.cache is not None and frames is None
        clip = self.cache.get(media, item, root) if is_cached else None
        if clip is not None:
            return clip
        how = item.load_arguments(m.contract.with_frames(frames))
        return load_media(media, root, **how, limits=m.limits, isolate=m.isolate)

    def _lay_out(self, index: int, record: Record, clips: list[Clip]) -> Loaded | Failure:
        sample = lay_out(self.measurer, record, clips)
        found = (len(sample.tokens), sample.num_pairs, sample.num_windows)
        if found != tuple(self.needs[index]):
            measured = tuple(map(int, self.needs[index]))
            what = f"tokens, frame pairs, windows {found}, measured {measured}"
            return Failure(index, record.path, "changed", what)
        return Loaded(record, sample)


def lay_out(measurer: Measurer, record: Record, clips: list[Clip]) -> Sample:
    """The sample of one record, whose clips are decoded: tokens, targets, positions and pixels."""
    contract = measurer.contract
    media = [
        pair_planes(clip.planes, None if item.kind == "image" else clip.fps, contract.geometry)
        for item, clip in zip(record.media, clips, strict=True)
    ]
    messages = build_messages(record, measurer.template)
    target = build_target(record) if measurer.target else None
    written = [
        write_media(made.grid, clip.stamps, contract, item, clip.timestamps)
        for item, made, clip in zip(record.media, media, clips, strict=True)
    ]
    media = [made._replace(splits=words.splits) for made, words in zip(media, written, strict=True)]
    shape = {"geometry": contract.geometry, "opening": record.opening}
    text = render(measurer.tokenizer, messages, written, target, measurer.target, **shape)
    starts = [start for start, _ in text.visual_spans]
    return make_sample(text.tokens, text.loss_mask, starts, media, contract.mrope_rule)
