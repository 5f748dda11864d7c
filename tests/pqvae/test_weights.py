import hashlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from eval.networks import inception
from eval.networks.inception import download_weights
from pqvae import weights
from pqvae.weights import DownloadError, download

HEAD = "6726825d"


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, bytes]]]:
    """A web server on this machine: its address and what it serves."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{web.server_address[1]}", files
        web.shutdown()
        thread.join()


def test_download_is_whole_and_right_or_not_there(
    server: tuple[str, dict[str, bytes]], tmp_path: Path
) -> None:
    address, files = server
    files["/weights"] = b"not the weights"
    target = tmp_path / "hub" / "weights.pth"
    with pytest.raises(DownloadError, match="invalid hash"):
        download(f"{address}/weights", target, HEAD)
    assert list(target.parent.iterdir()) == []
    head = hashlib.sha256(files["/weights"]).hexdigest()[:8]
    download(f"{address}/weights", target, head)
    assert [path.read_bytes() for path in target.parent.iterdir()] == [b"not the weights"]


def test_a_server_that_says_nothing_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "SILENCE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        with pytest.raises(DownloadError, match="timed out"):
            download(f"http://127.0.0.1:{silent.getsockname()[1]}/", tmp_path / "w.pth", HEAD)
        assert time.monotonic() - started < 5
    assert socket.getdefaulttimeout() is None
    assert list(tmp_path.iterdir()) == []


def test_download_says_what_it_fetches_and_why_it_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "http://127.0.0.1:9/weights"  # nothing listens there
    monkeypatch.setattr(inception, "URL_INCEPTION_V3", url)
    with pytest.raises(DownloadError, match="refused"):
        download_weights(tmp_path / "weights.pth")
    text = capsys.readouterr().err
    for part in (url, "91 MB", HEAD, "refused"):
        assert part in text
    assert list(tmp_path.iterdir()) == []
