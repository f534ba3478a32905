"""A minute's work on this machine: a clip is made, decoded and asked about on the real devices."""

import functools
import logging
import pathlib
import tempfile
import time

import numpy as np

from videorft_jax.doctor.findings import FAILURE, Finding, ok

_TOLERANCE = 2e-2  # between log-probabilities of one pass and of decoding, in float32
_REMEDY = "run `videorft doctor` with JAX_PLATFORMS=cpu; where that works, reinstall the driver"
_QUESTION = "What colour is the last shape?"


def run_self_test() -> Finding:
    """Whether a tiny model, on the devices that JAX has, says what its own logits say.

    Completions are drawn greedily with a cache of keys and values. Then prompt and completion go
    through the model in one pass, where every token must be the likeliest or next to it.
    """
    start = time.perf_counter()
    try:
        gap = _measure_gap()
    except Exception as error:  # whatever a broken installation raises is the finding
        logging.getLogger(__name__).debug("self test", exc_info=True)
        lines = str(error).splitlines() or [""]
        text = f"self test: {type(error).__name__}: {lines[0][:200]}"
        return Finding(FAILURE, text, _REMEDY)
    seconds = time.perf_counter() - start
    text = f"self test: decoding differs from one pass by {gap:.1e} in log-probability"
    if not gap < _TOLERANCE:
        return Finding(FAILURE, text, _REMEDY)
    return ok(f"{text}, {seconds:.0f} s")


def _measure_gap():
    """The largest difference of a sampled token's log-probability and that of one pass."""
    import jax

    from videorft_jax import api
    from videorft_jax.demo.dataset import write_dataset
    from videorft_jax.demo.scenes import WorldConfig
    from videorft_jax.demo.tiny_models import write_random_model
    from videorft_jax.models.family import all_families

    with tempfile.TemporaryDirectory() as name, jax.default_matmul_precision("highest"):
        folder = pathlib.Path(name)
        world = WorldConfig(size=(56, 56), still_every=0)
        write_dataset(folder / "clips", 1, 1, 1, world=world)
        make_values = functools.partial(all_families()[0].tiny_values, vocab_size=512)
        write_random_model(folder / "model", [_QUESTION], 512, make_values)
        clip = str(folder / "clips/clips/eval/000000.mp4")
        model = api.load(str(folder / "model"), dtype="float32")
        parts = [{"type": "video", "video": clip}, {"type": "text", "text": _QUESTION}]
        chat = [{"role": "user", "content": parts}]
        out = model.generate([chat], num_rollouts=1, max_new_tokens=4, seed=0)
        length = int(out.lengths[0, 0])
        batch = model.prepare([chat])
        prompt = int((batch.segment_ids[0] > 0).sum())
        tokens, segments, positions = (
            np.array(leaf) for leaf in (batch.tokens, batch.segment_ids, batch.positions)
        )
        tokens[0, prompt : prompt + length] = out.tokens[0, 0, :length]
        segments[0, prompt : prompt + length] = 1
        following = positions[0, 0, prompt - 1] + 1 + np.arange(length)
        positions[0, :, prompt : prompt + length] = following
        whole = batch._replace(tokens=tokens, segment_ids=segments, positions=positions)
        logits = np.asarray(model.forward(whole))[0, prompt - 1 : prompt - 1 + length]
        logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        again = logprobs[np.arange(length), out.tokens[0, 0, :length]]
        return float(np.abs(again - out.logprobs[0, 0, :length]).max())
