"""Exports as transformers' own processor and `generate` use them, clips given as paths."""

import dataclasses
import importlib.util
import json
import pathlib
import re
import shutil

import clips
import hf_twin as hf
import jinja2
import numpy as np
import peft
import pytest
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from trained_place import TrainedPlace
from transformers.video_utils import VideoMetadata, load_video

import videorft_jax as vr
from videorft_jax import cli
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.processor_files import describe_equality, processor_files
from videorft_jax.data.media.sampling import num_sampled, target_size
from videorft_jax.data.records import chat_template
from videorft_jax.data.records.chat_template import EXACT_FILE
from videorft_jax.models.geometry import find_geometry
from videorft_jax.models.hf_writer import write_checkpoint

FIXED = MediaContract(
    fps=2.0, min_frames=4, max_frames=4, min_pixels=56 * 56, max_pixels=4 * 56 * 56,
    image_max_pixels=4 * 56 * 56, mrope_rule="hf5",
)  # fmt: skip
# Frames, rate, size: long and short, slow and fast. The first ten need no resize; the others do.
CLIPS = [
    (4, 2, (56, 56)), (5, 25, (84, 56)), (12, 8, (112, 56)), (13, 8, (56, 112)),
    (50, 25, (112, 112)), (51, 30, (84, 84)), (77, 12, (84, 112)), (90, 24, (56, 84)),
    (9, 1, (84, 84)), (33, 5, (112, 84)),
    (50, 25, (64, 48)), (51, 30, (320, 240)), (77, 12, (240, 320)), (33, 5, (320, 128)),
]  # fmt: skip
QUESTION = "What moves?"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="module")
def other_place(tmp_path_factory):
    """The same of Qwen3-VL, which reads its clips in other patches."""
    changes = {"patch_size": 16, "min_pixels": 64 * 64, "max_pixels": 4 * 64 * 64}
    contract = dataclasses.replace(FIXED, image_max_pixels=4 * 64 * 64, **changes)
    return make_place(tmp_path_factory.mktemp("others"), contract, "qwen3_vl")


def make_place(folder, contract=FIXED, model_type="qwen2_5_vl"):
    made = TrainedPlace(folder, contract, model_type)
    for number, (num, rate, size) in enumerate(CLIPS):
        (made.folder / f"{number}.mp4").write_bytes(clips.encode(num, rate, size))
    return made


def chat(path):
    parts = [{"type": "video", "video": str(path)}, {"type": "text", "text": QUESTION}]
    return [{"role": "user", "content": parts}]


@pytest.fixture(scope="module")
def torchvision():
    """Every video processor of transformers is written with it; it is no part of the test extra."""
    return pytest.importorskip("torchvision", reason="transformers reads no clip without it")


def load_processor(folder):
    """AutoProcessor, its clips decoded by PyAV, which does not ask for another build of ffmpeg."""
    processor = transformers.AutoProcessor.from_pretrained(folder)

    def fetch(paths, sample_indices_fn=None):
        if isinstance(paths, list):
            return list(zip(*(fetch(path, sample_indices_fn) for path in paths), strict=True))
        return load_video(paths, backend="pyav", sample_indices_fn=sample_indices_fn)

    processor.video_processor.fetch_videos = fetch
    return processor


def assert_same_answers(place, model, ours, folder):
    """Frames, pixels, tokens and greedy text of all clips; `model` is transformers'."""
    processor = load_processor(folder)
    model.generation_config.max_new_tokens = 24  # A random model may never stop.
    texts = set()
    for number in range(len(CLIPS)):
        messages = chat(place.folder / f"{number}.mp4")
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt",
        )  # fmt: skip
        batch = ours.prepare([messages])
        length = int((batch.segment_ids > 0).sum())
        np.testing.assert_array_equal(inputs["input_ids"][0], batch.tokens[0, :length])
        clip = vr.read_video(messages[0]["content"][0]["video"], FIXED)
        rows, grid = hf.hf_patches(hf.Clip(clip.frames, clip.fps))
        assert inputs["video_grid_thw"].tolist() == [list(grid)]
        # The levels are equal, whether a clip was resized or not; float32 adds its own rounding.
        np.testing.assert_allclose(inputs["pixel_values_videos"], rows, atol=1e-3 / 255 / 0.26)
        with torch.no_grad():
            logits = model(**inputs).logits[0].numpy()
            answer = model.generate(**inputs)[0, length:].numpy()
        mine = np.asarray(ours.forward(batch))[0, :length]
        np.testing.assert_allclose(mine, logits, atol=2e-5 * np.abs(logits).max())
        out = ours.generate([messages], num_rollouts=1, max_new_tokens=24, temperature=0.0)
        np.testing.assert_array_equal(answer[:24], out.tokens[0, 0, : out.lengths[0, 0]])
        texts.add(out.texts[0][0])
    assert len(texts) > 3  # The clips matter.


@pytest.mark.slow
@pytest.mark.parametrize("run", ["full", "lora"])
def test_every_clip_gets_our_answers(place, torchvision, run, tmp_path):
    out = tmp_path / "hf"
    assert place.export(run, out) == 0
    model = transformers.AutoModelForImageTextToText.from_pretrained(out)
    assert_same_answers(place, model, vr.load(out, dtype="float32"), out)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", ["video", "image", "image video image", "video video"])
@pytest.mark.parametrize("family", ["place", "other_place"])
def test_ask_answers_as_transformers_does(family, torchvision, kinds, tmp_path, capsys, request):
    """Both are given paths, read them by their own processors and answer alike in float32."""
    place = request.getfixturevalue(family)
    assert place.export("full", tmp_path / "hf") == 0
    flags, parts = [], []
    for number, kind in enumerate(kinds.split()):
        path = place.folder / f"{2 + number}.mp4"
        if kind == "image":
            path = tmp_path / f"{number}.png"
            rng = np.random.default_rng(number)
            Image.fromarray(rng.integers(0, 256, (84, 56, 3), np.uint8)).save(path)
        flags.append(f"--{kind}={path}")
        # Some builds of torchvision cannot read the file of a picture, so Pillow does.
        parts.append({"type": kind, kind: Image.open(path) if kind == "image" else str(path)})
    system = (tmp_path / "hf" / "system_prompt.txt").read_text()
    messages = [
        {"role": "system", "content": [{"type": "text", "text": system}]},
        {"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]},
    ]
    exact = tmp_path / "hf" / EXACT_FILE
    words = {"chat_template": exact.read_text()} if exact.exists() else {}
    assert bool(words) == (family == "other_place")
    inputs = load_processor(tmp_path / "hf").apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
        **words,
    )  # fmt: skip
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "hf")
    model.generation_config.max_new_tokens = 24
    with torch.no_grad():
        answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    capsys.readouterr()
    words = ["ask", f"--model={tmp_path / 'hf'}", *flags, f"--question={QUESTION}", "--json"]
    assert cli.main([*words, "--dtype=float32", "--max_new_tokens=24"]) == 0
    said = json.loads(capsys.readouterr().out)
    text = tokenizer.decode(answer[:24], skip_special_tokens=True).rstrip("\ufffd")
    assert said["answer"] == text
    assert said["num_tokens"] == len(answer[:24])


def test_adapters_find_their_class(place, tmp_path):
    """AutoPeftModel on the adapter folder computes what our merged export does."""
    assert place.export("lora", tmp_path / "adapter", "--adapter") == 0
    assert place.export("lora", tmp_path / "merged") == 0
    tuned = peft.AutoPeftModel.from_pretrained(tmp_path / "adapter")
    merged = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        np.testing.assert_allclose(
            tuned(input_ids=ids).logits, merged(input_ids=ids).logits, atol=1e-4
        )
    assert "base_model" in (tmp_path / "adapter" / "README.md").read_text()
    apart = vr.load(place.model, dtype="float32", adapter=tmp_path / "adapter")
    assert apart.contract == FIXED


def test_one_changed_value_fails_the_check(place, tmp_path, monkeypatch, capsys):
    """The media contract and the rest are the run's; one number of one tensor is not."""

    def spoil(folder, *arguments, **options):
        write_checkpoint(folder, *arguments, **options)
        path = pathlib.Path(folder) / "model.safetensors"
        tensors = load_file(path)
        tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 1.0
        save_file(tensors, path, metadata={"format": "pt"})

    monkeypatch.setattr("videorft_jax.training.export.write_checkpoint", spoil)
    assert place.export("full", tmp_path / "hf", "--check", place.folder / "4.mp4") == 1
    said = capsys.readouterr().out
    for text in (
        "ok    media contract: it is the run's", "has the run's mrope_rule hf5",
        "FAIL  weights: 1 of 33 differ from the run's, such as text/layers/mlp/up",
        "FAIL  logits: they differ by",
    ):  # fmt: skip
        assert text in said


@pytest.mark.slow
@pytest.mark.parametrize("run", ["full", "lora"])
@pytest.mark.parametrize("family", ["place", "other_place"])
def test_a_sound_folder_passes_the_check(family, run, tmp_path, capsys, request):
    place = request.getfixturevalue(family)
    assert place.export(run, tmp_path / "hf", "--check", place.folder / "4.mp4") == 0
    said = capsys.readouterr().out
    assert "FAIL" not in said
    assert re.search(r"weights: all \d+ stacks are those of", said)
    difference = float(re.search(r"differ by (\S+) of the largest over \d+ tokens", said)[1])
    assert 0 < difference < 5e-5
    assert re.search(r"text: both write '.+'", said)
    if importlib.util.find_spec("torchvision"):
        assert "processor: same tokens, pixels within 0 of 255 levels" in said
    else:
        assert "not compared, since it needs torchvision" in said


@pytest.mark.slow
def test_the_check_names_another_rule(tmp_path, capsys):
    """A run under the rule of the release is told that this transformers answers otherwise."""
    place = TrainedPlace(tmp_path, dataclasses.replace(FIXED, mrope_rule="qwen"))
    (tmp_path / "a.mp4").write_bytes(clips.encode(40, 1, (84, 56)))
    assert place.export("full", tmp_path / "hf", "--check", tmp_path / "a.mp4") == 0
    said = capsys.readouterr().out
    assert "the run has mrope_rule qwen, transformers" in said
    assert "expect other answers" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--check", "none.mp4"], "--check=none.mp4: no such clip"),
        (["--check", __file__, "--adapter"], "leave --adapter out"),
        (["--check", __file__], "pip install torch torchvision"),
    ],
)
def test_what_cannot_be_checked_is_said_first(place, tmp_path, flags, said, monkeypatch, capsys):
    if said.startswith("pip"):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert place.export("lora", tmp_path / "hf", *flags) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


def test_the_card_tells_where_the_weights_come_from(place, tmp_path):
    (place.model / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    assert place.export("full", tmp_path / "hf") == 0
    card = (tmp_path / "hf" / "README.md").read_text()
    for text in (
        'license: "apache-2.0"', "`records.jsonl`", 'base_model: "model"', "step 3",
        "| max_frames | 4 |", "transformers from 5.18 on",
    ):  # fmt: skip
        assert text in card
    assert str(place.folder) not in card
    (place.model / "README.md").unlink()
    assert place.export("full", tmp_path / "bare") == 0
    assert "look it up" in (tmp_path / "bare" / "README.md").read_text()


def test_a_template_is_written_where_there_is_none(place, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(place.model, bare)
    (bare / "chat_template.jinja").unlink()
    (bare / "chat_template.json").write_text('{"chat_template": "another"}')
    model = vr.load(bare, dtype="float32")
    assert model.tokenizer.chat_template is None
    model.save(tmp_path / "saved")
    said = [
        transformers.AutoTokenizer.from_pretrained(folder).apply_chat_template(
            chat("a.mp4"), tokenize=False
        )
        for folder in (place.model, tmp_path / "saved")
    ]
    assert said[0] == said[1]
    # What another program's processor says must be the same, where the old file was preferred.
    values, _ = transformers.ProcessorMixin.get_processor_dict(tmp_path / "saved")
    assert values["chat_template"] == (tmp_path / "saved" / "chat_template.jinja").read_text()
    assert (tmp_path / "saved" / "source_chat_template.json").exists()


def test_generate_is_told_what_ask_does(place, tmp_path):
    """Greedy, without the penalty of the source, and never a token that stands for pixels."""
    assert place.export("full", tmp_path / "hf") == 0
    values = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    kept = json.loads((tmp_path / "hf" / "source_generation_config.json").read_text())
    assert kept == {"repetition_penalty": 1.5}
    assert (values["do_sample"], values["repetition_penalty"]) == (False, 1.0)
    ids = place.loaded.tokenizer.convert_tokens_to_ids
    assert values["eos_token_id"] == [ids("<|im_end|>"), ids("<|endoftext|>")]
    pixels = {ids("<|video_pad|>"), ids("<|image_pad|>"), ids("<|vision_start|>")}
    assert pixels < set(values["suppress_tokens"])
    assert ids("<|im_end|>") not in values["suppress_tokens"]


def test_every_file_that_clients_look_for_is_there(place, tmp_path):
    """transformers, vLLM and the conversion script of llama.cpp read these; PyTorch's loaders want
    the format of the tensors named."""
    assert place.export("full", tmp_path / "hf") == 0
    files = {path.name: path for path in (tmp_path / "hf").iterdir()}
    assert set(files) == {
        "config.json", "generation_config.json", "model.safetensors", "media_contract.json",
        "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md",
        "preprocessor_config.json", "video_preprocessor_config.json",
        "source_generation_config.json", "system_prompt.txt",
    }  # fmt: skip
    values = {name: json.loads(path.read_text()) for name, path in files.items() if "json" in name}
    architectures = values["config.json"]["architectures"]
    assert architectures == ["Qwen2_5_VLForConditionalGeneration"]
    assert hasattr(transformers, architectures[0])
    with safe_open(files["model.safetensors"], "np") as tensors:
        assert tensors.metadata() == {"format": "pt"}
    for name, kind in (("", "image"), ("video_", "video")):
        found = values[f"{name}preprocessor_config.json"]
        assert found[f"{kind}_processor_type"].endswith(f"{kind.title()}Processor")
        # Old clients read the two numbers, new ones the size.
        assert found["size"]["longest_edge"] == found.get("max_pixels", 4 * 4 * 56 * 56)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.chat_template == files["chat_template.jinja"].read_text()


def test_clips_with_times_have_a_template_of_their_own():
    """The pad alone stands for a clip; pictures and texts are written as the other one does."""
    geometry = find_geometry(16)
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "video"}]
    messages = [{"role": "user", "content": parts}]
    released = chat_template.chat_template(geometry).replace("+ part.type +", "")
    literal = "{%- for part in messages[0].content -%}{%- if part.type == 'video' -%}"
    literal += "<|vision_start|><|video_pad|><|vision_end|>{%- endif -%}{%- endfor -%}"
    environment = jinja2.Environment()

    def render(text):
        return environment.from_string(text).render(messages=messages, add_generation_prompt=True)

    ours = render(chat_template.chat_template(geometry))
    assert ours.count("<|vision_start|><|video_pad|><|vision_end|>") == 1
    wanted = ours.replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>")
    for template in (None, released):
        assert render(chat_template.exact_template(template, geometry)) == wanted
    assert render(chat_template.exact_template(literal, geometry)) == "<|video_pad|>"


@pytest.mark.slow
def test_a_count_that_depends_on_the_length_has_the_other_processor(torchvision, tmp_path):
    """Numbers of frames and sizes are equal there too; the frames themselves are not."""
    contract = MediaContract(max_frames=32, total_pixels=11_520 * 28 * 28)
    files = processor_files(contract)
    for name, values in files.items():
        (tmp_path / name).write_text(json.dumps(values))
    theirs = transformers.AutoVideoProcessor.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "Qwen2VLVideoProcessor"
    rng = np.random.default_rng(0)
    for _ in range(200):
        total, rate = int(rng.integers(4, 2000)), float(rng.uniform(1, 60))
        metadata = VideoMetadata(total_num_frames=total, fps=rate)
        count = num_sampled(total, rate, contract)
        # Its arange in floating point now and then holds one frame more.
        assert len(theirs.sample_frames(metadata)) in (count, count + 1)
        height, width = rng.integers(30, 2000, 2)
        video = torch.zeros((1, count, 1, int(height), int(width)), device="meta")
        size = theirs.size
        got = theirs.resize(video, size, theirs.resample, 28, 2, cap_pixels_per_frame=True).shape[
            -2:
        ]
        assert tuple(got) == target_size(int(height), int(width), count, contract)
    assert "in its own way" not in describe_equality(contract)
