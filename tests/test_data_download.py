"""Downloads from a server on this machine: resumed, checked, and complete or not there."""

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from quantkit.data import checksums, load_task
from quantkit.data import download as download_module
from quantkit.data.download import cache_folder, download_indonlu, download_nusax, fetch
from quantkit.data.indonlu import TASKS
from quantkit.data.nusax import LANGUAGES
from quantkit.errors import DataError
from tests.conftest import shared_folder

CONTENT = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `files`; `cut` breaks each answer off after so many bytes."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {"/f.bin": CONTENT}
        self.cut: int | None = None
        self.ranges = True
        self.seen: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.seen.append(wanted)
        content = self.server.files.get(self.path)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if content is None:
            self.send_error(404)
        elif self.server.ranges and start >= len(content):
            self.send_error(416)
        else:
            partial = self.server.ranges and wanted
            body = content[start:] if partial else content
            self.send_response(206 if partial else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: self.server.cut])

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_file_arrives_whole_and_alone(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "f.bin"
    fetch(f"{server.url}/f.bin", SHA256, target)
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]
    assert server.seen == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_goes_on(server: Server, tmp_path: Path, ranges: bool) -> None:
    target = tmp_path / "f.bin"
    server.cut, server.ranges = 100_000, ranges
    with pytest.raises(DataError, match=r"connection broke off, 156000 bytes are missing. Run ag"):
        fetch(f"{server.url}/f.bin", SHA256, target)
    assert not target.exists()
    server.cut = None
    fetch(f"{server.url}/f.bin", SHA256, target)
    assert target.read_bytes() == CONTENT
    assert server.seen == [None, "bytes=100000-"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_complete_part_needs_no_connection(tmp_path: Path) -> None:
    (tmp_path / ".f.bin.partial").write_bytes(CONTENT)
    fetch("http://127.0.0.1:9/f.bin", SHA256, tmp_path / "f.bin")
    assert (tmp_path / "f.bin").read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / ".f.bin.partial").write_bytes(CONTENT + b"more")
    fetch(f"{server.url}/f.bin", SHA256, tmp_path / "f.bin")
    assert (tmp_path / "f.bin").read_bytes() == CONTENT
    assert server.seen == ["bytes=256004-", None]


def test_other_contents_never_appear(server: Server, tmp_path: Path) -> None:
    server.files["/f.bin"] = b"<html>"
    with pytest.raises(DataError, match=rf"f.bin has SHA-256 .*, expected {SHA256}: it is damag"):
        fetch(f"{server.url}/f.bin", SHA256, tmp_path / "f.bin")
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_server_are_told(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"g.bin could not be fetched: HTTP Error 404: Not Found"):
        fetch(f"{server.url}/g.bin", SHA256, tmp_path / "g.bin")


def test_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(DataError) as caught:
        fetch("http://127.0.0.1:9/f.bin", SHA256, tmp_path / "f.bin")
    assert "Connection refused" in str(caught.value)
    assert "get the file by hand and pass --data FOLDER" in str(caught.value)


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"could not be fetched: .*(Not a directory|File exists)"):
        fetch("http://127.0.0.1:9/f.bin", SHA256, tmp_path / "file" / "f.bin")


def test_the_cache_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("QUANTKIT_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "quantkit"


def test_every_file_has_a_checksum() -> None:
    assert set(checksums.INDONLU) == {spec.folder for spec in TASKS.values()}
    assert set(checksums.NUSAX) == set(LANGUAGES)
    digests = [
        digest
        for table in (checksums.INDONLU, checksums.NUSAX)
        for files in table.values()
        for digest in files
    ]
    assert len(digests) == 72
    assert all(len(digest) == 64 for digest in digests)


def test_public_tasks_from_a_server_and_then_from_the_cache(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared_folder("QUANTKIT_DATA", "data")
    for origin, below in ((download_module.INDONLU, "indonlu"), (download_module.NUSAX, "nusax-*")):
        home = next(folder.glob(below))
        for file in home.glob("*/*.[ct]s*"):
            path = file.relative_to(home).as_posix()
            server.files[f"/{origin}/{path}"] = file.read_bytes()
    monkeypatch.setenv("QUANTKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(download_module, "GITHUB", server.url)
    assert len(load_task("smsa", None).splits["test"]) == 500
    assert len(load_task("nusax-ngaju", None).splits["test"]) == 400
    assert len(server.seen) == 6
    assert len(load_task("nusax", None).splits["test"]) == 4800
    assert len(server.seen) == 6 + 11 * 3
    monkeypatch.setattr(download_module, "GITHUB", "http://127.0.0.1:9")
    assert download_indonlu("smsa").is_relative_to(tmp_path)
    assert download_nusax("nusax").is_relative_to(tmp_path)
    assert len(load_task("nusax", None).splits["train"]) == 6000
