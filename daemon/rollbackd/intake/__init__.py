"""The outside talks to us: HTTP server, authentication of deliveries, what they mean, the API.

Nothing is accepted that isn't on disk, and nothing here decides what is done about it.
"""
