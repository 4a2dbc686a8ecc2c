"""The commands. They parse, ask, show and exit with the outcome's code; what they show was decided elsewhere."""
