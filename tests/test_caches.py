"""Values computed once for an input size are bounded, safe in threads, and never stale."""

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from models import PLAIN_CASES, TINY, dossier_of, fresh, random_pixels, randomise, tiny_model
from torch.nn.utils import prune

from hf_vit_family.modeling import caches
from hf_vit_family.modeling.caches import SIZE_TABLES, Resizable, TensorCache
from hf_vit_family.modeling.configuration_vitf import pair
from hf_vit_family.modeling.embeddings import PositionEmbeddings

every_case = pytest.mark.parametrize("case", TINY)
plain_case = pytest.mark.parametrize("case", PLAIN_CASES)


def logits(model, pixel_values) -> torch.Tensor:
    with torch.no_grad():
        return model(pixel_values).logits


def pictures(model) -> list[torch.Tensor]:
    """At the configured size and at twice its width."""
    height, width = pair(model.config.image_size)
    return [random_pixels(model.config, size=size) for size in ((height, width), (height, 2 * width))]


def test_a_cache_keeps_what_was_used_last_within_its_bytes():
    cache, made = TensorCache(max_bytes=100), []

    def get(key, elements):
        def make():
            made.append(key)
            return torch.zeros(elements, dtype=torch.uint8)

        return cache.get((key,), make)

    get("a", 40), get("b", 40), get("a", 40)
    assert made == ["a", "b"]
    get("c", 40)  # b goes, which was used longest ago
    get("a", 40)
    assert made == ["a", "b", "c"]
    assert cache.num_bytes == 80
    get("too large", 101), get("a", 40)
    assert made == ["a", "b", "c", "too large"]
    get("b", 61)
    assert list(cache.entries) == [("b",)]
    assert cache.num_bytes == 61
    copies = [copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))]
    assert all(each.max_bytes == 100 and not each.entries and each.num_bytes == 0 for each in copies)


@every_case
@pytest.mark.parametrize("max_bytes", [0, 20_000])
def test_tables_are_bounded_for_any_number_of_sizes(case, max_bytes, monkeypatch):
    tables = TensorCache(max_bytes)
    monkeypatch.setattr(caches, "SIZE_TABLES", tables)
    model = tiny_model(case)
    for _ in range(2):
        for pixel_values in pictures(model):
            logits(model, pixel_values)
            assert tables.num_bytes <= max_bytes
            assert tables.num_bytes == sum(entry[2] for entry in tables.entries.values())
    limited = [logits(model, pixel_values) for pixel_values in pictures(model)]
    monkeypatch.setattr(caches, "SIZE_TABLES", SIZE_TABLES)
    for pixel_values, expected in zip(pictures(model), limited, strict=True):
        assert torch.equal(logits(model, pixel_values), expected)


@every_case
def test_outputs_follow_weights_that_autograd_does_not_see(case):
    """As ema-pytorch, torch_ema and weight surgery write them: through `.data`, in evaluation mode."""
    model = tiny_model(case)
    for _ in range(2):
        for pixel_values in pictures(model):
            assert torch.equal(logits(model, pixel_values), logits(fresh(model), pixel_values))
        for parameter in model.parameters():
            parameter.data.mul_(1.1)


@every_case
def test_pruned_weights_are_followed(case):
    model = tiny_model(case).freeze_caches()
    modules = [module for module in model.modules() if isinstance(module, Resizable)]
    before = [logits(model, pixel_values) for pixel_values in pictures(model)]
    masked = [(module, name) for module in modules for name, _ in list(module.named_parameters(recurse=False))]
    for module, name in masked:
        prune.random_unstructured(module, name, amount=0.5)
    pruned = [logits(model, pixel_values) for pixel_values in pictures(model)]
    for module, name in masked:
        prune.remove(module, name)
    for pixel_values, own, old in zip(pictures(model), pruned, before, strict=True):
        assert torch.equal(own, logits(fresh(model), pixel_values))
        assert torch.equal(own, old) == (not masked)


@every_case
@pytest.mark.parametrize("frozen", [False, True])
def test_models_are_mapped_over_their_weights(case, frozen):
    """`torch.func.vmap` over two sets of weights gives the outputs of two models."""
    models = [tiny_model(case), randomise(tiny_model(case), seed=1)]
    model = copy.deepcopy(models[0])
    if frozen:
        model.freeze_caches()
    pixel_values = pictures(model)[1]
    logits(model, pixel_values)
    stacked, buffers = torch.func.stack_module_state(models)

    def run(parameters, buffers):
        return torch.func.functional_call(model, (parameters, buffers), (pixel_values,)).logits

    if dossier_of(case).without_vmap:
        with pytest.raises(RuntimeError, match="inside of vmap"):
            torch.func.vmap(run)(stacked, buffers)
        return
    with torch.no_grad():
        outputs = torch.func.vmap(run)(stacked, buffers)
    for each, output in zip(models, outputs, strict=True):
        torch.testing.assert_close(output, logits(each, pixel_values), rtol=1e-4, atol=1e-4)


@plain_case
def test_eight_threads_with_different_sizes(case):
    """One model, frozen, whose caches hold less than what the threads need together."""
    model = tiny_model(case)
    height, width = pair(model.config.image_size)
    images = [random_pixels(model.config, size=(height, width * (1 + i % 4)), seed=i) for i in range(8)]
    expected = [logits(model, pixel_values) for pixel_values in images]
    model.freeze_caches(max_bytes=20_000)
    barrier = threading.Barrier(len(images))

    def run(pixel_values):
        barrier.wait()
        return [logits(model, pixel_values) for _ in range(3)]

    with ThreadPoolExecutor(len(images)) as pool:
        for outputs, wanted in zip(pool.map(run, images), expected, strict=True):
            assert all(torch.equal(output, wanted) for output in outputs)


@every_case
def test_frozen_caches_keep_what_follows_from_weights(case, monkeypatch):
    model = tiny_model(case)
    images = pictures(model)
    expected = [logits(model, pixel_values) for pixel_values in images]
    model.freeze_caches()
    # What is made in half precision is not what is used in full precision.
    with torch.autocast("cpu", torch.bfloat16):
        logits(model, images[1])
    made = []
    get = TensorCache.get

    def counted(self, key, make, sources=()):
        return get(self, key, lambda: made.append(key) or make(), sources)

    monkeypatch.setattr(TensorCache, "get", counted)
    for _ in range(2):
        for pixel_values, wanted in zip(images, expected, strict=True):
            assert torch.equal(logits(model, pixel_values), wanted)
    assert len(made) == len(set(made))
    # Copies and pickles are frozen too, and start empty; training ends it.
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        kept = {id(module.kept) for module in other.modules() if isinstance(module, Resizable)}
        assert len(kept) <= 1
        randomise(other, seed=1)
        assert torch.equal(logits(other, images[1]), logits(fresh(other), images[1]))
    assert torch.equal(logits(model, images[1]), expected[1])
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert torch.equal(logits(half, images[1]), logits(fresh(half), images[1]))
    model.train()
    assert all(module.kept is None for module in model.modules() if isinstance(module, Resizable))


def test_replicas_of_data_parallel_keep_nothing():
    """Their parameters are plain attributes, and the next pass has other replicas, perhaps at the same address."""
    module = PositionEmbeddings(8, (4, 4), num_prefix_tokens=0, interpolation="bicubic")
    module.kept = TensorCache(2**20)
    replica = module._replicate_for_data_parallel()
    for value in (1.0, 2.0):
        replica.weight = torch.full((1, 16, 8), value)
        with torch.no_grad():
            torch.testing.assert_close(replica((8, 8), like=replica.weight), torch.full((1, 64, 8), value))


def test_layers_share_their_tables():
    """The masks and indices of twelve layers of Swin are those of three stages."""
    model = tiny_model("swin", depths=[4, 4, 4], image_size=64)
    count = len(SIZE_TABLES.entries)
    logits(model, random_pixels(model.config, seed=1))
    assert len(SIZE_TABLES.entries) - count <= 4
