"""Which atom of the reactants becomes which atom of the product, by the attention of a served model.

A reaction model that was trained on SMILES alone learns it without being told: in one head, an atom of the product
attends to the atom that it comes from (Schwaller et al. 2021, doi:10.1126/sciadv.abe4166). The model is the ALBERT of
the package `rxnmapper`, its weights read and its code never run; layer and head are the published ones, and so is the
algorithm that turns the weights into a map. docs/models.md tells how to import and serve the model.

    python docs/examples/atom_map.py "C(C)O.BrC(C)>>CCOCC" --figure atom-map.svg
"""

import argparse
import re
from dataclasses import dataclass

import numpy as np
from attention_client import AttentionClient, OutputSpec
from matplotlib.figure import Figure
from numpy.typing import NDArray

PAIR = "10.5"  # layer and head, from 0
SPECIAL = ("[CLS]", "[SEP]")
ARROW = ">>"
ELEMENT = re.compile(r"\[?\d*(\*|[A-Z][a-z]?|se|as|[bcnops])")
NEIGHBOURS = 90.0  # the factor by which a mapped pair of atoms makes pairs of neighbours likelier


@dataclass(frozen=True)
class Atom:
    """An atom of a reaction: the position of its token, and its element."""

    position: int
    element: str


@dataclass(frozen=True)
class AtomMap:
    """For each atom of the product the atom of the reactants that it comes from, and the confidence.

    Attributes:
        tokens: of the reaction.
        reactants: atoms before the arrow.
        product: atoms behind it.
        sources: for each atom of the product an index of `reactants`; -1 for none.
        confidences: of each pair, 0 to 1.
    """

    tokens: list[str]
    reactants: list[Atom]
    product: list[Atom]
    sources: list[int]
    confidences: list[float]

    @property
    def confidence(self) -> float:
        """Of the whole map: the product of all."""
        return float(np.prod(self.confidences))


def atoms(tokens: list[str], start: int, stop: int) -> list[Atom]:
    """Return the atoms between two positions; bonds, rings, branches and dots are none."""
    found = [(position, tokens[position]) for position in range(start, stop) if tokens[position] not in SPECIAL]
    matches = [(position, ELEMENT.match(token)) for position, token in found]
    return [Atom(position, match[1].capitalize()) for position, match in matches if match]


def bonds(tokens: list[str], chosen: list[Atom]) -> NDArray[np.bool_]:
    """Return which atoms are neighbours, [N, N]: along chains, into branches and over rings."""
    index = {atom.position: row for row, atom in enumerate(chosen)}
    joined = np.zeros((len(chosen), len(chosen)), bool)
    last: int | None = None
    branches: list[int | None] = []
    rings: dict[str, int] = {}

    def join(one: int | None, other: int) -> None:
        if one is not None:
            joined[one, other] = joined[other, one] = True

    for position in range(chosen[0].position, chosen[-1].position + 1) if chosen else ():
        token = tokens[position]
        if position in index:
            join(last, index[position])
            last = index[position]
        elif token == "(":
            branches.append(last)
        elif token == ")":
            last = branches.pop()
        elif token in (".", "~"):
            last = None
        elif token.lstrip("%").isdigit() and last is not None:  # the second one of a number closes the ring
            if token in rings:
                join(rings.pop(token), last)
            else:
                rings[token] = last
    return joined


def map_atoms(tokens: list[str], weights: NDArray[np.float32]) -> AtomMap:
    """Turn the weights of one head into a map, by the published algorithm.

    Args:
        tokens: of the reaction.
        weights: [T, T].
    """
    arrow = tokens.index(ARROW)
    reactants, product = atoms(tokens, 0, arrow), atoms(tokens, arrow + 1, len(tokens))
    rows, columns = [atom.position for atom in product], [atom.position for atom in reactants]
    same = np.array([[one.element == other.element for other in reactants] for one in product])
    affinity = (weights[np.ix_(rows, columns)] + weights[np.ix_(columns, rows)].T) * same
    near_product, near_reactants = bonds(tokens, product), bonds(tokens, reactants)
    sources, confidences = [-1] * len(product), [1.0] * len(product)
    for _ in product:
        totals = affinity.sum(1, keepdims=True)
        shares = np.divide(affinity, totals, out=np.zeros_like(affinity), where=totals > 0)
        row, column = np.unravel_index(shares.argmax(), shares.shape)
        if np.isclose(shares[row, column], 0):
            break  # atoms that come from none of the reactants
        sources[row], confidences[row] = int(column), float(shares[row, column])
        affinity[np.ix_(near_product[row], near_reactants[column])] *= NEIGHBOURS
        affinity[row] = 0
        affinity[:, column] = 0
    return AtomMap(tokens, reactants, product, sources, confidences)


def ask(target: str, model: str, reaction: str) -> AtomMap:
    """Ask a server for the weights of the one head, and map the atoms."""
    with AttentionClient(target) as client:
        result = client.attend(model, text=reaction, outputs=[OutputSpec("weights", pairs=[PAIR])])
    return map_atoms(list(result.tokens), result["weights"][0].astype(np.float64))


def draw(found: AtomMap) -> Figure:
    """Draw the product below the reactants, a line from each atom to its source, as dark as the pair is certain."""
    arrow = found.tokens.index(ARROW)
    sides = ((1.0, found.tokens[1:arrow], 1), (0.0, found.tokens[arrow + 1 : -1], arrow + 1))
    widest = max(len(tokens) for _, tokens, _ in sides)
    figure = Figure(figsize=(max(4.0, 0.26 * widest), 2.4), dpi=150, layout="constrained")
    panel = figure.subplots()
    places: dict[int, tuple[float, float]] = {}
    for height, tokens, first in sides:
        for offset, token in enumerate(tokens):
            place = (offset + (widest - len(tokens)) / 2, height)
            places[first + offset] = place
            panel.text(
                *place, token, ha="center", va="center", family="monospace", fontsize=11 if len(token) < 3 else 8
            )
    for atom, source, confidence in zip(found.product, found.sources, found.confidences, strict=True):
        if source >= 0:
            (x, y), (to, above) = places[atom.position], places[found.reactants[source].position]
            panel.plot([x, to], [y + 0.13, above - 0.13], color="#d97706", alpha=max(0.15, confidence), linewidth=1.6)
    panel.set_xlim(-1, widest)
    panel.set_ylim(-0.25, 1.25)
    panel.set_axis_off()
    panel.set_title(f"layer and head {PAIR}, confidence {found.confidence:.3f}", fontsize=9, color="#1f2937")
    return figure


def main() -> None:
    """Print the map of a reaction, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reaction", help="SMILES, reactants>>product")
    parser.add_argument("--target", default="127.0.0.1:50051", help="host:port of the server's gRPC")
    parser.add_argument("--model", default="rxnmapper")
    parser.add_argument("--figure", help="file to draw to, SVG or PNG")
    arguments = parser.parse_args()
    found = ask(arguments.target, arguments.model, arguments.reaction)
    for number, (atom, source, confidence) in enumerate(
        zip(found.product, found.sources, found.confidences, strict=True)
    ):
        print(f"product {number} {found.tokens[atom.position]:6} reactant {source:3}  {confidence:.3f}")
    print(f"confidence {found.confidence:.6f}")
    if arguments.figure:
        draw(found).savefig(arguments.figure)


if __name__ == "__main__":
    main()
