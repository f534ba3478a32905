"""Programs of published models on meshes of the rollout's own, compiled for a TPU that is not here:
also where there are more parts than heads of keys."""

import math

import pytest
from hlo import collectives, materialised, squeezed
from planned import check_formulas, compile_programs, load_recipe

from videorft_jax.commands.plan import read_options
from videorft_jax.planning import machines, plan
from videorft_jax.planning.collectives import read_collectives
from videorft_jax.planning.jobs import device_bytes
from videorft_jax.planning.links import find_wires
from videorft_jax.rollout.heads import count_copies

# The recipe, and the sizes of the rollout's data, fsdp and tensor; training has fsdp=16.
CASES = [
    ("7b", (1, 4, 4)), ("7b", (1, 2, 8)), ("7b", (1, 1, 16)), ("3b", (2, 2, 4)),
    ("3b", (1, 2, 8)), ("3b", (1, 1, 16)), ("qwen3vl_8b", (1, 1, 16)),
]  # fmt: skip


def make(size, sizes, place="v6e-16", rows=16):
    pytest.importorskip("libtpu")
    config = load_recipe("grpo", size)
    config.media.min_frames = config.media.max_frames = 16
    config.data.rows, config.data.row_tokens, config.train.accumulate = rows, 4096, 1
    config.rollout.mesh = ",".join(map(str, sizes))
    return plan.make_job(read_options(config), machines.find(place))


def find_caches(job):
    """Values of one layer's keys on a device, and of all layers': of prompts, of completions.
    Devices that share a head keep a part of the places each."""
    text, rows = job.weights.model.text, job.shape.rows // job.drawing.parts
    tensor, rollout = job.drawing.mesh.shape["tensor"], job.grpo.rollout
    copies = count_copies(job.weights.model, tensor)
    each = rows * (text.num_kv_heads * copies // tensor) * text.head_dim
    kept, own = (-(-n // copies) for n in (job.shape.length, rollout.max_new_tokens))
    return {
        each * tokens * layers
        for tokens in (kept, rollout.num_rollouts * own)
        for layers in (1, text.num_layers)
    }


@pytest.mark.slow
@pytest.mark.parametrize(("size", "sizes"), CASES)
def test_decode_sums_hidden_states_and_copies_no_cache(size, sizes):
    job = make(size, sizes)
    decode = compile_programs(job, {"decode"})["decode"]
    text, rollout = job.weights.model.text, job.grpo.rollout
    copies = count_copies(job.weights.model, job.drawing.mesh.shape["tensor"])
    assert not materialised(decode.hlo, find_caches(job))
    # Once a call, where a device has four heads, the compiler copies the weights of the queries.
    attn = job.prepared["text"]["layers"]["attn"]
    # Layers one after another need some megabytes more than a loop, whatever lies in the cache.
    cache = 2 * 2 * max(find_caches(job))
    assert decode.memory.temp_size_in_bytes < 0.1 * cache + 1.01 * device_bytes(attn["q"])
    states = squeezed((job.shape.rows // job.drawing.parts, rollout.num_rollouts, text.dim))
    found = collectives(decode.hlo)
    # No weights, no cache, no logits: what parts of the vocabulary found, and where devices share a
    # head, queries and what comes of them.
    shared = {"all-to-all"} if copies > 1 else set()
    assert {kind for kind, *_ in found} == {"all-reduce", "all-gather"} | shared
    assert max(math.prod(dims) for kind, dims, _ in found) == math.prod(states)
    # A layer sums behind attention and its MLP. An embedding that is split, since it is the head
    # too, is added up once a token.
    sums = {loops: n for (kind, dims, loops), n in found.items() if dims == states}
    assert sums == {1: 2 * text.num_layers + int(text.tied)}
    check_formulas(job, "decode", decode.hlo, tokens=rollout.max_new_tokens - 1)


@pytest.mark.slow
def test_weights_are_fetched_while_sums_are_waited_for():
    """7B on v5e-64, as launch/PLANS.md has it. Sums of hidden states, and what devices that share a
    head exchange, take time of their own in the first layers alone."""
    job = make("7b", (1, 8, 8), "v5e-64", 64)
    hlo = compile_programs(job, {"decode"})["decode"].hlo
    wires = find_wires(job.topology, job.drawing.mesh)
    steps = job.grpo.rollout.max_new_tokens - 1
    found = read_collectives(hlo, job.drawing.mesh, steps)
    waited, exposed = (
        sum(seconds(one) for one in found if one.bytes > 1e5)
        for seconds in (wires.seconds, wires.exposed_seconds)
    )
    assert waited > 0.8
    assert exposed < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("size", "sizes"), CASES)
def test_resharding_exchanges_pieces_before_it_gathers(size, sizes):
    """Weights that keep their shape are gathered no wider than a device's own part of tensor."""
    job = make(size, sizes)
    reshard = compile_programs(job, {"reshard"})["reshard"]
    model, tensor = job.weights.model, job.drawing.mesh.shape["tensor"]
    found = collectives(reshard.hlo)
    mlp = model.text.dim * model.text.mlp_dim
    gathered = [math.prod(dims) for kind, dims, _ in found if kind == "all-gather"]
    assert mlp not in gathered
    exchanged = [math.prod(dims) for kind, dims, _ in found if kind == "all-to-all"]
    assert mlp // 16 in exchanged
    if sizes[0] * sizes[1] > 1:
        assert mlp // tensor in gathered
    check_formulas(job, "reshard", reshard.hlo)
