"""Completions of several turns: what a turn calls for is read, appended, and decoding goes on.

The first turn is drawn by the ordinary engine, so that a batch in which nobody calls is drawn as it
is without tools. For the completions that end in a call, a row is made of the prompt, the tokens
drawn so far and the result of the call, and run by the same programs: it is prefilled whole and its
next turn decoded. Drawn tokens are kept as ids and never tokenised again, and positions and visual
slots are those that the loader gives a chat with several clips, so that the log-probabilities are
those that training computes.

The number of programs is bounded. After call k of at most K, every row is padded to the length of
the prompts' bucket + C + k M tokens, where C are the tokens that a completion may draw and M those
of one result, and to the bucket's frame pairs + k P, where P are the pairs of one result. As many
rows as there are prompts are run together. So each bucket of the loader gives at most K prefill and
K decode programs more.
"""

import concurrent.futures
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.data.batch.frames import frame_size
from videorft_jax.data.loader.steps import Step
from videorft_jax.data.records.records import Record
from videorft_jax.parallel.processes import gather
from videorft_jax.rollout.calls import Call, find_call
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.results import Rollout, Turns
from videorft_jax.rollout.tools import TIMEOUT, Reply, Tools
from videorft_jax.rollout.transcript import Transcript, extend_prompts

_CONTINUED = 1 << 30  # set in the step number of random keys that draw later turns
_THREADS = 4  # calls that are answered at a time
# Counters of a rollout that are sums over its turns; the others are those of the first turns.
_SUMMED = ("prefill_tokens", "prefill_s", "decode_tokens", "decode_s", "compactions", "failed")


class TurnEngine:
    """Draws completions that may call `tools`.

    engine: draws the first turns. The others are drawn in the same way, one completion a row.
    """

    def __init__(self, engine: RolloutEngine, tools: Tools):
        self.engine, self.tools = engine, tools
        programs = engine.programs
        self.later = RolloutEngine(
            engine.config,
            dataclasses.replace(engine.sampling, num_rollouts=1),
            engine.mesh,
            rows_mesh=engine.rows_mesh,
            num_buckets=1,
            chunk=programs.chunk,
            dtype=programs.dtype,
            attention=programs.plan.attention,
            int8_weights=programs.params.int8,
            int8_cache=programs.int8_cache,
        )

    @property
    def num_compiles(self) -> int:
        """Number of programs compiled so far for later turns."""
        return self.later.num_compiles

    def rollout(
        self,
        params,
        batch: Batch,
        uids,
        item: Step,
        *,
        seed: int,
        step: int = 0,
        limits=None,
        visual=None,
    ) -> Rollout:
        """Draws R completions of each of the B prompts of this process, each of one or more turns.

        item: what the loader gave with the batch, of which the records that the rows show are read.
        The other arguments are those of `RolloutEngine.rollout`; a limit holds for all turns of a
        completion together. Later turns read the pixels of the batch also where `visual` is given.
        """
        first = self.engine.rollout(
            params, batch, uids, seed=seed, step=step, limits=limits, visual=visual
        )
        if limits is None:
            limits = np.full(first.lengths.shape, self.engine.sampling.max_new_tokens)
        transcripts = self._begin(batch, first)
        counters, numbers = [first.counters], {"calls": 0, "calls_failed": 0, "calls_timed_out": 0}
        for turn in range(1, self.tools.options.max_turns):
            calling = self._find_calls(transcripts, item, limits)
            self._answer(calling, batch, item, numbers)
            open_now = [one for one, _ in calling]
            chunks = -(-len(open_now) // len(batch.tokens))
            most = max(gather(chunks))  # A program runs on all processes or on none.
            if not most:
                break
            for chunk in range(most):
                part = open_now[chunk * len(batch.tokens) :][: len(batch.tokens)]
                drawn = self._continue(params, batch, part, uids, limits, turn, seed, step)
                counters.append(drawn)
        return self._collect(batch, first, transcripts, counters, numbers)

    def _begin(self, batch: Batch, first: Rollout) -> list[Transcript]:
        """The transcripts of first turns, R for each prompt."""
        ends = (batch.segment_ids > 0).sum(1) - 1
        found = []
        for row, number in np.ndindex(first.lengths.shape):
            following = int(batch.positions[row, 0, ends[row]]) + 1
            one = Transcript(row, number, following, self.tools.contract.mrope_rule)
            _take(one, first, row, number)
            found.append(one)
        return found

    def _find_calls(self, transcripts, item: Step, limits) -> list[tuple[Transcript, Call]]:
        """The transcripts whose last turn ended in a call and that may draw on.

        One that has drawn all of its tokens counts as having no end.
        """
        found, turn_end = [], self.engine.sampling.stop_ids[0]
        for one in transcripts:
            if not item.valid[one.row] or not one.stopped or one.last_turn[-1] != turn_end:
                continue
            call = find_call(self.tools.read(one.last_turn), self.tools.functions)
            if call is None:
                continue
            if one.num_drawn >= limits[one.row, one.number]:
                one.stopped = False
                continue
            found.append((one, call))
        return found

    def _answer(self, calling, batch: Batch, item: Step, numbers) -> None:
        """Appends its result to each transcript that calls. Frames that several completions of a
        prompt ask for in the same words are read once."""
        windows = batch.patches.shape[2]

        def answer(pair: tuple[Transcript, Call]) -> Reply:
            one, call = pair
            record, index = item.records[one.row][0], item.indices[one.row][0]
            size = _find_size(batch, one.row, record, item.pairs[one.row])
            return self.tools.answer(call, index, record, size, windows)

        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            waiting: dict[Any, concurrent.futures.Future[Reply]] = {}
            keys = []
            for number, (one, call) in enumerate(calling):
                is_own = self.tools.functions[call.name] is not None
                keys.append((one.row, call.text, number if is_own else -1))
                if keys[-1] not in waiting:
                    waiting[keys[-1]] = pool.submit(answer, (one, call))
            replies = [waiting[key].result() for key in keys]
        for (one, call), reply in zip(calling, replies, strict=True):
            said = self.tools.read(one.last_turn)
            one.add_reply(reply)
            one.calls.append(
                {
                    "turn": said,
                    "call": call.text,
                    "result": reply.text,
                    "fault": reply.fault,
                    "turn_tokens": len(one.last_turn),
                    "result_tokens": len(reply.tokens),
                }
            )
            numbers["calls"] += 1
            numbers["calls_failed"] += bool(reply.fault)
            numbers["calls_timed_out"] += reply.fault == TIMEOUT

    def _continue(self, params, batch, part, uids, limits, turn, seed, step) -> dict[str, float]:
        """Draws the next turn of at most B transcripts and returns the counters of the engine."""
        options, size = self.tools.options, self.engine.sampling.max_new_tokens
        length = batch.tokens.shape[1] + size + turn * options.max_tokens
        spare = len(batch.tokens) - len(part)
        rows = extend_prompts(batch, part, length, turn * self.tools.pairs)
        names = [_name_turn(uids[one.row], one.number, turn) for one in part]
        left = [limits[one.row, one.number] - one.num_drawn for one in part]
        if spare:
            rows = _add_empty(rows, spare, self.engine.config.token_ids.vision_end)
        drawn = self.later.rollout(
            params,
            rows,
            np.array([*names, *[0] * spare], np.uint32),
            seed=seed,
            step=step | _CONTINUED,
            limits=np.array([*left, *[1] * spare])[:, None],
        )
        for row, one in enumerate(part):
            _take(one, drawn, row, 0)
        return drawn.counters

    def _collect(self, batch, first: Rollout, transcripts, counters, numbers) -> Rollout:
        """The rollout of all turns. Where nobody called, on any process, it is the first one."""
        shape = first.lengths.shape
        whole = {
            name: sum(part[name] for part in counters) if name in _SUMMED else value
            for name, value in first.counters.items()
        }
        whole["num_compiles"] = self.engine.num_compiles + self.later.num_compiles
        totals = [dict(part) for part in gather(numbers)]
        whole |= {name: float(sum(part[name] for part in totals)) for name in numbers}
        calls = [
            [one.calls for one in transcripts[row * shape[1] : (row + 1) * shape[1]]]
            for row in range(shape[0])
        ]
        made = first._replace(counters=whole, calls=calls)
        if not whole["calls"]:
            return made
        tokens, logprobs, truncation = (
            np.full_like(leaf, fill)
            for leaf, fill in (
                (first.tokens, self.engine.sampling.pad_id),
                (first.logprobs, 0),
                (first.truncation, 0),
            )
        )
        for one in transcripts:
            place = (one.row, one.number, slice(one.num_drawn))
            tokens[place], logprobs[place] = one.drawn, one.logprobs
            truncation[place] = one.truncation

        def each(read, kind):
            return np.array([read(one) for one in transcripts], kind).reshape(shape)

        return made._replace(
            tokens=tokens,
            logprobs=logprobs,
            truncation=truncation,
            lengths=each(lambda one: one.num_drawn, np.int32),
            stopped=each(lambda one: one.stopped, bool),
            failed=each(lambda one: one.failed, bool),
            turns=lay_out_turns(batch, transcripts, shape),
        )


def _take(one: Transcript, drawn: Rollout, row: int, number: int) -> None:
    """Appends completion `number` of a row of `drawn` to a transcript, as its next turn."""
    end = drawn.lengths[row, number]
    one.add_turn(
        drawn.tokens[row, number, :end],
        drawn.logprobs[row, number, :end],
        drawn.truncation[row, number, :end],
        bool(drawn.stopped[row, number]),
        bool(drawn.failed[row, number]),
    )


def _name_turn(uid: int, number: int, turn: int) -> int:
    """The name, in random keys, of a turn of a completion: 32 bits that mix the three numbers."""
    mixed = np.random.SeedSequence((int(uid), int(number), int(turn)))
    return int(mixed.generate_state(1)[0])


def _find_size(batch: Batch, row: int, record: Record, pairs: Sequence[int]) -> tuple[int, int]:
    """(height, width) of the frames of the first video of a row, or of its first item."""
    kinds = [item.kind for item in record.media]
    first = kinds.index("video") if "video" in kinds else 0
    return frame_size(batch, row, sum(pairs[:first]))


def _add_empty(batch: Batch, count: int, token: int) -> Batch:
    """The batch with rows that hold one token, since every row is run."""

    def longer(leaf: np.ndarray, fill: Any) -> np.ndarray:
        return np.concatenate([leaf, np.full((count, *leaf.shape[1:]), fill, leaf.dtype)])

    fills = dict.fromkeys(Batch._fields, 0) | {"visual_index": -1}
    wide = Batch(**{name: longer(getattr(batch, name), fill) for name, fill in fills.items()})
    wide.tokens[-count:, 0], wide.segment_ids[-count:, 0] = token, 1
    return wide


def lay_out_turns(batch: Batch, transcripts: list[Transcript], shape: tuple[int, int]) -> Turns:
    """The transcripts of B prompts, R each in order, as arrays that are as long as the longest and
    hold as many frame pairs as the row with the most."""
    (rows, rollouts), (first, windows) = shape, batch.patches.shape[1:3]
    size = max(len(one.tokens) for one in transcripts)
    counts = np.array([one.num_pairs for one in transcripts]).reshape(shape)
    starts = np.cumsum(counts, axis=1) - counts
    pairs = int(counts.sum(1).max())
    made = Turns(
        tokens=np.zeros((rows, rollouts, size), np.int32),
        lengths=np.zeros(shape, np.int32),
        is_own=np.zeros((rows, rollouts, size), bool),
        positions=np.zeros((rows, 3, rollouts, size), np.int32),
        visual_index=np.full((rows, rollouts, size), -1, np.int32),
        patches=np.zeros((rows, pairs, *batch.patches.shape[2:]), np.uint8),
        patch_valid=np.zeros((rows, pairs, *batch.patch_valid.shape[2:]), bool),
        patch_hw=np.zeros((rows, pairs, *batch.patch_hw.shape[2:]), np.int32),
    )
    for one in transcripts:
        b, r, end = one.row, one.number, len(one.tokens)
        start = int(starts[b, r])
        made.tokens[b, r, :end], made.is_own[b, r, :end] = one.tokens, one.is_own
        made.lengths[b, r] = end
        made.positions[b, :, r, :end] = one.positions
        made.visual_index[b, r, :end] = one.find_slots(first + start, windows)
        one.put_media(start, made.patches[b], made.patch_valid[b], made.patch_hw[b])
    return made
