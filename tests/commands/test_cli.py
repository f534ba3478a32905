"""The command line: help, and one line for all that cannot work, before anything compiles."""

import json
import logging
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import jax
import pytest
from option_names import OPTIONS
from tiny_run import (
    ROOT,
    make_data,
    make_model,
    sft_config,
    sft_options,
    write_config,
)

from videorft_jax import cli
from videorft_jax.checkpoints.checkpointer import Checkpointer
from videorft_jax.commands import options_help, recipes
from videorft_jax.commands.flags import FLAGS, parse
from videorft_jax.parallel import sharding
from videorft_jax.training import run
from videorft_jax.training.optimizer import make_optimizer
from videorft_jax.training.ranges import RANGES
from videorft_jax.training.setup import make_train_options
from videorft_jax.training.state import abstract_state, expected_meta, fresh_state
from videorft_jax.training.weights import make_weights

COMPILED = "/jax/core/compile/backend_compile_duration"


class Place(NamedTuple):
    folder: pathlib.Path
    model: pathlib.Path
    records: str
    config: str  # the flag


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    records = make_data(folder / "data")["sft"]
    make_model(folder / "model", records)
    write_config(folder / "tiny.py", "sft_7b", sft_options(folder / "model", records))
    return Place(folder, folder / "model", records, f"--config={folder / 'tiny.py'}")


@pytest.fixture
def say(capsys):
    """`videorft ARGUMENTS` in this process: (exit code, stdout, last paragraph of stderr).

    Nothing may have been compiled when it refuses.
    """
    compiled = []

    def listen(event, _, **__):
        if event == COMPILED:
            compiled.append(event)

    root, absl = logging.getLogger(), logging.getLogger("absl")
    handlers, levels = list(root.handlers), (root.level, absl.level)
    jax.monitoring.register_event_duration_secs_listener(listen)

    def call(*arguments):
        try:
            code = cli.main(list(map(str, arguments)))
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        assert not compiled
        return code, out, err

    before = jax.config.jax_compilation_cache_dir
    yield call
    jax.config.update("jax_compilation_cache_dir", before)
    jax.monitoring.unregister_event_duration_listener(listen)
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    absl.setLevel(levels[1])


def refused(said):
    """The one line of a refusal."""
    code, out, err = said
    assert (code, out) == (2, ""), err
    last = err.splitlines()[-1]
    assert last.startswith("videorft sft: ")
    assert "Traceback" not in err
    return last


def test_help(say):
    for flags in ([], ["-h"], ["--help"]):
        code, out, err = say(*flags)
        assert (code, err) == (0, "")
        assert "supervised fine-tuning" in out
    for flag in ("-h", "--help"):
        code, out, err = say("sft", flag)
        assert (code, err) == (0, "")
        assert "videorft sft --config=configs/sft_7b.py --workdir=" in out
        assert all(f"--{name} " in out for name, _, _ in FLAGS)
    code, out, _ = say("sft", f"--config={ROOT / 'configs' / 'sft_3b.py'}", "--help")
    assert code == 0
    assert "--config.optim.lr=1e-06" in out
    assert "--config.mesh.tensor=1" in out


@pytest.mark.parametrize("arguments", [["-h"], ["sft", "--help"], ["grpo", "--help=options"]])
def test_help_loads_no_library(arguments):
    code = f"import sys; from videorft_jax import cli; cli.main({arguments}); "
    code += "print('jax' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout.splitlines()[-1] == "False", said


def test_help_explains_every_option(say):
    """Each has a meaning; each number of `common.py` has a range, which holds its default."""
    code, out, _ = say("grpo", "--help=options")
    assert code == 0
    assert not options_help.read_comments().meanings.keys() ^ set(OPTIONS)
    for name, meaning in options_help.read_comments().meanings.items():
        assert meaning, name
        assert f"  --config.{name}=" in out
    for name, value in options_help.flatten(recipes.read("common"), ""):
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert RANGES[name[1:]].holds(value), name
    assert "the highest learning rate [at least 0]" in out
    assert all(len(line) <= 100 for line in out.splitlines())


@pytest.mark.parametrize("version", [(3, 10), (3, 13)])
def test_another_python_is_refused(say, monkeypatch, version):
    monkeypatch.setattr(cli, "PYTHON", version)
    code, out, err = say("sft", "--config=sft_7b")
    assert (code, out) == (2, "")
    assert err == (
        f"videorft: Python {version[0]}.{version[1]}: the project runs on 3.11 and 3.12; make an "
        "environment with Python 3.11 or 3.12: python3.12 -m venv .venv\n"
    )


def test_a_bare_python_of_another_version_says_so(tmp_path):
    """Without one installed package, and without reading annotations, which Pythons before 3.10
    cannot: the line is all that they have to reach."""
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from videorft_jax import cli
cli.PYTHON = (3, 9)
code = cli.main(["sft"])
ours = [each for name, each in sys.modules.items() if name.startswith("videorft_jax.")]
files = [each for each in ours if not hasattr(each, "__path__")]
print(*(each.__name__ for each in files if not hasattr(each, "annotations")))
sys.exit(code)
"""
    bare = [sys.executable, "-I", "-S", "-c", script]
    done = subprocess.run(bare, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("videorft: Python 3.9: the project runs on 3.11 and 3.12; make")
    assert done.stdout.split() == []


def test_unknown_command(say):
    assert say("sfft") == (
        2,
        "",
        "videorft: no command 'sfft'; did you mean sft?\n",
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.optim.lrr=1"], "no such option: optim.lrr; did you mean optim.lr?"),
        (["--config.optimm.lr=1"], "no such option: optimm.lr; did you mean optim.lr?"),
        (["--config.optim.learning_rate=1"], "did you mean optim.lr?"),
        (["--config.optim.lr=-1"], "optim.lr is -1.0; give at least 0"),
        (["--config.optim.lr=nan"], "optim.lr is nan; give at least 0"),
        (["--config.optim.lr=inf"], "optim.lr is inf; give a finite number, at least 0"),
        (["--config.data.timeout_s=inf"], "data.timeout_s is inf; give a finite number, more than"),
        (["-config.optim.lrr=1"], "no such option: optim.lrr; did you mean optim.lr?"),
        (
            ["--config.optim.lr", "--config.data.rows=8"],
            "--config.optim.lr has no value; write --config.optim.lr=VALUE",
        ),
        (["--config.optim.b1=1"], "optim.b1 is 1.0; give from 0 to below 1"),
        (["--config.rollout.top_p=0"], "rollout.top_p is 0.0; give above 0 to 1"),
        (["--config.optim.lr=fast"], "--config.optim.lr=fast: could not convert string to float"),
        (["--config.data.rows=7.5"], "--config.data.rows=7.5: invalid literal for int()"),
        (["--config.data.isolate=2"], "--config.data.isolate=2: "),
        (["--rows=8"], "Unknown command line flag 'rows'"),
        (["8"], "'8' is no flag; write --name=value"),
        (["--process_id=0"], "give all of --coordinator, --num_processes and --process_id"),
        (["--config.optim.name=sgd"], "optim.name is 'sgd'; choose one of ('adamw', 'adafactor')"),
        (["--config.optim.schedule=step"], "optim.schedule is 'step'; choose one of"),
        (["--config.optim.mu_dtype=half"], "optim.mu_dtype is 'half'; choose one of"),
        (["--config.model.remat=all"], "model.remat is 'all'; choose one of ('none', 'full'"),
        (["--config.model.attention=fast"], "model.attention is 'fast'; choose one of ('auto'"),
        (["--config.model.dtype=float16"], "model.dtype is 'float16'; choose one of"),
        (
            ["--config.media.preset=test"],
            "media.preset is 'test'; choose one of ('train', '",
        ),
        (["--config.train.freeze=audio"], "freeze names ['audio']; choose among"),
        (["--config.train.freeze=vision,merger,text"], "leaves nothing to train"),
        (["--config.lora.rank=4", "--config.train.freeze=text"], "leave train.freeze empty"),
        (["--config.train.accumulate=0"], "train.accumulate is 0; give at least 1"),
        (["--config.checkpoint.every=0"], "checkpoint.every is 0; give at least 1"),
        (["--config.checkpoint.keep_last=0"], "keep_last is 0"),
        (["--config.optim.warmup_steps=3000000000"], "give from 0 to 2147483647"),
        (["--config.train.max_steps=-1"], "train.max_steps is -1; give at least 0"),
        (
            ["--config.data.rows=12"],
            "data.rows is 12; with data * fsdp = 8 and train.accumulate = 1",
        ),
        (["--config.train.accumulate=2"], "it must be a multiple of 16"),
        (["--config.mesh.fsdp=3"], "mesh data=-1, fsdp=3, tensor=1: does not fit 8 devices"),
        (["--config.mesh.tensor=4"], "mesh axis tensor = 4 does not divide"),
        (["--config.model.init_from="], "model.init_from is empty; give a Hugging Face folder"),
        (["--config.model.init_from=/none"], "/none/config.json: no such file; give a Hugging"),
        (["--config.data.records=/none.jsonl"], "/none.jsonl: No such file or directory"),
        (["--config.data.template_file=/none.txt"], "/none.txt"),
        (["--config.data.row_tokens=250"], "row_tokens 250 is no multiple of 64"),
        (["--config.media.max_pixels=100"], "max_pixels"),
    ],
)
def test_refused_in_one_line(place, say, flags, message):
    workdir = place.folder / "refused"
    assert message in refused(say("sft", place.config, f"--workdir={workdir}", *flags))
    assert not (workdir / "metrics.jsonl").exists()


def test_refuses_a_batch_that_cannot_fit(place, say):
    """More pixels than this host can hold, an eighth of them for each of its eight devices."""
    workdir = place.folder / "wide"
    bucket = make_loader(sft_config(place.model, place.records), workdir).buckets[0]
    row = bucket.pairs * bucket.windows * 64 * 1176  # bytes, uint8
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    rows = 8 * (host // row // 8 + 1)
    flags = [f"--config.data.rows={rows}", f"--config.data.epochs={rows // 8}"]
    said = refused(say("sft", place.config, f"--workdir={workdir}", *flags))
    pattern = (
        rf".*: data.rows = {rows} rows of {bucket.length} tokens cannot fit: update needs (.+) GiB "
        rf"of (.+) GiB a device; set train.accumulate={rows // 8}, or "
    )
    need, limit = map(float, re.match(pattern, said).groups())
    assert limit == pytest.approx(host / 8 / 2**30, abs=0.01)
    assert need > rows // 8 * row / 2**30


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--config and --workdir missing; write videorft sft --config="),
        (["--workdir=runs/a"], "--config missing"),
        (["--config=none.py", "--workdir=runs/a"], "--config=none.py: no such file"),
        (["--config=sft_7b", "--workdir", "--config.data.rows=8"], "--workdir has no value; write"),
        (["--config", "--workdir=runs/a"], "--config has no value; write --config=VALUE"),
        (["--config", "none.py"], "--config=none.py: no such file, and no recipe of that name"),
        (
            ["--config.optim.lr=1"],
            "--config.optim.lr=1 without a recipe; write videorft sft ",
        ),
    ],
)
def test_refuses_without_config_or_workdir(say, flags, message):
    assert message in refused(say("sft", *flags))


def test_refuses_a_workdir_that_cannot_be_written(place, say):
    assert "--workdir missing" in refused(say("sft", place.config))
    with pytest.raises(ValueError, match="give a local folder"):  # commands that append to it
        parse([place.config, "--workdir=gs://bucket/run"], "videorft ablate", "")
    assert "cannot be read" in refused(say("sft", place.config, "--workdir=nowhere://bucket/run"))
    file = place.folder / "file"
    file.write_text("")
    said = say("sft", place.config, f"--workdir={file}", "--config.data.records=/none.jsonl")
    assert "cannot be written" in refused(said)  # found before the records are read


def test_refuses_damaged_models_and_records(place, say):
    model, workdir = place.folder / "cut", place.folder / "damaged"
    shutil.copytree(place.model, model)
    weights = next(model.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    flags = [place.config, f"--workdir={workdir}"]
    assert "truncated" in refused(say("sft", *flags, f"--config.model.init_from={model}"))
    weights.unlink()
    assert str(model) in refused(say("sft", *flags, f"--config.model.init_from={model}"))
    records = place.folder / "records.jsonl"
    records.write_bytes(b"\x1f\x8b" + bytes(100))
    assert "is compressed" in refused(say("sft", *flags, f"--config.data.records={records}"))
    records.write_bytes(bytes(range(1, 128)) * 9)
    assert "records are bad" in say("sft", *flags, f"--config.data.records={records}")[2]


def test_refuses_too_many_bad_records_until_they_are_repaired(place, say):
    """The line gives each reason its number. What was repaired no longer counts."""
    flags = [place.config, f"--workdir={place.folder / 'bad'}"]
    code, _, err = say("sft", *flags, "--config.data.row_tokens=64")
    assert code == 2
    line = err.splitlines()[-1]
    assert "40 of 40 records are bad" in line
    assert "more than max_bad_fraction 0.05 (too_many_tokens 40); repair them (see " in line
    rows = [json.loads(line) for line in pathlib.Path(place.records).read_text().splitlines()]
    for row in rows[:4]:
        row["path"] = "none.mp4"
    records = pathlib.Path(place.records).with_name("four_bad.jsonl")
    records.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flag = f"--config.data.records={records}"
    code, _, err = say("sft", *flags, flag)
    assert code == 2
    assert "4 of 40 records are bad" in err
    wrong = "--config.model.init_from=/none"
    assert "/none" in refused(say("sft", *flags, flag, wrong, "--config.data.max_bad_fraction=0.2"))
    config = sft_config(place.model, records, data__max_bad_fraction=0.2)
    loader = make_loader(config, place.folder / "bad")
    assert len(loader.quarantine) == 4
    config = sft_config(place.model, place.records)
    assert len(make_loader(config, place.folder / "bad").quarantine) == 0


def make_loader(config, workdir):
    options = make_train_options(config)
    tokenizer = run.load_model_files(options.model.init_from)[1]
    return run.make_loader(options, "sft", tokenizer, str(workdir))


@pytest.fixture(scope="module")
def begun(place):
    """A work directory with the checkpoint of step 3."""
    options = make_train_options(sft_config(place.model, place.records))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    weights = make_weights(options, run.load_model_files(options.model.init_from)[0])
    workdir = place.folder / "begun"
    abstract = abstract_state(options, weights, mesh)
    optimizer = make_optimizer(options.optim, 5)
    with Checkpointer(workdir) as checkpointer:
        state = fresh_state(options, weights, optimizer, abstract, mesh)
        meta = expected_meta(weights, options.contract) | {"data": {"plan": "another"}}
        checkpointer.save(3, state, meta)
    return workdir


def test_refuses_to_go_on_with_something_else(place, begun, say, monkeypatch):
    flags = [place.config, f"--workdir={begun}"]
    message = "media.max_frames is 4 in the checkpoint and 6 in this run"
    assert message in refused(say("sft", *flags, "--config.media.max_frames=6"))
    model = place.folder / "deeper"
    shutil.copytree(place.model, model)
    values = json.loads((model / "config.json").read_text())
    (values.get("text_config") or values)["num_hidden_layers"] = 3
    (model / "config.json").write_text(json.dumps(values))
    message = "model.text.num_layers is 2 in the checkpoint and 3 in this run"
    assert message in refused(say("sft", *flags, f"--config.model.init_from={model}"))
    message = "lora is None in the checkpoint and {"
    assert message in refused(say("sft", *flags, "--config.lora.rank=4"))
    message = "use the optimizer and options the checkpoint was made with"
    assert message in refused(say("sft", *flags, "--config.train.freeze=vision"))
    assert message in refused(say("sft", *flags, "--config.optim.name=adafactor"))
    # The records are looked at before the weights of the checkpoint are read.
    monkeypatch.setattr(Checkpointer, "restore", None)
    assert "the saved run read plan another, this one" in refused(say("sft", *flags))
