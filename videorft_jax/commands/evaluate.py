"""`videorft evaluate`: completions of every record of a file, and what they are worth."""

import dataclasses
import functools
import logging
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

import videorft_jax
from videorft_jax.commands import flags
from videorft_jax.commands.last_line import print_last_line
from videorft_jax.data.records.prompts import DEFAULT_TEMPLATE, load_template
from videorft_jax.data.records.source import FirstRecords
from videorft_jax.evaluation import evaluate as evaluation
from videorft_jax.evaluation.benchmarks.catalogue import (
    count_problems,
    find_missing,
    find_other_version,
    find_task,
    load_items,
)
from videorft_jax.evaluation.benchmarks.task import Item, Task
from videorft_jax.evaluation.benchmarks.variants import Variant, make_record, write_records
from videorft_jax.evaluation.options import EvaluateOptions
from videorft_jax.evaluation.outputs import RECORDS
from videorft_jax.models.family import check_contract
from videorft_jax.models.hf_folder import check_checkpoint
from videorft_jax.models.peft_folder import Adapter, load_adapter
from videorft_jax.models.sources import find_folder
from videorft_jax.parallel.processes import describe_environment
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.sampling import make_sampling
from videorft_jax.training import restore
from videorft_jax.training.options import TrainOptions
from videorft_jax.training.run import (
    load_model_files,
    make_loader,
    make_mesh,
    make_tools,
    open_records,
)
from videorft_jax.training.setup import make_train_options
from videorft_jax.training.state import read_params

log = logging.getLogger(__name__)

EXAMPLES = """videorft evaluate --config=configs/evaluate_7b.py --workdir=runs/base/mmvu \\
    --config.model.init_from=DIR --config.data.records=eval_mmvu.json
videorft evaluate --config=configs/evaluate_7b.py --workdir=runs/grpo_7b/mmvu \\
    --config.evaluate.checkpoint=runs/grpo_7b --config.evaluate.other_media=True ...
videorft evaluate --config=configs/evaluate_7b.py --workdir=runs/base/all \\
    --benchmarks=vsibench,mvbench --data_root=benchmarks --variant=as_paper ...
videorft evaluate --config=configs/evaluate_7b.py --workdir=runs/base/direct \\
    --benchmarks=eval_mmvu.json --data_root=benchmarks --no_think ...
videorft evaluate --config=configs/evaluate_7b.py --workdir=runs/base/official \\
    --benchmarks=videomme --data_root=benchmarks --variant=official --subtitles ...

  --benchmarks     names of `videorft benchmarks` and record files, joined by commas
  --data_root      folder of their files, a folder for each
  --variant        as_paper or official: whose prompts and parts of clips
  --no_think       leave the instruction to reason out of the paper's words
  --subtitles      add subtitles where a benchmark is known without"""
# Options of `evaluate` that say how completions are drawn; those of `rollout` have the same names.
SAMPLED = ("num_rollouts", "max_new_tokens", "temperature", "top_p", "top_k", "min_p")
# Flags of --benchmarks, with what is said where they have no value, and those that have none.
_NAMED = {
    "benchmarks": "names none; name some, as `videorft benchmarks` lists them",
    "data_root": "names no folder; name that of the benchmarks' files",
    "variant": "names none; choose as_paper or official",
}
_SWITCHES = ("no_think", "subtitles")


def main(argv: list[str]) -> int:
    """videorft evaluate --config=FILE --workdir=DIR [--benchmarks=NAME,NAME --data_root=DIR
    [--variant=as_paper|official] [--no_think] [--subtitles]] [--config.section.option=value ...]"""
    own, rest = _split_flags(argv)
    config, workdir = flags.parse(rest, "videorft evaluate", EXAMPLES)
    if not own["benchmarks"]:
        if any(own.values()):
            raise ValueError(
                "--data_root, --variant, --no_think, --subtitles are of --benchmarks; name some"
            )
        evaluate(config, workdir)
        print_last_line(f"{workdir}/results.json", "report", workdir)
        return 0
    names = [os.path.expanduser(name) for name in own["benchmarks"].split(",")]
    variant = Variant(
        own["variant"] or "as_paper",
        think=not own["no_think"],
        with_subtitles=bool(own["subtitles"]),
    )
    evaluate_benchmarks(config, workdir, names, own["data_root"] or ".", variant)
    print_last_line(f"{len(names)} benchmarks in {workdir}", "score", workdir)
    return 0


def _split_flags(argv):
    """The flags that name benchmarks, and the other arguments. Raises ValueError for a flag that
    is empty, without a value or given twice, and for a switch that is neither on nor off."""
    own: dict[str, str] = dict.fromkeys((*_NAMED, *_SWITCHES), "")
    rest: list[str] = []
    left, seen = list(argv), set()
    while left:
        flag, found, value = left.pop(0).partition("=")
        name = re.sub("^--?", "", flag)
        if not flag.startswith("-") or name not in own:
            rest.append(flag + found + value)
            continue
        if name in seen:
            raise ValueError(f"--{name} is given twice; give it once")
        seen.add(name)
        if name in _SWITCHES:
            if found and value.casefold() not in ("true", "false"):
                raise ValueError(f"--{name} is {value!r}; give true, false or the flag alone")
            own[name] = "" if value.casefold() == "false" else "yes"
            continue
        if not found and left and not left[0].startswith("-"):
            value = left.pop(0)
        if not value:
            raise ValueError(f"--{name}= {_NAMED[name]}")
        own[name] = value
    own["data_root"] = os.path.expanduser(own["data_root"])
    return own, rest


def evaluate_benchmarks(
    config: ConfigDict,
    workdir: str,
    names: list[str],
    data_root: str,
    variant: Variant,
) -> None:
    """Evaluates benchmarks from their own files, each in a folder of the work directory.

    Questions whose clip is missing or damaged are written down with their reason and never end the
    run. Raises ValueError, before the first question, for an unknown benchmark, for one that is
    named twice, and for files that are missing.
    """
    if config.data.records or config.data.root:
        log.warning(
            "data.records and data.root of %s are not read beside --benchmarks, which bring their "
            "own; name a record file in --benchmarks to evaluate it too", config.name,
        )  # fmt: skip
    tasks = [find_task(name) for name in names]
    if len({task.name for task in tasks}) < len(tasks):
        raise ValueError(f"benchmarks: {', '.join(names)} name one twice; give each a run")
    loaded = {task.name: load_items(task, data_root) for task in tasks}
    for task in tasks:  # What cannot be asked is said before anything is written.
        folder, items = loaded[task.name]
        make_record(items[0], task.name, variant, folder)
        _tell_subtitles(task, folder, items, variant)
    for task in tasks:
        folder, items = loaded[task.name]
        records = os.path.join(workdir, task.name, RECORDS)
        write_records(records, items, task.name, variant, folder)
        if other := find_other_version(task, items):
            log.warning("%s: %s", task.title, other)
        if faults := count_problems(items):
            log.warning("%s: %s", task.title, faults)
    model = open_model(config)
    for name, (folder, items) in loaded.items():
        missing = find_missing(folder, items)
        log.info("%s: %d questions, %d media missing", name, len(items), len(missing))
        records = os.path.join(workdir, name, RECORDS)
        own = ConfigDict(config.to_dict())
        own.name = f"{config.name}, {name}"
        own.data.records, own.data.root = records, str(folder)
        pictures = os.path.abspath(os.path.join(workdir, name, "pictures"))
        own.limits.roots = (*own.limits.roots, pictures)
        asked = dataclasses.asdict(variant) | {"benchmark": name}
        evaluate(own, os.path.join(workdir, name), asked, model)


def _tell_subtitles(task: Task, folder: pathlib.Path, items: list[Item], variant: Variant) -> None:
    """Says how many clips are asked about without the subtitles that the prompt would show."""
    paths = {item.subtitles.path for item in items if variant.shows_subtitles(item)}
    absent = [path for path in sorted(paths) if not (folder / path).exists()]
    if absent:
        log.warning(
            "%s: %d of %d clips have no subtitles, such as %s; they are asked about without",
            task.title, len(absent), len(paths), absent[0],
        )  # fmt: skip
    if variant.with_subtitles and not paths:
        raise ValueError(f"{task.title}: has no subtitles; leave --subtitles out")


class Model(NamedTuple):
    """What one or several evaluations run: the Hugging Face folder of the model, the checkpoint or
    None, its tokenizer and engine, and a function that gives the prepared weights, which are read
    when it is first called."""

    init_from: str
    saved: restore.Saved | None
    tokenizer: Any
    engine: RolloutEngine
    prepare_params: Callable[[], Any]


def open_model(config: ConfigDict) -> Model:
    """The model of a config. Raises ValueError for a config that cannot work, before anything is
    allocated."""
    run, options = make_train_options(config), make_options(config)
    mesh = make_mesh(run)
    model = run.model
    saved = evaluation.find_weights(options, run.contract, model.init_from, model.adapter)
    if saved is not None and not run.model.init_from:
        source = find_folder(saved.init_from, download=config.model.download)
        run = dataclasses.replace(run, model=dataclasses.replace(run.model, init_from=source))
    model_config, tokenizer = load_model_files(run.model.init_from)
    check_contract(model_config, run.contract, config.name)
    if saved is None:
        check_checkpoint(run.model.init_from, model_config, run.model.strip_prefix)
    adapter = load_adapter(model.adapter, model_config) if model.adapter else None
    engine = make_engine(config, model_config, tokenizer, mesh)

    @functools.cache
    def prepare_params() -> Any:
        return engine.prepare(read_weights(run, options, saved, model_config, mesh, adapter))

    return Model(run.model.init_from, saved, tokenizer, engine, prepare_params)


def evaluate(
    config: ConfigDict,
    workdir: str,
    asked: Mapping[str, Any] | None = None,
    model: Model | None = None,
) -> dict:
    """The results of `config.data.records`, as `videorft evaluate` writes and prints them.

    asked: how the questions of a benchmark are asked, for the settings of the results. model: that
    of `open_model`, where it is open already. Raises ValueError for a config that cannot work,
    before anything is allocated.
    """
    log.info("%s on %s", config.name, describe_environment())
    run, options = make_train_options(config), make_options(config)
    model = model or open_model(config)
    source = open_records(run)
    if options.limit:
        source = FirstRecords(source, options.limit)
    template = run.data.template_file
    settings = {"benchmark": dict(asked)} if asked else {}
    if run.tools is not None:
        if options.blank:
            raise ValueError(
                f"{config.name}: evaluate.blank and tools.names exclude each other; a call would "
                "show what the blank clip hides"
            )
        settings["tools"] = dataclasses.asdict(run.tools)
    settings |= evaluation.describe(
        options,
        run.contract,
        load_template(template) if template else DEFAULT_TEMPLATE,
        run.data.records,
        len(source),
        describe_weights(config, model.init_from, model.saved),
    )
    return evaluation.evaluate(
        options,
        workdir,
        settings,
        engine=model.engine,
        tokenizer=model.tokenizer,
        make_loader=functools.partial(
            make_loader, run, "evaluate", model.tokenizer, workdir, source, sizes_dir=find_sizes()
        ),
        prepare_params=model.prepare_params,
        tools=make_tools(run, model.tokenizer, source),
    )


def find_sizes() -> str | None:
    """The folder in which measured sizes are kept for all evaluations of this machine, so that
    another checkpoint of the same clips measures nothing; None where it cannot be written. Another
    version, which may measure otherwise, has another folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = os.path.join(cache, "videorft", f"sizes-{videorft_jax.__version__}")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def make_options(config: ConfigDict) -> EvaluateOptions:
    """The options of one evaluation; raises ValueError for values that it cannot have."""
    return EvaluateOptions(
        name=config.name,
        mode=config.reward.mode,
        seed=config.seed,
        interval_s=config.log.interval_s,
        **config.evaluate.to_dict(),
    )


def make_engine(config: ConfigDict, model_config, tokenizer, mesh) -> RolloutEngine:
    """The engine that draws the completions as `config.evaluate` says."""
    sampling = {name: config.evaluate[name] for name in SAMPLED}
    of_engine = ("chunk", "num_buckets", "int8_weights", "int8_cache")
    return RolloutEngine(
        model_config,
        make_sampling(model_config, tokenizer, **sampling),
        mesh,
        dtype=config.model.dtype,
        attention=config.model.attention,
        **{name: config.rollout[name] for name in of_engine},
    )


def describe_weights(config: ConfigDict, init_from: str, saved: restore.Saved | None) -> dict:
    """Which weights are evaluated and in what precision, for the settings of the results."""
    adapter = {"adapter": config.model.adapter} if config.model.adapter else {}
    return adapter | {
        "init_from": init_from,
        "checkpoint": saved and saved.name,
        "dtype": config.model.dtype,
        "int8_weights": config.rollout.int8_weights,
        "int8_cache": config.rollout.int8_cache,
    }


def read_weights(
    run: TrainOptions,
    options: EvaluateOptions,
    saved: restore.Saved | None,
    model_config,
    mesh,
    adapter: Adapter | None,
):
    """The parameters of the checkpoint, or of `model.init_from` with an adapter merged into them,
    in their shards."""
    if saved is not None:
        return restore.read_params(saved, model_config, mesh, run.model.dtype, ema=options.ema)
    return read_params(run.model, model_config, mesh, adapter)
