"""Replies that follow a schema, and the numbers that are told of their tokens."""

import concurrent.futures
import json
import typing

import numpy as np
import openai
import pydantic
import pytest

from videorft_jax.serving.replies import Text
from videorft_jax.serving.vocabulary import Vocabulary

ASK = [{"role": "user", "content": "What moves?"}]


class Ball(pydantic.BaseModel):
    """A reply that is short whatever a random model draws."""

    model_config = pydantic.ConfigDict(extra="forbid")
    colour: typing.Literal["red", "light blue"]
    count: int = pydantic.Field(ge=0, le=40)
    places: list[typing.Literal["left", "right"]] = pydantic.Field(max_length=2)


def complete(place, **fields):
    fields = {"temperature": 0, "max_tokens": 100, "messages": ASK} | fields
    return place.client().chat.completions.create(model="tiny", **fields)


def schema_format(schema):
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema}}


def test_a_schema_binds_every_choice_and_no_neighbour(place):
    """Pydantic reads the schema on its own; the free request beside it keeps its greedy text."""
    free = place.model.generate([ASK], 1, max_new_tokens=48, temperature=0.0).texts[0][0]
    form = schema_format(Ball.model_json_schema())
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        beside = pool.submit(complete, place, max_tokens=48)
        reply = complete(place, response_format=form, n=6, temperature=1.0, seed=3)
    assert beside.result().choices[0].message.content == free
    texts = [choice.message.content for choice in reply.choices]
    for text in texts:
        Ball.model_validate_json(text)
    assert len(set(texts)) > 2
    assert {choice.finish_reason for choice in reply.choices} == {"stop"}


def test_a_json_object_is_drawn_and_streamed(place):
    fields = {"response_format": {"type": "json_object"}, "temperature": 1.5, "max_tokens": 200}
    ended = 0
    for seed in range(6):
        events = complete(place, seed=seed, stream=True, **fields)
        choices = [event.choices[0] for event in events]
        text = "".join(choice.delta.content or "" for choice in choices)
        assert text.startswith("{")
        if choices[-1].finish_reason == "stop":  # The others were cut at max_tokens.
            assert isinstance(json.loads(text), dict)
            ended += 1
    assert ended


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "strange"}, "strange"),
        ({"type": "object", "properties": 3}, "properties"),
        ({"$ref": "http://127.0.0.1/schema"}, "registry"),
        ({"type": "string", "pattern": "(a"}, "regex"),
        ({"not": {"type": "string"}}, "not"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable"),
        ({"$ref": "#"}, "no value follows"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_told(place, schema, word):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(place, response_format=schema_format(schema))
    assert caught.value.param == "response_format"
    assert word in caught.value.message


def test_likeliest_tokens_are_those_of_the_forward_pass(place):
    """A forward pass over prompt and reply gives all log-probabilities anew."""
    reply = complete(place, logprobs=True, top_logprobs=4, max_tokens=6)
    rows = reply.choices[0].logprobs.content
    model = place.model
    out = model.generate([ASK], 1, max_new_tokens=6, temperature=0.0)
    batch = model.prepare([ASK])
    count, length = int((batch.segment_ids > 0).sum()), batch.tokens.shape[1]
    assert count + 6 <= length
    tokens, ids = np.array(batch.tokens), np.array(batch.segment_ids)
    positions = np.array(batch.positions)
    tokens[0, count : count + 6], ids[0, count : count + 6] = out.tokens[0, 0], 1
    positions[0, :, count : count + 6] = positions[0, :, count - 1 : count] + np.arange(1, 7)
    changed = batch._replace(tokens=tokens, segment_ids=ids, positions=positions)
    logits = np.asarray(model.forward(changed))[0, count - 1 : count + 5].astype(np.float64)
    wanted = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    vocabulary = Vocabulary(model.tokenizer)
    assert len(rows) == 6
    for place_of, row in enumerate(rows):
        order = np.argsort(-wanted[place_of], kind="stable")[:4]
        given = [top.logprob for top in row.top_logprobs]
        np.testing.assert_allclose(given, wanted[place_of][order], atol=2e-4)
        assert [bytes(top.bytes) for top in row.top_logprobs] == list(
            map(vocabulary.name, order.tolist())
        )
        assert row.logprob == row.top_logprobs[0].logprob  # The reply is greedy.
    streamed = complete(place, logprobs=True, top_logprobs=4, max_tokens=6, stream=True)
    pieces = [event.choices[0].logprobs for event in streamed if event.choices]
    assert [row for piece in pieces if piece for row in piece.content] == rows


def test_the_bytes_of_tokens_add_up_to_the_decoded_text(place):
    """Any ids, half characters among them, read as the tokenizer reads them at once."""
    tokenizer, rng = place.model.tokenizer, np.random.default_rng(0)
    vocabulary = Vocabulary(tokenizer)
    for count in (1, 2, 7, 60, 200):
        for ids in rng.integers(0, len(tokenizer), (20, count)).tolist():
            text = Text(vocabulary, [])
            pieces = [text.add([token], [(0.0, [], [])], False) for token in ids]
            pieces.append(text.add([], [], True))
            wanted = tokenizer.decode(ids, skip_special_tokens=True)
            assert "".join(pieces) == text.shown == wanted
    heart = tokenizer.encode("\u2764 caf\xe9 \U0001f600")
    assert b"".join(map(vocabulary.read, heart)).decode() == "\u2764 caf\xe9 \U0001f600"
