import base64
import logging
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tlbatch.core.errors import UserError
from tlbatch.data.shards.staging import stage_urls

BODY = b"a tar" * 1000


class Guarded(BaseHTTPRequestHandler):
    """Gives the file to the user eye with the password lid only."""

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == "Basic " + base64.b64encode(b"eye:lid").decode()
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(BODY if known else b"")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as guarded:
        threading.Thread(target=guarded.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{guarded.server_port}"
        guarded.shutdown()


def test_the_password_of_a_server_comes_from_netrc(server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.tar could not be fetched"):
        stage_urls([f"http://{server}/a.tar"], tmp_path / "staged")
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text("machine 127.0.0.1 login eye password lid\n", encoding="utf-8")
    netrc.chmod(0o600)
    stage_urls([f"http://{server}/a.tar"], tmp_path / "staged")
    assert (tmp_path / "staged" / "a.tar").read_bytes() == BODY


def test_what_a_kill_has_left_of_a_transfer_is_removed_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".a.tar.abcdefgh"
    left.write_bytes(b"half")
    stage_urls(["pipe:echo tar"], tmp_path)
    assert not left.exists()


def test_an_address_with_signs_of_the_shell_reaches_none(server: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be fetched"):
        stage_urls([f"http://{server}/a.tar?'$(touch {tmp_path}/pwned)'`touch {tmp_path}/pwned`"], tmp_path / "staged")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "url",
    ["http://eye:hush@127.0.0.1:9/a.tar", "none://eye:hush@host/a.tar?sig=hush", "pipe:exit 3 # ://eye:hush@host"],
)
def test_no_failure_and_no_log_says_a_password(
    server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, url: str
) -> None:
    assert server
    with caplog.at_level(logging.INFO), pytest.raises(UserError, match="could not be fetched") as error:
        stage_urls([url.replace("127.0.0.1:9", server)], tmp_path / "staged")
    assert "***" in str(error.value)
    assert "***" in caplog.text
    assert "hush" not in str(error.value) + caplog.text
