"""Machines by name: slices, hosts, and names that mean nothing."""

import types

import numpy as np
import pytest

from videorft_jax.planning import machines


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("2*H100:8", r"only TPUs have slices; write H100:16$"),
        ("0*v5e-64", r"--topology=0\*v5e-64: unknown; nearest are "),
        ("*v5e-64", r"--topology=\*v5e-64: unknown; nearest are "),
        ("-1*v5e-64", r"--topology=-1\*v5e-64: unknown; nearest are "),
        ("H100:1000000", r"--topology=H100:1000000: give at most 4,096 devices$"),
    ],
)
def test_what_is_no_machine_is_one_line(name, text):
    with pytest.raises(ValueError, match=text) as raised:
        machines.find(name)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "hosts"),
    [
        ("v5e-1", 1),
        ("v5e-8", 1),
        ("v5e-16", 4),
        ("v6e-16", 4),
        ("v5p-8", 1),
        ("v5p-64", 8),
        ("2*v5e-8", 2),
        ("2*v5e-16", 8),
    ],
)
def test_hosts_are_those_whose_processes_a_run_has(name, hosts):
    """Slices of v5e and v6e that need several hosts have four chips on each."""
    pytest.importorskip("libtpu")
    assert machines.find(name).num_hosts == hosts


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
    ],
)
def test_devices_here_are_known_by_each_of_their_names(name, kind):
    device = types.SimpleNamespace(device_kind=name, process_index=0)
    found = machines.topology_of(types.SimpleNamespace(devices=np.array([device] * 4)))
    assert found.kind == kind
    assert found.limit_gib == machines.KINDS[kind].usable_gib
