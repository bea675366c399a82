"""Publishing a folder: what is staged, what the card says, what is refused, and that verification can fail."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_server import Commit, Repository
from huggingface_hub import ModelCard
from models import PLAIN_CASES, architecture_of, tiny_model
from PIL import Image
from safetensors.torch import load_file, save_file
from training_runs import STILL_RUN, train_tiny
from transformers.dynamic_module_utils import get_relative_import_files

import hf_vit_family.modeling
from hf_vit_family.commands.publish import same_files
from hf_vit_family.errors import UserError
from hf_vit_family.loading import load_saved_model
from hf_vit_family.modeling.configuration_vitf import pair
from hf_vit_family.publishing.cards import FACTS, Conversion, Evaluation, Training, make_card
from hf_vit_family.publishing.publish import PublishError, check_repo_id, code_license, stage, verify
from hf_vit_family.refusals import HttpError, hub_reason
from hf_vit_family.registry import AUTO_CLASSES, CLIPS, modality_of

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
    modality = modality_of(model.config)
    clips = {"num_frames": model.config.num_frames} if modality is CLIPS else {}
    size = {"height": height, "width": width}
    processor = modality.processors["torchvision"](size=size, crop_pct=0.9, **clips)
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
    modality = modality_of(load_saved_model(source).config)
    processor_map = json.loads((staged / modality.file).read_text())["auto_map"]
    (named,) = processor_map.values()
    assert processor_map.keys() == {modality.auto_processor.__name__}
    references = [*config["auto_map"].values(), *([named] if isinstance(named, str) else named.values())]
    code = {f"{reference.split('.')[0]}.py" for reference in references}
    code |= {Path(file).name for name in tuple(code) for file in get_relative_import_files(MODELING / name)}
    assert {file.name for file in staged.glob("*.py")} == code
    for name in code:
        assert (staged / name).read_bytes() == (MODELING / name).read_bytes()
    assert set(contents(staged)) == code | {
        "config.json", modality.file, "model.safetensors", "README.md", "LICENSE"
    }  # fmt: skip
    before, after = load_file(source / "model.safetensors"), load_file(staged / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert "Apache License" in (staged / "LICENSE").read_text()
    for name in ("config.json", modality.file, "README.md"):
        assert str(tmp_path) not in (staged / name).read_text()


def test_staging_again_changes_nothing(source, tmp_path):
    for fact in (CONVERSION, TRAINING, EVALUATION):
        fact.write(source)
    stage(source, tmp_path / "first", "someone/model")
    stage(tmp_path / "first", tmp_path / "second", "someone/model")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_card_states_what_was_measured(source):
    card = make_card(
        load_saved_model(source), {Conversion: CONVERSION, Training: TRAINING, Evaluation: EVALUATION}, "someone/model"
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
        "from random weights", "in 61 s on CPU", "cc-by-nc-4.0",
        f"{load_saved_model(source).num_parameters():,}", "32 x 32",
        'AutoModel.from_pretrained("someone/model", trust_remote_code=True)', "import hf_vit_family",
    ):  # fmt: skip
        assert fact in text
    assert "/mnt" not in str(card)


PRIVATE = ("alice", "acme")
PATHS = (
    "/mnt/alice/acme/data", "~/acme/data", "runs/acme/data", "../acme/data", "C:\\Users\\alice", "~alice", "acme/data",
    "C:\\Users\\alice\\data", "./acme/alice/data",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_paths_of_this_machine_are_not_published(path, source, tmp_path):
    command = shlex.join(
        ["vit-family", "x", "--model", path, f"--dataset={path}", "--set", f"a={path}", "--epochs", "3"]
    )
    replace(CONVERSION, file=path, base_model=None).write(source)
    local = {"dataset": path, "dataset_is_local": True, "command": command}
    replace(TRAINING, **local, base_model=path, base_model_is_local=True).write(source)
    replace(EVALUATION, **local).write(source)
    if path == "acme/data":  # has the form of a Hub id, and nothing says that it is local
        replace(CONVERSION, file="data", base_model=None).write(source)
    stage(source, tmp_path / "staged", "someone/model")
    for name in ("README.md", *(kind.FILE for kind in FACTS)):
        text = (tmp_path / "staged" / name).read_text()
        for word in PRIVATE:
            assert word not in text, (name, word)
        assert name == Conversion.FILE or "--epochs 3" in text
    assert [kind.read(source).FILE for kind in FACTS]  # the folder keeps its own records
    assert Training.read(source).command == command


def test_names_on_the_hub_are_published_whole(source, tmp_path):
    command = "vit-family train --model someone/base --dataset someone/scans --output /mnt/alice/run"
    names = {"dataset": "someone/scans", "dataset_is_local": False}
    replace(TRAINING, command=command, base_model="someone/base", base_model_is_local=False, **names).write(source)
    stage(source, tmp_path / "staged", "someone/model")
    assert "--model someone/base --dataset someone/scans --output run\n" in (tmp_path / "staged/README.md").read_text()


def test_texts_of_files_are_no_markup_of_a_card(source):
    """In a browser nothing of them is an element, a link or the end of a block, and on a terminal nothing acts."""
    evil = "<img src=x onerror=alert(1)>`\n```\n# [a](javascript:b) | \x1b[31m\u202e"
    facts = {
        Conversion: replace(CONVERSION, source=evil, file=evil, layout=evil, sha256=evil, parity_method=evil),
        Training: replace(
            TRAINING, dataset=evil, split=evil, command=evil, versions={evil: evil}, base_model=evil, device=evil,
            hub_base_model=evil, base_model_is_local=True,
        ),
        Evaluation: replace(
            EVALUATION, dataset=evil, split=evil, command=evil, metrics={evil: 1, "b": 2}, versions={evil: evil}
        ),
    }  # fmt: skip
    model = load_saved_model(source)
    text = make_card(model, facts, "someone/model", None).text
    plain = make_card(model, {Conversion: CONVERSION, Training: TRAINING, Evaluation: EVALUATION}, "someone/model").text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.count("```") == plain.count("```")
    assert len(text.splitlines()) == len(plain.splitlines())
    blocks = text.split("```")
    prose = "".join(re.sub("`[^`]*`", "", re.sub(r"\\.", "", part)) for part in blocks[::2])
    assert "<" not in prose
    assert not re.search(r"\]\(", prose)
    assert "img src=x" in prose


def stated(folder: Path) -> tuple:
    """Reads from the card of a folder the base model, data and licence."""
    data = make_card(load_saved_model(folder), {kind: kind.read(folder) for kind in FACTS}, "someone/model").data
    return data.base_model, data.datasets, data.license


def test_cards_link_only_what_is_on_the_hub(tmp_path, monkeypatch):
    """Names of folders have the form of Hub ids. What a run read is recorded, wherever the card is made."""
    monkeypatch.chdir(tmp_path)
    photos = Path("data/photos")
    for name in ("cat", "dog"):
        (photos / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8)).save(photos / name / f"{number}.png")
    options = {"max_steps": 1, "dataset": str(photos), "eval_fraction": 0.34, "batch_size": 2}
    train_tiny(Path("runs/first"), STILL_RUN, **options)
    options |= {"set": {}, "drop_path_rate": None}
    train_tiny(Path("runs/second"), STILL_RUN, model="runs/first", **options)
    assert stated(Path("runs/second")) == (None, None, None)
    training = Training.read("runs/second")
    assert (training.base_model, training.base_model_is_local, training.dataset_is_local) == ("runs/first", True, True)
    text = make_card(load_saved_model("runs/second"), {**NOTHING, Training: training}, "someone/model").text
    assert "of `photos`" in text
    assert "from `first`" in text
    for folder in ("data", "runs/first"):
        Path(folder).rename(f"moved-{Path(folder).name}")
    assert stated(Path("runs/second")) == (None, None, None)


def test_unrecorded_names_are_judged_by_what_is_here(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    replace(TRAINING, dataset="data/photos", base_model="runs/nc").write(source)
    assert stated(source) == ("runs/nc", ["data/photos"], None)
    Path("data/photos").mkdir(parents=True)
    Path("runs/nc").mkdir(parents=True)
    assert stated(source) == (None, None, None)


@pytest.mark.parametrize("known_by", ["conversion.json", "README.md"])
def test_licence_and_base_model_travel_through_fine_tuning(tmp_path, known_by):
    base = tmp_path / "base"
    options = {"max_steps": 1, "max_train_samples": 16}
    train_tiny(base, STILL_RUN, **options)
    (base / Training.FILE).unlink()
    if known_by == Conversion.FILE:
        CONVERSION.write(base)
    else:
        text = "---\nlicense: cc-by-nc-4.0\nbase_model:\n- someone/weights\n---\n# Weights\n"
        (base / "README.md").write_text(text)
    options |= {"set": {}, "drop_path_rate": None}
    for start, run in (("base", "first"), ("first", "second")):
        train_tiny(tmp_path / run, STILL_RUN, model=str(tmp_path / start), **options)
        assert stated(tmp_path / run) == ("someone/weights", None, "cc-by-nc-4.0")
        text = make_card(
            load_saved_model(tmp_path / run), {**NOTHING, Training: Training.read(tmp_path / run)}, "me/it"
        ).text
        assert f"from `{start}`, which goes back to `someone/weights`" in " ".join(text.split())
    with pytest.raises(UserError, match=r"'mit' contradicts training\.json.*'cc-by-nc-4\.0'"):
        stage(tmp_path / "second", tmp_path / "staged", "me/it", "mit")


def test_origin_of_a_model_on_the_hub(hub, tmp_path):
    """In a process of its own, since the address of the Hub is fixed on import."""
    card = b"---\nlicense: apache-2.0\n---\n"
    hub.repositories["some/model"] = Repository(False, [Commit("push", {"README.md": card})])
    hub.repositories["some/bare"] = Repository(False, [Commit("push", {})])
    code = """
from hf_vit_family.publishing.cards import Origin, origin_of
assert origin_of("some/model") == Origin(False, "some/model", "apache-2.0")
assert origin_of("some/bare") == Origin(False, "some/bare", None)
"""
    environment = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "card of some/bare cannot be read, so that its licence is not known" in done.stderr


def test_card_without_measurements_says_so(source):
    card = make_card(load_saved_model(source), NOTHING, "someone/model")
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
    model = load_saved_model(source)
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
        (lambda folder: rewrite(folder / "config.json", hidden_size="wide"), "hidden_size"),
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
    with pytest.raises(UserError, match="no such folder"):
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


def test_verification_reads_video_files(tmp_path):
    """A turned MP4 and a WebM: readers that know no more than an ordinary file pass over these."""
    stage(save_tiny("timesformer", tmp_path / "source"), tmp_path / "staged", "someone/model")
    assert verify(tmp_path / "staged").classes[-1] == "AutoVideoProcessor"
    path = tmp_path / "staged" / "video_reading_vitf.py"
    code = path.read_text()
    for old, new, message in (
        (
            "    if matrix is not None:",
            "    if matrix is not None and False:",
            r"AutoVideoProcessor\.turned\.mp4 differs",
        ),
        ('"matroska", "webm", ', "", r"plain\.webm: no video of a known format"),
    ):
        assert old in code
        path.write_text(code.replace(old, new))
        with pytest.raises(PublishError, match=message):
            verify(tmp_path / "staged")


def test_auto_map_is_dropped_where_its_code_is_out_of_reach(source, tmp_path):
    model = load_saved_model(source)
    model.config.auto_map = {"AutoConfig": "configuration_gone.Gone", "AutoModel": "other/repo--modeling_x.X"}
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["auto_map"] == {"AutoModel": "other/repo--modeling_x.X"}
    assert not list((tmp_path / "saved").glob("*.py"))
    assert model.config.auto_map["AutoConfig"] == "configuration_gone.Gone"


def test_a_push_spares_files_of_others_and_names_what_the_hub_says(hub, source, tmp_path):
    """In a process of its own, since the address of the Hub is fixed on import."""
    staged = tmp_path / "staged"
    stage(source, staged, "someone/model")
    ours = {"modeling_gone.py": b"", "README.md": b"old"}
    hub.repositories["someone/ours"] = Repository(False, [Commit("Publish with hf_vit_family 0.1", ours)])
    theirs = {"pytorch_model.bin": b"weights", "notes.txt": b"kept", "README.md": b"card"}
    hub.repositories["someone/theirs"] = Repository(False, [Commit("by hand", theirs)])
    jobs = [
        {"push": {"folder": str(staged), "repo_id": "someone/ours"}},
        {"push": {"folder": str(staged), "repo_id": "someone/theirs"}},
        {"push": {"folder": str(staged), "repo_id": "someone/theirs", "replace": True}},
        {"push": {"folder": str(staged), "repo_id": "someone/fresh"}},
        {"push": {"folder": str(staged), "repo_id": "someone/fresh"}},
        {"push": {"folder": str(staged), "repo_id": "forbidden/model"}},
        {"push": {"folder": str(staged), "repo_id": "broken/model"}},
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    client = Path(__file__).with_name("hub_client.py")
    environment = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "home")}
    arguments = [sys.executable, client, "publish", tmp_path / "jobs.json", tmp_path / "result.json"]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "result.json").read_text())
    assert [result["code"] for result in results] == [0, 2, 0, 0, 0, 2, 2], results
    new = contents(staged)
    assert hub.repositories["someone/ours"].commits[-1].files == new
    assert "README.md, pytorch_model.bin; --replace" in results[1]["stderr"]
    first, *later = hub.repositories["someone/theirs"].commits
    assert first.files == theirs
    assert [commit.files for commit in later] == [new | {"notes.txt": b"kept"}]
    assert hub.repositories["someone/fresh"].commits[-1].files == new | {".gitattributes": b""}
    assert "forbidden/model: the access token may not do this (403)" in results[5]["stderr"]
    assert "broken/model: the Hub cannot be reached" in results[6]["stderr"]


def test_the_same_stage_can_be_tried_again(source, tmp_path):
    stage(source, tmp_path / "one", "someone/model")
    stage(source, tmp_path / "other", "someone/model")
    assert same_files(tmp_path / "one", tmp_path / "other")
    (tmp_path / "other" / "config.json").write_text("{}")
    assert not same_files(tmp_path / "one", tmp_path / "other")
    (tmp_path / "other" / "config.json").unlink()
    assert not same_files(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "access token"), (403, "may not do this"), (404, "no such repository"), (429, "too many requests"),
        (500, "a fault of its own (500)"), (503, "a fault of its own (503)"),
    ],
)  # fmt: skip
def test_an_answer_of_the_hub_is_named_by_its_status(status, message):
    error = HttpError("refused")
    error.response = SimpleNamespace(status_code=status)
    assert message in hub_reason(error)
    wrapped = OSError("cannot load")
    wrapped.__cause__ = error
    assert message in hub_reason(wrapped)
    assert hub_reason(OSError("another")) is None


@pytest.mark.parametrize("name", ["licenses/LICENSE", "LICENSE"])
def test_the_licence_is_found_where_any_setuptools_puts_it(name, monkeypatch):
    installed = SimpleNamespace(read_text={name: "the licence"}.get)
    monkeypatch.setattr("importlib.metadata.distributions", lambda **_: [installed])
    assert code_license() == "the licence"
