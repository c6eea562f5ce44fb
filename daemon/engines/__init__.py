"""Engines: where they live, how they are loaded, and how a batch gets to one and back."""
