"""SigLIP against `transformers`: embeddings, gradients, preprocessing, folders in and out."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
from flax.traverse_util import flatten_dict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.tokenization_siglip2 import Siglip2Tokenizer

from videorft_jax.models.siglip import hf_folder as siglip
from videorft_jax.models.siglip import towers as siglip_towers

V2_VOCAB = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *"▁abcdefgh!σς", "ab", "▁a"]


def tower(width, hidden, layers, heads, **rest):
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        **rest,
    }


CASES = {  # vision, text, rule, filter
    "v1 with a 2 px remainder": (
        tower(32, 48, 2, 4, image_size=20, patch_size=6),
        tower(32, 40, 2, 4, vocab_size=97),
        "v1",
        3,
    ),
    "v2": (
        tower(24, 32, 3, 3, image_size=16, patch_size=4),
        tower(24, 32, 1, 2, vocab_size=60),
        "v2",
        2,
    ),
    "wide vision, projected text": (
        tower(40, 56, 1, 5, image_size=12, patch_size=4),
        tower(16, 24, 3, 2, vocab_size=50, projection_size=40),
        "v2",
        2,
    ),
}


def make_tokenizer(rule):
    if rule == "v2":
        vocab = {token: i for i, token in enumerate(V2_VOCAB)}
        return Siglip2Tokenizer(
            vocab=vocab, merges=[("a", "b"), ("▁", "a")], add_bos_token=False, add_eos_token=True
        )
    vocab = {"<pad>": 0, "</s>": 1, "<unk>": 2, "a": 3, "red": 4, "dog": 5, "dont": 6}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="</s>")


def write_folder(folder, hf, rule, resample):
    """A Hugging Face folder written by transformers alone."""
    hf.save_pretrained(folder)
    side = hf.config.vision_config.image_size
    SiglipImageProcessorPil(
        size={"height": side, "width": side}, resample=resample
    ).save_pretrained(folder)
    make_tokenizer(rule).save_pretrained(folder)


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def case(request, tmp_path_factory):
    """(HF model with every parameter random, its folder, ours loaded from it in float32)."""
    vision, text, rule, resample = CASES[request.param]
    torch.manual_seed(len(request.param))
    hf = SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).eval()
    with torch.no_grad():
        for name, x in hf.named_parameters():
            x.add_(torch.randn_like(x) * (0.05 if "bias" in name or "norm" in name else 0.1))
        hf.logit_scale.fill_(1.5)
        hf.logit_bias.fill_(-2.0)
    folder = tmp_path_factory.mktemp("siglip")
    write_folder(folder, hf, rule, resample)
    return hf, folder, siglip.load_siglip(folder, "float32")


def make_inputs(hf, seed, n=5):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 23, 31, 3), np.uint8)
    tokens = rng.integers(0, hf.config.text_config.vocab_size, (n, 64), np.int32)
    return images, tokens


def hf_pixels(folder, images):
    return SiglipImageProcessorPil.from_pretrained(folder)(list(images), return_tensors="pt")[
        "pixel_values"
    ]


def hf_forward(hf, folder, images, tokens):
    out = hf(
        input_ids=torch.tensor(tokens, dtype=torch.long),
        pixel_values=hf_pixels(folder, images),
        return_loss=True,
    )
    return out.loss, out.image_embeds, out.text_embeds


def test_embeddings_equal_transformers(case):
    hf, folder, ours = case
    images, tokens = make_inputs(hf, 0)
    with torch.no_grad():
        _, image, text = hf_forward(hf, folder, images, tokens)
    np.testing.assert_allclose(ours.images(images), image.numpy(), atol=1e-5)
    encode = jax.jit(siglip.encode_texts, static_argnames="config")
    np.testing.assert_allclose(encode(ours.params, ours.config, tokens), text.numpy(), atol=1e-5)


def test_gradients_equal_transformers(case, tmp_path):
    hf, folder, ours = case
    images, tokens = make_inputs(hf, 1)
    loss, _, _ = hf_forward(hf, folder, images, tokens)
    hf.zero_grad()
    loss.backward()

    def our_loss(params):
        image = siglip.encode_images(params, ours.config, ours.resize(images))
        text = siglip.encode_texts(params, ours.config, tokens)
        logits = text @ image.T * jnp.exp(params["logit_scale"]) + params["logit_bias"]
        signs = 2 * jnp.eye(len(images)) - 1
        return -jax.nn.log_sigmoid(signs * logits).sum(-1).mean()

    value, grads = jax.jit(jax.value_and_grad(our_loss))(ours.params)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-5)
    # The gradients travel through a folder, as a model whose weights they are.
    theirs = SiglipModel(hf.config)
    with torch.no_grad():
        for mine, x in zip(theirs.parameters(), hf.parameters(), strict=True):
            mine.copy_(x.grad)
    write_folder(tmp_path, theirs, ours.config.text_rule, ours.config.resample)
    expected = flatten_dict(siglip.load_siglip(tmp_path, "float32").params, sep="/")
    grads = flatten_dict(grads, sep="/")
    assert grads.keys() == expected.keys()
    for path, want in expected.items():
        # A bias of the keys moves all scores of a row alike: its gradient is zero but for rounding.
        floor = 1e-6 if path.endswith("/k_bias") else 0.0
        error = np.abs(grads[path] - want).max()
        assert error <= 1e-4 * np.abs(want).max() + floor, (path, error)


@pytest.fixture(scope="module")
def v2(tmp_path_factory):
    """(HF model, folder, ours) of the second case, for what one model is enough to show."""
    vision, text, rule, resample = CASES["v2"]
    hf = SiglipModel(SiglipConfig(vision_config=vision, text_config=text)).eval()
    folder = tmp_path_factory.mktemp("v2")
    write_folder(folder, hf, rule, resample)
    return hf, folder, siglip.load_siglip(folder, "float32")


def test_bf16_is_close_to_float32(v2):
    hf, folder, ours = v2
    images, _ = make_inputs(hf, 2)
    low = siglip.load_siglip(folder)
    assert {x.dtype.name for x in jax.tree.leaves(low.params)} == {"bfloat16"}
    assert (low.images(images) * ours.images(images)).sum(-1).min() > 0.999
    texts = ["a red dog", "ab cd", ""]
    assert low.texts(texts).dtype == np.float32
    assert (low.texts(texts) * ours.texts(texts)).sum(-1).min() > 0.999
    np.testing.assert_allclose(np.linalg.norm(low.texts(texts), axis=-1), 1, atol=1e-6)


def test_batch_size_changes_no_embedding_and_compiles_are_bounded(v2):
    hf, _, ours = v2
    images, _ = make_inputs(hf, 3, n=21)
    whole = ours.images(images)
    assert whole.shape == (21, 24)
    texts = [f"{'a' * i} b" for i in range(21)]
    text = ours.texts(texts)
    before = siglip._encode_images._cache_size()
    for n in (0, 1, 4, 5, 16, 17, 20):
        np.testing.assert_allclose(ours.images(images[:n]), whole[:n], atol=1e-6)
        np.testing.assert_allclose(ours.texts(texts[:n]), text[:n], atol=1e-6)
    assert siglip._encode_images._cache_size() - before <= 1
    assert siglip._encode_texts._cache_size() <= 2 * (len(CASES) + 2)


@pytest.mark.parametrize("resample", [2, 3])
def test_images_are_resized_as_transformers_does(v2, tmp_path, resample):
    hf, _, _ = v2
    write_folder(tmp_path, hf, "v2", resample)
    ours = siglip.load_siglip(tmp_path, "float32")
    for shape in ((3, 50, 20, 3), (2, 9, 70, 3), (1, 16, 16, 3)):
        images = np.random.default_rng(4).integers(0, 256, shape, np.uint8)
        pixels = hf_pixels(tmp_path, images).numpy().transpose(0, 2, 3, 1)
        back = np.round((pixels * 0.5 + 0.5) * 255).astype(np.uint8)
        np.testing.assert_array_equal(ours.resize(images), back)


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("A red DOG", [3, 4, 5, 1]),
        ("  a,  red.\n\tdog!? ", [3, 4, 5, 1]),
        ("don't", [6, 1]),
        ("red_dog", [2, 1]),  # joined, since the underscore is punctuation
        ("cat", [2, 1]),
        ("", [1]),
        ("...", [1]),
        ("a " * 63, [3] * 63 + [1]),
        ("a " * 64, [3] * 63 + [1]),
        ("red " + "a " * 90, [4] + [3] * 62 + [1]),
    ],
)
def test_v1_text_is_cleaned_ended_and_padded_with_the_end_token(text, ids):
    config = make_config("v1")
    tokens = siglip.tokenize(make_tokenizer("v1"), config, [text])
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [ids + [1] * (64 - len(ids))]


@pytest.mark.parametrize(
    "text", ["AB cab! a", "", "  Ab", "ΣΑΣ a", "é", "a" * 63, "a" * 64, "ab " * 70, "A\nB_?"]
)
def test_v2_text_equals_the_transformers_tokenizer(v2, text):
    _, _, ours = v2
    oracle = make_tokenizer("v2")(
        text, padding="max_length", max_length=64, truncation=True, padding_side="right"
    )["input_ids"]
    tokens = ours.tokenize([text])
    assert tokens.tolist() == [oracle]
    ended = np.flatnonzero(tokens[0] == 1)
    assert ended.size == 1
    assert (tokens[0, ended[0] + 1 :] == 0).all()


def make_config(rule="v2"):
    return siglip.SiglipConfig(
        vision=siglip.TowerConfig(24, 32, 2, 3),
        text=siglip.TowerConfig(16, 24, 2, 2),
        image_size=17,
        patch_size=4,
        vocab_size=40,
        text_length=64,
        text_rule=rule,
        resample=2,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_folder_loads_in_transformers_and_returns_bit_identical(tmp_path, dtype):
    config = make_config()
    params = siglip.init(config, jax.random.key(0, impl="rbg"))
    params = jax.tree.map(lambda x: x.astype(dtype), params)
    siglip.save_siglip(tmp_path / "a", params, config, make_tokenizer("v2"))
    hf, info = SiglipModel.from_pretrained(tmp_path / "a", output_loading_info=True, dtype=dtype)
    assert not any(info.values())
    ours = siglip.load_siglip(tmp_path / "a", dtype)
    assert ours.config == config
    jax.tree.map(np.testing.assert_array_equal, ours.params, params)
    hf.save_pretrained(tmp_path / "b")
    first, second = (
        safetensors.numpy.load_file(tmp_path / x / "model.safetensors") for x in ("a", "b")
    )
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        np.testing.assert_array_equal(tensor, second[name])
    if dtype == "float32":
        images, tokens = make_inputs(hf, 5)
        with torch.no_grad():
            _, image, _ = hf_forward(hf, tmp_path / "a", images, tokens % 40)
        np.testing.assert_allclose(ours.images(images), image.numpy(), atol=1e-5)


SPARSE = {  # as published: what equals the base model is left out
    "base v1": ({}, {}),
    "base v2": ({}, {"vocab_size": 256000}),
    "so400m": (
        tower(1152, 4304, 27, 16, image_size=384, patch_size=14),
        tower(1152, 4304, 27, 16, vocab_size=256000, projection_size=1152),
    ),
    "g-opt": (
        tower(1536, 6144, 40, 16, image_size=384),
        tower(1152, 4304, 27, 16, vocab_size=256000, projection_size=1536),
    ),
}


def processor_json(side):
    return {
        "resample": 2,
        "size": {"height": side, "width": side},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }


@pytest.mark.parametrize("name", SPARSE)
def test_published_configs_parse_to_the_tensors_of_transformers(name):
    vision, text = SPARSE[name]
    raw = {"model_type": "siglip", "vision_config": vision, "text_config": text}
    config = siglip.parse_config(raw, processor_json(vision.get("image_size", 224)), "v2")
    with torch.device("meta"):
        hf = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
    theirs = {name: tuple(x.shape) for name, x in hf.named_parameters()}
    assert {name: row[2] for name, row in siglip._tensors(config).items()} == theirs
    count = sum(x.size for x in siglip_towers.abstract(config)[2].values())
    assert count == sum(x.numel() for x in hf.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw, _: raw.update(model_type="siglip2"), "NaFlex"),
        (lambda raw, _: raw["vision_config"].update(num_patches=256), "NaFlex"),
        (lambda raw, _: raw.pop("text_config"), "no 'text_config'"),
        (lambda raw, _: raw["text_config"].pop("num_attention_heads"), "no 'num_attention_heads'"),
        (lambda raw, _: raw["text_config"].update(layer_norm_eps=1e-5), "layer_norm_eps"),
        (lambda raw, _: raw["vision_config"].update(hidden_act="gelu"), "hidden_act"),
        (lambda raw, _: raw["text_config"].update(projection_size=7), "projection_size 7"),
        (lambda raw, _: raw["vision_config"].update(num_attention_heads=7), "multiple of its 7"),
        (lambda _, processor: processor.pop("resample"), "no 'resample'"),
        (lambda _, processor: processor.update(size={"shortest_edge": 16}), "16 px square"),
    ],
)
def test_a_wrong_config_is_refused_in_one_line(change, message):
    vision, text, _, _ = CASES["v2"]
    raw = {"model_type": "siglip", "vision_config": dict(vision), "text_config": dict(text)}
    processor = processor_json(16)
    siglip.parse_config(raw, processor, "v2")
    change(raw, processor)
    with pytest.raises(ValueError, match=message) as error:
        siglip.parse_config(raw, processor, "v2")
    assert "\n" not in str(error.value)


def test_faulty_tensors_are_listed_together_with_both_names(v2, tmp_path):
    hf, _, _ = v2
    write_folder(tmp_path, hf, "v2", 2)
    file = tmp_path / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors["text_model.extra"] = tensors.pop("text_model.head.bias")
    tensors["vision_model.head.probe"] = np.zeros((1, 24), np.float32)
    safetensors.numpy.save_file(tensors, file)
    whole = {"image_processor": json.loads((tmp_path / "preprocessor_config.json").read_text())}
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))  # read as well
    with pytest.raises(ValueError, match="3 faulty tensors") as error:
        siglip.load_siglip(tmp_path)
    for part in (
        "unknown text_model.extra",
        "missing text_model.head.bias (text/head_bias)",
        "vision_model.head.probe (vision/pool/probe): (1, 24), config says (1, 1, 24)",
    ):
        assert part in str(error.value)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        siglip.load_siglip(tmp_path)
    file.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickle"):
        siglip.load_siglip(tmp_path)


def test_wrong_inputs_are_refused(v2, tmp_path):
    hf, folder, ours = v2
    with pytest.raises(ValueError, match="uint8"):
        ours.images(np.zeros((2, 16, 16, 3), np.float32))
    with pytest.raises(ValueError, match="list of str"):
        ours.texts("one string")
    with pytest.raises(ValueError, match=r"must be \[n, 64\]"):
        siglip.encode_texts(ours.params, ours.config, jnp.zeros((2, 63), jnp.int32))
    with pytest.raises(ValueError, match="dtype is 'float16'"):
        siglip.load_siglip(folder, "float16")
    write_folder(tmp_path, hf, "v2", 2)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["text_config"]["vocab_size"] = 10
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(ValueError, match="vocab_size of 10"):
        siglip.load_siglip(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "9.0"}')
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be read .*; copy the file again"):
        siglip.load_siglip(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="no tokenizer.json"):
        siglip.load_siglip(tmp_path)
