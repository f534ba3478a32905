"""What the data, the media and the models behind a set allow, as a person has read it.

There are three layers: the source's texts, its media, and the terms of each model that writes.
Nothing is judged here. A layer about which nothing is said is refused before the first request;
"unknown" and "no" may run, and the card says so in its first lines.
"""

import collections
import dataclasses
import datetime
import json
from collections.abc import Iterable, Mapping
from typing import Any

TRAINING = ("yes", "no", "unknown")
UNNAMED = "not named"  # The source of records that name none.
_SAID = {"no": "do not allow", "unknown": "are not known to allow"}
REMEDY = 'write {clause = "...", url = "...", read_on = "2026-11-29", allows_training = "unknown"}'


@dataclasses.dataclass(frozen=True)
class Terms:
    """allows_training: yes, no or unknown. clause: the licence's name, or what its text says. url:
    where it stands, read_on: when somebody read it, YYYY-MM-DD; both are needed unless unknown."""

    allows_training: str
    clause: str = ""
    url: str = ""
    read_on: str = ""

    def __post_init__(self):
        values = (self.allows_training, self.clause, self.url, self.read_on)
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"terms are no texts; {REMEDY}")
        if self.allows_training not in TRAINING:
            raise ValueError(f"allows_training is {self.allows_training!r}; say yes, no or unknown")
        if self.read_on:
            _check_day(self.read_on)
        if self.allows_training != "unknown" and not (self.url and self.read_on):
            raise ValueError(
                f"allows_training is {self.allows_training!r} without url and read_on; say where "
                "and when it was read, or say unknown"
            )


def _check_day(text: str) -> None:
    """Raises ValueError unless this is a day as YYYY-MM-DD that has begun somewhere on earth."""
    try:
        day = datetime.date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text:
        raise ValueError(f"read_on is {text!r}; write YYYY-MM-DD")
    if day > datetime.date.today() + datetime.timedelta(days=1):
        raise ValueError(f"read_on is {text}, a day to come; write the day on which it was read")


@dataclasses.dataclass(frozen=True)
class SourceTerms:
    """Terms of a source's questions and answers, and of the clips and pictures that it shows."""

    text: Terms
    media: Terms


def read_terms(place: str, values: Any) -> Terms:
    """Terms of a config file's table. Raises ValueError that names the place."""
    fields = {field.name for field in dataclasses.fields(Terms)}
    if not isinstance(values, dict) or "allows_training" not in values:
        raise ValueError(f"{place}: nothing says whether it may train a model; {REMEDY}")
    if wrong := sorted(set(values) - fields):
        raise ValueError(f"{place} has no {wrong[0]!r}; {REMEDY}")
    try:
        return Terms(**values)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def read_sources(table: Any) -> dict[str, SourceTerms]:
    """Terms by source of the section [licences]. Raises ValueError."""
    if not isinstance(table, dict):
        raise ValueError(
            f'licences is {table!r}; write a section [licences."SOURCE"] of each source'
        )
    found = {}
    for name, values in table.items():
        if not isinstance(values, dict) or set(values) != {"text", "media"}:
            raise ValueError(f"licences.{name!r}: write text and media, of each {REMEDY[6:]}")
        layers = {key: read_terms(f"licences.{name!r}.{key}", own) for key, own in values.items()}
        found[name] = SourceTerms(**layers)
    return found


def require_sources(used: Iterable[str], stated: Mapping[str, SourceTerms]) -> None:
    """Raises ValueError, one line, where records come from a source without a licence line."""
    if missing := sorted({name or UNNAMED for name in used} - set(stated)):
        number = f" and {len(missing) - 1} more sources" if len(missing) > 1 else ""
        name = json.dumps(missing[0], ensure_ascii=False)[:80]
        raise ValueError(
            f"licences: nothing is said about {name}{number}; write [licences.{name}] with text "
            'and media, each {allows_training = "unknown"} if nobody knows'
        )


def list_layers(
    sources: Mapping[str, SourceTerms], generators: Mapping[str, Terms]
) -> list[tuple[str, str, Terms]]:
    """(layer, name, terms) of all three layers. generators: by what the card calls the model."""
    texts = [("source", name, own.text) for name, own in sorted(sources.items())]
    media = [("media", name, own.media) for name, own in sorted(sources.items())]
    return texts + media + [("generator", name, own) for name, own in generators.items()]


def warn_of_terms(layers: Iterable[tuple[str, str, Terms]]) -> list[str]:
    """A line for each kind of layer that does not, or is not known to, allow training."""
    names = collections.defaultdict(list)
    for layer, name, terms in layers:
        if terms.allows_training != "yes":
            names[terms.allows_training, layer].append(name)
    called = {"source": "questions of", "media": "media of", "generator": "models"}
    return [
        f"The terms of the {called[layer]} {', '.join(own)} {_SAID[said]} training on them."
        for (said, layer), own in sorted(names.items())
    ]
