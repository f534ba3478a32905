"""Makes rows, the totals of a step, refusals with remedies, and a table of figures and costs."""

import contextlib
import dataclasses
from typing import Any

from videorft_jax.parallel import sharding
from videorft_jax.planning.compile import GIB, Figures, Store, measure, reminded
from videorft_jax.planning.costs import floor_seconds, naive_floor, program_costs
from videorft_jax.planning.drawing import drawn_elsewhere, suggest_rollout_mesh
from videorft_jax.planning.estimate import estimate, estimated_gib
from videorft_jax.planning.jobs import DRAWING, Job, Program, count_runs, find_programs, total_bytes
from videorft_jax.planning.links import find_wires, sent_bytes, wired_seconds
from videorft_jax.planning.traffic import program_traffic

_PHASES = {
    "reshard": "reshard",
    "vision": "rollout",
    "prefill": "rollout",
    "decode": "rollout",
    "compact": "rollout",
    "siglip": "rewards",
    "score": "update",
    "update": "update",
}
_PROCESS_GIB = 6.0  # interpreter, compiler, decoders of clips
_BATCHES = 4  # batches that a loader holds


@dataclasses.dataclass(frozen=True)
class Row:
    """What a program needs. Memory is that of one device; `peak_gib` includes `beside_gib`, which
    lies there and is no argument of the program. Times and costs are of all its runs in a step.
    `sent_bytes` are those that one device sends to others; `wired_s` is the least time with them,
    None where the machine's links are not known."""

    name: str
    arguments_gib: float
    temporaries_gib: float
    beside_gib: float
    peak_gib: float
    limit_gib: float
    fits: bool
    flops: float
    bytes: float
    floor_s: float
    sent_bytes: float
    wired_s: float | None
    compile_s: float
    shapes: int
    estimated: bool


def make_rows(job: Job, store: Store | None = None, say=lambda text: None) -> list[Row]:
    """A row for each program, compiled where a compiler for the machine is here, else estimated."""
    rows, costs = [], program_costs(job)
    for program in find_programs(job):
        if not job.topology.compiles:
            figures = estimate(job, program.name)
        else:
            what = f"{program.name} of {job.shape.length} tokens for {job.topology.name}"
            with reminded(f"compiling {what}", say):
                figures = measure(job, program, store or Store())
            say(f"{what}: {figures.peak:.2f} GiB, compiled in {figures.compile_s:.0f} s")
        rows.append(make_row(job, program, figures, costs[program.name]))
    return rows


def merge_rows(shapes: list[list[Row]]) -> list[Row]:
    """Rows of several compiled shapes as one each: times and costs of the first, memory of the
    worst, compile time of all."""
    merged = []
    for rows in zip(*shapes, strict=True):
        worst = max(rows, key=lambda row: (not row.fits, row.peak_gib))
        memory = {
            name: getattr(worst, name)
            for name in ("arguments_gib", "temporaries_gib", "beside_gib", "peak_gib", "fits")
        }
        seconds = sum(row.compile_s for row in rows)
        merged.append(dataclasses.replace(rows[0], compile_s=seconds, **memory))
    return merged


def make_row(job: Job, program: Program, figures: Figures, cost) -> Row:
    name, runs = program.name, count_runs(job, program.name)
    peak, limit = figures.peak + program.beside / GIB, job.topology.limit_gib
    floor, mesh = floor_seconds(job, cost), job.mesh_of(name)
    sent = program_traffic(job)[name] if figures.sent is None else figures.sent
    wires = find_wires(job.topology, mesh)
    return Row(
        name,
        figures.arguments,
        figures.temporaries,
        program.beside / GIB,
        peak,
        limit,
        figures.known and peak <= limit,
        runs * cost.hardware_flops,
        runs * cost.bytes,
        runs * floor,
        runs * sent_bytes(mesh, sent),
        None if wires is None else runs * wired_seconds(wires, floor, sent, name),
        figures.compile_s,
        program.shapes,
        figures.estimated,
    )


def summarise(job: Job, rows: list[Row]) -> dict[str, Any]:
    """The totals of a step: whether it fits, its least time, and what follows from that."""
    floor = sum(row.floor_s for row in rows)
    shares: dict[str, float] = {}
    for row in rows:
        phase = _PHASES[row.name]
        shares[phase] = shares.get(phase, 0.0) + row.floor_s / floor
    shape, topology = job.shape, job.topology
    tokens, wired = shape.rows * shape.length, _add_wired(rows)
    least = floor if wired is None else wired
    step = {
        "mode": job.mode,
        "topology": topology.name,
        "mesh": dict(job.mesh.shape),
        "shape": shape._asdict(),
        "fits": all(row.fits for row in rows),
        "floor_s": floor,
        "wired_floor_s": wired,
        "shares": shares,
    }
    if job.mode == "grpo":
        rollout = job.grpo.rollout
        step["rollout_mesh"] = dict(job.drawing.mesh.shape)
        if faster := suggest_rollout_mesh(job):
            step["faster_rollout_mesh"] = faster._asdict()
        count = shape.rows * rollout.num_rollouts
        tokens += count * rollout.max_new_tokens
        naive = naive_floor(job)
        step["chip_s_per_rollout"] = least * topology.num_chips / count
        step["naive_floor_s"] = naive
        step["floor_share_of_naive"] = floor / naive
    state = total_bytes(job.state)
    step["tokens_per_s"] = tokens / least
    step["host_gib"] = host_gib(job)
    step["checkpoint_gib"] = state / GIB
    step["compile_s"] = sum(row.compile_s for row in rows)
    step["estimated"] = any(row.estimated for row in rows)
    return step


def _add_wired(rows):
    """Gives the least time of a step with links counted; None where they are not known."""
    known = [row.wired_s for row in rows if row.wired_s is not None]
    return sum(known) if len(known) == len(rows) else None


def host_gib(job: Job) -> float:
    """Memory of a host in GiB: its share of the state while a checkpoint is saved, of a reference
    policy that is kept there and of the loader's batches, and the process itself."""
    hosts = job.topology.num_hosts
    held = total_bytes(job.state)
    if job.reference is not None and job.grpo.reference_on_host:
        held += total_bytes(job.reference)
    shape, cut = job.shape, job.geometry
    pixels = shape.rows * shape.pairs * shape.windows * cut.slots * cut.patch_dim
    return (held + _BATCHES * pixels) / hosts / GIB + _PROCESS_GIB


def advise(job: Job, rows: list[Row]) -> list[str]:
    """What to change, one line for each program that does not fit."""
    missed = [row for row in rows if not row.fits]
    return [refusal(job, row.name, row.peak_gib, row.limit_gib) for row in missed]


def refusal(job: Job, name: str, need: float, limit: float) -> str:
    """What the program called `name` lacks, in GiB, and all that may help."""
    remedies = ", or ".join(find_remedies(job, name))
    return f"{name} needs {need:.2f} GiB of {limit:.2f} GiB a device; {remedies}"


def find_remedies(job: Job, name: str) -> list[str]:
    """Changes under which the program called `name` needs less of a device, the cheapest first."""
    train, grpo, found = job.train, job.grpo, []
    tensor = _wider(job, name)
    if train.model.attention == "reference":  # It keeps a score for each pair of tokens.
        found.append("leave model.attention at auto")
    if name in ("reshard", *DRAWING, "siglip"):
        if name == "siglip" and tensor:
            found.append(f"set mesh.tensor={tensor}")
        if name != "siglip" and (sizes := _wider_drawing(job, name)):
            found.append(f"set rollout.mesh={sizes}")
        if not grpo.rollout.int8_weights:
            found.append("set rollout.int8_weights=True")
        if name in ("decode", "compact") and not grpo.rollout.int8_cache:
            found.append("set rollout.int8_cache=True")
    else:
        rows = job.shape.rows // job.parts // (grpo.minibatches if grpo else 1)
        if rows > train.accumulate and name != "score":  # All rows are scored at once.
            found.append(f"set train.accumulate={rows}")
        if train.model.remat != "full" and name != "score":
            found.append("set model.remat=full")
        if train.optim.mu_dtype != "bfloat16" and train.optim.name == "adamw":
            found.append("set optim.mu_dtype=bfloat16")
        if tensor:
            found.append(f"set mesh.tensor={tensor}")
        if job.reference is not None and not grpo.reference_on_host:
            found.append("set grpo.reference_on_host=True")
        if job.weights.lora is None:
            found.append("set lora.rank=32")
    found.append("take more chips")
    return found


def _wider(job, name):
    """The next larger tensor axis that divides the heads and the devices and with which a program
    needs less; None without one."""
    heads = job.weights.model.text.num_kv_heads
    sizes, least = dataclasses.asdict(job.train.mesh) | {"fsdp": -1}, estimated_gib(job, name)
    for tensor in range(job.mesh.shape["tensor"] + 1, heads + 1):
        if heads % tensor == 0:
            with contextlib.suppress(ValueError):
                devices = job.mesh.devices.flat
                mesh = sharding.make_mesh(**(sizes | {"tensor": tensor}), devices=devices)
                if estimated_gib(dataclasses.replace(job, mesh=mesh), name) < least:
                    return tensor
    return None


def _wider_drawing(job, name):
    """The next sizes of `rollout.mesh` with a larger tensor axis and with which a program of the
    rollout needs less; None without any."""
    tensor, least = job.drawing.mesh.shape["tensor"], estimated_gib(job, name)
    for other in drawn_elsewhere(job):
        if other.drawing.mesh.shape["tensor"] > tensor and estimated_gib(other, name) < least:
            return ",".join(map(str, other.drawing.mesh.devices.shape))
    return None


def as_text(rows: list[Row], step: dict[str, Any]) -> str:
    """The table of a plan with the lines under it, for people."""
    head = "program   arguments  temps  beside    peak  limit  fits   TFLOP       GB  floor s"
    lines = [f"{head}  sent GB  with wires  compile s  shapes"]
    for row in rows:
        mark = ("yes" if row.fits else "NO") + ("~" if row.estimated else "")
        lines.append(
            f"{row.name:<9} {row.arguments_gib:9.2f} {row.temporaries_gib:6.2f} "
            f"{row.beside_gib:7.2f} {row.peak_gib:7.2f} {row.limit_gib:6.2f} {mark:>5} "
            f"{row.flops / 1e12:7.1f} {row.bytes / 1e9:8.0f} {row.floor_s:8.3f} "
            f"{row.sent_bytes / 1e9:8.2f} {_say_wired(row):>11} "
            f"{row.compile_s:10.1f} {row.shapes:7d}"
            f"{'  no wires counted' if row.wired_s is None else ''}"
        )
    lines.append("memory in GiB of a device; ~ estimated by formulas, nothing compiles for it here")
    mesh = ", ".join(f"{axis}={size}" for axis, size in step["mesh"].items())
    shape = ", ".join(f"{name} {value:g}" for name, value in step["shape"].items())
    lines += [f"mesh     {mesh}", f"shape    {shape}"]
    if step.get("rollout_mesh", step["mesh"]) != step["mesh"]:
        sizes = ", ".join(f"{axis}={size}" for axis, size in step["rollout_mesh"].items())
        lines.insert(-1, f"rollout  {sizes}")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in step["shares"].items())
    lines.append(f"step     at least {step['floor_s']:.3f} s: {shares}")
    wired = step["wired_floor_s"]
    lines.append(
        "         no wires counted: the links of this machine are not known"
        if wired is None
        else f"         {wired:.3f} s with what chips send each other"
    )
    if faster := step.get("faster_rollout_mesh"):
        sizes = ",".join(map(str, faster["sizes"]))
        lines.append(f"         {faster['floor_s']:.3f} s with --config.rollout.mesh={sizes}")
    if "naive_floor_s" in step:
        share = step["floor_share_of_naive"]
        lines.append(
            f"         {step['chip_s_per_rollout']:.3f} chip-seconds per rollout; {share:.0%} of "
            f"the least time with every completion in a row of its own"
        )
    lines.append(
        f"         {step['tokens_per_s']:,.0f} tokens/s; host {step['host_gib']:.0f} GiB, "
        f"checkpoint {step['checkpoint_gib']:.0f} GiB"
    )
    for bucket in step.get("buckets", ()):
        text = ", ".join(f"{name} {value:g}" for name, value in bucket.items())
        lines.append(f"bucket   {text}")
    return "\n".join(lines)


def _say_wired(row):
    return "-" if row.wired_s is None else f"{row.wired_s:.3f}"
