"""What transformers' video processors need beyond the packages that the tests install."""

import importlib.util

import pytest
import torch
import transformers
from transformers.video_utils import load_video

_DECLARED = []  # A library of operators lasts as long as the object.


def require_torchvision() -> None:
    """Skips the test where torchvision, with which every video processor is written, is missing.

    A build for GPUs cannot load its operators beside a torch for CPUs. The transforms need none of
    them, and its import only that one is declared.
    """
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("transformers reads no clip without torchvision")
    if importlib.util.find_spec("torchvision._C") and not torch.cuda.is_available():
        try:
            import torchvision  # noqa: F401
        except RuntimeError:
            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _DECLARED.append(library)


def load_processor(folder):
    """AutoProcessor, its clips decoded by PyAV, which does not ask for another build of ffmpeg."""
    processor = transformers.AutoProcessor.from_pretrained(folder)

    def fetch(paths, sample_indices_fn=None):
        if isinstance(paths, list):
            return list(zip(*(fetch(path, sample_indices_fn) for path in paths), strict=True))
        return load_video(paths, backend="pyav", sample_indices_fn=sample_indices_fn)

    processor.video_processor.fetch_videos = fetch
    return processor
