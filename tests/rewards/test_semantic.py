"""The semantic reward against `transformers`, over devices and by its cache."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from videorft_jax.data.records.records import Record
from videorft_jax.demo.siglip import sigmoid_loss
from videorft_jax.models.siglip.hf_folder import Siglip, load_siglip
from videorft_jax.parallel.sharding import make_mesh, place_batch, state_shardings
from videorft_jax.rewards.combine import RewardConfig, Rewards
from videorft_jax.rewards.embedding_cache import EmbeddingCache, identify_frames, identify_siglip
from videorft_jax.rewards.metrics import summarize
from videorft_jax.rewards.semantic import SemanticReward, require_siglip

WORDS = [a + b for a in "abdefghjkl" for b in "abcd"]  # none is an abbreviation
B, R, N = 8, 2, 3
SCALE = 6.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random SigLIP of 64 text positions, written by transformers alone."""
    torch.manual_seed(5)  # cosines of both signs that differ between texts and frames
    tower = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    hf = SiglipModel(
        SiglipConfig(
            vision_config={**tower, "image_size": 16, "patch_size": 8},
            text_config={**tower, "vocab_size": 48},
        )
    )
    with torch.no_grad():
        for x in hf.parameters():
            x.add_(torch.randn_like(x) * 0.3)
    folder = tmp_path_factory.mktemp("siglip")
    hf.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}, resample=3).save_pretrained(folder)
    vocab = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {word: i + 3 for i, word in enumerate(WORDS)}
    words = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="</s>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(folder):
    return load_siglip(folder, "float32")


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(data=2, fsdp=2, tensor=2)


@pytest.fixture(scope="module")
def place(mesh):
    return functools.partial(place_batch, mesh=mesh)


@pytest.fixture(scope="module")
def spread(siglip, mesh):
    params = jax.device_put(siglip.params, state_shardings(siglip.params, mesh))
    return Siglip(siglip.config, params, siglip.tokenizer)


SHAPE = {"batch_size": B, "num_rollouts": R, "num_frames": N, "scale": SCALE, "num_sentences": 5}


@pytest.fixture(scope="module")
def make(siglip):
    """One compiled reward for each pair of averaging and text rule."""
    return functools.cache(
        lambda averaging, rule: SemanticReward(siglip, averaging=averaging, text_rule=rule, **SHAPE)
    )


@pytest.fixture(scope="module")
def reward(make):
    return make("paper", "paper")


@pytest.fixture(scope="module")
def reward_of_eight(spread, place):
    return SemanticReward(spread, place=place, **SHAPE)


def make_text(rng, num_sentences):
    sentences = [" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(num_sentences)]
    return f"<think>{'. '.join(s.capitalize() for s in sentences)}.</think><answer>A</answer>"


def make_batch(seed, num=B):
    rng = np.random.default_rng(seed)
    frames = [rng.integers(0, 256, (1 + i % N, 20 + i, 16, 3)).astype(np.uint8) for i in range(num)]
    return frames, [[make_text(rng, rng.integers(2, 20)) for _ in range(R)] for _ in range(num)]


def words_of(text):
    return text.lower().replace(".", " ").split()


@torch.no_grad()
def naive(folder, frames, texts, averaging, scale):
    """Scores [B, R] one video and one completion at a time, by transformers; `texts` [B][R][K]."""
    hf = SiglipModel.from_pretrained(folder).eval()
    processor = SiglipImageProcessorPil.from_pretrained(folder)
    scores = np.zeros((len(frames), len(texts[0])))
    for i, clip in enumerate(frames):
        pixels = processor(list(clip), return_tensors="pt")["pixel_values"]
        images = torch.nn.functional.normalize(hf.get_image_features(pixels).pooler_output, dim=-1)
        for r, sentences in enumerate(texts[i]):
            ids = [[WORDS.index(word) + 3 for word in words_of(s)][:63] for s in sentences]
            ids = torch.tensor([row + [1] * (64 - len(row)) for row in ids])
            text = hf.get_text_features(input_ids=ids).pooler_output
            text = torch.nn.functional.normalize(text, dim=-1).mean(0)
            if averaging == "paper":
                cosine = torch.cosine_similarity(text, images.mean(0), dim=0)
                scores[i, r] = min(1.0, scale * max(cosine.item(), 0.0))
            else:
                cosines = [torch.cosine_similarity(text, image, dim=0).item() for image in images]
                scores[i, r] = np.mean([min(1.0, scale * max(c, 0.0)) for c in cosines])
    return scores


def reasoning(text):
    return text[len("<think>") : text.index("</think>")]


RULES = {  # what the encoder is given, written out again for texts of plain sentences
    "paper": lambda text: [reasoning(text).split(". ", 1)[1]],
    "repo": lambda text: [reasoning(text).split(".", 1)[1]],
    "pooled": lambda text: reasoning(text).split(". ")[1:6],
}


@pytest.mark.parametrize(
    ("averaging", "rule"), [("paper", "paper"), ("repo", "repo"), ("paper", "pooled")]
)
def test_equals_transformers(folder, make, averaging, rule):
    frames, completions = make_batch(1)
    ours = make(averaging, rule)(frames, completions)
    texts = [[RULES[rule](text) for text in group] for group in completions]
    expected = naive(folder, frames, texts, averaging, SCALE)
    assert expected.std() > 0.1
    assert rule != "paper" or {0.0, 1.0} < set(expected.flat)  # both ends of the clamp
    np.testing.assert_allclose(ours.scores, expected, atol=1e-4)


def test_averagings_differ_where_a_frame_is_clamped(siglip, make):
    """Embeddings by hand: cosines of the two frames with the text are 0.6 and -0.8."""
    text = "<think>Aa. Ab ac.</think>"
    t = siglip.texts([" Ab ac."])[0]
    side = np.eye(1, 32)[0] - t * t[0]
    side /= np.linalg.norm(side)
    frames = np.stack([0.6 * t + 0.8 * side, -0.8 * t + 0.6 * side]).astype(np.float32)
    mean = frames.mean(0)
    for names, score, cosine in (
        (("paper", "paper"), 0.0, mean @ t / np.linalg.norm(mean)),
        (("repo", "repo"), (1.0 + 0.0) / 2, -0.1),
    ):
        out = make(*names)([frames], [[text] * R])
        np.testing.assert_allclose(out.scores, [[score] * R], atol=1e-6)
        np.testing.assert_allclose(out.cosine, [[cosine] * R], atol=1e-6)
        assert out.stats["semantic/cached"] == 1.0


def test_eight_devices_equal_one(siglip, reward, reward_of_eight, place):
    frames, completions = make_batch(2)
    one, eight = (call(frames, completions) for call in (reward, reward_of_eight))
    np.testing.assert_allclose(eight.scores, one.scores, atol=1e-5)
    np.testing.assert_allclose(eight.cosine, one.cosine, atol=1e-5)
    with pytest.raises(ValueError, match="the siglip weights lie on 1 devices, its batches on 8"):
        SemanticReward(siglip, place=place, **SHAPE)


def test_bfloat16_is_near(folder, reward):
    frames, completions = make_batch(2)
    rough = SemanticReward(load_siglip(folder, "bfloat16"), **SHAPE)(frames, completions)
    assert rough.cosine.dtype == np.float32
    np.testing.assert_allclose(rough.cosine, reward(frames, completions).cosine, atol=0.03)


def test_failed_rows_are_nan_and_disturb_nobody(reward):
    frames, completions = make_batch(3)
    whole = reward(frames, completions)
    broken = reward([None if i in (1, 6) else clip for i, clip in enumerate(frames)], completions)
    rest = [i for i in range(B) if i not in (1, 6)]
    assert np.isnan(broken.scores[[1, 6]]).all()
    assert np.isnan(broken.cosine[[1, 6]]).all()
    np.testing.assert_array_equal(broken.scores[rest], whole.scores[rest])
    assert broken.stats["semantic/failed"] == 2
    nothing = reward([None], completions[:1])
    assert np.isnan(nothing.scores).all()
    assert "semantic/cosine" not in nothing.stats


def test_empty_descriptions_are_zero(reward):
    frames, completions = make_batch(4, 2)
    completions[1] = ["<think>Aa.</think>", "\ud800"]
    out = reward(frames, completions)
    np.testing.assert_array_equal(out.scores[1], [0, 0])
    assert np.isnan(out.cosine[1]).all()
    assert np.isfinite(out.cosine[0]).all()
    np.testing.assert_array_equal(out.is_empty, [[False] * 2, [True] * 2])
    assert out.stats["semantic/empty"] == 0.5
    surrogate = reward(frames[:1], [["<think>Aa. Ab \ud800.</think>"] * R])
    assert np.isfinite(surrogate.scores).all()


def test_truncation_counts_are_exact(make, reward):
    frames, _ = make_batch(5, 3)
    # 62, 63 words fit beside the end token, 64 do not; neither does what is not even tokenised.
    texts = [" ".join(["ab"] * n) for n in (1, 62, 63, 64, 500)] + ["ab " + " " * 5000 + "ac"]
    groups = [[f"<think>Aa. {text}.</think>" for text in texts[i : i + 2]] for i in (0, 2, 4)]
    out = reward(frames, groups)
    np.testing.assert_array_equal(out.is_truncated, [[False, False], [False, True], [True, True]])
    assert out.stats["semantic/truncated"] == 0.5
    # What is kept of a text that is cut: its first 63 words and the end token.
    np.testing.assert_array_equal(out.cosine[1, 0], reward(frames[1:2], [groups[1]]).cosine[0, 0])
    np.testing.assert_allclose(out.cosine[1, 0], out.cosine[1, 1], atol=1e-6)
    six = [[f"<think>Aa. {' '.join(['Ab.'] * n)}</think>" for n in (6, 5)]]
    pooled = make("paper", "pooled")(frames[:1], six)
    np.testing.assert_array_equal(pooled.is_truncated, [[True, False]])


def test_cache_hits_equal_misses(siglip, spread, reward_of_eight, tmp_path, monkeypatch):
    frames, completions = make_batch(6)
    clips = [f"clip {i}" for i in range(B)]
    identity = identify_siglip(siglip)
    assert identify_siglip(spread) == identity  # the weights, not how they lie

    def run(cache, frames, clips=clips):
        monkeypatch.setattr(reward_of_eight, "cache", cache)
        return reward_of_eight(frames, completions, clips)

    def make_cache(contract="a", siglip=identity, num_clips=99):
        return EmbeddingCache(contract, siglip, num_clips=num_clips, folder=str(tmp_path))

    first = make_cache()
    miss = run(first, frames)
    assert miss.stats["semantic/cached"] == 0
    negative = [255 - clip for clip in frames]  # shows that the cache is what is read
    for cache in (first, make_cache()):  # from memory, from files
        hit = run(cache, negative)
        assert hit.stats["semantic/cached"] == 1
        np.testing.assert_array_equal(hit.scores, miss.scores)
        np.testing.assert_array_equal(hit.cosine, miss.cosine)
    half = run(first, frames, clips[:4] + [f"new {i}" for i in range(4)])
    np.testing.assert_array_equal(half.scores, miss.scores)
    assert half.stats["semantic/cached"] == 0.5
    for stranger in (make_cache("b"), make_cache(siglip="b")):
        out = run(stranger, negative)
        assert out.stats["semantic/cached"] == 0
        assert abs(out.cosine - miss.cosine).max() > 0.01
    assert reward_of_eight._program._cache_size() == 1

    paths = sorted(tmp_path.rglob("*.npy"))
    assert len(paths) == 3 * B + 4
    for path in paths:
        path.write_bytes(path.read_bytes()[:-5])
    damaged = make_cache(num_clips=3)
    np.testing.assert_array_equal(run(damaged, frames).scores, miss.scores)
    assert damaged.num_damaged == B
    assert len(damaged) == 3
    assert run(damaged, frames).stats["semantic/cached"] == 1  # written anew


def test_cached_objects_are_not_unpickled(tmp_path):
    cache = EmbeddingCache("a", "b", folder=str(tmp_path))
    cache.put("clip", 2, np.ones((2, 4), np.float32))
    (path,) = tmp_path.rglob("*.npy")
    fresh = EmbeddingCache("a", "b", folder=str(tmp_path))
    for damage in (
        np.array([[{}] * 4] * 2, object),
        np.ones((3, 4), np.float32),
        np.ones((2, 5), np.float32),
        np.ones((2, 4)),
        np.full((2, 4), np.nan, np.float32),
    ):
        np.save(path, damage)
        assert fresh.get("clip", 2, 4) is None
    path.write_bytes(b"")
    assert fresh.get("clip", 2, 4) is None
    assert fresh.num_damaged == 6
    assert fresh.get("another", 2, 4) is None
    assert fresh.num_damaged == 6


def test_one_program_for_any_batch(reward):
    frames, completions = make_batch(7, 19)
    whole = reward(frames, completions)
    assert whole.scores.shape == (19, R)
    assert whole.scores.dtype == np.float32
    for rows in (slice(0, 1), slice(3, 8), slice(10, 19)):
        part = reward(frames[rows], completions[rows])
        np.testing.assert_allclose(part.scores, whole.scores[rows], atol=1e-6)
    assert reward._program._cache_size() == 1
    # A longer clip is thinned evenly: of 5 frames the first, middle and last.
    clip = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3)).astype(np.uint8)
    long, thin = reward([clip, clip[[0, 2, 4]]], [completions[0]] * 2).cosine
    np.testing.assert_allclose(long, thin, atol=1e-6)


def test_gate_and_failure_reach_the_total(reward):
    frames, completions = make_batch(8, 2)
    out = reward([frames[0], None], completions)
    record = Record(0, "?", "video", "multiple choice", (), "", "A", "clip.mp4", "test")
    wrong = completions[0][1].replace("<answer>A", "<answer>B")
    completions[0][1] = wrong
    config = RewardConfig((("accuracy", 1.0), ("semantic", 0.5)))
    batch = Rewards(config)(completions, [record] * 2, given={"semantic": out.scores})
    np.testing.assert_allclose(batch.total[0], [1 + 0.5 * out.scores[0, 0], 0])
    assert not batch.valid[1].any()
    assert summarize(batch, ["multiple choice"] * 2, config)["gate/open"] == 0.75


def test_missing_weights_are_refused_at_start(folder, tmp_path):
    rewards = (("accuracy", 1.0), ("semantic", 1.0))
    assert require_siglip(rewards, str(folder))
    assert not require_siglip(rewards[:1], None)
    assert not require_siglip((("semantic", 0.0),), None)
    with pytest.raises(ValueError, match="^rewards: semantic has weight 1.0 but no folder is") as e:
        require_siglip(rewards, None)
    assert "\n" not in str(e.value)
    (tmp_path / "config.json").write_text(json.dumps({}))
    with pytest.raises(ValueError, match=r"has no tokenizer.json, \*.safetensors; name the folder"):
        require_siglip(rewards, str(tmp_path))


def test_bad_calls_are_refused(siglip, reward):
    frames, completions = make_batch(9, 2)
    for call, words in (
        ((frames, completions[:1]), "2 videos and 1 groups"),
        ((frames, [["a"], ["b"]]), r"groups of \[1\] completions; give one group of 2"),
        ((frames, completions, ["one"]), "1 clips for 2 videos"),
        (([frames[0] / 255, frames[1]], completions), "video 0 is float64"),
        (([frames[0][:0], frames[1]], completions), r"video 0 is uint8 \(0, "),
        (([np.ones((2, 9), np.float32)] * 2, completions), "for a siglip of width 32"),
    ):
        with pytest.raises(ValueError, match=words):
            reward(*call)
    for rest, words in (
        ({"averaging": "mean"}, "averaging is 'mean'; choose one of paper, repo"),
        ({"text_rule": "all"}, "text rule is 'all'"),
        ({"num_frames": 0}, "num_frames is 0"),
    ):
        with pytest.raises(ValueError, match=words):
            SemanticReward(siglip, batch_size=1, num_rollouts=1, **rest)


def test_sigmoid_loss_equals_a_naive_computation():
    torch.manual_seed(0)
    images, texts = torch.nn.functional.normalize(torch.randn(2, 6, 5), dim=-1)
    scale, bias = torch.tensor(1.3), torch.tensor(-2.0)
    is_match = np.eye(6, dtype=bool)
    is_match[0, 3] = is_match[3, 0] = True
    inputs = [x.clone().requires_grad_() for x in (images, texts, scale, bias)]
    image, text, log_scale, b = inputs
    expected = 0.0
    for i in range(6):
        for j in range(6):
            logit = log_scale.exp() * (text[i] * image[j]).sum() + b
            sign = 1 if is_match[i, j] else -1
            expected = expected - torch.log(torch.sigmoid(sign * logit)) / 6
    expected.backward()
    arguments = [jnp.asarray(x.detach().numpy()) for x in inputs]
    loss, gradients = jax.value_and_grad(sigmoid_loss, argnums=(0, 1, 2, 3))(*arguments, is_match)
    np.testing.assert_allclose(loss, expected.item(), rtol=1e-5)
    for ours, theirs in zip(gradients, inputs, strict=True):
        np.testing.assert_allclose(ours, theirs.grad.numpy(), atol=1e-5)


def test_clips_of_one_file_share_no_embeddings():
    """Spans of one file, and files of one name in two folders, have frames of their own."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (4, 8, 8, 3), np.uint8)
    other, longer = first.copy(), np.concatenate([first, first[:1]])
    other[3, 7, 7, 2] ^= 1
    turned = first.reshape(4, 4, 16, 3)
    clips = [identify_frames(clip) for clip in (first, other, longer, turned, first[::2])]
    assert len(set(clips)) == len(clips)
    assert identify_frames(first.copy()) == clips[0]
    assert identify_frames(np.asfortranarray(first)) == clips[0]
