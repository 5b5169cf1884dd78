"""What a loss depends on, read off autograd's graph."""

from __future__ import annotations

from torch import Tensor


def in_graph(loss: Tensor) -> set[int]:
    """ids of the parameters that `loss` depends on."""
    seen, found, todo = set(), set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        todo += [parent for parent, _ in node.next_functions]
    return found
