"""Videos on the command line, from training to pictures, and in transformers' pipeline, with a tiny TimeSformer."""

import json

import numpy as np
import pytest
import torch
from models import tiny_model
from PIL import Image
from transformers import AutoVideoProcessor, pipeline
from video_files import make_frame, write_video
from vit_family_launcher import main

from hf_vit_family.errors import UserError
from hf_vit_family.explain.plots import plot_comparison
from hf_vit_family.explain.video_attention_maps import lay_out, overlays, video_relevance, video_rollout
from hf_vit_family.modeling.video_processing_vitf import VitfVideoProcessor

LABELS = {0: "jump", 1: "run", 2: "swim", 3: "sit", 4: "stand"}
KINDS = ("divided_space_time", "joint_space_time", "space_only")


def timesformer(**fields):
    """Every weight random: at first the attention over time would count for nothing."""
    model = tiny_model("timesformer", id2label=LABELS, label2id={label: i for i, label in LABELS.items()}, **fields)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model = timesformer()
    model.save_pretrained(path)
    processor = VitfVideoProcessor(
        num_frames=model.config.num_frames, size=model.config.image_size, crop_pct=0.9, num_views=2, num_crops=3
    )
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    write_video(path, range(20))
    return str(path)


def test_predict(folder, clip, capsys):
    assert main(["predict", clip, "--model", str(folder), "--top", "2"]) == 0
    shown = capsys.readouterr().out.split()
    assert shown[0] == clip
    model = type(timesformer()).from_pretrained(folder)
    inputs = AutoVideoProcessor.from_pretrained(folder)(clip, return_tensors="pt")
    best = model(**inputs).logits.softmax(-1)[0].topk(2)
    assert shown[2::2] == [LABELS[i] for i in best.indices.tolist()]
    assert [float(value) for value in shown[1::2]] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_pipeline_takes_files_and_arrays(folder, clip):
    classify = pipeline(
        "video-classification", model=str(folder), video_processor=AutoVideoProcessor.from_pretrained(folder)
    )
    array = np.stack([make_frame(number) for number in range(20)])
    for video in (clip, array):
        best = classify(video, top_k=5)
        assert {guess["label"] for guess in best} == set(LABELS.values())
        assert sum(guess["score"] for guess in best) == pytest.approx(1.0)


def test_evaluate_in_views(folder, clip, tmp_path, capsys):
    table = tmp_path / "clips.csv"
    table.write_text("path,label\n" + "".join(f"{clip},{label}\n" for label in ("jump", "run", "swim", "run")))
    results = {}
    for views in ("1x1", "4x3", None):
        output = tmp_path / str(views)
        argv = ["evaluate", "--model", folder, "--dataset", table, "--output", output, "--num_workers", 0]
        assert main([str(word) for word in argv + (["--views", views] if views else [])]) == 0
        results[views] = json.loads((output / "evaluation.json").read_text())
        assert results[views]["views"] == (views or "2x3")
        assert (output / "confusion.png").is_file()
    assert "4 videos in 2 x 3 views" in capsys.readouterr().out
    assert results["1x1"]["metrics"]["loss"] != results["4x3"]["metrics"]["loss"]
    assert {"accuracy", "top5_accuracy"} <= results["4x3"]["metrics"].keys()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["predict", "missing.mp4", "--model", "{folder}"], "missing.mp4: no such file"),
        (["predict", "{broken}", "--model", "{folder}"], "cannot read video {broken}: no video of a known format"),
        (["attend", "{broken}", "--model", "{folder}"], "cannot read video {broken}: no video of a known format"),
        (["attend", "{clip}", "{clip}", "--model", "{folder}"], "one at a time"),
        (["evaluate", "--model", "{folder}", "--dataset", "x", "--views", "4"], "--views 4: expected clips x crops"),
        (["evaluate", "--model", "{folder}", "--dataset", "./none"], "does not exist"),
    ],
)
def test_mistakes_are_one_line(folder, clip, tmp_path, capsys, argv, message):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    names = {"folder": folder, "broken": broken, "clip": clip}
    assert main([word.format(**names) for word in argv]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line and "file/s]" not in line]
    assert len(lines) == 1
    assert message.format(**names) in lines[0]


def test_predict_goes_on_after_a_broken_video(folder, clip, tmp_path, capsys):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    assert main(["predict", clip, "--model", str(folder)]) == 0
    expected = capsys.readouterr().out
    assert main(["predict", str(broken), clip, "--model", str(folder)]) == 1
    shown = capsys.readouterr()
    assert shown.out == expected
    assert f"vit-family predict: cannot read video {broken}: no video" in shown.err


@pytest.mark.parametrize("method", ["rollout", "relevance"])
def test_attend_writes_a_sheet_and_a_gif(folder, clip, tmp_path, method):
    output = tmp_path / "attention.png"
    assert main(["attend", clip, "--model", str(folder), "--method", method, "--output", str(output)]) == 0
    with Image.open(output) as sheet:
        assert sheet.width > sheet.height
    with Image.open(output.with_suffix(".gif")) as gif:
        assert gif.n_frames == AutoVideoProcessor.from_pretrained(folder).num_frames
        assert gif.info["loop"] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attention.gif", "attention.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_rollout_and_relevance_over_space_and_time(kind):
    model = timesformer(attention_type=kind)
    clips = torch.randn(2, 3, 3, 32, 48)
    logits, heat = video_rollout(model, clips)
    assert torch.allclose(logits, model(clips).logits, atol=1e-5)
    assert heat.shape[:2] == (2, 3)
    assert (heat >= 0).all()
    assert (heat.sum((1, 2, 3)) < 1).all()  # the rest is the class token's own
    _, relevance = video_relevance(model, clips, torch.tensor([0, 2]))
    assert relevance.shape == heat.shape
    assert (relevance >= 0).all()
    assert relevance.sum() > 0
    alone, _ = video_rollout(model, clips[:1])
    assert torch.allclose(alone, logits[:1], atol=1e-5)
    assert torch.allclose(video_rollout(model, clips[:1])[1], heat[:1], atol=1e-6)


def test_layers_are_laid_out_on_the_tokens_of_the_clip():
    """Against the definition, token by token."""
    batch, frames, patches = 2, 3, 5
    space, time = torch.rand(batch * frames, 1 + patches, 1 + patches), torch.rand(batch * patches, frames, frames)
    over_space, over_time = (lay_out(weights, batch, frames, patches, 1) for weights in (space, time))
    for b in range(batch):
        for t in range(frames):
            for n in range(patches):
                query = 1 + t * patches + n
                own = space[b * frames + t]
                assert over_space[b, query, 0] == own[1 + n, 0]
                for s in range(frames):
                    for m in range(patches):
                        key = 1 + s * patches + m
                        assert over_space[b, query, key] == (own[1 + n, 1 + m] if s == t else 0)
                        assert over_time[b, query, key] == (time[b * patches + n, t, s] if m == n else 0)
                assert torch.isclose(over_space[b, 0, query], own[0, 1 + n] / frames)
        assert torch.isclose(over_space[b, 0, 0], space[b * frames : (b + 1) * frames, 0, 0].mean())
    assert over_time[:, 0].abs().sum() + over_time[..., 0].abs().sum() == 0
    whole = torch.rand(batch, 1 + frames * patches, 1 + frames * patches)
    assert lay_out(whole, batch, frames, patches, 1) is whole
    with pytest.raises(UserError, match="cannot be laid out on 3 frames of 5 patches"):
        lay_out(torch.rand(4, 7, 7), batch, frames, patches, 1)


def test_one_frame_of_joint_attention_is_an_image():
    """With one frame, the joint and the space-only model are the same network, and show the same."""
    joint, alone = (timesformer(attention_type=kind) for kind in KINDS[1:])
    weights = joint.state_dict()
    weights["timesformer.embeddings.time_embeddings.weight"].zero_()
    joint.load_state_dict(weights)
    alone.load_state_dict({name: weights[name] for name in alone.state_dict()})
    clips = torch.randn(1, 1, 3, 32, 32)
    assert torch.allclose(video_rollout(joint, clips)[1], video_rollout(alone, clips)[1], atol=1e-6)


def test_overlays_share_one_scale():
    pictures = [Image.new("RGB", (16, 16), "white")] * 2
    dark, bright = overlays(pictures, torch.tensor([0.0, 1.0]).view(2, 1, 1).expand(2, 2, 2))
    assert np.asarray(dark).mean() != np.asarray(bright).mean()


def test_train_on_moving_digits_and_go_on(tmp_path):
    """
    The recipe runs through the common loop, saves a processor, and what it saved is evaluated, resumed, fine-tuned.
    """
    output = str(tmp_path / "run")
    small = ["--set", "patch_size=16", "hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2"]
    recipe = ["train", "--recipe", "moving_digits_timesformer", "--max_steps", "2", "--batch_size", "8", *small]
    limits = ["--max_train_samples", "32", "--max_eval_samples", "16"]
    assert main([*recipe, *limits, "--output", output]) == 0
    processor = AutoVideoProcessor.from_pretrained(output)
    assert type(processor) is VitfVideoProcessor
    assert (processor.num_frames, processor.size["height"]) == (8, 32)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["id2label"]["3"] == "right-down"
    assert config["num_frames"] == 8
    evaluation = ["evaluate", "--model", output, "--dataset", "moving_digits", "--max_eval_samples", "16"]
    assert main([*evaluation, "--views", "1x1", "--num_workers", "0"]) == 0
    again = [
        "train",
        "--model",
        output,
        "--dataset",
        "moving_digits",
        "--num_frames",
        "4",
        "--frame_sampling",
        "uniform",
    ]
    steps = ["--max_steps", "1", "--batch_size", "8", "--num_workers", "0", "--output", str(tmp_path / "again")]
    assert main([*again, *limits, *steps]) == 0
    assert AutoVideoProcessor.from_pretrained(tmp_path / "again").num_frames == 4


def test_frames_are_refused_for_images(tmp_path, capsys):
    argv = ["train", "--recipe", "digits", "--num_frames", "4", "--output", str(tmp_path / "run")]
    assert main(argv) == 2
    assert "num_frames" in capsys.readouterr().err


def test_comparison_of_runs(tmp_path):
    for name, accuracy in (("a", 0.9), ("b", 0.25)):
        lines = [{"split": "evaluation", "step": step, "epoch": 1, "accuracy": accuracy} for step in (10, 20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runs = {"divided": tmp_path / "a.jsonl", "space only": tmp_path / "b.jsonl"}
    plot_comparison(runs, tmp_path / "curves.png", chance=0.25)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > picture.height
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(UserError, match="has no accuracy"):
        plot_comparison(runs, tmp_path / "curves.png", chance=0.25)
