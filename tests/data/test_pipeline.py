"""The loader gives the same batches whatever reads them.

Oracle for contents: each segment of a batch against the sample made straight from its record.
"""

import contextlib
import json
import os
import pathlib
import sys
import threading

import jax
import numpy as np
import pytest

from videorft_jax.data.batch.batch import Batch
from videorft_jax.data.batch.layout import make_sample
from videorft_jax.data.batch.patches import make_media
from videorft_jax.data.loader.options import LoaderOptions
from videorft_jax.data.loader.pipeline import Loader
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.load import load_media
from videorft_jax.data.records.prompts import build_messages, build_target
from videorft_jax.data.records.render import render
from videorft_jax.data.records.source import RecordSource
from videorft_jax.demo.dataset import write_dataset
from videorft_jax.demo.scenes import WorldConfig
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer
from videorft_jax.models.geometry import WINDOW_TOKENS

CONTRACT = MediaContract(max_frames=6, min_pixels=4 * 28 * 28, max_pixels=24 * 28 * 28)
CONFIG = {
    "mode": "sft",
    "rows": 6,
    "row_tokens": 1024,
    "max_buckets": 3,
    "multiple": 32,
    "epochs": 3,
    "seed": 5,
    "max_bad_fraction": 0.1,
    "threads": 2,
    "workers": 0,
    "timeout_s": 60.0,
    "isolate": False,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Square and wide clips and images: 50 records of two worlds in one file."""
    folder = tmp_path_factory.mktemp("data")
    records = []
    for name, size, num in (("square", (112, 112), 30), ("wide", (84, 168), 20)):
        files = write_dataset(folder / name, num, 0, 0, world=WorldConfig(size=size))
        source = RecordSource(files["sft"])
        for i in range(num):
            row = source.row(i) | {"problem_id": f"{name}-{i}"}
            row["path"] = f"{name}/{source[i].path}"
            records.append(row)
    path = folder / "mixed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in records))
    return str(path)


@pytest.fixture(scope="module")
def source(data):
    return RecordSource(data)


@pytest.fixture(scope="module")
def tokenizer(source):
    return train_tiny_tokenizer([source[i].problem + source[i].process for i in range(50)], 400)


def make_loader(source, tokenizer, config=None, contract=CONTRACT, **options):
    return Loader(
        source, tokenizer, contract, LoaderOptions(**(CONFIG | (config or {}))), **options
    )


@pytest.fixture(scope="module")
def reference(source, tokenizer):
    loader = make_loader(source, tokenizer, {"threads": 0})
    with loader.steps() as steps:
        return loader, list(steps)


def assert_equal(ours, theirs):
    assert (ours.index, ours.epoch, ours.bucket) == (theirs.index, theirs.epoch, theirs.bucket)
    assert ours.records == theirs.records
    assert ours.indices == theirs.indices
    np.testing.assert_array_equal(ours.valid, theirs.valid)
    for name in Batch._fields:
        np.testing.assert_array_equal(getattr(ours.batch, name), getattr(theirs.batch, name), name)


def expected_sample(source, index, tokenizer, target=True):
    record = source[index]
    clip = load_media(record.path, source.data_root, CONTRACT, kind=record.data_type)
    media = make_media(clip.frames, clip.fps if record.data_type == "video" else None)
    answer = build_target(record) if target else None
    text = render(tokenizer, build_messages(record), [media.num_tokens], answer)
    starts = [span[0] for span in text.visual_spans]
    return make_sample(text.tokens, text.loss_mask, starts, [media])


def check_segments(step, source, tokenizer):
    """Each segment against the sample made straight from its record; returns their number."""
    batch, checked = step.batch, 0
    for b, row in enumerate(step.indices):
        assert batch.segment_ids[b].max() == len(row)
        for segment, index in enumerate(row, 1):
            sample = expected_sample(source, index, tokenizer)
            own = batch.segment_ids[b] == segment
            np.testing.assert_array_equal(batch.tokens[b][own], sample.tokens)
            np.testing.assert_array_equal(batch.loss_mask[b][own], sample.loss_mask)
            np.testing.assert_array_equal(batch.positions[b][:, own], sample.positions)
            visual = batch.visual_index[b][own]
            np.testing.assert_array_equal(visual >= 0, sample.visual_slot[1] >= 0)
            slots = batch.patches[b].reshape(-1, 4, 1176)  # four patches a visual token
            frame, slot = sample.visual_slot[:, sample.visual_slot[1] >= 0]
            theirs = sample.media[0].patches.reshape(sample.num_pairs, -1, 4, 1176)
            np.testing.assert_array_equal(slots[visual[visual >= 0]], theirs[frame, slot])
            checked += 1
        padding = batch.segment_ids[b] == 0
        assert not batch.tokens[b][padding].any()
        assert not batch.loss_mask[b][padding].any()
        assert (batch.visual_index[b][padding] == -1).all()
    assert not batch.patches[~batch.patch_valid].any()
    return checked


@pytest.mark.parametrize("threads", [2, 4, None])
def test_threads_give_identical_batches(threads, source, tokenizer, reference):
    loader = make_loader(source, tokenizer, {"threads": threads})
    assert loader.digest == reference[0].digest
    assert len(loader) == len(reference[1]) > 6
    with loader.steps() as steps:
        for ours, theirs in zip(steps, reference[1], strict=True):
            assert_equal(ours, theirs)


def test_batches_use_the_memory_of_those_that_are_gone(source, tokenizer, reference):
    """Equal to batches that were all kept (above); held ones never change, see test_trays."""
    loader = make_loader(source, tokenizer, {"epochs": 12})
    with loader.steps() as steps:
        places = [step.batch.patches.ctypes.data for step in steps]
    assert len(places) > 24
    assert len(set(places)) <= 8


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a priority for each thread")
def test_decoding_goes_before_the_threads_of_cpu_devices(source, tokenizer):
    jax.devices()
    decoding = []

    @contextlib.contextmanager
    def span(name):
        decoding.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        yield

    own = os.getpriority(os.PRIO_PROCESS, 0)
    for _ in range(2):  # Later runs of a process add nothing to it.
        with make_loader(source, tokenizer, {"epochs": 1}).steps(span=span) as steps:
            next(steps)
            tasks = pathlib.Path("/proc/self/task").glob("*")
            named = {int(task.name): (task / "comm").read_text().strip() for task in tasks}
            computing = [task for task, name in named.items() if name == "tf_XLAEigen"]
            found = [os.getpriority(os.PRIO_PROCESS, task) for task in computing]
        assert found == [own + 5] * len(computing) != []
    assert set(decoding) == {own} == {os.getpriority(os.PRIO_PROCESS, 0)}


@pytest.mark.parametrize("error", [PermissionError, ProcessLookupError])
def test_a_priority_that_cannot_be_set_costs_no_batch(
    error, source, tokenizer, reference, monkeypatch
):
    jax.devices()

    def refuse(*_):
        raise error("no priority")

    monkeypatch.setattr(os, "setpriority", refuse)
    monkeypatch.setattr(os, "getpriority", lambda *_: 0)
    with make_loader(source, tokenizer).steps() as steps:
        assert_equal(next(steps), reference[1][0])


def test_restored_at_any_batch_it_goes_on_identically(reference):
    loader, expected = reference
    for k in (1, 4, len(expected) - 1, len(expected)):
        with loader.steps(k) as steps:
            for ours, theirs in zip(steps, expected[k:], strict=True):
                assert_equal(ours, theirs)
    with pytest.raises(ValueError, match="give 0 to"):
        loader.steps(len(expected) + 1)
    loader.check_digest(loader.digest)
    with pytest.raises(ValueError, match="the saved run read plan"):
        loader.check_digest("0" * 64)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_each_batch(count, source, tokenizer, reference):
    loaders = [
        make_loader(source, tokenizer, process_index=p, process_count=count) for p in range(count)
    ]
    assert {loader.digest for loader in loaders} == {reference[0].digest}
    runs = [loader.steps() for loader in loaders]
    for theirs in reference[1]:
        parts = [next(run) for run in runs]
        joined = Batch(
            *(np.concatenate(leaf) for leaf in zip(*(p.batch for p in parts), strict=True))
        )
        assert_equal(
            parts[0]._replace(
                batch=joined,
                records=sum((p.records for p in parts), []),
                indices=sum((p.indices for p in parts), []),
                valid=np.concatenate([p.valid for p in parts]),
            ),
            theirs,
        )
    for run in runs:
        run.close()


@pytest.mark.parametrize("count", range(1, 8))
def test_every_record_once_an_epoch_for_every_shard_count(count, source, tokenizer):
    config = {"rows": count, "epochs": 2, "mode": "grpo", "threads": 2}
    seen = {0: [], 1: []}
    for p in range(count):
        loader = make_loader(source, tokenizer, config, process_index=p, process_count=count)
        with loader.steps() as steps:
            for step in steps:
                seen[step.epoch] += sum(step.indices, [])
                assert [source[i] for row in step.indices for i in row] == sum(step.records, [])
    assert sorted(seen[0]) == sorted(seen[1]) == list(range(50))


def test_each_segment_is_its_record_and_nothing_else(source, tokenizer, reference):
    assert all(step.batch.patches.dtype == np.uint8 for step in reference[1])
    assert sum(check_segments(step, source, tokenizer) for step in reference[1][:3]) > 20
    assert WINDOW_TOKENS == 16


def test_shapes_are_the_announced_ones_and_padding_is_as_reported(reference):
    loader, steps = reference
    shapes = {step.batch.tokens.shape + step.batch.patches.shape[1:3] for step in steps}
    announced = {(b.rows, b.length, b.pairs, b.windows) for b in loader.buckets}
    assert shapes == announced
    assert len(announced) <= CONFIG["max_buckets"]
    used = sum((step.batch.segment_ids > 0).sum() for step in steps)
    space = sum(step.batch.segment_ids.size for step in steps)
    assert loader.waste[0] == pytest.approx(1 - used / space)
    slots = sum((step.batch.visual_index >= 0).sum() for step in steps)
    windows = sum(np.prod(step.batch.patches.shape[:3]) for step in steps)
    assert loader.waste[1] == pytest.approx(1 - slots / (windows * WINDOW_TOKENS))


def test_epochs_and_seeds_differ(source, tokenizer, reference):
    order = [[step.indices for step in reference[1] if step.epoch == e] for e in range(3)]
    assert order[0] != order[1] != order[2]
    other = make_loader(source, tokenizer, {"seed": 6})
    assert other.digest != reference[0].digest


def test_prompts_stand_alone_and_have_no_answer(source, tokenizer):
    loader = make_loader(source, tokenizer, {"mode": "grpo", "epochs": 1, "max_buckets": 2})
    with loader.steps() as steps:
        for step in steps:
            assert not step.batch.loss_mask.any()
            for b, row in enumerate(step.indices):
                assert len(row) == step.valid[b]
                assert (np.diff(step.batch.segment_ids[b]) <= 0).all()  # right-padded
                if row:
                    sample = expected_sample(source, row[0], tokenizer, target=False)
                    np.testing.assert_array_equal(
                        step.batch.tokens[b, : len(sample.tokens)], sample.tokens
                    )


def test_evaluation_is_in_order_and_keeps_bad_records(data, source, tokenizer, tmp_path):
    rows = [source.row(i) for i in range(13)]
    rows[4]["path"] = "square/clips/gone.mp4"
    path = tmp_path / "eval.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    few = RecordSource(path, source.data_root)
    config = {"mode": "evaluate", "epochs": 1, "max_buckets": 2, "rows": 4}
    loader = make_loader(few, tokenizer, config)
    seen, failed, invalid = [], [], 0
    with loader.steps() as steps:
        for step in steps:
            assert step.batch.tokens.shape[0] == 4
            seen += sum(step.indices, [])
            failed += [failure for _, failure in step.failures]
            invalid += (~step.valid).sum()
            for row, _ in step.failures:
                assert not step.valid[row]
                assert not step.batch.segment_ids[row].any()
    assert sorted(seen) == [i for i in range(13) if i != 4]
    assert [(f.index, f.reason) for f in failed] == [(4, "missing")]
    assert invalid == 4 * len(loader) - 12


def test_isolated_decoding_gives_the_same_batches(data, source, tokenizer, tmp_path):
    path = tmp_path / "few.jsonl"
    with open(data) as file:
        path.write_text("".join(file.readlines()[:3]))
    few = RecordSource(path, source.data_root)
    loaders = [
        make_loader(few, tokenizer, {"epochs": 1, "rows": 1, "isolate": isolate})
        for isolate in (False, True)
    ]
    assert loaders[0].digest == loaders[1].digest
    with loaders[0].steps() as plain, loaders[1].steps() as isolated:
        for ours, theirs in zip(isolated, plain, strict=True):
            assert_equal(ours, theirs)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"mode": "train"}, "choose one of sft, grpo, evaluate"),
        ({"epochs": 0}, "epochs 0"),
        ({"mode": "evaluate", "epochs": 2}, "1 to evaluate"),
        ({"timeout_s": 0.0}, "timeout_s is > 0"),
        ({"max_bad_fraction": 1.5}, "give 0 to 1"),
    ],
)
def test_impossible_settings_are_refused(config, message, source, tokenizer):
    with pytest.raises(ValueError, match=message):
        make_loader(source, tokenizer, config)
