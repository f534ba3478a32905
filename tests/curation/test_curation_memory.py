"""A hundred thousand records leave no trace in the memory of the process."""

import asyncio
import json
import pathlib

import numpy as np
import psutil
import pytest
from chat_server import CHAIN
from curation_run import write_config
from PIL import Image

from videorft_jax.curation import run
from videorft_jax.curation.config_file import read_config
from videorft_jax.curation.requests import Reply


class InProcess:
    """Answers every request as a server would, without one."""

    limits = (0, 0)

    async def send(self, request):
        await asyncio.sleep(0)
        if request.stage == "describe":
            field = request.schema["required"][1]
            content = json.dumps({"caption": "A thing.", field: ["a thing"]})
        elif request.stage == "think":
            gold = request.parts[0].rsplit("(gold ", 1)[1].split(")")[0]
            answer = gold if gold.endswith("0") else "nothing"  # one in ten is right
            chain = CHAIN.format(what=f"thing {request.seed}")
            content = f"<think>{chain}</think><answer>{answer}</answer>"
        else:
            content = f"<think>{CHAIN.format(what='thing')}</think>"
        return Reply(content, model=request.model, input_tokens=50, output_tokens=50)


def resident():
    return psutil.Process().memory_info().rss / 2**20


def curate_many(folder, number, monkeypatch):
    """Resident MiB at a tenth of the records and at the end of asking and of writing."""
    for clip in range(50):
        pixels = np.random.default_rng(clip).integers(0, 255, (28, 28, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{clip}.png")
    with (folder / "pool.jsonl").open("w") as file:
        for i in range(number):
            row = {
                "problem_id": i, "problem": f"What is thing {i}? (gold ball {i})", "options": [],
                "data_type": "image", "problem_type": "free-form", "path": f"./{i % 50}.png",
                "solution": f"<answer>ball {i}</answer>", "process": "", "data_source": "made up",
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
    config = write_config(folder / "c.toml", folder / "pool.jsonl", "http://h/v1")
    options = read_config(config)
    seen = []

    class Watched(run.Runner):
        async def _advance(self, unit):
            done = await super()._advance(unit)
            if self.progress.units == number // 10:
                seen.append(resident())
            return done

    def clients(ends):
        class Open:
            async def __aenter__(self):
                return {end.name: InProcess() for end in ends}

            async def __aexit__(self, *_):
                pass

        return Open()

    monkeypatch.setattr(run, "open_clients", clients)
    monkeypatch.setattr(run, "Runner", Watched)
    with run.Curation(options, str(folder / "w")) as curation:
        units = curation.units()
        code, _ = asyncio.run(curation._ask(lambda line: None, units))
        seen.append(resident())
        counts = curation.publish()
        seen.append(resident())
    assert (code, counts.asked, counts.accepted) == (0, number, number // 10)
    return seen


@pytest.mark.slow
def test_20_memory_over_a_hundred_thousand_records(tmp_path, monkeypatch):
    start, asked, written = curate_many(pathlib.Path(tmp_path), 100_000, monkeypatch)
    assert asked - start < 50, (start, asked, written)
    assert written - start < 50, (start, asked, written)
