"""The files by which other programs ask a model as we do: processors, chat format, decoding."""

from typing import Any

from videorft_jax.data.media import contract_file
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.data.media.processor_files import processor_files
from videorft_jax.data.records import chat_template
from videorft_jax.models.config import ModelConfig
from videorft_jax.models.family import family_of
from videorft_jax.rollout.sampling import make_sampling

GENERATION_FILE = "generation_config.json"
MAX_NEW_TOKENS = 768  # An answer has at most so many where nobody says otherwise.


def client_files(config: ModelConfig, contract: MediaContract, tokenizer) -> dict[str, Any]:
    """File name -> text or JSON values, to lie beside the weights: the media contract, what
    transformers' processors and `generate` make of it, and a chat template where the tokenizer has
    none."""
    files: dict[str, Any] = {contract_file.FILE_NAME: contract.to_dict()}
    files |= processor_files(contract)
    files[GENERATION_FILE] = generation_values(config, tokenizer)
    cut, template = family_of(config).geometry, tokenizer.chat_template
    if not template:
        files[chat_template.FILE_NAME] = chat_template.chat_template(cut)
    if cut.timestamps:
        files[chat_template.EXACT_FILE] = chat_template.exact_template(template, cut)
    return files


def generation_values(config: ModelConfig, tokenizer) -> dict[str, Any]:
    """The JSON of a generation_config.json with which `generate` writes what `videorft ask` does:
    the likeliest token, the same stop ids, no penalty for repetition, and never a token that stands
    for pixels or lies beyond the vocabulary."""
    sampling = make_sampling(config, tokenizer)
    beyond = range(sampling.num_real_tokens or 0, config.text.vocab_size)
    return {
        "do_sample": False,
        "repetition_penalty": 1.0,
        "max_new_tokens": MAX_NEW_TOKENS,
        "eos_token_id": list(sampling.stop_ids),
        "pad_token_id": sampling.pad_id,
        "suppress_tokens": sorted({*sampling.forbidden_ids, *beyond}),
    }
