"""The supervisor of a worker: restarts, stops, and what it tells of a command that is gone."""

import os
import shutil
import signal
import subprocess
import time

import pytest
from launcher_stubs import LAUNCH

SUPERVISE = LAUNCH / "supervise.sh"


def living(group):
    """Processes of a group; those that nobody has waited for yet are none."""
    found = subprocess.run(["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True)
    return [line for line in found.stdout.splitlines() if not line.startswith("Z")]


@pytest.mark.parametrize(
    ("codes", "ended", "attempts"),
    [
        ("0", 0, 1),
        ("2", 2, 1),  # wrong usage is not tried again
        ("3 1 0", 0, 3),
        ("3 1 4 0", 4, 3),  # two restarts
        ("75 3 75 75 1 75 0", 0, 7),  # stopped with a checkpoint is no failure
        ("kill 2", 2, 2),
    ],
)
def test_supervisor_restarts_what_failed(tmp_path, codes, ended, attempts):
    (tmp_path / "codes").write_text("\n".join([*codes.split(), ""]))
    program = """code=$(head -n 1 codes); sed -i 1d codes
[ "$code" != kill ] || kill -KILL $$; exit $code"""
    words = [SUPERVISE, "run", "run", "--restarts=2", "--delay=0", "--", "bash", "-c", program]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == ended
    assert done.stdout.count("supervise:") == 2 * attempts
    state = "done 0" if ended == 0 else f"failed {ended}"
    assert (tmp_path / "run" / "state").read_text().strip() == state


def test_an_attempt_that_lasted_begins_a_new_row(tmp_path):
    program = "n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) >n; sleep 1; [ $n = 3 ] || exit 1"
    words = [SUPERVISE, "run", "run", "--restarts=1", "--delay=0", "--", "bash", "-c", program]
    more = {"VIDEORFT_HEALTHY_S": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=os.environ | more, timeout=600)
    assert done.returncode == 0


@pytest.mark.parametrize("flag", ["--restarts=08", "--restarts=", "--delay=", "--delay=1.5"])
def test_what_is_no_number_starts_nothing(tmp_path, flag):
    """08 are no octal digits: the comparison failed, and the command was restarted for ever."""
    words = [SUPERVISE, "run", "run", "--restarts=0", "--delay=0", flag, "--", "false"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"'{flag.partition('=')[2]}': --restarts, --delay" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_missing_tool_is_named(tmp_path):
    """Without flock every folder looked as if something ran in it."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "env", "mkdir", "setsid"):
        (tools / name).symlink_to(shutil.which(name))
    words = [SUPERVISE, "run", "run", "--", "true"]
    done = subprocess.run(
        words, cwd=tmp_path, env={"PATH": str(tools)}, capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stderr) == (
        2, "supervise: no flock here; install util-linux\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("program", "state"),
    [
        ("trap 'sleep 0.3; exit 75' TERM; sleep 60 & wait", "stopped 75"),
        ("trap '' TERM; sleep 60 & wait; sleep 60", "stopped 137"),  # killed in the end
    ],
)
def test_stop_waits_for_the_command_and_leaves_nothing(tmp_path, program, state):
    run = tmp_path / "run"
    more = {"env": os.environ | {"VIDEORFT_GRACE_S": "1"}, "timeout": 60, "check": True}
    begin = [SUPERVISE, "start", run, "--delay=0", "--", "bash", "-c", program]
    subprocess.run(begin, **more)
    assert subprocess.run(begin, timeout=600, capture_output=True).returncode == 2  # one at a time
    group = int((run / "child").read_text())
    time.sleep(0.3)
    subprocess.run([SUPERVISE, "stop", run], **more)
    assert (run / "state").read_text().strip() == state
    assert not living(group)
    assert subprocess.run([SUPERVISE, "wait", run], timeout=600).returncode == 175


def test_a_supervisor_that_was_killed_is_told(tmp_path):
    words = [SUPERVISE, "start", tmp_path / "run", "--", "sleep", "60"]
    subprocess.run(words, check=True, timeout=600)
    child = int((tmp_path / "run" / "child").read_text())
    os.kill(int((tmp_path / "run" / "pid").read_text()), signal.SIGKILL)
    again = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert again.returncode == 2  # its command still runs
    subprocess.run([SUPERVISE, "stop", tmp_path / "run"], check=True, timeout=600)
    assert not living(child)
    status = subprocess.run(
        [SUPERVISE, "status", tmp_path / "run"], capture_output=True, text=True, timeout=60
    )
    assert status.stdout.startswith("dead (was running attempt 1)")
    assert subprocess.run([SUPERVISE, "wait", tmp_path / "run"], timeout=600).returncode == 101
