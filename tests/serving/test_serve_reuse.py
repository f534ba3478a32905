"""What was run for one request is not run for the next, and nothing that is told changes by it."""

import base64
import concurrent.futures

import httpx2
import numpy as np
import pytest

from videorft_jax.serving.clips import Clips
from videorft_jax.serving.kept import Kept
from videorft_jax.serving.laid import lay_out
from videorft_jax.serving.prefill import PromptPrograms
from videorft_jax.serving.prompts import Prompts

QUESTIONS = ["What moves?", "Which colour has the ball?", "Where does it go in the end?", "Why?"]
LONG = 48  # test_serve_chat has the same, so its compiled programs are used again.


def read_metrics(place):
    lines = httpx2.get(f"{place.url}/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name.removeprefix("videorft_"): float(value) for name, value in pairs}


def ask(place, text, url):
    parts = [{"type": "video_url", "video_url": {"url": url}}, {"type": "text", "text": text}]
    return place.client().chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": parts}], temperature=0,
        max_tokens=LONG, logprobs=True,
    )  # fmt: skip


def make_chats(texts, *clips):
    content = [{"type": "video", "video": str(clip)} for clip in clips]
    return [
        [{"role": "user", "content": [*content, {"type": "text", "text": text}]}] for text in texts
    ]


def test_one_video_is_decoded_encoded_and_run_once(place):
    """Four clients ask at once about a clip that nobody has asked about, then one repeats."""
    clip = place.clips[2]  # which no other test shows
    outs = [place.model.generate([chat], 1, max_new_tokens=LONG, temperature=0.0)
            for chat in make_chats(QUESTIONS, clip)]  # fmt: skip
    before = read_metrics(place)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda text: ask(place, text, clip.as_uri()), QUESTIONS))
    data = base64.b64encode(clip.read_bytes()).decode()
    replies.append(ask(place, QUESTIONS[0], f"data:video/mp4;base64,{data}"))
    added = {name: value - before.get(name, 0) for name, value in read_metrics(place).items()}
    for number, reply in enumerate(replies):
        out = outs[number % len(QUESTIONS)]
        count = int(out.lengths[0, 0])
        assert reply.choices[0].message.content == out.texts[0][0]
        given = [token.logprob for token in reply.choices[0].logprobs.content]
        np.testing.assert_allclose(given, out.logprobs[0, 0, :count], atol=1e-5)
    counts = [reply.usage.prompt_tokens for reply in replies]
    known = [reply.usage.prompt_tokens_details.cached_tokens for reply in replies]
    assert added["decoded_clips_total"] == 2  # the file, and the same bytes in a request
    assert added["encoded_clips_total"] == 1
    assert added["reused_clips_total"] == 3
    assert added["reused_prompts_total"] == 1
    assert added["reused_tokens_total"] == sum(known)
    assert added["prefilled_tokens_total"] == sum(counts) - sum(known)
    assert known[-1] == counts[0]
    assert sorted(known)[1] >= 16  # Three read on behind the clip, which has 16 tokens alone.


@pytest.fixture
def made(place):
    """Prompts with an empty memory, a function that lays chats out, and the calls of programs."""
    model, calls = place.model, []
    programs = PromptPrograms(model.config)
    for name in ("encode", "run", "extend"):
        real = getattr(programs, name)

        def call(params, batch, *rest, name=name, real=real):
            leaf = batch.patch_valid[0] if name == "encode" else batch.tokens
            calls.append((name, leaf.shape[0], leaf.shape[1]))
            return real(params, batch, *rest)

        setattr(programs, name, call)
    clips = Clips(model.read_part, model.contract, 1 << 20)

    def make(cache_bytes):
        return Prompts(programs, model.params, cache_bytes)

    return make, lambda chats: [lay_out(model, chat, 1000, clips) for chat in chats], calls


def check_same(laids, found, alone):
    """Logits, keys and values of prompts that were run behind others are those of whole ones."""
    for laid, ours, whole in zip(laids, found, alone, strict=True):
        count = laid.num_tokens
        np.testing.assert_array_equal(ours.valid, whole.valid)
        np.testing.assert_array_equal(ours.position, whole.position)
        for mine, theirs in ((ours.keys, whole.keys), (ours.values, whole.values)):
            mine, theirs = (np.asarray(x)[:, :, :, :count] for x in (mine, theirs))
            np.testing.assert_allclose(mine, theirs, atol=2e-5)
        np.testing.assert_allclose(ours.logits, whole.logits, atol=5e-5)


def collect(prompts, laids):
    found = sorted(prompts.run(laids), key=lambda each: each[0])
    return [prompt for _, prompt, _ in found], [known for *_, known in found]


def test_waiting_prompts_are_run_together(place, made):
    """Nine questions about two clips: one is run whole, and eight behind it in two batches."""
    make, lay, calls = made
    texts = [f"What moves {'then ' * index}?" for index in range(8)]
    laids = lay([*make_chats([*texts, texts[0]], *place.clips[:2])])
    with_clips = np.flatnonzero(laids[0].batch.visual_index[0] >= 0).max() + 1
    prompts = make(1 << 30)
    found, known = collect(prompts, laids)
    assert [call[:2] for call in calls[:2]] == [("encode", laids[0].batch.patches.shape[1]),
                                                ("run", 1)]  # fmt: skip
    assert sum(rows for name, rows, _ in calls if name == "extend") == 7
    assert max(rows for name, rows, _ in calls if name == "extend") == 4
    assert all(length <= 32 for name, _, length in calls if name == "extend")
    assert known[0] == 0
    assert known[8] == laids[8].num_tokens  # The ninth is the first.
    assert all(with_clips - 8 <= count < laids[0].num_tokens for count in known[1:8])
    assert prompts.run_tokens + prompts.reused_tokens == sum(laid.num_tokens for laid in laids)
    calls.clear()
    alone = [collect(make(0), [laid])[0][0] for laid in laids[:3]]
    assert {name for name, *_ in calls} == {"encode", "run"}  # Nothing is kept in 0 bytes.
    check_same(laids[:3], found[:3], alone)


def test_other_pixels_at_the_same_place_are_no_beginning(place, made):
    """Only what stands before the first other clip is shared; the clip itself is encoded once."""
    make, lay, calls = made
    first, second, _ = place.clips
    shown = [(first, second), (first, first), (second,)]
    laids = lay([chat for clips in shown for chat in make_chats(["Why?"], *clips)])
    starts = [np.flatnonzero(laid.batch.visual_index[0] >= 0)[0] for laid in laids]
    prompts = make(1 << 30)
    found, known = collect(prompts, laids)
    assert starts[0] <= known[1] < laids[1].num_tokens - 16
    assert known[2] <= starts[2]
    pairs = [rows for name, rows, _ in calls if name == "encode"]
    assert len(pairs) == 1
    assert prompts.encoded_clips == 2
    check_same(laids, found, [collect(make(0), [laid])[0][0] for laid in laids])


def test_what_was_kept_longest_goes_first(place, made):
    make, lay, calls = made
    laids = lay(make_chats(["a ball", "a cube", "the left"]))
    size = sum(leaf.nbytes for leaf in collect(make(0), laids[:1])[0][0])
    prompts = make(2 * (2 * size + size // 2))  # Half of the memory is for clips.
    for laid in laids:  # The last one is run behind a beginning of the second, which is thus used.
        collect(prompts, [laid])
    calls.clear()
    collect(prompts, [laids[1]])
    assert calls == []
    assert prompts.prompts.held == 2 * size
    collect(prompts, [laids[0]])
    assert len(calls) == 1
    assert len(set(prompts._begins.values())) == 2
    kept = Kept(2)
    assert kept.put("a", 1, 1) == kept.put("b", 2, 1) == []
    assert kept.get("a") == 1
    assert kept.put("c", 3, 1) == [2]
    assert kept.put("d", 4, 3) == []
    assert (kept.get("a"), kept.get("d"), kept.held) == (1, None, 2)


def test_one_clip_asked_for_at_once_is_decoded_once(place):
    begun, go = [], concurrent.futures.Future()

    def read(part):
        begun.append(part)
        go.result()
        return place.model.read_part(part)

    clips = Clips(read, place.model.contract, 1 << 20)
    part = {"type": "video", "video": str(place.clips[0])}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(clips.read, part) for _ in range(4)]
        place.wait(lambda: clips.num_reused == 3)
        go.set_result(None)
        found = [each.result() for each in waiting]
    assert len(begun) == clips.num_read == 1
    assert all(one is found[0] for one in found)
    clips.read(part | {"nframes": 4})
    assert len(begun) == 2  # Other frames are another clip.
    broken = {"type": "video", "video": b"no video"}
    for _ in range(2):
        with pytest.raises(ValueError, match="not_media"):
            clips.read(broken)
    assert len(begun) == 4  # A fault is not kept.
