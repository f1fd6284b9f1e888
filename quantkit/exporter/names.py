"""Names of the values in an exported graph that the parity gate reads.

Every target's emitter gives them, as far as its operators let the value be seen.
"""

from quantkit.encoder import LayerPlan, SharedInput

__all__ = ["attention_name", "codes_name", "product_name", "token_scale_name"]


def codes_name(shared: SharedInput) -> str:
    """Graph value with the codes of a shared input: uint8, or int8 that are 128 less."""
    return f"{shared.linears[0]}/codes"


def product_name(shared: SharedInput) -> str:
    """Graph value with the merged Linears' result, bias included."""
    return f"{shared.linears[0]}/product"


def token_scale_name(shared: SharedInput) -> str:
    """Graph value with the scales [..., 1] of a shared input that has one per token."""
    return f"{shared.linears[0]}/scale"


def attention_name(layer: LayerPlan) -> str:
    """Graph value with a layer's attention context, before its output projection.

    [batch, length, hidden]; where only the first token's is read, [batch, 1, hidden] or all of it.
    """
    return f"{layer.attention_output.linears[0]}/context"
