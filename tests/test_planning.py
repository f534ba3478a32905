"""`videorft plan`: every program of a run, compiled for a TPU that is not here.

Few and narrow heads of the published head sizes, but many layers, for a large cache: loops over
layers make depth cost no time to compile.
"""

import collections
import dataclasses
import json
import math
import os
import pathlib
import tempfile
from typing import Any, NamedTuple

import jax
import pytest
from hlo import collectives, materialised, squeezed
from tiny_run import finish, start, wait_for

from videorft_jax import options, plan, training
from videorft_jax.model.config import hf_values, parse_config
from videorft_jax.model.siglip import TowerConfig
from videorft_jax.planning import search, topology
from videorft_jax.planning.measure import Store, measure
from videorft_jax.planning.programs import device_bytes, find_programs, prepared_bytes
from videorft_jax.planning.report import make_rows
from videorft_jax.weights import make_weights

ROOT = os.path.dirname(os.path.dirname(__file__))
PLACES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
LAYERS, DIM, TENSOR, VOCAB = 56, 512, 2, 152064
ROWS, ROLLOUTS, NEW = 4, 4, 2048
FROZEN = {"train.freeze": ("vision,merger",), "grpo.beta": 0.0}
SHORT = {"rollout.num_rollouts": 2, "rollout.max_new_tokens": 128}  # the update compiles sooner
SMALL = 8192  # values; biases, norms and sums over the vocabulary


def narrow_model():
    values = hf_values(
        "7b", num_hidden_layers=LAYERS, hidden_size=DIM, num_attention_heads=4,
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


def narrow_job(place, mode, **changes):
    config = load_recipe(mode)
    config.mesh.tensor, config.data.rows, config.data.row_tokens = TENSOR, ROWS, 1280
    config.media.min_frames = config.media.max_frames = 6
    config.rollout.num_rollouts, config.rollout.max_new_tokens = ROLLOUTS, NEW
    config.train.accumulate = 1
    config.update_from_flattened_dict(changes)
    job = plan.make_job(config, topology.find(place))
    weights = make_weights(job.config, narrow_model())
    tower = TowerConfig(hidden_size=128, intermediate_size=256, num_layers=2, num_heads=2)
    siglip = job.siglip and dataclasses.replace(
        job.siglip, vision=tower, text=tower, vocab_size=1024, image_size=56
    )
    return dataclasses.replace(job, weights=weights, siglip=siglip)


def load_recipe(mode, size="7b"):
    path = os.path.join(ROOT, "configs", f"{mode}_{size}.py")
    return options.parse([f"--config={path}"], "test", "", writes=False)[0]


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


@pytest.fixture(scope="module", params=PLACES)
def rollout(request):
    """(job, compiled programs) of GRPO with a frozen tower, so that vision is one of them, but for
    the update."""
    pytest.importorskip("libtpu")
    job = narrow_job(request.param, "grpo", **FROZEN)
    names = {program.name for program in find_programs(job)} - {"update"}
    return job, compile_programs(job, names)


@pytest.fixture(scope="module", params=PLACES)
def update(request):
    pytest.importorskip("libtpu")
    job = narrow_job(request.param, "grpo", **FROZEN, **SHORT)
    return job, compile_one(job, "update")


def sent(hlo):
    """{(kind, loops around it): Counter of sorted dims} of what devices send each other, large
    arrays only."""
    found = collections.defaultdict(collections.Counter)
    for (kind, dims, loops), count in collectives(hlo).items():
        if math.prod(dims) > SMALL:
            found[kind, loops][dims] += count
    return dict(found)


def layer_weights(job, part, *, gathered=True):
    """Counter of one layer's matrices: as gathered over fsdp, or a device's own."""
    found = collections.Counter()
    for keys, leaf in jax.tree_util.tree_leaves_with_path(job.policy):
        path = training.path_of(keys)
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
    return squeezed((ROWS // job.parts, tokens, DIM))


HEAD = squeezed((VOCAB // TENSOR, DIM))
OWN_HEAD = squeezed((VOCAB // TENSOR, DIM // 2))  # over fsdp = 2


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
    assert memory.temp_size_in_bytes < 0.05 * 2 * 2 * LAYERS * (prefix + suffix)
    sizes = {size * layers for size in (prefix, suffix) for layers in (1, LAYERS)}
    hlo = compiled["decode"].hlo
    assert not materialised(hlo, sizes)
    states = squeezed((ROWS // job.parts, ROLLOUTS, DIM))
    found = collectives(hlo)
    assert {kind for kind, _, _ in found} == {"all-reduce"}  # weights are whole, logits stay split
    assert max(math.prod(dims) for _, dims, _ in found) == math.prod(states)
    assert found["all-reduce", states, 2] == 2  # behind attention and MLP, over tensor
    assert found["all-reduce", states, 1] == 1  # the embedding's


def test_reshard_gathers_each_weight_once(rollout):
    job, compiled = rollout
    found = sent(compiled["reshard"].hlo)
    assert {kind for kind, _ in found} == {"all-gather"}
    assert layer_weights(job, "text").items() <= found["all-gather", 1].items()
    assert found["all-gather", 0][HEAD] == 2  # and the embedding
    layer = sum(math.prod(dims) * n for dims, n in layer_weights(job, "text").items())
    memory = compiled["reshard"].memory
    # No second copy of the layers, 2 bytes a value; embedding and head may be there twice.
    assert memory.temp_size_in_bytes < LAYERS * layer + 2 * 2 * math.prod(HEAD)


@pytest.mark.parametrize("name", ["vision", "prefill"])
def test_towers_send_activations_over_tensor_alone(rollout, name):
    hlo = rollout[1][name].hlo
    assert "tpu_custom_call" in hlo
    found = sent(hlo)
    assert {kind for kind, _ in found} == {"all-reduce"}
    assert found["all-reduce", 1].total() == 2  # of a layer, behind attention and MLP


def test_siglip_gathers_weights_and_no_images(rollout):
    """In the loops over frames and layers."""
    job, compiled = rollout
    tower, patches = job.siglip.vision, (job.siglip.image_size // job.siglip.patch_size) ** 2
    states = squeezed((ROWS // job.parts, patches, tower.hidden_size))
    layers = jax.tree.leaves(job.judge["vision"]["layers"])
    weights = {math.prod(leaf.shape[1:]) // size for leaf in layers for size in (1, TENSOR)}
    found = collectives(compiled["siglip"].hlo)
    inner = [(kind, dims) for kind, dims, loops in found if loops == 2]
    assert {kind for kind, _ in inner} == {"all-gather", "all-reduce"}
    for kind, dims in inner:
        size = math.prod(dims)
        assert size in weights if kind == "all-gather" else size <= math.prod(states), (kind, dims)


def test_arguments_are_what_the_shardings_say(rollout):
    job, compiled = rollout
    cache = 2 * 2 * LAYERS * sum(cache_sizes(job))
    for name, expected in (
        ("reshard", device_bytes((job.state.params, job.state.frozen))),
        ("decode", prepared_bytes(job) + cache),
    ):
        size = compiled[name].memory.argument_size_in_bytes
        assert size == pytest.approx(expected, rel=0.02), name


def test_update_fits_what_remat_promises(update):
    """Layer inputs are kept, and nothing else grows with depth but gradients and the copies of
    weights."""
    job, compiled = update
    tokens = ROWS // job.parts * (job.shape.length + 2 * 128)
    kept = 2 * LAYERS * tokens * DIM
    copies = device_bytes(job.policy) + device_bytes(job.state.params)
    logits = 4 * ROWS // job.parts * 256 * VOCAB // TENSOR
    assert compiled.memory.temp_size_in_bytes < kept + copies + 3 * logits


def test_update_sends_weights_once_a_pass_and_gradients_once(update):
    job, compiled = update
    hlo = compiled.hlo
    assert hlo.count('custom_call_target="tpu_custom_call"') >= 3  # splash forward, dq and dkv
    found = sent(hlo)
    check_training(job, found, job.shape.length + 2 * 128, lookups=2)
    assert found["all-gather", 0] == {HEAD: 1}
    assert ("collective-permute", 0) not in found


def check_training(job, found, tokens, *, lookups, parts=("text",)):
    """What an update of `lookups` pieces of text sends."""
    states = activations(job, tokens)
    weights, own = (
        sum((layer_weights(job, part, gathered=which) for part in parts), collections.Counter())
        for which in (True, False)
    )
    assert found["all-gather", 1] == times(weights, 2)  # forward, and backward
    assert found["all-gather", 0][HEAD] == 1  # before the loop over chunks
    assert found["reduce-scatter", 0][OWN_HEAD] == 1  # behind it
    assert layer_weights(job, "text", gathered=False).items() <= found["reduce-scatter", 1].items()
    assert found["reduce-scatter", 1].keys() <= own.keys()
    # Behind attention and MLP, attention again as it is computed again, and both gradients.
    assert found["all-reduce", 1][states] == 5
    # The embedding lies split over its width: rows of it change hands, and their gradient.
    assert found["all-to-all", 0].total() == lookups + 1
    largest = max(
        math.prod(dims)
        for (kind, _), some in found.items()
        for dims in some
        if kind in ("all-reduce", "all-to-all")
    )
    assert largest <= math.prod(states)  # no logits, no weights
    inside = {kind for kind, loops in found if loops}
    assert inside == {"all-gather", "all-reduce", "reduce-scatter"}


def test_sft_update_that_trains_the_tower():
    pytest.importorskip("libtpu")
    job = narrow_job("v5e:2x2", "sft")
    hlo = compile_one(job, "update").hlo
    assert hlo.count('custom_call_target="tpu_custom_call"') >= 6  # of the text, of whole frames
    found = sent(hlo)
    check_training(job, found, job.shape.length, lookups=1, parts=("text", "vision"))
    assert found["all-gather", 0].total() == 4  # the head; of the tower embedding and merger


def test_score_runs_policy_and_reference_and_sends_no_gradient():
    pytest.importorskip("libtpu")
    changes = FROZEN | SHORT | {"grpo.beta": 0.04, "grpo.num_updates": 2}
    job = narrow_job("v5e:2x2", "grpo", **changes)
    found = sent(compile_one(job, "score").hlo)
    assert found["all-gather", 1] == times(layer_weights(job, "text"), 2)
    assert found["all-gather", 0] == {HEAD: 2}
    assert found["all-reduce", 1] == {activations(job, job.shape.length + 2 * 128): 2 * 2}
    assert {kind for kind, _ in found} == {"all-gather", "all-reduce", "all-to-all"}


# By formulas alone: nothing compiles for a GPU here.


def run(capsys, *arguments):
    recipe = os.path.join(ROOT, "configs", "grpo_7b.py")
    code = plan.main([f"--config={recipe}", *arguments])
    return code, capsys.readouterr().out


def test_json(capsys):
    code, out = run(capsys, "--topology=H200:8", "--config.train.accumulate=1", "--json")
    found = json.loads(out)
    assert code == 0
    keys = {"name", "peak_gib", "limit_gib", "fits", "flops", "bytes", "floor_s", "compile_s"}
    assert all(keys <= row.keys() for row in found["programs"])
    floors = [row["floor_s"] for row in found["programs"]]
    assert found["step"]["floor_s"] == pytest.approx(sum(floors))
    assert sum(found["step"]["shares"].values()) == pytest.approx(1)


def test_leaves_nothing_behind(capsys, tmp_path, monkeypatch):
    """Not even a place for compiled programs, as none is named."""
    monkeypatch.chdir(tmp_path)
    before = jax.config.jax_compilation_cache_dir
    assert run(capsys, "--topology=H200:8", "--config.train.accumulate=1")[0] == 0
    assert jax.config.jax_compilation_cache_dir == before
    assert not jax.config.jax_enable_compilation_cache
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (["--topology=v5q-64"], ValueError, r"--topology=v5q-64: unknown; nearest are .*v5[ep]-64"),
        (["--topology=H100:8", "--config.mesh.tensor=3"], ValueError, r"tensor=3: does not fit 8"),
        (["--topology=H100:1"], RuntimeError, r"needs [\d.]+ GiB of 73.00 GiB a device; set "),
    ],
)
def test_bad_input_is_one_line_with_a_remedy(capsys, arguments, error, text):
    with pytest.raises(error, match=text) as raised:
        run(capsys, *arguments)
    assert "\n" not in str(raised.value)


def test_search_finds_what_fits_and_changes_no_more_than_the_fastest_needs():
    changes = {"data.rows": 64, "model.remat": "none", "media.max_frames": 16}
    config = load_recipe("grpo")
    config.update_from_flattened_dict(changes)
    job = plan.make_job(config, topology.find("H100:8"))
    assert not all(row.fits for row in make_rows(job))
    found = search.search(job, Store())
    assert all(row.fits for row in found.rows)
    assert found.changes["model.remat"] != "none"
    assert found.job.config.rollout == job.config.rollout  # nothing that is learnt from changes
    assert found.job.config.data == job.config.data


def test_programs_for_absent_chips_are_written_for_them(tmp_path):
    """Under the key that JAX will look for; they cannot be read here, which needs no warning."""
    pytest.importorskip("libtpu")
    recipe, cache = os.path.join(ROOT, "configs", "grpo_3b.py"), tmp_path / "compiled"
    command = ["plan", f"--config={recipe}", "--topology=v6e:2x2", f"--workdir={tmp_path}"]
    figures = tmp_path / "plan.json"
    for _ in range(2):  # the second time it is there to be read
        process = start(cache, *command, "--config.mesh.tensor=2")
        wait_for(figures.exists, process)
        process.terminate()
        assert "Warning" not in finish(process)[1]
        assert "reshard" in {row["program"] for row in json.loads(figures.read_text()).values()}
        assert len([p for p in cache.glob("jit__convert-*") if p.name.endswith("-cache")]) == 1
        figures.unlink()


def test_figures_are_kept_and_hold_for_the_same_program_alone(tmp_path):
    compiles = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiles.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    path = tmp_path / "figures.json"
    small = narrow_job("cpu:4", "grpo")
    reshard = find_programs(small)[0]
    first = measure(small, reshard, Store(path))
    count = len(compiles)
    assert count >= 1
    assert measure(small, reshard, Store(path)) == first
    assert len(compiles) == count
    other = narrow_job("cpu:4", "grpo", **{"mesh.tensor": 1})
    assert measure(other, find_programs(other)[0], Store(path)) != first
    assert len(compiles) > count
