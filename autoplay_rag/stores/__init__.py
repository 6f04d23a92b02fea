"""Stores: where chunks are kept and found."""
