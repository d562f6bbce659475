"""Two torch_brain decoders, their inputs, and their forwards written out by hand."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch_brain.models import POYO
from torch_brain.nn import RotaryTimeEmbedding

from neuro_lens.decoders import CalciumPOYOPlus, Readout
from neuro_lens.hooks import hook_model

SIZES = {
    "sequence_length": 1.0,
    "latent_step": 0.5,
    "num_latents_per_step": 3,
    "dim": 16,
    "depth": 2,
    "dim_head": 8,
    "cross_heads": 2,
    "self_heads": 2,
    "atn_dropout": 0.1,
    "t_min": 0.1,
    "t_max": 2.0,
}
N_UNITS, N_WINDOWS, N_INPUTS, N_OUTPUTS = 10, 3, 20, 6


def build_poyo():
    torch.manual_seed(0)
    decoder = POYO(dim_out=4, **SIZES)
    _vocabularies(decoder)
    return decoder.eval()


def build_plus():
    torch.manual_seed(0)
    readouts = {
        "direction": Readout(1, 8, "classification", "t", "v"),
        "speed": Readout(2, 2, "regression", "t", "v"),
        "frame": Readout(3, 5, "classification", "t", "v"),
    }
    decoder = CalciumPOYOPlus(readout_specs=readouts, **SIZES)
    _vocabularies(decoder)
    return decoder.eval()


def _vocabularies(decoder):
    decoder.unit_emb.initialize_vocab([f"u{i}" for i in range(N_UNITS)])
    decoder.session_emb.initialize_vocab(["a", "b"])
    for p in decoder.parameters():  # published initial values leave embeddings almost at zero
        if p.ndim == 2 and p.std() < 0.1:
            torch.nn.init.normal_(p, std=0.5)


def build_inputs(kind):
    g = torch.Generator().manual_seed(1)
    mask = torch.ones(N_WINDOWS, N_INPUTS, dtype=torch.bool)
    mask[0, 15:] = False
    grid = torch.tensor([0.25, 0.75]).repeat_interleave(3)
    inputs = {
        "input_unit_index": torch.randint(1, N_UNITS + 1, (N_WINDOWS, N_INPUTS), generator=g),
        "input_timestamps": torch.rand(N_WINDOWS, N_INPUTS, generator=g),
        "input_mask": mask,
        "latent_index": torch.arange(3).repeat(N_WINDOWS, 2),
        "latent_timestamps": grid.repeat(N_WINDOWS, 1),
        "output_timestamps": torch.rand(N_WINDOWS, N_OUTPUTS, generator=g),
    }
    if kind == "poyo":
        output_mask = torch.ones(N_WINDOWS, N_OUTPUTS, dtype=torch.bool)
        output_mask[1, 4:] = False
        tokens = torch.randint(0, 3, (N_WINDOWS, N_INPUTS), generator=g)
        session = torch.tensor([1, 2, 1])
        extra = {"output_mask": output_mask, "input_token_type": tokens, "session_index": session}
        return inputs | extra
    tasks = torch.tensor([[1, 1, 2, 0, 0, 0], [2, 1, 2, 1, 0, 0], [1, 1, 1, 2, 2, 2]])
    session = torch.tensor([1, 2, 1])[:, None].expand(N_WINDOWS, N_OUTPUTS)
    values = torch.randn(N_WINDOWS, N_INPUTS, 1, generator=g)
    return inputs | {
        "input_values": values,
        "output_decoder_index": tasks,
        "output_session_index": session,
    }


def by_hand(m, inputs, at, eager=None):
    """Run a POYO, POYOPlus or CalciumPOYOPlus with ``at(name, x)`` at every hook point.

    ``eager`` names the one attention whose scores and pattern are written out.
    """
    plus = hasattr(m, "task_emb")
    unit = at("hook_unit_embed", m.unit_emb(inputs["input_unit_index"]))
    if hasattr(m, "input_value_map"):
        value = at("hook_value_embed", m.input_value_map(inputs["input_values"]))
        tokens = torch.cat((value, unit), dim=-1)
    else:
        kind = m.token_type_emb(inputs["input_token_type"])
        tokens = unit + at("hook_token_type_embed", kind)
    rot = {n: m.rotary_emb(inputs[f"{n}_timestamps"]) for n in ("input", "latent", "output")}
    x = at("hook_latent_embed", m.latent_emb(inputs["latent_index"]))
    x = at("enc.hook_resid_pre", x)
    if plus:
        session = at("hook_session_embed", m.session_emb(inputs["output_session_index"]))
        task = at("hook_task_embed", m.task_emb(inputs["output_decoder_index"]))
        queries = at("dec.hook_resid_pre", session + task)
    else:
        session = at("hook_session_embed", m.session_emb(inputs["session_index"]))
        queries = session.unsqueeze(1).expand(-1, inputs["output_timestamps"].shape[1], -1)
    tokens = at("enc.hook_context", tokens)
    mask = inputs["input_mask"]
    out = _cross(m.enc_atn, "enc", at, x, tokens, rot["latent"], rot["input"], mask, eager)
    x = at("enc.hook_resid_mid", x + at("enc.hook_attn_out", out))
    x = x + at("enc.hook_mlp_out", _mlp(m.enc_ffn, "enc", at, x))
    x = at("enc.hook_resid_post", x)
    for i, (attn, ffn) in enumerate(m.proc_layers):
        b = f"blocks.{i}"
        x = at(f"{b}.hook_resid_pre", x)
        h = at(f"{b}.ln1.hook_out", attn.norm(x))
        q, k, v = attn.to_qkv(h).chunk(3, dim=-1)
        out = _attend(attn, b, at, q, k, v, rot["latent"], rot["latent"], None, eager)
        x = x + at(f"{b}.hook_attn_out", m.dropout(out))
        x = at(f"{b}.hook_resid_mid", x)
        x = x + at(f"{b}.hook_mlp_out", m.dropout(_mlp(ffn, b, at, x)))
        x = at(f"{b}.hook_resid_post", x)
    out = _cross(m.dec_atn, "dec", at, queries, x, rot["output"], rot["latent"], None, eager)
    queries = at("dec.hook_resid_mid", queries + at("dec.hook_attn_out", out))
    queries = queries + at("dec.hook_mlp_out", _mlp(m.dec_ffn, "dec", at, queries))
    queries = at("hook_readout_in", at("dec.hook_resid_post", queries))
    if not plus:
        return at("hook_readout_out", m.readout(queries))
    outputs = {}
    for index, name in ((1, "direction"), (2, "speed")):
        picked = queries[inputs["output_decoder_index"] == index]
        outputs[name] = at(f"readout.{name}", m.readout.projections[name](picked))
    return outputs


def _cross(atn, b, at, x, context, q_rot, k_rot, mask, eager):
    q = atn.to_q(at(f"{b}.ln1.hook_out", atn.norm(x)))
    k, v = atn.to_kv(at(f"{b}.ln_context.hook_out", atn.norm_context(context))).chunk(2, dim=-1)
    return _attend(atn, b, at, q, k, v, q_rot, k_rot, mask, eager)


def _attend(atn, b, at, q, k, v, q_rot, k_rot, mask, eager):
    b = f"{b}.attn"
    q, k, v = (
        at(f"{b}.hook_{n}", x.unflatten(-1, (atn.heads, -1)))
        for n, x in zip("qkv", (q, k, v), strict=True)
    )
    rotate = RotaryTimeEmbedding.rotate
    q, k = rotate(q.transpose(1, 2), q_rot, 1), rotate(k.transpose(1, 2), k_rot, 1)
    v = rotate(v.transpose(1, 2), k_rot, 1) if atn.rotate_value else v.transpose(1, 2)
    q, k, v = (
        at(f"{b}.hook_rot_{n}", x.transpose(1, 2)).transpose(1, 2)
        for n, x in zip("qkv", (q, k, v), strict=True)
    )
    mask = None if mask is None else mask[:, None, None, :]
    p = atn.dropout if atn.training else 0
    if eager == b:
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        scores = scores if mask is None else scores.masked_fill(~mask, -torch.inf)
        pattern = at(f"{b}.hook_attn_scores", scores).softmax(-1)
        z = F.dropout(at(f"{b}.hook_pattern", pattern), p) @ v
    else:
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
    if atn.rotate_value:
        z = rotate(z, RotaryTimeEmbedding.invert(q_rot), 1)
    z = at(f"{b}.hook_z", z.transpose(1, 2)).flatten(-2)
    return atn.to_out(z)


def _mlp(ffn, b, at, x):
    linear, gate = ffn[1].net[0](at(f"{b}.ln2.hook_out", ffn[0](x))).chunk(2, dim=-1)
    linear = at(f"{b}.mlp.hook_pre_linear", linear)
    gate = at(f"{b}.mlp.hook_pre", gate)
    linear, gate = torch.cat((linear, gate), -1).chunk(2, -1)  # gelu's last bit knows strides
    post = at(f"{b}.mlp.hook_post", linear * F.gelu(gate))
    return ffn[1].net[3](ffn[1].net[2](post))


def same(a, b):
    """Whether two outputs are bit-identical."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    return torch.equal(a, b)


def close(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k]) for k in a)
    return torch.allclose(a, b, atol=1e-5, rtol=1e-4)


def bare_of_hooks(decoder):
    """Whether no torch hook is registered on any of the decoder's modules."""
    return not any(
        m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in decoder.modules()
    )


class Case:
    """A decoder, its inputs and its truth."""

    def __init__(self, kind):
        self.kind = kind
        self.decoder = {"poyo": build_poyo, "plus": build_plus}[kind]()
        self.inputs = build_inputs(kind)
        self.hooked = hook_model(self.decoder)

    def bare(self):
        torch.manual_seed(7)
        return self.decoder(**self.inputs)

    def truth(self, at=lambda name, x: x, eager=None):
        torch.manual_seed(7)
        return by_hand(self.decoder, self.inputs, at, eager)

    def run(self, **kwargs):
        torch.manual_seed(7)
        return self.hooked.run_with_hooks(**self.inputs, **kwargs)

    def cache(self, names=None, **kwargs):
        torch.manual_seed(7)
        return self.hooked.run_with_cache(**self.inputs, names_filter=names, **kwargs)

    same = staticmethod(same)
    close = staticmethod(close)

    def clean(self):
        return bare_of_hooks(self.decoder)

    @property
    def exact_names(self):
        """Names of the hooks whose reading leaves outputs bit-identical, that fire here."""
        loose = ("scores", "pattern", "readout.frame")
        return [n for n in self.hooked.hook_dict if not n.endswith(loose)]


@pytest.fixture(params=["poyo", "plus"])
def case(request):
    return Case(request.param)


@pytest.fixture
def poyo():
    return Case("poyo")


@pytest.fixture
def plus():
    return Case("plus")
