"""OpenVINO in float32."""

from pathlib import Path

import numpy as np
import openvino

from bnnconvert.bench.onnx_files import float_model
from bnnconvert.bench.peers.base import Files, Peer, Predict


def predictor(path: Path, threads: int, precision: str) -> Predict:
    """A model compiled for the CPU, for one request at a time."""
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
    request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
    return lambda *inputs: np.array(request.infer([*inputs], share_inputs=True, share_outputs=True)[0])


class OpenVinoFp32(Peer):
    """OpenVINO, float32."""

    title = "OpenVINO fp32"

    def open(self, files: Files, threads: int) -> Predict:
        return predictor(float_model(files), threads, "f32")
