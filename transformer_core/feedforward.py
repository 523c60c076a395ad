"""The two-layer network that acts on each token alone."""

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from transformer_core.choices import check_choice
from transformer_core.dropout import Dropout
from transformer_core.linear import Linear

Activation = Literal["relu", "gelu", "gelu_tanh", "swiglu"]


class FeedForward(nn.Module):
    """Widen to `hidden_dim`, bend, and come back.

    Source: Vaswani et al. (2017), section 3.3 (ReLU); Hendrycks and Gimpel (2016) (GELU, exact, or its tanh
    approximation, with which models from JAX were trained); Shazeer (2020) (SwiGLU: a third matrix, `hidden_dim` counts
    the gated features, so that equal parameters need 2/3 of it).

    Raises:
        ValueError: the activation is another.
    """

    def __init__(self, dim: int, hidden_dim: int, *, activation: Activation = "relu", dropout: float = 0.0) -> None:
        super().__init__()
        check_choice("activation", activation, Activation)
        self.activation = activation
        self.wide = Linear(dim, 2 * hidden_dim if activation == "swiglu" else hidden_dim)
        self.narrow = Linear(hidden_dim, dim)
        self.dropout = Dropout(dropout)
        for layer in (self.wide, self.narrow):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
        """Act on each token; dropout falls on the hidden features."""
        hidden = self.wide(x)
        match self.activation:
            case "relu":
                hidden = F.relu(hidden)
            case "gelu":
                hidden = F.gelu(hidden)
            case "gelu_tanh":
                hidden = F.gelu(hidden, approximate="tanh")
            case "swiglu":
                gate, hidden = hidden.chunk(2, -1)
                hidden = F.silu(gate) * hidden
        return self.narrow(self.dropout(hidden))
