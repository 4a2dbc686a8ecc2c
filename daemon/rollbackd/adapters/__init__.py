"""We talk to the outside: one module or folder for each thing talked to.

An adapter fulfils a protocol of `ports` and decides nothing.
"""
