"""Our intake and store as the daemon wires them: the real server, hook, authentication and SQLite file."""

import asyncio
import base64
import os
import sys
from pathlib import Path

from rollbackd.app.daemon import serve

CONFIGURATION = """
[server]
listen = "127.0.0.1:0"
max_waiting_deliveries = 100000
[store]
directory = "{folder}/store"
[logging]
level = "error"
[hooks.rollbackd]
secrets = ["file:{folder}/key"]
[[targets]]
name = "other"
service = "other"
environment = "staging"
[targets.database]
url = "postgresql://nobody@127.0.0.1:1/none"
[targets.migrations]
directory = "{folder}"
python = ["python3"]
[targets.scratch]
same_server = true
[targets.backup]
directory = "{folder}/backups"
"""


def main() -> None:
    """Serve: folder, key in base64. Events concern a service that nobody guards, so that only receiving is measured."""
    folder = Path(sys.argv[1])
    descriptor = os.open(folder / "key", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, b"whsec_" + base64.b64encode(base64.b64decode(sys.argv[2])))
    os.close(descriptor)
    path = folder / "rollbackd.toml"
    path.write_text(CONFIGURATION.format(folder=folder))
    asyncio.run(serve(path, on_ready=lambda port: print(port, flush=True)))


main()
