"""The held-out questions of a demo's work directory, and what its evaluation answered."""

import json
import pathlib

from videorft_jax.data.records.prompts import build_messages, load_template
from videorft_jax.data.records.source import RecordSource


def read_chats(workdir: pathlib.Path, count: int) -> list[list[dict]]:
    """The first `count` questions as chats, as GRPO asked them, each clip as an absolute path."""
    source = RecordSource(workdir / "clips" / "eval.jsonl")
    template = load_template(workdir / "template.json")
    chats = [build_messages(source[i], template) for i in range(count)]
    for chat in chats:
        for part in chat[-1]["content"]:
            if part["type"] == "video":
                part["video"] = str((workdir / "clips" / part["video"]).resolve())
    return chats


def read_answers(workdir: pathlib.Path, stage: str) -> list[dict]:
    """The rows that `videorft evaluate` wrote in a stage of the demo, one a question."""
    path = workdir / "evaluations" / stage / "completions.jsonl"
    return sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["index"])


def ask_arguments(model, chat, max_new_tokens: int = 64) -> list[str]:
    """The command line of `videorft ask` that puts the same question."""
    system, user = (message["content"] for message in chat)
    parts = {part["type"]: part[part["type"]] for part in user}
    return [
        "ask", f"--model={model}", f"--system={system[0]['text']}", f"--video={parts['video']}",
        f"--question={parts['text']}", f"--max_new_tokens={max_new_tokens}",
    ]  # fmt: skip
