"""Runs a notebook's cells one after another, as Jupyter would, without Jupyter."""

import json
import os
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def read_cells(path: pathlib.Path) -> list[dict]:
    """The cells of a notebook file."""
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def run_notebook(path: pathlib.Path, pictures: pathlib.Path) -> list[pathlib.Path]:
    """Executes all code cells in one namespace; the files of the figures that they draw."""
    names: dict = {"__name__": "__main__"}
    found = []
    for number, cell in enumerate(read_cells(path)):
        if cell["cell_type"] != "code":
            continue
        code = compile("".join(cell["source"]), f"{path.name}, cell {number}", "exec")
        exec(code, names)
        for figure in plt.get_fignums():
            file = pictures / f"{path.stem}-{number}-{figure}.png"
            plt.figure(figure).savefig(file, bbox_inches="tight")
            plt.close(figure)
            found.append(file)
    return found


def main() -> None:
    """python tests/support/notebook.py NOTEBOOK FOLDER: runs it and keeps its figures."""
    import sys

    os.makedirs(sys.argv[2], exist_ok=True)
    for file in run_notebook(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])):
        print(file)


if __name__ == "__main__":
    main()
