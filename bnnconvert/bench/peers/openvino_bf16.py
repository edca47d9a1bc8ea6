"""OpenVINO in bfloat16."""

from bnnconvert.bench.onnx_files import float_model
from bnnconvert.bench.peers.base import Files, Peer, Predict
from bnnconvert.bench.peers.openvino_fp32 import predictor


class OpenVinoBf16(Peer):
    """OpenVINO, bfloat16."""

    title = "OpenVINO bf16"
    tolerance = 0.1

    def open(self, files: Files, threads: int) -> Predict:
        return predictor(float_model(files), threads, "bf16")
