"""The two ways of asking a benchmark's question: as the paper's script does, and as its own code
does. A record that is a chat keeps its wording to the byte."""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from videorft_jax.evaluation.benchmarks.task import Item, lettered

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


def check_variant(name: str) -> None:
    """Raises ValueError for a variant that does not exist."""
    if name not in VARIANTS:
        raise ValueError(f"benchmarks: variant is {name!r}; choose one of {', '.join(VARIANTS)}")


def paper_prompt(item: Item, think: bool = True) -> str:
    """The paper's wording: the options stand a line each behind the question, and a blank line
    between them and the instruction, as every option ends in a line break. Where the model is not
    to `think`, the instruction to reason is left out and the rest is the same."""
    problem = item.question
    if item.kind == "multiple choice":
        problem += "\n" + "".join(f"{line}\n" for line in lettered(item.options))
    suffix = _SUFFIXES.get(item.kind, _TEXT)
    return f"{problem}{_PAPER}{suffix}" if think else f"{problem}\n{suffix.lstrip()}"


def make_record(item: Item, benchmark: str, variant: str, think: bool = True) -> dict[str, Any]:
    """The row of a record file. `as_paper` shows whole clips, `official` the part that the
    benchmark names. The fields that scoring needs stand beside those of a record.

    Raises ValueError where `official` is asked of a record file, which has no words of its own, and
    where a prompt that asks for no reasoning shall do without it.
    """
    if variant == "official" and not (item.prompt and think):
        lacks = "prompt of its own" if think else "reasoning to leave out in its own prompt"
        raise ValueError(f"{benchmark}: has no {lacks}; give --variant=as_paper")
    prompt = paper_prompt(item, think) if variant == "as_paper" else item.prompt
    media = [dict(part) for part in item.media]
    if variant == "as_paper":
        media = [{k: v for k, v in part.items() if k not in ("start", "end")} for part in media]
    kind = item.kind if item.kind in ("multiple choice", "regression", "numerical") else "free-form"
    return {
        "problem_id": item.id,
        "problem": item.question,
        "problem_type": "free-form" if kind == "multiple choice" and not item.gold else kind,
        "solution": item.gold or "?",
        "media": media,
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": item.gold or "?"},
        ],
        "benchmark": benchmark,
        "variant": variant,
        "question_type": item.kind,
        "choices": list(item.options),
        "categories": dict(item.categories),
        "cluster": item.cluster,
    }


def write_records(
    path: str | os.PathLike,
    items: Iterable[Item],
    benchmark: str,
    variant: str,
    think: bool = True,
) -> None:
    """Writes the record file of a benchmark; the same items give the same bytes."""
    check_variant(variant)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps(make_record(item, benchmark, variant, think)) + "\n" for item in items]
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_text("".join(rows), encoding="utf-8")
    os.replace(partial, path)
