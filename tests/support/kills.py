"""Folds that are killed: each in a copy of a process that has imported everything, so that hundreds take seconds.

    python -m tests.support.kills SOURCE OUTPUT COUNT SEED

folds SOURCE to OUTPUT, which is there already, until COUNT folds were killed, each at a random moment;
before every one, OUTPUT is the old model again. Prints one line of JSON for each: whether the fold was killed before
its end, and whether OUTPUT is the old model or the new one, whole.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

Weights = dict[str, np.ndarray]


def weights(model: Path) -> Weights:
    """Every weight of a model, read as anybody would."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(model).graph.initializer}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(array, other[name]) for name, array in one.items())


def in_a_copy(work: Callable[[], object], *, kill_after: float | None = None) -> int:
    """Run `work` in a copy of this process; its exit status, negative for a signal. Its temporary files go with it."""
    with tempfile.TemporaryDirectory(prefix="normfold-kills-") as scratch:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            try:
                tempfile.tempdir = scratch
                work()
                os._exit(0)
            finally:
                os._exit(1)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def refill(folder: Path, saved: Path) -> None:
    """Make `folder` what `saved` is."""
    shutil.rmtree(folder)
    shutil.copytree(saved, folder)


def main() -> None:
    source, output, count, rng = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), random.Random(int(sys.argv[4]))
    from normfold.pipeline import run as pipeline

    warnings.simplefilter("ignore")

    def fold() -> None:
        pipeline.fold(source, output, verify=False, external_data=True, force=True, report=output.with_name("r.json"))

    saved = output.parent.with_name("saved")
    shutil.copytree(output.parent, saved)
    old = weights(output)
    start = time.perf_counter()
    assert in_a_copy(fold) == 0
    seconds, new = time.perf_counter() - start, weights(output)
    assert not same(old, new)
    while count:
        refill(output.parent, saved)
        # Most of the time goes into reading and thinking: two of three kills are for the last third.
        moment = seconds * (rng.uniform(0.0, 1.0) if rng.random() < 0.33 else rng.uniform(0.6, 1.0))
        killed = in_a_copy(fold, kill_after=moment) == -signal.SIGKILL
        found = weights(output)
        outcome = "old" if same(found, old) else "new" if same(found, new) else "mixed"
        print(json.dumps({"killed": killed, "outcome": outcome}), flush=True)
        # How long a fold takes depends on what else the machine does.
        seconds *= 1.05 if killed else 0.9
        count -= killed


if __name__ == "__main__":
    main()
