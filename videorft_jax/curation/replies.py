"""A chain and an answer out of a reply, whatever the reply imitates.

A reply may repeat text that was planted in a clip or in a question and that looks like the marks of
this pipeline: tags, or the lines around data in a prompt. Such marks mean something only where the
reply itself ends its parts. A sentence inside a chain that holds one is cut and counted, so that it
neither moves the end of the chain nor reaches a student.
"""

import re
from typing import NamedTuple

from videorft_jax.curation.requests import Reply
from videorft_jax.rewards.answers import extract_answer

_TAG = re.compile(r"</?think>")
_FENCE = r"\[\[(?:end of )?[a-z]+ [0-9a-f]{8}\]\]"
_FENCED = re.compile(r"\[\[([a-z]+ [0-9a-f]{8})\]\].*?\[\[end of \1\]\]", re.DOTALL)
_MARK = re.compile(rf"{_FENCE}|</?(?:think|answer)>", re.IGNORECASE)
_SENTENCE = re.compile(r"[^\n]*?(?:[.!?](?=\s)|\n|\Z)\s*")


class Thought(NamedTuple):
    """answer: None where the reply gives none, or several. num_cut: sentences of the chain that
    held marks of the pipeline and were cut."""

    chain: str
    answer: str | None
    num_cut: int


def split_reply(reply: Reply) -> Thought:
    """The parts of a reply, wherever the server put the chain: in a field of its own, in the last
    think block of the text, or in one that was never opened or never closed."""
    content = reply.content.strip()
    chain = reply.reasoning.strip() or _last_block(content)
    cut, num_cut = _FENCED.subn("", chain)
    if _MARK.search(cut):
        sentences = _SENTENCE.findall(cut)
        kept = [text for text in sentences if not _MARK.search(text)]
        num_cut += len(sentences) - len(kept)
        cut = "".join(kept)
    return Thought(cut.strip() if num_cut else chain, extract_answer(content), num_cut)


def _last_block(content: str) -> str:
    """The last think block that is inside no other. The first one needs no opening tag, and the
    last one that is not closed ends where the answer begins."""
    blocks, depth, start = [], 0, 0
    tags = list(_TAG.finditer(content))
    if tags and tags[0][0] == "</think>":
        depth = 1
    for tag in tags:
        if tag[0] == "<think>":
            start = start if depth else tag.end()
            depth += 1
        elif depth:
            depth -= 1
            if not depth:
                blocks.append(content[start : tag.start()])
    if not blocks:
        blocks.append(content.removeprefix("<think>").split("<answer>")[0])
    return blocks[-1].strip()
