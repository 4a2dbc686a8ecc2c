"""TOML to settings, and the composition root: the only place that knows concrete classes and wires them."""
