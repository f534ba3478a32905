"""Faults 9, 10, 13 and 14: what a wrong command says. The table is the test: a command, its exit
code and a part of its last line. No trace is shown."""

import re
import subprocess
import sys

import pytest

TINY = "--config=tiny.py --workdir=runs/misused"
# The commands of one line run in one process, since starting Python takes longer than most of them.
MISUSES = [
    ("sfft", 2, "no command 'sfft'; did you mean sft?"),
    ("sft", 2, "--config and --workdir missing; write videorft sft --config="),
    ("sft --config=tiny.py", 2, "--workdir missing"),
    ("sft --workdir=runs/x --config.optim.lr=1", 2, "--config.optim.lr=1 without a recipe"),
    ("sft --config=sft_8b --workdir=x", 2, "no recipe of that name; give a file or one of"),
    ("sft --config=data --workdir=x", 2, "--config=data: no such file"),
    ("sft --config=broken.py --workdir=x", 2, "broken.py: SyntaxError"),
    ("sft --config=empty.py --workdir=x", 2, "defines no get_config()"),
    ("sft --config=wrong.py --workdir=x", 2, "wrong.py: AttributeError"),
    (f"sft {TINY} --config.optim.learning_rate=1", 2, "did you mean optim.lr?"),
    (f"sft {TINY} --config.batch_size=1", 2, "did you mean data.rows?"),
    (f"sft {TINY} --config.optim.lrr=1", 2, "no such option: optim.lrr; did you mean optim.lr?"),
    (f"sft {TINY} --config.lr=1", 2, "did you mean optim.lr?"),
    (f"sft {TINY} --config.optim.lr=-1", 2, "optim.lr is -1.0; give at least 0"),
    (f"sft {TINY} --config.optim.lr=fast", 2, "could not convert string to float"),
    (f"sft {TINY} --config.optim.b2=1", 2, "optim.b2 is 1.0; give from 0 to below 1"),
    (f"sft {TINY} --config.optim.clip=-5", 2, "optim.clip is -5.0; give at least 0"),
    (f"sft {TINY} --config.data.rows=0", 2, "data.rows is 0; give at least 1"),
    (f"sft {TINY} --config.data.max_bad_fraction=5", 2, "give from 0 to 1"),
    (f"sft {TINY} --config.data.timeout_s=0", 2, "data.timeout_s is 0.0; give more than 0"),
    (f"sft {TINY} --config.mesh.data=0", 2, "mesh.data is 0; give at least 1, or -1"),
    (f"sft {TINY} --config.train.accumulate=3", 2, "must be a multiple of 3"),
    (f"sft {TINY} --config.log.interval_s=-1", 2, "log.interval_s is -1.0; give at least 0"),
    (f"sft {TINY} --config.model.dtype=half", 2, "model.dtype is 'half'; choose one of"),
    (f"sft {TINY} --config.model.init_from=", 2, "model.init_from is empty"),
    (f"sft {TINY} --config.model.init_from=/none", 2, "/none/config.json: no such file"),
    (
        f"sft {TINY} --config.model.init_from=Qwen/Qwen2.5-VL-7B-Instruct",
        2,
        "hf download Qwen/Qwen2.5-VL-7B-Instruct --local-dir Qwen2.5-VL-7B-Instruct",
    ),
    (f"sft {TINY} --config.data.records=", 2, "data.records is empty; give a"),
    (f"sft {TINY} --config.data.records=none.jsonl", 2, "none.jsonl: No such file or directory"),
    (f"sft {TINY} --config.data.root=runs", 2, "give another folder by --config.data.root=DIR"),
    (f"sft {TINY} --config.data.template_file=none.json", 2, "none.json"),
    (f"sft {TINY} --rows=8", 2, "Unknown command line flag 'rows'"),
    (f"sft {TINY} 8", 2, "'8' is no flag; write --name=value"),
    (f"sft {TINY} --process_id=0", 2, "give all of --coordinator, --num_processes"),
    ("sft --config=tiny.py --workdir=/proc/none", 2, "cannot be written"),
    ("evaluate --config=tiny.py --workdir=gs://b/x", 2, "give a local folder"),
    ("evaluate --config=tiny.py --workdir=x --config.evaluate.limit=-1", 2, "give at least 0"),
    ("evaluate --config=tiny.py --workdir=x --config.evaluate.checkpoint=x", 2, "no checkpoint"),
    ("export --checkpoint=none --out=hf", 2, "none: no checkpoint there"),
    ("export --checkpoint=runs/sft --out=data", 2, "is there already and not empty"),
    ("export --checkpoint=runs/sft --out=/proc/hf", 2, "/proc/hf: cannot be written"),
    ("export --checkpoint=runs/sft --out=hf --dtype=int3", 2, "--dtype=int3: unknown"),
    ("plan --config=sft_7b", 2, "--topology missing"),
    ("init /proc/none", 1, "/proc/none: "),
    ("init . none", 2, "no recipe 'none'; choose among"),
]

RUN = """
import contextlib, io, shlex, sys
from videorft_jax import cli
for line in sys.stdin.read().splitlines():
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            code = cli.main(shlex.split(line))
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            code = repr(error)
    print(repr((line, code, said.getvalue())))
"""


@pytest.fixture(scope="module")
def said(hour):
    """command -> (exit code, what it said); all in one process that stands in the user's folder."""
    hour.sft()
    (hour.folder / "broken.py").write_text("def get_config(:\n")
    (hour.folder / "empty.py").write_text("x = 1\n")
    wrong = "import common\ndef get_config():\n    config = common.get_config()\n"
    (hour.folder / "wrong.py").write_text(f"{wrong}    return config.optim.learning_rate\n")
    lines = "\n".join(command for command, _, _ in MISUSES)
    process = hour.program(RUN, cwd=hour.folder)
    out = process.communicate(lines, timeout=300)[0]
    return {line: (code, text) for line, code, text in map(eval, out.splitlines())}


@pytest.mark.parametrize(("command", "code", "line"), MISUSES, ids=[m[0] for m in MISUSES])
def test_one_line_says_what_is_wrong(said, command, code, line):
    found, text = said[command]
    assert found == code, text
    assert line in text.splitlines()[-1], text
    assert text.splitlines()[-1].startswith("videorft"), text
    assert "Traceback" not in text


def test_debug_shows_the_trace(hour):
    text = hour.run("--debug", "sft", cwd=hour.folder, code=1)
    assert "Traceback" in text


def test_version_and_help(hour):
    assert re.fullmatch(r"videorft \d+\.\d+\.\d+\n", hour.run("--version", cwd=hour.folder))
    whole = hour.run("help", cwd=hour.folder)
    assert "supervised fine-tuning" in whole
    assert hour.run("help", "sft", cwd=hour.folder) == hour.run("sft", "--help", cwd=hour.folder)


def test_head_ends_it_quietly(hour):
    """`videorft sft --help | head -1`"""
    command = f"{sys.executable} -m videorft_jax.cli sft --help | head -n 1"
    done = subprocess.run(command, shell=True, cwd=hour.folder, env=hour.environment(),
                          capture_output=True, text=True)  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.startswith("videorft sft --config=")
