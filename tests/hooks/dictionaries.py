"""Small dictionaries with random weights."""

import torch
from sae_lens import (
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)

POST = "blocks.1.hook_resid_post"


def make_sae(kind="standard", hook=POST, **kwargs):
    torch.manual_seed(3)
    made = {
        "standard": lambda c: StandardSAE(StandardSAEConfig(**c)),
        "topk": lambda c: TopKSAE(TopKSAEConfig(k=4, **c)),
        "rescaled topk": lambda c: TopKSAE(
            TopKSAEConfig(k=4, rescale_acts_by_decoder_norm=True, **c)
        ),
        "jumprelu": lambda c: JumpReLUSAE(JumpReLUSAEConfig(**c)),
        "gated": lambda c: GatedSAE(GatedSAEConfig(**c)),
        "layer norm": lambda c: StandardSAE(
            StandardSAEConfig(normalize_activations="layer_norm", **c)
        ),
    }[kind]({"d_in": 16, "d_sae": 40} | kwargs)
    for p in made.parameters():
        p.data += 0.1 * torch.randn_like(p)
        p.requires_grad_(False)
    made.cfg.metadata.hook_name = hook
    return made
