"""Reads batches of a recipe for as long as it is told; `tests/drills/soak.py` starts it."""

import importlib.util
import pathlib
import sys

from videorft_jax.training import run
from videorft_jax.training.setup import make_train_options


def read_batches(recipe: str, workdir: str, total: int, mark: pathlib.Path) -> None:
    """Writes how many batches it has read into the file `mark` now and then."""
    spec = importlib.util.spec_from_file_location("soak_recipe", recipe)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.data.epochs = total  # There cannot be more.
    options = make_train_options(config)
    tokenizer = run.load_model_files(options.model.init_from)[1]
    pathlib.Path(workdir).mkdir(exist_ok=True)
    loader = run.make_loader(options, "sft", tokenizer, workdir)
    with loader.steps() as steps:
        for number, _ in enumerate(steps, 1):
            if number % 10 == 0 or number == total:
                mark.write_text(str(number))
            if number == total:
                break


if __name__ == "__main__":
    read_batches(sys.argv[1], sys.argv[2], int(sys.argv[3]), pathlib.Path(sys.argv[4]))
