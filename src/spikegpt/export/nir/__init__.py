"""A model's neurons, and the matrices that touch them, as NIR graphs with a declared host boundary: `spikegpt export nir`.

What NIR cannot say (norms, token shift, gates, the WKV average) stays with the host; `verify` runs the graphs in a simulator
and compares every spike with the trace that was written beside them.
"""
