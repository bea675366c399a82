"""Classes of data, models and teachers find each other by name; what a fine-tuned model calls things is right."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import safetensors.torch
import torch
from models import PLAIN_CASES, dossier_of, randomise, tiny_config, tiny_model
from PIL import Image
from training_runs import STILL_RUN, train_tiny
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification
from vit_family_launcher import main

from hf_vit_family import create_processor
from hf_vit_family.data.class_names import Classes, find_match, match_classes
from hf_vit_family.data.load import DataConfig, load_data, load_evaluation
from hf_vit_family.errors import UserError
from hf_vit_family.modeling.modeling_vit import VitfVitForImageClassification
from hf_vit_family.training.objectives.distillation import load_teacher
from hf_vit_family.training.setup import copy_weights, head_names, set_classes

PETS = ("cat", "dog", "horse")
COLOURS = {"cat": (255, 0, 0), "dog": (0, 255, 0), "horse": (0, 0, 255), "zebra": (255, 255, 0)}
UNNAMED = [f"LABEL_{i}" for i in range(3)]


def classes(names, **options) -> Classes:
    return Classes(list(names), "the model", **options)


# The rule. Names of the source, those of the target, and the number of each, or None where there is no match.
RULES = {
    "same": (PETS, PETS, [0, 1, 2], None),
    "part": (("dog", "horse"), PETS, [1, 2], "numbers change: 'dog' from 0 to 1, 'horse' from 1 to 2"),
    "order": (PETS, ("horse", "cat", "dog"), [1, 2, 0], "numbers change"),
    "case": (("Dog", "Horse"), PETS, [1, 2], "without regard to case and surrounding space: 'Dog' is 'dog'"),
    "space": ((" cat", "dog ", "horse"), PETS, [0, 1, 2], "without regard to case"),
    "plural": (("dogs", "horses"), PETS, None, None),
    "unknown": (("dog", "zebra"), PETS, None, None),
    "underscore": (("hot_dog",), ("hot dog",), None, None),
    "case in both": (("cat", "Cat"), ("cat", "CAT"), None, None),
    "exact before case": (("cat", "Cat"), ("Cat", "cat"), [1, 0], "numbers change"),
    "twice in the model": (("crane",), ("crane", "crane"), None, None),
    "no names": (PETS, UNNAMED, [0, 1, 2], "by number (the data: 3, the model: 3): 'cat' is 'LABEL_0'"),
    "fewer than no names": (("cat", "dog"), UNNAMED, [0, 1], "by number (the data: 2, the model: 3)"),
    "more than no names": ((*PETS, "zebra"), UNNAMED, None, None),
    "other numbers": (PETS, ("LABEL_1", "LABEL_0", "LABEL_2"), None, None),
    "numbers as names": (("0", "1", "10", "2"), [f"LABEL_{i}" for i in range(11)], [0, 1, 10, 2], "'10' is 'LABEL_10'"),
    "numbers against names": (("0", "1", "2"), PETS, None, None),
    "numbers against numbers": (("0", "1", "10", "2"), [str(i) for i in range(11)], [0, 1, 10, 2], "numbers change"),
}  # fmt: skip


@pytest.mark.parametrize("case", RULES)
def test_rule(case):
    source, target, expected, said = RULES[case]
    source, target = Classes(list(source), "the data"), classes(target)
    match = find_match(source, target)
    if expected is None:
        assert match is None
        with pytest.raises(UserError, match="classes do not match") as error:
            match_classes(source, target, "rename them")
        for name in (*source.names, *target.names, "rename them"):
            assert name in str(error.value)
        return
    assert match.indices.tolist() == expected
    assert (match.notice is None) == (said is None)
    assert said is None or said in match.notice


def test_a_column_of_integers_counts_the_classes_of_any_model():
    numbers = Classes(["0", "1", "2"], "the data", numbered=True)
    match = find_match(numbers, classes(PETS))
    assert (match.by, match.indices.tolist()) == ("number", [0, 1, 2])
    assert "'0' is 'cat'" in match.notice
    assert find_match(numbers, classes(["2", "1", "0"])).indices.tolist() == [2, 1, 0]
    assert find_match(numbers, classes(["1", "2", "3"])) is None  # names that are other numbers
    assert find_match(numbers, classes(PETS[:2])) is None


def test_only_classes_that_occur_need_a_match():
    source = Classes(["cat", "unicorn", "dog"], "the data")
    assert find_match(source, classes(PETS)) is None
    assert find_match(source, classes(PETS), used=[2, 0, 2]).indices.tolist() == [0, -1, 1]


def test_number_on_request_whatever_the_names():
    source = Classes(["n01", "n02"], "the data")
    assert find_match(source, classes(PETS)) is None
    assert find_match(source, classes(PETS), by_number=True).indices.tolist() == [0, 1]


# Runs


def photos(root: Path, names, count: int = 6, splits=("train", "test")) -> str:
    """Class folders of plain colours."""
    for split in splits:
        for name in names:
            (root / split / name).mkdir(parents=True)
            colour = np.array(COLOURS.get(name.strip().lower().removesuffix("s"), (9, 9, 9)))
            for number in range(count):
                pixels = np.broadcast_to(np.maximum(colour - 5 * number, 0), (8, 8, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return str(root)


COLOUR_RUN = {
    **STILL_RUN, "max_train_samples": None, "max_eval_samples": None,
    "epochs": 12, "batch_size": 6, "optimizer": "AdamW",
    "lr": 5e-3, "warmup_steps": 0,
}  # fmt: skip
FINE_TUNING = {**COLOUR_RUN, "set": {}, "drop_path_rate": None, "epochs": 4}


@pytest.fixture(scope="module")
def pets(tmp_path_factory) -> Path:
    """A model that tells cat, dog and horse apart."""
    root = tmp_path_factory.mktemp("pets")
    metrics = train_tiny(root / "model", COLOUR_RUN, dataset=photos(root / "photos", PETS))
    assert metrics["accuracy"] == 1.0
    return root / "model"


def predictions(model: Path, image_folder: str, names) -> dict[str, str]:
    """Asks a model for the class of the first test image of each class."""
    processor, classifier = (
        AutoImageProcessor.from_pretrained(model),
        AutoModelForImageClassification.from_pretrained(model),
    )
    found = {}
    for name in names:
        image = Image.open(Path(image_folder) / "test" / name / "0.png")
        with torch.no_grad():
            best = classifier.eval()(**processor(image, return_tensors="pt")).logits[0].argmax()
        found[name] = classifier.config.id2label[int(best)]
    return found


@pytest.mark.parametrize(
    ("names", "kept", "said"),
    [
        (("dog", "horse"), PETS, "'dog' from 0 to 1"),
        (("Cat", "Dog", "Horse"), PETS, "'Cat' is 'cat'"),
        (("dog", "zebra"), ("dog", "zebra"), "gets a new head for the classes of the data: dog, zebra"),
        (("cat", "dog", "zebra"), ("cat", "dog", "zebra"), "gets a new head"),
        ((*PETS, "zebra"), (*PETS, "zebra"), "gets a new head"),
        (("dogs", "horses"), ("dogs", "horses"), "gets a new head"),
    ],
    ids=["part", "case", "one other", "same count", "more", "plural"],
)
def test_fine_tuned_models_call_things_by_their_names(pets, tmp_path, capsys, names, kept, said):
    data = photos(tmp_path / "photos", names)
    new = kept != PETS
    metrics = train_tiny(tmp_path / "run", {**FINE_TUNING, "epochs": 12 if new else 2}, model=str(pets), dataset=data)
    config = AutoConfig.from_pretrained(tmp_path / "run")
    assert config.id2label == dict(enumerate(kept))
    assert config.label2id == {name: i for i, name in enumerate(kept)}
    assert metrics["accuracy"] == 1.0
    assert predictions(tmp_path / "run", data, names) == {name: name if new else name.lower() for name in names}
    assert said in capsys.readouterr().err


def rename(model: Path, target: Path, names) -> Path:
    """A copy of a model that calls its classes otherwise."""
    shutil.copytree(model, target)
    config = AutoConfig.from_pretrained(target)
    set_classes(config, dict(enumerate(names)))
    config.save_pretrained(target)
    return target


def test_a_model_without_names_takes_those_of_the_data(pets, tmp_path, capsys):
    model = rename(pets, tmp_path / "model", UNNAMED)
    data = photos(tmp_path / "photos", PETS)
    train_tiny(tmp_path / "run", {**FINE_TUNING, "epochs": 1, "lr": 1e-6}, model=str(model), dataset=data)
    assert predictions(tmp_path / "run", data, PETS) == {name: name for name in PETS}
    assert "matched by number" in capsys.readouterr().err
    few = photos(tmp_path / "few", PETS[1:])
    train_tiny(tmp_path / "new", {**FINE_TUNING, "epochs": 1}, model=str(model), dataset=few)
    assert AutoConfig.from_pretrained(tmp_path / "new").id2label == {0: "dog", 1: "horse"}


def test_integers_never_get_the_names_of_another_models_classes(pets, tmp_path, capsys):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    cell = {"bytes": (pets.parent / "photos" / "test" / "cat" / "0.png").read_bytes(), "path": None}
    datasets.Dataset.from_dict({"image": [cell] * 6, "label": [0, 1, 2] * 2}, features=features).to_parquet(
        tmp_path / "train.parquet"
    )
    options = {**FINE_TUNING, "max_steps": 1, "eval_fraction": 0.5, "batch_size": 2}
    train_tiny(tmp_path / "run", options, model=str(pets), dataset=str(tmp_path / "train.parquet"))
    assert AutoConfig.from_pretrained(tmp_path / "run").id2label == {0: "0", 1: "1", 2: "2"}
    processor = AutoImageProcessor.from_pretrained(pets)
    config = DataConfig(dataset=str(tmp_path / "train.parquet"))
    images, _, _ = load_evaluation(config, processor, list(PETS))
    assert [sample["labels"] for sample in images] == [0, 1, 2] * 2
    assert "'0' is 'cat', '1' is 'dog'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("dog", "horse"), "accuracy             1.0000"),
        (("Dog", "Horse"), "accuracy             1.0000"),
        (("dogs", "horses"), "dogs, horses cannot be found"),
        (("dog", "zebra"), "zebra cannot be found"),
    ],
)
def test_evaluation_by_name_or_not_at_all(pets, tmp_path, capsys, names, expected):
    data = photos(tmp_path / "photos", names)
    code = main(["evaluate", "--model", str(pets), "--dataset", data, "--output", str(tmp_path / "out")])
    captured = capsys.readouterr()
    if "cannot" in expected:
        assert code == 2
        message = captured.err.strip().splitlines()[-1]
        assert expected in message
        assert "has dog" in message
        assert "has cat, dog, horse" in message
        assert "match_classes=number" in message
    else:
        assert code == 0
        assert expected in captured.out
        assert "classes are matched by name" in captured.err


def test_evaluation_by_number_on_request(pets, tmp_path, capsys):
    data = photos(tmp_path / "photos", PETS)
    model = rename(pets, tmp_path / "model", ["Katze", "Hund", "Pferd"])
    arguments = ["evaluate", "--model", str(model), "--dataset", data, "--output", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert main([*arguments, "--match_classes", "number"]) == 0
    assert "accuracy             1.0000" in capsys.readouterr().out


@pytest.mark.parametrize("streaming", [False, True])
def test_splits_of_a_table_are_matched_by_name(tmp_path, streaming):
    """`datasets` by itself takes the names of the first file for those of all."""
    for split, names in (("train", ["a", "b"]), ("test", ["b", "a"])):
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
        path = tmp_path / "one.png"
        Image.new("RGB", (8, 8)).save(path)
        cells = [{"bytes": path.read_bytes(), "path": None}] * 3
        datasets.Dataset.from_dict({"image": cells, "label": [0, 1, 1]}, features=features).to_parquet(
            tmp_path / f"{split}.parquet"
        )
    processor = create_processor("vit_tiny_patch16_224", size=8)
    bundle = load_data(DataConfig(dataset=str(tmp_path), streaming=streaming), processor, seed=0)
    assert [sample["labels"] for sample in bundle.evaluation] == [1, 0, 0]
    train = bundle.train if streaming else map(bundle.train.__getitem__, range(3))
    assert sorted(sample["labels"] for sample in train) == [0, 1, 1]
    assert bundle.id2label == {0: "a", 1: "b"}


# Teachers


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    config = tiny_config("vit", num_labels=3)
    set_classes(config, dict(enumerate(PETS)))
    randomise(VitfVitForImageClassification(config)).save_pretrained(folder)
    create_processor("vit_tiny_patch16_224", size=32).save_pretrained(folder)
    return folder


HALF = ([0.5] * 3, [0.5] * 3)


@pytest.mark.parametrize("names", [("horse", "cat", "dog"), ("Dog", "cat ", "HORSE"), ("horse", "dog")])
def test_logits_of_a_teacher_are_in_the_order_of_the_student(teacher, names, capsys):
    student = Classes(list(names), "the student")
    found = load_teacher(str(teacher), len(names), HALF, 32, student)
    images = torch.randn(2, 3, 32, 32)
    logits = AutoModelForImageClassification.from_pretrained(teacher).eval()(images).logits
    expected = torch.stack([logits[:, PETS.index(name.strip().lower())] for name in names], dim=1)
    torch.testing.assert_close(found(images), expected)
    assert "classes are matched by name" in capsys.readouterr().err


def test_a_teacher_of_other_classes_is_refused(teacher, tmp_path, capsys):
    student = Classes(["cat", "dog", "zebra"], "the student")
    with pytest.raises(
        UserError, match=r"zebra cannot be found.*cat, dog, zebra.*cat, dog, horse.*match_classes=number"
    ):
        load_teacher(str(teacher), 3, HALF, 32, student)
    load_teacher(str(teacher), 3, HALF, 32, student, by_number=True)
    assert "by number" in capsys.readouterr().err
    unnamed = rename(teacher, tmp_path / "unnamed", UNNAMED)
    load_teacher(str(unnamed), 3, HALF, 32, student)
    assert "by number" in capsys.readouterr().err
    with pytest.raises(UserError, match="tells 3 classes apart, the student 2"):
        load_teacher(str(unnamed), 2, HALF, 32, Classes(["cat", "dog"], "the student"))


def test_distillation_learns_the_classes_of_a_teacher_by_name(pets, tmp_path):
    """With the teacher's loss only: what is learnt can come from nowhere else."""
    data = photos(tmp_path / "photos", PETS)
    model = AutoModelForImageClassification.from_pretrained(pets)
    order = [2, 0, 1]
    with torch.no_grad():
        for parameter in (model.classifier.weight, model.classifier.bias):
            parameter.copy_(parameter[order].clone())
    set_classes(model.config, {i: PETS[label] for i, label in enumerate(order)})
    model.save_pretrained(tmp_path / "teacher")
    AutoImageProcessor.from_pretrained(pets).save_pretrained(tmp_path / "teacher")
    options = {"teacher": str(tmp_path / "teacher"), "distillation_alpha": 1.0}
    metrics = train_tiny(tmp_path / "student", COLOUR_RUN, dataset=data, **options)
    assert metrics["accuracy"] == 1.0
    assert predictions(tmp_path / "student", data, PETS) == {name: name for name in PETS}


# Heads


def test_reset_head_resets_the_head_and_nothing_else(pets, tmp_path):
    data = photos(tmp_path / "photos", PETS)
    options = {**FINE_TUNING, "max_steps": 1, "lr": 1e-30, "model": str(pets), "dataset": data}
    before = safetensors.torch.load_file(pets / "model.safetensors")
    for reset in (False, True):
        train_tiny(tmp_path / str(reset), options, reset_head=reset)
        after = safetensors.torch.load_file(tmp_path / str(reset) / "model.safetensors")
        assert before.keys() == after.keys()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == ({"classifier.weight", "classifier.bias"} if reset else set())


@pytest.mark.parametrize("reset", [False, True])
def test_another_image_size_interpolates_positions(pets, tmp_path, reset):
    data = photos(tmp_path / "photos", PETS)
    options = {**FINE_TUNING, "max_steps": 1, "lr": 1e-30, "model": str(pets), "dataset": data, "image_size": None}
    train_tiny(tmp_path / "run", options, set={"image_size": 16}, reset_head=reset)
    old, new = (AutoModelForImageClassification.from_pretrained(folder).eval() for folder in (pets, tmp_path / "run"))
    assert new.config.image_size == 16
    assert AutoImageProcessor.from_pretrained(tmp_path / "run").size["height"] == 16
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(new.base_model(images).last_hidden_state, old.base_model(images).last_hidden_state)
    assert torch.equal(new.classifier.weight, old.classifier.weight) == (not reset)


@pytest.mark.parametrize("reset", [False, True])
def test_a_weight_that_does_not_fit_is_never_replaced(pets, tmp_path, reset):
    data = photos(tmp_path / "photos", PETS)
    options = {**FINE_TUNING, "model": str(pets), "dataset": data, "reset_head": reset}
    for field in ({"patch_size": 2}, {"hidden_size": 32}):
        with pytest.raises(UserError, match=rf"set {next(iter(field))}=.*a trained weight is not replaced"):
            train_tiny(tmp_path / "run", options, set=field)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", PLAIN_CASES)
def test_only_weights_of_classes_are_new_in_a_new_head(case):
    model = tiny_model(case)
    head = head_names(model)
    assert head
    assert not any(name.startswith(f"{model.base_model_prefix}.") for name in head)
    assert all(5 in model.state_dict()[name].shape for name in head)
    fresh = type(model)(tiny_config(case, num_labels=7))
    assert not copy_weights(None, model, fresh, head)
    for name, tensor in fresh.state_dict().items():
        assert (name in head) == (tensor.shape != model.state_dict()[name].shape)
        assert name in head or torch.equal(tensor, model.state_dict()[name])


CASES = [
    (case, field)
    for case in PLAIN_CASES
    for field in ("image_size", "num_frames")
    if field not in dossier_of(case).size_is_function
]
CASES = [(case, field) for case, field in CASES if hasattr(tiny_config(case), field)]


@pytest.mark.parametrize(("case", "field"), CASES)
def test_another_size_gives_the_outputs_of_the_model_at_that_size_or_is_refused(case, field):
    model = randomise(tiny_model(case)).eval()
    size = getattr(model.config, field)
    size = 2 * size if isinstance(size, int) else [2 * edge for edge in size]
    options = SimpleNamespace(model="the folder", set={field: size})
    config = tiny_config(case, **{field: size})
    fresh = type(model)(config).eval()
    if field in dossier_of(case).fixed_sizes:
        with pytest.raises(UserError, match=f"set {field}={size}: .* a trained weight is not replaced by a random one"):
            copy_weights(options, model, fresh, frozenset())
        return
    assert not copy_weights(options, model, fresh, frozenset())
    pixels = torch.randn(1, *config.input_shape)
    with torch.no_grad():
        torch.testing.assert_close(fresh(pixels).logits, model(pixels).logits, rtol=1e-4, atol=1e-4)


def test_a_model_without_a_head_gets_one(tmp_path, capsys):
    model = tiny_model("vit", "ForMaskedImageModeling", num_channels=1)
    model.save_pretrained(tmp_path / "base")
    processor = create_processor("vit_tiny_patch16_224", size=32, image_mean=[0.5], image_std=[0.5])
    processor.save_pretrained(tmp_path / "base")
    options = {**FINE_TUNING, "model": str(tmp_path / "base"), "image_size": None, "max_steps": 1, "lr": 1e-30}
    train_tiny(tmp_path / "run", options, dataset=photos(tmp_path / "photos", PETS))
    trained = AutoModelForImageClassification.from_pretrained(tmp_path / "run")
    assert trained.config.id2label == dict(enumerate(PETS))
    for name, tensor in model.base_model.state_dict().items():
        assert torch.equal(trained.base_model.state_dict()[name], tensor)
    assert "gets a new head" in capsys.readouterr().err


def test_a_regression_model_becomes_a_classifier(pets, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(pets)
    model.config.problem_type = "regression"
    model.save_pretrained(tmp_path / "base")
    AutoImageProcessor.from_pretrained(pets).save_pretrained(tmp_path / "base")
    options = {**FINE_TUNING, "model": str(tmp_path / "base"), "max_steps": 1}
    train_tiny(tmp_path / "run", options, dataset=photos(tmp_path / "photos", PETS))
    assert AutoConfig.from_pretrained(tmp_path / "run").problem_type is None
