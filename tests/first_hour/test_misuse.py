"""Faults 9, 10, 13 and 14: what a wrong command says. The table is the test: a command, its exit
code and a part of its last line. No trace is shown."""

import os
import re
import shutil

import pytest

TINY = "--config=tiny.py --workdir=runs/misused"
RL = "--config=weightless.py --workdir=runs/misused"  # Its model has no weights to read.
PLAIN = "--config.rewards=(('format',1.0),)"
SEMANTIC = "--config.rewards=(('semantic',1.0),('accuracy',1.0))"
GRID = (
    "--config.ablate.records=data/eval.jsonl --config.ablate.seeds=(0,) --config.ablate.variants="
    "(('a',()),('b',(('rewards',(('mine:raising',1.0),)),)))"
)
MINE = """
import time
def raising(prompts, completions, **kwargs):
    return kwargs["none"]
def short(prompts, completions, **kwargs):
    return [1.0]
def wordy(prompts, completions, **kwargs):
    return ["good"] * len(completions)
def silent(prompts, completions, **kwargs):
    return [None] * len(completions)
def slow(prompts, completions, **kwargs):
    time.sleep(5)
def demanding(prompts, completions, a_field, **kwargs):
    return [1.0] * len(completions)
"""
_CALLED = "called on 8 made-up completions of each of 8 records it "
USER = (
    ("raising", f"{_CALLED}raised KeyError: 'none'; mend it"),
    ("short", f"{_CALLED}returned another number of values; return 8, one a completion"),
    ("wordy", f"{_CALLED}returned no list of numbers; return 8 floats or None"),
    ("silent", f"{_CALLED}returned None for all; return a number"),
    ("absent", "module 'mine' has no attribute 'absent'"),
    ("demanding", "needs a_field, which is no field of the records"),
)


def rewards(name):
    return f"--config.rewards=(('mine:{name}',1.0),)"


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
    ("sft --config=older.py --workdir=x", 2, "older.py: written for another release? no such opt"),
    ("sft --config=fewer.py --workdir=x", 2, "lacks options; add `config.train.max_steps = 0` to"),
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
        "fetch it by: hf download Qwen/Qwen2.5-VL-7B-Instruct",
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
    ("init tiny.py", 2, "tiny.py: is a file; name a folder"),
    ("export --checkpoint=none --out=hf", 2, "none: no checkpoint there"),
    ("export --checkpoint=runs/sft --out=data", 2, "is there already and not empty"),
    ("export --checkpoint=runs/sft --out=/proc/hf", 2, "/proc/hf: cannot be written"),
    ("export --checkpoint=runs/sft --out=hf --dtype=int3", 2, "--dtype=int3: unknown"),
    *((f"grpo {RL} {rewards(name)}", 2, f"reward mine:{name}: {line}") for name, line in USER),
    (
        f"grpo {RL} {rewards('slow')} --config.reward.timeout_s=0.1",
        2,
        "in 0.1 s; raise reward.timeout_s",
    ),
    (f"grpo {RL} --config.rewards=(('acuracy',1.0),)", 2, "rewards has 'acuracy'; name one of"),
    (f"grpo {RL} --config.rewards=(('semantic',1.0),('accuracy',1.0))", 2, "no folder is named"),
    (f"grpo {RL} {SEMANTIC} --config.reward.siglip=data", 2, "data has no config.json"),
    (f"grpo {RL} {SEMANTIC} --config.reward.siglip=model", 2, "only SigLIP"),
    (f"grpo {RL} {PLAIN} --config.log.wandb=mine", 2, "pip install wandb"),
    (f"ablate {RL} {GRID} {PLAIN}", 2, "variant b: reward mine:raising: "),
    *(
        (f"grpo {RL} --config.{option}={value}", 2, f"{option} is {shown}; write (")
        for option, value, shown in (
            ("rewards", "(('format',1.0))", "('format', 1.0)"),
            ("rewards", "format", "('format',)"),
            ("rewards", "(('format','x'),)", "(('format', 'x'),)"),
            ("reward.gates", "3", "(3,)"),
            ("train.freeze", "3", "(3,)"),
            ("lora.targets", "3", "(3,)"),
            ("limits.roots", "3", "(3,)"),
            ("ablate.variants", "('a','b')", "('a', 'b')"),
            ("ablate.variants", "(('a',('x',)),)", "(('a', ('x',)),)"),
            ("ablate.seeds", "('x',)", "('x',)"),
        )
    ),
    (f"grpo {RL} {PLAIN} --config.reward.gated=('foo',)", 2, "gated names 'foo'"),
    ("grpo --config=demo --workdir=x", 2, "is no recipe of videorft grpo, as it lacks config."),
    ("demo --config=tiny.py --workdir=x", 2, "is no recipe of videorft demo, as it lacks config."),
    ("sft --config=tiny.py --config=sft_7b --workdir=x", 2, "--config is given 2 times"),
    ("sft --config=tiny.py --workdir=", 2, "--workdir missing"),
    (f"sft {TINY} --config.compile_cache=/proc/x", 2, "compile_cache=/proc/x: cannot be written"),
    ("evaluate --config=tiny.py --workdir=x --config.train.freeze=audio", 2, "names ['audio']"),
    ("evaluate --config=tiny.py --workdir=runs/sft", 2, "holds a run of training"),
    ("evaluate --config=tiny.py --workdir=x --benchmarks=", 2, "--benchmarks= names none"),
    ("validate --data=data/rl.jsonl --threads=0", 2, "'0' is no count; give at least 1"),
    ("validate --data=data/rl.jsonl --tokenizer=data", 2, "--tokenizer=data: no tokenizer.json"),
    ("validate --data=data/rl.jsonl --config.media.max_frame=8", 2, "unrecognized arguments"),
    *(
        (f"{command} --out={out}", 2, line)
        for command in (
            "report runs/sft",
            "convert --data=data/rl.jsonl",
            "compare a b",
            "inspect --data=data/rl.jsonl",
        )
        for out, line in (
            ("pipe", "is no regular file"),
            ("data", "is a folder; name the file"),
            ("none/x", "no folder none; make it first"),
        )
    ),
    ("inspect --data=data/rl.jsonl --model=none", 2, "--model=none: no tokenizer.json there"),
    ("cache --data=none.jsonl --out=c", 2, "none.jsonl: No such file or directory"),
    ("cache --data=data/rl.jsonl --out=model", 2, "holds no frame cache; choose another folder"),
    ("ask --model=model --question=", 2, "--question is empty; write what is asked"),
    ("ask --model=model --video=a.mp4", 2, "--question missing; write what is asked, or take --"),
    ("ask --model=model --question=Why? --show=a.png", 2, "--show=a.png: nothing is shown"),
    ("ask --model=model --question=Why? --image=a.png --show=a.jpg", 2, "is a PNG; name it so"),
    ("ask --model=model --chat --image=a.png --show=none/a.png", 2, "no such folder; make it"),
    ("benchmarks --data_root=none", 2, "--data_root=none: no such folder"),
    ("plan --config=sft_7b", 2, "--topology missing"),
    ("init /proc/none", 1, "/proc/none: "),
    ("init . none", 2, "no recipe 'none'; choose among"),
]


@pytest.fixture(scope="module")
def said(hour):
    """command -> (exit code, what it said); all in one process that stands in the user's folder."""
    hour.sft()
    (hour.folder / "broken.py").write_text("def get_config(:\n")
    (hour.folder / "empty.py").write_text("x = 1\n")
    wrong = "import common\ndef get_config():\n    config = common.get_config()\n"
    (hour.folder / "wrong.py").write_text(f"{wrong}    return config.optim.learning_rate\n")
    older = wrong.replace("get_config()\n", "get_config()\n    config.optim.warmup_ratio = 0.1\n")
    (hour.folder / "older.py").write_text(f"{older}    return config\n")
    fewer = f"{wrong}    del config.train.max_steps\n    return config\n"
    (hour.folder / "fewer.py").write_text(fewer)
    (hour.folder / "mine.py").write_text(MINE)
    os.mkfifo(hour.folder / "pipe")  # It stands for a device, and is to be there afterwards.
    weightless(hour)
    commands = [command for command, _, _ in MISUSES]
    found = hour.batch([(hour.folder, command.split()) for command in commands])
    texts = [(code, out + err) for code, out, err in found]
    return dict(zip(commands, texts, strict=True))


def weightless(hour):
    """A recipe of GRPO whose model has no weights: a line about anything else was written before
    they would have been read."""
    model = hour.folder / "weightless"
    shutil.copytree(hour.folder / "model", model)
    for path in model.glob("*.safetensors"):
        path.write_bytes(b"")
    hour.recipe("weightless", {"model.init_from": str(model), "data.records": hour.records["rl"]},
                recipe="grpo_7b")  # fmt: skip


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
