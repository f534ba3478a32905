"""The memory of a host is what its control groups leave to this process."""

import os

import pytest

from videorft_jax.metrics import memory
from videorft_jax.metrics.host_memory import host_bytes

TOTAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
GROUPS = {
    "none": ("0::/", {}, TOTAL),
    "no limit": ("0::/a", {"a/memory.max": "max\n", "memory.max": "max"}, TOTAL),
    "its own": ("0::/a/b", {"a/b/memory.max": "1000\n", "a/memory.max": "max"}, 1000),
    "one above": ("0::/a/b", {"a/b/memory.max": "3000", "a/memory.max": "2000\n"}, 2000),
    "root of a container": ("0::/outside/the/container", {"memory.max": "1500"}, 1500),
    "version 1": (
        "3:cpu,cpuacct:/c\n2:memory:/job/9\n0::/",
        {"memory/job/9/memory.limit_in_bytes": "4096", "cpu/c/memory.max": "7"}, 4096),
    "version 1, none": (
        "2:memory:/", {"memory/memory.limit_in_bytes": "9223372036854771712"}, TOTAL),
    "beside another": (
        "2:memory:/\n0::/", {"memory/memory.limit_in_bytes": "5000", "memory.max": "6000"}, 5000),
}  # fmt: skip


@pytest.mark.parametrize("name", GROUPS)
def test_the_least_limit_holds(tmp_path, name):
    lines, files, limit = GROUPS[name]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(lines + "\n")
    for file, text in files.items():
        place = tmp_path / "sys/fs/cgroup" / file
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    assert host_bytes(tmp_path) == limit


def test_a_system_without_groups_has_its_whole_memory(tmp_path):
    assert host_bytes(tmp_path) == TOTAL


def test_a_cpu_device_has_its_share_of_what_is_left(monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: 6 * 2**30)
    assert memory.cpu_gib(4) == pytest.approx(1.5)
