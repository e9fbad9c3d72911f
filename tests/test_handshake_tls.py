"""TLS between hosts: who has no certificate of the run's authority stays outside."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from offbeat.runtime.addresses import socket_address
from offbeat.runtime.tls import TLS, TLSError
from offbeat.runtime.transport import Transport

SECRET = b"the run's secret"
PATIENCE = 30.0

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def authority(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    key, cert = folder / f"{name}.key", folder / f"{name}.pem"
    options = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", *options, "-days", 1, "-subj", f"/CN={name}", "-keyout", key, "-out", cert)
    return cert


def member(ca: Path, name: str) -> TLS:
    folder = ca.parent
    key, request, cert = (folder / f"{name}.{kind}" for kind in ("key", "csr", "pem"))
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", *options, "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    signed_by = ["-CA", ca, "-CAkey", ca.with_suffix(".key"), "-CAcreateserial"]
    openssl("x509", "-req", "-in", request, *signed_by, "-days", 1, "-out", cert)
    return TLS(cert=cert, key=key, ca=ca)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], TLS]:
    folder = tmp_path_factory.mktemp("certificates")
    ours, theirs = authority(folder / "ours", "ca"), authority(folder / "theirs", "ca")
    made = {"a": member(ours, "a"), "b": member(ours, "b"), "stranger": member(theirs, "c")}
    return made.__getitem__


class Host:
    def __init__(self, host: int, tls: TLS | None) -> None:
        self.heard: list[bytes] = []
        self.lost = threading.Event()
        self.full = threading.Condition()
        self.transport = Transport(
            host, "tcp:127.0.0.1:0", SECRET, self._on_frame, lambda *_: self.lost.set(), tls=tls
        )

    def _on_frame(self, source: int, parts: list[memoryview]) -> None:
        with self.full:
            self.heard.append(b"".join(parts))
            self.full.notify_all()

    def wait(self, count: int) -> None:
        with self.full:
            assert self.full.wait_for(lambda: len(self.heard) >= count, PATIENCE)


@pytest.fixture
def pair(request: pytest.FixtureRequest):
    made: list[Host] = []

    def make(*tls: TLS | None) -> list[Host]:
        made.extend(Host(i, each) for i, each in enumerate(tls))
        return made

    yield make
    for host in made:
        host.transport.abort()


def connect(hosts: list[Host], timeout: float = PATIENCE) -> list[str]:
    """Connect all; what went wrong."""
    addresses = {i: host.transport.address for i, host in enumerate(hosts)}
    errors: list[str] = []

    def run(host: Host) -> None:
        try:
            host.transport.connect(addresses, timeout)
        except ConnectionError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=run, args=(host,)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE)
    return errors


def test_hosts_of_one_authority_exchange_frames_of_all_sizes(pair, certificates) -> None:
    a, b = hosts = pair(certificates("a"), certificates("b"))
    assert connect(hosts) == []
    sent = [bytes([k % 251]) * size for k, size in enumerate((0, 1, 16_384, 100_001, 3_000_000))]
    for frame in sent:
        assert a.transport.send(1, frame)
        assert b.transport.send(0, frame, torch.full((50_000,), 2, dtype=torch.uint8))
    a.wait(len(sent))
    b.wait(len(sent))
    assert b.heard == sent
    assert a.heard == [frame + b"\2" * 50_000 for frame in sent]
    assert a.transport.close(PATIENCE)
    assert b.lost.wait(PATIENCE)


def test_nothing_is_readable_on_the_wire(pair, certificates) -> None:
    a, b = pair(certificates("a"), certificates("b"))
    _, target = socket_address(b.transport.address)
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as tap:

        def relay() -> None:
            inner, _ = tap.accept()
            outer = socket.create_connection(target)
            back = threading.Thread(target=pump, args=(outer, inner))
            back.start()
            pump(inner, outer)
            back.join(PATIENCE)
            inner.close()
            outer.close()

        def pump(source: socket.socket, sink: socket.socket) -> None:
            while chunk := source.recv(65536):
                heard.append(chunk)
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=relay)
        thread.start()
        a.transport.connect({1: f"tcp:127.0.0.1:{tap.getsockname()[1]}"}, PATIENCE)
        a.transport.send(1, b"the plain text" * 10)
        b.wait(1)
        a.transport.close(PATIENCE)
        b.transport.close(PATIENCE)
        thread.join(PATIENCE)
    assert len(b"".join(heard)) > 1000
    assert b"plain text" not in b"".join(heard)
    assert b"OFBT" not in b"".join(heard)


@pytest.mark.parametrize(
    ("dialer", "acceptor"), [("stranger", "a"), ("a", "stranger"), (None, "a"), ("a", None)]
)
def test_other_certificates_or_none_are_refused(
    pair, certificates, dialer: str | None, acceptor: str | None
) -> None:
    hosts = pair(*(name and certificates(name) for name in (dialer, acceptor)))
    errors = connect(hosts, timeout=1.0)
    (told,) = [error for error in errors if error.startswith("host 0 cannot connect to host 1 at ")]
    if dialer is not None:
        assert "TLS fails (have both ends certificates of one authority?)" in told
    with pytest.raises(ValueError, match="not connected"):
        hosts[1].transport.send(0, b"")


def test_unusable_files_are_named(certificates, tmp_path: Path) -> None:
    a, b = certificates("a"), certificates("b")
    noise = tmp_path / "noise.pem"
    noise.write_text("noise")
    locked = tmp_path / "locked.key"
    openssl("pkey", "-in", a.key, "-aes256", "-passout", "pass:x", "-out", locked)
    gone = tmp_path / "gone.pem"
    for change, text in [
        ({"key": gone}, f"tls.key: cannot read {gone}: No such file"),
        ({"ca": noise}, f"tls.ca: {noise} holds no certificate"),
        ({"cert": noise}, f"{noise} or {a.key} is not in PEM form"),
        ({"key": locked}, f"{locked} is not in PEM form, or the key has a passphrase"),
        ({"key": b.key}, f"tls.key: {b.key} is not the key of the certificate {a.cert}"),
    ]:
        with pytest.raises(TLSError) as error:
            TLS(**({"cert": a.cert, "key": a.key, "ca": a.ca} | change))
        assert text in str(error.value)
        assert "\n" not in str(error.value)
