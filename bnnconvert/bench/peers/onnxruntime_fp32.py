"""ONNX Runtime in float32."""

from pathlib import Path

import onnxruntime

from bnnconvert.bench.onnx_files import float_model
from bnnconvert.bench.peers.base import Files, Peer, Predict


def predictor(path: Path, threads: int) -> Predict:
    """A model in a session of its own."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs, strict=True)))[0]


class OnnxRuntimeFp32(Peer):
    """ONNX Runtime, float32."""

    title = "ONNX Runtime fp32"

    def open(self, files: Files, threads: int) -> Predict:
        return predictor(float_model(files), threads)
