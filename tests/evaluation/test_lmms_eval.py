"""The plug-in of lmms-eval against a stub of its base class: what it is told, and what not."""

import json
import sys
import types

import numpy as np
import pytest
from benchmark_layouts import clip
from evaluation_place import LENGTH
from PIL import Image

import videorft_jax as vr
from videorft_jax.evaluation import lmms_eval


@pytest.fixture
def stub(monkeypatch):
    """The two modules of lmms-eval that the plug-in imports."""

    class Base:
        def __init__(self):
            self.task_dict = {}

    class Manifest(types.SimpleNamespace):
        pass

    parts = {"lmms_eval": {}, "lmms_eval.api": {}, "lmms_eval.models": {},
             "lmms_eval.api.model": {"lmms": Base},
             "lmms_eval.models.registry_v2": {"ModelManifest": Manifest}}  # fmt: skip
    for name, values in parts.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return Base


def make_requests(model, folder, paths, settings):
    """Requests as lmms-eval makes them, 6-tuples over its documents."""
    model.task_dict = {"task": {"test": [{"path": folder / path} for path in paths]}}

    def messages(doc):
        kind = "audio" if doc["path"].suffix == ".webm" else "video"
        text = {"type": "text", "text": "Which way?\nA. left\nB. right"}
        return [{"role": "user", "content": [{"type": kind, "url": str(doc["path"])}, text]}]

    return [
        types.SimpleNamespace(args=("Which way?", messages, settings, number, "task", "test"))
        for number in range(len(paths))
    ]


def test_answers_are_those_of_generate(place, stub, tmp_path):
    """A .webm clip that comes as audio is seen; a clip that is gone is "?" and ends nothing."""
    manifest = lmms_eval.manifest()
    module, _, name = manifest.chat_class_path.rpartition(".")
    made = getattr(sys.modules[module], name)
    assert issubclass(made, stub)
    assert manifest.model_id == "videorft_jax"
    assert made.is_simple is False
    for path in ("a.mp4", "b.webm"):
        clip(tmp_path / path)
    raw = tmp_path / "raw.jsonl"
    model = made(pretrained=str(place.model), batch_size="2", device="cpu", raw_file=str(raw))
    settings = {"until": ["\n\n"], "do_sample": False, "max_new_tokens": LENGTH}
    paths = ["a.mp4", "gone.mp4", "b.webm"]
    found = model.generate_until(make_requests(model, tmp_path, paths, settings))
    assert found[1] == "?"
    outputs = [json.loads(line)["output"] for line in raw.read_text().splitlines()]
    assert outputs[1] is None
    chats = [
        [{"role": "user", "content": [{"type": "video", "video": str(tmp_path / path)},
          {"type": "text", "text": "Which way?\nA. left\nB. right"}]}]
        for path in ("a.mp4", "b.webm")
    ]  # fmt: skip
    own = vr.load(place.model, dtype=None)
    texts = own.generate(chats, num_rollouts=1, max_new_tokens=LENGTH, temperature=0.0).texts
    assert [outputs[0], outputs[2]] == [text for (text,) in texts]
    assert [found[0], found[2]] == [lmms_eval.bare_answer(text) for (text,) in texts]
    with pytest.raises(NotImplementedError, match="gives no likelihoods"):
        model.loglikelihood([])


def test_a_clip_that_the_task_misses_is_no_answer(place, stub, tmp_path, caplog):
    """VSI-Bench's task raises FileExistsError for a clip that is not there."""
    clip(tmp_path / "a.mp4")
    settings = {"until": ["\n\n"], "do_sample": False, "max_new_tokens": LENGTH}
    model = lmms_eval.LmmsModel(pretrained=str(place.model), batch_size="2")
    requests = make_requests(model, tmp_path, ["a.mp4", "gone.mp4"], settings)
    messages = requests[1].args[1]

    def look(doc):
        if not doc["path"].exists():
            raise FileExistsError(f"video path:{doc['path']} does not exist.")
        return messages(doc)

    requests[1].args = (*requests[1].args[:1], look, *requests[1].args[2:])
    assert model.generate_until(requests)[1] == "?"
    assert "gone.mp4 does not exist" in caplog.text


def test_an_old_decoder_is_refused_and_not_every_clip(monkeypatch):
    monkeypatch.setattr("av.__version__", "15.1.0")
    with pytest.raises(ValueError, match=r"PyAV 15.1.0 cannot .* pip install 'av>=18,<19'"):
        lmms_eval.Answerer("none", 1)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>A or B.</think>\n<answer>B</answer>", "B"),
        ("<think>It is <answer>A</answer></think> <answer> B </answer>", "B"),
        ("<think>So.</think>\nB", "B"),
        ("B.", "B."),
        ("<think>I wonder", "?"),
        ("<think>So.</think>", "?"),
        ("<answer>A</answer><answer>B</answer>", "?"),
        ("", "?"),
    ],
)
def test_what_is_told_is_the_bare_answer(text, answer):
    assert lmms_eval.bare_answer(text) == answer


def test_stops_but_for_the_blank_line():
    text = "first\n\nsecond\nQ: next"
    assert lmms_eval.cut_at_stops(text, ["\n\n"]) == text
    assert lmms_eval.cut_at_stops(text, ["\n\n", "\nQ:"]) == "first\n\nsecond"
    assert lmms_eval.cut_at_stops(text, "second") == "first\n\n"


def test_parts_of_all_kinds():
    picture = Image.new("RGB", (4, 3), (1, 2, 3))
    span = {"video_path": "a.mp4", "video_start": 1, "video_end": 2.5}
    content = [
        {"type": "image", "url": picture},
        {"type": "image", "url": "a.gif"},
        {"type": "video", "url": span},
        {"type": "video", "url": "b.mkv", "start_time": 0, "end_time": None},
        {"type": "text", "text": "Q?"},
    ]
    ((image, *rest),) = [m["content"] for m in lmms_eval.read_chat([
        {"role": "user", "content": content}])]  # fmt: skip
    np.testing.assert_array_equal(image["image"], np.asarray(picture))
    assert rest == [
        {"type": "video", "video": "a.gif"},
        {"type": "video", "video": "a.mp4", "start": 1.0, "end": 2.5},
        {"type": "video", "video": "b.mkv", "start": 0.0},
        {"type": "text", "text": "Q?"},
    ]
    with pytest.raises(ValueError, match="a part of type 'video' that names no file"):
        lmms_eval.read_chat([{"role": "user", "content": [{"type": "video", "url": {"fps": 1}}]}])
    with pytest.raises(ValueError, match="'audio'.*hears not"):
        lmms_eval.read_chat([{"role": "user", "content": [{"type": "audio", "url": "a.mp3"}]}])
