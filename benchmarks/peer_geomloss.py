"""The other side of bench_ot, under a Python with torch and geomloss (HAAR_GEOMLOSS_PYTHON): answers line by line."""

import json
import sys

import numpy as np
import torch  # type: ignore[import-not-found]
from geomloss import SamplesLoss  # type: ignore[import-not-found]


def sinkhorn(data, *, epsilon, scaling):
    """Potentials for the cost |x − y|²: its own is half of that, so blur² = ε/2 and the potentials count double."""
    loss = SamplesLoss(
        "sinkhorn", p=2, blur=(epsilon / 2) ** 0.5, scaling=scaling, debias=False, potentials=True, backend="tensorized"
    )
    f, g = loss(torch.as_tensor(data["x"]), torch.as_tensor(data["y"]))
    return {"f": 2 * f.numpy().ravel().astype(np.float64), "g": 2 * g.numpy().ravel().astype(np.float64)}


def main():
    """Answers requests until there are no more."""
    data, result = {}, {}
    for request in map(json.loads, sys.stdin):
        if "load" in request:
            with np.load(request["load"]) as arrays:
                data = dict(arrays)
        elif "save" in request:
            np.savez(request["save"], **result)
        else:
            result = sinkhorn(data, **request["settings"])
        print("done", flush=True)


if __name__ == "__main__":
    main()
