"""Which weights the reference policy of a run is read from, as its checkpoints say it."""

from videorft_jax.grpo.options import GrpoOptions
from videorft_jax.models.folder_digest import digest_weights
from videorft_jax.parallel.processes import gather
from videorft_jax.training.run import Run


def keep_reference(options: GrpoOptions, run: Run) -> None:
    """Lets the run's checkpoints say which weights its reference policy is read from, where those
    are read again at every start. Raises ValueError, unless options may change, where a run goes on
    from a checkpoint that says others: the policy would be kept near another model than before."""
    if not options.loss.beta or options.sync_every or run.weights.lora:
        return
    model = options.train.model
    folders = (options.reference,) if options.reference else (model.init_from, model.adapter)
    digest, where = digest_weights(*folders), " and ".join(filter(None, folders))
    saved = None
    if run.start and run.checkpointer.holds(run.start):
        saved = run.checkpointer.read_meta(run.start).get("reference")
    is_other = saved not in (None, digest) and not options.train.allow_changes
    if any(gather(is_other)):
        raise ValueError(
            f"{run.folder}: its reference policy was read from other weights than {where} holds "
            "now; put those back, begin in another workdir, or add --allow_changes"
        )
    run.meta["reference"] = digest
