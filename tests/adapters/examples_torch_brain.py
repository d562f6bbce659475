"""POYO and CalciumPOYOPlus with inputs that hold padding, two recordings and several tasks."""

import torch

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
TASKS = torch.tensor([[1, 1, 2, 0, 0, 0], [2, 1, 2, 1, 0, 0], [1, 1, 1, 2, 2, 2]])


def poyo():
    """POYO of torch_brain 0.2."""
    from torch_brain.models import POYO

    decoder = with_vocabularies(POYO(dim_out=4, **SIZES))
    output_mask = torch.ones(N_WINDOWS, N_OUTPUTS, dtype=torch.bool)
    output_mask[1, 4:] = False
    queries = {"session_index": torch.tensor([1, 2, 1]), "output_mask": output_mask}
    return decoder, tokens() | spikes() | queries


def calcium_poyo_plus():
    """Our CalciumPOYOPlus, with one task that nothing in the batch asks for."""
    from neuro_lens.decoders import CalciumPOYOPlus, Readout

    readouts = {
        "direction": Readout(1, 8, "classification", "t", "v"),
        "speed": Readout(2, 2, "regression", "t", "v"),
        "frame": Readout(3, 5, "classification", "t", "v"),
    }
    decoder = with_vocabularies(CalciumPOYOPlus(readout_specs=readouts, **SIZES))
    return decoder, tokens() | values() | queries()


EXAMPLES = {"POYO": poyo, "CalciumPOYOPlus": calcium_poyo_plus}


def with_vocabularies(decoder):
    """Give every unit and recording an embedding that is not almost zero."""
    decoder.unit_emb.initialize_vocab([f"u{i}" for i in range(N_UNITS)])
    decoder.session_emb.initialize_vocab(["a", "b"])
    for p in decoder.parameters():
        if p.ndim == 2 and p.std() < 0.1:
            torch.nn.init.normal_(p, std=0.5)
    return decoder


def tokens():
    """Units and times of the inputs, the latent grid, and the times of the outputs."""
    mask = torch.ones(N_WINDOWS, N_INPUTS, dtype=torch.bool)
    mask[0, 15:] = False
    grid = torch.tensor([0.25, 0.75]).repeat_interleave(3)
    return {
        "input_unit_index": torch.randint(1, N_UNITS + 1, (N_WINDOWS, N_INPUTS)),
        "input_timestamps": torch.rand(N_WINDOWS, N_INPUTS),
        "input_mask": mask,
        "latent_index": torch.arange(3).repeat(N_WINDOWS, 2),
        "latent_timestamps": grid.repeat(N_WINDOWS, 1),
        "output_timestamps": torch.rand(N_WINDOWS, N_OUTPUTS),
    }


def spikes():
    """Token types of spikes."""
    return {"input_token_type": torch.randint(0, 3, (N_WINDOWS, N_INPUTS))}


def values():
    """Calcium traces."""
    return {"input_values": torch.randn(N_WINDOWS, N_INPUTS, 1)}


def queries():
    """Two tasks, and outputs of none."""
    session = torch.tensor([1, 2, 1])[:, None].expand(N_WINDOWS, N_OUTPUTS)
    return {"output_session_index": session, "output_decoder_index": TASKS}
