"""Checks of the host: disk, memory, huge pages, and where compiled programs are kept."""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping

from videorft_jax.doctor.findings import FAILURE, OK, WARNING, Finding, ok
from videorft_jax.metrics.host_memory import host_bytes

GIB = 2**30
LEAST_DISK_GIB = 20.0  # a tiny run takes less, a checkpoint of 7B with its moments takes 100
LEAST_MEMORY_GIB = 8.0
_HUGE_PAGES = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb=1"


def check_disk(folder: str | os.PathLike, least_gib: float = LEAST_DISK_GIB) -> Finding:
    """Whether files can be written in a folder, or where it would be made, and how much is free."""
    path = pathlib.Path(folder).absolute()
    while not path.exists():
        path = path.parent
    try:
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        text = f"disk: {path} cannot be written ({error.strerror})"
        return Finding(FAILURE, text, "give another --workdir, or change the folder's owner")
    free = shutil.disk_usage(path).free / GIB
    text = f"disk: {free:.0f} GiB free at {path}"
    if free < least_gib:
        remedy = f"free space, or give a --workdir on another disk; aim at {least_gib:.0f} GiB"
        return Finding(WARNING, text, remedy)
    return ok(text)


def read_memory() -> tuple[float, float]:
    """(GiB that this process may use in all, GiB of it that are free now)."""
    total = host_bytes() / GIB
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / GIB
    meminfo = pathlib.Path("/proc/meminfo")
    if meminfo.exists():  # what can be had at once, caches of files included
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) / 2**20
    return total, min(free, total)


def check_memory(total_gib: float, free_gib: float) -> Finding:
    """Whether the host's memory is enough for a loader and a small model."""
    text = f"memory: {free_gib:.1f} of {total_gib:.1f} GiB free"
    if free_gib < LEAST_MEMORY_GIB / 2:
        return Finding(WARNING, text, "end other programs; data.threads=2 lowers what a run takes")
    return ok(text)


def check_huge_pages(
    setting: pathlib.Path = _HUGE_PAGES, environment: Mapping[str, str] = os.environ
) -> Finding:
    """Whether XLA's scratch memory on a CPU lies in huge pages, which saves most page faults."""
    if not setting.exists():
        return ok("huge pages: this system does not know them")
    text = setting.read_text()
    mode = text[text.index("[") + 1 : text.index("]")]
    if mode == "never":
        remedy = f"echo madvise | sudo tee {setting}"
        return Finding(WARNING, "huge pages: switched off; steps on a CPU are slower", remedy)
    if mode == "madvise" and _TUNABLE not in environment.get("GLIBC_TUNABLES", ""):
        remedy = f"export GLIBC_TUNABLES={_TUNABLE}"
        return Finding(WARNING, "huge pages: on request, and glibc does not ask for them", remedy)
    return ok(f"huge pages: {mode}")


def check_compile_cache(folder: str) -> Finding:
    """Whether programs compiled once are found by later runs. folder: `compile_cache` of a config,
    or JAX_COMPILATION_CACHE_DIR; "" where neither is set."""
    if not folder:
        remedy = "export JAX_COMPILATION_CACHE_DIR=$HOME/.cache/videorft to share it between runs"
        text = "compile cache: each work directory keeps its own compiled programs"
        return Finding(OK, text, remedy)
    if "://" in folder:
        return ok(f"compile cache: {folder}")
    path = pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        text = f"compile cache: {folder} cannot be written ({error.strerror})"
        return Finding(FAILURE, text, "unset JAX_COMPILATION_CACHE_DIR, or name another folder")
    return ok(f"compile cache: {folder}, {sum(1 for _ in path.iterdir())} files")
