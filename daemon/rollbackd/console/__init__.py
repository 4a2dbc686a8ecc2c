"""The pages that a person looks at: the console, and the report as one file. Rendered here; what they show is the workflow's."""
