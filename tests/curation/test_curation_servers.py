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


def google(*details, message="You exceeded your current quota, please check your plan and billing"):
    error = {"code": 429, "message": message, "status": "RESOURCE_EXHAUSTED"}
    return json.dumps([{"error": error | {"details": list(details)}}]).encode()


def violation(quota):
    return {
        "@type": "type.googleapis.com/google.rpc.QuotaFailure",
        "violations": [{"quotaId": f"GenerateRequests{quota}-FreeTier", "quotaValue": "10"}],
    }


@pytest.mark.parametrize(
    ("body", "code", "wait_s"),
    [
        (google(violation("PerMinutePerProjectPerModel"), {"retryDelay": "39.5s"}), "rate", 39.5),
        (google(violation("PerMinutePerProjectPerModel"), {"retryDelay": "26s"}), "rate", 26.0),
        (google(violation("PerMinutePerProjectPerModel"), {"retryDelay": "999999s"}), "rate", 3600),
        (google(message="Resource has been exhausted (e.g. check quota)."), "rate", 7.0),
        (google({"retryDelay": "soon"}), "rate", 7.0),
        (google(violation("PerDayPerProjectPerModel"), {"retryDelay": "39s"}), "quota", 0.0),
        (google(message="Quota exceeded for 'Requests per day per user'"), "quota", 0.0),
    ],
)
def test_googles_limit_of_a_minute_is_waited_for_and_that_of_a_day_is_not(body, code, wait_s):
    """Google says "quota" and "billing" of either; read as a spent quota, the limit of a minute
    would end the endpoint."""
    failed = classify(429, {"retry-after": "7"}, body, "h")
    assert (failed.code, failed.wait_s) == (code, wait_s)
