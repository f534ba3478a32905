"""Drills 8 and 23: one of two processes is killed, or hangs without dying."""

import signal
import socket
import subprocess
import time

import psutil
from drill_jobs import compare, count_wrong
from drill_place import LIMIT_S, Run
from drill_storage import HERE

_HEARTBEAT_S = 10  # JAX waits 100 s for a sign of life, a drill does not.


def _start_pair(run: Run) -> list:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = [f"--coordinator={address}", "--num_processes=2", "--config.mesh.data=2"]
    processes = []
    for number in range(2):
        run.start(*flags, f"--process_id={number}", "--config.checkpoint.every=1")
        processes.append(run.last.process)
    return processes


def _ends(processes) -> list[int]:
    """The exit codes of both; neither may take longer than the limit."""
    codes = []
    for process in processes:
        try:
            process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"a process went on for {LIMIT_S:.0f} s without its peer"
            ) from None
        codes.append(process.returncode)
    return codes


def _undisturbed(run: Run):
    """What the two processes give where nobody disturbs them, computed once for each job."""
    kept = run.place.__dict__.setdefault("pairs", {})
    if run.job.name not in kept:
        folder = run.folder.parent / f"pair_{run.job.name}_{run.place.code}"
        other = Run(run.place, folder, run.job, run.rng)
        other.recipe = run.recipe
        if not other.workdir.exists() or other.count() < run.job.total:
            assert _ends(_start_pair(other)) == [0, 0]
        kept[run.job.name] = run.job.result(other.workdir), run.job.samples(other.workdir)
    return kept[run.job.name]


def _lose_a_peer(run: Run, number: int) -> str:
    run.recipe = f"{run.job.name}_pair"
    before = f"import sys\nsys.path.insert(0, {str(HERE)!r})\nimport drill_hooks\n"
    before += f"drill_hooks.hear_peers({_HEARTBEAT_S})"
    run.place.recipe(run.job.name, run.recipe, before)
    expected, samples = _undisturbed(run)
    pair = _start_pair(run)
    run.wait_moment(is_early=True)
    lost = run.moment % 2
    pair[lost].send_signal(number)
    struck = time.monotonic()
    (code,) = _ends([pair[1 - lost]])
    seconds = time.monotonic() - struck
    assert code != 0, "the survivor says that it is done"
    for child in psutil.Process(pair[lost].pid).children() if pair[lost].poll() is None else ():
        child.kill()
    pair[lost].send_signal(signal.SIGKILL)
    _ends([pair[lost]])
    assert _ends(_start_pair(run)) == [0, 0]  # The launcher starts both again too.
    assert not count_wrong(run.job.samples(run.workdir), samples)
    difference = compare(run.job.result(run.workdir), expected)
    assert not difference, f"differs from the undisturbed pair in {difference}"
    run.is_over = True
    return f"process {lost} of 2; the other ended with {code} after {seconds:.0f} s"


def kill_a_peer(run: Run) -> str:
    return _lose_a_peer(run, signal.SIGKILL)


def hang_a_peer(run: Run) -> str:
    """SIGSTOP: the process keeps its connections and says nothing more."""
    return _lose_a_peer(run, signal.SIGSTOP)
