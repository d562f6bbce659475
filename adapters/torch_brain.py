"""Taps of the torch_brain decoders."""
