"""One thread that keeps a batch of completions running; requests join and leave between chunks."""

import collections
import logging
import threading
import time
from collections.abc import Callable

import jax
import numpy as np

from videorft_jax.rollout.programs import FAILED, FULL, LIVE, STOPPED
from videorft_jax.serving.errors import Refused
from videorft_jax.serving.grammar import Guide
from videorft_jax.serving.laid import Laid, model_sampling
from videorft_jax.serving.limits import check_memory
from videorft_jax.serving.options import ServeOptions
from videorft_jax.serving.prefill import PromptPrograms
from videorft_jax.serving.programs import Programs, Shape, Wish
from videorft_jax.serving.prompts import Prompts

log = logging.getLogger(__name__)
ENDS = {STOPPED: "stop", FULL: "length"}
_GROWTH = 8  # each size of the batch has so many times the rows of the one before
_LENGTH, _COLUMNS = 256, 64  # the smallest room for a prompt and for a completion


class Completion:
    """One completion under way.

    tell: called in the batcher's thread with (a Told of NumPy arrays or None, end) of each chunk;
    `end` is None, "stop", "length", or the Refused that ended it. It must return at once.
    guide: what keeps the reply to a schema, or None.
    """

    def __init__(
        self, laid: Laid, tell: Callable, *, limit: int, temperature: float, top_p: float,
        seed: int, number: int, is_ranked: bool, guide: Guide | None,
    ):  # fmt: skip
        self.laid, self.tell, self.limit = laid, tell, limit
        self.is_ranked, self.guide = is_ranked, guide
        self.temperature, self.top_p = temperature, top_p
        self.seed, self.number = seed, number
        self.is_cancelled = False
        self.length = self.num_reused = 0  # tokens drawn, and those of the prompt not run for it

    def cancel(self) -> None:
        """Frees the row before the next chunk; nothing more is told."""
        self.is_cancelled = True


class Batcher:
    """The running batch of one model, of `videorft_jax.load`. Raises ValueError for options that
    the memory cannot hold."""

    def __init__(self, model, options: ServeOptions):
        self.model, self.options = model, options
        dtype = jax.tree.leaves(model.params)[0].dtype
        check_memory(model, options, dtype, _LENGTH + _COLUMNS)
        sampling = model_sampling(model, options.max_new_tokens)
        self.programs = Programs(model.config, sampling, chunk=options.chunk, dtype=dtype)
        self.prompts = Prompts(PromptPrograms(model.config), model.params, options.cache_bytes)
        self.waiting: collections.deque[Completion] = collections.deque()
        self.rows: list[Completion | None] = []
        self.shape, self.state, self.column = Shape(0, 0, 1), None, 0
        self.num_tokens = self.num_steps = 0
        self.busy_s = 0.0
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the present chunk; what is under way is told so."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        self._thread.join()

    def submit(self, completions: list[Completion]) -> None:
        """Queues completions. Raises Refused where the queue is full or the server stops."""
        with self._changed:
            if self._is_stopping:
                raise Refused(503, "the server is stopping; ask again later")
            if len(self.waiting) + len(completions) > self.options.max_queue:
                raise Refused(429, f"{len(self.waiting)} completions wait; ask again later")
            self.waiting.extend(completions)
            self._changed.notify()

    @property
    def num_active(self) -> int:
        """Completions in the batch now."""
        return sum(row is not None for row in self.rows)

    def _run(self):
        with jax.set_mesh(self.model.mesh):
            try:
                self._warm()
            except Exception:  # Else nobody would answer, and every request wait for its deadline.
                log.exception("serve: not compiled beforehand; the first replies wait for it")
            while self._wait():
                started = time.perf_counter()
                try:
                    self._drop_cancelled()
                    self._admit()
                    if self.num_active:
                        self._decode()
                except Exception:  # A fault of ours ends the replies it concerns, not the server.
                    log.exception("serve: the batch failed and is begun anew")
                    self._fail(Refused(500, "the server failed on this batch; see its log"))
                self.busy_s += time.perf_counter() - started
        self._fail(Refused(503, "the server is stopping; ask again later"))

    def _warm(self):
        """Compiles each size of the batch for short prompts and replies, and the ways between, so
        that nobody's reply waits for it when many clients come at once."""
        started, state, last = time.perf_counter(), None, np.int32(0)
        sizes = list(_powers(1, _GROWTH, self.options.max_slots))
        for rows in [*sizes, *sizes[-2::-1]]:
            shape = Shape(rows, _LENGTH, _COLUMNS)
            if state is None:
                state = self.programs.empty(shape)
            else:
                nobody = np.zeros(rows, bool)
                state = self.programs.move(state, shape, np.zeros(rows, np.int32), nobody, last)
            masks = self._masks([None] * rows)
            state, *_ = self.programs.decode(
                self.model.params, state, last, np.ones(rows, bool), masks, False, np.int32(1)
            )
        log.info(
            "serve: %s rows are compiled, %.1f s",
            ", ".join(map(str, sizes)), time.perf_counter() - started,
        )  # fmt: skip

    def _wait(self) -> bool:
        with self._changed:
            while not (self.waiting or self.num_active or self._is_stopping):
                self._changed.wait()
            return not self._is_stopping

    def _drop_cancelled(self):
        with self._changed:
            kept = [one for one in self.waiting if not one.is_cancelled]
            self.waiting = collections.deque(kept)
        for index, one in enumerate(self.rows):
            if one is not None and one.is_cancelled:
                self.rows[index] = None

    def _fail(self, error: Refused):
        with self._changed:
            lost = [one for one in (*self.rows, *self.waiting) if one is not None]
            self.waiting.clear()
        self.rows, self.shape, self.state = [], Shape(0, 0, 1), None
        for one in lost:
            one.tell(None, error)

    def _admit(self):
        """Takes completions from the queue while rows are free, and reshapes the batch to fit."""
        with self._changed:
            free = self.options.max_slots - self.num_active
            joining = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
        self.rows += joining  # so that a fault finds them; their places are given below
        active = [one for one in self.rows if one is not None and one not in joining]
        self._reshape(active, joining)
        for place, prompt, known in self.prompts.run([one.laid for one in joining]):
            one = joining[place]
            row, one.num_reused = self.rows.index(one), known
            key = self.programs.make_key(*np.uint32([one.seed, 0, 0, one.number]))
            wish = Wish(key, one.limit, one.temperature, one.top_p)
            self.state, told, end = self.programs.join(
                self.state, prompt, np.int32(row), wish, self._masks([one]), one.is_ranked
            )
            told, end = jax.tree.map(lambda leaf: np.asarray(leaf)[None], told), int(end)
            self._tell(row, 0 if end == FAILED else 1, told, end)

    def _masks(self, rows) -> np.ndarray:
        """The ids that each completion may draw now, uint32 [rows, ceil(V / 32)]."""
        masks = np.full((len(rows), self.programs.mask_width), 2**32 - 1, np.uint32)
        for mask, one in zip(masks, rows, strict=True):
            if one is not None and one.guide is not None:
                one.guide.write(mask)
        return masks

    def _reshape(self, active, joining):
        everyone = [*active, *joining]
        if not everyone:
            self.rows = [None] * self.shape.rows
            return
        rows = next(n for n in _powers(1, _GROWTH, self.options.max_slots) if n >= len(everyone))
        length = max(one.laid.batch.tokens.shape[1] for one in everyone)
        length = next(n for n in _powers(_LENGTH, 2) if n >= length)
        columns = next(n for n in _powers(_COLUMNS, 4) if n >= max(one.limit for one in everyone))
        if active:  # A prompt or ring that is longer than needed is no reason to copy the batch.
            length, columns = max(length, self.shape.length), max(columns, self.shape.columns)
        shape = Shape(rows, length, columns)
        if self.state is None or not active:
            if shape != self.shape or self.state is None:
                self.state = None  # frees its memory before the next is made
                self.state = self.programs.empty(shape)
            self.shape, self.rows, self.column = shape, [*joining], 0
            self.rows += [None] * (rows - len(joining))
            return
        if shape == self.shape:
            self.rows = self.rows[: shape.rows]
            for one in joining:
                self.rows[self.rows.index(None)] = one
            return
        source = np.zeros(rows, np.int32)
        source[: len(active)] = [self.rows.index(one) for one in active]
        held = np.arange(rows) < len(active)
        last = np.int32((self.column - 1) % self.shape.columns)
        self.state = self.programs.move(self.state, shape, source, held, last)
        self.shape, self.column = shape, 0
        self.rows = [*everyone, *[None] * (rows - len(everyone))]

    def _decode(self):
        stopped = np.array([one is None for one in self.rows])
        before = [0 if one is None else one.length for one in self.rows]
        present = [one for one in self.rows if one is not None]
        is_guided = any(one.guide is not None for one in present)
        self.state, steps, told = self.programs.decode(
            self.model.params, self.state, np.int32(self.column), stopped, self._masks(self.rows),
            any(one.is_ranked for one in present),
            np.int32(1 if is_guided else self.programs.chunk),
        )  # fmt: skip
        lengths, ends = np.asarray(self.state.length), np.asarray(self.state.end)
        told, steps = jax.tree.map(np.asarray, told), int(steps)
        self.column = (self.column + steps) % self.shape.columns
        self.num_steps += steps
        for row, one in enumerate(self.rows):
            if one is not None:
                mine = jax.tree.map(lambda leaf, row=row: leaf[row], told)
                self._tell(row, int(lengths[row]) - before[row], mine, int(ends[row]))

    def _tell(self, row, new, told, end):
        """Tells a completion its `new` tokens, and frees its row where it has ended."""
        one = self.rows[row]
        one.length += new
        self.num_tokens += new
        how = ENDS.get(end)
        told = jax.tree.map(lambda leaf: leaf[:new], told)
        if end == FAILED:
            how = Refused(500, "the model's logits are not finite; check its weights and dtype")
        try:
            if end == LIVE and one.guide is not None:
                one.guide.take(told.token.tolist())
        except Refused as error:
            how = error
        if how is not None:
            self.rows[row] = None
        if not one.is_cancelled:
            one.tell(told, how)


def _powers(first: int, factor: int, last: int | None = None):
    """first, first * factor, ... without end, or up to and with `last`."""
    count = first
    while last is None or count < last:
        yield count
        count *= factor
    yield last
