"""The whole way round: publish to a Hub, load from it without the package and with it, save again, push again.

Every step runs in a process of its own against a stand-in on loopback; nothing of huggingface_hub is replaced.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import Commit, Repository
from models import PLAIN_CASES, VIDEO_CASES, architecture_of
from PIL import Image
from safetensors.torch import load_file
from test_publish import contents, save_tiny
from transformers import AutoImageProcessor, AutoVideoProcessor, pipeline

from hf_vit_family.loading import quiet_loading
from hf_vit_family.publishing.clean_process import collect
from hf_vit_family.publishing.publish import stage
from hf_vit_family.registry import AUTO_CLASSES

NOT_SAVED_AGAIN = {"LICENSE", "README.md"}
# One process builds the world that these tests look at.
pytestmark = pytest.mark.xdist_group("world")
# Where a model is loaded from, and by which code. Every architecture comes from the Hub; how a folder and the
# registered classes are found is one mechanism for all, which a few architectures show.
FEW = ("vit", "deit", "swin", "timesformer")
WAYS = {"remote": PLAIN_CASES, "registered": FEW, "remote-local": FEW}
every_way = pytest.mark.parametrize(("way", "case"), [(way, case) for way, cases in WAYS.items() for case in cases])


def run_client(hub, scratch: Path, arguments: list[str], jobs: list[dict], result: Path) -> None:
    """Runs tests/hub_client.py with caches of its own, outside the repository."""
    scratch.mkdir()
    (scratch / "jobs.json").write_text(json.dumps(jobs))
    client = Path(__file__).with_name("hub_client.py")
    environment = {
        **os.environ,
        **hub.environment,
        "HF_HOME": str(scratch / "home"),
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    process = subprocess.run(
        [sys.executable, "-P", client, *arguments, scratch / "jobs.json", result],
        cwd=scratch, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-4000:]


@pytest.fixture(scope="module")
def world(hub, tmp_path_factory):
    """Tiny models of every architecture, published; and what users then got from the Hub, in every way of loading."""
    root = tmp_path_factory.mktemp("world")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (50, 41, 3), generator=generator, dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(root / "image.png")
    sources = {case: save_tiny(case, root / "source" / case) for case in PLAIN_CASES}
    hub.repositories["someone/deit"] = Repository(
        False,
        [
            Commit(
                "Publish with hf_vit_family 0",
                {"modeling_gone.py": b"", "model-00001-of-00001.safetensors": b"", "notes.txt": b"kept"},
            )
        ],
    )
    hub.repositories["someone/public"] = Repository(False)
    for case in PLAIN_CASES:
        stage(sources[case], root / "staged" / case, f"someone/{case}", "mit")
    staged = str(root / "staged" / "vit")
    argv = ["publish", str(sources["deit"]), "someone/deit", "--license", "mit", "--stage", str(root / "kept")]
    jobs = [
        {"argv": argv}
        if case == "deit"
        else {"push": {"folder": str(root / "staged" / case), "repo_id": f"someone/{case}"}}
        for case in PLAIN_CASES
    ]
    jobs += [
        {"argv": ["publish", str(sources["vit"]), "someone/none"], "without": ["HF_TOKEN"]},
        {"argv": ["publish", str(sources["vit"]), "none"]},
        {"argv": ["publish", str(root / "absent"), "someone/none"]},
        {"argv": ["publish", str(sources["vit"]), "someone/dry", "--dry-run"]},
        {"push": {"folder": staged, "repo_id": "forbidden/model"}},
        {"push": {"folder": staged, "repo_id": "broken/model"}},
        {"push": {"folder": staged, "repo_id": "someone/public", "private": True}},
        {"push": {"folder": staged, "repo_id": "someone/private", "private": True}},
    ]
    run_client(hub, root / "publishing", ["publish"], jobs, root / "publishing.json")
    results = json.loads((root / "publishing.json").read_text())
    for way, cases in WAYS.items():
        (root / way).mkdir()
        jobs = [
            {
                "source": str(root / "staged" / case) if way == "remote-local" else f"someone/{case}",
                "case": case,
                "image": str(root / "image.png"),
            }
            for case in cases
        ]
        run_client(hub, root / f"{way}-client", ["load", way.split("-")[0]], jobs, root / way)
    return {"root": root, "sources": sources, "results": results}


def test_a_push_is_one_commit(world, hub):
    for case, result in zip(PLAIN_CASES, world["results"], strict=False):
        assert result["code"] == 0, result["stderr"]
        assert ("are equal bit for bit" in result["stdout"]) == (case == "deit")
        repository = hub.repositories[f"someone/{case}"]
        assert len(repository.commits) == 2
        assert repository.commits[-1].title.startswith("Publish with hf_vit_family")
        assert repository.commits[-1].oid in result["stdout"]
        kept = {".gitattributes": b""} if case != "deit" else {"notes.txt": b"kept"}  # stale code and weights are gone
        assert repository.commits[-1].files == contents(world["root"] / "staged" / case) | kept
        assert not repository.private
    assert hub.repositories["someone/private"].private
    assert contents(world["root"] / "kept") == contents(world["root"] / "staged" / "deit")


@pytest.mark.parametrize(
    ("index", "code", "message"),
    [
        (0, 2, "no access token for the Hub: run 'hf auth login' or set HF_TOKEN"),
        (1, 2, "repository id 'none' is malformed: expected OWNER/NAME"),
        (2, 2, "absent: no such folder"),
        (3, 0, ""),
        (4, 2, "forbidden/model: the access token may not do this (403)"),
        (5, 2, "broken/model: the Hub cannot be reached"),
        (6, 2, "someone/public exists and is public"),
        (7, 0, ""),
    ],
)
def test_refusals_are_one_line(world, hub, index, code, message):
    result = world["results"][len(PLAIN_CASES) + index]
    assert result["code"] == code
    assert message in result["stderr"]
    assert len(result["stderr"].splitlines()) == (code != 0)
    assert "someone/dry" not in hub.repositories
    assert len(hub.repositories["someone/public"].commits) == 1


@every_way
def test_every_class_loads_with_equal_outputs(world, case, way):
    root, source = world["root"], world["sources"][case]
    loaded, seen = load_file(root / way / f"{case}.safetensors"), json.loads((root / way / f"{case}.json").read_text())
    package = "hf_vit_family.modeling" if way == "registered" else "transformers_modules"
    assert {module.split(".")[0] for module in seen["modules"]} == {package.split(".")[0]}
    # The reference: this process, with the package. Outputs of the staged folder, and of the source's own processor.
    ours = collect(root / "staged" / case, trust_remote_code=False)
    auto_classes = {AUTO_CLASSES[head].__name__ for head in architecture_of(case).heads}
    if way == "remote-local":
        auto_classes.discard("AutoBackbone")
    assert {name.split(".")[0] for name in loaded} == auto_classes | {"processor"}
    for name, value in loaded.items():
        if name.startswith("processor"):
            continue
        matches = [key for key in ours if key == name or key.startswith(f"{name}.")]
        assert matches, name
        # Up to the last bits, which the number of threads decides; `publish` compares them with the same number.
        torch.testing.assert_close(
            value, ours[matches[-1]], rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    example = Image.open(root / "image.png")
    with quiet_loading():
        if case in VIDEO_CASES:
            example = np.stack([np.roll(example, shift, axis=1) for shift in range(10)])
            task, processors = "video-classification", {"torchvision": AutoVideoProcessor.from_pretrained(source)}
        else:
            task = "image-classification"
            processors = {
                backend: AutoImageProcessor.from_pretrained(source, backend=backend)
                for backend in ("torchvision", "pil")
            }
        for backend, processor in processors.items():
            expected = processor(example, return_tensors="pt")["pixel_values"]
            assert torch.equal(loaded[f"processor.{backend}"], expected)
        expected = pipeline(task, model=str(source))(example)
        assert [each["label"] for each in seen["pipeline"]] == [each["label"] for each in expected]
        scores = [each["score"] for each in expected]
        assert [each["score"] for each in seen["pipeline"]] == pytest.approx(scores, rel=1e-4, abs=1e-6)


@every_way
def test_saved_again_is_whole(world, hub, case, way, tmp_path):
    staged = contents(world["root"] / "staged" / case)
    expected = {name: data for name, data in staged.items() if name not in NOT_SAVED_AGAIN}
    saved = contents(world["root"] / way / case)
    saved.pop("README.md", None)  # transformers writes an empty card where it pushes while saving
    assert saved == expected  # which loads: it is what the other tests load
    # A configuration saved on its own names no code that is not next to it.
    alone = world["root"] / way / f"{case}-config"
    references = json.loads((alone / "config.json").read_text())["auto_map"]
    assert "AutoConfig" in references
    assert all((alone / f"{reference.split('.')[0]}.py").is_file() for reference in references.values())
    if way != "remote-local":
        pushed = hub.repositories[f"someone/{case}-again"].commits[-1].files
        assert {name: pushed[name] for name in expected} == expected
    # It can be published again, and nothing has changed.
    stage(world["root"] / way / case, tmp_path / "staged", f"someone/{case}", "mit")
    assert contents(tmp_path / "staged") == staged
