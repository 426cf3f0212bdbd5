"""Getting published sets, from a server on this machine that does what servers do."""

import gzip
import hashlib
import io
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import requests

from normlab import cli
from normlab.data import DataError, download
from normlab.data.download import Source, get
from normlab.errors import UserError

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, np.uint8).tobytes()
IDX = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
IDX += ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")


def archive():
    """As CIFAR-10 is published."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
            told = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            told.size = 10
            tar.addfile(told, io.BytesIO(name.encode()[:10]))
    return content.getvalue()


class Server(ThreadingHTTPServer):
    """Has files, and breaks off or falls silent after so many bytes, as often as it is told."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked = {}, []
        self.breaks, self.silences, self.after, self.ranges = 0, 0, 100_000, True
        self.go_on = threading.Event()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server, name = self.server, self.path.rpartition("/")[2]
        asked = self.headers.get("Range")
        server.asked.append((name, asked))
        if name not in server.files:
            self.send_error(404)
            return
        content = server.files[name]
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if asked and server.ranges and start >= len(content):
            self.send_error(416)
            return
        start = start if server.ranges else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if server.breaks or server.silences:
            self.wfile.write(content[start : start + server.after])
            if server.breaks:
                server.breaks -= 1
            else:
                server.silences -= 1
                self.wfile.flush()
                server.go_on.wait(20)
            self.close_connection = True
            return
        self.wfile.write(content[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    made = Server()
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    made.files = {name: gzip.compress(CONTENT + name.encode()) for name in IDX}
    made.files["cifar-10-binary.tar.gz"] = archive()
    address = f"http://127.0.0.1:{made.server_address[1]}/published/"
    known = {name: hashlib.md5(content).hexdigest() for name, content in made.files.items()}
    cifar = {"cifar-10-binary.tar.gz": known.pop("cifar-10-binary.tar.gz")}
    monkeypatch.setitem(download.SOURCES, "mnist", Source(address, known))
    monkeypatch.setitem(download.SOURCES, "cifar10", Source(address, cifar, archive=True))
    monkeypatch.setattr(download, "WAIT", 0.001)
    yield made
    made.go_on.set()
    made.shutdown()
    thread.join()
    made.server_close()


def left(folder):
    return sorted(it.name for it in folder.iterdir() if it.name != ".lock")


def starts(server):
    """From which byte on the first file was asked for."""
    return [int((asked or "bytes=0-")[6:-1]) for name, asked in server.asked if name == IDX[0]]


def assert_whole(server, folder):
    assert left(folder) == sorted(IDX)
    for name in IDX:
        assert (folder / name).read_bytes() == server.files[name]


def test_what_is_interrupted_goes_on_where_it_stood(server, tmp_path):
    """Three times within one call, each with more of the file than the time before."""
    server.breaks = 3
    assert get("mnist", tmp_path, lambda _: None) == tmp_path / "mnist"
    assert_whole(server, tmp_path / "mnist")
    first, *others = starts(server)
    assert first == 0
    assert len(others) == 3
    assert (np.diff([first, *others]) > 30_000).all()
    told = []
    get("mnist", tmp_path, told.append)
    assert "it is there" in told[0]
    assert len(server.asked) == 3 + len(IDX)


def test_a_later_call_goes_on_where_one_that_gave_up_stood(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TRIES", 1)
    server.breaks = 1
    with pytest.raises(DataError, match=r"cannot be had: .* What has come is kept") as told:
        get("mnist", tmp_path, lambda _: None)
    assert "by hand: The official files are" in str(told.value)
    assert left(tmp_path / "mnist") == [IDX[0] + ".part"]
    get("mnist", tmp_path, lambda _: None)
    assert starts(server)[1] > 30_000
    assert_whole(server, tmp_path / "mnist")


def test_a_server_that_knows_no_ranges_begins_anew(server, tmp_path):
    server.breaks, server.ranges = 1, False
    get("mnist", tmp_path, lambda _: None)
    assert_whole(server, tmp_path / "mnist")


def test_what_was_whole_when_it_was_stopped_is_used(server, tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / f"{IDX[0]}.part").write_bytes(server.files[IDX[0]])
    get("mnist", tmp_path, lambda _: None)
    assert_whole(server, tmp_path / "mnist")


def test_other_content_is_told_and_not_kept(server, tmp_path):
    right = server.files[IDX[1]]
    server.files[IDX[1]] = b"<html>Please log in</html>"
    with pytest.raises(DataError, match="what came is something else, and nothing") as told:
        get("mnist", tmp_path, lambda _: None)
    assert hashlib.md5(right).hexdigest() in str(told.value)
    assert hashlib.md5(server.files[IDX[1]]).hexdigest() in str(told.value)
    assert left(tmp_path / "mnist") == [IDX[0]]
    server.files[IDX[1]] = right
    get("mnist", tmp_path, lambda _: None)
    assert_whole(server, tmp_path / "mnist")


def test_a_server_that_falls_silent_is_left_and_asked_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "SILENCE", 0.3)
    server.silences = 1
    get("mnist", tmp_path, lambda _: None)
    assert starts(server)[1] > 30_000
    assert_whole(server, tmp_path / "mnist")
    monkeypatch.setattr(download, "TRIES", 2)
    server.silences, server.after = 5, 0
    with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz cannot be had: .*timed out"):
        get("cifar10", tmp_path, lambda _: None)


def test_what_is_not_there_is_not_asked_for_again(server, tmp_path):
    del server.files[IDX[0]]
    with pytest.raises(DataError, match="404"):
        get("mnist", tmp_path, lambda _: None)
    assert len(server.asked) == 1


def test_archives_are_unpacked_to_where_the_set_is_looked_for(server, tmp_path):
    get("cifar10", tmp_path, lambda _: None)
    assert left(tmp_path / "cifar10") == ["cifar-10-batches-bin"]
    there = tmp_path / "cifar10" / "cifar-10-batches-bin"
    assert (there / "test_batch.bin").read_bytes() == b"test_batch"
    assert len(left(there)) == 6


def test_without_a_network_it_is_told_what_to_do_by_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0.001)
    monkeypatch.setitem(
        download.SOURCES, "cifar10", Source("http://127.0.0.1:9/", {"a.tar.gz": "0" * 32}, True)
    )
    with pytest.raises(DataError, match="Without a network, by hand: The official files are") as it:
        get("cifar10", tmp_path, lambda _: None)
    assert "data_batch_1.bin" in str(it.value)
    assert isinstance(it.value.__cause__, requests.ConnectionError)


@pytest.mark.parametrize(
    ("given", "to", "told"),
    [
        (["get"], "data", "expected get and names"),
        (["fetch", "mnist"], "data", "expected get and names"),
        (["get", "mnist"], None, "neither --to FOLDER nor the variable NORMLAB_DATA"),
        (["get", "mnits"], "data", "did you mean 'mnist'"),
        ([], "data", "name some, as in normlab data get mnist"),
    ],
)
def test_what_is_no_set_to_get_is_refused(tmp_path, monkeypatch, given, to, told):
    monkeypatch.delenv("NORMLAB_DATA", raising=False)
    with pytest.raises(UserError, match=told):
        cli.data(tuple(given), to=None if to is None else tmp_path / to)


def test_the_command_tells_where_studies_look_for_it(server, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("NORMLAB_DATA", raising=False)
    cli.data(("get", "mnist", "cifar10"), to=tmp_path)
    assert f"export NORMLAB_DATA={tmp_path}" in capsys.readouterr().out.replace("\n", "")
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    cli.data(("get", "mnist"))
    told = capsys.readouterr().out
    assert "it is there" in told
    assert "export" not in told
