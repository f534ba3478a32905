"""Every block of README and documentation is run on a tiny model, from a wheel."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys

import documented_blocks as documented
import pytest
from benchmark_layouts import make_layouts
from chat_server import ChatServer
from compiler_flags import QUICK
from curation_run import ask, make_pool, write_config
from PIL import Image
from tiny_run import ROOT, environment, make_data, make_model, make_siglip
from wheel import build_wheel, interpreters

BLOCKS = documented.read_blocks()
# Every line of bash with its page, and what is run of bash and of Python.
LINES = [
    (block.page, line)
    for block in BLOCKS
    if block.language == "bash"
    for line in documented.read_lines(block)
]
RUN_LINES = [line for _, line in LINES if documented.is_run(line)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
TEXTS = RUN_LINES + [block.text for block in PYTHON if block.page in documented.PYTHON]
COMMANDS = [line.split("videorft ", 1)[1] for line in RUN_LINES if "videorft " in line]
RUN_PAGES = {page for page, line in LINES if documented.is_run(line)} | set(documented.PYTHON)
PREPARE = """
videorft sft --config=sft_7b --workdir=runs/sft --config.data.records=sft.jsonl ...
videorft export --checkpoint=runs/sft --out=hf
videorft grpo --config=grpo_7b --workdir=runs/grpo ... --config.model.init_from=hf
videorft export --checkpoint=runs/grpo --out=runs/grpo/hf
"""


def test_every_line_is_run_or_excused():
    assert [line for line in RUN_LINES if not line.startswith(documented.STARTS)] == []
    assert {block.page for block in PYTHON} == {*documented.PYTHON, *documented.NO_PYTHON}
    known = ("$ ", "videorft ", "python ", "bash ", "pip ", "launch/tpu", "launch/gpu")
    for block in BLOCKS:
        if block.language not in ("bash", "python"):
            assert not [line for line in block.text.splitlines() if line.startswith(known)]


def is_unused(rule, texts, match=re.search):
    return not any(match(rule, text) for text in texts)


def test_every_rule_is_of_use():
    lines, small = [line for _, line in LINES], list(map(documented.put_names, COMMANDS))
    sizes = {next((rule for rule in documented.SIZES if re.match(rule, x)), "") for x in small}
    unused = [rule for rule in documented.NAMES if is_unused(rule, TEXTS)]
    unused += [rule for rule in documented.ENDLESS if is_unused(rule, COMMANDS, re.match)]
    for table in (documented.BEFORE, documented.NOT_RUN):
        unused += [start for start in table if not any(line.startswith(start) for line in lines)]
    unused += {*documented.SIZES} - sizes | {*documented.RUNS} - RUN_PAGES
    filled = {command.split()[0] for command in COMMANDS if " ..." in command}
    assert [*unused, *({*documented.READER_OF} - filled)] == []


class Place:
    """A folder with what the pages name, and an environment that has the wheel alone."""

    def __init__(self, folder, python):
        self.folder, self.base = folder, folder / "base"
        target = ["install", "--no-deps", "--target", folder / "site", build_wheel(folder)]
        subprocess.run([sys.executable, "-m", "pip", "-q", *target], check=True)
        (folder / "bin").mkdir()
        for name, words in (("python", ""), ("videorft", "-P -m videorft_jax.cli")):
            command = folder / "bin" / name
            command.write_text(f'#!/bin/sh\nexec {python} {words} "$@"\n')
            command.chmod(0o755)
        files = make_data(self.base)
        make_model(self.base / "model", files["sft"])
        make_siglip(self.base / "siglip", files["sft"])
        make_layouts(self.base)
        rows = [json.loads(line) for line in (self.base / "eval.jsonl").read_text().splitlines()]
        (self.base / "eval_mmvu.json").write_text(json.dumps(rows))
        clip = next((self.base / "clips").rglob("*.mp4"))
        for name in ("clip.mp4", "before.mp4"):
            shutil.copy(clip, self.base / name)
        Image.new("RGB", (84, 56), "navy").save(self.base / "after.jpg")
        shutil.copy(ROOT / "tests/support/block_helpers.py", self.base)
        make_pool(self.base / "pool", [ask(number) for number in range(6)], clips=3)
        lines = [documented.make_small(line) for line in PREPARE.split("\n") if line]
        self.run("\n".join([documented.PRELUDE, *lines]), self.base)
        shutil.move(self.base / "runs", folder / "made")

    def run(self, script, cwd):
        """What a script says; the flags are such as every version of jaxlib knows."""
        env = environment(self.folder / "compiled") | {"HOME": str(cwd), "XLA_FLAGS": QUICK}
        env["PYTHONPATH"] = str(self.folder / "site")
        env["PATH"] = f"{self.folder / 'bin'}{os.pathsep}{env['PATH']}"
        said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        done = subprocess.run(["bash", "-x"], input=script, cwd=cwd, env=env, **said)
        assert done.returncode == 0, done.stdout[-6000:]
        return done.stdout

    def page(self, name, cwd, chat, judge):
        """Runs a page in a folder of its own."""
        shutil.copytree(self.base, cwd)
        for run in documented.RUNS.get(name, ()):
            shutil.copytree(self.folder / "made/grpo", cwd / "runs" / run)
        write_config(cwd / "pool.toml", cwd / "pool/pool.jsonl", chat)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        script = documented.make_script(name)
        for word, value in {"place": cwd, "port": port, "judge": judge, "chat": chat}.items():
            script = script.replace(f"{{{word}}}", str(value))
        return self.run("videorft init configs\n" + script, cwd)


@pytest.fixture(scope="module", params=interpreters())
def place(request, tmp_path_factory):
    return Place(tmp_path_factory.mktemp("blocks"), request.param)


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted(RUN_PAGES))
def test_a_page_from_top_to_bottom(place, page, tmp_path):
    reply = {"choices": [{"message": {"content": "yes"}}]}
    with ChatServer() as chat, ChatServer() as judge:
        judge.status = (200, {}, json.dumps(reply).encode())
        place.page(page, tmp_path / "place", chat.url, judge.url)
