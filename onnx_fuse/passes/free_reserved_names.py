"""Makes room for names that onnxruntime takes without asking."""

from __future__ import annotations

from onnx_fuse.ir.model import Model
from onnx_fuse.op import schema

# Of the Reshapes around a fused MatMul and Add, and of what stood in a function's body.
_RESERVED = ("gemm_input_", "gemm_output_", "_inlfunc_")


def free_reserved_names(model: Model) -> None:
    """Give initializers of a fused model other names where onnxruntime would take theirs.

    Inlining a body, and fusing the MatMul and Add that it brings back, makes initializers of these
    names, perhaps with more behind them, without a look at those that an earlier run of it left in
    the file, and the session is not created (1.23 to 1.32). A model without fused blocks is left as
    it is.
    """
    if not any(n.domain == schema.DOMAIN for graph in model.graphs() for n in graph.nodes):
        return
    main = model.graph
    for value in main.initializers:
        is_own = value.is_input or value.is_output  # a name that the user knows
        if not value.name.startswith(_RESERVED) or is_own or value.constant is None:
            continue
        other = main.add_initializer(f"kept_{value.name}", value.constant)
        for use in value.uses:
            use.node.graph.replace_input(use.node, use.index, other)
        main.remove_initializer(value)
