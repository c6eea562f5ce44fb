"""The half that knows torch, and never hears of streams."""
