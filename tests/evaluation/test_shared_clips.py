"""Questions of one clip: decoded once, encoded once, and answered as if each had its own copy."""

import json
import pathlib
import shutil
import threading

import jax
import numpy as np
import pytest
from evaluation_place import NUM, ROLLOUTS, named

from videorft_jax.commands import evaluate
from videorft_jax.data.loader import load_sample
from videorft_jax.data.loader.recent import RecentClips
from videorft_jax.evaluation import runner
from videorft_jax.evaluation.shared_clips import SharedClips
from videorft_jax.parallel import sharding
from videorft_jax.rollout import parameters
from videorft_jax.training.setup import make_train_options
from videorft_jax.training.state import read_params

# The clip of each record, interleaved as the formats of TempCompass are. In batches of four they
# are 0 0 0 1, 1 2 2 2 and 2 3.
CLIPS = [0, 1, 2, 0, 2, 3, 0, 1, 2, 2]


@pytest.fixture(scope="module")
def files(place, tmp_path_factory):
    """Two record files with the same questions: one whose records share four clips, one where each
    record has a copy of its own."""
    data = tmp_path_factory.mktemp("shared") / "data"
    shutil.copytree(pathlib.Path(place.records).parent, data)
    rows = [json.loads(line) for line in pathlib.Path(place.records).read_text().splitlines()]
    videos = [row["path"] for row in rows if row["data_type"] == "video"]
    shared, alone = [], []
    for number, clip in enumerate(CLIPS):
        row = rows[number] | {"data_type": "video", "path": videos[clip]}
        copy = pathlib.Path(videos[clip]).with_stem(f"copy{number}")
        shutil.copy(data / videos[clip], data / copy)
        shared.append(row)
        alone.append(row | {"path": str(copy)})
    for name, own in (("shared", shared), ("alone", alone)):
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    return data / "shared.jsonl", data / "alone.jsonl"


class Counting(SharedClips):
    made: list = []

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.made.append(self)


@pytest.fixture
def counted(monkeypatch):
    """Counts what is decoded and what is encoded."""
    decoded, read = [], load_sample.load_media
    Counting.made = []
    monkeypatch.setattr(runner, "SharedClips", Counting)

    def load(media, *arguments, **settings):
        decoded.append(media)
        return read(media, *arguments, **settings)

    monkeypatch.setattr(load_sample, "load_media", load)
    return decoded, Counting.made


def without_paths(rows):
    return [{name: value for name, value in row.items() if name != "path"} for row in named(rows)]


def test_grouped_equals_one_by_one(place, files, counted):
    decoded, encoders = counted
    grouped = place.run(place.loader(files[0]))
    assert len(decoded) == len(set(CLIPS))
    (encoder,) = encoders
    assert encoder.num_encoded == len(set(CLIPS))
    alone = place.run(place.loader(files[1]))
    assert len(decoded) == len(set(CLIPS)) + NUM
    assert len(encoders) == 1
    assert len({row["completion"] for row in grouped}) > NUM / 2
    assert without_paths(grouped) == without_paths(alone)


@pytest.mark.parametrize("tensor", [1, 2])
def test_grouped_on_two_devices(place, files, counted, tensor, monkeypatch):
    """Each part of the mesh encodes as many clips; a clip is read from the part that has it. With
    tensor the decoder's layers lie apart, as on a TPU that fetches weights while it waits."""
    monkeypatch.setattr(parameters, "_FETCHING", (jax.devices()[0].device_kind,))
    mesh = sharding.make_mesh(2 // tensor, 1, tensor, devices=jax.devices()[:2])
    engine = evaluate.make_engine(place.config(), place.model_config, place.tokenizer, mesh)
    raw = read_params(make_train_options(place.config()).model, place.model_config, mesh)
    params = engine.prepare(raw)
    assert isinstance(params["text"]["layers"], list) == (tensor > 1)
    found = runner.evaluate_records(engine, params, place.tokenizer, place.loader(files[0]))
    (encoder,) = counted[1]
    # In each batch each part encodes one.
    assert encoder.num_encoded == (3 * 2 if tensor == 1 else len(set(CLIPS)))
    assert without_paths(found) == without_paths(place.run(place.loader(files[1])))


def test_questions_of_a_clip_follow_each_other(place, files):
    loader = place.loader(files[0])
    assert loader.clips.tolist() == CLIPS
    assert loader.schedule.record.tolist() == [0, 3, 6, 1, 7, 2, 4, 8, 9, 5]


def test_resumed_within_a_clip(place, files):
    whole = place.run(place.loader(files[0]))
    done = {0, 3, 1}
    rest = place.run(place.loader(files[0]), done=done)
    assert rest == [row for row in whole if row["index"] not in done]
    assert len(rest) == (NUM - len(done)) * ROLLOUTS


def test_recent_clips_are_read_once_by_all_threads():
    recent, reads, gate = RecentClips(2), [], threading.Event()

    def read():
        reads.append(1)
        gate.wait(10)
        return np.arange(3)

    found: list = []
    threads = [threading.Thread(target=lambda: found.append(recent.get("a", read))) for _ in "abc"]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join()
    assert len(reads) == 1
    assert len(found) == 3
    for key in "bc":
        recent.get(key, read)
    assert len(reads) == 3
    recent.get("a", read)  # the oldest of three had to go
    assert len(reads) == 4

    def fail():
        raise OSError("gone")

    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            recent.get("d", fail)
    assert recent.get("d", lambda: 4) == 4  # a failure is not kept
