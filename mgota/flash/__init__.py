"""Flash memories and chips: what knows offsets, sectors and option bits.

Simulators stand where a test or a virtual device wants a chip; real media implement the same Protocols.
"""
