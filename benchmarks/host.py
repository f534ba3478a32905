"""What benchmarks say of the computer that they ran on, and of the memory that they took."""

import os
import pathlib
import platform
import resource


def describe() -> dict:
    """The processor's name, such as AMD EPYC 7763, or its architecture where the system has no
    list of processors; and the cores that this process may use."""
    path = pathlib.Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
    }


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
