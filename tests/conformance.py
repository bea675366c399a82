"""
transformers' own common tests, run on every architecture: `make conformance`.

Fetches the source distribution of the installed transformers with pip into .conformance/ (once for each version), and
runs its model, configuration, backbone, image-processor and pipeline mixins on the tiny models of the dossiers. The
distribution carries these mixins but not the modules that they import from subfolders: stand-ins for those are below.
"""

import importlib
import json
import os
import subprocess
import sys
import tarfile
import types
import unittest
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModel
from transformers.models.auto import modeling_auto

CACHE = Path(__file__).parent.parent / ".conformance"
SOURCES = CACHE / f"transformers-{transformers.__version__}"

# Test to the reason why it cannot apply to any architecture; the dossiers have those of each. Everything else must
# pass. What a test skips by itself is listed in the summary.
NOT_APPLICABLE = {
    "test_model_get_set_embeddings": "asserts that the input embeddings are a table of vectors; ours are convolutions"
}


def fetch() -> None:
    """Downloads and unpacks the tests of the installed version, unless they are there. The folder appears whole."""
    if SOURCES.exists():
        return
    CACHE.mkdir(exist_ok=True)
    requirement = f"transformers=={transformers.__version__}"
    options = ["--no-deps", "--no-binary", "transformers", "--no-build-isolation", "--quiet", "--dest", str(CACHE)]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement], check=True)
    staging = SOURCES.with_suffix(".partial")
    with tarfile.open(CACHE / f"{SOURCES.name}.tar.gz") as archive:
        members = [m for m in archive.getmembers() if Path(m.name).parts[1:2] == ("tests",) and m.name.endswith(".py")]
        archive.extractall(staging, members, filter="data")
    root = staging / SOURCES.name
    (root / "tests" / "__init__.py").touch()
    (root / "src").mkdir()
    (root / "src" / "transformers").symlink_to(Path(transformers.__file__).parent)
    root.rename(SOURCES)
    staging.rmdir()


class PipelineTest:
    """Stand-in for a pipeline's own test class: every form of input gives the same, finite result."""

    def __init__(self, task: str):
        self.task = task

    def __call__(self):  # the mixin makes an instance of what it finds
        return self

    def get_test_pipeline(self, model, tokenizer=None, image_processor=None, dtype="float32", **kwargs):
        pipe = transformers.pipeline(self.task, model=model, image_processor=image_processor, dtype=dtype)
        return pipe, [photograph(), str(photograph_path())]

    def run_pipeline_test(self, pipe, examples):
        results = [pipe(example) for example in examples]
        assert results[0] == results[1]
        if self.task == "image-classification":
            scores = [answer["score"] for answer in results[0]]
            assert abs(sum(scores) - 1) < 1e-3
            assert scores == sorted(scores, reverse=True)
        for batched, alone in zip(pipe(examples, batch_size=2), results, strict=True):
            torch.testing.assert_close(self.numbers(batched), self.numbers(alone))
        assert self.numbers(results[0]).isfinite().all()

    def numbers(self, result):
        """Turns what a pipeline returned for one image into a tensor."""
        return torch.tensor([answer["score"] for answer in result] if isinstance(result[0], dict) else result)


def photograph_path() -> Path:
    """A photograph of 427 x 640 pixels that scikit-learn ships."""
    from sklearn import datasets

    return Path(datasets.__file__).parent / "images" / "china.jpg"


def photograph():
    """The photograph as a PIL image."""
    from PIL import Image

    return Image.open(photograph_path()).convert("RGB")


# What the source distribution leaves out: module name to what is imported from it. Exporters are tested in
# test_contract.py; nothing here generates text.
STAND_INS = {
    "tests.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    "tests.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    "tests.utils.test_configuration_utils": {
        "config_common_kwargs": {
            "return_dict": False,
            "output_hidden_states": True,
            "dtype": "float16",
            "chunk_size_feed_forward": 5,
            "architectures": ["Model"],
            "id2label": {0: "label"},
            "label2id": {"label": "0"},
            "problem_type": "regression",
        }
    },
    "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: str(photograph_path())},
    "tests.pipelines.test_pipelines_image_classification": {
        "ImageClassificationPipelineTests": PipelineTest("image-classification")
    },
    "tests.pipelines.test_pipelines_image_feature_extraction": {
        "ImageFeatureExtractionPipelineTests": PipelineTest("image-feature-extraction")
    },
}
PIPELINES = {"image-classification": "ForImageClassification", "image-feature-extraction": "Model"}
# By these tables the mixins know what a class takes and returns.
NAMES_BY_HEAD = {
    "Model": modeling_auto.MODEL_MAPPING_NAMES,
    "ForImageClassification": modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    "ForVideoClassification": modeling_auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES,
    "ForMaskedImageModeling": modeling_auto.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES,
    "ForPreTraining": modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    "Backbone": modeling_auto.MODEL_FOR_BACKBONE_MAPPING_NAMES,
}


def steady_norms(config) -> None:
    """
    Replaces a helper that sets every name of an epsilon that it knows, which a strict configuration refuses to load.
    """
    config.layer_norm_eps = 1.0


# What is used of the source distribution: name to module.
MIXINS = {
    "BackboneTesterMixin": "test_backbone_common",
    "ConfigTester": "test_configuration_common",
    "ImageProcessingTestMixin": "test_image_processing_common",
    "prepare_image_inputs": "test_image_processing_common",
    "ModelTesterMixin": "test_modeling_common",
    "PipelineTesterMixin": "test_pipeline_mixin",
    "transformers_module": "test_pipeline_mixin",
}


def import_mixins(tiny_models: Path) -> types.SimpleNamespace:
    """The mixins of the source distribution; pipelines load their models from `tiny_models`."""
    os.environ["TRANSFORMERS_TINY_MODEL_PATH"] = str(tiny_models)
    sys.path.insert(0, str(SOURCES))
    sys.modules.pop("tests", None)
    for name, content in STAND_INS.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        sys.modules[name] = module
    importlib.import_module("tests.test_modeling_common").set_config_for_less_flaky_test = steady_norms
    return types.SimpleNamespace(
        **{name: getattr(importlib.import_module(f"tests.{module}"), name) for name, module in MIXINS.items()}
    )


def whole_config(case: str):
    """The tiny configuration of a case, with nothing hidden from an encoder: the mixins count all tokens."""
    hides = hasattr(tiny_config(case), "mask_ratio")
    return tiny_config(case, mask_ratio=0.0) if hides else tiny_config(case)


def model_tester(case: str):
    """A class that makes tiny configurations and inputs of a case, in the form that the mixins ask for."""

    class Tester:
        batch_size = 3
        is_training = True

        def __init__(self, parent):
            config = whole_config(case)
            self.parent = parent
            self.image_size = pair(config.image_size)[0]
            self.patch_size = config.stage_strides[0][0]
            self.hidden_size = config.stage_channels[-1]
            self.num_hidden_layers = len(config.stage_names) - 1
            self.num_attention_heads = getattr(config, "num_attention_heads", None)
            self.mask_length = random_mask(config).shape[1] if case in IMAGE_CASES else 0
            self.num_masks = self.mask_length // 2
            with torch.no_grad():
                self.seq_length = AutoModel.from_config(config)(random_pixels(config)).last_hidden_state.shape[1]

        def get_config(self):
            return whole_config(case)

        def prepare_config_and_inputs(self):
            config = whole_config(case)
            return config, random_pixels(config, self.batch_size), None

        def prepare_config_and_inputs_for_common(self):
            config, pixel_values, _ = self.prepare_config_and_inputs()
            return config, {"pixel_values": pixel_values}

    return Tester


def make_tests(case: str, mixins: types.SimpleNamespace, tiny_models: Path) -> dict[str, type]:
    """
    The test classes of one architecture, by name. For one that takes clips they are only those of models: the mixins
    for pipelines and backbones hand out images.
    """
    architecture = architecture_of(case)
    classes = {head: architecture.model_class(head) for head in architecture.heads}
    for head, model_class in classes.items():
        NAMES_BY_HEAD[head][architecture.model_type] = model_class.__name__
    takes_images = case in IMAGE_CASES
    pipeline_classes = {task: classes[head] for task, head in PIPELINES.items() if takes_images and head in classes}
    for model_class in pipeline_classes.values():
        folder = tiny_models / architecture.model_type / model_class.__name__
        model_class(tiny_config(case)).save_pretrained(folder)
        config = tiny_config(case)
        height, width = pair(config.image_size)
        VitfImageProcessor(size={"height": height, "width": width}).save_pretrained(folder)

    def set_up(self):
        self.model_tester = model_tester(case)(self)

    def test_config(self):
        fields = {**TINY[case]}
        common = [name for name in ("hidden_size", "num_attention_heads", "num_hidden_layers") if name in fields]
        mixins.ConfigTester(
            self, architecture.config_class, has_text_modality=False, common_properties=common, **without_labels(fields)
        ).run_common_tests()

    model_tests = {
        "setUp": set_up,
        "test_config": test_config,
        "all_model_classes": tuple(classes.values()),
        "pipeline_model_mapping": pipeline_classes,
        "test_resize_embeddings": False,
        "has_attentions": classes["Model"].has_attention_maps,
        "test_can_init_all_missing_weights_before_2023": True,  # also where a file states no year
    }
    backbone_tests = {
        "setUp": set_up,
        "all_model_classes": (classes["Backbone"],),
        "config_class": architecture.config_class,
        "has_attentions": classes["Backbone"].has_attention_maps,
    }
    made = {"ModelTest": (mixins.ModelTesterMixin, mixins.PipelineTesterMixin, model_tests)}
    if takes_images:
        made["BackboneTest"] = (mixins.BackboneTesterMixin, backbone_tests)
    tests = {}
    for suffix, (*bases, content) in made.items():
        name = architecture.prefix + suffix
        skips = {
            test: unittest.skip(reason)(lambda self: None)
            for test, reason in {**NOT_APPLICABLE, **dossier_of(case).not_applicable}.items()
        }
        tests[name] = type(name, (*bases, unittest.TestCase), {**content, **skips, "__module__": __name__})
    return tests


def without_labels(fields: dict) -> dict:
    """The configuration test passes its own number of labels."""
    return {name: value for name, value in fields.items() if name != "num_labels"}


def image_processor_test(mixins: types.SimpleNamespace) -> type:
    """The test class of the family's one image processor."""

    class Tester:
        batch_size, num_channels, size = 7, 3, {"height": 18, "width": 20}
        image_processing_classes = {"torchvision": VitfImageProcessor, "pil": VitfImageProcessorPil}

        def __init__(self, parent):
            self.parent = parent

        def prepare_image_processor_dict(self):
            return {"size": self.size, "crop_pct": 0.9, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}

        def expected_output_image_shape(self, images):
            return self.num_channels, self.size["height"], self.size["width"]

        def prepare_image_inputs(self, equal_resolution=False, numpify=False, torchify=False):
            return mixins.prepare_image_inputs(
                batch_size=self.batch_size,
                num_channels=self.num_channels,
                min_resolution=30,
                max_resolution=400,
                equal_resolution=equal_resolution,
                numpify=numpify,
                torchify=torchify,
            )

    bases = (mixins.ImageProcessingTestMixin, unittest.TestCase)
    return type("VitfImageProcessorTest", bases, {"image_processor_tester_class": Tester, "__module__": __name__})


class Summary:
    """Lists what did not run, and why, after pytest's own summary."""

    def pytest_terminal_summary(self, terminalreporter):
        skipped = {}
        for report in terminalreporter.stats.get("skipped", []):
            name = report.nodeid.rpartition("::")[2]
            skipped.setdefault(name, report.longrepr[2].removeprefix("Skipped: "))
        terminalreporter.section("tests that did not run")
        for name, reason in sorted(skipped.items()):
            terminalreporter.write_line(f"{name}: {' '.join(reason.split())}")


if __name__ == "__main__":
    fetch()
    sys.exit(
        pytest.main([__file__, "-o", "addopts=", "-p", "no:cacheprovider", "-q", *sys.argv[1:]], plugins=[Summary()])
    )

import tempfile  # noqa: E402

from models import (  # noqa: E402
    IMAGE_CASES,
    PLAIN_CASES,
    TINY,
    architecture_of,
    dossier_of,
    random_mask,
    random_pixels,
    tiny_config,
)

from hf_vit_family.modeling.configuration_vitf import pair  # noqa: E402
from hf_vit_family.modeling.image_processing_pil_vitf import VitfImageProcessorPil  # noqa: E402
from hf_vit_family.modeling.image_processing_vitf import VitfImageProcessor  # noqa: E402

_FOLDER = tempfile.TemporaryDirectory()
_TINY_MODELS = Path(_FOLDER.name)
_SUMMARY = {
    architecture_of(case).model_class(head).__name__: {
        "tokenizer_classes": [],
        "processor_classes": ["VitfImageProcessor"],
    }
    for case in PLAIN_CASES
    if case in IMAGE_CASES
    for head in PIPELINES.values()
}
(_TINY_MODELS / "reports").mkdir()
(_TINY_MODELS / "reports" / "tiny_model_summary.json").write_text(json.dumps(_SUMMARY))
_MIXINS = import_mixins(_TINY_MODELS)
_MIXINS.transformers_module.VitfImageProcessor = VitfImageProcessor
for _case in PLAIN_CASES:
    globals().update(make_tests(_case, _MIXINS, _TINY_MODELS))
VitfImageProcessorTest = image_processor_test(_MIXINS)
