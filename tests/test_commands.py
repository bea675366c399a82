"""The command line: its help, its answers about variants, the benchmark, and one line for what a user can mend."""

import importlib.metadata
import json
import subprocess
import sys

import pytest
from vit_family_launcher import COMMANDS, main

import hf_vit_family
from hf_vit_family.benchmark import timing

TINY = ["--set", "image_size=32", "hidden_size=32", "num_attention_heads=2", "num_hidden_layers=2", "num_labels=5"]


def test_help_names_every_command_and_imports_neither_torch_nor_transformers():
    script = (
        "import sys, vit_family_launcher\n"
        "try:\n    vit_family_launcher.main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "assert not {'torch', 'transformers', 'hf_vit_family'} & sys.modules.keys()"
    )
    shown = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    for command in COMMANDS:
        assert f"  {command} " in shown


def test_importing_the_package_loads_no_decoder_and_no_plotting():
    script = (
        "import sys\nfrom transformers import PreTrainedModel\nbefore = set(sys.modules)\nimport hf_vit_family\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "unwanted = loaded & {'av', 'scipy', 'matplotlib', 'sklearn', 'datasets', 'evaluate', 'timm', 'pandas'}\n"
        "assert not unwanted, unwanted"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_versions_are_shown_by_the_module_too():
    shown = subprocess.run(
        [sys.executable, "-m", "hf_vit_family", "--version"], check=True, capture_output=True, text=True
    ).stdout
    assert f"hf_vit_family {hf_vit_family.__version__}\n" in shown
    assert f"torch {importlib.metadata.version('torch')}\n" in shown


@pytest.mark.parametrize(
    ("typed", "answer"), [("trian", "did you mean 'train'?"), ("zzz", "commands are demo, list, ")]
)
def test_unknown_command_names_the_nearest(typed, answer, capsys):
    with pytest.raises(SystemExit) as end:
        main([typed])
    assert end.value.code == 2
    assert answer in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_says_what_it_does_and_gives_examples(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert "example" in shown
    assert f"vit-family {command}" in shown


def test_list_takes_a_pattern(capsys):
    assert main(["list", "deit_*distilled*"]) == 0
    assert capsys.readouterr().out.split() == [
        "deit_tiny_distilled_patch16_224",
        "deit_small_distilled_patch16_224",
        "deit_base_distilled_patch16_224",
        "deit_base_distilled_patch16_384",
    ]


def test_info_shows_fields_counts_source_and_licence(capsys):
    assert main(["info", "deit_tiny_distilled_patch16_224"]) == 0
    shown = capsys.readouterr().out
    for text in ("5,910,800", "2.52 G", "hidden_size", "facebookresearch/deit@7e160fe", "apache-2.0", "74.5%", "0.875"):
        assert text in shown


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["info", "deit_tny_patch16_224"], "deit_tiny_patch16_224"),
        (["info", "vit_tiny_patch16_224", "--set", "hiden_size=3"], "hidden_size"),
        (["info", "vit_tiny_patch16_224", "--set", "hidden_size"], "FIELD=VALUE"),
        (["info", "vit_tiny_patch16_224", "--set", "image_size=225"], "info: VitfVitConfig: image_size=225"),
        (["list", "nothing*"], "nothing*"),
        (["benchmark", "cct_2_3x2_32", "--against", "torchvision"], "torchvision has no cct"),
        (["benchmark", "vit_tiny_patch16_224", "--rounds", "1"], "--rounds 1"),
        (["benchmark", "vit_tiny_patch16_224", "--device", "quantum"], "--device quantum"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(argv, names, capsys):
    assert main(argv) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert names in errors[0]


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["trian"], "'trian'"),
        (["predict", "--model", "x"], "FILE"),
        (["train", "--batch_sise", "3"], "did you mean '--batch_size'?"),
        (["evaluate", "--model", "x", "--dataset", "digits", "--on_bad_image", "keep"], "'skip', 'error'"),
    ],
)
def test_a_command_line_that_does_not_parse_is_one_line_without_the_usage(argv, names, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert names in errors[0]


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (["--model", "vit_tiny_patch16_224", "--set", "num_channels=4", "patch_size=4"], "num_channels=4"),
        (["--model", "./nowhere"], "'./nowhere': no such folder"),
    ],
)
def test_a_model_that_cannot_be_trained_is_one_line_and_leaves_no_folder(argv, names, tmp_path, capsys):
    output = tmp_path / "run"
    assert main(["train", *argv, "--dataset", "digits", "--image_size", "16", "--output", str(output)]) == 2
    shown = capsys.readouterr().err.splitlines()
    # A slow machine shows the bar of what is decoded, and clears it.
    errors = [line for line in shown if line.strip() and not line.startswith(("note: ", "decoding "))]
    assert len(errors) == 1
    assert names in errors[0]
    assert not output.exists()


@pytest.mark.parametrize("mode", ["forward", "train"])
def test_benchmark_measures_both_sides_of_the_same_model(mode, tmp_path, capsys, monkeypatch):
    if mode == "forward":  # memory takes a slow process for each side: one mode measures it
        monkeypatch.setattr(timing, "peak_memory", lambda *_: 1.0)
    file = tmp_path / "result.json"
    argv = ["benchmark", "vit_tiny_patch16_224", "--against", "transformers", "--mode", mode, "--rounds", "2"]
    assert main([*argv, "--batch-size", "1", "--json", str(file), *TINY]) == 0
    ours, theirs = json.loads(file.read_text())["results"]["vit_tiny_patch16_224"]
    assert (ours["library"], theirs["library"]) == ("hf_vit_family", "transformers")
    assert ours["parameters"] == theirs["parameters"]
    assert ours["flops"] == theirs["flops"] > 0
    assert ours["ratio"] == 1.0
    assert min(ours["milliseconds"], theirs["milliseconds"]) > 0
    # So small a model may fit into memory that is there already.
    assert min(ours["memory"], theirs["memory"]) >= 0
    shown = capsys.readouterr().out
    assert "transformers" in shown
    assert "not the same model" not in shown


def test_benchmark_prints_what_the_training_loop_adds(capsys):
    assert (
        main(["benchmark", "vit_tiny_patch16_224", "--mode", "loop", "--rounds", "2", "--batch-size", "2", *TINY]) == 0
    )
    assert "a step of the loop" in capsys.readouterr().out
    assert main(["benchmark", "vit_tiny_patch16_224", "--mode", "loop", "--against", "timm"]) == 2
