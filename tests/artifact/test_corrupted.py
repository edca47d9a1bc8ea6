"""Every way in which a file can break FORMAT.md, made by damaging a good one. Each is named, none crashes."""

import hashlib
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bnnconvert.artifact.reader import from_bytes
from bnnconvert.artifact.writer import to_bytes
from bnnconvert.binarizers import build_weight_binarizer
from bnnconvert.errors import ArtifactError
from bnnconvert.estimators.clip import Clip
from bnnconvert.layers.attention import Attention, BinaryAttention
from bnnconvert.layers.embedding import BinaryEmbedding
from bnnconvert.lower.predictors import calibrate, with_predictors
from bnnconvert.runtime import Session
from bnnconvert.values.recipe import Named
from tests.sessions import complete
from tests.students import Block, trace


@pytest.fixture(scope="module")
def good() -> bytes:
    torch.manual_seed(0)
    return to_bytes(complete(trace(Block()), torch.randn(2, 3, 8, 8)))


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header: dict[str, Any] | bytes, data: bytes, *, sign: bool = True) -> bytes:
    """A file again, with a hash that fits what it now says, so that the damage itself must be found."""
    if isinstance(header, dict):
        if sign and "__metadata__" in header:
            header["__metadata__"]["sha256"] = "0" * 64
        header = json.dumps(header, separators=(",", ":")).encode()
    content = len(header).to_bytes(8, "little") + header + data
    if not sign:
        return content
    return content.replace(b'"sha256":"' + b"0" * 64, b'"sha256":"' + hashlib.sha256(content).hexdigest().encode())


def reject(content: bytes, *words: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        from_bytes(content, "net.packed.safetensors")
    message = str(caught.value)
    assert message.startswith("net.packed.safetensors")
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_the_good_file_is_good(good):
    header, data = split(good)
    from_bytes(good, "good")
    from_bytes(join(header, data), "written by somebody else")


def test_every_truncation(good):
    for size in [*range(200), *range(200, len(good), 97), len(good) - 1]:
        reject(good[:size])
    reject(good[:-1], "truncated")
    reject(good[:100], "truncated")


def test_every_flipped_bit(good):
    """Some bit of every byte of a file."""
    generator = random.Random(0)
    for at in range(0, len(good), 1 if len(good) < 4000 else 3):
        damaged = bytearray(good)
        damaged[at] ^= 1 << generator.randrange(8)
        reject(bytes(damaged))


def test_a_flipped_weight_is_called_damage(good):
    reject(good[:-3] + bytes([good[-3] ^ 1]) + good[-2:], "SHA-256", "damaged")


def test_trailing_bytes(good):
    reject(good + b"\0", "1 bytes follow")


def test_other_files():
    reject(b"", "not a packed model")
    reject(b"PK\3\4" + bytes(500), "not a packed model")
    reject(b"\x89PNG\r\n\x1a\n" + bytes(500), "not a packed model")
    reject(
        join({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "safetensors file but not a packed model",
    )
    reject(join({"__metadata__": {"format": "pt"}}, b""), "not a packed model")
    reject(join(b"[1, 2]", b""), "not a JSON object")
    reject(join(b'{"a": "\xff"}', b""), "UTF-8")
    reject(join(b'{"a": }', b""), "JSON")


def test_huge_and_deep_headers(good):
    _, data = split(good)
    reject((2**63).to_bytes(8, "little") + good[8:], "claims")
    reject((2**26 + 1).to_bytes(8, "little") + good[8:], "claims")
    reject(join(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", data), "deep")
    reject(join(b'{"a":' + b"9" * 100_000 + b"}", data), "JSON")
    reject(join(b'{"a":NaN}', data), "NaN")


def test_repeated_keys(good):
    header, data = split(good)
    text = json.dumps(header)
    reject(join(text.replace('"fc2.bias":', '"fc2.weight":', 1).encode(), data), "twice")
    program = header["__metadata__"]["program"]
    header["__metadata__"]["program"] = program.replace('"op":', '"op":"aten.relu.default","op":', 1)
    reject(join(header, data), "program", "twice")


def tensor(header: dict[str, Any]) -> dict[str, Any]:
    return header["fc2.weight"]


HEADERS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown dtype": (lambda h: tensor(h).update(dtype="F8_E4M3"), "unknown dtype"),
    "dtype is a list": (lambda h: tensor(h).update(dtype=["F32"]), "unknown dtype"),
    "another width": (lambda h: tensor(h).update(dtype="F64"), "does not fill"),
    "negative size": (lambda h: tensor(h).update(shape=[-5, -16]), "not a list of sizes"),
    "fractional size": (lambda h: tensor(h).update(shape=[5.0, 16]), "not a list of sizes"),
    "boolean size": (lambda h: tensor(h).update(shape=[True, 80]), "not a list of sizes"),
    "huge size": (lambda h: tensor(h).update(shape=[2**62, 2**62]), "does not fill"),
    "many axes": (lambda h: tensor(h).update(shape=[1] * 17), "not a list of sizes"),
    "reversed offsets": (lambda h: tensor(h)["data_offsets"].reverse(), "beginning and an end"),
    "three offsets": (lambda h: tensor(h)["data_offsets"].append(0), "beginning and an end"),
    "unknown field": (lambda h: tensor(h).update(stride=[1]), "nothing else"),
    "missing field": (lambda h: tensor(h).pop("shape"), "nothing else"),
    "no table": (lambda h: h.update({"fc2.weight": 3}), "nothing else"),
    "number as metadata": (lambda h: h["__metadata__"].update(recipe=3), "not a string"),
    "no version": (lambda h: h["__metadata__"].pop("format_version"), "format_version"),
    "odd version": (lambda h: h["__metadata__"].update(format_version="one"), "format_version"),
    "newer version": (lambda h: h["__metadata__"].update(format_version="2.0"), "version 2.0"),
    "no producer": (lambda h: h["__metadata__"].pop("producer"), "'producer' is missing"),
    "no program": (lambda h: h["__metadata__"].pop("program"), "'program' is missing"),
    "metrics are text": (lambda h: h["__metadata__"].update(metrics='{"accuracy": "good"}'), "metrics"),
    "metrics are not JSON": (lambda h: h["__metadata__"].update(metrics="{"), "metrics"),
    "std of zero": (
        lambda h: h["__metadata__"].update(normalisation='{"scale":"uint8","mean":[0.0],"std":[0.0]}'),
        "std",
    ),
    "mean without std": (
        lambda h: h["__metadata__"].update(normalisation='{"scale":"uint8","mean":[0.0],"std":[]}'),
        "lengths",
    ),
    "a later minor version": (lambda h: h["__metadata__"].update(format_version="1.7", novelty="x"), ""),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(good, name):
    damage, word = HEADERS[name]
    header, data = split(good)
    damage(header)
    if word:
        reject(join(header, data), word)
    else:
        from_bytes(join(header, data), "newer but readable")


@pytest.mark.parametrize("digits", [None, "", "0" * 63, "A" * 64])
def test_no_hash(good, digits):
    header, data = split(good)
    del header["__metadata__"]["sha256"]
    header["__metadata__"] |= {} if digits is None else {"sha256": digits}
    reject(join(header, data, sign=False), "'sha256' is missing")


def test_spans(good):
    header, data = split(good)
    names = sorted((n for n in header if n != "__metadata__"), key=lambda n: header[n]["data_offsets"])
    first = header[names[0]]["data_offsets"][1]
    for shift, word in ((4, "hole"), (-4, "overlaps")):
        moved = json.loads(json.dumps(header))
        for name in names[1:]:
            moved[name]["data_offsets"] = [v + shift for v in header[name]["data_offsets"]]
        reject(join(moved, data + bytes(max(shift, 0))), word)
    assert first > 4


def test_the_hash_must_stand_alone(good):
    header, data = split(good)
    signed = join(header, data)
    digits = split(signed)[0]["__metadata__"]["sha256"]
    header["__metadata__"] |= {"recipe_text": digits, "sha256": digits}
    reject(join(header, data, sign=False), "exactly once")


Json = dict[str, Any]


def node(program: Json, op: str) -> Json:
    return next(n for n in program["nodes"] if n["op"] == op)


def arguments(program: Json, op: str, **changes: Any) -> None:
    node(program, op)["arguments"].update(changes)


def output(program: Json, op: str, **changes: Any) -> None:
    node(program, op)["outputs"][0].update(changes)


CONV, ENCODE, LINEAR, AFFINE = (
    "bnnconvert.binary_conv2d",
    "bnnconvert.encode",
    "bnnconvert.binary_linear",
    "bnnconvert.affine",
)
RELATED = "aten.batch_norm.default"

PROGRAMS: dict[str, tuple[Callable[[Json], object], str]] = {
    "unknown operator": (lambda p: node(p, CONV).update(op="aten.system.default"), "known: aten."),
    "unknown key": (lambda p: node(p, CONV).update(code="import os"), "code"),
    "node without outputs": (lambda p: node(p, CONV).update(outputs=[]), "outputs"),
    "undefined value": (lambda p: arguments(p, CONV, bits={"value": "nowhere"}), "'nowhere'"),
    "cycle": (lambda p: arguments(p, ENCODE, x={"value": p["nodes"][-1]["outputs"][0]["name"]}), "no earlier node"),
    "own output": (
        lambda p: arguments(p, ENCODE, x={"value": node(p, ENCODE)["outputs"][0]["name"]}),
        "no earlier node",
    ),
    "value defined twice": (lambda p: output(p, CONV, name=p["inputs"][0]["name"]), "twice"),
    "missing tensor": (lambda p: arguments(p, CONV, weight={"tensor": "gone"}), "'gone'"),
    "golden tensor as weight": (lambda p: arguments(p, RELATED, weight={"tensor": "golden:input"}), "golden"),
    "unused tensor": (lambda p: arguments(p, RELATED, weight=None), "read by no node"),
    "unknown argument": (lambda p: arguments(p, CONV, extra=1), "'extra'"),
    "missing argument": (lambda p: node(p, CONV)["arguments"].pop("stride"), "'stride'"),
    "wrong argument type": (lambda p: arguments(p, CONV, groups="1"), "'groups'"),
    "boolean for a number": (lambda p: arguments(p, CONV, groups=True), "'groups'"),
    "value for a weight": (lambda p: arguments(p, CONV, weight=node(p, CONV)["arguments"]["bits"]), "stored tensor"),
    "tensor for a value": (lambda p: arguments(p, CONV, bits={"tensor": "fc2.bias"}), "must be a value"),
    "float weight": (lambda p: arguments(p, CONV, weight={"tensor": "fc2.weight"}), "must be uint8"),
    "row length": (lambda p: arguments(p, CONV, kernel=[3, 30]), "rows of"),
    "no stride": (lambda p: arguments(p, CONV, stride=[0, 1]), "'stride'"),
    "one stride": (lambda p: arguments(p, CONV, stride=[1]), "'stride'"),
    "negative padding": (lambda p: arguments(p, CONV, padding=[-1, 1]), "'padding'"),
    "huge padding": (lambda p: arguments(p, CONV, padding=[2**20, 1]), "'padding'"),
    "huge windows": (lambda p: arguments(p, CONV, padding=[60000, 60000]), "windows"),
    "kernel larger than the image": (lambda p: arguments(p, CONV, dilation=[9, 9]), "does not fit"),
    "zero groups": (lambda p: arguments(p, CONV, groups=0), "'groups'"),
    "odd groups": (lambda p: arguments(p, CONV, groups=3), "divide"),
    "odd channels": (lambda p: arguments(p, CONV, in_channels=3), ""),
    "unknown padding": (lambda p: arguments(p, CONV, pad_bit="two"), "pad_bit"),
    "float bits": (lambda p: arguments(p, CONV, bits={"value": p["inputs"][0]["name"]}), "must be bool"),
    "wrong output shape": (lambda p: output(p, CONV, shape=[{"batch": 1}, 12, 9, 9]), "declares"),
    "wrong output type": (lambda p: output(p, CONV, dtype="float32"), "declares"),
    "two outputs": (
        lambda p: node(p, CONV)["outputs"].append({"name": "more", "dtype": "int32", "shape": []}),
        "declares",
    ),
    "features": (lambda p: arguments(p, LINEAR, in_features=33), ""),
    "thresholds of another type": (
        lambda p: arguments(p, ENCODE, thresholds={"tensor": "conv2.thresholds.thresholds"}),
        "must be float32",
    ),
    "thresholds of another size": (
        lambda p: arguments(p, ENCODE, start={"tensor": "conv2.thresholds.start"}),
        "do not fit",
    ),
    "affine axis": (lambda p: arguments(p, AFFINE, axis=0), "axis"),
    "affine scale": (lambda p: arguments(p, AFFINE, scale={"tensor": "fc2.weight"}, bias=None), "does not fit"),
    "affine bias": (lambda p: arguments(p, AFFINE, bias={"tensor": "fc2.bias"}), "bias"),
    "huge value": (lambda p: output(p, RELATED, shape=[{"batch": 1}, 2**30, 2**30]), "elements"),
    "negative size": (lambda p: output(p, RELATED, shape=[-1, 8]), "shape"),
    "no batch multiple": (lambda p: output(p, RELATED, shape=[{"batch": 0}, 8]), "shape"),
    "unknown element type": (lambda p: output(p, RELATED, dtype="complex64"), "dtype"),
    "training": (lambda p: arguments(p, RELATED, training=True), "'training'"),
    "no input": (lambda p: p["inputs"].clear(), "inputs"),
    "input without golden": (lambda p: p["inputs"].append(p["inputs"][0] | {"name": "z"}), "golden:input:1"),
    "two inputs of one name": (lambda p: p["inputs"].append(p["inputs"][0]), "defined twice"),
    "second input without batch": (lambda p: p["inputs"].append(p["inputs"][0] | {"name": "z", "shape": [1]}), "'z'"),
    "input without batch": (lambda p: p["inputs"][0].update(shape=[1, 3, 8, 8]), "samples"),
    "output nowhere": (lambda p: p["output"].update(value="nowhere"), "'nowhere'"),
    "output of no kind": (lambda p: p["output"].update(kind="set"), "kind"),
    "output without value": (lambda p: p["output"].pop("value"), "names a value"),
    "output with keys": (lambda p: p["output"].update(keys=["a"]), "key"),
    "output without batch": (lambda p: output(p, "aten.linear.default", shape=[2, 5]), "samples"),
    "no nodes": (lambda p: p.pop("nodes"), "nodes"),
    "missing golden output": (
        lambda p: p.update(output={"kind": "tuple", "items": [p["output"], p["output"]]}),
        "golden:output:1",
    ),
    "needless golden output": (lambda p: p.update(output={"kind": "none"}), "golden:output:0"),
    "golden of another shape": (
        lambda p: p["output"].update(value=node(p, RELATED)["outputs"][0]["name"]),
        "golden:output:0",
    ),
}


def reject_program(content: bytes, damage: Callable[[Json], object], word: str) -> None:
    """The file is rejected, and told why, once its program is damaged."""
    header, data = split(content)
    program = json.loads(header["__metadata__"]["program"])
    damage(program)
    header["__metadata__"]["program"] = json.dumps(program)
    reject(join(header, data), word)


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(good, name):
    damage, word = PROGRAMS[name]
    reject_program(good, damage, word)


MASKED, PRODUCT = "bnnconvert.masked_conv2d", "bnnconvert.masked_linear"
PREDICTED: dict[str, tuple[Callable[[Json], object], str]] = {
    "mask of another shape": (
        lambda p: arguments(p, MASKED, mask={"value": node(p, ENCODE)["outputs"][0]["name"]}),
        "a mask of",
    ),
    "mask of numbers": (lambda p: arguments(p, MASKED, mask=node(p, MASKED)["arguments"]["x"]), "must be bool"),
    "weight of bits": (lambda p: arguments(p, MASKED, weight={"tensor": "0.predictor.dot.weight"}), "must be float32"),
    "weight of another size": (lambda p: arguments(p, MASKED, groups=3), "does not fit a weight"),
    "bias of another size": (lambda p: arguments(p, MASKED, bias={"tensor": "3.map.bias"}), "5 biases"),
    "no bias": (lambda p: arguments(p, MASKED, bias=None), "'bias'"),
    "product of images": (
        lambda p: arguments(p, PRODUCT, x=node(p, MASKED)["arguments"]["x"]),
        "does not fit a weight",
    ),
    "huge windows": (lambda p: arguments(p, MASKED, padding=[60000, 60000]), "windows"),
    "declared type": (lambda p: output(p, MASKED, dtype="int32"), "declares"),
}


@pytest.mark.parametrize("name", PREDICTED)
def test_masked_products(name):
    torch.manual_seed(0)
    student = trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5), nn.ReLU()))
    x = torch.randn(2, 3, 8, 8)
    content = to_bytes(complete(with_predictors(student, calibrate(student, {"0": 0.1, "3": 0.1}, [x])), x))
    damage, word = PREDICTED[name]
    reject_program(content, damage, word)


LOOK_UP = "bnnconvert.signed_embedding"
TABLES: dict[str, tuple[Callable[[Json], object], str]] = {
    "rows by floats": (lambda p: arguments(p, LOOK_UP, indices={"tensor": "0.table.scale"}), "must be int64 or int32"),
    "no rows": (lambda p: arguments(p, LOOK_UP, indices=3), "'indices'"),
    "scale of another size": (
        lambda p: arguments(p, LOOK_UP, scale={"tensor": "1.weight"}),
        "a scale of shape [3, 12]",
    ),
    "longer rows": (lambda p: arguments(p, LOOK_UP, features=17), "17 bits take 3"),
    "declared size": (lambda p: output(p, LOOK_UP, dtype="int32"), "declares"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(name):
    weights = build_weight_binarizer(Named(name="scaled-sign", scale_grad="exact", estimator="clip"), (7, 12), where="")
    table = BinaryEmbedding.from_float(nn.Embedding(7, 12), weight_binarizer=weights)
    content = to_bytes(complete(trace(nn.Sequential(table, nn.Linear(12, 3))), torch.tensor([[1, 2], [3, 0]])))
    damage, word = TABLES[name]
    reject_program(content, damage, word)


LOOK_AT = "bnnconvert.binary_attention"
ATTENTIONS: dict[str, tuple[Callable[[Json], object], str]] = {
    "a stored query": (lambda p: arguments(p, LOOK_AT, query={"tensor": "mask"}), "'query' must be a value"),
    "tokens of other heads": (lambda p: arguments(p, LOOK_AT, key={"value": "x"}), "do not fit one another"),
    "mask that is no tensor": (lambda p: arguments(p, LOOK_AT, mask=True), "'mask'"),
    "mask of numbers": (lambda p: arguments(p, LOOK_AT, mask={"tensor": "numbers"}), "it must be float32 or bool"),
    "mask for other scores": (lambda p: arguments(p, LOOK_AT, mask={"tensor": "wide"}), "does not fit scores"),
    "scale": (lambda p: arguments(p, LOOK_AT, scale="big"), "'scale'"),
    "declared size": (lambda p: output(p, LOOK_AT, dtype="int32"), "declares"),
}


class Attends(nn.Module):
    """Attention by signs under a mask, beside tensors that do not fit it."""

    def __init__(self) -> None:
        super().__init__()
        self.attend = BinaryAttention(Attention(None), estimator=Clip(), both=False)
        self.register_buffer("mask", torch.ones(3, 3).tril())
        self.register_buffer("wide", torch.ones(4))
        self.register_buffer("numbers", torch.ones(3, 4, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = x[..., :3] * 2
        return self.attend(q, q, x, self.mask) + self.wide + self.numbers


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attentions(name):
    content = to_bytes(complete(trace(Attends()), torch.randn(2, 3, 4)))
    damage, word = ATTENTIONS[name]
    reject_program(content, damage, word)


def change(content: bytes, name: str, edit: Callable[[np.ndarray], object]) -> bytes:
    """The file with the values of one tensor edited."""
    header, data = split(content)
    begin, end = header[name]["data_offsets"]
    array = np.frombuffer(data[begin:end], {"I32": "<i4", "U8": "u1", "F32": "<f4"}[header[name]["dtype"]]).copy()
    edit(array)
    return join(header, data[:begin] + array.tobytes() + data[end:])


def test_values_of_tensors(good):
    reject(change(good, "conv1.encode.thresholds", lambda a: a.fill(np.nan)), "ascending")
    reject(change(good, "conv2.dot.weight", lambda a: a.fill(255)), "behind the end")


def test_unsorted_thresholds():
    torch.manual_seed(0)
    content = to_bytes(complete(trace(Block(inputs="window")), torch.randn(2, 3, 8, 8)))
    assert split(content)[0]["conv1.encode.thresholds"]["shape"] == [1, 1, 2]

    def swap(a: np.ndarray) -> None:
        a[:] = a[::-1].copy()

    reject(change(content, "conv1.encode.thresholds", swap), "ascending")


ATEN: dict[str, tuple[Callable[[Json], object], str]] = {
    "declared shape": (
        lambda p: output(p, "aten.adaptive_avg_pool2d.default", shape=[{"batch": 1}, 8, 4, 1]),
        "declares",
    ),
    "declared type": (lambda p: output(p, "aten.batch_norm.default", dtype="float64"), "float64"),
    "arguments that do not fit": (lambda p: arguments(p, "aten.view.default", size=[-1, 33]), "torch does not run"),
    "fixed batch": (lambda p: arguments(p, "aten.view.default", size=[2, 32]), "torch does not run"),
}


@pytest.mark.parametrize("name", ATEN)
def test_aten_nodes_are_checked_before_anything_runs(good, name, tmp_path):
    damage, word = ATEN[name]
    header, data = split(good)
    program = json.loads(header["__metadata__"]["program"])
    damage(program)
    header["__metadata__"]["program"] = json.dumps(program)
    path = tmp_path / "net.packed.safetensors"
    path.write_bytes(join(header, data))
    with pytest.raises(ArtifactError, match="node") as caught:
        Session(path)
    assert str(path) in str(caught.value)
    assert word in str(caught.value)


def test_what_shows_only_with_data_is_named_too(good, tmp_path):
    """Torch accepts a stride of three numbers for two axes as long as there is nothing to compute."""
    header, data = split(good)
    program = json.loads(header["__metadata__"]["program"])
    arguments(program, "aten.conv2d.default", stride=[1, 1, 1])
    header["__metadata__"]["program"] = json.dumps(program)
    path = tmp_path / "net.packed.safetensors"
    path.write_bytes(join(header, data))
    session = Session(path)
    with pytest.raises(ArtifactError, match=r"aten\.conv2d\.default of stem"):
        session.run(np.zeros((1, 3, 8, 8), np.float32))
