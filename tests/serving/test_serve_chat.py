"""What a served model says, asked by the official client, is what `generate` says."""

import base64
import concurrent.futures
import json
import math

import httpx2
import numpy as np
import pytest
from PIL import Image

from videorft_jax.serving.errors import Refused
from videorft_jax.serving.media import read_keys
from videorft_jax.serving.replies import Text

LONG = 48


def part(clip):
    return {"type": "video_url", "video_url": {"url": clip.as_uri()}}


def ask(text, *media):
    return [{"role": "user", "content": [*media, {"type": "text", "text": text}]}]


def expected(place, text, *clips, limit=LONG, **settings):
    content = [{"type": "video", "video": str(clip)} for clip in clips]
    chat = [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
    settings = {"temperature": 0.0, "num_rollouts": 1} | settings
    return place.model.generate([chat], max_new_tokens=limit, **settings)


def complete(place, messages, **fields):
    fields = {"temperature": 0, "max_tokens": LONG} | fields
    return place.client().chat.completions.create(model="tiny", messages=messages, **fields)


def test_chat_with_a_video_equals_generate(place):
    clip = place.clips[0]
    out = expected(place, "What moves?", clip)
    reply = complete(place, ask("What moves?", part(clip)), logprobs=True)
    choice = reply.choices[0]
    assert choice.message.content == out.texts[0][0]
    assert choice.finish_reason == ("length" if out.lengths[0, 0] == LONG else "stop")
    assert reply.usage.completion_tokens == out.lengths[0, 0] == len(choice.logprobs.content)
    given = [row.logprob for row in choice.logprobs.content]
    np.testing.assert_allclose(given, out.logprobs[0, 0, : len(given)], atol=2e-5)
    data = base64.b64encode(clip.read_bytes()).decode()
    inline = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{data}"}}
    before = place.server.batcher.prompts.reused_clips
    again = complete(place, ask("What moves?", inline))
    assert again.choices[0].message.content == out.texts[0][0]
    assert again.usage.prompt_tokens_details.cached_tokens == reply.usage.prompt_tokens
    complete(place, ask("Which colour?", inline), max_tokens=1)
    assert place.server.batcher.prompts.reused_clips == before + 1


def test_thirty_two_clients_at_once_get_the_text_of_one(place):
    texts = [f"What moves {'then ' * index}?" for index in range(8)]
    limits = [20, 40, 31, 7]
    chats = [ask(text) for text in texts]
    out = place.model.generate(chats, 1, max_new_tokens=max(limits), temperature=0.0)
    wanted = {
        (text, limit): list(tokens[0, :limit])
        for text, tokens in zip(texts, out.tokens, strict=True)
        for limit in limits
    }
    jobs = list(wanted)
    highest = []

    def work(index):
        text, limit = jobs[index]
        reply = complete(place, ask(text), max_tokens=limit)
        highest.append(len(place.server.batcher.rows))
        return reply.choices[0].message.content

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        got = list(pool.map(work, range(32)))
    decode = place.model.tokenizer.decode
    stops = place.server.batcher.programs.sampling.stop_ids
    for job, text in zip(jobs, got, strict=True):
        ids = wanted[job]
        ends = [i for i, token in enumerate(ids) if token in stops]
        assert text == decode(ids[: ends[0] if ends else None], skip_special_tokens=True), job
    assert max(highest) > 4  # they did share a batch


def test_seeds_draw_what_generate_draws(place):
    settings = {"temperature": 0.8, "top_p": 0.9, "seed": 7}
    out = expected(place, "Which colour?", num_rollouts=3, limit=16, **settings)
    reply = complete(place, ask("Which colour?"), n=3, max_tokens=16, **settings)
    assert [choice.message.content for choice in reply.choices] == out.texts[0]
    assert len(set(out.texts[0])) > 1
    free = complete(place, ask("Which colour?"), n=2, max_tokens=16, temperature=1)
    assert free.choices[0].message.content != free.choices[1].message.content


def test_streaming_adds_up_to_the_whole(place):
    whole = complete(place, ask("What moves?")).choices[0].message.content
    options = {"include_usage": True}
    events = list(complete(place, ask("What moves?"), stream=True, stream_options=options))
    pieces = [e.choices[0].delta.content or "" for e in events if e.choices]
    assert "".join(pieces) == whole
    assert sum(map(bool, pieces)) > 2
    assert events[-2].choices[0].finish_reason == "length"
    assert events[-1].usage.completion_tokens == LONG


def test_a_stop_string_ends_the_text_before_it(place):
    whole = complete(place, ask("What moves?")).choices[0].message.content
    stop = whole[9:12]
    for stream in (False, True):
        reply = complete(place, ask("What moves?"), stop=[stop, "\x00"], stream=stream)
        if stream:
            reply = [e.choices[0] for e in reply]
            text, end = "".join(c.delta.content or "" for c in reply), reply[-1].finish_reason
        else:
            text, end = reply.choices[0].message.content, reply.choices[0].finish_reason
        assert (text, end) == (whole[: whole.index(stop)], "stop")


def test_text_waits_for_what_may_be_cut():
    class Letters:
        def read(self, token):
            return bytes([token])

    def add(letters, is_last=False):
        return text.add(letters, [(0.0, [], [])] * len(letters), is_last)

    text = Text(Letters(), ["END"])
    assert add(b"aE") == "a"
    assert add(b"N\xc3") == ""
    assert add(b"\xa9") == "EN\xe9"
    assert add(b"bENDc") == "b"
    assert text.is_stopped
    assert text.shown == "aEN\xe9b"
    assert text.num_tokens == 9


def test_images_become_the_frames_of_a_clip(place, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (4, 56, 56, 3), np.uint8)
    parts = []
    for index, frame in enumerate(pixels):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
        data = base64.b64encode((tmp_path / f"{index}.png").read_bytes()).decode()
        parts.append({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}})
    keys = {"media_io_kwargs": {"image": {"as_frames": True, "fps": 2.0}}}
    reply = complete(place, ask("What moves?", *parts), extra_body=keys, max_tokens=8)
    clip = {"type": "video", "video": pixels, "fps": 2.0}
    chat = [{"role": "user", "content": [clip, {"type": "text", "text": "What moves?"}]}]
    out = place.model.generate([chat], 1, max_new_tokens=8, temperature=0.0)
    assert reply.choices[0].message.content == out.texts[0][0]
    still = complete(place, ask("What moves?", *parts), max_tokens=1)
    assert still.usage.prompt_tokens > reply.usage.prompt_tokens
    keys["media_io_kwargs"]["image"]["max_pixels"] = 28 * 28
    small = complete(place, ask("What moves?", *parts), extra_body=keys, max_tokens=1)
    assert small.usage.prompt_tokens == reply.usage.prompt_tokens - 2 * (4 - 1)  # two frame pairs


@pytest.mark.parametrize("temperature", [1e-10, 1e-20])
def test_a_temperature_near_zero_is_greedy(place, temperature):
    more = {"max_tokens": 8, "logprobs": True, "top_logprobs": 2, "seed": 0}
    found, wanted = (
        complete(place, ask("What moves?"), temperature=value, **more).choices[0]
        for value in (temperature, 0.0)
    )
    assert found.message.content == wanted.message.content
    assert found.logprobs == wanted.logprobs


def test_frames_are_counted_as_media_keys_say(place):
    counts = {}
    for frames in (4, 8):
        keys = {"media_io_kwargs": {"video": {"num_frames": frames}}}
        reply = complete(place, ask("?", part(place.clips[1])), extra_body=keys, max_tokens=1)
        counts[frames] = reply.usage.prompt_tokens
    text = complete(place, ask("?"), max_tokens=1).usage.prompt_tokens
    assert math.isclose((counts[8] - text - 2) / (counts[4] - text - 2), 2)


def test_a_number_of_frames_is_a_bound(place):
    """What `nframes` takes of a clip, and all frames of a clip that has fewer, as in vLLM."""
    clip = str(place.clips[1])
    for asked, taken in ((4, 4), (7, 6), (12, 12), (99, 12)):
        keys = read_keys({"video": {"num_frames": asked}})["video"]
        parts = [{"type": "video", "video": clip} | more for more in (keys, {"nframes": taken})]
        found, wanted = (place.model.read_part(part) for part in parts)
        assert found[1] == wanted[1]
        np.testing.assert_array_equal(found[0].patches, wanted[0].patches)
        assert found[0].seconds_per_pair == wanted[0].seconds_per_pair
    for fields, word in (({"num_frames": 1}, "at least 2"), ({"num_frames": 8, "fps": 2}, "fps")):
        with pytest.raises(Refused, match=word):
            read_keys({"video": fields})


def test_models_metrics_and_unknown_keys(place, caplog):
    assert [model.id for model in place.client().models.list()] == ["tiny"]
    for _ in range(2):
        complete(place, ask("?"), extra_body={"strange_key": 1}, max_tokens=1)
    assert sum("strange_key" in message for message in caplog.messages) == 1
    lines = httpx2.get(f"{place.url}/metrics").text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert int(values['videorft_requests_total{ended="done"}']) >= 2
    bucket = 'videorft_first_text_seconds_bucket{le="+Inf"}'
    assert values[bucket] == values["videorft_first_text_seconds_count"]


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_format_reaches_the_prompt(place, kind):
    schema = {"type": "object", "properties": {"colour": {"type": "string"}}}
    form = {"type": kind}
    if kind == "json_schema":
        form["json_schema"] = {"name": "reply", "schema": schema}
    plain = complete(place, ask("?"), max_tokens=1).usage.prompt_tokens
    asked = complete(place, ask("?"), max_tokens=1, response_format=form).usage.prompt_tokens
    assert asked > plain + (len(json.dumps(schema)) // 8 if kind == "json_schema" else 10)
