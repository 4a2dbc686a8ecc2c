"""Counts on a database what a rehearsed way back would cost its rows, and which of them would make it fail.

Every query is a short transaction of its own (a savepoint where one is open), so that no snapshot and no lock is held
over many tables. What goes wrong with one of them is said in its answer and stops no other.

`measuring` is the way in and lists the questions; what goes, what changes its type, what is written and what has to
hold from then on (`gone`, `casts`, `writes`, `rules`) are a module each.
"""
