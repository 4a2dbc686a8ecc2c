"""The durable shell around the core: it asks the ports, records, and acts one journalled step after another.

What to conclude from what was found belongs to the core; how a thing is reached belongs to the adapters.
"""
