"""Where compiled programs are kept, so that a restart and other runs find them again."""

import os

import jax

from videorft_jax.checkpoints.bucket import resolve


def forget_folders() -> None:
    """Leaves out of compiled programs where packages are installed: TPU kernels hold the names of
    their source files, so that the same program would have another key on another machine."""
    folders = r"^.*/site-packages/|^.*/(?=videorft_jax/)"
    jax.config.update("jax_hlo_source_file_canonicalization_regex", folders)


def keep_compiled(folder: str, workdir: str) -> None:
    """Compiled programs are kept in `folder`, so that a restart and other runs find them: else
    where JAX_COMPILATION_CACHE_DIR says, else in the workdir. Raises ValueError for a `folder` that
    cannot be written."""
    # XLA's own caches (tuning of GPU kernels) put the folder's path into the key of every program:
    # a run that was copied or renamed would compile all of them again.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    if not folder and jax.config.jax_compilation_cache_dir:
        return
    if folder and "://" not in resolve(folder):
        try:
            os.makedirs(resolve(folder), exist_ok=True)
        except OSError as error:
            raise ValueError(f"compile_cache={folder}: cannot be written ({error})") from None
    folder = resolve(folder or f"{workdir}/compiled")
    jax.config.update("jax_compilation_cache_dir", folder)
