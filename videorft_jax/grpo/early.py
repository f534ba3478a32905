"""Work on the rewards of a batch that need not wait until its last completion has ended.

While the devices draw, the host has little to do. Frames are made ready for SigLIP as soon as a
rollout begins, and the accuracy of a completion is computed when it ends. Both give what they would
give later; the scoring of the whole batch finds them done.
"""

import concurrent.futures
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from videorft_jax.metrics.profile import span
from videorft_jax.rewards.once import score_once

Read = Callable[[np.ndarray], str]  # Makes a text of the tokens of one completion.


class Early:
    """Holds what is computed about one batch while its completions are drawn.

    records: the record of each row, None for a row without one. shape: (B, R). read: makes texts.
    mode: rules of the accuracy; None where it is no reward. frames: the future of the frames.
    """

    def __init__(
        self,
        records: Sequence[Any],
        shape: tuple[int, int],
        pool: concurrent.futures.Executor,
        read: Read,
        mode: str | None,
        frames: concurrent.futures.Future | None,
    ):
        self.records, self.frames, self._pool, self._read = records, frames, pool, read
        self._mode, self._seen = mode, np.zeros(shape, bool)

    def take(self, tokens: np.ndarray, lengths: np.ndarray, has_ended: np.ndarray) -> None:
        """Starts to score the completions that have ended since the last call.

        tokens [B, R, C], of which the first lengths [B, R] are drawn; has_ended bool [B, R].
        """
        new, self._seen = has_ended & ~self._seen, self._seen | has_ended
        if self._mode is None:
            return
        for row, number in np.argwhere(new):
            if self.records[row] is not None:
                own = tokens[row, number, : lengths[row, number]].copy()
                self._pool.submit(self._score, self.records[row], own)

    def _score(self, record, tokens):
        with span("rewards: accuracy of what has ended"):
            options = tuple(getattr(record, "options", None) or ())
            where = (record.solution, record.problem_type, options, self._mode)
            score_once(self._read(tokens), *where)
