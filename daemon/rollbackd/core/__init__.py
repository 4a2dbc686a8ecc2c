"""The pure part: values in, values out. No await, no clock, no randomness, no I/O.

Assessing, deciding, planning and judging belong here; whatever has to ask the world for something does not.
"""
