"""`videorft validate`: everything that is wrong with a data set, before anything is trained on it.

The command decodes every clip with the reader, the limits and the contract of training, and keeps
what it learns in the folder that the loader reads at its start. A record that passes here passes
there, and training then starts at once.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from videorft_jax.data.loader.buckets import choose_buckets
from videorft_jax.data.loader.measure import Measured, Measurer, measure
from videorft_jax.data.loader.schedule import make_schedule
from videorft_jax.data.loader.size_cache import SizeCache
from videorft_jax.data.media.contract import Limits, MediaContract
from videorft_jax.data.media.probe import Probe
from videorft_jax.data.records.prompts import DEFAULT_TEMPLATE, build_target, load_template
from videorft_jax.data.records.quarantine import Failure, one_line
from videorft_jax.data.records.records import Record, RecordError, find_errors
from videorft_jax.data.records.source import Rows, Source
from videorft_jax.data.records.tokenizer_folder import load_tokenizer

WIDE = 4.0  # aspect ratio from which a picture is called odd


@dataclasses.dataclass(frozen=True)
class ValidateOptions:
    """mode: sft, grpo or evaluate, which decides what a sample holds and how rows are packed.
    contract: how clips become frames. tokenizer: a folder; without it text tokens are estimated.
    quick: look at packets, decode nothing. sizes_dir: folder that remembers what was checked.
    allowed: fields beside the schema that may be there, None for all; those that begin with extra_
      say by their names that nothing here reads them, and may too. The others are the
    loader's."""

    mode: str
    contract: MediaContract
    tokenizer: str | None
    template_file: str | None
    rows: int
    row_tokens: int
    max_buckets: int
    multiple: int
    quick: bool
    isolate: bool
    threads: int
    sizes_dir: str | None
    limits: Limits
    allowed: tuple[str, ...] | None = ()


def describe(values: np.ndarray) -> dict[str, float]:
    """The least, mean, median, 95th percentile and greatest of some numbers; {} where there are
    none."""
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


def find_duplicates(source: Source, bad: set[int]) -> dict[str, list[int]]:
    """The rows that repeat the id of an earlier sound row, or its question about the same media."""
    ids, questions = set(), set()
    repeated: dict[str, list[int]] = {"problem_id": [], "question and media": []}
    for index in range(len(source)):
        if index in bad:
            continue
        record = source[index]
        question = hash((record.problem, record.options, record.media, record.turns))
        if record.problem_id in ids:
            repeated["problem_id"].append(index)
        if question in questions:
            repeated["question and media"].append(index)
        ids.add(record.problem_id)
        questions.add(question)
    return repeated


def plan_report(measured: Measured, options: ValidateOptions) -> dict[str, Any]:
    """The shapes that training would compile, its batches an epoch and their padding, worked out by
    the loader's own planner."""
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


class Fault(NamedTuple):
    """One thing that is wrong with one row, and what to do about it."""

    index: int
    where: str  # the media file, or the field of the row
    reason: str
    detail: str
    remedy: str


CheckTruth = Callable[[Record], tuple[str, str] | None]  # what is wrong, and the remedy


def find_unreadable(source: Source, indices: Sequence[int], check: CheckTruth) -> list[Fault]:
    """The sound rows whose true answer no reward could compare anything with."""
    found = []
    for index in indices:
        problem = check(source[index])
        if problem:
            found.append(Fault(index, "solution", "truth", *problem))
    return found


def find_faults(measurer: Measurer, index: int, sizes: SizeCache) -> list[Fault]:
    """Everything that is wrong with one row: each field, the text, and each of its media."""
    source = measurer.source
    try:
        row = source.row(index) if isinstance(source, Rows) else source[index].to_row()
        errors = find_errors(row, source.where(index))
    except RecordError as error:
        errors = [error]
    if errors:
        return [Fault(index, e.field, e.reason, one_line(e.value)[:80], e.remedy) for e in errors]
    record, faults = source[index], []
    probes = [measurer.media(index, item, sizes) for item in record.media]
    for item, probe in zip(record.media, probes, strict=True):
        if probe.reason:
            found = Failure(index, item.name, probe.reason, probe.detail)
            faults.append(Fault(index, one_line(item.name), *found[2:], found.remedy))
    try:
        if measurer.target:
            build_target(record)
        if not faults:
            measurer.text(record, sizes, probes)
    except ValueError as error:
        detail, _, remedy = str(error).rpartition("; ")
        faults.append(Fault(index, "prompt", "prompt", one_line(detail), remedy))
    return faults


def validate(
    source: Source,
    options: ValidateOptions,
    progress: Any = None,
    check_truth: CheckTruth | None = None,
) -> dict[str, Any]:
    """The report as one JSON object. check_truth: what is wrong with a record's true answer, where
    rewards are going to read it."""
    tokenizer = load_tokenizer(options.tokenizer) if options.tokenizer else None
    contract = options.contract
    template = load_template(options.template_file) if options.template_file else DEFAULT_TEMPLATE
    measurer = Measurer(
        source=source,
        contract=contract,
        tokenizer=tokenizer,
        template=template,
        target=options.mode == "sft",
        limits=options.limits,
        isolate=options.isolate,
        full=not options.quick,
    )
    known_sizes = SizeCache(options.sizes_dir)
    try:
        measured = measure(measurer, known_sizes, options.threads, progress)
        indices = [failure.index for failure in measured.failures]
        faults = [fault for i in indices for fault in find_faults(measurer, i, known_sizes)]
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
    plan = plan_report(measured, options)
    for index in plan["too_many_tokens"]:
        what = f"{measured.sizes.tokens[index]} tokens, {options.row_tokens} fit"
        found = Failure(index, source.where(index), "too_many_tokens", what)
        faults.append(Fault(index, "prompt", *found[2:], found.remedy))
    if check_truth is not None:
        faults += find_unreadable(source, good, check_truth)
    allowed = measured.unused if options.allowed is None else options.allowed
    unused = {name: count for name, count in sorted(measured.unused.items()) if name not in allowed}
    sizes, probes = measured.sizes, [probe for i in good for probe in measured.probes[i]]
    return {
        "data": getattr(source, "path", None) or source.folder,
        "format": getattr(source, "form", "tfds"),
        "data_root": source.data_root,
        "mode": options.mode,
        "media_contract": contract.to_dict() | {"digest": contract.digest},
        "decoded": not options.quick,
        "text_tokens": "tokenizer" if tokenizer else "estimated, four bytes each",
        "num_records": len(source),
        "num_good": len(good),
        "reasons": dict(collections.Counter(f.reason for f in measured.failures)),
        "failures": [failure._asdict() for failure in measured.failures],
        "faults": [fault._asdict() for fault in sorted(faults)],
        "unused_fields": unused,
        "duplicates": find_duplicates(source, schema),
        "odd": dict(odd),
        "types": dict(types.most_common()),
        "frame_sizes": dict(resolutions.most_common()),
        "tokens": describe(sizes.tokens[good]),
        "visual_tokens": describe(measured.visual_tokens[good]),
        "frames": describe(np.array([p.frames for p in probes])),
        "seconds": describe(np.array([p.frames / p.fps for p in probes if p.frames > 1])),
        "plan": plan,
    }


def guess_mode(source: Source) -> tuple[str, str]:
    """The mode of a data set, and why: sft where the first sound row has reasoning or is a chat."""
    for index in range(len(source)):
        with contextlib.suppress(RecordError):
            record = source[index]
            if record.process or record.turns:
                what = "reasoning" if record.process else "a chat"
                return "sft", f"guessed: row {index} has {what}"
            return "grpo", f"guessed: row {index} has no reasoning"
    return "grpo", "no row is sound"
