"""`videorft plan`: scoring and updates, compiled for TPUs."""

import base64
import collections
import math
import re

import jax
import pytest
from locked import text_of_locked_jax
from planned import (
    DIM,
    FROZEN,
    HEAD,
    LAYERS,
    MOST_PLACES,
    OWN_HEAD,
    PLACES,
    ROWS,
    SHORT,
    TENSOR,
    VOCAB,
    activations,
    check_formulas,
    compile_one,
    layer_weights,
    narrow_job,
    sent,
    times,
)  # fmt: skip

from videorft_jax.planning.collectives import read_collectives
from videorft_jax.planning.estimate import least_update
from videorft_jax.planning.jobs import device_bytes, find_programs
from videorft_jax.planning.traffic import program_traffic


@text_of_locked_jax
def test_kernels_name_their_sources_without_folders():
    """Else neither a pod's compiled programs nor figures kept would hold in another place."""
    pytest.importorskip("libtpu")
    job = narrow_job("v5e:2x2", "grpo", **FROZEN | SHORT)
    (program,) = (program for program in find_programs(job) if program.name == "update")
    with jax.set_mesh(job.mesh):
        text = program.lower().as_text()
    kernels = [base64.b64decode(body) for body in re.findall(r"body\\22: \\22([\w+/=]+)", text)]
    files = {name.decode() for body in kernels for name in re.findall(rb"[\w./-]+\.py", body)}
    assert any(name.startswith("jax/experimental/pallas/ops/tpu/splash") for name in files)
    assert not [name for name in files if name.startswith("/")]


@pytest.fixture(scope="module", params=MOST_PLACES)
def update(request):
    """(job, program) of GRPO with the reference policy inside."""
    pytest.importorskip("libtpu")
    job = narrow_job(request.param, "grpo", **FROZEN | SHORT | {"grpo.beta": 0.04})
    return job, compile_one(job, "update")


def test_update_fits_what_remat_promises(update):
    """Layer inputs are kept, and nothing else grows with depth but gradients and the copies of
    weights."""
    job, compiled = update
    tokens = ROWS // job.parts * (job.shape.length + 2 * 128)
    kept = 2 * LAYERS * tokens * DIM
    copies = device_bytes(job.policy) + device_bytes(job.state.params)
    logits = 4 * ROWS // job.parts * 256 * VOCAB // TENSOR
    assert compiled.memory.temp_size_in_bytes < kept + copies + 3 * logits
    check_least(job, compiled)


def check_least(job, compiled):
    """What a run is refused for is no more than the compiler needs."""
    memory = compiled.memory
    assert least_update(job) * 2**30 < memory.argument_size_in_bytes + memory.temp_size_in_bytes


def test_update_sends_weights_once_a_pass_and_gradients_once(update):
    job, compiled = update
    hlo = compiled.hlo
    assert hlo.count('custom_call_target="tpu_custom_call"') >= 3  # splash forward, dq and dkv
    check_formulas(job, "update", hlo)
    found = sent(hlo)
    check_training(job, found, job.shape.length + 2 * 128, exchanges=6, reference=1)
    assert found["all-gather", 0] == {HEAD: 2}
    assert ("collective-permute", 0) not in found


def check_training(job, found, tokens, *, exchanges, reference=0, parts=("text",)):
    """What an update sends that runs a reference policy so often; `exchanges` of the embedding's
    rows, for lookups and gradients."""
    states = activations(job, tokens)
    weights, own = (
        sum((layer_weights(job, part, gathered=which) for part in parts), collections.Counter())
        for which in (True, False)
    )
    assert found["all-gather", 1] == times(weights, 2 + reference)  # forward, and backward
    assert found["all-gather", 0][HEAD] == 1 + reference  # before the loop over chunks
    assert found["reduce-scatter", 0][OWN_HEAD] == 1  # behind it
    assert layer_weights(job, "text", gathered=False).items() <= found["reduce-scatter", 1].items()
    assert found["reduce-scatter", 1].keys() <= own.keys()
    # Behind attention and MLP, attention again as it is computed again, and both gradients.
    assert found["all-reduce", 1][states] == 5 + 2 * reference
    # The embedding lies split over its width: rows of it change hands, and their gradient.
    assert found["all-to-all", 0].total() == exchanges
    largest = max(
        math.prod(dims)
        for (kind, _), some in found.items()
        for dims in some
        if kind in ("all-reduce", "all-to-all")
    )
    assert largest <= math.prod(states)  # no logits, no weights
    inside = {kind for kind, loops in found if loops}
    assert inside == {"all-gather", "all-reduce", "reduce-scatter"}


@pytest.mark.parametrize(
    ("data", "kind"), [(1, "all-reduce"), pytest.param(2, "reduce-scatter", marks=pytest.mark.slow)]
)
def test_gradients_are_scattered_where_a_part_is_whole_tiles(data, kind):
    """In 64 parts 512 rows are 8 each, in 32 they are a tile of 16; formulas and compiler agree."""
    pytest.importorskip("libtpu")
    changes = FROZEN | SHORT | {"data.rows": 64, "mesh.tensor": 1, "mesh.data": data}
    job = narrow_job("v5e-64", "grpo", **changes)
    read = read_collectives(compile_one(job, "update").hlo, job.mesh)
    for all_sent in (read, program_traffic(job)["update"]):
        summed = [one for one in all_sent if one.axes == ("fsdp",) and one.bytes * one.count > 1e7]
        assert {one.kind for one in summed} - {"all-gather"} == {kind}


@pytest.mark.parametrize(
    "place", [PLACES[0], *(pytest.param(place, marks=pytest.mark.slow) for place in PLACES[1:])]
)
def test_sft_update_that_trains_the_tower(place):
    pytest.importorskip("libtpu")
    job = narrow_job(place, "sft")
    compiled = compile_one(job, "update")
    check_least(job, compiled)
    hlo = compiled.hlo
    assert hlo.count('custom_call_target="tpu_custom_call"') >= 6  # text, and whole frames
    found = sent(hlo)
    check_training(job, found, job.shape.length, exchanges=2, parts=("text", "vision"))
    assert found["all-gather", 0].total() == 4  # the head; of the tower embedding and merger


@pytest.mark.parametrize("place", PLACES)
def test_score_runs_policy_and_reference_and_sends_no_gradient(place):
    pytest.importorskip("libtpu")
    changes = FROZEN | SHORT | {"grpo.beta": 0.04, "grpo.num_updates": 2}
    job = narrow_job(place, "grpo", **changes)
    hlo = compile_one(job, "score").hlo
    check_formulas(job, "score", hlo)
    found = sent(hlo)
    assert found["all-gather", 1] == times(layer_weights(job, "text"), 2)
    assert found["all-gather", 0] == {HEAD: 2}
    assert found["all-reduce", 1] == {activations(job, job.shape.length + 2 * 128): 2 * 2}
    assert {kind for kind, _ in found} == {"all-gather", "all-reduce", "all-to-all"}
