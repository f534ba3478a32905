"""Drills 15 and 17, and those of launchers: an evaluation, a supervisor, two runs in a folder."""

import os
import signal
import subprocess
import sys
import time

import psutil
from drill_kills import workers_of
from drill_place import LIMIT_S, Run
from tiny_run import ROOT


def kill_it(run: Run) -> str:
    run.start()
    step = run.wait_moment()
    run.kill()
    return f"killed after {step} of {run.job.total}"


def kill_under_the_supervisor(run: Run) -> str:
    """The real launch/supervise.sh runs it with workers; the trainer is killed, no process of it
    is left, and the supervisor starts it again to the end."""
    path = run.place.folder / f"{run.recipe}.py"
    words = ["bash", str(ROOT / "launch/supervise.sh"), "run", str(run.folder / "sup")]
    words += ["--delay=0", "--", sys.executable, "-m", "videorft_jax.cli", run.job.name]
    workers = 1 + run.moment % 2
    words += [f"--config={path}", f"--workdir={run.workdir}", f"--config.data.workers={workers}"]
    supervisor = subprocess.Popen(
        words,
        env=run.place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run.adopt(supervisor)
    run.wait_moment()
    pid = int((run.folder / "sup/child").read_text())
    group = [p for p in psutil.process_iter() if _session_of(p.pid) == pid]
    os.kill(pid, signal.SIGKILL)
    _, alive = psutil.wait_procs([p for p in group if p.pid != pid], timeout=LIMIT_S)
    assert not alive, f"{len(alive)} processes outlived their trainer"
    assert run.end() == 0, run.last.said
    assert "exit code 137; restart 1 of 10" in run.last.said, run.last.said
    return f"killed with {len(group) - 1} processes of its own, which ended; started again"


def _session_of(pid):
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def start_a_second_run(run: Run) -> str:
    """A second run in the work directory is refused by a line; the first ends as if alone, after it
    has been stopped so long that the second surely meets it."""
    run.start()
    run.wait_moment(is_early=True)
    run.signal(signal.SIGSTOP)
    assert run.last.process.poll() is None, "it had ended before it was stopped"
    first = run.attempts.pop()
    run.start()
    code = run.end()
    line = run.last.said.strip().splitlines()[-1]
    run.attempts.append(first)
    run.signal(signal.SIGCONT)
    assert run.end() == 0, first.said
    assert code == 2, (code, line)
    assert "is running there; stop it" in line, line
    return f"the second: {line[-100:]}"


def stop_a_worker(run: Run) -> str:
    """A worker of the loader stands still for `pause_s` seconds, less than data.timeout_s, and then
    goes on: so does the run."""
    pause_s = float(os.environ.get("DRILL_PAUSE_S", "3"))
    run.start("--config.data.workers=1", "--config.data.timeout_s=600")
    run.wait(lambda: run.count() >= 1)
    (worker, *_) = workers_of(run)
    worker.send_signal(signal.SIGSTOP)
    time.sleep(pause_s)
    if worker.is_running():
        worker.send_signal(signal.SIGCONT)
    assert run.end() == 0, run.last.said
    return f"a worker stood still for {pause_s:.0f} s"
