"""What a client is sent: texts that grow by chunks, and the objects of OpenAI's protocol."""

import codecs
from collections.abc import Sequence
from typing import Any

from videorft_jax.serving.vocabulary import Vocabulary


class Text:
    """The text of one completion as it grows, ended by stop strings.

    `shown` is what may be sent: half a character, and an end that may become a stop string, wait.
    """

    def __init__(self, vocabulary: Vocabulary, stop: Sequence[str], num_top: int = 0):
        self.vocabulary, self.stop, self.num_top = vocabulary, stop, num_top
        self.num_tokens = 0
        self.rows: list[tuple[int, float, list[tuple[int, float]]]] = []
        self.shown = self._text = ""
        self.is_stopped = False
        self._bytes = codecs.getincrementaldecoder("utf-8")("replace")
        self._widest = max(map(len, stop), default=0)

    def add(self, ids: Sequence[int], told: Sequence[tuple], is_last: bool) -> str:
        """Takes new tokens and returns the text that may be sent now.

        told: (log-probability, likeliest ids, their log-probabilities) of each token.
        """
        before = len(self.shown)
        for token, (logprob, *top) in zip(ids, told, strict=True):
            self.num_tokens += 1
            pairs = list(zip(*(part[: self.num_top] for part in top), strict=True))
            self.rows.append((token, logprob, pairs))
            if self._grow(self._bytes.decode(self.vocabulary.read(token))):
                return self.shown[before:]
        if is_last and self._grow(self._bytes.decode(b"", final=True)):
            return self.shown[before:]
        self.shown = self._text if is_last else self._text[: len(self._text) - self._held_back()]
        return self.shown[before:]

    def _grow(self, new: str) -> bool:
        """Adds to the text and ends it before the first stop string in it, if there is one."""
        start = max(0, len(self._text) - self._widest)
        self._text += new
        places = [place for stop in self.stop if (place := self._text.find(stop, start)) >= 0]
        if places:
            self.shown, self.is_stopped = self._text[: min(places)], True
        return self.is_stopped

    def _held_back(self) -> int:
        """How many characters at the end may yet be cut."""
        sizes = (size for stop in self.stop for size in range(1, len(stop))
                 if self._text.endswith(stop[:size]))  # fmt: skip
        return max(sizes, default=0)

    def describe_logprobs(self, start: int) -> dict[str, Any]:
        """The log-probabilities of the tokens from `start` on."""
        rows = []
        for token, logprob, top in self.rows[start:]:
            likeliest = [self._describe(*pair) for pair in top]
            rows.append({**self._describe(token, logprob), "top_logprobs": likeliest})
        return {"content": rows, "refusal": None}

    def _describe(self, token, logprob):
        raw = self.vocabulary.name(token)
        return {"token": raw.decode(errors="replace"), "logprob": logprob, "bytes": list(raw)}


def make_usage(num_prompt: int, num_drawn: int, num_cached: int) -> dict[str, Any]:
    """The token counts of one request; each prompt is counted once, whatever `n` is."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_drawn,
        "total_tokens": num_prompt + num_drawn,
        "prompt_tokens_details": {"cached_tokens": num_cached},
    }


def make_reply(name: str, model: str, created: int, choices: list, usage: dict) -> dict[str, Any]:
    """A whole chat completion."""
    head = {"id": name, "object": "chat.completion", "created": created, "model": model}
    return {**head, "choices": choices, "usage": usage}


def make_choice(index: int, text: Text, end: str, has_logprobs: bool) -> dict[str, Any]:
    """One choice of a whole chat completion."""
    return {
        "index": index,
        "message": {"role": "assistant", "content": text.shown, "refusal": None},
        "logprobs": text.describe_logprobs(0) if has_logprobs else None,
        "finish_reason": end,
    }


def make_chunk(
    name: str, model: str, created: int, index: int, delta: dict, end: str | None, logprobs=None
) -> dict[str, Any]:
    """One event of a streamed chat completion."""
    choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": end}
    head = {"id": name, "object": "chat.completion.chunk", "created": created, "model": model}
    return {**head, "choices": [choice]}
