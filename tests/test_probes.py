"""Judging an encoder by its features: nearest neighbours, a linear classifier, and features in a parquet file."""

import json

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from models import PLAIN_CASES, VIDEO_CASES, architecture_of, random_pixels, tiny_model
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from test_training import forget_accelerate  # noqa: F401 - a fixture that applies to all tests
from training_runs import train_tiny
from vit_family_launcher import main

from hf_vit_family import create_model, create_processor
from hf_vit_family.data.load import DataConfig, load_data, load_probe, load_splits
from hf_vit_family.data.sources import open_source
from hf_vit_family.errors import UserError
from hf_vit_family.evaluation import features, probes
from hf_vit_family.evaluation.features import FeatureBatch, FeatureCache, feature_batches
from hf_vit_family.evaluation.probes import LEARNING_RATES, Neighbors, knn_probe, linear_probe
from hf_vit_family.loading import load_encoder
from hf_vit_family.modeling.configuration_vitf import pair
from hf_vit_family.modeling.image_processing_vitf import VitfImageProcessor
from hf_vit_family.modeling.video_processing_vitf import VitfVideoProcessor
from hf_vit_family.publishing.cards import Evaluation, Training

TINY = ["image_size=8", "patch_size=4", "hidden_size=16", "num_hidden_layers=2", "num_attention_heads=2"]
VARIANT = ["--model", "vit_tiny_patch16_224", "--set", *TINY]
DIGITS = ["--dataset", "digits", "--num_workers", "0"]


def batches(examples: torch.Tensor, labels: torch.Tensor, size: int):
    positions = torch.arange(len(labels))
    parts = zip(examples.split(size), labels.split(size), positions.split(size), strict=True)
    return [FeatureBatch(*part) for part in parts]


@pytest.fixture(scope="module")
def clusters():
    """Training examples (300, 6) and queries (80, 6) of five classes that overlap, with labels."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 6, generator=generator)
    made = []
    for count in (300, 80):
        labels = torch.randint(5, (count,), generator=generator)
        made += [centres[labels] + 0.8 * torch.randn(count, 6, generator=generator), labels]
    return made


# Nearest neighbours


def brute_force(examples, labels, queries, num_classes, k, temperature):
    """The votes of each query's neighbours, one by one, in float64."""
    votes = np.zeros((len(queries), num_classes))
    unit = [(x / x.norm()).double() for x in examples]
    for row, query in enumerate(queries):
        query = (query / query.norm()).double()
        similarities = [float(query @ other) for other in unit]
        for index in sorted(range(len(unit)), key=lambda i: -similarities[i])[:k]:
            votes[row, labels[index]] += np.exp(similarities[index] / temperature)
    return votes


@pytest.mark.parametrize(
    ("k", "temperature", "size", "chunk"), [(20, 0.07, 64, 2**22), (7, 0.5, 5, 40), (1, 1, 300, 1)]
)
def test_neighbours_vote_as_one_by_one(clusters, k, temperature, size, chunk, monkeypatch):
    """Whatever the batches that examples come in, fewer than k among them, and the part of the queries at a time."""
    monkeypatch.setattr(probes, "CHUNK", chunk)
    examples, labels, queries, truth = clusters
    neighbors = Neighbors(queries, k)
    for batch in batches(examples, labels, size):
        neighbors.add(batch.features, batch.labels)
    ours = neighbors.votes(5, temperature)
    expected = torch.from_numpy(brute_force(examples, labels, queries, 5, k, temperature))
    # Up to a factor of each row.
    torch.testing.assert_close(
        (ours / ours.sum(1, keepdim=True)).double(), expected / expected.sum(1, keepdim=True), rtol=1e-4, atol=1e-6
    )
    accuracy = knn_probe(batches(examples, labels, size), queries, truth, 5, k, temperature)["metrics"]["accuracy"]
    assert accuracy == pytest.approx(float((expected.argmax(1) == truth).float().mean()))


def test_neighbours_equal_scikit_learns(clusters):
    examples, labels, queries, truth = clusters
    unit = [nn / nn.norm(dim=1, keepdim=True) for nn in (examples, queries)]
    for temperature in (0.07, 0.3):
        # Of unit vectors, the squared distance is 2 - 2 * similarity.
        reference = KNeighborsClassifier(
            20, weights=lambda d, t=temperature: np.exp((1 - d**2 / 2) / t), algorithm="brute"
        )
        reference.fit(unit[0].double().numpy(), labels.numpy())
        results = knn_probe(batches(examples, labels, 50), queries, truth, 5, 20, temperature)
        assert results["num_train"] == 300
        assert results["metrics"]["accuracy"] == pytest.approx(reference.score(unit[1].double().numpy(), truth.numpy()))
        assert 0.5 < results["metrics"]["accuracy"] < 1  # there is something to tell
        assert results["metrics"]["top5_accuracy"] == 1


def test_small_temperatures_and_few_examples(clusters):
    examples, labels, queries, truth = clusters
    nearest = knn_probe(batches(examples, labels, 50), queries, truth, 5, 1, 1.0)
    assert knn_probe(batches(examples, labels, 50), queries, truth, 5, 20, 1e-6) == nearest
    with pytest.raises(UserError, match="k=20: there are only 19 training examples"):
        knn_probe(batches(examples[:19], labels[:19], 50), queries, truth, 5)


# The linear probe


def test_the_linear_probe_finds_what_is_separable():
    """Classes that a direction of small variance tells: features are standardised."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for count in (400, 200):
        labels = torch.randint(3, (count,), generator=generator)
        noise = torch.randn(count, 4, generator=generator) * torch.tensor([100.0, 30.0, 0.1, 0.002]) + 50
        noise[:, 2:] += torch.nn.functional.one_hot(labels, 3)[:, 1:] * torch.tensor([1.0, 0.02])
        made += [noise, labels]
    examples, labels, queries, truth = made
    cache = FeatureCache(batches(examples, labels, 64))
    assert torch.equal(cache.features, examples)
    results = linear_probe(cache, queries, truth, 3, epochs=60)
    assert results["metrics"]["accuracy"] > 0.95  # of 1.0
    assert results["num_train"] == 400
    tried = {each["learning_rate"]: each["held_out_accuracy"] for each in results["learning_rates"]}
    assert list(tried) == list(LEARNING_RATES)
    assert tried[results["learning_rate"]] == max(tried.values())
    assert linear_probe(cache, queries, truth, 3, epochs=60) == results
    # The lowest rate learns less: a sweep has something to choose from.
    slow = linear_probe(cache, queries, truth, 3, [1e-5], epochs=1)
    assert slow["metrics"]["accuracy"] < results["metrics"]["accuracy"]


def test_the_learning_rate_is_chosen_without_the_test_examples(clusters, monkeypatch):
    """Other test labels choose the same rate, and the test examples are classified once."""
    examples, labels, queries, truth = clusters
    cache = FeatureCache(batches(examples, labels, 64))
    asked = []
    ranked = probes.LinearProbe.ranked
    monkeypatch.setattr(
        probes.LinearProbe, "ranked", lambda self, features: asked.append(len(features)) or ranked(self, features)
    )
    first = linear_probe(cache, queries, truth, 5, epochs=5)
    assert asked == [30, 80]
    second = linear_probe(cache, queries, (truth + 1) % 5, 5, epochs=5)
    assert first["learning_rates"] == second["learning_rates"]
    assert first["metrics"] != second["metrics"]


def test_rates_learn_side_by_side_as_alone(clusters):
    examples, labels, queries, _ = clusters
    cache = FeatureCache(batches(examples, labels, 64))
    rows = torch.arange(300)
    together = probes.LinearProbe(6, 5, [0.1, 1e38, 1.0], 3, torch.device("cpu")).fit(cache, rows, 9, "")
    assert not torch.isfinite(together.weights[1]).all()  # one that diverges leaves the others alone
    for index, rate in ((0, 0.1), (2, 1.0)):
        alone = probes.LinearProbe(6, 5, [rate], 3, torch.device("cpu")).fit(cache, rows, 9, "")
        torch.testing.assert_close(together.weights[index], alone.weights[0])
    assert together.ranked(queries).shape == (3, 80, 5)


def test_too_few_examples_for_a_linear_probe():
    cache = FeatureCache(batches(torch.randn(4, 3), torch.tensor([0, 0, 1, 1]), 4))
    with pytest.raises(UserError, match="4 training examples are too few"):
        linear_probe(cache, torch.randn(2, 3), torch.tensor([0, 1]), 2)


# Encoders


def save(case: str, head: str, folder):
    """A tiny model of a case and a processor for it, saved."""
    model = tiny_model(case, head)
    model.save_pretrained(folder)
    height, width = pair(model.config.image_size)
    fields = {"size": {"height": height, "width": width}, "image_mean": [0.5] * model.config.num_channels}
    fields["image_std"] = fields["image_mean"]
    if case in VIDEO_CASES:
        fields["num_frames"] = model.config.num_frames
    (VitfVideoProcessor if case in VIDEO_CASES else VitfImageProcessor)(**fields).save_pretrained(folder)
    return model


@pytest.mark.parametrize("case", PLAIN_CASES)
def test_features_are_the_models_outputs(case, tmp_path, capsys):
    """Of every architecture, whatever it was saved as."""
    for head in architecture_of(case).heads:
        model = save(case, head, tmp_path / head)
        pixels = random_pixels(model.config)
        capsys.readouterr()
        encoder = load_encoder(str(tmp_path / head), "cpu")
        # Swin's backbones divide maps into windows in another way than its classifiers.
        bare = architecture_of(case).model_class("Model")(model.config).eval()
        bare.load_state_dict(model.base_model.state_dict(), strict=False)
        with torch.no_grad():
            outputs = model.base_model(pixels)
            expected = bare(pixels).pooler_output
        said = capsys.readouterr().err
        if encoder.pooling == "model":
            torch.testing.assert_close(encoder(pixels), expected, rtol=1e-5, atol=1e-5)
            assert said == ""
        else:
            assert head in ("Backbone", "ForMaskedImageModeling", "ForPreTraining")
            assert "its features are the means of its last tokens" in said
            with pytest.raises(UserError, match="choose pooling mean"):
                load_encoder(str(tmp_path / head), "cpu", pooling="model")
        mean = load_encoder(str(tmp_path / head), "cpu", pooling="mean")(pixels)
        assert mean.shape == (2, model.config.stage_channels[-1])
        if head == "ForMaskedImageModeling":
            tokens = model.feature_map(outputs.last_hidden_state, *pixels.shape[-2:])
            assert mean.shape == (2, model.config.stage_channels[-1])
            torch.testing.assert_close(mean, tokens.mean((2, 3)), rtol=1e-5, atol=1e-5)


def test_a_variant_has_random_weights_by_its_seed():
    fields = {"image_size": 32, "patch_size": 8}
    first, second, other = (
        load_encoder("vit_tiny_patch16_224", "cpu", overrides=fields, seed=seed) for seed in (1, 1, 2)
    )
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(first(pixels), second(pixels))
    assert not torch.allclose(first(pixels), other(pixels), atol=1e-2)
    assert first.weights == "random, seed 1"
    assert dict(first.processor.size) == {"height": 32, "width": 32}


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (lambda folder: rewrite(folder, lambda weights: weights.pop("vit.layernorm.weight")), "no weights for"),
        (
            lambda folder: rewrite(folder, lambda weights: weights.update({"vit.layernorm.weight": torch.ones(3)})),
            r"layernorm.weight is \(3,\)",
        ),
    ],
)
def test_what_is_no_encoder_is_refused(prepare, message, tmp_path):
    save("vit", "ForImageClassification", tmp_path)
    prepare(tmp_path)
    with pytest.raises(UserError, match=message):
        load_encoder(str(tmp_path), "cpu")


def rewrite(folder, change):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_broken_weights_have_no_features(tmp_path):
    model = save("vit", "Model", tmp_path)
    with torch.no_grad():
        model.layernorm.weight.fill_(torch.inf)
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="features are not finite"):
        load_encoder(str(tmp_path), "cpu")(random_pixels(model.config))


# The command: probes


def test_the_command_reports_both_probes(tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["evaluate", "--probe", "knn", *VARIANT, *DIGITS, "--output", str(output), "--seed", "3"]) == 0
    assert main(["evaluate", "--probe", "linear", *VARIANT, *DIGITS, "--output", str(output), "--epochs", "3"]) == 0
    knn, linear = (json.loads((output / f"probe_{name}.json").read_text()) for name in ("knn", "linear"))
    for report in (knn, linear):
        assert (report["num_train"], report["num_eval"], report["feature_size"]) == (1438, 359, 16)
        assert (report["train_split"], report["eval_split"], report["num_classes"]) == ("train", "test", 10)
        assert report["metrics"].keys() == {"accuracy", "top5_accuracy", "mean_per_class_accuracy"}
        assert report["overrides"]["hidden_size"] == 16
    assert (knn["settings"], knn["weights"]) == ({"k": 20, "temperature": 0.07}, "random, seed 3")
    assert linear["settings"]["epochs"] == 3
    assert [each["learning_rate"] for each in linear["learning_rates"]] == list(LEARNING_RATES)
    assert f"{linear['metrics']['accuracy']:.4f}" in capsys.readouterr().out
    assert {path.name for path in output.iterdir()} == {"probe_knn.json", "probe_linear.json"}

    # The numbers are those of the functions.
    fields = {key: int(value) for key, value in (word.split("=") for word in TINY)}
    encoder = load_encoder("vit_tiny_patch16_224", "cpu", overrides=fields, seed=3)
    train, test, _ = load_probe(DataConfig(), encoder.processor)
    (whole,) = feature_batches(encoder, test, 400, 0)
    expected = knn_probe(feature_batches(encoder, train, 100, 0), whole.features, whole.labels, 10)
    assert knn["metrics"] == pytest.approx(expected["metrics"], abs=0.006)  # two images: batches round differently


def test_one_split_is_refused_or_divided(tmp_path, capsys):
    for name in ("cat", "dog"):
        for number in range(30):
            path = tmp_path / "set" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 200 if name == "cat" else 30, 90)).save(path)
    argv = ["evaluate", "--probe", "knn", *VARIANT, "--dataset", str(tmp_path / "set"), "--num_workers", "0"]
    output = ["--output", str(tmp_path / "out"), "--k", "3"]
    assert main([*argv, *output]) == 2
    assert "has only the split 'train'" in capsys.readouterr().err.strip().splitlines()[-1]
    assert main([*argv, *output, "--eval_split", "train"]) == 2
    assert "is also the train_split" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()
    (tmp_path / "set" / "cat" / "0.png").write_bytes(b"broken")
    assert main([*argv, *output, "--eval_fraction", "0.2"]) == 0
    assert "0.png" in capsys.readouterr().err
    report = json.loads((tmp_path / "out" / "probe_knn.json").read_text())
    assert report["num_train"] + report["num_eval"] == 59
    assert report["metrics"]["accuracy"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--probe", "knn", "--k", "0"], "--k 0 must be at least 1"),
        (["--probe", "knn", "--temperature", "0"], "--temperature 0.0 must be above 0"),
        (["--probe", "knn", "--epochs", "3"], "--epochs is for --probe linear"),
        (["--probe", "linear", "--k", "3"], "--k is for --probe knn"),
        (["--k", "3", "--set"], "--k is for --probe knn"),
        (["--pooling", "mean", "--set"], "--pooling is for --probe knn or linear"),
        (["--train_share", "0.5", "--set"], "--train_share is for --probe knn or linear"),
        (["--probe", "knn", "--train_share", "1.5"], "train_share=1.5 must be above 0"),
        (["--probe", "knn", "--train_share", "0.001"], "train_share=0.001 leaves none"),
        (["--probe", "knn", "--max_train_samples", "7"], "k=20: there are only 7"),
        (["--probe", "knn", "--views", "1x1"], "--views is for classifiers"),
        (["--probe", "linear", "--max_train_samples", "9", "--epochs", "1"], "are too few for a linear probe"),
        (["--probe", "knn", "--eval_fraction", "0.5"], "has the split 'test'"),
        (["--probe", "knn", "--set", "image_size=9"], "image_size"),
        (["--probe", "knn", "--set", "num_channels=1"], "num_channels=1"),
        (["--probe", "knn", "--eval_split", "dev"], "eval_split 'dev'"),
    ],
)
def test_what_does_not_fit_is_one_line(options, message, tmp_path, capsys):
    argv = ["evaluate", *VARIANT, *DIGITS, "--output", str(tmp_path / "out"), *options]
    if "--set" in options:
        start = argv.index("--set")
        argv = [*argv[:start], *argv[argv.index("--dataset") :]]
        if argv[-1] == "--set":
            argv.pop()
    assert main(argv) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_fields_are_set_of_variants_only(tmp_path, capsys):
    save("vit", "Model", tmp_path)
    assert main(["evaluate", "--probe", "knn", "--model", str(tmp_path), *DIGITS, "--set", "hidden_size=3"]) == 2
    assert "fields can be set of a variant only" in capsys.readouterr().err


# A share of the labels


def test_a_share_of_the_labels_is_stratified_and_always_the_same():
    processor = create_processor("cct_2_3x2_32", size={"height": 8, "width": 8})
    counts = np.bincount(open_source("digits").open("train").labels)
    whole = load_data(DataConfig(), processor, 0)
    chosen = [load_data(DataConfig(train_share=0.1), processor, seed).train.store for seed in (0, 1)]
    assert np.bincount(chosen[0].labels).tolist() == [round(0.1 * count) for count in counts]
    assert [chosen[0].name(i) for i in range(len(chosen[0]))] == [chosen[1].name(i) for i in range(len(chosen[1]))]
    assert len(load_data(DataConfig(train_share=1.0), processor, 0).train) == len(whole.train)
    part = load_data(DataConfig(train_share=0.1), processor, 0)
    assert len(part.evaluation) == len(whole.evaluation)
    with pytest.raises(UserError, match="train_share=0"):
        DataConfig(train_share=0.0)


def test_a_stream_has_no_share(tmp_path):
    table = datasets.Dataset.from_dict(
        {"image": [Image.new("L", (8, 8))] * 4, "label": [0, 1, 0, 1]},
        features=datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b"])),
    )
    for split in ("train", "validation"):
        table.to_parquet(tmp_path / f"{split}.parquet")
    processor = create_processor("cct_2_3x2_32")
    config = DataConfig(dataset=str(tmp_path), streaming=True, train_share=0.5)
    with pytest.raises(UserError, match="train_share needs to know all labels"):
        load_data(config, processor, 0)


# Features in a file


def test_features_of_a_file_are_the_models_outputs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(features, "ROW_GROUP", 500)
    path = tmp_path / "new" / "features.parquet"
    assert main(["features", *VARIANT, *DIGITS, "--output", str(path), "--seed", "5"]) == 0
    assert "1797 images of digits (train, test)" in capsys.readouterr().out
    assert list(path.parent.iterdir()) == [path]
    file = pyarrow.parquet.ParquetFile(path)
    assert file.num_row_groups == 4
    facts = json.loads(file.schema_arrow.metadata[b"vit_family"])
    assert (facts["model"], facts["dataset"], facts["weights"]) == ("vit_tiny_patch16_224", "digits", "random, seed 5")
    assert facts["overrides"]["patch_size"] == 4
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 1797
    test = rows.filter(lambda split: split == "test", input_columns="split")
    fields = {key: int(value) for key, value in (word.split("=") for word in TINY)}
    encoder = load_encoder("vit_tiny_patch16_224", "cpu", overrides=fields, seed=5)
    torch.manual_seed(5)
    model = create_model("vit_tiny_patch16_224", "Model", **fields).eval()
    source = open_source("digits").open("test")
    for index in (0, 100, 358):
        row = test[index]
        pixels = encoder.processor(source.read(index).convert("RGB"), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            expected = model(pixels).pooler_output[0]
        torch.testing.assert_close(torch.tensor(row["feature"]), expected, rtol=1e-4, atol=1e-5)
        assert (row["label"], row["class_name"]) == (source.labels[index], str(source.labels[index]))
        assert row["file"] == source.image_name(index)


def test_features_need_no_labels_and_leave_broken_images_out(tmp_path, capsys):
    for number in range(5):
        Image.new("RGB", (9, 9), (40 * number, 3, 90)).save(tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"broken")
    path = tmp_path / "out" / "features.parquet"
    argv = ["features", *VARIANT, "--dataset", str(tmp_path), "--num_workers", "0", "--output", str(path)]
    assert main([*argv, "--batch_size", "2"]) == 0
    said = capsys.readouterr()
    assert "labels are left out" in said.err
    assert "3.png" in said.err
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["file"].rpartition("/")[2] for row in rows] == ["0.png", "1.png", "2.png", "4.png"]
    assert {(row["label"], row["class_name"]) for row in rows} == {(None, None)}
    before = path.read_bytes()
    assert main([*argv, "--on_bad_image", "error"]) == 2
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_features_of_clips(tmp_path):
    save("timesformer", "Model", tmp_path / "model")
    path = tmp_path / "clips.parquet"
    argv = ["features", "--model", str(tmp_path / "model"), "--dataset", "moving_digits", "--num_workers", "0"]
    encoder = load_encoder(str(tmp_path / "model"), "cpu")
    splits, _ = load_splits(DataConfig(dataset="moving_digits"), encoder.processor, ["test"])
    splits[0].images.store.labels = splits[0].images.store.labels[:6]
    features.write_features(encoder, splits, path, {}, 4, 0)
    rows = pyarrow.parquet.read_table(path).to_pylist()
    assert [row["class_name"] for row in rows[:4]] == ["left-up", "left-down", "right-up", "right-down"]
    clip = splits[0].images[5]["pixel_values"]
    torch.testing.assert_close(torch.tensor(rows[5]["feature"]), encoder(clip[None])[0], rtol=1e-4, atol=1e-5)
    assert main([*argv, "--splits", "tset", "--output", str(path)]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--output", "x.csv"], "written as parquet"),
        (["--output", "x.parquet", "--splits", "tset"], "did you mean 'test'"),
        (["--output", "x.parquet", "--batch_size", "0"], "--batch_size 0"),
        (["--output", "x.parquet", "--device", "quantum"], "--device quantum"),
        (["--output", "x.parquet", "--model", "vit_tny_patch16_224", "--set"], "mean 'vit_tiny_patch16_224'"),
        (["--output", "x.parquet", "--label_column", "z", "--dataset", "nowhere.parquet"], "does not exist"),
    ],
)
def test_bad_options_of_features_are_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if options[-1] == "--set":
        argv = ["features", *DIGITS, *options[:-1]]
    else:
        argv = ["features", *VARIANT, *DIGITS, *options]
    assert main(argv) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_training_takes_a_share(tmp_path):
    train_tiny(tmp_path, max_train_samples=None, train_share=0.1, max_steps=1)
    assert Training.read(tmp_path).num_images == 143
    assert Evaluation.read(tmp_path).num_images == 40
