"""Prices what devices send each other: bandwidth and latency of the links between chips.

A program sends arrays in collectives, each over one or several axes of its mesh. How long one takes
at least follows from where the devices of such an axis stand: an all-gather brings every chip what
all others hold, through the links that lead to it along the dims that the group spans.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from videorft_jax.parallel import sharding
from videorft_jax.planning.machines import Topology


class Collective(NamedTuple):
    """An exchange between the devices along some axes of a mesh.

    kind: as XLA names it. axes: names of the mesh axes. bytes: of the whole array, which an
    all-gather gives, a reduce-scatter takes and an all-reduce sums on every device. count: how
    often one run of the program does it. among: neighbours of a group, where these are not all
    devices along the axes. fetched: bytes that a device brings from its memory meanwhile for what
    comes later.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: float
    count: float
    among: int = 0
    fetched: float = 0.0


@dataclasses.dataclass(frozen=True)
class Link:
    """One link between neighbouring chips: bytes per second in one direction, and the seconds until
    the first byte arrives. ring: dims of a slice of at least this many chips are closed to rings,
    the others are lines; where `cubes` is True only if all dims are multiples of it."""

    bandwidth: float
    ring: int
    cubes: bool
    latency: float = 1e-6


# Bandwidth in both directions per chip, divided by two and by the links of a chip, is what the
# pages docs.cloud.google.com/tpu/docs/{v5e,v5p,v6e,tpu7x} give: 400 GB/s by 4 links, 1,200 by 6,
# 800 by 4, 1,200 by 6; so are the rings of full cubes of v5p and TPU7x and of pods of v5e and v6e.
# A latency of 1 us a hop is recalled from the book "How to Scale Your Model", not measured.
LINKS = {
    "v5e": Link(50e9, ring=16, cubes=False),
    "v5p": Link(100e9, ring=4, cubes=True),
    "v6e": Link(100e9, ring=16, cubes=False),
    "tpu7x": Link(100e9, ring=4, cubes=True),
}
_TWICE = "all-reduce"  # It is a reduce-scatter and an all-gather.
# Weights are gathered and gradients scattered; both may run beside other work.
_BESIDE = ("all-gather", "reduce-scatter")
_HOPS = 2**16  # bytes that a link would carry while a hop is waited for


class Wires:
    """The links of one mesh on one machine, whose devices read `memory` bytes per second."""

    def __init__(self, link: Link, mesh, memory: float = math.inf):
        self._link, self._mesh, self._memory = link, mesh, memory
        self._places = np.array(
            [[*device.coords, getattr(device, "core_on_chip", 0)] for device in mesh.devices.flat]
        ).reshape(*mesh.devices.shape, -1)
        sizes = self._places.reshape(-1, self._places.shape[-1]).max(0) + 1
        self._sizes, self._cores = sizes[:-1], int(sizes[-1])

    def seconds(self, one: Collective) -> float:
        """The least time of a collective, all its repetitions together."""
        index = tuple(slice(None) if axis in one.axes else 0 for axis in self._mesh.axis_names)
        group = self._places[index].reshape(-1, self._places.shape[-1])[: one.among or None]
        chips = np.unique(group[:, :-1], axis=0)
        count = len(chips)
        if count == 1:
            return 0.0  # Both devices stand on one chip.
        bandwidth, hops = self._reach(chips)
        bandwidth *= len(group) / count / self._cores  # Other groups use the same links meanwhile.
        passes = 2 if one.kind == _TWICE else 1
        sent = one.bytes * (count - 1) / count / bandwidth
        return float(one.count * passes * (sent + hops * self._link.latency))

    def exposed_seconds(self, one: Collective) -> float:
        """As `seconds`, without the time in which what is `fetched` meanwhile is read anyway."""
        hidden = one.count * one.fetched / self._memory
        return max(0.0, self.seconds(one) - hidden)

    def _reach(self, chips):
        """Gives the bytes per second that reach each chip of a group, and the most hops between two
        of them. Chips that fill no box are taken to stand in a line."""
        spans = [np.unique(column) for column in chips.T]
        extents = np.array([column[-1] - column[0] + 1 for column in spans])
        counts = np.array([len(column) for column in spans])
        link = self._link
        if math.prod(counts) != len(chips):
            return link.bandwidth, len(chips) - 1
        closed = [
            size >= link.ring and count == size and (not link.cubes or not (self._sizes % 4).any())
            for size, count in zip(self._sizes, counts, strict=True)
        ]
        bandwidth = hops = 0.0
        for is_ring, count, extent in zip(closed, counts, extents, strict=True):
            if count > 1:  # Groups that interleave share the links that they cross.
                bandwidth += link.bandwidth * (2 if is_ring else 1) * (count - 1) / (extent - 1)
                hops += count // 2 if is_ring else extent - 1
        return bandwidth, hops


def find_wires(topology: Topology | None, mesh: Any) -> Wires | None:
    """Gives the links of a mesh; None where they are not known: of GPUs, CPUs and TPU v4, and
    between slices."""
    if topology is None or topology.slices > 1 or topology.kind not in LINKS:
        return None
    if any(getattr(device, "coords", None) is None for device in mesh.devices.flat):
        return None
    return Wires(LINKS[topology.kind], mesh, topology.chip.bandwidth)


def wired_seconds(wires: Wires, floor: float, sent: list[Collective], name: str) -> float:
    """Gives the least seconds of the program called `name`, whose arithmetic and memory need
    `floor`.

    Gathers of weights and sums of gradients may run beside the computation of another layer. All
    others are sums of activations, for which the next product waits. Decoding finds its weights
    whole and waits for whatever it sends, but reads weights meanwhile, which is most of its work.
    """
    if name == "decode":
        return floor + sum(map(wires.exposed_seconds, sent))
    beside = sum(wires.seconds(one) for one in sent if one.kind in _BESIDE)
    waited = sum(wires.seconds(one) for one in sent if one.kind not in _BESIDE)
    return max(floor, beside) + waited


def weigh(kind: str, size: float) -> float:
    """Gives a number in proportion to the time that a collective of `size` bytes takes, by which
    copies that are under way during several are divided between them."""
    return (2 if kind == _TWICE else 1) * (size + _HOPS)


def sent_bytes(mesh: Any, sent: list[Collective]) -> float:
    """Counts the bytes that one device sends."""
    total = 0.0
    for one in sent:
        count = one.among or math.prod(mesh.shape[axis] for axis in one.axes)
        passes = 2 if one.kind == _TWICE else 1
        total += one.count * passes * one.bytes * (count - 1) / count
    return total


def axes_between(mesh: Any, members: list[int]) -> tuple[str, ...]:
    """Names the axes of a mesh along which the devices of a group differ; `members` are places in
    the flattened mesh."""
    places = np.stack(np.unravel_index(members, mesh.devices.shape), axis=1)
    varies = (places != places[0]).any(0)
    return tuple(axis for axis, differs in zip(sharding.AXES, varies, strict=True) if differs)
