"""A stage for launchers: stubs of gcloud, ssh and srun that record calls, run workers as local
processes and fail on purpose."""

import contextlib
import functools
import os
import signal
import subprocess
import time

from tiny_run import ROOT

LAUNCH = ROOT / "launch"

# A worker is a home folder. What it does instead of answering is in HOST.fails.
REACH = """
reach() { # HOST COMMAND
  mkdir -p "$STUB/$1"
  [ ! -e "$STUB/$1.fails" ] || . "$STUB/$1.fails"
  HOME=$STUB/$1
  cd && exec bash -c "$2"
}
"""
STUBS = {
    "ssh": 'while [[ $1 == -* ]]; do shift; done; reach "$1" "$2"',
    "scp": """while [[ $1 == -* ]]; do shift; done
mkdir -p "$STUB/${2%%:*}"; cp "$1" "$STUB/${2%%:*}/${2#*:}" """,
    "gcloud": """
for word in "$@"; do
  case $word in --worker=*) worker=${word#*=} ;; --command=*) command=${word#*=} ;; esac
done
next() { head -n 1 "$STUB/$1"; [ "$(wc -l <"$STUB/$1")" -lt 2 ] || sed -i 1d "$STUB/$1"; }
case "$*" in
  *"queued-resources describe"*) next queue ;;
  *"queued-resources create"*) printf 'WAITING_FOR_RESOURCES\\nACTIVE\\n' >"$STUB/queue"
    echo READY >"$STUB/state"; rm -f "$STUB"/*.fails ;;
  *"queued-resources delete"*) echo >"$STUB/queue"; echo >"$STUB/state" ;;
  *"describe"*"value(state)"*) next state ;;
  *"describe"*) cat "$STUB/workers" ;;
  *" scp "*) mkdir -p "$STUB/${6%%:*}-$worker"; cp "$5" "$STUB/${6%%:*}-$worker/${6#*:}" ;;
  *" ssh "*) reach "$5-$worker" "$command" ;;
esac
""",
    "scontrol": "echo node0; echo node1",
    "srun": """
while [[ $1 == -* ]]; do
  case $1 in --ntasks=*) tasks=${1#*=} ;; esac; shift
done
for ((i = 0; i < tasks; i++)); do SLURM_PROCID=$i "$@" & jobs[i]=$!; done
worst=0
for job in "${jobs[@]}"; do
  code=0; wait "$job" || code=$?; ((code <= worst)) || worst=$code
done
exit $worst
""",
    "uv": """if [ "$1" = venv ]; then
mkdir -p "${@: -1}/bin"; ln -s "$(command -v python)" "${@: -1}/bin/python"; fi""",
    # The command of a worker, for tests of the launcher alone; $me is its number.
    "python": """
me=${HOME##*-} attempt=$(($(cat "$HOME/attempts" 2>/dev/null || echo 0) + 1))
echo $attempt >"$HOME/attempts"
echo "$*" >"$HOME/arguments"
[ -e "$STUB/late" ] || touch "$VIDEORFT_UP"
echo "worker $me, attempt $attempt"
. "$STUB/program"
""",
}


class Stage:
    """A folder of stubs, what they recorded, and the launchers run on it."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "bin").mkdir()
        for name, text in STUBS.items():
            path = folder / "bin" / name
            record = f'printf "%q " {name} "$@" >>"$STUB/calls"; echo >>"$STUB/calls"\n'
            record = "" if name in ("uv", "python") else record
            path.write_text(f"#!/usr/bin/env bash\n{REACH}{record}{text}\n")
            path.chmod(0o755)
        self.write(workers="2\n", state="READY\n", queue="ACTIVE\n", program="exit 0\n")
        self.environment = os.environ | {
            "STUB": str(folder),
            "HOME": str(folder / "laptop"),
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "VIDEORFT_PYTHON": str(folder / "bin" / "python"),
            "VIDEORFT_POLL_S": "0",
            "VIDEORFT_GRACE_S": "5",
        }
        (folder / "laptop").mkdir()

    def write(self, **files):
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def read(self, name):
        return (self.folder / name).read_text()

    def calls(self, part=""):
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if part in line]

    def trees(self, *hosts):
        """Workers as `setup` leaves them."""
        for host in hosts:
            tree = self.folder / host / ".videorft" / "tree"
            tree.mkdir(parents=True)
            (tree / "launch").symlink_to(LAUNCH)

    def start(self, script, *words, **more):
        return subprocess.Popen(
            [LAUNCH / script, *map(str, words)],
            env=self.environment | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A shell cannot trap what it was started to ignore, as tests in the background are.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, script, *words, code=0, **more):
        process = self.start(script, *words, **more)
        text = process.communicate(timeout=600)[0]
        assert process.returncode == code, text
        return text

    def tpu(self, verb, *words, code=0):
        return self.run("tpu_pod.sh", verb, "--name=pod", "--zone=z", *words, code=code)


def end_all(folder):
    """Ends what a failed test left: supervisors, then their commands."""
    for name in ("pid", "child"):
        for path in folder.glob(f"*/.videorft/runs/*/{name}"):
            if not is_alive(path.parent):
                continue
            with contextlib.suppress(ProcessLookupError, ValueError):
                os.killpg(int(path.read_text()), signal.SIGKILL)


def is_alive(run):
    """Whether the lock of a supervisor is held."""
    return subprocess.run(["flock", "-n", run / "lock", "true"]).returncode != 0


def wait_for(condition, seconds=600.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
