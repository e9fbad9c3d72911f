import gzip
import http.server
import threading
from dataclasses import replace

import pytest

from offbeat.problems import DataError
from offbeat.problems.fetch import PublishedFile, download, obtain
from published import idx, one_line, published, sha256


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("damage", [lambda c: c[:-3], lambda c: c[:-1] + b"?"])
def test_a_damaged_file_is_named_and_never_used(tmp_path, packed, damage):
    file, content = published("labels.gz", idx([1, 2, 3]))
    if not packed:
        content = gzip.decompress(content)
    path = tmp_path / ("labels.gz" if packed else "labels")
    expected = sha256(content)
    path.write_bytes(damage(content))
    with pytest.raises(DataError) as caught:
        obtain("tiny", [file], data_dir=str(tmp_path))
    assert one_line(caught) == (
        f"{path} is truncated, corrupt or another file: {len(damage(content))} bytes of sha256 "
        f"{sha256(damage(content))}, expected {expected}; "
        "delete it and get it again from http://127.0.0.1:9/labels.gz"
    )


def test_a_given_folder_is_never_downloaded_to(tmp_path, site):
    folder, base = site
    file, packed = published("labels.gz", idx([1]), base)
    (folder / file.name).write_bytes(packed)
    (tmp_path / "given").mkdir()
    with pytest.raises(DataError, match=f"^tiny is incomplete in {tmp_path}/given: get labels.gz"):
        obtain("tiny", [file], data_dir=str(tmp_path / "given"))
    assert not list((tmp_path / "given").iterdir())
    with pytest.raises(DataError, match=f"incomplete in {tmp_path}/none, which is no folder: get"):
        obtain("tiny", [file], data_dir=str(tmp_path / "none"))


def test_several_missing_files_are_all_named(tmp_path):
    files = [published(name, idx([1]))[0] for name in ("a.gz", "b.gz")]
    with pytest.raises(DataError) as caught:
        obtain("tiny", files, data_dir=str(tmp_path))
    for file in files:
        assert f"{file.name} (sha256 {file.sha256}) from {file.urls[0]}" in one_line(caught)


def test_a_file_without_an_unpacked_sum_is_not_looked_for_unpacked(tmp_path):
    file, packed = published("labels.gz", idx([1]))
    (tmp_path / "labels").write_bytes(gzip.decompress(packed))
    assert obtain("tiny", [file], data_dir=str(tmp_path)) == [tmp_path / "labels"]
    with pytest.raises(DataError, match="incomplete"):
        obtain("tiny", [replace(file, unpacked_sha256=None)], data_dir=str(tmp_path))


def test_the_environment_comes_before_the_cache_and_both_before_a_download(
    tmp_path, home, monkeypatch
):
    file, packed = published("labels.gz", idx([1]))  # an address at which nobody listens
    cache = home / ".cache" / "offbeat" / "tiny"
    named = tmp_path / "named" / "sub"
    for folder in (cache, named):
        folder.mkdir(parents=True)
        (folder / file.name).write_bytes(packed)
    monkeypatch.setenv("OFFBEAT_DATA", str(tmp_path / "named"))
    assert obtain("tiny", [file], subfolders=("sub",)) == [named / file.name]
    assert obtain("tiny", [file], subfolders=("other",)) == [cache / file.name]
    monkeypatch.delenv("OFFBEAT_DATA")
    assert obtain("tiny", [file], subfolders=("sub",)) == [cache / file.name]


def test_the_next_address_is_tried_and_a_bad_answer_leaves_nothing_behind(tmp_path, site):
    folder, base = site
    file, packed = published("labels.gz", idx([1, 2]), base)
    (folder / "bad").write_bytes(packed[:-1])
    (folder / "good").write_bytes(packed)
    target = tmp_path / "target"
    urls = (base + "absent", base + "bad", base + "good")
    path = download(replace(file, urls=urls), target)
    assert path.read_bytes() == packed
    assert list(target.iterdir()) == [path]
    path.unlink()
    with pytest.raises(DataError) as caught:
        download(replace(file, urls=urls[:2]), target)
    assert one_line(caught) == (
        f"cannot fetch labels.gz into {target} ({base}absent: HTTP Error 404: File not found; "
        f"{base}bad: sent {len(packed) - 1} bytes of sha256 {sha256(packed[:-1])}): get it by "
        f"other means (sha256 {file.sha256}) and name its folder with data_dir or OFFBEAT_DATA"
    )
    assert list(target.iterdir()) == []


def test_a_failed_download_names_the_folders_that_were_looked_in(tmp_path, home, monkeypatch):
    monkeypatch.setenv("OFFBEAT_DATA", str(tmp_path))
    file, _ = published("labels.gz", idx([1]), "nonsense://")
    with pytest.raises(DataError) as caught:
        obtain("tiny", [file])
    assert one_line(caught).startswith(
        f"labels.gz is missing in {tmp_path}, {home}/.cache/offbeat/tiny; cannot fetch labels.gz"
    )


def test_a_cache_that_cannot_be_written_is_a_data_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    file, _ = published("labels.gz", idx([1]))
    with pytest.raises(DataError, match=r"cannot fetch labels.gz into .*file/cache"):
        download(file, tmp_path / "file" / "cache")


def unchecked(base):
    return PublishedFile(name="plain", urls=(base + "plain",), sha256=None)


def test_what_has_no_published_sum_is_checked_against_its_first_download(site, home):
    folder, base = site
    (folder / "plain").write_bytes(b"1 2:3")
    file, cache = unchecked(base), home / ".cache" / "offbeat" / "tiny"
    with pytest.warns(UserWarning, match="no checksum") as caught:
        [path] = obtain("tiny", [file])
    assert str(caught[0].message) == (
        f"no checksum of {base}plain is published: what came is used as it is, and its sha256 "
        f"{sha256(b'1 2:3')} is kept in plain.sha256 and checked from now on"
    )
    assert path == cache / "plain"
    assert sorted(p.name for p in cache.iterdir()) == ["plain", "plain.sha256"]
    assert obtain("tiny", [file]) == [path]
    path.write_bytes(b"1 2:4")
    with pytest.raises(DataError, match=f"corrupt or .* expected {sha256(b'1 2:3')}"):
        obtain("tiny", [file])


def test_a_folders_own_file_without_a_published_sum_is_taken_as_it_is(tmp_path):
    file = unchecked("http://127.0.0.1:9/")
    with pytest.raises(DataError) as caught:
        obtain("tiny", [file], data_dir=str(tmp_path))
    assert one_line(caught) == (
        f"tiny is incomplete in {tmp_path}: get plain from http://127.0.0.1:9/plain"
    )
    (tmp_path / "plain").write_bytes(b"any")
    assert obtain("tiny", [file], data_dir=str(tmp_path)) == [tmp_path / "plain"]


class CutShort(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"12345")

    def log_message(self, *args):
        pass


def test_a_download_that_ends_early_is_not_kept(tmp_path, home):
    with http.server.HTTPServer(("127.0.0.1", 0), CutShort) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        file = unchecked(f"http://127.0.0.1:{server.server_address[1]}/")
        with pytest.raises(DataError, match="plain: sent 5 bytes of 10"):
            download(file, tmp_path / "target")
        thread.join()
    assert list((tmp_path / "target").iterdir()) == []
