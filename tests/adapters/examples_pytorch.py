"""Small decoders of the module structures that PyTorch users build."""

from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

D, HEADS, UNITS, OUT = 16, 2, 6, 3
N, T = 3, 5
LAYOUTS = [{"norm_first": n, "batch_first": b} for n in (False, True) for b in (False, True)]


def layer(kind=nn.TransformerEncoderLayer, **kwargs):
    return kind(D, HEADS, 32, **{"dropout": 0.1, "batch_first": True, **kwargs})


def encoder(n_layers=2, norm=None, **kwargs):
    return nn.TransformerEncoder(layer(**kwargs), n_layers, norm, enable_nested_tensor=False)


class Binned(nn.Module):
    """NDT2's outline: embedded spike counts, learned positions, an encoder, a linear readout."""

    def __init__(self, **kwargs):
        super().__init__()
        self.batch_first = kwargs.get("batch_first", True)
        self.embed = nn.Linear(UNITS, D)
        self.position = nn.Parameter(torch.randn(20, D))
        self.encoder = encoder(norm=nn.LayerNorm(D), **kwargs)
        self.readout = nn.Linear(D, OUT)

    def forward(self, spikes, padding_mask=None):
        x = self.embed(spikes) + self.position[: spikes.shape[1]]
        causal = nn.Transformer.generate_square_subsequent_mask(spikes.shape[1])
        if padding_mask is not None:
            causal = causal.isinf()
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.encoder(x, mask=causal, src_key_padding_mask=padding_mask)
        return self.readout(x if self.batch_first else x.transpose(0, 1))


class ConfiguredLayer(nn.TransformerEncoderLayer):
    """NDT1's outline of a layer: its own forward, where to normalise in its config."""

    def __init__(self, pre_norm):
        super().__init__(D, HEADS, 32)
        self.config = SimpleNamespace(PRE_NORM=pre_norm)

    def forward(self, src, src_mask=None):
        x = self.norm1(src) if self.config.PRE_NORM else src
        attended, weights = self.self_attn(x, x, x, attn_mask=src_mask)
        src = src + self.dropout1(attended)
        src = src if self.config.PRE_NORM else self.norm1(src)
        x = self.norm2(src) if self.config.PRE_NORM else src
        src = src + self.dropout2(self.linear2(self.dropout(self.activation(self.linear1(x)))))
        return (src if self.config.PRE_NORM else self.norm2(src)), weights


class ConfiguredEncoder(nn.TransformerEncoder):
    def forward(self, src, mask=None):
        for each in self.layers:
            src, _ = each(src, src_mask=mask)
        return self.norm(src)


class NDT1(nn.Module):
    def __init__(self, pre_norm):
        super().__init__()
        self.embedder = nn.Linear(UNITS, D)
        self.transformer_encoder = ConfiguredEncoder(
            ConfiguredLayer(pre_norm), 2, nn.LayerNorm(D), enable_nested_tensor=False
        )
        self.decoder = nn.Sequential(nn.Linear(D, UNITS))

    def forward(self, src):
        x = self.transformer_encoder(self.embedder(src.permute(1, 0, 2)))
        return self.decoder(x).permute(1, 0, 2)


class EncoderDecoder(nn.Module):
    """An encoder of the recording and queries that read from it."""

    def __init__(self, **kwargs):
        super().__init__()
        self.embed = nn.Linear(UNITS, D)
        self.reading = encoder(1, **kwargs)
        self.queries = nn.Parameter(torch.randn(4, D))
        self.answering = nn.TransformerDecoder(layer(nn.TransformerDecoderLayer, **kwargs), 2)
        self.readout = nn.Linear(D, OUT)

    def forward(self, spikes, src_key_padding_mask=None):
        memory = self.reading(self.embed(spikes), src_key_padding_mask=src_key_padding_mask)
        queries = self.queries.expand(len(spikes), -1, -1)
        answer = self.answering(queries, memory, memory_key_padding_mask=src_key_padding_mask)
        return self.readout(answer)


class RotaryAttention(nn.Module):
    """MtM's and NEDS's outline: three Linears, rotation where wanted, one Linear after."""

    def __init__(self, rotary):
        super().__init__()
        self.n_heads = HEADS
        self.rotary = rotary
        self.query = nn.Linear(D, D)
        self.key = nn.Linear(D, D)
        self.value = nn.Linear(D, D)
        self.dropout = nn.Dropout(0.1)
        self.out_proj = nn.Linear(D, D)

    def forward(self, x, mask=None, timestamp=None):
        q, k, v = (
            f(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        if self.rotary:
            angle = timestamp[:, None, :, None] / 10.0 ** torch.arange(0, q.shape[-1], 2)
            q, k = rotated(q, angle), rotated(k, angle)
        if mask is not None:
            mask = mask[:, None].bool()
        p = 0.1 if self.training else 0.0
        z = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        return self.out_proj(self.dropout(z.transpose(1, 2).flatten(-2)))


def rotated(x, angle):
    even, odd = x[..., ::2], x[..., 1::2]
    turned = (even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos())
    return torch.stack(turned, -1).flatten(-2)


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.up_proj = nn.Linear(D, 32)
        self.act = nn.GELU()
        self.down_proj = nn.Linear(32, D)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        return self.dropout(self.down_proj(self.act(self.up_proj(x))))


class RotaryBlock(nn.Module):
    def __init__(self, rotary):
        super().__init__()
        self.ln1 = nn.LayerNorm(D)
        self.attn = RotaryAttention(rotary)
        self.ln2 = nn.LayerNorm(D)
        self.mlp = FeedForward()

    def forward(self, x, mask=None, timestamp=None):
        x = x + self.attn(self.ln1(x), mask=mask, timestamp=timestamp)
        return x + self.mlp(self.ln2(x))


class MtM(nn.Module):
    """Blocks in ``layers``, rotary attention under a context and padding mask."""

    def __init__(self):
        super().__init__()
        self.embedder = nn.Linear(UNITS, D)
        self.layers = nn.ModuleList(RotaryBlock(rotary=True) for _ in range(2))
        self.out_norm = nn.LayerNorm(D)
        self.out = nn.Linear(D, UNITS)

    def forward(self, spikes, spikes_mask, spikes_timestamp):
        n = spikes.shape[1]
        mask = torch.eye(n, dtype=torch.bool) | spikes_mask[:, None, :].expand(-1, n, -1)
        x = self.embedder(spikes)
        for block in self.layers:
            x = block(x, mask, spikes_timestamp)
        return self.out(self.out_norm(x))


class NEDS(nn.Module):
    """Tokens of two modalities in one sequence; blocks in ``encoder``, called with keywords."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.ModuleDict({"spike": nn.Linear(UNITS, D), "wheel": nn.Linear(1, D)})
        self.encoder = nn.ModuleList(RotaryBlock(rotary=False) for _ in range(2))
        self.encoder_norm = nn.LayerNorm(D)
        self.heads = nn.ModuleDict({"spike": nn.Linear(D, UNITS), "wheel": nn.Linear(D, 1)})

    def forward(self, spike, wheel):
        inputs = {"spike": spike, "wheel": wheel}
        x = torch.cat([self.embeddings[m](v) for m, v in inputs.items()], dim=1)
        for block in self.encoder:
            x = block(x, timestamp=None)
        pieces = self.encoder_norm(x).chunk(2, dim=1)
        return {m: self.heads[m](piece) for m, piece in zip(inputs, pieces, strict=True)}


class FusedAttention(nn.Module):
    """ViV1T's outline: its own norm, one Linear for q, k and v, normalised q and k."""

    def __init__(self):
        super().__init__()
        self.num_heads = HEADS
        self.norm = nn.LayerNorm(D)
        self.to_qkv = nn.Linear(D, 3 * 24, bias=False)
        self.norm_q, self.norm_k = nn.LayerNorm(24), nn.LayerNorm(24)
        self.attn_out = nn.Sequential(nn.Linear(24, D), nn.Dropout(0.1))

    def forward(self, inputs):
        q, k, v = self.to_qkv(self.norm(inputs)).chunk(3, dim=-1)
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.norm_q(q), self.norm_k(k), v)
        )
        z = F.scaled_dot_product_attention(q, k, v)
        return self.attn_out(F.dropout(z, 0.1, self.training).transpose(1, 2).flatten(-2))


class DropPath(nn.Module):
    def forward(self, x):
        if not self.training:
            return x
        return x.div(0.9) * x.new_empty(len(x), 1, 1).bernoulli_(0.9)


class FusedBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = FusedAttention()
        self.ff = nn.Sequential(
            nn.LayerNorm(D), nn.Linear(D, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, D)
        )
        self.drop_path1, self.drop_path2 = DropPath(), DropPath()

    def forward(self, inputs):
        outputs = self.drop_path1(self.attention(inputs)) + inputs
        return self.drop_path2(self.ff(outputs)) + outputs


class Transformer(nn.Module):
    def __init__(self, depth):
        super().__init__()
        self.blocks = nn.ModuleList(FusedBlock() for _ in range(depth))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class ViV1T(nn.Module):
    """Attention over patches of each frame, then over frames of each patch."""

    def __init__(self):
        super().__init__()
        self.tokenizer = nn.Linear(5, D)
        self.spatial_transformer = Transformer(1)
        self.temporal_transformer = Transformer(2)
        self.readout = nn.Linear(D, OUT)

    def forward(self, video):
        windows, frames, patches, _ = video.shape
        x = self.spatial_transformer(self.tokenizer(video).flatten(0, 1))
        x = x.unflatten(0, (windows, frames)).transpose(1, 2).flatten(0, 1)
        x = self.temporal_transformer(x).unflatten(0, (windows, patches))
        return self.readout(x.mean(1))


class ImageLikeBlock(nn.Module):
    """Blocks around nn.MultiheadAttention, as vision transformers have them."""

    def __init__(self, batch_first):
        super().__init__()
        self.attn = nn.MultiheadAttention(D, HEADS, batch_first=batch_first)
        self.ln_1 = nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, 32), nn.GELU(), nn.Linear(32, D))
        self.ln_2 = nn.LayerNorm(D)

    def forward(self, x):
        n = self.ln_1(x)
        x = x + self.attn(n, n, n, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class ImageLike(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Linear(UNITS, D)
        self.resblocks = nn.Sequential(*(ImageLikeBlock(batch_first) for _ in range(2)))

    def forward(self, spikes):
        x = self.embed(spikes)
        if self.batch_first:
            return self.resblocks(x).mean(1)
        return self.resblocks(x.transpose(0, 1)).mean(0)


class Pooling(nn.Module):
    """One query that attends over a recording, with nn.MultiheadAttention alone."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(UNITS, D)
        self.query = nn.Parameter(torch.randn(1, 1, D))
        self.pool = nn.MultiheadAttention(D, HEADS, batch_first=True, dropout=0.1)
        self.readout = nn.Linear(D, OUT)

    def forward(self, spikes):
        x = self.embed(spikes)
        pooled, weights = self.pool(self.query.expand(len(x), -1, -1), x, x)
        return self.readout(pooled), weights


def spikes():
    return torch.randn(N, T, UNITS)


def stream(batch_first=True, t=T):
    return torch.randn(N, t, D) if batch_first else torch.randn(t, N, D)


def padded():
    padding = torch.zeros(N, T, dtype=torch.bool)
    padding[0, 3:] = True
    padding[2, 2:] = True
    return padding


def layer_alone(layout):
    return layer(**layout), {"src": stream(layout["batch_first"])}


def padded_encoder(layout):
    inputs = {"src": stream(layout["batch_first"]), "src_key_padding_mask": padded()}
    return encoder(**layout), inputs


def decoder_layer(layout):
    first = layout["batch_first"]
    inputs = {"tgt": stream(first), "memory": stream(first, 4), "tgt_key_padding_mask": padded()}
    return layer(nn.TransformerDecoderLayer, **layout), inputs


def binned(layout):
    return Binned(**layout), {"spikes": spikes(), "padding_mask": padded()}


def whole_transformer(layout):
    first = layout["batch_first"]
    inputs = {"src": stream(first), "tgt": stream(first, 4), "src_key_padding_mask": padded()}
    model = nn.Transformer(D, HEADS, 1, 1, 32, **layout)
    model.encoder.use_nested_tensor = False
    return model, inputs


def ndt1(pre_norm):
    return NDT1(pre_norm), {"src": spikes()}


def encoder_decoder():
    model = EncoderDecoder(norm_first=True)
    return model, {"spikes": spikes(), "src_key_padding_mask": padded()}


def mtm():
    times = torch.arange(T).expand(N, -1)
    return MtM(), {"spikes": spikes(), "spikes_mask": ~padded(), "spikes_timestamp": times}


def neds():
    return NEDS(), {"spike": spikes(), "wheel": torch.randn(N, T, 1)}


def viv1t():
    return ViV1T(), {"video": torch.randn(2, 4, 3, 5)}


def image_like(batch_first):
    return ImageLike(batch_first), {"spikes": spikes()}


def pooling():
    return Pooling(), {"spikes": spikes()}


def attention_with_everything():
    mha = nn.MultiheadAttention(D, HEADS, kdim=8, vdim=4, add_bias_kv=True, add_zero_attn=True)
    inputs = {"query": torch.randn(6, N, D), "key": torch.randn(T, N, 8)}
    return mha, inputs | {"value": torch.randn(T, N, 4), "key_padding_mask": padded()}


def _named(build, layout):
    norm = "pre-norm" if layout["norm_first"] else "post-norm"
    return f"{build.__name__}-{norm}-{'windows' if layout['batch_first'] else 'positions'}-first"


_WITH_LAYOUTS = (layer_alone, padded_encoder, decoder_layer, binned)
EXAMPLES = {
    **{_named(b, kw): partial(b, kw) for b in _WITH_LAYOUTS for kw in LAYOUTS},
    "whole_transformer": partial(whole_transformer, LAYOUTS[1]),
    "ndt1-pre-norm": partial(ndt1, True),
    "ndt1-post-norm": partial(ndt1, False),
    "encoder_decoder": encoder_decoder,
    "neds": neds,
    "viv1t": viv1t,
    "image_like-windows-first": partial(image_like, True),
    "image_like-positions-first": partial(image_like, False),
    "pooling": pooling,
    "attention_with_everything": attention_with_everything,
}
