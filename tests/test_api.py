"""The public API as a program would use it, on a tiny checkpoint with a real clip."""

import dataclasses
import errno
import inspect
import io
import json
import os
import shutil

import hf_twin as hf
import jax
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import videorft_jax as vr
from videorft_jax import cli
from videorft_jax.data.records.source import RecordSource
from videorft_jax.data.records.system_turn import FILE_NAME as SYSTEM_FILE
from videorft_jax.data.records.system_turn import read_system


@pytest.fixture(scope="module")
def model(tiny_model):
    folder, files = tiny_model
    source = RecordSource(files["sft"])
    clip = next(r.path for r in (source[i] for i in range(8)) if r.data_type == "video")
    return folder, vr.load(folder / "model", dtype="float32", mrope_rule="hf5"), clip


def chats(path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 448, 448, 3), dtype=np.uint8)
    text = {"type": "text", "text": "What moves?"}
    clip = {"type": "video", "video": pixels, "fps": 1.3}
    return pixels, [
        [{"role": "user", "content": [{"type": "video", "video": str(path)}, text]}],
        [{"role": "user", "content": [clip, text]}, {"role": "assistant", "content": "A square."}],
    ]


def test_forward_equals_hugging_face_and_save_round_trips(model, tmp_path):
    folder, ours, clip = model
    pixels, messages = chats(folder / "data" / clip)
    batch = ours.prepare(messages)
    tokens = batch.tokens[1]
    length = int((batch.segment_ids[1] > 0).sum())
    answer = ours.tokenizer.decode(tokens[batch.loss_mask[1]])
    assert answer == "A square.<|im_end|>"
    logits = np.asarray(ours.forward(batch))[1, :length]

    ours.save(tmp_path / "saved")
    theirs = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "saved")
    # 448 x 448 is the budget itself and a multiple of 28: no pixel was touched.
    rows, grid = hf.hf_patches(hf.Clip(pixels, 1.3))
    ids = torch.tensor(tokens[None, :length]).long()
    expected = theirs(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == ours.config.token_ids.video).int() * 2,
        pixel_values_videos=torch.tensor(rows),
        video_grid_thw=torch.tensor([grid]),
        second_per_grid_ts=torch.tensor([2 / 1.3]),
    ).logits.detach()[0]
    np.testing.assert_allclose(logits, expected, atol=1e-5 * float(expected.abs().max()))
    again = vr.load(tmp_path / "saved", dtype=None)
    for before, after in zip(
        jax.tree.leaves(ours.params), jax.tree.leaves(again.params), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_generate(model):
    folder, ours, clip = model
    messages = chats(folder / "data" / clip)[1][:1]
    out = ours.generate(messages, num_rollouts=2, max_new_tokens=6, temperature=0.0)
    assert out.tokens.shape == out.logprobs.shape == (1, 2, 6)
    np.testing.assert_array_equal(out.tokens[0, 0], out.tokens[0, 1])
    # Greedy: each token is the most likely one of a full forward pass over what came before.
    batch = ours.prepare(messages)
    length = int((batch.segment_ids > 0).sum())
    grown = batch._replace(
        tokens=batch.tokens.copy(),
        segment_ids=batch.segment_ids.copy(),
        positions=batch.positions.copy(),
    )
    first = int(batch.positions[0, 0, length - 1]) + 1
    for index in range(int(out.lengths[0, 0])):
        row = np.asarray(ours.forward(grown))[0, length + index - 1, : len(ours.tokenizer)].copy()
        row[[ours.config.token_ids.image, ours.config.token_ids.video]] = -np.inf
        assert row.argmax() == out.tokens[0, 0, index]
        grown.tokens[0, length + index] = out.tokens[0, 0, index]
        grown.segment_ids[0, length + index] = 1
        grown.positions[0, :, length + index] = first + index
    assert out.texts[0][0] == ours.tokenizer.decode(
        out.tokens[0, 0, : out.lengths[0, 0]], skip_special_tokens=True
    )


def test_ask_streams_what_generate_says(model, capsys):
    folder, ours, clip = model
    path = str(folder / "data" / clip)
    chat = [
        {
            "role": "user",
            "content": [{"type": "video", "video": path}, {"type": "text", "text": "What moves?"}],
        }
    ]
    fixed = vr.load(folder / "model", dtype="float32")
    out = fixed.generate([chat], num_rollouts=1, max_new_tokens=12, temperature=0.0)
    arguments = ["--model", str(folder / "model"), "--video", path, "--question", "What moves?"]
    assert cli.main(["ask", *arguments, "--max_new_tokens=12", "--dtype=float32"]) == 0
    assert capsys.readouterr().out == out.texts[0][0].rstrip("\ufffd") + "\n"
    assert cli.main(["ask", "--model", "nowhere", "--question", "?"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_ask_takes_frames_rate_pixels_and_a_system_turn(model, capsys, caplog):
    """The answers of `ask` with flags are those of the API with the same changes, and it says how
    it reads clips."""
    caplog.set_level("INFO")  # `ask` sets it by itself from its first call on.
    folder, ours, clip = model
    path = str(folder / "data" / clip)
    part = {"type": "video", "video": path}
    question = [part, {"type": "text", "text": "What moves?"}]
    system = {"role": "system", "content": "Be brief."}
    base = ["ask", f"--model={folder / 'model'}", f"--video={path}", "--question=What moves?"]
    base += ["--max_new_tokens=8", "--dtype=float32"]
    said, pairs = set(), []
    four = {"min_frames": 4, "max_frames": 4}
    small = {"min_pixels": 784, "max_pixels": 784}
    for flags, media, chat in (
        (["--frames=4"], four, [question]),
        (["--fps=4"], {"fps": 4.0, "min_frames": 4, "max_frames": 768}, [question]),
        (["--frames=4", "--max_pixels=784"], four | small, [question]),
        (["--frames=4", "--system=Be brief."], four, [system, question]),
    ):
        changed = vr.load(folder / "model", dtype="float32", media=media)
        turns = [t if isinstance(t, dict) else {"role": "user", "content": t} for t in chat]
        out = changed.generate([turns], num_rollouts=1, max_new_tokens=8, temperature=0.0)
        assert cli.main([*base, *flags]) == 0
        shown = capsys.readouterr().out
        assert shown == out.texts[0][0].rstrip("\ufffd") + "\n"
        said.add(shown)
        pairs.append(changed.prepare([turns]).patch_valid.any((2, 3)).sum())
    assert len(said) > 2  # The flags matter.
    told = [record.getMessage() for record in caplog.records if "clips are read" in record.msg]
    assert told[1].endswith("lies with the weights: 4 frames, 200704 to 200704 pixels each, "
        "positions qwen")  # fmt: skip
    assert "4 to 768 frames at 4 a second" in told[3]
    assert "4 frames, 784 to 784 pixels each" in told[5]
    assert pairs[0] == pairs[2] == 2
    assert pairs[1] > 2
    for flags, message in (
        (["--frames=4", "--fps=2"], "both say how many frames"),
        (["--frames=1"], "at least 2"),
        (["--fps=0"], "above 0"),
        (["--max_pixels=3"], "less than one visual token"),
    ):
        assert cli.main([*base, *flags]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown or absent fields"):
        vr.load(folder / "model", media={"frame": 3})


def test_ask_begins_with_the_system_turn_of_training(model, tmp_path, monkeypatch, capsys):
    """It stands in every chat, unless `--system` says otherwise, and a save keeps it."""
    folder, ours, _ = model
    trained = dataclasses.replace(ours, system="Think first.\n")
    monkeypatch.setattr("videorft_jax.api.load", lambda *_, **__: trained)
    asked = {"role": "user", "content": [{"type": "text", "text": "What moves?"}]}
    words = ["ask", f"--model={folder / 'model'}", "--question=What moves?", "--max_new_tokens=8"]
    for flags, said in (([], "Think first.\n"), (["--system=B"], "B"), (["--system="], None)):
        chat = [{"role": "system", "content": said}, asked] if said else [asked]
        out = ours.generate([chat], num_rollouts=1, max_new_tokens=8, temperature=0.0)
        assert cli.main([*words, *flags]) == 0
        assert capsys.readouterr().out == out.texts[0][0].rstrip("\ufffd") + "\n"
    trained.save(tmp_path / "hf")
    assert (tmp_path / "hf" / SYSTEM_FILE).read_text() == "Think first.\n"
    (tmp_path / "hf" / SYSTEM_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="no text .*; export again, or delete it"):
        read_system(tmp_path / "hf")


def test_ask_chats_about_several_media_and_shows_them(model, tmp_path, monkeypatch, capsys):
    """Each turn answers what `generate` does with all that was said before; the lines of JSON and
    the picture tell which frames the model saw."""
    folder, ours, clip = model
    path, image = str(folder / "data" / clip), str(tmp_path / "image.png")
    Image.new("RGB", (56, 28), "teal").save(image)
    limits = {"min_frames": 4, "max_frames": 4, "min_pixels": 784, "max_pixels": 3136}
    small = vr.load(folder / "model", dtype="float32", media=limits)
    monkeypatch.setattr("videorft_jax.api.load", lambda *_, **__: small)
    monkeypatch.setattr("sys.stdin", io.StringIO("And then?\n\nWhy?\n"))
    picture = tmp_path / "seen.png"
    flags = [f"--image={image}", f"--video={path}", "--question=What moves?", "--chat", "--json"]
    flags += [f"--show={picture}", "--max_new_tokens=6"]
    assert cli.main(["ask", f"--model={folder / 'model'}", *flags]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["question"] for line in lines] == ["What moves?", "And then?", "Why?"]
    assert f"the frames are in {picture}; next: " in err
    media = [{"type": "image", "image": image}, {"type": "video", "video": path}]
    chat = []
    for line in lines:
        asked = {"type": "text", "text": line["question"]}
        chat.append({"role": "user", "content": [*media, asked]})
        found = small.generate([chat], num_rollouts=1, max_new_tokens=6, temperature=0.0)
        assert line["answer"] == found.texts[0][0].rstrip("\ufffd")
        assert (line["num_tokens"], line["stopped"]) == (int(found.lengths[0, 0]), False)
        chat.append({"role": "assistant", "content": line["answer"]})
        media = []
    seen = vr.read_video(path, small.contract)
    assert lines[0]["media"][1]["times"] == list(seen.timestamps)
    assert lines[0]["media_contract"] == small.contract.digest
    shown = np.asarray(Image.open(picture))
    large = np.kron(seen.frames[0], np.ones((4, 4, 1), np.uint8))  # 56 pixels become 224
    height, width = large.shape[:2]
    column = shown[:, 8 : 8 + width]
    places = range(len(column) - height)
    assert any((column[top : top + height] == large).all() for top in places)


@pytest.mark.parametrize(
    "flag",
    ["max_new_tokens=0", "temperature=-1", "temperature=nan", "seed=-1", "video=/no/clip.mp4",
     "image=/dev/null", "video=file:///no/clip.mp4", "video=data:video/mp4,AA"],
)  # fmt: skip
def test_ask_looks_at_its_flags_before_the_model(capsys, flag):
    assert cli.main(["ask", "--model=nowhere", "--question=?", f"--{flag}"]) == 2
    said = capsys.readouterr().err
    name, _, value = flag.partition("=")
    assert (value.removeprefix("file://") if "/no/" in value or "/dev/" in value else name) in said
    assert "nowhere" not in said
    assert said.count("\n") == 1


def test_a_save_that_cannot_be_is_one_line(model, tmp_path, monkeypatch):
    """What cannot be written is told before anything is, and nothing is left of what fails."""
    _, ours, _ = model
    file = tmp_path / "file"
    file.write_text("kept")
    for folder, reason in (
        (file / "below" / "hf", "Not a directory"),
        (file, "is there already and not empty"),
        ("/proc/hf", "No such file or directory"),
        (tmp_path / ("n" * 250), "File name too long"),
    ):
        with pytest.raises(ValueError, match=rf"^{folder}: .*{reason}.*choose another"):
            ours.save(folder)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as full:
        full.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(ValueError, match="0.00 GiB free, .*free space or choose another"):
            ours.save(tmp_path / "hf")

    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr("videorft_jax.models.tensor_files.write_file", fill)
        with pytest.raises(RuntimeError, match=r"hf: could not be written \(No space left"):
            ours.save(tmp_path / "hf")
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_text() == "kept"


def test_surface_is_frozen():
    assert vr.__all__ == [
        "MediaContract",
        "load",
        "load_siglip",
        "read_video",
        "score",
        "score_outputs",
    ]
    assert list(inspect.signature(vr.load).parameters) == [
        "folder",
        "dtype",
        "mesh",
        "mrope_rule",
        "adapter",
        "media",
        "download",
        "strip_prefix",
    ]
    from videorft_jax.api import Model

    public = {name: list(inspect.signature(getattr(Model, name)).parameters)[1:]
              for name in ("prepare", "forward", "generate", "save")}  # fmt: skip
    assert public == {
        "prepare": ["messages"],
        "forward": ["batch"],
        "generate": [
            "messages", "num_rollouts", "max_new_tokens", "temperature", "top_p", "top_k", "seed",
        ],
        "save": ["folder"],
    }  # fmt: skip
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        _ = vr.train


def test_rows_of_files_and_keys_of_parts_are_prepared(model):
    """A row gives the batch of its chat; a size that a part names is the size of its frames."""
    folder, ours, clip = model
    path = str(folder / "data" / clip)
    text = {"type": "text", "text": "What moves?"}
    chat = [{"role": "user", "content": [{"type": "video", "video": path}, text]}]
    told = [*chat, {"role": "assistant", "content": "A square."}]
    rows = [
        {"messages": told},
        {"conversations": [{"from": "human", "value": "<video>What moves?"},
                           {"from": "gpt", "value": "A square."}], "video": path},
        {"prompt": "What moves?", "completion": "A square.", "videos": [path]},
    ]  # fmt: skip
    expected = ours.prepare([told])
    for row in rows:
        assert all(map(np.array_equal, ours.prepare([row]), expected))
    sized = {"resized_height": 84, "resized_width": 140}
    for source in (path, np.zeros((4, 56, 56, 3), np.uint8)):
        part = {"type": "video", "video": source, **sized}
        part |= {} if isinstance(source, str) else {"fps": 2.0}
        batch = ours.prepare([[{"role": "user", "content": [part, text]}]])
        used = batch.patch_valid[0, 0]
        assert (batch.patch_hw[0, 0][used].max(0) + 1).tolist() == [6, 10]


def test_bad_input(model):
    _, ours, _ = model
    with pytest.raises(ValueError, match="no chats"):
        ours.prepare([])
    frames = np.zeros((4, 448, 448, 3), np.uint8)
    with pytest.raises(ValueError, match='add "fps"'):
        ours.prepare([[{"role": "user", "content": [{"type": "video", "video": frames}]}]])
    for text in ("a\ud800", [{"type": "text", "text": "\udc00"}]):
        with pytest.raises(ValueError, match="message 0: .*half of a surrogate pair; remove it"):
            ours.prepare([[{"role": "user", "content": text}]])
    batch = ours.prepare(chats("clip")[1][1:])
    bad_ids, places = batch.tokens.copy(), batch.visual_index.copy()
    bad_ids[0, 3], places[0, 40] = 10**6, 10**6
    for name, leaf, message in (
        ("tokens", bad_ids, "token ids from 13 to 1000000; the model has rows for 0 to 511"),
        ("tokens", np.where(bad_ids > 511, -5, bad_ids), "token ids from -5 to .*0 to 511"),
        ("tokens", np.where(bad_ids > 511, 512, bad_ids), "token ids .* to 512; .*0 to 511"),
        ("tokens", batch.tokens + 0.0, r"tokens is float64 of .*whole numbers of shape \(1, \d+\)"),
        ("tokens", batch.tokens[0], r"tokens is of shape \(\d+,\); give rows"),
        ("positions", batch.positions[:, :1], r"positions is .*; give .*shape \(1, 3, \d+\)"),
        ("patches", batch.patches[..., :9], r"patches is .*; give bytes of .* 1176\)"),
        ("visual_index", places, "visual_index names places without pixels"),
        ("patch_valid", batch.patch_valid & False, "visual_index names places without pixels"),
    ):
        with pytest.raises(ValueError, match=rf"^forward: {message}"):
            ours.forward(batch._replace(**{name: leaf}))
    padded = np.where(batch.segment_ids > 0, batch.tokens, -100)  # Nobody reads what pads.
    real = batch.segment_ids[0] > 0
    np.testing.assert_array_equal(
        ours.forward(batch._replace(tokens=padded))[0, real], ours.forward(batch)[0, real]
    )
    with pytest.raises(ValueError, match="http://host/a: cannot be read"):
        vr.load("http://host/a")
    with pytest.raises(ValueError, match="no such file"):
        vr.load("nowhere")
    with pytest.raises(ValueError, match=r"config.json: cannot be read \(File name too long\); "):
        vr.load("n" * 300)


def test_a_model_keeps_the_programs_of_its_last_ways_to_draw(model, monkeypatch):
    """A sweep of temperatures would otherwise keep the compiled programs of each."""
    made = []

    class Engine:
        def __init__(self, config, sampling, mesh, **settings):
            made.append(sampling.temperature)

        def check_length(self, batch): ...
        def prepare(self, params): ...
        def rollout(self, *args, **settings): ...

    monkeypatch.setattr("videorft_jax.api.RolloutEngine", Engine)
    ours = dataclasses.replace(model[1], _engines={})
    chat = [{"role": "user", "content": "What moves?"}]
    sweep = [n / 10 for n in range(1, 9)]
    for temperature in (*sweep, 0.1, 0.9, 0.1, 0.2):  # The first is used again and stays.
        ours.roll_out([chat], max_new_tokens=4, temperature=temperature)
    assert made == [*sweep, 0.9, 0.2]
    assert len(ours._engines) == 8
