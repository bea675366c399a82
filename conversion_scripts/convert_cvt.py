"""CvT: the original .pth files, and transformers' own CvT."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import CvtConfig, PreTrainedModel

from ..conversion.convert import (
    Layout,
    Source,
    common_size,
    count_indices,
    fields_from_kwargs,
    ignored,
    layer_norm_eps,
    make_config,
    shape_of,
)
from ..conversion.rules import Rule
from ..errors import ConversionError
from ..modeling.configuration_cvt import VitfCvtConfig
from .transformers_names import native_class, transformers_labels

SOURCE = Source("microsoft/CvT", "f851e681966390779b71380d2600b52360ff4fe1", "lib/models/cls_cvt.py", "mit")

# Names of the parts of a stage and of a layer, "{projection}" being one of "projections"; then those outside of the
# stages.
_ORIGINAL = {
    "stage": "stage{s}.",
    "embeddings": ("patch_embed.proj.", "patch_embed.norm."),
    "layer": "blocks.{i}.",
    "projections": ("q", "k", "v"),
    "conv": ("attn.conv_proj_{projection}.conv.", "attn.conv_proj_{projection}.bn."),
    "linear": "attn.proj_{projection}.",
    "rest": {
        "norm1.": "layernorm_before.",
        "attn.proj.": "attention.proj.",
        "norm2.": "layernorm_after.",
        "mlp.fc1.": "mlp.fc1.",
        "mlp.fc2.": "mlp.fc2.",
    },
    "norm": "norm.",
    "head": "head.",
}
_TRANSFORMERS = {
    "stage": "cvt.encoder.stages.{s}.",
    "embeddings": (
        "embedding.convolution_embeddings.projection.",
        "embedding.convolution_embeddings.normalization.",
    ),
    "layer": "layers.{i}.",
    "projections": ("query", "key", "value"),
    "conv": (
        "attention.attention.convolution_projection_{projection}.convolution_projection.convolution.",
        "attention.attention.convolution_projection_{projection}.convolution_projection.normalization.",
    ),
    "linear": "attention.attention.projection_{projection}.",
    "rest": {
        "layernorm_before.": "layernorm_before.",
        "attention.output.dense.": "attention.proj.",
        "layernorm_after.": "layernorm_after.",
        "intermediate.dense.": "mlp.fc1.",
        "output.dense.": "mlp.fc2.",
    },
    "norm": "layernorm.",
    "head": "classifier.",
}


def _rules(names: Mapping[str, Any]):
    def rules(config: VitfCvtConfig) -> list[Rule]:
        first, later = names["stage"].replace("{s}", "0"), names["stage"].replace("{s}", "{s+1}")
        projection, norm = names["embeddings"]
        table = [
            # The first stage's stand before the stages.
            Rule(first + projection + "*", "patch_embeddings.projection.*"),
            Rule(first + norm + "*", "patch_embeddings.norm.*"),
            Rule(later + projection + "*", "stages.{s+1}.patch_embeddings.projection.*"),
            Rule(later + norm + "*", "stages.{s+1}.patch_embeddings.norm.*"),
            Rule(names["stage"] + "cls_token", "stages.{s}.cls_token"),
            Rule(names["norm"] + "*", "layernorm.*"),
            Rule(names["head"] + "*", "classifier.*"),
        ]
        theirs, ours = names["stage"] + names["layer"], "stages.{s}.layers.{i}."
        for name, target in zip(names["projections"], ("query", "key", "value"), strict=True):
            conv, norm, linear = (part.replace("{projection}", name) for part in (*names["conv"], names["linear"]))
            table += [
                Rule(theirs + conv + "weight", f"{ours}attention.{target}.conv.weight"),
                Rule(theirs + norm + "*", f"{ours}attention.{target}.norm.*"),
                Rule(theirs + linear + "*", f"{ours}attention.{target}.linear.*"),
            ]
        return [*table, *(Rule(f"{theirs}{name}*", f"{ours}{target}*") for name, target in names["rest"].items())]

    return rules


rules = _rules(_ORIGINAL)


def _shapes(names: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """Reads the fields that shapes tell."""
    stage, fc1 = names["stage"], next(name for name, ours in names["rest"].items() if ours == "mlp.fc1.")
    stages = range(count_indices(stage + names["embeddings"][0] + "weight", state_dict, "s"))
    kernels = [
        shape_of(stage.replace("{s}", str(s)) + names["embeddings"][0] + "weight", state_dict, 4) for s in stages
    ]
    first = stage.replace("{s}", "0") + names["layer"].replace("{i}", "0")
    conv, linear = (
        part.replace("{projection}", names["projections"][0]) for part in (names["conv"][0], names["linear"])
    )
    known = {
        "num_channels": kernels[0][1],
        "hidden_sizes": [kernel[0] for kernel in kernels],
        "patch_kernel_sizes": [kernel[2] for kernel in kernels],
        "depths": [
            count_indices(stage.replace("{s}", str(s)) + names["layer"] + fc1 + "weight", state_dict) for s in stages
        ],
        "kernel_size": shape_of(first + conv + "weight", state_dict, 4)[2],
        "qkv_bias": first + linear + "bias" in state_dict,
        "mlp_ratio": common_size({f"{first}{fc1}weight": 0, f"{first}{fc1}bias": 0}, state_dict) / kernels[0][0],
    }
    if (head := names["head"] + "weight") in state_dict:
        known["num_labels"] = shape_of(head, state_dict, 2)[0]
    return known


def _same_in_all(name: str, values: Any) -> Any:
    """The one value of an argument with one entry a stage. ConversionError if they differ."""
    if any(value != values[0] for value in values):
        raise ConversionError(f"original argument {name}={values!r}: the stages must not differ", name)
    return values[0]


# Entries of the `spec` of the original's yaml files, one a stage, and of transformers' config.json: lists that become a
# field; those that become one if the stages do not differ; those that must have one value.
_LISTS = {
    "DIM_EMBED": "hidden_sizes",
    "DEPTH": "depths",
    "NUM_HEADS": "num_heads",
    "PATCH_SIZE": "patch_kernel_sizes",
    "PATCH_PADDING": "patch_paddings",
}
_SINGLE = {
    "MLP_RATIO": "mlp_ratio",
    "ATTN_DROP_RATE": "attention_probs_dropout_prob",
    "DROP_RATE": "hidden_dropout_prob",
    "QKV_BIAS": "qkv_bias",
    "KERNEL_QKV": "kernel_size",
    "STRIDE_KV": "kv_stride",
}
_FIXED = {"QKV_PROJ_METHOD": "dw_bn", "STRIDE_Q": 1}
_FREE = (
    "INIT",
    "NUM_STAGES",
    "POS_EMBED",
    "PADDING_Q",
    "PADDING_KV",
)  # the last two must keep the size: half the kernel
# The same entries in transformers' CvtConfig.
_NATIVE = {
    "PATCH_SIZE": "patch_sizes",
    "QKV_PROJ_METHOD": "qkv_projection_method",
    "ATTN_DROP_RATE": "attention_drop_rate",
    **{
        name: name.lower()
        for name in (
            *(
                "DIM_EMBED",
                "DEPTH",
                "NUM_HEADS",
                "PATCH_PADDING",
                "PATCH_STRIDE",
                "MLP_RATIO",
                "DROP_RATE",
                "DROP_PATH_RATE",
            ),
            *("QKV_BIAS", "CLS_TOKEN", "KERNEL_QKV", "STRIDE_KV", "STRIDE_Q"),
        )
    },
    "DIM_EMBED": "embed_dim",
}


def _from_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Fields from the `spec` of a yaml file."""
    fields = {}
    for name, value in spec.items():
        if name in _LISTS:
            fields[_LISTS[name]] = list(value)
        elif name in _SINGLE:
            fields[_SINGLE[name]] = _same_in_all(name, value)
        elif name in _FIXED:
            if _same_in_all(name, value) != _FIXED[name]:
                raise ConversionError(
                    f"original argument {name}={value!r} is not supported, only {_FIXED[name]!r}", name
                )
        elif name == "PATCH_STRIDE":
            fields["patch_size"] = value[0]
            if any(stride != 2 for stride in value[1:]):
                raise ConversionError(f"original argument {name}={value!r}: later stages must halve the map", name)
        elif name in ("CLS_TOKEN", "DROP_PATH_RATE"):
            if any(value[:-1]) or (name == "CLS_TOKEN" and not value[-1]):
                raise ConversionError(f"original argument {name}={value!r}: only the last stage must have one", name)
            if name == "DROP_PATH_RATE":
                fields["drop_path_rate"] = value[-1]
        elif name not in _FREE:
            raise ConversionError(f"original argument 'spec' has an unknown entry {name!r}", name)
    for name in ("PADDING_Q", "PADDING_KV"):
        if any(padding != fields["kernel_size"] // 2 for padding in spec.get(name, ())):
            raise ConversionError(f"original argument {name}={spec[name]!r}: it must be half the kernel", name)
    return fields


def _activation(value: str) -> dict[str, str]:
    known = {"QuickGELU": "quick_gelu", "GELU": "gelu"}
    name = str(value).rpartition(".")[2]
    if name not in known:
        raise ConversionError(
            f"original argument act_layer={value!r} is not supported, only {sorted(known)}", "act_layer"
        )
    return {"hidden_act": known[name]}


# Arguments of `ConvolutionalVisionTransformer` in lib/models/cls_cvt.py.
_KWARGS = {
    "in_chans": "num_channels",
    "num_classes": "num_labels",
    "act_layer": _activation,
    "norm_layer": layer_norm_eps,
    "init": ignored,
    "spec": _from_spec,
}


def config_from_original(
    kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any
) -> VitfCvtConfig:
    """
    The configuration of a CvT checkpoint. The numbers of heads, strides and paddings come from `kwargs`, or from the
    published variant with the same shapes.

    Args:
        kwargs: Keyword arguments of `ConvolutionalVisionTransformer`; may be empty.
        state_dict: The checkpoint.
        overrides: Fields that replace what arguments and shapes say.
    """
    given = fields_from_kwargs(kwargs, _KWARGS)
    ask_for = {
        "num_heads": "stage0.blocks.0.attn.proj_q.weight",
        **dict.fromkeys(("patch_size", "patch_paddings"), "stage0.patch_embed.proj.weight"),
        "kv_stride": "stage0.blocks.0.attn.conv_proj_k.conv.weight",
    }
    return make_config(VitfCvtConfig, _shapes(_ORIGINAL, state_dict), given, ask_for=ask_for, **overrides)


def transformers_config(kwargs: Mapping[str, Any], state_dict: Mapping[str, Tensor], **overrides: Any) -> VitfCvtConfig:
    """
    The configuration of transformers' own CvT; `kwargs` is its config.json.

    It computes with the exact GELU; the published weights were trained with `hidden_act="quick_gelu"`, which as an
    override gives the authors' results.
    """
    # transformers takes only lists, with one entry a stage.
    spec = {name: kwargs[native] for name, native in _NATIVE.items() if isinstance(kwargs.get(native), (list, tuple))}
    # What it does not write is its default.
    given = {**_from_spec({"KERNEL_QKV": [3], **spec}), **transformers_labels(kwargs, state_dict, "classifier")}
    given["hidden_act"] = "gelu"
    ask_for = {"num_heads": "cvt.encoder.stages.0.layers.0.attention.attention.projection_query.weight"}
    return make_config(VitfCvtConfig, _shapes(_TRANSFORMERS, state_dict), given, ask_for=ask_for, **overrides)


def _transformers_native(model: PreTrainedModel) -> dict[str, Any]:
    config, stages = model.config, len(model.config.depths)
    class_name = native_class(model, "Cvt", ("ForImageClassification",))  # CvtModel lacks the last norm
    if config.hidden_act != "gelu":
        raise ConversionError(f"transformers' CvT computes with hidden_act='gelu', not {config.hidden_act!r}")
    # It looks up the drop path rate of a layer by the number of the stage.
    if any(depth <= stage for stage, depth in enumerate(config.depths)):
        raise ConversionError(
            f"transformers' CvT needs one layer more in each stage, at least 1, 2, 3, not {config.depths}"
        )
    return CvtConfig(
        num_channels=config.num_channels,
        patch_sizes=config.patch_kernel_sizes,
        patch_stride=[stride[0] for stride in config.patch_strides],
        patch_padding=config.patch_paddings,
        embed_dim=config.hidden_sizes,
        num_heads=config.num_heads,
        depth=config.depths,
        mlp_ratio=[float(config.mlp_ratio)] * stages,
        attention_drop_rate=[float(config.attention_probs_dropout_prob)] * stages,
        drop_rate=[float(config.hidden_dropout_prob)] * stages,
        drop_path_rate=[0.0] * (stages - 1) + [float(config.drop_path_rate)],
        qkv_bias=[config.qkv_bias] * stages,
        cls_token=[False] * (stages - 1) + [True],
        qkv_projection_method=["dw_bn"] * stages,
        kernel_qkv=[config.kernel_size] * stages,
        padding_kv=[config.kernel_size // 2] * stages,
        stride_kv=[config.kv_stride] * stages,
        padding_q=[config.kernel_size // 2] * stages,
        stride_q=[1] * stages,
        id2label=config.id2label,
        label2id=config.label2id,
        architectures=[class_name],
    ).to_diff_dict()


LAYOUTS = {
    "original": Layout(
        rules=rules,
        config=config_from_original,
        requires=("stage{s}.patch_embed.proj.weight", "stage{s}.blocks.{i}.attn.conv_proj_q.conv.weight"),
        suffix=".pth",
    ),
    "transformers": Layout(
        rules=_rules(_TRANSFORMERS),
        config=transformers_config,
        requires=(
            "cvt.encoder.stages.{s}.embedding.convolution_embeddings.projection.weight",
            "cvt.encoder.stages.{s}.layers.{i}.attention.attention.projection_query.weight",
        ),
        holds={"layer_norm_eps": (1e-5,)},
        native_config=_transformers_native,
    ),
}
