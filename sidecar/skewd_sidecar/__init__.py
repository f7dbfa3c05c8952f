"""What a node's clock bounds say about the spans that leave it: an OTLP sidecar.

``patch`` and ``causality`` do the thinking, ``gateway``, ``endpoint``, ``outcome`` and ``source`` the deciding (all
pure); ``receive``, ``relay``, ``forward`` and ``metrics`` move the bytes; ``service`` is the whole.
"""
