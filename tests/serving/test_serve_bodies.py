"""Whatever JSON a client sends, it is read or refused with one structured error."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from videorft_jax.data.media.contract import MediaContract
from videorft_jax.serving.clips import Clips
from videorft_jax.serving.errors import Refused
from videorft_jax.serving.media import make_chat
from videorft_jax.serving.options import ServeOptions
from videorft_jax.serving.protocol import FORMATS, KNOWN, ChatRequest, read_chat

OPTIONS = ServeOptions(name="tiny", max_new_tokens=64)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False),
    st.text(max_size=5), st.sampled_from(FORMATS),
)  # fmt: skip
WORDS = st.sampled_from([
    "type", "text", "image_url", "video_url", "url", "role", "content", "json_schema", "schema",
    "video", "image", "fps", "num_frames", "as_frames", "include_usage",
])  # fmt: skip
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
URLS = st.sampled_from(["data:video/mp4;base64,AAAA", "http://a/b", "file:///a", "http://["])
PARTS = st.one_of(
    JSON,
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text(max_size=5)}),
    *(
        st.fixed_dictionaries({"type": st.just(kind), kind: st.fixed_dictionaries({"url": URLS})})
        for kind in ("image_url", "video_url")
    ),
)
MESSAGES = st.lists(
    JSON
    | st.fixed_dictionaries({
        "role": st.sampled_from(["system", "developer", "user", "assistant", "tool"]),
        "content": JSON | st.text(max_size=5) | st.lists(PARTS, max_size=3),
    }),
    min_size=1,
    max_size=3,
)  # fmt: skip
NESTED = {  # fields that hold more fields
    "media_io_kwargs": ["video", "image"],
    "response_format": ["type", "json_schema"],
    "stream_options": ["include_usage"],
}
ASK = [{"role": "user", "content": "What moves?"}]


def change(name):
    """A whole request in which one field is anything at all."""
    value = JSON
    if name in NESTED:
        value |= st.dictionaries(st.sampled_from(NESTED[name]), JSON, min_size=1)
    return value.map(lambda value: {"messages": ASK, name: value})


BODIES = st.one_of(
    JSON,
    st.sampled_from(sorted(KNOWN)).flatmap(change),
    MESSAGES.map(lambda messages: {"messages": messages}),
)


def read(body: bytes) -> ChatRequest | Refused:
    """The request whose chat could be made, or how it was refused; no other exception is caught."""
    try:
        asked = read_chat(body, OPTIONS)
        make_chat(asked, Clips(None, MediaContract(), 0).read_frame, OPTIONS)
    except Refused as error:
        return error
    return asked


@settings(max_examples=200, deadline=None, derandomize=True)
@given(BODIES)
def test_any_json_is_read_or_refused(body):
    found = read(json.dumps(body).encode())
    if isinstance(found, ChatRequest):
        assert found.max_tokens is None or 1 <= found.max_tokens <= 64
        assert 0 <= found.seed < 2**32
    else:
        assert 400 <= found.status < 500
        assert 0 < len(found.message) < 600
        assert "\n" not in found.message
        assert set(found.body()["error"]) == {"message", "type", "param", "code"}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(max_size=60))
def test_any_bytes_are_refused(body):
    assert read(body).status == 400
