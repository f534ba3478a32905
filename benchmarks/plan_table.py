"""Writes launch/PLANS.md: what the recipes need of TPU slices that nobody here has.

python benchmarks/plan_table.py [--only TEXT ...] [--processes N] [--write]

Every program of every entry is compiled by the TPU compiler, the most wanted entries first, by two
processes of up to 8 GiB unless told otherwise. Figures lie in launch/plans.json under the digest of
the lowered program, the machine and the compiler's version, so that the script can be stopped and
goes on, and that after a change of the code it compiles again what the change concerns. `--only`
takes entries whose line holds all the words; `--write` compiles nothing and writes the table from
what is known, with formulas (marked ~) in place of what is not. Floors are formulas everywhere.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib
import multiprocessing
import os
import pathlib
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
ROOT = pathlib.Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "configs")]

from videorft_jax.commands.plan import read_options  # noqa: E402
from videorft_jax.planning import compile as measure  # noqa: E402
from videorft_jax.planning import machines, plan, report  # noqa: E402
from videorft_jax.planning.costs import program_costs  # noqa: E402
from videorft_jax.planning.estimate import estimate  # noqa: E402
from videorft_jax.planning.jobs import find_programs  # noqa: E402
from videorft_jax.training import compile_cache  # noqa: E402

compile_cache.forget_folders()  # Every worker process runs this, since it imports this file.
TABLE, FIGURES = ROOT / "launch" / "PLANS.md", ROOT / "launch" / "plans.json"
# Machine -> mesh.tensor, prompts of a GRPO step, rows of an SFT step.
FULL = {
    "v5e-64": (4, 64, 64),
    "v6e-16": (1, 64, 16),
    "v5p-8": (1, 32, 16),
    "v5p-64": (1, 128, 32),
    "tpu7x-8": (1, 64, 16),
}
# Machine -> mesh.data and model.remat of GRPO of 7B where the planner chooses the rollout's mesh,
# so that training needs no tensor, and the most frames for which there is memory for them. Less is
# computed again in the backward pass, and v5e-64 trains as two halves that each hold all weights:
# in 64 parts these are no whole tiles.
CHOSEN = {
    "v5e-64": (2, "save_projections", 16),
    "v6e-16": (1, "save_gate", 16),
    "v5p-8": (1, "save_dots", 64),
    "v5p-64": (1, "save_dots", 64),
    "tpu7x-8": (1, "none", 16),
}
LORA = {"v5e-8": (4, 8, 16), "v6e-1": (1, 8, 16)}
QWEN3 = {"v5p-8": (1, 32, 16)}  # Qwen3-VL, whose clips may be longer.


@dataclasses.dataclass(frozen=True)
class Entry:
    recipe: str
    machine: str
    frames: int
    tensor: int
    rows: int
    rollout: str = ""  # `rollout.mesh`; empty: the training's
    remat: str = "full"
    data: int = 1

    @property
    def name(self):
        return f"{self.recipe} {self.machine} {self.frames} frames {self.rollout}".strip()

    def job(self):
        config = importlib.import_module(self.recipe).get_config()
        machine = machines.find(self.machine)
        config.media.min_frames = config.media.max_frames = self.frames
        config.mesh.data, config.mesh.tensor = self.data, self.tensor
        config.data.rows = self.rows
        longest = self.frames // 2 * 128 + 1024  # tokens of a prompt, with room for its text
        config.data.row_tokens = max(config.data.row_tokens, 4096, longest)
        config.rollout.mesh, config.model.remat = self.rollout, self.remat
        if self.machine == "v6e-1":  # holds base and a copy for the rollout of half its size
            config.rollout.int8_weights = config.rollout.int8_cache = True
        config.train.accumulate = self.rows * self.tensor // machine.num_devices  # a row at a time
        return plan.make_job(read_options(config), machine)


def entries():
    found = []
    for machine, (tensor, prompts, rows) in FULL.items():
        for size in ("7b", "3b"):
            width = min(tensor, 2) if size == "3b" else tensor  # two kv heads
            found += [
                Entry(f"{mode}_{size}", machine, frames, width, count)
                for mode, count in (("grpo", prompts), ("sft", rows))
                for frames in (16, 32)
            ]
        data, remat, most = CHOSEN[machine]
        found += [
            Entry("grpo_7b", machine, frames, 1, prompts, "auto", *chosen)
            for frames in (16, 64, 256)
            for chosen in ((remat, data) if frames <= most else ("full", 1),)
        ]
    for machine, (tensor, prompts, rows) in LORA.items():
        found += [
            Entry(f"{mode}_7b_lora", machine, frames, tensor, count)
            for mode, count in (("grpo", prompts), ("sft", rows))
            for frames in (16, 32)
        ]
    for machine, (tensor, prompts, rows) in QWEN3.items():
        found += [
            Entry(f"{mode}_qwen3vl_{size}", machine, frames, tensor, count)
            for size in ("8b", "4b")
            for mode, count in (("grpo", prompts), ("sft", rows))
            for frames in (16, 64, 256)
        ]
    return found


def rank(entry):
    """What is compiled first: the recipes of 7B with 16 frames on the machines of the project's
    aim, adapters, and then the rest."""
    aims = ("v6e-16", "v5p-8", "v5e-64")
    if entry.recipe == "grpo_7b" and entry.frames == 16 and entry.machine in aims:
        return 0, aims.index(entry.machine), False
    return (1 if entry.frames == 16 else 2), ("7b" not in entry.recipe), entry.machine in FULL


def compile_entry(entry):
    """Fills in what is not known of an entry's programs."""
    job, store = entry.job(), measure.Store(FIGURES)
    for program in find_programs(job):
        if store.get(measure.lower(job, program)[1]) is None:
            print(f"{entry.name} {program.name} ...", flush=True)
            found = measure.measure(job, program, store)
            what = f"{entry.name} {program.name}: {found.peak:.2f} GiB"
            print(f"    {what}, {found.compile_s:.0f} s", flush=True)


class Figures:
    """What is known of the programs of entries."""

    def __init__(self):
        self.store, self.used = measure.Store(FIGURES), set()

    def rows(self, entry):
        """(rows, step) of an entry: compiled, or estimated."""
        job = entry.job()
        costs, rows = program_costs(job), []
        for program in find_programs(job):
            key = measure.lower(job, program)[1]
            self.used.add(key)
            found = self.store.get(key) or estimate(job, program.name)
            rows.append(report.make_row(job, program, found, costs[program.name]))
        return rows, report.summarise(job, rows)


def line(entry, rows, step):
    worst = max(rows, key=lambda row: row.peak_gib)
    sure = not any(row.estimated for row in rows)
    fits = ("yes" if step["fits"] else "**no**") + ("" if sure else " ~")
    per = " ".join(f"{row.name} {'~' if row.estimated else ''}{row.peak_gib:.1f}" for row in rows)
    rollout = step.get("chip_s_per_rollout")
    minutes = f"{step['compile_s'] / 60:.1f}" if sure else "-"
    mesh, drawn = (
        "x".join(str(size) for size in step.get(name, step["mesh"]).values())
        for name in ("mesh", "rollout_mesh")
    )
    return (
        f"| {entry.recipe} | {entry.machine} | {entry.frames} | {mesh} | "
        f"{'-' if rollout is None else drawn} | {entry.rows} | {entry.remat} | {fits} | "
        f"{worst.peak_gib:.1f} of {worst.limit_gib:.1f} | {per} | {step['floor_s']:.2f} | "
        f"{step['wired_floor_s']:.2f} | {'-' if rollout is None else f'{rollout:.2f}'} | "
        f"{minutes} |"
    )


def write(lines, num_known, num_all, minutes):
    TABLE.write_text(
        "# What the recipes need of a TPU slice\n\n"
        "Written by `python benchmarks/plan_table.py`; nothing here was run on a TPU. R = 8 "
        "completions of 768 tokens, clips of 128 visual tokens a frame pair. Memory is GiB of a "
        "device (half a chip of TPU7x), with what lies beside the program, against what the "
        "compiler lets a program use. Floors are the least seconds of a step by arithmetic and "
        "memory, and with what chips send each other: gathers of weights and sums of gradients as "
        "far as they outlast the computation, and all that is waited for: sums of activations, and "
        "whatever decoding sends but for the time in which weights are fetched from memory "
        "meanwhile. Links "
        "are those of Google's pages, a hop takes one microsecond (`planning/links.py`); bytes are "
        "read off the compiled program where it was compiled since they are, and formulas "
        "elsewhere.\n\n"
        f"**{num_known} of {num_all} programs are compiled**; figures with ~ are formulas "
        "(`videorft_jax/planning/estimate.py`).\n\n"
        "Adapters on one v6e chip sample with `rollout.int8_weights` and `rollout.int8_cache`; all "
        "other recipes are as they are but for mesh, rows, `model.remat` and `train.accumulate`, a "
        "row at a time. "
        f"Compile minutes are of one processor; {minutes:.0f} in all, for two to share.\n\n"
        "rollout: the mesh on which completions are drawn. GRPO of 7B stands there twice, on the "
        "training's mesh and on the planner's choice, which `rollout.mesh=auto` takes; v5e-64 then "
        "trains without tensor, with 16 frames as two halves that each hold all weights, and less "
        "is computed again where there is memory. chip-s / "
        "rollout: chip-seconds of a completion by the floor with wires.\n\n"
        "| recipe | machine | frames | mesh | rollout | rows | remat | fits | largest | "
        "per program | floor s | with wires | chip-s / rollout | compile min |\n"
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n" + "\n".join(lines) + "\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    own = parser.parse_args()
    if not own.write:
        wanted = [e for e in sorted(entries(), key=rank) if set(own.only) <= set(e.name.split())]
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(own.processes, spawn) as pool:
            list(pool.map(compile_entry, wanted))
    figures, lines, total, have = Figures(), [], 0, 0
    for entry in entries():
        rows, step = figures.rows(entry)
        total, have = total + len(rows), have + sum(not row.estimated for row in rows)
        lines.append(line(entry, rows, step))
    figures.store.keep(figures.used)
    write(lines, have, total, figures.store.compile_minutes())


if __name__ == "__main__":
    main()
