"""Why a block is not fused: an exception from where that is found to where sites are listed."""

from __future__ import annotations

from onnx_fuse.ir.graph import Node
from onnx_fuse.report import Code


class Declined(Exception):
    """A block that can't be fused: the code, the node at fault and the facts of the sentence.

    `node` and `op` are the node's own name and operator where no other ones are given.
    """

    def __init__(self, code: Code, node: Node | None, /, **facts: object) -> None:
        super().__init__(code)
        self.code = code
        self.node = node
        own = {} if node is None else {"node": node.name, "op": node.bare_op}
        self.facts = own | facts
