"""The artifact in a session: what all others are compared with."""

import numpy as np

from bnnconvert.bench.peers.base import Array, Files, LayerTime, Peer, Predict
from bnnconvert.runtime import Session
from bnnconvert.runtime.session import flattened


class Artifact(Peer):
    """The packed artifact."""

    title = "bnnconvert"
    runs_float = False

    def open(self, files: Files, threads: int) -> Predict:
        session = self.session = Session(files.artifact, threads=threads)
        return lambda *inputs: np.asarray(flattened(session.run(*inputs))[0])

    def layers(self, *inputs: Array) -> list[LayerTime]:
        return [LayerTime(s.layer, f"{s.kernel} {s.tile}".strip(), s.seconds) for s in self.session.measure(*inputs)]
