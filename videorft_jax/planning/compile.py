"""Compiles a program and reads off what it needs; what is known already is not compiled again.

Figures are kept in a JSON file under the fingerprint of the lowered program, the compiler's version
and the topology, so that they hold exactly as long as they are true.
"""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import pathlib
import re
import threading
import time

import jax

from videorft_jax.planning.collectives import read_collectives
from videorft_jax.planning.fingerprint import fingerprint
from videorft_jax.planning.jobs import Job, Program
from videorft_jax.planning.links import Collective

GIB = 2**30
_REMIND_S = 30.0


@dataclasses.dataclass(frozen=True)
class Figures:
    """What a program needs of one device, in GiB, and how long it took to compile.

    `peak` is the program's own need, arguments included. `compile_s` are seconds of a processor,
    which do not grow where other programs run beside it. `known` is False where the compiler gave
    up for want of memory: the figures are then what it asked for. `estimated` is True where
    formulas gave the figures.
    """

    arguments: float
    temporaries: float
    peak: float
    compile_s: float
    known: bool = True
    estimated: bool = False
    sent: list[Collective] | None = None


class Store:
    """Figures in a file that several processes may add to. A path of None keeps them in memory."""

    def __init__(self, path=None):
        self._path = path and pathlib.Path(path)
        self._known = {}
        self._read()

    def get(self, key: str) -> Figures | None:
        """The figures of the program with this fingerprint; None where it was never compiled."""
        if key not in self._known:
            return None
        found = Figures(**self._known[key]["figures"])
        if found.sent is None:
            return found
        sent = [Collective(one[0], tuple(one[1]), *one[2:]) for one in found.sent]
        return dataclasses.replace(found, sent=sent)

    def compile_minutes(self) -> float:
        """Processor minutes that everything known took to compile."""
        return sum(held["figures"]["compile_s"] for held in self._known.values()) / 60

    def keep(self, keys) -> None:
        """Drops the figures of every other program."""
        self._known = {key: held for key, held in self._known.items() if key in keys}
        self._write()

    def put(self, key: str, figures: Figures, what: dict) -> None:
        """Adds figures; `what` tells people which program they are of."""
        entry = {key: what | {"figures": dataclasses.asdict(figures)}}
        with self._alone():
            self._read()
            self._known |= entry
            self._write()

    @contextlib.contextmanager
    def _alone(self):
        if not self._path:
            yield
            return
        with open(self._path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _read(self):
        if self._path and self._path.is_file():
            try:
                self._known |= json.loads(self._path.read_text())
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{self._path}: holds no figures of a plan ({error}); remove it"
                ) from None

    def _write(self):
        if self._path:
            text = json.dumps(self._known, indent=1, sort_keys=True)
            partial = self._path.with_suffix(".part")
            partial.write_text(text + "\n")
            partial.replace(self._path)


@contextlib.contextmanager
def reminded(what: str, say):
    """Tells `say` at the beginning what is done inside, and every half minute for how long."""
    done, started = threading.Event(), time.monotonic()

    def remind():
        while not done.wait(_REMIND_S):
            say(f"{what}: {time.monotonic() - started:.0f} s so far")

    say(what)
    thread = threading.Thread(target=remind, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def measure(job: Job, program: Program, store: Store) -> Figures:
    """Lowers the program and, unless its figures are known, compiles it."""
    lowered, key = lower(job, program)
    return store.get(key) or _compile(job, program, store, lowered, key)


def lower(job: Job, program: Program):
    """(lowered program, its key in a store)."""
    with jax.set_mesh(job.mesh):
        lowered = program.lower()
    return lowered, fingerprint(lowered.as_text(), job.topology.name, *_find_versions())


def _compile(job, program, store, lowered, key):
    started = time.process_time()
    try:
        with jax.set_mesh(job.mesh):
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        found = _refused(str(error), time.process_time() - started)
    else:
        seconds = time.process_time() - started
        sent = _read_sent(compiled, job.mesh_of(program.name), program.turns)
        found = _read(compiled.memory_analysis(), seconds, sent)
    what = {"program": program.name, "config": job.train.name, "topology": job.topology.name}
    store.put(key, found, what)
    return found


def _read_sent(compiled, mesh, turns):
    """The collectives of a compiled program, whose loop over tokens has so many turns; None where
    JAX cannot read its text back, as of some for v5p and v6e."""
    try:
        return read_collectives(compiled.as_text(), mesh, turns)
    except jax.errors.JaxRuntimeError:
        return None


def _read(memory, seconds, sent):
    """The figures of a compiled program. Its peak is the larger of two: the sum of its parts, and
    what the compiler calls the peak, which includes its code."""
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    peak = max(arguments + temporaries + made, memory.peak_memory_in_bytes)
    return Figures(arguments / GIB, temporaries / GIB, peak / GIB, seconds, sent=sent)


def _refused(text, seconds):
    """The figures of a program that does not fit, read off the compiler's refusal: `Used 20.1G of
    15.75G hbm`, or `(400.00G) exceeds ...`. Raises RuntimeError for any other failure."""
    if "RESOURCE_EXHAUSTED" not in text:
        raise RuntimeError(text.splitlines()[0])
    match = re.search(r"Used ([\d.]+)([GM]) of", text) or re.search(
        r"\(([\d.]+)([GM])\) exceeds", text
    )
    if match is None:
        raise RuntimeError(text.splitlines()[0])
    wanted = float(match[1]) / (1 if match[2] == "G" else 1024)
    return Figures(0.0, 0.0, wanted, seconds, known=False)


def _find_versions():
    """Versions of JAX, of jaxlib and of libtpu, which together compile the programs."""
    versions = [jax.__version__]
    for name in ("jaxlib", "libtpu"):
        try:
            versions.append(importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            versions.append("none")
    return versions
