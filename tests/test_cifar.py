import io
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offbeat.problems import CIFAR10, CIFAR100, DataError, cifar
from offbeat.problems.fetch import PublishedFile
from published import REAL_DATA, one_line, sha256

COUNT = 8
"""Records of each file of the small sets below."""


def records(labels, seed=0):
    """The bytes of a file with rows of `labels` and random pixels."""
    labels = np.asarray(labels, dtype=np.uint8).reshape(len(labels), -1)
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072), dtype=np.uint8)
    return np.hstack([labels, pixels]).tobytes()


def small(published):
    return replace(
        published,
        train=tuple((name, COUNT) for name, _ in published.train),
        test=(published.test[0], COUNT),
    )


TEN, HUNDRED = small(cifar.CIFAR10_SET), small(cifar.CIFAR100_SET)


def contents(published):
    """The bytes of each file by name."""
    names = [name for name, _ in (*published.train, published.test)]
    columns = [(np.arange(COUNT) + 11 * k) % n for k, n in enumerate(published.labels)]
    return {name: records(np.stack(columns, 1), seed) for seed, name in enumerate(names)}


def read(published, data_dir=None, limit=None, batches=None):
    files = cifar.CIFARFiles(
        published=published,
        data_dir=None if data_dir is None else str(data_dir),
        limit=limit,
        validation=0.25,
        batches=len(published.train) if batches is None else batches,
    )
    return files.load()


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def packed(published, files, base="http://127.0.0.1:9/"):
    """The set with an archive of `files`, and the archive's bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{published.folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    content = buffer.getvalue()
    archive = PublishedFile(
        name=published.archive.name,
        urls=(base + published.archive.name,),
        sha256=sha256(content),
    )
    return replace(published, archive=archive), content


def test_pixels_are_planes_of_red_green_and_blue_and_the_fine_label_counts(tmp_path):
    files = contents(HUNDRED)
    write(tmp_path / "cifar-100-binary", files)
    data = read(HUNDRED, tmp_path)
    raw = np.frombuffer(files["test.bin"], dtype=np.uint8).reshape(COUNT, 3074)
    assert data.test.inputs.dtype == torch.uint8
    assert np.array_equal(data.test.inputs.numpy(), raw[:, 2:].reshape(COUNT, 3, 32, 32))
    assert np.array_equal(data.test.targets.numpy(), raw[:, 1])
    assert data.test.targets.dtype == torch.int64
    assert (len(data.train), len(data.validation)) == (6, 2)


def test_training_files_follow_each_other_and_are_limited_to_the_first_images(tmp_path):
    files = contents(TEN)
    write(tmp_path, files)
    whole = cifar.CIFARFiles(
        published=TEN, data_dir=str(tmp_path), limit=None, validation=0.1, batches=5
    ).read()[0]
    raw = np.concatenate(
        [np.frombuffer(files[name], np.uint8).reshape(-1, 3073) for name, _ in TEN.train]
    )
    assert np.array_equal(whole.inputs.flatten(1).numpy(), raw[:, 1:])
    data = read(TEN, tmp_path, limit=12)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [9, 3, COUNT]
    assert len(read(TEN, tmp_path, batches=2).train) == 12


def test_too_few_batches_are_used_only_if_that_was_asked_for(tmp_path):
    files = contents(TEN)
    write(tmp_path, {name: files[name] for name in ("data_batch_1.bin", "test_batch.bin")})
    with pytest.raises(DataError) as caught:
        read(TEN, tmp_path)
    assert one_line(caught) == (
        f"cifar-10 in {tmp_path} lacks data_batch_2.bin, data_batch_3.bin, data_batch_4.bin, "
        "data_batch_5.bin: set batches to 1, or get cifar-10-binary.tar.gz (sha256 "
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd) from "
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    )
    assert len(read(TEN, tmp_path, batches=1).train) == 6
    (tmp_path / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"lacks test_batch.bin: get cifar-10-binary.tar.gz \("):
        read(TEN, tmp_path, batches=1)


def test_an_empty_folder_lacks_the_archive(tmp_path):
    with pytest.raises(DataError, match=r"cifar-10 is incomplete in .*: get cifar-10-binary"):
        read(TEN, tmp_path)


def damaged(tmp_path, published, name, content):
    files = contents(published) | {name: content}
    write(tmp_path, files)
    with pytest.raises(DataError) as caught:
        read(published, tmp_path)
    return one_line(caught)


def test_truncated_and_overlong_files_are_named_with_both_sizes(tmp_path):
    content = contents(TEN)["data_batch_3.bin"]
    expected = "24584 expected for 8 records of 3073 bytes"
    assert damaged(tmp_path, TEN, "data_batch_3.bin", content[:-1]) == (
        f"{tmp_path}/data_batch_3.bin is truncated: 24583 bytes, {expected}"
    )
    assert damaged(tmp_path, TEN, "data_batch_3.bin", content + b"xy") == (
        f"{tmp_path}/data_batch_3.bin is too long: 24586 bytes, {expected}"
    )


def test_a_label_outside_the_classes_is_named(tmp_path):
    text = damaged(tmp_path, TEN, "test_batch.bin", records([0, 1, 2, 10, 4, 11, 6, 7]))
    assert text == (
        f"{tmp_path}/test_batch.bin: record 3, counted from 0, has label 10; there are 10 "
        "classes, 0 to 9"
    )
    coarse = records([[0, 0]] * 5 + [[20, 0]] + [[0, 0]] * 2)
    text = damaged(tmp_path / "coarse", HUNDRED, "train.bin", coarse)
    assert text.endswith("record 5, counted from 0, has label 20; there are 20 classes, 0 to 19")
    fine = records([[0, 100]] + [[0, 0]] * 7)
    text = damaged(tmp_path / "fine", HUNDRED, "train.bin", fine)
    assert text.endswith("record 0, counted from 0, has label 100; there are 100 classes, 0 to 99")


def test_an_archive_is_read_without_unpacking_it(tmp_path, home):
    published, content = packed(HUNDRED, contents(HUNDRED))
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / published.archive.name
    path.write_bytes(content)
    data = read(published, tmp_path / "data")
    write(tmp_path / "unpacked", contents(HUNDRED))
    same = read(published, tmp_path / "unpacked")
    assert torch.equal(data.train.inputs, same.train.inputs)
    assert torch.equal(data.test.targets, same.test.targets)
    assert list((tmp_path / "data").iterdir()) == [path]


def test_a_damaged_archive_is_named_and_never_used(tmp_path):
    published, content = packed(TEN, contents(TEN))
    path = tmp_path / published.archive.name
    for damaged in (content[:-10], content[:-1] + b"?"):
        path.write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            read(published, tmp_path)
        assert one_line(caught) == (
            f"{path} is truncated, corrupt or another file: {len(damaged)} bytes of sha256 "
            f"{sha256(damaged)}, expected {sha256(content)}; delete it and get it again from "
            f"{published.archive.urls[0]}"
        )


def test_an_archive_without_a_file_is_named(tmp_path):
    files = contents(TEN)
    del files["data_batch_4.bin"]
    published, content = packed(TEN, files)
    (tmp_path / published.archive.name).write_bytes(content)
    with pytest.raises(DataError, match=r"has no cifar-10-batches-bin/data_batch_4.bin"):
        read(published, tmp_path)


def test_members_of_an_archive_that_are_links_are_not_followed(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("f")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    with pytest.raises(DataError, match=r"a.tar: f is no regular file"):
        cifar.read_member(path, "f")
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"a.tar cannot be read: "):
        cifar.read_member(path, "f")


def test_an_archive_is_downloaded_once_to_the_cache(site, home):
    folder, base = site
    published, content = packed(TEN, contents(TEN), base)
    (folder / published.archive.name).write_bytes(content)
    assert len(read(published).train) == 30
    cache = home / ".cache" / "offbeat" / "cifar-10"
    assert [path.name for path in cache.iterdir()] == [published.archive.name]
    (folder / published.archive.name).unlink()
    assert len(read(published, limit=8).train) == 6


def test_a_folder_named_by_the_environment_may_hold_unpacked_files(tmp_path, home, monkeypatch):
    monkeypatch.setenv("OFFBEAT_DATA", str(tmp_path))
    assert not CIFAR100().available()
    write(tmp_path / "cifar-100-binary", contents(HUNDRED))
    assert len(read(HUNDRED).test) == COUNT
    assert CIFAR100().available()


def test_a_problem_is_available_with_its_batches_or_its_archive(tmp_path):
    write(tmp_path, dict.fromkeys(("data_batch_1.bin", "test_batch.bin"), b""))
    assert not CIFAR10(data_dir=str(tmp_path)).available()
    assert CIFAR10(data_dir=str(tmp_path), batches=1).available()
    (tmp_path / "cifar-10-binary.tar.gz").touch()
    assert CIFAR10(data_dir=str(tmp_path)).available()


def test_the_model_takes_bytes():
    torch.manual_seed(0)
    model = CIFAR10().model()
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    assert model(images).shape == (2, 10)
    assert CIFAR100().model()(images).shape == (2, 100)


# Not in ../shared/data, which has it in a packed form of its own.
UNPACKED = Path(os.environ.get("OFFBEAT_DATA", REAL_DATA))

needs_cifar = pytest.mark.skipif(
    not CIFAR100(data_dir=str(UNPACKED)).available(),
    reason="no CIFAR-100 in the folder named by OFFBEAT_DATA",
)


@needs_cifar
def test_cifar100_is_all_there():
    problem = CIFAR100(data_dir=str(UNPACKED))
    data = problem.data()
    counts = data.train.targets.bincount() + data.validation.targets.bincount()
    assert counts.tolist() == [500] * 100
    assert data.test.targets.bincount().tolist() == [100] * 100
    pixels = problem.model()[0](data.train.inputs[:10_000])
    assert pixels.mean((0, 2, 3)).abs().max() < 0.02
    assert (pixels.std((0, 2, 3)) - 1).abs().max() < 0.02
