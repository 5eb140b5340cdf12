"""The same GPT in PyTorch: the oracle of the gradient tests and the peer of the benchmark.

Imported only where PyTorch is installed. `TorchGPT` takes its weights from a model of ours, under
the same names, and uses PyTorch's own fused functions, as nanoGPT does.
"""

import torch
import torch.nn.functional as F

from .model import GPT


class TorchGPT:
    def __init__(self, model: GPT) -> None:
        self.config = model.config
        self.weights = {
            name: torch.tensor(parameter.numpy(), requires_grad=True)
            for name, parameter in model.named_parameters()
        }

    def layer_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return F.layer_norm(x, weight.shape, weight, bias, 1e-5)

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def loss(self, idx: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """idx, targets: int64 (B, T) -> mean cross-entropy."""
        c, p = self.config, self.config.dropout
        (b, t), w = idx.shape, self.weights["transformer.wte.weight"]
        x = F.dropout(w[idx] + self.weights["transformer.wpe.weight"][:t], p)
        for i in range(c.n_layer):
            h = f"transformer.h.{i}"
            qkv = self.linear(self.layer_norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn")
            q, k, v = (
                part.view(b, t, c.n_head, c.n_embd // c.n_head).transpose(1, 2)
                for part in qkv.split(c.n_embd, dim=2)
            )
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
            y = self.linear(y.transpose(1, 2).reshape(b, t, c.n_embd), f"{h}.attn.c_proj")
            x = x + F.dropout(y, p)
            y = self.linear(self.layer_norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
            y = self.linear(F.gelu(y, approximate="tanh"), f"{h}.mlp.c_proj")
            x = x + F.dropout(y, p)
        logits = F.linear(self.layer_norm(x, "transformer.ln_f"), w)
        return F.cross_entropy(logits.view(b * t, -1), targets.reshape(-1))
