"""One server on loopback for all tests of this folder, with a tiny random model."""

import dataclasses
import os
import pathlib
import shutil
import threading
import time

import openai
import pytest
import tiny_run
import uvicorn

import videorft_jax as vr
from videorft_jax.serving.app import Server
from videorft_jax.serving.options import ServeOptions

KEY = "canary-4f1d"


@dataclasses.dataclass
class Place:
    """A running server, its model, and a folder of clips that it may read."""

    server: Server
    model: object
    url: str
    clips: list[pathlib.Path]
    folder: pathlib.Path

    def client(self, key: str = KEY) -> openai.OpenAI:
        """The official client, which repeats nothing."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=600)

    def wait(self, holds) -> None:
        """Waits until `holds()`, at most ten minutes, so that a slow machine passes too."""
        end = time.monotonic() + 600
        while not holds():
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("serve")
    files = tiny_run.make_data(folder / "data", num_sft=8, num_rl=0, num_eval=0)
    tiny_run.make_model(folder / "model", files["sft"])
    model = vr.load(folder / "model", dtype="float32")
    small = {"min_pixels": 56 * 56, "max_pixels": 56 * 56, "min_frames": 4, "max_frames": 8}
    model.contract = dataclasses.replace(model.contract, **small)
    root = folder / "root"
    root.mkdir()
    clips = sorted((folder / "data").rglob("*.mp4"))[:3]
    clips = [pathlib.Path(shutil.copy(clip, root)) for clip in clips]
    (root / "link.mp4").symlink_to(folder / "model" / "config.json")
    (root / "folder").symlink_to(folder / "model")
    os.mkfifo(root / "pipe.mp4")
    (root / "notes.mp4").write_text("no video")
    options = ServeOptions(
        name="tiny", roots=(str(root.resolve()),), api_key=KEY, max_body=300_000, max_queue=40,
        max_new_tokens=200, max_prompt=1000, chunk=4, max_slots=32,
    )  # fmt: skip
    server = Server(model, options)
    runner = uvicorn.Server(uvicorn.Config(server.app, port=0, log_level="critical"))
    thread = threading.Thread(target=runner.run)
    thread.start()
    while not runner.started:
        time.sleep(0.01)
    port = runner.servers[0].sockets[0].getsockname()[1]
    yield Place(server, model, f"http://127.0.0.1:{port}", clips, folder)
    runner.should_exit = True
    thread.join(30)
    assert not thread.is_alive()
