"""The floor: an aiohttp handler on the same event loop that reads the body and answers 202 at once."""

import asyncio
import signal

from aiohttp import web


async def receive(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(status=202, text='{"id":"x","events":1}', content_type="application/json")


async def main() -> None:
    app = web.Application()
    app.router.add_post("/hooks/{name}", receive)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=512)
    await site.start()
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    print(runner.addresses[0][1], flush=True)
    await stopping.wait()
    await runner.cleanup()


asyncio.run(main())
