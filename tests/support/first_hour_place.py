"""A new user's folder: own clips, a tiny checkpoint, a recipe, and the real command."""

import pathlib
import subprocess
import sys

from forked_commands import CommandServer
from tiny_run import environment, make_data, make_model, sft_options, write_config

STEPS = 4


class FirstHour:
    """Commands run in fresh folders beside `model`, `data/*.jsonl` and `tiny.py`, an SFT recipe of
    four steps; compiled programs are shared."""

    python = sys.executable

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.records = make_data(folder / "data")
        make_model(folder / "model", self.records["sft"])
        self.recipe("tiny", {})
        self._running, self._sft, self._server = [], None, None

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
        """Of a command: one CPU device, and this folder as home."""
        return environment(self.folder / "compiled") | {"HOME": str(self.folder)} | more

    def program(self, code, *, cwd):
        """Starts a Python program that reads standard input."""
        return self._start([sys.executable, "-c", code], cwd, {}, stdin=subprocess.PIPE)

    def start(self, *arguments, cwd, **more):
        """Starts `videorft ARGUMENTS` in the folder `cwd`, by `python` where it has an environment
        of its own: `more` is added to that of the others."""
        if more:
            words = [self.python, "-P", "-m", "videorft_jax.cli", *map(str, arguments)]
            return self._start(words, cwd, more)
        if self._server is None:
            self._server = CommandServer(self.environment())
        self._running.append(self._server.start(arguments, cwd))
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

    def sft(self):
        """The work directory of a finished run of the tiny recipe, started with relative paths."""
        if self._sft is None:
            self._sft = self.folder / "runs" / "sft"
            flags = ("--config.model.init_from=model", "--config.data.records=data/sft.jsonl")
            self.run("sft", "--config=tiny.py", "--workdir=runs/sft", *flags, cwd=self.folder)
        return self._sft

    def end_all(self):
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdout.close()
        if self._server:
            self._server.end()
