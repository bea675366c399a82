"""MViT compared with timm's and torchvision's own, its attention token by token, what its checkpoints may not be."""

import itertools

import golden
import pytest
import timm
import torch
from models import architecture_of, random_pixels, tiny_config, tiny_model
from test_goldens import convert, pixels
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from torchvision.models.video import MViT
from torchvision.models.video.mvit import MSBlockConfig

from hf_vit_family import ARCHITECTURES, create_model
from hf_vit_family.conversion.convert import convert_checkpoint, export_checkpoint, recognize
from hf_vit_family.conversion.parity import compare
from hf_vit_family.errors import ConversionError
from hf_vit_family.modeling.modeling_mvit import MvitAxisPositions, max_pooled

DEPTHS = (1, 2, 2)


def _randomise(model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.double().eval()


def _there_and_back(model, peer, pixel_values: torch.Tensor, theirs: torch.Tensor, layout: str) -> None:
    with torch.no_grad():
        assert compare({"logits": model(pixel_values).logits}, {"logits": peer(theirs)}, 1e-12).passed
    exported, state = export_checkpoint(model, layout), peer.state_dict()
    assert exported.keys() == state.keys()
    assert all(torch.equal(exported[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize("expand_attn", [True, False])
def test_logits_equal_timms(expand_attn):
    cfg = MultiScaleVitCfg(depths=DEPTHS, embed_dim=(8, 16, 32), num_heads=(1, 2, 4), expand_attn=expand_attn)
    cfg.stride_q, cfg.stride_kv = cfg.stride_q[:3], cfg.stride_kv[:3]
    peer = _randomise(MultiScaleVit(cfg, img_size=(64, 64), num_classes=5))
    model, report = convert_checkpoint(peer.state_dict(), "mvit", {"img_size": 64}, kv_strides=[4, 2, 1])
    assert report.layout == "timm"
    assert (model.config.depths, model.config.dim_mul_in_att) == (list(DEPTHS), expand_attn)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    _there_and_back(model, peer, images, images, "timm")


def test_timm_makes_what_is_written_for_it():
    model = create_model("mvitv2_tiny", image_size=64, num_labels=3)
    native = recognize(export_checkpoint(model, "timm"), None, "timm")[0].layout.native_config(model)
    peer = timm.create_model(native["architecture"], **native["model_args"])
    peer.load_state_dict(export_checkpoint(model, "timm"), strict=True)
    with pytest.raises(ConversionError, match="another model"):
        recognize(peer.state_dict(), None, "timm")[0].layout.native_config(tiny_model("mvit"))


def _torchvision(second: bool, size: int, num_frames: int) -> MViT:
    blocks = []
    for stage, depth in enumerate(DEPTHS):
        for index in range(depth):
            starts = stage > 0 and index == 0
            width, last = 8 * 2**stage, index == depth - 1
            wider = 2 * width if not second and last and stage + 1 < len(DEPTHS) else width
            pools = second or starts
            blocks.append(
                MSBlockConfig(
                    num_heads=2**stage,
                    input_channels=width // 2 if second and starts else width,
                    output_channels=wider,
                    kernel_q=[3, 3, 3] if pools else [],
                    kernel_kv=[3, 3, 3],
                    stride_q=([1, 2, 2] if starts else [1, 1, 1]) if pools else [],
                    stride_kv=[1, 4 // 2**stage, 4 // 2**stage],
                )
            )
    return MViT(
        (size, size),
        num_frames,
        blocks,
        residual_pool=second,
        residual_with_cls_embed=False,
        rel_pos_embed=second,
        proj_after_attn=second,
        num_classes=5,
    )


# The second size halves to odd sides: maps are rounded up, the tables of distances down, and resized.
@pytest.mark.parametrize(("size", "num_frames"), [(32, 4), (40, 8)])
@pytest.mark.parametrize("second", [False, True])
def test_logits_equal_torchvisions(second, size, num_frames):
    peer = _randomise(_torchvision(second, size, num_frames))
    model, report = convert_checkpoint(
        peer.state_dict(), original_kwargs={"residual_pool": second}, kv_strides=[4, 2, 1]
    )
    assert (report.architecture, report.layout) == ("mvit_video", "torchvision")
    assert model.config.num_frames == num_frames
    assert model.config.residual_pooling == model.config.dim_mul_in_att == second
    clips = torch.randn(2, num_frames, 3, size, size, dtype=torch.float64)
    _there_and_back(model, peer, clips, clips.transpose(1, 2), "torchvision")


@pytest.mark.parametrize(("queries", "keys"), [(5, 5), (14, 7), (7, 14), (39, 20), (1, 3)])
def test_every_distance_has_its_vector(queries, keys):
    """The farthest key on either side has the ends of the table, and a step along the finer map is a row."""
    positions = MvitAxisPositions(head_dim=1, size=max(queries, keys))
    with torch.no_grad():
        positions.weight.copy_(torch.arange(2 * positions.size - 1)[:, None])
    rows = positions(queries, keys)[:, 0].long()
    assert rows.shape == (queries, keys)
    assert rows[0, -1] == rows.min() >= 0
    assert rows[-1, 0] == rows.max() <= 2 * positions.size - 2
    if queries == keys:
        distances = torch.arange(queries)[:, None] - torch.arange(keys)
        assert torch.equal(rows, distances + keys - 1)
    assert (rows.diff(dim=0) >= 0).all()
    assert (rows.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("case", ["mvit", "mvit_video"])
def test_longer_queries_and_keys_are_the_bias_of_the_paper(case):
    """Arxiv 2112.01526, equation 4: the query's products with the vectors of the distances, without the scaling."""
    model = tiny_model(case).double()
    layer = model.base_model.stages[1].layers[0].attention
    grid, prefix = model.config.token_grid, int(model.config.use_cls_token)
    query_grid, key_grid = (*grid[:-2], *(side // 2 for side in grid[-2:])), grid
    queries, keys = (torch.Size(each).numel() for each in (query_grid, key_grid))
    query, key = torch.randn(2, prefix + queries, 2, 16).double(), torch.randn(2, prefix + keys, 2, 16).double()
    longer, marked, value = layer.relative_positions(query, key, key, query_grid, key_grid)
    assert value.shape == marked.shape
    scores = torch.einsum("bnhd,bmhd->bhnm", longer, marked) * layer.scaling
    expected = torch.einsum("bnhd,bmhd->bhnm", query, key) * layer.scaling
    tables = [
        positions(*sides)
        for positions, *sides in zip(layer.relative_positions.axes.values(), query_grid, key_grid, strict=True)
    ]
    for n, place in enumerate(itertools.product(*map(range, query_grid)), start=prefix):
        for m, other in enumerate(itertools.product(*map(range, key_grid)), start=prefix):
            for axis, table in enumerate(tables):
                expected[:, :, n, m] += query[:, n] @ table[place[axis], :, other[axis]]
    torch.testing.assert_close(scores, expected)


def test_max_pooling_keeps_the_class_token_and_the_frames_apart():
    tokens = torch.randn(2, 1 + 2 * 3 * 4, 5)
    pooled = max_pooled(tokens, (2, 3, 4))
    assert torch.equal(pooled[:, :1], tokens[:, :1])
    maps = tokens[:, 1:].unflatten(1, (2, 3, 4)).permute(0, 4, 1, 2, 3)
    expected = torch.nn.functional.max_pool3d(maps, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    assert torch.equal(pooled[:, 1:], expected.flatten(2).transpose(1, 2))


# Starting from an image model


@pytest.mark.parametrize(("case", "kv_strides"), [("mvit", [4, 2]), ("mvit-v1", [4, 1])])
def test_video_models_start_from_image_models(case, kv_strides):
    image_model = tiny_model(case)
    model = _from_image_model(image_model, num_frames=6, kv_strides=kv_strides, num_labels=3)
    assert model.classifier.weight.shape == (3, 32)
    weights, image_weights = model.base_model.state_dict(), image_model.base_model.state_dict()
    assert all("time" in name for name in weights.keys() - image_weights.keys())
    assert image_weights.keys() <= weights.keys()
    for name, weight in image_weights.items():
        if weight.ndim == 4:
            assert (weights[name] == weights[name][:, :, :1]).all(), name
            torch.testing.assert_close(weights[name].sum(2), weight)
        elif weights[name].shape == weight.shape:
            assert torch.equal(weights[name], weight), name
        else:
            assert ".axes." in name, name  # tables for keys that another stride makes fewer
    assert model(random_pixels(model.config)).logits.isfinite().all()


def test_an_image_is_a_clip_of_one_frame():
    image_model = tiny_model("mvit")
    model = _from_image_model(image_model, num_frames=1, tubelet_size=1, pool_kernel_frames=1)
    image = random_pixels(image_model.config)
    with torch.no_grad():
        expected, seen = image_model.base_model(image).pooler_output, model.base_model(image[:, None]).pooler_output
    torch.testing.assert_close(seen, expected)


def _from_image_model(image_model, **fields):
    model_class = architecture_of("mvit_video").model_class("ForVideoClassification")
    return model_class.from_image_model(image_model, **fields).eval()


# Checkpoints


@pytest.mark.parametrize(
    ("case", "layout"), [("v2_image_t_like", "original"), ("v1_image_b16_like", "original_slowfast")]
)
def test_kernels_with_a_time_axis_are_told_by_their_dimensions(case, layout):
    case = golden.load("mvit", case)
    fitting = {(each.architecture.name, each.name) for each in recognize(case.state_dict, None, None)}
    assert {each for each in fitting if each[0].startswith("mvit")} == {("mvit", layout)}
    other = {"original": "original_slowfast", "original_slowfast": "original"}[layout]
    with pytest.raises(ConversionError, match=r"pool_k\.weight' does not have . dimensions"):
        convert_checkpoint(case.state_dict, "mvit", case.kwargs, layout=other)


def test_strides_are_asked_for_by_name():
    with pytest.raises(ConversionError, match="kv_strides"):
        convert_checkpoint(golden.load("mvit", "v2_image_t_like").state_dict)


@pytest.mark.parametrize(
    ("entry", "value"),
    [("PATCH_STRIDE", [7, 7]), ("PATCH_STRIDE", [2, 2]), ("PATCH_PADDING", [0, 0])],
)
def test_patches_that_only_the_original_has_are_refused(entry, value):
    case = golden.load("mvit", "v2_image_t_like")
    kwargs = {**case.kwargs, "cfg": {**case.kwargs["cfg"], "MVIT": {**case.kwargs["cfg"]["MVIT"], entry: value}}}
    with pytest.raises(ConversionError, match=f"{entry}=.* is not supported with PATCH_KERNEL"):
        convert_checkpoint(case.state_dict, "mvit", kwargs)


def test_whether_pooled_queries_are_added_is_asked_for():
    """Nothing in the weights of a model that is not published tells it."""
    case = golden.load("mvit", "v2_image_t_like")
    with pytest.raises(ConversionError, match="residual_pooling"):
        convert_checkpoint(case.state_dict, "mvit", kv_strides=[4, 2, 1])


@pytest.mark.parametrize(
    ("folder", "name"),
    [("mvit", "v1_image_b16_like"), ("mvit", "v2_image_t_like"), ("mvit_video", "v2_video_s_like")],
)
def test_the_mean_of_the_patches_is_normalised_as_maskfeat_does(folder, name):
    """slowfast/models/video_model_builder.py: the mean of all but the class token, then the norm, then the head."""
    case = golden.load(folder, name)
    mvit = {**case.kwargs["cfg"]["MVIT"], "USE_MEAN_POOLING": True}
    model, report = convert_checkpoint(
        case.state_dict, folder, {**case.kwargs, "cfg": {**case.kwargs["cfg"], "MVIT": mvit}}
    )
    model.double()
    assert model.config.final_layernorm == "pooled"
    plain, _ = convert_checkpoint(case.state_dict, folder, case.kwargs)
    plain.double()
    seen = {}
    plain.base_model.layernorm.register_forward_pre_hook(lambda module, inputs: seen.update(tokens=inputs[0]))
    pixel_values = pixels(case).double()
    with torch.no_grad():
        plain(pixel_values)
        mean = seen["tokens"][:, int(model.config.use_cls_token) :].mean(1)
        expected = plain.classifier(plain.base_model.layernorm(mean))
        logits = model(pixel_values).logits
    assert (logits - expected).abs().max() < 1e-12 * expected.abs().max()
    back = export_checkpoint(model, report.layout)
    assert all(torch.equal(back[key], tensor) for key, tensor in case.state_dict.items())
    for layout in ("timm", "torchvision"):
        other = ARCHITECTURES[folder].conversion.LAYOUTS.get(layout)
        assert other is None or other.misfit(model.config) is not None


@pytest.mark.parametrize("variant", ["mvitv2_tiny", "mvit_base_16", "mvitv2_small_16x4_k400", "mvit_base24_32x3_k400"])
def test_published_shapes_tell_everything(variant):
    """The configuration of a published variant follows from the names and shapes of its file."""
    with torch.device("meta"):
        model = create_model(variant)
    architecture = model.config.model_type.removeprefix("vitf_")
    state = {key: torch.empty_like(value) for key, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    exported = export_checkpoint(model.to_empty(device="cpu"))
    again, _ = convert_checkpoint(exported, architecture, allow_nonfinite=True)  # what is in memory that nobody filled
    told = set(type(model.config).__dataclass_fields__) - {"drop_path_rate", "dtype"}
    differing = {
        name for name in told if not name.startswith("_") and getattr(again.config, name) != getattr(model.config, name)
    }
    assert differing <= {"id2label", "label2id"}
    assert again.config.num_labels == model.config.num_labels


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("MVIT", "MODE", "max", "MODE='max'"),
        ("MVIT", "POOL_Q_STRIDE", [[1, 1, 4, 4], [3, 1, 2, 2]], "does not halve"),
        ("MVIT", "POOL_KV_STRIDE_ADAPTIVE", [2, 4, 4], "square in space"),
        ("MVIT", "DEPHT", 3, "did you mean 'MVIT.DEPTH'"),
    ],
)
def test_what_it_cannot_be_is_refused(section, name, value, message):
    case = golden.load("mvit_video", "v1_video_16x4_like")
    case.kwargs["cfg"][section][name] = value
    with pytest.raises(ConversionError, match=message):
        convert(case)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kv_kernel_sizes": [4, 3]}, "must be odd"),
        ({"kv_strides": [4]}, "kv_strides 1"),
        ({"num_heads": [3, 2]}, "num_heads"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(Exception, match=message):
        tiny_config("mvit", **fields)


def test_a_clip_of_one_frame_and_odd_sides():
    model = tiny_model("mvit_video", "Backbone")
    maps = model(random_pixels(model.config, size=(37, 50), num_frames=1)).feature_maps
    assert maps[-1].shape == (2, 1, 32, 5, 7)
