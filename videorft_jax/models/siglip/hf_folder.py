"""SigLIP from a Hugging Face folder and back, with its image and text preprocessing.

The frozen judge of the semantic reward; the network is in `towers`. One table, path -> (Hugging
Face name, number of input dims), drives reading, checking and writing, so that a tensor that is
unknown, missing or mis-shaped is reported with both of its names before anything is allocated.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import string

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from PIL import Image
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast

from videorft_jax.models import tensor_files
from videorft_jax.models.json_file import read_object
from videorft_jax.models.siglip.towers import (
    BASE_TOWER,
    CONSTANTS,
    SiglipConfig,
    TowerConfig,
    abstract,
    encode_images,
    encode_texts,
    init,
    parse_config,
)

__all__ = [
    "Siglip",
    "SiglipConfig",
    "TowerConfig",
    "encode_images",
    "encode_texts",
    "init",
    "load_siglip",
    "parse_config",
    "save_siglip",
    "tokenize",
]

_MOST_PATH = 4000  # characters that every operating system takes

# Batches are cut and padded to these sizes, so a tower compiles at most once per size.
_IMAGE_BATCHES = (4, 16)  # 16 images of 729 patches hold 0.5 GB of fp32 attention scores
_TEXT_BATCHES = (8, 64)


_MOST_SHOWN = 5  # faulty tensors that a message names

_encode_images = jax.jit(encode_images, static_argnames="config")
_encode_texts = jax.jit(encode_texts, static_argnames="config")


_BLOCK = {
    "attn_norm": ("layer_norm1.weight", 0),
    "attn_norm_bias": ("layer_norm1.bias", 0),
    "attn/q": ("self_attn.q_proj.weight", 1),
    "attn/q_bias": ("self_attn.q_proj.bias", 0),
    "attn/k": ("self_attn.k_proj.weight", 1),
    "attn/k_bias": ("self_attn.k_proj.bias", 0),
    "attn/v": ("self_attn.v_proj.weight", 1),
    "attn/v_bias": ("self_attn.v_proj.bias", 0),
    "attn/o": ("self_attn.out_proj.weight", 2),
    "attn/o_bias": ("self_attn.out_proj.bias", 0),
    "mlp_norm": ("layer_norm2.weight", 0),
    "mlp_norm_bias": ("layer_norm2.bias", 0),
    "mlp/up": ("mlp.fc1.weight", 1),
    "mlp/up_bias": ("mlp.fc1.bias", 0),
    "mlp/down": ("mlp.fc2.weight", 1),
    "mlp/down_bias": ("mlp.fc2.bias", 0),
}
# path -> (Hugging Face name, input dims): n > 0 is a matrix kept [out, in] there, 0 a vector whose
# dims are merged there, None a table with the same shape in both.
_NAMES = {
    "logit_scale": ("logit_scale", 0),
    "logit_bias": ("logit_bias", 0),
    "text/embed": ("text_model.embeddings.token_embedding.weight", None),
    "text/position": ("text_model.embeddings.position_embedding.weight", None),
    "text/final_norm": ("text_model.final_layer_norm.weight", 0),
    "text/final_norm_bias": ("text_model.final_layer_norm.bias", 0),
    "text/head": ("text_model.head.weight", 1),
    "text/head_bias": ("text_model.head.bias", 0),
    "vision/embed": ("vision_model.embeddings.patch_embedding.weight", 1),
    "vision/embed_bias": ("vision_model.embeddings.patch_embedding.bias", 0),
    "vision/position": ("vision_model.embeddings.position_embedding.weight", None),
    "vision/final_norm": ("vision_model.post_layernorm.weight", 0),
    "vision/final_norm_bias": ("vision_model.post_layernorm.bias", 0),
    "vision/pool/probe": ("vision_model.head.probe", 0),
    "vision/pool/qkv": ("vision_model.head.attention.in_proj_weight", 1),
    "vision/pool/qkv_bias": ("vision_model.head.attention.in_proj_bias", 0),
    "vision/pool/o": ("vision_model.head.attention.out_proj.weight", 2),
    "vision/pool/o_bias": ("vision_model.head.attention.out_proj.bias", 0),
    "vision/pool/norm": ("vision_model.head.layernorm.weight", 0),
    "vision/pool/norm_bias": ("vision_model.head.layernorm.bias", 0),
    "vision/pool/mlp/up": ("vision_model.head.mlp.fc1.weight", 1),
    "vision/pool/mlp/up_bias": ("vision_model.head.mlp.fc1.bias", 0),
    "vision/pool/mlp/down": ("vision_model.head.mlp.fc2.weight", 1),
    "vision/pool/mlp/down_bias": ("vision_model.head.mlp.fc2.bias", 0),
} | {
    f"{tower}/layers/{path}": (f"{tower}_model.encoder.layers.{{i}}.{name}", num_in)
    for tower in ("vision", "text")
    for path, (name, num_in) in _BLOCK.items()
}


def _tensors(config: SiglipConfig) -> dict:
    """Maps Hugging Face names to (path, layer or None, shape there, shape here, input dims)."""
    tensors = {}
    for path, leaf in abstract(config)[2].items():
        name, num_in = _NAMES[path]
        stacked = "{i}" in name
        shape = leaf.shape[1:] if stacked else leaf.shape
        if num_in is None:
            theirs = shape
        elif num_in == 0:
            theirs = (math.prod(shape),)
        else:
            theirs = (math.prod(shape[num_in:]), math.prod(shape[:num_in]))
        if path == "vision/embed":  # Theirs is a convolution; its window is flattened.
            theirs = (shape[1], 3, config.patch_size, config.patch_size)
        elif path == "vision/pool/probe":
            theirs = (1, 1, *shape)
        for i in range(leaf.shape[0]) if stacked else (None,):
            tensors[name.format(i=i)] = (path, i, theirs, shape, num_in)
    return tensors


def _find_tensors(folder: pathlib.Path, config: SiglipConfig) -> tuple[dict, dict]:
    """What the config expects and the entries of the files, which must agree; reads headers."""
    expected, found = _tensors(config), tensor_files.read_folder(folder)
    faults = [f"unknown {name}" for name in sorted(found.keys() - expected.keys())]
    for name, (path, _, theirs, _, _) in expected.items():
        if name not in found:
            faults.append(f"missing {name} ({path})")
        elif found[name].shape != theirs:
            faults.append(f"mis-shaped {name} ({path}): {found[name].shape}, config says {theirs}")
    if faults:
        raise ValueError(
            f"{folder}: {len(faults)} faulty tensors, correct config.json or the weights: "
            + "; ".join(faults[:_MOST_SHOWN])
        )
    return expected, found


def _read_params(folder: pathlib.Path, config: SiglipConfig, dtype: str) -> dict:
    """Reads the params onto the device, casting tensor by tensor."""
    expected, found = _find_tensors(folder, config)
    params = {path: np.empty(x.shape, dtype) for path, x in abstract(config)[2].items()}
    with contextlib.ExitStack() as stack:
        shards = {entry.path for entry in found.values()}
        files = {path: stack.enter_context(path.open("rb")).fileno() for path in shards}
        for name, (path, i, theirs, shape, num_in) in expected.items():
            entry = found[name]
            tensor = tensor_files.read_rows(files[entry.path], entry, 0, theirs[0])
            if num_in:
                tensor = tensor.reshape(theirs[0], -1).T
            params[path][... if i is None else i] = tensor.reshape(shape)
    return unflatten_dict(jax.device_put(params), sep="/")


def save_siglip(
    folder: str, params: dict, config: SiglipConfig, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Writes a Hugging Face folder: config, preprocessor, tokenizer and model.safetensors.

    `SiglipModel.from_pretrained` and `load_siglip` read it; tensors keep the dtype of `params`.
    Raises: ValueError when the vocabulary does not fit the config.
    """
    if _text_rule(tokenizer) != config.text_rule or len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"tokenizer ({len(tokenizer)} entries, {_text_rule(tokenizer)}) does not fit config "
            f"({config.vocab_size}, {config.text_rule}): save with the tokenizer of the training"
        )
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    flat = flatten_dict(jax.device_get(params), sep="/")
    expected = _tensors(config)

    def tensors():
        for path, i, theirs, shape, num_in in expected.values():
            tensor = flat[path] if i is None else flat[path][i]
            if num_in:
                tensor = tensor.reshape(math.prod(shape[:num_in]), -1).T
            yield tensor.reshape(theirs)

    specs = [(name, flat[row[0]].dtype, row[2]) for name, row in expected.items()]
    tensor_files.write_file(folder / tensor_files.SINGLE_NAME, specs, tensors())
    for name, values in _side_files(config, str(flat["text/head"].dtype)).items():
        (folder / name).write_text(json.dumps(values, indent=2))
    tokenizer.save_pretrained(folder)


def _side_files(config: SiglipConfig, dtype: str) -> dict[str, dict]:
    """Makes the contents of config.json and preprocessor_config.json."""
    constants = {key: CONSTANTS[key] for key in ("layer_norm_eps", "hidden_act")}
    sections = {
        name: dict(zip(BASE_TOWER, dataclasses.astuple(tower), strict=True)) | constants
        for name, tower in (("vision_config", config.vision), ("text_config", config.text))
    }
    sections["vision_config"] |= {
        "model_type": "siglip_vision_model",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "vision_use_head": True,
    }
    sections["text_config"] |= {
        "model_type": "siglip_text_model",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.text_length,
        "projection_size": config.vision.hidden_size,
        "pad_token_id": _PAD[config.text_rule],
        "bos_token_id": None,
        "eos_token_id": _EOS,
    }
    processor = {
        "image_processor_type": "SiglipImageProcessor",
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "rescale_factor": 1 / 255,
        "resample": config.resample,
        "size": {"height": config.image_size, "width": config.image_size},
        "image_mean": config.image_mean,
        "image_std": config.image_std,
    }
    raw = {
        "architectures": ["SiglipModel"],
        "model_type": "siglip",
        "dtype": dtype,
        **sections,
    }
    return {"config.json": raw, "preprocessor_config.json": processor}


_EOS = 1  # both vocabularies
_PAD = {"v1": 1, "v2": 0}  # v1 pads with its end token
_STRIP_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LOWERCASE = normalizers.Lowercase()  # letter by letter, unlike str.lower on a final sigma


def _text_rule(tokenizer: PreTrainedTokenizerFast) -> str:
    """ "v1" or "v2", told apart by the ids of the special tokens."""
    ids = tokenizer.get_vocab()
    if ids.get("<eos>") == _EOS and ids.get("<pad>") == _PAD["v2"]:
        return "v2"
    if ids.get("</s>") == _EOS:
        return "v1"
    raise ValueError(
        "not a SigLIP vocabulary: needs </s> with id 1 (SigLIP) or <pad> 0 and <eos> 1 (SigLIP 2); "
        "use the tokenizer.json of the checkpoint"
    )


def tokenize(
    tokenizer: PreTrainedTokenizerFast, config: SiglipConfig, texts: list[str]
) -> np.ndarray:
    """Tokenizes texts to int32 `[n, text_length]`: cleaned, cut, ended by the end token and padded.

    v1 lower-cases, strips ASCII punctuation and joins runs of white space, as Hugging Face's
    SiglipTokenizer; v2 lower-cases only, as Siglip2Tokenizer and the training of SigLIP 2.
    """
    if isinstance(texts, str):
        raise ValueError("siglip texts is one str: pass a list of str")
    if config.text_rule == "v1":
        texts = [
            re.sub(r"\s+", " ", t.lower().translate(_STRIP_PUNCTUATION)).strip() for t in texts
        ]
    else:
        texts = [_LOWERCASE.normalize_str(t) for t in texts]
    tokens = np.full((len(texts), config.text_length), _PAD[config.text_rule], np.int32)
    for row, text in zip(tokens, texts, strict=True):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: config.text_length - 1]
        row[: len(ids) + 1] = [*ids, _EOS]
    return tokens


def _in_batches(encode, inputs: np.ndarray, width: int, sizes: tuple[int, ...]) -> np.ndarray:
    """Runs `encode` on slices padded to one of `sizes`, so that it compiles once per size."""
    out = np.empty((len(inputs), width), np.float32)
    for start in range(0, len(inputs), sizes[-1]):
        part = inputs[start : start + sizes[-1]]
        size = next(size for size in sizes if size >= len(part))
        padded = np.zeros((size, *part.shape[1:]), part.dtype)
        padded[: len(part)] = part
        out[start : start + len(part)] = encode(padded)[: len(part)]
    return out


class Siglip:
    """A loaded SigLIP. `config` is frozen, `params` a nested dict of arrays of the chosen dtype."""

    def __init__(self, config: SiglipConfig, params: dict, tokenizer: PreTrainedTokenizerFast):
        self.config, self.params, self.tokenizer = config, params, tokenizer

    def tokenize(self, texts: list[str]) -> np.ndarray:
        """Tokenizes texts to int32 `[n, text_length]` for `encode_texts`."""
        return tokenize(self.tokenizer, self.config, texts)

    def resize(self, images: np.ndarray) -> np.ndarray:
        """Resizes uint8 `[n,h,w,3]` to `[n,S,S,3]` by the folder's filter, aspect ratio or not."""
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(
                f"siglip images are {images.dtype} {images.shape}: must be uint8 [n, h, w, 3]"
            )
        side = self.config.image_size
        if images.shape[1:3] == (side, side):
            return images
        out = np.empty((len(images), side, side, 3), np.uint8)
        for i, image in enumerate(images):
            out[i] = Image.fromarray(image).resize((side, side), self.config.resample)
        return out

    def images(self, images: np.ndarray) -> np.ndarray:
        """Embeds RGB uint8 `[n,h,w,3]` as unit-length float32 `[n,D]`. Raises ValueError."""
        return _in_batches(
            lambda x: _encode_images({"vision": self.params["vision"]}, self.config, x),
            self.resize(images),
            self.config.vision.hidden_size,
            _IMAGE_BATCHES,
        )

    def texts(self, texts: list[str]) -> np.ndarray:
        """Embeds n strings as unit-length float32 `[n,D]`. Raises ValueError."""
        return _in_batches(
            lambda x: _encode_texts({"text": self.params["text"]}, self.config, x),
            self.tokenize(texts),
            self.config.vision.hidden_size,
            _TEXT_BATCHES,
        )


def _read_json(path: pathlib.Path) -> dict:
    try:
        return read_object(path)
    except OSError as error:
        raise ValueError(f"{path}: not readable ({error}): copy it from the release") from error


def load_siglip(folder: str, dtype: str = "bfloat16") -> Siglip:
    """Loads SigLIP or SigLIP 2 (FixRes) from a Hugging Face folder with a tokenizer.json.

    `dtype` is "bfloat16" or "float32", for storage and compute. No remote code is run and no pickle
    read. Raises: ValueError, in one line, for a folder that is incomplete or not SigLIP.
    """
    if dtype not in ("bfloat16", "float32"):
        raise ValueError(f"siglip dtype is {dtype!r}: use 'bfloat16' or 'float32'")
    is_path = isinstance(folder, str | os.PathLike)
    if not is_path or not str(folder).isprintable() or len(str(folder)) > _MOST_PATH:
        raise ValueError(f"siglip: a {type(folder).__name__} that is no path of a folder; give one")
    config, tokenizer = _read_config(pathlib.Path(folder))
    return Siglip(config, _read_params(pathlib.Path(folder), config, dtype), tokenizer)


def check_siglip(folder: str) -> None:
    """Raises ValueError, in one line, for a folder that `load_siglip` would refuse; reads the
    headers of the weights alone."""
    config, _ = _read_config(pathlib.Path(folder))
    _find_tensors(pathlib.Path(folder), config)


def _read_config(folder: pathlib.Path) -> tuple[SiglipConfig, PreTrainedTokenizerFast]:
    raw = _read_json(folder / "config.json")
    if not str(raw.get("model_type")).startswith("siglip"):
        raise ValueError(
            f"{folder}: config.json is model_type {raw.get('model_type')!r}; only SigLIP is read, "
            "name the folder of one"
        )
    processor = folder / "preprocessor_config.json"
    if processor.is_file():
        processor = _read_json(processor)
    else:  # where transformers 5 saves a whole processor
        processor = _read_json(folder / "processor_config.json").get("image_processor", {})
    if not (folder / "tokenizer.json").is_file():
        raise ValueError(f"{folder}: no tokenizer.json: save the release's tokenizer in fast form")
    try:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    except Exception as error:  # The library of tokenizers raises no narrower class.
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{folder}: tokenizer.json cannot be read ({reason}); copy the file again, or save it "
            "with the transformers that is installed here"
        ) from None
    config = parse_config(raw, processor, _text_rule(tokenizer))
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{folder}: tokenizer.json has {len(tokenizer)} entries, config.json a vocab_size of "
            f"{config.vocab_size}: one of them is from another checkpoint"
        )
    return config, tokenizer
