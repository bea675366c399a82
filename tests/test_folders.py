"""Folders of images and videos: which splits and classes are found, compared with what `datasets` finds."""

from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image
from video_files import write_video

from hf_vit_family.data.folders import split_role
from hf_vit_family.data.load import DataConfig, load_data
from hf_vit_family.data.sources import FolderSource, TableSource, open_source
from hf_vit_family.data.video_sources import VideoTableSource, open_video_source
from hf_vit_family.errors import UserError
from hf_vit_family.modeling.image_processing_vitf import VitfImageProcessor

SAME = "as datasets"
# Layout: folders with two files each; the role of each split to its classes, or what the refusal says; and how that
# compares with `datasets`, where it is deliberately other.
LAYOUTS = {
    "classes": (["cat", "dog"], {"train": ["cat", "dog"]}, SAME),
    "splits": (
        ["train/cat", "train/dog", "test/cat", "test/dog"],
        {"train": ["cat", "dog"], "test": ["cat", "dog"]},
        SAME,
    ),
    "three splits": (
        ["train/cat", "train/dog", "val/cat", "val/dog", "test/cat", "test/dog"],
        {"train": ["cat", "dog"], "validation": ["cat", "dog"], "test": ["cat", "dog"]},
        SAME,
    ),
    "eval": (["train/cat", "train/dog", "eval/cat", "eval/dog"],
             {"train": ["cat", "dog"], "test": ["cat", "dog"]}, SAME),
    "longer words": (
        ["training/cat", "training/dog", "testing/cat", "testing/dog"],
        {"train": ["cat", "dog"], "test": ["cat", "dog"]},
        SAME,
    ),
    "words inside names": (
        ["seg_train/seg_train/sea", "seg_train/seg_train/street", "seg_test/seg_test/sea",
         "seg_test/seg_test/street", "seg_pred"],
        {"train": ["sea", "street"], "test": ["sea", "street"]},
        SAME,
    ),
    "years": (
        ["train2017/cat", "train2017/dog", "val2017/cat", "val2017/dog"],
        {"train": ["cat", "dog"], "validation": ["cat", "dog"]},
        SAME,
    ),
    "inside an archive": (
        ["archive/train/cat", "archive/train/dog", "archive/test/cat", "archive/test/dog"],
        {"train": ["cat", "dog"], "test": ["cat", "dog"]},
        SAME,
    ),
    "inside a folder": (["images/cat", "images/dog"], {"train": ["cat", "dog"]}, SAME),
    "hidden folders": (
        ["cat", "dog", "cat/.ipynb_checkpoints", ".thumbs", "dog/.thumbs/deep", "__MACOSX/cat", "__MACOSX"],
        {"train": ["cat", "dog"]},
        SAME,
    ),
    "capitals": (
        ["Train/cat", "Train/dog", "Test/cat", "Test/dog"],
        {"train": ["cat", "dog"], "test": ["cat", "dog"]},
        "datasets knows its words in lower case only, and trains on the test images",
    ),
    "all capitals": (
        ["TRAIN/cat", "TRAIN/dog", "VAL/cat", "VAL/dog"],
        {"train": ["cat", "dog"], "validation": ["cat", "dog"]},
        "datasets knows its words in lower case only, and trains on the test images",
    ),
    "longer words in capitals": (
        ["Training/cat", "Training/dog", "Validation/cat", "Validation/dog"],
        {"train": ["cat", "dog"], "validation": ["cat", "dog"]},
        "datasets knows its words in lower case only, and trains on the test images",
    ),
    "class called train": (
        ["bus", "car", "train"],
        {"train": ["bus", "car", "train"]},
        "datasets takes the class for a split and leaves the others out",
    ),
    "class called dev": (
        ["dev", "prod"],
        {"train": ["dev", "prod"]},
        "datasets takes the class for a split and leaves the others out",
    ),
    "class called dev in splits": (
        ["train/dev", "train/prod", "test/dev", "test/prod"],
        {"train": ["dev", "prod"], "test": ["dev", "prod"]},
        "datasets puts the images of the class into a third split too",
    ),
    "test without classes": (
        ["train/cat", "train/dog", "test"],
        {"train": ["cat", "dog"]},
        "datasets gives no labels at all",
    ),
    "one folder in each class": (
        ["train/cat/images", "train/dog/images"],
        {"train": ["cat", "dog"]},
        "datasets sees one class, images, and gives no labels",
    ),
    "folders inside a class": (
        ["cat", "cat/more", "dog"],
        {"train": ["cat", "dog"]},
        "datasets gives no labels where depths differ",
    ),
    "links of a network drive": (
        ["cat", "dog", "cat/@eaDir", "dog/@eaDir/1.png"],
        {"train": ["cat", "dog"]},
        "datasets takes the thumbnails of the drive for images",
    ),
    "one class": (["cat"], {"train": ["cat"]}, "datasets gives no labels; here a notice says that there is one class"),
    "two levels": (["animals/cat", "animals/dog", "tools/saw"],
                   "classes may be animals, tools, or", "datasets takes the inner"),
    "splits below classes": (["cat/train", "cat/test", "dog/train"],
                             "splits come above classes", "datasets gives no labels"),
    "splits without classes": (["train", "test"], "no class folders as in", "datasets gives no labels"),
    "split or class": (["train/steam", "train/diesel", "bus", "car"],
                       "may be a split, or a class", "datasets leaves out bus, car"),
}  # fmt: skip


def write(root: Path, folders: list[str], suffix: str) -> None:
    """Two files in each folder. They are not decoded."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(2):
            path = root / folder / f"{number}{suffix}"
            path.write_bytes(PNG if suffix == ".png" else b"")


@pytest.fixture(scope="module", autouse=True)
def png(tmp_path_factory):
    global PNG
    path = tmp_path_factory.mktemp("png") / "one.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(path)
    PNG = path.read_bytes()


def found_by_us(source: FolderSource) -> dict[str, list[str]]:
    """Role of each split to the class of each of its files."""
    splits = {}
    for name in source.split_names:
        split = source.open(name)
        labels = [split.classes[label] for label in split.labels]
        splits[split_role(name)] = sorted(zip(labels, map(split.image_name, range(len(labels))), strict=True))
    return splits


def found_by_datasets(root: Path, cache: Path, kind: str) -> dict[str, list[str]] | None:
    """The same as `datasets` reads it, or None where it gives no labels."""
    column, feature = {"imagefolder": ("image", datasets.Image), "videofolder": ("video", datasets.Video)}[kind]
    splits = {}
    for name, rows in datasets.load_dataset(kind, data_dir=str(root), cache_dir=str(cache)).items():
        if "label" not in rows.features:
            return None
        names = rows.features["label"].names
        rows = rows.cast_column(column, feature(decode=False))
        splits[name] = sorted((names[row["label"]], row[column]["path"]) for row in rows)
    return splits


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_beside_datasets(tmp_path, layout, kind, capsys):
    folders, expected, compared = LAYOUTS[layout]
    root = tmp_path / "set"
    write(root, folders, {"image": ".png", "video": ".mp4"}[kind])
    open_folder = {"image": open_source, "video": open_video_source}[kind]
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected) as error:
            open_folder(str(root))
        assert str(root) in str(error.value)
        assert "move" in str(error.value)
        return
    found = found_by_us(open_folder(str(root)))
    assert {role: sorted({label for label, _ in files}) for role, files in found.items()} == expected
    assert (found == found_by_datasets(root, tmp_path / "cache", f"{kind}folder")) == (compared == SAME)


@pytest.mark.parametrize(
    ("folders", "train_split", "eval_split"),
    [
        (["Train/cat", "Train/dog", "Test/dog"], "train", None),
        (["TRAIN/cat", "TRAIN/dog", "VAL/dog"], "train", "validation"),
        (["training/cat", "training/dog", "Validation/dog"], "train", "val"),
        (["seg_train/cat", "seg_train/dog", "seg_test/dog"], "seg_train", "test"),
    ],
)
def test_splits_are_found_by_what_they_are_for(tmp_path, capsys, folders, train_split, eval_split):
    write(tmp_path, folders, ".png")
    processor = VitfImageProcessor(size={"height": 4, "width": 4})
    config = DataConfig(dataset=str(tmp_path), train_split=train_split, eval_split=eval_split)
    bundle = load_data(config, processor, seed=0)
    assert bundle.id2label == {0: "cat", 1: "dog"}
    assert (len(bundle.train), [sample["labels"] for sample in bundle.evaluation]) == (4, [1, 1])
    line = next(line for line in capsys.readouterr().err.splitlines() if "to train on" in line)
    assert f"4 examples of {folders[0].split('/')[0]!r} to train on, 2 of {folders[2].split('/')[0]!r}" in line
    assert line.endswith("2 classes: cat (2), dog (2)")


def test_two_splits_for_the_same_thing_are_a_choice(tmp_path):
    write(tmp_path, ["train_1/cat", "train_1/dog", "train_2/cat", "train_2/dog"], ".png")
    processor = VitfImageProcessor(size={"height": 4, "width": 4})
    with pytest.raises(UserError, match="there are train_1, train_2"):
        load_data(DataConfig(dataset=str(tmp_path)), processor, seed=0)
    write(tmp_path, ["val/cat", "Val/dog", "val_2/cat"], ".png")
    bundle = load_data(DataConfig(dataset=str(tmp_path), train_split="train_2"), processor, seed=0)
    assert bundle.description["eval_split"] == "val"


def test_file_names_tell_splits_where_all_do(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for split in ("train_1", "train_2", "test_1"):
            (tmp_path / name / f"{split}.png").write_bytes(PNG)
    source = open_source(str(tmp_path))
    assert {name: len(source.open(name).labels) for name in source.split_names} == {"train": 4, "test": 2}
    (tmp_path / "cat" / "mine.png").write_bytes(PNG)
    source = open_source(str(tmp_path))
    assert {name: len(source.open(name).labels) for name in source.split_names} == {"train": 7}


def test_what_is_left_out_is_said(tmp_path, capsys):
    write(tmp_path, ["train/cat", "train/dog", "train", "extra"], ".png")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "train" / "cat" / "boxes.xml").write_text("x")
    (tmp_path / "train" / "cat" / ".DS_Store").write_text("x")
    (tmp_path / "README.md").write_text("x")
    (tmp_path / "features.parquet").write_bytes(b"x")
    assert len(open_source(str(tmp_path)).open("train").labels) == 4
    said = capsys.readouterr().err
    assert "left out extra, which are no splits" in said
    assert "left out 2 images that lie outside the class folders" in said
    assert "no images by their extension: 1 .txt, 1 .xml" in said or "1 .xml, 1 .txt" in said
    assert "features.parquet left out" in said
    assert "README" not in said


def test_one_class_is_a_notice(tmp_path, capsys):
    write(tmp_path, ["images"], ".png")
    config = DataConfig(dataset=str(tmp_path), eval_fraction=0.5)
    load_data(config, VitfImageProcessor(size={"height": 4, "width": 4}), seed=0)
    assert "are of one class, 'images'" in capsys.readouterr().err


def test_small_classes_without_a_held_out_image_are_a_notice(tmp_path, capsys):
    write(tmp_path, ["cat", "dog"], ".png")
    for number in range(20):
        (tmp_path / "dog" / f"more{number}.png").write_bytes(PNG)
    load_data(DataConfig(dataset=str(tmp_path)), VitfImageProcessor(size={"height": 4, "width": 4}), seed=0)
    assert "holds out no image of 1 classes, which evaluation cannot see: cat (of 2)" in capsys.readouterr().err


def test_files_without_extension_count_where_there_are_no_others(tmp_path):
    write(tmp_path, ["cat", "dog"], "")
    assert len(open_source(str(tmp_path)).open("train").labels) == 4
    (tmp_path / "cat" / "one.png").write_bytes(PNG)
    assert len(open_source(str(tmp_path)).open("train").labels) == 1


def test_folders_without_images_say_what_they_hold(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"no class folders with images.*its files are 1 \.txt"):
        open_source(str(tmp_path))


def test_links_are_followed_but_not_in_circles(tmp_path):
    write(tmp_path / "real", ["cat", "dog"], ".png")
    root = tmp_path / "set"
    root.mkdir()
    for name in ("cat", "dog"):
        (root / name).symlink_to(tmp_path / "real" / name)
    (tmp_path / "real" / "cat" / "up").symlink_to(root)
    assert [len(files) for files in open_source(str(root)).splits["train"].values()] == [2, 2]


def test_parquet_or_images_by_what_there_is_more_of(tmp_path, capsys):
    write(tmp_path, ["docs"], ".png")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = datasets.Dataset.from_dict({"image": [{"bytes": PNG, "path": None}] * 2, "label": [0, 1]}, features=features)
    (tmp_path / ".cache").mkdir()
    for name in ("data-train-0", "data-train-1", "data-test-0", "extra", ".cache/train"):
        rows.to_parquet(tmp_path / f"{name}.parquet")
    source = open_source(str(tmp_path))
    assert isinstance(source, TableSource)
    assert {name: len(source.open(name).labels) for name in source.split_names} == {"test": 2, "train": 4}
    said = capsys.readouterr().err
    assert "2 images next to them left out" in said
    assert "left out extra.parquet, whose names tell no split" in said
    write(tmp_path, ["photos/cat", "photos/dog"], ".png")
    (tmp_path / "docs" / "0.png").unlink()
    (tmp_path / "docs" / "1.png").unlink()
    (tmp_path / "extra.parquet").unlink()
    assert isinstance(open_source(str(tmp_path)), FolderSource)


@pytest.mark.parametrize("metadata", ["metadata.csv", "metadata.jsonl"])
def test_metadata_files_label_images_that_no_folder_does(tmp_path, metadata):
    write(tmp_path / "set", ["train"], ".png")
    rows = {".csv": "file_name,label\n0.png,dog\n1.png,cat\n"}
    rows[".jsonl"] = '{"file_name": "0.png", "label": "dog"}\n{"file_name": "1.png", "label": "cat"}\n'
    (tmp_path / "set" / "train" / metadata).write_text(rows[Path(metadata).suffix])
    split = open_source(str(tmp_path / "set")).open("train")
    assert [split.classes[label] for label in split.labels] == ["dog", "cat"]
    assert split.read(0).size == (4, 4)


def test_tables_of_videos_are_read_where_no_folder_names_classes(tmp_path, capsys):
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "0.mp4", range(4))
    (tmp_path / "labels.csv").write_text("path,label\nclips/0.mp4,jump\n")
    source = open_video_source(str(tmp_path))
    assert isinstance(source, VideoTableSource)
    assert source.open("train").classes == ["jump"]
    write(tmp_path, ["jump", "run"], ".webm")
    assert isinstance(open_video_source(str(tmp_path)), FolderSource)
    assert "labels.csv left out" in capsys.readouterr().err
