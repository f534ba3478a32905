"""Programs of a run, compiled for a TPU that is not here, and what they send.

Few and narrow heads of the published head sizes, but many layers, for a large cache. Where layers
are looped over depth costs no time to compile.
"""

import collections
import dataclasses
import math
import os
import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import pytest
from hlo import collectives, squeezed

from videorft_jax import losses
from videorft_jax.commands import flags
from videorft_jax.commands.plan import read_options
from videorft_jax.models.family import find_family
from videorft_jax.models.family import parse_config as parse_any
from videorft_jax.models.qwen2_5_vl.config import hf_values, parse_config
from videorft_jax.models.siglip.hf_folder import TowerConfig
from videorft_jax.planning import machines, plan
from videorft_jax.planning.collectives import read_collectives
from videorft_jax.planning.jobs import find_programs
from videorft_jax.planning.links import sent_bytes
from videorft_jax.planning.traffic import program_traffic
from videorft_jax.training.trees import path_of
from videorft_jax.training.weights import make_weights

ROOT = str(pathlib.Path(__file__).parents[2])
PLACES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
MOST_PLACES = (*PLACES[:2], pytest.param(PLACES[2], marks=pytest.mark.slow))
LAYERS, DIM, TENSOR, VOCAB = 24, 512, 2, 152064
ROWS, ROLLOUTS, NEW = 4, 4, 2048
FROZEN = {"train.freeze": ("vision,merger",), "grpo.beta": 0.0}
SHORT = {"rollout.num_rollouts": 2, "rollout.max_new_tokens": 128}  # the update compiles sooner
SMALL = 8192  # values; biases, norms and sums over the vocabulary


def leave_out_largest_gap(monkeypatch):
    """Takes `sampler_gap_max` out of the metrics of GRPO, so that nothing in its programs computes
    it; that is the one difference to the programs of earlier commits, whose digests are known."""
    whole = losses.grpo_loss

    def without(*args, **kwargs):
        value, metrics = whole(*args, **kwargs)
        return value, {k: v for k, v in metrics.items() if k != "sampler_gap_max"}

    monkeypatch.setattr(losses, "grpo_loss", without)


def narrow_model(layers=LAYERS):
    values = hf_values(
        "7b", num_hidden_layers=layers, hidden_size=DIM, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=1024, vision_depth=2,
    )  # fmt: skip
    values["vision_config"] |= {
        "fullatt_block_indexes": [1],
        "hidden_size": 320,
        "num_heads": 4,
        "intermediate_size": 512,
        "out_hidden_size": DIM,
    }
    return parse_config(values)


def narrow_qwen3_model():
    values = find_family("qwen3_vl").hf_values(
        "qwen3vl_8b", num_hidden_layers=8, hidden_size=DIM, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=1024, vocab_size=VOCAB, vision_depth=4,
        vision_deepstack_visual_indexes=[0, 1, 2], vision_hidden_size=288, vision_num_heads=4,
        vision_intermediate_size=512, vision_out_hidden_size=DIM,
    )  # fmt: skip
    return parse_any(values)


def narrow_job(place, mode, *, size="7b", make_model=narrow_model, **changes):
    config = load_recipe(mode, size)
    config.mesh.tensor, config.data.rows, config.data.row_tokens = TENSOR, ROWS, 1280
    config.media.min_frames = config.media.max_frames = 6
    config.rollout.num_rollouts, config.rollout.max_new_tokens = ROLLOUTS, NEW
    config.train.accumulate, config.rollout.mesh = 1, ""
    config.update_from_flattened_dict(changes)
    job = plan.make_job(read_options(config, mode), machines.find(place))
    weights = make_weights(job.train, make_model())
    tower = TowerConfig(hidden_size=128, intermediate_size=256, num_layers=2, num_heads=2)
    siglip = job.siglip and dataclasses.replace(
        job.siglip, vision=tower, text=tower, vocab_size=1024, image_size=56
    )
    return dataclasses.replace(job, weights=weights, siglip=siglip)


def load_recipe(mode, size="7b"):
    path = os.path.join(ROOT, "configs", f"{mode}_{size}.py")
    return flags.parse([f"--config={path}"], "test", "", writes=False)[0]


class Compiled(NamedTuple):
    memory: Any
    hlo: str  # the compiler's own dump; JAX cannot read back some programs for v5p and v6e


def compile_programs(job, names=None):
    found = {}
    for program in find_programs(job):
        if names is not None and program.name not in names:
            continue
        with (
            tempfile.TemporaryDirectory() as folder,
            jax.default_matmul_precision("default"),
            jax.set_mesh(job.mesh),
        ):
            dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
            memory = program.lower().compile(compiler_options=dump).memory_analysis()
            (text,) = pathlib.Path(folder).glob("*.after_optimizations.txt")
            found[program.name] = Compiled(memory, text.read_text())
    return found


def compile_one(job, name):
    return compile_programs(job, {name})[name]


def sent(hlo):
    """{(kind, loops around it): Counter of sorted dims} of what devices send each other, large
    arrays only."""
    found = collections.defaultdict(collections.Counter)
    for (kind, dims, loops), count in collectives(hlo).items():
        if math.prod(dims) > SMALL:
            found[kind, loops][dims] += count
    return dict(found)


def check_formulas(job, name, hlo, *, tokens=1):
    """The planner's formulas give the bytes that a device sends, by kind, as the compiled program
    does, but for what is under 2 % of all; `tokens` are the turns of a loop over tokens."""
    mesh = job.mesh_of(name)
    read, formulas = collections.Counter(), collections.Counter()
    for one in read_collectives(hlo, mesh, tokens):
        read[one.kind] += sent_bytes(mesh, [one])
    for one in program_traffic(job)[name]:
        formulas[one.kind] += sent_bytes(mesh, [one])
    for kind in read | formulas:
        slack = 0.02 * sum(read.values())
        assert abs(read[kind] - formulas[kind]) < slack, (name, kind, read, formulas)


def layer_weights(job, part, *, gathered=True):
    """Counter of one layer's matrices: as gathered over fsdp, or a device's own."""
    found = collections.Counter()
    for keys, leaf in jax.tree_util.tree_leaves_with_path(job.policy):
        path = path_of(keys)
        if path.startswith(f"{part}/layers") and "fsdp" in leaf.sharding.spec:
            shape = list(leaf.sharding.shard_shape(leaf.shape))
            if gathered:
                shape[leaf.sharding.spec.index("fsdp")] *= job.mesh.shape["fsdp"]
            parts = 3 if path.endswith("qkv") else 1  # each by itself
            found[squeezed(size for size in shape[1:] if size != 3)] += parts
    return found


def times(counter, count):
    return collections.Counter({key: count * value for key, value in counter.items()})


def activations(job, tokens):
    """Hidden states of a device's rows."""
    return squeezed((job.shape.rows // job.parts, tokens, DIM))


HEAD = squeezed((VOCAB // TENSOR, DIM))
OWN_HEAD = squeezed((VOCAB // TENSOR, DIM // 2))  # over fsdp = 2
