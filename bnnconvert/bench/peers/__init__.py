"""The table of peers. Their files import other people's packages, so each is imported only by its worker."""

import importlib

from bnnconvert.bench.peers.base import Peer

PEERS = {
    "bnnconvert": "artifact:Artifact",
    "torch": "torch_eager:TorchEager",
    "torch-compiled": "torch_compiled:TorchCompiled",
    "onnxruntime": "onnxruntime_fp32:OnnxRuntimeFp32",
    "onnxruntime-int8": "onnxruntime_int8:OnnxRuntimeInt8",
    "openvino": "openvino_fp32:OpenVinoFp32",
    "openvino-bf16": "openvino_bf16:OpenVinoBf16",
    "openvino-int8": "openvino_int8:OpenVinoInt8",
}
"""File and class by name, in the order of the report. To add one: one file, one row."""


def peer_class(name: str) -> type[Peer]:
    """The class of a peer.

    Raises: ImportError where its package is not installed.
    """
    file, class_name = PEERS[name].split(":")
    found: type[Peer] = getattr(importlib.import_module(f"{__name__}.{file}"), class_name)
    return found
