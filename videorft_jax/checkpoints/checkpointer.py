"""Checkpoints: a state of sharded arrays, and beside it everything else a run needs to go on.

Design decision: a checkpoint exists when its manifest does, which is written last and holds the
digest of every file. So a save that was cut off, a truncated file and a flipped byte (which Orbax
restores without a word) all look the same: the manifest does not hold, the step before is used.

Arrays are stored under their path, `params/text/embed`, as nested dicts of names, whatever tuples
and classes the state is made of; the classes of optax can change and a part can be read alone.

    workdir/checkpoints/00000120/...              Orbax, in the background, renamed when whole
    workdir/checkpoints/00000120/manifest.json    ours, after that
"""

import contextlib
import json
import logging
import math
import os
import shutil
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from videorft_jax.checkpoints import manifest
from videorft_jax.checkpoints.save_errors import describe_failure
from videorft_jax.checkpoints.steady_clock import use_steady_clock

log = logging.getLogger(__name__)

_TEMPORARY = ".orbax-checkpoint-tmp"
_PROBE = 1 << 20  # Bytes written on trial, to find out whether the folder takes any.


class Checkpointer:
    """Saves and restores the checkpoints of one run; every process calls every method.

    `workdir` is a local folder or any `etils.epath` path that all processes share. The newest
    `keep_last` checkpoints stay, and each whose step `keep_every` divides (0: none). With
    `async_save`, `save` returns as soon as the arrays are copied to host memory.

    Raises ValueError for counts that would keep nothing.
    """

    def __init__(
        self, workdir, *, keep_last: int = 2, keep_every: int = 0, async_save: bool = True
    ):
        if keep_last < 1 or keep_every < 0:
            raise ValueError(
                f"keep_last is {keep_last} and keep_every {keep_every}; keep at least the last "
                "checkpoint, and give 0 or a positive number of steps"
            )
        self.folder = epath.Path(workdir) / "checkpoints"
        self._keep_last, self._keep_every, self._async = keep_last, keep_every, async_save
        use_steady_clock()
        # Else a folder that cannot be made leaves threads that keep the process for ten minutes.
        at_once = ocp.options.AsyncOptions(create_directories_asynchronously=False)
        self._orbax = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler(), async_options=at_once)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._told: set[int] = set()  # Damaged steps that a warning has named.
        self._protected: int | None = None  # A step that stays whatever comes after it.
        self._current: int | None = None  # The step that this process saved or restored last.

    def check_disk(self, abstract_state) -> None:
        """Finds out, before anything is computed, whether checkpoints of this state can be saved.

        Process 0 makes the folder, compares its free bytes with what the checkpoints kept and one
        in flight need, and writes, reads back and removes a small file, which the others must see.
        Raises ValueError.
        """
        size = sum(
            math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
            for leaf in jax.tree.leaves(abstract_state)
        )
        probe, problem = self.folder / "probe", ""
        if jax.process_index() == 0:
            problem = self._probe(probe, size)
        _agree(problem, "process 0 cannot write checkpoints, see its log")
        if jax.process_index() and not probe.exists():
            problem = f"{self.folder}: not shared with process 0; give all processes one workdir"
        _agree(problem, "another process does not see the folder of process 0, see its log")
        if jax.process_index() == 0:
            probe.unlink()

    def _probe(self, probe, size):
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for child in self.folder.iterdir():
                if _TEMPORARY in child.name:
                    log.warning("checkpoint: removing %s, a save that was cut off", child)
                    child.rmtree()
            kept = len(self._valid_steps())
            needed = size * max(1, self._keep_last + 1 - kept)
            if os.path.isdir(self.folder):  # Other kinds of storage do not say what is free.
                free = shutil.disk_usage(self.folder).free
                if free < needed:
                    return (
                        f"{self.folder}: {free / 2**30:.2f} GiB free, {needed / 2**30:.2f} GiB "
                        f"needed for checkpoints of {size / 2**30:.2f} GiB; free space, lower "
                        "keep_last or choose another workdir"
                    )
            content = os.urandom(_PROBE)
            probe.write_bytes(content)
            if probe.read_bytes() != content:
                return f"{probe}: did not read back as written; choose another workdir"
        except OSError as error:
            return f"{self.folder}: cannot be written ({error}); choose another workdir"
        except ValueError as error:  # A later release wrote a step.
            return str(error)
        return ""

    def save(self, step: int, state, meta: dict) -> None:
        """Starts to save `state`, any tree of `jax.Array`, and `meta`, a dict that JSON can hold.

        Waits for the save before this one first and raises what went wrong with it. A step that
        was just saved or restored is not saved again. Once this step is whole, checkpoints of later
        steps are removed: the run went back before them. Raises ValueError, RuntimeError.
        """
        self.wait()
        if step == self._current:
            return
        arrays = _flatten(state)
        for path, leaf in arrays.items():
            if not isinstance(leaf, jax.Array):
                raise ValueError(f"checkpoint: {path} is a {type(leaf).__name__}, not a jax.Array")
        body = {
            "version": manifest.VERSION,
            "step": step,
            "meta": _as_json(meta),
            "arrays": {path: manifest.describe(leaf) for path, leaf in arrays.items()},
        }
        folder = self._path(step)
        self._check_writable(folder)
        try:
            self._orbax.save(folder, ocp.args.PyTreeSave(_nest(arrays)), force=True)
        except OSError as error:
            raise RuntimeError(describe_failure(folder, error)) from error
        self._current = step
        self._thread = threading.Thread(target=self._finish, args=(folder, body))
        self._thread.start()
        if not self._async:
            self.wait()

    def _check_writable(self, folder):
        """Raises RuntimeError on every process where process 0 can make no file beside `folder`;
        Orbax would tell that process alone."""
        probe, problem = self.folder / "probe", ""
        if jax.process_index() == 0:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                probe.write_bytes(b"")
                probe.unlink()
            except OSError as error:
                problem = describe_failure(folder, error)
        try:
            _agree(problem, "process 0 cannot write checkpoints any more, see its log")
        except ValueError as agreed:
            raise RuntimeError(str(agreed)) from None

    def protect(self, step: int | None) -> None:
        """Keeps the checkpoint of `step` until another is protected in its place."""
        self._protected = step

    def holds(self, step: int) -> bool:
        """Whether there is a whole checkpoint of `step`."""
        return step in self._valid_steps()

    def _finish(self, folder, body):
        """Runs in a thread: waits for Orbax, then process 0 seals the checkpoint."""
        try:
            self._orbax.wait_until_finished()
            if jax.process_index() == 0:
                manifest.write(folder, body)
                self._prune(body["step"])
        except BaseException as error:  # `wait` raises it again.
            self._error = error

    def _prune(self, newest):
        valid = [step for step in self._valid_steps() if step <= newest]
        kept = {*valid[-self._keep_last :], self._protected}
        if self._keep_every:
            kept |= {step for step in valid if step % self._keep_every == 0}
        for step in self._steps():
            if step not in kept:
                if step > newest or step not in valid:
                    log.warning(
                        "checkpoint: removing step %d, %s",
                        step,
                        "from before the run went back" if step > newest else "which is damaged",
                    )
                self._path(step).rmtree()

    def wait(self) -> None:
        """Returns when nothing is being saved. Raises RuntimeError if the last save failed."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread, error, self._error = None, self._error, None
        problem = describe_failure(self._path(self._current), error) if error else ""
        try:
            _agree(problem, "another process could not save its part, see its log")
        except ValueError as agreed:
            self._current = None
            raise RuntimeError(str(agreed)) from error

    def close(self) -> None:
        """Waits for the last save and lets go of the background threads."""
        try:
            self.wait()
        finally:
            # A failure of a save that was told already comes once more from another thread.
            with contextlib.suppress(OSError):
                self._orbax.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def latest_step(self) -> int | None:
        """Gives the newest step with a sound manifest and files of the right sizes; None without
        one. Warns of newer ones that are passed over, with the reason."""
        found = self._newest(None)
        for step in self._steps():
            if step in self._told or (found is not None and step <= found):
                continue
            self._told.add(step)
            log.warning(
                "checkpoint: step %d is passed over, %s; %s",
                step,
                manifest.find_damage(self._path(step)),
                "no other is whole" if found is None else f"step {found} is used",
            )
        return found

    def check_lost(self) -> None:
        """Raises ValueError where no step is whole and one was: a run that began anew would remove
        what is left of it. A save that was cut off is none, and a run begins anew."""
        problem = ""
        if jax.process_index() == 0 and not self._valid_steps():
            for folder in filter(manifest.was_whole, map(self._path, self._steps())):
                problem = (
                    f"{folder}: {manifest.find_damage(folder)}, and no other checkpoint is whole; "
                    f"copy it again, or delete {self.folder} to start at step 0"
                )
        _agree(problem, "no checkpoint is whole, see the log of process 0")

    def describe_kept(self) -> str:
        """Says in a sentence what a run that ends now leaves behind."""
        step = self._newest(None)
        if step is None:
            return "no checkpoint is kept; the same command begins anew"
        return f"the checkpoint of step {step} is kept; the same command goes on from there"

    def restore(self, step: int | None, abstract_state, expected_meta: dict, *, part: bool = False):
        """Reads (state, meta) of `step`, or with None of the newest checkpoint that is undamaged.

        `abstract_state` is a tree of `jax.ShapeDtypeStruct` with shardings, of any mesh and any
        number of processes; with `part` it may leave out arrays that the checkpoint has. The
        fields of `expected_meta` must be those of the checkpoint (its model, its media contract).

        Every file is compared with its digest first. Raises ValueError, one line, when nothing can
        be restored, or when a field, path, shape or dtype differs.
        """
        self.wait()
        wanted = _flatten(abstract_state)
        for path, leaf in wanted.items():
            if getattr(leaf, "sharding", None) is None:
                raise ValueError(f"checkpoint: the target of {path} has no sharding; give it one")
        chosen = self.latest_step() if step is None else step
        if chosen is None:
            raise ValueError(f"{self.folder}: no whole checkpoint; check the path or start anew")
        body, damage = self._verify(chosen)
        while damage and step is None:
            older = self._newest(chosen)
            if older is None:
                break
            log.error("checkpoint: step %d is damaged (%s); trying step %d", chosen, damage, older)
            chosen = older
            body, damage = self._verify(chosen)
        folder = self._path(chosen)
        if damage:
            raise ValueError(f"{folder}: {damage}; restore another step or copy the folder again")
        _compare(body, expected_meta, wanted, folder, part)
        item = _nest({path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in wanted.items()})
        how = {
            path: ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=x.shape, dtype=x.dtype)
            for path, x in wanted.items()
        }
        restored = self._orbax.restore(
            folder,
            ocp.args.PyTreeRestore(item=item, restore_args=_nest(how), partial_restore=True),
        )
        arrays = _flatten(restored)
        leaves = [arrays[path] for path in wanted]
        self._current = chosen
        log.info("checkpoint: restored step %d, %d arrays, from %s", chosen, len(leaves), folder)
        return jax.tree.unflatten(jax.tree.structure(abstract_state), leaves), body["meta"]

    def read_meta(self, step: int) -> dict:
        """Reads the metadata of a checkpoint. Raises ValueError when its manifest is damaged."""
        return manifest.read(self._path(step))["meta"]

    def check(self, step: int, abstract_state, expected_meta: dict) -> None:
        """Raises the ValueError of `restore` where a checkpoint has other fields or arrays, before
        any of them is read."""
        folder = self._path(step)
        _compare(manifest.read(folder), expected_meta, _flatten(abstract_state), folder, False)

    def _path(self, step):
        return self.folder / f"{step:08d}"

    def _steps(self):
        if not self.folder.exists():
            return []
        names = [child.name for child in self.folder.iterdir()]
        return sorted(int(name) for name in names if manifest.is_step(name))

    def _valid_steps(self):
        return [step for step in self._steps() if not manifest.find_damage(self._path(step))]

    def _newest(self, below):
        """Gives the newest valid step before `below`, as process 0 sees it."""
        steps, problem = [], ""
        try:
            steps = self._valid_steps() if jax.process_index() == 0 else []
        except ValueError as error:
            problem = str(error)
        _agree(problem, "process 0 cannot read the checkpoints, see its log")
        found = max((step for step in steps if below is None or step < below), default=-1)
        if jax.process_count() > 1:
            found = int(multihost_utils.broadcast_one_to_all(np.int32(found)))
        return None if found < 0 else found

    def _verify(self, step):
        """Gives (manifest, "") or (None, what is wrong); each process hashes its share of files."""
        folder = self._path(step)
        damage = manifest.find_damage(folder)
        if not damage:
            body = manifest.read(folder)
            names = sorted(body["files"])[jax.process_index() :: jax.process_count()]
            digests = manifest.hash_files(folder, names)
            wrong = [name for name in names if digests[name] != body["files"][name]]
            damage = f"{wrong[0]} is not what was saved" if wrong else ""
        try:
            _agree(damage, "another process found a damaged file")
        except ValueError as agreed:
            return None, str(agreed)
        return body, ""


def _agree(problem: str, elsewhere: str) -> None:
    """Raises ValueError on every process when any has a problem: its own, or `elsewhere`."""
    bad = bool(problem)
    if jax.process_count() > 1:
        bad = bool(np.any(multihost_utils.process_allgather(np.int32(bad))))
    if bad:
        raise ValueError(problem or elsewhere)


def _flatten(tree) -> dict:
    """Maps paths to leaves; tuples and classes give their field names or indices."""
    flat = {}
    for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path in flat:
            raise ValueError(f"checkpoint: two arrays have the path {path}; rename one")
        flat[path] = leaf
    return flat


def _nest(flat):
    tree = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def _as_json(value):
    """Gives a value as it will be read back: tuples become lists. NaN is refused, since it equals
    nothing and no later comparison could hold."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"checkpoint: the metadata is not JSON ({error})") from None


def _compare(body, expected_meta, wanted, folder, part):
    manifest.compare_meta(body["meta"], _as_json(expected_meta), folder)
    manifest.compare_arrays(body["arrays"], wanted, folder, part)
