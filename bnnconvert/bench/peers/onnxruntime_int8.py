"""ONNX Runtime in 8 bits, quantized by its own tool."""

from bnnconvert.bench.onnx_files import int8_model
from bnnconvert.bench.peers.base import Files, Peer, Predict
from bnnconvert.bench.peers.onnxruntime_fp32 import predictor


class OnnxRuntimeInt8(Peer):
    """ONNX Runtime, int8."""

    title = "ONNX Runtime int8"
    tolerance = 0.5  # an untrained rounding of the weights; the time is what counts here

    def open(self, files: Files, threads: int) -> Predict:
        return predictor(int8_model(files), threads)
