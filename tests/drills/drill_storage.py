"""Drills 6, 21 and 22: a disk that is full or read-only, a clock that jumps, a slow storage."""

import contextlib
import os
import pathlib
import signal
import subprocess
import time

from drill_kills import wait_for_save
from drill_place import Run

HERE = pathlib.Path(__file__).parent
_DISK = "size=48m"


def mount(run: Run, folder: pathlib.Path, options: str) -> None:
    """Mounts a file system in memory, which only root may."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)
    run.cleanup.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)


def _forbid_writing(run: Run, folder: pathlib.Path) -> None:
    """Makes the folder read-only for everybody, also for root; what is in it stays there."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    run.cleanup.callback(
        subprocess.run, ["umount", "-l", str(folder)], check=False, stderr=subprocess.DEVNULL
    )
    words = ["mount", "-o", "remount,bind,ro", str(folder)]
    for _ in range(1000):  # It is busy while a file is being written through it.
        if subprocess.run(words, check=False, capture_output=True).returncode == 0:
            return
        run.signal(signal.SIGCONT)
        time.sleep(0.005)
        run.signal(signal.SIGSTOP)
    raise AssertionError(f"{folder} stayed writable")


def fill_the_disk(run: Run) -> str:
    """The disk is full, or its folder of checkpoints read-only, from a random moment on or from one
    in a save that is under way."""
    kind = ("full", "read-only")[run.moment % 2]
    is_in_save = run.moment % 4 > 1
    mount(run, run.folder / "disk", _DISK)
    run.workdir = run.folder / "disk" / "run"
    run.start()
    step = wait_for_save(run, is_early=True) if is_in_save else run.wait_moment(is_early=True)
    run.signal(signal.SIGSTOP)  # Steps of the tiny model are shorter than the strike.
    ballast, covered = run.folder / "disk" / "ballast", run.workdir / "checkpoints"
    if kind == "full":
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
    else:
        _forbid_writing(run, covered)
    run.signal(signal.SIGCONT)
    code = run.end()
    line = run.last.said.strip().splitlines()[-1]
    if kind == "full":
        ballast.unlink()
    else:
        subprocess.run(["umount", "-l", str(covered)], check=True)
    assert code == 1, run.last.said
    reason = "No space left" if kind == "full" else "Read-only file system"
    assert reason in line, run.last.said
    return f"{kind} {'in a save ' * is_in_save}after step {step}: {line[-150:]}"


def _hooked(run: Run, name: str, call: str, **changes) -> pathlib.Path:
    """Writes the recipe of the job with a hook; returns the file that sets it off."""
    mark = run.folder / "mark"
    before = f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport drill_hooks\n"
    before += f"drill_hooks.{call.format(mark=repr(str(mark)))}"
    run.recipe = f"{run.job.name}_{name}_{run.moment}"
    run.place.recipe(run.job.name, run.recipe, before, **changes)
    return mark


def jump_the_clock(run: Run) -> str:
    """The clock of the wall jumps a day ahead or an hour back; nothing is waited for by it."""
    seconds = (86400, -3600)[run.moment % 2]
    mark = _hooked(run, "clock", f"jump({{mark}}, {seconds})")
    run.start()
    step = run.wait_moment()
    mark.touch()
    assert run.end() == 0, run.last.said
    return f"the clock jumped by {seconds} s after step {step}"


def answer_late(run: Run) -> str:
    """A clip is opened late, while the run trains or while it measures its records."""
    seconds = float(os.environ.get("DRILL_PAUSE_S", "3"))
    data = str(run.place.folder / "data")
    mark = _hooked(run, "late", f"answer_late({data!r}, {{mark}}, {seconds})")
    mark.touch()
    run.start()
    assert run.end() == 0, run.last.said
    assert (run.folder / "mark.answered").exists(), "no clip was opened late"
    return f"a clip came {seconds:.0f} s late"
