"""
A hundred damaged checkpoints: each is refused with a message that names the key or the file, and leaves nothing.
"""

import io
import json
import pickle
import random
import struct
import zipfile

import golden
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from vit_family_launcher import main

from hf_vit_family.conversion.convert import check_bounds
from hf_vit_family.errors import ConversionError

CASES = [("vit", "plain"), ("vit", "pre_logits"), ("deit", "distilled"), ("deit", "plain"), ("deit3", "layer_scale")]
NUM_DAMAGES = 100


def _any_key(state_dict, rng):
    return rng.choice(sorted(state_dict))


def drop(state_dict, rng):
    key = _any_key(state_dict, rng)
    del state_dict[key]
    return [key]


def rename(state_dict, rng):
    key = _any_key(state_dict, rng)
    new = rng.choice([key + "_", key[:-1], "x" + key, key.swapcase()])
    state_dict[new] = state_dict.pop(key)
    return [key, new]


def add(state_dict, rng):
    key = _any_key(state_dict, rng)
    new = rng.choice([key + "2", "extra." + key, key.replace("0", "17") if "0" in key else "q/" + key])
    state_dict[new] = state_dict[key].clone()
    return [new]


def reshape(state_dict, rng):
    key = _any_key(state_dict, rng)
    tensor = state_dict[key]
    state_dict[key] = rng.choice([tensor[None], tensor.flatten()[:-1], torch.cat((tensor, tensor)), tensor[..., None]])
    return [key]


def transpose(state_dict, rng):
    # A square matrix keeps its shape, so that nothing could tell.
    key = rng.choice(sorted(k for k, t in state_dict.items() if t.ndim >= 2 and t.shape[0] != t.shape[-1]))
    state_dict[key] = state_dict[key].transpose(0, -1).contiguous()
    return [key]


def to_integer(state_dict, rng):
    key = _any_key(state_dict, rng)
    state_dict[key] = (state_dict[key] * 100).to(rng.choice([torch.int8, torch.int32, torch.int64]))
    return [key]


def to_complex(state_dict, rng):
    key = _any_key(state_dict, rng)
    state_dict[key] = state_dict[key].to(torch.complex64)
    return [key]


DAMAGES = [drop, rename, add, reshape, transpose, to_integer, to_complex]


def _write(state_dict, path):
    if path.suffix == ".npz":
        np.savez(path, **{key: tensor.numpy() for key, tensor in state_dict.items()})
    elif path.suffix == ".safetensors":
        save_file(state_dict, path)
    else:
        torch.save({"model": state_dict}, path)


def _refused(source, tmp_path, capsys, *arguments):
    """The one line of the refusal; checks that it is one, and that nothing was left."""
    before = sorted(tmp_path.iterdir())
    assert main(["convert", str(source), "--output", str(tmp_path / "out"), *arguments]) == 2
    assert sorted(tmp_path.iterdir()) == before
    *before_it, error = capsys.readouterr().err.splitlines()
    assert error.startswith("vit-family convert: ")
    assert not any("Traceback" in line or line.startswith("vit-family") for line in before_it)
    return error


@pytest.mark.parametrize("seed", range(NUM_DAMAGES))
def test_damage_is_refused_by_key(seed, tmp_path, capsys):
    rng = random.Random(seed)
    folder, name = rng.choice(CASES)
    case = golden.load(folder, name)
    state_dict = dict(case.state_dict)
    keys = DAMAGES[seed % len(DAMAGES)](state_dict, rng)
    path = tmp_path / f"file{'.npz' if folder == 'vit' else rng.choice(['.pth', '.safetensors'])}"
    _write(state_dict, path)
    named = ["--architecture", "deit" if folder == "deit" else "vit"] if rng.random() < 0.5 else []
    error = _refused(path, tmp_path, capsys, "--kwargs", json.dumps(case.kwargs), *named)
    assert any(repr(key) in error for key in keys), (keys, error)


class Exploit:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_pickle_with_code_is_refused_and_not_run(suffix, tmp_path, capsys):
    folder = tmp_path / "source"
    folder.mkdir()
    path, proof = folder / f"file{suffix}", tmp_path / "proof"
    torch.save({"model": golden.load("deit", "plain").state_dict, "epoch": Exploit(proof)}, path)
    assert str(path) in _refused(path, tmp_path, capsys)
    assert not proof.exists()


def test_objects_in_an_npz_are_refused_and_not_run(tmp_path, capsys):
    path, proof = tmp_path / "file.npz", tmp_path / "proof"
    arrays = {key: tensor.numpy() for key, tensor in golden.load("vit", "plain").state_dict.items()}
    np.savez(path, **arrays, evil=np.asarray([Exploit(proof)], dtype=object))
    assert str(path) in _refused(path, tmp_path, capsys)
    assert not proof.exists()


def test_a_plain_pickle_is_refused_and_not_run(tmp_path, capsys):
    path, proof = tmp_path / "file.pth", tmp_path / "proof"
    path.write_bytes(pickle.dumps(Exploit(proof)))
    assert str(path) in _refused(path, tmp_path, capsys)
    assert not proof.exists()


@pytest.mark.parametrize("suffix", [".npz", ".pth", ".safetensors"])
@pytest.mark.parametrize("part", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_refused(suffix, part, tmp_path, capsys):
    path = tmp_path / f"file{suffix}"
    _write(golden.load("vit", "plain").state_dict, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    assert str(path) in _refused(path, tmp_path, capsys)


@pytest.mark.parametrize(("folder", "architecture"), [("vit", "deit"), ("deit", "vit"), ("deit3", "deit")])
def test_the_wrong_architecture_is_refused(folder, architecture, tmp_path, capsys):
    name = {"vit": "plain", "deit": "distilled", "deit3": "layer_scale"}[folder]
    _write(golden.load(folder, name).state_dict, tmp_path / "file.pth")
    error = _refused(tmp_path / "file.pth", tmp_path, capsys, "--architecture", architecture)
    assert "not recognised" in error
    assert "key" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no tensors"),
        ([1, 2], "holds a list"),
        ({"cls_token": "text"}, "'cls_token' holds a str"),
        ({"module.a": torch.zeros(1), "b": torch.zeros(1)}, "'b' lacks the prefix"),
    ],
)
def test_what_is_not_a_state_dict_is_refused(content, message, tmp_path, capsys):
    torch.save(content, tmp_path / "file.pth")
    assert message in _refused(tmp_path / "file.pth", tmp_path, capsys)


def test_unknown_file_types_and_missing_files_are_refused(tmp_path, capsys):
    (tmp_path / "file.txt").write_text("x")
    assert "file.txt" in _refused(tmp_path / "file.txt", tmp_path, capsys)
    (tmp_path / "empty").mkdir()
    assert "empty" in _refused(tmp_path / "empty", tmp_path, capsys)
    assert "no/such/file.pth" in _refused("no/such/file.pth", tmp_path, capsys)


def test_a_damaged_config_is_refused(tmp_path, capsys):
    source = tmp_path / "source"
    source.mkdir()
    _write(golden.load("deit", "distilled").state_dict, source / "model.safetensors")
    (source / "config.json").write_text("{")
    assert "config.json" in _refused(source, tmp_path, capsys)


# Files that claim more than they hold


def _npz_member(shape, content=b""):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + content


def _npz(path, member):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cls.npy", member)


def _flax_array(shape, dtype, content):
    numbers = b"".join(b"\xcf" + struct.pack(">Q", size) for size in shape)
    text = bytes([0xA0 | len(dtype)]) + dtype.encode()
    array = b"\x93" + bytes([0x90 | len(shape)]) + numbers + text + b"\xc4" + bytes([len(content)]) + content
    return b"\x81\xa1a\xc8" + struct.pack(">H", len(array)) + b"\x01" + array


HOSTILE = {
    "claims.npz": (lambda path: _npz(path, _npz_member((10**10,))), "claims 40,000,000,000 bytes and has 0"),
    "bomb.npz": (lambda path: _npz(path, _npz_member((1 << 25,), bytes(1 << 27))), "bytes unpack to 134,217,856"),
    "list.msgpack": (lambda path: path.write_bytes(b"\xdd\xff\xff\xff\xff" + b"\x01" * 100), "ends too early"),
    "map.msgpack": (lambda path: path.write_bytes(b"\xdf\xff\xff\xff\xff"), "ends too early"),
    "nested.msgpack": (lambda path: path.write_bytes(b"\x91" * 100_000), "recursion"),
    "key.msgpack": (lambda path: path.write_bytes(b"\x81\x91\x01\x01"), "damaged"),
    "array.msgpack": (lambda path: path.write_bytes(_flax_array([10**10], "float32", bytes(8))), "array.msgpack"),
    "dtype.msgpack": (lambda path: path.write_bytes(_flax_array([1], "nonsense", bytes(8))), "damaged"),
    "object.msgpack": (lambda path: path.write_bytes(_flax_array([1], "O", bytes(8))), "OBJECT"),
    "expanded.pth": (
        lambda path: torch.save({"model": {"cls_token": torch.zeros(1).expand(10**6, 10**5)}}, path),
        "claim to hold tensors of 400,000,000,000 bytes",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_claims_more_than_it_holds_is_refused(name, tmp_path, capsys):
    write, message = HOSTILE[name]
    write(tmp_path / name)
    error = _refused(tmp_path / name, tmp_path, capsys)
    assert message in error
    assert str(tmp_path / name) in error


@pytest.mark.parametrize(
    "options",
    [["--set", "num_hidden_layers=10000000"], ["--set", "num_labels=1000000000"], ["--set", "image_size=1000000"]],
    ids=lambda options: options[1],
)
def test_a_configuration_that_is_far_larger_than_the_file_is_refused(options, tmp_path, capsys):
    case = golden.load("deit", "plain")
    torch.save(case.state_dict, tmp_path / "file.pth")
    argv = ("--architecture", "deit", "--kwargs", json.dumps(case.kwargs), *options)
    error = _refused(tmp_path / "file.pth", tmp_path, capsys, *argv)
    assert {"image_size": "embeddings.position_embeddings"}.get(options[1].split("=")[0], options[1]) in error


@pytest.mark.parametrize("change", [{"depth": 10**7}, {"num_classes": 10**9}], ids=str)
def test_arguments_of_the_original_that_are_far_larger_than_the_file_are_refused(change, tmp_path, capsys):
    case = golden.load("deit", "plain")
    torch.save(case.state_dict, tmp_path / "file.pth")
    error = _refused(
        tmp_path / "file.pth",
        tmp_path,
        capsys,
        "--architecture",
        "deit",
        "--kwargs",
        json.dumps({**case.kwargs, **change}),
    )
    assert str(next(iter(change.values()))) in error


@pytest.mark.parametrize(("depths", "fits"), [([2, 3], True), ([2, 10**7], False), ([[1, 4], [1, 10**7]], False)])
def test_layers_in_several_stages_are_counted(depths, fits):
    fields = {"depths": depths, "num_attention_heads": 10**7, "num_labels": 10**6}
    if fits:
        check_bounds(fields)
    else:
        with pytest.raises(ConversionError, match="depths"):
            check_bounds(fields)
