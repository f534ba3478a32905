"""VideoRFT records as TFDS data sets, built and read without TensorFlow.

A media file is a path or the file's own bytes in a `Text`
feature, never `tfds.features.Video` (which needs TensorFlow and stores every frame as PNG). The
bytes come back bit for bit and go into the same decoder, so both forms give the same batches.
"""

import contextlib
import functools
import hashlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from videorft_jax.data.media.contract import Limits
from videorft_jax.data.media.files import list_files, open_media
from videorft_jax.data.records.records import CHAT_FIELDS, Record, parse_row
from videorft_jax.data.records.source import RecordSource

NUMBERS = ("start", "end")
TEXTS = ("problem", "data_type", "problem_type", "process", "solution", "path", "data_source")
SPLIT = "train"
BLOCK = 1 << 20


class _VideoRft(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Common to both builders. `records` names the record file and is needed only to build;
    `embed` stores each media file's bytes beside its record, else its relative path alone;
    `progress` is told how many records are written."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}  # noqa: RUF012

    def __init__(
        self,
        *,
        records: RecordSource | None = None,
        embed: bool = False,
        progress: Callable[[int], None] = lambda done: None,
        **kwargs: Any,
    ):
        self._records, self._embed, self._progress = records, embed, progress
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        features = dict.fromkeys(TEXTS, text) | {
            "problem_id": text,  # JSON: an integer or a string
            "options": tfds.features.Sequence(text),
            "start": tfds.features.Scalar(np.float64),  # seconds; NaN where the record has none
            "end": tfds.features.Scalar(np.float64),
            "extra": text,  # JSON: the row's other fields
            "media": text,  # the file's bytes, empty when not embedded
            "sha256": text,  # It is the digest of the media file.
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="VideoRFT records with the media as relative paths or as bytes.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # order of the record file; the loader shuffles
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        if self._records is None:
            raise ValueError(f"{self.name}: pass records=RecordSource(FILE, DATA_ROOT) to build it")
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(len(self._records)):
            record = self._records[index]
            digest = hashlib.sha256()
            row = record.to_row()
            chat = {name: row[name] for name in CHAT_FIELDS if name in row}
            if self._embed and record.items:
                where = self._records.where(index)
                raise ValueError(
                    f"{where}: shows several files, frames, timed lines or a size of its own; "
                    "build without --embed"
                )
            try:
                extra = json.dumps(dict(record.extra) | chat)
            except TypeError as error:  # A field may be a date of a parquet file.
                names = ", ".join(map(str, record.extra))
                raise ValueError(
                    f"{self._records.where(index)}: {error}; write the fields {names} as texts and "
                    "numbers, or leave them out"
                ) from None
            blocks = []
            for item in record.media:
                for name in list_files(item.path, self._records.data_root, Limits()):
                    with open_media(name, self._records.data_root, Limits()) as descriptor:
                        while block := os.read(descriptor, BLOCK):
                            digest.update(block)
                            if self._embed:
                                blocks.append(block)
            media = b"".join(blocks)
            example = {field: getattr(record, field) for field in TEXTS}
            for field in NUMBERS:
                value = getattr(record, field)
                example[field] = math.nan if value is None else float(value)
            example |= {
                "problem_id": json.dumps(record.problem_id),
                "options": list(record.options),
                "extra": extra,
                "media": media,
                "sha256": digest.hexdigest(),
            }
            yield index, example
            self._progress(index + 1)


class VideorftCot(_VideoRft):
    """`videorft_cot`: questions with chains of thought, for SFT."""


class VideorftRl(_VideoRft):
    """`videorft_rl`: questions with answers, for GRPO."""


BUILDERS = {"videorft_cot": VideorftCot, "videorft_rl": VideorftRl}


def build(
    name: str,
    records: RecordSource,
    data_dir: str | os.PathLike,
    embed: bool,
    progress: Callable[[int], None] = lambda done: None,
) -> str:
    """Writes one data set as ArrayRecord and returns its folder; what an interrupted build left
    behind is removed first. progress: is told how many records are written.

    Raises ValueError for an unknown name or a data set that exists, RecordError for a bad row and
    MediaError for a file that is missing or unsafe: run `videorft validate` before.
    """
    if name not in BUILDERS:
        raise ValueError(f"tfds: no builder {name!r}; choose one of {', '.join(BUILDERS)}")
    settings = {"embed": embed, "progress": progress, "data_dir": os.fspath(data_dir)}
    builder = BUILDERS[name](records=records, **settings)
    parent, version = os.path.split(builder.data_dir)
    if os.path.exists(builder.data_dir):
        raise ValueError(f"{builder.data_dir}: exists; remove it to build it anew")
    for left in os.listdir(parent) if os.path.isdir(parent) else ():
        if left.startswith("incomplete.") and left.endswith(f"_{version}"):
            shutil.rmtree(os.path.join(parent, left))
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # It would say that it downloads something.
        builder.download_and_prepare(file_format="array_record")
    return builder.data_dir


def find_folder(name: str) -> str:
    """The folder of a data set: a path itself, or the newest version of a name below the folder
    that TFDS_DATA_DIR names, by default ~/tensorflow_datasets. Raises ValueError."""
    home = os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")
    for place in (name, os.path.join(home, name)):
        if os.path.isfile(os.path.join(place, "dataset_info.json")):
            return place
        if os.path.isdir(place):
            made = [v for v in os.listdir(place) if re.fullmatch(r"\d+\.\d+\.\d+", v)]
            if made:
                newest = max(made, key=lambda version: [int(n) for n in version.split(".")])
                return os.path.join(place, newest)
    raise ValueError(f"tfds:{name}: no data set there or below {home}; build it by `videorft tfds`")


class TfdsSource:
    """Records of a TFDS folder for the loader: `source[i]` is a Record, `media(i)` the bytes of its
    file, or None where the data set holds paths. Pickles; strings are decoded, absent times None.

    split: also a slice, such as "train[:1%]". data_root: folder of the media, needed when they are
    not embedded. Raises ValueError when the folder is no such data set.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str = SPLIT,
        data_root: str | os.PathLike | None = None,
    ):
        self.folder, self.split = os.path.abspath(folder), split
        self.data_root = os.path.abspath(data_root or folder)
        self._open()
        if not len(self._data):
            raise ValueError(f"{folder}: split {split!r} holds no records")
        self.embedded = bool(self._example(0)["media"])  # a data set is built one way or the other

    def _open(self) -> None:
        if not os.path.exists(os.path.join(self.folder, "dataset_info.json")):
            raise ValueError(f"{self.folder}: no TFDS folder; name the one with dataset_info.json")
        try:
            builder = tfds.builder_from_directory(self.folder)
            self._data = builder.as_data_source(split=self.split)
        except ValueError as error:
            line = str(error).split("\n")[0]
            raise ValueError(f"{self.folder}: split {self.split!r}: {line}") from None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_data"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self._data)

    @functools.cached_property
    def fingerprint(self) -> str | None:
        """Names the contents (sizes and times of the shards, the split); None where the media are
        files of their own, which may change."""
        if not self.embedded:
            return None
        shards = sorted(n for n in os.listdir(self.folder) if ".array_record" in n)
        facts = [self.split]
        for name in shards:
            status = os.stat(os.path.join(self.folder, name))
            facts += [name, status.st_size, status.st_mtime_ns]
        return hashlib.sha1(json.dumps(facts).encode()).hexdigest()

    def where(self, index: int) -> str:
        """How messages name row `index`."""
        return f"{os.path.basename(os.path.dirname(self.folder))} {self.split} row {index}"

    def __getitem__(self, index: int) -> Record:
        return self._record(self._example(index), index)

    def _example(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.where(index)} of {len(self)}")
        try:
            return self._data[int(index)]
        except (RuntimeError, ValueError) as error:  # flipped bytes, or cut off; may say nothing
            shards = f"{self.folder}: {self.where(index)}"
            raise ValueError(f"{shards}: damaged ({error or 'cut off'}); build it anew") from None

    def _record(self, example: dict[str, Any], index: int) -> Record:
        row = json.loads(example["extra"])
        row |= {field: example[field].decode() for field in TEXTS}
        row["problem_id"] = json.loads(example["problem_id"])
        row["options"] = [option.decode() for option in example["options"]]
        for field in NUMBERS:
            row[field] = None if math.isnan(example[field]) else float(example[field])
        return parse_row(row, self.where(index))

    def media(self, index: int) -> bytes | None:
        """The media file's bytes, None where the record's path is to be used."""
        return self._example(index)["media"] if self.embedded else None
