"""Open answers read by a language model of the user's choosing, behind OpenAI's protocol.

A verdict is written down as soon as it is there, so that a repeated command asks only about the
answers that have none. An item whose judge fails, is late or says neither yes nor no stays open: it
has no score, and counts as wrong only in the figure over all rows.
"""

import dataclasses
import hashlib
import json
import logging
import pathlib
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from videorft_jax.evaluation.scoring.choices import find_options, read_choice
from videorft_jax.evaluation.scoring.rows import OPEN_ENDED, kind_of, make_row
from videorft_jax.evaluation.scoring.text import final_texts, plain
from videorft_jax.evaluation.scoring.words import read_yes_no

log = logging.getLogger(__name__)

MAX_REPLY_BYTES = 1 << 20
MAX_FAILURES = 8  # After so many in a row the judge is not asked any more.
_SAME = (
    "You compare an answer to a question about a video with the reference answer. Say yes where "
    "the answer means the same as the reference, also in other words, and no where it does not or "
    "leaves the question open. Say that one word only.\n\nQuestion: {question}\nReference: {gold}\n"
    "Answer: {answer}"
)
_CAPTION = (
    "Answer the question by what this description of a video says, and by nothing else. Say the "
    "letter of one option only.\n\nDescription: {answer}\n\n{question}"
)


@dataclasses.dataclass(frozen=True)
class JudgeOptions:
    """url: the base of the endpoint, such as http://localhost:8000/v1. model: the name it knows.
    key: sent as a bearer token, "" for none. timeout_s: of one request. num_tries: requests for one
    answer. num_threads: requests at a time.

    Raises ValueError for an address that is none and where the model's name is missing.
    """

    url: str
    model: str
    key: str = dataclasses.field(default="", repr=False)
    timeout_s: float = 120.0
    num_tries: int = 3
    num_threads: int = 8

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"judge: url is {self.url!r}; give one that begins with http(s)://")
        if not self.model:
            raise ValueError("judge: no model; give --judge_model, a name that the endpoint knows")


def judge_rows(
    rows: Sequence[dict[str, Any]],
    options: JudgeOptions,
    cache: pathlib.Path,
    scorer: str = "robust",
) -> list[dict[str, Any]]:
    """The rows of `rescore` with the judge's verdicts, in their order.

    Asked about are rows that are open and, where our own `scorer` gave the scores, open-ended ones
    whose words alone do not make them right; what another tool calls wrong stays so. `outcome` is
    then "judged", or "open" where there is no verdict. cache: a JSONL file of the verdicts, which
    is read first and added to. Raises ValueError for a scorer that leaves nothing to a judge.
    """
    if scorer == "videorft":
        raise ValueError("judge: --scorer=videorft leaves nothing to one; leave --judge out")
    known = _read_cache(cache)
    prompts = {place: _prompt(row) for place, row in enumerate(rows) if _is_asked(row, scorer)}
    keys = {place: _key(options, prompt) for place, prompt in prompts.items() if prompt}
    wanted = {key: place for place, key in keys.items() if key not in known}
    asker = _Asker(options, cache)

    def ask(key: str) -> str | None:
        row = rows[wanted[key]]
        return asker.ask(key, prompts[wanted[key]], lambda reply: _verdict(row, reply) is not None)

    replies = _ask_all(ask, list(wanted), options.num_threads)
    known |= {key: reply for key, reply in replies.items() if reply is not None}
    log.info(
        "judge %s: %d answers, %d asked about now, %d without a verdict",
        options.model, len(prompts), len(wanted), sum(r is None for r in replies.values()),
    )  # fmt: skip
    judged = list(rows)
    for place, prompt in prompts.items():
        reply = known.get(keys.get(place, ""))
        score = 0.0 if not prompt else _verdict(rows[place], reply)
        outcome = "unparsed" if not prompt else "open" if score is None else "judged"
        judged[place] = rows[place] | {"score": score, "outcome": outcome}
    return judged


def _ask_all(
    ask: Callable[[str], str | None], keys: Sequence[str], num_threads: int
) -> dict[str, str | None]:
    """What `ask` gives for each key, several at a time. Its threads end with the program, so that
    an interrupt waits for none that waits for the judge."""
    left, found = iter(keys), queue.SimpleQueue()

    def work():
        while (key := next(left, None)) is not None:
            try:
                found.put((key, ask(key)))
            except Exception as error:
                found.put((key, error))

    for _ in range(min(num_threads, len(keys))):
        threading.Thread(target=work, daemon=True).start()
    replies = {}
    for _ in keys:
        key, reply = found.get()
        if isinstance(reply, Exception):
            raise reply
        replies[key] = reply
    return replies


def _is_asked(row, scorer):
    if row["outcome"] == "open" or scorer != "robust":
        return row["outcome"] == "open"
    is_open_ended = kind_of(make_row(row, 0)) == OPEN_ENDED
    return is_open_ended and row["outcome"] == "scored" and row["score"] == 0.0


def _prompt(row: Mapping[str, Any]) -> str:
    """What the judge is asked, "" where the output has no answer to ask about."""
    answer = " / ".join(final_texts(row["output"]))
    if not answer:
        return ""
    if row.get("judged"):
        return _CAPTION.format(answer=answer, question=row["judged"])
    gold, options = str(row["gold"]), list(row["options"])
    if options and len(gold) == 1 and gold.isalpha() and ord(gold.upper()) - 65 < len(options):
        gold = f"{gold}. {options[ord(gold.upper()) - 65]}"
    question = "\n".join([row["question"], *options])
    return _SAME.format(question=question, gold=gold, answer=answer)


def _verdict(row, reply: str | None) -> float | None:
    """The score that a reply means, None where it means none."""
    if reply is None:
        return None
    text = plain(" ".join(final_texts(reply)) or reply)
    if row.get("judged"):
        labels, texts = find_options(row["judged"])
        said = read_choice(text, labels, texts)
        return None if said is None else float(said == plain(row["gold"])[:1].upper())
    said = read_yes_no(text)
    return None if said is None else float(said)


def _key(options, prompt):
    return hashlib.sha256(f"{options.model}\n{prompt}".encode()).hexdigest()


def _read_cache(path):
    if not path.exists():
        return {}
    known = {}
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:  # a cut line is asked again
        try:
            found = json.loads(line)
            known[found["key"]] = found["reply"]
        except (ValueError, KeyError, TypeError):
            continue
    return known


class _Asker:
    """Asks the endpoint and writes what it says; thread-safe."""

    def __init__(self, options: JudgeOptions, cache: pathlib.Path):
        self.options, self.cache = options, cache
        self._lock, self._num_failures = threading.Lock(), 0

    def ask(self, key: str, prompt: str, is_verdict: Callable[[str], bool]) -> str | None:
        """The reply, None where there is none; kept where it `is_verdict`."""
        for number in range(self.options.num_tries):
            if self._num_failures >= MAX_FAILURES:
                return None
            if number:
                time.sleep(0.5 * 2**number)
            try:
                reply = self._post(prompt)
            except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
                self._fail(error)
                continue
            with self._lock:
                self._num_failures = 0
                if is_verdict(reply):
                    with self.cache.open("a", encoding="utf-8") as file:
                        file.write(json.dumps({"key": key, "reply": reply}) + "\n")
            return reply
        return None

    def _fail(self, error):
        with self._lock:
            self._num_failures += 1
            if self._num_failures == 1:
                log.warning("judge %s: %s", self.options.model, str(error)[:200])
            if self._num_failures == MAX_FAILURES:
                log.warning("judge: %d failures in a row; it is not asked again", MAX_FAILURES)

    def _post(self, prompt: str) -> str:
        body = {
            "model": self.options.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0.0,
            "max_tokens": 1024,
        }
        headers = {"Content-Type": "application/json"}
        if self.options.key:
            headers["Authorization"] = f"Bearer {self.options.key}"
        request = urllib.request.Request(
            self.options.url.rstrip("/") + "/chat/completions", json.dumps(body).encode(), headers
        )
        with _OPENER.open(request, timeout=self.options.timeout_s) as response:
            found = json.loads(response.read(MAX_REPLY_BYTES))
        reply = found["choices"][0]["message"]["content"]
        if not isinstance(reply, str):
            raise ValueError(f"the reply holds {type(reply).__name__} in place of a text")
        return reply


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Refuses to follow a redirect, which would carry the key to another address."""

    def redirect_request(self, *_):
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)
