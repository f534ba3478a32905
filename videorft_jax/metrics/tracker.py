"""Where the numbers of a run go: JSON lines, TensorBoard, the console and, if asked, W&B.

`metrics.jsonl` holds everything, one flushed line a step. A restart drops the lines of steps that
will be done again, so that the file of a run that was killed and resumed has the lines of one that
was not. Names under `perf/`, `time/` and `memory/` are about the machine, and `semantic/cached` is
about what a process has embedded since it began; all others repeat to the bit.
"""

import collections
import contextlib
import importlib.util
import json
import logging
import math
import os
import pathlib
import resource
import shutil
import statistics
import sys
import time
import uuid

import jax

from videorft_jax.data.naming import naming
from videorft_jax.metrics import chips
from videorft_jax.metrics.compiling import CompileClock
from videorft_jax.metrics.flops import Cost
from videorft_jax.metrics.profile import span
from videorft_jax.metrics.tensorboard import EventWriter

log = logging.getLogger(__name__)

METRICS = "metrics.jsonl"
_GIB = 2**30
_RECENT = 20  # steps whose median duration, but for compiling, predicts the end


class Tracker:
    """Takes the metrics of each step; only process 0 writes.

    `workdir` is a local folder. `start_step` is the first step that will be logged. `show` are the
    metrics the console line begins with. On a terminal that line is live; elsewhere a plain line
    is printed every `interval` seconds, and for the first and last step. `wandb` is the name of a
    Weights & Biases project, `config` what it stores; the package honours its offline mode.

    Raises ValueError for a remote workdir, and when `wandb` is asked for and not installed.
    """

    def __init__(
        self,
        workdir,
        total_steps: int,
        *,
        start_step: int = 0,
        show: tuple[str, ...] = ("loss",),
        interval: float = 30.0,
        wandb: str | None = None,
        config: dict | None = None,
        stream=None,
    ):
        if "://" in str(workdir):
            raise ValueError(f"{workdir}: metrics are appended to files; give a local folder")
        self._total, self._show, self._interval = total_steps, show, interval
        self._start = start_step
        self._phases = collections.defaultdict(float)
        self._durations = collections.deque(maxlen=_RECENT)
        self._last = time.perf_counter()
        self._printed = -math.inf
        self._active = jax.process_index() == 0
        if not self._active:
            return
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._open = False  # whether a live line has no end yet
        self._handlers = logging.getLogger().handlers[:] if self._live else []
        for handler in self._handlers:
            handler.addFilter(self._end_line)
        folder = pathlib.Path(workdir)
        self._run = _start_wandb(wandb, folder, config) if wandb else None
        folder.mkdir(parents=True, exist_ok=True)
        drop_lines(folder / METRICS, start_step)
        self._lines = (folder / METRICS).open("a")
        self._events = EventWriter(folder / "tensorboard", start_step)
        self._chip = chips.find_chip()
        log.info("metrics: %s, and TensorBoard events beside it", folder / METRICS)
        self._compiling = CompileClock()
        self._last = time.perf_counter()  # W&B's start and the measured chip are no step's.

    @contextlib.contextmanager
    def phase(self, name: str):
        """Adds the host's time inside to `time/<name>` of the next `log`, in seconds.

        Work on the device counts where the host waits for it. In a profile the time inside is a
        span.
        """
        start = time.perf_counter()
        try:
            with span(f"step: {name}"):
                yield
        finally:
            self._phases[name] += time.perf_counter() - start

    def log(
        self,
        step: int,
        metrics: dict,
        *,
        tokens: int = 0,
        useful: Cost | None = None,
        executed: Cost | None = None,
    ) -> None:
        """Writes one step: `metrics`, numbers or scalar arrays, which are waited for here.

        `tokens` of the step over all devices give tokens per second, `useful` operations
        utilisation, and with those `executed` on padded shapes, the share lost to padding.
        `perf/share/<name>` are the shares of the step that its phases and the compiler took;
        with `other`, the time in none of them, the phases add up to 1.
        """
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        phases, self._phases = self._phases, collections.defaultdict(float)
        if not self._active:
            return
        values = {name: float(value) for name, value in metrics.items()}
        compiling = self._compiling.take()
        self._durations.append(max(0.0, seconds - compiling))
        values |= self._performance(seconds, tokens, useful, executed)
        if phases:
            phases["other"] = max(0.0, seconds - sum(phases.values()))
        if compiling:  # It lies within the other phases, whose programs are compiled when needed.
            phases["compile"] = compiling
        values |= {f"time/{name}": spent for name, spent in phases.items()}
        values |= {f"perf/share/{name}": spent / seconds for name, spent in phases.items()}
        values |= _memory()
        line = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with naming(self._lines.name):
            self._lines.write(json.dumps({"step": step, **line}, allow_nan=False) + "\n")
            self._lines.flush()
        self._events.write(step, values)
        if self._run:
            self._run.log(values, step=step)
        self._print(step, values)

    def _performance(self, seconds, tokens, useful, executed):
        values = {"perf/step_s": seconds}
        if tokens:
            values["perf/tokens_per_s"] = tokens / seconds
        if useful:
            devices = jax.device_count()
            values["perf/tflops_per_s"] = useful.model_flops / seconds / devices / 1e12
            values["perf/mfu"] = chips.utilisation(useful.model_flops, seconds, devices, self._chip)
        if useful and executed:
            values["perf/hfu"] = chips.utilisation(
                executed.hardware_flops, seconds, devices, self._chip
            )
            values["perf/padding"] = 1 - useful.model_flops / executed.model_flops
        return values

    def _print(self, step, values):
        last = step >= self._total
        now = time.monotonic()
        if not (self._live or last or now - self._printed >= self._interval):
            return
        self._printed = now
        text = self._format(step, values)
        with contextlib.suppress(BrokenPipeError):  # A run goes on where nobody reads.
            if self._live:  # back to the first column, erase, and never wrap
                width = shutil.get_terminal_size().columns - 1
                self._stream.write(f"\r\x1b[K{text[:width]}")
                self._open = True
            else:
                self._stream.write(text + "\n")
            self._stream.flush()

    def _end_line(self, _=None):
        """Ends the live line, so that the next text begins on a line of its own.

        It is also installed as a filter of log records, and True lets every record through.
        """
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False
        return True

    def _format(self, step, values):
        parts = [f"step {step}/{self._total}"]
        parts += [f"{name} {values[name]:.4g}" for name in self._show if name in values]
        for name, form in (
            ("perf/tokens_per_s", "{:,.0f} tok/s"),
            ("perf/tflops_per_s", "{:.3g} TFLOP/s"),
            ("perf/mfu", "MFU {:.1%}"),
            ("memory/hbm_gib", "HBM {:.1f} GiB"),
            ("memory/host_peak_gib", "RSS {:.1f} GiB"),
        ):
            if name in values and not (name.endswith("peak_gib") and "memory/hbm_gib" in values):
                parts.append(form.format(values[name]))
        left = max(0, self._total - step) * statistics.median(self._durations)
        minutes, seconds = divmod(round(left), 60)
        parts.append(f"ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}")
        return "  ".join(parts)

    def close(self) -> None:
        """Closes the files; the console is left on a line of its own."""
        if not self._active:
            return
        self._compiling.close()
        self._end_line()
        for handler in self._handlers:
            handler.removeFilter(self._end_line)
        with naming(self._lines.name):
            self._lines.close()
        self._events.close()
        if self._run:
            self._run.finish()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def drop_lines(path: pathlib.Path, start_step: int) -> None:
    """Removes the lines of `start_step` and later steps from a JSON lines file, and torn lines."""
    if not path.exists():
        return
    kept, later, torn = [], 0, 0
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError):
            torn += 1
            continue
        if step < start_step and line.endswith("\n"):
            kept.append(line)
        else:
            later += 1
    if later or torn:
        log.warning(
            "%s: dropped %d lines of steps from %d on, which will be done again, and %d torn",
            path, later, start_step, torn,
        )  # fmt: skip
        partial = path.with_name(path.name + ".tmp")
        with naming(partial):
            partial.write_text("".join(kept))
        os.replace(partial, path)


def _memory():
    """Memory of the first device, where it tells, and the peak of this process on the host; GiB."""
    stats = jax.local_devices()[0].memory_stats() or {}
    names = {"bytes_in_use": "memory/hbm_gib", "peak_bytes_in_use": "memory/hbm_peak_gib"}
    values = {new: stats[old] / _GIB for old, new in names.items() if old in stats}
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes on Linux
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return values | {"memory/host_peak_gib": peak / _GIB}


def check_wandb(project: str) -> None:
    """Raises ValueError when a project is named and the package is not installed."""
    try:
        is_there = not project or importlib.util.find_spec("wandb") is not None
    except ValueError:  # Something without a spec stands in for the package.
        is_there = True
    if not is_there:
        raise ValueError(
            f"wandb project {project!r} was asked for and the package is not installed; "
            "pip install wandb, or leave the project out"
        )


def _start_wandb(project, folder, config):
    check_wandb(project)
    import wandb

    folder.mkdir(parents=True, exist_ok=True)
    name = folder / "wandb_run_id"  # A resumed run goes on under this id.
    if not name.exists():
        name.write_text(uuid.uuid4().hex[:12])
    return wandb.init(
        project=project, dir=folder, config=config, id=name.read_text(), resume="allow"
    )
