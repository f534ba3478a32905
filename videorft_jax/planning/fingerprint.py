"""Digests of lowered programs that change exactly when what a compiler makes of them may change.

The text of a lowered program also holds names of Python functions and of output fields, dead code,
and, inside TPU kernels, the source files and lines that they were traced from. What JAX lowered
before decides whether a function that two others call stands there once or twice. All of that is
taken out before hashing, so that renaming a function or moving a file keeps every known figure.
"""

import base64
import hashlib
import re

from jax.experimental.mosaic.dialects import tpu
from jax.extend.mlir import ir, passmanager
from jax.interpreters import mlir

_PASSES = "builtin.module(cse,symbol-dce)"  # both only remove what is computed twice or not used
_KERNEL = re.compile(r"\\22body\\22: \\22([A-Za-z0-9+/=]+)\\22")
_LABEL = re.compile(r'jax\.\w+ = "[^"]*"(?:, )?')  # such as jax.result_info = "result[0].params"
_DEFINED = re.compile(r"func\.func (?:public |private )?@([\w.]+)")
_PRIVATE = re.compile(r"^  func\.func private @([\w.]+)(.*?\n  )\}\n", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"@([\w.]+)")
_MODULE = re.compile(r"^module @[\w.]+")


def fingerprint(program: str, *others: str) -> str:
    """Sixteen hexadecimal digits that stand for a program's StableHLO text and for `others`, which
    are whatever else decides about the figures: the machine, the versions of the compiler."""
    text = "\n".join([*others, canonical(program)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical(program: str) -> str:
    """The StableHLO text of a program without what no compiled instruction depends on."""
    context = mlir.make_ir_context()
    tpu.register_dialect(context)
    context.allow_unregistered_dialects = True  # serialised kernels have prefixed dialects
    with context:
        module = ir.Module.parse(program)
        passmanager.PassManager.parse(_PASSES).run(module.operation)
        text = module.operation.get_asm(enable_debug_info=False)
        text = _KERNEL.sub(_read_kernel, text)
    text = _merge_equals(_MODULE.sub("module", _LABEL.sub("", text)))
    numbers = {name: f"f{number}" for number, name in enumerate(_DEFINED.findall(text))}
    return _renamed(text, numbers)


def _merge_equals(text):
    """The text with one of several functions that are the same; others may be so thereby."""
    first: dict[str, str] = {}
    other = {}
    for name, body in _PRIVATE.findall(text):
        if first.setdefault(body, name) != name:
            other[name] = first[body]
    if not other:
        return text
    kept = _PRIVATE.sub(lambda match: "" if match[1] in other else match[0], text)
    return _merge_equals(_renamed(kept, other))


def _renamed(text, names):
    return _NAME.sub(lambda match: f"@{names.get(match[1], match[1])}", text)


def _read_kernel(match):
    """A TPU kernel as text without source locations; the program holds it as MLIR bytecode."""
    module = ir.Module.parse(base64.b64decode(match[1]))
    return module.operation.get_asm(enable_debug_info=False)
