"""Runs the prompts of waiting requests together, and none of them further than is new.

A prompt that was run before is not run again, of one that begins as another did only the rest is
run, and a clip that was seen before does not pass through the vision tower again.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.serving.kept import Kept
from videorft_jax.serving.laid import STEP, Laid, round_up
from videorft_jax.serving.prefill import Prompt, PromptPrograms

_TOGETHER = 4  # prompts of one shape that are run at a time; the others one by one
_TAIL = 8  # the least step between the lengths that ends of prompts are padded to
_SHORT = 128  # ends of at most so many tokens are always run behind a beginning that is kept


class Job(NamedTuple):
    """A prompt, and how much of it is run: the `length` tokens from `start` on, behind the
    beginning of `base`. A base of None is a whole prompt."""

    laid: Laid
    base: Prompt | None
    start: int
    length: int
    num_visual: int  # rows of visual tokens that this part needs

    @property
    def shape(self):
        """Jobs of the same shape are run together."""
        return (self.laid.batch.tokens.shape[1], self.base is None, self.length, self.num_visual)


class Prompts:
    """Runs prompts of one model, and keeps prompts and clips, up to `cache_bytes` in all."""

    def __init__(self, programs: PromptPrograms, params, cache_bytes: int):
        self.programs, self.params = programs, params
        self.prompts, self.clips = Kept(cache_bytes // 2), Kept(cache_bytes // 2)
        self._begins: dict[bytes, bytes] = {}  # from the name of a beginning to that of a prompt
        text, kind = programs.config.text, jax.tree.leaves(params)[0].dtype
        heads = 2 * text.num_layers * text.num_kv_heads
        # Keys and values of one token take so many bytes.
        self._bytes = heads * text.head_dim * kind.itemsize
        self.reused_prompts = self.reused_clips = self.encoded_clips = 0
        self.run_tokens = self.reused_tokens = 0

    def run(self, asked: Sequence[Laid]) -> Iterator[tuple[int, Prompt, int]]:
        """Yields (place in `asked`, its prompt, how many of its tokens were known) of each, in the
        order in which they are ready."""
        places: dict[bytes, list[int]] = {}
        for place, laid in enumerate(asked):
            places.setdefault(laid.name, []).append(place)
        waiting = []
        for name, found in places.items():
            laid, kept = asked[found[0]], self.prompts.get(name)
            if kept is None:
                waiting.append(laid)
                continue
            for place in found:
                yield place, self._reuse(laid, kept[0]), laid.num_tokens
        while waiting:
            jobs, waiting = self._choose(waiting)
            for job, prompt in self._run_jobs(jobs):
                first, *others = places[job.laid.name]
                yield first, prompt, job.start
                for place in others:
                    yield place, self._reuse(job.laid, prompt), job.laid.num_tokens

    def _reuse(self, laid: Laid, prompt: Prompt) -> Prompt:
        self.reused_prompts += 1
        self.reused_tokens += laid.num_tokens
        return prompt

    def _choose(self, waiting: list[Laid]) -> tuple[list[Job], list[Laid]]:
        """What is run now, and the prompts that wait, since one of those that are run now will
        leave more of their beginning than is kept."""
        jobs: list[Job] = []
        later: list[Laid] = []
        coming: set[bytes] = set()
        for laid in waiting:
            base, known = self._find_begin(laid)
            if _count_shared(laid, coming) > known:
                later.append(laid)
                continue
            jobs.append(self._make_job(laid, base, known))
            if laid.batch.tokens.shape[1] * self._bytes <= self.prompts.limit:
                coming.update(laid.begins)
        return jobs, later

    def _find_begin(self, laid: Laid) -> tuple[Prompt | None, int]:
        """A prompt that is kept and begins as this one does, and the tokens that they share."""
        for number, begin in reversed(list(enumerate(laid.begins, 1))):
            name = self._begins.get(begin)
            if name is not None and (prompt := self.prompts.get(name)) is not None:
                return prompt[0], number * STEP
        return None, 0

    def _make_job(self, laid: Laid, base: Prompt | None, known: int) -> Job:
        batch = laid.batch
        width = batch.tokens.shape[1]
        steps = -(-(laid.num_tokens - known) // _TAIL)
        length = round_up(steps) * _TAIL
        start = min(known, width - length)  # The end is padded, but not beyond the row.
        if base is None or start <= 0 or length > max(_SHORT, width // 2):
            base, start, length = None, 0, width
        needs = (batch.visual_index[0, start : start + length] >= 0).any()
        num_visual = batch.patch_valid[0].size // 4 if needs else 0
        return Job(laid, base, start, length, num_visual)

    def _run_jobs(self, jobs: list[Job]) -> Iterator[tuple[Job, Prompt]]:
        """Runs jobs of one shape together, and gives each its prompt as soon as it is there."""
        by_shape: dict[tuple, list[Job]] = {}
        for job in jobs:
            by_shape.setdefault(job.shape, []).append(job)
        for alike in by_shape.values():
            whole = len(alike) // _TOGETHER * _TOGETHER
            groups = [alike[i : i + _TOGETHER] for i in range(0, whole, _TOGETHER)]
            for group in [*groups, *([job] for job in alike[whole:])]:
                prompts = self._run_group(group)
                for row, job in enumerate(group):
                    one = prompts
                    if len(group) > 1:
                        one = self.programs.take(prompts, np.int32(row))
                    self._keep(job, one)
                    yield job, one

    def _run_group(self, group: list[Job]) -> Prompt:
        """Runs jobs of one shape as the rows of one batch."""
        visual = None
        if group[0].num_visual:
            visual = jax.numpy.concatenate([self._see(job.laid) for job in group])
        rows = [_cut(job) for job in group]
        batch = Batch(*(None if leaf[0] is None else np.concatenate(leaf) for leaf in zip(*rows)))  # noqa: B905
        if group[0].base is None:
            return self.programs.run(self.params, batch, visual)
        start = np.array([job.start for job in group], np.int32)
        width = batch.segment_ids.shape[1]
        caches = self.programs.gather([job.base for job in group], width)
        return self.programs.extend(self.params, batch, visual, start, *caches)

    def _keep(self, job: Job, prompt: Prompt) -> None:
        laid = job.laid
        self.run_tokens += laid.num_tokens - job.start
        self.reused_tokens += job.start
        if not job.num_visual:
            self.reused_clips += len(laid.clips)
        size = sum(leaf.nbytes for leaf in prompt)
        dropped = self.prompts.put(laid.name, (prompt, laid), size)
        if size <= self.prompts.limit:
            self._begins.update(dict.fromkeys((*laid.begins, laid.name), laid.name))
        for _, old in dropped:
            for begin in (*old.begins, old.name):
                if self._begins.get(begin) == old.name:
                    del self._begins[begin]

    def _see(self, laid: Laid) -> jax.Array:
        """The visual tokens of a prompt [1, Z, E]; clips that are not kept are encoded together."""
        batch, slots = laid.batch, laid.batch.patch_valid[0, 0].size // 4  # of each frame pair
        parts = [self.clips.get(name) for name, _ in laid.clips]
        missing = [part is None for part in parts]
        self.reused_clips += missing.count(False)
        self.encoded_clips += missing.count(True)
        if any(missing):
            pairs = np.repeat(missing, [count for _, count in laid.clips]).nonzero()[0]
            spare = [(0, 0), (0, round_up(len(pairs)) - len(pairs))]
            pixels = [np.pad(leaf[:, pairs], spare + [(0, 0)] * (leaf.ndim - 2))
                      for leaf in (batch.patches, batch.patch_valid, batch.patch_hw)]  # fmt: skip
            seen = self.programs.encode(self.params, Batch(*[None] * 5, *pixels))
            at = 0
            for number, (name, count) in enumerate(laid.clips):
                if parts[number] is None:
                    parts[number] = seen[:, at : at + count * slots]
                    at += count * slots
                    self.clips.put(name, parts[number], parts[number].nbytes)
        return self.programs.assemble(parts, batch.patches.shape[1] * slots)


def _count_shared(laid: Laid, coming: set[bytes]) -> int:
    """How many tokens of the prompt have a beginning among `coming`."""
    known = [number * STEP for number, begin in enumerate(laid.begins, 1) if begin in coming]
    return max(known, default=0)


def _cut(job: Job) -> Batch:
    """The part of a prompt that is run, without pixels; segment ids stay those of all of it."""
    batch, part = job.laid.batch, slice(job.start, job.start + job.length)
    return Batch(
        tokens=batch.tokens[:, part], segment_ids=batch.segment_ids,
        positions=batch.positions[:, :, part], loss_mask=None,
        visual_index=batch.visual_index[:, part], patches=None, patch_valid=None, patch_hw=None,
    )  # fmt: skip
