"""Metrics against scikit-learn, the evaluation loop, the command and the plots."""

import csv
import json

import evaluate
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, top_k_accuracy_score
from torch.utils.data import DataLoader
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput
from vit_family_launcher import main

from hf_vit_family.data.load import DataConfig, load_evaluation
from hf_vit_family.errors import UserError
from hf_vit_family.evaluation.evaluate import evaluate_model, read_valid_labels
from hf_vit_family.evaluation.metrics import CalibrationError, ConfusionMatrix, RealAccuracy, TopKAccuracy
from hf_vit_family.explain.plots import plot_confusion, plot_curves
from hf_vit_family.modeling.image_processing_vitf import VitfImageProcessor
from hf_vit_family.variants import create_model


class Echo(torch.nn.Module):
    """A classifier whose logits are its input."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=pixel_values.flatten(1) * self.scale)


@pytest.fixture
def predictions():
    """Logits (200, 8) that lean towards the labels (200,), with a class that never occurs."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(7, (200,), generator=generator)
    logits = torch.randn(200, 8, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, 8)
    return logits, labels


def loader(logits, labels, batch_size=33):
    rows = [
        {"pixel_values": row.view(-1, 1, 1), "labels": int(label)} for row, label in zip(logits, labels, strict=True)
    ]
    return DataLoader(rows, batch_size=batch_size)


def run(logits, labels, **options):
    return evaluate_model(Echo(), loader(logits, labels), num_labels=logits.shape[1], progress=False, **options)


def expected_calibration_error(probabilities, labels, bins=15):
    """Equation 3 of arXiv 1706.04599, bin by bin."""
    confidence, prediction = probabilities.max(1)
    error = 0.0
    for low in range(bins):
        inside = (confidence > low / bins) & (confidence <= (low + 1) / bins)
        if inside.any():
            gap = (prediction[inside] == labels[inside]).double().mean() - confidence[inside].double().mean()
            error += inside.double().mean() * gap.abs()
    return float(error)


def test_metrics_equal_scikit_learns(predictions):
    logits, labels = predictions
    results = run(logits, labels)
    best = logits.argmax(1)
    assert results["accuracy"] == pytest.approx(accuracy_score(labels, best))
    assert results["top5_accuracy"] == pytest.approx(top_k_accuracy_score(labels, logits, k=5, labels=range(8)))
    assert np.array_equal(results["confusion"], confusion_matrix(labels, best, labels=range(8)))
    assert results["mean_per_class_accuracy"] == pytest.approx(balanced_accuracy_score(labels, best))
    for label in range(7):
        assert results["per_class_accuracy"][label] == pytest.approx(
            float((best == label)[labels == label].float().mean())
        )
    assert np.isnan(results["per_class_accuracy"][7])
    assert results["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert results["ece"] == pytest.approx(expected_calibration_error(logits.softmax(1), labels), rel=1e-5)
    assert 0 < results["ece"] < results["accuracy"] < results["top5_accuracy"] < 1


def test_results_do_not_depend_on_batches_or_accelerate(predictions):
    logits, labels = predictions
    first = run(logits, labels)
    accelerator = Accelerator(cpu=True)
    prepared = accelerator.prepare_data_loader(loader(logits, labels, batch_size=7))
    second = evaluate_model(Echo(), prepared, accelerator=accelerator, num_labels=8, progress=False)
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_allclose(value, second[name], rtol=1e-6)


def test_images_without_a_label_are_left_out(predictions):
    logits, labels = predictions
    marked = labels.clone()
    marked[::3] = -100
    kept = marked >= 0
    results, expected = run(logits, marked), run(logits[kept], labels[kept])
    assert results["confusion"].sum() == kept.sum()
    for name, value in expected.items():
        np.testing.assert_allclose(results[name], value, rtol=1e-6)
    with pytest.raises(UserError, match="no readable image"):
        run(logits, torch.full((200,), -100))


def test_few_classes_have_a_top5_accuracy_of_one(predictions):
    logits, labels = predictions
    assert run(logits[:, :3], labels % 3)["top5_accuracy"] == 1.0


def test_a_label_that_the_model_lacks_is_refused(predictions):
    logits, labels = predictions
    with pytest.raises(UserError, match="label 6 of the data lies outside the 4 classes"):
        run(logits[:, :4], labels)


def test_the_model_keeps_its_mode(predictions):
    model = Echo().train()
    evaluate_model(model, loader(*predictions), num_labels=8, progress=False)
    assert model.training


def test_calibration_of_certain_and_uncertain_predictions():
    right = {"predictions": [0, 1], "references": [0, 1]}
    assert CalibrationError().compute(**right, confidences=[1.0, 1.0])["ece"] == 0
    assert CalibrationError().compute(**right, confidences=[0.6, 0.6])["ece"] == pytest.approx(0.4)
    wrong = {"predictions": [0, 1], "references": [1, 0]}
    assert CalibrationError().compute(**wrong, confidences=[1.0, 1.0])["ece"] == 1


def test_metrics_are_evaluate_metrics_that_combine_and_take_batches(predictions):
    logits, labels = predictions
    best = logits.argmax(1).numpy()
    metric = ConfusionMatrix()
    assert isinstance(metric, evaluate.Metric)
    for start in range(0, 200, 50):
        metric.add_batch(predictions=best[start : start + 50], references=labels[start : start + 50].numpy())
    assert metric.compute(num_labels=8)["confusion"].sum() == 200
    top = TopKAccuracy().compute(predictions=logits.topk(5).indices.numpy(), references=labels.numpy())
    assert top["accuracy"] == pytest.approx(float(np.mean(best == labels.numpy())))


def test_real_accuracy_counts_any_valid_label_and_skips_images_without(predictions):
    logits, labels = predictions
    result = RealAccuracy().compute(predictions=[1, 2, 3, 4], references=[[0, 1], [], [5], [4]])
    assert result["real_accuracy"] == pytest.approx(2 / 3)
    valid = [[int(label), 0] for label in labels]
    expected = np.mean([int(best) in v for best, v in zip(logits.argmax(1), valid, strict=True)])
    assert run(logits, labels, valid_labels=valid)["real_accuracy"] == pytest.approx(expected)
    with pytest.raises(UserError, match="199 images, but 200"):
        run(logits, labels, valid_labels=valid[1:])


def test_valid_labels_follow_the_number_in_an_imagenet_name(tmp_path):
    path = tmp_path / "real.json"
    path.write_text("[[10], [20, 21], []]")
    names = ["x/ILSVRC2012_val_00000002.JPEG", "x/ILSVRC2012_val_00000001.JPEG"]
    assert read_valid_labels(path, names) == [[20, 21], [10]]
    assert read_valid_labels(path, ["a.jpg", "b.jpg"]) == [[10], [20, 21]]
    with pytest.raises(UserError, match="has 3 entries, none for ILSVRC2012_val_00000009"):
        read_valid_labels(path, ["ILSVRC2012_val_00000009.JPEG"])
    path.write_text('{"a": 1}')
    with pytest.raises(UserError, match="expected a list"):
        read_valid_labels(path, ["a"])
    with pytest.raises(UserError, match="cannot be read"):
        read_valid_labels(tmp_path / "none.json", ["a"])


# The command


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    model = create_model(
        "vit_tiny_patch16_224",
        image_size=8,
        patch_size=4,
        hidden_size=12,
        num_hidden_layers=2,
        num_channels=1,
        id2label={i: str(i) for i in range(10)},
    )
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    VitfImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5], image_std=[0.5]).save_pretrained(folder)
    return folder


def test_the_command_writes_what_it_measured(model_folder, tmp_path, capsys):
    output = tmp_path / "results"
    arguments = ["--model", str(model_folder), "--dataset", "digits", "--output", str(output), "--num_workers", "0"]
    assert main(["evaluate", *arguments]) == 0
    facts = json.loads((output / "evaluation.json").read_text())
    assert (facts["dataset"], facts["split"], facts["num_images"], facts["image_size"]) == (
        "digits",
        "test",
        359,
        [8, 8],
    )
    model = AutoModelForImageClassification.from_pretrained(model_folder)
    processor = AutoImageProcessor.from_pretrained(model_folder)
    images, _, _ = load_evaluation(DataConfig(), processor)
    results = evaluate_model(model, DataLoader(images, batch_size=100), progress=False)
    assert facts["metrics"] == pytest.approx({k: v for k, v in results.items() if isinstance(v, float)}, rel=1e-5)
    assert facts["parameters"] == model.num_parameters()
    rows = list(csv.DictReader((output / "per_class.csv").open()))
    assert [row["class"] for row in rows] == [str(i) for i in range(10)]
    assert sum(int(row["images"]) for row in rows) == 359
    assert Image.open(output / "confusion.png").format == "PNG"
    assert f"{facts['metrics']['accuracy']:.4f}" in capsys.readouterr().out


def test_the_command_refuses_more_classes_than_the_model_has(model_folder, tmp_path, capsys):
    for name in range(11):
        (tmp_path / "set" / f"class{name}").mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "set" / f"class{name}" / "0.png")
    arguments = ["--model", str(model_folder), "--dataset", str(tmp_path / "set"), "--output", str(tmp_path / "out")]
    assert main(["evaluate", *arguments]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "11 classes, the model only 10" in message
    assert "num_labels=11" in message
    assert "class10" in message
    assert "has 0, 1, 2, 3, 4, 5, 6, 7, 8, 9" in message
    assert not (tmp_path / "out").exists()


def test_a_regression_model_has_no_accuracy(model_folder, tmp_path, capsys):
    model = AutoModelForImageClassification.from_pretrained(model_folder)
    model.config.problem_type = "regression"
    model.save_pretrained(tmp_path)
    AutoImageProcessor.from_pretrained(model_folder).save_pretrained(tmp_path)
    assert main(["evaluate", "--model", str(tmp_path), "--dataset", "digits"]) == 2
    assert "predicts values, not classes" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch_size", "0"], "--batch_size 0"),
        (["--eval_fraction", "2"], "--eval_fraction 2.0"),
        (["--eval_split", "dev"], "eval_split 'dev'"),
    ],
)
def test_bad_options_of_the_command_are_one_line(model_folder, capsys, options, message):
    assert main(["evaluate", "--model", str(model_folder), "--dataset", "digits", *options]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


# Plots


def test_curves_are_drawn_from_the_lines_of_a_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"split": "train", "step": i, "epoch": i / 2, "loss": 1 / (i + 1), "lr": 0.1} for i in range(5)]
    rows.append({"split": "evaluation", "step": 4, "epoch": 2.0, "loss": 0.3, "accuracy": 0.9})
    path.write_text("\n".join(map(json.dumps, rows)))
    plot_curves(path, tmp_path / "plots" / "curves.png")
    assert Image.open(tmp_path / "plots" / "curves.png").size == (1080, 408)
    assert [p.name for p in (tmp_path / "plots").iterdir()] == ["curves.png"]
    path.write_text("{}\nnonsense")
    with pytest.raises(UserError, match="line 2"):
        plot_curves(path, tmp_path / "other.png")
    assert not (tmp_path / "other.png").exists()


@pytest.mark.parametrize("count", [2, 30, 100])
def test_confusion_is_drawn_for_few_and_many_classes(tmp_path, count):
    confusion = np.random.default_rng(0).integers(0, 9, (count, count))
    confusion[0] = 0  # a class without images
    plot_confusion(confusion, [f"class {i}" for i in range(count)], tmp_path / "confusion.png")
    assert min(Image.open(tmp_path / "confusion.png").size) >= 400
