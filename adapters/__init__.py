"""Adapters: one file a decoder family, installed as neuro_lens.adapters."""
