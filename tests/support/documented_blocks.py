"""The blocks of README and documentation as scripts that run on a tiny model.

What a block needs of the published world is put in its place by the tables below. Each row must be
of use to some line, and each line of a block must be run or excused: test_documented_blocks holds
both.
"""

import re
import shlex
from typing import NamedTuple

from tiny_run import ROOT

PAGES = ("README.md", "CONTRIBUTING.md", "launch/README.md", "docs/**/*.md")
STARTS = ("videorft ", "python ", "launch/", "echo ", "export ", "mkdir ")
# Beginnings of lines that are left out, and why.
NOT_RUN = {
    "bash launch/demo.sh": "test_empty_environment runs the demo from a wheel",
    "bash launch/test.sh": "it runs these tests",
    "pip install lmms_eval": "lmms_eval pins another PyAV; test_lmms_eval_run says where it runs",
    "lmms-eval ": "test_lmms_eval_run runs it where lmms_eval is installed",
    "vllm serve": "vLLM needs a GPU",
    "xpk ": "XPK needs a cluster; test_documented parses the command that it is given",
}
# Pages of Python -> the lines that stand before it, or the reason why it is not run.
PYTHON = {
    "README.md": "import json; records = [json.loads(next(open('rl.jsonl')))]\n",
    "docs/how_to/reward.md": "",  # It is kept as mine.py, which the next block trains with.
    "docs/how_to/serve.md": "",  # The block before has started the server.
}
NO_PYTHON = {
    "docs/how_to/curate.md": "it needs a Ray cluster",
    "docs/how_to/tools.md": "a sketch, whose look-up is the reader's",
}
# What is written -> what stands in the folder where blocks run.
NAMES = {
    r"Qwen/Qwen2\.5-VL-3B-Instruct|Qwen2\.5-VL-7B-Instruct|\bTEACHER\b": "model",
    r"siglip-so400m-patch14-384|siglip2-base|\bSIGLIP\b": "siglip",
    r"VideoRFT-CoT-102K\.jsonl|\bFILE\.jsonl": "sft.jsonl",
    r"VideoRFT-RL-310K\.jsonl": "rl.jsonl",
    r"\bheld_out\.jsonl": "eval.jsonl",
    r"(?<=init_from=)(?:DIR|runs/sft_hf)|(?<=--model[ =])DIR": "model",
    r"(?<=--data_root[ =])DIR": ".",
    r"(?<=data\.root=)DIR": "pool",
    r"(?<=file://)/data/clips/ball\.mp4": "{place}/clip.mp4",
    r"(?<=--root )/data/clips": "{place}",
    r"/data/compiled": "shared_programs",
    r"(?<=127\.0\.0\.1:)8000|(?<=--port )8000": "{port}",
    r"http://localhost:8000/v1": "{judge}",
    r"configs/curate\.toml": "pool.toml",
    r"results/\*\.jsonl": "batches/*.results",
    r"(?<=records=)\.\.\.": "/mnt/sft.jsonl",
    r"(?<=seed=)N\b": "1",
    r"--config=demo(?= )": "--config=demo:smoke",
    r"v6e-16|v5e-64(?= --search)": "v5e-4",
    r'dtype="bfloat16"': 'dtype="float32"',
    r"(?<=max_new_tokens=)(768|1024|48)\b|(?<=max_tokens=)512": "8",
    r"(?<=max_steps=)60": "2",
    r"(?<=validate\.every=)\d+": "1",
    r"(?<=--profile=)3": "2",
}
_MODEL = (
    "--config.model.dtype=float32 --config.model.remat=none --config.data.rows=4 "
    "--config.data.row_tokens=1024 --config.data.max_buckets=1 --config.train.accumulate=1 "
    "--config.media.min_pixels=3136 --config.media.max_pixels=12544"
)
_DRAWS = "--config.rollout.num_rollouts=2 --config.rollout.max_new_tokens=8"
_STEPS = "--config.train.max_steps=2 --config.train.max_skipped_in_row=9"
_PLAN = "--config.model.init_from=model --config.data.records=sft.jsonl"
_ABLATE = (
    "--config.ablate.records=eval.jsonl --config.ablate.seeds=(0,) "
    "--config.ablate.variants=(('a',()),('b',(('grpo.beta',0.0),)))"
)
# The beginning of a command -> flags that make it small; the first that fits is taken.
SIZES = {
    r"(grpo|pass_rate) --config=demo_grpo": _DRAWS,
    r"sft": f"{_MODEL} {_STEPS}",
    r"(grpo|ablate)": f"{_MODEL} {_DRAWS} {_STEPS} --config.evaluate.max_new_tokens=8",
    r"pass_rate": f"{_MODEL} {_DRAWS}",
    r"evaluate": f"{_MODEL} --config.evaluate.max_new_tokens=8",
    r"plan .*v5e": f"{_MODEL} {_DRAWS} {_PLAN}",
    r"ask": "--dtype=float32 --max_new_tokens=8",
    r"serve": "--dtype=float32 --max_new_tokens=8 --port=0",
}
# What a reader writes for "...": those of the flags that the line lacks.
READER = (
    "--config.model.init_from=model --config.data.records=rl.jsonl "
    "--config.rewards=(('accuracy',1.0),)"
)
READER_OF = {"ablate": f"{READER} {_ABLATE}"}
# Commands that end only when they are told to -> what they say once they are up.
ENDLESS = {r"serve": "^serving", r"report .*--live": "is for a browser"}
# The beginning of a line as it is written -> what is done before it.
BEFORE = {
    "videorft plan --config=configs/grpo_7b.py --topology=v6e-16":
        "unset XLA_FLAGS",  # They are those of CPUs, with which libtpu ends the process.
    "videorft compare runs/base/all": "cp -r runs/base/all runs/grpo_7b/all",
    "videorft export --checkpoint=runs/grpo_7b --out=runs/grpo_7b/hf": "rm -rf runs/grpo_7b/hf",
    "videorft grpo --config=grpo_7b --workdir=runs/grpo_7b": "rm -rf runs/grpo_7b",
    "videorft grpo --config=grpo_7b --workdir=runs/grpo_7b --config.model.init_from=DIR":
        "python block_helpers.py spread runs/pass_rate/pass_rates.jsonl",
    "videorft pass_rate --config=demo_grpo":
        "videorft demo --config=demo:smoke --workdir=runs/demo",
    "videorft grpo --config=demo_grpo":
        "python block_helpers.py spread runs/pass_rate/pass_rates.jsonl",
    "videorft curate --config=configs/curate.toml --workdir=runs/curate --export_batch":
        "rm -r runs/curate",  # Else nothing is missing.
    "videorft curate --config=configs/curate.toml --workdir=runs/curate --import_batch":
        "python block_helpers.py answer {chat}",
    "videorft pass_rate --config=configs/grpo_7b.py --workdir=runs/rates":
        "videorft curate --config=pool.toml --workdir=runs/curate",
}  # fmt: skip
# Pages -> the runs that they speak of and do not make.
RUNS = {
    "docs/how_to/benchmark.md": ("grpo_7b",),
    "docs/how_to/clients.md": ("grpo_7b",),
    "docs/how_to/serve.md": ("grpo",),
    "docs/how_to/watch.md": ("grpo_7b", "no_semantic"),
    "docs/troubleshooting.md": ("grpo_7b",),
}
PRELUDE = r"""
set -euo pipefail
trap 'pids=$(jobs -p); [ -z "$pids" ] || kill $pids 2>/dev/null || true' EXIT
up() { # up PATTERN COMMAND...: starts it and returns once it has said the pattern
  local pattern=$1 log; shift; log=$(mktemp -p .)
  "$@" >"$log" 2>&1 &
  until grep -q "$pattern" "$log"; do
    kill -0 $! 2>/dev/null || { cat "$log"; return 1; }
    sleep 0.2
  done
}
"""


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    text: str


def read_blocks() -> list[Block]:
    """All fenced blocks, whatever they hold, in the order of pages and lines."""
    fence = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
    pages = [page for pattern in PAGES for page in sorted(ROOT.glob(pattern))]
    return [
        Block(page.relative_to(ROOT).as_posix(), language, text)
        for page in pages
        for _, language, text in fence.findall(page.read_text())
    ]


def read_lines(block: Block) -> list[str]:
    """The commands of a block, each on one line, without comments."""
    lines = re.sub(r"\\\n\s*", "", block.text).splitlines()
    lines = [re.sub(r"(^|\s+)# .*", "", line).strip() for line in lines]
    return [line for line in lines if line]


def is_run(line: str) -> bool:
    """Whether the line is not excused."""
    return not line.startswith(tuple(NOT_RUN))


def put_names(text: str) -> str:
    """The text with the names that stand in the folder."""
    for written, there in NAMES.items():
        text = re.sub(written, there, text)
    return text


def make_small(line: str) -> str:
    """A line of a block of bash as it is run, behind what is done before it."""
    before = "".join(f"{did}\n" for start, did in BEFORE.items() if line.startswith(start))
    return before + put_names(_small(put_names(line)))


def _small(line):
    if line.startswith("launch/"):
        command, words = (line.replace(" --dry_run", "") + " -- ").split(" -- ")[:2]
        return f"{ROOT}/{command} --dry_run" + (f" -- {words}" if words else "")
    found = re.match(r"(?P<ahead>.*?\| )?videorft (?P<command>[^>]*)(?P<behind>>.*)?", line)
    if not found:
        return line
    command = found["command"].strip()
    flags = next((flags for start, flags in SIZES.items() if re.match(start, command)), "")
    if " ..." in command:
        command = command.replace(" ...", "")
        flags += " " + READER_OF.get(command.split()[0], READER)
    named = set(re.findall(r"--[\w.]+", command))
    lacking = [flag for flag in flags.split() if flag.partition("=")[0] not in named]
    command = " ".join(["videorft", command, *map(shlex.quote, lacking)])
    for start, said in ENDLESS.items():
        if re.match(f"videorft {start}", command):
            command = f"up {shlex.quote(said)} {command}"
    return f"{found['ahead'] or ''}{command} {found['behind'] or ''}".strip()


def make_script(page: str) -> str:
    """All blocks of a page that are run, in their order."""
    parts = [PRELUDE]
    for block in read_blocks():
        if block.page != page:
            continue
        if block.language == "bash":
            parts += [make_small(line) for line in read_lines(block) if is_run(line)]
        elif block.language == "python" and page in PYTHON:
            text = PYTHON[page] + put_names(block.text)
            parts.append(f"cat >mine.py <<'END'\n{text}END\npython mine.py")
    return "\n".join(["", *parts, ""])
