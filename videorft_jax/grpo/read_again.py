"""Which weights a run reads again at every start, as its checkpoints say it."""

from collections.abc import Iterator

from videorft_jax.grpo.options import GrpoOptions
from videorft_jax.models.folder_digest import digest_weights
from videorft_jax.parallel.processes import gather
from videorft_jax.training.run import Run


def keep_models(options: GrpoOptions, run: Run) -> None:
    """Lets the run's checkpoints say which weights its reference policy and its SigLIP are read
    from, which no checkpoint holds. Raises ValueError, unless options may change, where a run goes
    on from a checkpoint that says others: it would be kept near another model than before, or be
    rewarded by another one."""
    saved = {}
    if run.start and run.checkpointer.holds(run.start):
        saved = run.checkpointer.read_meta(run.start)
    for key, what, folders in _read_again(options, run):
        digest, where = digest_weights(*folders), " and ".join(filter(None, folders))
        is_other = saved.get(key, digest) != digest and not options.train.allow_changes
        if any(gather(is_other)):
            raise ValueError(
                f"{run.folder}: its {what} was read from other weights than {where} holds now; put "
                "those back, begin in another workdir, or add --allow_changes"
            )
        run.meta[key] = digest


def _read_again(options, run) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(key of the metadata, what is read, its folders)."""
    model = options.train.model
    if options.loss.beta and not options.sync_every and not run.weights.lora:
        own = (model.init_from, model.adapter)
        yield "reference", "reference policy", (options.reference,) if options.reference else own
    if options.semantic is not None:
        yield "siglip", "SigLIP", (options.semantic.siglip,)
