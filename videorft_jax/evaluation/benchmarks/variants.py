"""The two ways of asking a benchmark's question: as the paper's script does, and as its own code
does. A record that is a chat keeps its wording to the byte."""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from videorft_jax.data.records.lines import MARK
from videorft_jax.data.records.opening import digest_records
from videorft_jax.evaluation.benchmarks.subtitles import read_subtitles
from videorft_jax.evaluation.benchmarks.task import Item
from videorft_jax.evaluation.benchmarks.wording import Wording, lettered
from videorft_jax.evaluation.results_folder import check_begun, exchange_records

log = logging.getLogger(__name__)

VARIANTS = ("as_paper", "official")
# The prompt of the evaluation script of VideoRFT and Video-R1. No system turn is given, so that the
# chat format adds its own.
_PAPER = (
    "\nPlease think about this question as if you were a human pondering deeply. Engage in an "
    "internal dialogue using expressions such as 'let me think', 'wait', 'Hmm', 'oh, I see', "
    "'let's break it down', etc, or other natural language thought expressions It's encouraged to "
    "include self-reflection or verification in the reasoning process. Provide your detailed "
    "reasoning between the <think> and </think> tags, and then give your final answer between the "
    "<answer> and </answer> tags."
)
_NUMBER = (
    " Please provide the numerical value (e.g., 42 or 3.14) within the <answer> </answer> tags."
)
_SUFFIXES = {
    "multiple choice": " Please provide only the single option letter (e.g., A, B, C, D, etc.) "
    "within the <answer> </answer> tags.",
    "OCR": " Please transcribe text from the image/video clearly and provide your text answer "
    "within the <answer> </answer> tags.",
    "numerical": _NUMBER,
    "regression": _NUMBER,
}
_TEXT = " Please provide your text answer within the <answer> </answer> tags."


@dataclasses.dataclass(frozen=True)
class Variant:
    """How questions are asked.

    name: `as_paper` shows whole clips and asks in the words of the paper's script; `official` shows
    the part that the benchmark names and asks as its own code does. think: whether the paper's
    prompt asks for reasoning. with_subtitles: whether the official prompt shows subtitles also
    where the benchmark is known without them.

    Raises ValueError for a variant that does not exist.
    """

    name: str = "as_paper"
    think: bool = True
    with_subtitles: bool = False

    def __post_init__(self):
        if self.name not in VARIANTS:
            raise ValueError(
                f"benchmarks: variant is {self.name!r}; choose one of {', '.join(VARIANTS)}"
            )
        if self.name == "as_paper" and self.with_subtitles:
            raise ValueError(
                "benchmarks: as_paper shows no subtitles; give --variant=official with --subtitles"
            )

    def shows_subtitles(self, item: Item) -> bool:
        """Whether the clip's subtitles are part of the prompt."""
        own = item.subtitles
        return (
            self.name == "official"
            and own is not None
            and (self.with_subtitles or not own.is_asked)
        )


def paper_prompt(item: Item, think: bool = True) -> str:
    """The paper's wording: the options stand a line each behind the question, and a blank line
    between them and the instruction, as every option ends in a line break. Where the model is not
    to `think`, the instruction to reason is left out and the rest is the same."""
    problem = item.question
    if item.kind == "multiple choice":
        lines = item.option_lines or lettered(item.options)
        problem += "\n" + "".join(f"{line}\n" for line in lines)
    suffix = _SUFFIXES.get(item.kind, _TEXT)
    return f"{problem}{_PAPER}{suffix}" if think else f"{problem}\n{suffix.lstrip()}"


def make_record(
    item: Item, benchmark: str, variant: Variant, folder: pathlib.Path, pictures: str = ""
) -> dict[str, Any]:
    """The row of a record file; the fields that scoring needs stand beside those of a record.

    folder: the benchmark's, which holds its subtitles. pictures: the folder where the pictures of
    questions lie as files, see `write_records`. Raises ValueError where `official` is asked of a
    record file, which has no words of its own, and where a prompt that asks for no reasoning shall
    do without it.
    """
    if variant.name == "as_paper":
        words = Wording(paper_prompt(item, variant.think))
        media = [_without_bounds(part) for part in item.media]
    else:
        words, media = _ask_officially(item, benchmark, variant, folder)
        if item.picture:
            media.append({"type": "image", "path": f"{pictures}/{picture_name(item)}"})
    kind = item.kind if item.kind in ("multiple choice", "regression", "numerical") else "free-form"
    answer = {"role": "assistant", "content": item.gold or "?"}
    turns = [{"role": "user", "content": words.prompt}]
    if words.system:
        turns.insert(0, {"role": "system", "content": words.system})
    return {
        "problem_id": item.id,
        "problem": item.question,
        "problem_type": "free-form" if kind == "multiple choice" and not item.gold else kind,
        "solution": item.gold or "?",
        "media": media,
        "messages": [*turns, answer | ({"opening": words.opening} if words.opening else {})],
        "benchmark": benchmark,
        "variant": variant.name,
        "question_type": item.kind,
        "choices": list(item.options),
        "categories": dict(item.categories),
        "cluster": item.cluster,
        "judged": item.judged,
    }


def _without_bounds(part):
    return {key: value for key, value in part.items() if key not in ("start", "end")}


def _ask_officially(item, benchmark, variant, folder):
    """(wording, media) as the benchmark's own code asks, subtitles included."""
    if item.wording is None or not variant.think:
        lacks = "prompt of its own" if variant.think else "reasoning to leave out in its own prompt"
        raise ValueError(f"{benchmark}: has no {lacks}; give --variant=as_paper")
    words, media = item.wording, [dict(part) for part in item.media]
    if not variant.shows_subtitles(item):
        return words, media
    own, lines = item.subtitles, read_subtitles(folder, item.subtitles)
    if not lines:
        return words, media
    prompt = words.prompt
    if own.subject:
        prompt = prompt.replace("based on the video.", f"based on {own.subject}.")
    if own.is_whole:
        prompt = own.listed.replace(MARK, " ".join(text for *_, text in lines)) + prompt
    else:
        shown = {"lines": [list(line) for line in lines], "listed": own.listed}
        media[0] |= {name: value for name, value in shown.items() if value}
    return words._replace(prompt=prompt), media


def picture_name(item: Item) -> str:
    """The file of an item's picture, named for its content."""
    return f"{hashlib.sha256(item.picture).hexdigest()[:24]}.png"


def write_records(
    path: str | os.PathLike,
    items: Sequence[Item],
    benchmark: str,
    variant: Variant,
    folder: pathlib.Path,
) -> None:
    """Writes the record file of a benchmark; the same items give the same bytes. Pictures of
    questions are written into a folder beside it, to which the records lead. Raises ValueError
    where there are completions of other records beside it, which then keep theirs; clips that were
    missing and lie under another name now make no other records."""
    path = pathlib.Path(os.path.abspath(path))
    pictures = path.with_name("pictures")
    rows = [make_record(item, benchmark, variant, folder, str(pictures)) for item in items]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    asked = dataclasses.asdict(variant) | {"benchmark": benchmark}
    digest = hashlib.sha256(data).hexdigest()
    if num_found := _count_found(path, data, folder):
        log.info("%s: %d clips that were missing are there now", path.parent, num_found)
        exchange_records(path.parent, digest_records(path), digest)
    check_begun(path.parent, {"benchmark": asked, "records": {"sha256": digest}})
    path.parent.mkdir(parents=True, exist_ok=True)
    for item in items if variant.name == "official" else ():
        if item.picture and not (pictures / picture_name(item)).exists():
            pictures.mkdir(exist_ok=True)
            _replace(pictures / picture_name(item), item.picture)
    _replace(path, data)


def _count_found(path, data, folder):
    """The number of rows that show another file than the records at `path` do, which is not there;
    0 where anything else differs."""
    try:
        count, both = 0, (text.split(b"\n")[:-1] for text in (path.read_bytes(), data))
        for old, new in zip(*(map(json.loads, lines) for lines in both), strict=True):
            if old == new:
                continue
            names = [part["path"] for part in old["media"]]
            moved = {name: new[name] for name in ("media", "cluster")}
            if old | moved != new or any((folder / n).exists() for n in names):
                return 0
            count += 1
    except (OSError, ValueError, KeyError, TypeError):
        return 0  # There are none, or they are damaged.
    return count


def _replace(path, data):
    """Writes a file whole or not at all, also where several processes write the same one."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    os.replace(partial, path)
