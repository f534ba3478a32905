"""Whatever others write is read or refused by one line: records, answers, options and weights.

The default run tries a hundred of each, `-m slow` ten thousands, for ten minutes in all. Bodies
of chats are tried in tests/serving/test_serve_bodies.py, pictures and clips in test_mutated_media.
"""

import functools
import json
import math
import time

import pytest
import tiny_run
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from videorft_jax.commands import flags, options_help, recipes
from videorft_jax.data.records.formats import convert_row, detect_format
from videorft_jax.data.records.records import Record, find_errors, parse_row
from videorft_jax.models import tensor_files
from videorft_jax.rewards.accuracy import MODES, score_accuracy, score_format, to_float
from videorft_jax.rewards.answers import parse_number

RECIPE = tiny_run.ROOT / "configs" / "sft_7b.py"

WORDS = st.sampled_from([
    "problem_id", "problem", "data_type", "problem_type", "options", "process", "solution", "path",
    "messages", "role", "content", "conversations", "from", "value", "videos", "images", "media",
    "video", "image", "text", "type", "start", "end", "multiple choice", "numerical", "free-form",
    "user", "assistant", "<think>", "</think>", "<answer>A</answer>", "<video>", "<image>", "\0",
    "../../etc/passwd", "http://a/b.mp4", "NaN", "\ud800", "A. red", "clip.mp4",
])  # fmt: skip
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8), WORDS
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=5),
    max_leaves=12,
)
GOOD = {
    "problem_id": 1, "problem": "What moves?", "data_type": "video", "problem_type": "free-form",
    "options": [], "process": "<think>It moves.</think>", "solution": "<answer>A ball</answer>",
    "path": "./clip.mp4", "data_source": "made up",
}  # fmt: skip
ODD = st.sampled_from(["a\ud800", "a\0b", "", " ", "\u2028", "a" * 100_000])
ROWS = VALUES | st.dictionaries(
    st.sampled_from([*GOOD, "start", "end"]), ODD | VALUES, min_size=1, max_size=3
).map(lambda changes: GOOD | changes)


def check_record(row):
    """A record that is accepted can be written and shown: no lone surrogate, no NUL, none empty."""
    found = find_errors(row)
    try:
        record = parse_row(row)
        assert isinstance(record, Record)
        assert not found
        for text in (record.problem, record.process, record.solution, record.path, *record.options):
            assert "\0" not in text
            text.encode()
    except ValueError as error:
        assert found
        one_line(error)
    try:
        convert_row(row, detect_format(row, "row 1"), "row 1", 0)
    except ValueError as error:
        one_line(error)


KINDS = ("multiple choice", "numerical", "OCR", "free-form", "regression", "other")
PIECES = st.sampled_from([
    "<answer>", "</answer>", "<think>", "</think>", "<answer", "nan", "inf", "-", "1e999", "1_2",
    "9**9**9", "\\frac{1}{0}", "\\boxed{", "}", "\uff11", "A", "(B)", "__import__('os')", "%",
    "1/3", "\n", " ", "\x1c", "\u2212", "3.14", ",", "\ud800", "no", "metres",
])  # fmt: skip
TEXTS = st.lists(PIECES | st.text(st.characters(codec=None), max_size=6), max_size=14).map("".join)
COUNTS = st.sampled_from([1, 100, 30_000])
REPEATED = st.tuples(PIECES, COUNTS, PIECES, COUNTS).map(
    lambda parts: parts[0] * parts[1] + parts[2] * parts[3]
)
BEYOND = st.sampled_from([None, "1e999", "nan", "-inf", None, "-1e999", "NaN", "Infinity"])


def make_case(beyond, kind, mode, text, solution):
    """Some cases answer a number beyond all numbers by the same one."""
    if beyond:
        text, solution = f"<think>a</think><answer>{beyond}</answer>", f"<answer>{beyond}</answer>"
    return text, solution, kind, mode, beyond


ANSWERS = st.builds(
    make_case, BEYOND, st.sampled_from(KINDS), st.sampled_from(MODES), TEXTS | REPEATED, TEXTS
)


def check_answer(case):
    text, solution, kind, mode, beyond = case
    began = time.process_time()
    score = to_float(score_accuracy(text, solution, kind, ("A. red", "B. blue"), mode))
    assert math.isnan(score) or 0.0 <= score <= 1.0
    # The mode "repo" has the original's defects; "strict" compares digits that are no number, such
    # as 1:23, as they are written.
    is_number = kind == "regression" or (kind == "numerical" and mode == "paper")
    if beyond and is_number and mode != "repo":
        assert not score > 0.0, "a reward for a number that is none"
    number = parse_number(beyond or solution)
    assert number is None or math.isfinite(number.value)
    assert score_format(text, mode) in (0.0, 1.0)
    assert time.process_time() - began < 10.0  # a cubic pattern takes a quarter of an hour


OPTIONS = [name for name, _ in options_help.flatten(recipes.read("sft_7b"), "config")]
OVERRIDES = st.lists(
    st.tuples(
        st.sampled_from(OPTIONS) | WORDS | st.text(max_size=8),
        st.sampled_from(["=", "", "[0]=", ".x=", "=="]),
        st.sampled_from(
            ["1", "-1", "nan", "1e999", "True", "()", "('a',)", "none", "((", "0", "[]"]
        )
        | st.text(max_size=6),
    ).map(lambda parts: f"--config.{parts[0].removeprefix('config.')}{parts[1]}{parts[2]}"),
    max_size=3,
)


def check_overrides(words):
    """Only the reading is tried: no device is touched before it is done."""
    try:
        flags.parse([f"--config={RECIPE}", *words], "videorft sft", "", writes=False)
    except ValueError as error:
        one_line(error)


HEADERS = st.dictionaries(
    st.text(max_size=5),
    VALUES
    | st.fixed_dictionaries({
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "I64", "X"]) | LEAVES,
        "shape": st.lists(st.integers(-1, 2**40) | LEAVES, max_size=3) | LEAVES,
        "data_offsets": st.lists(st.integers(-1, 64) | LEAVES, max_size=3) | LEAVES,
    }),
    max_size=3,
)  # fmt: skip


COUNT, SIZE = st.integers(0, 3), st.sampled_from([1, 2, 3, 0])
TENSORS = st.lists(
    st.tuples(st.sampled_from(["F32", "BF16", "I64"]), st.lists(SIZE, max_size=3)), max_size=3
)
CHANGES = st.none() | st.tuples(
    COUNT, st.sampled_from(["dtype", "shape", "begin", "end", "copy"]), LEAVES | st.integers(0, 64)
)


def make_near(tensors, change):
    """A whole header, of which one field of one tensor may be another."""
    header, position = {}, 0
    for number, (dtype, shape) in enumerate(tensors):
        size = math.prod(shape) * {"F32": 4, "BF16": 2, "I64": 8}[dtype]
        offsets = [position, position + size]
        header[str(number)] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
        position += size
    if change and header:
        place, field, value = change
        chosen = header[str(place % len(header))]
        if field in ("begin", "end"):
            chosen["data_offsets"][field == "end"] = value
        elif field == "copy":
            chosen["data_offsets"] = header["0"]["data_offsets"]
        else:
            chosen[field] = value
        ends = [one["data_offsets"][1] for one in header.values()]
        if all(isinstance(end, int) and 0 <= end < 1000 for end in ends):
            position = max(ends)  # So the file is as long as the header says.
    return header, bytes(position), None


NEAR = st.builds(make_near, TENSORS, CHANGES)


def check_header(folder, case):
    """The tensors of a header that is accepted fill the file, one behind the other."""
    header, data, length = case
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    try:
        entries = tensor_files.read_header(path)
    except ValueError as error:
        one_line(error)
    else:
        position = 8 + size
        for entry in sorted(entries.values(), key=lambda entry: (entry.offset, entry.nbytes)):
            assert entry.offset == position
            position += entry.nbytes
        assert position == path.stat().st_size


def one_line(error):
    assert str(error)
    assert "\n" not in str(error)


def test_a_part_of_an_option_is_refused():
    """Found by fuzzing: an index ended in the trace of an IndexError, a newline in two lines."""
    with pytest.raises(ValueError, match=r"^no such option: 'a\\nb'; --help=options lists"):
        flags.parse([f"--config={RECIPE}", "--config.a\nb=1"], "sft", "", writes=False)
    for option in ("alarms.entropy_below[0]=1", "ablate.seeds[0]=1", "rewards[0][1]=2.0"):
        with pytest.raises(ValueError, match=r"give the whole option, --config\.[a-z_.]+=VALUE"):
            flags.parse([f"--config={RECIPE}", f"--config.{option}"], "sft", "", writes=False)


LENGTHS = st.none() | st.integers(0, 2**64 - 1)
CASES = {  # (strategy, check, examples of the default run, examples of the long one)
    "records": (ROWS, check_record, 80, 12_000),
    "answers": (ANSWERS, check_answer, 80, 20_000),
    "overrides": (OVERRIDES, check_overrides, 60, 4_000),
    "headers": (
        NEAR | st.tuples(HEADERS, st.binary(max_size=64), LENGTHS),
        check_header, 100, 40_000,
    ),
}  # fmt: skip


@pytest.mark.parametrize("is_long", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_whatever_is_written_is_read_or_refused(name, is_long, tmp_path):
    strategy, check, few, many = CASES[name]
    check = functools.partial(check, tmp_path) if name == "headers" else check

    @seed(1)
    @settings(
        max_examples=many if is_long else few, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def run(case):
        check(case)

    run()
