"""`videorft validate`: everything that is wrong with a data set, before anything is trained on it.

One design decision is worth knowing: it decodes every clip with the reader, the limits and the
contract of training, and keeps what it learns in the folder that the loader reads at its start.
What passes here passes there, and training then starts at once.
"""

import argparse
import collections
import contextlib
import sys
import time
from typing import Any

import numpy as np

from videorft_jax.data.loader.buckets import choose_buckets
from videorft_jax.data.loader.measure import Measured, Measurer, measure
from videorft_jax.data.loader.schedule import make_schedule
from videorft_jax.data.loader.size_cache import SizeCache
from videorft_jax.data.media.contract import Limits, MediaContract
from videorft_jax.data.media.probe import Probe
from videorft_jax.data.records.prompts import DEFAULT_TEMPLATE, load_template
from videorft_jax.data.records.quarantine import reason_table
from videorft_jax.data.records.records import RecordError
from videorft_jax.data.records.source import RecordSource

SHOWN = 20  # faults printed one by one; the JSON holds them all
WIDE = 4.0  # aspect ratio from which a picture is called odd


class Bar:
    """A line that is redrawn on a terminal; elsewhere one line every ten seconds."""

    def __init__(self, total: int, stream: Any = None):
        self.total, self.stream = total, stream or sys.stderr
        self.start = self.last = time.monotonic()
        self.live = self.stream.isatty()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if done != self.total and now - self.last < (0.1 if self.live else 10.0):
            return
        self.last, spent = now, now - self.start
        left = spent / done * (self.total - done)
        filled = 30 * done // self.total
        line = f"[{'#' * filled:<30}] {done}/{self.total} records, {left:.0f} s left"
        last = done == self.total
        self.stream.write(f"\r{line}{chr(10) if last else ''}" if self.live else f"{line}\n")
        self.stream.flush()


def describe(values: np.ndarray) -> dict[str, float]:
    """Least, mean, median, 95th percentile and greatest of a list of numbers; empty when empty."""
    if not len(values):
        return {}
    points = {"min": values.min(), "mean": values.mean(), "median": np.median(values)}
    points |= {"p95": np.percentile(values, 95), "max": values.max()}
    return {name: round(float(value), 3) for name, value in points.items()}


def find_odd(probe: Probe, contract: MediaContract, data_type: str) -> list[str]:
    """What is unusual, though usable, about a clip: names of the kinds counted in the report."""
    odd = []
    sides = (probe.source_height, probe.source_width)
    if max(sides) > WIDE * min(sides):
        odd.append(f"aspect ratio above {WIDE:g}")
    if sides[0] * sides[1] < 0.25 * probe.height * probe.width:
        odd.append("enlarged more than twice a side")
    if data_type == "video":
        if contract.num_frames is None and probe.frames < contract.min_frames:
            odd.append(f"fewer than {contract.min_frames} frames")
        if probe.fps < 0.1:
            odd.append("sampled less than once in 10 s")
    return odd


def find_duplicates(source: RecordSource, bad: set[int]) -> dict[str, list[int]]:
    """Rows that repeat an earlier sound row's id, or its question about the same media."""
    ids, questions = set(), set()
    repeated: dict[str, list[int]] = {"problem_id": [], "question and media": []}
    for index in range(len(source)):
        if index in bad:
            continue
        record = source[index]
        question = hash((record.problem, record.options, record.path, record.start, record.end))
        if record.problem_id in ids:
            repeated["problem_id"].append(index)
        if question in questions:
            repeated["question and media"].append(index)
        ids.add(record.problem_id)
        questions.add(question)
    return repeated


def plan_report(measured: Measured, options: argparse.Namespace) -> dict[str, Any]:
    """Compiled shapes, batches an epoch and padding, by the loader's own planner."""
    sizes, packed = measured.sizes, options.mode == "sft"
    bad = {failure.index for failure in measured.failures}
    good = np.array([i for i in range(len(sizes.tokens)) if i not in bad], np.int64)
    fits = sizes.tokens[good] <= options.row_tokens
    report: dict[str, Any] = {"too_many_tokens": good[~fits].tolist()}
    good = good[fits]
    if not len(good):
        return report | {"num_shapes": 0, "shapes": [], "num_batches": 0}
    numbers = (options.rows, options.row_tokens, options.max_buckets, options.multiple)
    buckets = choose_buckets(sizes.take(good), *numbers, packed)
    seed = None if options.mode == "evaluate" else 0
    schedule = make_schedule(good, sizes, buckets, packed=packed, seed=seed, epochs=1)
    waste = schedule.waste(sizes, measured.visual_tokens)
    shapes = [dict(zip(b._fields, map(int, b), strict=True)) for b in buckets]
    counts = np.bincount(schedule.bucket, minlength=len(buckets)).tolist()
    return report | {
        "num_shapes": len(buckets),
        "shapes": [s | {"batches": count} for s, count in zip(shapes, counts, strict=True)],
        "num_batches": len(schedule),
        "padding_of_tokens": round(waste[0], 4),
        "padding_of_visual_slots": round(waste[1], 4),
    }


def validate(source: RecordSource, options: argparse.Namespace) -> dict[str, Any]:
    """The report as one JSON object; see `main` for the options."""
    tokenizer = None
    if options.tokenizer:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer, local_files_only=True)
    contract = getattr(MediaContract, options.contract)()
    template = load_template(options.template_file) if options.template_file else DEFAULT_TEMPLATE
    measurer = Measurer(
        source=source,
        contract=contract,
        tokenizer=tokenizer,
        template=template,
        target=options.mode == "sft",
        limits=Limits(),
        isolate=options.isolate,
        full=not options.quick,
    )
    known_sizes = SizeCache(options.answers)
    try:
        measured = measure(measurer, known_sizes, options.threads, Bar(len(source)))
    finally:
        known_sizes.close()

    bad = {failure.index: failure for failure in measured.failures}
    schema = {i for i, failure in bad.items() if failure.reason == "schema"}
    odd: dict[str, list[int]] = collections.defaultdict(list)
    types: collections.Counter[str] = collections.Counter()
    resolutions: collections.Counter[str] = collections.Counter()
    good = []
    for index, found in enumerate(measured.probes):
        if index in bad:
            continue
        record = source[index]
        good.append(index)
        types[f"{record.data_type}, {record.problem_type}"] += 1
        for item, probe in zip(record.media, found, strict=True):
            resolutions[f"{probe.width}x{probe.height}"] += 1
            for what in find_odd(probe, contract, item.kind):
                odd[what].append(index)
    sizes, probes = measured.sizes, [probe for i in good for probe in measured.probes[i]]
    return {
        "data": source.path,
        "data_root": source.data_root,
        "mode": options.mode,
        "media_contract": contract.to_dict() | {"digest": contract.digest},
        "decoded": not options.quick,
        "text_tokens": "tokenizer" if tokenizer else "estimated, four bytes each",
        "num_records": len(source),
        "num_good": len(good),
        "reasons": dict(collections.Counter(f.reason for f in measured.failures)),
        "failures": [failure._asdict() for failure in measured.failures],
        "duplicates": find_duplicates(source, schema),
        "odd": dict(odd),
        "types": dict(types.most_common()),
        "frame_sizes": dict(resolutions.most_common()),
        "tokens": describe(sizes.tokens[good]),
        "visual_tokens": describe(measured.visual_tokens[good]),
        "frames": describe(np.array([p.frames for p in probes])),
        "seconds": describe(np.array([p.frames / p.fps for p in probes if p.frames > 1])),
        "plan": plan_report(measured, options),
    }


def print_report(report: dict[str, Any]) -> None:
    """The table for people."""
    print(f"{report['data']}: {report['num_good']} of {report['num_records']} records are good")
    if report["reasons"]:
        print(reason_table(report["reasons"], report["num_records"]))
        for failure in report["failures"][:SHOWN]:
            print("  row {index}: {path}: {reason}: {detail}".format(**failure))
        if len(report["failures"]) > SHOWN:
            print(f"  and {len(report['failures']) - SHOWN} more, all of them in --json")
    for title in ("duplicates", "odd"):
        for what, rows in report[title].items():
            if rows:
                print(f"{title}: {what}: {len(rows)}, first row {rows[0]}")
    for name in ("types", "frame_sizes"):
        shown = list(report[name].items())[:SHOWN]
        print(f"{name.replace('_', ' ')}: " + "; ".join(f"{k}: {v}" for k, v in shown))
    print(f"{'':<16}" + "".join(f"{c:>10}" for c in ("min", "mean", "median", "p95", "max")))
    for name in ("tokens", "visual_tokens", "frames", "seconds"):
        if report[name]:
            print(f"{name:<16}" + "".join(f"{v:>10.1f}" for v in report[name].values()))
    plan = report["plan"]
    print(f"text tokens: {report['text_tokens']}")
    print(f"{plan['num_shapes']} compiled shapes, {plan['num_batches']} batches an epoch")
    for shape in plan["shapes"]:
        print(
            "  {rows} rows of {length} tokens, {pairs} frame pairs, {windows} windows: {batches}"
            " batches".format(**shape)
        )
    if plan["too_many_tokens"]:
        rows = plan["too_many_tokens"]
        print(f"too long for a row: {len(rows)} records, first row {rows[0]}; raise --row_tokens")
    if plan["shapes"]:
        tokens, slots = plan["padding_of_tokens"], plan["padding_of_visual_slots"]
        print(f"padding: {tokens:.1%} of tokens, {slots:.1%} of visual token slots")


def guess_mode(source: RecordSource) -> str:
    """ "sft" if the first sound row has reasoning, else "grpo"."""
    for index in range(len(source)):
        with contextlib.suppress(RecordError):
            return "sft" if source[index].process else "grpo"
    raise ValueError(f"{source.path}: no sound row; {next(source.iter_errors())}")
