"""Made-up rows for a scratch database, so that what a migration does to rows shows where there are none.

Which values there are is core's (`rollbackd.core.made_up`); here the catalog says what a table asks for, and the
database has the last word: whatever is tried is tried in a savepoint.

`filling` is the way in and gives each table its rows, `completing` adds what those don't show yet.
"""
