"""Drills 1 to 5, 7, 10 and 17: killed, stopped and damaged runs of training.

Each takes a run that has not begun, breaks it, and returns what happened in a few words; the
harness then goes on with it.
"""

import signal
import time

import psutil
from drill_place import Run

from videorft_jax.checkpoints.manifest import MANIFEST


def steps_of(run: Run, sealed: bool = True):
    """Folders of checkpoints that have a manifest, or have none; the newest is the last."""
    folder = run.workdir / "checkpoints"
    names = sorted(folder.iterdir()) if folder.exists() else []
    return [path for path in names if path.name != "probe" and sealed == (path / MANIFEST).exists()]


def wait_for_save(run: Run, is_early: bool = False) -> int:
    """Waits for a random step, of the first half if `is_early`, and then for a save that is under
    way."""
    step = run.rng.randint(1, run.job.total // 2 - 1 if is_early else run.job.total - 2)
    run.wait(lambda: run.count() >= step)
    run.wait(lambda: steps_of(run, sealed=False))
    return run.count()


def kill_in_a_save(run: Run) -> str:
    run.start()
    step = wait_for_save(run)
    time.sleep(run.rng.uniform(0.0, 0.03))
    run.kill()
    left = [path.name[:9] for path in steps_of(run, sealed=False)]
    return f"killed after step {step} in a save, {len(left)} unsealed"


def kill_before_the_seal(run: Run) -> str:
    """The step is renamed and has no manifest; a manifest that comes in the instant before SIGKILL
    is taken away, which leaves the files of a kill there."""
    run.start()
    step = run.rng.randint(1, run.job.total - 2)
    run.wait(lambda: run.count() >= step)
    run.wait(lambda: any(path.name.isdigit() for path in steps_of(run, sealed=False)))
    run.kill()
    if not any(path.name.isdigit() for path in steps_of(run, sealed=False)):
        (steps_of(run)[-1] / MANIFEST).unlink()
    return f"killed after step {step} between rename and manifest"


def _kill_with_checkpoint(run: Run):
    """Kills at a random moment once two checkpoints are sealed; returns the newest of them."""
    run.start()
    step = run.rng.randint(3, run.job.total - 1)
    run.wait(lambda: run.count() >= step and len(steps_of(run)) > 1)
    time.sleep(run.rng.uniform(0.0, 0.2))
    run.kill()
    return steps_of(run)[-1]


def flip_a_byte(run: Run) -> str:
    newest = _kill_with_checkpoint(run)
    files = sorted(path for path in newest.rglob("*") if path.is_file() and path.stat().st_size)
    chosen = run.rng.choice(files)
    data = bytearray(chosen.read_bytes())
    place = run.rng.randrange(len(data))
    data[place] ^= 1 << run.rng.randrange(8)
    chosen.write_bytes(data)
    run.expected = ("checkpoint: ", f"step {int(newest.name)} is ")
    return f"flipped byte {place} of {chosen.name[:20]} of step {int(newest.name)}"


def damage_the_folder(run: Run) -> str:
    newest = _kill_with_checkpoint(run)
    files = sorted(
        path for path in newest.rglob("*") if path.stat().st_size > 1 and path.name != MANIFEST
    )
    chosen = run.rng.choice([path for path in files if path.is_file()])
    kinds = ("truncated", "deleted", "no manifest", "empty folder", "stray")
    kind = kinds[run.moment % len(kinds)]
    if kind == "truncated":
        chosen.write_bytes(chosen.read_bytes()[: run.rng.randrange(chosen.stat().st_size)])
    elif kind == "deleted":
        chosen.unlink()
    elif kind == "no manifest":
        (newest / MANIFEST).unlink()
    elif kind == "empty folder":
        (newest.parent / "00000099").mkdir()
    else:
        (newest.parent / "3.orbax-checkpoint-tmp-7").mkdir()
    return f"step {int(newest.name)}: {kind}"


def stop_by_sigterm(run: Run) -> str:
    """SIGTERM during a step, during a save, and twice."""
    kind = ("step", "save", "twice", "start")[run.moment % 4]
    run.start()
    if kind == "save":
        wait_for_save(run)
    elif kind == "start":
        run.wait(lambda: run.count() >= 1)
    else:
        run.wait_moment()
    run.signal(signal.SIGTERM)
    if kind == "twice":
        time.sleep(run.rng.uniform(0.0, 0.05))
        run.signal(signal.SIGTERM)
    code = run.end()
    allowed = (75, 143) if kind == "twice" else (75,)
    assert code in allowed or run.count() == run.job.total, run.last.said
    if code == 75:
        assert int(steps_of(run)[-1].name) == run.count(), "the checkpoint is not of the last step"
    return f"SIGTERM, {kind}, after step {run.count()}: exit code {code}"


def resume_with_other_workers(run: Run) -> str:
    run.start()
    step = run.wait_moment()
    run.kill()
    workers, threads = ((1, 1), (0, 1), (2, 2), (1, 3))[run.moment % 4]
    run.flags = (f"--config.data.workers={workers}", f"--config.data.threads={threads}")
    return f"killed after step {step}, goes on with {workers} workers of {threads} threads"


def workers_of(run: Run) -> list[psutil.Process]:
    """The loader's processes of the attempt, once there are any."""
    parent, found = psutil.Process(run.last.process.pid), []

    def look():
        found[:] = [
            child
            for child in parent.children(recursive=True)
            if any("multiprocessing" in word and "spawn" in word for word in child.cmdline())
        ]
        return bool(found)

    assert run.wait(look), run.last.process.communicate()[0]
    return found


def kill_a_worker(run: Run) -> str:
    """The loader's worker is killed, or hangs: the run ends within its limit and says so."""
    kind = ("killed", "hung")[run.moment % 2]
    flags = ("--config.data.workers=1", "--config.data.epochs=200", "--config.train.max_steps=300")
    limit = "--config.data.timeout_s=5" if kind == "hung" else "--config.data.timeout_s=120"
    run.start(*flags, limit)
    step = run.wait_moment()
    (worker, *_) = workers_of(run)
    worker.send_signal(signal.SIGKILL if kind == "killed" else signal.SIGSTOP)
    code = run.end()
    assert code == 1, run.last.said
    line = run.last.said.strip().splitlines()[-1]
    assert "no batch within 5 s" in line or "Worker process was terminated" in line, line
    assert not worker.is_running(), "the worker outlived its run"
    ends = f"--config.train.max_steps={run.reached + 2}"
    run.flags, run.is_compared = (*flags, ends, "--allow_changes"), False
    return f"worker {kind} after step {step}: {line[:60]}"
