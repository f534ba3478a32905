"""Qwen2.5-VL: configuration, vision tower, decoder, and Hugging Face names."""
