"""A small transformer twice: sae-lens's HookedSAETransformer, and a plain torch module hooked."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from sae_lens import HookedSAETransformer
from torch import nn
from transformer_lens import HookedTransformerConfig

from neuro_lens.hooks import Attention, In, Out, Residual, hook_model

POSITION = {"axis": "position"}
TAPS = [
    Out("hook_embed", "embed", **POSITION),
    In("blocks.{l}.hook_resid_pre", "blocks.{l}", **POSITION),
    Out("blocks.{l}.attn.hook_q", "blocks.{l}.q", heads="heads", **POSITION),
    Out("blocks.{l}.attn.hook_k", "blocks.{l}.k", heads="heads", **POSITION),
    Out("blocks.{l}.attn.hook_v", "blocks.{l}.v", heads="heads", **POSITION),
    Attention("blocks.{l}.attn", "blocks.{l}", query="position", key="position"),
    In("blocks.{l}.attn.hook_z", "blocks.{l}.o", heads="heads", **POSITION),
    Residual("blocks.{l}.hook_attn_out", "blocks.{l}.hook_resid_mid", "blocks.{l}.o", **POSITION),
    Out("blocks.{l}.mlp.hook_pre", "blocks.{l}.up", **POSITION),
    Out("blocks.{l}.mlp.hook_post", "blocks.{l}.act", **POSITION),
    Residual(
        "blocks.{l}.hook_mlp_out", "blocks.{l}.hook_resid_post", "blocks.{l}.down", **POSITION
    ),
]


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))
        self.up, self.act, self.down = nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)

    def forward(self, x):
        x = x + self.attend(self.ln1(x))
        return x + self.down(self.act(self.up(self.ln2(x))))

    def attend(self, x):
        q, k, v = (
            f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(z.transpose(1, 2).flatten(-2))


class Plain(nn.Module):
    """The peer's forward and weights."""

    def __init__(self, peer):
        super().__init__()
        c = peer.cfg
        self.embed = nn.Embedding(c.d_vocab, c.d_model)
        self.pos = nn.Embedding(c.n_ctx, c.d_model)
        self.blocks = nn.ModuleList(Block(c.d_model, c.n_heads) for _ in range(c.n_layers))
        self.ln_final, self.unembed = nn.LayerNorm(c.d_model), nn.Linear(c.d_model, c.d_vocab)
        self.embed.weight.data = peer.embed.W_E.data.clone()
        self.pos.weight.data = peer.pos_embed.W_pos.data.clone()
        take(self.ln_final, peer.ln_final.w, peer.ln_final.b)
        take(self.unembed, peer.unembed.W_U.T, peer.unembed.b_U)
        for block, theirs in zip(self.blocks, peer.blocks, strict=True):
            attn, mlp = theirs.attn, theirs.mlp
            for mine, weight, bias in (
                (block.q, attn.W_Q, attn.b_Q),
                (block.k, attn.W_K, attn.b_K),
                (block.v, attn.W_V, attn.b_V),
            ):
                take(mine, weight.transpose(1, 2).flatten(0, 1), bias.flatten())
            take(block.o, attn.W_O.flatten(0, 1).T, attn.b_O)
            take(block.up, mlp.W_in.T, mlp.b_in)
            take(block.down, mlp.W_out.T, mlp.b_out)
            take(block.ln1, theirs.ln1.w, theirs.ln1.b)
            take(block.ln2, theirs.ln2.w, theirs.ln2.b)

    def forward(self, tokens):
        x = self.embed(tokens) + self.pos.weight[: tokens.shape[1]].expand(len(tokens), -1, -1)
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.ln_final(x))


def take(module, weight, bias):
    module.weight.data, module.bias.data = weight.data.clone(), bias.data.clone()


class Peers:
    """``theirs`` and ``ours``, with the same random weights."""

    def __init__(self):
        config = HookedTransformerConfig(
            n_layers=3,
            d_model=16,
            n_ctx=8,
            d_head=8,
            n_heads=2,
            d_vocab=11,
            d_mlp=64,
            act_fn="gelu",
            normalization_type="LN",
            seed=0,
        )
        with pytest.deprecated_call(match="HookedTransformer"):
            self.theirs = HookedSAETransformer(config).eval()
        g = torch.Generator().manual_seed(2)
        for p in self.theirs.parameters():
            p.data += 0.2 * torch.randn(p.shape, generator=g)
        plain = Plain(self.theirs).eval()
        self.ours = hook_model(plain, TAPS, masks={"position": None})
        self.tokens = torch.randint(0, 11, (3, 6), generator=g)
        self.shared = [n for n in self.ours.hook_dict if n in self.theirs.hook_dict]

    def both(self, use):
        """Return what ``use(model)`` gives for each."""
        return use(self.theirs), use(self.ours)

    def agree(self, use):
        """Assert that both give the same tensors."""
        theirs, ours = self.both(use)
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
        return ours
