"""Completions of a server end where the model's positions end, and fit into memory."""

import httpx2
import pytest

from videorft_jax.rollout import room
from videorft_jax.serving.batcher import Batcher
from videorft_jax.serving.options import ServeOptions

ASK = [{"role": "user", "content": "What moves?"}]


def post(place, **fields):
    headers = {"authorization": "Bearer canary-4f1d"}
    body = {"messages": ASK, "temperature": 0} | fields
    url = f"{place.url}/v1/chat/completions"
    return httpx2.post(url, json=body, headers=headers, timeout=600)


def test_a_completion_ends_at_the_last_position(place, monkeypatch):
    prompt = post(place, max_tokens=1).json()["usage"]["prompt_tokens"]
    whole = post(place, max_tokens=6).json()["usage"]["completion_tokens"]
    assert whole == 6  # The reply would go on, so that what cuts it is the limit.
    monkeypatch.setattr(place.server, "positions", prompt + 4)
    free = post(place).json()
    assert free["usage"]["completion_tokens"] == 4
    assert free["choices"][0]["finish_reason"] == "length"
    assert post(place, max_completion_tokens=4).status_code == 200
    reply = post(place, max_tokens=5)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert f"{prompt + 4} positions, of which the prompt takes {prompt}, and 5" in error["message"]
    monkeypatch.setattr(place.server, "positions", prompt)
    assert f"the prompt takes {prompt}; shorten it" in post(place).json()["error"]["message"]
    monkeypatch.setattr(place.server, "positions", None)  # A model that does not say has no end.
    assert post(place, max_tokens=6).json()["usage"]["completion_tokens"] == 6


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_new_tokens": 1001}, "max_new_tokens is 1001; give at most 1000, as keys and values"),
        ({"max_slots": 4}, "max_slots is 4; give at most 3, as keys and values"),
        ({"chunk": 1025}, "chunk is 1025; give at most 1024"),
    ],
    ids=["tokens", "slots", "chunk"],
)
def test_what_memory_cannot_hold_is_refused_at_the_start(place, monkeypatch, changes, said):
    text = place.model.config.text
    token = 2 * text.num_layers * text.num_kv_heads * text.head_dim * 4 + 12  # float32
    monkeypatch.setattr(room, "cpu_gib", lambda count: 1000 * token / 2**30)
    fitting = {"max_new_tokens": 1000, "max_slots": 3, "chunk": 1024}
    Batcher(place.model, ServeOptions(**fitting))
    with pytest.raises(ValueError, match=said):
        Batcher(place.model, ServeOptions(**fitting | changes))
