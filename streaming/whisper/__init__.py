"""The half of the library that knows PyTorch: jobs in, results out.

Knows nothing of streams.
"""
