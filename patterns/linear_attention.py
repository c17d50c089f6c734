"""Linear attention: queries times the product of keys and values, with a sum over the keys in place of a softmax.

Found from each product of a product: one sums over the tokens, the next over what is left of the keys, and the result
is divided by something that is computed from queries and keys, or the keys are a softmax over their tokens. How that
something is computed nobody reads: the site is built and proven by running it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import sympy
from torch.fx import Node

from .attention import with_value
from .attention_site import Parts, arrange, bounds, inverse, name_axes, operand, or_none
from .axes import Atom, Contraction, Layout, contraction, downward, einsum_of, resolved
from .describe import description, element_bytes, named_dimensions
from .effects import effects_of
from .evaluate import before
from .graph import NormalGraph
from .linear import fixed_nodes
from .linear_attention_axes import spread
from .nodes import CASTS, MOVEMENTS, argument, operation, readers, scalar, tensor
from .ones import without_ones
from .operands import Candidate, climb, descend, factor_of
from .product import Product, Refused, product
from .proof import prove
from .reasons import Reason
from .sites import ATTENTIONS, LinearAttention, Site, Sites
from .softmax import softmax_at

# Views and casts between the two products, and between the last one and the quotient.
_LONGEST = 8


def find_linear_attention(graph: NormalGraph, sites: Sites) -> tuple[list[Site], list[Reason]]:
    """Every linear attention of the graph, proven, in order; and why what is divided like one is none.

    Only attention where every query sees every key: a mask or a decay makes a recurrence of it. Linear time; no guard
    on a symbolic size.
    """
    before = sites.of(*ATTENTIONS)
    taken = {node for site in before for node in site.interior}
    first = len(before)
    finder = _Finder(graph)
    found: list[Site] = []
    refusals: list[Reason] = []
    for node in graph.module.graph.nodes:
        for spec, divisor in _products(node):
            for chain in _inner(spec):
                if taken.isdisjoint((node, *chain)):
                    try:
                        site = finder.site(f"attention.{first + len(found)}", node, spec, divisor, chain)
                    except Refused as refused:
                        refusals.append(refused.reason)
                        continue
                    if site is not None:
                        found.append(site)
                        taken |= site.interior
    return found, refusals


def _products(node: Node) -> Iterator[tuple[Contraction, Node | None]]:
    """``node`` as the product of two values; or, in one einsum, that times one number for each query."""
    spec = contraction(node)
    if spec is not None:
        yield spec, None
    operands = argument(node, "tensors") if operation(node) == "einsum" else ()
    if len(operands) != 3 or any(tensor(item) is None for item in operands):
        return
    terms, _, out = str(argument(node, "equation")).replace(" ", "").partition("->")
    sides = terms.split(",")
    for index, factor in enumerate(operands):
        others = [place for place in range(3) if place != index]
        pair = einsum_of(f"{sides[others[0]]},{sides[others[1]]}->{out}", [operands[place] for place in others])
        if set(sides[index]) <= set(out) and pair is not None:
            yield pair, factor


def _inner(spec: Contraction) -> Iterator[list[Node]]:
    """For each operand that comes from another product: that product, and the steps down to the operand."""
    for end in (spec.left, spec.right):
        chain = [end]
        while contraction(chain[-1]) is None and len(chain) < _LONGEST:
            node, scaled = chain[-1], factor_of(chain[-1])
            source = scaled[0] if scaled is not None else node.args[0] if node.args else None
            if node.op != "call_function" or not isinstance(source, Node) or len(readers(source)) != 1:
                break
            chain.append(source)
        if contraction(chain[-1]) is not None:
            yield chain[::-1]


@dataclass(eq=False)
class _End:
    """Where the attention ends: its last node, what that is divided by, and the factor in between."""

    node: Node
    layout: Layout
    divisor: Node | None = None
    factor: float = 1.0


class _Finder:
    """Reads sites of one graph."""

    def __init__(self, graph: NormalGraph) -> None:
        self.graph = graph
        self.fixed = fixed_nodes(graph)
        self.effects = effects_of(graph)

    def site(
        self, name: str, node: Node, spec: Contraction, divisor: Node | None, chain: Sequence[Node]
    ) -> LinearAttention | None:
        """The linear attention whose last product is ``node``, or None for another product of products.

        Raises:
            Refused: it is divided by something that is not the sum over the keys.
        """
        read = self._parts(node, spec, divisor, chain)
        if read is None:
            return None
        parts, divisor, longer = read
        for normalised, epsilon in _normalisers(divisor, parts):
            site = self._build(name, parts, longer, normalised, epsilon)
            if prove(site, self.graph) is None:
                return site
        text = "what queries, keys and values are divided by is not the sum over the keys"
        raise Refused("not-proven", text, node)

    def _parts(
        self, node: Node, spec: Contraction, divisor: Node | None, chain: Sequence[Node]
    ) -> tuple[Parts, Node | None, dict[Atom, Atom]] | None:
        """The operands, the divisor, and the channel axis with the one that a column of ones makes of it."""
        other = spec.right if spec.left is chain[-1] else spec.left
        if not self.fixed.isdisjoint((other, *chain[0].all_input_nodes)):
            return None
        try:
            inner = product(chain[0])
            moved = _moved(inner, chain)
            if moved is None:
                return None
            layout, factor = moved
            summed = _summed(spec, chain[-1], layout)
            if summed not in (inner.rows, inner.columns):
                return None
            below = with_value(spec, node, chain[-1], layout, summed)
        except Refused:
            return None
        kept = inner.columns if summed is inner.rows else inner.rows
        left, right = (inner.spec.left, inner.left), (inner.spec.right, inner.right)
        key, value = (left, right) if summed is inner.rows else (right, left)
        own = {*inner.batch, inner.rows, inner.columns}
        (tokens,) = {atom for axis in inner.left for atom in axis if atom not in own}
        query, keys, values = climb(below.value, below.value_layout), climb(*key), climb(*value, scaled=False)
        longer: dict[Atom, Atom] = {}
        plain = without_ones(values[-1].node, values[-1].layout, kept)
        if plain is not None:
            source, source_layout, channels = plain
            values = climb(source, source_layout, scaled=False)
            longer, kept = {channels: kept}, channels
        if divisor is None and (quotient := _quotient(query[-1].node)) is not None:
            source, divisor = quotient
            query = climb(source, query[-1].layout)
        end = _end(node, below.out, divisor, longer)
        if end is None or (end.divisor is None and not any(_softened(item, tokens) for item in keys)):
            return None
        parts = Parts(
            anchor=node,
            form="linear",
            batch=inner.batch,
            rows=below.channels,
            columns=tokens,
            inner=summed,
            channels=kept,
            query=query,
            key=keys,
            value=values,
            output=descend(end.node, end.layout),
            scale=factor * end.factor,
            biases=[],
            layouts={},
            dropout=0.0,
            hidden_rows="nan",
            names={atom: "E1" for atom in longer.values()},
        )
        return parts, end.divisor, longer

    def _build(
        self, name: str, parts: Parts, longer: dict[Atom, Atom], normalised: bool, epsilon: float
    ) -> LinearAttention:
        """The site, not yet proven. Raises Refused."""
        arrangement = arrange(parts, self.effects)
        query, key, value = arrangement.operands
        output = arrangement.output.node
        operands = tuple(candidate.node for candidate, _ in arrangement.operands)
        inputs, interior = bounds(operands, (), output, self.effects)
        given = {candidate.node: candidate.layout for candidate, _ in arrangement.operands}
        parts = replace(parts, layouts=spread(given, before([output], inputs), longer))
        axes, names, sizes = name_axes(parts, arrangement, interior, ())
        if any(node not in axes for node in operands):
            raise Refused("unsupported-shape", "the operands have no common axes", output)
        symbols, dimensions = named_dimensions(**sizes)
        rows, columns, features, channels = (symbols[letter] for letter in "STDE")
        batch, groups = sympy.Mul(*(symbols[letter] for letter in names)), arrangement.letters.groups
        return LinearAttention(
            id=name,
            form=parts.form,
            query=operand(*query),
            key=operand(*key),
            value=operand(*value),
            scale=parts.scale * query[0].factor * key[0].factor,
            normalised=normalised,
            epsilon=epsilon,
            groups=groups,
            output_permutation=or_none(inverse(arrangement.output_order)),
            flops=2 * batch * (rows + columns / groups) * features * channels,
            bytes=batch * (rows + columns / groups) * (features + channels) * element_bytes(output),
            dimensions=dimensions,
            axes=axes,
            **description(parts.anchor, interior, inputs, (output,)),
        )


def _moved(inner: Product, chain: Sequence[Node]) -> tuple[Layout, float] | None:
    """The layout of the last of ``chain``, and the constant it was multiplied with since the first, a product."""
    layout, factor = inner.out, scalar(inner.spec.alpha)
    if factor is None or (inner.spec.addend is not None and scalar(inner.spec.beta) != 0.0):
        return None
    for step in chain[1:]:
        scaled, below = factor_of(step), downward(step, layout)
        if scaled is None and below is None:
            return None
        factor *= scaled[1] if scaled is not None else 1.0
        layout = layout if below is None else below
    return layout, factor


def _summed(spec: Contraction, side: Node, layout: Layout) -> Atom | None:
    """The only axis of ``side`` that the product sums over, if it is one atom."""
    letters = spec.left_letters if spec.left is side else spec.right_letters
    gone = [axis for letter, axis in zip(letters, resolved(layout), strict=True) if letter not in spec.out_letters]
    return gone[0][0] if len(gone) == 1 and len(gone[0]) == 1 else None


def _softened(candidate: Candidate, tokens: Atom) -> bool:
    """True for a softmax over the tokens: its sum over them is one."""
    found = softmax_at(candidate.node)
    return found is not None and found.weights is candidate.node and candidate.layout[found.axis] == (tokens,)


def _quotient(node: Node) -> tuple[Node, Node] | None:
    """``(a, b)`` when ``node`` is ``a / b``, or ``a`` times ``1 / b``, of tensors."""
    left, right = (*node.args, None, None)[:2]
    if not isinstance(left, Node) or not isinstance(right, Node) or tensor(left) is None or tensor(right) is None:
        return None
    if scalar(left) is not None or scalar(right) is not None:
        return None
    if operation(node) in ("div", "true_divide"):
        return left, right
    for one, other in ((left, right), (right, left)) if operation(node) == "mul" else ():
        if _inverted(other):
            return one, other
    return None


def _inverted(node: Node) -> bool:
    """True for ``1 / x`` behind views and casts."""
    for _ in range(_LONGEST):
        if operation(node) == "reciprocal" or (operation(node) == "pow" and scalar(node.args[1]) == -1.0):
            return True
        if operation(node) in ("div", "true_divide"):
            return scalar(node.args[0]) is not None
        if operation(node) not in MOVEMENTS | CASTS or not isinstance(node.args[0], Node):
            return False
        node = node.args[0]
    return False


def _end(node: Node, layout: Layout, divisor: Node | None, longer: dict[Atom, Atom]) -> _End | None:
    """The quotient that ``node`` leads to, or ``node`` itself; None when a column of ones is not cut off again."""
    if divisor is not None:
        return None if longer else _End(node, layout, divisor)
    here, axes, factor, cut = node, layout, 1.0, not longer
    for _ in range(_LONGEST):
        users = readers(here)
        if not cut and len(users) == 2:
            kept = [user for user in users if operation(user) == "slice" and argument(user, "start") in (None, 0)]
            shorter = {other: atom for atom, other in longer.items()}
            if len(kept) != 1:
                return None
            axes = tuple(tuple(shorter.get(atom, atom) for atom in axis) for axis in resolved(axes))
            here, cut = kept[0], True
            continue
        if len(users) != 1:
            break
        (user,) = users
        quotient = _quotient(user)
        if quotient is not None and quotient[0] is here:
            return _End(user, axes, quotient[1], factor)
        scaled, below = factor_of(user), downward(user, axes) if user.args and user.args[0] is here else None
        if scaled is None and below is None:
            break
        here, axes, factor = user, axes if below is None else below, factor * (scaled[1] if scaled else 1.0)
    return _End(node, layout) if not longer else None


def _normalisers(divisor: Node | None, parts: Parts) -> list[tuple[bool, float]]:
    """How it may be normalised: what is added to the sum over the keys is one of the numbers in the divisor."""
    if divisor is None:
        return [(False, 0.0)]
    stops = {item.node for item in (*parts.query, *parts.key)}
    added = [scalar(node.args[1]) for node in before([divisor], stops) if operation(node) == "add"]
    return [(True, number) for number in dict.fromkeys(added) if number is not None] + [(True, 0.0)]
