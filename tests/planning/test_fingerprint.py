"""The key of a program's figures: what may change it and what may not."""

import base64
import re

import jax
import jax.numpy as jnp
import pytest
from locked import text_of_locked_jax
from planned import narrow_job

from videorft_jax.planning.compile import lower
from videorft_jax.planning.fingerprint import canonical, fingerprint
from videorft_jax.planning.jobs import find_programs

UNUSED = "    %unused = stablehlo.constant dense<3.000000e+00> : tensor<f32>\n"


def lowered(function, *sizes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in sizes)).as_text()


def double(x):
    return {"doubled": jnp.where(x > 0, x, 2 * x)}


def test_names_of_functions_and_outputs_do_not_matter():
    def other_name(x):
        return {"renamed": jnp.where(x > 0, x, 2 * x)}

    first, second = lowered(double, (4,)), lowered(other_name, (4,))
    assert first != second
    assert canonical(first) == canonical(second)
    assert "double" not in canonical(first)


def test_a_function_may_stand_there_twice():
    """Also where two others call one of it each, and are the same thereby."""

    def inner(x):
        return jax.jit(double)(jnp.where(x > 1, x, 3 * x))["doubled"]

    text = lowered(lambda x: jax.jit(inner)(jax.jit(inner)(x)), (4,))
    again = text
    for name in ("double", "inner"):
        (found,) = re.findall(rf"  func\.func private @{name}\(.*?\n  \}}\n", text, re.DOTALL)
        copy = found.replace(f"@{name}(", f"@{name}_0(").replace("@double(", "@double_0(")
        again = again.replace(found, found + copy)
    start, call, end = again.rpartition("call @inner(")
    again = start + "call @inner_0(" + end
    assert call
    assert again.count("func.func") == text.count("func.func") + 2
    assert canonical(again) == canonical(text)
    assert canonical(again.replace("dense<2.0", "dense<4.0", 1)) != canonical(text)


def test_dead_code_does_not_matter():
    text = lowered(double, (4,))
    head = re.search(r"func\.func public @main.*\n", text)[0]
    assert canonical(text.replace(head, head + UNUSED)) == canonical(text)


@pytest.mark.parametrize(
    "other",
    [
        lambda x: {"doubled": jnp.where(x > 0, x, 3 * x)},
        lambda x: {"doubled": jnp.where(x > 0, 2 * x, x)},
        lambda x: {"doubled": jnp.where(x > 0, x, 2 * x).astype(jnp.bfloat16)},
    ],
)
def test_what_is_computed_matters(other):
    assert fingerprint(lowered(double, (4,))) != fingerprint(lowered(other, (4,)))


def test_shapes_versions_and_machines_matter():
    text = lowered(double, (4,))
    keys = {fingerprint(text), fingerprint(text, "v5e-8"), fingerprint(text, "v5e-8", "0.10.2")}
    keys.add(fingerprint(lowered(double, (5,))))
    assert len(keys) == 4


@text_of_locked_jax
def test_a_tpu_kernel_may_move_to_another_file_but_not_change():
    """The bytecode of a kernel holds the files that it was traced from, in this version of jax."""
    pytest.importorskip("libtpu")
    job = narrow_job("v5e:2x2", "sft")
    (program,) = find_programs(job)
    text = lower(job, program)[0].as_text()

    def replaced(old, new):
        """The program with other bytes, as many, in its kernels."""

        def replace(match):
            body = base64.b64decode(match[1])
            assert old in body
            return match[0].replace(match[1], base64.b64encode(body.replace(old, new)).decode())

        changed = re.sub(r"body\\22: \\22([A-Za-z0-9+/=]+)", replace, text)
        assert changed != text
        return canonical(changed)

    assert replaced(b"splash_attention_kernel.py", b"another_file_of_equal_n.py") == canonical(text)
    assert replaced(b"arith.addf", b"arith.subf") != canonical(text)
