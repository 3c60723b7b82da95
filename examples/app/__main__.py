"""A small gateway application that updates itself: a zip of its own code, which `mgota run` starts.

    python3 -m zipapp examples/app -o app.pyz           # with public.pem beside this file
    mgota sign app.pyz
    mgota provision app.signed.pyz --dir DIR --key public.pem
    mgota run --dir DIR --key public.pem -- python3 {slot} 8000

It serves its version at /, and the update endpoints beside it. `mgota demo` updates it a few times.
"""

import pkgutil
import sys
from functools import partial

import anyio
from release import VERSION

from mgota import Device, Verifier, load_public_key, run_trial
from mgota.transports.http import Request, Response, serve
from mgota.trial import keep_fed


async def answer(request: Request) -> Response:
    """What this application is for."""
    if request.path != "/":
        return Response.line("there is nothing here", 404)
    return Response.json({"application": "greeter", "version": VERSION})


async def answers_at(port: int) -> bool:
    """Whether it does what it is for: then a version on trial may stay. Failing to connect is an answer, too."""
    with anyio.fail_after(1):
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return b" 200 " in await stream.receive()


async def main(port: int) -> None:
    """Serve, show signs of life, and commit once healthy."""
    device = Device.from_environment(
        verifier=Verifier(keys=[load_public_key(pkgutil.get_data("release", "public.pem") or b"")])
    )

    async def healthy() -> bool:
        return await answers_at(port)

    async with serve(device, port=port, app=answer), anyio.create_task_group() as tasks:
        if device.watchdog:
            tasks.start_soon(partial(keep_fed, device.watchdog, interval=1))
        await run_trial(device, check=healthy, interval=0.2)
        await anyio.sleep_forever()


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]))
