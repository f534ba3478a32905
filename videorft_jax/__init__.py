"""VideoRFT in JAX: reinforced fine-tuning of video language models.

The names below are the public API; they are imported when first used, so that the loader's worker
processes, which import this package too, never touch a device.
"""

import importlib

_PUBLIC = {
    "load": "videorft_jax.api",
    "MediaContract": "videorft_jax.data.media.contract",
    "read_video": "videorft_jax.data.media.video",
    "score": "videorft_jax.rewards.combine",
    "score_outputs": "videorft_jax.evaluation.scoring.score",
    "load_siglip": "videorft_jax.models.siglip.hf_folder",
}
__all__ = sorted(_PUBLIC)
__version__ = "0.1.0"


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'videorft_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__():
    return __all__
