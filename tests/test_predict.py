"""`vit-family predict`: labels and probabilities, and one line for what cannot be read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import Commit, Repository
from models import tiny_model
from PIL import Image
from vit_family_launcher import main

from hf_vit_family import create_processor

LABELS = {0: "apple", 1: "pear", 2: "plum", 3: "fig", 4: "quince"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model("vit", id2label=LABELS, label2id={label: i for i, label in LABELS.items()}).save_pretrained(folder)
    create_processor("vit_base_patch16_224", size=32).save_pretrained(folder)
    return folder


@pytest.fixture
def model(saved, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def images(tmp_path) -> list[str]:
    generator = np.random.default_rng(0)
    paths = [tmp_path / "colour.png", tmp_path / "grey.jpg"]
    Image.fromarray(generator.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(paths[0])
    Image.fromarray(generator.integers(0, 256, (40, 90), dtype=np.uint8)).save(paths[1])
    return [str(path) for path in paths]


def refused(capsys, *arguments: str) -> str:
    """The one line that a command with bad input prints."""
    capsys.readouterr()
    assert main(["predict", *map(str, arguments)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    # Without the progress bar, which ends with a line of its own, that line is all.
    lines = [line for line in captured.err.splitlines() if line and "file/s]" not in line]
    assert len(lines) == 1
    assert lines[0].startswith("vit-family predict: ")
    return lines[0]


def test_table_equals_the_model(model, images, capsys):
    assert main(["predict", *images, "--model", str(model)]) == 0
    expected = []
    processor, classifier = create_processor("vit_base_patch16_224", size=32), tiny_model("vit")
    for path in images:
        with torch.no_grad():
            logits = classifier(**processor(Image.open(path), return_tensors="pt")).logits[0]
        ranked = sorted(enumerate(logits.softmax(-1).tolist()), key=lambda pair: -pair[1])
        expected += [path, *(f"  {probability:.4f}  {LABELS[label]}" for label, probability in ranked)]
    assert capsys.readouterr().out.splitlines() == expected


def test_top(model, images, capsys):
    assert main(["predict", images[0], "--model", str(model), "--top", "2"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["predict", images[0], "--model", str(model), "--top", "99"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(LABELS)


@pytest.mark.parametrize(
    ("config", "scores"),
    [
        ({"problem_type": "regression"}, lambda logits: list(enumerate(logits.tolist()))),
        ({"problem_type": "regression", "num_labels": 1}, lambda logits: [(0, logits[0].item())]),
        ({"num_labels": 1}, lambda logits: [(0, logits[0].item())]),
        (
            {"problem_type": "multi_label_classification", "num_labels": 1},
            lambda logits: [(0, logits[0].sigmoid().item())],
        ),
        ({"problem_type": "multi_label_classification"}, lambda logits: ranked(logits.sigmoid())),
        ({"problem_type": "single_label_classification"}, lambda logits: ranked(logits.softmax(-1))),
        ({}, lambda logits: ranked(logits.softmax(-1))),
    ],
)
def test_scores_are_what_the_model_was_trained_for(images, tmp_path, capsys, config, scores):
    classifier = tiny_model("vit", **config)
    processor = create_processor("vit_base_patch16_224", size=32)
    classifier.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert main(["predict", images[0], "--model", str(tmp_path)]) == 0
    with torch.no_grad():
        logits = classifier(**processor(Image.open(images[0]), return_tensors="pt")).logits[0]
    expected = [f"  {value:.4f}  LABEL_{label}" for label, value in scores(logits)]
    assert capsys.readouterr().out.splitlines()[1:] == expected


def ranked(probabilities: torch.Tensor) -> list[tuple[int, float]]:
    return sorted(enumerate(probabilities.tolist()), key=lambda pair: -pair[1])


def test_unreadable_images(model, images, tmp_path, capsys):
    missing = tmp_path / "missing.png"
    assert str(missing) in refused(capsys, images[0], missing, "--model", model)
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(images[0]).read_bytes()[:200])
    assert str(broken) in refused(capsys, broken, "--model", model)
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    assert str(text) in refused(capsys, text, "--model", model)
    for alone in (images[0], images[1]):
        assert main(["predict", str(alone), "--model", str(model)]) == 0
    expected = capsys.readouterr().out
    assert main(["predict", *map(str, (broken, images[0], text, images[1])), "--model", str(model)]) == 1
    shown = capsys.readouterr()
    assert shown.out == expected
    lines = [line for line in shown.err.splitlines() if line.startswith("vit-family predict: ")]
    assert [str(broken) in lines[0], str(text) in lines[1], len(lines)] == [True, True, 2]


def test_broken_model_folders(model, images, tmp_path, capsys):
    command = (images[0], "--model")
    assert "no such folder" in refused(capsys, *command, tmp_path / "nowhere")
    assert "has no config.json" in refused(capsys, *command, tmp_path)
    processor = (model / "preprocessor_config.json").read_text()
    (model / "preprocessor_config.json").unlink()
    assert "has no preprocessor_config.json" in refused(capsys, *command, model)
    (model / "preprocessor_config.json").write_text(processor)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert str(model) in refused(capsys, *command, model)
    (model / "model.safetensors").unlink()
    assert "model.safetensors" in refused(capsys, *command, model)


def test_hub_ids(hub, saved, images, tmp_path):
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    bare = {name: data for name, data in files.items() if name != "preprocessor_config.json"}
    hub.repositories["some/model"] = Repository(False, [Commit("push", files)])
    hub.repositories["some/bare"] = Repository(False, [Commit("push", bare)])
    code = """
import sys
import huggingface_hub
from vit_family_launcher import main
image = sys.argv[1]
assert main(["predict", image, "--model", "some/model"]) == 0
for model in ("some/bare", "no/model"):
    assert main(["predict", image, "--model", model]) == 2
huggingface_hub.constants.HF_HUB_OFFLINE = True
assert main(["predict", image, "--model", "other/model"]) == 2
"""
    environment = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code, images[0]], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert shown[0] == images[0]
    assert sorted(line.split()[1] for line in shown[1:]) == sorted(LABELS.values())
    lines = [line for line in done.stderr.splitlines() if line.startswith("vit-family predict: ")]
    assert len(lines) == 3
    assert "some/bare has no preprocessor_config.json" in lines[0]
    assert "the Hub has no such repository, or it is private" in lines[1]
    assert "HF_HUB_OFFLINE is set" in lines[2]


def test_configurations_that_do_not_fit(model, images, capsys):
    config = json.loads((model / "config.json").read_text())
    for change, message in (
        ({"hidden_size": 64}, "but config.json makes it"),
        ({"model_type": "vitf_wit"}, "vitf_wit"),
    ):
        (model / "config.json").write_text(json.dumps({**config, **change}))
        assert message in refused(capsys, images[0], "--model", model)


def test_model_without_a_head(model, images, capsys):
    shutil.rmtree(model)
    tiny_model("vit", "Model").save_pretrained(model)
    create_processor("vit_base_patch16_224", size=32).save_pretrained(model)
    assert "no weights for classifier" in refused(capsys, images[0], "--model", model)


@pytest.mark.parametrize("channels", [1, 3])
def test_colour_and_grey_files_for_models_of_either(images, tmp_path, capsys, channels):
    tiny_model("vit", num_channels=channels).save_pretrained(tmp_path)
    mean_and_std = {"image_mean": [0.5] * channels, "image_std": [0.5] * channels}
    create_processor("vit_base_patch16_224", size=32, **mean_and_std).save_pretrained(tmp_path)
    mode = {1: "L", 3: "RGB"}[channels]
    converted = []
    for number, path in enumerate(images):
        converted.append(str(tmp_path / f"{number}.png"))
        Image.open(path).convert(mode).save(converted[-1])
    assert main(["predict", *images, *converted, "--model", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    tables = [lines[start + 1 : start + 6] for start in range(0, 24, 6)]
    assert tables[:2] == tables[2:]
    for number, path in enumerate([*images, *converted]):
        output = tmp_path / f"{number}_attention.png"
        assert main(["attend", path, "--model", str(tmp_path), "--output", str(output)]) == 0
    for number in range(2):
        sheets = [np.asarray(Image.open(tmp_path / f"{index}_attention.png")) for index in (number, number + 2)]
        assert np.array_equal(*sheets)


def test_options_that_do_not_fit(model, images, capsys):
    assert "--top 0" in refused(capsys, images[0], "--model", model, "--top", "0")
    assert "--device quantum" in refused(capsys, images[0], "--model", model, "--device", "quantum")
