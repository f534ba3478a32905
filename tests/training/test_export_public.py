"""What an export says about its origin holds on other machines, and a run may go on meanwhile."""

import json
import re

import hub_cache
import pytest

import videorft_jax as vr


@pytest.fixture(scope="module")
def place(trained_place):
    return trained_place


@pytest.mark.parametrize("revision", ["", "@main"])
def test_the_base_has_its_name_on_the_hub(place, tmp_path, monkeypatch, revision):
    """A snapshot in the hub's cache is a folder named by a hash, which means nothing elsewhere."""
    snapshot = hub_cache.put(tmp_path / "hub", "org/tiny-2.5", place.model, monkeypatch)
    for name, model in (("named", f"org/tiny-2.5{revision}"), ("by_path", str(snapshot))):
        for run in ("full", "lora"):
            flags = ["--adapter"] if run == "lora" else []
            out = tmp_path / f"{name}_{run}"
            assert place.export(run, out, f"--model={model}", *flags) == 0
            card = (out / "README.md").read_text()
            assert 'base_model: "org/tiny-2.5"' in card
            assert "- Started from `org/tiny-2.5`." in card
            assert hub_cache.COMMIT not in card
        adapter = json.loads((out / "adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == "org/tiny-2.5"
        assert adapter["revision"] == ("main" if name == "named" and revision else None)
        vr.load(place.model, adapter=out)
    assert place.export("lora", tmp_path / "folder", "--adapter") == 0
    adapter = json.loads((tmp_path / "folder" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == str(place.model)


def test_torn_lines_of_metrics_are_left_out_of_the_card(place, tmp_path):
    """The last line of a run that goes on or was killed may be half written."""
    metrics = place.folder / "full" / "metrics.jsonl"
    whole = ['{"step": 1, "loss": 3.5}', '{"step": 3, "loss": 2.5}', '{"step": 4, "loss": 1.5}']
    for number, torn in enumerate(('{"step": 3, "lo', "\0\0", "[]", "5")):
        metrics.write_text("\n".join([*whole, torn]))
        out = tmp_path / f"hf{number}"
        try:
            assert place.export("full", out) == 0
        finally:
            metrics.unlink()
        rows = re.findall(r"\| loss \| (\S+) \|", (out / "README.md").read_text())
        assert rows == ["2.5"]
