"""What a client is sent: texts that grow by chunks, and the objects of OpenAI's protocol."""

from collections.abc import Sequence
from typing import Any


class Text:
    """The text of one completion as it grows, ended by stop strings.

    `shown` is what may be sent: half a character, and an end that may become a stop string, wait.
    """

    def __init__(self, tokenizer, stop: Sequence[str]):
        self.tokenizer, self.stop = tokenizer, stop
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.shown = ""
        self.is_stopped = False

    def add(self, ids: Sequence[int], logprobs: Sequence[float], is_last: bool) -> str:
        """Takes new tokens and returns the text that may be sent now."""
        before = self.shown
        for token, logprob in zip(ids, logprobs, strict=True):
            self.ids.append(token)
            self.logprobs.append(logprob)
            if self.stop and self._look():
                break
        if not self.is_stopped:
            text = self._decode()
            self.shown = text if is_last else text[: len(text) - self._held_back(text)]
        return self.shown[len(before) :]

    def _decode(self) -> str:
        return self.tokenizer.decode(self.ids, skip_special_tokens=True)

    def _look(self) -> bool:
        """Ends the text before the first stop string in it, if there is one."""
        text = self._decode()
        places = [place for stop in self.stop if (place := text.find(stop)) >= 0]
        if places:
            self.shown, self.is_stopped = text[: min(places)], True
        return self.is_stopped

    def _held_back(self, text: str) -> int:
        """How many characters at the end may yet change or be cut."""
        whole = len(text.rstrip("\ufffd"))
        most = len(text) - whole
        for stop in self.stop:
            for size in range(1, len(stop)):
                if text[:whole].endswith(stop[:size]):
                    most = max(most, len(text) - whole + size)
        return most

    def describe_logprobs(self, start: int) -> dict[str, Any]:
        """The log-probabilities of the tokens from `start` on."""
        rows = []
        for token, logprob in zip(self.ids[start:], self.logprobs[start:], strict=True):
            text = self.tokenizer.decode([token])
            rows.append({
                "token": text, "logprob": logprob, "bytes": list(text.encode()),
                "top_logprobs": [],
            })  # fmt: skip
        return {"content": rows, "refusal": None}


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
