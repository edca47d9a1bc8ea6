"""One peer in a process of its own: `python -m bnnconvert.bench.worker NAME FOLDER THREADS`.

Commands and answers are lines of JSON on standard input and output. Whatever the peer itself prints goes to standard
error.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bnnconvert.bench.peers import peer_class
from bnnconvert.bench.peers.base import Array, Files, Predict
from bnnconvert.bench.turns import turn
from bnnconvert.errors import brief

WARM_UP = 2


def main() -> None:
    """Open the peer, then do as told until the input ends."""
    name, folder, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value) + "\n")

    try:
        kind = peer_class(name)
        peer, files = kind(), Files(Path(folder))
        inputs = files.read_inputs()
        predict = peer.open(files, int(threads))
        np.save(files.output(name), predict(*inputs))
        for _ in range(WARM_UP):
            predict(*inputs)
        answer({"title": kind.title, "runs_float": kind.runs_float, "tolerance": kind.tolerance})
    except ImportError as error:
        answer({"missing": error.name or str(error)})
        return
    except Exception as error:  # another runtime may fail in any way; the report says how
        traceback.print_exc()
        answer({"error": brief(error)})
        return
    for line in sys.stdin:
        command = json.loads(line)
        if "run" in command:
            answer({"seconds": turn(lambda: _timed(predict, inputs), command["run"])})
        else:
            answer({"layers": [asdict(layer) for layer in peer.layers(*inputs)]})


def _timed(predict: Predict, inputs: Sequence[Array]) -> float:
    start = time.perf_counter()
    predict(*inputs)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
