"""The contract, the sampling rule and the resize, against tables, qwen-vl-utils' formulas in torch
and golden outputs of Hugging Face's processor."""

import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from videorft_jax.data.media.clip import resize_frames
from videorft_jax.data.media.contract import MediaContract, MediaError
from videorft_jax.data.media.image import read_image
from videorft_jax.data.media.load import load_media
from videorft_jax.data.media.resize import resize_planes
from videorft_jax.data.media.sampling import frame_range, num_sampled, sample_indices, target_size

DATA = Path(__file__).parents[1] / "golden"
TRAIN, EVALUATE = MediaContract.train(), MediaContract.evaluate()


def test_digests_are_frozen():
    """Feature caches and checkpoints on disk carry these; a change must be a decision."""
    assert TRAIN.digest == "3f94caaea4a012e81875845a9d0f5a9a156c775f58051ee20099b3a4784191da"
    assert EVALUATE.digest == "d9c08d5fd0659c2b71a68c5ead007ee185cd22fbdd4a2e25ce4b0f70c4c518a4"


def test_contract_round_trip_difference_and_checks():
    assert MediaContract.from_dict(TRAIN.to_dict()) == TRAIN
    assert MediaContract(fps=2).digest == MediaContract(fps=2.0).digest
    changed = MediaContract(**TRAIN.to_dict() | {"mrope_rule": "hf5"})
    assert changed.digest != TRAIN.digest
    assert TRAIN.diff(changed) == "mrope_rule: qwen != hf5"
    assert TRAIN.diff(TRAIN) == ""
    with pytest.raises(ValueError, match="frames_per_second"):
        MediaContract.from_dict(TRAIN.to_dict() | {"frames_per_second": 2})
    for wrong in (
        {"fps": 0},
        {"fps": math.nan},
        {"num_frames": 1},
        {"min_frames": 5, "max_frames": 4},
        {"min_pixels": 2, "max_pixels": 1},
        {"sampling": "random"},
        {"resize": "nearest"},
        {"mrope_rule": "new"},
    ):
        with pytest.raises(ValueError, match="MediaContract"):
            MediaContract(**wrong)


@pytest.mark.parametrize(
    ("source", "contract", "num", "expected"),
    [
        # tokens per frame pair of the reference: 120 for 16:9, 130, 140, 144
        ((720, 1280), TRAIN, 16, (224, 420)),
        ((1080, 1920), TRAIN, 16, (224, 420)),
        ((480, 640), TRAIN, 16, (280, 364)),
        ((240, 320), TRAIN, 16, (280, 392)),
        ((224, 224), TRAIN, 16, (336, 336)),
        ((1920, 1080), TRAIN, 16, (420, 224)),
        ((720, 1280), EVALUATE, 32, (336, 588)),
        # round half to even: 14 -> 0 -> 28 at least, 42 -> 2 * 28 (1.5), 70 -> 2 * 28 (2.5)
        ((14, 42), MediaContract(min_pixels=1, max_pixels=10**6), 4, (28, 56)),
        ((70, 98), MediaContract(min_pixels=1, max_pixels=10**6), 4, (56, 112)),
        # exactly inside the budget: untouched
        ((336, 336), MediaContract(min_pixels=1, max_pixels=336 * 336), 4, (336, 336)),
        # 1.05 * min wins over a smaller max; the whole clip's budget shrinks a frame
        ((336, 336), MediaContract(min_pixels=100352, max_pixels=100352), 4, (308, 308)),
        ((1080, 1920), MediaContract(total_pixels=200704 * 8), 16, (336, 588)),
        ((1080, 1920), MediaContract(total_pixels=1), 16, (224, 420)),
        # nearly 200:1, the small side must not vanish
        ((10, 1990), TRAIN, 16, (28, 4480)),
    ],
)
def test_target_size(source, contract, num, expected):
    assert target_size(*source, num, contract) == expected


def test_target_size_of_images_and_aspect_ratio():
    assert target_size(1080, 1920, 1, TRAIN, image=True) == (336, 588)
    assert target_size(20, 20, 1, TRAIN, image=True) == (56, 56)
    assert target_size(10, 2000, 2, TRAIN)[0] == 28
    with pytest.raises(MediaError, match="aspect_ratio") as error:
        target_size(10, 2001, 2, TRAIN)
    assert error.value.reason == "aspect_ratio"


def smart_nframes(total, fps, target, least, most):
    """qwen-vl-utils' rule, written out once more as the oracle."""
    num = min(min(max(total / fps * target, math.ceil(least / 2) * 2), most // 2 * 2), total)
    return math.floor(num / 2) * 2


def test_number_of_frames():
    assert num_sampled(300, 30.0, TRAIN) == 16
    assert num_sampled(17, 30.0, TRAIN) == 16
    assert num_sampled(15, 30.0, TRAIN) == 14  # capped by the clip, floored to even
    assert num_sampled(1800, 30.0, EVALUATE) == 32
    plain = MediaContract()
    for total in (2, 3, 7, 59, 60, 61, 299, 1001, 90_000):
        for rate in (1.0, 12.5, 24000 / 1001, 30.0):
            assert num_sampled(total, rate, plain) == smart_nframes(total, rate, 2.0, 4, 768)
    assert num_sampled(100, 30.0, MediaContract(num_frames=9)) == 8  # round half to even: 4.5
    assert num_sampled(100, 30.0, MediaContract(num_frames=11)) == 12
    for total, contract in ((1, TRAIN), (7, MediaContract(num_frames=8))):
        with pytest.raises(MediaError) as error:
            num_sampled(total, 30.0, contract)
        assert error.value.reason == "too_few_frames"


def test_indices_equal_rounded_linspace():
    for total in (2, 3, 16, 17, 33, 100, 131, 250, 1799, 1800, 5000):
        for num in (2, 4, 16, 32, 64):
            if num <= total:
                expected = torch.linspace(5, total + 4, num).round().long().tolist()
                assert sample_indices(5, total + 4, num).tolist() == expected
    # hours: exact rationals, where float32 begins to slip
    for num in (16, 32, 768):
        expected = [round(i * 400_000 / (num - 1)) for i in range(num)]
        assert sample_indices(0, 400_000, num).tolist() == expected


def test_start_and_end():
    even = np.arange(100) / 25
    assert frame_range(even, 25.0, None, None) == (0, 99)
    assert frame_range(even, 25.0, 1.0, 2.0) == (25, 50)
    assert frame_range(even, 25.0, 1.01, 1.99) == (26, 49)  # ceil, floor
    assert frame_range(even, 25.0, -3.0, 99.0) == (0, 99)
    assert frame_range(even, 25.0, None, 0.5) == (0, 12)
    # variable rate: 10 frames in the first second, then one a second
    uneven = np.concatenate([np.arange(10) / 10, 1.0 + np.arange(10)])
    rate = 19 / uneven[-1]
    assert frame_range(uneven, rate, 0.25, 2.5) == (3, 11)
    for start, end in ((2.0, 1.0), (1.0, 1.0), (1.0, 1.03), (50.0, 60.0), (math.nan, None)):
        with pytest.raises(MediaError) as error:
            frame_range(even, 25.0, start, end)
        assert error.value.reason == "empty_range"


MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def unpatch(pixel_values, grid):
    """Patch rows of the processor back to uint8 frames [2t, h, w, 3]."""
    t, h, w = grid
    x = pixel_values.reshape(t, h // 2, w // 2, 2, 2, 3, 2, 14, 14)
    x = x.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(2 * t, h * 14, w * 14, 3)
    return np.round((x * STD + MEAN) * 255)


@pytest.mark.parametrize("name", ["video_processor_2", "video_processor_3", "image_processor_0"])
def test_resize_equals_the_golden_processor(name):
    golden = np.load(DATA / f"{name}.npz")
    least, most = int(golden["min_pixels"]), int(golden["max_pixels"])
    image = "image" in golden
    frames = golden["image"][None] if image else golden["frames"]
    sizes = {"image_min_pixels": least, "image_max_pixels": most} if image else {}
    sizes = sizes or {"min_pixels": least, "max_pixels": most}
    ours = resize_frames(frames, MediaContract(**sizes), image=image).astype(int)
    theirs = unpatch(golden["pixel_values"], golden["grid_thw"][0])
    assert ours.shape[1:] == theirs.shape[1:]
    assert ours.shape[1:] != frames.shape[1:], "the golden file must exercise the resize"
    np.testing.assert_array_equal(ours, theirs[: len(ours)])


@pytest.mark.parametrize("size", [(224, 420), (84, 140), (308, 364)])
def test_resize_equals_torch_antialiased_bicubic(size):
    frame = np.random.default_rng(0).integers(0, 255, (180, 320, 3), np.uint8)
    pixels = size[0] * size[1]
    contract = MediaContract(min_pixels=1, max_pixels=pixels)
    if pixels > 180 * 320:
        contract = MediaContract(min_pixels=pixels, max_pixels=pixels * 2)
    ours = resize_frames(frame[None], contract)[0]
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(frame).permute(2, 0, 1)[None],
        size=ours.shape[:2],
        mode="bicubic",
        antialias=True,
    )
    np.testing.assert_array_equal(ours, theirs[0].permute(1, 2, 0).numpy())
    high, wide = ours.shape[:2]
    assert ours.strides == (wide, 1, high * wide)  # channels apart: what the layout cuts fastest


def test_resize_equals_torch_whichever_sides_shrink():
    """120 random sizes, on noise and on black and white, whose sums are the largest. Every value is
    equal to that of the function which transformers' processors call, on their dtype, also after
    other frames were resized in the memory that the thread uses again."""
    rng, shrunk, pairs = np.random.default_rng(1), set(), []
    sizes = [(160, 32, 168, 28), (32, 160, 28, 168), (160, 32, 140, 28), (64, 48, 56, 56)]
    sizes += [(1080, 1920, 252, 448), (900, 60, 28, 56), (60, 1500, 56, 28)]
    sizes += [(*rng.integers(20, 300, 2), *28 * rng.integers(1, 12, 2)) for _ in range(113)]
    for high, wide, *size in (map(int, size) for size in sizes):
        frame = rng.integers(0, 256, (high, wide, 3), np.uint8)
        if high % 2:
            frame = np.where(frame < 128, np.uint8(0), np.uint8(255))
        ours = resize_planes(frame, *size)
        pixels = torch.from_numpy(frame).permute(2, 0, 1)[None]
        theirs = torch.nn.functional.interpolate(pixels, size=size, mode="bicubic", antialias=True)
        pairs.append((ours, theirs[0].numpy(), f"{high} {wide} {size}"))
        shrunk.add((size[0] < high, size[1] < wide))
    for ours, theirs, sides in pairs:
        np.testing.assert_array_equal(ours, theirs, err_msg=sides)
    assert len(shrunk) == 4


def encode(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_image_is_a_clip_of_one_frame():
    pixels = np.random.default_rng(0).integers(0, 255, (56, 84, 3), np.uint8)
    clip = read_image(encode(Image.fromarray(pixels)), TRAIN)
    np.testing.assert_array_equal(clip.frames, pixels[None])  # fits: no resize
    assert (clip.timestamps.tolist(), clip.indices.tolist(), clip.fps) == ([0.0], [0], 2.0)
    assert clip.source_size == (56, 84)


def test_image_modes_orientation_and_transparency():
    grey = read_image(encode(Image.new("L", (84, 56), 77)), TRAIN)
    assert grey.frames.shape == (1, 56, 84, 3)
    assert np.all(grey.frames == 77)
    clear = read_image(encode(Image.new("RGBA", (84, 56), (0, 0, 0, 0))), TRAIN)
    assert np.all(clear.frames == 255)
    palette = Image.new("RGBA", (84, 56), (200, 10, 10, 255)).convert("P")
    red = read_image(encode(palette, "GIF"), TRAIN)
    assert red.frames[0, 0, 0, 0] > 150
    turned = Image.Exif()
    turned[274] = 6  # the camera was held upright
    jpeg = encode(Image.new("RGB", (84, 56)), "JPEG", exif=turned)
    assert read_image(jpeg, TRAIN).source_size == (84, 56)


@pytest.mark.parametrize("kind", ["Image", "video"])
def test_unknown_kind_is_a_programming_error(kind):
    if kind == "video":
        assert load_media(b"", None, TRAIN, kind=kind).reason == "empty"
    else:
        with pytest.raises(ValueError, match="kind"):
            load_media(b"", None, TRAIN, kind=kind)


def test_reading_media_needs_neither_jax_nor_torch():
    code = "import sys, videorft_jax.data.media.video; print({'jax', 'torch'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
