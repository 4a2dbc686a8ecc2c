"""The guarded databases, as read with asyncpg: who they are, where they stand, what they hold. Nothing here changes one."""
