"""The other side of bench_nbody, under a Python with torch: takes training steps of the original EGNN on request."""

import sys

sys.path.insert(0, sys.argv[1])

import torch  # type: ignore[import-not-found]
from n_body_system.model import EGNN_vel  # type: ignore[import-not-found]


def main(steps: int) -> None:
    """One line in, `steps` training steps, one line out."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch, n = 100, 5
    model = EGNN_vel(in_node_nf=1, in_edge_nf=2, hidden_nf=64, device="cpu", n_layers=4, recurrent=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4, weight_decay=1e-12)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    receivers, senders = (
        torch.cat([torch.tensor([pair[side] for pair in pairs]) + n * b for b in range(batch)]) for side in (0, 1)
    )
    x, v, y = torch.randn(batch * n, 3), torch.randn(batch * n, 3) / 2, torch.randn(batch * n, 3)
    q = torch.sign(torch.randn(batch * n, 1))
    for _ in sys.stdin:
        for _ in range(steps):
            optimizer.zero_grad()
            speed = torch.sqrt(torch.sum(v**2, dim=1, keepdim=True))
            squared = torch.sum((x[receivers] - x[senders]) ** 2, dim=1, keepdim=True)
            features = torch.cat([q[receivers] * q[senders], squared], dim=1)
            # The model adds to the positions in place: it gets a copy.
            loss = torch.mean((model(speed, x.clone(), [receivers, senders], v, features) - y) ** 2)
            loss.backward()
            optimizer.step()
        print("done", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[2]))
