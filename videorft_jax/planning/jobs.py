"""Every program of a run, lowered from shapes alone.

The commands run these same programs; here they are lowered with abstract arguments that carry
shardings, so that no array is made. Each program comes with the bytes that lie on a device while it
runs and are no argument of it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from videorft_jax.grpo import experience, update
from videorft_jax.grpo.logprobs import Groups
from videorft_jax.grpo.options import GrpoOptions
from videorft_jax.models import family
from videorft_jax.models.geometry import WINDOW_TOKENS, Geometry
from videorft_jax.models.siglip import towers as siglip_towers
from videorft_jax.models.siglip.hf_folder import SiglipConfig
from videorft_jax.parallel import sharding
from videorft_jax.planning.machines import Topology
from videorft_jax.planning.shapes import Shape, batch_shapes, siglip_batch
from videorft_jax.rewards.semantic import make_program
from videorft_jax.rollout.compaction import Grid
from videorft_jax.rollout.heads import abstract_widened
from videorft_jax.rollout.mesh import reshape
from videorft_jax.rollout.parameters import prepared_shardings
from videorft_jax.training.optimizer import make_optimizer
from videorft_jax.training.options import TrainOptions
from videorft_jax.training.sft_step import make_sft_step
from videorft_jax.training.state import abstract_state
from videorft_jax.training.step import TrainState
from videorft_jax.training.weights import Weights

DRAWING = ("vision", "prefill", "decode", "compact")  # They run on the rollout's mesh.
NUM_SENTENCES = 8  # the default of the semantic reward's text rule "pooled"


@dataclasses.dataclass(frozen=True)
class Job:
    """What is planned: a run on a machine, in one shape.

    `train` holds what SFT and GRPO have in common, `grpo` is None where SFT is planned. `siglip` is
    None where no reward looks at frames. `num_shapes` counts the buckets of the data. `topology`
    and `tokenizer` are None for the machine at hand, where only the memory of updates is asked for.
    """

    train: TrainOptions
    grpo: GrpoOptions | None
    weights: Weights
    mesh: Any
    topology: Topology | None
    shape: Shape
    siglip: SiglipConfig | None
    num_shapes: int
    tokenizer: Any

    @property
    def mode(self) -> str:
        """Which stage is planned."""
        return "grpo" if self.grpo else "sft"

    @property
    def geometry(self) -> Geometry:
        """How the model's pixels are cut."""
        return family.family_of(self.weights.model).geometry

    @property
    def parts(self) -> int:
        """Parts of the mesh that hold different rows."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @functools.cached_property
    def drawing(self) -> "Job":
        """The same job on the mesh on which its completions are drawn."""
        mesh = reshape(self.mesh, self.grpo.rollout.mesh) if self.grpo else self.mesh
        return self if mesh is self.mesh else dataclasses.replace(self, mesh=mesh)

    def mesh_of(self, name: str):
        """The mesh along whose axes the program called `name` sends arrays; that which copies the
        weights ends on the rollout's."""
        return self.drawing.mesh if name in (*DRAWING, "reshard") else self.mesh

    @functools.cached_property
    def state(self) -> TrainState:
        """The abstract state of training, with bfloat16 for weights that do not train."""
        return abstract_state(self.train, self.weights, self.mesh, jnp.bfloat16)

    @functools.cached_property
    def reference(self):
        """The abstract reference policy; None where there is none or it is the base of adapters."""
        if self.grpo is None or not self.grpo.loss.beta or self.weights.lora:
            return None
        shapes = _cast(self.state.params, self.train.model.dtype)
        if not self.grpo.reference_on_host:
            return shapes
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=x.sharding.with_memory_kind("pinned_host")
            ),
            shapes,
        )

    @functools.cached_property
    def policy(self):
        """The abstract parameters of the model, in its dtype."""
        tree = family.abstract_params(self.weights.model, jnp.dtype(self.train.model.dtype))
        return _placed(tree, sharding.state_shardings(tree, self.mesh, self.train.name))

    @functools.cached_property
    def prepared(self):
        """The abstract parameters that the rollout reads, in the model's dtype."""
        model, mesh = self.weights.model, self.drawing.mesh
        tree = family.abstract_params(model, jnp.dtype(self.train.model.dtype))
        tree = abstract_widened(tree, model, mesh.shape["tensor"])
        return _placed(tree, prepared_shardings(model, mesh))

    @functools.cached_property
    def judge(self):
        """The abstract parameters of SigLIP."""
        if self.siglip is None:
            return None
        flat = siglip_towers.abstract(self.siglip)[2]
        tree = _cast(unflatten_dict(flat, sep="/"), self.train.model.dtype)
        return _placed(tree, sharding.state_shardings(tree, self.mesh, "siglip"))


@dataclasses.dataclass(frozen=True)
class Program:
    """A program of a step.

    lower: gives JAX's lowered program. beside: bytes that lie on a device while it runs and are no
    argument of it. shapes: how many shapes it is compiled for, at most. turns: how often one run
    turns a loop that its data may end, as that over tokens.
    """

    name: str
    lower: Callable[[], Any]
    beside: int
    shapes: int = 1
    turns: int = 1


def device_bytes(tree) -> int:
    """Counts the bytes of one device's memory that a tree of abstract arrays takes."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.sharding.memory_kind != "pinned_host"
    )


def total_bytes(tree) -> int:
    """Bytes that a tree of abstract arrays takes on all devices together, without copies."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def prepared_bytes(job: Job) -> int:
    """Counts the bytes of one device's memory that the rollout's weights take."""
    text, tower = device_bytes(job.prepared["text"]), device_bytes(job.prepared["vision"])
    return tower + (text // 2 if job.grpo.rollout.int8_weights else text)


def count_runs(job: Job, name: str) -> int:
    """Counts how often a step runs the program called `name`, at most."""
    if job.grpo is None:
        return 1
    if name == "update":
        return job.grpo.steps_per_rollout
    return job.grpo.max_draws if name in (*DRAWING, "siglip") else 1


def find_programs(job: Job) -> list[Program]:
    """The programs of a step, in the order in which they run."""
    if job.mode == "sft":
        return [_sft_step(job)]
    return _grpo_programs(job)


def _sft_step(job):
    optimizer = make_optimizer(job.train.optim, 1000)
    step = make_sft_step(job.train, job.weights, optimizer, _shardings(job.state))
    batch = batch_shapes(job.shape, job.geometry, sharding.batch_sharding(job.mesh))
    lower = functools.partial(_lower, job, step, job.state, batch)
    return Program("update", lower, 0, shapes=job.num_shapes)


def _grpo_programs(job):
    own = _GrpoPrograms(job)
    found = [own.reshard(), own.vision(), own.prefill(), own.decode(), own.compact()]
    found += [own.siglip(), own.score(), own.update()]
    return [program for program in found if program is not None]


class _GrpoPrograms:
    """The programs of a GRPO step. A method gives None where the options do without its program."""

    def __init__(self, job: Job):
        self.job, self.options, model = job, job.grpo, job.weights.model
        self.rows = sharding.batch_sharding(job.mesh)
        optimizer = make_optimizer(job.train.optim, 1000)
        made = (job.grpo, job.weights, optimizer, _shardings(job.state))
        self.own = update.GrpoPrograms(*made)
        engine = experience.make_engine(job.grpo, model, job.mesh, job.tokenizer)
        self.engine = engine.programs
        self.grid = Grid(job.shape.rows // job.drawing.parts, job.grpo.rollout.num_rollouts)
        self.grids = engine.batch_grids(job.shape.length, self.grid)
        self.batch = batch_shapes(job.shape, job.geometry, self.rows)
        self.visual = None
        self.shares = experience.shares_visual(job.grpo, job.weights)
        if self.shares:
            slots = job.shape.pairs * job.shape.windows * WINDOW_TOKENS
            self.visual = self._array(job.train.model.dtype, slots, model.visual_dim)
        self.sizes = {
            "state": device_bytes(job.state),
            "moments": device_bytes((job.state.opt_state, job.state.ema)),
            "reference": device_bytes(job.reference),
            "siglip": device_bytes(job.judge),
            "prepared": prepared_bytes(job),
        }

    def _array(self, dtype, *sizes):
        shape = (self.job.shape.rows, *sizes)
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=self.rows)

    def _beside(self, *names):
        return sum(self.sizes[name] for name in names)

    def _lower(self, program, *args):
        return functools.partial(_lower, self.job, program, *args)

    @property
    def _prompts(self):
        """The batch as prefill and update read it."""
        if not self.shares:
            return self.batch
        return self.batch._replace(patches=self._array(jnp.uint8, 0, *self.batch.patches.shape[2:]))

    @property
    def _groups(self):
        rollouts, size = self.options.rollout.num_rollouts, self.options.rollout.max_new_tokens
        completions = self._array(jnp.int32, rollouts, size)
        return Groups(self._prompts, completions, self._array(jnp.int32, rollouts), self.visual)

    @property
    def _reference(self):
        return (self.job.reference,) if self.options.loss.beta else ()

    def reshard(self):
        policy = self.own.policy(self.job.state.params, self.job.state.frozen)
        lower = self._lower(self.engine.prepare, policy)
        return Program("reshard", lower, self._beside("moments", "reference", "siglip"))

    def vision(self):
        if not self.shares:
            return None
        job = self.job.drawing
        encode = experience.make_encode(job.grpo, job.weights.model, job.mesh)
        prepared = _placed(self.engine.params.shapes, self.engine.params.formats)
        rows = sharding.batch_sharding(job.mesh)
        batch = batch_shapes(job.shape, job.geometry, rows)
        lower = functools.partial(_lower, job, encode, prepared, batch)
        beside = self._beside("state", "reference", "siglip") + device_bytes(prepared["text"])
        return Program("vision", lower, beside, self.job.num_shapes)

    def prefill(self):
        rollouts = self.options.rollout.num_rollouts
        uids, limits = self._array(jnp.uint32), self._array(jnp.int32, rollouts)
        inputs = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
            (self._prompts, uids, limits, self.visual),
        )
        lower = functools.partial(self.engine.lower_prefill, inputs, self.grid)
        beside = self._beside("state", "reference", "siglip")
        return Program("prefill", lower, beside, self.job.num_shapes)

    def decode(self):
        length = self.job.shape.length
        lower = functools.partial(self.engine.lower_decode, length, self.grid)
        beside = self._beside("state", "reference", "siglip")
        shapes = self.job.num_shapes * len(self.grids)
        turns = self.options.rollout.max_new_tokens - 1  # Prefill draws the first token.
        return Program("decode", lower, beside, shapes, turns)

    def compact(self):
        smaller = [other for other in self.grids if other != self.grid]
        if not smaller:
            return None
        into = max(smaller, key=lambda other: other.size)
        length, count = self.job.shape.length, len(self.grids)
        lower = functools.partial(self.engine.lower_compact, length, self.grid, into)
        beside = self._beside("state", "reference", "siglip", "prepared")
        shapes = self.job.num_shapes * count * (count - 1) // 2
        return Program("compact", lower, beside, shapes)

    def siglip(self):
        if self.job.siglip is None:
            return None
        reward = self.options.semantic
        settings = {"averaging": reward.averaging, "scale": reward.scale, "where": self.rows}
        program = make_program(self.job.siglip, **settings)
        batch = siglip_batch(
            self.job.siglip,
            self.job.shape.rows,
            self.options.rollout.num_rollouts,
            NUM_SENTENCES if reward.text_rule == "pooled" else 1,
            reward.frames,
            self.rows,
        )
        read = {name: self.job.judge[name] for name in ("vision", "text")}
        beside = self._beside("state", "reference", "prepared")
        return Program("siglip", self._lower(program, read, batch), beside)

    def score(self):
        if not self.options.needs_score:
            return None
        args = (self.job.state.params, self.job.state.frozen, self._groups, *self._reference)
        return Program(
            "score", self._lower(self.own.score, *args), self._beside("moments", "siglip"),
            shapes=self._update_shapes,
        )  # fmt: skip

    def update(self):
        rollouts, size = self.options.rollout.num_rollouts, self.options.rollout.max_new_tokens
        wide = self._array(jnp.float32, rollouts, size)
        rows = update.GroupRows(self._groups, self._array(jnp.float32, rollouts), wide)
        updates, in_reward = self.options.steps_per_rollout, self.options.kl_in_reward
        if updates > 1:
            known = wide if self.options.loss.beta and not in_reward else None
            rows = rows._replace(old=wide, reference=known)
        rows = jax.tree.map(self._minibatch, rows)
        fixed = () if in_reward else self._reference
        lower = self._lower(self.own.step, self.job.state, rows, *fixed)
        return Program("update", lower, self._beside("siglip"), self._update_shapes)

    def _minibatch(self, leaf):
        """The shape of the rows that one optimizer step takes."""
        shape = (leaf.shape[0] // self.options.minibatches, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=leaf.sharding)

    @property
    def _update_shapes(self):
        return self.job.num_shapes * self.options.length_buckets


def _lower(job, program, *args):
    with jax.set_mesh(job.mesh):
        return program.lower(*args)


def _shardings(tree):
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def _placed(tree, shardings):
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


def _cast(tree, dtype):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype), sharding=x.sharding), tree
    )
