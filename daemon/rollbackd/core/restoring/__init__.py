"""Bringing archived data back: from what is kept and what stands there now to SQL, which overwrites nothing newer.

`planning` is the way in and gives the statements in their order; each kind of loss (`inserting`, `circles`, `changed`,
`values`, `sequences`) is a module, `archived` and `sql` are the pieces that they share.
"""
