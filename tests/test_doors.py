"""Public functions take every form of pixels that the field has, and raise ValueError alone.

A message is one line that stays short whatever was given, also where that is a data URI.
"""

import base64
import io
import itertools
import pathlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import videorft_jax as vr
from videorft_jax import api
from videorft_jax.rollout import engine

WORDS = {"type": "text", "text": "What moves?"}
FRAMES = np.random.default_rng(0).integers(0, 256, (4, 56, 84, 3), np.uint8)


@pytest.fixture(scope="module")
def place(tiny_model):
    """(model, folder, path of a clip); the folder has a picture too."""
    folder, _ = tiny_model
    Image.fromarray(FRAMES[0]).save(folder / "frame.png")
    clip = sorted((folder / "data").rglob("*.mp4"))[0]
    media = {"max_frames": 4, "max_pixels": 56 * 84, "image_max_pixels": 56 * 84}
    return vr.load(folder / "model", dtype="float32", media=media), folder, clip


def prepare(model, part):
    return model.prepare([[{"role": "user", "content": [part, WORDS]}]])


def same(model, ours, theirs):
    for one, other in zip(prepare(model, ours), prepare(model, theirs), strict=True):
        np.testing.assert_array_equal(one, other)


def uri(path, kind):
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def forms(path, kind, mime):
    """One file in every form that holds it."""
    text, content = str(path), path.read_bytes()
    for source in (text, path, f"file://{text}", uri(path, mime), content, io.BytesIO(content)):
        yield {"type": kind, kind: source}
    for name in ("path", "url", f"{kind}_url"):
        yield {"type": kind, name: text}
    yield {"type": kind, "base64": base64.b64encode(content).decode()}
    yield {"type": f"{kind}_url", f"{kind}_url": {"url": f"file://{text}"}}
    yield {"type": f"{kind}_url", f"{kind}_url": {"url": uri(path, mime), "detail": "auto"}}
    yield {"type": kind, kind: text, "fps": None, "start": None, "text": None}


def test_every_form_of_a_file_gives_the_same_batch(place):
    model, folder, clip = place
    for part in forms(clip, "video", "video/mp4"):
        same(model, part, {"type": "video", "video": str(clip)})
    for part in forms(folder / "frame.png", "image", "image/png"):
        same(model, part, {"type": "image", "image": str(folder / "frame.png")})
    same(model, {"type": "image", "image": Image.open(folder / "frame.png")},
         {"type": "image", "image": str(folder / "frame.png")})  # fmt: skip
    row = {
        "prompt": "What?",
        "completion": "A.",
        "images": [uri(folder / "frame.png", "image/png")],
    }
    named = row | {"images": [str(folder / "frame.png")]}
    for one, other in zip(model.prepare([row]), model.prepare([named]), strict=True):
        np.testing.assert_array_equal(one, other)


def test_every_form_of_pixels_gives_the_same_batch(place):
    """Channels first and last, whole numbers, fractions of 1 and of 255, tensors and lists."""
    model, folder, _ = place
    first, wide = FRAMES.transpose(0, 3, 1, 2), FRAMES.astype(np.float32)
    pictures = [Image.fromarray(frame) for frame in FRAMES]
    reference = {"type": "video", "video": FRAMES, "fps": 2.0}
    for video in (
        first, wide, wide / 255, first / 255.0, FRAMES.astype(np.int64), wide.astype(np.float16),
        torch.tensor(first), torch.tensor(FRAMES).float(), list(FRAMES), tuple(first), pictures,
        [torch.tensor(frame) for frame in first],
    ):  # fmt: skip
        same(model, {"type": "video", "video": video, "fps": 2.0}, reference)
    same(model, {"type": "video", "video": FRAMES, "sample_fps": np.float64(2)}, reference)
    for number, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(folder / f"{number}.png")
    uris = [uri(folder / f"{number}.png", "image/png") for number in range(4)]
    same(model, {"type": "video", "video": uris, "fps": 2}, reference)
    paths = [f"file://{folder}/{number}.png" for number in range(4)]
    same(model, {"type": "video", "video": paths, "fps": 2}, reference)
    image = {"type": "image", "image": FRAMES[0]}
    for pixels in (first[0], wide[0] / 255, torch.tensor(first[0]), pictures[0], FRAMES[:1]):
        same(model, {"type": "image", "image": pixels}, image)


def test_keys_of_a_part_are_honoured(place):
    """A bound alone brings the other one with it, as in `vr.load`; numbers may be NumPy's."""
    model, _, clip = place
    part = {"type": "video", "video": str(clip)}
    small = prepare(model, part | {"max_pixels": np.int64(28 * 28)})
    assert small.patch_valid[0].any((1, 2)).sum() == 2
    assert small.patch_valid[0, 0].sum() == 4
    large = prepare(model, part | {"min_pixels": 112 * 112})
    assert large.patch_valid[0, 0].sum() >= 64
    assert prepare(model, part | {"nframes": np.int64(2)}).patch_valid[0].any((1, 2)).sum() == 1
    same(model, part | {"nframes": 4.0}, part | {"nframes": 4})
    same(model, part | {"video_start": 0.5}, part | {"start": np.float32(0.5)})


LONG = "A" * 200_000
BAD = {
    "a data URI of no clip": {"type": "video", "video": f"data:video/mp4;base64,{LONG}"},
    "no base64": {"type": "image", "image": f"data:image/png;base64,{'!' * 200_000}"},
    "a data URI of text": {"type": "image", "image": f"data:text/plain,{LONG}"},
    "bare base64": {"type": "image", "image": LONG},
    "base64 of a number": {"type": "image", "base64": 7},
    "a web address": {"type": "image", "image": f"https://host/{LONG}"},
    "a text file": {"type": "image", "image": io.StringIO("x")},
    "two sources": {"type": "image", "image": "a.png", "path": "b.png"},
    "a URL's detail": {"type": "image_url", "image_url": {"url": "a.png", "detail": "high"}},
    "a URL without one": {"type": "image_url", "image_url": {"detail": "auto"}},
    "a long key": {"type": "video", "video": "a.mp4", LONG: 1},
    "a long value": {"type": "video", "video": "a.mp4", "nframes": LONG},
    "a long kind": {"type": LONG},
    "a half frame": {"type": "video", "video": "a.mp4", "nframes": 2.5},
    "an endless rate": {"type": "video", "video": FRAMES, "fps": float("inf")},
    "no rate": {"type": "video", "video": FRAMES},
    "a rate of 0": {"type": "video", "video": FRAMES, "fps": 0},
    "a number of decoded frames": {"type": "video", "video": FRAMES, "fps": 2, "nframes": 2},
    "a span of decoded frames": {"type": "video", "video": FRAMES, "fps": 2, "video_start": 1},
    "no frames": {"type": "video", "video": FRAMES[:0], "fps": 2},
    "four channels": {"type": "video", "video": np.zeros((2, 56, 56, 4), np.uint8), "fps": 2},
    "five dims": {"type": "video", "video": FRAMES[None], "fps": 2},
    "words": {"type": "video", "video": np.array(["a", "b"]), "fps": 2},
    "truth": {"type": "video", "video": FRAMES > 7, "fps": 2},
    "nothing that is a number": {"type": "video", "video": FRAMES * np.nan, "fps": 2},
    "normalised pixels": {"type": "video", "video": FRAMES / 127.5 - 1, "fps": 2},
    "a tensor that trains": {"type": "image", "image": torch.zeros(3, 9, 9, requires_grad=True)},
    "frames of two sizes": {"type": "video", "video": [FRAMES[0], FRAMES[1][:28]], "fps": 2},
    "frames and paths": {"type": "video", "video": [FRAMES[0], "a.png"], "fps": 2},
    "a list as an image": {"type": "image", "image": ["a.png"]},
    "an object": {"type": "image", "image": object()},
}


def check_short(call):
    """Asserts that a call returns, or raises a ValueError of one short line."""
    said = ""
    try:
        call()
    except ValueError as error:
        said = str(error)
    assert len(said) < 1000, said[:1200]
    assert "\n" not in said
    return said


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_one_short_line(place, name):
    said = check_short(lambda: prepare(place[0], BAD[name]))
    assert "; " in said, said


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12),
    st.binary(max_size=12), st.sampled_from([LONG, f"data:image/png;base64,{LONG}", np.int8(3)]),
)  # fmt: skip
ARRAYS = st.builds(
    lambda shape, kind, value: np.full(shape, value).astype(kind),
    st.lists(st.integers(0, 3), max_size=5).map(tuple),
    st.sampled_from(["u1", "i8", "f4", "f8", "?", "S1", "O"]),
    st.integers(-3, 300),
)
VALUES = st.one_of(
    SCALARS, ARRAYS, st.lists(SCALARS, max_size=3), st.lists(ARRAYS, max_size=2),
    st.dictionaries(st.sampled_from(["url", "detail", "a"]), SCALARS, max_size=2),
)  # fmt: skip
KEYS = ("type", "video", "image", "text", "path", "url", "image_url", "video_url", "base64", "fps",
        "nframes", "min_frames", "max_frames", "min_pixels", "max_pixels", "total_pixels",
        "resized_height", "resized_width", "start", "end", "video_start", "video_end",
        "sample_fps", "raw_fps")  # fmt: skip
KINDS = st.sampled_from(["text", "image", "video", "image_url", "video_url", "audio"])
PARTS = st.builds(
    lambda kind, rest: {"type": kind} | rest, KINDS,
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4),
)  # fmt: skip
CONTENT = st.one_of(VALUES, st.lists(st.one_of(PARTS, VALUES), max_size=3))
TURNS = st.fixed_dictionaries(
    {"role": st.one_of(st.sampled_from(["system", "user", "assistant"]), SCALARS)},
    optional={"content": CONTENT, "value": CONTENT, "from": SCALARS},
)
CHATS = st.one_of(VALUES, st.lists(st.one_of(TURNS, TURNS, VALUES), max_size=3), TURNS)
UNHURRIED = settings(
    max_examples=150, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


@UNHURRIED
@given(chats=st.one_of(CHATS, st.lists(CHATS, max_size=2)))
def test_prepare_raises_value_errors_alone(place, chats):
    check_short(lambda: place[0].prepare(chats))


@UNHURRIED
@given(key=st.sampled_from(KEYS[9:]), value=VALUES, is_clip=st.booleans())
def test_keys_raise_value_errors_alone(place, key, value, is_clip):
    source = str(place[2]) if is_clip else FRAMES[:2]
    part = {"type": "video", "video": source} | ({} if is_clip else {"fps": 2.0}) | {key: value}
    check_short(lambda: prepare(place[0], part))


RECORD = {
    "problem_id": 1, "problem": "Q?", "problem_type": "free-form",
    "solution": "<answer>a</answer>", "data_type": "video", "path": "a.mp4",
}  # fmt: skip
JUNK = [None, True, -1, 1.5, float("nan"), "x", "", LONG, "a\nb", b"x", [], ["x"], {}, {"x": 1},
        object(), np.zeros(2)]  # fmt: skip


def doors(model, folder, clip):
    """name -> a call of a public function with one argument that may be anything."""
    chat = [[{"role": "user", "content": "Hi"}]]
    for name in ("dtype", "mesh", "mrope_rule", "adapter", "media", "strip_prefix"):
        yield f"load {name}", lambda x, name=name: vr.load(folder / "model", **{name: x})
    for field in ("fps", "max_frames", "min_pixels", "sampling", "resized_height"):
        media = lambda x, field=field: vr.load(folder / "model", media={field: x})  # noqa: E731
        yield f"load media {field}", media
        yield f"contract {field}", lambda x, field=field: vr.MediaContract(**{field: x})
    for name in ("num_rollouts", "max_new_tokens", "temperature", "top_p", "top_k", "seed"):
        yield f"generate {name}", lambda x, name=name: model.generate(chat, **{name: x})
    yield "generate", model.generate
    yield "load", vr.load
    yield "load_siglip", vr.load_siglip
    yield "forward", model.forward
    yield "prepare", model.prepare
    yield "from_dict", vr.MediaContract.from_dict
    yield "read_video", lambda x: vr.read_video(x, model.contract)
    yield "read_video contract", lambda x: vr.read_video(clip, x)
    for name in ("start", "end", "fps"):
        read = lambda x, name=name: vr.read_video(clip, model.contract, **{name: x})  # noqa: E731
        yield f"read_video {name}", read
    yield "score completions", lambda x: vr.score(x, [RECORD])
    yield "score completion", lambda x: vr.score([x], [RECORD])
    yield "score records", lambda x: vr.score(["a"], x)
    yield "score record", lambda x: vr.score(["a"], [x])
    yield "score mode", lambda x: vr.score(["a"], [RECORD], mode=x)
    yield "score rewards", lambda x: vr.score(["a"], [RECORD], rewards=x)
    yield "score reward", lambda x: vr.score(["a"], [RECORD], rewards=[x])
    yield "score_outputs", vr.score_outputs
    yield "score_outputs row", lambda x: vr.score_outputs([x])


def test_all_public_functions_raise_value_errors_alone(place, tmp_path, monkeypatch):
    """Where an argument is sound, a stub ends the call before weights are read or drawn from."""
    model, folder, clip = place
    monkeypatch.chdir(tmp_path)

    def stop(*_, **__):
        raise ValueError("so far; it went well")

    monkeypatch.setattr(api, "read_checkpoint", stop)
    monkeypatch.setattr(api.RolloutEngine, "prepare", lambda self, params: params)
    monkeypatch.setattr(engine, "Session", stop)
    wrong = []
    for (name, call), junk in itertools.product(doors(model, folder, clip), JUNK):
        try:
            said = check_short(lambda call=call, junk=junk: call(junk))
            assert "re-encode the file" not in said or name == "read_video", said
        except BaseException as error:
            wrong.append(f"{name} {str(junk)[:20]!r}: {type(error).__name__} {str(error)[:90]}")
    assert not wrong, "\n".join(wrong)
    for junk in (None, 3, "", "a\nb", pathlib.Path(folder)):
        with pytest.raises(ValueError, match="; "):
            model.save(junk)
