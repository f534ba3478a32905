"""Tokenizer and processor files beside the weights: those of another model are refused."""

import json

import pytest

from videorft_jax.models.family import find_family
from videorft_jax.models.qwen2_5_vl.config import parse_config, tiny_values
from videorft_jax.models.side_files import check_side_files, check_vocabulary

CONTROLS = {
    302: "<|vision_start|>", 303: "<|vision_end|>", 305: "<|image_pad|>", 306: "<|video_pad|>",
}  # fmt: skip
STYLES = ["tokenizer.json", "unigram", "vocab.json", "decoder"]


def write_json(folder, name, values):
    (folder / name).write_text(json.dumps(values))


def write_tokenizer(folder, style, largest=319, controls=CONTROLS):
    """A vocabulary of 300 words and of control tokens, as one of four kinds of files has it."""
    vocab = {f"t{number}": number for number in range(300)}
    added = controls | {largest: "<|im_end|>"}
    if style == "tokenizer.json":
        tokens = [{"id": number, "content": token} for number, token in added.items()]
        whole = {"model": {"vocab": vocab}, "added_tokens": tokens}
        write_json(folder, "tokenizer.json", whole)
    elif style == "unigram":
        pieces = [[added.get(number, f"t{number}"), 0.0] for number in range(largest + 1)]
        write_json(folder, "tokenizer.json", {"model": {"vocab": pieces}, "added_tokens": []})
    elif style == "vocab.json":
        write_json(folder, "vocab.json", vocab)
        write_json(folder, "added_tokens.json", {token: n for n, token in added.items()})
    else:
        write_json(folder, "vocab.json", vocab)
        decoder = {str(number): {"content": token} for number, token in added.items()}
        write_json(folder, "tokenizer_config.json", {"added_tokens_decoder": decoder})


def refused(check, *arguments, match):
    with pytest.raises(ValueError, match=match) as error:
        check(*arguments)
    assert "\n" not in str(error.value)
    assert "; " in str(error.value)


@pytest.mark.parametrize("style", STYLES)
def test_vocabulary_must_fit_the_embedding(tmp_path, style):
    config = parse_config(tiny_values(vocab_size=320))
    refused(check_vocabulary, config, tmp_path, match="no tokenizer.json or vocab.json")
    write_tokenizer(tmp_path, style)
    check_vocabulary(config, tmp_path)
    write_tokenizer(tmp_path, style, largest=320)
    message = "ids up to 320 and the model only 320 rows"
    refused(check_vocabulary, config, tmp_path, match=message)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("change", [{306: "<pad>"}, {305: "word"}, {302: "<s>"}])
def test_a_smaller_tokenizer_of_another_vocabulary_is_refused(tmp_path, style, change):
    """Its ids all have rows, and mean other words; a number that frames pixels shows it."""
    config = parse_config(tiny_values(vocab_size=320))
    write_tokenizer(tmp_path, style, controls=CONTROLS | change)
    ((number, token),) = change.items()
    message = (
        f"token {number} of the tokenizer is '.*', and config.json means .*{CONTROLS[number][2:8]}"
    )
    refused(check_vocabulary, config, tmp_path, match=message)


CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP_SCALE = {"image_mean": CLIP_MEAN, "image_std": CLIP_STD}
MERGE = {"merge_size": 2, "temporal_patch_size": 2}
# What the published checkpoints have in these files, as far as it tells models apart.
PROCESSORS = {
    "qwen2_5_vl": {
        "preprocessor_config.json": {"image_processor_type": "Qwen2VLImageProcessor"}
        | {"patch_size": 14} | MERGE | CLIP_SCALE,
        "video_preprocessor_config.json": {"video_processor_type": "Qwen2VLVideoProcessor"}
        | {"patch_size": 14} | MERGE | CLIP_SCALE,
    },
    "qwen3_vl": {
        "preprocessor_config.json": {"image_processor_type": "Qwen2VLImageProcessorFast"}
        | {"patch_size": 16} | MERGE | HALF,
        "video_preprocessor_config.json": {"video_processor_type": "Qwen3VLVideoProcessor"}
        | {"patch_size": 16} | MERGE | HALF,
    },
    "clip": {
        "preprocessor_config.json": {"image_processor_type": "CLIPImageProcessor"}
        | {"crop_size": 336} | CLIP_SCALE
    },
    "siglip": {
        "preprocessor_config.json": {"image_processor_type": "SiglipImageProcessor"} | HALF
    },
    "a copy with another mean": {
        "preprocessor_config.json": {"image_mean": [0.485, 0.456, 0.406]}
    },
}  # fmt: skip


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("other", PROCESSORS)
def test_a_processor_of_another_model_is_refused(tmp_path, family, other):
    made = find_family(family)
    config = made.parse_config(made.tiny_values(vocab_size=320), "config.json")
    numbers = {name: getattr(config.token_ids, name) for name in
               ("vision_start", "vision_end", "image", "video")}  # fmt: skip
    texts = dict(zip(numbers.values(), CONTROLS.values(), strict=True))
    write_tokenizer(tmp_path, "tokenizer.json", controls=texts)
    check_side_files(config, tmp_path)
    for name, values in PROCESSORS[other].items():
        write_json(tmp_path, name, values)
    if other == family:
        check_side_files(config, tmp_path)
        return
    message = rf"is of another model .*; copy that of {made.title}, or delete the file"
    refused(check_side_files, config, tmp_path, match=message)
    for name in PROCESSORS[other]:
        (tmp_path / name).unlink()
    check_side_files(config, tmp_path)
    image = {"image_processor": PROCESSORS[other]["preprocessor_config.json"]}
    write_json(tmp_path, "processor_config.json", image)
    refused(check_side_files, config, tmp_path, match="processor_config.json, image_processor: is")


def test_side_files_that_are_damaged(tmp_path):
    config = parse_config(tiny_values(vocab_size=320))
    write_tokenizer(tmp_path, "tokenizer.json")
    (tmp_path / "preprocessor_config.json").write_text("{")
    refused(check_side_files, config, tmp_path, match="preprocessor_config.json: not JSON")
    (tmp_path / "preprocessor_config.json").write_text("[]")
    refused(check_side_files, config, tmp_path, match="no JSON object")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("tokenizer.json", {"model": "BPE"}),
        ("tokenizer.json", {"model": {"vocab": None}}),
        ("tokenizer.json", {"model": {"vocab": {"a": "b"}}}),
        ("tokenizer.json", {"model": {"vocab": {"a": 1}}, "added_tokens": [3]}),
        ("tokenizer_config.json", {"added_tokens_decoder": ["x"]}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"a": {"content": "x"}}}),
        ("added_tokens.json", {"a": None}),
        ("preprocessor_config.json", {"image_processor_type": 3}),
    ],
)
def test_side_files_that_hold_something_else(tmp_path, name, values):
    config = parse_config(tiny_values(vocab_size=320))
    write_tokenizer(tmp_path, "tokenizer.json")
    write_json(tmp_path, name, values)
    match = "of the tokenizer holds something else" if "token" in name else "type is 3"
    refused(check_side_files, config, tmp_path, match=match)
