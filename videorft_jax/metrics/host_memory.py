"""How much memory this process may use on its host. The standard library only."""

import os
import pathlib

# Files of a control group's limit, in its own folder: of version 2, and of version 1.
_LIMITS = {"": ("", "memory.max"), "memory": ("memory", "memory.limit_in_bytes")}


def host_bytes(root: pathlib.Path = pathlib.Path("/")) -> int:
    """The host's memory, or the least limit of the control groups that hold this process, as
    containers and batch systems set them. root: where /proc and /sys/fs/cgroup are."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_read_limits(root)])


def _read_limits(root):
    groups = root / "proc/self/cgroup"
    lines = groups.read_text().splitlines() if groups.is_file() else []
    for line in lines:
        _, names, path = line.split(":", 2)
        for name in {"", "memory"} & set(names.split(",")):
            folder, file = _LIMITS[name]
            top = root / "sys/fs/cgroup" / folder
            group = top / path.lstrip("/")
            # A container may name a group outside of what it sees, and see its own as the root.
            for place in [group, *group.parents]:
                if place.is_relative_to(top) and (place / file).is_file():
                    text = (place / file).read_text().strip()
                    yield from [int(text)] if text.isdigit() else []
