"""The library's front door: a checkpoint folder becomes a model to look at, run and save.

Training has its own mains; this is for inspection, inference and programs of other people.
"""

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from videorft_jax.data.batch import layout, patches
from videorft_jax.data.batch.batch import Batch
from videorft_jax.data.batch.check import check_arrays, check_places
from videorft_jax.data.media.clip import resize_frames
from videorft_jax.data.media.contract import MediaContract, cut_text
from videorft_jax.data.media.contract_file import read_contract
from videorft_jax.data.media.image import read_image
from videorft_jax.data.media.sampling import pair_times
from videorft_jax.data.media.video import read_video
from videorft_jax.data.records.parts import read_chat, read_keys
from videorft_jax.data.records.render import render, write_media
from videorft_jax.data.records.system_turn import FILE_NAME as SYSTEM_FILE
from videorft_jax.data.records.system_turn import read_system
from videorft_jax.data.records.tokenizer_folder import load_tokenizer
from videorft_jax.models import family
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.family import load_config
from videorft_jax.models.hf_folder import read_checkpoint
from videorft_jax.models.hf_writer import check_place, explained, write_checkpoint
from videorft_jax.models.peft_folder import load_adapter, merge_adapter
from videorft_jax.models.side_files import check_side_files
from videorft_jax.models.sources import find_folder, unreadable
from videorft_jax.parallel import sharding
from videorft_jax.rollout.client_files import client_files
from videorft_jax.rollout.engine import RolloutEngine
from videorft_jax.rollout.sampling import make_sampling

log = logging.getLogger(__name__)

_MOST_ENGINES = 8  # ways to draw whose programs a model keeps
_MOST_PATH = 4000  # characters that every operating system takes
_MULTIPLE = 128  # prompts are padded to a multiple of it, so that few lengths are compiled


@dataclasses.dataclass(frozen=True)
class Generation:
    """tokens int32 [B, R, C], lengths int32 [B, R], logprobs float32 [B, R, C]; texts: B lists."""

    tokens: np.ndarray
    lengths: np.ndarray
    logprobs: np.ndarray
    texts: list[list[str]]


@dataclasses.dataclass
class Model:
    """A model with its weights, tokenizer and media contract; make one with `load`."""

    config: ModelConfig
    params: Any  # nested dict of jax.Array
    tokenizer: Any
    contract: MediaContract
    mesh: jax.sharding.Mesh
    folder: str
    # The system turn that the prompts of its training began with; "": the chat format's own.
    system: str = ""
    # Engines by how they draw, so that the turns of a chat compile their programs once.
    _engines: dict = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def prepare(self, messages: list[list[dict] | dict]) -> Batch:
        """Chats in Hugging Face's form to one batch of right-padded prompts.

        A part is {"type": "video", "video": path, "start": s, "end": s}, {"type": "image",
        "image": path} or {"type": "text", "text": ...}. In place of a path may stand file://, a
        data URI, the bytes of a file, a picture of Pillow, or pixels: [n, h, w, 3] with "fps" (an
        image: [h, w, 3]), see `data.media.given.read_frames`. Pixels are resized only when their
        sides are no multiples of a visual token's or lie outside the budget. Frames may also be a
        folder or list of pictures with "fps". The source may also be called path, url, base64, or
        as in OpenAI's chats image_url and video_url. The keys of qwen-vl-utils (fps, nframes,
        max_pixels, resized_height, video_start ...) change the contract for their part. Where a
        text holds placeholders such as <video>, the media of its turn stand there. A chat may also
        be a plain dict, a row of any format that files may have; see
        `data.records.parts.read_chat`. A chat that ends in an assistant's turn is laid out with
        that turn as the target. Raises ValueError, MediaError among them.
        """
        if not isinstance(messages, list | tuple | Iterator):
            raise ValueError("prepare: no list of chats; put a chat into a list")
        samples = [self.lay_out(chat) for chat in messages]
        if not samples:
            raise ValueError("prepare: no chats; give a list of at least one")
        longest = max(len(sample.tokens) for sample in samples)
        return layout.pack(
            [[sample] for sample in samples],
            -(-longest // _MULTIPLE) * _MULTIPLE,
            max(sample.num_pairs for sample in samples),
            max(sample.num_windows for sample in samples),
            geometry=self.contract.geometry,
        )

    def lay_out(self, chat: list[dict] | dict, read: Callable | None = None) -> layout.Sample:
        """One chat of `prepare` as tokens, positions and pixels, not yet padded.

        read: called with each part that is no text, in place of `read_part`.
        """
        chat, target = read_chat(chat), None
        _check_letters(chat)
        if chat and chat[-1]["role"] == "assistant":
            target = chat.pop()["content"]
            if not isinstance(target, str):
                if any(part["type"] != "text" for part in target):
                    raise ValueError("prepare: the last turn shows media; a target is text alone")
                target = "".join(part["text"] for part in target)
        contents = [m["content"] for m in chat if not isinstance(m["content"], str)]
        parts = [part for content in contents for part in content if part["type"] != "text"]
        found = [(read or self.read_part)(part) for part in parts]
        media = [item for item, _ in found]
        written = [write_media(item.grid, stamps, self.contract) for item, stamps in found]
        geometry = self.contract.geometry
        rendered = render(self.tokenizer, chat, written, target, geometry=geometry)
        starts = [start for start, _ in rendered.visual_spans]
        rule = self.contract.mrope_rule
        return layout.make_sample(rendered.tokens, rendered.loss_mask, starts, media, rule)

    def read_part(self, part: dict[str, Any]) -> tuple[patches.Media, tuple[float, ...]]:
        """The pixels of a clip or picture as pairs, and the times of its frame pairs in seconds."""
        kind, source, cut = part["type"], part[part["type"]], self.contract.geometry
        still = kind == "image"
        is_file = isinstance(source, str | os.PathLike | bytes) and not os.path.isdir(source)
        is_array = isinstance(source, np.ndarray)
        contract, span = read_keys(part, self.contract, is_file, is_array=is_array)
        rate = part.get("fps") or part.get("sample_fps")
        if not is_array:
            if still:
                return patches.make_media(read_image(source, contract).frames, None, cut), ()
            clip = read_video(source, contract, **span, fps=None if is_file else rate)
            return patches.make_media(clip.frames, clip.fps, cut), clip.stamps
        if still:
            return patches.make_media(resize_frames(source, contract, image=True), None, cut), ()
        if rate is None:
            raise ValueError('prepare: decoded frames need their rate; add "fps": frames a second')
        frames = resize_frames(source, contract)
        stamps = pair_times(np.arange(len(frames)) / rate, cut.temporal_patch)
        return patches.make_media(frames, float(rate), cut), stamps

    def forward(self, batch: Batch) -> jax.Array:
        """float32 logits [B, T, V] of every position; for inspection and tests only."""
        if not isinstance(batch, Batch):
            raise ValueError(f"forward: a {type(batch).__name__}; give a batch of prepare")
        check_arrays(batch, self.config.text.vocab_size, self.config.vision.patch_dim, "forward")
        check_places(batch, "forward")
        with jax.set_mesh(self.mesh):
            return _logits(self.config, self.params, sharding.place_batch(batch, self.mesh))

    def generate(
        self,
        messages: list[list[dict]],
        num_rollouts: int = 8,
        max_new_tokens: int = 768,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
    ) -> Generation:
        """R completions of each chat, each clip encoded once and each prompt run once.

        temperature 0 is greedy. Pads, vision markers and rows beyond the real vocabulary are never
        drawn. Chat i draws with the name i, whatever stands beside it.
        """
        out = self.roll_out(
            messages,
            seed=seed,
            num_rollouts=num_rollouts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        texts = [
            self.tokenizer.batch_decode(
                [row[:length] for row, length in zip(rows, lengths, strict=True)],
                skip_special_tokens=True,
            )
            for rows, lengths in zip(out.tokens, out.lengths, strict=True)
        ]
        return Generation(out.tokens, out.lengths, out.logprobs, texts)

    def roll_out(self, messages, *, seed: int = 0, on_tokens=None, **settings):
        """The engine's `Rollout` under the model's own stop and forbidden ids; `settings` are
        fields of SamplingConfig, `on_tokens` is called as decoding goes on."""
        sampling = make_sampling(self.config, self.tokenizer, **settings)
        dtype = str(jax.tree.leaves(self.params)[0].dtype)
        chunk = 8 if on_tokens else 64  # how often a reader sees something new
        key = (sampling, dtype, chunk)
        engine = self._engines.pop(key, None)
        if engine is None:
            engine = RolloutEngine(self.config, sampling, self.mesh, dtype=dtype, chunk=chunk)
        self._engines[key] = engine  # The one used last is the last to be dropped.
        if len(self._engines) > _MOST_ENGINES:
            del self._engines[next(iter(self._engines))]
        batch = self.prepare(messages)
        engine.check_length(batch)
        uids = np.arange(len(batch.tokens))
        params = engine.prepare(self.params)
        return engine.rollout(params, batch, uids, seed=seed, on_tokens=on_tokens)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes a Hugging Face folder: weights, config, tokenizer and processor files.

        Raises ValueError, before anything is written, for a folder that is not empty, cannot be
        written or lacks the room, and RuntimeError where the disk fails later.
        """
        folder = _read_path(folder, "the export")
        if jax.process_index() == 0:
            check_place(folder, sum(leaf.nbytes for leaf in jax.tree.leaves(self.params)))
        files = client_files(self.config, self.contract, self.tokenizer)
        if self.system:
            files[SYSTEM_FILE] = self.system
        with explained(folder):
            write_checkpoint(
                folder, self.params, self.config, source_folder=self.folder, side_files=files
            )


def load(
    folder: str | os.PathLike,
    dtype: str | None = "bfloat16",
    mesh: jax.sharding.Mesh | None = None,
    mrope_rule: str | None = None,
    adapter: str | os.PathLike | None = None,
    media: dict[str, Any] | None = None,
    download: bool = False,
    strip_prefix: str = "",
) -> Model:
    """Loads a Hugging Face folder of Qwen2.5-VL or Qwen3-VL, or a checkpoint of ours: the work
    directory of a run, or one of its steps.

    A folder may also be named as on the hub, such as Qwen/Qwen2.5-VL-7B-Instruct, or by a URL such
    as gs://bucket/model. A hub's name is looked up in the local cache; download: fetch it where it
    is not there.
    dtype None keeps that of the files, of a checkpoint float32. mesh: where the weights are
    sharded; default: the first device. Clips are read by the media contract that the run was
    trained under, which its checkpoints and exports hold, and in other folders by
    `MediaContract.evaluate`. `Model.system` is the system turn of its training, which `prepare`
    leaves to the caller. mrope_rule replaces the contract's: "qwen" is what the weights were
    trained with, "hf5" that of transformers >= 5.18. A folder that holds weights is a model,
    whatever its name. adapter: a PEFT folder of LoRA, which is merged into the weights.
    media: fields of the contract to replace, such as {"max_frames": 64}; a greatest number below
    the least brings the least down with it. strip_prefix: what another trainer put before the names
    of all tensors, such as "module.".
    Raises ValueError, one line, before anything is allocated.
    """
    folder = _read_path(folder, "the model")
    adapter = None if adapter is None else _read_path(adapter, "the adapter")
    _check_kinds(mesh, media, strip_prefix)
    mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1])
    saved = _find_saved(folder)
    source = find_folder(saved.init_from if saved else folder, download=download)
    folder = folder if saved else source
    config = load_config(source)
    check_side_files(config, source)
    tokenizer = load_tokenizer(source)
    added = None if adapter is None else load_adapter(adapter, config)
    changes = dict(media or {}) | ({"mrope_rule": mrope_rule} if mrope_rule else {})
    contract = _choose_contract(saved, folder, adapter, config, changes)
    system = _choose_system(saved, folder, adapter)
    if saved:
        from videorft_jax.training import restore  # brings what training needs

        params = restore.read_params(saved, config, mesh, dtype or "float32")
    else:
        shardings = sharding.state_shardings(family.abstract_params(config), mesh, str(folder))
        params = read_checkpoint(folder, config, dtype, shardings, strip_prefix)
    if added is not None:
        params = merge_adapter(params, added)
    return Model(
        config=config,
        params=params,
        tokenizer=tokenizer,
        contract=contract,
        mesh=mesh,
        folder=str(source),
        system=system,
    )


def _check_letters(chat: list[dict[str, Any]]) -> None:
    """Raises ValueError for half of a surrogate pair, which no tokenizer reads."""
    for number, message in enumerate(chat):
        content = message["content"]
        parts = [{"text": content}] if isinstance(content, str) else content
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        if any("\ud800" <= letter <= "\udfff" for text in texts for letter in text):
            raise ValueError(
                f"prepare: message {number}: its text holds half of a surrogate pair; remove it"
            )


def _read_path(value: Any, what: str) -> str:
    """A path as text, `~` written out: behind `--model=` no shell does that. Raises ValueError for
    what no path can be."""
    path = os.fspath(value) if isinstance(value, str | os.PathLike) else ""
    if not isinstance(path, str) or not path or len(path) > _MOST_PATH or not path.isprintable():
        shown = cut_text(repr(value))
        raise ValueError(f"{shown} is no folder for {what}; give its path or name")
    return os.path.expanduser(path)


def _check_kinds(mesh, media, strip_prefix):
    if mesh is not None and not isinstance(mesh, jax.sharding.Mesh):
        raise ValueError(f"mesh is a {type(mesh).__name__}; give a jax.sharding.Mesh, or None")
    if not isinstance(media or {}, Mapping) or not isinstance(strip_prefix, str):
        raise ValueError("media is a dict of fields and strip_prefix a text; give these")


def _find_saved(folder):
    """The checkpoint that a folder of a run of ours or of a step of one holds, else None; a folder
    that holds weights is a model."""
    try:
        path = epath.Path(folder)
        is_model = (path / "config.json").is_file() and any(path.glob("*.safetensors*"))
        is_step = path.parent.name == "checkpoints" and path.name.isdigit()
        is_run = is_step or path.name == "checkpoints" or (path / "checkpoints").is_dir()
    except Exception as error:
        raise unreadable(folder, error) from None
    if is_model or not is_run:
        return None
    from videorft_jax.training import restore  # brings what training needs

    return restore.find_checkpoint(folder)


def _choose_contract(saved, folder, adapter, config, changes):
    """The media contract of the run or export, that of its adapter where this has one, with
    `changes`; a line in the log says which it is."""
    contract = saved.contract if saved else read_contract(folder)
    if adapter is not None:  # It was trained last.
        contract = read_contract(adapter) or contract
    where = "of its training" if contract else "of an evaluation, since none lies with the weights"
    contract = contract or MediaContract.evaluate(family.family_of(config).geometry)
    contract = _change(contract, changes)
    family.check_contract(config, contract, str(folder))
    read = contract.describe()
    log.info("%s: clips are read by the media contract %s: %s", folder, where, read)
    return contract


def _choose_system(saved, folder, adapter):
    """The system turn of the run or export, that of its adapter where this has one; a line in the
    log shows it."""
    system = read_system(folder) if saved is None else saved.system
    if adapter is not None:
        system = read_system(adapter) or system
    if system is None:
        log.info("%s: was saved without the system turn of its training; give it yourself", folder)
    if system:
        log.info("%s: the system turn of its training: %s", folder, cut_text(system))
    return system or ""


def _change(contract, changes):
    """The contract with some fields replaced, and each least bound at most its greatest."""
    fields = contract.to_dict() | changes
    for name in ("max_frames", "max_pixels", "image_max_pixels"):
        least = name.replace("max", "min")
        is_number = isinstance(fields[name], int | float)  # The contract refuses all others.
        if name in changes and least not in changes and is_number:
            fields[least] = min(fields[least], fields[name])
    return MediaContract.from_dict(fields)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config, params, batch):
    model = family.bind(config, params)
    return model.logits(model.hidden_states(batch)).astype(jnp.float32)
