"""Checkpoints of vit-pytorch: converted and equal, both ways, or refused by the name of their class."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from models import randomise, tiny_config
from vit_family_launcher import main
from vit_pytorch import MAE, SimpleViT, ViT
from vit_pytorch.cct import CCT
from vit_pytorch.rvt import RvT
from vit_pytorch.simmim import SimMIM

from hf_vit_family import ARCHITECTURES, create_config
from hf_vit_family.conversion.convert import convert_checkpoint, export_checkpoint
from hf_vit_family.conversion.peers import PEERS, create_peer
from hf_vit_family.conversion_scripts.vit_pytorch_classes import REFUSED
from hf_vit_family.errors import ConversionError
from hf_vit_family.loading import load_saved_model

_SMALL = {"image_size": 32, "patch_size": 8, "num_classes": 5, "dim": 24, "depth": 2, "heads": 3, "mlp_dim": 40}
_CCT = {"img_size": 32, "embedding_dim": 24, "num_layers": 2, "num_heads": 3, "mlp_ratio": 2, "num_classes": 5}
# Case to the class, its arguments, and what its checkpoint does not tell, as `--set` takes it.
CONVERTED = {
    "vit": (ViT, {}, "num_attention_heads=3 patch_size=8"),
    "vit-narrow-heads": (ViT, {"dim_head": 4}, "num_attention_heads=3 patch_size=8"),
    "vit-heads-of-the-width": (ViT, {"dim_head": 8, "dropout": 0.1}, "num_attention_heads=3 patch_size=8"),
    "vit-mean": (ViT, {"pool": "mean", "channels": 1}, "num_attention_heads=3 patch_size=8 num_channels=1"),
    "vit-oblong": (
        ViT,
        {"image_size": (16, 40), "patch_size": (8, 4), "channels": 2},
        "num_attention_heads=3 patch_size=[8,4] num_channels=2 image_size=[16,40]",
    ),
    "vit-headless": (ViT, {"num_classes": 0}, "num_attention_heads=3 patch_size=8"),
    "simple": (SimpleViT, {}, "num_attention_heads=3 patch_size=8 image_size=32"),
    "simple-oblong": (
        SimpleViT,
        {"image_size": (16, 40), "dim_head": 8},
        "num_attention_heads=3 patch_size=8 image_size=[16,40]",
    ),
    "rvt": (RvT, {}, "patch_size=8 position_embedding_type=rotary"),
    "rvt-without-rotary": (RvT, {"use_rotary": False}, "patch_size=8 position_embedding_type=none"),
    "rvt-plain": (
        RvT,
        {"use_rotary": False, "use_ds_conv": False, "use_glu": False, "dim_head": 4},
        "patch_size=8 position_embedding_type=none num_attention_heads=3 image_size=32",
    ),
    "cct": (CCT, {**_CCT}, "image_size=32 num_attention_heads=3"),
    "cct-sine": (
        CCT,
        {**_CCT, "positional_embedding": "sine", "kernel_size": 3, "stride": 1, "padding": 1, "n_conv_layers": 2},
        "image_size=32 num_attention_heads=3",
    ),
}
for case, (kind, given, _) in CONVERTED.items():
    CONVERTED[case][1].update(given if kind is CCT else {**_SMALL, **given})


def make(case):
    """The peer of a case in float64, every parameter random."""
    kind, arguments, _ = CONVERTED[case]
    return randomise(kind(**arguments)).double().eval()


def pixels_for(config):
    return torch.randn(2, *config.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def check_equal(theirs, ours):
    """Both return the same for the same pixels."""
    ours, pixels = ours.double().eval(), pixels_for(ours.config)
    with torch.no_grad():
        expected, outputs = theirs(pixels), ours(pixels)
    actual = outputs.logits if "logits" in outputs else outputs.last_hidden_state
    assert expected.shape == actual.shape
    assert expected.std() > 0
    assert (expected - actual).abs().max() < 1e-12 * expected.abs().max()


def saved(state_dict, path: Path, wrapper: str | None = None) -> str:
    torch.save({wrapper: state_dict} if wrapper else state_dict, path)
    return str(path)


@pytest.mark.parametrize("case", CONVERTED)
def test_a_checkpoint_equals_its_class_and_goes_back(tmp_path, case):
    theirs, (kind, arguments, answers) = make(case), CONVERTED[case]
    # Odd cases are files of a training script, which wraps the weights.
    path = saved(theirs.state_dict(), tmp_path / "theirs.pt", "model" if list(CONVERTED).index(case) % 2 else None)
    assert main(["convert", path, "--output", str(tmp_path / "ours"), "--set", *answers.split()]) == 0
    ours = load_saved_model(tmp_path / "ours")
    check_equal(theirs, ours)

    layout = "original" if kind in (CCT, RvT) else "vit_pytorch"
    assert main(["convert", str(tmp_path / "ours"), "--output", str(tmp_path / "back"), "--to", layout]) == 0
    back = torch.load(tmp_path / "back/model.pth", weights_only=True)
    assert back.keys() == theirs.state_dict().keys()
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(back[key].double(), tensor), key
    if kind is not CCT:
        written = json.loads((tmp_path / "back/config.json").read_text())
        arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in written.items()}
        if "num_classes" in CONVERTED[case][1] and not CONVERTED[case][1]["num_classes"]:
            arguments["num_classes"] = 0
    again = kind(**arguments).double().eval()
    again.load_state_dict(back)
    check_equal(again, ours)
    if kind is not CCT:  # what was written says all that it was asked for
        check_equal(theirs, convert_checkpoint(tmp_path / "back")[0])


@pytest.mark.parametrize("case", CONVERTED)
def test_the_arguments_of_the_constructor_answer_all_questions(tmp_path, case):
    theirs, arguments = make(case), CONVERTED[case][1]
    for wrapper in (None, "model"):
        path = saved(theirs.state_dict(), tmp_path / "theirs.pt", wrapper)
        ours, _ = convert_checkpoint(path, original_kwargs=json.loads(json.dumps(arguments)))
        check_equal(theirs, ours)


@pytest.mark.parametrize("case", [case for case in CONVERTED if not case.startswith("cct")])
def test_what_a_checkpoint_does_not_tell_is_asked_for_at_once(case):
    names = [answer.partition("=")[0] for answer in CONVERTED[case][2].split()]
    with pytest.raises(ConversionError) as caught:
        convert_checkpoint(make(case).state_dict())
    (_, _, asked), message = str(caught.value).partition("--set "), str(caught.value)
    assert {item.removesuffix("=...") for item in asked.partition(",")[0].split()} == set(names), message


# The classes that are refused, by their names in the converter's table, with arguments that keep them small.
REFUSED_ARGUMENTS = {
    "ViT with one head": {**_SMALL, "heads": 1, "dim_head": 24},
    "ViT for small data sets": _SMALL,
    "DeepViT": _SMALL,
    "CaiT": {**_SMALL, "cls_depth": 1},
    "T2TViT": {
        **{name: value for name, value in _SMALL.items() if name != "patch_size"},
        "t2t_layers": ((3, 2), (3, 2), (3, 2)),
    },
    "CrossViT": {
        "image_size": 32,
        "num_classes": 5,
        "sm_dim": 24,
        "lg_dim": 32,
        "sm_patch_size": 8,
        "lg_patch_size": 16,
        "sm_enc_mlp_dim": 24,
        "lg_enc_mlp_dim": 24,
        "depth": 1,
    },
    "PiT": {**_SMALL, "depth": (1, 1)},
    "LeViT": {"image_size": 32, "num_classes": 5, "dim": (16, 24), "depth": 1, "heads": 2, "mlp_mult": 2, "stages": 2},
    "CvT": {"num_classes": 5, "s1_emb_dim": 16, "s2_emb_dim": 16, "s3_emb_dim": 16, "s3_depth": 1},
    "TwinsSVT": {
        **{f"s{stage}_emb_dim": 16 for stage in range(1, 5)},
        "num_classes": 5,
        "s3_depth": 1,
        "s4_depth": 1,
    },
    "RegionViT": {"dim": (16, 16, 16, 16), "depth": (1, 1, 1, 1), "window_size": 2, "num_classes": 5},
    "NesT": {
        "image_size": 32,
        "patch_size": 8,
        "num_classes": 5,
        "dim": 24,
        "heads": 3,
        "num_hierarchies": 2,
        "block_repeats": (1, 1),
    },
    "LocalViT": {**_SMALL, "dim": 4},
}


def refused_model(refused):
    """A model of a refused class, every parameter random."""
    module = importlib.import_module(f"vit_pytorch.{refused.file.removesuffix('.py')}")
    return randomise(getattr(module, refused.name.split()[0])(**REFUSED_ARGUMENTS[refused.name]))


@pytest.mark.parametrize("wrapper", [None, "model"])
@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused.name)
def test_a_class_that_differs_from_the_paper_is_refused_by_its_name(tmp_path, capsys, refused, wrapper):
    state_dict = refused_model(refused).state_dict()
    assert [each.name for each in REFUSED if each.fits(list(state_dict))] == [refused.name]
    path = saved(state_dict, tmp_path / "theirs.pt", wrapper)
    assert main(["convert", path, "--output", str(tmp_path / "ours")]) == 2
    message = capsys.readouterr().err
    assert f"this is vit-pytorch's {refused.name}, which {refused.reason}; not convertible" in message
    assert not (tmp_path / "ours").exists()
    # Nor does a guess help, or what a training script put around it.
    within = {f"module.{key}": tensor for key, tensor in state_dict.items()}
    for checkpoint, options in ((state_dict, {"architecture": "vit"}), (within, {})):
        with pytest.raises(ConversionError, match=f"vit-pytorch's {refused.name}, "):
            convert_checkpoint(checkpoint, **options)


def test_no_other_checkpoint_is_taken_for_a_refused_class():
    for case in CONVERTED:
        assert not any(each.fits(list(make(case).state_dict())) for each in REFUSED), case


@pytest.mark.parametrize(
    ("file", "name", "arguments"),
    [
        ("simple_vit_3d", "SimpleViT", {"frames": 4, "image_patch_size": 8, "frame_patch_size": 2}),
        ("simple_vit_with_register_tokens", "SimpleViT", {"num_register_tokens": 2}),
        ("simple_vit_with_relative_proj_pos_bias", "SimpleViT", {}),
        ("simple_vit_with_qk_norm", "SimpleViT", {}),
        ("simple_flash_attn_vit", "SimpleViT", {}),
        ("parallel_vit", "ViT", {}),
        ("vit_with_patch_merger", "ViT", {}),
        ("vit_with_decorr", "ViT", {}),
        ("learnable_memory_vit", "ViT", {}),
        ("vit_3d", "ViT", {"frames": 4, "image_patch_size": 8, "frame_patch_size": 2}),
    ],
)
def test_no_variation_of_a_class_is_taken_for_it(file, name, arguments):
    kind = getattr(importlib.import_module(f"vit_pytorch.{file}"), name)
    given = {key: value for key, value in _SMALL.items() if "frames" not in arguments or key != "patch_size"}
    state_dict = randomise(kind(**given, **arguments)).state_dict()
    answers = {"num_attention_heads": 3, "patch_size": 8, "image_size": 32}
    for fields in ({}, answers, {**answers, "pooling": "mean"}, {**answers, "position_embedding_type": "rotary"}):
        with pytest.raises(ConversionError):
            convert_checkpoint(state_dict, **fields)


@pytest.mark.parametrize("kind", [MAE, SimMIM])
def test_of_masked_pretraining_the_encoder_is_converted(tmp_path, capsys, kind):
    encoder = make("vit")
    arguments = {"decoder_dim": 16, "decoder_heads": 2, "decoder_dim_head": 8} if kind is MAE else {}
    theirs = randomise(kind(encoder=encoder, **arguments)).double().eval()
    path = saved(theirs.state_dict(), tmp_path / "theirs.pt")
    main(["convert", path, "--output", str(tmp_path / "ours"), "--set", "num_attention_heads=3", "patch_size=8"])
    assert "took the keys that begin with 'encoder.'" in capsys.readouterr().out
    ours = load_saved_model(tmp_path / "ours")
    check_equal(theirs.encoder, ours)
    back = export_checkpoint(ours, "vit_pytorch")
    assert all(torch.equal(tensor, back[key]) for key, tensor in encoder.state_dict().items())


class ViTOfOld(ViT):
    """vit-pytorch 1.10.1 vit_pytorch/vit.py, which always has a class token, and takes the mean over it, too."""

    def __init__(self, **arguments):
        super().__init__(**{**arguments, "pool": "cls"})
        self.pool = arguments["pool"]
        self.cls_token = torch.nn.Parameter(self.cls_token[None])
        self.pos_embedding = torch.nn.Parameter(self.pos_embedding[None])

    def forward(self, pixel_values):
        patches = self.to_patch_embedding(pixel_values)
        tokens = torch.cat((self.cls_token.expand(len(patches), -1, -1), patches), dim=1) + self.pos_embedding
        tokens = self.transformer(tokens)
        return self.mlp_head(tokens.mean(dim=1) if self.pool == "mean" else tokens[:, 0])


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_of_a_vit_of_old_what_it_pools_is_asked_for(pool):
    theirs = randomise(ViTOfOld(**_SMALL, pool=pool)).double().eval()
    fields = {"num_attention_heads": 3, "patch_size": 8}
    with pytest.raises(ConversionError, match=r"--set pooling=\.\.\., "):
        convert_checkpoint(theirs.state_dict(), **fields)
    ours, report = convert_checkpoint(theirs.state_dict(), pooling=pool, **fields)
    assert report.layout == "vit_pytorch_of_old"
    check_equal(theirs, ours)
    back = export_checkpoint(ours, report.layout)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, back[key]) for key, tensor in theirs.state_dict().items())
    # Arguments of a whole call leave the others at the constructor's defaults.
    again, _ = convert_checkpoint(
        theirs.state_dict(), original_kwargs={**_SMALL, "pool": pool} if pool == "mean" else _SMALL
    )
    check_equal(theirs, again)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"num_attention_heads": 5, "patch_size": 8}, "num_attention_heads=5 does not divide"),
        ({"num_attention_heads": 3, "patch_size": 7}, "patches of 7 x 7 do not have 192 values"),
        ({"num_attention_heads": 3, "patch_size": "large"}, "patch_size='large': expected one or two numbers"),
        ({"num_attention_heads": 3, "patch_size": 4}, "num_channels is not told by the checkpoint"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(fields, expected):
    with pytest.raises(ConversionError, match=expected):
        convert_checkpoint(make("vit").state_dict(), **fields)


def test_a_call_without_rotary_is_told_by_no_key():
    """Both have the table of frequencies, so that what is not said must not be guessed."""
    theirs = make("rvt-without-rotary")
    with pytest.raises(ConversionError, match="position_embedding_type"):
        convert_checkpoint(theirs.state_dict(), patch_size=8)
    whole = {**_SMALL, "use_rotary": False}
    check_equal(theirs, convert_checkpoint(theirs.state_dict(), original_kwargs=whole)[0])
    rotating, _ = convert_checkpoint(make("rvt").state_dict(), original_kwargs=_SMALL)
    assert rotating.config.position_embedding_type == "rotary"


@pytest.mark.parametrize("case", ["vit", "vit-mean", "simple", "rvt"])
def test_a_damaged_tensor_is_refused(case):
    sound = make(case).state_dict()
    answers = [answer.partition("=") for answer in CONVERTED[case][2].split()]
    fields = {name: int(value) if value.isdigit() else value for name, _, value in answers}
    for number, (key, tensor) in enumerate(sound.items()):
        # Missing, of another rank, or three times as long, in turn; three times nothing is nothing.
        damaged = ({}, {key: tensor[None]}, {key: torch.cat((tensor, tensor, tensor))})[
            number % 3 if len(tensor) else 1
        ]
        rest = {name: other for name, other in sound.items() if name != key}
        with pytest.raises(ConversionError):
            convert_checkpoint({**rest, **damaged}, **fields)


def test_what_no_position_of_a_cct_confirms_is_asked_for():
    """The class has other defaults than the functions that make its published sizes."""
    arguments = {**_CCT, "kernel_size": 3, "positional_embedding": "none"}
    theirs = randomise(CCT(**arguments)).double().eval()
    fields = {"image_size": 32, "num_attention_heads": 3}
    with pytest.raises(ConversionError, match="stride and padding are not told by the checkpoint"):
        convert_checkpoint(theirs.state_dict(), **fields)
    check_equal(theirs, convert_checkpoint(theirs.state_dict(), **fields, stride=2, padding=3)[0])


@pytest.mark.parametrize("architecture", PEERS["vit_pytorch"])
def test_every_peer_of_the_benchmark_is_built_from_a_configuration(architecture):
    variants = ARCHITECTURES[architecture].config_class.VARIANTS
    # Of Twins it has the second kind only.
    variant = next((name for name in variants if architecture != "twins" or "svt" in name), None)
    config = create_config(variant) if variant else tiny_config(architecture)
    peer = create_peer("vit_pytorch", architecture, architecture, config)
    assert any(parameter.shape[:1] == (config.num_labels,) for parameter in peer.parameters())
