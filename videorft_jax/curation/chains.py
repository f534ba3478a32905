"""Stages 2 and 3: chains from the description alone, the answer check, revision on the frames.

The answer is checked before the revision, which must not change it: frames are the expensive part
of a request, and two of three chains in the paper were wrong.
"""

import json
from collections.abc import Generator
from typing import Any

from videorft_jax.curation.describe import refused
from videorft_jax.curation.endpoints import Endpoint
from videorft_jax.curation.frames import Frames
from videorft_jax.curation.pool import Entry
from videorft_jax.curation.prompts import Template, fence
from videorft_jax.curation.replies import Thought, split_reply
from videorft_jax.curation.requests import Dead, Reply, Request, draw_seed
from videorft_jax.data.records.prompts import append_options
from videorft_jax.rewards.accuracy import Outcome, score_answer

Work = Generator[Request, Reply | Dead, Any]


def think(
    entry: Entry, description: dict, endpoint: Endpoint, template: Template, attempts: int
) -> Work:
    """Rows of the chains of one question, none of which saw a frame; or Dead. For choices all
    attempts are asked, since a guess is right now and then; else up to the first right one."""
    record, rows = entry.record, []
    question = append_options(record.problem, record.options)
    notes = json.dumps(description, ensure_ascii=False, sort_keys=True)
    text = template.fill(description=fence("notes", notes), question=fence("question", question))
    for attempt in range(attempts):
        request = _request(
            "think", entry, endpoint, template, (text,), attempt, max_tokens=endpoint.max_output
        )
        reply = yield request
        if isinstance(reply, Dead):
            return reply
        ended = refused(reply)
        chain, answer, num_cut = Thought("", None, 0) if ended else split_reply(reply)
        score = score_answer(answer, record.solution, record.problem_type, record.options)
        rows.append(
            {
                "record": entry.name, "attempt": attempt, "seed": request.seed, "cot0": chain,
                "num_cut": num_cut, "answer": answer,
                "finish": ended.reason if ended else reply.finish,
                "outcome": str(score) if isinstance(score, Outcome) else "scored",
                "score": None if isinstance(score, Outcome) else score,
                "request": request.key, "model_returned": reply.model,
            }
        )  # fmt: skip
    return rows


def choose(rows: list[dict], gate: float, is_choice: bool) -> dict | None:
    """The first right chain, if enough are right: with several attempts at a choice, two."""
    right = [row for row in rows if row["score"] is not None and row["score"] > gate]
    enough = 2 if is_choice and len(rows) > 1 else 1
    return right[0] if len(right) >= enough else None


def revise(
    entry: Entry, chain: str, frames: Frames, endpoint: Endpoint, template: Template,
    contract: str, most_frames: int,
) -> Work:  # fmt: skip
    """The revised chain as {"cot", "num_cut", "request", "model_returned"}, or Dead."""
    count = len(frames)
    step = max(-(-count // most_frames), 1)
    shown = range(0, count, step)
    record = entry.record
    text = template.fill(
        question=fence("question", append_options(record.problem, record.options)),
        chain=fence("thought", chain),
    )
    parts = (*(frames.pictures[i] for i in shown), text)

    def load() -> list[bytes]:
        images = frames.loader(0, count)()
        return [images[i] for i in shown]

    request = _request(
        "revise", entry, endpoint, template, parts, 0, contract=contract,
        max_tokens=endpoint.max_output, load=load,
    )  # fmt: skip
    reply = yield request
    if isinstance(reply, Dead):
        return reply
    if ended := refused(reply):
        return ended
    # A reasoning model's own thoughts are no part of the revision.
    own = split_reply(Reply(reply.content))
    return {
        "cot": own.chain, "num_cut": own.num_cut, "request": request.key,
        "model_returned": reply.model,
    }  # fmt: skip


def _request(stage, entry, endpoint, template, parts, attempt, **fields) -> Request:
    return Request(
        stage=stage, unit=entry.name, endpoint=endpoint.name,
        model=f"{endpoint.model}@{endpoint.revision}", system=template.system, parts=parts,
        temperature=endpoint.temperature, top_p=endpoint.top_p,
        seed=draw_seed(entry.name, attempt), template=template.digest,
        extra_body=endpoint.extra_body, attempt=attempt, **fields,
    )  # fmt: skip
