"""A tiny model, its data and recipes, and commands that drills start, break and start again."""

import contextlib
import dataclasses
import hashlib
import pathlib
import random
import signal
import subprocess
import time

import psutil
from forked_commands import CommandServer
from tiny_run import ROOT, environment, make_data, make_model, sft_options, write_config

STEPS = {"sft": 8, "grpo": 6}
LIMIT_S = 600.0  # A wait that takes longer is a stall, which no drill may end in.
_RESTARTS = 10  # launch/supervise.sh has the same number.
# A run measures a chip that is in no table, for up to two seconds on a busy machine.
_CHIP = """from videorft_jax.metrics import chips
chips.find_chip = lambda device=None: chips.Chip(1e11, 1e9)
"""
_REWARDS = (("tests.support.user_rewards:count_letters", 1.0), ("format", 1.0))


class Stalled(AssertionError):
    """A run that neither went on nor ended within LIMIT_S."""


def digest_code() -> str:
    """Names the code of the package: other code may compute other last bits."""
    files = sorted((ROOT / "videorft_jax").rglob("*.py"))
    return hashlib.sha256(b"".join(map(pathlib.Path.read_bytes, files))).hexdigest()[:12]


class Place:
    """Everything that the runs of all drills share; `folder` holds it."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.resources = folder, contextlib.ExitStack()
        self.code = digest_code()
        self.records = make_data(folder / "data", num_sft=24, num_rl=16, num_eval=10)
        if not (folder / "model").exists():
            make_model(folder / "model", self.records["sft"])
        variables = environment(folder / "compiled")
        # Under a supervisor a run that was stopped ends with exit code 75.
        self.environment = variables | {"VIDEORFT_UP": str(folder / "up"), "HOME": str(folder)}
        self._server = CommandServer(self.environment)
        for job in ("sft", "grpo", "evaluate"):
            self.recipe(job, job)

    def recipe(self, job: str, name: str, before: str = "", **changes) -> pathlib.Path:
        """Writes NAME.py, the tiny recipe of a job; `before` is code that runs as it is read, which
        is how a drill reaches into the process of a command."""
        base = {"sft": "sft_7b", "grpo": "grpo_7b", "evaluate": "evaluate_7b"}[job]
        split = {"sft": "sft", "grpo": "rl", "evaluate": "eval"}[job]
        common = {
            "data__rows": 4,
            "data__epochs": 2,
            "train__freeze": ("vision", "merger"),  # This halves the time of compiling.
            "model__remat": "none",
            "checkpoint__every": 2,
            "checkpoint__keep_last": 3,
            "log__interval_s": 0.0,
            "train__max_steps": STEPS.get(job, 0),
        }
        own = {
            "sft": {},
            "grpo": {
                "optim__schedule": "constant",
                "rollout__num_rollouts": 4,
                "rollout__max_new_tokens": 8,
                "grpo__length_buckets": 1,
                "rewards": _REWARDS,
                "reward__gated": (),
            },
            "evaluate": {
                "data__epochs": 1,
                "rollout__num_buckets": 1,
                "evaluate__num_rollouts": 2,
                "evaluate__max_new_tokens": 6,
                "evaluate__temperature": 1.0,
            },
        }[job]
        options = sft_options(self.folder / "model", self.records[split])
        changed = common | own | changes
        options |= {path.replace("__", "."): value for path, value in changed.items()}
        path = self.folder / f"{name}.py"
        write_config(path, base, options)
        path.write_text(f"{_CHIP}{before}\n{path.read_text()}")
        return path

    def start(self, words, cwd):
        return self._server.start(words, cwd)

    def end(self):
        self.resources.close()
        self._server.end()


@dataclasses.dataclass
class Attempt:
    """A command that runs or has ended; `said` and `code` are there once it has."""

    process: object
    began: float
    said: str = ""
    code: int | None = None


class Run:
    """One command in one work directory, which a drill breaks and starts again by the rules of
    launch/supervise.sh: 0 and 2 are the end, after anything else it is started again.

    count: folder -> how far the run is, in steps or records.
    """

    def __init__(self, place, folder, job, rng: random.Random, recipe: str = ""):
        self.place, self.folder, self.job, self.rng = place, folder, job, rng
        self.recipe = recipe or job.name
        self.attempts: list[Attempt] = []
        self.moment = 0  # This is the number of the moment within its drill.
        self.flags: tuple[str, ...] = ()  # Attempts that go on get them.
        self.expected: tuple[str, ...] = ()  # One line of those attempts must hold these words.
        self.is_over = False  # It ended as it should, and there is nothing to go on with.
        self.cleanup = contextlib.ExitStack()
        self.workdir = folder / "run"
        self.is_compared = True  # Its end must be that of the undisturbed run.
        self.reached, self.broken_at = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def last(self) -> Attempt:
        return self.attempts[-1]

    def start(self, *flags, recipe: str = "") -> Attempt:
        path = self.place.folder / f"{recipe or self.recipe}.{self.job.form}"
        words = [self.job.name, f"--config={path}", f"--workdir={self.workdir}", *flags]
        process = self.place.start(words, self.folder)
        self.attempts.append(Attempt(process, time.monotonic()))
        return self.last

    def adopt(self, process) -> None:
        """Takes a process that a drill has started itself as the next attempt."""
        self.attempts.append(Attempt(process, time.monotonic()))

    def wait(self, holds) -> bool:
        """Waits until `holds()`; False where the run has ended before."""
        end = time.monotonic() + LIMIT_S
        while not holds():
            if self.last.process.poll() is not None:
                return holds()
            if time.monotonic() > end:
                self.kill()
                raise Stalled(f"{self.job.name} did not move for {LIMIT_S:.0f} s: {self.last.said}")
            time.sleep(0.001)
        return True

    def wait_moment(self, is_early: bool = False) -> int:
        """Waits for a random step, or record, and a random part of the next; `is_early`: for one of
        the first half, so that the run is still going when it is struck."""
        last = self.job.total // 2 if is_early else self.job.total - 1
        step = self.rng.randint(1, last)
        self.wait(lambda: self.count() >= step)
        time.sleep(self.rng.uniform(0.0, 0.01 if is_early else 0.1))
        return step

    def count(self) -> int:
        return self.job.count(self.workdir)

    def signal(self, number) -> None:
        self.last.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and the end of what it leaves behind is waited for."""
        children = []
        with contextlib.suppress(psutil.NoSuchProcess):  # It may have ended by itself.
            children = psutil.Process(self.last.process.pid).children(recursive=True)
        self.signal(signal.SIGKILL)
        self.end()
        psutil.wait_procs(children, timeout=LIMIT_S)

    def end(self) -> int:
        """The exit code of the attempt, which ends by itself."""
        attempt = self.last
        try:
            attempt.said = attempt.process.communicate(timeout=LIMIT_S)[0]
        except subprocess.TimeoutExpired:
            raise Stalled(f"{self.job.name} did not end within {LIMIT_S:.0f} s") from None
        attempt.code = attempt.process.returncode
        self.broken_at, self.reached = time.monotonic(), self.count()
        return attempt.code

    def go_on(self) -> dict:
        """Starts it again until it is done; returns what that cost."""
        if self.is_over or self.last.code == 0:
            return {}
        lost, recovered = 0, 0.0
        for number in range(_RESTARTS):
            reached, broken_at = self.reached, self.broken_at
            self.start(*self.flags)
            self.wait(lambda reached=reached: self.count() > reached)
            if not number:
                recovered = time.monotonic() - broken_at
            code = self.end()
            if not number:
                lost = max(0, reached - self.job.resumed_at(self.last.said, self.workdir))
            if code in (0, 2):
                break
        assert code == 0, self.last.said
        return {"steps_lost": lost, "recover_s": round(recovered, 2)}

    @property
    def said(self) -> str:
        return "\n".join(attempt.said for attempt in self.attempts)
