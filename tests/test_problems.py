import gzip
import hashlib
import http.server
import inspect
import struct
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from offbeat.problems import (
    MNIST,
    PROBLEMS,
    Batches,
    DataError,
    Digits,
    LeastSquares,
    Problem,
    Split,
    Supervised,
    mnist,
)
from offbeat.problems.fetch import PublishedFile, download, obtain
from offbeat.problems.holdout import hold_out
from offbeat.problems.idx import parse_idx, read_idx

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

needs_mnist = pytest.mark.skipif(
    not (REAL_DATA / "mnist").is_dir(), reason="no copy of MNIST in ../shared/data"
)


def small_supervised(**changes):
    inputs = torch.linspace(-1, 1, 40).reshape(20, 2)
    fields = {
        "model_factory": lambda: nn.Linear(2, 3),
        "train": Split(inputs, torch.arange(20) % 3),
        "test": Split(inputs[:5], torch.arange(5) % 3),
        "loss_function": F.cross_entropy,
        "batch_size": 4,
    }
    return Supervised(**(fields | changes))


def two_samples(problem):
    """Two inputs and targets of the shapes of `problem`, without reading MNIST."""
    if isinstance(problem, MNIST):
        return torch.randn(2, 1, 28, 28), torch.tensor([3, 7])
    train = problem.data().train
    return train.inputs[:2], train.targets[:2]


@pytest.mark.parametrize("problem", [Digits(), LeastSquares(), MNIST(), small_supervised()])
def test_many_gradients_at_once_equal_one_at_a_time(problem):
    torch.manual_seed(0)
    models = [problem.model() for _ in range(3)]
    inputs, targets = two_samples(problem)
    with torch.no_grad():
        for model in models:
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))

    def loss(parameters):
        outputs = torch.func.functional_call(models[0], parameters, (inputs,))
        return problem.loss(outputs, targets)

    stacked = {
        name: torch.stack([dict(model.named_parameters())[name].detach() for model in models])
        for name, _ in models[0].named_parameters()
    }
    together = torch.func.vmap(torch.func.grad(loss))(stacked)
    for k, model in enumerate(models):
        problem.loss(model(inputs), targets).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(together[name][k], parameter.grad)


@pytest.mark.parametrize("problem", [Digits(), LeastSquares(), MNIST(), small_supervised()])
def test_the_seed_of_torch_decides_the_start(problem):
    def start():
        torch.manual_seed(7)
        return nn.utils.parameters_to_vector(problem.model().parameters())

    assert torch.equal(start(), start())


def test_problems_can_be_built_by_name_and_fields():
    assert set(PROBLEMS) == {"Digits", "LeastSquares", "MNIST"}
    for problem in PROBLEMS.values():
        assert issubclass(problem, Problem)
        assert problem() == problem()
        assert hash(problem()) == hash(problem())
        fields = inspect.signature(problem).parameters
        assert problem(batch_size=3).batch_size == 3
        assert all(field.kind is field.KEYWORD_ONLY for field in fields.values())


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Digits(batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda: Digits(hidden=0), "hidden must be at least 1, not 0"),
        (lambda: Digits(validation=0.0), "validation must be a fraction .* not 0.0"),
        (lambda: MNIST(validation=1.0), "validation must be a fraction .* not 1.0"),
        (lambda: MNIST(batch_size=-1), "batch_size must be at least 1, not -1"),
        (lambda: MNIST(limit=1), "limit must be at least 2 or None, not 1"),
        (lambda: small_supervised(batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda: small_supervised(validation=2.0), "validation must be a fraction .* not 2.0"),
        (lambda: LeastSquares(batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda: LeastSquares(dimension=0), "dimension and samples .* not 0 and 200"),
        (lambda: LeastSquares(samples=0), "dimension and samples .* not 20 and 0"),
        (lambda: LeastSquares(condition=0.5), "condition must be at least 1 .* not 0.5"),
        (lambda: LeastSquares(condition=float("nan")), "condition must be .* not nan"),
        (lambda: LeastSquares(dimension=1), "set condition to 1, not 10.0"),
        (lambda: LeastSquares(noise=-1.0), "noise must be finite and not negative, not -1.0"),
        (lambda: LeastSquares(seed=-1), "seed must not be negative, not -1"),
        (lambda: Split(torch.zeros(2), torch.zeros(3)), "2 inputs, 3 targets"),
        (lambda: hold_out(Split(torch.zeros(1), torch.zeros(1)), 0.5), "two samples .* not of 1"),
    ],
)
def test_fields_out_of_range(build, text):
    with pytest.raises(ValueError, match=text):
        build()


SHAPES = st.tuples(st.integers(2, 12), st.integers(2, 12))


def exact(shape, condition, noise, seed=0):
    dimension, samples = shape
    return LeastSquares(
        dimension=dimension,
        samples=samples,
        condition=condition,
        noise=noise,
        seed=seed,
        batch_size=1,
        double=True,
    )


def loss_and_gradient(problem, x):
    train = problem.data().train
    model = problem.model()
    with torch.no_grad():
        model.weight.copy_(x)
    loss = problem.loss(model(train.inputs), train.targets)
    loss.backward()
    return loss.item(), model.weight.grad


@settings(deadline=None)
@given(shape=SHAPES, condition=st.floats(1, 1e4), noise=st.sampled_from([0.0, 0.5]))
def test_the_hessian_has_the_spectrum_that_was_asked_for(shape, condition, noise):
    A = exact(shape, condition, noise).data().train.inputs
    rank = min(shape)
    hessian = A.T @ A / len(A)
    eigenvalues = torch.linalg.eigvalsh(hessian).flip(0)
    expected = torch.logspace(0, -np.log10(condition), rank, dtype=torch.float64)
    torch.testing.assert_close(eigenvalues[:rank], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        eigenvalues[rank:], torch.zeros_like(eigenvalues[rank:]), rtol=0, atol=1e-12
    )


@settings(deadline=None)
@given(
    shape=SHAPES,
    condition=st.floats(1, 1e3),
    noise=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 5),
)
def test_the_optimum_is_where_the_gradient_vanishes(shape, condition, noise, seed):
    problem = exact(shape, condition, noise, seed)
    optimum = problem.optimum()
    assert optimum.shape == (shape[0],)
    loss, gradient = loss_and_gradient(problem, optimum)
    assert gradient.abs().max() < 1e-10
    assert loss == pytest.approx(problem.minimum(), abs=1e-14)
    nearby, _ = loss_and_gradient(problem, optimum + 0.1)
    assert nearby >= loss
    if noise == 0 or shape[0] >= shape[1]:
        assert problem.minimum() < 1e-20
    # Of all minimizers the one of least norm, which has no part in the null space of A.
    A = problem.data().train.inputs
    torch.testing.assert_close(torch.linalg.pinv(A) @ (A @ optimum), optimum, rtol=0, atol=1e-9)


def test_noise_lifts_the_minimum_to_its_expectation():
    # The residual is the noise's part outside the column space of A: noise^2 (N - d) / (2 N).
    problem = LeastSquares(dimension=50, samples=4000, noise=0.3, double=True)
    assert problem.minimum() == pytest.approx(0.5 * 0.3**2 * (1 - 50 / 4000), rel=0.1)


@pytest.mark.parametrize("shape", [(5, 30), (30, 5)])
def test_gradient_descent_from_the_start_reaches_the_optimum(shape):
    problem = exact(shape, condition=5.0, noise=0.1)
    train = problem.data().train
    model = problem.model()
    assert [name for name, _ in model.named_parameters()] == ["weight"]
    assert not model.weight.any()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        problem.loss(model(train.inputs), train.targets).backward()
        optimizer.step()
    torch.testing.assert_close(model.weight.detach(), problem.optimum())
    metrics = problem.evaluate(model(train.inputs), train.targets)
    assert metrics == {"loss": pytest.approx(problem.minimum(), abs=1e-15)}


def test_least_squares_is_float32_unless_asked_and_its_optimum_cannot_be_spoilt():
    problem = LeastSquares()
    data = problem.data()
    assert data.train is data.validation is data.test
    assert data.train.inputs.shape == (200, 20)
    assert data.train.targets.shape == (200,)
    for tensor in (data.train.inputs, data.train.targets, problem.optimum()):
        assert tensor.dtype == torch.float32
    assert next(problem.model().parameters()).dtype == torch.float32
    before = problem.optimum().clone()
    problem.optimum().zero_()
    assert torch.equal(problem.optimum(), before)


def test_equal_problems_share_their_data_and_seeds_change_it():
    assert LeastSquares().data().train is LeastSquares().data().train
    other = LeastSquares(seed=1).data().train.inputs
    assert not torch.equal(LeastSquares().data().train.inputs, other)
    assert Digits().data() is Digits(batch_size=3).data()


@settings(deadline=None)
@given(
    targets=st.lists(st.integers(0, 4), min_size=2, max_size=80),
    fraction=st.floats(0.01, 0.99),
)
def test_held_out_parts_are_disjoint_stable_and_stratified(targets, fraction):
    whole = Split(torch.arange(len(targets)), torch.tensor(targets))
    kept, held = hold_out(whole, fraction)
    again, _ = hold_out(whole, fraction)
    assert torch.equal(kept.inputs, again.inputs)
    assert sorted(kept.inputs.tolist() + held.inputs.tolist()) == list(range(len(targets)))
    for part in (kept, held):
        assert len(part) >= 1
        assert part.inputs.tolist() == sorted(part.inputs.tolist())
        assert torch.equal(part.targets, whole.targets[part.inputs])
    share = len(held) / len(targets)
    assert abs(share - fraction) <= 1 / len(targets)
    for label in set(targets):
        expected = targets.count(label) * share
        assert abs((held.targets == label).sum().item() - expected) <= 1


def test_what_has_no_classes_is_held_out_at_even_distances():
    split = Split(torch.arange(10), torch.linspace(5, 3, 10))
    assert hold_out(split, 0.2)[1].inputs.tolist() == [2, 7]


def test_digits_parts_hold_every_image_once_and_every_class_alike():
    data = Digits().data()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1150, 288, 359]
    inputs = torch.cat([data.train.inputs, data.validation.inputs, data.test.inputs])
    targets = torch.cat([data.train.targets, data.validation.targets, data.test.targets])
    assert inputs.dtype == torch.float32
    assert inputs.min() == 0
    assert inputs.max() == 1
    assert len(inputs.unique(dim=0)) == 1797
    assert targets.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert set(data.test.targets.bincount().tolist()) <= {35, 36, 37}


def test_the_test_part_does_not_depend_on_the_validation_part():
    assert torch.equal(Digits().data().test.inputs, Digits(validation=0.5).data().test.inputs)
    assert len(Digits(validation=0.5).data().validation) == 719


def test_digits_are_learnt_by_plain_sgd():
    problem = Digits(hidden=32, batch_size=16)
    data = problem.data()
    torch.manual_seed(0)
    model = problem.model()
    assert sum(parameter.numel() for parameter in model.parameters()) == 65 * 32 + 33 * 10
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    batches = Batches(torch.arange(len(data.train)), problem.batch_size, seed=0, rank=0)
    for step in range(10 * batches.per_epoch):
        minibatch = data.train.take(batches.indices(step))
        optimizer.zero_grad()
        problem.loss(model(minibatch.inputs), minibatch.targets).backward()
        optimizer.step()
    metrics = problem.evaluate(model(data.test.inputs), data.test.targets)
    assert metrics["accuracy"] > 0.93
    assert metrics["loss"] < 0.25


def test_classifiers_report_mean_loss_and_accuracy():
    outputs = torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 0.0], [3.0, 0.0]])
    targets = torch.tensor([1, 0, 0, 0])
    near, far = np.log1p(np.exp(-1)), np.log1p(np.exp(1))
    loss = pytest.approx((near + far + 2 * np.log1p(np.exp(-3))) / 4)
    assert Digits().evaluate(outputs, targets) == {"loss": loss, "accuracy": 0.75}


def test_supervised_uses_what_it_was_given():
    problem = small_supervised(validation=0.25)
    data = problem.data()
    assert data.test is problem.test
    assert (len(data.train), len(data.validation)) == (15, 5)
    assert problem.data() is data
    assert isinstance(problem.model(), nn.Linear)
    outputs = torch.eye(3)
    metrics = problem.evaluate(outputs, torch.tensor([0, 1, 1]))
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["loss"] == pytest.approx(F.cross_entropy(outputs, torch.tensor([0, 1, 1])))


def test_supervised_regression_has_no_accuracy():
    split = Split(torch.zeros(10, 2), torch.linspace(0, 1, 10).reshape(10, 1))
    problem = small_supervised(train=split, test=split, loss_function=F.mse_loss)
    assert problem.evaluate(torch.zeros(2, 1), torch.ones(2, 1)) == {"loss": 1.0}


def test_lenet5_has_the_published_size():
    model = MNIST().model()
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.ndim > 1]
    assert sizes == [6 * 25, 16 * 6 * 25, 400 * 120, 120 * 84, 84 * 10]
    assert sum(parameter.numel() for parameter in model.parameters()) == 61_706
    assert model(torch.zeros(3, 1, 28, 28)).shape == (3, 10)


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
    data = mnist.read(None, limit=100, validation=0.2)
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


def one_line(caught):
    text = str(caught.value)
    assert "\n" not in text
    return text


def idx(array):
    array = np.asarray(array, dtype=np.uint8)
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def published(name, content, base="http://127.0.0.1:9/"):
    packed = gzip.compress(content, mtime=0)
    file = PublishedFile(
        name=name,
        urls=(base + name,),
        sha256=sha256(packed),
        unpacked_sha256=sha256(content),
    )
    return file, packed


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder of its own, and no folder named by the environment."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OFFBEAT_DATA", raising=False)
    return tmp_path / "home"


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def site(tmp_path, home):
    """A folder and the address at which it is served."""
    folder = tmp_path / "site"
    folder.mkdir()
    handler = partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


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


def test_mnist_is_downloaded_once_to_the_cache(site, home):
    folder, base = site
    names = [file.name for file in mnist.FILES]
    labels, test_labels = np.arange(10) % 5, np.arange(4) % 3
    images, test_images = np.full((10, 28, 28), 255), np.zeros((4, 28, 28))
    files = []
    for name, array in zip(names, (images, labels, test_images, test_labels), strict=True):
        file, packed = published(name, idx(array), base)
        (folder / name).write_bytes(packed)
        files.append(file)
    data = mnist.read(None, limit=None, validation=0.5, files=files)
    assert len(data.train) == len(data.validation) == 5
    assert data.test.targets.tolist() == test_labels.tolist()
    torch.testing.assert_close(data.train.inputs, torch.full((5, 1, 28, 28), (1 - 0.1307) / 0.3081))
    cache = home / ".cache" / "offbeat" / "mnist"
    assert sorted(path.name for path in cache.iterdir()) == sorted(names)
    for name in names:
        (folder / name).unlink()
    assert len(mnist.read(None, limit=3, validation=0.5, files=files).test) == 3


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
