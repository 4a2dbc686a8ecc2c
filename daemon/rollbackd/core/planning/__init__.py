"""The plan: ordered steps as data, laid out from what is known of a way back before it is taken.

`laying_out` is the way in, `inputs` what it is given; `plan` and `steps` are what comes of it, and all that the rest reads.
"""
