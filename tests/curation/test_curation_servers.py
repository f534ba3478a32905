"""What servers other than OpenAI's own say of a request that does not fit: it is halved or given up
as too long, and not as one whose form is wrong."""

import json

import pytest

from videorft_jax.curation.failures import classify

LONG = "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens."
BODIES = {  # server: (status, body)
    "openai": (400, {"error": {"message": LONG, "type": "invalid_request_error",
                               "param": "messages", "code": "context_length_exceeded"}}),
    "deepseek": (400, {"error": {"message": LONG, "type": "invalid_request_error",
                                 "param": None, "code": "invalid_request_error"}}),
    "sglang and older vllm": (400, {"object": "error", "message": LONG,
                                    "type": "BadRequestError", "param": None, "code": 400}),
    "llama.cpp": (400, {"error": {
        "code": 400, "type": "exceed_context_size_error", "n_prompt_tokens": 4390, "n_ctx": 4096,
        "message": "request (4390 tokens) exceeds the available context size (4096 tokens), "
                   "try increasing it"}}),
    "a text": (422, {"error": "Input validation error: the prompt is too long",
                     "error_type": "validation"}),
    "a list": (400, [{"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": LONG}}]),
}  # fmt: skip


@pytest.mark.parametrize("server", BODIES)
def test_a_prompt_that_is_too_long_is_known_from_every_server(server):
    status, body = BODIES[server]
    assert classify(status, {}, json.dumps(body).encode(), "h").code == "too_long"


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"[3]", b"3", b"null", b'"text"', b'{"error": null}', b'{"error": [1]}',
    b'{"detail": "bad field"}', b"[" * 100_000,
    b'{"error": {"message": "max_tokens: the value is of the wrong type"}}',
])  # fmt: skip
def test_other_refusals_are_of_the_requests_form(body):
    assert classify(400, {}, body, "h").code == "bad_request"


def test_a_quota_is_known_wherever_it_is_said():
    for body in ({"message": "insufficient balance"}, {"error": "out of credit"}):
        assert classify(429, {}, json.dumps(body).encode(), "h").code == "quota"
    assert classify(429, {}, b'{"message": "slow down"}', "h").code == "rate"
