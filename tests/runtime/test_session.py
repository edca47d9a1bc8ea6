"""The session: shapes, types, pieces, threads, structure, and what it needs to be there."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

from bnnconvert.artifact.schema import Artifact
from bnnconvert.artifact.writer import write
from bnnconvert.errors import UsageError, VerificationError
from bnnconvert.runtime import Session, native
from tests.sessions import complete, draft
from tests.students import Block, conv, linear, trace


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return trace(Block())


@pytest.fixture(scope="module")
def session(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("session") / "net.packed.safetensors"
    write(complete(student, torch.randn(2, 3, 8, 8)), path)
    return Session(path)


@pytest.mark.parametrize("samples", [1, 2, 17, 300])
def test_any_number_of_samples(session, student, samples):
    x = torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(samples))
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(session.run(x.numpy())), student(x))


def test_no_samples(session):
    y = session.run(np.zeros((0, 3, 8, 8), np.float32))
    assert y.shape == (0, 5)
    assert y.dtype == np.float32


def test_pieces_do_not_show(student):
    artifact = draft(student, torch.randn(2, 3, 8, 8))
    x = np.random.default_rng(0).standard_normal((23, 3, 8, 8), np.float32)
    whole, pieces = Session(artifact), Session(artifact)
    pieces._chunk = 5
    np.testing.assert_allclose(pieces.run(x), whole.run(x), rtol=1e-5, atol=1e-5)


def test_inputs_of_any_layout(session):
    x = np.random.default_rng(0).standard_normal((3, 8, 8, 3), np.float32).transpose(0, 3, 1, 2)
    assert np.array_equal(session.run(x), session.run(np.ascontiguousarray(x)))
    frozen = np.ascontiguousarray(x)
    frozen.flags.writeable = False
    assert np.array_equal(session.run(frozen), session.run(x))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((1, 3, 8, 8)), "float64 and must be float32"),
        (np.zeros((1, 3, 8, 8), np.uint8), "uint8 and must be float32"),
        (np.zeros((3, 8, 8), np.float32), r"must have shape \(N, 3, 8, 8\)"),
        (np.zeros((1, 3, 8, 9), np.float32), r"must have shape \(N, 3, 8, 8\)"),
        (np.float32(1), "must have shape"),
    ],
)
def test_wrong_inputs_are_named(session, x, words):
    with pytest.raises(UsageError, match=words):
        session.run(x)


def test_what_it_says_about_itself(session):
    assert session.input_shape == (1, 3, 8, 8)
    assert session.recipe == "tests"
    assert session.metadata.normalisation is None


def test_trace_holds_every_value(session):
    values = session.trace(np.zeros((2, 3, 8, 8), np.float32))
    assert set(values) == set(session.program.specs())
    for name, spec in session.program.specs().items():
        assert values[name].shape == spec.sized(2)
        assert values[name].dtype.name == spec.dtype


def test_torch_gets_its_threads_back(student):
    before = torch.get_num_threads()
    session = Session(draft(student, torch.randn(2, 3, 8, 8)), threads=before + 1)
    session.run(np.zeros((1, 3, 8, 8), np.float32))
    assert torch.get_num_threads() == before
    with pytest.raises(UsageError, match="at least 1"):
        Session(session.artifact, threads=0)


def test_several_threads_may_share_a_session(session):
    inputs = np.random.default_rng(0).standard_normal((4, 6, 3, 8, 8), np.float32)
    results: list[np.ndarray | None] = [None] * len(inputs)

    def work(number: int) -> None:
        results[number] = session.run(inputs[number])

    workers = [threading.Thread(target=work, args=(n,)) for n in range(len(inputs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for x, y in zip(inputs, results, strict=True):
        assert y is not None
        assert np.array_equal(y, session.run(x))


def test_golden_pair_holds_and_a_wrong_one_is_noticed(session):
    assert session.golden_difference() == 0
    a = session.artifact
    wrong = Artifact(a.program, a.tensors, a.metadata, a.golden_inputs, (a.golden_outputs[0] + 0.5,))
    with pytest.raises(VerificationError, match=r"differs by 0\.5|is 0\.5 off"):
        Session(wrong).golden_difference()
    nan = Artifact(a.program, a.tensors, a.metadata, a.golden_inputs, (a.golden_outputs[0] * np.nan,))
    with pytest.raises(VerificationError):
        Session(nan).golden_difference()


def test_numbers_that_are_not_finite_pass_through(session, student):
    x = torch.randn(3, 3, 8, 8)
    x[0, 0, 0, 0], x[1, 1, 2, 3], x[2, 2, 7, 7] = float("nan"), float("inf"), -float("inf")
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(session.run(x.numpy())), student(x), equal_nan=True)


def fresh(code: str, *arguments: str) -> str:
    return subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True).stdout


def test_importing_the_runtime_does_not_import_torch():
    assert fresh("import sys, bnnconvert.runtime; print('torch' in sys.modules)") == "False\n"


def test_a_program_of_binary_layers_alone_runs_without_torch(tmp_path):
    path = tmp_path / "binary.packed.safetensors"
    student = trace(nn.Sequential(conv(3, 4, padding=1), nn.BatchNorm2d(4), conv(4, 6, padding=1)))
    artifact = complete(student, torch.randn(2, 3, 5, 5))
    write(artifact, path)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from bnnconvert.runtime import Session\n"
        "print(Session(sys.argv[1]).golden_difference())"
    )
    assert fresh(code, str(path)) == "0.0\n"


def test_missing_torch_is_named_when_the_file_is_opened(session):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from bnnconvert.runtime import Session\n"
        "from bnnconvert.errors import UsageError\n"
        "try: Session(sys.argv[1], engine='portable')\n"
        "except UsageError as error: print(error)"
    )
    assert "install it" in fresh(code, session.path)


@pytest.mark.skipif(native.library() is None, reason="installed without the native engine")
def test_the_engine_runs_a_whole_network_without_torch(session):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from bnnconvert.runtime import Session\n"
        "print(Session(sys.argv[1]).golden_difference() < 1e-3)"
    )
    assert fresh(code, session.path).strip() == "True"


def test_a_weight_only_network(tmp_path):
    student = trace(
        nn.Sequential(conv(3, 4, inputs="none", padding=1), nn.ReLU(), nn.Flatten(), linear(100, 3, inputs="none"))
    )
    x = torch.randn(4, 3, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(Session(draft(student, x)).run(x.numpy())), student(x))
