"""
No file that the package reads can run code: a hostile one of each kind, in each place where one is read, runs nothing.

Each would make a marker when it is unpickled, imported or constructed. Nothing but the marker counts here; that such
files are refused in one line, or not looked at, is what the suites of the commands show.
"""

import ast
import contextlib
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from models import tiny_model
from test_training import forget_accelerate  # noqa: F401 - a fixture that applies to all tests
from training_runs import TINY_RUN, Run
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor
from vit_family_launcher import main

import hf_vit_family
from hf_vit_family import create_processor
from hf_vit_family.commands.demo import save_images


class Exploit:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path):
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


CODE = "open({marker!r}, 'w')\n"


def write_torch(path: Path, marker: Path) -> None:
    with path.open("wb") as file:  # torch refuses names such as .metadata
        torch.save({"model": {"weight": torch.ones(1)}, "epoch": Exploit(marker)}, file)


def write_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Exploit(marker)))


def write_numpy(path: Path, marker: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, weight=np.asarray([Exploit(marker)], dtype=object))


def write_yaml(path: Path, marker: Path) -> None:
    path.write_text(f"model: !!python/object/apply:builtins.open ['{marker}', 'w']\n")


def write_code(path: Path, marker: Path) -> None:
    path.write_text(CODE.format(marker=str(marker)))


KINDS = {"torch": write_torch, "pickle": write_pickle, "numpy": write_numpy}
# Names that some library would read from a folder.
WEIGHTS = ("pytorch_model.bin", "model.pth", "model.pt", "model.npz", "model.msgpack")
STATES = (
    "custom_checkpoint_0.pkl",
    "optimizer.bin",
    "scheduler.bin",
    "sampler.bin",
    "dl_state_dict.bin",
    "scaler.pt",
    "random_states_0.pkl",
    "pytorch_model.bin",
    ".metadata",
)


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "code of a planted file was run"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    assert Run(output, epochs=1).wait() is None
    return output


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("vit", num_labels=10).save_pretrained(folder)
    create_processor("vit_base_patch16_224", size=32).save_pretrained(folder)
    return folder


def command(*arguments) -> int:
    """The exit code; libraries that end otherwise have not run anything either."""
    with contextlib.suppress(Exception):
        return main([str(argument) for argument in arguments])
    return -1


def train_arguments(output: Path, **options) -> list:
    options = {**TINY_RUN, "max_steps": 1, **options, "output": output}
    recipe = output.parent / "options.yaml"
    recipe.write_text(json.dumps({name: str(v) if isinstance(v, Path) else v for name, v in options.items()}))
    return ["train", "--recipe", recipe]


def test_what_planted_files_would_do(tmp_path):
    """Without this the others would show nothing."""
    for write, load in (
        (write_torch, lambda path: torch.load(path, weights_only=False)),
        (write_pickle, lambda path: pickle.loads(path.read_bytes())),
        (write_numpy, lambda path: np.load(path, allow_pickle=True)["weight"]),
        (write_code, lambda path: exec(path.read_text())),
    ):
        proof = tmp_path / write.__name__
        write(tmp_path / "file", proof)
        load(tmp_path / "file")
        assert proof.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("instead", [False, True])
def test_in_a_checkpoint(kind, instead, marker, trained, tmp_path):
    """
    Beside its files, under every name that Accelerate, torch.distributed and DeepSpeed give their pickles; or as them.
    """
    output = Path(shutil.copytree(trained, tmp_path / "run"))
    (folder,) = (output / "checkpoints").iterdir()
    for name in [path.name for path in folder.iterdir()] if instead else STATES:
        KINDS[kind](folder / name, marker)
    code = command(*train_arguments(output, max_steps=None, epochs=1, resume=True))
    assert code == (2 if instead else 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "use", ["predict", "evaluate", "attend", "publish", "convert", "write back", "train", "teacher"]
)
def test_in_a_model_folder(kind, use, marker, classifier, tmp_path):
    model = Path(shutil.copytree(classifier, tmp_path / "model"))
    (model / "model.safetensors").unlink()
    for name in WEIGHTS:
        KINDS[kind](model / name, marker)
    image = save_images(tmp_path / "images")[0]
    publish = ["publish", model, "someone/digits", "--license", "mit", "--dry-run"]
    commands = {
        "predict": ["predict", image, "--model", model],
        "evaluate": ["evaluate", "--model", model, "--dataset", "digits", "--output", tmp_path / "results"],
        "attend": ["attend", image, "--model", model, "--output", tmp_path / "a.png"],
        "publish": publish,
        "convert": ["convert", model, "--output", tmp_path / "converted"],
        "write back": ["convert", model, "--to", "original", "--output", tmp_path / "back"],
        "train": train_arguments(tmp_path / "run", model=model, set={}, drop_path_rate=None),
        "teacher": train_arguments(tmp_path / "run", teacher=model),
    }
    assert command(*commands[use]) != 0


# Commands that load a folder by transformers' Auto classes, and those that load only this library's own.
TRUSTING = ("predict", "evaluate", "attend", "train", "teacher")
OWN = ("publish", "write back", "verify", "convert")


def plant_code(model: Path, marker: Path, model_type: str) -> None:
    """Names code that makes the marker in every file that can name code."""
    write_code(model / "evil.py", marker)
    for file in ("config.json", "preprocessor_config.json"):
        content = json.loads((model / file).read_text())
        classes = ("AutoConfig", "AutoModelForImageClassification", "AutoImageProcessor", "AutoModel", "AutoBackbone")
        content |= {"auto_map": dict.fromkeys(classes, "evil.Evil")}
        content |= {"model_type": model_type} if file == "config.json" else {"image_processor_type": "Evil"}
        (model / file).write_text(json.dumps(content))


def loading(use: str, model: Path, folder: Path) -> list:
    """The arguments of a command that loads a model folder."""
    image = save_images(folder / "images")[0]
    return {
        "predict": ["predict", image, "--model", model],
        "evaluate": ["evaluate", "--model", model, "--dataset", "digits", "--output", folder / "results"],
        "attend": ["attend", image, "--model", model, "--output", folder / "a.png"],
        "train": train_arguments(folder / "run", model=model, set={}, drop_path_rate=None),
        "teacher": train_arguments(folder / "run", teacher=model),
        "publish": ["publish", model, "someone/digits", "--license", "mit", "--dry-run"],
        "write back": ["convert", model, "--to", "original", "--output", folder / "back"],
        "convert": ["convert", model, "--output", folder / "converted"],
        "verify": ["convert", model, "--output", folder / "converted", "--verify"],
    }[use]


@pytest.fixture
def yes(monkeypatch, tmp_path):
    """Whoever is asked says yes, and modules that are loaded stay apart."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.parametrize("registered", [False, True])
@pytest.mark.parametrize("use", TRUSTING + OWN)
def test_code_of_a_model_folder(use, registered, yes, marker, classifier, tmp_path):
    """Named by an auto_map, of a model type that nobody has registered, or of one that is."""
    model = tmp_path / "model"
    if use in ("convert", "verify"):
        sizes = {"image_size": 8, "patch_size": 4, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
        ViTForImageClassification(ViTConfig(num_attention_heads=2, **sizes)).save_pretrained(model)
        ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(model)
    else:
        shutil.copytree(classifier, model)
    model_type = json.loads((model / "config.json").read_text())["model_type"]
    plant_code(model, marker, model_type if registered else "evil")
    assert command(*loading(use, model, tmp_path)) != 0 or registered


@pytest.mark.parametrize("use", TRUSTING)
def test_code_of_a_model_folder_runs_where_it_is_asked_for(use, yes, classifier, tmp_path):
    """Without this the test above would show nothing."""
    model = Path(shutil.copytree(classifier, tmp_path / "model"))
    plant_code(model, tmp_path / "proof", f"evil-{use}")
    command(*loading(use, model, tmp_path), "--trust-remote-code")
    assert (tmp_path / "proof").exists()


# Where code may run: an option says so, or this package has written it itself.
TRUST = {"trust_remote_code", "options.trust_remote_code", "False"}


def test_every_load_by_transformers_says_whether_code_may_run():
    root = Path(hf_vit_family.__file__).parents[1]
    found = 0
    for folder in ("hf_vit_family", "modeling", "conversion_scripts"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = ast.unparse(node.func).rpartition(".")[2]
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                place = f"{path.name}:{node.lineno}"
                if name in ("from_pretrained", "from_config", "pipeline"):
                    assert given.get("trust_remote_code") in TRUST, place
                    found += 1
                elif given.get("trust_remote_code") == "True":
                    assert path.name == "clean_process.py", place
    assert found > 10


def test_in_the_cache_of_a_teachers_library(marker, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    file = tmp_path / "torch/hub/checkpoints" / Path(torchvision.models.ResNet18_Weights.DEFAULT.url).name
    file.parent.mkdir(parents=True)
    write_torch(file, marker)
    assert command(*train_arguments(tmp_path / "run", teacher="torchvision:resnet18")) == 2
    assert not marker.exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("library", ["torchvision:resnet18", "timm:vit_tiny_patch16_224", "timm:local-dir:"])
def test_as_a_teachers_file(kind, library, marker, tmp_path):
    path = tmp_path / "teacher" / "pytorch_model.bin"
    path.parent.mkdir()
    KINDS[kind](path, marker)
    (path.parent / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {}}))
    teacher = f"{library}{path.parent}" if library.endswith(":") else f"{library}@{path}"
    assert command(*train_arguments(tmp_path / "run", teacher=teacher)) == 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".pyth", ".npz", ".safetensors", ".msgpack", ""])
def test_as_the_source_of_a_conversion(kind, suffix, marker, tmp_path):
    KINDS[kind](tmp_path / f"source{suffix}", marker)
    assert command("convert", tmp_path / f"source{suffix}", "--output", tmp_path / "out") == 2


def test_as_a_recipe(marker, tmp_path):
    write_yaml(tmp_path / "recipe.yaml", marker)
    assert command("train", "--recipe", tmp_path / "recipe.yaml", "--output", tmp_path / "run") == 2


@pytest.mark.parametrize("option", ["set", "optimizer_options"])
def test_as_a_value_of_an_option(option, marker, tmp_path):
    value = f"x=!!python/object/apply:builtins.open ['{marker}', 'w']"
    assert command(*train_arguments(tmp_path / "run"), f"--{option}", value) == 2


@pytest.mark.parametrize("kind", ["a script", "a pickle among images", "a script in a folder of parquet files"])
def test_as_data(kind, marker, tmp_path):
    folder = tmp_path / "digits"
    for name in ("train/0", "train/1"):
        (folder / name).mkdir(parents=True)
        for index, image in enumerate(save_images(tmp_path / "images" / name)):
            shutil.copy(image, folder / name / f"{index}.png")
    dataset = folder
    if kind == "a script":
        dataset = folder / "digits.py"
        write_code(dataset, marker)
    elif kind == "a pickle among images":
        write_torch(folder / "train" / "0" / "7.pth", marker)
        write_pickle(folder / "train" / "0" / "8.png", marker)
    else:
        shutil.rmtree(folder / "train")
        rows = {"image": [b"", b""], "label": [0, 1]}
        datasets.Dataset.from_dict(rows).to_parquet(folder / "train.parquet")
        write_code(folder / "digits.py", marker)
        write_code(folder / "dataset_builder.py", marker)
    command(
        *train_arguments(tmp_path / "run", dataset=dataset, max_train_samples=None, max_eval_samples=None, batch_size=2)
    )


CACHED = """
import json, sys
from vit_family_launcher import main

codes = []
for arguments in json.loads(sys.argv[1]):
    try:
        codes.append(main(arguments))
    except Exception:
        codes.append(-1)
print(json.dumps(codes))
"""


def test_in_the_caches(marker, tmp_path, classifier):
    """Repositories in the Hub's cache that hold pickles, and modules of an earlier trusted load, without a network."""
    for name in ("good", "evil"):
        cache, revision = tmp_path / "hub" / f"models--someone--{name}", "0" * 40
        snapshot = Path(shutil.copytree(classifier, cache / "snapshots" / revision))
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text(revision)
    (snapshot / "model.safetensors").unlink()
    for name in WEIGHTS:
        write_torch(snapshot / name, marker)
    modules = tmp_path / "modules" / "transformers_modules" / "someone" / "evil"
    modules.mkdir(parents=True)
    for folder in (modules, *list(modules.parents)[:2]):
        write_code(folder / "__init__.py", marker)
    image = save_images(tmp_path / "images")[0]
    commands = [
        ["predict", image, "--model", "someone/good"],
        ["predict", image, "--model", "someone/evil"],
        train_arguments(tmp_path / "run", teacher="someone/evil"),
        ["convert", "someone/evil", "--output", tmp_path / "out"],
    ]
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    arguments = json.dumps([[str(word) for word in words] for words in commands])
    process = subprocess.run([sys.executable, "-c", CACHED, arguments], env=environment, capture_output=True, text=True)
    good, *evil = json.loads(process.stdout.splitlines()[-1])
    assert good == 0
    assert 0 not in evil


# Calls that read files, by the name of the function: how each is kept from running code, and where it stands.
LOADS = {
    "torch.load": "weights_only=True",
    "np.load": "allow_pickle=False",
    "timm.models.load_checkpoint": "weights_only=True",
    "yaml.safe_load": "",
    "yaml.load": "refused",
    "yaml.unsafe_load": "refused",
    "yaml.full_load": "refused",
    "pickle.load": "refused",
    "pickle.loads": "refused",
    "dill.load": "refused",
    "joblib.load": "refused",
    "cloudpickle.load": "refused",
    "np.fromfile": "",
    "marshal.loads": "refused",
    "shelve.open": "refused",
    "pandas.read_pickle": "refused",
    "exec": "refused",
    "eval": "refused",
    "load_state": "refused",
    "save_state": "refused",
    "register_for_checkpointing": "refused",
    "torch.hub.load": "refused",
    "torch.jit.load": "refused",
}


def _calls(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            # Methods are known by their last name: self.accelerator.load_state is load_state.
            for known in LOADS:
                if name == known or ("." not in known and known not in ("exec", "eval") and name.endswith(f".{known}")):
                    yield known, node, f"{path.name}:{node.lineno}"


def test_every_load_of_the_package_is_one_that_runs_nothing():
    root = Path(hf_vit_family.__file__).parents[1]
    files = [p for folder in ("hf_vit_family", "modeling", "conversion_scripts") for p in (root / folder).rglob("*.py")]
    assert len(files) > 100
    found = set()
    for path in files:
        for name, call, place in _calls(path):
            assert LOADS[name] != "refused", f"{place}: {name}"
            keywords = {f"{keyword.arg}={ast.unparse(keyword.value)}" for keyword in call.keywords}
            assert not LOADS[name] or LOADS[name] in keywords, f"{place}: {name} without {LOADS[name]}"
            found.add(name)
    assert {"torch.load", "np.load", "yaml.safe_load", "timm.models.load_checkpoint"} <= found


def test_checkpoints_hold_nothing_but_tensors_and_json(trained):
    (folder,) = (trained / "checkpoints").iterdir()
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            safetensors.torch.load_file(path)
        else:
            json.loads(path.read_text())
