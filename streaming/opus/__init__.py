"""Opus, in the containers that browsers and tools send it in.

`ogg.py` and `webm.py` take one container each apart; `demuxer.py` is what they share; `decoder.py` tells the containers
apart and decodes their packets.
"""
