"""A library for live transcription: audio in, events out.

Has no sockets, no asyncio, no threads and no configuration files.
"""
