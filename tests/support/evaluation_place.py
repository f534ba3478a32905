"""A tiny model and a compiled engine that the tests of evaluation share."""

import jax
from tiny_run import make_config, make_data, make_model, sft_options

from videorft_jax.commands import evaluate
from videorft_jax.data.loader.options import LoaderOptions
from videorft_jax.data.loader.pipeline import Loader
from videorft_jax.data.records.source import RecordSource
from videorft_jax.evaluation.runner import evaluate_records
from videorft_jax.parallel import sharding
from videorft_jax.training.run import load_model_files
from videorft_jax.training.setup import make_contract, make_train_options
from videorft_jax.training.state import read_params

NUM, ROWS, ROLLOUTS, LENGTH = 10, 4, 2, 6


class EvaluationPlace:
    """A model, ten records, and an engine that draws two completions of each."""

    def __init__(self, folder):
        self.folder = folder
        files = make_data(folder / "data", num_sft=16, num_rl=0, num_eval=NUM)
        self.records, self.model = files["eval"], folder / "model"
        make_model(self.model, files["sft"])
        self.options = sft_options(
            self.model,
            self.records,
            data__rows=ROWS,
            mesh__data=1,
            rollout__num_buckets=1,
            evaluate__num_rollouts=ROLLOUTS,
            evaluate__max_new_tokens=LENGTH,
            evaluate__temperature=1.0,
            log__interval_s=0.0,
        )
        self.mesh = sharding.make_mesh(devices=jax.devices()[:1])
        config = self.config()
        self.model_config, self.tokenizer = load_model_files(config.model.init_from)
        self.contract = make_contract(config)
        self.engine = evaluate.make_engine(config, self.model_config, self.tokenizer, self.mesh)
        self.raw = read_params(make_train_options(config).model, self.model_config, self.mesh)
        self.params = self.engine.prepare(self.raw)

    def config(self, **changes):
        return make_config("evaluate_7b", self.options, **changes)

    def loader(self, records=None, process=0, processes=1, rows=ROWS):
        data = self.config().data
        settings = {"threads": 2, "isolate": False, "timeout_s": 60.0, "workers": 0, "seed": 0}
        shape = {"row_tokens": data.row_tokens, "max_buckets": 1, "multiple": data.multiple}
        return Loader(
            RecordSource(records or self.records),
            self.tokenizer,
            self.contract,
            LoaderOptions(
                "evaluate", rows=rows, epochs=1, max_bad_fraction=0.5, **settings, **shape
            ),
            process_index=process,
            process_count=processes,
        )

    def run(self, loader, engine=None, **settings):
        engine = engine or self.engine
        return evaluate_records(engine, self.params, self.tokenizer, loader, **settings)


def named(rows):
    """Rows in the order of records and completions."""
    return sorted(rows, key=lambda row: (row["index"], row["rollout"]))


def read_completions(folder) -> bytes:
    return (folder / "completions.jsonl").read_bytes()
