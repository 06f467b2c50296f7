"""Graphs: neighbours by brute force, vesin and ASE; padding that says when it is too small; sums past padding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from equivariant import graph

CELL = np.array([[4.0, 0, 0], [1.5, 3.5, 0], [-1, 0.7, 3.0]])  # heights 3.5, 3.4, 3.0: no two rows orthogonal
CASES = {  # cutoff, cell, periodic rows
    "cluster": (4.0, None, (False, False, False)),
    "below half the cell": (1.4, CELL, (True, True, True)),
    "beyond the cell": (5.4, CELL, (True, True, True)),
    "slab": (5.4, CELL, (True, False, True)),
    "wire": (5.4, CELL, (False, True, False)),
}


def points(n, seed=0, size=5.0):
    return np.random.default_rng(seed).uniform(-size, size, (n, 3))  # far outside the cell, too


def rows(senders, receivers, shifts):
    return sorted(zip(receivers.tolist(), senders.tolist(), *(np.round(shifts, 4) + 0.0).T.tolist(), strict=True))


def rows_of(g):
    kept = np.asarray(g.edge_mask)
    return rows(np.asarray(g.senders)[kept], np.asarray(g.receivers)[kept], np.asarray(g.shifts, np.float64)[kept])


def brute_force(x, cutoff, cell, periodic):
    box = np.zeros((3, 3)) if cell is None else cell
    images = itertools.product(*(range(-12, 13) if axis else (0,) for axis in periodic))
    found = []
    for image in images:
        shift = np.array(image) @ box
        length = np.linalg.norm(x[:, None] - x + shift, axis=-1)
        if not any(image):
            np.fill_diagonal(length, np.inf)
        receivers, senders = np.nonzero(length < cutoff)
        found += rows(senders, receivers, np.broadcast_to(shift, (len(senders), 3)))
    return sorted(found)


@pytest.mark.parametrize("case", CASES)
def test_neighbours_are_those_of_brute_force(case):
    cutoff, cell, periodic = CASES[case]
    x = points(12)
    g = graph.radius_graph(jnp.asarray(x), cutoff, cell, periodic=periodic)
    assert len(rows_of(g)) > 10
    assert rows_of(g) == brute_force(x, cutoff, cell, periodic)
    assert (np.diff(np.asarray(g.receivers)) >= 0).all()
    assert np.linalg.norm(graph.vectors(g, jnp.asarray(x)), axis=-1).max() < cutoff


@pytest.mark.parametrize("case", CASES)
def test_neighbours_are_those_of_vesin(case):
    vesin = pytest.importorskip("vesin")
    cutoff, cell, periodic = CASES[case]
    x = points(12)
    g = graph.radius_graph(jnp.asarray(x), cutoff, cell, periodic=periodic)
    box = np.zeros((3, 3)) if cell is None else cell
    theirs = vesin.NeighborList(cutoff=cutoff, full_list=True)
    i, j, S = theirs.compute(points=x, box=box, periodic=np.array(periodic), quantities="ijS")
    # theirs: x_j − x_i + S·cell; ours: x_receiver − x_sender + shift
    assert rows_of(g) == rows(i, j, S @ box)


def test_neighbours_are_those_of_ase():
    neighborlist = pytest.importorskip("ase.neighborlist")
    x = points(9, seed=3)
    i, j, S = neighborlist.primitive_neighbor_list("ijS", (True, True, False), CELL, x, 6.1)
    g = graph.radius_graph(jnp.asarray(x), 6.1, CELL, periodic=(True, True, False))
    assert rows_of(g) == rows(i, j, S @ CELL)


@pytest.mark.parametrize("n", [400, pytest.param(3000, marks=pytest.mark.slow)])
def test_blocks_of_many_atoms_and_an_order_by_receiver_then_sender(n):
    side = (n / 0.1) ** (1 / 3)
    x = np.random.default_rng(1).uniform(0, side, (n, 3))
    g = graph.radius_graph(jnp.asarray(x), 3.0, side * np.eye(3))
    difference = x[:, None] - x
    difference -= side * np.round(difference / side)
    near = np.linalg.norm(difference, axis=-1) < 3.0
    np.fill_diagonal(near, False)
    receivers, senders = np.nonzero(near)
    np.testing.assert_array_equal(g.receivers, receivers)
    np.testing.assert_array_equal(g.senders, senders)


def test_traced_search_equals_the_eager_one_and_says_when_room_or_images_lack():
    x = jnp.asarray(points(12), jnp.float32)
    search = jax.jit(graph.radius_graph, static_argnames=("max_edges", "images", "periodic"))
    eager = graph.radius_graph(x, 5.4, CELL.astype(np.float32))
    room = eager.edges + 7
    padded = search(x, 5.4, jnp.asarray(CELL, jnp.float32), max_edges=room, images=(2, 2, 2))
    assert padded.shifts.dtype == jnp.float32
    assert not padded.overflow
    assert int(padded.edge_mask.sum()) == eager.edges
    assert rows_of(padded) == rows_of(eager)
    assert np.all(padded.receivers[1:] >= padded.receivers[:-1])
    np.testing.assert_array_equal(graph.vectors(padded, x)[eager.edges :], 0)
    assert search(x, 5.4, jnp.asarray(CELL, jnp.float32), max_edges=room, images=(1, 1, 1)).overflow
    small = search(x, 5.4, jnp.asarray(CELL, jnp.float32), max_edges=100, images=(2, 2, 2))
    assert small.overflow
    assert small.edge_mask.all()


def test_eager_search_raises_with_the_number_needed():
    x = jnp.asarray(points(12))
    needed = graph.radius_graph(x, 4.0).edges
    with pytest.raises(ValueError, match=f"max_edges: expected at least {needed}.*got {needed - 1}"):
        graph.radius_graph(x, 4.0, max_edges=needed - 1)
    with pytest.raises(ValueError, match=r"images: expected at least \(2, 2, 2\)"):
        graph.radius_graph(x, 5.4, CELL, images=(1, 1, 1))
    with pytest.raises(ValueError, match="max_edges: expected an int under jit"):
        jax.jit(lambda x: graph.radius_graph(x, 4.0))(x)


def test_coincident_absent_single_and_no_atoms():
    together = jnp.zeros((3, 3))
    g = graph.radius_graph(together, 1.0, mask=jnp.array([True, True, False]))
    assert rows_of(g) == [(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)]
    slope = jax.jacobian(lambda x: graph.vectors(g, x))(together)
    assert np.isfinite(slope).all()
    assert graph.radius_graph(together[:1], 1.0).edges == 0
    empty = graph.radius_graph(jnp.zeros((0, 3)), 1.0, max_edges=2)
    assert not empty.overflow
    assert graph.vectors(empty, jnp.zeros((0, 3))).shape == (2, 3)
    assert graph.sum_edges(empty, jnp.ones((2, 4))).shape == (0, 4)
    alone = graph.radius_graph(jnp.zeros((1, 3)), 1.1, jnp.eye(3))
    assert len(rows_of(alone)) == 6  # its own images


def test_a_not_a_number_raises_or_shows(own_checks, monkeypatch):
    x = jnp.asarray(points(5)).at[2, 1].set(jnp.nan)
    monkeypatch.setenv("HAAR_CHECK", "0")
    with pytest.raises(ValueError, match="positions: expected only finite values"):
        graph.radius_graph(x, 1.0)
    g = jax.jit(lambda x: graph.radius_graph(x, 1e-3, max_edges=20))(x)
    assert rows_of(g) == sorted([(2, i, 0, 0, 0) for i in (0, 1, 3, 4)] + [(i, 2, 0, 0, 0) for i in (0, 1, 3, 4)])


def test_structures_of_a_batch_stay_apart():
    x = jnp.asarray(points(30, size=2.0).reshape(3, 10, 3))
    stacked = jax.vmap(lambda x: graph.radius_graph(x, 2.5, max_edges=90))(x)
    singles = [jax.tree.map(lambda a, k=k: a[k], stacked) for k in range(3)]
    for together in (graph.batch(stacked), graph.batch(singles)):
        assert (together.structures, together.nodes, together.edges) == (3, 30, 270)
        assert (np.diff(np.asarray(together.receivers)) >= 0).all()
        assert (together.structure[together.senders] == together.structure[together.receivers]).all()
        v = graph.vectors(together, x.reshape(30, 3))
        np.testing.assert_array_equal(v, jax.vmap(graph.vectors)(stacked, x).reshape(270, 3))
        degrees = graph.sum_edges(together, jnp.ones((270, 1)))
        per_structure = graph.sum_nodes(together, degrees)[:, 0]
        np.testing.assert_array_equal(per_structure, stacked.edge_mask.sum(axis=1))


def test_sums_leave_out_what_padding_carries():
    g = graph.from_edges([1, 0, 1], [2, 1, 0], 3, max_edges=5, node_mask=np.array([True, True, True]))
    messages = jnp.where(g.edge_mask[:, None], jnp.arange(1.0, 6.0)[:, None], jnp.nan)
    np.testing.assert_array_equal(graph.sum_edges(g, messages)[:, 0], [1, 2, 3])
    gradient = jax.grad(lambda m: jnp.sum(graph.sum_edges(g, m) ** 2))(messages)
    np.testing.assert_array_equal(gradient[:, 0], [2, 4, 6, 0, 0])
    np.testing.assert_array_equal(graph.sum_nodes(g, jnp.array([1.0, 2.0, 4.0])), [7])


def test_given_edges_are_sorted_with_their_shifts():
    g = graph.from_edges([0, 1, 2], [2, 0, 1], 4, shifts=np.eye(3), max_edges=4)
    np.testing.assert_array_equal(g.receivers, [0, 1, 2, 3])
    np.testing.assert_array_equal(g.senders, [1, 2, 0, 3])
    np.testing.assert_array_equal(g.shifts, [[0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0, 4], [1, 0], 4), ValueError, "senders: expected node numbers 0 to 3, got 4 at index 1"),
        (([0, 1], [1, -1], 4), ValueError, "receivers: expected node numbers 0 to 3, got -1 at index 1"),
        (([0.0, 1.0], [1, 0], 4), TypeError, "senders: expected integers"),
        (([0], [1, 0], 4), ValueError, r"senders: expected shape \(2,\) like receivers, got \(1,\)"),
        (([[0]], [1], 4), ValueError, r"senders: expected shape \(edges,\), got \(1, 1\)"),
        (([0], [1], 1), ValueError, "receivers: expected node numbers 0 to 0, got 1"),
    ],
)
def test_bad_edges_are_named(own_checks, arguments, error, message):
    with pytest.raises(error, match=message):
        graph.from_edges(*arguments)


def test_bad_sizes_are_named(own_checks):
    g = graph.from_edges([0], [1], 2)
    with pytest.raises(ValueError, match=r"positions: expected shape \(2, 3\), one row for each node, got \(3, 3\)"):
        graph.vectors(g, jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match="messages: expected shape"):
        graph.sum_edges(g, jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="max_edges: expected at least 1"):
        graph.from_edges([0], [1], 2, max_edges=0)
    with pytest.raises(ValueError, match="receivers: expected nodes that exist"):
        graph.from_edges([0], [1], 2, node_mask=np.array([True, False]))
    with pytest.raises(ValueError, match=r"shifts: expected shape \(1, 3\)"):
        graph.from_edges([0], [1], 2, shifts=np.zeros((2, 3)))
    with pytest.raises(TypeError, match="positions: expected a floating-point array"):
        graph.radius_graph(jnp.zeros((2, 3), jnp.int32), 1.0)
    with pytest.raises(ValueError, match="cell: expected finite rows that span a volume"):
        graph.radius_graph(jnp.zeros((2, 3)), 1.0, jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match=r"cell: expected shape \(..., 3, 3\), got \(2, 2\)"):
        graph.radius_graph(jnp.zeros((2, 3)), 1.0, jnp.eye(2))
    with pytest.raises(ValueError, match="mask: expected bool"):
        graph.radius_graph(jnp.zeros((2, 3)), 1.0, mask=jnp.ones(3, bool))
