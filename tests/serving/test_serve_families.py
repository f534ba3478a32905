"""The command serves every family, with an adapter merged, as `vr.load` computes with it."""

import functools
import re
import signal

import httpx2
import jax
import openai
import pytest
import tiny_run

import videorft_jax as vr
from videorft_jax.models import family
from videorft_jax.models.family import load_config
from videorft_jax.models.lora import LoraConfig, init_lora
from videorft_jax.models.peft_folder import save_adapter

LONG = 24
FRAMES = {"num_frames": None, "min_frames": 8, "max_frames": 8}
TARGETS = (r"text/layers/attn/(q|k|v|o)$", r"text/layers/mlp/(gate|up|down)$")


def write_adapter(folder, model):
    """A random adapter that changes what the model says."""
    config, lora = load_config(model), LoraConfig(4, 16.0, TARGETS)
    drawn = init_lora(family.abstract_params(config), lora, jax.random.key(0))
    drawn = jax.tree.map(lambda leaf: 0.3 * jax.random.normal(jax.random.key(1), leaf.shape), drawn)
    save_adapter(str(folder), drawn, lora, config)


def make_chat(kind, text, *clips):
    """One question about clips, in the form of `generate` or of a client."""
    parts = [{"type": "video", "video": str(clip)} for clip in clips]
    if kind == "client":
        parts = [{"type": "video_url", "video_url": {"url": clip.as_uri()}} for clip in clips]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["qwen2_5_vl", "qwen3_vl"])
def test_a_family_and_its_adapter_are_served(model_type, tmp_path):
    """Questions about one clip and about two, which begin alike, get the text of `generate`."""
    files = tiny_run.make_data(tmp_path / "data", num_sft=8, num_rl=0, num_eval=0)
    model, adapter = tmp_path / "model", tmp_path / "adapter"
    tiny_run.make_model(model, files["sft"], model_type=model_type)
    write_adapter(adapter, model)
    clips = sorted((tmp_path / "data").rglob("*.mp4"))[:2]
    asked = [("What moves?", clips[:1]), ("Which colour?", clips[:1]), ("What moves?", clips)]
    answer = functools.partial(
        vr.load(model, dtype="float32", adapter=adapter, media=FRAMES).generate,
        num_rollouts=1, max_new_tokens=LONG, temperature=0.0,
    )  # fmt: skip
    wanted = [answer([make_chat("generate", text, *shown)]).texts[0][0] for text, shown in asked]
    plain = vr.load(model, dtype="float32", media=FRAMES)
    said = plain.generate([make_chat("generate", "What moves?", clips[0])], 1, LONG, 0.0)
    assert said.texts[0][0] != wanted[0]
    server = tiny_run.start(
        tmp_path / "cache", "serve", "--checkpoint", model, "--adapter", adapter, "--port", 0,
        "--dtype", "float32", "--root", tmp_path / "data", "--frames", "8",
    )  # fmt: skip
    try:
        line = next(line for line in server.stdout if line.startswith("serving"))
        client = openai.OpenAI(base_url=line.split()[-1], api_key="none", timeout=600)
        for (text, shown), whole in zip(asked, wanted, strict=True):
            reply = client.chat.completions.create(
                model="videorft", messages=make_chat("client", text, *shown),
                temperature=0, max_tokens=LONG,
            )  # fmt: skip
            assert reply.choices[0].message.content == whole
        metrics = httpx2.get(str(client.base_url).replace("/v1/", "/metrics")).text
        found = dict(re.findall(r"^videorft_(\w+_total) (\d+)$", metrics, re.MULTILINE))
        assert found["decoded_clips_total"] == found["encoded_clips_total"] == "2"
        assert int(found["reused_tokens_total"]) > 32
    finally:
        server.send_signal(signal.SIGTERM)
        output = server.stdout.read()
    assert server.wait(600) == 0, output
