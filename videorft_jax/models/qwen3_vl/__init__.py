"""Qwen3-VL (dense): config, vision tower, decoder, and names on the hub."""
