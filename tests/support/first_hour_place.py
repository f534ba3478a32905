"""A new user's folder: own clips, a tiny checkpoint, a recipe, and the real command."""

import json
import os
import pathlib
import subprocess
import sys

from forked_commands import CommandServer
from tiny_run import environment, make_data, make_model, sft_options, write_config

STEPS = 4
# Runs commands in turn; one line of output for each: (exit code, stdout, stderr).
_BATCH = """
import contextlib, io, json, os, sys
from videorft_jax import cli
exec(json.loads(sys.stdin.readline()))
for folder, words in map(json.loads, sys.stdin.read().splitlines()):
    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(out):
        try:
            code = cli.main(words)
        except SystemExit as error:
            code = error.code
        except BaseException as error:
            code = repr(error)
    print(json.dumps((code, out.getvalue(), err.getvalue())))
"""
_NO_TORCH = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "torch" else find(name, *more)
"""


class FirstHour:
    """Commands run in fresh folders beside `model`, `data/*.jsonl` and `tiny.py`, an SFT recipe of
    four steps; compiled programs are shared."""

    python = sys.executable

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.records = make_data(folder / "data")
        make_model(folder / "model", self.records["sft"])
        self.recipe("tiny", {})
        self._running, self._server, self.said = [], None, {}

    def recipe(self, name, changes, recipe="sft_7b"):
        """Writes NAME.py, the tiny form of a recipe with more changes; returns its path."""
        options = sft_options(
            self.folder / "model",
            self.records["sft"],
            data__rows=4,
            train__max_steps=STEPS,
            train__freeze=("vision", "merger"),  # half of the compile time
            model__remat="none",
            checkpoint__every=2,
            checkpoint__keep_last=5,
            optim__schedule="constant",
        )
        path = self.folder / f"{name}.py"
        write_config(path, recipe, options | changes)
        return path

    def environment(self, **more):
        """Makes the variables of a command with one CPU device and this folder as home."""
        return environment(self.folder / "compiled") | {"HOME": str(self.folder)} | more

    def batch(self, commands, before=""):
        """Runs (folder, words) of each command in one process, in turn, since starting Python takes
        longer than most commands; gives (exit code, stdout, stderr) of each. `before` is code that
        runs first."""
        lines = [json.dumps(before), *(json.dumps((str(cwd), words)) for cwd, words in commands)]
        words = [sys.executable, "-c", _BATCH]
        process = self._start(words, self.folder, {}, stdin=subprocess.PIPE)
        out = process.communicate("\n".join(lines), timeout=600)[0]
        assert process.returncode == 0, out
        return [tuple(json.loads(line)) for line in out.splitlines() if line.startswith("[")]

    def start(self, *arguments, cwd, **more):
        """Starts `videorft ARGUMENTS` in the folder `cwd`, by `python` where it has an environment
        of its own: `more` is added to that of the others."""
        if more:
            words = [self.python, "-P", "-m", "videorft_jax.cli", *map(str, arguments)]
            return self._start(words, cwd, more)
        return self._fork(arguments, cwd)

    def start_without_reader(self, *arguments, cwd, reads_errors):
        """Starts `videorft ARGUMENTS` whose output nobody reads: of stdout and stderr, or where
        `reads_errors` of stdout alone."""
        return self._fork(arguments, cwd, merged=not reads_errors, is_read=False)

    def _fork(self, arguments, cwd, **more):
        if self._server is None:
            self._server = CommandServer(self.environment())
        self._running.append(self._server.start(arguments, cwd, **more))
        return self._running[-1]

    def _start(self, words, cwd, more, **settings):
        process = subprocess.Popen(
            words,
            cwd=cwd,
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            **settings,
        )
        self._running.append(process)
        return process

    def run(self, *arguments, cwd, code=0, **more):
        """What the command says; it must end with `code`."""
        process = self.start(*arguments, cwd=cwd, **more)
        text = process.communicate(timeout=600)[0]
        assert process.returncode == code, text
        return text

    def apart(self, *arguments, cwd):
        """(exit code, stdout, stderr) of a command that Python is started for, in an environment
        without PyTorch, which we do not install."""
        words = [self.python, "-P", "-m", "videorft_jax.cli", *arguments]
        bare, env = self.folder / "bare", self.environment()
        bare.mkdir(exist_ok=True)
        (bare / "sitecustomize.py").write_text(_NO_TORCH)
        env["PYTHONPATH"] = f"{bare}{os.pathsep}{env['PYTHONPATH']}"
        done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    def sft(self):
        """The work directory of a finished run of the tiny recipe, started with relative paths."""
        if "sft" not in self.said:
            flags = ("--config.model.init_from=model", "--config.data.records=data/sft.jsonl")
            words = ("sft", "--config=tiny.py", "--workdir=runs/sft", *flags)
            self.said["sft"] = self.run(*words, cwd=self.folder)
        return self.folder / "runs" / "sft"

    def evaluated(self):
        """The work directory of an evaluation of it, which went through after two that were refused
        there: `said` has "none" (no such checkpoint), "bad" (records) and "evaluated"."""
        self.sft()
        flags = ["--config=../tiny.py", "--workdir=../runs/evaluated", "--config.model.init_from="]
        flags += ["--config.data.records=eval.jsonl", "--config.evaluate.max_new_tokens=4"]
        wanted = {
            "none": (2, "--config.evaluate.checkpoint=../runs/none"),
            "bad": (2, "--config.evaluate.checkpoint=../runs/sft/", "--config.data.row_tokens=64"),
            "evaluated": (0, "--config.evaluate.checkpoint=../runs/sft/"),
        }
        for name, (code, *more) in wanted.items():
            if name not in self.said:
                words = ("evaluate", *flags, *more)
                self.said[name] = self.run(*words, cwd=self.folder / "data", code=code)
        return self.folder / "runs" / "evaluated"

    def end_all(self):
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()
        if self._server:
            self._server.end()
