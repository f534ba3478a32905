"""Reads the collectives of a compiled program off its HLO, each with how often a run does it."""

import collections
import math
import re
from typing import Any

import numpy as np

from videorft_jax.planning.links import Collective, axes_between, weigh

_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_WIDE = {"s64": 8, "u64": 8, "f64": 8}
_ARRAY = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]")
_LAYOUT = re.compile(r"\{[^{}]*\}")
_LINE = re.compile(
    r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\((.*)"
)
_NEAR = re.compile(r"\b([a-z]+\d+|pred)\[([\d,]*)\]\{[^{}]*S\(1\)[^{}]*\}")
# Slices are written in one of two ways.
_FETCH = re.compile(
    r"(%(?:copy|slice)-[\w.\-]+) = (.*?) (?:copy|slice|async)-(start|done)\((%[\w.\-]+)?"
)
_FUSED = ("%fused", "%async_collective_fusion")
_CALLED = re.compile(
    r"\b(body|calls|to_apply|condition|branch_computations|called_computations|"
    r"true_computation|false_computation)=\{?((?:%[\w.\-]+(?:, )?)+)"
)


def read_collectives(hlo: str, mesh: Any, open_turns: int = 1) -> list[Collective]:
    """Gives what the devices of `mesh` send each other, equal ones added up.

    A loop counts as often as the constant says that ends it, and `open_turns` times where something
    else does, as in the loop over tokens; such a loop inside of another is not expected. What XLA
    for TPU calls all-reduce-scatter, a fusion that keeps a part of each sum, is a reduce-scatter.
    """
    texts = _computations(hlo)
    runs = _count_runs(texts, open_turns)
    found: collections.Counter[tuple[Any, ...]] = collections.Counter()
    seen = set()
    for name, text in texts.items():
        scattered = name.startswith("%all-reduce-scatter")
        lines = [match for match in map(_LINE.search, text.split("\n")) if match]
        for match, fetched in zip(lines, _count_fetched(text), strict=True):
            kinds, kind, start, rest = match.groups()
            channel = re.search(r"channel_id=(\d+)", rest)
            key = (kind, channel and channel[1], _LAYOUT.sub("", kinds))
            if key in seen and name.startswith(_FUSED):  # Spread over fusions, in any layout.
                continue
            seen.add(key)
            arrays = [_size(*array) for array in _ARRAY.findall(kinds)]
            # One that is awaited later has operands, results and flags.
            if start and len(arrays) > 1:
                arrays = [max(arrays)]
            members = _members(rest, mesh.devices.size)
            axes = axes_between(mesh, members)
            if axes and sum(arrays):
                count = math.prod(mesh.shape[axis] for axis in axes)
                among = len(members) if kind != "collective-permute" and len(members) < count else 0
                size = sum(arrays) * ((among or count) if kind == "reduce-scatter" else 1)
                kind = "reduce-scatter" if scattered else kind
                found[kind, axes, size, among, fetched] += runs.get(name, 1)
    return [
        Collective(kind, axes, size, count, among, fetched)
        for (kind, axes, size, among, fetched), count in sorted(found.items())
    ]


def _count_fetched(text):
    """Counts for each collective of a computation the bytes that are brought from a TPU's memory
    next to its cores meanwhile. Copies that are under way during several are divided."""
    under_way: dict[str, tuple[int, list[int]]] = {}
    weights: list[float] = []
    fetched: list[float] = []
    for line in text.split("\n"):
        if copy := _FETCH.search(line):
            name, kinds, step, source = copy.groups()
            if step == "start":  # A copy's type begins with its result, a slice's with its operand.
                near = _NEAR.match(kinds, 1) if "copy" in name else _NEAR.search(kinds)
                under_way[name] = (_size(*near.groups()) if near else 0), []
            elif source in under_way:
                size, during = under_way.pop(source)
                whole = sum(weights[number] for number in during)
                for number in during:
                    fetched[number] += size * weights[number] / whole
        elif found := _LINE.search(line):
            for _, during in under_way.values():
                during.append(len(fetched))
            size = sum(_size(*array) for array in _ARRAY.findall(found[1]))
            weights.append(weigh(found[2], size))
            fetched.append(0.0)
    return fetched


def _size(dtype, dims):
    values = math.prod(map(int, dims.split(","))) if dims else 1
    return values * _BYTES.get(dtype, _WIDE.get(dtype, 4))


def _members(text, count):
    """Gives the devices of the first group of a collective, by any of XLA's ways to write it."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
        for pair in re.findall(r"(\d+),(\d+)", pairs[1]):
            if pair[0] != pair[1]:
                return [int(member) for member in pair]
        return [0]
    if named := re.search(r"replica_groups=mesh\[(.*?)\]\s*\{(.*?)\}", text):
        sizes = {key: int(size) for key, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        along = re.findall(r"'(\w+)'", named[2])
        index = tuple(slice(None) if axis in along else 0 for axis in sizes)
        return np.arange(math.prod(sizes.values())).reshape(*sizes.values())[index].ravel().tolist()
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, dims, order = (group and list(map(int, group.split(","))) for group in iota.groups())
        devices = np.arange(math.prod(dims)).reshape(dims)
        devices = devices.transpose(order) if order else devices
        return devices.reshape(-1, shape[-1])[0].tolist()
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return [int(member) for member in listed[1].split(",")]
    return list(range(count))


def _computations(hlo):
    """Maps names to texts."""
    texts = re.split(r"\n(?=(?:ENTRY )?%[\w.\-]+ \()", hlo)
    found = {}
    for text in texts:
        if match := re.match(r"(?:ENTRY )?(%[\w.\-]+) \(", text):
            found[match[1]] = text
    return found


def _count_runs(texts, open_turns):
    """Maps names of computations to how often one run of the program runs them, the most where
    several call one."""
    runs = {name: 1 for name, text in texts.items() if text.startswith("ENTRY")}
    waiting = list(runs)
    while waiting:
        name = waiting.pop()
        for line in texts[name].split("\n"):
            called = [
                (how, other) for how, all_ in _CALLED.findall(line) for other in all_.split(", ")
            ]
            ends = [texts.get(other, "") for how, other in called if how == "condition"]
            turns = (_count_turns(ends[0]) or open_turns) if ends else 1
            for how, other in called:
                own = runs[name] * (turns if how in ("body", "condition") else 1)
                if other in texts and runs.get(other, 0) < own:
                    runs[other] = own
                    waiting.append(other)
    return runs


def _count_turns(condition):
    """Gives the turns of a loop whose counter is compared with a constant; None for any other."""
    root = re.search(r"ROOT .* compare\((.*?)\), direction=LT", condition)
    if not root:
        return None
    values = dict(re.findall(r"(%[\w.\-]+) = s32\[\]\S* constant\((\d+)\)", condition))
    found = [int(values[name]) for name in root[1].split(", ") if name in values]
    return found[0] if found else None
