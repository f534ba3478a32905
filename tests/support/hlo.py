"""What a compiled program writes to memory and sends between devices, read off its HLO."""

import collections
import math
import re

_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")
_COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    r".*?channel_id=(\d+)"
)
_CALLED = re.compile(
    r"\b(body|calls|to_apply|condition|branch_computations|called_computations|"
    r"true_computation|false_computation)=\{?((?:%[\w.\-]+(?:, )?)+)"
)


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


def squeezed(dims):
    return tuple(sorted(size for size in dims if size != 1))


def collectives(hlo):
    """What devices send each other: Counter of (kind, sorted dims that are not 1, loops around it)
    of every floating-point array; of an all-gather as it comes out, of all others a device's own.

    What XLA for TPU calls all-reduce-scatter, a fusion that keeps a part of each sum, is a
    reduce-scatter. One that is spread over several fusions counts once.
    """
    loops = _loops(hlo)
    found, seen = collections.Counter(), set()
    for name, text in _computations(hlo).items():
        for kinds, kind, channel in _COLLECTIVE.findall(text):
            scattered = name.startswith("%all-reduce-scatter")
            if scattered:
                kind, kinds = "reduce-scatter", text.split("\n", 1)[0].split("->")[1]
            arrays = _ARRAY.findall(kinds)
            if (kind, channel, *arrays) in seen and not scattered:  # those share a channel
                continue
            seen.add((kind, channel, *arrays))
            for dtype, dims in arrays:
                if "f" in dtype and dims:
                    found[kind, squeezed(map(int, dims.split(","))), loops.get(name, 0)] += 1
    return found


def _computations(hlo):
    """Name -> text."""
    texts = re.split(r"\n(?=(?:ENTRY )?%[\w.\-]+ \()", hlo)
    return {re.match(r"(?:ENTRY )?(\S+)", text)[1]: text for text in texts}


def _loops(hlo):
    """Name of a computation -> number of loops around it, the most where there are several."""
    texts = _computations(hlo)
    depth = {name: 0 for name, text in texts.items() if text.startswith("ENTRY")}
    waiting = list(depth)
    while waiting:
        name = waiting.pop()
        for how, called in _CALLED.findall(texts[name]):
            for other in called.split(", "):
                inside = depth[name] + (how == "body")
                if other in texts and depth.get(other, -1) < inside:
                    depth[other] = inside
                    waiting.append(other)
    return depth
