"""SigLIP and SigLIP 2: both towers, and their Hugging Face folders."""
