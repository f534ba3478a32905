"""A tiny model of the demo that has learnt to describe, think and revise in the demo's world.

Its lessons are the requests of the pipeline itself about clips whose scenes are known, with replies
that are written from the scenes.
"""

import functools
import json
import pathlib

from curation_run import licence
from tiny_run import load_recipe

from videorft_jax.commands.sft import sft
from videorft_jax.curation.config_file import read_config
from videorft_jax.curation.requests import Picture, Reply
from videorft_jax.curation.run import Curation
from videorft_jax.data.records.render import render_text
from videorft_jax.demo.dataset import make_sample, write_dataset
from videorft_jax.demo.questions import caption_scene, describe_events
from videorft_jax.demo.scenes import WorldConfig
from videorft_jax.demo.tiny_models import write_random_model
from videorft_jax.models.family import find_family

SEED = 0
TEMPLATES = {
    "describe_video": "You describe.\n---\n{num_frames} frames. {before}{people}",
    "describe_image": "You describe.\n---\n{field} {focus}",
    "think": "You think.\n---\n{description}\n{question}",
    "revise": "You revise.\n---\n{question}\n{chain}",
    "repair": "You correct.\n---\n{fault}",
}


def make_world():
    world = load_demo().world.to_dict()
    return WorldConfig(**world)


def load_demo():
    load_recipe("demo")
    import demo

    return demo.get_config()


def make_place(folder, *, num_lessons, num_pool):
    """Clips, templates and configs of curation for lessons and pool, as paths by name."""
    folder = pathlib.Path(folder)
    clips = write_dataset(folder / "clips", num_lessons, num_pool, 0, seed=SEED, world=make_world())
    (folder / "templates").mkdir(exist_ok=True)
    for name, text in TEMPLATES.items():
        (folder / "templates" / f"{name}.txt").write_text(text)
    return clips


def write_config(path, folder, records, end, budget="tokens = 10_000_000"):
    """A config of curation whose three experts are the lines `end`."""
    ends = "\n".join(
        f'[endpoints.{name}]\nmodel = "expert"\nstructured = "none"\ntemperature = 0.0\n'
        f'terms = {{allows_training = "unknown"}}\n'
        f"context = 4096\nmax_output = {length}\nconcurrency = 8\ndeadline_s = 3600.0\n{end}\n"
        for name, length in (("describe", 640), ("think", 128), ("revise", 128))
    )
    rows = map(json.loads, pathlib.Path(records).read_text().splitlines())
    licences = "".join(licence(name) for name in sorted({row["data_source"] for row in rows}))
    pathlib.Path(path).write_text(
        f'[data]\nrecords = "{records}"\nval_fraction = 0.0\nisolate = false\n'
        f'templates = "{folder}/templates"\n'
        f"[frames]\nfps = 2.0\nmax_frames = 2\nmax_pixels = {112 * 112}\n"
        f"[stages]\nleast_words = 4\n[budget]\n{budget}\n{ends}\n{licences}"
    )
    return path


def write_lessons(folder, records):
    """A file of chats, one for each request about each record, with the reply to learn."""
    folder = pathlib.Path(folder)
    config = write_config(folder / "lessons.toml", folder, records, 'base_urls = ["http://h/v1"]')
    options = read_config(config)
    (folder / "frames").mkdir(exist_ok=True)
    rows, first = [], ""
    with Curation(options, str(folder / "lessons")) as curation:
        for entry in curation.pool():
            sample = make_sample(make_world(), SEED, "sft", entry.index)
            work, reply = curation.pipeline.curate(entry), None
            while True:
                try:
                    request = next(work) if reply is None else work.send(reply)
                except StopIteration:
                    break
                reply = Reply(_write_reply(request, sample))
                rows.append(_write_chat(folder, request, reply.content, len(rows), first))
                first = first or rows[0]["media"][0]["path"]
    path = folder / "lessons.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _write_reply(request, sample):
    record, scene = sample.record, sample.scene
    if request.stage == "describe":
        times = [float(p[1:-3]) for p in request.parts if isinstance(p, str) and p[-3:] == " s]"]
        frames = []
        for time in times:
            seen = [s for s in scene.shapes if s.appears <= round(time * make_world().fps)]
            names = [f"a {shape.name}" for shape in seen]
            frames.append(
                {"time": time, "caption": " and ".join(names), "objects": names, "actions": [],
                 "scene": "plain", "notable_features": None, "spatial_relations": [],
                 "interactions": None}
            )  # fmt: skip
        caption = f"{' '.join(describe_events(scene))} There is {caption_scene(scene)}."
        return json.dumps({"video_caption": caption, "frames": frames})
    chain = record.process.removeprefix("<think>").removesuffix("</think>").strip()
    answer = f"<answer>{record.solution}</answer>" if request.stage == "think" else ""
    return f"<think>{chain}</think>{answer}"


def _write_chat(folder, request, said, number, first):
    text = "".join("<image>" if isinstance(p, Picture) else p for p in request.parts)
    media = []
    for picture, data in zip(request.pictures, request.load() if request.load else [], strict=True):
        path = folder / "frames" / f"{picture.digest[:16]}.jpg"
        path.write_bytes(data)
        media.append({"type": "image", "path": f"frames/{path.name}"})
    turns = [("system", request.system), ("user", text), ("assistant", said)]
    if not media:  # A record needs media, which therefore come after what is to be learnt.
        media = [{"type": "image", "path": first}]
        turns += [("user", "<image>"), ("assistant", "A picture.")]
    return {
        "problem_id": number, "solution": "see the last turn", "media": media,
        "messages": [{"role": role, "content": content} for role, content in turns],
    }  # fmt: skip


def train(folder, lessons, *, steps, rows=16):
    """Trains the demo's model on the lessons; returns the run."""
    folder = pathlib.Path(folder)
    demo = load_demo()
    values = demo.model.to_dict()
    gain, family = values.pop("init_gain"), find_family(values.pop("model_type"))
    texts = []
    for line in lessons.read_text().splitlines():
        texts.append(render_text(json.loads(line)["messages"], family.geometry))
    values["vocab_size"] = 640
    make_values = functools.partial(family.demo_values, **values)
    write_random_model(
        folder / "model", texts, 640, make_values, gain=gain, seed=SEED, geometry=family.geometry
    )
    config = demo.sft
    config.seed = SEED
    config.model.init_from = str(folder / "model")
    config.data.records = str(lessons)
    config.data.rows, config.data.row_tokens = rows, 512
    config.media.image_min_pixels = config.media.min_pixels
    config.media.image_max_pixels = config.media.max_pixels
    config.train.max_steps = steps
    sft(config, str(folder / "expert"))
    return folder / "expert"
