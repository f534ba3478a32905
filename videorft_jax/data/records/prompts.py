"""From a record to chat messages: the wording around a question, and the answer to learn."""

import dataclasses
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any

from videorft_jax.data.records.chats import (
    PLACEHOLDER,
    RESIZED,
    TIMES,
    MediaItem,
    split_text,
)
from videorft_jax.data.records.records import PROBLEM_TYPES, Record, label_options

MAX_TEMPLATE_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class PromptTemplate:
    """The wording around a question. `question` holds the mark {problem} once and {suffix} at most
    once; `suffixes` has one entry per problem type. An empty `system` leaves the system turn to
    the chat format, which then says "You are a helpful assistant."
    """

    system: str
    question: str
    suffixes: Mapping[str, str]

    def __post_init__(self):
        for field in ("system", "question"):
            if not isinstance(getattr(self, field), str):
                raise ValueError(f"prompt template: {field}: not a string; write a string")
        if self.question.count("{problem}") != 1 or self.question.count("{suffix}") > 1:
            raise ValueError(
                "prompt template: question: write {problem} once, {suffix} at most once"
            )
        if not isinstance(self.suffixes, Mapping) or set(self.suffixes) != set(PROBLEM_TYPES):
            types = ", ".join(PROBLEM_TYPES)
            raise ValueError(f"prompt template: suffixes: write exactly one for each of {types}")
        for name, suffix in self.suffixes.items():
            if not isinstance(suffix, str):
                raise ValueError(f"prompt template: suffixes.{name}: not a string; write a string")

    def fill(self, problem: str, problem_type: str) -> str:
        """The question's text. Marks are replaced in one pass: braces in `problem` are text."""
        values = {"{problem}": problem, "{suffix}": self.suffixes[problem_type]}
        return "".join(
            values.get(p, p) for p in re.split(r"(\{problem\}|\{suffix\})", self.question)
        )


DEFAULT_TEMPLATE = PromptTemplate(
    system=(
        "You answer questions about a video or an image. Think first, inside <think> and </think>:"
        " say what you see in the order in which it happens, then reason from it to a conclusion"
        " and check it. After that give the final answer, and nothing else, inside <answer> and"
        " </answer>."
    ),
    question="{problem}\n{suffix}",
    suffixes={
        "multiple choice": "Choose one option. The answer is its letter alone.",
        "numerical": "The answer is a number alone, such as 7 or 0.25.",
        "OCR": "The answer is the text as it is written in the picture.",
        "free-form": "The answer is a short text in your own words.",
        "regression": "Estimate the value. The answer is a number alone, such as 7 or 0.25.",
    },
)


def load_template(path: str | os.PathLike) -> PromptTemplate:
    """A template from a .json or .toml file with the keys system, question and suffixes, for users
    who must match the wording another checkpoint was trained with.

    Raises:
      ValueError: unreadable, malformed, too large, or a key missing or unknown.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_TEMPLATE_BYTES + 1)
        if len(data) > MAX_TEMPLATE_BYTES:
            raise ValueError(f"larger than {MAX_TEMPLATE_BYTES} bytes")
        text = data.decode("utf-8-sig")
        fields = tomllib.loads(text) if str(path).endswith(".toml") else json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; give a .json or .toml prompt template") from None
    names = [field.name for field in dataclasses.fields(PromptTemplate)]
    if not isinstance(fields, dict) or set(fields) != set(names):
        raise ValueError(f"{path}: write exactly the keys {', '.join(names)}")
    try:
        return PromptTemplate(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def append_options(problem: str, options: Iterable[str]) -> str:
    """The question with each option on a line of its own, appended only if it lacks them.

    It holds them if every option is found in order *with its letter* (case, spacing and the style
    of the label aside): a question that merely names the choices does not tell their letters.
    """
    labelled = label_options(options)
    folded = " ".join(problem.casefold().split())
    position = 0
    for letter, text in labelled:
        body = " ".join(text.casefold().rstrip(".").split())
        pattern = rf"(?<!\w)\(?{letter.lower()} ?[.):：、] ?{re.escape(body)}(?!\w)"
        match = re.compile(pattern).search(folded, position)
        if not match:
            lines = [f"{letter}. {text}" for letter, text in labelled]
            return "\n".join([problem.rstrip(), *lines])
        position = match.end()
    return problem


def build_messages(
    record: Record, template: PromptTemplate = DEFAULT_TEMPLATE
) -> list[dict[str, Any]]:
    """The chat of one record in Hugging Face's format, up to the answer that is asked for.

    The media stand where the question has placeholders such as <video>, or else before it. The path
    is the record's own, relative to the data root; `start` and `end` (seconds) are there when the
    record has them. A record that is a chat keeps its own wording; others get the template's system
    turn (unless it has none) and question.
    """
    media = [_show(item) for item in record.media]
    if record.turns:
        turns = list(record.turns[:-1])
    else:
        problem = append_options(record.problem, record.options)
        turns = [("user", template.fill(problem, record.problem_type))]
        if template.system:
            turns.insert(0, ("system", template.system))
    named = any(PLACEHOLDER.search(text) for role, text in turns if role == "user")
    messages = []
    for role, text in turns:
        content = split_text(text, media) if named and role == "user" else _plain(text)
        if role == "user" and not named:
            content, media = [*media, *content], []
        messages.append({"role": role, "content": content})
    return messages


def _plain(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]


def _show(item: MediaItem) -> dict[str, Any]:
    """The part of a turn that shows an item; its lines are written by `write_media`."""
    row = item.to_row()
    more = {name: row[name] for name in (*TIMES, *RESIZED) if name in row}
    return {"type": item.kind, item.kind: row["path"]} | more


def build_target(record: Record) -> str:
    """What SFT teaches the assistant to say: the reasoning and the answer in their tags, on two
    lines, as the VideoRFT chain-of-thought file stores them; of a chat, its last turn as it is.

    Raises:
      ValueError: the record has no reasoning (`process`).
    """
    if record.turns:
        return record.turns[-1][1]
    if not record.process:
        raise ValueError(
            f"record {record.problem_id}: process: empty; SFT needs the reasoning, give a file of"
            " chains of thought"
        )
    return f"<think>{record.process}</think>\n<answer>{record.solution}</answer>"
