"""transformers' own processor of Qwen2.5-VL, without torchvision, which no test extra installs.

Its processors of clips and pictures call three functions of torchvision. They stand here as the
calls of PyTorch that torchvision makes for frames of uint8 on a CPU.
"""

import importlib
import sys
import types

import numpy as np
import torch
from transformers import image_processing_backends, video_processing_utils
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.video_utils import VideoMetadata

from videorft_jax.data.media.contract import MediaContract

MODULE = "transformers.models.qwen2_vl.video_processing_qwen2_vl"


def _resize(image, size, interpolation, antialias):
    assert interpolation == "bicubic"
    shape, flat = image.shape, image.flatten(0, -4) if image.ndim > 4 else image
    made = torch.nn.functional.interpolate(flat, size, mode=interpolation, antialias=antialias)
    return made.reshape(*shape[:-2], *size)


def _normalize(image, mean, std, inplace):
    return (image - mean[:, None, None]) / std[:, None, None]


def _find_video_processor():
    """The class, its module imported with the stand-in where torchvision is not installed."""
    modes = types.SimpleNamespace(LANCZOS="lanczos", BICUBIC="bicubic")
    functions = types.ModuleType("torchvision.transforms.v2.functional")
    functions.resize, functions.normalize = _resize, _normalize
    functions.grayscale_to_rgb, functions.InterpolationMode = lambda image: image, modes
    parts = ["torchvision", "torchvision.transforms", "torchvision.transforms.v2"]
    fakes = {name: types.ModuleType(name) for name in parts} | {functions.__name__: functions}
    fakes[parts[-1]].functional = functions
    with_torchvision = "torchvision" in sys.modules
    if not with_torchvision:
        sys.modules.update(fakes)
    try:
        module = importlib.import_module(MODULE)
    finally:
        if not with_torchvision:
            for name in fakes:
                del sys.modules[name]
    for user in (module, image_processing_backends, video_processing_utils):
        user.tvF = functions
    image_processing_backends.pil_torch_interpolation_mapping = {3: "bicubic"}
    return module.Qwen2VLVideoProcessor


class _TorchResize(image_processing_backends.PilBackend):
    """It resizes as the class that transformers takes for pictures where torchvision is there."""

    def resize(self, image, size, resample, **unused):
        assert resample == 3  # bicubic
        pixels = torch.from_numpy(np.ascontiguousarray(image))[None]
        return _resize(pixels, (size.height, size.width), "bicubic", True)[0].numpy()


class _ImageProcessor(Qwen2VLImageProcessorPil, _TorchResize):
    """The sizes and patches of transformers' class, with that resize."""


class _Processor(Qwen2_5_VLProcessor):
    """It takes a video processor whose class transformers hides without torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        pass


def make_processor(tokenizer, contract: MediaContract) -> Qwen2_5_VLProcessor:
    """The processor of a contract, to which sampled frames are given."""
    video = _find_video_processor()(
        size={"shortest_edge": contract.min_pixels, "longest_edge": contract.max_pixels},
        cap_pixels_per_frame=False,
    )
    image = _ImageProcessor(
        size={
            "shortest_edge": contract.image_min_pixels,
            "longest_edge": contract.image_max_pixels,
        }
    )
    return _Processor(image, tokenizer, video, chat_template=tokenizer.chat_template)


def describe_frames(count: int, fps: float) -> VideoMetadata:
    """What the processor is told of `count` sampled frames: `fps` of them are shown a second."""
    return VideoMetadata(total_num_frames=count, fps=fps, frames_indices=list(range(count)))
