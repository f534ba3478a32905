"""The visual tokens of questions that share clips: each clip is encoded once.

The loader of an evaluation gives the questions of one clip one after another, so a batch holds few
clips, and the first of them is often the last of the batch before.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.parallel import sharding
from videorft_jax.parallel.processes import gather
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.parameters import bind_prepared


class SharedClips:
    """Encodes the clips of batches that come one after another.

    params: of `engine.prepare`. `num_encoded` counts the rows that this process encoded, those that
    fill a batch up included.
    """

    def __init__(self, engine: RolloutEngine, params: Any):
        self.engine, self.params, self.num_encoded = engine, params, 0
        self._clips: list[int] = []  # the clips of the batch before
        self._visual: jax.Array | None = None  # their visual tokens
        self._shape: tuple[int, ...] = ()

    def __call__(self, batch: Batch, clips: Sequence[int | None]) -> jax.Array | None:
        """The visual tokens [B, Z, D] of a batch of this process's rows, on the mesh; None where
        the batch has no pixels or does not divide over the parts of the mesh.

        clips: names the clip of each row, None for a row that holds no sample. All processes of the
        mesh call it together, with batches of one shape.
        """
        local, rows = sharding.count_own_parts(self.engine.mesh), len(clips)
        if rows % local or not batch.patches.size:
            return None
        if batch.patches.shape != self._shape:
            self._clips, self._visual, self._shape = [], None, batch.patches.shape
        known = {clip: row for row, clip in enumerate(self._clips) if clip is not None}
        new = [clip for clip in dict.fromkeys(clips) if clip is not None and clip not in known]
        most = max(gather(len(new)))
        if not most and self._visual is None:
            return None
        before, first = 0, 0
        if self._visual is not None:
            before, first = len(self._visual), self._first_row(self._visual)
        places = {clip: first + row for clip, row in known.items()}
        fresh = self._encode_rows(batch, [clips.index(clip) for clip in new], most)
        if fresh is not None:
            start = before + self._first_row(fresh)
            places |= {clip: start + row for row, clip in enumerate(new)}
        index = np.array([places.get(clip, 0) for clip in clips], np.int32)
        with jax.set_mesh(self.engine.mesh):
            index = sharding.place_batch(index, self.engine.mesh)
            self._visual = _join(self._visual, fresh, index, self.engine.mesh)
        self._clips = list(clips)
        return self._visual

    def _encode_rows(self, batch, rows, most):
        """The visual tokens of some rows of the batch. Every process encodes as many, a power of
        two for each of its parts of the mesh, so that few programs are compiled."""
        if not most:
            return None
        local = sharding.count_own_parts(self.engine.mesh)
        count = local * (1 << (-(-most // local) - 1).bit_length())
        rows = (rows + [0] * count)[:count]
        self.num_encoded += count
        part = Batch(*(np.asarray(leaf)[rows] for leaf in batch))
        with jax.set_mesh(self.engine.mesh):
            placed = sharding.place_batch(part, self.engine.mesh)
            plan = self.engine.programs.plan
            return _encode(self.params, placed, self.engine.config, plan, self.engine.mesh)

    def _first_row(self, visual):
        """The first of the rows of a global array that this process holds."""
        held = visual.sharding.addressable_devices_indices_map(visual.shape).values()
        return min(part[0].start or 0 for part in held)


@functools.partial(jax.jit, static_argnames=("config", "plan", "mesh"))
def _encode(params, batch, config, plan, mesh):
    """The visual tokens of a batch, spread over the mesh. Evaluations of one process that have the
    same shapes share the program."""
    return _spread(bind_prepared(config, params).encode_vision(batch, plan=plan), mesh)


@functools.partial(jax.jit, static_argnames=("mesh",))
def _join(before, fresh, index, mesh):
    parts = [part for part in (before, fresh) if part is not None]
    return _spread(jnp.concatenate(parts)[index], mesh)


def _spread(visual, mesh):
    return jax.lax.with_sharding_constraint(visual, sharding.batch_sharding(mesh))
