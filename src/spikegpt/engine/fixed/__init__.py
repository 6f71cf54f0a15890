"""The event-driven model in integers only: no float from the token's number to the logits.

`formats` says how wide everything is, `model` makes the constants, `reference` is the specification.
"""
