"""Published weights by name: what is downloaded, once, and what a user is told when it cannot be."""

import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from timm_models import randomised
from transformers import pipeline
from vit_family_launcher import main

from hf_vit_family import ARCHITECTURES, create_model, pretrained_folder
from hf_vit_family.commands import convert
from hf_vit_family.conversion import convert as engine
from hf_vit_family.conversion import download, preprocessing
from hf_vit_family.conversion.checkpoint_files import LOADERS
from hf_vit_family.conversion.published import Published, published_checkpoints
from hf_vit_family.errors import UserError
from hf_vit_family.publishing import converted

KEY = "deit_tiny_patch16_224.fb_in1k"


class FileServer(ThreadingHTTPServer):
    """Serves `content` under any path but /page and /missing; `breaks_after` bytes it hangs up, once."""

    daemon_threads = True

    def __init__(self, content: bytes):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.breaks_after, self.ranges = content, None, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.ranges.append(wanted)
        if self.path == "/missing.pth":
            self.send_error(404)
            return
        begin = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
        body, kind = server.content[begin:], "application/octet-stream"
        if self.path == "/page.pth":
            body, kind = b"<html>Too many users have viewed this file</html>", "text/html; charset=utf-8"
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.breaks_after is not None:
            body, server.breaks_after = body[: server.breaks_after], None
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def peer() -> torch.nn.Module:
    return randomised(timm.create_model("deit_tiny_patch16_224")).float()


@pytest.fixture(scope="module")
def authors_file(peer, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("authors") / "deit.pth"
    torch.save({"model": peer.state_dict()}, path)
    return path.read_bytes()


@pytest.fixture
def server(authors_file, tmp_path, monkeypatch):
    """A host of the file, which is the only one that is published of DeiT; and an empty cache."""
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    server = FileServer(authors_file)
    publish(server, monkeypatch, f"deit_tiny-{hashlib.sha256(authors_file).hexdigest()[:8]}.pth")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def publish(server: FileServer, monkeypatch, file: str) -> None:
    published = published_checkpoints("deit")[KEY]
    table = {KEY: Published(f"{server.url}/{file}", published.top1, published.top1_source, license="apache-2.0")}
    for module in (convert, converted, engine, preprocessing):
        monkeypatch.setattr(module, "published_checkpoints", lambda name: table if name == "deit" else {})


def test_weights_by_name_are_downloaded_and_converted_once(server, peer, monkeypatch):
    pixels = torch.randn(2, 3, 224, 224)
    model = create_model("deit_tiny_patch16_224", pretrained=True)
    assert not model.training
    with torch.no_grad():
        expected = peer(pixels)
        assert (model(pixels).logits - expected).abs().max() < 1e-4 * expected.abs().max()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = pretrained_folder(KEY)
    assert pipeline("image-classification", str(folder), device="cpu").model.config.num_labels == 1000
    encoder = create_model(KEY, "Model", pretrained=True)
    assert all(torch.equal(tensor, model.state_dict()[f"deit.{name}"]) for name, tensor in encoder.state_dict().items())
    assert server.ranges == [None]


def test_fields_of_a_pretrained_model(server, capsys):
    model = create_model("deit_tiny_patch16_224", pretrained=True)
    capsys.readouterr()
    other = create_model("deit_tiny_patch16_224", pretrained=True, num_labels=5, image_size=96)
    said = capsys.readouterr().err
    assert "classifier.weight" in said
    assert "incompatible" not in said
    assert other(torch.zeros(1, 3, 96, 96)).logits.shape == (1, 5)
    pixels = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(
            other.deit(pixels).last_hidden_state, model.deit(pixels).last_hidden_state, rtol=1e-4, atol=1e-4
        )
    with pytest.raises(UserError, match=r"hidden_size=96: .* a trained weight is not replaced by a random one"):
        create_model("deit_tiny_patch16_224", pretrained=True, hidden_size=96)
    with pytest.raises(UserError, match=r"'num_label'.*did you mean 'num_labels'"):
        create_model("deit_tiny_patch16_224", pretrained=True, num_label=5)
    with pytest.raises(UserError, match="head of deit"):
        create_model("deit_tiny_patch16_224", "ForVideoClassification", pretrained=True)


def test_convert_takes_a_name_and_an_address(server, tmp_path, capsys):
    assert main(["convert", "deit_tiny_patch16_224", "--output", str(tmp_path / "named")]) == 0
    address = f"{server.url}/another_deit.pth"
    assert main(["convert", address, "--output", str(tmp_path / "addressed")]) == 0
    named, addressed = (tmp_path / name / "model.safetensors" for name in ("named", "addressed"))
    assert named.read_bytes() == addressed.read_bytes()
    assert '"license": "apache-2.0"' in (tmp_path / "named" / "conversion.json").read_text()
    capsys.readouterr()
    assert main(["convert", KEY, "--architecture", "vit", "--output", str(tmp_path / "out")]) == 2
    assert "--architecture does not go with the name of a published checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_address_names_a_file_within_the_cache(server, tmp_path, capsys):
    assert main(["convert", f"{server.url}/", "--output", str(tmp_path / "out")]) == 2
    assert "the address of a file ends in its name" in capsys.readouterr().err
    assert main(["convert", f"{server.url}/a%2F..%2F..%2Fdeit.pth", "--output", str(tmp_path / "out")]) == 0
    (written,) = (tmp_path / "home").rglob("*.pth")
    assert written.parent.parent.name == "downloads"


def test_an_interrupted_download_goes_on(server, authors_file):
    server.breaks_after = 100_000
    with pytest.raises(UserError, match=r"ended the download .* try again") as error:
        pretrained_folder(KEY)
    place = Path(re.search(r"save it as (\S+)", str(error.value))[1])
    assert not place.exists()
    pretrained_folder(KEY)
    assert server.ranges == [None, "bytes=100000-"]
    assert place.read_bytes() == authors_file
    assert [path.name for path in place.parent.iterdir()] == [place.name]


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("missing.pth", "answers 404; get http.* with a browser, and save it as"),
        ("page.pth", "shows a page in place of the file; get http"),
        ("deit-00000000.pth", "is damaged or another one"),
    ],
)
def test_what_is_not_the_file_is_refused(file, message, server, monkeypatch, tmp_path, capsys):
    publish(server, monkeypatch, file)
    assert main(["convert", KEY, "--output", str(tmp_path / "out")]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
    assert not list((tmp_path / "home").rglob(file))


def test_a_file_that_was_put_into_its_place_serves_offline(server, authors_file, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="is not in the cache, and HF_HUB_OFFLINE is set") as error:
        pretrained_folder(KEY)
    place = Path(re.search(r"save it as (\S+)", str(error.value))[1])
    place.parent.mkdir(parents=True)
    place.write_bytes(authors_file)
    assert (pretrained_folder(KEY) / "model.safetensors").is_file()
    assert server.ranges == []


def test_every_published_file_gets_a_name_that_can_be_read(monkeypatch, tmp_path):
    monkeypatch.setattr(download, "download", lambda url, name: tmp_path / name)
    monkeypatch.setattr(download, "_sha256", lambda path: download._DIGEST.search(path.name)[1])
    for architecture in ARCHITECTURES.values():
        for key, published in published_checkpoints(architecture.name).items():
            path = download.download_published(key, published, ".pth")
            assert path.name == "checkpoint" or path.suffix in LOADERS, (key, path.name)


def test_a_variant_without_weights_says_so():
    name = next(
        variant
        for architecture in ARCHITECTURES.values()
        for variant in architecture.config_class.VARIANTS
        if not any(key.partition(".")[0] == variant for key in published_checkpoints(architecture.name))
    )
    with pytest.raises(UserError, match=f"nobody has published weights of {name}"):
        create_model(name, pretrained=True)
