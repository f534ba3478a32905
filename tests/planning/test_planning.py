"""`videorft plan` as a command: formulas, tables, what it refuses, finds and keeps."""

import dataclasses
import json
import os
import time

import jax
import pytest
from compiler_flags import QUICK
from planned import ROOT, load_recipe, narrow_job
from tiny_run import finish, start, wait_for

from videorft_jax.commands import plan as plan_command
from videorft_jax.commands.plan import read_options
from videorft_jax.data.loader.buckets import Bucket
from videorft_jax.planning import compile as plan_measure
from videorft_jax.planning import machines, plan, search
from videorft_jax.planning.compile import Store, measure
from videorft_jax.planning.costs import floor_seconds, program_costs
from videorft_jax.planning.drawing import GAIN, MeshChoice, suggest_rollout_mesh
from videorft_jax.planning.jobs import find_programs
from videorft_jax.planning.report import make_rows, merge_rows
from videorft_jax.planning.traffic import program_traffic, step_seconds
from videorft_jax.rollout.mesh import AUTO


def run(capsys, *arguments):
    recipe = os.path.join(ROOT, "configs", "grpo_7b.py")
    code = plan_command.main([f"--config={recipe}", *arguments])
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
        (
            ["--topology=cpu:2"],
            ValueError,
            "bfloat16, whose sums over 2 CPU .* model.dtype=float32",
        ),
        (
            ["--topology=v5p-8", "--config.data.records=rl.jsonl"],
            ValueError,
            "data.records are counted in tokens of the model; set model.init_from",
        ),
        (
            ["--topology=H100:8", "--workdir=gs://bucket/run"],
            ValueError,
            "--workdir=gs://bucket/run: figures are kept in a local folder; give one",
        ),
        (["--topology=H100:1"], RuntimeError, r"needs [\d.]+ GiB of 73.00 GiB a device; set "),
    ],
)
def test_bad_input_is_one_line_with_a_remedy(capsys, arguments, error, text):
    with pytest.raises(error, match=text) as raised:
        run(capsys, *arguments)
    assert "\n" not in str(raised.value)


def test_figures_are_kept_where_there_are_any(capsys, tmp_path):
    """Nothing is compiled for GPUs; a file of something else is named with what to do."""
    arguments = ("--topology=H200:8", "--config.train.accumulate=1", f"--workdir={tmp_path}")
    assert "no file is written" in run(capsys, *arguments)[1]
    for text in ("{", "[1]", ""):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(ValueError, match=r"plan\.json: holds no figures .*; remove it$"):
            run(capsys, *arguments)


def test_a_model_that_is_not_here_is_not_replaced_silently(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(plan.log, "warning", lambda text, *values: said.append(text % values))
    config = load_recipe("grpo")
    machine = machines.find("H200:8")
    plan.make_job(read_options(config), machine)
    config.model.init_from = "Qwen/Qwen2.5-VL-3B-Instruct"
    plan.make_job(read_options(config), machine, size="3b")
    assert not said
    plan.make_job(read_options(config), machine)
    assert "3B-Instruct is no folder here; the published 7b is planned" in said[0]


def test_several_shapes_are_one_row_of_the_worst_memory_and_all_compile_time():
    rows = make_rows(plan.make_job(read_options(load_recipe("grpo")), machines.find("H200:8")))
    row = dataclasses.replace(rows[0], peak_gib=3.0, fits=True, floor_s=2.0, compile_s=5.0)
    other = dataclasses.replace(row, peak_gib=4.0, floor_s=1.0, compile_s=7.0)
    small = dataclasses.replace(row, peak_gib=1.0, fits=False)  # the compiler gave up on it
    (found,) = merge_rows([[row], [other]])
    assert found == dataclasses.replace(row, peak_gib=4.0, compile_s=12.0)
    assert not merge_rows([[row], [small]])[0].fits


def test_a_long_compile_says_how_long_it_has_taken(monkeypatch):
    monkeypatch.setattr(plan_measure, "_REMIND_S", 0.05)
    said = []
    with plan_measure.reminded("compiling", said.append):
        time.sleep(0.3)
    count = len(said)
    time.sleep(0.1)
    assert said[0] == "compiling"
    assert 2 <= count == len(said)
    assert all(text == "compiling: 0 s so far" for text in said[1:])


def test_search_finds_what_fits_and_changes_no_more_than_the_fastest_needs():
    changes = {"data.rows": 64, "model.remat": "none", "media.max_frames": 16}
    config = load_recipe("grpo")
    config.update_from_flattened_dict(changes)
    job = plan.make_job(read_options(config), machines.find("H100:8"))
    assert not all(row.fits for row in make_rows(job))
    found = search.search(job, Store())
    assert all(row.fits for row in found.rows)
    assert found.changes["model.remat"] != "none"
    assert found.job.grpo.rollout == job.grpo.rollout  # nothing that is learnt from changes
    assert found.job.train.data == job.train.data


def test_search_splits_weights_into_whole_tiles():
    """In 64 parts the 3,584 rows of 7B are no whole tiles of 16, and gradients are summed whole."""
    config = load_recipe("grpo")
    config.media.min_frames = config.media.max_frames = 16
    config.data.rows, config.train.accumulate = 64, 1
    job = plan.make_job(read_options(config), machines.find("v5e-64"))
    _, changes, fastest = search.candidates(job)[0]
    assert changes["mesh.data"] == 2
    for each, kind in ((job, "all-reduce"), (fastest, "reduce-scatter")):
        sums = [one for one in program_traffic(each)["update"] if one.kind != "all-gather"]
        assert {one.kind for one in sums if one.axes == ("fsdp",)} == {kind, "all-to-all"}


@pytest.mark.slow
def test_search_leaves_what_fits_unless_something_is_faster(capsys, monkeypatch):
    """7B on v5p-8, by formulas alone: products are kept for the backward pass where there is memory
    for them."""
    config = load_recipe("grpo")
    config.media.min_frames = config.media.max_frames = 16
    config.data.rows, config.train.accumulate = 32, 8
    monkeypatch.setattr(search, "make_rows", lambda job, store, say: make_rows(estimated(job)))
    monkeypatch.setattr(plan, "make_rows", lambda job, store, say: make_rows(estimated(job)))

    def estimated(job):
        topology = dataclasses.replace(job.topology, kind="H100")
        return dataclasses.replace(job, topology=topology)

    job = plan.make_job(read_options(config), machines.find("v5p-8"))
    rows, step, problem = plan.plan([job], Store(), True)
    assert problem is None
    assert step["changes"]["model.remat"] == "save_dots"
    assert step_seconds(job) > 1.05 * sum(row.floor_s for row in rows)
    assert "what fits and is faster: --config." in capsys.readouterr().err


def test_search_leaves_meshes_where_nothing_is_known_of_links(capsys):
    """What is kept for the backward pass then saves time for sure; another mesh may cost more."""
    config = load_recipe("sft")
    config.data.rows, config.train.accumulate = 32, 4
    job = plan.make_job(read_options(config), machines.find("H200:8"))
    _, step, problem = plan.plan([job], Store(), True)
    assert problem is None
    assert step["changes"].keys() <= {"model.remat", "train.accumulate", "optim.mu_dtype"}
    assert step["changes"].get("train.accumulate", 4) <= 4
    assert step["floor_s"] < GAIN * step_seconds(job)
    config.update_from_flattened_dict(step["changes"])
    again = plan.make_job(read_options(config), machines.find("H200:8"))
    assert "changes" not in plan.plan([again], Store(), True)[1]
    assert "nothing that fits is known to be 5 % faster" in capsys.readouterr().err


def test_programs_for_absent_chips_are_written_for_them(tmp_path):
    """Under the key that JAX will look for; they cannot be read here, which needs no warning."""
    pytest.importorskip("libtpu")
    recipe, cache = os.path.join(ROOT, "configs", "grpo_3b.py"), tmp_path / "compiled"
    command = ["plan", f"--config={recipe}", "--topology=v6e:2x2", f"--workdir={tmp_path}"]
    figures = tmp_path / "plan.json"
    for _ in range(2):  # the second time it is there to be read
        process = start(cache, *command, "--config.mesh.tensor=2", flags=QUICK)
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
    wide = {"model.dtype": "float32"}
    small = narrow_job("cpu:4", "grpo", **wide)
    reshard = find_programs(small)[0]
    first = measure(small, reshard, Store(path))
    count = len(compiles)
    assert count >= 1
    assert measure(small, reshard, Store(path)) == first
    assert len(compiles) == count
    other = narrow_job("cpu:4", "grpo", **wide | {"mesh.tensor": 1})
    assert measure(other, find_programs(other)[0], Store(path)) != first
    assert len(compiles) > count


def test_processes_that_keep_figures_in_one_file_lose_none(tmp_path):
    stores = [Store(tmp_path / "plan.json") for _ in range(2)]  # both have read it before
    figures = [plan_measure.Figures(1.0, 2.0, 3.0, seconds) for seconds in (4.0, 5.0)]
    for name, store, found in zip("ab", stores, figures, strict=True):
        store.put(name, found, {"program": name})
    assert [Store(tmp_path / "plan.json").get(name) for name in "ab"] == figures


@pytest.mark.parametrize(
    ("place", "sizes"), [("v6e-16", (1, 2, 8)), ("H100:8", None), ("v4:2x2x1", None)]
)
def test_auto_is_the_planners_best_where_links_are_known(place, sizes):
    config = load_recipe("grpo")
    config.media.min_frames = config.media.max_frames = 16
    config.data.rows, config.train.accumulate = 64, 4
    options, machine = read_options(config), machines.find(place)
    assert options.rollout.mesh == AUTO
    job = plan.make_job(options, machine)
    assert job.grpo.rollout.mesh == sizes
    # A run asks the same of its own devices, by the shapes of its loader.
    bucket = Bucket(job.shape.length, job.shape.pairs, job.shape.windows, rows=64)
    choice = MeshChoice(dataclasses.replace(options, train=job.train))
    assert choice(job.weights, job.mesh, [bucket]) == sizes


def test_auto_on_a_cpu_is_the_mesh_of_the_training():
    job = narrow_job("cpu:4", "grpo", **{"model.dtype": "float32", "rollout.mesh": AUTO})
    assert job.grpo.rollout.mesh is None
    assert MeshChoice(job.grpo)(job.weights, job.mesh, []) is None


def test_a_faster_mesh_for_the_rollout_is_suggested(capsys):
    """7B on v6e-16, 16 frames and 64 prompts. By hand: with tensor 8 the weights are read by two
    parts and not by sixteen, and nothing else of decoding changes."""
    config = load_recipe("grpo")
    config.media.min_frames = config.media.max_frames = 16
    config.data.rows, config.train.accumulate, config.rollout.mesh = 64, 4, ""
    job = plan.make_job(read_options(config), machines.find("v6e-16"))
    found = suggest_rollout_mesh(job)
    assert found.sizes == (1, 2, 8)
    num_steps, chips, bandwidth = 767, 16, 1.64e12
    weights = 2 * 7.07e9  # bytes of decoder and head in bfloat16; the embedding is not read
    saved = num_steps * weights * (16 - 2) / (chips * bandwidth)
    rollout = dataclasses.replace(job.grpo.rollout, mesh=found.sizes)
    better = dataclasses.replace(job, grpo=dataclasses.replace(job.grpo, rollout=rollout))
    before, after = (
        sum(floor_seconds(each, cost) for cost in program_costs(each).values())
        for each in (job, better)
    )
    assert before - after == pytest.approx(saved, rel=0.02)
    # A token adds up hidden states of 32 prompts 56 times, behind attention and MLP, in boxes of 2
    # by 4 chips: to each lead two links, and the farthest is four hops away. In each of 28 layers
    # pairs gather eight heads of queries and send results of float32 back.
    draws = 32 * 8
    sums = 56 * 2 * (2 * draws * 3584 * 7 / 8 / 200e9 + 4e-6)
    exchanges = 28 * ((2 + 4) * draws * 8 * 128 / 2 / 100e9 + 2e-6)
    # Meanwhile the weights of all layers are fetched, with 32 heads of queries instead of 28.
    layers = 2 * (6.53e9 + 28 * 2 * 4 * 128 * 3584) / 8 / bandwidth
    waited = num_steps * (sums + exchanges - layers)
    assert waited < found.floor_s - after < 1.3 * waited
    assert step_seconds(better) == found.floor_s
    assert suggest_rollout_mesh(better) is None
    arguments = ("--topology=H200:8", "--config.train.accumulate=1")
    assert "s with --config.rollout.mesh=1,2,4" in run(capsys, *arguments)[1]
    said = run(capsys, *arguments, "--config.rollout.mesh=1,2,4")[1]
    assert "rollout  data=1, fsdp=2, tensor=4" in said
    assert "s with --config" not in said
