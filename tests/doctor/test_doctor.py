"""Each finding of the doctor, on installations and machines that are made up."""

import re
import shutil
import subprocess
import sys

import pytest
from tiny_run import make_config, make_data, make_model, make_siglip

from videorft_jax import cli
from videorft_jax.checkpoints import manifest
from videorft_jax.commands import doctor
from videorft_jax.data.media.contract import MediaContract
from videorft_jax.doctor import inputs, installation, machine, self_test
from videorft_jax.doctor.findings import FAILURE, OK, WARNING
from videorft_jax.models.geometry import PLAIN_16

CPU, GPU = ["cpu", "cpu", 0], ["gpu", "NVIDIA H200", 139 * 2**30]


@pytest.mark.parametrize(
    ("version", "level"), [((3, 10), FAILURE), ((3, 11), OK), ((3, 12), OK), ((3, 13), FAILURE)]
)
def test_pythons(version, level):
    assert installation.check_python(version).level == level


def test_versions_against_a_lock(tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("jax==0.10.2 \\\n    --hash=sha256:00\nNum_Py==2.1\nextra==1.0\n")
    same = {"jax": "0.10.2", "num-py": "2.1", "other": "9"}
    found = installation.check_versions(lock, same)
    assert (found.level, "2 packages" in found.text) == (OK, True)
    found = installation.check_versions(lock, same | {"jax": "0.11.0"})
    assert found.level == WARNING
    assert "jax 0.11.0 (tested 0.10.2)" in found.text
    assert found.remedy == f"pip install --no-deps --require-hashes -r {lock}"
    assert installation.check_versions(tmp_path / "none", {}).level == OK


def test_requirements_are_met():
    """A wheel has no lock beside it, and its packages may be too old, too new or gone."""
    required = ["av<19,>=18", "array_record>=0.8", "jax<0.13,>=0.10.2", 'uvicorn; extra == "serve"']
    installed = {"av": "18.1.0", "array-record": "0.8.6", "jax": "0.12.0.1"}
    assert installation.check_requirements(required, installed).level == OK
    found = installation.check_requirements(required, installed | {"av": "19.0", "jax": "0.9.2"})
    assert found.level == FAILURE
    assert found.text == "requirements not met: av 19.0, jax 0.9.2"
    assert found.remedy == "pip install 'av<19,>=18' 'jax<0.13,>=0.10.2'"
    installed.pop("array-record")
    found = installation.check_requirements(required, installed)
    assert (found.level, found.remedy) == (FAILURE, "pip install 'array_record>=0.8'")
    assert "array_record is missing" in found.text


@pytest.mark.parametrize("place", ["_read_config", "_look_at_inputs"])
def test_an_installation_too_broken_for_a_config_is_still_looked_at(place, monkeypatch, capsys):
    def fail(*_):
        raise ImportError("libavformat.so.61: cannot open")

    monkeypatch.setattr(doctor, place, fail)
    monkeypatch.setattr(installation, "ask_devices", lambda: "jaxlib is too new")
    monkeypatch.setattr(installation, "find_hardware", lambda: "cpu")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert cli.main(["doctor", "--quick", "--config=sft_7b"]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("ok    Python 3.")
    at = next(i for i, line in enumerate(said) if "JAX fails: jaxlib is too new" in line)
    assert said[at + 1].startswith("      -> pip install --force-reinstall 'jax<0.13")
    assert "FAIL  inputs: they were not looked at (libavformat.so.61: cannot open)" in said
    assert said[-1].startswith("2 failures, ")
    assert said[-1].endswith("mend what has failed; next: videorft doctor --quick --config=sft_7b")


def test_a_broken_package_is_no_missing_extra(capsys):
    def fail(_):
        raise ImportError("libavformat.so.61: cannot open", name="av")

    def miss(_):
        raise ModuleNotFoundError("No module named 'uvicorn'", name="uvicorn")

    assert cli.run(fail, [], "videorft validate") == 2
    assert (
        "cannot open; an installed package is broken, `videorft doctor`" in capsys.readouterr().err
    )
    assert cli.run(miss, [], "videorft serve") == 2
    assert "'uvicorn'; see the extras under Start in the README" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("devices", "hardware", "platforms", "libtpu", "level", "remedy"),
    [
        ([GPU] * 2, "gpu", "", False, OK, ""),
        ([CPU], "cpu", "", False, OK, ""),
        ([CPU], "gpu", "", False, FAILURE, "pip install 'videorft_jax[gpu]'"),
        ([CPU], "gpu", "cpu", False, FAILURE, "unset JAX_PLATFORMS"),
        ([CPU], "tpu", "", True, FAILURE, "pip install 'videorft_jax[tpu]'"),
        ([GPU], "gpu", "", True, WARNING, "export JAX_PLATFORMS=cuda, or pip uninstall libtpu"),
        ("no driver", "gpu", "", False, FAILURE, "pip install 'videorft_jax[gpu]'"),
        ("no tpu", "cpu", "tpu", False, FAILURE, "unset JAX_PLATFORMS (it is 'tpu')"),
        ("AssertionError", "gpu", "cuda", False, FAILURE, "pip install 'videorft_jax[gpu]'"),
        ("no tpu", "gpu", "tpu", False, FAILURE, "unset JAX_PLATFORMS (it is 'tpu')"),
        ("no tpu", "tpu", "tpu,cpu", True, FAILURE, "pip install 'videorft_jax[tpu]'"),
    ],
)
def test_devices(devices, hardware, platforms, libtpu, level, remedy):
    environment = {"JAX_PLATFORMS": platforms} if platforms else {}
    found = installation.check_devices(devices, hardware, environment, libtpu)
    assert (found[0].level, found[0].remedy) == (level, remedy)
    if GPU in list(devices):
        assert "139 GiB each" in found[-1].text


@pytest.mark.parametrize(
    ("error", "variable", "value"),
    [
        (
            "parse_flags_from_env.cc:234] Unknown flag in XLA_FLAGS: --none=1",
            "XLA_FLAGS",
            "--none=1",
        ),
        (
            'ValueError: Invalid value "x" for JAX flag jax_num_cpu_devices',
            "JAX_NUM_CPU_DEVICES",
            "x",
        ),
    ],
)
def test_a_variable_that_jax_cannot_read_is_named(error, variable, value):
    for hardware in ("cpu", "gpu"):
        (found,) = installation.check_devices(error, hardware, {variable: value}, has_libtpu=False)
        assert found.remedy == f"unset {variable}, or correct it (it is {value!r})"


def test_a_device_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(installation, "_ASK", "import time; time.sleep(60)")
    assert "no answer within 0 s" in installation.ask_devices(seconds=0.2)
    monkeypatch.setattr(installation, "_ASK", "raise SystemExit('no driver here')")
    assert installation.ask_devices() == "no driver here"


def test_disk(tmp_path):
    assert machine.check_disk(tmp_path / "new" / "run", least_gib=0).level == OK
    found = machine.check_disk(tmp_path, least_gib=1e9)
    assert found.level == WARNING
    assert "free space" in found.remedy
    found = machine.check_disk("/proc/nothing")
    assert found.level == FAILURE
    assert "cannot be written" in found.text


def test_memory():
    assert machine.check_memory(32, 16).level == OK
    assert machine.check_memory(32, 1).level == WARNING
    total, free = machine.read_memory()
    assert 0 < free <= total


@pytest.mark.parametrize(
    ("text", "tunables", "level"),
    [
        ("[always] madvise never", "", OK),
        ("always [madvise] never", "", WARNING),
        ("always [madvise] never", "glibc.malloc.hugetlb=1", OK),
        ("always madvise [never]", "glibc.malloc.hugetlb=1", WARNING),
    ],
)
def test_huge_pages(tmp_path, text, tunables, level):
    setting = tmp_path / "enabled"
    setting.write_text(text)
    assert machine.check_huge_pages(setting, {"GLIBC_TUNABLES": tunables}).level == level


def test_compile_cache(tmp_path):
    assert "export JAX_COMPILATION_CACHE_DIR" in machine.check_compile_cache("").remedy
    (tmp_path / "program").touch()
    assert "1 files" in machine.check_compile_cache(str(tmp_path)).text
    assert machine.check_compile_cache("gs://bucket/cache").level == OK
    assert machine.check_compile_cache("/proc/nothing").level == FAILURE


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    files = make_data(folder / "clips", num_sft=4, num_rl=4, num_eval=1)
    make_model(folder / "model", files["sft"])
    make_siglip(folder / "siglip", files["sft"])
    return folder, files


def test_inputs_that_are_good(place):
    folder, files = place
    assert inputs.check_model(str(folder / "model")).level == OK
    assert inputs.check_siglip(str(folder / "siglip")).level == OK
    found = inputs.check_records(files["rl"], "", MediaContract.train())
    assert [each.level for each in found] == [OK, OK]
    assert "4 of 4 decoded" in found[1].text


def test_a_model_that_a_run_would_refuse(place, tmp_path):
    """A shard that is not there, another prefix, another adapter: a run reads the headers too."""
    folder = tmp_path / "model"
    shutil.copytree(place[0] / "model", folder)
    for arguments, text in (
        ((MediaContract.train(PLAIN_16),), "model: .*model: media.patch_size is 16, but the pat"),
        ((None, "module."), r"model: .* do not begin with module. \(strip_prefix\)"),
        ((None, "", str(tmp_path)), "model: .*adapter_config.json: not readable"),
    ):
        finding = inputs.check_model(str(folder), *arguments)
        assert (finding.level, bool(finding.remedy)) == (FAILURE, True)
        assert re.match(text, finding.text), finding.text
    assert inputs.check_model(str(folder), MediaContract.train()).level == OK
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "truncated, the header promises" in inputs.check_model(str(folder)).text
    weights.unlink()
    finding = inputs.check_model(str(folder))
    assert (finding.level, finding.remedy) == (FAILURE, "give a model folder")
    config = make_config("sft_7b", {"model.init_from": str(folder), "data.records": place[1]["rl"]})
    findings = list(doctor._look_at_inputs(config, ""))
    assert findings[0].level == FAILURE


def test_clips_that_are_missing(place, tmp_path):
    _, files = place
    copy = shutil.copy(files["rl"], tmp_path)
    found = inputs.check_records(copy, "", MediaContract.train())[1]
    assert found.level == FAILURE
    assert found.remedy == "give the folder of the media with --config.data.root=DIR"
    shutil.copytree(place[0] / "clips/clips", tmp_path / "clips")
    (tmp_path / "clips/rl/000001.mp4").write_bytes(b"")
    found = inputs.check_records(copy, "", MediaContract.train())[1]
    assert found.level == WARNING
    assert found.text.startswith("clips: 1 of 4 cannot be used")
    assert found.remedy.startswith("videorft validate --data=")


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (lambda folder: inputs.check_model(str(folder)), "model: "),
        (lambda folder: inputs.check_siglip(str(folder)), "SigLIP: "),
        (lambda folder: inputs.check_records(str(folder), "", MediaContract.train())[0], "records"),
    ],
)
def test_folders_without_what_is_wanted(tmp_path, found, text):
    finding = found(tmp_path)
    assert finding.level == FAILURE
    assert finding.text.startswith(text)
    assert finding.remedy


def test_checkpoints(tmp_path):
    assert "none" in inputs.check_checkpoints(str(tmp_path)).text
    for step in (1, 2):
        folder = tmp_path / f"checkpoints/{step:08d}"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"123")
        manifest.write(folder, {})
    (tmp_path / "checkpoints/7").mkdir()  # no checkpoint of ours
    assert inputs.check_checkpoints(str(tmp_path)).level == OK
    (tmp_path / "checkpoints/00000002/weights").write_bytes(b"12")
    found = inputs.check_checkpoints(str(tmp_path))
    assert (found.level, found.remedy) == (WARNING, "nothing: a run goes on from 00000001")
    (tmp_path / "checkpoints/00000001/manifest.json").unlink()
    found = inputs.check_checkpoints(str(tmp_path))
    assert (found.level, "or restore a copy" in found.remedy) == (FAILURE, True)
    (tmp_path / "checkpoints/00000002/manifest.json").unlink()  # as a save that was cut off
    found = inputs.check_checkpoints(str(tmp_path))
    assert (found.level, found.remedy) == (WARNING, "nothing: a run starts at step 0")
    manifest.write(tmp_path / "checkpoints/00000002", {"version": 2})
    found = inputs.check_checkpoints(str(tmp_path))
    assert (found.level, "install that one" in found.remedy) == (FAILURE, True)
    assert "00000002: is of version 2" in found.text


def test_the_self_test_works_here_and_sees_a_device_that_computes_wrongly(monkeypatch):
    assert self_test.run_self_test().level == OK
    monkeypatch.setattr(self_test, "_measure_gap", lambda: 0.5)
    assert self_test.run_self_test().level == FAILURE
    monkeypatch.setattr(self_test, "_measure_gap", lambda: float("nan"))
    assert self_test.run_self_test().level == FAILURE


def test_the_command_ends_with_1_when_something_will_not_work(monkeypatch, capsys):
    monkeypatch.setattr(installation, "ask_devices", lambda: [CPU])
    assert cli.main(["doctor", "--quick"]) == 0
    assert "0 failures" in capsys.readouterr().out
    monkeypatch.setattr(installation, "find_hardware", lambda: "gpu")
    assert cli.main(["doctor"]) == 1  # and the tiny model is not run
    said = capsys.readouterr().out
    assert "although the machine has a GPU" in said
    assert "self test" not in said
    assert cli.main(["doctor", "--config.seed=1"]) == 2


def test_help_is_quick_and_loads_no_jax():
    code = "import sys; from videorft_jax.cli import main\ntry: main(['doctor', '--help'])\n"
    code += "except SystemExit: assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
