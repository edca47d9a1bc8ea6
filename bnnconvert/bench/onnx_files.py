"""The float original as ONNX files, made when the first peer asks for them."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bnnconvert.bench.peers.base import Array, Files

CALIBRATION_BATCHES = 4


def float_model(files: Files) -> Path:
    """The original in float32."""
    path = files.folder / "original.onnx"
    if not path.exists():
        import torch

        exported = torch.export.load(files.exported)
        with _whole(path) as part:
            torch.onnx.export(exported, f=str(part), dynamo=True, external_data=False, verbose=False)
    return path


def int8_model(files: Files) -> Path:
    """The original quantized after training: 8 bits, per channel, calibrated on the input and on noise like it."""
    path = files.folder / "original-int8.onnx"
    if not path.exists():
        import onnxruntime
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        folded = files.folder / "original-folded.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        session = onnxruntime.InferenceSession(str(float_model(files)), options, providers=["CPUExecutionProvider"])
        with contextlib.redirect_stdout(None), _whole(path) as part:
            quantize_static(
                str(folded),
                str(part),
                _Calibration([given.name for given in session.get_inputs()], files.read_inputs()),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
    return path


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to write to that becomes `path` at the end: a worker may die over it, and the next one look for it."""
    part = path.with_name(f"part-{path.name}")
    yield part
    part.replace(path)


def _alike(x: Array, generator: np.random.Generator) -> Array:
    """Noise of the same mean and spread; integers as they are."""
    if x.dtype.kind != "f":
        return x
    noise: Array = generator.standard_normal(x.shape, np.float32) * x.std() + x.mean()
    return noise


class _Calibration:
    """Batches in the form that the quantizer asks for."""

    def __init__(self, names: Sequence[str], inputs: Sequence[Array]) -> None:
        generator = np.random.default_rng(0)
        batches = [inputs, *([_alike(x, generator) for x in inputs] for _ in range(CALIBRATION_BATCHES))]
        self._batches = iter([dict(zip(names, batch, strict=True)) for batch in batches])

    def get_next(self) -> dict[str, Array] | None:
        """One batch, or None at the end."""
        return next(self._batches, None)
