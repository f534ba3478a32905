"""From a family's name table to the tensors of a Hugging Face checkpoint.

One row of a table per parameter path: the path, the tensor's name on the hub ({} is the layer), and
how its dims map in the manner of einsum, "(N H) D -> D N H". Reading, writing, expected shapes,
adapters and error messages all come from it. Letters are those of the house plan.
"""

import math
import re
from collections.abc import Iterable
from typing import NamedTuple

from videorft_jax.models.config import ModelConfig

Row = tuple[str, str, str]  # our path, the hub's name, HF dims -> our dims without L


class Leaf(NamedTuple):
    """One row of a table with the sizes of a config. `perm` takes HF letters to ours."""

    path: str
    name: str
    num_layers: int | None
    hf_shape: tuple[int, ...]
    split: tuple[int, ...]
    perm: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's, layers stacked on dim 0."""
        layers = () if self.num_layers is None else (self.num_layers,)
        return layers + tuple(self.split[i] for i in self.perm)

    def names(self) -> list[tuple[str, str]]:
        """(HF name, our name) of every tensor of the leaf."""
        if self.num_layers is None:
            return [(self.name, self.path)]
        return [(self.name.format(i), f"{self.path}[{i}]") for i in range(self.num_layers)]


def letter_sizes(config: ModelConfig) -> dict[str, dict[str, int]]:
    """The size of every letter of a table, by the first part of a path: those of the house plan,
    and in the tower S, the three of qkv, X, the values of one patch, E and U, merge^2 tokens side
    by side, and O, the merger's output."""
    text, vision = config.text, config.vision
    merged = vision.dim * vision.merge**2
    return {
        "text": {
            "V": text.vocab_size,
            "D": text.dim,
            "N": text.num_heads,
            "K": text.num_kv_heads,
            "H": text.head_dim,
            "M": text.mlp_dim,
        },
        "vision": {
            "D": vision.dim,
            "N": vision.num_heads,
            "H": vision.head_dim,
            "M": vision.mlp_dim,
            "S": 3,
            "X": vision.patch_dim,
            "E": merged,
            "U": merged,
            "O": vision.out_dim,
        },
    }


def make_leaves(
    rows: Iterable[Row],
    config: ModelConfig,
    sizes: dict[str, dict[str, int]],
    num_layers: dict[str, int],
) -> list[Leaf]:
    """The rows that a config has, with sizes; a tied one has no head. `sizes` are those of
    `letter_sizes` and of a family's own letters, `num_layers` the length of the stack that a path
    with {} belongs to. A file keeps the dims of the letter X, a patch, apart."""
    vision = config.vision
    patch = (vision.in_channels, vision.temporal_patch, vision.patch, vision.patch)
    if config.text.tied:
        rows = [row for row in rows if row[0] != "text/head"]
    leaves = []
    for path, name, dims in rows:
        part = path.split("/")[0]
        theirs, ours = dims.split(" -> ")
        letters = re.findall("[A-Z]", theirs)
        hf_shape = []
        for group in re.findall(r"\([^)]*\)|[A-Z]", theirs):
            whole = math.prod(sizes[part][letter] for letter in re.findall("[A-Z]", group))
            hf_shape += patch if group == "X" else (whole,)
        leaves.append(
            Leaf(
                path=path,
                name=name,
                num_layers=num_layers[stack_of(path)] if "{}" in name else None,
                hf_shape=tuple(hf_shape),
                split=tuple(sizes[part][letter] for letter in letters),
                perm=tuple(letters.index(letter) for letter in ours.split()),
            )
        )
    return leaves


def is_stacked(path: str) -> bool:
    """Whether the parameter at `path` holds a stack of layers, with a leading L."""
    return any(part in ("layers", "deepstack") for part in path.split("/"))


def stack_of(path: str) -> str:
    """The first two parts of a path, which name its stack of layers: "text/layers"."""
    return "/".join(path.split("/")[:2])


def linear_layers(rows: Iterable[Row], new_name) -> dict[str, tuple[str, int]]:
    """path -> (Hugging Face module, number of input dims) of every weight that is a plain matrix
    product; `new_name` gives the module's name in transformers >= 4.52."""
    layers = {}
    for path, name, dims in rows:
        groups = re.findall(r"\([^)]*\)|[A-Z]", dims.split(" -> ")[0])
        if len(groups) == 2 and path.split("/")[-1] not in ("embed", "head", "position_table"):
            module = new_name(name).removesuffix(".weight")
            layers[path] = (module, len(re.findall("[A-Z]", groups[1])))
    return layers
