"""Checks of what is installed: Python, the versions of packages, decoders, and JAX's devices."""

from __future__ import annotations  # Pythons that are too old read this far.

import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping

from videorft_jax.doctor.findings import FAILURE, WARNING, Finding, ok

LOCK = pathlib.Path(__file__).parents[2] / "requirements.lock"
PYTHONS = ((3, 11), (3, 12))
CODECS = ("h264", "hevc", "vp9", "av1", "mpeg4")
# Where a broken package is there already, pip would do nothing without the first flag.
_NEW_AV = "pip install --force-reinstall --only-binary=av 'av>=18,<19'"
_DEVICES_S = 120.0  # a device that is held by another process may never answer
_ASK = (
    "import jax, json; print(json.dumps([[d.platform, d.device_kind, "
    "(d.memory_stats() or {}).get('bytes_limit', 0)] for d in jax.local_devices()]))"
)


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Finding:
    """Whether this Python is one that the project is tested with."""
    text = f"Python {version[0]}.{version[1]}"
    if version in PYTHONS:
        return ok(text)
    remedy = "make an environment with Python 3.11 or 3.12: python3.12 -m venv .venv"
    return Finding(FAILURE, f"{text}: the project runs on 3.11 and 3.12", remedy)


def check_versions(
    lock: pathlib.Path = LOCK, installed: Mapping[str, str] | None = None
) -> Finding:
    """Installed packages against the versions that were tested together.

    installed: name -> version, by default those of this environment. A package of the lock that is
    not installed counts only where it is no extra, which the lock does not tell; so it is left out.
    """
    if not lock.is_file():
        return ok("versions: no requirements.lock beside this installation, so none are compared")
    installed = installed if installed is not None else _installed()
    tested = dict(re.findall(r"^([\w.\-]+)==([\w.]+)", lock.read_text(), re.MULTILINE))
    tested = {_normalise(name): version for name, version in tested.items()}
    other = [
        f"{name} {installed[name]} (tested {version})"
        for name, version in sorted(tested.items())
        if name in installed and installed[name].split("+")[0] != version
    ]
    if not other:
        return ok(f"versions: {len(tested.keys() & installed.keys())} packages as in the lock")
    remedy = f"pip install --no-deps --require-hashes -r {lock}"
    more = f" and {len(other) - 4} more" if len(other) > 4 else ""
    return Finding(WARNING, f"versions differ from the lock: {', '.join(other[:4])}{more}", remedy)


def check_requirements(
    required: Iterable[str] | None = None, installed: Mapping[str, str] | None = None
) -> Finding:
    """Whether every package that this one asks for is there in a version that it takes; its extras
    are left out. required: lines such as "av>=18,<19", by default those of this installation."""
    try:  # Not above: other Pythons, which lack it, are told of themselves by this file too.
        from packaging.requirements import Requirement
    except ImportError:
        return Finding(
            FAILURE, "requirements not met: packaging is missing", "pip install packaging"
        )
    if required is None:
        required = _required()
    installed = installed if installed is not None else _installed()
    wrong, wanted = [], []
    for line in map(Requirement, required):
        if line.marker and not line.marker.evaluate({"extra": ""}):
            continue
        version = installed.get(_normalise(line.name))
        if version is None or not line.specifier.contains(version, prereleases=True):
            wrong.append(f"{line.name} {version or 'is missing'}")
            wanted.append(shlex.quote(f"{line.name}{line.specifier}"))
    if not wrong:
        return ok("requirements: each is there in a version that is taken")
    return Finding(
        FAILURE, f"requirements not met: {', '.join(wrong)}", f"pip install {' '.join(wanted)}"
    )


def _required():
    try:
        return importlib.metadata.requires("videorft_jax") or []
    except importlib.metadata.PackageNotFoundError:  # It runs from a folder on PYTHONPATH.
        return []


def _normalise(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def _installed():
    found = importlib.metadata.distributions()
    return {_normalise(each.metadata["Name"]): each.version for each in found}


def check_decoders() -> Finding:
    """Whether the video library can be loaded and knows the codecs that data sets come in."""
    try:
        import av
    except ImportError as error:
        return Finding(FAILURE, f"decoder: PyAV cannot be loaded ({error})", _NEW_AV)
    missing = [name for name in CODECS if name not in av.codec.codecs_available]
    if missing:
        text = f"decoder: PyAV {av.__version__} lacks {', '.join(missing)}"
        return Finding(WARNING, text, _NEW_AV)
    return ok(f"decoder: PyAV {av.__version__} with {', '.join(CODECS)}")


def ask_devices(seconds: float = _DEVICES_S) -> list[list] | str:
    """[platform, kind, bytes of memory] of every device, or why JAX cannot say.

    Another process asks, since a broken driver may hang or end the process that touches it.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {seconds:.0f} s; another process may hold the devices"
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"exit code {done.returncode}"
    return json.loads(done.stdout.strip().splitlines()[-1])


def _new_jax():
    """What installs a jax that this project takes, and the jaxlib that belongs to it."""
    jax = next((line for line in _required() if re.match(r"jax\b(?!-)", line)), "jax")
    return f"pip install --force-reinstall {shlex.quote(jax)}"


def _mend_jax(error, hardware, environment):
    """The remedy for an error of JAX: of a variable that it names, of the platform that was asked
    for where the machine has another, or of the installation."""
    named = re.search(r"\bXLA_FLAGS\b", error) or re.search(r"flag (jax_\w+)", error)
    variable = (named[1].upper() if named.lastindex else named[0]) if named else ""
    if variable in environment:
        return f"unset {variable}, or correct it (it is {environment[variable]!r})"
    wanted, extra = environment.get("JAX_PLATFORMS", ""), {"gpu", "tpu"} & {hardware}
    is_there = hardware in wanted or (hardware == "gpu" and "cuda" in wanted)
    if wanted and not is_there:
        return f"unset JAX_PLATFORMS (it is {wanted!r})"
    return f"pip install 'videorft_jax[{hardware}]'" if extra else _new_jax()


def find_hardware() -> str:
    """The accelerator that the operating system shows: gpu, tpu, or cpu where there is none."""
    if pathlib.Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        return "gpu"
    if list(pathlib.Path("/dev").glob("accel*")) or pathlib.Path("/dev/vfio/0").exists():
        return "tpu"
    return "cpu"


def check_devices(
    devices: list[list] | str,
    hardware: str,
    environment: Mapping[str, str] = os.environ,
    has_libtpu: bool | None = None,
) -> list[Finding]:
    """Whether JAX uses the accelerator of the machine; see `ask_devices` and `find_hardware`."""
    if has_libtpu is None:
        has_libtpu = importlib.util.find_spec("libtpu") is not None
    wanted = environment.get("JAX_PLATFORMS", "")
    extra = {"gpu": "gpu", "tpu": "tpu"}.get(hardware, "")
    found = []
    if hardware == "gpu" and has_libtpu:
        text = "libtpu is installed beside a GPU; JAX looks for a TPU first and may wait for one"
        found.append(Finding(WARNING, text, "export JAX_PLATFORMS=cuda, or pip uninstall libtpu"))
    if isinstance(devices, str):
        remedy = _mend_jax(devices, hardware, environment)
        return [*found, Finding(FAILURE, f"devices: JAX fails: {devices}", remedy)]
    platform, kind, memory = devices[0]
    size = f", {memory / 2**30:.0f} GiB each" if memory else ""
    text = f"devices: {len(devices)} x {kind} ({platform}){size}"
    if platform == "cpu" and hardware != "cpu":
        if "cpu" in wanted.split(","):
            remedy = "unset JAX_PLATFORMS"
        else:
            remedy = f"pip install 'videorft_jax[{extra}]'"
        text = f"{text}, although the machine has a {hardware.upper()}"
        return [*found, Finding(FAILURE, text, remedy)]
    return [*found, ok(text)]
