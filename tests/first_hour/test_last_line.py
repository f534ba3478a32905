"""Fault 14: the last line of each command names what was written and the next command."""

import re
import shlex
import shutil

import pytest
from curation_run import licence
from tiny_run import ROOT

from videorft_jax.cli import COMMANDS
from videorft_jax.demo.questions import KINDS

TINY = "--config=tiny.py"
CURATE = (
    """
[data]
records = "data/rl.jsonl"
isolate = false
[stages]
[budget]
"""
    + "".join(
        f'[endpoints.{name}]\nmodel = "m"\nbase_urls = ["http://127.0.0.1:1/v1"]\nmax_output = 9\n'
        'terms = {allows_training = "unknown"}\n'
        for name in ("describe", "think", "revise")
    )
    + "".join(licence(f"synthetic-{name}") for name in KINDS)
)
# Trainings, servers and the demo end at once: how their mains end is looked at.
STUBS = """
import uvicorn
from videorft_jax.commands import ablate, demo, pass_rate
pass_rate.evaluate = lambda *_: None
ablate.ablate = lambda *_: None
demo.Demo.run = lambda _: 0
uvicorn.Server.run = lambda *_, **__: None
"""
# command -> (arguments, what the last line says was written, the words that begin the next command)
ENDS = {
    "init": ("recipes", " recipes in recipes", "sft --config=recipes/sft_7b.py --workdir="),
    "ablate": (
        f"{TINY} --workdir=grid --config.ablate.variants=(('a',()),('b',()))",
        "/grid/ablation.md, ",
        "report /",
    ),
    "score": ("runs/evaluated", "runs/evaluated/scores-robust.json", "compare runs/evaluated "),
    "compare": (
        "runs/evaluated runs/again --out=compared.png",
        "compared.png",
        "score runs/again --scorer=official",
    ),
    "pass_rate": (
        f"{TINY} --workdir=runs/again --config.data.records=data/eval.jsonl",
        "/runs/again/pass_rates.jsonl",
        "grpo ... --config.data.pass_rates=/",
    ),
    "benchmarks": ("", "benchmarks, none looked for", "benchmarks --data_root=DIR"),
    "export": ("--checkpoint=runs/sft --out=own", "written to own in float32", "ask --model=own "),
    "demo": ("--config=demo --workdir=shown", "/shown: report.md, report.html", "ask --model=/"),
    "plan": (
        f"{TINY} --topology=H100:1 --workdir=planned",
        "no file is written",  # Nothing is compiled for a GPU that is not here.
        "sft --config=tiny.py --workdir=planned ...",
    ),
    "report": ("runs/sft --out=page.html", "page.html is for a browser", "report runs/sft --live"),
    "ask": (
        "--model=model --video={clip} --question=Why? --max_new_tokens=2 --dtype=float32",
        "an answer is not kept",
        "serve --checkpoint=model",
    ),
    "completion": ("bash", "a script for bash", "completion bash"),
    "doctor": ("--quick", " failures, ", ""),
    "validate": (
        "--data=data/rl.jsonl --answers=answers",
        "checked sizes kept in answers",
        "grpo --config=grpo_7b --workdir=runs/grpo_7b --config.data.records=data/rl.jsonl",
    ),
    "cache": ("--data=data/rl.jsonl --out=cached", " clips added to ", "sft --config=sft_7b "),
    "convert": ("--data=data/rl.jsonl --out=own.jsonl", "8 of 8 rows", "validate --data=own.jsonl"),
    "inspect": ("--data=data/rl.jsonl", "inspect.html", "validate --data=data/rl.jsonl"),
    "curate": ("--config=curate.toml --workdir=c --dry_run", "everything lies in c", "curate "),
    "serve": ("--checkpoint=model --port=0", "no request is answered any more", "serve "),
    "tfds": (
        "--name=videorft_rl --data=data/rl.jsonl --out=tfds",
        "8 records in tfds/videorft_rl",
        "grpo --config=grpo_7b --workdir=runs/grpo_7b --config.data.records=tfds:tfds/",
    ),
}
RUNS = ("sft", "grpo", "evaluate")  # Other tests of this folder start them.


@pytest.fixture(scope="module")
def ends(hour):
    """command -> (exit code, stdout, stderr)."""
    shutil.copytree(hour.evaluated(), hour.folder / "runs/again")
    (hour.folder / "curate.toml").write_text(CURATE)
    clip = next((hour.folder / "data").rglob("*.mp4"))
    commands = [(hour.folder, [name, *ENDS[name][0].format(clip=clip).split()]) for name in ENDS]
    return dict(zip(ENDS, hour.batch(commands, STUBS), strict=True))


def test_every_command_is_looked_at():
    assert sorted([*ENDS, *RUNS]) == sorted(COMMANDS)


@pytest.mark.parametrize("command", ENDS)
def test_it_names_what_was_written_and_what_comes_next(ends, command):
    code, out, err = ends[command]
    assert code in ((0, 1) if command == "doctor" else (0,)), out + err
    _, written, following = ENDS[command]
    last = (err if command in ("ask", "completion") else out).splitlines()[-1]
    said, _, words = last.partition("; next: videorft ")
    assert written in said, last
    assert words.startswith(following), last
    assert shlex.split(words)[0] in COMMANDS


@pytest.mark.parametrize("command", ENDS)
def test_what_is_piped_holds_neither_colours_nor_redrawn_lines(ends, command):
    _, out, err = ends[command]
    assert not re.search(r"\x1b|\r", out + err)


@pytest.mark.parametrize("command", ["validate", "cache", "convert", "tfds"])
def test_commands_that_read_records_say_how_far_they_are(ends, command):
    assert "] 8/8 records, 0 s left" in ends[command][2]


def test_nothing_is_ever_coloured():
    """NO_COLOR has nothing to switch off: the only escape sequence erases a live line."""
    for path in (ROOT / "videorft_jax").rglob("*.py"):
        assert set(re.findall(r"\\(?:x1b|033|e)\[.", path.read_text())) <= {r"\x1b[K"}, path


@pytest.mark.parametrize("kind", ["sft", "evaluated"])
def test_runs_do_so_too(hour, kind):
    hour.evaluated()
    last = hour.said[kind].splitlines()[-1]
    written, words = {
        "sft": ("sft_7b: done", rf"export --checkpoint={hour.folder}/runs/sft --out=DIR"),
        "evaluated": (f"{hour.folder}/runs/evaluated/results.json", "report /"),
    }[kind]
    assert re.search(rf"{re.escape(written)}; next: videorft {re.escape(words)}", last), last
