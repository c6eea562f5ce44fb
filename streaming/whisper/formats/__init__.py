"""Weights of Whisper in other programs' files, read as tensors by the names of the Hugging Face layout.

`ctranslate2.py` (faster-whisper), `openai.py` (the original `.pt`) and `ggml.py` (whisper.cpp) own one format each, and
what can be wrong with it. `imported.py` is what they share. `vocabulary.py` is the tokenizer and the rules of decoding,
as far as the file or its neighbours tell them. `read.py` distinguishes the formats and returns a whole model. None of
them runs anything that a file holds.
"""
