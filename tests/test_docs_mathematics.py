"""docs/mathematics.md: every link opens, every name imports from the file it links, every experiment is registered."""

import functools
import importlib
import re
from pathlib import Path

import pytest

from experiments.engine import experiment

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "mathematics.md"
LINK = re.compile(r"\[`?([^]`]+)`?\]\(([^)]+)\)")
SECTIONS = """linear algebra, probability, calculus, optimisation, information theory, variational inference, diffusion,
transport, Lie groups, learning theory"""
TOPICS = """EVD, SVD, LU, QR, PCA, low rank, collaborative filtering, distributions, Bayes, MLE, MAP,
hypothesis testing,
naive Bayes, decision trees, information gain, VAE, ELBO, reparameterisation, diffusion, SDE, score matching,
Bayesian neural networks, Gaussian processes, Bayesian optimisation, gradient, chain rule, backprop, LP, QP, Lagrange,
KKT, SVM, momentum, Adam, RMSprop, saddle points, entropy, cross-entropy, KL, mutual information, InfoNCE,
Wasserstein GAN, flow matching, optimal transport, Sinkhorn, SO(3), SE(3), equivariant networks,
geometric deep learning, probabilistic graphical models, PAC, VC"""


def words(text):
    return [word.strip() for word in text.replace("\n", " ").split(",")]


def headings():
    return [line.strip("# ") for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("#")]


def rows():
    """(topic, formula, code, experiment) of every row of every table."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert all(len(row) == 4 for row in cells), [row for row in cells if len(row) != 4]
    return [row for row in cells if row[0] != "topic"]


def test_sections_build_up():
    found = headings()
    levels = [found.index(level) for level in ("Beginner", "Advanced", "Expert")]
    at = [next(k for k, line in enumerate(found) if name.lower() in line.lower()) for name in words(SECTIONS)]
    assert at == sorted(at)
    assert levels == sorted(levels)
    assert levels[0] < at[0]


def test_every_link_opens():
    links = LINK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(links) > 100
    missing = [target for _, target in links if not (PAGE.parent / target.split("#")[0]).is_file()]
    assert not missing


def test_every_name_is_in_the_file_that_it_links():
    for topic, _, code, _ in rows():
        links = LINK.findall(code)
        assert links or code == "none yet", topic
        for name, target in links:
            path = (PAGE.parent / target).resolve().relative_to(ROOT)
            module = importlib.import_module(".".join(path.with_suffix("").parts))
            space, *attributes = name.split(".")
            assert attributes, name
            thing = functools.reduce(getattr, attributes, module)
            assert space in (path.stem, path.parent.name), f"{name} is not {target}"
            if space != path.stem:  # the name as a caller writes it, `statistics.rayleigh`
                package = importlib.import_module(".".join(path.parent.parts))
                assert functools.reduce(getattr, attributes, package) is thing, name
            assert not any(part.startswith("_") for part in attributes), name


def test_every_experiment_is_registered_and_on_the_page():
    shown = set()
    for topic, _, _, cell in rows():
        links = LINK.findall(cell)
        assert links or cell == "none yet", topic
        for name, target in links:
            assert experiment.names().get(name) == Path(target).stem, f"{topic}: {name}"
            shown.add(name)
    assert shown == set(experiment.names()), "a new experiment belongs into the rows of what it shows"


@pytest.mark.parametrize("topic", words(TOPICS))
def test_no_topic_is_left_out(topic):
    """Abbreviations as they are, other words in either case."""
    flags = 0 if topic.isupper() else re.IGNORECASE
    headed = [row[0] for row in rows()] + headings()
    assert any(re.search(rf"(?<![A-Za-z]){re.escape(topic)}", text, flags) for text in headed), topic
