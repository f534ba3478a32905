"""Every test runs on eight simulated CPU devices in full float32 precision.

Programs are compiled quickly rather than well, as compiling is what most tests wait for: XLA's own
passes are the same, but LLVM's are left out, and loops are written by the older, simpler emitters.
"""

import os

from compiler_flags import QUICK, QUICK_CPU

FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{QUICK_CPU} {FLAGS}"  # the last one counts

import jax  # noqa: E402, reads the flags
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_default_matmul_precision", "highest")
jax.devices()  # reads the flags, once and for all
os.environ["XLA_FLAGS"] = f"{QUICK} {FLAGS}"  # libtpu ends a process that has others


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """(folder with `model` and `data`, record files by split) that tests of the API only read."""
    import tiny_run

    folder = tmp_path_factory.mktemp("tiny_model")
    files = tiny_run.make_data(folder / "data", num_sft=8, num_rl=0, num_eval=0)
    tiny_run.make_model(folder / "model", files["sft"])
    return folder, files
