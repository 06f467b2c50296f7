"""The other side of bench_potential, under a Python with mace-torch (HAAR_MACE_PYTHON): answers line by line."""

import json
import sys

import numpy as np
import torch  # type: ignore[import-not-found]

answers, sys.stdout = sys.stdout, sys.stderr  # what mace prints while it is imported is no answer
torch.serialization.add_safe_globals([slice])  # e3nn's table of constants holds slices, which torch >= 2.6 refuses

from e3nn import o3  # type: ignore[import-not-found]  # noqa: E402
from mace import modules  # type: ignore[import-not-found]  # noqa: E402

torch.set_num_threads(1)  # as the comparison says


def build(data, *, channels, max_degree, layers, correlation, cutoff, neighbors, species):
    """(model, optimiser, batch, targets) with the sizes of the published model but for those given."""
    torch.manual_seed(0)
    irreps = o3.Irreps([(channels, (l, (-1) ** l)) for l in range(max_degree + 1)])
    model = modules.MACE(
        r_max=cutoff,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=max_degree,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=layers,
        num_elements=species,
        hidden_irreps=irreps,
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(species),
        avg_num_neighbors=neighbors,
        atomic_numbers=list(range(1, species + 1)),
        correlation=correlation,
        gate=torch.nn.functional.silu,
        radial_MLP=[64, 64, 64],
    )
    edges = torch.as_tensor(np.stack([data["senders"], data["receivers"]]), dtype=torch.int64)
    structures = int(data["structure"].max()) + 1
    nodes = torch.as_tensor(data["structure"], dtype=torch.int64)
    batch = {
        "edge_index": edges,
        "positions": torch.as_tensor(data["positions"]).requires_grad_(),
        "node_attrs": torch.nn.functional.one_hot(torch.as_tensor(data["species"], dtype=torch.int64), species).float(),
        "shifts": torch.zeros(edges.shape[1], 3),
        "unit_shifts": torch.zeros(edges.shape[1], 3),
        "cell": torch.zeros(3 * structures, 3),
        "batch": nodes,
        "ptr": torch.searchsorted(nodes, torch.arange(structures + 1)),
        "head": torch.zeros(structures, dtype=torch.int64),
    }
    return model, torch.optim.Adam(model.parameters(), lr=1e-3), batch, torch.as_tensor(data["forces"])


def step(model, optimizer, batch, forces):
    """One step of Adam on mean squares of energies and forces."""
    optimizer.zero_grad()
    out = model(batch, training=True)
    loss = (out["energy"] ** 2).mean() + ((out["forces"] - forces) ** 2).mean()
    loss.backward()
    optimizer.step()
    return {"loss": loss.detach().numpy()}


def main():
    """Answers requests until there are no more."""
    data, result, built = {}, {}, None
    for request in map(json.loads, sys.stdin):
        if "load" in request:
            with np.load(request["load"]) as arrays:
                data, built = dict(arrays), None
        elif "save" in request:
            np.savez(request["save"], **result)
        else:
            built = built or build(data, **request["settings"])
            result = step(*built)
        print("done", file=answers, flush=True)


if __name__ == "__main__":
    main()
