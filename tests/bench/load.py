"""A bounded load: N connections that post signed events over keep-alive for some seconds; prints answers 202 a second.

Requests are written by hand on plain streams, so that the client costs little beside the server that is measured.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import sys
import time


async def main() -> None:
    port, connections, seconds, warm_up = (
        int(sys.argv[1]),
        int(sys.argv[2]),
        float(sys.argv[3]),
        float(sys.argv[4]),
    )
    key = base64.b64decode(sys.argv[5])
    counted = 0
    counting_from = time.monotonic() + warm_up
    until = counting_from + seconds

    async def post(number: int) -> None:
        nonlocal counted
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = 0
        while time.monotonic() < until:
            sent += 1
            event = {
                "kind": "deploy.started",
                "service": "shop",
                "environment": "staging",
                "version": f"2026.11.{sent}",
                "previous_version": "2026.11.2",
                "deployment": f"{number}-{sent}",
                "occurred_at": "2026-11-22T10:00:00Z",
                "reason": "",
                "url": "https://ci.example.com/jobs/811",
                "labels": {"team": "orders"},
            }
            body = json.dumps(event).encode()
            message, now = f"msg_{time.monotonic_ns()}_{number}", str(int(time.time()))
            signed = f"{message}.{now}.".encode() + body
            signature = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
            head = (
                "POST /hooks/rollbackd HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"webhook-id: {message}\r\nwebhook-timestamp: {now}\r\nwebhook-signature: v1,{signature}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            if b" 202 " not in answer[:16]:
                raise SystemExit(f"answered {answer[:40]!r}")
            if time.monotonic() >= counting_from:
                counted += 1
        writer.close()

    await asyncio.gather(*(post(number) for number in range(connections)))
    print(counted / seconds)


asyncio.run(main())
