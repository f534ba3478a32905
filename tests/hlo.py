"""What a compiled program writes to memory and sends between devices, read off its HLO."""

import collections
import math
import re

_GATHER = re.compile(r"= (.*?) all-gather(?:-start)?\(.*?channel_id=(\d+)")
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")


def materialised(hlo, sizes):
    """Instructions that write an array of one of these many values, but for updates in place."""
    computations = re.split(r"\n(?=\S)", hlo)
    fused = {m[1]: None for m in re.finditer(r"fusion\(.*?calls=(%[\w.\-]+)", hlo)}
    for text in computations:
        name = text.split(" ", 1)[0]
        if name in fused:
            fused[name] = text
    found = []
    for text in computations:
        if text.split(" ", 1)[0] in fused:
            continue
        for line in text.split("\n"):
            match = re.search(
                r"= \(?\w+\[([\d,]+)\]\S* (copy|copy-start|transpose|fusion|dynamic-slice)\(", line
            )
            if not match or math.prod(map(int, match[1].split(","))) not in sizes:
                continue
            called = re.search(r"calls=(%[\w.\-]+)", line)
            if not (called and "dynamic-update-slice(" in fused[called[1]]):
                found.append(line.strip())
    return found


def gathered(hlo):
    """How often floating-point arrays come out of an all-gather: Counter of their sorted dims that
    are not 1. One that is spread over several fusions, to hide it behind other work, has one
    channel and counts once."""
    found, seen = collections.Counter(), set()
    for kinds, channel in _GATHER.findall(hlo):
        if channel in seen:
            continue
        seen.add(channel)
        for kind, dims in _ARRAY.findall(kinds):
            if "f" in kind:
                found[squeezed(map(int, dims.split(",")))] += 1
    return found


def squeezed(dims):
    return tuple(sorted(size for size in dims if size != 1))
