"""`videorft plan`: the programs of a rollout and its rewards, compiled for TPUs."""

import math

import pytest
from hlo import collectives, materialised, squeezed
from planned import (
    DIM,
    FROZEN,
    HEAD,
    LAYERS,
    MOST_PLACES,
    NEW,
    ROLLOUTS,
    ROWS,
    TENSOR,
    VOCAB,
    check_formulas,
    compile_programs,
    layer_weights,
    narrow_job,
    sent,
)  # fmt: skip

from videorft_jax.planning.collectives import read_collectives
from videorft_jax.planning.jobs import device_bytes, find_programs, prepared_bytes
from videorft_jax.planning.links import sent_bytes
from videorft_jax.planning.traffic import program_traffic
from videorft_jax.rollout.parameters import takes_apart


@pytest.fixture(scope="module", params=MOST_PLACES)
def rollout(request):
    """(job, compiled programs) of GRPO with a frozen tower, so that vision is one of them, but for
    the update. The layers of v6e lie apart as those of v5e do."""
    pytest.importorskip("libtpu")
    job = narrow_job(request.param, "grpo", **FROZEN)
    names = {program.name for program in find_programs(job)} - {"update"}
    return job, compile_programs(job, names)


def test_programs(rollout):
    names = [program.name for program in find_programs(rollout[0])]
    assert names == ["reshard", "vision", "prefill", "decode", "compact", "siglip", "update"]
    assert list(rollout[1]) == names[:-1]


def cache_sizes(job):
    """Values of a layer's keys on one device: of prompts, of completions."""
    text = job.weights.model.text
    each = text.num_kv_heads // TENSOR * text.head_dim * ROWS // job.parts
    return each * job.shape.length, each * ROLLOUTS * NEW


def test_decode_takes_little_memory_and_sends_hidden_states_alone(rollout):
    job, compiled = rollout
    prefix, suffix = cache_sizes(job)
    memory = compiled["decode"].memory
    # Once a call the compiler copies the weights of the queries, where layers lie apart.
    attn = job.prepared["text"]["layers"]["attn"]
    queries = device_bytes(attn["q"]) if takes_apart(job.mesh) else 0
    most = 0.05 * 2 * 2 * LAYERS * (prefix + suffix) + 1.01 * queries
    assert memory.temp_size_in_bytes < most
    sizes = {size * layers for size in (prefix, suffix) for layers in (1, LAYERS)}
    hlo = compiled["decode"].hlo
    assert not materialised(hlo, sizes)
    states = squeezed((ROWS // job.parts, ROLLOUTS, DIM))
    found = collectives(hlo)
    # Weights are whole and logits stay split.
    assert {kind for kind, _, _ in found} == {"all-reduce", "all-gather"}
    assert max(math.prod(dims) for _, dims, _ in found) == math.prod(states)
    # Behind attention and MLP, over tensor. Each device looks embeddings up by itself.
    sums = {count: n for (_, dims, count), n in found.items() if dims == states}
    apart = takes_apart(job.mesh)
    assert sums == ({1: 2 * LAYERS} if apart else {2: 2})
    fetched = [one.fetched for one in read_collectives(hlo, job.mesh) if one.bytes > 2 * DIM * ROWS]
    assert (max(fetched) > 0) == apart
    # A draw needs both maxima, the whole mass, 16 turns of the search for its bound, and what each
    # part found.
    small = [one for one in read_collectives(hlo, job.mesh) if one.axes == ("tensor",)]
    small = [one for one in small if one.bytes < 2 * math.prod(states)]
    kinds = {kind: sum(one.count for one in small if one.kind == kind) for kind, *_ in small}
    assert kinds == {"all-gather": 19}
    check_formulas(job, "decode", hlo, tokens=NEW - 1)


def test_reshard_gathers_each_weight_once(rollout):
    job, compiled = rollout
    check_formulas(job, "reshard", compiled["reshard"].hlo)
    found = sent(compiled["reshard"].hlo)
    assert {kind for kind, _ in found} == {"all-gather"}
    assert layer_weights(job, "text").items() <= found["all-gather", 1].items()
    assert found["all-gather", 0][HEAD] == 1
    sizes = [math.prod(dims) for dims in found["all-gather", 0].elements()]
    assert sizes.count(VOCAB * DIM) == 1  # the embedding, whole
    layer = sum(math.prod(dims) * n for dims, n in layer_weights(job, "text").items())
    memory = compiled["reshard"].memory
    # No second copy of the layers, 2 bytes a value, but for a stack that is taken apart; embedding
    # and head may be there twice.
    copies = LAYERS * layer * (3 if takes_apart(job.mesh) else 1)
    assert memory.temp_size_in_bytes < copies + 2 * 2 * (1 + TENSOR) * math.prod(HEAD)


def test_prefill_gathers_weights_and_sums_no_hidden_states(rollout):
    """Devices along tensor take rows of their own and then exchange keys and values."""
    job, compiled = rollout
    hlo = compiled["prefill"].hlo
    check_formulas(job, "prefill", hlo)
    assert "tpu_custom_call" in hlo
    found = sent(hlo)
    assert {kind for kind, _ in found} <= {"all-gather", "all-to-all"}


def test_the_tower_sends_its_tokens_alone(rollout):
    """Devices along tensor encode frame pairs of their own: three pairs of two rows are six, which
    two devices share."""
    job, compiled = rollout
    hlo, shape = compiled["vision"].hlo, job.shape
    check_formulas(job, "vision", hlo)
    assert "tpu_custom_call" in hlo
    tokens = ROWS // job.parts * shape.pairs * shape.windows * job.geometry.slots // 4
    ((key, found),) = sent(hlo).items()
    assert key == ("all-gather", 0)
    assert [(math.prod(dims), count) for dims, count in found.items()] == [(tokens * DIM, 1)]


def test_compaction_stays_on_its_device(rollout):
    assert not collectives(rollout[1]["compact"].hlo)
    assert not read_collectives(rollout[1]["compact"].hlo, rollout[0].mesh)


def test_siglip_gathers_its_towers_once_and_no_images_or_texts(rollout):
    """Each device takes images and texts of its own, so that no loop over frames or layers sends
    anything."""
    job, compiled = rollout
    hlo = compiled["siglip"].hlo
    found = collectives(hlo)
    assert not [key for key in found if key[2]]
    images = ROWS // job.mesh.size * (job.siglip.image_size // job.siglip.patch_size) ** 2
    others = [math.prod(dims) for kind, dims, _ in found if kind != "all-gather"]
    assert max(others, default=0) < images
    read = sent_bytes(job.mesh, read_collectives(hlo, job.mesh))
    # In towers as narrow as these a query that is shared before it is sent is 2 % of all.
    formulas = sent_bytes(job.mesh, program_traffic(job)["siglip"])
    assert read == pytest.approx(formulas, rel=0.03)


def test_arguments_are_what_the_shardings_say(rollout):
    job, compiled = rollout
    cache = 2 * 2 * LAYERS * sum(cache_sizes(job))
    for name, expected in (
        ("reshard", device_bytes((job.state.params, job.state.frozen))),
        ("decode", prepared_bytes(job) + cache),
    ):
        size = compiled[name].memory.argument_size_in_bytes
        assert size == pytest.approx(expected, rel=0.02), name
