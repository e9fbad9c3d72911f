import gzip
from dataclasses import replace

import numpy as np
import pytest
import torch

from offbeat.problems import MNIST, DataError, FashionMNIST, mnist
from offbeat.problems.idx import parse_idx, read_idx
from published import REAL_DATA, idx, one_line, published

needs_mnist = pytest.mark.skipif(
    not (REAL_DATA / "mnist").is_dir(), reason="no copy of MNIST in ../shared/data"
)
needs_fashion_mnist = pytest.mark.skipif(
    not (REAL_DATA / "fashion-mnist").is_dir(), reason="no copy of Fashion-MNIST in ../shared/data"
)


@needs_mnist
def test_mnist_is_all_there():
    data = MNIST(data_dir=str(REAL_DATA)).data()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [54000, 6000, 10000]
    assert data.train.inputs.shape[1:] == (1, 28, 28)
    assert data.train.inputs.dtype == torch.float32
    assert data.train.targets.dtype == torch.int64
    counts = data.train.targets.bincount() + data.validation.targets.bincount()
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert data.test.targets.bincount().sum() == 10000
    assert abs(data.train.inputs.mean()) < 1e-3
    assert abs(data.train.inputs.std() - 1) < 1e-3


@needs_mnist
def test_mnist_may_be_unpacked_and_is_limited_to_its_first_images(tmp_path, monkeypatch):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for source in (REAL_DATA / "mnist").glob("*.gz"):
        if source.name.startswith("train-images"):
            (folder / source.name).symlink_to(source)
        else:
            (folder / source.stem).write_bytes(gzip.decompress(source.read_bytes()))
    monkeypatch.setenv("OFFBEAT_DATA", str(tmp_path))
    data = MNIST(limit=100, validation=0.2).files().load()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [80, 20, 100]
    # The test labels' well-known beginning.
    assert data.test.targets[:5].tolist() == [7, 2, 1, 0, 4]
    pixels = data.test.inputs * 0.3081 + 0.1307
    assert pixels.min() == pytest.approx(0, abs=1e-6)
    assert pixels.max() == pytest.approx(1, abs=1e-6)


@needs_mnist
def test_a_missing_file_of_mnist_is_named_with_its_address_and_sum(tmp_path):
    for source in (REAL_DATA / "mnist").glob("t*.gz"):
        if source.name != "t10k-labels-idx1-ubyte.gz":
            (tmp_path / source.name).symlink_to(source)
    with pytest.raises(DataError) as caught:
        MNIST(data_dir=str(tmp_path)).data()
    assert one_line(caught) == (
        f"mnist is incomplete in {tmp_path} (nor in {tmp_path}/mnist, {tmp_path}/MNIST/raw): get "
        "t10k-labels-idx1-ubyte.gz "
        "(sha256 f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6) from "
        "https://ossci-datasets.s3.amazonaws.com/mnist/t10k-labels-idx1-ubyte.gz or "
        "http://yann.lecun.com/exdb/mnist/t10k-labels-idx1-ubyte.gz"
    )


def test_idx_round_trip(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "plain").write_bytes(idx(array))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(array)))
    for name in ("plain", "packed.gz"):
        tensor = read_idx(tmp_path / name)
        assert tensor.dtype == torch.uint8
        assert np.array_equal(tensor.numpy(), array)
    assert parse_idx(idx(np.zeros((0, 3))), "empty").shape == (0, 3)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "f is not an IDX file: it starts with ''"),
        (b"<html>", "f is not an IDX file: it starts with '3c 68 74 6d'"),
        (b"\0\0\x0d\x01", "f is not an IDX file of unsigned bytes: type 0x0d, 1 dimensions"),
        (b"\0\0\x08\x00", "f is not an IDX file of unsigned bytes: type 0x08, 0 dimensions"),
        (idx([[1, 2]])[:11], "f is truncated: 11 bytes of an IDX header of 12"),
        (idx([[1, 2]])[:-1], "f is truncated: 13 bytes, 14 expected for (1, 2)"),
        (idx([[1, 2]]) + b"x", "f is too long: 15 bytes, 14 expected for (1, 2)"),
    ],
)
def test_what_is_not_idx_is_named(content, text):
    with pytest.raises(DataError) as caught:
        parse_idx(content, "f")
    assert one_line(caught) == text


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip",
        gzip.compress(b"x" * 99, mtime=0)[:-4],
        gzip.compress(b"x" * 99, mtime=0)[:10] + b"\xff" * 20,
    ],
)
def test_damaged_gzip_is_named(tmp_path, content):
    path = tmp_path / "f.gz"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_idx(path)
    assert one_line(caught).startswith(f"{path} is not a whole gzip file: ")


LABELS, WHITE = np.arange(10) % 5, np.full((10, 28, 28), 255)


def tiny_set(folder, base, *, labels=LABELS, images=WHITE):
    """A data set of that training part and four test images, served from `folder`."""
    arrays = (images, labels, np.zeros((4, 28, 28)), np.arange(4) % 3)
    files = []
    for name, array in zip(mnist.NAMES, arrays, strict=True):
        file, packed = published(name, idx(array), base)
        (folder / name).write_bytes(packed)
        files.append(file)
    return replace(mnist.FASHION_MNIST_SET, name="tiny", files=tuple(files))


def read(files, data_dir=None, limit=None, validation=0.5):
    wanted = mnist.IDXFiles(published=files, data_dir=data_dir, limit=limit, validation=validation)
    return wanted.load()


def test_files_are_downloaded_once_to_the_cache(site, home):
    folder, base = site
    files = tiny_set(folder, base)
    data = read(files)
    assert len(data.train) == len(data.validation) == 5
    assert data.test.targets.tolist() == [0, 1, 2, 0]
    torch.testing.assert_close(data.train.inputs, torch.full((5, 1, 28, 28), (1 - 0.286) / 0.353))
    cache = home / ".cache" / "offbeat" / "tiny"
    assert sorted(path.name for path in cache.iterdir()) == sorted(mnist.NAMES)
    for name in mnist.NAMES:
        (folder / name).unlink()
    assert len(read(files, limit=3).test) == 3


def test_a_label_outside_the_classes_is_named(site, tmp_path):
    labels = np.arange(10)
    labels[6] = 10
    files = tiny_set(*site, labels=labels)
    with pytest.raises(DataError) as caught:
        read(files, data_dir=str(tmp_path / "site"))
    assert one_line(caught) == (
        f"{tmp_path}/site/train-labels-idx1-ubyte.gz: record 6, counted from 0, has label 10; "
        "there are 10 classes, 0 to 9"
    )


@pytest.mark.parametrize("images", [np.zeros((9, 28, 28)), np.zeros((10, 28))])
def test_images_without_their_labels_are_named(site, tmp_path, images):
    files = tiny_set(*site, images=images)
    with pytest.raises(DataError, match=r"images-idx3-ubyte.gz of shape .* are not images and"):
        read(files, data_dir=str(tmp_path / "site"))


def test_a_problem_is_available_once_its_files_are_there(tmp_path, home):
    problem = FashionMNIST(data_dir=str(tmp_path))
    assert not problem.available()
    for name in mnist.NAMES[:3]:
        (tmp_path / name).touch()
    assert not problem.available()
    (tmp_path / "fashion-mnist").mkdir()
    (tmp_path / "fashion-mnist" / "t10k-labels-idx1-ubyte").touch()
    assert problem.available()
    assert not FashionMNIST().available()


@needs_fashion_mnist
def test_fashion_mnist_is_all_there():
    data = FashionMNIST(data_dir=str(REAL_DATA)).data()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [54000, 6000, 10000]
    counts = data.train.targets.bincount() + data.validation.targets.bincount()
    assert counts.tolist() == [6000] * 10
    assert data.test.targets.bincount().tolist() == [1000] * 10
    assert abs(data.train.inputs.mean()) < 1e-3
    assert abs(data.train.inputs.std() - 1) < 1e-3
    # The well-known beginning: an ankle boot in training, and one in the test part.
    assert data.test.targets[:5].tolist() == [9, 2, 1, 1, 6]


@pytest.mark.parametrize("problem", [MNIST, FashionMNIST])
def test_files_of_one_data_set_are_not_taken_for_the_other(problem, tmp_path, home):
    labels = gzip.compress(idx(np.zeros(4)))
    for name in mnist.NAMES:
        (tmp_path / name).write_bytes(labels)
    with pytest.raises(DataError, match="is truncated, corrupt or another file"):
        problem(data_dir=str(tmp_path)).data()
