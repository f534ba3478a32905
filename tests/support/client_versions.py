"""Other versions of transformers, each in an environment of its own that a test makes with pip."""

import json
import os
import pathlib
import subprocess
import sys
import sysconfig

# The folder in which environments are kept from one run of the tests to the next.
KEPT_IN = "VIDEORFT_CLIENTS"
SCRIPT = pathlib.Path(__file__).with_name("client_script.py")


def make_environment(folder: pathlib.Path, *packages: str) -> str:
    """The interpreter of an environment that holds `packages`, such as "transformers==4.49.0".

    What they need and this interpreter has, torch above all, is taken from here, so that a new
    environment costs tens of megabytes and half a minute. Nothing is installed twice.
    """
    place = folder / "-".join(sorted(packages)).replace("==", "_")
    python, done = place / "bin" / "python", place / "installed"
    if not done.is_file():
        subprocess.run(
            [sys.executable, "-m", "venv", "--clear", "--without-pip", place], check=True
        )
        version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        own = place / "lib" / version / "site-packages"
        here = sysconfig.get_path("purelib")
        (own / "zz_base.pth").write_text(f"{here}\n")  # Its own packages come before ours.
        pip = [python, "-m", "pip", "install", "--quiet", *packages]
        subprocess.run(pip, check=True, stdout=subprocess.DEVNULL)
        done.touch()
    return str(python)


def run_client(python: str, **job) -> dict:
    """Runs `client_script.py` in an environment and gives what it printed last."""
    hidden = ("PYTHONPATH", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [python, str(SCRIPT), json.dumps(job)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.splitlines()[-1])
