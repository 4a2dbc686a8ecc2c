"""The daemon of a configuration, which says its port once it listens."""

import asyncio
import sys
from pathlib import Path

from rollbackd.app.daemon import serve

asyncio.run(serve(Path(sys.argv[1]), on_ready=lambda port: print(port, flush=True)))
