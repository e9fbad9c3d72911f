import bz2
import gzip
import lzma
import math

import numpy as np
import pytest
import torch

from offbeat.problems import LIBSVM, DataError
from offbeat.problems.svmlight import pack, read_svmlight
from published import REAL_DATA, one_line

LINES = "-1 1:1 3:0.5 4:-2\n+1 2:3\n\n-1 # nothing is known\n+1 1:1e-1 4:2 # a note\n"


def written(tmp_path, content, name="f"):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "packing"), [("f", bytes), ("f.gz", gzip.compress), ("f.bz2", bz2.compress)]
)
def test_samples_are_pairs_of_index_and_value(tmp_path, name, packing):
    rows = read_svmlight(written(tmp_path, packing(LINES.encode()), name))
    assert rows.labels == (-1, 1)
    assert rows.features == 4
    split = pack(rows)
    assert split.targets.tolist() == [0, 1, 0, 1]
    expected = [
        [[0, 1], [2, 0.5], [3, -2]],
        [[1, 3], [1, 0], [1, 0]],
        [[0, 0], [0, 0], [0, 0]],
        [[0, 0.1], [3, 2], [3, 0]],
    ]
    torch.testing.assert_close(split.inputs, torch.tensor(expected))


def test_samples_without_any_feature_can_be_packed(tmp_path):
    split = pack(read_svmlight(written(tmp_path, "1\n2\n"), features=3))
    assert split.inputs.tolist() == [[[0, 0]], [[0, 0]]]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("1 1:1\n-1 x\n", "line 2: 'x' is no index:value"),
        ("1 1:1\n-1 1:x\n", "line 2: '1:x' is no index:value"),
        ("1 1:1\n\n# note\n-1 1:1 1:2\n", "line 4: index 1 is repeated: indices must increase"),
        ("1 2:1 1:2\n-1 1:1\n", "line 1: index 1 comes after 2: indices must increase"),
        ("1 0:1\n-1 1:1\n", "line 1: index 0 is below 1"),
        ("1 1:1\n-1 6:1\n", "line 2: index 6 is beyond the 5 features"),
        ("1 1:1\n-1 1:nan\n", "line 2: '1:nan' has no finite value"),
        ("1 1:1\nyes 1:1\n", "line 2: 'yes' is no label: a line starts with a number"),
        ("nan 1:1\n-1 1:1\n", "line 1: label nan is not finite"),
        ("1 1:1\n-1 1:1\n3 1:1\n", "line 3: label 3 is neither 1 nor -1: two classes are wanted"),
    ],
)
def test_faults_are_named_with_their_line(tmp_path, content, text):
    path = written(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_svmlight(path, features=5)
    assert one_line(caught) == f"{path}, {text}"


def test_an_index_that_a_float_cannot_hold_is_refused(tmp_path):
    path = written(tmp_path, "1 1:1\n-1 16777217:1\n")
    with pytest.raises(DataError, match=r"line 2: index 16777217 is beyond the 16777216 features"):
        read_svmlight(path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "f has no samples, and two classes are wanted"),
        ("1 1:1\n1 2:1\n", "f has one label only, 1, and two classes are wanted"),
    ],
)
def test_files_of_fewer_than_two_classes_are_named(tmp_path, content, text):
    with pytest.raises(DataError, match=text):
        read_svmlight(written(tmp_path, content))


def test_a_truncated_packed_file_and_a_missing_one_are_named(tmp_path):
    path = written(tmp_path, gzip.compress(LINES.encode())[:-9], "f.gz")
    with pytest.raises(DataError, match=r"f.gz cannot be read: Compressed file ended"):
        read_svmlight(path)
    with pytest.raises(DataError, match=r"there is no file .*/none"):
        read_svmlight(tmp_path / "none")


def test_the_test_file_has_the_classes_and_features_of_the_training_file(tmp_path):
    train = written(tmp_path, LINES * 4, "train")
    test = written(tmp_path, "+1 7:1\n", "test")
    problem = LIBSVM(train=str(train), test=str(test), validation=0.25)
    data = problem.data()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [12, 4, 1]
    assert data.test.targets.tolist() == [1]
    assert problem.model().weights.weight.shape == (7, 1)
    assert problem.available()
    with pytest.raises(DataError, match=r"test, line 1: index 7 is beyond the 4 features"):
        LIBSVM(train=str(train), test=str(test), features=4).data()
    other = written(tmp_path, "+1 1:1\n0 1:1\n", "other")
    with pytest.raises(DataError, match=r"other, line 2: label 0 is neither -1 nor 1"):
        LIBSVM(train=str(train), test=str(other)).data()


def test_without_a_test_file_a_fifth_is_held_out(tmp_path):
    train = written(tmp_path, LINES * 5)
    data = LIBSVM(train=str(train), validation=0.25).data()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [12, 4, 4]
    assert data.test.targets.tolist().count(1) == 2


def test_losses_are_those_of_logistic_regression_and_of_a_linear_svm():
    scores, targets = torch.tensor([2.0, -0.5, 0.25]), torch.tensor([1, 1, 0])
    logistic = LIBSVM().evaluate(scores, targets)
    margins = [2.0, -0.5, -0.25]
    assert logistic["accuracy"] == pytest.approx(1 / 3)
    assert logistic["loss"] == pytest.approx(sum(math.log1p(math.exp(-m)) for m in margins) / 3)
    hinge = LIBSVM(objective="hinge").evaluate(scores, targets)
    assert hinge["loss"] == pytest.approx((0 + 1.5 + 1.25) / 3)


def test_the_gradient_names_the_features_of_the_minibatch_only(tmp_path):
    problem = LIBSVM(train=str(written(tmp_path, LINES * 4)), validation=0.25)
    model = problem.model()
    train = problem.data().train
    place = train.inputs[:, 0].tolist().index([1, 3])  # +1 2:3
    batch = train.take(torch.tensor([place, place]))
    [gradient] = torch.autograd.grad(
        problem.loss(model(batch.inputs), batch.targets), list(model.parameters())
    )
    assert gradient.is_sparse
    gradient = gradient.coalesce()
    assert gradient.indices().tolist() == [[1]]
    torch.testing.assert_close(gradient.values(), torch.tensor([[-1.5]]))


def test_a_file_of_a_known_data_set_is_named_where_it_is_missing(tmp_path, home):
    (tmp_path / "a9a").write_text(LINES)
    assert not LIBSVM(data_dir=str(tmp_path)).available()
    with pytest.raises(DataError) as caught:
        LIBSVM(data_dir=str(tmp_path)).data()
    assert one_line(caught) == (
        f"libsvm is incomplete in {tmp_path} (nor in {tmp_path}/libsvm): get a9a.t from "
        "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary/a9a.t"
    )
    (tmp_path / "a9a.t").write_text(LINES)
    assert LIBSVM(data_dir=str(tmp_path)).available()
    assert LIBSVM(data_dir=str(tmp_path)).model().weights.weight.shape == (123, 1)


needs_libsvm = pytest.mark.skipif(
    not (REAL_DATA / "libsvm").is_dir(), reason="no LIBSVM files in ../shared/data"
)


@needs_libsvm
def test_logistic_regression_learns_a9a(tmp_path):
    for name in ("a9a", "a9a.t"):
        packed = (REAL_DATA / "libsvm" / f"{name}.xz").read_bytes()
        (tmp_path / name).write_bytes(lzma.decompress(packed))
    problem = LIBSVM(data_dir=str(tmp_path))
    data = problem.data()
    assert len(data.train) + len(data.validation) == 32_561
    assert int(data.train.targets.sum() + data.validation.targets.sum()) == 7_841
    assert (len(data.test), int(data.test.targets.sum())) == (16_281, 3_846)
    filled = sum(int((part.inputs[..., 1] != 0).sum()) for part in (data.train, data.validation))
    assert filled == 451_592
    model = problem.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(data.train)))
    for indices in order.split(64):
        batch = data.train.take(indices)
        optimizer.zero_grad()
        problem.loss(model(batch.inputs), batch.targets).backward()
        optimizer.step()
    accuracy = problem.evaluate(model(data.test.inputs), data.test.targets)["accuracy"]
    assert accuracy > 0.83  # 0.764 of them are of one class
