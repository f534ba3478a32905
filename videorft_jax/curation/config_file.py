"""The config file of a curation, TOML: read, checked name by name, and turned into options."""

import dataclasses
import os
import pathlib
import tomllib
from typing import Any

from videorft_jax.curation.budget import Limits
from videorft_jax.curation.endpoints import Endpoint, Price
from videorft_jax.curation.licences import read_sources, read_terms
from videorft_jax.curation.options import PROBES, STAGES, CurationOptions
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.rewards.gates import GATES

SECTIONS: dict[str, dict[str, type]] = {
    "data": {"records": str, "data_root": str, "benchmarks": list, "val_fraction": float,
             "isolate": bool, "templates": str, "tokenizer": str},
    "frames": {"fps": float, "max_frames": int, "max_pixels": int},
    "stages": {"attempts": int, "revise_frames": int, "people": bool, "least_kept": float,
               "similarity": bool, "least_words": int, "most_words": int, "most_alike": int},
    "difficulty": dict.fromkeys(PROBES, str),
    "budget": {"dollars": float, "tokens": int},
}  # fmt: skip
LEAST_PIXELS = 4 * 28 * 28


def read_config(path: str | os.PathLike) -> CurationOptions:
    """The options of a file. Raises ValueError, one line with the place."""
    try:
        table = tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(
            f"{path}: {reason}; `videorft init configs curate` writes configs/curate.toml, to edit"
        ) from None
    known = {*SECTIONS, "endpoints", "licences"}
    if wrong := sorted(set(table) - known):
        raise ValueError(f"{path}: no section [{wrong[0]}]; there are {', '.join(sorted(known))}")
    own = {name: _section(path, name, table.get(name, {})) for name in SECTIONS}
    endpoints = table.get("endpoints", {})
    if not isinstance(endpoints, dict) or set(endpoints) != set(STAGES):
        raise ValueError(f"{path}: write exactly [endpoints.NAME] for {', '.join(STAGES)}")
    data, frames = own["data"], own["frames"]
    pixels = frames.pop("max_pixels", 256 * 28 * 28)
    try:
        contract = MediaContract(
            fps=frames.pop("fps", 1.0), min_frames=2, max_frames=frames.pop("max_frames", 64),
            min_pixels=LEAST_PIXELS, max_pixels=pixels,
            image_min_pixels=LEAST_PIXELS, image_max_pixels=pixels,
        )  # fmt: skip
        root = data.pop("data_root", "") or os.path.dirname(os.path.abspath(data["records"]))
        benchmarks = _benchmarks(data.pop("benchmarks", []))
        return CurationOptions(
            endpoints={name: _endpoint(name, endpoints[name]) for name in STAGES},
            contract=contract, gates=dict(GATES["strict"]), data_root=root, benchmarks=benchmarks,
            limits=Limits(**own["budget"]), licences=read_sources(table.get("licences", {})),
            difficulty={name: text for name, text in own["difficulty"].items() if text},
            **data, **own["stages"],
        )  # fmt: skip
    except KeyError as error:
        raise ValueError(f"{path}: {error.args[0]} is missing; see configs/curate.toml") from None
    except TypeError as error:
        raise ValueError(f"{path}: {error}; see configs/curate.toml") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _section(path, name: str, values: Any) -> dict[str, Any]:
    """The values of one section, each of the type that it must have."""
    if not isinstance(values, dict):
        raise ValueError(f"{path}: {name} is no section; write [{name}]")
    checked = {}
    for key, value in values.items():
        kind = SECTIONS[name].get(key)
        if kind is None:
            known = ", ".join(SECTIONS[name])
            raise ValueError(f"{path}: [{name}] has no {key!r}; choose of {known}")
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ValueError(f"{path}: [{name}] {key} is {value!r}; give a {kind.__name__}")
        checked[key] = value
    return checked


def _benchmarks(values: list) -> tuple[tuple[str, str], ...]:
    """(name or record file, data root) of each benchmark."""
    for value in values:
        is_pair = isinstance(value, list) and len(value) == 2
        if not is_pair or not all(isinstance(text, str) for text in value):
            raise ValueError(
                f"[data] benchmarks has {value!r}; give [name or record file, data root] of each, "
                '"" for the folder of the file'
            )
    return tuple((file, folder) for file, folder in values)


def _table(place: str, name: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"{place} {name} is {values!r}; write a table, {name} = {{...}}")
    return values


def _price(place: str, values: Any) -> Price:
    fields = {field.name: field for field in dataclasses.fields(Price)}
    given = _table(place, "price", values)
    needed = [name for name, field in fields.items() if field.default is dataclasses.MISSING]
    wrong = [name for name in given if name not in fields]
    if wrong or not set(needed) <= set(given):
        what = f"has no {wrong[0]!r}" if wrong else f"needs {', '.join(needed)}"
        raise ValueError(f"{place} price {what}; see configs/curate.toml")
    try:
        return Price(**given)
    except ValueError as error:
        raise ValueError(f"{place} {error}") from None


def _endpoint(name: str, values: Any) -> Endpoint:
    place = f"[endpoints.{name}]"
    fields = {field.name: field for field in dataclasses.fields(Endpoint)}
    if not isinstance(values, dict):
        raise ValueError(f"endpoints.{name} is {values!r}; write a section {place}")
    given = dict(values)
    for key, value in given.items():
        if key not in fields or key == "name":
            raise ValueError(f"{place} has no {key!r}; see configs/curate.toml")
        default = fields[key].default
        kinds = {bool: bool, int: int, float: (int, float), str: str}.get(type(default))
        if kinds and (not isinstance(value, kinds) or isinstance(value, bool) != (kinds is bool)):
            raise ValueError(f"{place} {key} is {value!r}; give one like {default!r}")
    price, urls = given.pop("price", None), given.pop("base_urls", [])
    if not isinstance(urls, list):
        raise ValueError(f"{place} base_urls is {urls!r}; write a list, [{urls!r}]")
    body = _table(place, "extra_body", given.pop("extra_body", {}))
    return Endpoint(
        name=name,
        base_urls=tuple(urls),
        terms=read_terms(f"{place} terms", given.pop("terms", None)),
        extra_body=tuple(sorted(body.items())),
        price=_price(place, price) if price is not None else None,
        **{"model": ""} | given,
    )
