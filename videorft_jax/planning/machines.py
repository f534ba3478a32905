"""Machines by name: `v5p:4x4x4`, `v5e-64`, `2*v6e:4x4` (slices), `H100:8`, `cpu:8`.

TPUs are described by libtpu itself, which compiles for them on any host. Of GPUs only memory and
speed are known, of the CPU whatever this host has.
"""

import contextlib
import dataclasses
import difflib
import math
import os
import re
from typing import Any

import jax

from videorft_jax.metrics.chips import CHIPS, Chip, find_chip
from videorft_jax.metrics.memory import cpu_gib

_ENVIRONMENT = {  # libtpu asks a metadata server where it is, unless it is told
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of chip.

    Attributes:
      usable_gib: memory that programs may use of a device, which is what JAX counts.
      per_host: chips of the largest host; a slice that has more stands on smaller ones of v5e and
        v6e, as libtpu says.
      devices: devices of a chip.
      cores: cores of a chip as the names of accelerator types count them: `v5p-8` are four chips.
      dims: dims of a topology such as `4x4`; 0 where machines are only counted.
    """

    usable_gib: float
    per_host: int
    devices: int = 1
    cores: int = 1
    dims: int = 2


# usable_gib of TPUs is what their compiler says when a program does not fit; of GPUs the data
# sheet's memory less 8 % for the context and fragments.
KINDS = {
    "v4": Kind(15.25, per_host=4, devices=2, cores=2, dims=3),
    "v5e": Kind(15.75, per_host=8),
    "v5p": Kind(95.73, per_host=4, cores=2, dims=3),
    "v6e": Kind(31.24, per_host=8),
    "tpu7x": Kind(94.74, per_host=4, devices=2, cores=2, dims=3),
    "A100": Kind(73.0, per_host=8, dims=0),
    "H100": Kind(73.0, per_host=8, dims=0),
    "H200": Kind(130.0, per_host=8, dims=0),
    "cpu": Kind(0.0, per_host=1, dims=0),
}
# By the names that JAX gives devices; longer names stand before their prefixes.
_NAMES = (
    ("TPU v5 lite", "v5e"),
    ("TPU v5e", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v6", "v6e"),
    ("TPU7x", "tpu7x"),
)
_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")
_MOST = 4096  # devices without a compiler, for each of which this process makes a stand-in


@dataclasses.dataclass(frozen=True)
class Topology:
    """A machine that a run is planned for.

    `devices` are JAX's own; for GPUs, for which nothing compiles here, they are stand-ins.
    `limit_gib` is the memory of a device, `chip` its speed.
    """

    name: str
    kind: str
    devices: tuple[Any, ...]
    num_devices: int
    num_chips: int
    num_hosts: int
    limit_gib: float
    chip: Chip
    slices: int = 1

    @property
    def compiles(self) -> bool:
        """Whether a compiler for the machine is at hand."""
        return self.kind == "cpu" or KINDS[self.kind].dims > 0

    @property
    def attention(self) -> str:
        """The path of attention that "auto" means on this machine."""
        if self.kind == "cpu":
            return "chunked"
        return "splash" if KINDS[self.kind].dims else "flash"


def known() -> list[str]:
    """Lists names of machines that `find` is sure to understand."""
    names = []
    for kind, about in KINDS.items():
        shapes = {2: _FLAT, 3: _CUBES, 0: ("1", "8")}[about.dims]
        names += [f"{kind}:{shape}" for shape in shapes]
    return names


def types() -> dict[str, str]:
    """Maps accelerator types such as `v5e-64` to the names of their topologies."""
    found = {}
    for name in known():
        kind, shape = name.split(":")
        if KINDS[kind].dims:
            chips = math.prod(map(int, shape.split("x")))
            found[f"{kind}-{chips * KINDS[kind].cores}"] = name
    return found


def find(name: str) -> Topology:
    """The machine called `name`; call it before anything else uses JAX's devices.

    Raises ValueError for a name that means nothing, with the nearest that does.
    """
    slices, star, place = name.rpartition("*")
    place = types().get(place, place)
    kind, _, shape = place.partition(":")
    about = KINDS.get(kind)
    if about is None or not re.fullmatch(r"\d+(x\d+)*", shape):
        raise _unknown(name)
    if star and not re.fullmatch("[1-9][0-9]*", slices):
        raise _unknown(name)
    sizes = list(map(int, shape.split("x")))
    if len(sizes) != max(about.dims, 1) or math.prod(sizes) < 1:
        raise _unknown(name)
    count = int(slices or 1)
    if not about.dims:
        if star:
            raise ValueError(
                f"--topology={name}: only TPUs have slices; write {kind}:{count * sizes[0]}"
            )
        return _host(name, kind, sizes[0])
    devices = _tpus(name, place, count)
    chips = len(devices) // about.devices
    hosts = len({device.process_index for device in devices})
    if chips <= count * about.per_host:
        hosts = count
    speed = find_chip(devices[0])
    if kind == "v4":  # the table's row is of a chip, whose two cores compile as one on the pod
        speed = Chip(speed.flops / 2, speed.bandwidth / 2)
    return Topology(
        name, kind, devices, len(devices), chips, hosts, about.usable_gib, speed, count,
    )  # fmt: skip


def topology_of(mesh: Any) -> Topology | None:
    """Describes the devices of a mesh that is here; None where no kind of TPU is known by their
    name."""
    devices = tuple(mesh.devices.flat)
    kind = next((own for name, own in _NAMES if name in devices[0].device_kind), None)
    if kind is None:
        return None
    about, chips = KINDS[kind], len(devices) // KINDS[kind].devices
    hosts = len({device.process_index for device in devices})
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    return Topology(
        "here", kind, devices, len(devices), chips, hosts, about.usable_gib,
        find_chip(devices[0]), slices,
    )  # fmt: skip


def _unknown(name):
    names = [*known(), *types()]
    near = difflib.get_close_matches(name, names, 3, cutoff=0.0)
    return ValueError(
        f"--topology={name}: unknown; nearest are {', '.join(near)} (kinds: {', '.join(KINDS)})"
    )


def _tpus(name, place, slices):
    os.environ.update({key: os.environ.get(key, value) for key, value in _ENVIRONMENT.items()})
    from jax.experimental import topologies

    options = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=place, **options)
    except jax.errors.JaxRuntimeError as error:
        if "INVALID_ARGUMENT" in str(error):
            raise _unknown(name) from None
        raise ValueError(
            f"--topology={name}: libtpu cannot be used ({str(error).splitlines()[0]}); "
            "pip install libtpu"
        ) from None
    return tuple(found.devices)


def _host(name, kind, count):
    if count > _MOST:
        raise ValueError(f"--topology={name}: give at most {_MOST:,} devices")
    about, chip = KINDS[kind], dict(CHIPS).get(kind)
    with contextlib.suppress(RuntimeError):  # too late where devices are in use already
        jax.config.update("jax_num_cpu_devices", count)
    devices = tuple(jax.devices("cpu")[:count])
    if len(devices) < count:
        raise ValueError(
            f"--topology={name}: this process was started with {len(devices)} CPU devices; set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    if kind != "cpu":
        hosts = -(-count // about.per_host)
        return Topology(name, kind, devices, count, count, hosts, about.usable_gib, chip)
    return Topology(name, kind, devices, count, 1, 1, cpu_gib(count), find_chip(devices[0]))
