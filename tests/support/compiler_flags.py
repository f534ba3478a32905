"""XLA flags under which test programs are compiled quickly rather than well.

XLA ends a process that names a flag which it does not know, so that a flag is only named to the
versions of jaxlib that have it.
"""

import importlib.metadata

QUICK = "--xla_backend_optimization_level=0"
# Flags of CPUs -> the first version of jaxlib without them.
_UNTIL = {"--xla_cpu_use_fusion_emitters=false": (0, 11, 1)}


def cpu_flags(jaxlib: str) -> str:
    """The flags for CPUs that a version of jaxlib knows, such as "0.10.2"."""
    version = tuple(int(part) for part in jaxlib.split(".")[:3] if part.isdigit())
    return " ".join([QUICK, *(flag for flag, end in _UNTIL.items() if version < end)])


QUICK_CPU = cpu_flags(importlib.metadata.version("jaxlib"))
