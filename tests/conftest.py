"""Every test runs on eight simulated CPU devices in full float32 precision.

Programs are compiled quickly rather than well, as compiling is what most tests wait for: XLA's own
passes are the same, LLVM's are left out.
"""

import os

FLAGS = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {FLAGS}"  # the last one counts

import jax  # noqa: E402, reads the flags

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_default_matmul_precision", "highest")
