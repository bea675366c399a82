"""Publishing a folder: what is staged, what the card says, what is refused, and that verification can fail."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from models import PLAIN_CASES, architecture_of, tiny_model
from safetensors.torch import load_file, save_file
from transformers.dynamic_module_utils import get_relative_import_files

import hf_vit_family.modeling
from hf_vit_family.cards import FACTS, Conversion, Evaluation, Training, make_card
from hf_vit_family.errors import UserError
from hf_vit_family.modeling.configuration_vitf import pair
from hf_vit_family.publish import PublishError, check_repo_id, load_model, stage, verify
from hf_vit_family.registry import AUTO_CLASSES, CLIPS, preparation_of

MODELING = Path(hf_vit_family.modeling.__file__).parent
NOTHING = dict.fromkeys(FACTS)
VERSIONS = {"torch": "2.15.0", "transformers": "5.23.0"}
EVALUATION = Evaluation(
    "someone/scans", "test", 360, {"accuracy": 0.975, "top5_accuracy": 1}, "vit-family evaluate", VERSIONS, 7, 1234, 32
)
TRAINING = Training("/mnt/data/scans", "train", 1437, "vit-family train", VERSIONS, 0, wall_seconds=61.2, device="CPU")
CONVERSION = Conversion(
    "facebookresearch/deit@7e160fe", "someone/weights", "ab" * 32, "original", "cc-by-nc-4.0", "someone/weights", 2e-6
)


def save_tiny(case: str, folder: Path) -> Path:
    """A tiny model and its processor, saved as any user does."""
    model = tiny_model(case)
    height, width = pair(model.config.image_size)
    model.save_pretrained(folder)
    preparation = preparation_of(model.config)
    clips = {"num_frames": model.config.num_frames} if preparation is CLIPS else {}
    size = {"height": height, "width": width}
    processor = preparation.processors["torchvision"](size=size, crop_pct=0.9, **clips)
    processor.save_pretrained(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture
def source(tmp_path):
    return save_tiny("deit", tmp_path / "source")


@pytest.mark.parametrize("case", PLAIN_CASES)
def test_staged_folder_is_whole(case, tmp_path):
    source, staged = save_tiny(case, tmp_path / "source"), tmp_path / "staged"
    stage(source, staged, f"someone/{case}")
    architecture, config = architecture_of(case), json.loads((staged / "config.json").read_text())
    assert {AUTO_CLASSES[head].__name__ for head in architecture.heads} | {"AutoConfig"} == set(config["auto_map"])
    preparation = preparation_of(load_model(source).config)
    processor_map = json.loads((staged / preparation.file).read_text())["auto_map"]
    (named,) = processor_map.values()
    assert processor_map.keys() == {preparation.auto_class.__name__}
    references = [*config["auto_map"].values(), *([named] if isinstance(named, str) else named.values())]
    code = {f"{reference.split('.')[0]}.py" for reference in references}
    code |= {Path(file).name for name in tuple(code) for file in get_relative_import_files(MODELING / name)}
    assert {file.name for file in staged.glob("*.py")} == code
    for name in code:
        assert (staged / name).read_bytes() == (MODELING / name).read_bytes()
    assert set(contents(staged)) == code | {
        "config.json", preparation.file, "model.safetensors", "README.md", "LICENSE"
    }  # fmt: skip
    before, after = load_file(source / "model.safetensors"), load_file(staged / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert "Apache License" in (staged / "LICENSE").read_text()
    for name in ("config.json", preparation.file, "README.md"):
        assert str(tmp_path) not in (staged / name).read_text()


def test_staging_again_changes_nothing(source, tmp_path):
    for fact in (CONVERSION, TRAINING, EVALUATION):
        fact.write(source)
    stage(source, tmp_path / "first", "someone/model")
    stage(tmp_path / "first", tmp_path / "second", "someone/model")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_card_states_what_was_measured(source):
    card = make_card(
        load_model(source), {Conversion: CONVERSION, Training: TRAINING, Evaluation: EVALUATION}, "someone/model"
    )
    data = ModelCard(str(card)).data  # as the Hub reads it
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "cc-by-nc-4.0", "transformers", "image-classification"
    )  # fmt: skip
    assert data.base_model == "someone/weights"
    assert data.datasets == ["someone/scans"]  # the local folder is no data set of the Hub
    assert {"vision", "deit", "vitf_deit"} <= set(data.tags)
    assert data.model_name == "model"
    assert {result.metric_type: result.metric_value for result in data.eval_results} == EVALUATION.metrics
    for result in data.eval_results:
        assert (result.dataset_type, result.dataset_split) == ("someone/scans", "test")
    text = " ".join(card.text.split())
    for fact in (
        "| accuracy | 0.975 |", "360 images", "split `test`", "32", "seed 7", "torch 2.15.0, transformers 5.23.0",
        "``` vit-family evaluate ```", CONVERSION.source, CONVERSION.sha256, "2e-06", "1,437 images of `scans`",
        "from random weights", "in 61 s on CPU", "cc-by-nc-4.0", f"{load_model(source).num_parameters():,}", "32 x 32",
        'AutoModel.from_pretrained("someone/model", trust_remote_code=True)', "import hf_vit_family",
    ):  # fmt: skip
        assert fact in text
    assert "/mnt" not in str(card)


def test_card_without_measurements_says_so(source):
    card = make_card(load_model(source), NOTHING, "someone/model")
    data = ModelCard(str(card)).data
    assert data.license is None
    assert data.eval_results is None
    assert data.datasets is None
    assert data.base_model is None
    assert "No result has been measured" in card.text
    assert "Not recorded." in card.text
    assert "licence of the weights is not stated" in card.text
    # The only numbers are the model's own.
    assert not re.search(r"\d\.\d+ ?%|0\.\d", card.text)


def test_license_option(source):
    model = load_model(source)
    assert make_card(model, NOTHING, "someone/model", "mit").data.license == "mit"
    facts = {**NOTHING, Conversion: CONVERSION}
    assert make_card(model, facts, "someone/model", "cc-by-nc-4.0").data.license == "cc-by-nc-4.0"
    with pytest.raises(UserError, match=r"'mit' contradicts conversion\.json.*'cc-by-nc-4\.0'"):
        make_card(model, facts, "someone/model", "mit")


@pytest.mark.parametrize("fact", [CONVERSION, TRAINING, EVALUATION], ids=lambda fact: fact.FILE)
def test_facts_round_trip(fact, tmp_path):
    assert type(fact).read(tmp_path) is None
    fact.write(tmp_path)
    assert type(fact).read(tmp_path) == fact
    assert [file.name for file in tmp_path.iterdir()] == [fact.FILE]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_image": 3}, "unknown field 'num_image'; did you mean 'num_images'"),
        ({"split": None}, "field 'split' has the value None"),
        ({"num_images": 360.5}, "field 'num_images' has the value 360.5"),
        ({"num_images": True}, "field 'num_images' has the value True"),
        ({"metrics": {"accuracy": "97%"}}, "field 'metrics' has the value"),
        ({"image_size": ["32"]}, "field 'image_size' has the value"),
    ],
)
def test_facts_that_do_not_fit(change, message, tmp_path):
    EVALUATION.write(tmp_path)
    path = tmp_path / EVALUATION.FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=re.escape(message)):
        Evaluation.read(tmp_path)


def test_facts_missing_or_broken(tmp_path):
    path = tmp_path / EVALUATION.FILE
    path.write_text("{}")
    with pytest.raises(UserError, match="field 'dataset' is missing"):
        Evaluation.read(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match=r"evaluation\.json: not valid JSON"):
        Evaluation.read(tmp_path)
    path.write_text("[]")
    with pytest.raises(UserError, match=r"evaluation\.json: expected an object"):
        Evaluation.read(tmp_path)


def rewrite(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_key(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("deit.layernorm.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def reshape_key(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"] = weights["classifier.weight"][:3].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not the configuration"),
        (lambda folder: rewrite(folder / "config.json", model_type="resnet"), "unknown architecture 'resnet'"),
        (
            lambda folder: rewrite(folder / "config.json", architectures=["ViTModel"]),
            "names no class of deit: 'ViTModel'",
        ),
        (lambda folder: rewrite(folder / "config.json", hidden_sizes=3), "did you mean 'hidden_size'"),
        (lambda folder: rewrite(folder / "config.json", hidden_size="wide"), "hidden_size"),
        (lambda folder: rewrite(folder / "preprocessor_config.json", crop_percent=1), "did you mean 'crop_pct'"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
        (truncate, "source"),
        (drop_key, "missing keys, deit.layernorm.weight"),
        (reshape_key, "classifier.weight"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "preprocessor_config.json"),
        (lambda folder: (folder / "evaluation.json").write_text("{"), "evaluation.json: not valid JSON"),
        (lambda folder: [file.unlink() for file in folder.iterdir()], "it has no config.json"),
    ],
)
def test_folder_that_cannot_be_published(damage, message, source, tmp_path):
    damage(source)
    with pytest.raises(UserError, match=re.escape(message)):
        stage(source, tmp_path / "staged", "someone/model")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_output_is_never_overwritten(source, tmp_path):
    before = contents(source)
    with pytest.raises(UserError, match="not an empty folder"):
        stage(source, source, "someone/model")
    assert contents(source) == before
    with pytest.raises(PublishError, match="no such folder"):
        stage(tmp_path / "absent", tmp_path / "staged", "someone/model")


@pytest.mark.parametrize("repo_id", ["model", "a/b/c", "someone/", "someone/my model", "../model", "someone/a--b"])
def test_malformed_repository_id(repo_id):
    with pytest.raises(PublishError, match="malformed"):
        check_repo_id(repo_id)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("modeling_vitf.py", "logits=sum(heads) / len(heads)", "logits=sum(heads)", "logits differs"),
        ("layers.py", "import math\n", "import math\nimport hf_vit_family\n", "hf_vit_family"),
    ],
    ids=["other code", "code that needs the package"],
)
def test_verification_fails(file, old, new, message, source, tmp_path):
    stage(source, tmp_path / "staged", "someone/model")
    path = tmp_path / "staged" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(PublishError, match=message):
        verify(tmp_path / "staged")


def test_auto_map_is_dropped_where_its_code_is_out_of_reach(source, tmp_path):
    model = load_model(source)
    model.config.auto_map = {"AutoConfig": "configuration_gone.Gone", "AutoModel": "other/repo--modeling_x.X"}
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["auto_map"] == {"AutoModel": "other/repo--modeling_x.X"}
    assert not list((tmp_path / "saved").glob("*.py"))
    assert model.config.auto_map["AutoConfig"] == "configuration_gone.Gone"
