"""Data sets, augmentation, samplers and broken images."""

import io
import json
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from hf_vit_family.data.augmentation import AugmentationConfig, MixingCollate, mix_seed
from hf_vit_family.data.image_sets import EpochSampler
from hf_vit_family.data.images import UnreadableImageError, read_image
from hf_vit_family.data.load import DataConfig, load_data, load_evaluation, train_collate
from hf_vit_family.data.sources import open_source, stratified_draw
from hf_vit_family.errors import UserError
from hf_vit_family.modeling.image_processing_pil_vitf import VitfImageProcessorPil
from hf_vit_family.modeling.image_processing_vitf import VitfImageProcessor


def make_processor(size: int = 16, channels: int = 3, **options) -> VitfImageProcessor:
    mean, std = [0.5] * channels, [0.25] * channels
    return VitfImageProcessor(size={"height": size, "width": size}, image_mean=mean, image_std=std, **options)


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(seed: int, height: int = 20, width: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """20 images in two classes."""
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "photos" / name / f"{i}.png").write_bytes(encode(noise(100 * label + i)))
    return tmp_path / "photos"


@pytest.fixture
def broken_folder(folder):
    """The same with three broken images, a text, and one image of each kind that needs care."""
    jpeg = encode(noise(0, 60, 60), "JPEG")
    (folder / "cat" / "truncated.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "cat" / "zero.jpg").write_bytes(b"")
    (folder / "dog" / "notes.txt").write_text("not an image")
    (folder / "dog" / "text.png").write_text("not an image either")
    (folder / "cat" / "cmyk.jpg").write_bytes(encode(noise(1).convert("CMYK"), "JPEG"))
    (folder / "cat" / "deep.png").write_bytes(encode(Image.fromarray(np.full((20, 20), 40000, dtype=np.uint16))))
    (folder / "dog" / "dot.png").write_bytes(encode(noise(2, 1, 1)))
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    (folder / "dog" / "film.gif").write_bytes(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    return folder


BROKEN = ("text.png", "truncated.jpg", "zero.jpg")


def write_parquet(path, labels, feature, images=None):
    images = images or [encode(noise(i)) for i in range(len(labels))]
    table = datasets.Dataset.from_dict(
        {"image": [image and {"bytes": image, "path": None} for image in images], "label": labels},
        features=datasets.Features({"image": datasets.Image(), "label": feature}),
    )
    table.to_parquet(str(path))
    return path


def batches(bundle, config, workers: int, epoch: int = 0, num_labels: int = 2, seed: int = 0):
    sampler = EpochSampler(len(bundle.train), seed, config.repeated_augmentation)
    sampler.set_epoch(epoch)
    bundle.train.set_epoch(epoch)
    loader = DataLoader(
        bundle.train,
        batch_size=4,
        sampler=sampler,
        num_workers=workers,
        collate_fn=train_collate(config, num_labels),
    )
    return list(loader)


def assert_equal_batches(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one["pixel_values"], other["pixel_values"])
        assert torch.equal(one["labels"], other["labels"])


# Sampler


def test_sampler_is_a_permutation_that_follows_from_seed_and_epoch():
    sampler = EpochSampler(50, seed=3)
    first = list(sampler)
    assert sorted(first) == list(range(50))
    assert first == list(EpochSampler(50, seed=3))
    assert first != list(EpochSampler(50, seed=4))
    sampler.set_epoch(1)
    assert list(sampler) != first


def test_repeated_augmentation_shows_fewer_images_in_several_variations():
    sampler = EpochSampler(30, seed=0, repeats=3)
    indices = list(sampler)
    assert len(indices) == len(sampler) == len(set(indices)) == 30
    assert Counter(index % 30 for index in indices) == dict.fromkeys({i % 30 for i in indices}, 3)
    config = DataConfig()
    bundle = load_data(config, make_processor(channels=1), seed=0)
    count = len(bundle.train)
    variations = [bundle.train[5 + repeat * count] for repeat in range(2)]
    assert variations[0]["labels"] == variations[1]["labels"]
    assert not torch.equal(variations[0]["pixel_values"], variations[1]["pixel_values"])


# Determinism


@pytest.mark.parametrize("cache_megabytes", [0, 100])
def test_samples_do_not_depend_on_the_number_of_workers(broken_folder, cache_megabytes):
    config = DataConfig(
        dataset=str(broken_folder),
        auto_augment="randaugment",
        color_jitter=0.2,
        random_erasing=0.5,
        mixup=0.8,
        cutmix=1.0,
        mix_probability=0.7,
        cache_megabytes=cache_megabytes,
    )
    bundle = load_data(config, make_processor(), seed=1)
    alone = batches(bundle, config, workers=0, epoch=2)
    for workers in (1, 2):
        assert_equal_batches(alone, batches(bundle, config, workers=workers, epoch=2))
    assert_equal_batches(alone, batches(load_data(config, make_processor(), seed=1), config, workers=0, epoch=2))
    other = batches(bundle, config, workers=0, epoch=3)
    assert not torch.equal(alone[0]["pixel_values"], other[0]["pixel_values"])


def test_workers_that_outlive_an_epoch_see_the_next_one():
    config = DataConfig(max_train_samples=16)
    bundle = load_data(config, make_processor(channels=1), seed=0)
    loader = DataLoader(bundle.train, batch_size=16, num_workers=1, persistent_workers=True)
    seen = []
    for epoch in (0, 1, 0):
        bundle.train.set_epoch(epoch)
        seen.append(next(iter(loader))["pixel_values"])
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])


def test_loading_in_the_main_process_leaves_its_randomness_alone():
    config = DataConfig(mixup=1.0, max_train_samples=8)
    bundle = load_data(config, make_processor(channels=1), seed=0)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train_collate(config, 10)([bundle.train[index] for index in range(8)])
    assert torch.equal(torch.rand(3), expected)


def test_seeds_of_neighbours_differ():
    seeds = {mix_seed(seed, epoch, index) for seed in range(3) for epoch in range(3) for index in range(500)}
    assert len(seeds) == 4500


# Augmentation


@pytest.mark.parametrize("crop", ["random_resized", "random", "center"])
@pytest.mark.parametrize("auto_augment", ["none", "randaugment", "trivialaugment", "autoaugment"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_augmentation_gives_the_size_and_channels_of_the_processor(folder, crop, auto_augment, channels):
    config = DataConfig(dataset=str(folder), crop=crop, auto_augment=auto_augment)
    bundle = load_data(config, make_processor(12, channels), seed=0)
    assert bundle.num_channels == channels
    for index in range(4):
        pixel_values = bundle.train[index]["pixel_values"]
        assert pixel_values.shape == (channels, 12, 12)
        assert pixel_values.dtype == torch.float32
        assert pixel_values.isfinite().all()


def test_without_augmentation_training_images_equal_evaluation_images(folder):
    config = DataConfig(dataset=str(folder), crop="center", horizontal_flip=0.0)
    processor = make_processor(16, crop_pct=1.0)
    bundle = load_data(config, processor, seed=0)
    for position in range(len(bundle.train)):
        pixels = bundle.train.store.pixels(position)
        expected = processor(pixels, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(bundle.train[position]["pixel_values"], expected, atol=4 / 255 + 1e-6, rtol=0)


@pytest.mark.parametrize("processor_class", [VitfImageProcessor, VitfImageProcessorPil])
def test_evaluation_is_the_processors_own_pipeline(folder, processor_class):
    processor = processor_class(size={"height": 16, "width": 16}, crop_pct=0.8)
    images, split, _ = load_evaluation(DataConfig(dataset=str(folder)), processor)
    assert split == "train"
    for position in (0, 15):
        expected = processor(Image.open(images.store.name(position)), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(images[position]["pixel_values"], expected)


def test_image_size_goes_before_the_processors(folder):
    bundle = load_data(DataConfig(dataset=str(folder), image_size=8), make_processor(16), seed=0)
    assert bundle.train[0]["pixel_values"].shape == bundle.evaluation[0]["pixel_values"].shape == (3, 8, 8)
    assert bundle.description["image_size"] == [8, 8]


def samples(count: int, num_labels: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 10, 12, generator=generator)
    return images, [
        {"pixel_values": image, "labels": index % num_labels, "seed": seed} for index, image in enumerate(images)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_mixup_mixes_images_and_labels_by_the_same_share(seed):
    images, batch = samples(6, 4, seed)
    mixed = MixingCollate(AugmentationConfig(mixup=1.0), 4)(batch)
    one_hot = torch.nn.functional.one_hot(torch.arange(6) % 4, 4).float()
    share = mixed["labels"][1, 1]  # of the image itself: its neighbour 0 has another label
    torch.testing.assert_close(mixed["labels"], share * one_hot + (1 - share) * one_hot.roll(1, 0))
    torch.testing.assert_close(mixed["pixel_values"], share * images + (1 - share) * images.roll(1, 0))
    assert 0 < share < 1


@pytest.mark.parametrize("seed", range(5))
def test_cutmix_labels_have_the_share_of_the_pixels(seed):
    images, batch = samples(6, 4, seed)
    mixed = MixingCollate(AugmentationConfig(cutmix=1.0), 4)(batch)
    own = (mixed["pixel_values"] == images).all(1)
    pasted = (mixed["pixel_values"] == images.roll(1, 0)).all(1)
    assert (own ^ pasted).all()
    one_hot = torch.nn.functional.one_hot(torch.arange(6) % 4, 4).float()
    share = own.float().mean((1, 2))[:, None]
    torch.testing.assert_close(mixed["labels"], share * one_hot + (1 - share) * one_hot.roll(1, 0))


def test_mix_probability_says_how_many_batches_are_mixed():
    collate = MixingCollate(AugmentationConfig(mixup=1.0, mix_probability=0.3), 4)
    mixed = [
        bool(((labels := collate(samples(4, 4, s)[1])["labels"]) < 1).logical_and(labels > 0).any()) for s in range(200)
    ]
    assert 0.2 < np.mean(mixed) < 0.4


def test_labels_stay_indices_without_mixing():
    batch = train_collate(AugmentationConfig(mixup=1.0, mix_probability=0.0), 4)(samples(6, 4, 0)[1])
    assert batch["labels"].tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "middle"}, "crop='middle'"),
        ({"auto_augment": "rand"}, "auto_augment='rand'"),
        ({"horizontal_flip": 1.5}, "horizontal_flip=1.5"),
        ({"mixup": -1.0}, "mixup=-1.0"),
        ({"repeated_augmentation": 0}, "repeated_augmentation=0"),
        ({"on_bad_image": "ignore"}, "on_bad_image='ignore'"),
        ({"eval_fraction": 1.0}, "eval_fraction=1.0"),
        ({"num_workers": -1}, "num_workers=-1"),
        ({"image_size": 0}, "image_size=0"),
    ],
)
def test_options_outside_their_range_are_refused_by_name(options, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**options)


def test_every_option_has_a_help_text():
    assert all(field.metadata.get("help") for field in DataConfig.__dataclass_fields__.values())


# Reading images


def test_odd_images_are_read_rightly(tmp_path):
    deep = read_image(encode(Image.fromarray(np.array([[0, 257 * 100], [65535, 257 * 3 + 100]], dtype=np.uint16))))
    assert np.asarray(deep).tolist() == [[0, 100], [255, 3]]
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    assert read_image(encode(frames[0], "GIF", save_all=True, append_images=frames[1:])).getpixel((0, 0)) == (255, 0, 0)
    wide = Image.new("RGB", (30, 10), "white")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    assert read_image(encode(wide, "JPEG", exif=exif)).size == (10, 30)
    red = read_image(encode(Image.new("RGB", (8, 8), "red").convert("CMYK"), "JPEG")).getpixel((4, 4))
    assert red[0] > 245
    assert max(red[1:]) < 10
    assert read_image(encode(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))).getpixel((0, 0)) == (255, 255, 255)
    assert read_image(encode(Image.new("LA", (2, 2), (9, 255)))).getpixel((0, 0)) == 9
    assert read_image(encode(Image.new("1", (2, 2), 1))).getpixel((0, 0)) == 255
    assert read_image(encode(Image.new("P", (2, 2)))).mode == "RGB"
    path = tmp_path / "dot.png"
    path.write_bytes(encode(noise(0, 1, 1)))
    assert read_image(path).size == (1, 1)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"hello", "no image of a known format"),
        (encode(noise(0, 60, 60), "JPEG")[:1500], "truncated"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a known format"),
        (encode(Image.fromarray(np.zeros((4, 4), dtype=np.float32)), "TIFF"), "floating-point"),
    ],
)
def test_broken_images_raise_one_line_that_names_them(content, reason):
    with pytest.raises(UnreadableImageError, match=reason) as error:
        read_image(content, "photo 7")
    assert "photo 7" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache_megabytes", [0, 100])
def test_broken_images_are_skipped_counted_and_listed(broken_folder, cache_megabytes, workers):
    config = DataConfig(dataset=str(broken_folder), cache_megabytes=cache_megabytes, eval_fraction=0.25)
    bundle = load_data(config, make_processor(), seed=0)
    batches(bundle, config, workers)
    evaluated = list(DataLoader(bundle.evaluation, batch_size=3, num_workers=workers))
    listed = list(bundle.bad_images)
    assert len(bundle.bad_images) == len(BROKEN)
    assert all(any(f"/{name}:" in line for line in listed) for name in BROKEN)
    labels = torch.cat([batch["labels"] for batch in evaluated])
    evaluation_split = bundle.evaluation.store.split
    broken = sum(evaluation_split.image_name(i).endswith(BROKEN) for i in range(len(evaluation_split.labels)))
    assert (labels >= 0).sum() == len(evaluation_split.labels) - broken
    assert (labels == -100).sum() == (0 if cache_megabytes else broken)


def test_readable_neighbours_replace_broken_training_images(broken_folder):
    for name in ("cat", "dog"):  # the first in order, so that the search goes on over several and wraps around
        (broken_folder / name / "0.png").write_bytes(b"")
    config = DataConfig(dataset=str(broken_folder), cache_megabytes=0, crop="center", horizontal_flip=0.0)
    bundle = load_data(config, make_processor(), seed=0)
    store = bundle.train.store
    readable = [position for position in range(len(store)) if store.pixels(position) is not None]
    assert len(readable) < len(store)
    for position in range(len(store)):
        neighbour = next((r for r in readable if r >= position), readable[0])
        assert torch.equal(bundle.train[position]["pixel_values"], bundle.train[neighbour]["pixel_values"])
        assert bundle.train[position]["labels"] == store.labels[neighbour]


@pytest.mark.parametrize("workers", [0, 2])
def test_on_bad_image_error_stops_with_one_line(broken_folder, workers):
    config = DataConfig(dataset=str(broken_folder), on_bad_image="error", cache_megabytes=0)
    bundle = load_data(config, make_processor(), seed=0)
    with pytest.raises(UserError, match=r"^cannot read image .*") as error:
        batches(bundle, config, workers)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot read image"):
        load_data(DataConfig(dataset=str(broken_folder), on_bad_image="error"), make_processor(), seed=0)


@pytest.mark.parametrize("cache_megabytes", [0, 100])
def test_a_data_set_without_a_readable_image_says_so(tmp_path, cache_megabytes):
    (tmp_path / "a").mkdir()
    for name in "1234":
        (tmp_path / "a" / name).write_text("x")
    config = DataConfig(dataset=str(tmp_path), eval_fraction=0.5, cache_megabytes=cache_megabytes)
    with pytest.raises(UserError, match="no readable image"):
        load_data(config, make_processor(), seed=0).train[0]


# Sources


def test_digits_are_split_by_class_and_always_the_same():
    bundles = [load_data(DataConfig(), make_processor(channels=1), seed=seed) for seed in (0, 1)]
    assert len(bundles[0].train) + len(bundles[0].evaluation) == 1797
    assert bundles[0].id2label == {i: str(i) for i in range(10)}
    names = [[bundle.evaluation.store.name(i) for i in range(len(bundle.evaluation))] for bundle in bundles]
    assert names[0] == names[1]
    train = {bundles[0].train.store.name(i) for i in range(len(bundles[0].train))}
    assert not train & set(names[0])
    assert max(abs(n - 35.9) for n in np.bincount(bundles[0].evaluation.store.labels)) < 2
    assert json.loads(json.dumps(bundles[0].description))["num_train"] == len(train)


def test_a_held_out_part_is_stratified():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    chosen = stratified_draw(labels, 0.2)
    assert np.bincount(labels[chosen]).tolist() == [20, 10, 2]
    assert (np.diff(chosen) > 0).all()


def test_folders_with_splits_are_found(folder, tmp_path):
    root = tmp_path / "set"
    root.mkdir()
    folder.rename(root / "train")
    (root / "val" / "dog").mkdir(parents=True)
    (root / "val" / "dog" / "x.png").write_bytes(encode(noise(5)))
    (root / "val" / "dog" / ".hidden").write_text("")
    bundle = load_data(DataConfig(dataset=str(root)), make_processor(), seed=0)
    assert bundle.description["eval_split"] == "val"
    assert bundle.id2label == {0: "cat", 1: "dog"}
    assert [sample["labels"] for sample in bundle.evaluation] == [1]
    assert len(bundle.bad_images) == 0


def test_parquet_columns_are_found_or_named(tmp_path):
    path = write_parquet(tmp_path / "train.parquet", [0, 1] * 5, datasets.ClassLabel(names=["a", "b"]))
    bundle = load_data(DataConfig(dataset=str(path), eval_fraction=0.2), make_processor(), seed=0)
    assert bundle.id2label == {0: "a", 1: "b"}
    assert (len(bundle.train), len(bundle.evaluation)) == (8, 2)
    renamed = datasets.load_dataset("parquet", data_files=str(path), split="train")
    renamed.rename_columns({"image": "scan", "label": "digit"}).to_parquet(str(tmp_path / "renamed.parquet"))
    named = {"image_column": "scan", "label_column": "digit"}
    for options in ({}, named):  # the only columns of their types, or named
        config = DataConfig(dataset=str(tmp_path / "renamed.parquet"), eval_fraction=0.2, **options)
        assert load_data(config, make_processor(), seed=0).id2label == {0: "a", 1: "b"}
    for options in ({"image_column": "picture"}, {"label_column": "klass"}):
        with pytest.raises(UserError, match="has the columns scan, digit"):
            load_data(DataConfig(dataset=str(tmp_path / "renamed.parquet"), **options), make_processor(), seed=0)
    with pytest.raises(UserError, match="does not hold images"):
        load_data(DataConfig(dataset=str(path), image_column="label"), make_processor(), seed=0)


def test_string_labels_match_between_splits_by_name(tmp_path):
    text = datasets.Value("string")
    write_parquet(tmp_path / "train.parquet", ["owl", "bee", "cow"], text)
    write_parquet(tmp_path / "test.parquet", ["cow", "owl"], text)
    bundle = load_data(DataConfig(dataset=str(tmp_path)), make_processor(), seed=0)
    assert bundle.id2label == {0: "bee", 1: "cow", 2: "owl"}
    assert [sample["labels"] for sample in bundle.evaluation] == [1, 2]
    write_parquet(tmp_path / "test.parquet", ["cow", "elk"], text)
    with pytest.raises(UserError, match=r"\(elk cannot be found\).*bee, cow, owl"):
        load_data(DataConfig(dataset=str(tmp_path)), make_processor(), seed=0)


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        ([0, 5, 1], datasets.Value("int64"), None),
        ([0, -1, 1], datasets.Value("int64"), "-1 in row 1 of split 'train' lies outside the range"),
        ([0, None, 1], datasets.Value("int64"), "row 1 of split 'train' has no label"),
        ([0.0, 1.0, 0.5], datasets.Value("float32"), "holds float"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, labels, feature, message):
    path = write_parquet(tmp_path / "x.parquet", labels, feature)
    source = open_source(str(path))
    if message is None:
        assert source.open("train").classes == [str(i) for i in range(6)]
        return
    with pytest.raises(UserError, match=message):
        source.open("train")


def test_a_label_beyond_the_named_classes_is_refused(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [0, 1, 7], datasets.Value("int64"))
    table = datasets.load_dataset("parquet", data_files=str(path), split="train").with_format("arrow")[:]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    import pyarrow.parquet

    pyarrow.parquet.write_table(table.replace_schema_metadata(features.arrow_schema.metadata), path)
    with pytest.raises(UserError, match="7 in row 2 of split 'train' lies outside the range 0 to 1"):
        open_source(str(path)).open("train")


def test_broken_cells_of_a_table_are_skipped_and_named_by_row(tmp_path):
    images = [encode(noise(i)) for i in range(6)]
    images[2] = b"junk"
    images[4] = None
    feature = datasets.ClassLabel(names=["a"])
    path = write_parquet(tmp_path / "x.parquet", [0] * 6, feature, images)
    bundle = load_data(DataConfig(dataset=str(path), eval_fraction=0.2), make_processor(), seed=0)
    assert len(bundle.train) + len(bundle.evaluation) == 4
    assert [line.split(":")[0] for line in bundle.bad_images] == [
        "cannot read image in row 2 of train",
        "cannot read image in row 4 of train",
    ]


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_give_every_readable_image_once(tmp_path, workers, monkeypatch):
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)  # 5 seconds after every pass otherwise
    names = datasets.ClassLabel(names=[str(i) for i in range(12)])
    images = [encode(Image.new("RGB", (16, 16), (20 * i,) * 3)) for i in range(12)]
    images[3] = b"junk"
    write_parquet(tmp_path / "train.parquet", list(range(12)), names, images)
    write_parquet(tmp_path / "test.parquet", [1, 0], names)
    config = DataConfig(dataset=str(tmp_path), streaming=True, crop="center", shuffle_buffer=5)
    bundle = load_data(config, make_processor(), seed=0)
    orders = []
    for epoch in (0, 1):
        bundle.train.set_epoch(epoch)
        loader = DataLoader(bundle.train, batch_size=4, num_workers=workers, collate_fn=train_collate(config, 12))
        seen = {}
        for batch in loader:
            for pixel_values, label in zip(batch["pixel_values"], batch["labels"].tolist(), strict=True):
                seen[label] = round(float(pixel_values.mean() * 0.25 + 0.5) * 255 / 20)
        assert seen == {i: i for i in range(12) if i != 3}
        orders.append(list(seen))
    assert orders[0] != orders[1]
    assert len(bundle.bad_images) == 1
    assert [int(batch["labels"]) for batch in DataLoader(bundle.evaluation)] == [1, 0]


def test_streaming_what_cannot_be_streamed_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="streaming reads"):
        load_data(DataConfig(dataset=str(folder), streaming=True), make_processor(), seed=0)
    path = write_parquet(tmp_path / "x.parquet", [0, 1], datasets.ClassLabel(names=["a", "b"]))
    with pytest.raises(UserError, match="eval_split"):
        load_data(DataConfig(dataset=str(path), streaming=True), make_processor(), seed=0)
    write_parquet(tmp_path / "set-train.parquet", [0, 1], datasets.Value("int64"))
    config = DataConfig(dataset=str(tmp_path), streaming=True, eval_split="train")
    with pytest.raises(UserError, match="does not name its classes"):
        load_data(config, make_processor(), seed=0)


def test_fewer_images_are_a_fixed_random_draw():
    config = DataConfig(max_train_samples=100, max_eval_samples=50)
    first, second = (load_data(config, make_processor(channels=1), seed=seed) for seed in (0, 1))
    assert (len(first.train), len(first.evaluation)) == (100, 50)
    assert np.array_equal(first.train.store.labels, second.train.store.labels)
    assert len(set(first.train.store.labels.tolist())) == 10


def test_evaluation_labels_follow_the_names_of_a_models_classes(folder):
    config, processor = DataConfig(dataset=str(folder)), make_processor()
    images, _, _ = load_evaluation(config, processor, ["bird", "dog", "cat"])
    assert {sample["labels"] for sample in images} == {1, 2}
    assert images[0]["labels"] == 2
    images, _, _ = load_evaluation(config, processor, ["LABEL_0", "LABEL_1"])  # no names: by number
    assert images[0]["labels"] == 0
    with pytest.raises(UserError, match="2 classes, the model only 1"):
        load_evaluation(config, processor, ["LABEL_0"])


def test_evaluation_of_a_held_out_part_is_that_of_training(folder):
    config, processor = DataConfig(dataset=str(folder), eval_fraction=0.3), make_processor()
    bundle = load_data(config, processor, seed=0)
    images, split, _ = load_evaluation(config, processor, fraction=0.3)
    assert split == bundle.description["eval_split"]
    names = [[data.store.name(i) for i in range(len(data))] for data in (bundle.evaluation, images)]
    assert names[0] == names[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "./nowhere"}, "does not exist"),
        ({"dataset": "nowhere.parquet"}, "does not exist"),
        ({"dataset": "digits", "train_split": "trian"}, "did you mean 'train'"),
        ({"dataset": "digits", "eval_split": "dev"}, "eval_split 'dev'"),
        ({"dataset": "no spaces/in ids"}, "no local path and no Hub data set"),
    ],
)
def test_data_that_does_not_exist_is_one_clear_line(options, message):
    with pytest.raises(UserError, match=message) as error:
        load_data(DataConfig(**options), make_processor(), seed=0)
    assert "\n" not in str(error.value)


def test_a_broken_parquet_file_is_one_clear_line(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match="cannot be read") as error:
        load_data(DataConfig(dataset=str(tmp_path / "x.parquet")), make_processor(), seed=0)
    assert "\n" not in str(error.value)
