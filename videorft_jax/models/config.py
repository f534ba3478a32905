"""What the parsed configs of all families have in common.

Every family has a `VisionConfig` and a `TextConfig` of its own, because their values differ. The
rest of the package reads the attributes that all of them have: `num_layers`, `dim`, `num_heads`,
`head_dim` and `mlp_dim` of both, `merge`, `patch_dim` and `out_dim` of the tower, `num_kv_heads`,
`vocab_size` and `tied` of the decoder.
"""

import dataclasses
import pathlib
from typing import Any, ClassVar

from videorft_jax.models.json_file import read_object


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """Ids that stand for pixels in a prompt, or frame them."""

    image: int
    video: int
    vision_start: int
    vision_end: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model. `source` is the checkpoint's own JSON, kept so that an export gives it back;
    `model_type` is the family's name in it."""

    model_type: ClassVar[str]

    vision: Any
    text: Any
    token_ids: TokenIds
    source: str = dataclasses.field(repr=False, compare=False)

    @property
    def visual_dim(self) -> int:
        """Values of one visual token as the tower hands it over."""
        return self.text.dim


def read_values(folder) -> tuple[dict[str, Any], str]:
    """The JSON of a Hugging Face folder's `config.json`, and the file's name for messages. Raises
    ValueError where it is missing or damaged."""
    path = pathlib.Path(folder) / "config.json"
    try:
        if not path.is_file():
            raise ValueError(_explain_absence(pathlib.Path(folder), path))
        return read_object(path), str(path)
    except OSError as error:  # A name that is too long, or a folder of somebody else.
        reason = f"cannot be read ({error.strerror or error})"
        raise ValueError(f"{path}: {reason}; check the path and its rights") from None


def _explain_absence(folder: pathlib.Path, path: pathlib.Path) -> str:
    """What a folder is that holds no `config.json`, and what to give instead."""
    files = [folder] if folder.is_file() else sorted(folder.glob("*"))
    names = {file.name for file in files}
    if any(file.suffix == ".gguf" for file in files):
        return (
            f"{folder}: holds GGUF, which is never read; give the safetensors that it was made of"
        )
    if "adapter_config.json" in names:
        return (
            f"{folder}: is an adapter of PEFT; give its base as the model, and the folder as the "
            "adapter (model.adapter, --adapter)"
        )
    if folder.is_file():
        return f"{folder}: is a file; give the Hugging Face checkpoint folder that it lies in"
    return f"{path}: no such file; give a Hugging Face checkpoint folder"


def get_key(values: dict[str, Any], key: str, where: str, prefix: str = "") -> Any:
    """The value of a key that a checkpoint must give. The class defaults of transformers are those
    of no published checkpoint, so that a missing key is an error that names it."""
    if key not in values:
        raise ValueError(f"{where}: key '{prefix}{key}' is missing; a checkpoint must give it")
    return values[key]


def parse_token_ids(values: dict[str, Any], where: str) -> TokenIds:
    """The ids of the root of a `config.json`. Raises ValueError for one that is missing."""
    names = {field.name: f"{field.name}_token_id" for field in dataclasses.fields(TokenIds)}
    return TokenIds(**{name: get_key(values, key, where) for name, key in names.items()})


def check_values(conditions: list[tuple[bool, str]], where: str) -> None:
    """Raises ValueError for the first condition that does not hold; (holds, what must hold)."""
    for holds, message in conditions:
        if not holds:
            raise ValueError(f"{where}: {message}; fix the file or use another checkpoint")


def override(values: dict[str, Any], vision: dict[str, Any], overrides: dict[str, Any]) -> None:
    """Replaces keys of the JSON of a published size in place. A key prefixed with `vision_` that is
    none of `values` goes to `vision`. Raises ValueError for a key that is in neither."""
    for key, value in overrides.items():
        part = key.removeprefix("vision_")
        if key in values:
            values[key] = value
        elif key.startswith("vision_") and part in vision:
            vision[part] = value
        else:
            raise ValueError(f"hf_values: {key!r} is not a key of config.json; check its spelling")
