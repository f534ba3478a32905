"""VideoRFT in JAX: reinforced fine-tuning of video language models."""
