"""Decoding in a process that can be killed: for media of unknown origin.

A thread that hangs inside a decoder cannot be stopped, and a decoder that eats memory takes the run
with it. Here a child process decodes, and the operating system holds its limits (address space,
processor time, wall time). The answer comes back as one line of JSON and raw bytes, because a
pickle from a process that read hostile media could run code.
"""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from videorft_jax.data.media.contract import Limits, MediaContract, MediaError
from videorft_jax.data.media.files import name_of
from videorft_jax.data.media.image import read_image
from videorft_jax.data.media.video import read_video

GRACE_S = 10.0  # the child's start, and its own deadline coming first


def read_isolated(
    source: str | os.PathLike | bytes | Sequence[str],
    root: str | os.PathLike | None,
    contract: MediaContract,
    kind: str,
    times: tuple[float | None, float | None, float | None],
    limits: Limits,
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray, tuple[int, int], tuple[float, ...]]:
    """The fields of a Clip, read by a child process; times are start, end and fps.

    Raises MediaError as `read_video`, with timeout and memory also where only the operating system
    could stop it, and crashed.
    """
    raw = source if isinstance(source, bytes) else b""
    path = name_of(source)
    frames = list(source) if isinstance(source, list | tuple) else None
    request = {
        "path": None if raw else frames or str(source),
        "root": None if root is None else os.fspath(root),
        "contract": contract.to_dict(),
        "kind": kind,
        "times": times,
        "limits": dataclasses.asdict(limits),
    }
    child = subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    with child:
        try:
            request_bytes = json.dumps(request).encode() + b"\n" + raw
            answer, _ = child.communicate(request_bytes, limits.timeout_s + GRACE_S)
        except subprocess.TimeoutExpired:
            raise MediaError("timeout", f"killed after {limits.timeout_s:g} s", path) from None
        finally:
            child.kill()
    header, _, pixels = answer.partition(b"\n")
    if child.returncode == -signal.SIGXCPU:
        raise MediaError("timeout", f"{limits.timeout_s:g} s of processor time used up", path)
    if child.returncode or not header:
        raise MediaError("crashed", f"the decoder's process ended with {child.returncode}", path)
    fields = json.loads(header)
    if "reason" in fields:
        raise MediaError(fields["reason"], fields["detail"], path)
    frames = np.frombuffer(pixels, np.uint8).reshape(fields["shape"]).copy()
    times = np.array(fields["timestamps"], np.float64)
    indices = np.array(fields["indices"], np.int64)
    sides, stamps = tuple(fields["source_size"]), tuple(fields["stamps"])
    return frames, times, fields["fps"], indices, sides, stamps


def _mapped_bytes() -> int:
    """What this process maps before it decodes: libraries, mostly."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except FileNotFoundError:  # not Linux
        return 0


def main() -> None:
    """The child: one request on standard input, one answer on standard output."""
    header, _, raw = sys.stdin.buffer.read().partition(b"\n")
    request = json.loads(header)
    limits = Limits(**request["limits"] | {"roots": tuple(request["limits"]["roots"])})
    space = _mapped_bytes() + limits.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (space, space))
    seconds = int(limits.timeout_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    contract = MediaContract.from_dict(request["contract"])
    source = raw if request["path"] is None else request["path"]
    where = {"root": request["root"], "limits": limits}
    try:
        if request["kind"] == "image":
            clip = read_image(source, contract, **where)
        else:
            start, end, fps = request["times"]
            clip = read_video(source, contract, start, end, fps=fps, **where)
    except MediaError as error:
        answer, pixels = {"reason": error.reason, "detail": error.detail}, b""
    else:
        frames = clip.frames
        answer = {
            "shape": frames.shape,
            "timestamps": clip.timestamps.tolist(),
            "fps": clip.fps,
            "indices": clip.indices.tolist(),
            "source_size": clip.source_size,
            "stamps": clip.stamps,
        }
        pixels = frames.tobytes()
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + pixels)


if __name__ == "__main__":
    main()
