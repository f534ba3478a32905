"""What transformers' own tests of this model expect of a program that runs it, as numbers.

The numbers are facts of those tests, found without running them: sizes after the resize, patches of
pictures and clips, sampled frames, ids of a prompt, and prompts whose tokens and pixels do not
belong together. What they expect of logits, of batches of several lengths and of decoding with a
cache is in `test_model_parity`, `test_rollout` and `test_api`, against transformers' values.
"""

import dataclasses

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from videorft_jax.data.batch import layout, patches
from videorft_jax.data.media.clip import resize_frames
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.sampling import sample_frames, target_size
from videorft_jax.data.records.render import render
from videorft_jax.demo.tiny_tokenizer import WORDS
from videorft_jax.models.geometry import WINDOWED_14
from videorft_jax.models.qwen2_5_vl.config import parse_config, tiny_values
from videorft_jax.rollout.requests import check_request
from videorft_jax.rollout.sampling import SamplingConfig

# The bounds of their processors: pictures of 56 x 56 to 28 x 28 x 1280, clips of 400 to 10,000.
PICTURES = MediaContract(image_min_pixels=56 * 56, image_max_pixels=28 * 28 * 1280)
CLIPS = MediaContract(min_pixels=400, max_pixels=10_000, min_frames=2)


def media_of(frames, contract, still):
    resized = resize_frames(frames, contract, image=still)
    return patches.make_media(resized, None if still else 2.0, WINDOWED_14)


def grid_of(media):
    """The grid in patches, as transformers counts; ours counts visual tokens of 2 x 2."""
    pairs, down, across = media.grid
    return pairs, 2 * down, 2 * across


@pytest.mark.parametrize(
    ("shown", "resized"),
    [((561, 278), (560, 280)), ((1024, 1024), (980, 980)), ((56, 56), (56, 56))],
)
def test_sizes_of_pictures(shown, resized):
    assert target_size(*shown, 1, PICTURES, image=True) == resized


def test_patches_of_seven_pictures():
    """A picture of 1024 x 1024 has 70 x 70 patches of 1176 numbers, seven have 34,300."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (7, 1024, 1024, 3), np.uint8)
    media = [media_of(picture[None], PICTURES, True) for picture in pictures]
    assert [grid_of(item) for item in media] == [(1, 70, 70)] * 7
    sample = layout.make_sample(
        np.zeros(7 * 1225 + 7, np.int32), np.zeros(7 * 1225 + 7, bool),
        [number * 1226 for number in range(7)], media, "qwen",
    )  # fmt: skip
    batch = layout.pack([[sample]], len(sample.tokens), sample.num_pairs, sample.num_windows)
    assert batch.patch_valid.sum() == 34_300
    assert batch.patches.shape[-1] == 1176
    first = layout.make_sample(
        np.zeros(1225, np.int32), np.zeros(1225, bool), [0], media[:1], "qwen"
    )
    alone = layout.pack([[first]], 1225, 1, sample.num_windows)
    np.testing.assert_array_equal(alone.patches[0, 0], batch.patches[0, 0])


@pytest.mark.parametrize(
    ("size", "num_frames", "grid"),
    [((80, 80), 8, (4, 6, 6)), ((30, 30), 8, (4, 2, 2)), ((55, 71), 8, (4, 4, 6)),
     ((80, 80), 3, (2, 6, 6)), ((80, 80), 1, (1, 6, 6))],
)  # fmt: skip
def test_patches_of_clips(size, num_frames, grid):
    """Pairs of frames become one row of the grid, and a frame without a partner is repeated."""
    frames = np.random.default_rng(1).integers(0, 256, (num_frames, *size, 3), np.uint8)
    assert grid_of(media_of(frames, CLIPS, False)) == grid


@pytest.mark.parametrize(
    ("changes", "count"),
    [({"num_frames": 4}, 4), ({"fps": 3.0}, 6), ({"fps": 1.0}, 2), ({"fps": 4.0}, 8)],
)
def test_frames_that_are_sampled(changes, count):
    """A clip of 8 frames at 4 a second, asked for a number of frames or for a rate."""
    contract = dataclasses.replace(CLIPS, **changes)
    assert len(sample_frames(np.arange(8) / 4, 4.0, contract, None, None).indices) == count


def prompt(config, num_images, num_tokens):
    """A batch of one prompt with as many pictures of four patches and as many places for them."""
    picture = np.zeros((1, 28, 28, 3), np.uint8)
    media = [patches.make_media(picture, None, WINDOWED_14)] * num_images
    ids, tokens, starts = config.token_ids, [7], []
    for _ in range(num_tokens):
        starts.append(len(tokens) + 1)
        tokens += [ids.vision_start, ids.image, ids.vision_end]
    tokens, starts = np.array([*tokens, 9]), starts[:num_images]
    sample = layout.make_sample(tokens, np.zeros(len(tokens), bool), starts, media, "qwen")
    return layout.pack([[sample]], 16, 2, 2)


@pytest.mark.parametrize(("images", "tokens"), [(1, 2), (2, 1), (0, 1), (1, 1), (2, 2)])
def test_pictures_and_their_tokens_must_match(images, tokens):
    """One image and two image tokens raise, two and two do not."""
    config = parse_config(tiny_values())
    sampling = SamplingConfig(num_rollouts=1, max_new_tokens=4)

    def check():
        batch = prompt(config, min(images, tokens), tokens)
        if images > tokens:  # A picture too many, whose slots no token of the prompt names.
            batch.patch_valid[0, 1, 0, :4] = True
        return check_request(batch, [0], None, config, sampling, (16,), 0, 0)

    if images == tokens:
        assert check()[0].tokens.shape == (1, 16)
        return
    with pytest.raises(ValueError, match="visual tokens, .* places for them") as error:
        check()
    assert "\n" not in str(error.value)


# Published ids of the words in the prompt of their integration test.
PUBLISHED = {
    "<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652,
    "<|vision_end|>": 151653, "<|image_pad|>": 151655, "<|video_pad|>": 151656, "system": 8948,
    "Ċ": 198, "You": 2610, "Ġare": 525, "Ġa": 264, "Ġhelpful": 10950, "Ġassistant": 17847,
    ".": 13, "user": 872, "What": 3838, "Ġkind": 3093, "Ġof": 315, "Ġdog": 5562, "Ġis": 374,
    "Ġthis": 419, "?": 30, "assistant": 77091, "unknown": 151646,
}  # fmt: skip


def test_ids_of_the_prompt():
    """The first 17 ids of a question on a picture, the system turn included, are theirs; those
    behind the picture are the published tokenizer's."""
    backend = Tokenizer(models.WordLevel(PUBLISHED, unk_token="unknown"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    special = [word for word in PUBLISHED if word.startswith("<|")]
    backend.add_special_tokens([AddedToken(word, special=True) for word in special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    parts = [{"type": "image"}, {"type": "text", "text": "What kind of dog is this?"}]
    tokens = render(tokenizer, [{"role": "user", "content": parts}], [2]).tokens
    begin = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198, 151644, 872, 198]
    picture = [151652, 151655, 151655]
    assert tokens[:17].tolist() == begin + picture
    question = [3838, 3093, 315, 5562, 374, 419, 30]
    assert tokens[17:].tolist() == [151653, *question, 151645, 198, 151644, 77091, 198]
