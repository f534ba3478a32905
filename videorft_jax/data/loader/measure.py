"""How large each record will be, without decoding it: one look at the packets, remembered.

Sizes are exact, not estimates. The frame count and the frame size after the resize follow from the
packet scan and one frame by the same functions that the decoder uses, and the text is tokenised for
real. A record that then arrives in another shape has changed on disk.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from videorft_jax.data.loader.buckets import Sizes
from videorft_jax.data.loader.size_cache import SizeCache
from videorft_jax.data.loader.watchdog import Progress, call_within
from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.files import describe_file
from videorft_jax.data.media.load import load_media, patience
from videorft_jax.data.media.probe import Probe, probe_media
from videorft_jax.data.records.chats import MediaItem
from videorft_jax.data.records.prompts import PromptTemplate, build_messages, build_target
from videorft_jax.data.records.quarantine import Failure
from videorft_jax.data.records.records import Record, RecordError
from videorft_jax.data.records.render import render, write_media
from videorft_jax.data.records.source import Source, media_of

CHUNK = 4096  # records submitted to the threads at a time
EXTRA = "extra_"  # A field whose name begins so says itself that nothing here reads it.


class Need(NamedTuple):
    """What one record becomes: its media, and its tokens besides the visual ones."""

    probes: tuple[Probe, ...]
    text_tokens: int
    unused: tuple[str, ...] = ()  # names of fields that only user rewards read


@dataclasses.dataclass(frozen=True)
class Measurer:
    """Measures records. tokenizer None: four bytes of text are counted as one token (for
    `validate`). target: the assistant's answer belongs to the sample (SFT). full: decode
    everything. Pickles, so that several processes measure alike."""

    source: Source
    contract: MediaContract
    tokenizer: Any
    template: PromptTemplate
    target: bool
    limits: Limits
    isolate: bool = False
    full: bool = False

    def __call__(self, index: int, sizes: SizeCache) -> Need | Failure:
        """The need of one record, or why it cannot be used."""
        try:
            record = self.source[index]
        except RecordError as error:
            return Failure(index, self.source.where(index), "schema", str(error))
        probes = []
        for item in record.media:
            probe = self.media(index, item, sizes)
            if probe.reason:
                return Failure(index, item.name, probe.reason, probe.detail)
            probes.append(probe)
        try:
            unused = tuple(name for name in record.extra if not name.startswith(EXTRA))
            return Need(tuple(probes), self.text(record, sizes, probes), unused)
        except ValueError as error:
            return Failure(index, record.path, "prompt", str(error))

    def media(
        self, index: int, item: MediaItem, sizes: SizeCache, frames: int | None = None
    ) -> Probe:
        """What one item of a record becomes, with at most `frames` frames where they are given,
        from `sizes` where it is known."""
        contract = self.contract.with_frames(frames)
        key = self._media_key(index, item, contract)
        known = sizes.get(key) if key else None
        if known is not None and (known[0] or not self.full):
            return Probe(*known[1:])
        try:
            wait = patience(self.limits, self.isolate)
            probe = call_within(wait, self._look, index, item, contract)
        except TimeoutError as error:
            probe = Probe(reason="timeout", detail=str(error))
        if key and probe.reason not in ("timeout", "memory"):  # those may pass
            sizes.put(key, [bool(self.full or self.isolate), *probe])
        return probe

    def text(self, record: Record, sizes: SizeCache, probes: Sequence[Probe]) -> int:
        """Tokens besides the visual ones, the times of frame pairs among them where the model reads
        times. Raises ValueError when it cannot be rendered."""
        messages = build_messages(record, self.template)
        target = build_target(record) if self.target else None
        opening = [record.opening] if record.opening else []
        content = json.dumps([messages, target, *opening], ensure_ascii=False)
        if self.tokenizer is None:
            return -(-len(content.encode()) // 4)
        geometry = self.contract.geometry
        # One token for each frame pair, whose tokens are counted elsewhere.
        written = [
            write_media((probe.num_pairs(geometry), 1, 1), probe.stamps, self.contract, item,
                        probe.times)
            for item, probe in zip(record.media, probes, strict=True)
        ]  # fmt: skip
        if geometry.timestamps or any(item.lines for item in record.media):
            content += json.dumps(written)
        key = f"text|{_digest(content + tokenizer_digest(self.tokenizer))}"
        known = sizes.get(key)
        if known is None:
            opened = {"geometry": geometry, "opening": record.opening}
            rendered = render(self.tokenizer, messages, written, target, **opened)
            num_visual = sum(stop - start for start, stop in rendered.visual_spans)
            known = [len(rendered.tokens) - num_visual]
            sizes.put(key, known)
        return known[0]

    def _look(self, index: int, item: MediaItem, contract: MediaContract) -> Probe:
        media, root = media_of(self.source, index, item), self.source.data_root
        how = item.load_arguments(contract) | {"limits": self.limits}
        if not (self.full or self.isolate):
            return probe_media(media, root, **how, with_times=bool(item.lines))
        clip = load_media(media, root, **how, isolate=self.isolate)
        if isinstance(clip, MediaError):
            return Probe(reason=clip.reason, detail=clip.detail)
        stamps = clip.stamps if self.contract.geometry.timestamps else ()
        size = clip.frames.shape[1:3]
        more = {"stamps": stamps}
        if item.lines:
            more["times"] = tuple(map(float, clip.timestamps))
        return Probe(len(clip.frames), *size, float(clip.fps), *clip.source_size, **more)

    def _media_key(self, index: int, item: MediaItem, contract: MediaContract) -> str | None:
        digest = item.load_arguments(contract)["contract"].digest
        span = f"{item.kind}|{item.start}|{item.end}|{digest[:16]}"
        if item.fps is not None:
            span = f"{item.fps}|{span}"
        if item.lines:
            span = f"timed|{span}"
        fingerprint = getattr(self.source, "fingerprint", None)
        if fingerprint is not None:
            return f"row|{fingerprint}|{index}|{span}"
        facts = describe_file(item.path, self.source.data_root)
        return None if facts is None else f"file|{'|'.join(map(str, facts))}|{span}"


def _digest(text: str) -> str:
    return hashlib.sha1(text.encode("utf-8", "surrogatepass")).hexdigest()


_DIGESTS: dict[int, tuple[Any, str]] = {}


def tokenizer_digest(tokenizer: Any) -> str:
    """sha1 of everything that decides how the tokenizer cuts text."""
    known = _DIGESTS.get(id(tokenizer))
    if known is None or known[0] is not tokenizer:
        known = (tokenizer, _digest(tokenizer.backend_tokenizer.to_str()))
        _DIGESTS[id(tokenizer)] = known
    return known[1]


class Measured(NamedTuple):
    """What was measured of all N records: sizes (0 where bad), visual_tokens int64 [N], the probes
    of each record's media (none where it is bad), the bad records, and how many records have each
    field that is not of the schema."""

    sizes: Sizes
    visual_tokens: np.ndarray
    probes: list[tuple[Probe, ...]]
    failures: list[Failure]
    unused: dict[str, int]


def measure(
    measurer: Measurer,
    sizes: SizeCache,
    threads: int,
    progress: Callable[[int], None] | None = None,
) -> Measured:
    """Measures every record of `measurer.source`, `threads` at a time."""
    total, cut = len(measurer.source), measurer.contract.geometry
    progress = progress or Progress("measuring records", total)
    tokens, pairs, windows, visual = np.zeros((4, total), np.int64)
    probes, failures, unused = [()] * total, [], collections.Counter()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for start in range(0, total, CHUNK):
            chunk = range(start, min(start + CHUNK, total))
            for index, found in zip(
                chunk, pool.map(lambda i: measurer(i, sizes), chunk), strict=True
            ):
                if isinstance(found, Failure):
                    failures.append(found)
                else:
                    probes[index] = found.probes
                    unused.update(found.unused)
                    visual[index] = sum(probe.num_tokens(cut) for probe in found.probes)
                    tokens[index] = found.text_tokens + visual[index]
                    pairs[index] = sum(probe.num_pairs(cut) for probe in found.probes)
                    windows[index] = max((p.num_windows(cut) for p in found.probes), default=0)
                progress(index + 1)
    return Measured(Sizes(tokens, pairs, windows), visual, probes, failures, dict(unused))
