"""GRPO from the command line: the same numbers on any mesh, in slices, on two processes, and after
a kill. Every run is the real command on a tiny model, real clips and a random SigLIP."""

import concurrent.futures
import json
import random
import re
import socket

import numpy as np
import pytest
from grpo_place import REWARDS, STEPS, Place, completions, curve
from tiny_run import finish, metrics, read_arrays, start, wait_for

from videorft_jax.metrics.timeline import DEVICES, read_trace


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("grpo"))


AXES = ("data", "fsdp", "tensor")
RUNS = {
    "single": (("--profile=3",), 1),
    "slices": (("--config.train.accumulate=4",), 1),
    "mesh": ((*(f"--config.mesh.{axis}=2" for axis in AXES), "--config.rollout.mesh=1,8,1"), 8),
    "shuffled": (
        (
            "--config.rewards=(('tests.support.user_rewards:count_letters', 1.0),"
            " ('accuracy', 0.0), ('order', 0.3))",
            "--config.grpo.normalise_each=True",
            "--config.train.max_steps=2",
        ),
        1,
    ),
    **{  # all the data in one batch, so that there is no second draw
        name: (
            (
                "--config.data.rows=32",
                "--config.train.max_steps=1",
                "--config.train.freeze=vision,merger",
                *more,
            ),
            1,
        )
        for name, more in {"shared": (), "not_shared": ("--config.grpo.max_draws=2",)}.items()
    },
    "host": (("--config.grpo.reference_on_host=True", "--config.train.max_steps=2"), 1),
    "lora": (
        (
            "--config.lora.rank=4",
            "--config.optim.lr=0.01",
            "--config.grpo.num_updates=2",
            "--config.grpo.minibatches=2",
            "--config.grpo.kl_in_reward=True",
            "--config.train.max_steps=2",
        ),
        1,
    ),
    "broken": (
        (
            "--config.rewards=(('tests.support.user_rewards:break_for_even', 1.0),)",
            "--config.train.max_steps=1",
            "--config.grpo.beta=0.0",
        ),
        1,
    ),
}
DRAWS = (
    "--config.rewards=(('tests.support.user_rewards:only_for_even', 1.0),)", "--config.data.rows=4",
    "--config.grpo.max_draws=4", "--config.grpo.beta=0.0",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(place):
    """name -> work directory of a finished run of RUNS; all are started at once, two at a time."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = {
            name: pool.submit(place.run, name, *flags, devices=devices)
            for name, (flags, devices) in RUNS.items()
        }

        class Finished:
            def __getitem__(self, name):
                return futures[name].result()

        yield Finished()


def assert_close(workdir, reference):
    found, expected = curve(workdir), curve(reference)
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for line, other in zip(found, expected, strict=True):
        # How the rollout was divided over devices is no result.
        names = {name for name in other if not name.startswith(("rollout/fin", "rollout/comp"))}
        assert names <= line.keys()
        for name in names:
            np.testing.assert_allclose(line[name], other[name], rtol=1e-4, atol=1e-5, err_msg=name)
    texts = [
        [(x["problem_id"], x["completion"]) for x in completions(d)] for d in (workdir, reference)
    ]
    assert texts[0] == texts[1]
    found, expected = (read_arrays(folder, STEPS) for folder in (workdir, reference))
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_what_a_run_leaves(place, runs):
    workdir = runs["single"]
    lines, told = metrics(workdir), completions(workdir)
    assert len(lines) == STEPS
    assert len(told) == STEPS * 8 * 4
    for line in lines:
        assert {
            "loss", "kl", "entropy", "clip_fraction", "sampler_gap", "sampler_gap_max", "grad_norm",
            "rewards/total/mean", "rewards/total/std", "rewards/total/group_std",
            "rewards/semantic/mean", "rewards/accuracy/mean", "groups/informative",
            "groups/all_wrong", "groups/all_right", "rollout/length/mean", "rollout/truncated",
            "perf/programs", "perf/tokens_per_s", "perf/mfu",
            "time/data", "time/rollout", "time/rewards", "time/update",
        } <= line.keys()  # fmt: skip
        # Rollout and training are one model.
        assert 0 < line["sampler_gap"] < line["sampler_gap_max"] < 1e-3
        own = [x for x in told if x["step"] == line["step"]]
        assert len({x["problem_id"] for x in own}) == 8
        groups = np.array([x["total"] for x in own]).reshape(8, 4)
        advantages = np.array([x["advantage"] for x in own]).reshape(8, 4)
        spread = groups.std(1, ddof=1, keepdims=True) + 1e-4
        wanted = (groups - groups.mean(1, keepdims=True)) / spread
        np.testing.assert_allclose(advantages, wanted, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(line["rewards/total/mean"], groups.mean(), rtol=1e-5)
        lengths = [x["length"] for x in own]
        assert line["rollout/length/mean"] == np.mean(lengths)
        assert line["rollout/truncated"] == np.mean([not x["stopped"] for x in own])
    assert lines[0]["kl"] == 0.0  # the reference is where it began
    assert lines[-1]["kl"] > 0.0
    weights = dict(REWARDS)
    for x in told:
        total = sum(weights[name] * value for name, value in x["rewards"].items())
        assert x["total"] == pytest.approx(total, rel=1e-5)
    # Programs of a step: the copy, prefill, decode, advantages, update; buckets of decode.
    assert lines[-1]["perf/programs"] <= 11


def test_the_next_batch_is_on_its_way_while_an_update_runs(runs):
    """In the trace of the third of four steps, by the order of what the threads did."""
    folder = runs["single"] / "profile" / "00000003"
    assert (folder / "timeline.png").read_bytes().startswith(b"\x89PNG")
    spans = read_trace(folder)
    (put,) = [one for one in spans if one.name == "put a batch on the devices"]
    (wait,) = [one for one in spans if one.name == "wait for the devices"]
    dispatch, last = [one for one in spans if one.name == "update"]
    assert dispatch.end <= last.start <= put.start < put.end <= wait.start
    (siglip,) = [one for one in spans if one.name == "SigLIP"]
    (strings,) = [one for one in spans if one.name == "rewards of strings"]
    assert siglip.lane == "rewards"  # It has a thread of its own, for which the strings wait last.
    assert siglip.end <= strings.end
    busy = [one for one in spans if one.lane == DEVICES]
    assert any(one.start < last.end and one.end > dispatch.start for one in busy)


@pytest.mark.parametrize("name", ["slices", "mesh"])
def test_equals_one_device(runs, name):
    assert_close(runs[name], runs["single"])


@pytest.mark.parametrize(
    ("flags", "devices"),
    [
        (["--config.mesh.data=8"], 4),
        # Both processes hold the one part of the rollout's mesh, and each has half of its prompts.
        pytest.param(["--config.rollout.mesh=1,1,2"], 1, marks=pytest.mark.slow),
    ],
)
def test_two_processes_equal_one(place, runs, flags, devices):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = [*flags, f"--coordinator=127.0.0.1:{port}", "--num_processes=2"]
    name = f"two_times_{devices}"
    processes = [
        place.start(name, *common, f"--process_id={number}", devices=devices) for number in range(2)
    ]
    for process in processes:
        code, text = finish(process)
        assert code == 0, text
    workdir = place.folder / name
    other = (workdir / "completions-1.jsonl").read_text().splitlines()
    with (workdir / "completions.jsonl").open("a") as file:
        file.writelines(line + "\n" for line in other)

    def place_of(x):
        return x["step"], x["problem_id"], x["completion"]

    merged, single = (sorted(map(place_of, completions(d))) for d in (workdir, runs["single"]))
    assert merged == single
    for line, wanted in zip(curve(workdir), curve(runs["single"]), strict=True):
        for name in ("loss", "kl", "entropy", "rewards/total/mean", "rewards/semantic/std"):
            np.testing.assert_allclose(line[name], wanted[name], rtol=1e-4, atol=1e-5)
    found, expected = (read_arrays(d, STEPS) for d in (workdir, runs["single"]))
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_killed_and_resumed(place, runs):
    wanted = random.Random(1).randint(1, STEPS - 1)
    process = place.start("killed")
    path = place.folder / "killed" / "metrics.jsonl"
    wait_for(lambda: path.exists() and path.read_text().count("\n") >= wanted, process)
    process.kill()
    finish(process)
    workdir = place.run("killed")
    assert curve(workdir) == curve(runs["single"])
    assert completions(workdir) == completions(runs["single"])
    found, expected = (read_arrays(folder, STEPS) for folder in (workdir, runs["single"]))
    assert found.keys() == expected.keys()
    for path in expected:
        assert found[path].tobytes() == expected[path].tobytes(), path


def test_order_of_frames_is_rewarded(runs):
    """A random model is as often right on shuffled frames, so the bonus of right answers is paid
    wherever there are any; here there are none, and it is 0 for all."""
    lines = metrics(runs["shuffled"])
    assert [line["rewards/order/mean"] for line in lines] == [0.0, 0.0]
    assert lines[0]["perf/programs"] > metrics(runs["single"])[0]["perf/programs"]


def test_frozen_tower_is_run_once(runs):
    """Visual tokens handed from rollout to update change no number."""
    found, expected = curve(runs["shared"]), curve(runs["not_shared"])
    for line, other in zip(found, expected, strict=True):
        assert other["rollout/draws"] == 1
        for name in ("loss", "kl", "entropy", "grad_norm", "rewards/total/mean"):
            np.testing.assert_allclose(line[name], other[name], rtol=1e-4, atol=1e-6)
    found, expected = (read_arrays(runs[name], 1) for name in ("shared", "not_shared"))
    for path in expected:
        np.testing.assert_allclose(found[path], expected[path], rtol=1e-4, atol=1e-5, err_msg=path)


def test_reference_on_the_host_is_the_same(runs):
    for line, other in zip(curve(runs["host"]), curve(runs["single"])[:2], strict=True):
        assert line == other


def test_adapters_and_several_updates(place, runs):
    """The base weights are the reference, whose divergence is taken off the reward."""
    lines = curve(runs["lora"])
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["kl"] == 0.0  # the reward is charged before the first update
    assert lines[1]["kl"] != 0.0
    arrays = read_arrays(runs["lora"], 2)
    assert arrays["step"] == 8  # two updates of two mini-batches each
    trained = [path for path in arrays if path.startswith("params/")]
    assert trained
    assert all("/lora/" in path for path in trained)
    more = ("--config.grpo.num_updates=1", "--config.train.max_steps=3", "--allow_changes")
    resumed = place.run("lora", *RUNS["lora"][0], *more)  # the number of the step goes on
    assert curve(resumed)[:2] == lines
    assert [line["step"] for line in curve(resumed)] == [1, 2, 3]
    assert read_arrays(resumed, 3)["step"] == 6
    base = read_arrays(runs["single"], STEPS)
    assert sum(path.startswith("frozen/") for path in arrays) == sum(
        path.startswith("params/") for path in base
    )


def test_broken_reward_masks_its_group(runs):
    (line,) = curve(runs["broken"])
    told = completions(runs["broken"])
    bad = {x["problem_id"] for x in told if x["total"] is None}
    assert bad == {
        x["problem_id"] for x in told if int(str(x["problem_id"]).split("-")[-1]) % 2 == 0
    }
    assert 0 < len(bad) < 8
    assert line["samples/masked"] == line["groups/dropped"] == len(bad) / 8
    reasons = {name: n for name, n in line.items() if name.startswith("counts/")}
    assert sum(reasons.values()) == 4 * len(bad)
    assert all(x["advantage"] == 0 for x in told if x["problem_id"] in bad)
    assert line["grad_norm"] > 0


def test_groups_that_teach_nothing_are_replaced(place, runs):
    workdir = place.run("draws", *DRAWS, "--config.train.max_steps=4")
    lines, told, waiting = curve(workdir), completions(workdir), 0
    assert max(line["rollout/draws"] for line in lines) > 1
    assert max(line["groups/left"] for line in lines) > 0
    for line in lines:
        own = [x for x in told if x["step"] == line["step"]]
        assert len(own) == line["rollout/draws"] * 4 * 4
        groups = [own[i : i + 4] for i in range(0, len(own), 4)]
        says = [len({x["total"] for x in group}) > 1 for group in groups]
        assert waiting + sum(says[:-4]) < 4  # otherwise there was no need of the last draw
        enough = waiting + sum(says) >= 4 or line["rollout/draws"] == 4
        assert enough or line["step"] == lines[-1]["step"]  # where the data ended
        assert line["groups/left"] == max(0, waiting + sum(says) - 4)
        why = [{x["not_trained"] for x in group} for group in groups]
        left = [reasons == {"its group waits for the next step"} for reasons in why]
        assert sum(left) == line["groups/left"]
        for reasons, differs, waits in zip(why, says, left, strict=True):
            assert (reasons == {""}) == (differs and not waits)
        waiting = line["groups/left"]
    place.run("drawn_in_two", *DRAWS, "--config.train.max_steps=2")
    resumed = place.run("drawn_in_two", *DRAWS, "--config.train.max_steps=4")
    assert curve(resumed) == lines
    assert completions(resumed) == told


def test_what_was_planned_is_not_compiled_again(place, monkeypatch):
    """The plan compiles from shapes alone; the run, from arrays, finds each program under JAX's own
    key, of which code, shapes, shardings, donations and the compiler's options are part."""
    flags = [f"--config={place.folder / 'tiny.py'}", "--config.train.max_steps=1"]
    flags += ["--config.mesh.data=1", "--config.mesh.fsdp=2"]
    workdir = f"--workdir={place.folder / 'planned'}"
    cache = place.folder / "planned" / "compiled"
    plan = ("plan", "--topology=cpu:2", "--json", workdir, *flags)
    code, text = finish(start(cache, *plan, devices=2))
    assert code == 0, text
    found = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    assert found["step"]["buckets"] == [found["step"]["shape"]]
    assert found["step"]["shape"]["length"] == 192
    monkeypatch.setenv("JAX_DEBUG_LOG_MODULES", "jax._src.compiler")
    code, text = finish(start(cache, "grpo", workdir, *flags, devices=2))
    assert code == 0, text
    hits = set(re.findall(r"cache hit for 'jit__?(\w+)'", text))
    assert {"convert", "run_prompts", "run_completions", "dealt", "step"} <= hits
    # A second plan compiles nothing: its figures are kept.
    code, text = finish(start(cache, *plan, devices=2))
    again = json.loads(next(line for line in text.splitlines() if line.startswith("{")))
    for row, first in zip(again["programs"], found["programs"], strict=True):
        assert row | {"floor_s": 0.0} == first | {"floor_s": 0.0}  # the speed of a CPU is measured
    assert "MISS" not in text


def refused(place, *flags, code=2, devices=1):
    found, text = finish(place.start("refused", *flags, devices=devices))
    assert found == code, text
    return text.splitlines()[-1]


def test_bad_input(place):
    missing = refused(place, "--config.reward.siglip=")
    assert missing == (
        "videorft grpo: rewards: semantic has weight 0.5 but no folder is named; name the folder "
        "of a SigLIP checkpoint or take semantic out of the rewards"
    )
    unknown = refused(place, "--config.rewards=(('tests.nothing:here', 1.0),)")
    assert unknown.startswith("videorft grpo: reward tests.nothing:here: ")
    narrow = refused(place, "--config.model.dtype=bfloat16", devices=2)
    assert narrow == (
        "videorft grpo: grpo_7b: model.dtype is bfloat16, whose sums over 2 CPU devices XLA cannot "
        "compile; set model.dtype=float32, or use one device"
    )
