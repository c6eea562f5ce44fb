"""`python -m bench.peers`."""

from bench.peers.play import main

main()
