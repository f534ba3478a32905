"""Memory and time of loading a 2 GB checkpoint, beside a plain copy and transformers.

    python benchmarks/load_checkpoint.py [--rounds=3] [--json]

Writes a random bfloat16 Qwen2.5-VL (widths of the 3B, fewer layers) to a temporary folder, then
loads it in fresh processes, ours, a plain copy of the bytes and transformers' `from_pretrained` in
turn, with the file in the page cache. The copy reads the files as they lie into one block of memory
with as many threads as ours has, which is the least that any loader with memory of its own does.
`peak` is the largest resident set of the whole process over the size of the checkpoint, and
`growth` the same less what was resident just before loading (interpreter, libraries, devices).
Seconds do not compare equal work: transformers maps the file and adopts its pages as they lie,
where ours are transposed and stacked into memory of their own, which is then free to be trained.
On a machine that others use, the seconds of CPUs say more.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

CHUNK = 2 << 20  # bytes of one read
LAYERS = {"num_hidden_layers": 8, "vision_depth": 5, "vision_fullatt_block_indexes": [2, 4]}
PEAK = 1.1  # most memory over the checkpoint's size
# Most seconds for each GB, or as many over those of a plain copy where that is slower too.
SECONDS, COPIES = 0.9 / 2.13, 0.9 / 0.4


def resident(key: str) -> float:
    """Bytes of this process: VmRSS now, VmHWM at its highest."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}; this benchmark needs Linux")


def write(folder) -> int:
    """Writes the checkpoint; returns the bytes of its weights."""
    import ml_dtypes

    from videorft_jax.models import hf_folder as convert
    from videorft_jax.models import hf_writer
    from videorft_jax.models.qwen2_5_vl.config import hf_values, parse_config
    from videorft_jax.models.qwen2_5_vl.hf_names import leaves_of

    config = parse_config(hf_values("3b", **LAYERS))
    rng = np.random.default_rng(0)

    def leaf(shape):
        values = rng.standard_normal(shape[1:] or shape, np.float32) * 0.02
        return np.broadcast_to(values.astype(ml_dtypes.bfloat16), shape)

    params = {found.path: leaf(found.shape) for found in leaves_of(config)}
    hf_writer.write_checkpoint(folder, convert.nest(params), config)
    return sum(path.stat().st_size for path in pathlib.Path(folder).glob("*.safetensors"))


def load_ours(folder):
    import jax

    from videorft_jax.models import hf_folder as convert
    from videorft_jax.models.family import load_config

    config = load_config(folder)
    jax.block_until_ready(jax.device_put(np.zeros(1)))
    yield
    yield jax.block_until_ready(convert.read_checkpoint(folder, config))


def load_copy(folder):
    from concurrent.futures import ThreadPoolExecutor

    np.zeros(1)
    yield
    files = sorted(pathlib.Path(folder).glob("*.safetensors"))
    sizes = [path.stat().st_size for path in files]
    block, start = np.empty(sum(sizes), np.uint8), 0
    jobs = []
    for path, size in zip(files, sizes, strict=True):
        descriptor = os.open(path, os.O_RDONLY)
        for offset in range(0, size, CHUNK):
            stop = min(offset + CHUNK, size)
            jobs.append((descriptor, memoryview(block[start + offset : start + stop]), offset))
        start += size
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        done = pool.map(lambda job: os.preadv(job[0], [job[1]], job[2]), jobs)
        assert sum(done) == len(block)
    yield block


def load_peer(folder):
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.zeros(1)
    yield
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype="auto")
    # Mapped pages count once they are read, as ours were: touch one value of each.
    sum(float(p.detach().flatten()[::2048].sum()) for p in model.parameters())
    yield model


def measure(who: str, folder: str) -> None:
    """In a fresh process: prints one JSON object."""
    steps = {"ours": load_ours, "copy": load_copy, "peer": load_peer}[who](folder)
    next(steps)
    # A virtual machine may have given its free memory back to its host. To get it again takes
    # seconds that belong to no loader, so it is taken and let go just before.
    block = np.empty(sum(path.stat().st_size for path in pathlib.Path(folder).iterdir()), np.uint8)
    block[::4096] = 1
    del block
    before, start, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    kept = next(steps)
    result = {"load_s": time.perf_counter() - start, "cpu_s": time.process_time() - cpu}
    result |= {"peak": resident("VmHWM"), "before": before}
    result["after"] = resident("VmRSS")
    del kept
    print(json.dumps(result))


def run(who: str, folder: str) -> dict[str, float]:
    """What a fresh process measures."""
    command = [sys.executable, __file__, "--measure", who, folder]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(output.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(*arguments.measure)
        return

    runs = {"ours": [], "copy": [], "peer": []}
    with tempfile.TemporaryDirectory() as parent:
        folder = str(pathlib.Path(parent) / "model")
        os.environ |= {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        size = write(folder)
        for _ in range(arguments.rounds):
            for who, results in runs.items():
                results.append(run(who, folder))

    report = {
        "machine": {"cpus": os.cpu_count(), "system": " ".join(os.uname()[i] for i in (0, 2, 4))},
        "shape": {"bytes": size, "dtype": "bfloat16", "rounds": arguments.rounds} | LAYERS,
    }
    for who, results in runs.items():
        middle = {key: statistics.median(r[key] for r in results) for key in results[0]}
        report[who] = {
            "load_s": round(middle["load_s"], 3),
            "cpu_s": round(middle["cpu_s"], 3),
            "peak_over_size": round(middle["peak"] / size, 3),
            "growth_over_size": round((middle["peak"] - middle["before"]) / size, 3),
            "after_over_size": round(middle["after"] / size, 3),
        }
    report["ratio"] = {
        key: round(report["peer"][name] / report["ours"][name], 2)
        for key, name in (("load", "load_s"), ("peak", "peak_over_size"))
    } | {"copy": round(report["copy"]["load_s"] / report["ours"]["load_s"], 2)}
    print(f"checkpoint: {size / 1e9:.2f} GB, bfloat16, median of {arguments.rounds} rounds")
    print(f"{'':14}{'seconds':>9}{'of CPUs':>9}{'peak/size':>11}{'growth/size':>13}")
    for who, label in (("ours", "videorft_jax"), ("copy", "plain copy"), ("peer", "transformers")):
        row = report[who]
        print(
            f"{label:14}{row['load_s']:9.2f}{row['cpu_s']:9.2f}{row['peak_over_size']:11.3f}"
            f"{row['growth_over_size']:13.3f}"
        )
    if arguments.json:
        print(json.dumps(report))
    ours, copies = report["ours"], report["ours"]["load_s"] / report["copy"]["load_s"]
    is_slow = ours["load_s"] > SECONDS * size / 1e9 and copies > COPIES
    if ours["peak_over_size"] > PEAK or is_slow:
        sys.exit(
            f"peak {ours['peak_over_size']} must not pass {PEAK}, nor {ours['load_s']} s "
            f"{SECONDS * size / 1e9:.2f} s and {COPIES:.2f} times a plain copy, here {copies:.2f}"
        )


if __name__ == "__main__":
    main()
