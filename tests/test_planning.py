"""`videorft plan`: every program of a run, compiled for a TPU that is not here.

Few and narrow heads of the published head sizes, but many layers, for a large cache: loops over
layers make depth cost no time to compile.
"""

import collections
import dataclasses
import json
import os

import jax
import pytest
from hlo import gathered, materialised, squeezed

from videorft_jax import options, plan, training
from videorft_jax.model.config import hf_values, parse_config
from videorft_jax.model.siglip import TowerConfig
from videorft_jax.planning import search, topology
from videorft_jax.planning.measure import Store, measure
from videorft_jax.planning.programs import device_bytes, find_programs, prepared_bytes
from videorft_jax.planning.report import make_rows
from videorft_jax.weights import make_weights

ROOT = os.path.dirname(os.path.dirname(__file__))
PLACES = ("v5e:2x2",)
LAYERS, DIM, TENSOR, VOCAB = 56, 512, 2, 152064
ROWS, ROLLOUTS, NEW = 4, 4, 2048


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
    return options.parse([f"--config={path}", "--workdir=."], "test", "")[0]


def compile_programs(job, names=None):
    found = {}
    for program in find_programs(job):
        if names is None or program.name in names:
            with jax.default_matmul_precision("default"), jax.set_mesh(job.mesh):
                found[program.name] = program.lower().compile()
    return found


@pytest.fixture(scope="module", params=PLACES)
def grpo(request):
    """(job, compiled programs) of GRPO with a frozen tower, so that vision is one of them; the
    update is of shorter completions, which it takes less time to compile for."""
    pytest.importorskip("libtpu")
    changes = {"train.freeze": ("vision,merger",), "grpo.beta": 0.0}
    job = narrow_job(request.param, "grpo", **changes)
    names = {program.name for program in find_programs(job)} - {"update"}
    short = changes | {"rollout.num_rollouts": 2, "rollout.max_new_tokens": 128}
    update = compile_programs(narrow_job(request.param, "grpo", **short), {"update"})
    return job, compile_programs(job, names) | update


def layer_weights(job, part):
    """Counter of what one layer's matrices look like once gathered over fsdp."""
    found = collections.Counter()
    for keys, leaf in jax.tree_util.tree_leaves_with_path(job.policy):
        path = training.path_of(keys)
        if path.startswith(f"{part}/layers") and "fsdp" in leaf.sharding.spec:
            shape = list(leaf.sharding.shard_shape(leaf.shape))
            shape[leaf.sharding.spec.index("fsdp")] *= job.mesh.shape["fsdp"]
            parts = 3 if path.endswith("qkv") else 1  # each by itself
            found[squeezed(size for size in shape[1:] if size != 3)] += parts
    return found


def test_programs(grpo):
    names = ["policy", "reshard", "vision", "prefill", "decode", "compact", "siglip", "update"]
    assert list(grpo[1]) == names


def cache_sizes(job):
    """Values of a layer's keys on one device: of prompts, of completions."""
    text = job.weights.model.text
    each = text.num_kv_heads // TENSOR * text.head_dim * ROWS // job.parts
    return each * job.shape.length, each * ROLLOUTS * NEW


def test_decode_takes_little_memory_and_gathers_nothing(grpo):
    job, compiled = grpo
    prefix, suffix = cache_sizes(job)
    memory = compiled["decode"].memory_analysis()
    assert memory.temp_size_in_bytes < 0.05 * 2 * 2 * LAYERS * (prefix + suffix)
    sizes = {size * layers for size in (prefix, suffix) for layers in (1, LAYERS)}
    hlo = compiled["decode"].as_text()
    assert not materialised(hlo, sizes)
    assert not gathered(hlo)  # weights are whole, logits stay split over tensor


def test_vision_and_prefill(grpo):
    job, compiled = grpo
    vision, prefill = (compiled[name].as_text() for name in ("vision", "prefill"))
    assert "tpu_custom_call" in vision
    assert "tpu_custom_call" in prefill
    assert not gathered(prefill)  # as decode
    expected = layer_weights(job, "vision")
    found = gathered(vision)
    assert expected.items() <= found.items()
    for shape in found.keys() - expected.keys():  # embedding and merger, outside the loop
        assert found[shape] == 1, shape


def test_arguments_are_what_the_shardings_say(grpo):
    job, compiled = grpo
    cache = 2 * 2 * LAYERS * sum(cache_sizes(job))
    for name, expected in (
        ("policy", device_bytes((job.state.params, job.state.frozen))),
        ("decode", prepared_bytes(job) + cache),
    ):
        size = compiled[name].memory_analysis().argument_size_in_bytes
        assert size == pytest.approx(expected, rel=0.02), name


@pytest.mark.parametrize("grpo", ["v5e:2x2"], indirect=True)  # of the others libtpu prints none
def test_update_gathers_weights_once_a_pass_and_nothing_else(grpo):
    job, compiled = grpo
    hlo = compiled["update"].as_text()
    assert hlo.count('custom_call_target="tpu_custom_call"') >= 3  # splash forward, dq and dkv
    expected = collections.Counter()
    for shape, count in layer_weights(job, "text").items():
        expected[shape] = 2 * count  # the loop forward and, with its recomputation, backward
    expected[squeezed((VOCAB // TENSOR, DIM))] = 1  # the head, before the loop over chunks
    assert gathered(hlo) == expected


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


def test_figures_are_kept_and_hold_for_the_same_program_alone(tmp_path):
    compiles = []

    def listen(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            compiles.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    path = tmp_path / "figures.json"
    small = narrow_job("cpu:4", "grpo")
    reshard = find_programs(small)[1]
    first = measure(small, reshard, Store(path))
    count = len(compiles)
    assert count >= 1
    assert measure(small, reshard, Store(path)) == first
    assert len(compiles) == count
    other = narrow_job("cpu:4", "grpo", **{"mesh.tensor": 1})
    assert measure(other, find_programs(other)[1], Store(path)) != first
    assert len(compiles) > count
