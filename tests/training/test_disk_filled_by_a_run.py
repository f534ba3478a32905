"""A disk that fills while a run goes on: the error names the file that has no room."""

import contextlib
import io
import re
import resource
import types

import numpy as np
import pytest

from videorft_jax.data.loader.size_cache import SizeCache
from videorft_jax.data.records.quarantine import Failure, Quarantine
from videorft_jax.grpo.completion_log import CompletionLog
from videorft_jax.metrics.tensorboard import EventWriter
from videorft_jax.metrics.tracker import Tracker
from videorft_jax.training.validation import Validation


@contextlib.contextmanager
def no_room():
    """No file may grow: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_sizes(folder):
    cache = SizeCache(folder)
    return lambda: cache.put("clip", [1]), cache.close


def write_quarantine(folder):
    quarantine = Quarantine(folder / "quarantine.jsonl", 1.0, 10)
    return lambda: quarantine.add(Failure(1, "a.mp4", "corrupt", "x"), "load"), quarantine.close


def write_metrics(folder):
    tracker = Tracker(folder, 3, stream=io.StringIO())
    return lambda: tracker.log(1, {"loss": 1.0}), tracker.close


def write_events(folder):
    writer = EventWriter(folder)
    return lambda: writer.write(1, {"loss": 1.0}), writer.close


def write_validation(folder):
    validation = Validation(None, folder, 0, lambda state: {"accuracy": 0.5})
    return lambda: validation.take(1, None), lambda: None


def write_completions(folder):
    """Logs a batch without a sample into a file whose buffer holds something."""
    completions = CompletionLog(folder, 1)
    nothing = types.SimpleNamespace(item=types.SimpleNamespace(valid=np.zeros(0, bool)))
    nothing.rollout = nothing.verdict = None
    completions._file.write("before")
    options = types.SimpleNamespace(loss=types.SimpleNamespace(num_given=0))
    return lambda: completions.write(1, nothing, np.zeros(0), options), completions.close


WRITERS = {
    "sizes-0.jsonl": write_sizes,
    "quarantine.jsonl": write_quarantine,
    "metrics.jsonl": write_metrics,
    "events.out.tfevents": write_events,
    "validation.jsonl": write_validation,
    "completions.jsonl": write_completions,
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_error_names_the_file(tmp_path, name, monkeypatch):
    monkeypatch.setattr("videorft_jax.grpo.completion_log.explain", lambda *_: [])
    write, close = WRITERS[name](tmp_path)
    where = re.escape(str(tmp_path)) + ".*" + re.escape(name)
    with no_room():
        with pytest.raises(OSError, match=where):
            write()
        if name not in ("validation.jsonl", "sizes-0.jsonl"):  # Those keep nothing back.
            with pytest.raises(OSError, match=where):
                close()
