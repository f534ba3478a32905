"""A media contract as the processor files that transformers reads beside a model's weights."""

from typing import Any

from videorft_jax.data.media.contract import MediaContract

IMAGE_FILE, VIDEO_FILE = "preprocessor_config.json", "video_preprocessor_config.json"
_CONTEXT_SHARE = 0.9  # All frames of a clip get this share of `max_video_tokens`.


def describe_equality(contract: MediaContract) -> str:
    """Which clips transformers' processor reads as we do, as one sentence."""
    if contract.sampling == "hf":
        return "The processor takes the same frames, at the same size, from every clip."
    count = _fixed_count(contract)
    if count is not None and contract.budget == "frame":
        return (
            f"The processor takes the same frames, at the same size, from every clip of {count} "
            "frames and more; shorter ones it samples and scales in its own way."
        )
    return (
        "The processor takes as many frames, at the same size; where it leaves some out, it takes "
        "those at the start of equal spans, and training took both ends and what lies between."
    )


def takes_same_frames(contract: MediaContract, num_frames: int) -> bool:
    """Whether transformers' processor takes the frames that we take from a clip of which we take
    `num_frames`, and at the same size."""
    count = _fixed_count(contract)
    is_fixed = count is not None and contract.budget == "frame" and num_frames >= count
    return contract.sampling == "hf" or is_fixed


def processor_files(contract: MediaContract) -> dict[str, dict[str, Any]]:
    """File name -> JSON values, for images and for clips.

    A fixed number of frames is taken at round(linspace(first, last, n)), which in transformers only
    the processor of models with timestamps does; it bounds the pixels of a whole clip, which for a
    fixed number are n times those of a frame. A number that depends on the length is one that the
    other processor floors to pairs as we do, but its frames are those of an arange.
    """
    cut = contract.geometry
    common = {
        "patch_size": cut.patch,
        "temporal_patch_size": cut.temporal_patch,
        "merge_size": cut.merge,
        "image_mean": list(cut.pixel_mean),
        "image_std": list(cut.pixel_std),
        "do_resize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "do_convert_rgb": True,
        "resample": 3,  # bicubic
    }
    image = _bounds(contract.image_min_pixels, contract.image_max_pixels)
    # Versions before 4.52 read these two names, and read clips by this file too.
    image |= {"min_pixels": contract.image_min_pixels, "max_pixels": contract.image_max_pixels}
    return {
        IMAGE_FILE: {"image_processor_type": "Qwen2VLImageProcessor"} | image | common,
        VIDEO_FILE: _video_values(contract) | {"do_sample_frames": True} | common,
    }


def _video_values(contract):
    """The values of clips, beside those that images have too."""
    by_linspace, unit = "Qwen3VLVideoProcessor", contract.factor**2
    sampled = {
        "fps": contract.fps,
        "min_frames": contract.min_frames,
        "max_frames": contract.max_frames,
    }
    count = _fixed_count(contract)
    if contract.num_frames is not None:
        sampled = {"fps": None, "num_frames": count or contract.num_frames}
    if contract.budget == "clip":
        return {
            "video_processor_type": by_linspace,
            **sampled,
            **_bounds(contract.min_pixels, contract.total_pixels),
            "cap_pixels_per_frame": True,
            "max_video_tokens": contract.max_pixels // unit,
        }
    if count is not None:
        share = contract.total_pixels * contract.temporal_patch_size // count
        most = max(min(contract.max_pixels, share), int(contract.min_pixels * 1.05))
        return {
            "video_processor_type": by_linspace,
            **sampled,
            **_bounds(count * contract.min_pixels, count * most),
            "cap_pixels_per_frame": False,
        }
    return {
        "video_processor_type": "Qwen2VLVideoProcessor",
        **sampled,
        **_bounds(contract.min_pixels, contract.max_pixels),
        "cap_pixels_per_frame": True,
        "max_video_tokens": round(contract.total_pixels / unit / _CONTEXT_SHARE),
    }


def _fixed_count(contract):
    """Frames of every clip that has them, None where the number depends on its length. A number
    that is odd is rounded to pairs as the sampling of the contract does."""
    step = contract.temporal_patch_size
    if contract.num_frames is not None:
        whole = round(contract.num_frames / step) * step
        return contract.num_frames if contract.sampling == "hf" else whole
    if contract.min_frames == contract.max_frames and contract.min_frames % step == 0:
        return contract.min_frames
    return None


def _bounds(least, most):
    return {"size": {"shortest_edge": least, "longest_edge": most}}
