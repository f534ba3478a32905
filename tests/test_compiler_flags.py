"""The suite runs on every jaxlib that setup.py allows."""

import pytest
from compiler_flags import QUICK, cpu_flags

OLD = "--xla_cpu_use_fusion_emitters=false"


@pytest.mark.parametrize(
    ("version", "flags"),
    [
        ("0.10.2", [QUICK, OLD]),
        ("0.11.0", [QUICK, OLD]),  # The last whose library holds the name of the flag.
        ("0.11.1", [QUICK]),
        ("0.12.0.1", [QUICK]),
        ("0.12.0.dev20261101", [QUICK]),
        ("1.0", [QUICK]),
    ],
)
def test_a_flag_is_named_to_the_versions_that_know_it(version, flags):
    """XLA would end the process of every test."""
    assert cpu_flags(version).split() == flags
