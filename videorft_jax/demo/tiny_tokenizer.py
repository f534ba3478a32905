"""A small tokenizer with Qwen's control tokens, trained on the spot, for the demo and the tests.

It is the real thing made small (byte-level BPE with Qwen's
pre-tokenisation and chat template), so every path that a real checkpoint takes is taken, and a
folder saved by it loads with `AutoTokenizer.from_pretrained`. No text is out of its vocabulary.
"""

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from videorft_jax.data.records.chat_template import chat_template
from videorft_jax.models.geometry import WINDOWED_14, Geometry

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# What a Hugging Face config.json calls the ids of control tokens.
_CONTROL_IDS = {
    "bos_token_id": "<|endoftext|>",
    "eos_token_id": "<|im_end|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "vision_token_id": "<|vision_pad|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
# Qwen2.5's word pattern: contractions, words with a leading mark, digits, punctuation, spaces.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NUM_BYTES = 256


def train_tiny_tokenizer(
    texts: Iterable[str], vocab_size: int, geometry: Geometry = WINDOWED_14
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` ids: 256 bytes, merges learnt from
    `texts`, and the Qwen control tokens last. The same texts give the same tokenizer.
    A small corpus may run out of merges, so read the true size with `len(tokenizer)`.

    Raises:
      ValueError: `vocab_size` below 256 bytes + 8 control tokens.
    """
    num_words = vocab_size - len(SPECIAL_TOKENS)
    if num_words < NUM_BYTES:
        smallest = NUM_BYTES + len(SPECIAL_TOKENS)
        raise ValueError(f"tiny tokenizer: vocab_size {vocab_size}; give at least {smallest}")
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=num_words, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        extra_special_tokens=[
            t for t in SPECIAL_TOKENS if t not in ("<|im_end|>", "<|endoftext|>")
        ],
        chat_template=chat_template(geometry),
        clean_up_tokenization_spaces=False,
    )


def find_control_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """The entries of a config.json that name the control tokens of a tiny tokenizer."""
    return {name: tokenizer.convert_tokens_to_ids(t) for name, t in _CONTROL_IDS.items()}
