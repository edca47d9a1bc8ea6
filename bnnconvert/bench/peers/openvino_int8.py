"""OpenVINO in 8 bits, on the file that ONNX Runtime's quantizer made."""

from bnnconvert.bench.onnx_files import int8_model
from bnnconvert.bench.peers.base import Files, Peer, Predict
from bnnconvert.bench.peers.openvino_fp32 import predictor


class OpenVinoInt8(Peer):
    """OpenVINO, int8."""

    title = "OpenVINO int8"
    tolerance = 0.5  # as for ONNX Runtime in 8 bits

    def open(self, files: Files, threads: int) -> Predict:
        return predictor(int8_model(files), threads, "f32")
