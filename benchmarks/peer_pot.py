"""The other side of bench_ot, under a Python with POT 0.9 (HAAR_POT_PYTHON): solves what it is asked, line by line."""

import importlib
import json
import sys
import warnings

import numpy as np

ot = importlib.import_module("ot")  # POT, which has the import name of ours; this process knows nothing of ours


def sinkhorn(data, *, epsilon, method, dtype, threshold, max_steps):
    """POT's Sinkhorn from the clouds (or from a cost matrix C); potentials in the convention P = a b e^((f+g−C)/ε)."""
    C = data["C"].astype(dtype) if "C" in data else ot.dist(data["x"].astype(dtype), data["y"].astype(dtype))
    a, b = (np.full(size, 1 / size, dtype) for size in C.shape)
    _, log = ot.sinkhorn(a, b, C, epsilon, method=method, stopThr=threshold, numItermax=max_steps, log=True)
    if "alpha" in log:
        f, g = log["alpha"] / epsilon, log["beta"] / epsilon
    else:
        f, g = np.log(log["u"].astype(np.float64)), np.log(log["v"].astype(np.float64))
    return {"f": epsilon * (f + np.log(len(a))), "g": epsilon * (g + np.log(len(b)))}


def emd(data):
    """The network simplex: the cost of the optimal plan."""
    C = ot.dist(data["x"], data["y"])
    return {"value": ot.emd2(*(np.full(size, 1 / size) for size in C.shape), C, numItermax=10_000_000)}


def line_emd(data):
    """One dimension by emd2_1d."""
    return {"value": ot.emd2_1d(data["x"], data["y"])}


def line_quantiles(data):
    """One dimension by wasserstein_1d, p = 2."""
    return {"value": ot.wasserstein_1d(data["x"], data["y"], p=2)}


def sliced(data):
    """Sliced, p = 2, along the given directions (d, k); squared as ours is."""
    return {"value": ot.sliced_wasserstein_distance(data["x"], data["y"], projections=data["directions"], p=2) ** 2}


TASKS = {task.__name__: task for task in (sinkhorn, emd, line_emd, line_quantiles, sliced)}


def main():
    """Answers requests until there are no more."""
    warnings.simplefilter("ignore")  # what a solver failed to reach is measured by the one who asks
    data, result = {}, {}
    for request in map(json.loads, sys.stdin):
        if "load" in request:
            with np.load(request["load"]) as arrays:
                data = dict(arrays)
        elif "save" in request:
            np.savez(request["save"], **result)
        else:
            result = TASKS[request["task"]](data, **request["settings"])
        print("done", flush=True)


if __name__ == "__main__":
    main()
