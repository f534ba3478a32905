"""Groups of dynamic sampling that found no place in the update of their step.

They differ, so they can teach something, and they cost a rollout. The next update takes them first.
By then the policy is one step older than they are: `sampler_gap` shows how far it has moved, and
`grpo.sampler_cap` weighs it. A checkpoint keeps them in a file beside it, so that a run that was
stopped goes on with the same groups.
"""

import logging
import pathlib
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from videorft_jax.data.batch.batch import Batch
from videorft_jax.data.naming import naming
from videorft_jax.grpo.dynamic_sampling import LEFT, PASSED, TAKEN, choose_rows
from videorft_jax.grpo.logprobs import Groups
from videorft_jax.grpo.update import GroupRows

log = logging.getLogger(__name__)

FOLDER = "leftover"


class Leftover:
    """Holds the groups that wait for the next update, each part in the shape it was drawn in."""

    def __init__(self, parts: Sequence[GroupRows] = ()):
        self.parts = list(parts)

    def __len__(self) -> int:
        return sum(len(part.advantages) for part in self.parts)

    def choose(
        self, drawn: Sequence[GroupRows], differing: Sequence[np.ndarray]
    ) -> tuple[list[GroupRows], list[np.ndarray]]:
        """Picks the rows of an update, as many as a draw has, and keeps those that are left.

        drawn: the rows of each draw, differing: bool [B] of each. Returns the parts that are
        learnt from and, for each draw, where its groups went, int [B].
        """
        found = [*self.parts, *drawn]
        known = np.concatenate([np.ones(len(self), bool), *differing])
        taken, left = choose_rows(known, len(differing[-1]))
        fates = np.full(len(known), PASSED)
        fates[taken], fates[left] = TAKEN, LEFT
        by_part = np.split(fates, np.cumsum([len(rows.advantages) for rows in found])[:-1])
        pairs = list(zip(found, by_part, strict=True))
        drawn_fates = by_part[len(self.parts) :]
        self.parts = [take_rows(rows, fate == LEFT) for rows, fate in pairs if LEFT in fate]
        chosen = [take_rows(rows, fate == TAKEN) for rows, fate in pairs if TAKEN in fate]
        return chosen, drawn_fates


def take_rows(rows: GroupRows, places: np.ndarray) -> GroupRows:
    """Copies the rows at `places`, bool [B]; the loader writes other batches over its arrays."""
    return jax.tree.map(lambda leaf: np.array(leaf[places]), rows)


def save(
    folder: str, step: int, parts: Sequence[GroupRows], is_kept: Callable[[int], bool]
) -> None:
    """Writes this process's groups left over after step `step`, and removes its files of steps for
    which `is_kept` says that their checkpoint is no more there."""
    own = pathlib.Path(folder, FOLDER)
    own.mkdir(parents=True, exist_ok=True)
    for path in own.glob(f"*-{jax.process_index()}.npz"):
        if not is_kept(int(path.name.split("-")[0])):
            path.unlink()
    path = own / f"{step:08d}-{jax.process_index()}.npz"
    arrays: dict[str, Any] = {"count": len(parts), "processes": jax.process_count()}
    for number, part in enumerate(parts):
        for place, leaf in enumerate(jax.tree.leaves(part)):
            arrays[f"{number}/{place}"] = leaf
    partial = path.with_suffix(".part")
    with naming(partial), partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)


def load(folder: str, step: int) -> Leftover:
    """Reads the groups left over after step `step`; none at step 0.

    Process p of P reads the files whose number is p modulo P, so that a run may go on with another
    number of processes. Runs of release 0.1 have none and say so. Raises ValueError where a file
    is missing or damaged.
    """
    if not step:
        return Leftover()
    where, number, found = pathlib.Path(folder, FOLDER), jax.process_index(), []
    if not where.exists():
        log.warning("%s: not there, as in runs of release 0.1; no group is left over", where)
        return Leftover()
    count = number + 1
    try:
        while number < count:
            with np.load(where / f"{step:08d}-{number}.npz", allow_pickle=False) as file:
                count = int(file["processes"])
                found += [_read_part(file, part) for part in range(int(file["count"]))]
            number += jax.process_count()
    except FileNotFoundError:
        if number and number >= _count_writers(where, step):
            return Leftover(found)
        raise _missing(where, step, "no such file") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise _missing(where, step, str(error)) from None
    return Leftover(found)


def _count_writers(where, step):
    """Returns the number of processes that wrote the files of `step`, as the first of them says."""
    with np.load(where / f"{step:08d}-0.npz", allow_pickle=False) as file:
        return int(file["processes"])


def _missing(where, step, reason):
    return ValueError(
        f"{where}: groups left over by step {step} cannot be read ({reason}); copy the folder from "
        "where the run was, or start in another workdir"
    )


def _read_part(file, number):
    size = len(Batch._fields)
    names = [name for name in file.files if name.startswith(f"{number}/")]
    leaves = [file[f"{number}/{place}"] for place in range(len(names))]
    completions, lengths, advantages, sampler, *rewards = leaves[size:]
    groups = Groups(Batch(*leaves[:size]), completions, lengths)
    return GroupRows(groups, advantages, sampler, rewards=rewards[0] if rewards else None)
