"""Records of several clips and images through the loader, against transformers' own processor."""

import json

import numpy as np
import pytest
from hf_processor import make_processor
from several_media import (
    CHATS,
    NUM_FRAMES,
    find_media,
    find_targets,
    pixel_rows,
    process,
    rope_positions,
    write_records,
)

from videorft_jax.data.loader.options import LoaderOptions
from videorft_jax.data.loader.pipeline import Loader
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.records.opening import open_records
from videorft_jax.demo.tiny_tokenizer import train_tiny_tokenizer
from videorft_jax.models.geometry import WINDOWED_14

CONTRACT = MediaContract(
    min_frames=NUM_FRAMES, max_frames=NUM_FRAMES, min_pixels=4 * 784, max_pixels=12 * 784,
    image_max_pixels=8 * 784, mrope_rule="hf5",
)  # fmt: skip
END = "<|im_end|>\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    write_records(folder)
    return folder


@pytest.fixture(scope="module")
def processor():
    return make_processor(train_tiny_tokenizer([json.dumps(CHATS)], 400), CONTRACT)


def load(folder, processor, mode, start=0, rows=1):
    """(index of the record, step, row, segment) of each record from batch `start` on."""
    options = LoaderOptions(mode, rows, 512, 2, 32, 1, 0, 0.0, 2, 0, timeout_s=60.0, isolate=False)
    loader = Loader(open_records(folder / "several.jsonl"), processor.tokenizer, CONTRACT, options)
    with loader.steps(start) as steps:
        return [
            (index, step, row, segment)
            for step in steps
            for row, indices in enumerate(step.indices)
            for segment, index in enumerate(indices, 1)
        ]


@pytest.mark.parametrize("mode", ["sft", "grpo"])
def test_rows_equal_the_processor(folder, processor, mode):
    """Tokens, targets, positions and pixels of each record; in `sft` several share a row."""
    found, learns = load(folder, processor, mode, rows=2), mode == "sft"
    assert sorted(index for index, *_ in found) == list(range(len(CHATS)))
    for index, step, row, segment in found:
        batch = step.batch
        chat = CHATS[index] if learns else CHATS[index][:-1]
        theirs = process(processor, folder, chat, prompt=not learns)
        own = batch.segment_ids[row] == segment
        count, ids = int(own.sum()), theirs["input_ids"][0].numpy()
        assert batch.tokens[row, own].tolist() == ids[:count].tolist()
        # Behind the last target there is the line break of the template.
        assert processor.decode(ids[count - 1 :]) == (END if learns else "\n")
        targets = find_targets(processor, folder, chat, len(ids)) & learns
        assert np.array_equal(batch.loss_mask[row, own], targets[:count])
        assert targets.any() == learns
        positions = rope_positions(theirs)[:, :count]
        assert np.array_equal(batch.positions[row][:, own], positions)
        if not learns:
            kinds = [part["type"] for part in find_media(chat)]
            assert step.pairs[row] == [NUM_FRAMES // 2 if k == "video" else 1 for k in kinds]
        at = batch.visual_index[row, own]
        pixels = batch.patches[row].reshape(-1, 4, 1176)[at[at >= 0]].reshape(-1, 1176)
        cut = WINDOWED_14
        wanted = pixel_rows(theirs, chat, cut.pixel_mean, cut.pixel_std)
        np.testing.assert_array_equal(pixels, wanted)


def test_a_restart_changes_no_bit(folder, processor):
    whole = load(folder, processor, "grpo")
    for start in range(1, len(whole)):
        for (index, step, *_), (other, wanted, *_) in zip(
            load(folder, processor, "grpo", start), whole[start:], strict=True
        ):
            assert index == other
            assert all(map(np.array_equal, step.batch, wanted.batch))
